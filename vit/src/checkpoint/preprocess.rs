//! How images become a model's input: what is usual, and what the files of others and our own say.
mod hugging_face;
mod ours;
mod timm;

use serde_json::{json, Value};

use super::keys;
use crate::Error;

pub(super) use hugging_face::{read as of_hugging_face, write as to_hugging_face};
pub(super) use ours::read as of_ours;
pub(crate) use ours::write as to_ours;
pub(super) use timm::{read as of_timm, write as to_timm};

const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
/// The middle of 256 pixels is 224.
const CROP_PCT: f64 = 0.875;
/// Images up to this many pixels are judged whole: their margin is not worth losing.
const WHOLE: usize = 64;
/// Largest number of a normalised image: what is squared and summed stays far below f32's 3.4e38.
const MOST: f64 = 1e15;
/// [`Preprocess::floor_margin`] in files of others' layouts that we write, where their readers do otherwise: they pass over
/// it, and we read what we wrote.
pub(super) const FLOOR_MARGIN: &str = "vitfreeze_floor_margin";
/// [`Preprocess::bands`] there, where it is set.
pub(super) const BANDS: &str = "vitfreeze_bands";

/// How pixels are weighted when an image is resized, in Pillow's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The pixel at the centre.
    Nearest,
    /// Lanczos of width 6.
    Lanczos,
    /// Triangle.
    Bilinear,
    /// Cubic.
    Bicubic,
    /// Mean.
    Box,
    /// Hamming window.
    Hamming,
}

impl Filter {
    /// In the order of Pillow's numbers, which Hugging Face writes; with the names that timm writes.
    const ALL: [(Filter, &'static str); 6] = [
        (Filter::Nearest, "nearest"),
        (Filter::Lanczos, "lanczos"),
        (Filter::Bilinear, "bilinear"),
        (Filter::Bicubic, "bicubic"),
        (Filter::Box, "box"),
        (Filter::Hamming, "hamming"),
    ];

    /// timm's name of it.
    pub fn name(self) -> &'static str {
        Self::ALL[self.number()].1
    }

    fn number(self) -> usize {
        let place = Self::ALL.iter().position(|(filter, _)| *filter == self);
        place.unwrap_or_default()
    }

    fn of_number(number: u64) -> Option<Self> {
        let place = usize::try_from(number).ok()?;
        Self::ALL.get(place).map(|(filter, _)| *filter)
    }

    fn of_name(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(_, n)| *n == name);
        found.map(|(filter, _)| *filter)
    }
}

/// How images become the model's input.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    /// Height and width of the input in pixels, where the checkpoint's files tell.
    pub size: Option<(usize, usize)>,
    /// The parts of the resized image's height and width that the central crop keeps.
    pub crop_pct: (f64, f64),
    /// Whether resizing changes the image's proportions to those of the input (Hugging Face's ViT and DeiT); else it covers
    /// the input.
    pub squash: bool,
    /// Whether half a pixel of the crop's margin is rounded down, as Hugging Face's processors do; else to even, as timm and
    /// torchvision.
    pub floor_margin: bool,
    /// How to resize.
    pub filter: Filter,
    /// Subtracted from each channel, of values between 0 and 1; a number for each.
    pub mean: Vec<f32>,
    /// Each channel is then divided by it.
    pub std: Vec<f32>,
    /// Whether images of three channels are read as numbers, of 16 bits or floating point too, and not as colours of 8 bits;
    /// those of other numbers of channels always are.
    pub bands: bool,
    /// Whether the checkpoint's files say so; else it is what is usual.
    pub known: bool,
}

impl Preprocess {
    /// What is usual for images of this height and width: small ones whole, of others the middle 7/8; bicubic, ImageNet's
    /// mean and deviation.
    pub fn usual(image: (usize, usize)) -> Self {
        Self {
            size: None,
            crop_pct: match image.0.max(image.1) <= WHOLE {
                true => (1.0, 1.0),
                false => (CROP_PCT, CROP_PCT),
            },
            squash: false,
            floor_margin: false,
            filter: Filter::Bicubic,
            mean: IMAGENET.0.into(),
            std: IMAGENET.1.into(),
            bands: false,
            known: false,
        }
    }

    /// How a model that we train on images of this size is judged: its own normalisation, the rest as usual.
    pub fn judged(&self, image: (usize, usize)) -> Self {
        Self {
            mean: self.mean.clone(),
            std: self.std.clone(),
            bands: self.bands,
            known: true,
            ..Self::usual(image)
        }
    }

    /// The same for images of so many channels, as weights become those of so many: one channel has the means of all
    /// numbers, more have them again and again.
    pub fn in_channels(self, channels: usize) -> Self {
        Self {
            mean: of_channels(self.mean, channels),
            std: of_channels(self.std, channels),
            ..self
        }
    }

    /// Refuses a mean and deviation that make numbers of an image's values which f32 cannot square and sum.
    ///
    /// # Errors
    /// [`Error::Config`] with both.
    pub fn check(&self) -> Result<(), Error> {
        for (&mean, &std) in self.mean.iter().zip(&self.std) {
            let most = (1.0 + f64::from(mean).abs()) / f64::from(std);
            if !(std.is_finite() && most > 0.0 && most <= MOST) {
                return Err(Error::Config(format!(
                    "mean {mean:e} and deviation {std:e} make numbers up to {most:.0e} of an image's values from 0 to 1, \
                     more than can be computed with ({MOST:e}); expected those of the images"
                )));
            }
        }
        Ok(())
    }

    /// `crop_pct` as files tell it: one number, or those of height and width where they differ.
    pub fn crop_told(&self) -> Value {
        match self.crop_pct {
            (height, width) if height == width => json!(height),
            (height, width) => json!([height, width]),
        }
    }

    /// What images are resized to (squash), or just cover, before this size is cropped from them.
    fn resized(&self, (height, width): (usize, usize)) -> (usize, usize) {
        let scaled = |side: usize, part: f64| (side as f64 / part) as usize;
        (
            scaled(height, self.crop_pct.0),
            scaled(width, self.crop_pct.1),
        )
    }

    /// What to say of a reader who halves odd margins otherwise than this, where a crop of this size ever has any: of
    /// squashed images all margins are known, of others that of the longer side is any.
    fn margin_note(&self, image: (usize, usize), floors: bool, reader: &str) -> Option<String> {
        let (height, width) = self.resized(image);
        let differs = |all: usize, part: usize| all.saturating_sub(part) % 4 == 3;
        let some = !self.squash || differs(height, image.0) || differs(width, image.1);
        (some && floors != self.floor_margin).then(|| {
            let (where_to, how) = match floors {
                true => ("earlier", "down"),
                false => ("later", "to even"),
            };
            format!(
                "{reader} rounds half a pixel of margin {how}: its crop of an image begins one pixel {where_to} than \
                 here at times"
            )
        })
    }
}

/// Numbers of channels as numbers of so many: see [`Preprocess::in_channels`].
pub(super) fn of_channels(numbers: Vec<f32>, channels: usize) -> Vec<f32> {
    match (numbers.len(), channels) {
        (own, wanted) if own == wanted => numbers,
        (own, 1) => vec![numbers.iter().sum::<f32>() / own as f32],
        _ => numbers.into_iter().cycle().take(channels).collect(),
    }
}

/// The share of which `floor(crop / share)` is `resized`, exactly: the quotient itself can end just below.
fn crop_pct(crop: usize, resized: usize) -> f64 {
    let share = crop as f64 / resized as f64;
    match (crop as f64 / share) as usize == resized {
        true => share,
        false => share * (1.0 - f64::EPSILON),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crop_leads_back_to_the_resized_side() {
        for resized in 1..1200 {
            for crop in 1..=resized {
                let share = crop_pct(crop, resized);
                assert_eq!((crop as f64 / share) as usize, resized, "{crop}");
                assert!(share <= 1.0);
            }
        }
    }
}
