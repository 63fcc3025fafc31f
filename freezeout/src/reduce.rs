//! Sums over all elements of a tensor: in f64, in an order that depends on the size alone, so that the number of threads
//! changes no bit.
use std::ops::Range;

use candle_core::{CpuStorage, DType, Result, Storage, Tensor};
use rayon::prelude::*;

/// Elements that one task handles.
pub(crate) const CHUNK: usize = 32 * 1024;

/// Whether a tensor is f32 in one piece in the host's memory, where loops of our own read and write it.
pub(crate) fn on_host(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32 && tensor.is_contiguous()
}

/// Sum of the squares.
pub(crate) fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    if on_host(tensor) {
        return slice(tensor, |x| sum(x.len(), |i| f64::from(x[i]).powi(2)));
    }
    scalar(&tensor.to_dtype(DType::F32)?.sqr()?)
}

/// Sum of the squares of `a - b`.
pub(crate) fn squared_distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    squared_sum((1.0, a), (-1.0, b))
}

/// Sum of the squares of `fa * a + fb * b`.
pub(crate) fn squared_sum((fa, a): (f64, &Tensor), (fb, b): (f64, &Tensor)) -> Result<f64> {
    if a.shape() != b.shape() {
        candle_core::bail!("shapes {:?} and {:?} differ", a.shape(), b.shape());
    }
    if on_host(a) && on_host(b) {
        let term = |a: f32, b: f32| (fa * f64::from(a) + fb * f64::from(b)).powi(2);
        return slice(a, |a| slice(b, |b| sum(a.len(), |i| term(a[i], b[i]))))?;
    }
    let (a, b) = (a.to_dtype(DType::F32)?, b.to_dtype(DType::F32)?);
    scalar(&((a * fa)? + (b * fb)?)?.sqr()?)
}

fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.sum_all()?.to_scalar::<f32>()?))
}

/// Reads the values of a tensor [`on_host`].
pub(crate) fn slice<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
        candle_core::bail!("f32 on the CPU expected");
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a contiguous tensor expected");
    };
    Ok(read(&values[start..end]))
}

fn sum(len: usize, term: impl Fn(usize) -> f64 + Sync) -> f64 {
    let chunk = |i: usize| -> Range<usize> { i * CHUNK..len.min((i + 1) * CHUNK) };
    let sums: Vec<f64> = (0..len.div_ceil(CHUNK))
        .into_par_iter()
        .map(|i| lanes(chunk(i), &term))
        .collect();
    sums.iter().sum()
}

/// Eight partial sums, so that one addition need not wait for the last.
fn lanes(range: Range<usize>, term: &impl Fn(usize) -> f64) -> f64 {
    let mut sums = [0.0; 8];
    let whole = range.start + range.len() / 8 * 8;
    for at in (range.start..whole).step_by(8) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += term(at + lane);
        }
    }
    (whole..range.end).map(term).sum::<f64>() + sums.iter().sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn sums_are_right_for_any_size_and_layout() {
        for n in [1, 7, 8, 9, 1000, CHUNK, CHUNK + 1, 3 * CHUNK + 17] {
            let a: Vec<f32> = (0..n).map(|i| (i % 13) as f32 - 6.0).collect();
            let b: Vec<f32> = (0..n).map(|i| (i % 7) as f32).collect();
            let want: f64 = a.iter().map(|&x| f64::from(x).powi(2)).sum();
            let term = |(x, y): (&f32, &f32)| (2.0 * f64::from(*x) - f64::from(*y)).powi(2);
            let want_both: f64 = a.iter().zip(&b).map(term).sum();
            let (a, b) = (
                Tensor::new(a.as_slice(), &Device::Cpu).unwrap(),
                Tensor::new(b.as_slice(), &Device::Cpu).unwrap(),
            );
            assert_eq!(sum_of_squares(&a).unwrap(), want);
            assert_eq!(squared_sum((2.0, &a), (-1.0, &b)).unwrap(), want_both);
            // Not f32: composed ops.
            let a64 = a.to_dtype(DType::F64).unwrap();
            assert!((sum_of_squares(&a64).unwrap() / want - 1.0).abs() < 1e-5);
        }
        let two = Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap();
        let two = two.reshape((2, 3)).unwrap().t().unwrap();
        assert_eq!(sum_of_squares(&two).unwrap(), 55.0);
        let one = Tensor::ones(5, DType::F32, &Device::Cpu).unwrap();
        assert!(squared_distance(&two, &one).is_err());
    }
}
