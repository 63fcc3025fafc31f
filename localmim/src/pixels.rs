//! Pixel targets: the cells of an image as vectors, normalised or as they are.
use candle_core::{DType, Device, Result, Tensor, D};
use rayon::prelude::*;
use vit::ops::{cpu_f32, Compute, Form};

/// Added to the variance of a cell.
const EPS: f64 = 1e-6;

/// Pixels of `images` (B, C, H, W) by cells, one tensor (B, (H/p) * (W/p), C * p^2) for each cell size p in `pools`; the
/// last dimension has the cell's rows from above, in each its pixels from the left, of each pixel its channels.
///
/// With `normalise` each cell by itself, its channels together:
///
/// ```text
/// (x - mean) / sqrt(variance + 1e-6)        variance = sum (x - mean)^2 / (C p^2 - 1)
/// ```
///
/// Source: MAE (He et al., arXiv 2111.06377, section 3, "Reconstruction target"), whose cells are the patches; LocalMIM
/// (arXiv 2303.05251, section 3.2) has cells of each stage's own size. Images are the model's input, so without `normalise`
/// the numbers are those of ImageNet-normalised images.
///
/// On the CPU in f32 with sums in f64, the same bits by any number of threads; elsewhere composed of candle's ops.
///
/// # Errors
/// Images of another shape, a cell size that does not divide them, a single number to be normalised.
pub fn pixels(
    images: &Tensor,
    pools: &[usize],
    normalise: bool,
    compute: &Compute,
) -> Result<Vec<Tensor>> {
    let (_, channels, height, width) = images.dims4()?;
    for &pool in pools {
        if pool == 0 || height % pool != 0 || width % pool != 0 {
            candle_core::bail!("pixels: cells of {pool} in images of {height} x {width}");
        }
        if normalise && channels * pool * pool < 2 {
            candle_core::bail!("pixels: one number has no deviation to be normalised by");
        }
    }
    let _region = compute.profile.region("pixels");
    let images = images.detach();
    let one = |&pool: &usize| match compute.form(&images) {
        Form::Cpu => on_cpu(&images, pool, normalise),
        _ => plain(&images, pool, normalise),
    };
    pools.iter().map(one).collect()
}

/// Mean and deviation by which a cell of two numbers or more is normalised: a prediction times the deviation plus the mean is
/// made of pixels.
pub fn mean_and_deviation(cell: &[f32]) -> (f64, f64) {
    let count = cell.len() as f64;
    let mean = cell.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let squares = cell.iter().map(|&x| (f64::from(x) - mean).powi(2));
    let variance = squares.sum::<f64>() / (count - 1.0);
    (mean, (variance + EPS).sqrt())
}

fn on_cpu(images: &Tensor, pool: usize, normalise: bool) -> Result<Tensor> {
    let (batch, channels, height, width) = images.dims4()?;
    let images = images.contiguous()?;
    let guard = cpu_f32(&images)?;
    let values: &[f32] = &guard;
    let (plane, length) = (height * width, channels * pool * pool);
    let (rows, columns) = (height / pool, width / pool);
    let mut out = vec![0f32; values.len()];
    // A row of cells is a task of its own.
    out.par_chunks_mut(columns * length)
        .enumerate()
        .for_each(|(task, cells)| {
            let image = &values[task / rows * channels * plane..][..channels * plane];
            let top = task % rows * pool;
            for (column, cell) in cells.chunks_exact_mut(length).enumerate() {
                for (i, pixel) in cell.chunks_exact_mut(channels).enumerate() {
                    let at = (top + i / pool) * width + column * pool + i % pool;
                    for (channel, x) in pixel.iter_mut().enumerate() {
                        *x = image[channel * plane + at];
                    }
                }
                if normalise {
                    let (mean, deviation) = mean_and_deviation(cell);
                    for x in cell {
                        *x = ((f64::from(*x) - mean) / deviation) as f32;
                    }
                }
            }
        });
    drop(guard);
    Tensor::from_vec(out, (batch, rows * columns, length), &Device::Cpu)
}

fn plain(images: &Tensor, pool: usize, normalise: bool) -> Result<Tensor> {
    let (batch, channels, height, width) = images.dims4()?;
    let (rows, columns) = (height / pool, width / pool);
    let length = channels * pool * pool;
    let cells = images
        .contiguous()?
        .reshape((batch, channels, rows, pool, columns, pool))?
        .permute((0, 2, 4, 3, 5, 1))?
        .contiguous()?
        .reshape((batch, rows * columns, length))?;
    if !normalise {
        return Ok(cells);
    }
    let wide = cells.to_dtype(DType::F32)?;
    let wide = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = (wide.sqr()?.sum_keepdim(D::Minus1)? / (length as f64 - 1.0))?;
    let deviation = (variance + EPS)?.sqrt()?;
    wide.broadcast_div(&deviation)?.to_dtype(cells.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Tensor {
        let value = |i: usize| ((i * 7919) % 1000) as f32 / 300.0 - 1.0;
        let data: Vec<f32> = (0..2 * 3 * 8 * 12).map(value).collect();
        Tensor::from_vec(data, (2, 3, 8, 12), &Device::Cpu).unwrap()
    }

    fn flat(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_cell_is_rows_of_pixels_of_colours() {
        let image = image();
        let all = pixels(&image, &[4, 1], false, &Compute::default()).unwrap();
        assert_eq!(all[0].dims(), [2, 6, 48]);
        assert_eq!(all[1].dims(), [2, 96, 3]);
        let (values, cells) = (flat(&image), flat(&all[0]));
        // Image 1, the second row of cells, the third of it: pixel (2, 3) in it, green.
        let at = (3 + 1) * 96 + (4 + 2) * 12 + 2 * 4 + 3;
        assert_eq!(cells[(6 + 5) * 48 + (2 * 4 + 3) * 3 + 1], values[at]);
    }

    #[test]
    fn equals_the_plain_form() {
        let image = image();
        for normalise in [false, true] {
            for pool in [1, 2, 4] {
                let got = on_cpu(&image, pool, normalise).unwrap();
                let want = plain(&image, pool, normalise).unwrap();
                for (a, b) in flat(&got).iter().zip(flat(&want)) {
                    assert!((a - b).abs() < 1e-5, "{pool}: {a}, not {b}");
                }
            }
        }
    }

    #[test]
    fn a_flat_cell_stays_finite() {
        let flat_image = Tensor::full(0.5f32, (1, 3, 4, 4), &Device::Cpu).unwrap();
        let target = pixels(&flat_image, &[2], true, &Compute::default()).unwrap();
        assert!(flat(&target[0]).iter().all(|&x| x == 0.0));
    }

    #[test]
    fn cells_that_do_not_divide_are_an_error() {
        for (shape, pool) in [((1, 3, 8, 8), 3), ((1, 3, 8, 8), 0), ((1, 1, 8, 8), 3)] {
            let image = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
            assert!(pixels(&image, &[pool], false, &Compute::default()).is_err());
        }
    }

    #[test]
    fn a_single_number_is_not_normalised() {
        for (channels, normalise, fits) in [(1, true, false), (1, false, true), (2, true, true)] {
            let image = Tensor::ones((1, channels, 4, 4), DType::F32, &Device::Cpu).unwrap();
            let cells = pixels(&image, &[1], normalise, &Compute::default());
            assert_eq!(cells.is_ok(), fits, "{channels} {normalise}");
        }
    }
}
