//! Images of other channels than red, green and blue: `--channels`, `--mean`, `--std`.
use anyhow::Result;
use datasets::rng::rng;
use datasets::{
    BandsTransform, EvalTransform, Normalize, PretrainTransform, Recipe, Transform as _,
};
use serde::{Deserialize, Serialize};
use vit::Preprocess;

use crate::console::counted;
use crate::input::pretrained::eval_transform;
use crate::settings::bounded;
use crate::usage::usage;

/// Channels of RGB.
pub const RGB: usize = 3;
/// Far beyond use.
const MOST: usize = 1024;

/// What the images of a training have.
#[derive(Debug, Clone, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Channels {
    /// Channels of the images: 1 is grey; of PNG, TIFF and .npy files as many as they have; 3 are read as numbers of their own
    /// depth [default: RGB of 8 bits; of a checkpoint its own]
    #[arg(long, value_name = "N", help_heading = "Data")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    /// Mean of each channel, of values from 0 to 1; 'data inspect --stats' prints it [default: ImageNet's]
    #[arg(
        long,
        value_name = "X,...",
        value_delimiter = ',',
        num_args = 1,
        help_heading = "Data"
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f64>>,
    /// Standard deviation of each channel
    #[arg(
        long,
        value_name = "X,...",
        value_delimiter = ',',
        num_args = 1,
        help_heading = "Data"
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<Vec<f64>>,
}

impl Channels {
    /// How many there are where nothing is said.
    pub fn count(&self) -> usize {
        self.channels.unwrap_or(RGB)
    }

    /// Refuses what cannot be, in itself.
    pub fn check(&self) -> Result<()> {
        bounded(&[("channels", self.count(), MOST)])?;
        let (Some(mean), Some(std)) = (&self.mean, &self.std) else {
            return match self.mean.is_some() || self.std.is_some() {
                true => Err(usage("--mean and --std belong together; give both")),
                false => Ok(()),
            };
        };
        for (name, numbers) in [("mean", mean), ("std", std)] {
            let wrong = |x: &&f64| !x.is_finite() || name == "std" && **x < 1e-30;
            if let Some(number) = numbers.iter().find(wrong) {
                return Err(usage(format!(
                    "{name}: {number} is not what a channel can have; expected finite numbers, deviations above 0"
                )));
            }
        }
        Ok(())
    }

    /// The same of a model that is new, whose checkpoint does not tell how images are prepared.
    pub fn check_new(&self, data: &str) -> Result<()> {
        self.check()?;
        if self.count() != RGB && self.mean.is_none() {
            return Err(usage(format!(
                "--channels {0} needs --mean and --std, a number for each channel: vitfreeze data inspect {data} --channels {0} --stats prints them",
                self.count()
            )));
        }
        self.prepared(Preprocess::usual((1, 1)).in_channels(self.count()))?;
        Ok(())
    }

    /// With this mean and deviation instead of those that images are prepared by, where they are given.
    pub fn prepared(&self, p: Preprocess) -> Result<Preprocess> {
        let p = Preprocess {
            bands: p.bands || self.channels == Some(RGB),
            ..p
        };
        let (Some(mean), Some(std)) = (&self.mean, &self.std) else {
            return Ok(p);
        };
        let channels = p.mean.len();
        for (name, numbers) in [("mean", mean), ("std", std)] {
            if numbers.len() != channels {
                return Err(usage(format!(
                    "{name} has {}, images have {}; give one for each",
                    counted(numbers.len(), "number"),
                    counted(channels, "channel")
                )));
            }
        }
        let single = |numbers: &[f64]| numbers.iter().map(|&x| x as f32).collect();
        Ok(Preprocess {
            mean: single(mean),
            std: single(std),
            ..p
        })
    }
}

/// The last step of RGB images; `None` of images that are read as numbers.
pub fn normalize(p: &Preprocess) -> Option<Normalize> {
    if p.bands {
        return None;
    }
    let three = |numbers: &[f32]| <[f32; RGB]>::try_from(numbers).ok();
    Some(Normalize {
        mean: three(&p.mean)?,
        std: three(&p.std)?,
    })
}

/// Crops and flips as `like` has them, normalised so.
pub fn pretrain_recipe(like: &PretrainTransform, p: &Preprocess) -> Recipe {
    match normalize(p) {
        Some(normalize) => PretrainTransform { normalize, ..*like }.into(),
        None => BandsTransform::pretrain(like, p.mean.clone(), p.std.clone()).into(),
    }
}

/// How images become a model's input where nothing is left to chance.
#[derive(Debug, Clone)]
pub struct Judged {
    /// All of it for RGB; for other channels all but the normalisation.
    eval: EvalTransform,
    preprocess: Preprocess,
}

impl Judged {
    /// These preparations for images of this height and width.
    pub fn new(p: &Preprocess, size: (usize, usize)) -> Self {
        Self {
            eval: eval_transform(p, size),
            preprocess: p.clone(),
        }
    }

    /// Height and width of the model's input.
    pub fn size(&self) -> (usize, usize) {
        self.eval.size
    }

    /// The part of the resized image's height that is seen.
    pub fn crop_pct(&self) -> f64 {
        self.eval.crop_pct.0
    }

    pub fn channels(&self) -> usize {
        self.preprocess.mean.len()
    }

    /// Refuses a size that no image has, and numbers that make no sense.
    pub fn check(&self) -> Result<()> {
        self.eval
            .check()
            .and_then(|()| self.recipe().check())
            .map_err(usage)
    }

    /// For a loader.
    pub fn recipe(&self) -> Recipe {
        let p = &self.preprocess;
        match normalize(p) {
            Some(_) => self.eval.into(),
            None => BandsTransform::eval(&self.eval, p.mean.clone(), p.std.clone()).into(),
        }
    }

    /// A model's input of an image file's bytes.
    pub fn input(&self, bytes: &[u8]) -> Result<Vec<f32>> {
        match self.recipe() {
            Recipe::Rgb(_) => {
                let (height, width) = self.size();
                let mut pixels = vec![0f32; RGB * height * width];
                self.eval.apply(&datasets::decode(bytes)?, &mut pixels)?;
                Ok(pixels)
            }
            Recipe::Bands(bands) => {
                let image = datasets::decode_bands(bytes, self.channels())?;
                // Nothing is drawn.
                Ok(bands.draw(&image, &mut rng(0, "eval", 0, 0))?)
            }
        }
    }

    /// For who shows images as colours.
    pub fn rgb(&self) -> Option<&EvalTransform> {
        normalize(&self.preprocess).map(|_| &self.eval)
    }

    /// The same where there is nothing else to be done.
    pub fn rgb_only(&self, command: &str) -> Result<&EvalTransform> {
        self.rgb().ok_or_else(|| {
            usage(format!(
                "vitfreeze {command} draws RGB images; the model is for images of {}",
                counted(self.channels(), "channel")
            ))
        })
    }
}
