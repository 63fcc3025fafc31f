//! RandAugment (Cubuk et al., arXiv 1909.13719) with timm's operations, ranges and configuration string.

use std::str::FromStr;

use rand_chacha::ChaCha8Rng;

use super::{check_prob, Geometry, Op};
use crate::normalize::IMAGENET_MEAN;
use crate::rng::{below, normal, uniform};
use crate::{Error, Image, Interpolation};

/// Magnitudes are out of this, unless `magnitude_max` says otherwise.
const FULL: f64 = 10.0;

/// Some operations in a row, chosen at random, each done with probability `prob`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandAugment {
    /// How many operations are chosen, with replacement.
    pub layers: usize,
    /// How likely each of these is done.
    pub prob: f64,
    /// How strong they are.
    pub magnitude: f64,
    /// Spread of a normal distribution about it, drawn anew for each operation; infinite: uniform in 0..magnitude.
    pub magnitude_std: f64,
    /// The drawn magnitude is cut to 0..this.
    pub magnitude_max: f64,
    /// Whether posterizing, solarizing and the four enhancements grow stronger with the magnitude.
    pub increasing: bool,
    /// How pixels are moved.
    pub geometry: Geometry,
}

impl Default for RandAugment {
    /// timm's `rand`: two operations of magnitude 10, filled with ImageNet's mean, bicubic.
    fn default() -> Self {
        Self {
            layers: 2,
            prob: 0.5,
            magnitude: 10.0,
            magnitude_std: 0.0,
            magnitude_max: FULL,
            increasing: false,
            geometry: Geometry {
                fill: IMAGENET_MEAN.map(|m| (255.0 * m).round() as u8),
                interpolation: Interpolation::Bicubic,
            },
        }
    }
}

impl FromStr for RandAugment {
    type Err = Error;

    /// timm's grammar: `rand`, then in any order `-m9` magnitude, `-n2` operations, `-p0.5` probability, `-mstd0.5`
    /// spread (above 100: uniform), `-mmax10` largest magnitude, `-inc1` increasing.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |part: &str| {
            Error::InvalidArgument(format!(
                "RandAugment '{text}': '{part}' is not understood; expected something like rand-m9-mstd0.5-inc1 \
                 (parts: m, n, p, mstd, mmax, inc)"
            ))
        };
        let mut parts = text.split('-');
        let first = parts.next().unwrap_or_default();
        if first != "rand" {
            return Err(wrong(first));
        }
        let mut augment = Self::default();
        for part in parts {
            let digits = part.find(|c: char| !c.is_ascii_lowercase());
            let (key, value) = part.split_at(digits.unwrap_or(part.len()));
            let number = || {
                let number: f64 = value.parse().map_err(|_| wrong(part))?;
                (number.is_finite() && number >= 0.0)
                    .then_some(number)
                    .ok_or_else(|| wrong(part))
            };
            match key {
                "m" => augment.magnitude = number()?,
                "n" => augment.layers = value.parse().map_err(|_| wrong(part))?,
                "p" => augment.prob = number()?,
                "mstd" => {
                    let std = number()?;
                    augment.magnitude_std = if std > 100.0 { f64::INFINITY } else { std };
                }
                "mmax" => augment.magnitude_max = number()?,
                "inc" => augment.increasing = number()? != 0.0,
                _ => return Err(wrong(part)),
            }
        }
        augment.check()?;
        Ok(augment)
    }
}

impl RandAugment {
    /// Draws and does the operations.
    pub fn apply(&self, mut image: Image, rng: &mut ChaCha8Rng) -> Image {
        for (op, argument) in self.draw(rng) {
            image = op.apply(image, argument, &self.geometry);
        }
        image
    }

    /// The operations to do, with their arguments.
    pub fn draw(&self, rng: &mut ChaCha8Rng) -> Vec<(Op, f64)> {
        let mut drawn = Vec::with_capacity(self.layers);
        for _ in 0..self.layers {
            let op = Op::ALL[below(rng, Op::ALL.len())];
            if f64::from(uniform(rng)) < self.prob {
                drawn.push((op, self.argument(op, rng)));
            }
        }
        drawn
    }

    fn argument(&self, op: Op, rng: &mut ChaCha8Rng) -> f64 {
        let magnitude = if self.magnitude_std.is_infinite() {
            self.magnitude * f64::from(uniform(rng))
        } else if self.magnitude_std > 0.0 {
            self.magnitude + self.magnitude_std * f64::from(normal(rng))
        } else {
            self.magnitude
        };
        let level = magnitude.clamp(0.0, self.magnitude_max) / FULL;
        let mut signed = |v: f64| if below(rng, 2) == 0 { v } else { -v };
        match op {
            Op::AutoContrast | Op::Equalize | Op::Invert => 0.0,
            Op::Rotate => signed(30.0 * level),
            Op::ShearX | Op::ShearY => signed(0.3 * level),
            Op::TranslateX | Op::TranslateY => signed(0.45 * level),
            Op::Color | Op::Contrast | Op::Brightness | Op::Sharpness if self.increasing => {
                (1.0 + signed(0.9 * level)).max(0.1)
            }
            Op::Color | Op::Contrast | Op::Brightness | Op::Sharpness => 1.8 * level + 0.1,
            Op::Posterize => {
                let bits = (4.0 * level).trunc();
                if self.increasing {
                    (4.0 - bits).max(0.0)
                } else {
                    bits
                }
            }
            Op::Solarize => {
                let from = (256.0 * level).trunc().min(256.0);
                if self.increasing {
                    256.0 - from
                } else {
                    from
                }
            }
            Op::SolarizeAdd => (110.0 * level).trunc().min(128.0),
        }
    }

    /// An error if a setting makes no sense.
    pub(super) fn check(&self) -> Result<(), Error> {
        check_prob("RandAugment's probability", self.prob)?;
        let numbers = [self.magnitude, self.magnitude_max];
        if numbers.iter().any(|n| !(0.0..=1000.0).contains(n))
            || self.magnitude_std.is_nan()
            || self.magnitude_std < 0.0
            || self.layers > 100
        {
            return Err(Error::InvalidArgument(format!(
                "RandAugment with magnitude {} (deviation {}, largest {}) and {} operations; expected numbers that are \
                 not negative, magnitudes up to 1000 and at most 100 operations",
                self.magnitude, self.magnitude_std, self.magnitude_max, self.layers
            )));
        }
        Ok(())
    }
}
