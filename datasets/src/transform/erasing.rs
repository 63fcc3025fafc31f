//! Random erasing (Zhong et al., arXiv 1708.04896), as timm's.

use rand_chacha::ChaCha8Rng;

use super::check_prob;
use crate::rng::{below, normal, uniform, uniform_f64};
use crate::{CropBox, Error};

/// What erased pixels become, after normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EraseFill {
    /// Zero, which is the mean colour.
    Const,
    /// One random colour for the rectangle, standard normal.
    Rand,
    /// A random colour for each pixel, standard normal.
    Pixel,
}

/// Overwrites rectangles of random size, shape and place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomErasing {
    /// How likely an image is touched at all.
    pub prob: f64,
    /// Smallest and largest share of the area, divided among the rectangles.
    pub area: (f64, f64),
    /// Smallest and largest height over width; the logarithm is uniform.
    pub ratio: (f64, f64),
    /// Number of rectangles.
    pub count: usize,
    /// What the pixels become.
    pub fill: EraseFill,
}

impl RandomErasing {
    /// timm's: one rectangle of 2 % to a third of the area, ratio 0.3 to 1/0.3.
    pub fn new(prob: f64, fill: EraseFill) -> Self {
        Self {
            prob,
            area: (0.02, 1.0 / 3.0),
            ratio: (0.3, 1.0 / 0.3),
            count: 1,
            fill,
        }
    }

    /// The rectangles for an image of this size. Each is tried ten times; one that never fits is left out.
    pub fn boxes(&self, height: usize, width: usize, rng: &mut ChaCha8Rng) -> Vec<CropBox> {
        let mut boxes = Vec::new();
        if f64::from(uniform(rng)) >= self.prob {
            return boxes;
        }
        let between =
            |rng: &mut ChaCha8Rng, (low, high): (f64, f64)| low + (high - low) * uniform_f64(rng);
        let log_ratio = (libm::log(self.ratio.0), libm::log(self.ratio.1));
        for _ in 0..self.count {
            for _ in 0..10 {
                let area = between(rng, self.area) * (height * width) as f64 / self.count as f64;
                let ratio = libm::exp(between(rng, log_ratio));
                let h = (area * ratio).sqrt().round_ties_even() as usize;
                let w = (area / ratio).sqrt().round_ties_even() as usize;
                if h < height && w < width {
                    boxes.push(CropBox {
                        top: below(rng, height - h + 1),
                        left: below(rng, width - w + 1),
                        height: h,
                        width: w,
                    });
                    break;
                }
            }
        }
        boxes
    }

    /// Draws all that is to be erased.
    pub(super) fn draw(&self, height: usize, width: usize, rng: &mut ChaCha8Rng) -> Option<Erased> {
        let boxes = self.boxes(height, width, rng);
        (!boxes.is_empty()).then(|| Erased {
            boxes,
            fill: self.fill,
            rng: rng.clone(),
        })
    }

    /// An error if a setting makes no sense.
    pub(super) fn check(&self) -> Result<(), Error> {
        check_prob("erasing probability", self.prob)?;
        let range = |(low, high): (f64, f64)| low > 0.0 && low <= high && high.is_finite();
        if range(self.area) && self.area.1 <= 1.0 && range(self.ratio) && self.count <= 1000 {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "{self:?}; expected an area in (0, 1], a positive ratio and at most 1000 rectangles"
        )))
    }
}

/// Rectangles and the generator of their colours.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Erased {
    boxes: Vec<CropBox>,
    fill: EraseFill,
    rng: ChaCha8Rng,
}

impl Erased {
    /// Overwrites them in `[3, height, width]` values.
    pub fn write(&self, width: usize, out: &mut [f32]) {
        let mut rng = self.rng.clone();
        let plane = out.len() / 3;
        for area in &self.boxes {
            for channel in out.chunks_exact_mut(plane.max(1)) {
                let color = match self.fill {
                    EraseFill::Rand => normal(&mut rng),
                    EraseFill::Const | EraseFill::Pixel => 0.0,
                };
                for row in channel
                    .chunks_exact_mut(width)
                    .skip(area.top)
                    .take(area.height)
                {
                    for value in &mut row[area.left..area.left + area.width] {
                        *value = match self.fill {
                            EraseFill::Pixel => normal(&mut rng),
                            EraseFill::Const | EraseFill::Rand => color,
                        };
                    }
                }
            }
        }
    }
}
