//! Values of a JSON object that are read as what they must be, or an error that names the key.
use serde_json::{Map, Value};

use super::preprocess::of_channels;
use crate::config::MOST_CHANNELS;

/// An object of somebody else's file; `None` where it is left out.
pub(super) struct Keys<'a>(Option<&'a Map<String, Value>>);

impl<'a> Keys<'a> {
    pub fn of(json: &'a Value) -> Result<Self, String> {
        match json {
            Value::Object(map) => Ok(Self(Some(map))),
            _ => Err("expected a JSON object".into()),
        }
    }

    /// The object under a key.
    pub fn object(&self, key: &str) -> Result<Self, String> {
        match self.get(key) {
            None => Ok(Self(None)),
            Some(Value::Object(map)) => Ok(Self(Some(map))),
            Some(_) => self.wrong(key, "an object"),
        }
    }

    fn raw(&self, key: &str) -> Option<&'a Value> {
        self.0?.get(key)
    }

    /// The value, unless it is absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.raw(key).filter(|value| !value.is_null())
    }

    pub fn wrong<T>(&self, key: &str, expected: &str) -> Result<T, String> {
        let text = self.raw(key).map(Value::to_string).unwrap_or_default();
        let short: String = text.chars().take(60).collect();
        Err(format!("'{key}' is {short}; expected {expected}"))
    }

    /// Null is no, as in Python.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, String> {
        match self.raw(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(false),
            Some(Value::Bool(on)) => Ok(*on),
            Some(_) => self.wrong(key, "true or false"),
        }
    }

    /// Absent and null are neither yes nor no.
    pub fn told(&self, key: &str) -> Result<Option<bool>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(*on)),
            Some(_) => self.wrong(key, "true or false"),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => self.wrong(key, "a text"),
        }
    }

    /// A number above 0 and at most `most`.
    pub fn positive(&self, key: &str, default: f64, most: f64) -> Result<f64, String> {
        match self.get(key).map(Value::as_f64) {
            None => Ok(default),
            Some(Some(x)) if x > 0.0 && x <= most => Ok(x),
            Some(_) => self.wrong(key, &format!("a number above 0 and at most {most}")),
        }
    }

    pub fn count(&self, key: &str) -> Result<Option<usize>, String> {
        match self.get(key).map(count) {
            None => Ok(None),
            Some(Some(n)) => Ok(Some(n)),
            Some(None) => self.wrong(key, "a whole number above 0"),
        }
    }

    /// Channels of images. Lists as long are made of it before any tensor is seen, so it is bounded.
    pub fn channels(&self, key: &str) -> Result<Option<usize>, String> {
        match self.get(key).map(many) {
            None => Ok(None),
            Some(Some(n)) => Ok(Some(n)),
            Some(None) => self.wrong(key, &format!("1 to {MOST_CHANNELS} channels")),
        }
    }

    /// Height and width: `224`, `[height, width]`, `[3, height, width]` or `{"height": .., "width": ..}`.
    pub fn pixels(&self, key: &str) -> Result<Option<(usize, usize)>, String> {
        let sides = match self.get(key) {
            None => return Ok(None),
            Some(Value::Array(items)) => match &items[..] {
                [h, w] | [_, h, w] => count(h).zip(count(w)),
                _ => None,
            },
            Some(Value::Object(map)) => {
                let side = |name| map.get(name).and_then(count);
                side("height").zip(side("width"))
            }
            Some(one) => count(one).map(|n| (n, n)),
        };
        match sides {
            Some(sides) => Ok(Some(sides)),
            None => self.wrong(key, "a height and a width above 0"),
        }
    }

    /// One number for each of so many channels, or one for all.
    pub fn by_channel(
        &self,
        key: &str,
        channels: usize,
        default: &[f32],
    ) -> Result<Vec<f32>, String> {
        let Some(value) = self.get(key) else {
            return Ok(of_channels(default.to_vec(), channels));
        };
        let number = |x: &Value| {
            let x = x.as_f64()? as f32;
            x.is_finite().then_some(x)
        };
        let numbers: Option<Vec<f32>> = match value {
            Value::Array(items) => items.iter().map(number).collect(),
            one => number(one).map(|x| vec![x; channels]),
        };
        match numbers.filter(|numbers| numbers.len() == channels) {
            Some(numbers) => Ok(numbers),
            None => self.wrong(
                key,
                &format!("a finite number for each of {channels} channels"),
            ),
        }
    }

    /// The same for what values are divided by.
    pub fn deviations(
        &self,
        key: &str,
        channels: usize,
        default: &[f32],
    ) -> Result<Vec<f32>, String> {
        let numbers = self.by_channel(key, channels, default)?;
        match numbers.iter().all(|x| *x > 0.0) {
            true => Ok(numbers),
            false => self.wrong(key, "a number above 0 for each channel"),
        }
    }

    /// One note that names the keys that say something (not null, not false) and are not among these.
    pub fn note_others(&self, known: &[&str], place: &str, notes: &mut Vec<String>) {
        let says = |value: &Value| !value.is_null() && *value != false;
        let others = self
            .0
            .into_iter()
            .flatten()
            .filter(|(_, value)| says(value));
        let others = others.filter(|(key, _)| !known.contains(&key.as_str()));
        let others: Vec<String> = others.map(|(key, _)| key.clone()).collect();
        if !others.is_empty() {
            notes.push(format!(
                "{place}: unknown keys, not used: {}",
                crate::error::some(&others)
            ));
        }
    }
}

fn count(value: &Value) -> Option<usize> {
    let n = value.as_u64().filter(|&n| n > 0)?;
    usize::try_from(n).ok()
}

/// A number of channels that images may have.
pub(super) fn many(value: &Value) -> Option<usize> {
    count(value).filter(|n| *n <= MOST_CHANNELS)
}

/// A part of something.
pub(super) fn share(value: &Value) -> Option<f64> {
    value.as_f64().filter(|x| *x > 0.0 && *x <= 1.0)
}

/// A count of pixels that an image may have.
pub(super) fn side(value: &Value) -> Option<usize> {
    let n = value.as_u64().filter(|n| (1..=1 << 20).contains(n))?;
    usize::try_from(n).ok()
}
