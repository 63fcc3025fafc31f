//! Gradients of the live variables, by name.
use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::Error;

/// Gradients by variable name, as [`FreezeOut::backward`](crate::FreezeOut::backward) gives them.
#[derive(Debug, Default)]
pub struct Gradients(pub(crate) BTreeMap<String, Tensor>);

impl Gradients {
    /// The gradient of one variable.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// Names and gradients, in order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, grad)| (name.as_str(), grad))
    }

    /// Adds the gradients of another micro-step (gradient accumulation). Scale each loss by 1 / number of micro-steps
    /// to get the mean.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn add(&mut self, other: Gradients) -> Result<(), Error> {
        for (name, grad) in other.0 {
            let sum = match self.0.remove(&name) {
                Some(sum) => (sum + grad)?.detach(),
                None => grad,
            };
            self.0.insert(name, sum);
        }
        Ok(())
    }
}
