//! Two-coloured textures.

use rand_chacha::rand_core::Rng;
use rand_chacha::ChaCha8Rng;

use super::{between, mix, turn};
use crate::rng::below;

#[derive(Clone, Copy)]
enum Pattern {
    Gradient,
    Stripes,
    Checks,
    Dots,
    Noise,
    Waves,
}

impl Pattern {
    const ALL: [Self; 6] = [
        Self::Gradient,
        Self::Stripes,
        Self::Checks,
        Self::Dots,
        Self::Noise,
        Self::Waves,
    ];
}

/// A texture over the plane.
pub(super) struct Paint {
    pattern: Pattern,
    colors: [[f32; 3]; 2],
    /// Rotation times frequency, in periods per unit.
    turn: [f32; 2],
    offset: [f32; 2],
    frequency: f32,
    seed: u32,
}

impl Paint {
    /// A random texture around `color` of hue `hue`; `fineness` multiplies its frequency.
    pub fn draw(rng: &mut ChaCha8Rng, color: [f32; 3], hue: f32, fineness: f32) -> Self {
        let pattern = Pattern::ALL[below(rng, Pattern::ALL.len())];
        let tint = hsv(
            hue + between(rng, -0.12, 0.12),
            between(rng, 0.2, 0.9),
            between(rng, 0.0, 1.0),
        );
        let second = mix(color, tint, between(rng, 0.35, 0.6));
        let frequency = match pattern {
            Pattern::Gradient => between(rng, 0.4, 0.6),
            Pattern::Noise => between(rng, 1.5, 3.0),
            _ => between(rng, 1.2, 2.4),
        } * fineness;
        let [cos, sin] = turn(rng);
        Self {
            pattern,
            colors: if below(rng, 2) == 0 {
                [color, second]
            } else {
                [second, color]
            },
            turn: [cos * frequency, sin * frequency],
            offset: [between(rng, -1.0, 1.0), between(rng, -1.0, 1.0)],
            frequency,
            seed: rng.next_u32(),
        }
    }

    /// The colour at a point; edges within are about one `pixel` soft.
    pub fn at(&self, x: f32, y: f32, pixel: f32) -> [f32; 3] {
        let [cos, sin] = self.turn;
        let (cx, cy) = (x * cos + y * sin, y * cos - x * sin);
        let (u, v) = (cx + self.offset[0], cy + self.offset[1]);
        let soft = 2.0 * pixel * self.frequency;
        let t = match self.pattern {
            Pattern::Gradient => 0.5 + cx,
            Pattern::Stripes => step(zigzag(u), soft),
            Pattern::Checks => {
                let (a, b) = (step(zigzag(u), soft), step(zigzag(v), soft));
                a + b - 2.0 * a * b
            }
            Pattern::Dots => {
                let (a, b) = (fract(u) - 0.5, fract(v) - 0.5);
                step(0.32 - (a * a + b * b).sqrt(), soft / 2.0)
            }
            Pattern::Noise => {
                0.5 + 1.4 * (0.65 * self.noise(u, v) + 0.35 * self.noise(2.0 * u, 2.0 * v) - 0.5)
            }
            Pattern::Waves => step(zigzag(u + 0.6 * self.noise(u, v)), 1.5 * soft),
        };
        mix(self.colors[0], self.colors[1], t.clamp(0.0, 1.0))
    }

    /// Value noise in 0..1: random numbers on a grid, smoothly joined.
    fn noise(&self, u: f32, v: f32) -> f32 {
        let smooth = |t: f32| t * t * (3.0 - 2.0 * t);
        let (a, b) = (smooth(fract(u)), smooth(fract(v)));
        let (x, y) = (floor(u) as u32, floor(v) as u32);
        let corner = |dx: u32, dy: u32| hash(x.wrapping_add(dx), y.wrapping_add(dy), self.seed);
        let top = corner(0, 0) + (corner(1, 0) - corner(0, 0)) * a;
        let bottom = corner(0, 1) + (corner(1, 1) - corner(0, 1)) * a;
        top + (bottom - top) * b
    }
}

/// A random number in [0, 1) for a point of a grid.
pub(super) fn hash(x: u32, y: u32, seed: u32) -> f32 {
    let mut h = seed ^ x.wrapping_mul(0x9e37_79b1) ^ y.wrapping_mul(0x85eb_ca77);
    h = (h ^ (h >> 15)).wrapping_mul(0x2c1b_3c6d);
    h = (h ^ (h >> 12)).wrapping_mul(0x297a_2d39);
    h ^= h >> 15;
    (h >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// Hue, saturation, value to RGB; the hue goes round from 0 to 1.
pub(super) fn hsv(hue: f32, saturation: f32, value: f32) -> [f32; 3] {
    let channel = |n: f32| {
        let k = 6.0 * fract(n / 6.0 + hue);
        value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0)
    };
    [channel(5.0), channel(3.0), channel(1.0)]
}

/// 1 above 0, 0 below, `soft` wide in between.
fn step(value: f32, soft: f32) -> f32 {
    (0.5 + value / soft).clamp(0.0, 1.0)
}

/// From -1 to 1 and back over a period of 1.
fn zigzag(u: f32) -> f32 {
    1.0 - 4.0 * (fract(u) - 0.5).abs()
}

fn fract(u: f32) -> f32 {
    u - floor(u) as f32
}

/// Through an integer: without SSE 4.1, which a plain x86-64 build may not use, `f32::floor` is a function call.
fn floor(u: f32) -> i32 {
    let towards_zero = u as i32;
    towards_zero - i32::from(u < towards_zero as f32)
}
