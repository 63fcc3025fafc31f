//! What config.json or our metadata say and the tensors say as well: the tensors are built by, and a contradiction is an error.
use serde_json::Value;

use crate::VitConfig;

/// A key, what it says, and how the same is told from the architecture that the tensors have.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    place: &'static str,
    key: &'static str,
    said: Value,
    found: fn(&VitConfig) -> Value,
    advice: &'static str,
}

impl Claim {
    pub fn new(key: &'static str, said: impl Into<Value>, found: fn(&VitConfig) -> Value) -> Self {
        Self {
            place: "config.json",
            key,
            said: said.into(),
            found,
            advice: "correct the one that is wrong",
        }
    }

    /// The same, said elsewhere.
    pub fn of(self, place: &'static str) -> Self {
        Self { place, ..self }
    }

    pub fn with_advice(self, advice: &'static str) -> Self {
        Self { advice, ..self }
    }

    /// In what the tensors contradict it.
    pub fn contradicts(&self, cfg: &VitConfig) -> Option<String> {
        let Self {
            place,
            key,
            said,
            advice,
            ..
        } = self;
        let found = (self.found)(cfg);
        (*said != found)
            .then(|| format!("{place} says '{key}' is {said}, the tensors {found}; {advice}"))
    }
}
