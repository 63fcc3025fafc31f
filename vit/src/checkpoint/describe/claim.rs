//! What config.json says and the tensors say as well: the tensors are built by, and a contradiction is an error.
use serde_json::Value;

use crate::VitConfig;

/// A key, what it says, and how the same is told from the architecture that the tensors have.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    key: &'static str,
    said: Value,
    found: fn(&VitConfig) -> Value,
    advice: &'static str,
}

impl Claim {
    pub fn new(key: &'static str, said: impl Into<Value>, found: fn(&VitConfig) -> Value) -> Self {
        Self {
            key,
            said: said.into(),
            found,
            advice: "correct the one that is wrong",
        }
    }

    pub fn with_advice(self, advice: &'static str) -> Self {
        Self { advice, ..self }
    }

    /// In what the tensors contradict it.
    pub fn contradicts(&self, cfg: &VitConfig) -> Option<String> {
        let (key, said, found, advice) = (self.key, &self.said, (self.found)(cfg), self.advice);
        (*said != found)
            .then(|| format!("config.json says '{key}' is {said}, the tensors {found}; {advice}"))
    }
}
