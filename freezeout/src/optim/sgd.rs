//! Stochastic gradient descent.
use candle_core::{Result, Tensor};

use super::{Rule, Slices, Update};

/// SGD with momentum, as PyTorch computes it (Sutskever et al., ICML 2013, for Nesterov's):
///
/// ```text
/// g <- g + weight_decay * p
/// m <- momentum * m + g
/// p <- p - lr * (g + momentum * m)         with nesterov; without: p - lr * m
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Decay of the sum of gradients. 0.9; 0 needs no state.
    pub momentum: f64,
    /// Nesterov's momentum. Yes.
    pub nesterov: bool,
    /// Coupled (L2) weight decay. 1e-4.
    pub weight_decay: f64,
}

impl Default for Sgd {
    fn default() -> Self {
        Self {
            momentum: 0.9,
            nesterov: true,
            weight_decay: 1e-4,
        }
    }
}

impl Rule for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn buffers(&self) -> &'static [&'static str] {
        if self.momentum == 0.0 {
            &[]
        } else {
            &["momentum_buffer"]
        }
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn numbers(&self) -> Vec<(&'static str, f64, f64)> {
        vec![
            ("momentum", self.momentum, 1.0),
            ("weight_decay", self.weight_decay, f64::INFINITY),
        ]
    }

    fn host(&self, update: &Update, x: Slices<'_>) {
        let (lr, decay) = (update.lr as f32, update.weight_decay as f32);
        let momentum = self.momentum as f32;
        match (self.momentum == 0.0, self.nesterov) {
            (true, _) => x.for_each(update, |p, g| *p -= lr * (g + decay * *p)),
            (_, false) => x.for_each1(update, |p, g, m| {
                *m = momentum * *m + (g + decay * *p);
                *p -= lr * *m;
            }),
            (_, true) => x.for_each1(update, |p, g, m| {
                let g = g + decay * *p;
                *m = momentum * *m + g;
                *p -= lr * (g + momentum * *m);
            }),
        }
    }

    fn tensors(
        &self,
        update: &Update,
        var: &Tensor,
        grad: &Tensor,
        buffers: &mut [Tensor],
    ) -> Result<Tensor> {
        let grad = (grad + (var * update.weight_decay)?)?;
        let direction = match buffers {
            [] => grad,
            [m, ..] => {
                *m = ((&*m * self.momentum)? + &grad)?;
                if self.nesterov {
                    (grad + (&*m * self.momentum)?)?
                } else {
                    m.clone()
                }
            }
        };
        var - (direction * update.lr)?
    }
}
