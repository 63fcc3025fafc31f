//! The header of a safetensors file, checked in full before anything is allocated for a tensor.
//!
//! Layout: 8 bytes length n of the header (little endian), n bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the
//! numbers. Offsets count from the end of the header; the tensors cover what follows without gap or overlap.
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::table::{sizes, Source, StoredTensor, StoredType};
use crate::error::some;
use crate::{shown, Error};

/// Longest header, as the format's own reader has it.
const MAX_HEADER: u64 = 100_000_000;

/// What a header holds.
#[derive(Debug, Default)]
pub(crate) struct Header {
    pub tensors: Vec<(String, StoredTensor)>,
    pub metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of `source`, file number `file` of its checkpoint.
pub(crate) fn read(source: &Source, file: usize) -> Result<Header, Error> {
    let io = |e: std::io::Error| source.error(e.to_string());
    if source.length < 8 {
        return Err(source.error(format!(
            "{} bytes: too short for a safetensors file; the download may be cut off",
            source.length
        )));
    }
    let mut length = [0; 8];
    source.read_at(&mut length, 0).map_err(io)?;
    let length = u64::from_le_bytes(length);
    let rest = source.length - 8;
    if length > MAX_HEADER || length > rest {
        return Err(source.error(format!(
            "states a header of {length} bytes, {rest} follow: no safetensors file, or a download that was cut off"
        )));
    }
    let mut json = vec![0; length as usize];
    source.read_at(&mut json, 8).map_err(io)?;
    let raw: Raw = serde_json::from_slice(&json)
        .map_err(|e| source.error(format!("the header is not what safetensors writes: {e}")))?;
    let data = 8 + length;
    let mut header = Header {
        metadata: raw.metadata,
        ..Header::default()
    };
    let mut ranges = Vec::with_capacity(raw.tensors.len());
    for (name, entry) in raw.tensors {
        let fail = |reason: String| Err(source.tensor_error(&name, reason));
        let Some(dtype) = stored_type(&entry.dtype) else {
            return fail(format!("has the unknown type '{}'", shown(&entry.dtype)));
        };
        let (_, bytes) =
            sizes(&entry.shape, dtype).map_err(|reason| source.tensor_error(&name, reason))?;
        let (begin, end) = entry.data_offsets;
        if begin > end || end > source.length - data {
            return fail(format!(
                "lies at bytes {begin} to {end} of {}; the file may be cut off",
                source.length - data
            ));
        }
        if end - begin != bytes as u64 {
            return fail(format!(
                "of shape {:?} and type {} needs {bytes} bytes, its offsets {begin} to {end} give {}",
                entry.shape,
                dtype.name(),
                end - begin
            ));
        }
        ranges.push((begin, end, name.clone()));
        let tensor = StoredTensor {
            dtype,
            shape: entry.shape,
            start: data + begin,
            strides: None,
            file,
        };
        header.tensors.push((name, tensor));
    }
    check_cover(source, ranges, source.length - data)?;
    Ok(header)
}

/// Every byte belongs to exactly one tensor.
fn check_cover(
    source: &Source,
    mut ranges: Vec<(u64, u64, String)>,
    length: u64,
) -> Result<(), Error> {
    ranges.sort();
    let mut covered = 0;
    for (i, (begin, end, name)) in ranges.iter().enumerate() {
        if *begin < covered {
            let before = ranges[i - 1].2.as_str();
            return Err(source.tensor_error(name, format!("overlaps tensor '{before}'")));
        }
        if *begin > covered {
            return Err(source.tensor_error(
                name,
                format!("starts at byte {begin}, after a gap from byte {covered}"),
            ));
        }
        covered = *end;
    }
    if covered != length {
        return Err(source.error(format!(
            "{} bytes follow the last tensor: damaged, or no safetensors file",
            length - covered
        )));
    }
    Ok(())
}

fn stored_type(name: &str) -> Option<StoredType> {
    Some(match name {
        "F64" => StoredType::F64,
        "F32" => StoredType::F32,
        "F16" => StoredType::F16,
        "BF16" => StoredType::Bf16,
        "I64" => StoredType::Other("I64", 8),
        "U64" => StoredType::Other("U64", 8),
        "I32" => StoredType::Other("I32", 4),
        "U32" => StoredType::Other("U32", 4),
        "I16" => StoredType::Other("I16", 2),
        "U16" => StoredType::Other("U16", 2),
        "I8" => StoredType::Other("I8", 1),
        "U8" => StoredType::Other("U8", 1),
        "BOOL" => StoredType::Other("BOOL", 1),
        "F8_E4M3" => StoredType::Other("F8_E4M3", 1),
        "F8_E5M2" => StoredType::Other("F8_E5M2", 1),
        _ => return None,
    })
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The header as written: a map type of serde would hide a name that occurs twice.
#[derive(Default)]
struct Raw {
    tensors: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Header;
        impl<'de> Visitor<'de> for Header {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut raw = Raw::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        raw.metadata = map.next_value()?;
                    } else {
                        let entry = map.next_value().map_err(|e| {
                            serde::de::Error::custom(format!("tensor '{}': {e}", shown(&name)))
                        })?;
                        raw.tensors.push((name, entry));
                    }
                }
                let mut names: Vec<&str> = raw.tensors.iter().map(|t| t.0.as_str()).collect();
                names.sort_unstable();
                let twice = names.windows(2).filter(|pair| pair[0] == pair[1]);
                let twice: Vec<String> = twice.map(|pair| pair[0].to_owned()).collect();
                match twice.is_empty() {
                    true => Ok(raw),
                    false => Err(serde::de::Error::custom(format!(
                        "named twice: {}",
                        some(&twice)
                    ))),
                }
            }
        }
        deserializer.deserialize_map(Header)
    }
}
