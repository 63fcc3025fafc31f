//! The masked mean squared error of one stage.
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use vit::ops::profile::Profile;
use vit::ops::{cpu_f32, Compute, Form};

/// `(B, L, C) -> scalar`: `sum(mean_c (pred - target)^2 * mask) / sum(mask)` with `target` (B, L, C) and `mask` (B, L)
/// (LocalMIM, arXiv 2303.05251, equation 4). Neither target nor mask gets a gradient.
///
/// # Errors
/// Shapes that do not fit, a mask that is 0 everywhere. (On a CUDA device the loss is then NaN: to tell would be to wait.)
pub fn masked_mse(
    pred: &Tensor,
    target: &Tensor,
    mask: &Tensor,
    compute: &Compute,
) -> Result<Tensor> {
    let (batch, cells, channels) = pred.dims3()?;
    if target.dims() != pred.dims() || mask.dims() != [batch, cells] || channels == 0 {
        candle_core::bail!(
            "masked_mse: prediction {:?}, target {:?}, mask {:?}",
            pred.dims(),
            target.dims(),
            mask.dims()
        );
    }
    let mask = mask.contiguous()?;
    #[cfg(feature = "cuda")]
    if compute.form(pred) == Form::Cuda {
        return crate::cuda::masked_mse(pred, target, &mask);
    }
    let fused = compute.form(pred) == Form::Cpu;
    let total: f64 = if fused {
        cpu_f32(&mask)?.iter().map(|&m| f64::from(m)).sum()
    } else {
        f64::from(mask.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?)
    };
    if total <= 0.0 {
        candle_core::bail!("masked_mse: the mask is 0 everywhere");
    }
    if !fused {
        return masked_mse_plain(pred, target, &mask);
    }
    pred.contiguous()?.apply_op1(MaskedMse {
        target: target.contiguous()?,
        mask,
        divisor: total * channels as f64,
        profile: compute.profile.clone(),
    })
}

/// The same, composed of candle's ops: for GPUs, other types, and to compare the fused one with. NaN for an empty mask.
///
/// # Errors
/// Shapes that do not fit.
pub fn masked_mse_plain(pred: &Tensor, target: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let error = (pred - target)?.sqr()?.mean(candle_core::D::Minus1)?;
    (error * mask)?.sum_all()?.div(&mask.sum_all()?)
}

struct MaskedMse {
    target: Tensor,
    mask: Tensor,
    /// `C * sum(mask)`.
    divisor: f64,
    profile: Profile,
}

/// Cells per task; fixed, so that the bits do not depend on the number of threads.
const CELLS: usize = 1024;

impl CustomOp1 for MaskedMse {
    fn name(&self) -> &'static str {
        "masked_mse"
    }

    fn cpu_fwd(&self, pred: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _region = self.profile.region("masked_mse forward");
        let (_, _, channels) = layout.shape().dims3()?;
        let (CpuStorage::F32(pred), Some((start, end))) = (pred, layout.contiguous_offsets())
        else {
            candle_core::bail!("masked_mse: expected a contiguous f32 prediction");
        };
        let pred = &pred[start..end];
        let (target, mask) = (cpu_f32(&self.target)?, cpu_f32(&self.mask)?);
        let partial: Vec<f64> = pred
            .par_chunks(CELLS * channels)
            .zip(target.par_chunks(CELLS * channels))
            .zip(mask.par_chunks(CELLS))
            .map(|((pred, target), mask)| {
                let cells = pred
                    .chunks_exact(channels)
                    .zip(target.chunks_exact(channels));
                let mut sum = 0f64;
                for ((p, t), &m) in cells.zip(mask) {
                    if m != 0.0 {
                        let cell: f32 = p.iter().zip(t).map(|(p, t)| (p - t) * (p - t)).sum();
                        sum += f64::from(cell) * f64::from(m);
                    }
                }
                sum
            })
            .collect();
        let loss = (partial.iter().sum::<f64>() / self.divisor) as f32;
        Ok((CpuStorage::F32(vec![loss]), Shape::from(())))
    }

    fn bwd(&self, pred: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _region = self.profile.region("masked_mse backward");
        let (_, _, channels) = pred.dims3()?;
        let factor = (2.0 * f64::from(grad.to_scalar::<f32>()?) / self.divisor) as f32;
        let (p, t, mask) = (cpu_f32(pred)?, cpu_f32(&self.target)?, cpu_f32(&self.mask)?);
        let mut d = vec![0f32; p.len()];
        d.par_chunks_mut(CELLS * channels)
            .zip(p.par_chunks(CELLS * channels))
            .zip(t.par_chunks(CELLS * channels))
            .zip(mask.par_chunks(CELLS))
            .for_each(|(((d, p), t), mask)| {
                let cells = d.chunks_exact_mut(channels).zip(p.chunks_exact(channels));
                for (((d, p), t), &m) in cells.zip(t.chunks_exact(channels)).zip(mask) {
                    for ((d, p), t) in d.iter_mut().zip(p).zip(t) {
                        *d = factor * m * (p - t);
                    }
                }
            });
        drop(p);
        Ok(Some(Tensor::from_vec(d, pred.shape(), pred.device())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::*;

    /// Value and gradient against the composed form and against central differences in f64; more cells than one task.
    #[test]
    fn equals_the_plain_form() {
        let (batch, cells, channels) = (2, 3 * CELLS / 4, 3);
        let value = |i: usize| ((i * 7919) % 1000) as f32 / 500.0 - 1.0;
        let make = |count: usize, salt: usize, shape: &[usize]| {
            let data: Vec<f32> = (0..count).map(|i| value(i * 3 + salt)).collect();
            Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
        };
        let shape = [batch, cells, channels];
        let pred = Var::from_tensor(&make(batch * cells * channels, 0, &shape)).unwrap();
        let target = make(batch * cells * channels, 1, &shape);
        let mask = make(batch * cells, 2, &shape[..2]).abs().unwrap();
        let loss = masked_mse(&pred, &target, &mask, &Compute::default()).unwrap();
        let double = |t: &Tensor| t.detach().to_dtype(DType::F64).unwrap();
        let exact = |pred: &Tensor| -> f64 {
            let loss = masked_mse_plain(pred, &double(&target), &double(&mask)).unwrap();
            loss.to_scalar().unwrap()
        };
        let want = exact(&double(&pred));
        let got = f64::from(loss.to_scalar::<f32>().unwrap());
        assert!((got - want).abs() < 1e-6 * want, "{got}, not {want}");
        let grads = loss.backward().unwrap();
        let grad = grads.get(&pred).unwrap().flatten_all().unwrap();
        let grad = grad.to_vec1::<f32>().unwrap();
        let base = double(&pred)
            .flatten_all()
            .unwrap()
            .to_vec1::<f64>()
            .unwrap();
        for i in (0..base.len()).step_by(97) {
            let at = |delta: f64| {
                let mut values = base.clone();
                values[i] += delta;
                exact(&Tensor::from_vec(values, &shape, &Device::Cpu).unwrap())
            };
            let numeric = (at(1e-4) - at(-1e-4)) / 2e-4;
            let error = (f64::from(grad[i]) - numeric).abs();
            assert!(
                error < 1e-8 + 1e-5 * numeric.abs(),
                "{i}: {} not {numeric}",
                grad[i]
            );
        }
    }

    #[test]
    fn an_empty_mask_is_an_error() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let pred = zeros(&[1, 2, 3]);
        for mask in [zeros(&[1, 2]), zeros(&[1, 3])] {
            assert!(masked_mse(&pred, &pred, &mask, &Compute::default()).is_err());
        }
    }
}
