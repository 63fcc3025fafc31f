//! One pass over the memory of one tensor, on all threads.
use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp2, Layout};

use super::{Rule, Update};
use crate::reduce::CHUNK;

/// The same part of a variable, its gradient (clipped in place of use, see [`Slices::for_each`]) and its state.
pub struct Slices<'a> {
    /// Weights.
    pub var: &'a mut [f32],
    /// Gradient, not yet clipped.
    pub grad: &'a [f32],
    /// First state tensor; empty if the rule has none.
    pub first: &'a mut [f32],
    /// Second state tensor; empty if the rule has none.
    pub second: &'a mut [f32],
}

impl<'a> Slices<'a> {
    fn split(self, at: usize) -> (Self, Self) {
        fn cut(x: &mut [f32], at: usize) -> (&mut [f32], &mut [f32]) {
            x.split_at_mut(at.min(x.len()))
        }
        let (var, grad) = (cut(self.var, at), self.grad.split_at(at));
        let (first, second) = (cut(self.first, at), cut(self.second, at));
        let part = |var, grad, first, second| Slices {
            var,
            grad,
            first,
            second,
        };
        (
            part(var.0, grad.0, first.0, second.0),
            part(var.1, grad.1, first.1, second.1),
        )
    }

    /// Calls `f(weight, clipped gradient)` for every element.
    pub fn for_each(self, update: &Update, f: impl Fn(&mut f32, f32)) {
        let (scale, limit) = (update.scale as f32, update.limit as f32);
        for (p, g) in self.var.iter_mut().zip(self.grad) {
            f(p, (g * scale).clamp(-limit, limit));
        }
    }

    /// Calls `f(weight, clipped gradient, first state)` for every element.
    pub fn for_each1(self, update: &Update, f: impl Fn(&mut f32, f32, &mut f32)) {
        let (scale, limit) = (update.scale as f32, update.limit as f32);
        for ((p, g), m) in self.var.iter_mut().zip(self.grad).zip(self.first) {
            f(p, (g * scale).clamp(-limit, limit), m);
        }
    }

    /// Calls `f(weight, clipped gradient, first state, second state)` for every element.
    pub fn for_each2(self, update: &Update, f: impl Fn(&mut f32, f32, &mut f32, &mut f32)) {
        let (scale, limit) = (update.scale as f32, update.limit as f32);
        let states = self.first.iter_mut().zip(self.second);
        for ((p, g), (m, v)) in self.var.iter_mut().zip(self.grad).zip(states) {
            f(p, (g * scale).clamp(-limit, limit), m, v);
        }
    }
}

/// Halves until a part is one task. Every element is computed alone, so the split changes no bit.
fn run(rule: &dyn Rule, update: &Update, x: Slices<'_>) {
    if x.var.len() <= CHUNK {
        return rule.host(update, x);
    }
    let middle = (x.var.len() / 2).next_multiple_of(64);
    let (left, right) = x.split(middle);
    rayon::join(|| run(rule, update, left), || run(rule, update, right));
}

/// A rule as an in-place op on an f32 variable in host memory.
pub(super) struct HostStep<'a> {
    pub rule: &'a dyn Rule,
    pub update: &'a Update,
    pub buffers: &'a [RefCell<Vec<f32>>],
}

impl InplaceOp2 for HostStep<'_> {
    fn name(&self) -> &'static str {
        self.rule.name()
    }

    fn cpu_fwd(
        &self,
        var: &mut CpuStorage,
        var_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<()> {
        let name = self.rule.name();
        let (CpuStorage::F32(var), CpuStorage::F32(grad)) = (var, grad) else {
            candle_core::bail!("{name}: variable and gradient must both be f32");
        };
        let (Some((v0, v1)), Some((g0, g1))) = (
            var_layout.contiguous_offsets(),
            grad_layout.contiguous_offsets(),
        ) else {
            candle_core::bail!("{name}: variable and gradient must be contiguous");
        };
        let (var, grad) = (&mut var[v0..v1], &grad[g0..g1]);
        let mut first = self.buffers.first().map(RefCell::borrow_mut);
        let mut second = self.buffers.get(1).map(RefCell::borrow_mut);
        let first: &mut [f32] = first.as_mut().map_or(&mut [], |b| b.as_mut_slice());
        let second: &mut [f32] = second.as_mut().map_or(&mut [], |b| b.as_mut_slice());
        let n = var.len();
        if grad.len() != n
            || [&first, &second]
                .iter()
                .any(|b| !b.is_empty() && b.len() != n)
        {
            candle_core::bail!(
                "{name}: variable of {n} elements, gradient of {}",
                grad.len()
            );
        }
        let x = Slices {
            var,
            grad,
            first,
            second,
        };
        run(self.rule, self.update, x);
        Ok(())
    }
}
