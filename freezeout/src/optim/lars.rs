//! LARS.
use candle_core::{Result, Tensor};

use super::{Rule, Slices, Update};

/// LARS, layer-wise adaptive rate scaling for large batches (You et al., arXiv 1708.03888), in the form that MoCo v3 and MAE
/// probe with (the paper divides by `|g| + weight_decay * |p|` instead):
///
/// ```text
/// g <- g + weight_decay * p
/// g <- g * trust * |p| / |g|          tensors of 2 or more dimensions, if neither norm is 0
/// m <- momentum * m + g
/// p <- p - lr * m
/// ```
///
/// The norms need one more reading pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lars {
    /// Decay of the sum of gradients. 0.9.
    pub momentum: f64,
    /// Trust coefficient. 0.001.
    pub trust: f64,
    /// Coupled (L2) weight decay. 0.
    pub weight_decay: f64,
}

impl Default for Lars {
    fn default() -> Self {
        Self {
            momentum: 0.9,
            trust: 1e-3,
            weight_decay: 0.0,
        }
    }
}

impl Rule for Lars {
    fn name(&self) -> &'static str {
        "lars"
    }

    fn buffers(&self) -> &'static [&'static str] {
        &["mu"]
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn numbers(&self) -> Vec<(&'static str, f64, f64)> {
        vec![
            ("momentum", self.momentum, 1.0),
            ("weight_decay", self.weight_decay, f64::INFINITY),
            ("trust", self.trust, f64::INFINITY),
        ]
    }

    fn host(&self, update: &Update, x: Slices<'_>) {
        let (lr, decay) = (update.lr as f32, update.weight_decay as f32);
        let (momentum, trust) = (self.momentum as f32, update.trust as f32);
        x.for_each1(update, |p, g, m| {
            *m = momentum * *m + (g + decay * *p) * trust;
            *p -= lr * *m;
        });
    }

    fn tensors(
        &self,
        update: &Update,
        var: &Tensor,
        grad: &Tensor,
        buffers: &mut [Tensor],
    ) -> Result<Tensor> {
        let [m] = buffers else {
            candle_core::bail!("lars: one state tensor expected");
        };
        let grad = ((grad + (var * update.weight_decay)?)? * update.trust)?;
        *m = ((&*m * self.momentum)? + grad)?;
        var - (&*m * update.lr)?
    }

    fn trust(&self) -> Option<f64> {
        Some(self.trust)
    }
}
