//! `--image-size`: one size, or several that grow while the run goes on.
use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use freezeout::Steps;
use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::usage::usage;

/// Most sizes of a run.
const MOST: usize = 16;

const EXPECTED: &str =
    "a size in pixels such as 224, or sizes that grow such as \"128:80%,224\" or \"128:40,224\"";

/// Sides of a run's images in pixels: `224`, or `128:80%,224`: 128 for the first four fifths of the steps, 224 to the end.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageSizes {
    /// Those before the last, each with its end.
    earlier: Vec<(usize, Until)>,
    last: usize,
}

/// Where a size ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Until {
    /// After so many epochs.
    Epoch(usize),
    /// After so many of a hundred steps, to the nearest step.
    Percent(f64),
}

impl Until {
    /// As a part of the run.
    fn part(self, epochs: usize) -> f64 {
        match self {
            Self::Epoch(epoch) => epoch as f64 / epochs as f64,
            Self::Percent(percent) => percent / 100.0,
        }
    }

    /// The first step behind it.
    fn step(self, steps: &Steps) -> usize {
        match self {
            Self::Epoch(epoch) => epoch.saturating_mul(steps.per_epoch()),
            Self::Percent(percent) => (percent / 100.0 * steps.total() as f64).round() as usize,
        }
    }
}

impl ImageSizes {
    /// The same size from beginning to end.
    pub fn one(size: usize) -> Self {
        Self {
            earlier: Vec::new(),
            last: size,
        }
    }

    /// That of the run's beginning.
    pub fn first(&self) -> usize {
        self.earlier.first().map_or(self.last, |(size, _)| *size)
    }

    /// That of the run's end.
    pub fn last(&self) -> usize {
        self.last
    }

    /// All, in their order.
    pub fn all(&self) -> impl Iterator<Item = usize> + '_ {
        let earlier = self.earlier.iter().map(|(size, _)| *size);
        earlier.chain([self.last])
    }

    /// Whether there is more than one.
    pub fn grow(&self) -> bool {
        !self.earlier.is_empty()
    }

    /// The first step of each size, in a run of these steps.
    ///
    /// # Errors
    /// A usage error: a size that is left without a step.
    pub fn by_step(&self, steps: &Steps) -> Result<Vec<(usize, usize)>> {
        let ends = self.earlier.iter().map(|(_, until)| until.step(steps));
        let starts: Vec<usize> = [0].into_iter().chain(ends.clone()).collect();
        let ends = ends.chain([steps.total()]);
        let sizes = starts.into_iter().zip(self.all());
        let one = |((start, size), end)| {
            match start < end {
            true => Ok((start, size)),
            false => Err(usage(format!(
                "image-size {self}: none of the run's {} steps is left for {size} px; move the ends",
                steps.total()
            ))),
        }
        };
        sizes.zip(ends).map(one).collect()
    }

    /// Refuses what cannot be in a run of so many epochs.
    ///
    /// # Errors
    /// A usage error with what is wrong.
    pub fn check(&self, epochs: usize) -> Result<()> {
        let refuse = |what: String| Err(usage(format!("image-size {self}: {what}")));
        if !self.all().is_sorted_by(|a, b| a < b) {
            return refuse("sizes must grow, each be larger than the one before".into());
        }
        let mut begin = 0.0;
        for (size, until) in &self.earlier {
            let part = until.part(epochs);
            // NaN lies nowhere.
            if !(part > 0.0 && part < 1.0) {
                return refuse(format!(
                    "{size} px must end within the run's {epochs} epochs, between 0% and 100%"
                ));
            }
            if part <= begin {
                return refuse(format!("{size} px ends before it begins"));
            }
            begin = part;
        }
        Ok(())
    }

    /// The same with ends that are parts of the run, and so go with any number of epochs.
    pub fn in_parts(&self, epochs: usize) -> Self {
        let part = |&(size, until): &(usize, Until)| {
            let percent = match until {
                Until::Epoch(_) => 100.0 * until.part(epochs),
                Until::Percent(percent) => percent,
            };
            (size, Until::Percent(percent))
        };
        Self {
            earlier: self.earlier.iter().map(part).collect(),
            last: self.last,
        }
    }
}

impl fmt::Display for ImageSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (size, until) in &self.earlier {
            match until {
                Until::Epoch(epoch) => write!(f, "{size}:{epoch},")?,
                Until::Percent(percent) => write!(f, "{size}:{percent}%,")?,
            }
        }
        write!(f, "{}", self.last)
    }
}

impl FromStr for ImageSizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            let number = digits.then(|| part.parse::<usize>().ok()).flatten();
            number.ok_or_else(|| format!("'{part}' is no whole number; expected {EXPECTED}"))
        };
        let (earlier, last) = match text.rsplit_once(',') {
            Some((earlier, last)) => (earlier.split(',').collect(), last),
            None => (Vec::new(), text),
        };
        if earlier.len() >= MOST {
            return Err(format!("more than {MOST} sizes"));
        }
        let one = |part: &str| {
            let (size, until) = part.split_once(':').ok_or_else(|| {
                format!(
                    "'{part}' does not say until when, and is not the last; expected {EXPECTED}"
                )
            })?;
            let until = match until.strip_suffix('%') {
                Some(percent) => Until::Percent(percent.parse::<f64>().map_err(|_| {
                    format!("'{percent}' is no number of percent; expected {EXPECTED}")
                })?),
                None => Until::Epoch(number(until)?),
            };
            Ok((number(size)?, until))
        };
        let earlier = earlier.into_iter().map(one);
        let earlier = earlier.collect::<Result<Vec<_>, String>>()?;
        if let Some((size, _)) = last.split_once(':') {
            return Err(format!(
                "'{last}' ends before the run does, and is the last; the last one goes to the end: {size}"
            ));
        }
        let last = number(last)?;
        Ok(Self { earlier, last })
    }
}

/// One size as a number, as it has always been; several as text.
impl Serialize for ImageSizes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.grow() {
            true => serializer.collect_str(self),
            false => serializer.serialize_u64(self.last as u64),
        }
    }
}

impl<'de> Deserialize<'de> for ImageSizes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl Visitor<'_> for Sizes {
            type Value = ImageSizes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_u64<E: de::Error>(self, size: u64) -> Result<ImageSizes, E> {
                let wrong = || E::invalid_value(Unexpected::Unsigned(size), &self);
                Ok(ImageSizes::one(usize::try_from(size).map_err(|_| wrong())?))
            }

            fn visit_i64<E: de::Error>(self, size: i64) -> Result<ImageSizes, E> {
                let wrong = || E::invalid_value(Unexpected::Signed(size), &self);
                Ok(ImageSizes::one(usize::try_from(size).map_err(|_| wrong())?))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ImageSizes, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(batches: usize, epochs: usize) -> Steps {
        Steps::new(batches, 1, epochs).unwrap()
    }

    #[test]
    fn sizes_begin_where_they_are_said_to() {
        let starts = |text: &str, steps: &Steps| {
            let sizes: ImageSizes = text.parse().unwrap();
            assert_eq!(sizes.to_string(), text);
            sizes.check(steps.total() / steps.per_epoch()).unwrap();
            sizes.by_step(steps)
        };
        let run = steps(5, 6);
        assert_eq!(starts("224", &run).unwrap(), [(0, 224)]);
        assert_eq!(starts("128:80%,224", &run).unwrap(), [(0, 128), (24, 224)]);
        assert_eq!(starts("128:4,224", &run).unwrap(), [(0, 128), (20, 224)]);
        let three = [(0, 96), (10, 160), (25, 224)];
        assert_eq!(starts("96:2,160:83.3%,224", &run).unwrap(), three);
        // So short a run has no step for one of them.
        let error = starts("128:10%,224", &steps(1, 2)).unwrap_err().to_string();
        assert!(error.contains("none of the run's 2 steps is left for 128 px"));
        let error = starts("128:90%,224", &steps(1, 2)).unwrap_err().to_string();
        assert!(error.contains("left for 224 px"), "{error}");
    }

    #[test]
    fn ends_in_epochs_become_parts() {
        let sizes: ImageSizes = "96:10,128:25%,224".parse().unwrap();
        assert_eq!(sizes.in_parts(80).to_string(), "96:12.5%,128:25%,224");
        assert_eq!(ImageSizes::one(32).in_parts(80), ImageSizes::one(32));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, said) in [
            ("", "'' is no whole number"),
            ("x", "'x' is no whole number; expected a size in pixels"),
            ("-3", "'-3' is no whole"),
            ("128:80%", "is the last; the last one goes to the end: 128"),
            ("128,224", "'128' does not say until when"),
            ("128:x%,224", "'x' is no number of percent"),
            ("128:1.5,224", "'1.5' is no whole number"),
            ("128:80%,", "'' is no whole number"),
            ("128:80%,224,", "'224' does not say until when"),
        ] {
            let error = text.parse::<ImageSizes>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        let many = "8:1%,".repeat(16) + "9";
        assert!(many
            .parse::<ImageSizes>()
            .unwrap_err()
            .contains("more than 16"));
        for (text, said) in [
            ("224:80%,128", "sizes must grow"),
            ("128:50%,128", "sizes must grow"),
            ("128:50%,96:80%,224", "sizes must grow"),
            ("128:100%,224", "128 px must end within the run's 6 epochs"),
            ("128:0,224", "must end within"),
            ("128:6,224", "must end within"),
            ("128:nan%,224", "must end within"),
            ("128:-5%,224", "must end within"),
            ("128:50%,160:3,224", "160 px ends before it begins"),
        ] {
            let sizes: ImageSizes = text.parse().unwrap();
            let error = sizes.check(6).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn one_size_is_a_number_in_files() {
        let json = |text: &str| {
            let sizes: ImageSizes = text.parse().unwrap();
            let json = serde_json::to_string(&sizes).unwrap();
            assert_eq!(serde_json::from_str::<ImageSizes>(&json).unwrap(), sizes);
            json
        };
        assert_eq!(json("224"), "224");
        assert_eq!(json("128:80%,224"), "\"128:80%,224\"");
        for wrong in ["-1", "true", "2.5", "\"128:1,\""] {
            assert!(
                serde_json::from_str::<ImageSizes>(wrong).is_err(),
                "{wrong}"
            );
        }
    }
}
