//! A dataset's classes as a checkpoint's outputs.
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{json, Value};

use crate::input::classes::{number, places, places_of_synonyms};

/// The WordNet ids of ImageNet-1K's classes in their order, which is that of the outputs wherever it is trained on.
const IMAGENET_IDS: &str = include_str!("imagenet_ids.txt");
/// Most names that a note lists.
const LISTED: usize = 3;

/// Which outputs are judged, and which class of the data each stands for.
#[derive(Debug)]
pub struct Labels {
    /// Names of the outputs judged.
    pub names: Vec<String>,
    /// Their places in the head, ascending.
    pub outputs: Vec<usize>,
    /// The place in `names` for each label of the data; none: the checkpoint does not know this class.
    pub map: Vec<Option<usize>>,
    /// What had to be assumed.
    pub notes: Vec<String>,
    by: By,
    /// Outputs of the head.
    all: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum By {
    Name,
    Number,
    WordNet,
    Order,
}

impl Labels {
    /// By name where any is the same, or one of several names is; names that are numbers are the checkpoint's class numbers; by ImageNet's WordNet ids;
    /// by order only where no name says otherwise. The error says what does not fit and how it would.
    pub fn new(
        known: &BTreeMap<usize, String>,
        outputs: usize,
        classes: &[String],
    ) -> Result<Self, String> {
        let known: BTreeMap<usize, &str> = known
            .iter()
            .filter(|(&i, _)| i < outputs)
            .map(|(&i, name)| (i, name.as_str()))
            .collect();
        let (by, places, mut notes) = matched(&known, outputs, classes)?;
        let judged: BTreeSet<usize> = places.iter().copied().flatten().collect();
        let judged: Vec<usize> = judged.into_iter().collect();
        let rank: BTreeMap<usize, usize> = judged.iter().copied().zip(0..).collect();
        let mut names = vec![String::new(); judged.len()];
        for (class, place) in classes.iter().zip(&places) {
            if let Some(place) = place {
                names[rank[place]] = known.get(place).copied().unwrap_or(class).to_owned();
            }
        }
        if judged.len() < outputs {
            notes.push(format!(
                "only {} of the checkpoint's {outputs} classes are in the data: evaluated among these alone",
                judged.len()
            ));
        }
        Ok(Self {
            names,
            map: places.iter().map(|p| Some(rank[&(*p)?])).collect(),
            outputs: judged,
            notes,
            by,
            all: outputs,
        })
    }

    /// The logits of the outputs judged, of rows with all.
    pub fn judged(&self, logits: Vec<f32>) -> Vec<f32> {
        if self.outputs.len() == self.all {
            return logits;
        }
        let rows = logits.chunks_exact(self.all);
        rows.flat_map(|row| self.outputs.iter().map(|&i| row[i]))
            .collect()
    }

    /// For result.json.
    pub fn record(&self, classes: &[String], left_out: usize) -> Value {
        let unknown = classes.iter().zip(&self.map).filter(|(_, m)| m.is_none());
        json!({
            "matched-by": match self.by {
                By::Name => "name",
                By::Number => "number",
                By::WordNet => "wordnet",
                By::Order => "order",
            },
            "judged": self.outputs.len(),
            "of": self.all,
            "unknown": unknown.map(|(name, _)| name).collect::<Vec<_>>(),
            "images-of-unknown": left_out,
        })
    }
}

type Matched = (By, Vec<Option<usize>>, Vec<String>);

/// The output for each class of the data, and what had to be assumed for that.
fn matched(
    known: &BTreeMap<usize, &str>,
    outputs: usize,
    classes: &[String],
) -> Result<Matched, String> {
    let in_order = || (0..outputs).map(Some).collect::<Vec<_>>();
    // Lists of ImageNet's names have a name twice: the same list is the same classes.
    if known.len() == outputs && known.values().eq(classes.iter()) {
        return Ok((By::Name, in_order(), vec![]));
    }
    let mut by_name = places(known.iter().map(|(&i, &name)| (i, name)), classes);
    let short = add_synonyms(known, classes, &mut by_name);
    if by_name.iter().any(Option::is_some) {
        let all = by_name.iter().all(Option::is_some);
        let note = (all && by_name.len() == outputs && by_name != in_order()).then(|| {
            "the data and the checkpoint list their classes in different orders; matched by name"
                .to_owned()
        });
        let notes = Vec::from_iter(note.into_iter().chain(short));
        return Ok((By::Name, by_name, notes));
    }
    let named = |i: usize| match known.get(&i) {
        Some(name) => format!("{i} '{}'", name.escape_debug()),
        None => i.to_string(),
    };
    let numbers: Option<Vec<usize>> = classes.iter().map(|name| number(name)).collect();
    let own_are_numbers = !known.is_empty() && known.values().all(|n| number(n).is_some());
    if let Some(numbers) = numbers.filter(|n| !n.is_empty() && !own_are_numbers) {
        let (low, high) = (numbers.iter().min(), numbers.iter().max());
        let (low, high) = (low.map_or(0, |&n| n), high.map_or(0, |&n| n));
        if high >= outputs {
            return Err(format!(
                "the data's classes are the numbers {low} to {high}, the head's go from 0 to {}; name them by these numbers, or as the checkpoint calls its classes",
                outputs - 1
            ));
        }
        let distinct: BTreeSet<&usize> = numbers.iter().collect();
        if distinct.len() < numbers.len() {
            return Err("two classes of the data are the same number; name each once".into());
        }
        let note = format!(
            "the data's classes are numbers: taken as the checkpoint's class numbers ({low} is class {})",
            named(low)
        );
        let places = numbers.into_iter().map(Some).collect();
        return Ok((By::Number, places, vec![note]));
    }
    let same_count = classes.len() == outputs;
    let wordnet = !classes.is_empty() && classes.iter().all(|name| is_wordnet_id(name));
    let of_imagenet = (outputs == IMAGENET_IDS.lines().count())
        .then(|| places(IMAGENET_IDS.lines().enumerate(), classes))
        .filter(|places| places.iter().all(Option::is_some));
    if let (true, Some(places)) = (wordnet, of_imagenet) {
        let first = places[0].unwrap_or(0);
        let note = format!(
            "the data's classes are WordNet ids, the head's 1000 are taken for ImageNet-1K's ('{}' is class {})",
            classes[0].escape_debug(),
            named(first)
        );
        return Ok((By::WordNet, places, vec![note]));
    }
    if wordnet && (!known.is_empty() || !same_count) {
        return Err(format!(
            "the data's {} classes are WordNet ids ('{}'), of which the checkpoint's {outputs} classes say nothing, nor are both ImageNet-1K's; rename the folders to the classes' numbers (0 to {}){}",
            classes.len(),
            classes[0].escape_debug(),
            outputs - 1,
            if known.is_empty() { "" } else { " or names" }
        ));
    }
    if known.is_empty() && same_count {
        let note = "the checkpoint does not name its classes: taken in the order of the data's";
        return Ok((By::Order, in_order(), vec![note.into()]));
    }
    if known.is_empty() {
        return Err(format!(
            "its head has {outputs} classes without names, the data {}; name the folders by the classes' numbers (0 to {})",
            classes.len(),
            outputs - 1
        ));
    }
    Err(format!(
        "not one of the data's {} classes ({}) is among the checkpoint's {outputs} ({}); rename the folders to those names, or to the classes' numbers (0 to {})",
        classes.len(),
        listed(classes.iter().map(String::as_str)),
        listed(known.values().copied()),
        outputs - 1
    ))
}

/// Fills in the places of classes that go by one of several names on one side, and says so.
fn add_synonyms(
    known: &BTreeMap<usize, &str>,
    classes: &[String],
    places: &mut [Option<usize>],
) -> Option<String> {
    let others = places_of_synonyms(known.iter().map(|(&i, &name)| (i, name)), classes);
    let mut added = Vec::new();
    for ((place, other), class) in places.iter_mut().zip(others).zip(classes) {
        if let (None, Some(found)) = (*place, other) {
            *place = other;
            added.push((class.as_str(), known[&found]));
        }
    }
    let (class, name) = added.first()?;
    Some(format!(
        "{} of the data's {} classes are matched by one of several names, such as '{}' and '{}'",
        added.len(),
        classes.len(),
        class.escape_debug(),
        name.escape_debug()
    ))
}

/// The first of these names.
pub fn listed<'a>(names: impl Iterator<Item = &'a str> + Clone) -> String {
    let quote = |name: &str| format!("'{}'", name.escape_debug());
    let first: Vec<String> = names.clone().take(LISTED).map(quote).collect();
    let more = if names.count() > LISTED { ", .." } else { "" };
    first.join(", ") + more
}

/// As in ImageNet's folders: n01440764.
fn is_wordnet_id(name: &str) -> bool {
    let digits = name.strip_prefix('n');
    digits.is_some_and(|d| d.len() == 8 && d.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|&n| n.to_owned()).collect()
    }

    fn of(known: &[&str], outputs: usize, classes: &[String]) -> Result<Labels, String> {
        let known = owned(known).into_iter().enumerate().collect();
        Labels::new(&known, outputs, classes)
    }

    /// The output for each class of the data.
    fn outputs(labels: &Labels) -> Vec<Option<usize>> {
        let output = |m: &Option<usize>| m.map(|m| labels.outputs[m]);
        labels.map.iter().map(output).collect()
    }

    fn notes(labels: &Labels) -> String {
        labels.notes.join("; ")
    }

    #[test]
    fn names_in_any_order_and_form() {
        let same = of(&["ant", "bee", "cat"], 3, &owned(&["ant", "bee", "cat"])).unwrap();
        assert!(same.notes.is_empty());
        assert_eq!(outputs(&same), [Some(0), Some(1), Some(2)]);
        let other = of(&["cat", "ant", "bee"], 3, &owned(&["ant", "bee", "cat"])).unwrap();
        assert!(notes(&other).contains("by name"));
        assert_eq!(other.names, ["cat", "ant", "bee"]);
        assert_eq!(outputs(&other), [Some(1), Some(2), Some(0)]);
        // The same list with a name twice is the same classes.
        let twice = ["crane", "owl", "crane"];
        let same = of(&twice, 3, &owned(&twice)).unwrap();
        assert_eq!(outputs(&same), [Some(0), Some(1), Some(2)]);
        let accent = of(&["caf\u{e9}", "owl"], 2, &owned(&["cafe\u{301}", "owl"])).unwrap();
        assert_eq!(outputs(&accent), [Some(0), Some(1)]);
    }

    #[test]
    fn a_part_of_the_names_is_judged_alone() {
        let known = ["ant", "bee", "cat", "dog"];
        let part = of(&known, 4, &owned(&["dog", "bee"])).unwrap();
        assert_eq!(outputs(&part), [Some(3), Some(1)]);
        assert_eq!(part.names, ["bee", "dog"]);
        assert!(
            notes(&part).contains("only 2 of the checkpoint's 4"),
            "{part:?}"
        );
        assert_eq!(
            part.judged(vec![0., 1., 2., 3., 4., 5., 6., 7.]),
            [1., 3., 5., 7.]
        );
        // As many classes, shifted by one: never by number.
        let shifted = of(&known, 4, &owned(&["bee", "cat", "dog", "elk"])).unwrap();
        assert_eq!(outputs(&shifted), [Some(1), Some(2), Some(3), None]);
        let record = shifted.record(&owned(&["bee", "cat", "dog", "elk"]), 5);
        assert_eq!(record["unknown"][0], "elk");
        assert_eq!((&record["judged"], &record["of"]), (&json!(3), &json!(4)));
        // A name that two outputs have stands for neither.
        let twice = of(&["ant", "ant", "bee"], 3, &owned(&["ant", "bee", "cat"])).unwrap();
        assert_eq!(outputs(&twice), [None, Some(2), None]);
    }

    #[test]
    fn one_of_several_names_is_enough() {
        // ImageNet's words, and folders called by the first; and the other way round.
        let words = ["tench, Tinca tinca", "goldfish, Carassius auratus", "cock"];
        let short = ["goldfish", "tench ", "cock"];
        for (known, data) in [(&words, &short), (&short, &words)] {
            let found = of(known, 3, &owned(data)).unwrap();
            assert_eq!(outputs(&found), [Some(1), Some(0), Some(2)]);
            let notes = notes(&found);
            assert!(
                notes.contains("2 of the data's 3 classes are matched by one of"),
                "{notes}"
            );
        }
        // Two cranes, on either side; another class that is called alike; nothing before the comma.
        let cranes = ["crane, bird", "crane, machine", "owl"];
        let found = of(&cranes, 3, &owned(&["crane", "owl"])).unwrap();
        assert_eq!(outputs(&found), [None, Some(2)]);
        assert!(!notes(&found).contains("of several"));
        let found = of(
            &["crane", "owl"],
            2,
            &owned(&["crane, bird", "crane, machine", "owl"]),
        );
        assert_eq!(outputs(&found.unwrap()), [None, None, Some(1)]);
        let found = of(
            &["mouse, animal", "owl"],
            2,
            &owned(&["mouse, device", "owl"]),
        );
        assert_eq!(outputs(&found.unwrap()), [None, Some(1)]);
        let found = of(&[", x", "owl"], 2, &owned(&["", "owl"])).unwrap();
        assert_eq!(outputs(&found), [None, Some(1)]);
        // The other names, where only one class has them; the first of them counts more.
        let words = [
            "skunk, polecat, wood pussy",
            "polecat, fitch, foulmart",
            "black bear, Ursus americanus",
            "cougar, puma, panther",
            "jaguar, panther",
        ];
        let data = owned(&[
            "puma",
            "wood pussy",
            "Ursus americanus ",
            "polecat",
            "panther",
        ]);
        let found = of(&words, 5, &data).unwrap();
        let expected = [Some(3), Some(0), Some(2), Some(1), None];
        assert_eq!(outputs(&found), expected);
        let data = owned(&["fitch", "foulmart", "cougar", "puma"]);
        let found = of(&words, 5, &data).unwrap();
        assert_eq!(outputs(&found), [None, None, Some(3), None]);
        let data = owned(&["owl", "x, lynx, puma", "panther, jaguar"]);
        let found = of(&["owl", "puma", "jaguar", "panther"], 4, &data).unwrap();
        assert_eq!(outputs(&found), [Some(0), Some(1), Some(3)]);
        // What is written out is matched as it is written.
        let both = ["ant", "ant, emmet"];
        let found = of(&both, 2, &owned(&["ant, emmet", "ant"])).unwrap();
        assert_eq!(outputs(&found), [Some(1), Some(0)]);
    }

    #[test]
    fn numbers_are_the_checkpoints_numbers() {
        let sorted = |n: usize| {
            let mut all: Vec<String> = (0..n).map(|i| i.to_string()).collect();
            all.sort();
            all
        };
        let letters: Vec<String> = (b'a'..b'a' + 12).map(|c| char::from(c).into()).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        for known in [&letters[..], &[]] {
            let all = of(known, 12, &sorted(12)).unwrap();
            assert_eq!(outputs(&all)[..4], [Some(0), Some(1), Some(10), Some(11)]);
            assert!(notes(&all).contains("class numbers"));
            let part = of(known, 12, &owned(&["10", "2", "003"])).unwrap();
            assert_eq!(outputs(&part), [Some(10), Some(2), Some(3)]);
            let error = of(known, 12, &owned(&["1", "12"])).unwrap_err();
            assert!(
                error.contains("1 to 12") && error.contains("0 to 11"),
                "{error}"
            );
        }
        // A checkpoint that calls its classes by numbers, in the order of their digits.
        let own = sorted(12);
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let by_name = of(&own, 12, &owned(&["10", "2"])).unwrap();
        assert_eq!(outputs(&by_name), [Some(2), Some(4)]);
        let error = of(&["10", "11"], 2, &owned(&["0", "1"])).unwrap_err();
        assert!(error.contains("not one"), "{error}");
        assert!(of(&[], 12, &owned(&["1", "01"])).is_err());
    }

    #[test]
    fn wordnet_ids_are_imagenets_if_all_of_them_and_the_head_are() {
        let ids: Vec<String> = IMAGENET_IDS.lines().map(str::to_owned).collect();
        assert!(ids.len() == 1000 && ids.is_sorted() && ids.iter().all(|id| is_wordnet_id(id)));
        let words: Vec<String> = (0..1000).map(|i| format!("word {i}")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        for known in [&words[..], &[]] {
            let all = of(known, 1000, &ids).unwrap();
            assert!(notes(&all).contains("taken for ImageNet-1K's ('n01440764' is class 0"));
            assert_eq!(outputs(&all)[999], Some(999));
            // Imagenette's first classes, and a thousand others.
            let few = of(known, 1000, &owned(&["n01440764", "n02102040"])).unwrap();
            assert_eq!(outputs(&few), [Some(0), Some(217)]);
            assert!(notes(&few).contains("only 2 of the checkpoint's 1000"));
            let other = owned(&["n01440764", "n00000001"]);
            let error = of(known, 1000, &other).unwrap_err();
            assert!(error.contains("2 classes are WordNet ids"), "{error}");
        }
        let ten: Vec<&str> = words[..10].to_vec();
        assert!(of(&ten, 10, &ids[..10]).is_err());
        assert!(of(&[], 999, &ids[..10]).is_err());
        // Unless the checkpoint knows them.
        let own: Vec<&str> = ids[..20].iter().map(String::as_str).collect();
        let part = of(&own, 20, &ids[5..7]).unwrap();
        assert_eq!(outputs(&part), [Some(5), Some(6)]);
    }

    #[test]
    fn order_is_taken_only_where_no_name_says_otherwise() {
        let data = owned(&["ant", "bee", "cat"]);
        let unnamed = of(&[], 3, &data).unwrap();
        assert!(notes(&unnamed).contains("does not name"));
        assert_eq!(unnamed.names, data);
        let error = of(&[], 5, &data).unwrap_err();
        assert!(
            error.contains("5 classes without names, the data 3"),
            "{error}"
        );
        let error = of(&["x", "y", "z"], 3, &data).unwrap_err();
        assert!(
            error.contains("'ant', 'bee', 'cat'") && error.contains("'x'"),
            "{error}"
        );
    }
}
