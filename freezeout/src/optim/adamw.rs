//! AdamW.
use candle_core::{Result, Tensor};

use super::{Rule, Slices, Update};

/// AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), as PyTorch computes it:
///
/// ```text
/// p <- p * (1 - lr * weight_decay)
/// m <- beta1 * m + (1 - beta1) * g         v <- beta2 * v + (1 - beta2) * g^2
/// p <- p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment. 0.9.
    pub beta1: f64,
    /// Decay of the second moment. 0.95, as MAE and its heirs train; PyTorch's own default is 0.999.
    pub beta2: f64,
    /// Added to the denominator. 1e-8.
    pub eps: f64,
    /// Decoupled weight decay. 0.05.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.05,
        }
    }
}

impl Rule for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn buffers(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_avg_sq"]
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn numbers(&self) -> Vec<(&'static str, f64, f64)> {
        vec![
            ("beta1", self.beta1, 1.0),
            ("beta2", self.beta2, 1.0),
            ("eps", self.eps, f64::INFINITY),
            ("weight_decay", self.weight_decay, f64::INFINITY),
        ]
    }

    fn host(&self, update: &Update, x: Slices<'_>) {
        let keep = (1.0 - update.lr * update.weight_decay) as f32;
        let (beta1, beta2, eps) = (self.beta1 as f32, self.beta2 as f32, self.eps as f32);
        // 1 - 0.999 has only four digits in f32.
        let (new1, new2) = ((1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
        let step_size = (update.lr / (1.0 - update.power(self.beta1))) as f32;
        let correction = (1.0 - update.power(self.beta2)).sqrt() as f32;
        x.for_each2(update, |p, g, m, v| {
            *m = beta1 * *m + new1 * g;
            *v = beta2 * *v + new2 * g * g;
            *p = *p * keep - step_size * *m / (v.sqrt() / correction + eps);
        });
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, update: &Update) -> Option<super::cuda::Formula> {
        let statements = "m = n0 * m + n1 * g;
            v = n2 * v + n3 * g * g;
            p = p * n4 - n5 * m / (sqrtf(v) / n6 + n7);";
        let numbers = [
            self.beta1,
            1.0 - self.beta1,
            self.beta2,
            1.0 - self.beta2,
            1.0 - update.lr * update.weight_decay,
            update.lr / (1.0 - update.power(self.beta1)),
            (1.0 - update.power(self.beta2)).sqrt(),
            self.eps,
        ];
        let numbers = numbers.map(|x| x as f32);
        Some(super::cuda::Formula {
            statements,
            numbers,
        })
    }

    fn tensors(
        &self,
        update: &Update,
        var: &Tensor,
        grad: &Tensor,
        buffers: &mut [Tensor],
    ) -> Result<Tensor> {
        let [m, v] = buffers else {
            candle_core::bail!("adamw: two state tensors expected");
        };
        *m = ((&*m * self.beta1)? + (grad * (1.0 - self.beta1))?)?;
        *v = ((&*v * self.beta2)? + (grad.sqr()? * (1.0 - self.beta2))?)?;
        let step_size = update.lr / (1.0 - update.power(self.beta1));
        let correction = (1.0 - update.power(self.beta2)).sqrt();
        let denominator = ((v.sqrt()? / correction)? + self.eps)?;
        let step = ((&*m / denominator)? * step_size)?;
        (var * (1.0 - update.lr * update.weight_decay))? - step
    }
}
