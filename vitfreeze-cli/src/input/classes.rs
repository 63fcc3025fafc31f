//! The classes of a dataset as those of something else: a checkpoint's, or another split's.
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use datasets::{Bands, Error, Image, Permit, Source};
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

/// The same by one of several names: `tench` and `Tinca tinca` are both `tench, Tinca tinca`, on whichever side that is.
///
/// The first of them counts more than the others. Further names on both sides that differ, and a name that several classes
/// have on either side, have no place; nor has a place that several classes would take.
pub fn places_of_synonyms<'a>(
    known: impl Iterator<Item = (usize, &'a str)> + Clone,
    names: &[String],
) -> Vec<Option<usize>> {
    let mut places = places_of_parts(known.clone(), names, 1);
    let others = places_of_parts(known, names, usize::MAX);
    let taken: HashSet<usize> = places.iter().copied().flatten().collect();
    let once = unique(others.iter().flatten().map(|&place| (place, ())));
    for (place, other) in places.iter_mut().zip(others) {
        let free = |other: &usize| !taken.contains(other) && once[other].is_some();
        *place = place.or(other.filter(free));
    }
    places
}

/// By any of the first `most` names of each.
fn places_of_parts<'a>(
    known: impl Iterator<Item = (usize, &'a str)>,
    names: &[String],
    most: usize,
) -> Vec<Option<usize>> {
    let several = |name: &str| name.contains(',');
    let by_part = unique(known.flat_map(|(i, name)| {
        let parts = synonyms(name, most).into_iter();
        parts.map(move |part| (part, (i, several(name))))
    }));
    let once = unique(
        names
            .iter()
            .flat_map(|name| synonyms(name, most))
            .map(|part| (part, ())),
    );
    let find = |name: &String| {
        let found = synonyms(name, most).into_iter().filter_map(|part| {
            once[&part]?;
            let (place, others) = by_part.get(&part).copied().flatten()?;
            (others != several(name)).then_some(place)
        });
        let found: HashSet<usize> = found.collect();
        found.iter().copied().next().filter(|_| found.len() == 1)
    };
    names.iter().map(find).collect()
}

/// The first `most` names in a list of them.
fn synonyms(name: &str, most: usize) -> Vec<String> {
    let mut seen = HashSet::new();
    let names = name.split(',').map(plain);
    let names = names.filter(|name| !name.is_empty() && seen.insert(name.clone()));
    names.take(most).collect()
}

/// Each name's place, `None` if it has several.
fn unique<K: Eq + Hash, T>(names: impl Iterator<Item = (K, T)>) -> HashMap<K, Option<T>> {
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

    fn bands(&self, index: usize, channels: usize, permit: &mut Permit) -> Result<Bands, Error> {
        self.source.bands(self.images[index].0, channels, permit)
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
