//! Bytes of an image file to RGB.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::pnm::PnmDecoder;
use image::codecs::tiff::TiffDecoder;
use image::codecs::webp::WebPDecoder;
use image::{ColorType, ImageDecoder, ImageError, Limits};
use libjpeg_turbo_rs::{ColorSpace, DecodeLimits, Decoder, JpegError, PixelFormat};

use crate::bands::{npy_to_rgb, NPY};
use crate::panics::caught;
use crate::tiff::{palette, tile_bytes, Palette};
use crate::{DecodeMemory, Image, Permit};

/// Larger images are refused from their header, before anything is allocated for them (Pillow's limit), unless another
/// limit is given.
pub const MAX_PIXELS: u64 = 178_956_970;

/// More scans than any real progressive JPEG has; a small file with thousands of them is an attack on our time.
const MAX_SCANS: usize = 512;

/// For what a file holds besides pixels (compressed texts and profiles).
const MAX_EXTRAS: u64 = 64 << 20;

/// Bytes a pixel that the WebP decoder holds besides its result: a canvas and a frame.
const WEBP_FRAMES: u64 = 8;

/// The same of the TIFF decoder, which copies its result, at most 16-bit RGBA.
const TIFF_COPY: u64 = 8;

/// The same of the GIF decoder: a frame.
const GIF_FRAME: u64 = 4;

/// More than any decoder here takes for a pixel.
const MOST_A_PIXEL: u64 = 16;

/// Why bytes are not an image we can use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// No bytes at all.
    #[error("empty file")]
    Empty,
    /// None of the formats we know.
    #[error("none of JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, PGM and .npy (first bytes {0:02x?})")]
    UnknownFormat(Vec<u8>),
    /// More pixels than the limit.
    #[error("{width} x {height} pixels, more than the limit of {limit}")]
    TooLarge {
        /// Width in the header.
        width: u64,
        /// Height in the header.
        height: u64,
        /// The limit.
        limit: u64,
    },
    /// Decoding takes more memory than the limit.
    #[error("decoding {width} x {height} pixels takes {bytes} bytes, more than the limit of {limit}; save it smaller or with 8 bits a channel, or allow more than {MAX_PIXELS} pixels")]
    TooMuchMemory {
        /// Width in the header.
        width: u64,
        /// Height in the header.
        height: u64,
        /// What the decoder would take.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A header that says there are no pixels.
    #[error("{width} x {height} pixels; an image has at least one")]
    NoPixels {
        /// Width of what was decoded.
        width: usize,
        /// Height of what was decoded.
        height: usize,
    },
    /// The file ends before the image does.
    #[error("image file is truncated")]
    Truncated,
    /// A JPEG that is damaged, or of a kind that is not supported.
    #[error("bad JPEG: {0}")]
    Jpeg(String),
    /// A PNG that is damaged, or of a kind that is not supported.
    #[error("bad PNG: {0}")]
    Png(String),
    /// A WebP that is damaged.
    #[error("bad WebP: {0}")]
    WebP(String),
    /// A BMP that is damaged, or of a kind that is not supported.
    #[error("bad BMP: {0}")]
    Bmp(String),
    /// A TIFF that is damaged, or of a kind that is not supported.
    #[error("bad TIFF: {0}")]
    Tiff(String),
    /// A GIF that is damaged.
    #[error("bad GIF: {0}")]
    Gif(String),
    /// A PPM, PGM or PBM that is damaged.
    #[error("bad PPM or PGM: {0}")]
    Pnm(String),
    /// A .npy file that is damaged, or whose array is no image.
    #[error("bad .npy: {0}")]
    Npy(String),
    /// Another number of channels than asked for.
    #[error("{found} channels, {wanted} are wanted")]
    Channels {
        /// In the file.
        found: usize,
        /// Asked for.
        wanted: usize,
    },
    /// A value that nothing can be computed of.
    #[error("NaN or infinity in row {row}, column {column}; both counted from 0")]
    NotFinite {
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
    },
    /// The decoder panicked.
    #[error("decoder panicked: {0}")]
    Panicked(String),
}

/// Decodes a JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, PGM, PBM, or a .npy of 8-bit RGB; which of these, its first bytes say. Of
/// several images in one file it is the first.
///
/// Pixels are those of Pillow's `convert("RGB")`: grey is repeated, palettes are looked up, alpha is dropped and not
/// blended, CMYK is inverted as Adobe stores it, a rotation in the EXIF data is not carried out. There are three
/// differences. A damaged JPEG is an error where Pillow fills the rest with grey. Of 16-bit grey the high byte is
/// taken, as Pillow does for 16-bit colour, where Pillow would clip all values to 255. Floating-point pixels, which Pillow
/// clips so too, are an error.
pub fn decode(bytes: &[u8]) -> Result<Image, DecodeError> {
    decode_within(bytes, MAX_PIXELS, &mut DecodeMemory::default().permit())
}

/// [`decode`] with another limit than [`MAX_PIXELS`], and within the memory that `permit` is of: it waits until others leave
/// enough, and then holds the size of the image.
///
/// An image that takes more than all of the memory is an error, unless the limit is above [`MAX_PIXELS`].
pub fn decode_within(
    bytes: &[u8],
    max_pixels: u64,
    permit: &mut Permit,
) -> Result<Image, DecodeError> {
    let image = guarded(|| decode_any(bytes, max_pixels, permit))?;
    permit.keep(image.rgb.len() as u64);
    // Training would stop at it: every reader has to find the same images bad.
    if image.check().is_err() {
        let (width, height) = (image.width, image.height);
        return Err(DecodeError::NoPixels { width, height });
    }
    Ok(image)
}

/// Should a decoder panic on a strange file, that file is bad, and the training goes on.
pub(crate) fn guarded<T>(
    decode: impl FnOnce() -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    caught(decode).unwrap_or_else(|panic| Err(DecodeError::Panicked(panic)))
}

pub(crate) fn decode_any(
    bytes: &[u8],
    max_pixels: u64,
    permit: &mut Permit,
) -> Result<Image, DecodeError> {
    let cursor = Cursor::new(bytes);
    match bytes {
        [] => Err(DecodeError::Empty),
        [0xff, 0xd8, ..] => decode_jpeg(bytes, max_pixels, permit),
        [0x89, b'P', b'N', b'G', ..] => PngDecoder::with_limits(cursor, png_limits())
            .map_err(|e| bad(e, DecodeError::Png))
            .and_then(|decoder| read(decoder, 0, max_pixels, permit, DecodeError::Png)),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            WebPDecoder::new(cursor)
                .map_err(|e| bad(e, DecodeError::WebP))
                .and_then(|decoder| {
                    read(decoder, WEBP_FRAMES, max_pixels, permit, DecodeError::WebP)
                })
        }
        [b'B', b'M', ..] => BmpDecoder::new(cursor)
            .map_err(|e| bad(e, DecodeError::Bmp))
            .and_then(|decoder| read(decoder, 0, max_pixels, permit, DecodeError::Bmp)),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => {
            decode_tiff(bytes, max_pixels, permit)
        }
        [b'G', b'I', b'F', b'8', ..] => {
            let mut decoder = GifDecoder::new(cursor).map_err(|e| bad(e, DecodeError::Gif))?;
            // A frame may claim to be larger than its image.
            let mut limits = Limits::no_limits();
            limits.max_alloc = Some(decoder.total_bytes());
            decoder
                .set_limits(limits)
                .map_err(|e| bad(e, DecodeError::Gif))?;
            read(decoder, GIF_FRAME, max_pixels, permit, DecodeError::Gif)
        }
        [b'P', b'1'..=b'7', b' ' | b'\t' | b'\r' | b'\n' | b'#', ..] => PnmDecoder::new(cursor)
            .map_err(|e| bad(e, DecodeError::Pnm))
            .and_then(|decoder| read(decoder, 0, max_pixels, permit, DecodeError::Pnm)),
        _ if bytes.starts_with(NPY) => npy_to_rgb(bytes, max_pixels, permit),
        _ => Err(DecodeError::UnknownFormat(
            bytes.iter().take(4).copied().collect(),
        )),
    }
}

/// For what a PNG holds besides its pixels.
pub(crate) fn png_limits() -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_EXTRAS);
    limits
}

pub(crate) fn check_size(width: u64, height: u64, limit: u64) -> Result<(), DecodeError> {
    if width.saturating_mul(height) > limit {
        return Err(DecodeError::TooLarge {
            width,
            height,
            limit,
        });
    }
    Ok(())
}

/// Takes what decoding an image needs of which a pixel takes so many bytes.
pub(crate) fn take(
    permit: &mut Permit,
    (width, height): (u64, u64),
    pixel: u64,
    max_pixels: u64,
) -> Result<(), DecodeError> {
    let all = permit.memory().bytes();
    let limit = match max_pixels > MAX_PIXELS {
        true => all.max(max_pixels.saturating_mul(MOST_A_PIXEL)),
        false => all,
    };
    let bytes = width.saturating_mul(height).saturating_mul(pixel);
    if bytes > limit {
        return Err(DecodeError::TooMuchMemory {
            width,
            height,
            bytes,
            limit,
        });
    }
    permit.take(bytes);
    Ok(())
}

fn decode_jpeg(bytes: &[u8], max_pixels: u64, permit: &mut Permit) -> Result<Image, DecodeError> {
    let limits = DecodeLimits {
        max_pixels,
        max_scans: MAX_SCANS,
        ..DecodeLimits::default()
    };
    let mut decoder = Decoder::new_with_limits(bytes, limits)?;
    let header = decoder.header();
    check_size(header.width.into(), header.height.into(), max_pixels)?;
    if header.precision != 8 {
        return Err(DecodeError::Jpeg(format!(
            "{} bits a channel; only 8 are supported",
            header.precision
        )));
    }
    // The decoder notices when pixels are missing, but not when the later, finer scans of a progressive image are.
    if !bytes.ends_with(&[0xff, 0xd9]) && !has_end_marker(bytes) {
        return Err(DecodeError::Truncated);
    }
    let cmyk = matches!(
        decoder.jpeg_color_space(),
        ColorSpace::Cmyk | ColorSpace::Ycck
    );
    decoder.set_output_format(if cmyk {
        PixelFormat::Cmyk
    } else {
        PixelFormat::Rgb
    });
    // The result, a plane for each component, and of all but plain sequential images the coefficients.
    let header = decoder.header();
    let planes = header.components.len() as u64;
    let coefficients = match header.is_progressive || header.is_lossless {
        true => 2 * planes,
        false => 0,
    };
    let pixel = if cmyk { 7 } else { 3 } + planes + coefficients;
    let size = (header.width.into(), header.height.into());
    take(permit, size, pixel, max_pixels)?;
    let image = decoder.decode_image()?;
    let rgb = if cmyk {
        cmyk_to_rgb(&image.data)
    } else {
        image.data
    };
    Ok(Image {
        width: image.width,
        height: image.height,
        rgb,
    })
}

impl From<JpegError> for DecodeError {
    fn from(error: JpegError) -> Self {
        match error {
            JpegError::UnexpectedEof => Self::Truncated,
            other => Self::Jpeg(other.to_string()),
        }
    }
}

/// Whether the first image in `jpeg` is ended by its end-of-image marker. Other bytes may follow.
fn has_end_marker(jpeg: &[u8]) -> bool {
    let mut rest = jpeg.get(2..).unwrap_or_default();
    loop {
        // Entropy-coded bytes and padding lie between segments; in them 0xff is followed by 0 or a restart marker.
        let Some(at) = rest
            .windows(2)
            .position(|w| w[0] == 0xff && !matches!(w[1], 0 | 0xff | 0xd0..=0xd7))
        else {
            return false;
        };
        match rest[at..] {
            [_, 0xd9, ..] => return true,
            [_, _, high, low, ..] => {
                let end = at + 2 + usize::from(u16::from_be_bytes([high, low]));
                rest = rest.get(end..).unwrap_or_default();
            }
            _ => return false,
        }
    }
}

/// Adobe's inverted CMYK to RGB in Pillow's integer arithmetic.
fn cmyk_to_rgb(inverted: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(inverted.len() / 4 * 3);
    for pixel in inverted.chunks_exact(4) {
        let light = u32::from(pixel[3]);
        for &ink in &pixel[..3] {
            let product = u32::from(255 - ink) * light + 128;
            rgb.push((light - ((product + (product >> 8)) >> 8)) as u8);
        }
    }
    rgb
}

fn decode_tiff(bytes: &[u8], max_pixels: u64, permit: &mut Permit) -> Result<Image, DecodeError> {
    let palette = palette(bytes).map_err(DecodeError::Tiff)?;
    let file = palette.as_ref().map_or(bytes, |p| &p.file);
    // What is damaged is for the other decoder to say.
    let tile =
        ::tiff::decoder::Decoder::new(Cursor::new(file)).map_or(0, |mut d| tile_bytes(&mut d));
    // This decoder bounds what it allocates by itself but for tiles, and fills a buffer of its own first.
    let decoder = TiffDecoder::new(Cursor::new(file)).map_err(|e| bad(e, DecodeError::Tiff))?;
    let (width, height) = decoder.dimensions();
    let tile = tile.div_ceil((u64::from(width) * u64::from(height)).max(1));
    let extra = tile.saturating_add(TIFF_COPY);
    let mut image = read(decoder, extra, max_pixels, permit, DecodeError::Tiff)?;
    if let Some(Palette { colours, .. }) = &palette {
        for pixel in image.rgb.chunks_exact_mut(3) {
            pixel.copy_from_slice(&colours[usize::from(pixel[0])]);
        }
    }
    Ok(image)
}

/// The pixels of a format that the `image` crate decodes; `extra`: what its decoder takes for a pixel besides the result;
/// `kind` makes errors of that format.
fn read(
    decoder: impl ImageDecoder,
    extra: u64,
    max_pixels: u64,
    permit: &mut Permit,
    kind: fn(String) -> DecodeError,
) -> Result<Image, DecodeError> {
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into(), max_pixels)?;
    let (channels, wide) = match decoder.color_type() {
        ColorType::L8 => (1, false),
        ColorType::La8 => (2, false),
        ColorType::Rgb8 => (3, false),
        ColorType::Rgba8 => (4, false),
        ColorType::L16 => (1, true),
        ColorType::La16 => (2, true),
        ColorType::Rgb16 => (3, true),
        ColorType::Rgba16 => (4, true),
        other => return Err(kind(format!("pixels of type {other:?} are not supported"))),
    };
    let pixel = channels * if wide { 2 } else { 1 };
    // Grey is spread into a buffer of its own, colour is packed where it lies.
    let grey = channels < 3;
    let needed = extra.saturating_add(pixel as u64 + if grey { 3 } else { 0 });
    take(permit, (width.into(), height.into()), needed, max_pixels)?;
    let (width, height) = (width as usize, height as usize);
    let mut data = vec![0; width * height * pixel];
    decoder.read_image(&mut data).map_err(|e| bad(e, kind))?;
    // `image` hands out 16-bit values in the machine's own byte order.
    let high = usize::from(wide && cfg!(target_endian = "little"));
    let rgb = if grey {
        let mut rgb = Vec::with_capacity(3 * width * height);
        rgb.extend(data.chunks_exact(pixel).flat_map(|p| [p[high]; 3]));
        rgb
    } else if pixel == 3 {
        data
    } else {
        let sample = pixel / channels;
        for i in 0..width * height {
            for c in 0..3 {
                data[3 * i + c] = data[pixel * i + sample * c + high];
            }
        }
        data.truncate(3 * width * height);
        data.shrink_to_fit();
        data
    };
    Ok(Image { width, height, rgb })
}

pub(crate) fn bad(error: ImageError, kind: fn(String) -> DecodeError) -> DecodeError {
    match error {
        ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated
        }
        other => kind(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_bad_image() {
        let error = guarded::<Image>(|| panic!("index out of bounds")).unwrap_err();
        assert_eq!(error.to_string(), "decoder panicked: index out of bounds");
    }
}
