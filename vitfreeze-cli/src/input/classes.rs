//! The classes of a dataset as those of something else: a checkpoint's, or another split's.
use std::collections::HashMap;
use std::sync::Arc;

use datasets::{Error, Image, Permit, Source};
use unicode_normalization::UnicodeNormalization;

/// For each of `names` the place of the class that is called the same, among `known` (place, name). A name that several
/// classes have, on either side, has none.
///
/// Names that are the same to a reader are the same: spaces around them, the Unicode form of an accent (a folder copied
/// from a Mac has another one) and zeros before a number do not count, unless that would make two names one.
pub fn places<'a>(
    known: impl Iterator<Item = (usize, &'a str)> + Clone,
    names: &[String],
) -> Vec<Option<usize>> {
    let exact = unique(known.clone().map(|(i, name)| (name.to_owned(), i)));
    let alike = unique(known.map(|(i, name)| (plain(name), i)));
    let each = || names.iter().enumerate();
    let once = unique(each().map(|(i, name)| (name.clone(), i)));
    let once_plain = unique(each().map(|(i, name)| (plain(name), i)));
    let find = |name: &String| {
        if let Some(place) = exact.get(name) {
            return place.filter(|_| once[name].is_some());
        }
        let name = plain(name);
        once_plain[&name].and(alike.get(&name).copied().flatten())
    };
    names.iter().map(find).collect()
}

/// The same by the first of several names: `tench` is `tench, Tinca tinca`, on whichever side that is. A first name that
/// several classes have, on either side, has no place.
pub fn places_of_first_names<'a>(
    known: impl Iterator<Item = (usize, &'a str)> + Clone,
    names: &[String],
) -> Vec<Option<usize>> {
    let first_of = |name: &str| plain(name.split(',').next().unwrap_or_default());
    let several = |name: &str| name.contains(',');
    let firsts = known.map(|(i, name)| (first_of(name), (i, several(name))));
    let firsts = unique(firsts);
    let each = names.iter().enumerate();
    let once = unique(each.map(|(i, name)| (first_of(name), i)));
    let find = |name: &String| {
        let first = first_of(name);
        once[&first].filter(|_| !first.is_empty())?;
        let (place, others) = firsts.get(&first).copied().flatten()?;
        // Further names on both sides that differ say that these are two classes.
        (others != several(name)).then_some(place)
    };
    names.iter().map(find).collect()
}

/// Each name's place, `None` if it has several.
fn unique<T>(names: impl Iterator<Item = (String, T)>) -> HashMap<String, Option<T>> {
    let mut map = HashMap::new();
    for (name, place) in names {
        map.entry(name)
            .and_modify(|place| *place = None)
            .or_insert(Some(place));
    }
    map
}

/// A name without what a reader does not see.
fn plain(name: &str) -> String {
    let name: String = name.trim().nfc().collect();
    match number(&name) {
        Some(number) => number.to_string(),
        None => name,
    }
}

/// The number that a name is.
pub fn number(name: &str) -> Option<usize> {
    let digits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
    name.parse().ok().filter(|_| digits)
}

/// Images under other labels; those that have none are left out.
pub struct Relabelled {
    source: Arc<dyn Source>,
    classes: Vec<String>,
    /// Place in `source` and new label of each image.
    images: Vec<(usize, usize)>,
}

impl Relabelled {
    /// `map` has the new label for each old one.
    pub fn new(source: Arc<dyn Source>, classes: Vec<String>, map: &[Option<usize>]) -> Self {
        let label = |i: usize| map.get(source.label(i)).copied().flatten();
        let images = (0..source.len()).filter_map(|i| Some((i, label(i)?)));
        Self {
            images: images.collect(),
            classes,
            source,
        }
    }
}

impl Source for Relabelled {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> usize {
        self.images[index].1
    }

    fn read(&self, index: usize, permit: &mut Permit) -> Result<Image, Error> {
        self.source.read(self.images[index].0, permit)
    }

    fn name(&self, index: usize) -> String {
        self.source.name(self.images[index].0)
    }

    fn describe(&self) -> String {
        match self.images.len() == self.source.len() {
            true => self.source.describe(),
            false => format!("{} of: {}", self.images.len(), self.source.describe()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(known: &[&str], names: &[&str]) -> Vec<Option<usize>> {
        let names: Vec<String> = names.iter().map(|&n| n.into()).collect();
        places(known.iter().copied().enumerate(), &names)
    }

    #[test]
    fn the_same_name_in_another_form_is_found() {
        // An accent as a letter of its own, a space at the end, zeros in front.
        let known = ["caf\u{e9}", "owl", "7", "x"];
        let names = ["owl ", "cafe\u{301}", "007"];
        assert_eq!(found(&known, &names), [Some(1), Some(0), Some(2)]);
    }

    #[test]
    fn a_name_that_several_have_is_none() {
        assert_eq!(
            found(&["crane", "crane", "owl"], &["crane", "owl"]),
            [None, Some(2)]
        );
        assert_eq!(found(&["crane", "owl"], &["crane", "crane"]), [None, None]);
        // Both forms are there: each is itself, and a third is neither.
        let known = ["caf\u{e9}", "cafe\u{301}"];
        assert_eq!(found(&known, &["cafe\u{301}"]), [Some(1)]);
        assert_eq!(found(&known, &["cafe\u{301} "]), [None]);
        assert_eq!(found(&["owl"], &["owl", "owl "]), [Some(0), None]);
    }

    #[test]
    fn numbers_are_digits_alone() {
        let names = ["0", "010", "+1", "", "1 ", "1e3", "99999999999999999999999"];
        let want = [Some(0), Some(10), None, None, None, None, None];
        assert_eq!(names.map(number), want);
    }
}
