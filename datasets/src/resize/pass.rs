//! The two passes of a resize.
//!
//! Weights are floats, whose rounding differs from that of Pillow's 22-bit integers too little to move a result by more
//! than a level. (fast_image_resize, with 16 bits, is at times off by two.) Multiplications and additions are left
//! unfused, so that every instruction set gives the same bits.

use super::Interpolation;

impl Interpolation {
    /// Half of the filter's width at scale 1.
    pub(super) fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The weight of a pixel at distance `x`.
    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0,
            Self::Bicubic => 0.0,
        }
    }
}

/// Which pixels a resized one is the weighted mean of, for each along one side.
pub(super) struct Taps {
    /// First pixel, and where its weights begin.
    starts: Vec<(usize, usize)>,
    weights: Vec<f32>,
}

impl Taps {
    /// For the part that begins at `start` and is `len` long of a side of `count` pixels, resized to `to` pixels.
    pub fn new((start, len): (f64, f64), count: usize, to: usize, filter: Interpolation) -> Self {
        let step = len / to as f64;
        let wide = step.max(1.0);
        let reach = filter.support() * wide;
        let (mut starts, mut weights, mut some) = (Vec::with_capacity(to), Vec::new(), Vec::new());
        for i in 0..to {
            let center = start + (i as f64 + 0.5) * step;
            let first = ((center - reach + 0.5).max(0.0) as usize).min(count - 1);
            let last = ((center + reach + 0.5) as usize).clamp(first + 1, count);
            starts.push((first, weights.len()));
            some.clear();
            some.extend((first..last).map(|k| filter.weight((k as f64 + 0.5 - center) / wide)));
            let sum: f64 = some.iter().sum();
            let scale = if sum == 0.0 { 1.0 } else { 1.0 / sum };
            weights.extend(some.iter().map(|w| (w * scale) as f32));
        }
        Self { starts, weights }
    }

    /// (first pixel, weights) for each resized one.
    fn iter(&self) -> impl Iterator<Item = (usize, &[f32])> {
        let ends = self.starts.iter().skip(1).map(|&(_, begin)| begin);
        let ends = ends.chain([self.weights.len()]);
        let slices = self.starts.iter().zip(ends);
        slices.map(|(&(first, begin), end)| (first, &self.weights[begin..end]))
    }
}

fn to_byte(sum: f32) -> u8 {
    sum.clamp(0.0, 255.0) as u8
}

/// The pass along the rows, for some rows of RGB pixels: each becomes as long as there are `taps`.
pub(super) fn across<'a>(rows: impl ExactSizeIterator<Item = &'a [u8]>, taps: &Taps) -> Vec<u8> {
    let stride = 3 * taps.starts.len();
    let mut out = vec![0; rows.len() * stride];
    let mut line = Vec::new();
    for (row, out) in rows.zip(out.chunks_exact_mut(stride)) {
        pulp::Arch::new().dispatch(|| {
            line.clear();
            line.extend(row.iter().map(|&value| f32::from(value)));
            // Pixels are read four floats at a time, of which the last belongs to the next one.
            line.push(0.0);
            for ((first, weights), to) in taps.iter().zip(out.chunks_exact_mut(3)) {
                let mut sum = [0.5f32; 4];
                let pixels = line[3 * first..].windows(4).step_by(3);
                for (&weight, pixel) in weights.iter().zip(pixels) {
                    for c in 0..4 {
                        sum[c] += weight * pixel[c];
                    }
                }
                for (to, sum) in to.iter_mut().zip(sum) {
                    *to = to_byte(sum);
                }
            }
        });
    }
    out
}

/// The pass down the columns of rows of `stride` bytes.
pub(super) fn down(rows: &[u8], stride: usize, taps: &Taps) -> Vec<u8> {
    let mut out = vec![0; taps.starts.len() * stride];
    let mut sums = vec![0.0f32; stride];
    for ((first, weights), out) in taps.iter().zip(out.chunks_exact_mut(stride)) {
        pulp::Arch::new().dispatch(|| {
            sums.fill(0.5);
            let lines = rows[first * stride..].chunks_exact(stride);
            for (line, &weight) in lines.zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(line) {
                    *sum += weight * f32::from(value);
                }
            }
            for (to, &sum) in out.iter_mut().zip(&sums) {
                *to = to_byte(sum);
            }
        });
    }
    out
}
