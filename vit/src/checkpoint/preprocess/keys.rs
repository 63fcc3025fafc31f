//! Values of a JSON object that are read as what they must be, or an error that names the key.
use serde_json::{Map, Value};

/// An object of somebody else's file.
pub(super) struct Keys<'a>(pub &'a Map<String, Value>);

impl<'a> Keys<'a> {
    pub fn of(json: &'a Value) -> Result<Self, String> {
        json.as_object()
            .map(Self)
            .ok_or_else(|| "expected a JSON object".to_owned())
    }

    /// The value, unless it is absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub fn wrong<T>(&self, key: &str, expected: &str) -> Result<T, String> {
        let text = self.0.get(key).map(Value::to_string).unwrap_or_default();
        let short: String = text.chars().take(60).collect();
        Err(format!("'{key}' is {short}; expected {expected}"))
    }

    /// Null is no, as in Python.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, String> {
        match self.0.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(false),
            Some(Value::Bool(on)) => Ok(*on),
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

    /// One number per channel, or one for all.
    pub fn three(&self, key: &str, default: [f32; 3]) -> Result<[f32; 3], String> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        let number = |x: &Value| {
            let x = x.as_f64()? as f32;
            x.is_finite().then_some(x)
        };
        let numbers: Option<Vec<f32>> = match value {
            Value::Array(items) => items.iter().map(number).collect(),
            one => number(one).map(|x| vec![x; 3]),
        };
        match numbers.and_then(|n| <[f32; 3]>::try_from(n).ok()) {
            Some(three) => Ok(three),
            None => self.wrong(key, "three finite numbers"),
        }
    }

    /// The same for what values are divided by.
    pub fn deviations(&self, key: &str, default: [f32; 3]) -> Result<[f32; 3], String> {
        let three = self.three(key, default)?;
        match three.iter().all(|x| *x > 0.0) {
            true => Ok(three),
            false => self.wrong(key, "three numbers above 0"),
        }
    }

    /// Keys that say something (not null, not false) and are in none of the lists.
    pub fn others(&self, known: &[&str]) -> Vec<String> {
        let says = |value: &Value| !value.is_null() && *value != false;
        let others = self.0.iter().filter(|(_, value)| says(value));
        let others = others.filter(|(key, _)| !known.contains(&key.as_str()));
        others.map(|(key, _)| key.clone()).collect()
    }
}

/// A count of pixels that an image may have.
pub(super) fn side(value: &Value) -> Option<usize> {
    let n = value.as_u64().filter(|n| (1..=1 << 20).contains(n))?;
    usize::try_from(n).ok()
}
