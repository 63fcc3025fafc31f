//! Numbers of a run: defaults, then a TOML file, then flags; the later wins. Flags and keys have the same names.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{ArgAction, Args as _, FromArgMatches as _};
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::de::DeserializeOwned;
use serde::Serialize;
use toml::{Spanned, Table, Value};

use crate::usage::usage;

/// All numbers of one command's run: the same struct is its flags, the keys of its TOML file and what a checkpoint holds.
pub trait Settings: Clone + clap::Args + Serialize + DeserializeOwned {
    /// The subcommand.
    const COMMAND: &'static str;

    /// Defaults of the keys that commands share and start from otherwise. All others stand at their fields.
    const RECIPE: &'static [(&'static str, &'static str)];

    /// Keys that a resumed run may change: they alter no number that training computes on one device.
    const FREE_KEYS: &'static [&'static [&'static str]];

    /// Keys that a run finds out when it begins: one that is resumed has them from its checkpoint.
    const FOUND_KEYS: &'static [&'static str] = &[];

    /// Changes the file's keys by what the flags say, before the flags take their places.
    fn complete(_file: &mut Table, _flags: &Table) {}

    /// Fills in what follows from other numbers, makes paths absolute and refuses what does not fit together.
    fn resolve(&mut self) -> Result<()>;

    /// The configuration of a new run: `file`'s keys, then the flags.
    fn new(file: Option<&Path>, flags: &Given<Self>) -> Result<Self> {
        match file {
            Some(path) => Self::of_run(path, flags),
            None => Self::merge(Table::new(), flags),
        }
    }

    /// The configuration in this file, then the flags.
    fn of_run(path: &Path, flags: &Given<Self>) -> Result<Self> {
        Self::merge(read::<Self>(path)?, flags)
    }

    /// The configuration of a run whose checkpoint holds `saved`: the file's keys where there is one, then the flags.
    fn of_checkpoint(saved: &Self, file: Option<&Path>, flags: &Given<Self>) -> Result<Self> {
        let keys = match file {
            Some(path) => read::<Self>(path)?,
            None => parse::<Self>(&saved.to_toml()?, "checkpoint")?,
        };
        let mut found = Table::try_from(saved)?;
        found.retain(|key, _| Self::FOUND_KEYS.contains(&key));
        Self::merge_over(found, keys, flags)
    }

    /// `file`'s keys, then the flags.
    fn merge(file: Table, flags: &Given<Self>) -> Result<Self> {
        Self::merge_over(Table::new(), file, flags)
    }

    /// The same over these keys.
    fn merge_over(found: Table, mut file: Table, flags: &Given<Self>) -> Result<Self> {
        let flags = flags.table()?;
        Self::complete(&mut file, &flags);
        file.extend(flags);
        for (key, value) in found {
            file.entry(key).or_insert(value);
        }
        let mut config: Self =
            over_defaults(file).map_err(|e: toml::de::Error| usage(one_line(&e, "")))?;
        config.resolve()?;
        Ok(config)
    }

    /// The configuration of these keys alone.
    fn of_table(keys: Table) -> Result<Self> {
        Self::merge(keys, &Given::nothing())
    }

    /// As TOML, to be saved.
    fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("configuration")
    }

    /// The keys in which a resumed run differs from its checkpoint and must not, as "key: was -> is".
    fn differences(&self, saved: &Self) -> Result<Vec<String>> {
        let (mut new, mut old) = (Table::try_from(self)?, Table::try_from(saved)?);
        for table in [&mut new, &mut old] {
            table.retain(|key, _| !Self::FREE_KEYS.concat().contains(&key));
        }
        Ok(changes(&old, &new))
    }
}

/// The keys that have another value now, as "key: was -> is".
pub fn changes<'a, V: PartialEq + Display + 'a>(
    old: impl IntoIterator<Item = (&'a String, &'a V)>,
    new: impl IntoIterator<Item = (&'a String, &'a V)>,
) -> Vec<String> {
    let mut both: BTreeMap<&String, [Option<&V>; 2]> = BTreeMap::new();
    for (key, value) in old {
        both.entry(key).or_default()[0] = Some(value);
    }
    for (key, value) in new {
        both.entry(key).or_default()[1] = Some(value);
    }
    let show = |value: Option<&V>| value.map_or("unset".into(), V::to_string);
    both.into_iter()
        .filter(|(_, [was, is])| was != is)
        .map(|(key, [was, is])| format!("{key}: {} -> {}", show(was), show(is)))
        .collect()
}

/// A command's settings as its command line has them: all values, and which of them were given.
#[derive(Clone)]
pub struct Given<S> {
    values: S,
    keys: BTreeSet<String>,
}

impl<S: Settings> Given<S> {
    /// A command line without flags: the defaults.
    pub fn nothing() -> Self {
        let command = Self::augment_args(clap::Command::new(S::COMMAND).no_binary_name(true));
        let matches = command.get_matches_from(std::iter::empty::<&str>());
        Self::from_arg_matches(&matches).unwrap_or_else(|e| e.exit())
    }

    /// The value of a key, if it was given.
    pub fn get<T>(&self, key: &str, value: impl FnOnce(&S) -> T) -> Option<T> {
        self.keys.contains(key).then(|| value(&self.values))
    }

    /// Whether a key was given.
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// Gives one more.
    pub fn set(&mut self, key: &str, change: impl FnOnce(&mut S)) {
        change(&mut self.values);
        self.keys.insert(key.into());
    }

    fn table(&self) -> Result<Table> {
        // TOML has no integers beyond i64.
        let all = Table::try_from(&self.values).map_err(|e| match too_large(&self.values) {
            Some((key, value)) => {
                usage(format!("{key} is {value}, it must be at most {}", i64::MAX))
            }
            None => usage(e),
        })?;
        let given = all.into_iter().filter(|(key, _)| self.keys.contains(key));
        Ok(given.collect())
    }
}

impl<S: Settings> clap::Args for Given<S> {
    fn augment_args(command: clap::Command) -> clap::Command {
        // A list that is given again takes the place of the one before, as any other flag does.
        let command = S::augment_args(command).mut_args(|arg| match arg.get_action() {
            ArgAction::Append => arg.action(ArgAction::Set),
            _ => arg,
        });
        S::RECIPE.iter().fold(command, |command, (key, value)| {
            // Clap knows an argument by its field.
            command.mut_arg(key.replace('-', "_"), |arg| {
                arg.default_value(*value).required(false)
            })
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl<S: Settings> clap::FromArgMatches for Given<S> {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        Self::from_arg_matches_mut(&mut matches.clone())
    }

    fn from_arg_matches_mut(matches: &mut clap::ArgMatches) -> Result<Self, clap::Error> {
        let command = S::augment_args(clap::Command::new(S::COMMAND));
        let given = |arg: &&clap::Arg| {
            let source = matches.value_source(arg.get_id().as_str());
            source == Some(clap::parser::ValueSource::CommandLine)
        };
        let given = command.get_arguments().filter(given);
        let keys = given.filter_map(|arg| arg.get_long().map(str::to_owned));
        Ok(Self {
            keys: keys.collect(),
            values: S::from_arg_matches_mut(matches)?,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The defaults, with these keys in their places.
fn over_defaults<S: Settings>(keys: Table) -> Result<S, toml::de::Error> {
    let defaults = Table::try_from(Given::<S>::nothing().values);
    let mut all = defaults.map_err(serde::de::Error::custom)?;
    all.extend(keys);
    all.try_into()
}

/// The first key whose number no TOML file holds.
fn too_large(flags: &impl Serialize) -> Option<(String, u64)> {
    let json = serde_json::to_value(flags).ok()?;
    let numbers = json.as_object()?.iter();
    let mut numbers = numbers.filter_map(|(key, value)| Some((key.clone(), value.as_u64()?)));
    numbers.find(|(_, value)| i64::try_from(*value).is_err())
}

/// Reads and parses a file.
fn read<S: Settings>(path: &Path) -> Result<Table> {
    let text = crate::input::files::text(path)
        .map_err(|e| usage(format!("cannot read {}: {e}", path.display())))?;
    parse::<S>(&text, &path.display().to_string())
}

/// Parses a file; an unknown key is an error that suggests the near one.
pub fn parse<S: Settings>(text: &str, origin: &str) -> Result<Table> {
    let fail = |e: toml::de::Error| usage(format!("{origin}: {}", one_line(&e, text)));
    let table: BTreeMap<String, Spanned<Value>> = toml::from_str(text).map_err(fail)?;
    let command = S::augment_args(clap::Command::new(S::COMMAND));
    let known: Vec<&str> = command
        .get_arguments()
        .filter_map(|a| a.get_long())
        .collect();
    for (key, value) in &table {
        let line = line_of(text, value.span().start);
        if has_tables(value.get_ref()) {
            return Err(usage(format!(
                "{origin}: line {line}: '{key}' is a section; there are none in this file: write its keys at the top, as in lr = 1e-3"
            )));
        }
        if !known.contains(&key.as_str()) {
            let near = known
                .iter()
                .map(|k| (strsim::jaro_winkler(k, &key.replace('_', "-")), k))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .filter(|(score, _)| *score > 0.75);
            let hint = near.map_or(
                format!("see vitfreeze {} --help for the keys", S::COMMAND),
                |(_, k)| format!("did you mean '{k}'?"),
            );
            return Err(usage(format!("{origin}: unknown key '{key}'; {hint}")));
        }
        // Alone, so that the message can name the key.
        let alone = Table::from_iter([(key.clone(), value.get_ref().clone())]);
        if let Err(e) = over_defaults::<S>(alone) {
            let message = match choices(&command, key) {
                Some(choices) => format!(
                    "{} is none of {choices}, in quotes",
                    value.get_ref().to_string().trim()
                ),
                None => e.message().replace('\n', " "),
            };
            return Err(usage(format!("{origin}: line {line}: {key}: {message}")));
        }
    }
    toml::from_str(text).map_err(fail)
}

/// Whether a value is what `[key]`, `[[key]]` or `key.name` make.
fn has_tables(value: &Value) -> bool {
    match value {
        Value::Table(_) => true,
        Value::Array(items) => items.iter().any(Value::is_table),
        _ => false,
    }
}

/// The words that a key may be, where it is one of a few.
fn choices(command: &clap::Command, key: &str) -> Option<String> {
    let argument = command
        .get_arguments()
        .find(|a| a.get_long() == Some(key))?;
    let words = argument.get_possible_values();
    let words: Vec<&str> = words.iter().map(|w| w.get_name()).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// A TOML error as one line with its line number.
pub fn one_line(error: &toml::de::Error, text: &str) -> String {
    let line = line_of(text, error.span().map_or(0, |span| span.start));
    format!("line {line}: {}", error.message().replace('\n', " "))
}

fn line_of(text: &str, at: usize) -> usize {
    text.get(..at)
        .map_or(1, |before| before.matches('\n').count() + 1)
}

/// Parses an enum by the names that its serde form has.
pub fn name<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let text: StrDeserializer<ValueError> = StrDeserializer::new(text);
    T::deserialize(text).map_err(|e| e.to_string().replace('`', "'"))
}

/// Refuses a (name, number, most) whose number is 0 or more than most.
pub fn bounded(numbers: &[(&str, usize, usize)]) -> Result<()> {
    for (name, value, most) in numbers {
        if *value == 0 || value > most {
            return Err(usage(format!("{name} is {value}, it must be 1 to {most}")));
        }
    }
    Ok(())
}

/// Refuses a (name, number) that is negative, infinite or NaN.
pub fn not_negative(numbers: &[(&str, f64)]) -> Result<()> {
    for (name, value) in numbers {
        if !(value.is_finite() && *value >= 0.0) {
            return Err(usage(format!(
                "{name} is {value}, it must be a finite number, 0 or more"
            )));
        }
    }
    Ok(())
}

/// A dataset or checkpoint on this machine by its absolute path, so that a run can be resumed from anywhere.
pub fn absolute(what: &str, path: &str) -> Result<String> {
    if path == "shapes" || path.starts_with("hf://") {
        return Ok(path.to_owned());
    }
    let absolute = std::path::absolute(path).map_err(|e| usage(format!("{what} '{path}': {e}")))?;
    Ok(absolute.to_string_lossy().into_owned())
}
