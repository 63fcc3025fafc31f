//! Weights of blocks in the order that products want them, made once for many passes.
use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::rc::Rc;

use candle_core::TensorId;

use super::super::Precision;
use super::product::{Mat, Prepared, Threads, ROWS};

/// By tensor, precision, k, n, the stride of k, and whether there are many rows.
type Weights = HashMap<(TensorId, Precision, [usize; 4]), Option<Rc<Prepared>>>;

thread_local! {
    /// How many [`HeldWeights`] there are on this thread, and what they hold.
    static HELD: RefCell<(usize, Weights)> = RefCell::new((0, HashMap::new()));
}

/// Until the result is dropped, weights of blocks do not change: what products need of them (tiles of bf16, a transpose in f32) is
/// made once on this thread and used by every forward and backward on it. To be held over the batches whose gradients make one step of
/// the optimiser, or over all batches of an evaluation; it costs the memory of these weights, in bf16 up to as much again as
/// the weights have, which [`release_buffers`](crate::ops::release_buffers) frees afterwards.
///
/// It is about blocks that run as [`block`](crate::ops::block) (GELU, no LayerScale), and of those about weights that are variables or plain,
/// contiguous tensors. On a thread of a rayon pool it does nothing: such a thread may run somebody else's work between two ops.
///
/// Whoever changes a weight in place while this is held computes with the old one.
pub fn hold_weights() -> HeldWeights {
    let holds = rayon::current_thread_index().is_none();
    if holds {
        HELD.with_borrow_mut(|(holders, _)| *holders += 1);
    }
    HeldWeights {
        holds,
        thread: PhantomData,
    }
}

/// See [`hold_weights`].
#[must_use = "weights are held until this is dropped"]
#[derive(Debug)]
pub struct HeldWeights {
    holds: bool,
    /// Of one thread.
    thread: PhantomData<*const ()>,
}

impl Drop for HeldWeights {
    fn drop(&mut self) {
        if !self.holds {
            return;
        }
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
pub struct Weight<'a> {
    pub data: &'a [f32],
    /// Of a tensor that may be held.
    pub id: Option<TensorId>,
}

impl Weight<'_> {
    /// `mat`, this weight as it is or transposed, prepared as the right operand of a product (m x k x n), if weights are held
    /// now.
    pub fn prepared(
        &self,
        mat: Mat,
        shape: (usize, usize, usize),
        precision: Precision,
    ) -> Option<Rc<Prepared>> {
        let (m, k, n) = shape;
        // Few rows may want it otherwise than many.
        let key = (self.id?, precision, [k, n, mat.rs, usize::from(m >= ROWS)]);
        let found = HELD.with_borrow(|(holders, weights)| match holders {
            0 => Some(None),
            _ => weights.get(&key).cloned(),
        });
        found.unwrap_or_else(|| {
            let made = Prepared::new(mat, shape, precision, Threads::All).map(Rc::new);
            HELD.with_borrow_mut(|(_, weights)| weights.insert(key, made.clone()));
            made
        })
    }
}
