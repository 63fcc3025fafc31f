//! As much of MATLAB's version 5 files as the devkit's `meta.mat` needs: one array of structs.
//!
//! Format: "MAT-File Format", MathWorks. A file is 128 bytes of header and then elements; an element is a type, a
//! length and so many bytes, padded to 8; one of type 15 is another one, deflated.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::read::ZlibDecoder;

const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
const MAX_BYTES: u64 = 64 << 20;
/// The devkit has 1860 synsets.
const MAX_STRUCTS: usize = 1 << 16;

/// A field's value, as far as we care.
#[derive(Debug, PartialEq)]
pub(crate) enum Value {
    Number(f64),
    Text(String),
    Other,
}

/// The structs of the first array of structs in `file`.
pub(crate) fn read_structs(file: &[u8]) -> Result<Vec<BTreeMap<String, Value>>, String> {
    if file.get(126..128) != Some(b"IM") {
        return Err("not a MATLAB 5 file of little-endian numbers".into());
    }
    let mut elements = Elements(&file[128..]);
    while let Some((kind, data)) = elements.next()? {
        let unpacked;
        let (kind, data) = if kind == COMPRESSED {
            let mut bytes = Vec::new();
            ZlibDecoder::new(data)
                .take(MAX_BYTES)
                .read_to_end(&mut bytes)
                .map_err(|e| e.to_string())?;
            unpacked = bytes;
            Elements(&unpacked).next()?.ok_or("an empty element")?
        } else {
            (kind, data)
        };
        if kind == MATRIX {
            if let Some(structs) = structs(data)? {
                return Ok(structs);
            }
        }
    }
    Err("no array of structs in it".into())
}

/// What is left to read.
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    /// The next element's type and data.
    fn next(&mut self) -> Result<Option<(u32, &'a [u8])>, String> {
        const CUT: &str = "cut off";
        if self.0.is_empty() {
            return Ok(None);
        }
        let word = |at: usize| {
            let bytes = self.0.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let tag = word(0).ok_or(CUT)?;
        // Up to four bytes are stored in place of the length, which then is in the type's upper half.
        let (kind, start, len): (u32, usize, usize) = match tag >> 16 {
            0 => (tag, 8, word(4).ok_or(CUT)? as usize),
            len => (tag & 0xffff, 4, len as usize),
        };
        let end = start.checked_add(len).ok_or(CUT)?;
        let data = self.0.get(start..end).ok_or(CUT)?;
        let padded = if kind == COMPRESSED {
            end
        } else {
            end.next_multiple_of(8)
        };
        self.0 = self.0.get(padded..).unwrap_or_default();
        Ok(Some((kind, data)))
    }

    fn data(&mut self) -> Result<&'a [u8], String> {
        Ok(self.next()?.ok_or("cut off")?.1)
    }
}

fn structs(matrix: &[u8]) -> Result<Option<Vec<BTreeMap<String, Value>>>, String> {
    const STRUCT: u8 = 2;
    let mut parts = Elements(matrix);
    if parts.data()?.first() != Some(&STRUCT) {
        return Ok(None);
    }
    let dims = parts.data()?;
    let count = dims
        .chunks_exact(4)
        .map(|d| u32::from_le_bytes([d[0], d[1], d[2], d[3]]) as usize)
        .try_fold(1usize, usize::checked_mul)
        .filter(|count| *count <= MAX_STRUCTS)
        .ok_or("too many structs")?;
    parts.data()?; // the array's name
    let width = parts.data()?.first().copied().unwrap_or(0);
    let names = parts.data()?;
    let names: Vec<String> = names.chunks_exact(width.max(1).into()).map(text).collect();
    if names.is_empty() {
        return Err("structs without fields".into());
    }
    let mut structs = Vec::new();
    for _ in 0..count {
        let mut fields = BTreeMap::new();
        for name in &names {
            fields.insert(name.clone(), value(parts.data()?)?);
        }
        structs.push(fields);
    }
    Ok(Some(structs))
}

fn value(matrix: &[u8]) -> Result<Value, String> {
    let mut parts = Elements(matrix);
    let Some((_, flags)) = parts.next()? else {
        return Ok(Value::Other);
    };
    let class = flags.first().copied().unwrap_or(0);
    parts.data()?; // dimensions
    parts.data()?; // name
    let Some((kind, data)) = parts.next()? else {
        return Ok(Value::Other);
    };
    Ok(match (class, kind) {
        // Characters as 8 or as 16 bits.
        (4, 1 | 2 | 16) => Value::Text(text(data)),
        (4, 3 | 4 | 17) => {
            let units = data
                .chunks_exact(2)
                .map(|u| u16::from_le_bytes([u[0], u[1]]));
            Value::Text(char::decode_utf16(units).flatten().collect())
        }
        (6..=15, _) => number(kind, data).map_or(Value::Other, Value::Number),
        _ => Value::Other,
    })
}

/// The first number; numbers are stored in the smallest type they fit in.
fn number(kind: u32, data: &[u8]) -> Option<f64> {
    let bytes = |n: usize| data.get(..n);
    Some(match kind {
        1 => f64::from(i8::from_le_bytes(bytes(1)?.try_into().ok()?)),
        2 => f64::from(*data.first()?),
        3 => f64::from(i16::from_le_bytes(bytes(2)?.try_into().ok()?)),
        4 => f64::from(u16::from_le_bytes(bytes(2)?.try_into().ok()?)),
        5 => f64::from(i32::from_le_bytes(bytes(4)?.try_into().ok()?)),
        6 => f64::from(u32::from_le_bytes(bytes(4)?.try_into().ok()?)),
        7 => f64::from(f32::from_le_bytes(bytes(4)?.try_into().ok()?)),
        9 => f64::from_le_bytes(bytes(8)?.try_into().ok()?),
        _ => return None,
    })
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// For the fuzzer: a file in memory. Returns how many structs it has.
#[doc(hidden)]
pub fn fuzz_mat(bytes: &[u8]) -> Result<usize, String> {
    Ok(read_structs(bytes)?.len())
}
