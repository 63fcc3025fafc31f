//! The images of a classifier's training, checked before anything is computed.
use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use datasets::{Shapes, Source, MAX_PIXELS};

use crate::console::{counted, note};
use crate::input::classes::{self, Relabelled};
use crate::input::dataset;
use crate::run::checkpoint::Fingerprint;
use crate::train::{Supervised, Training};
use crate::usage::usage;

/// Both splits, with the same classes.
pub struct Data {
    pub train: Arc<dyn Source>,
    pub val: Arc<dyn Source>,
    pub fingerprint: Fingerprint,
}

impl Data {
    /// Opens both splits and compares them.
    pub fn open(training: &Training, supervised: &Supervised, image_size: usize) -> Result<Self> {
        Self::open_both(
            (training.data(), supervised.val_data.as_deref()),
            training.samples,
            image_size,
        )
    }

    /// The same by names; `samples` and `image_size` are those of 'shapes'.
    pub fn open_both(
        (data, val_data): (&str, Option<&str>),
        samples: usize,
        image_size: usize,
    ) -> Result<Self> {
        let from = val_data.unwrap_or(data);
        dataset::note_samples(data, samples);
        let open = |data, split| open_split(data, split, samples, image_size);
        let (train, val) = (open(data, "train")?, open(from, "val")?);
        if val.is_empty() {
            return Err(usage(format!("{from}: the validation split has no images")));
        }
        // A source without splits gives all it has whatever is asked for.
        if val_data.is_none() && same_images(&*train, &*val) {
            return Err(usage(format!(
                "{from}: no validation split, only the training images; give other ones with --val-data SRC"
            )));
        }
        check_labels("training", &*train)?;
        check_labels("validation", &*val)?;
        let val = match same_classes(train.classes(), val.classes())? {
            None => val,
            Some(map) => Arc::new(Relabelled::new(val, train.classes().to_vec(), &map)),
        };
        let (a, b) = (Fingerprint::of(&*train), Fingerprint::of(&*val));
        let both = Fingerprint {
            images: a.images + b.images,
            names: a.names ^ b.names.rotate_left(1),
            weights: 0,
        };
        Ok(Self {
            fingerprint: both.with_classes(train.classes()),
            train,
            val,
        })
    }

    /// Names of the classes.
    pub fn classes(&self) -> &[String] {
        self.train.classes()
    }

    /// Both splits in a line each.
    pub fn describe(&self) -> String {
        format!(
            "training:   {}\nvalidation: {}",
            self.train.describe(),
            self.val.describe()
        )
    }
}

/// One split of a dataset; `samples` and `image_size` are those of 'shapes'.
pub fn open_split(
    data: &str,
    split: &str,
    samples: usize,
    image_size: usize,
) -> Result<Arc<dyn Source>> {
    Ok(match (data, split) {
        ("shapes", "train") => Arc::new(Shapes::new(0, image_size, samples)),
        // Other seeds draw other images.
        ("shapes", "val") => Arc::new(Shapes::new(1, image_size, (samples / 4).max(10))),
        ("shapes", other) => {
            return Err(usage(format!(
                "shapes: no split '{}', only train, val",
                other.escape_debug()
            )))
        }
        _ => dataset::open(data, split, MAX_PIXELS)?,
    })
}

fn same_images(a: &dyn Source, b: &dyn Source) -> bool {
    a.len() == b.len()
        && a.describe() == b.describe()
        && (0..a.len()).all(|i| a.name(i) == b.name(i))
}

/// Where validation has other classes than training, or in another order: the training class of each, by name. An error
/// if there is one that training does not have.
fn same_classes(train: &[String], val: &[String]) -> Result<Option<Vec<Option<usize>>>> {
    if train.len() < 2 {
        return Err(usage(format!(
            "the training images have {}, at least 2 are needed",
            counted(train.len(), "class")
        )));
    }
    if train == val {
        return Ok(None);
    }
    let places = classes::places(train.iter().map(String::as_str).enumerate(), val);
    if places.iter().all(Option::is_some) {
        note(match train.len() - val.len() {
            0 => "note: training and validation list their classes in different orders; matched by name"
                .into(),
            missing => format!(
                "note: validation has no images of {missing} of the {} classes",
                train.len()
            ),
        });
        return Ok(Some(places));
    }
    let only = |these: &[String], those: &[String]| {
        let those: BTreeSet<&String> = those.iter().collect();
        let missing = these.iter().find(|name| !those.contains(name));
        missing.map(|name| match name.is_ascii() {
            true => format!("'{}'", name.escape_debug()),
            // Two names can look alike: one letter with its accent, or a letter and an accent behind it.
            false => format!(
                "'{}', in code points '{}'; names that look alike must be written alike",
                name.escape_debug(),
                name.escape_default()
            ),
        })
    };
    let what = match (only(train, val), only(val, train)) {
        (Some(name), _) => format!("validation has no {name}"),
        (None, Some(name)) => format!("training has no {name}"),
        (None, None) => "a name twice".into(),
    };
    Err(usage(format!(
        "the classes of training ({}) and validation ({}) differ: {what}",
        train.len(),
        val.len()
    )))
}

pub fn check_labels(split: &str, source: &dyn Source) -> Result<()> {
    if !source.labelled() {
        return Err(usage(format!(
            "the {split} images have no labels ({}), which this command needs; they come from class folders, .cls files in \
             tars, or in Parquet files a column 'label' of whole numbers, text or booleans, one in each row",
            source.describe()
        )));
    }
    let classes = source.classes().len();
    let bad = (0..source.len()).find(|&i| source.label(i) >= classes);
    match bad {
        None => Ok(()),
        Some(i) => Err(usage(format!(
            "{split} image {} has label {}, there are {classes} classes (0 to {})",
            source.name(i).escape_debug(),
            source.label(i),
            classes.saturating_sub(1)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datasets::{Error, Image, Permit};

    struct Labels(Vec<String>, Vec<usize>);

    impl Source for Labels {
        fn len(&self) -> usize {
            self.1.len()
        }

        fn classes(&self) -> &[String] {
            &self.0
        }

        fn label(&self, index: usize) -> usize {
            self.1[index]
        }

        fn read(&self, _: usize, _: &mut Permit) -> Result<Image, Error> {
            unreachable!("labels are checked before any image is read")
        }

        fn name(&self, index: usize) -> String {
            format!("row {index}")
        }

        fn describe(&self) -> String {
            "labels".into()
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.into()).collect()
    }

    #[test]
    fn a_label_out_of_range_is_named() {
        let source = |labels: &[usize]| Labels(names(&["cat", "dog"]), labels.to_vec());
        assert!(check_labels("training", &source(&[0, 1, 1])).is_ok());
        let error = check_labels("validation", &source(&[0, 1, 2])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "validation image row 2 has label 2, there are 2 classes (0 to 1)"
        );
    }

    #[test]
    fn classes_are_matched_by_name_or_refused() {
        let both = |a: &[&str], b: &[&str]| same_classes(&names(a), &names(b));
        assert!(both(&["cat", "dog"], &["cat", "dog"]).unwrap().is_none());
        for (a, b, want) in [
            (&["cat", "dog"][..], &["dog", "cat"][..], &[1, 0][..]),
            (&["cat", "dog", "eel"], &["eel"], &[2]),
            (
                &["0", "1", "10", "2"],
                &["0", "1", "2", "10"],
                &[0, 1, 3, 2],
            ),
        ] {
            let want: Vec<Option<usize>> = want.iter().copied().map(Some).collect();
            assert_eq!(both(a, b).unwrap().unwrap(), want);
        }
        for (a, b, want) in [
            (
                &["cat", "dog"][..],
                &["cow"][..],
                "(2) and validation (1) differ: validation has no 'cat'",
            ),
            (
                &["cat", "dog"],
                &["cat", "dog", "eel"],
                "training has no 'eel'",
            ),
            (&["cat", "dog", "dog"], &["cat", "dog"], "a name twice"),
            (&["cat"], &["cat"], "1 class, at least 2"),
        ] {
            let error = both(a, b).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn the_training_images_are_no_validation_split() {
        let source = |labels: &[usize]| Labels(names(&["cat", "dog"]), labels.to_vec());
        assert!(same_images(&source(&[0, 1]), &source(&[0, 1])));
        assert!(!same_images(&source(&[0, 1]), &source(&[0, 1, 1])));
    }
}
