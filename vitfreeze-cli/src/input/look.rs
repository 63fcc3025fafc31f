//! A few images of a dataset, to be looked at.
use std::sync::Arc;
use std::vec::IntoIter;

use anyhow::{bail, Result};
use datasets::rng::{permutation, rng};
use datasets::{Image, Normalize, Source, Transform};

use crate::draw::color::{mix, Color};
use crate::draw::Pixels;

/// Images that are tried in a row before it is given up.
const TRIES: usize = 100;

/// Images in an order that a seed draws, so that all classes are among the first.
pub struct Look {
    source: Arc<dyn Source>,
    seed: u64,
    order: IntoIter<usize>,
}

impl Look {
    pub fn new(source: Arc<dyn Source>, seed: u64) -> Self {
        let order = permutation(&mut rng(seed, "preview", 0, 0), source.len());
        Self {
            source,
            seed,
            order: order.into_iter(),
        }
    }

    /// The next image that can be read, and its number in the source; `None` behind the last.
    pub fn next_image(&mut self) -> Result<Option<(usize, Image)>> {
        let mut failed = None;
        for index in self.order.by_ref().take(TRIES) {
            match self.source.image(index) {
                Ok(image) => return Ok(Some((index, image))),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => bail!("none of the images tried can be read; the last: {error}"),
            None => Ok(None),
        }
    }

    /// What a model sees of an image in an epoch, from the loader's generator: the same as in training.
    pub fn input(
        &self,
        transform: &dyn Transform,
        (index, image): (usize, &Image),
        epoch: u64,
    ) -> Result<Vec<f32>> {
        let (height, width) = transform.size();
        let mut values = vec![0.0; 3 * height * width];
        let mut rng = rng(self.seed, "augment", epoch, index as u64);
        let norm = *transform.normalize();
        transform.draw(image, &mut rng)?.write(&norm, &mut values)?;
        Ok(values)
    }

    /// Number of an image's class.
    pub fn label(&self, index: usize) -> usize {
        self.source.label(index)
    }

    /// Name of an image's class, empty if it has none.
    pub fn class(&self, index: usize) -> String {
        let name = self.source.classes().get(self.source.label(index));
        vit::printable(name.map_or("", String::as_str))
    }

    /// Its file, or whatever else the source calls it.
    pub fn name(&self, index: usize) -> String {
        self.source.name(index)
    }

    /// Class and file of an image, in a line.
    pub fn caption(&self, index: usize) -> String {
        let name = vit::printable(&self.source.name(index));
        match self.class(index) {
            class if class.is_empty() => format!("no label ({name})"),
            class => format!("{class} ({name})"),
        }
    }
}

/// A model's input turned back into pixels.
pub fn pixels(values: &[f32], (height, width): (usize, usize), norm: &Normalize) -> Pixels {
    let plane = height * width;
    Pixels::new(width, height, |x, y| {
        [0, 1, 2].map(|c| {
            let value = values[c * plane + y * width + x] * norm.std[c] + norm.mean[c];
            (value * 255.0).round().clamp(0.0, 255.0) as u8
        })
    })
}

/// Of patches that are hidden: neither black nor white, which images are.
const HIDDEN: Color = [200, 204, 208];

/// An image whose hidden patches are covered, 1 = wholly; `mask` is 1 where one of the `side` x `side` patches is hidden.
pub fn hide(image: &Pixels, mask: &[f32], side: usize, covered: f64) -> Pixels {
    let patch = (image.width / side).max(1);
    image.map(|x, y, color| {
        let at = (y / patch).min(side - 1) * side + (x / patch).min(side - 1);
        match mask[at] > 0.0 {
            true => mix(color, HIDDEN, covered),
            false => color,
        }
    })
}
