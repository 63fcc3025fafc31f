//! The two passes of a resize.
//!
//! Weights are floats, whose rounding differs from that of Pillow's 22-bit integers too little to move a result by more
//! than a level. (fast_image_resize, with 16 bits, is at times off by two.) Multiplications and additions are left
//! unfused, so that every instruction set gives the same bits.

use std::f64::consts::PI;

use wide::{f32x4, i32x4};

use super::Interpolation;

impl Interpolation {
    /// Half of the filter's width at scale 1.
    pub(super) fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The weight of a pixel at distance `x`.
    fn weight(self, x: f64) -> f64 {
        // Of two pixels at the box's ends one counts.
        let inside = x > -0.5 && x <= 0.5;
        let x = x.abs();
        match self {
            Self::Nearest => 1.0,
            Self::Box => f64::from(u8::from(inside)),
            Self::Hamming if x < 1.0 => sinc(x) * (0.54 + 0.46 * (x * PI).cos()),
            Self::Hamming => 0.0,
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0,
            Self::Bicubic => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    match x == 0.0 {
        true => 1.0,
        false => (x * PI).sin() / (x * PI),
    }
}

/// Which pixels a resized one is the weighted mean of, for each along one side.
pub(crate) struct Taps {
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
            let (first, last) = match filter {
                Interpolation::Nearest => (center, center + 1.0),
                _ => (center - reach + 0.5, center + reach + 0.5),
            };
            let first = (first.max(0.0) as usize).min(count - 1);
            let last = (last as usize).clamp(first + 1, count);
            starts.push((first, weights.len()));
            some.clear();
            some.extend((first..last).map(|k| filter.weight((k as f64 + 0.5 - center) / wide)));
            let sum: f64 = some.iter().sum();
            let scale = if sum == 0.0 { 1.0 } else { 1.0 / sum };
            weights.extend(some.iter().map(|w| (w * scale) as f32));
        }
        Self { starts, weights }
    }

    /// The first pixel that resized pixel `i` depends on, and the weights of it and those behind it.
    pub fn of(&self, i: usize) -> (usize, &[f32]) {
        let (first, begin) = self.starts[i];
        (first, &self.weights[begin..self.end(i)])
    }

    /// Where the weights of resized pixel `i` end.
    fn end(&self, i: usize) -> usize {
        self.starts
            .get(i + 1)
            .map_or(self.weights.len(), |&(_, begin)| begin)
    }
}

/// What sums begin with: halves must be rounded up, as Pillow does, while the conversions here round them to even.
const UP: f32 = 1.0 / (1 << 15) as f32;

/// The nearest byte. In a way that has a vector form: added to 1.5 x 2^23, a float's last bits are the nearest integer.
#[inline(always)]
fn to_byte(sum: f32) -> u8 {
    const ROUND: f32 = 12_582_912.0;
    let nearest = (sum + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
    nearest.clamp(0, 255) as u8
}

/// Rows that are worked on together: their weights are the same.
const ROWS: usize = 4;

/// The pass along the rows, for some rows of RGB pixels: each becomes as long as there are `taps`.
pub(super) fn across(rows: &[&[u8]], taps: &Taps) -> Vec<u8> {
    let stride = 3 * taps.starts.len();
    let mut out = vec![0; rows.len() * stride];
    // A pixel is three floats of a vector, the fourth is not used.
    let mut pixels: [Vec<f32x4>; ROWS] = Default::default();
    for (rows, out) in rows.chunks(ROWS).zip(out.chunks_mut(ROWS * stride)) {
        let last = rows[rows.len() - 1];
        for (r, pixels) in pixels.iter_mut().enumerate() {
            let row = rows.get(r).unwrap_or(&last).chunks_exact(3);
            pixels.clear();
            pixels.extend(
                row.map(|p| i32x4::new([p[0].into(), p[1].into(), p[2].into(), 0]).round_float()),
            );
        }
        for (i, &(first, begin)) in taps.starts.iter().enumerate() {
            let mut sums = [f32x4::splat(UP); ROWS];
            let weights = &taps.weights[begin..taps.end(i)];
            let row = |r: usize| pixels[r][first..][..weights.len()].iter();
            let columns = row(0).zip(row(1)).zip(row(2)).zip(row(3));
            for (&weight, (((a, b), c), d)) in weights.iter().zip(columns) {
                let weight = f32x4::splat(weight);
                sums[0] += *a * weight;
                sums[1] += *b * weight;
                sums[2] += *c * weight;
                sums[3] += *d * weight;
            }
            for (out, sum) in out.chunks_exact_mut(stride).zip(sums) {
                let sum = sum.fast_max(f32x4::ZERO).fast_min(f32x4::splat(255.0));
                let [r, g, b, _] = sum.fast_round_int().to_array();
                out[3 * i..3 * i + 3].copy_from_slice(&[r as u8, g as u8, b as u8]);
            }
        }
    }
    out
}

/// The pass down the columns of rows of `stride` bytes.
pub(super) fn down(rows: &[u8], stride: usize, taps: &Taps) -> Vec<u8> {
    let mut out = vec![0; taps.starts.len() * stride];
    let mut sums = vec![0.0f32; stride];
    for (i, out) in out.chunks_exact_mut(stride).enumerate() {
        let (first, begin) = taps.starts[i];
        pulp::Arch::new().dispatch(Down {
            rows: &rows[first * stride..],
            weights: &taps.weights[begin..taps.end(i)],
            sums: &mut sums,
            out,
        });
    }
    out
}

/// [`down`] for one row of the result. A type, and not a closure, because only then is it compiled for the instruction set.
struct Down<'a> {
    rows: &'a [u8],
    weights: &'a [f32],
    sums: &'a mut [f32],
    out: &'a mut [u8],
}

impl pulp::NullaryFnOnce for Down<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        self.sums.fill(UP);
        for (row, &weight) in self.rows.chunks_exact(self.sums.len()).zip(self.weights) {
            for (sum, &value) in self.sums.iter_mut().zip(row) {
                *sum += weight * f32::from(value);
            }
        }
        for (to, &sum) in self.out.iter_mut().zip(self.sums.iter()) {
            *to = to_byte(sum);
        }
    }
}
