//! NumPy's .npy files: (H, W, C), or (H, W) of one channel.

use super::{Bands, Pick};
use crate::decode::{check_size, take};
use crate::{DecodeError, Permit};

/// A longer header has no array that is an image.
const MAX_HEADER: usize = 1 << 16;

/// What a file begins with.
pub(crate) const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// What an array is, and where its values begin.
#[derive(Debug, PartialEq)]
pub(super) struct Header {
    kind: Kind,
    /// From the largest byte to the smallest.
    big_endian: bool,
    height: usize,
    width: usize,
    channels: usize,
    start: usize,
}

/// Types of values.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    U8,
    U16,
    I16,
    F32,
    F64,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        match name {
            "u1" => Some(Self::U8),
            "u2" => Some(Self::U16),
            "i2" => Some(Self::I16),
            "f4" => Some(Self::F32),
            "f8" => Some(Self::F64),
            _ => None,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// The value of these bytes, which are in the order of small machines.
    fn value(self, bytes: [u8; 8]) -> f32 {
        let [a, b, c, d, ..] = bytes;
        match self {
            Self::U8 => super::part_of_255(a),
            Self::U16 => f32::from(u16::from_le_bytes([a, b])) / 65535.0,
            Self::I16 => f32::from(i16::from_le_bytes([a, b])),
            Self::F32 => f32::from_le_bytes([a, b, c, d]),
            Self::F64 => f64::from_le_bytes(bytes) as f32,
        }
    }
}

impl Header {
    /// Reads it; the file's length is checked against it.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let bad = |what: String| DecodeError::Npy(what);
        let number = |at: usize, len: usize| -> Option<usize> {
            let bytes = bytes.get(at..at + len)?.iter().rev();
            Some(bytes.fold(0, |n, &byte| n << 8 | usize::from(byte)))
        };
        let (length, begin) = match bytes.get(6) {
            Some(1) => (number(8, 2), 10),
            Some(2 | 3) => (number(8, 4), 12),
            Some(other) => return Err(bad(format!("version {other}; 1 to 3 are known"))),
            None => return Err(DecodeError::Truncated),
        };
        let length = length.ok_or(DecodeError::Truncated)?;
        if length > MAX_HEADER {
            return Err(bad(format!("a header of {length} bytes")));
        }
        let start = begin + length;
        let text = bytes.get(begin..start).ok_or(DecodeError::Truncated)?;
        let text = std::str::from_utf8(text).map_err(|_| bad("its header is no text".into()))?;
        let value = |key: &str| {
            let rest = text.split_once(&format!("'{key}':"))?.1.trim_start();
            let end = match rest.as_bytes().first()? {
                b'\'' => rest[1..].find('\'')? + 2,
                b'(' => rest.find(')')? + 1,
                _ => rest.find([',', '}'])?,
            };
            Some(rest[..end].trim())
        };
        let told = |key| value(key).ok_or_else(|| bad(format!("no '{key}' in its header")));
        let name = told("descr")?.trim_matches('\'');
        let (order, kind) = name.split_at_checked(1).unwrap_or_default();
        let kind = Kind::of(kind).filter(|_| matches!(order, "<" | ">" | "|" | "="));
        let Some(kind) = kind else {
            let name: String = name.chars().take(20).collect();
            return Err(bad(format!(
                "values of type '{name}'; save uint8, uint16, int16, float32 or float64"
            )));
        };
        if told("fortran_order")? != "False" {
            return Err(bad(
                "columns first; save numpy.ascontiguousarray(array)".into()
            ));
        }
        let shape = told("shape")?.trim_matches(['(', ')']);
        let sides: Option<Vec<usize>> = shape
            .split(',')
            .map(str::trim)
            .filter(|side| !side.is_empty())
            .map(|side| side.parse().ok())
            .collect();
        let (height, width, channels) = match sides.as_deref() {
            Some(&[height, width]) => (height, width, 1),
            Some(&[height, width, channels]) => (height, width, channels),
            _ => {
                let shape: String = shape.chars().take(60).collect();
                return Err(bad(format!(
                    "an array of shape ({shape}); expected (height, width, channels) or (height, width)"
                )));
            }
        };
        Ok(Self {
            kind,
            big_endian: order == ">",
            height,
            width,
            channels,
            start,
        })
    }
}

pub(super) fn decode(
    bytes: &[u8],
    channels: usize,
    max_pixels: u64,
    permit: &mut Permit,
) -> Result<Bands, DecodeError> {
    let header = Header::read(bytes)?;
    let Header { height, width, .. } = header;
    check_size(width as u64, height as u64, max_pixels)?;
    // Arrays of 8-bit colours are images for everyone.
    let pick = match (header.kind, header.channels) {
        (Kind::U8, 3) => Pick::of_colours(3, channels)?,
        (_, found) => Pick::all(found, channels)?,
    };
    let (each, data) = (header.kind.bytes(), &bytes[header.start..]);
    let pixel = each.checked_mul(header.channels);
    let pixels = height.checked_mul(width);
    let needed = pixels
        .zip(pixel)
        .and_then(|(n, bytes)| n.checked_mul(bytes));
    match needed {
        Some(needed) if needed == data.len() => {}
        Some(needed) if needed > data.len() => return Err(DecodeError::Truncated),
        _ => {
            return Err(DecodeError::Npy(format!(
                "{} bytes of values, its shape has {}",
                data.len(),
                needed.map_or("more than any file".into(), |n| n.to_string())
            )))
        }
    }
    let size = (width as u64, height as u64);
    take(permit, size, 4 * channels as u64, max_pixels)?;
    let mut values = Vec::with_capacity(height * width * channels);
    let mut numbers = vec![0.0; header.channels];
    for pixel in data.chunks_exact(each * header.channels.max(1)) {
        for (number, bytes) in numbers.iter_mut().zip(pixel.chunks_exact(each)) {
            let mut padded = [0; 8];
            padded[..each].copy_from_slice(bytes);
            if header.big_endian {
                padded[..each].reverse();
            }
            *number = header.kind.value(padded);
        }
        pick.push(&numbers, &mut values);
    }
    Ok(Bands {
        width,
        height,
        channels,
        values,
    })
}

/// Whole numbers of 8 bits in three channels, as RGB; others are for whoever says how many channels there are.
pub(crate) fn rgb(
    bytes: &[u8],
    max_pixels: u64,
    permit: &mut Permit,
) -> Result<crate::Image, DecodeError> {
    let header = Header::read(bytes)?;
    let Header { height, width, .. } = header;
    check_size(width as u64, height as u64, max_pixels)?;
    if header.kind != Kind::U8 || header.channels != 3 {
        return Err(DecodeError::Npy(format!(
            "no RGB image of 8 bits, but {} channels of {:?}; the number of channels must be said (--channels N)",
            header.channels, header.kind
        )));
    }
    let data = &bytes[header.start..];
    let needed = height.checked_mul(width).and_then(|n| n.checked_mul(3));
    if needed.is_none_or(|needed| needed > data.len()) {
        return Err(DecodeError::Truncated);
    }
    if needed != Some(data.len()) {
        return Err(DecodeError::Npy(format!(
            "{} bytes of values for {width} x {height} pixels",
            data.len()
        )));
    }
    take(permit, (width as u64, height as u64), 3, max_pixels)?;
    Ok(crate::Image {
        width,
        height,
        rgb: data.to_vec(),
    })
}
