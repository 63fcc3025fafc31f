//! A dataset's labels as a checkpoint's classes.
use std::collections::{BTreeMap, BTreeSet};

/// Which output stands for which label.
pub struct Labels {
    /// Names of the outputs.
    pub names: Vec<String>,
    /// The output for each label of the data.
    map: Vec<u32>,
    /// What had to be assumed.
    pub note: Option<String>,
}

impl Labels {
    /// By name where both have the same names, else by number. An error if the numbers of classes differ.
    pub fn new(
        known: &BTreeMap<usize, String>,
        outputs: usize,
        classes: &[String],
    ) -> Result<Self, String> {
        if outputs != classes.len() {
            return Err(format!(
                "its head has {outputs} classes, the data {}; they must be as many",
                classes.len()
            ));
        }
        let own: Option<Vec<String>> = (0..outputs).map(|i| known.get(&i).cloned()).collect();
        let by_number: Vec<u32> = (0..outputs as u32).collect();
        let as_data = |note: Option<String>| Self {
            names: classes.to_vec(),
            map: by_number.clone(),
            note,
        };
        let Some(own) = own else {
            return Ok(as_data(Some(
                "the checkpoint does not name its classes: taken in the order of the data's".into(),
            )));
        };
        if own == classes {
            return Ok(as_data(None));
        }
        let places: BTreeMap<&String, u32> = own.iter().zip(0..).collect();
        let map: Option<Vec<u32>> = classes.iter().map(|c| places.get(c).copied()).collect();
        let distinct = map.iter().flatten().collect::<BTreeSet<_>>().len();
        if let Some(map) = map.filter(|_| distinct == outputs) {
            let note =
                "the data's classes have another order than the checkpoint's: matched by name";
            return Ok(Self {
                names: own,
                map,
                note: Some(note.into()),
            });
        }
        let differ = own.iter().zip(classes).filter(|(a, b)| a != b);
        let example = differ.clone().next().map_or(String::new(), |(a, b)| {
            format!("'{}' and '{}'", a.escape_debug(), b.escape_debug())
        });
        Ok(as_data(Some(format!(
            "{} of {outputs} class names differ between checkpoint and data ({example}): matched by number",
            differ.count()
        ))))
    }

    /// The output for a label of the data.
    pub fn of(&self, label: u32) -> u32 {
        self.map.get(label as usize).copied().unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_matched_by_name_where_names_are_the_same() {
        let classes = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        let known = |names: &[&str]| classes(names).into_iter().enumerate().collect();
        let data = classes(&["ant", "bee", "cat"]);
        let all = |labels: Labels| [0, 1, 2].map(|label| labels.of(label));
        let same = Labels::new(&known(&["ant", "bee", "cat"]), 3, &data).unwrap();
        assert!(same.note.is_none());
        assert_eq!(all(same), [0, 1, 2]);
        let other = Labels::new(&known(&["cat", "ant", "bee"]), 3, &data).unwrap();
        assert!(other.note.as_ref().unwrap().contains("by name"));
        assert_eq!(other.names[0], "cat");
        assert_eq!(all(other), [1, 2, 0]);
        let differ = Labels::new(&known(&["ant", "bee", "dog"]), 3, &data).unwrap();
        let note = differ.note.as_ref().unwrap();
        assert!(note.contains("1 of 3") && note.contains("'dog' and 'cat'"));
        assert_eq!(all(differ), [0, 1, 2]);
        // A name twice is no order.
        let twice = Labels::new(&known(&["ant", "ant", "bee"]), 3, &data).unwrap();
        assert!(twice.note.unwrap().contains("by number"));
        let unnamed = Labels::new(&BTreeMap::new(), 3, &data).unwrap();
        assert!(unnamed.note.unwrap().contains("does not name"));
        let error = Labels::new(&BTreeMap::new(), 5, &data).err().unwrap();
        assert!(error.contains("5 classes, the data 3"), "{error}");
    }
}
