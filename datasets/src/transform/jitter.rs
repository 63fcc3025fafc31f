//! Colour jitter, as torchvision's on Pillow images.

use rand_chacha::ChaCha8Rng;

use super::{Geometry, Op};
use crate::rng::{permutation, uniform_f64};
use crate::{Error, Image, Interpolation};

/// Changes brightness, contrast, saturation and hue, in random order.
///
/// The factors of the first three are uniform in `[max(0, 1 - x), 1 + x]`, the hue is turned by a part of the circle
/// that is uniform in `[-hue, hue]`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ColorJitter {
    /// 0 or more; 0 leaves the brightness.
    pub brightness: f64,
    /// 0 or more; 0 leaves the contrast.
    pub contrast: f64,
    /// 0 or more; 0 leaves the saturation.
    pub saturation: f64,
    /// 0 to 0.5; 0 leaves the hue.
    pub hue: f64,
}

impl ColorJitter {
    /// The same for brightness, contrast and saturation, no hue: timm's `--color-jitter`.
    pub fn all(strength: f64) -> Self {
        Self {
            brightness: strength,
            contrast: strength,
            saturation: strength,
            hue: 0.0,
        }
    }

    /// Draws and applies.
    pub fn apply(&self, mut image: Image, rng: &mut ChaCha8Rng) -> Image {
        const NOTHING_MOVES: Geometry = Geometry {
            fill: [0; 3],
            interpolation: Interpolation::Bilinear,
        };
        for step in permutation(rng, 4) {
            let (op, strength) = match step {
                0 => (Op::Brightness, self.brightness),
                1 => (Op::Contrast, self.contrast),
                2 => (Op::Color, self.saturation),
                _ => {
                    if self.hue > 0.0 {
                        turn_hue(&mut image, self.hue * (2.0 * uniform_f64(rng) - 1.0));
                    }
                    continue;
                }
            };
            if strength > 0.0 {
                let low = (1.0 - strength).max(0.0);
                let factor = low + (1.0 + strength - low) * uniform_f64(rng);
                image = op.apply(image, factor, &NOTHING_MOVES);
            }
        }
        image
    }

    /// An error if a setting makes no sense.
    pub(super) fn check(&self) -> Result<(), Error> {
        let factors = [self.brightness, self.contrast, self.saturation];
        if factors.iter().all(|x| (0.0..=100.0).contains(x)) && (0.0..=0.5).contains(&self.hue) {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "{self:?}; expected 0 to 100, for the hue 0 to 0.5"
        )))
    }
}

/// Turns the hue by a part of the circle (-0.5 to 0.5), in Pillow's 8-bit HSV.
pub fn turn_hue(image: &mut Image, part: f64) {
    // torchvision adds the truncated number to a byte, which wraps around.
    let shift = (part * 255.0) as i32 as u8;
    for pixel in image.rgb.chunks_exact_mut(3) {
        let [h, s, v] = to_hsv([pixel[0], pixel[1], pixel[2]]);
        pixel.copy_from_slice(&from_hsv([h.wrapping_add(shift), s, v]));
    }
}

fn to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (high, low) = (r.max(g).max(b), r.min(g).min(b));
    if high == low {
        return [0, 0, high];
    }
    let span = f32::from(high - low);
    let [rc, gc, bc] = [r, g, b].map(|c| f32::from(high - c) / span);
    let h = if r == high {
        bc - gc
    } else if g == high {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    let h = ((f64::from(h) / 6.0 + 1.0) % 1.0) as f32;
    let s = span / f32::from(high);
    [
        (f64::from(h) * 255.0) as u8,
        (f64::from(s) * 255.0) as u8,
        high,
    ]
}

fn from_hsv([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let sector = f64::from(h) * 6.0 / 255.0;
    let i = sector.floor();
    let f = f64::from((sector - i) as f32);
    let (s, value) = (f64::from((f64::from(s) / 255.0) as f32), f64::from(v));
    let byte = |x: f64| x.round() as u8;
    let p = byte(value * (1.0 - s));
    let q = byte(value * (1.0 - s * f));
    let t = byte(value * (1.0 - s * (1.0 - f)));
    match i as u32 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}
