//! `--policy`: what freezes is decided while the model trains.
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use anyhow::Result;
use freezeout::{AutoFreeze, FreezeOut, LayerLr, Plasticity};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::usage::usage;

/// Far beyond use.
const MOST: usize = 1_000_000_000;

/// Keys of a schedule's freezing times, which a policy replaces.
const OF_SCHEDULE: [&str; 2] = ["freeze", "t0"];

/// A policy and all its numbers, as text: `autofreeze:interval=100,percentile=50,start=0`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Adaptive {
    AutoFreeze {
        interval: usize,
        percentile: f64,
        start: usize,
    },
    Plasticity {
        interval: usize,
        window: usize,
        tolerance: f64,
        patience: usize,
        unfreeze: f64,
    },
}

impl Adaptive {
    /// The one of this name, as freezeout has it.
    fn named(name: &str) -> Option<Self> {
        let (auto, plasticity) = (AutoFreeze::default(), Plasticity::of_weights());
        match name {
            "autofreeze" => Some(Self::AutoFreeze {
                interval: auto.interval,
                percentile: auto.percentile,
                start: auto.start,
            }),
            "plasticity" => Some(Self::Plasticity {
                interval: plasticity.interval,
                window: plasticity.window,
                tolerance: plasticity.tolerance,
                patience: plasticity.patience,
                unfreeze: plasticity.unfreeze,
            }),
            _ => None,
        }
    }

    /// Its options by name.
    fn options(&mut self) -> Vec<(&'static str, Number<'_>)> {
        match self {
            Self::AutoFreeze {
                interval,
                percentile,
                start,
            } => vec![
                ("interval", Number::Count(interval, 1..=MOST)),
                ("percentile", Number::Part(percentile, 100.0)),
                ("start", Number::Count(start, 0..=MOST)),
            ],
            Self::Plasticity {
                interval,
                window,
                tolerance,
                patience,
                unfreeze,
            } => vec![
                ("interval", Number::Count(interval, 1..=MOST)),
                ("window", Number::Count(window, 2..=10_000)),
                ("tolerance", Number::Part(tolerance, 1.0)),
                ("patience", Number::Count(patience, 1..=MOST)),
                ("unfreeze", Number::Part(unfreeze, 1.0)),
            ],
        }
    }

    /// Lets it decide. It is shown what an optimiser step is made of: the mean over batches and workers, so that all workers
    /// freeze alike, and one worker with all batches as many do.
    pub fn decide(&self, freeze: FreezeOut) -> FreezeOut {
        let freeze = freeze.with_reduced_gradients();
        match *self {
            Self::AutoFreeze {
                interval,
                percentile,
                start,
            } => {
                let mut policy = AutoFreeze::default();
                (policy.interval, policy.percentile, policy.start) = (interval, percentile, start);
                freeze.with_policy(policy)
            }
            Self::Plasticity {
                interval,
                window,
                tolerance,
                patience,
                unfreeze,
            } => {
                let mut policy = Plasticity::of_weights();
                (policy.interval, policy.window) = (interval, window);
                (policy.tolerance, policy.patience) = (tolerance, patience);
                policy.unfreeze = unfreeze;
                freeze.with_policy(policy)
            }
        }
    }

    /// A policy among the flags takes the place of a file's freezing times, and these, as flags, that of a file's policy.
    pub fn complete(file: &mut Table, flags: &Table) {
        if flags.contains_key("policy") {
            OF_SCHEDULE.iter().for_each(|key| drop(file.remove(*key)));
        } else if OF_SCHEDULE.iter().any(|key| flags.contains_key(*key)) {
            file.remove("policy");
        }
        let given = |key: &str| file.contains_key(key) || flags.contains_key(key);
        if given("policy") && !given("freeze") {
            file.insert("freeze".into(), Value::String("none".into()));
        }
    }

    /// Refuses it beside what contradicts it.
    pub fn check(policy: Option<&Self>, freezes: bool, layer_lr: LayerLr) -> Result<()> {
        let Some(policy) = policy else {
            return Ok(());
        };
        if freezes {
            return Err(usage(format!(
                "policy is {policy} and freeze is not none: one of them decides what freezes when; leave the other out"
            )));
        }
        if layer_lr != LayerLr::Shared {
            return Err(usage(format!(
                "policy is {policy}: it decides during the run when layers freeze, so layer-lr must be \"shared\""
            )));
        }
        Ok(())
    }
}

/// A number to be set.
enum Number<'a> {
    /// So much.
    Count(&'a mut usize, RangeInclusive<usize>),
    /// From 0 to so much.
    Part(&'a mut f64, f64),
}

impl Number<'_> {
    fn set(&mut self, text: &str) -> Result<(), String> {
        match self {
            Self::Count(value, range) => {
                let read = text.parse().ok().filter(|read| range.contains(read));
                let (least, most) = (range.start(), range.end());
                **value = read.ok_or(format!(
                    "{text}, expected a whole number from {least} to {most}"
                ))?;
            }
            Self::Part(value, most) => {
                let read = text
                    .parse()
                    .ok()
                    .filter(|read: &f64| (0.0..=*most).contains(read));
                **value = read.ok_or(format!("{text}, expected a number from 0 to {most}"))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Adaptive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut own = self.clone();
        let name = match self {
            Self::AutoFreeze { .. } => "autofreeze",
            Self::Plasticity { .. } => "plasticity",
        };
        let options = own.options().into_iter().map(|(key, number)| match number {
            Number::Count(value, _) => format!("{key}={value}"),
            Number::Part(value, _) => format!("{key}={value}"),
        });
        let options: Vec<String> = options.collect();
        write!(f, "{name}:{}", options.join(","))
    }
}

impl FromStr for Adaptive {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        let mut policy = Self::named(name).ok_or_else(|| {
            format!("unknown policy '{name}', expected autofreeze or plasticity, and options as in autofreeze:interval=50")
        })?;
        let mut seen = Vec::new();
        for option in options
            .split(',')
            .filter(|option| !option.trim().is_empty())
        {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            if seen.contains(&key.trim()) {
                return Err(format!("{name}: {} is there twice", key.trim()));
            }
            seen.push(key.trim());
            let mut known = policy.options();
            let Some((key, number)) = known.iter_mut().find(|(known, _)| *known == key.trim())
            else {
                let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                return Err(format!(
                    "{name} has no option '{}', but {}",
                    key.trim(),
                    names.join(", ")
                ));
            };
            number
                .set(value.trim())
                .map_err(|e| format!("{name}: {key} is {e}"))?;
        }
        Ok(policy)
    }
}

impl TryFrom<String> for Adaptive {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Adaptive> for String {
    fn from(policy: Adaptive) -> Self {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_the_policy() {
        let read = |text: &str| text.parse::<Adaptive>().map(|policy| policy.to_string());
        let auto = "autofreeze:interval=100,percentile=50,start=0";
        assert_eq!(read("autofreeze").unwrap(), auto);
        assert_eq!(read(auto).unwrap(), auto);
        let short = read("plasticity:window=3, tolerance=0.4").unwrap();
        assert_eq!(
            short,
            "plasticity:interval=100,window=3,tolerance=0.4,patience=2,unfreeze=0"
        );
        assert_eq!(read(&short).unwrap(), short);
        for (text, said) in [
            ("egeria", "unknown policy 'egeria'"),
            (
                "autofreeze:window=3",
                "no option 'window', but interval, percentile, start",
            ),
            (
                "autofreeze:interval=0",
                "interval is 0, expected a whole number from 1",
            ),
            (
                "autofreeze:percentile=NaN",
                "percentile is NaN, expected a number from 0 to 100",
            ),
            ("plasticity:window", "window is , expected"),
            ("plasticity:window=99999999", "from 2 to 10000"),
            (
                "autofreeze:interval=2,interval=3",
                "interval is there twice",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
