//! Weights of blocks in the order that products want them, made once for many passes.
use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::rc::Rc;

use candle_core::TensorId;

use super::matmul::{Mat, Prepared};
use super::Precision;

/// By tensor, precision, k, n and the stride of k.
type Weights = HashMap<(TensorId, Precision, [usize; 3]), Option<Rc<Prepared>>>;

thread_local! {
    /// How many [`HeldWeights`] there are on this thread, and what they hold.
    static HELD: RefCell<(usize, Weights)> = RefCell::new((0, HashMap::new()));
}

/// Until the result is dropped, weights of blocks do not change: what products need of them (tiles of bf16, a transpose in f32) is
/// made once on this thread and used by every forward and backward on it. To be held over the batches whose gradients make one step of
/// the optimiser, or over all batches of an evaluation; it costs the memory of these weights, in bf16 up to as much again as
/// the weights have.
///
/// Whoever changes a weight in place while this is held computes with the old one.
pub fn hold_weights() -> HeldWeights {
    HELD.with_borrow_mut(|(holders, _)| *holders += 1);
    HeldWeights(PhantomData)
}

/// See [`hold_weights`].
#[must_use = "weights are held until this is dropped"]
#[derive(Debug)]
pub struct HeldWeights(
    /// Of one thread.
    PhantomData<*const ()>,
);

impl Drop for HeldWeights {
    fn drop(&mut self) {
        let free = |(holders, weights): &mut (usize, Weights)| {
            *holders -= 1;
            match holders {
                0 => std::mem::take(weights),
                _ => Weights::new(),
            }
        };
        drop(HELD.with_borrow_mut(free));
    }
}

/// A weight of a linear layer (outputs, inputs).
#[derive(Clone, Copy)]
pub(super) struct Weight<'a> {
    pub data: &'a [f32],
    /// Of a tensor that may be held.
    pub id: Option<TensorId>,
}

impl Weight<'_> {
    /// `mat`, this weight as it is or transposed, prepared as the right operand (k x n), if weights are held now.
    pub fn prepared(
        &self,
        mat: Mat,
        k: usize,
        n: usize,
        precision: Precision,
    ) -> Option<Rc<Prepared>> {
        let key = (self.id?, precision, [k, n, mat.rs]);
        HELD.with_borrow_mut(|(holders, weights)| {
            if *holders == 0 {
                return None;
            }
            let make = || Prepared::new(mat, k, n, precision).map(Rc::new);
            weights.entry(key).or_insert_with(make).clone()
        })
    }
}
