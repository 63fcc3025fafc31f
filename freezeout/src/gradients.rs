//! Gradients of the live variables, by name.
use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::Tensor;

use crate::inplace::Scaled;
use crate::reduce::{on_host, sum_of_squares};
use crate::{Error, FreezeOut};

/// Gradients by variable name, as [`FreezeOut::backward`](crate::FreezeOut::backward) gives them.
#[derive(Debug, Default)]
pub struct Gradients {
    tensors: BTreeMap<String, Tensor>,
    /// Whether the tensors are sums of our own making, which nobody else reads.
    sums: bool,
}

impl Gradients {
    pub(crate) fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self {
            tensors,
            sums: false,
        }
    }

    /// The gradient of one variable.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Names and gradients, in order of the names.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &Tensor)> {
        self.tensors
            .iter()
            .map(|(name, grad)| (name.as_str(), grad))
    }

    /// All gradients, last names first, for somebody who puts new tensors of its own instead of each.
    pub(crate) fn replaceable(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.sums = true;
        self.tensors.values_mut().rev()
    }

    /// Adds the gradients of another micro-step (gradient accumulation). Scale each loss by 1 / number of micro-steps
    /// to get the mean. From the second sum on in place.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn add(&mut self, other: Gradients) -> Result<(), Error> {
        for (name, grad) in other.tensors {
            let sum = match self.tensors.get(&name) {
                Some(sum) if self.sums && on_host(sum) && on_host(&grad) => {
                    sum.inplace_op2(
                        &grad,
                        &Scaled {
                            keep: 1.0,
                            add: 1.0,
                        },
                    )?;
                    continue;
                }
                Some(sum) => (sum + grad)?.detach(),
                // Might be another gradient's memory too.
                None => grad.copy()?.detach(),
            };
            self.tensors.insert(name, sum);
        }
        self.sums = true;
        Ok(())
    }

    /// The sum of both; of nothing and something that is the latter itself.
    pub(crate) fn plus(mut self, other: Gradients) -> Result<Self, Error> {
        if self.tensors.is_empty() {
            return Ok(other);
        }
        self.add(other)?;
        Ok(self)
    }

    /// Keeps those of these names.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.tensors.retain(|name, _| keep(name));
    }

    /// Takes gradients in whose memory nobody else reads.
    pub(crate) fn extend(&mut self, own: BTreeMap<String, Tensor>) {
        self.tensors.extend(own);
    }

    /// The L2 norm of all gradients together, `sqrt(sum g^2)`.
    ///
    /// # Errors
    /// An error of candle.
    pub fn norm(&self) -> Result<f64, Error> {
        let mut squares = 0.0;
        for grad in self.tensors.values() {
            squares += sum_of_squares(grad)?;
        }
        Ok(squares.sqrt())
    }

    /// The same as candle's own store, for an optimiser that implements `candle_nn::Optimizer`. It skips variables that
    /// are not in the store, and so the frozen ones.
    pub fn to_store(&self, freeze: &FreezeOut) -> GradStore {
        let mut store = GradStore::default();
        for (name, _, var) in freeze.live() {
            if let Some(grad) = self.get(name) {
                store.insert(var, grad.clone());
            }
        }
        store
    }
}
