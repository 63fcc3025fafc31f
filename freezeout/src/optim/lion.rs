//! Lion.
use candle_core::{Result, Tensor};

use super::{Rule, Slices, Update};

/// Lion (Chen et al., arXiv 2302.06675, algorithm 2): the sign of an interpolated momentum. Wants a rate 3 to 10 times
/// smaller than AdamW's, and a weight decay as much larger.
///
/// ```text
/// p <- p * (1 - lr * weight_decay)
/// p <- p - lr * sign(beta1 * m + (1 - beta1) * g)          sign(0) = 0
/// m <- beta2 * m + (1 - beta2) * g
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lion {
    /// Weight of the momentum in the step. 0.9.
    pub beta1: f64,
    /// Decay of the momentum. 0.99.
    pub beta2: f64,
    /// Decoupled weight decay. 0.5.
    pub weight_decay: f64,
}

impl Default for Lion {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 0.5,
        }
    }
}

impl Rule for Lion {
    fn name(&self) -> &'static str {
        "lion"
    }

    fn buffers(&self) -> &'static [&'static str] {
        &["exp_avg"]
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn numbers(&self) -> Vec<(&'static str, f64, f64)> {
        vec![
            ("beta1", self.beta1, 1.0),
            ("beta2", self.beta2, 1.0),
            ("weight_decay", self.weight_decay, f64::INFINITY),
        ]
    }

    fn host(&self, update: &Update, x: Slices<'_>) {
        let keep = (1.0 - update.lr * update.weight_decay) as f32;
        let (lr, beta1, beta2) = (update.lr as f32, self.beta1 as f32, self.beta2 as f32);
        let (new1, new2) = ((1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
        x.for_each1(update, |p, g, m| {
            let direction = beta1 * *m + new1 * g;
            // f32::signum has no zero; NaN stays NaN.
            let sign = if direction == 0.0 {
                0.0
            } else {
                direction.signum()
            };
            *p = *p * keep - lr * sign;
            *m = beta2 * *m + new2 * g;
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
            candle_core::bail!("lion: one state tensor expected");
        };
        let direction = ((&*m * self.beta1)? + (grad * (1.0 - self.beta1))?)?;
        *m = ((&*m * self.beta2)? + (grad * (1.0 - self.beta2))?)?;
        (var * (1.0 - update.lr * update.weight_decay))? - (direction.sign()? * update.lr)?
    }
}
