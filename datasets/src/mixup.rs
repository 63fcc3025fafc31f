//! Mixing the images of a batch: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899), as timm does it.

use std::str::FromStr;

use rand_chacha::ChaCha8Rng;

use crate::rng::{below, beta, rng, uniform};
use crate::{Batch, CropBox, Error};

/// For what one mixture is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MixMode {
    /// One for the batch.
    #[default]
    Batch,
    /// One for each image and its partner, which take the same parts of each other.
    Pair,
    /// One for each image.
    Elem,
}

impl FromStr for MixMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "batch" => Ok(Self::Batch),
            "pair" => Ok(Self::Pair),
            "elem" => Ok(Self::Elem),
            other => Err(Error::InvalidArgument(format!(
                "mixup mode '{other}'; expected batch, pair or elem"
            ))),
        }
    }
}

/// Mixes each image with its partner, the one as far from the batch's end as it is from the start, and the labels with
/// them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixup {
    /// Shares of mixup are drawn from Beta(alpha, alpha); 0 = no mixup.
    pub mixup_alpha: f64,
    /// Shares of CutMix are drawn from Beta(alpha, alpha); 0 = no CutMix.
    pub cutmix_alpha: f64,
    /// How likely anything is done, to the batch or, by mode, to each pair or image.
    pub prob: f64,
    /// How likely CutMix is done instead of mixup when both may be.
    pub switch_prob: f64,
    /// For what one mixture is drawn.
    pub mode: MixMode,
    /// This much of each target is spread over all classes.
    pub label_smoothing: f64,
    /// Number of classes.
    pub classes: usize,
}

/// What is done to one image.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mix {
    Nothing,
    /// The image keeps this share, the rest is its partner's.
    Blend(f32),
    /// This rectangle is the partner's.
    Cut(CropBox),
}

impl Mixup {
    /// The settings of MAE's fine-tuning: mixup 0.8, CutMix 1.0, switching with 0.5, label smoothing 0.1.
    pub fn imagenet(classes: usize) -> Self {
        Self {
            mixup_alpha: 0.8,
            cutmix_alpha: 1.0,
            prob: 1.0,
            switch_prob: 0.5,
            mode: MixMode::Batch,
            label_smoothing: 0.1,
            classes,
        }
    }

    /// Mixes `batch.images`, of `height` x `width` pixels, and returns the targets: `[B, classes]`.
    ///
    /// A function of (seed, epoch, batch): the batch knows its place.
    pub fn apply(
        &self,
        batch: &mut Batch,
        (height, width): (usize, usize),
        seed: u64,
    ) -> Result<Vec<f32>, Error> {
        self.check()?;
        let (count, plane) = (batch.labels.len(), height * width);
        // All channels of an image.
        let size = batch.images.len() / count.max(1);
        let whole = plane > 0 && size.is_multiple_of(plane) && (size > 0 || count == 0);
        if !whole || batch.images.len() != count * size {
            let got = batch.images.len();
            return Err(Error::InvalidArgument(format!(
                "a batch of {count} images of {height} x {width} with {got} values"
            )));
        }
        self.check_labels(&batch.labels)?;
        let mut rng = rng(seed, "mixup", batch.epoch as u64, batch.batch as u64);
        let mixes = self.draw(count, height, width, &mut rng);
        let last = count.saturating_sub(1);
        for i in 0..count.div_ceil(2) {
            let (head, tail) = batch.images.split_at_mut((last - i) * size);
            // The one in the middle of an odd number has no partner.
            if let Some(a) = head.get_mut(i * size..(i + 1) * size) {
                mix_two(
                    a,
                    &mut tail[..size],
                    mixes[i],
                    mixes[last - i],
                    (width, plane),
                );
            }
        }
        let shares: Vec<f32> = mixes.iter().map(|m| m.share(height, width)).collect();
        Ok(self.targets(&batch.labels, &shares))
    }

    /// The targets when nothing is mixed: one-hot with label smoothing, `[B, classes]`.
    ///
    /// # Errors
    /// A label that is no class, a setting that makes no sense.
    pub fn plain_targets(&self, labels: &[u32]) -> Result<Vec<f32>, Error> {
        self.check()?;
        self.check_labels(labels)?;
        Ok(self.targets(labels, &vec![1.0; labels.len()]))
    }

    fn check_labels(&self, labels: &[u32]) -> Result<(), Error> {
        match labels.iter().find(|&&l| l as usize >= self.classes) {
            None => Ok(()),
            Some(label) => Err(Error::InvalidArgument(format!(
                "label {label}, but there are only {} classes",
                self.classes
            ))),
        }
    }

    /// `share` of each label and the rest of its partner's, each smoothed.
    fn targets(&self, labels: &[u32], shares: &[f32]) -> Vec<f32> {
        let off = self.label_smoothing / self.classes as f64;
        let on = (1.0 - self.label_smoothing) as f32;
        let mut targets = vec![off as f32; labels.len() * self.classes];
        let rows = targets.chunks_exact_mut(self.classes);
        for (i, (row, &share)) in rows.zip(shares).enumerate() {
            row[labels[i] as usize] += on * share;
            row[labels[labels.len() - 1 - i] as usize] += on * (1.0 - share);
        }
        targets
    }

    fn draw(&self, count: usize, height: usize, width: usize, rng: &mut ChaCha8Rng) -> Vec<Mix> {
        let mut one = || self.draw_one(height, width, rng);
        match self.mode {
            MixMode::Batch => vec![one(); count],
            MixMode::Elem => (0..count).map(|_| one()).collect(),
            MixMode::Pair => {
                let mut mixes: Vec<Mix> = (0..count.div_ceil(2)).map(|_| one()).collect();
                mixes.extend_from_within(..count / 2);
                mixes[count.div_ceil(2)..].reverse();
                mixes
            }
        }
    }

    fn draw_one(&self, height: usize, width: usize, rng: &mut ChaCha8Rng) -> Mix {
        if f64::from(uniform(rng)) >= self.prob {
            return Mix::Nothing;
        }
        let cut = match (self.mixup_alpha > 0.0, self.cutmix_alpha > 0.0) {
            (true, true) => f64::from(uniform(rng)) < self.switch_prob,
            (_, cut) => cut,
        };
        if !cut {
            return Mix::Blend(beta(rng, self.mixup_alpha) as f32);
        }
        let share = beta(rng, self.cutmix_alpha);
        Mix::Cut(cut_box(height, width, share, rng))
    }

    /// An error if a setting makes no sense.
    pub fn check(&self) -> Result<(), Error> {
        for (name, value, most) in [
            ("mixup_alpha", self.mixup_alpha, 1e6),
            ("cutmix_alpha", self.cutmix_alpha, 1e6),
            ("prob", self.prob, 1.0),
            ("switch_prob", self.switch_prob, 1.0),
            ("label_smoothing", self.label_smoothing, 1.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return Err(Error::InvalidArgument(format!(
                    "{name} is {value}, it must lie in [0, {most}]"
                )));
            }
        }
        if self.mixup_alpha == 0.0 && self.cutmix_alpha == 0.0 && self.prob > 0.0 {
            return Err(Error::InvalidArgument(format!(
                "prob is {}, but mixup_alpha and cutmix_alpha are 0; one must be positive, or prob 0",
                self.prob
            )));
        }
        match self.classes {
            0 => Err(Error::InvalidArgument(
                "classes is 0, there must be at least one".into(),
            )),
            _ => Ok(()),
        }
    }
}

/// A rectangle whose sides are `sqrt(1 - share)` of the image's, about a random centre, cut at the borders.
fn cut_box(height: usize, width: usize, share: f64, rng: &mut ChaCha8Rng) -> CropBox {
    let ratio = (1.0 - share).max(0.0).sqrt();
    let mut side = |all: usize| {
        let cut = (all as f64 * ratio) as usize;
        let center = below(rng, all);
        let start = center.saturating_sub(cut / 2);
        (start, (center + cut.div_ceil(2)).min(all) - start)
    };
    let (top, rows) = side(height);
    let (left, columns) = side(width);
    CropBox {
        top,
        left,
        height: rows,
        width: columns,
    }
}

impl Mix {
    /// The share of the image that is its own, by area.
    fn share(self, height: usize, width: usize) -> f32 {
        match self {
            Self::Nothing => 1.0,
            Self::Blend(share) => share,
            Self::Cut(part) => {
                (1.0 - (part.height * part.width) as f64 / (height * width) as f64) as f32
            }
        }
    }
}

/// Mixes two partners, each from the other as it was.
fn mix_two(a: &mut [f32], b: &mut [f32], to_a: Mix, to_b: Mix, size: (usize, usize)) {
    if let (Mix::Nothing, Mix::Nothing) = (to_a, to_b) {
        return;
    }
    let was = a.to_vec();
    mix_into(a, b, to_a, size);
    mix_into(b, &was, to_b, size);
}

fn mix_into(image: &mut [f32], partner: &[f32], mix: Mix, (width, plane): (usize, usize)) {
    match mix {
        Mix::Nothing => {}
        Mix::Blend(share) => {
            for (own, other) in image.iter_mut().zip(partner) {
                *own = *own * share + *other * (1.0 - share);
            }
        }
        Mix::Cut(part) => {
            let channels = image
                .chunks_exact_mut(plane)
                .zip(partner.chunks_exact(plane));
            for (image, partner) in channels {
                for row in part.top..part.top + part.height {
                    let start = row * width + part.left;
                    image[start..start + part.width]
                        .copy_from_slice(&partner[start..start + part.width]);
                }
            }
        }
    }
}
