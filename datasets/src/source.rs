//! Where images come from.

use std::collections::BTreeMap;
use std::path::Path;

use crate::{decode_bands_within, decode_within, Bands, DecodeMemory, Error, Permit};

/// A decoded image: RGB, 8 bits a channel, row after row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes: red, green, blue of the first pixel of the first row, and so on.
    pub rgb: Vec<u8>,
}

impl Image {
    /// Exchanges left and right.
    pub(crate) fn mirror(&mut self) {
        for row in self.rgb.chunks_exact_mut(3 * self.width.max(1)) {
            row.reverse();
            row.chunks_exact_mut(3).for_each(<[u8]>::reverse);
        }
    }

    /// An error if the image has no pixels or its buffer does not fit its size.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let bytes = self
            .width
            .checked_mul(self.height)
            .and_then(|n| n.checked_mul(3));
        if self.rgb.is_empty() || bytes != Some(self.rgb.len()) {
            let (width, height, bytes) = (self.width, self.height, self.rgb.len());
            return Err(Error::InvalidImage {
                width,
                height,
                bytes,
            });
        }
        Ok(())
    }
}

/// A set of images, with labels or without, read one at a time from any thread.
///
/// An image must be a function of its index alone, or training is not repeatable.
pub trait Source: Send + Sync {
    /// The number of images.
    fn len(&self) -> usize;

    /// Whether there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The names of the classes; a label is an index into them. None at all if the images have no labels.
    fn classes(&self) -> &[String];

    /// Whether the images have labels.
    fn labelled(&self) -> bool {
        !self.classes().is_empty()
    }

    /// The label of image `index`; 0 where there are none.
    fn label(&self, index: usize) -> usize;

    /// Reads image `index`, within the memory of `permit`, which then holds what the image takes. An error stands for this
    /// one image: the loader takes another in its place.
    fn read(&self, index: usize, permit: &mut Permit) -> Result<Image, Error>;

    /// The same with so many channels, where its file has them; of one channel it is grey. Only RGB without more ado, where a
    /// source says nothing of it.
    fn bands(&self, index: usize, channels: usize, permit: &mut Permit) -> Result<Bands, Error> {
        let image = self.read(index, permit)?;
        Bands::of_rgb(&image, channels).map_err(|e| Error::Image {
            name: self.name(index),
            reason: e.to_string(),
        })
    }

    /// Reads image `index` by itself. Whoever reads many at a time uses [`read`](Self::read).
    fn image(&self, index: usize) -> Result<Image, Error> {
        self.read(index, &mut DecodeMemory::default().permit())
    }

    /// What to call image `index` in messages: a path, or "shapes #17".
    fn name(&self, index: usize) -> String;

    /// The dataset in one line, such as "ImageFolder, 50 000 images, 10 classes".
    fn describe(&self) -> String;

    /// The files that are there besides the images: what they are, and how many. Together they are all.
    fn other_files(&self) -> &[(String, usize)] {
        &[]
    }

    /// The folder whose files [`other_files`](Self::other_files) counts, where that is only a part of what was named.
    fn counted_in(&self) -> Option<&Path> {
        None
    }

    /// What was left out when the dataset was opened, and what looks odd in it; a line each.
    fn warnings(&self) -> &[String] {
        &[]
    }

    /// The label of each class name, as torchvision's `class_to_idx`.
    fn class_to_idx(&self) -> BTreeMap<&str, usize> {
        let classes = self.classes().iter().enumerate();
        classes.map(|(i, name)| (name.as_str(), i)).collect()
    }
}

/// What [`Source::describe`] says of a source of this kind.
pub(crate) fn describe(kind: &str, source: &dyn Source) -> String {
    let images = counted(source.len(), "image", "images");
    match source.classes().len() {
        0 => format!("{kind}, {images}, no labels"),
        n => format!("{kind}, {images}, {}", counted(n, "class", "classes")),
    }
}

/// A number and what is counted, in the form that goes with the number.
pub(crate) fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{} {}", thousands(n), if n == 1 { one } else { many })
}

/// Decodes what was read of an image, and puts its name to any error.
pub(crate) fn decode_named(
    bytes: Result<Vec<u8>, String>,
    max_pixels: u64,
    permit: &mut Permit,
    name: impl FnOnce() -> String,
) -> Result<Image, Error> {
    let decoded = |b: Vec<u8>| decode_within(&b, max_pixels, permit).map_err(|e| e.to_string());
    let image = bytes.and_then(decoded);
    image.map_err(|reason| Error::Image {
        name: name(),
        reason,
    })
}

/// The same with so many channels.
pub(crate) fn decode_bands_named(
    bytes: Result<Vec<u8>, String>,
    channels: usize,
    max_pixels: u64,
    permit: &mut Permit,
    name: impl FnOnce() -> String,
) -> Result<Bands, Error> {
    let decoded = |b: Vec<u8>| {
        decode_bands_within(&b, channels, max_pixels, permit).map_err(|e| e.to_string())
    };
    let image = bytes.and_then(decoded);
    image.map_err(|reason| Error::Image {
        name: name(),
        reason,
    })
}

/// `n` with a space between groups of three digits.
pub(crate) fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        let texts: Vec<String> = [0, 999, 1000, 50_000, 1_281_167].map(thousands).into();
        assert_eq!(texts, ["0", "999", "1 000", "50 000", "1 281 167"]);
    }

    #[test]
    fn one_is_not_many() {
        let texts: Vec<String> = [0, 1, 2, 1001]
            .map(|n| counted(n, "class", "classes"))
            .into();
        assert_eq!(
            texts,
            ["0 classes", "1 class", "2 classes", "1 001 classes"]
        );
    }

    #[test]
    fn a_buffer_must_fit_its_image() {
        let image = |width, height, bytes| {
            Image {
                width,
                height,
                rgb: vec![0; bytes],
            }
            .check()
        };
        assert!(image(2, 3, 18).is_ok());
        assert!(
            image(2, 3, 17).is_err()
                && image(0, 3, 0).is_err()
                && image(usize::MAX, 3, 18).is_err()
        );
    }
}
