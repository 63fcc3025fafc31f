//! Bytes of an image file to channels.

use std::io::Cursor;

use ::tiff::decoder::{Decoder, DecodingResult, Limits};
use ::tiff::tags::Tag;
use ::tiff::{ColorType, TiffError};
use image::codecs::png::PngDecoder;
use image::codecs::pnm::PnmDecoder;
use image::{ColorType as Type, ImageDecoder};

use super::{npy, part_of_255, Bands, Pick};
use crate::decode::{bad, check_size, decode_any, guarded, png_limits, take};
use crate::tiff::tile_bytes;
use crate::{DecodeError, DecodeMemory, Permit, MAX_PIXELS};

/// Bytes that a pixel's channel takes here.
const F32: u64 = 4;

/// Decodes an image of `channels` channels: PNG and TIFF of 8 and 16 bits with as many, TIFF of floating-point numbers, NumPy's
/// .npy of shape (H, W, C) or (H, W). Where one channel is wanted, any format that [`decode`](crate::decode) knows is made
/// grey; alpha beside it is dropped.
///
/// # Errors
/// A file that is damaged, or of a kind that is not supported, or has another number of channels; NaN or infinity in it.
pub fn decode_bands(bytes: &[u8], channels: usize) -> Result<Bands, DecodeError> {
    let mut permit = DecodeMemory::default().permit();
    decode_bands_within(bytes, channels, MAX_PIXELS, &mut permit)
}

/// The same with another limit than [`MAX_PIXELS`], within the memory of `permit`, as
/// [`decode_within`](crate::decode_within).
///
/// # Errors
/// As [`decode_bands`]; more pixels or memory than allowed.
pub fn decode_bands_within(
    bytes: &[u8],
    channels: usize,
    max_pixels: u64,
    permit: &mut Permit,
) -> Result<Bands, DecodeError> {
    let bands = guarded(|| any(bytes, channels, max_pixels, permit))?;
    permit.keep(F32 * bands.values.len() as u64);
    if bands.check().is_err() {
        let (width, height) = (bands.width, bands.height);
        return Err(DecodeError::NoPixels { width, height });
    }
    match bands.values.iter().position(|value| !value.is_finite()) {
        None => Ok(bands),
        Some(at) => Err(DecodeError::NotFinite {
            row: at / channels / bands.width,
            column: at / channels % bands.width,
        }),
    }
}

fn any(
    bytes: &[u8],
    channels: usize,
    max_pixels: u64,
    permit: &mut Permit,
) -> Result<Bands, DecodeError> {
    let found = match bytes {
        _ if bytes.starts_with(npy::MAGIC) => {
            return npy::decode(bytes, channels, max_pixels, permit)
        }
        [0x89, b'P', b'N', b'G', ..] => {
            let decoder = PngDecoder::with_limits(Cursor::new(bytes), png_limits());
            let decoder = decoder.map_err(|e| bad(e, DecodeError::Png))?;
            Some(deep(
                decoder,
                channels,
                max_pixels,
                permit,
                DecodeError::Png,
            )?)
        }
        [b'P', b'2' | b'3' | b'5'..=b'7', ..] => {
            let decoder = PnmDecoder::new(Cursor::new(bytes));
            let decoder = decoder.map_err(|e| bad(e, DecodeError::Pnm))?;
            Some(deep(
                decoder,
                channels,
                max_pixels,
                permit,
                DecodeError::Pnm,
            )?)
        }
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => {
            tiff(bytes, channels, max_pixels, permit)?
        }
        _ => None,
    };
    match found {
        Some(bands) => Ok(bands),
        None => Bands::of_rgb(&decode_any(bytes, max_pixels, permit)?, channels),
    }
}

/// An image of a format that may have 16 bits; `kind` makes errors of that format.
fn deep(
    decoder: impl ImageDecoder,
    channels: usize,
    max_pixels: u64,
    permit: &mut Permit,
    kind: fn(String) -> DecodeError,
) -> Result<Bands, DecodeError> {
    let (width, height) = decoder.dimensions();
    let size = (u64::from(width), u64::from(height));
    check_size(size.0, size.1, max_pixels)?;
    let (found, wide) = match decoder.color_type() {
        Type::L8 => (1, false),
        Type::La8 => (2, false),
        Type::Rgb8 => (3, false),
        Type::Rgba8 => (4, false),
        Type::L16 => (1, true),
        Type::La16 => (2, true),
        Type::Rgb16 => (3, true),
        Type::Rgba16 => (4, true),
        other => return Err(kind(format!("pixels of type {other:?} are not supported"))),
    };
    let pick = Pick::of_colours(found, channels)?;
    let pixel = found * if wide { 2 } else { 1 };
    take(
        permit,
        size,
        pixel as u64 + F32 * channels as u64,
        max_pixels,
    )?;
    let (width, height) = (width as usize, height as usize);
    let mut data = vec![0; width * height * pixel];
    decoder.read_image(&mut data).map_err(|e| bad(e, kind))?;
    let mut values = Vec::with_capacity(width * height * channels);
    let mut numbers = [0.0; 4];
    for pixel in data.chunks_exact(pixel) {
        for (c, number) in numbers[..found].iter_mut().enumerate() {
            *number = match wide {
                // `image` hands out 16-bit values in the machine's own byte order.
                true => f32::from(u16::from_ne_bytes([pixel[2 * c], pixel[2 * c + 1]])) / 65535.0,
                false => part_of_255(pixel[c]),
            };
        }
        pick.push(&numbers[..found], &mut values);
    }
    Ok(Bands {
        width,
        height,
        channels,
        values,
    })
}

/// `None` of a kind that [`decode`](crate::decode) knows better, such as palettes.
fn tiff(
    bytes: &[u8],
    channels: usize,
    max_pixels: u64,
    permit: &mut Permit,
) -> Result<Option<Bands>, DecodeError> {
    let error = |e: TiffError| match e {
        TiffError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated
        }
        other => DecodeError::Tiff(other.to_string()),
    };
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(error)?;
    let (width, height) = decoder.dimensions().map_err(error)?;
    let size = (u64::from(width), u64::from(height));
    check_size(size.0, size.1, max_pixels)?;
    let (found, bits, colours) = match decoder.colortype() {
        Ok(ColorType::Gray(bits)) => (1, bits, true),
        Ok(ColorType::GrayA(bits)) => (2, bits, true),
        Ok(ColorType::RGB(bits)) => (3, bits, true),
        Ok(ColorType::RGBA(bits)) => (4, bits, true),
        Ok(ColorType::Multiband {
            bit_depth,
            num_samples,
        }) => (usize::from(num_samples), bit_depth, false),
        _ => return Ok(None),
    };
    if !matches!(bits, 8 | 16 | 32 | 64) {
        return Ok(None);
    }
    // Bands beside colours that are no alpha: this decoder drops them, and which are wanted is not known.
    let samples = decoder.find_tag_unsigned::<u16>(Tag::SamplesPerPixel);
    let samples = samples.map_err(error)?.map_or(found, usize::from);
    if samples > found {
        return Err(DecodeError::Tiff(format!(
            "{} more bands than the colours it is said to be, which are not read; save all {samples} with the photometric \
             interpretation 'minisblack', or as .npy",
            samples - found
        )));
    }
    let pick = match colours {
        true => Pick::of_colours(found, channels)?,
        false => Pick::all(found, channels)?,
    };
    // The decoder fills a buffer of its own first.
    let sample = u64::from(bits) / 8;
    let tile = tile_bytes(&mut decoder).div_ceil((size.0 * size.1).max(1));
    let pixel = 2 * sample * found as u64 + F32 * channels as u64;
    let pixel = pixel.saturating_add(tile);
    take(permit, size, pixel, max_pixels)?;
    let (width, height) = (width as usize, height as usize);
    let count = width * height * found;
    let mut limits = Limits::default();
    limits.decoding_buffer_size = count.saturating_mul(sample as usize);
    let mut decoder = decoder.with_limits(limits);
    let mut data = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut data).map_err(error)?;
    let numbers: Vec<f32> = match data {
        DecodingResult::U8(data) => data.into_iter().map(part_of_255).collect(),
        DecodingResult::U16(data) => {
            let part = |value| f32::from(value) / 65535.0;
            data.into_iter().map(part).collect()
        }
        DecodingResult::I16(data) => data.into_iter().map(f32::from).collect(),
        DecodingResult::F32(data) => data,
        DecodingResult::F64(data) => data.into_iter().map(|x| x as f32).collect(),
        _ => {
            return Err(DecodeError::Tiff(format!(
                "values of {bits} bits of a type that is not read; save whole numbers of 8 or 16 bits, or floating-point ones of 32 \
                 or 64"
            )))
        }
    };
    let planes = layout.planes;
    if numbers.len() != count || (planes != 1 && planes != found) {
        return Err(DecodeError::Tiff(format!(
            "{} values in {planes} planes, expected {count}",
            numbers.len()
        )));
    }
    let mut values = Vec::with_capacity(width * height * channels);
    let mut pixel = vec![0.0; found];
    for i in 0..width * height {
        for (c, value) in pixel.iter_mut().enumerate() {
            *value = match planes {
                1 => numbers[i * found + c],
                _ => numbers[c * width * height + i],
            };
        }
        pick.push(&pixel, &mut values);
    }
    Ok(Some(Bands {
        width,
        height,
        channels,
        values,
    }))
}
