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

    /// Where the weights of resized pixel `i` end.
    fn end(&self, i: usize) -> usize {
        self.starts
            .get(i + 1)
            .map_or(self.weights.len(), |&(_, begin)| begin)
    }
}

/// What sums begin with: halves must be rounded up, as Pillow does, while the addition in [`to_byte`] rounds them to even.
const UP: f32 = 1.0 / (1 << 15) as f32;

/// The nearest byte. In a way that has a vector form: added to 2^23, a float's last bits are the nearest integer.
#[inline(always)]
fn to_byte(sum: f32) -> u8 {
    (sum.clamp(0.0, 255.0) + (1 << 23) as f32).to_bits() as u8
}

/// Rows that are worked on together, so that a vector register is full: four pixels of three channels and one to spare.
const ROWS: usize = 4;

/// The pass along the rows, for some rows of RGB pixels: each becomes as long as there are `taps`.
pub(super) fn across(rows: &[&[u8]], taps: &Taps) -> Vec<u8> {
    let stride = 3 * taps.starts.len();
    let mut out = vec![0; rows.len() * stride];
    let mut pixels = vec![[0.0; 4 * ROWS]; rows.first().map_or(0, |row| row.len() / 3)];
    for (rows, out) in rows.chunks(ROWS).zip(out.chunks_mut(ROWS * stride)) {
        let last = rows[rows.len() - 1];
        let row = |r: usize| rows.get(r).copied().unwrap_or(last);
        pulp::Arch::new().dispatch(Across {
            rows: [row(0), row(1), row(2), row(3)],
            pixels: &mut pixels,
            taps,
            stride,
            out,
        });
    }
    out
}

/// [`across`] for four rows. A type, and not a closure, because only then is it compiled for the instruction set.
struct Across<'a> {
    rows: [&'a [u8]; ROWS],
    pixels: &'a mut [[f32; 4 * ROWS]],
    taps: &'a Taps,
    stride: usize,
    /// Up to four rows.
    out: &'a mut [u8],
}

impl pulp::NullaryFnOnce for Across<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let [a, b, c, d] = self.rows.map(|row| row.chunks_exact(3));
        for ((((lanes, a), b), c), d) in self.pixels.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            for channel in 0..3 {
                lanes[channel] = f32::from(a[channel]);
                lanes[4 + channel] = f32::from(b[channel]);
                lanes[8 + channel] = f32::from(c[channel]);
                lanes[12 + channel] = f32::from(d[channel]);
            }
        }
        let mut x = 0;
        for (i, &(first, begin)) in self.taps.starts.iter().enumerate() {
            let weights = &self.taps.weights[begin..self.taps.end(i)];
            let mut sums = [UP; 4 * ROWS];
            for (&weight, pixel) in weights.iter().zip(&self.pixels[first..]) {
                for lane in 0..4 * ROWS {
                    sums[lane] += weight * pixel[lane];
                }
            }
            let mut bytes = [0; 4 * ROWS];
            for lane in 0..4 * ROWS {
                bytes[lane] = to_byte(sums[lane]);
            }
            for (out, pixel) in self
                .out
                .chunks_exact_mut(self.stride)
                .zip(bytes.chunks_exact(4))
            {
                out[x..x + 3].copy_from_slice(&pixel[..3]);
            }
            x += 3;
        }
    }
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

/// [`down`] for one row of the result.
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
