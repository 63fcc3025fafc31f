//! HOG targets: histograms of oriented gradients, at several cell sizes from one pass over the image.
use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;
use vit::ops::Compute;

/// HOG targets of `images` (B, C, H, W), one tensor (B, (H/p) * (W/p), C * bins) for each cell size p in `pools`.
///
/// Per channel of the normalised image, with reflected borders:
///
/// ```text
/// gx = image * [[1,0,-1],[2,0,-2],[1,0,-1]]        gy = image * its transpose (both as cross-correlation)
/// magnitude = sqrt(gx^2 + gy^2)                    phase = atan2(gx, gy)
/// bin = floor(phase / pi * bins) mod bins          (unsigned orientation, hard assignment)
/// cell[bin] = mean of the magnitudes in the cell   then L2-normalised over the bins (eps 1e-12), no block norm
/// ```
///
/// The last dimension is the first channel's bins, then the second's, ...: red's, green's, blue's. Source: Dalal and Triggs (2005), in the form
/// of MaskFeat (arXiv 2112.09133) and LocalMIM (arXiv 2303.05251).
///
/// The map is computed once: every cell is the mean of cells of the size `finest`. That is an argument of its own so that
/// a target has the same bits whichever others are asked for. Computed on the host, but for f32 images on a CUDA device.
///
/// # Errors
/// Images of another shape, or a cell size that does not divide the image or is no multiple of the finest.
pub fn hog(
    images: &Tensor,
    bins: usize,
    finest: usize,
    pools: &[usize],
    compute: &Compute,
) -> Result<Vec<Tensor>> {
    let (batch, channels, height, width) = images.dims4()?;
    if channels == 0 || height < 2 || width < 2 {
        candle_core::bail!("hog: images of shape {:?}", images.dims());
    }
    for &pool in pools {
        if finest == 0 || pool % finest != 0 || height % pool != 0 || width % pool != 0 {
            candle_core::bail!(
                "hog: cells of {pool} in images of {height} x {width}, finest {finest}"
            );
        }
    }
    #[cfg(feature = "cuda")]
    if compute.form(images) == vit::ops::Form::Cuda {
        let Edges(edges) = Edges::new(bins);
        return crate::cuda::hog(images, &edges, finest, pools);
    }
    let _region = compute.profile.region("hog");
    let host = images
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .contiguous()?;
    let pixels = vit::ops::cpu_f32(&host)?;
    let edges = Edges::new(bins);
    let plane = height * width;
    let length = channels * bins;
    // [image][pool] -> cells, C * bins
    let per_image: Vec<Vec<Vec<f32>>> = pixels
        .par_chunks(channels * plane)
        .map(|image| {
            let mut sums = vec![0f32; plane / (finest * finest) * length];
            for (channel, plane) in image.chunks_exact(plane).enumerate() {
                edges.histograms(plane, width, finest, length, channel * bins, &mut sums);
            }
            pools
                .iter()
                .map(|pool| {
                    let factor = pool / finest;
                    let mut cells = merge(&sums, width / finest, factor, length);
                    normalise(&mut cells, bins, 1.0 / (pool * pool) as f32);
                    cells
                })
                .collect()
        })
        .collect();
    drop(pixels);
    let mut targets = Vec::with_capacity(pools.len());
    for (k, pool) in pools.iter().enumerate() {
        let cells = (height / pool) * (width / pool);
        let data: Vec<f32> = per_image
            .iter()
            .flat_map(|t| t[k].iter().copied())
            .collect();
        targets.push(Tensor::from_vec(
            data,
            (batch, cells, length),
            images.device(),
        )?);
    }
    Ok(targets)
}

/// The directions that separate the bins: bin k begins at the angle `k * pi / bins`.
struct Edges(Vec<(f32, f32)>);

impl Edges {
    fn new(bins: usize) -> Self {
        let edge = |k: usize| {
            let angle = k as f64 * std::f64::consts::PI / bins as f64;
            (angle.cos() as f32, angle.sin() as f32)
        };
        Self((0..bins).map(edge).collect())
    }

    /// Adds the magnitudes of one channel to the histograms of its cells.
    fn histograms(
        &self,
        plane: &[f32],
        width: usize,
        cell: usize,
        stride: usize,
        offset: usize,
        sums: &mut [f32],
    ) {
        let height = plane.len() / width;
        let row = |y: usize| &plane[y * width..(y + 1) * width];
        let mut gradients = Gradients::new(width);
        let mut padded = [
            vec![0f32; width + 2],
            vec![0f32; width + 2],
            vec![0f32; width + 2],
        ];
        for y in 0..height {
            let above = if y == 0 { 1 } else { y - 1 };
            let below = if y + 1 == height { height - 2 } else { y + 1 };
            for (padded, source) in padded.iter_mut().zip([row(above), row(y), row(below)]) {
                padded[1..=width].copy_from_slice(source);
                padded[0] = source[1];
                padded[width + 1] = source[width - 2];
            }
            pulp::Arch::new().dispatch(Row {
                edges: self,
                padded: &padded,
                gradients: &mut gradients,
            });
            let cells = &mut sums[y / cell * (width / cell) * stride..];
            let pixels = gradients.magnitude.chunks(cell);
            for ((i, magnitude), bin) in pixels.enumerate().zip(gradients.bin.chunks(cell)) {
                let histogram = &mut cells[i * stride + offset..][..self.0.len()];
                for (&magnitude, &bin) in magnitude.iter().zip(bin) {
                    histogram[bin as usize] += magnitude;
                }
            }
        }
    }
}

/// Of the pixels of a row.
struct Gradients {
    gx: Vec<f32>,
    gy: Vec<f32>,
    magnitude: Vec<f32>,
    bin: Vec<i32>,
    /// How near the vector is to an edge.
    near: Vec<f32>,
}

impl Gradients {
    fn new(width: usize) -> Self {
        let zeros = || vec![0f32; width];
        Self {
            gx: zeros(),
            gy: zeros(),
            magnitude: zeros(),
            bin: vec![0; width],
            near: zeros(),
        }
    }
}

/// Gradients and bins of a row. A type, and not a closure, because only then is it compiled for the instruction set.
struct Row<'a> {
    edges: &'a Edges,
    /// The rows above, here and below, with a pixel more at both ends.
    padded: &'a [Vec<f32>; 3],
    gradients: &'a mut Gradients,
}

impl pulp::NullaryFnOnce for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let [a, b, c] = self.padded;
        let Gradients {
            gx,
            gy,
            magnitude,
            bin,
            near,
        } = self.gradients;
        sobel(a, b, c, gx, gy, magnitude);
        bins(&self.edges.0, gx, gy, magnitude, bin, near);
    }
}

/// The bins of many gradients at once, `floor(atan2(gx, gy) / pi * bins) mod bins`, mostly without an arc tangent.
///
/// Unsigned orientation folds the angle into [0, pi); the bin is then the number of edges behind it, and an edge lies
/// behind a vector where their cross product is positive. So close to an edge that rounding decides, the formula
/// itself is evaluated: gradients along the axes are common (borders, ramps), and they lie on edges.
#[inline(always)]
fn bins(
    edges: &[(f32, f32)],
    gx: &[f32],
    gy: &[f32],
    magnitude: &[f32],
    out: &mut [i32],
    near: &mut [f32],
) {
    out.fill(-1);
    near.fill(f32::INFINITY);
    for &(cos, sin) in edges {
        let pixels = out.iter_mut().zip(near.iter_mut());
        for (((bin, near), &gx), &gy) in pixels.zip(gx).zip(gy) {
            let cross = gx * cos - gy * sin;
            let cross = if gx < 0.0 { -cross } else { cross };
            *bin += i32::from(cross >= 0.0);
            *near = if cross.abs() < *near {
                cross.abs()
            } else {
                *near
            };
        }
    }
    let bins = edges.len();
    for i in 0..out.len() {
        if near[i] <= 2e-6 * magnitude[i] || magnitude[i].is_nan() {
            // Rounded from f64: the f32 function differs from one libm to the next in the last bit, which decides here.
            let phase = f64::from(gx[i]).atan2(f64::from(gy[i])) as f32;
            let turns = phase / std::f32::consts::PI;
            out[i] = ((turns * bins as f32).floor() as i32).rem_euclid(bins as i32);
        }
    }
}

/// Both Sobel gradients of one row from three padded rows. The terms are added row by row, left to right, as a
/// convolution does: in a flat region gx is then exactly 0 and gy is the same rounding noise as the oracle's.
#[inline(always)]
fn sobel(a: &[f32], b: &[f32], c: &[f32], gx: &mut [f32], gy: &mut [f32], mag: &mut [f32]) {
    let width = gx.len();
    let (a, b, c) = (&a[..width + 2], &b[..width + 2], &c[..width + 2]);
    let (gy, mag) = (&mut gy[..width], &mut mag[..width]);
    for x in 0..width {
        gx[x] = a[x] - a[x + 2] + 2.0 * b[x] - 2.0 * b[x + 2] + c[x] - c[x + 2];
        gy[x] = a[x] + 2.0 * a[x + 1] + a[x + 2] - c[x] - 2.0 * c[x + 1] - c[x + 2];
        mag[x] = (gx[x] * gx[x] + gy[x] * gy[x]).sqrt();
    }
}

/// Sums `factor` x `factor` cells into one.
fn merge(cells: &[f32], columns: usize, factor: usize, length: usize) -> Vec<f32> {
    if factor == 1 {
        return cells.to_vec();
    }
    let rows = cells.len() / length / columns;
    let wide = columns / factor;
    let mut out = vec![0f32; rows / factor * wide * length];
    for row in 0..rows {
        for column in 0..columns {
            let to = (row / factor * wide + column / factor) * length;
            let from = (row * columns + column) * length;
            for (out, cell) in out[to..to + length]
                .iter_mut()
                .zip(&cells[from..from + length])
            {
                *out += cell;
            }
        }
    }
    out
}

/// Turns the sums into means and divides every histogram by its length, `max(|h|, 1e-12)`.
fn normalise(cells: &mut [f32], bins: usize, scale: f32) {
    for histogram in cells.chunks_exact_mut(bins) {
        let mut squares = 0f32;
        for x in histogram.iter_mut() {
            *x *= scale;
            squares += *x * *x;
        }
        let inverse = 1.0 / squares.sqrt().max(1e-12);
        histogram.iter_mut().for_each(|x| *x *= inverse);
    }
}
