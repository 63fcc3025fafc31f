//! PyTorch's `.pth`, `.pt` and `.bin`: a zip archive of one pickle and one uncompressed file per storage, or the layout of
//! PyTorch before 1.6, pickles and storages one after the other.
use std::collections::HashMap;
use std::io::{BufReader, Read};

use super::pickle::{self, Id, Pickle, TensorRef, Value, MAX_PICKLE};
use super::signature;
use super::table::{sizes, Source, StoredTensor};
use crate::Error;

/// Deepest nesting of dictionaries and lists that is searched for tensors.
const MAX_DEPTH: usize = 8;
/// Most tensors in a file. The largest training states have some thousands.
const MAX_TENSORS: usize = 1 << 16;
/// Longest name of a tensor.
const MAX_NAME: usize = 1024;

/// Start and length in bytes of each storage.
type Storages = HashMap<String, (u64, u64)>;

/// Reads where the tensors of `source`, file number `file` of its checkpoint, lie; names join the dictionaries' keys with
/// dots.
pub(crate) fn read(source: &Source, file: usize) -> Result<Vec<(String, StoredTensor)>, Error> {
    let mut start = [0; 4];
    let _ = source.read_at(&mut start, 0);
    let (pickle, storages) = match &start {
        b"PK\x03\x04" => archive(source)?,
        _ => legacy(source)?,
    };
    let mut found = Vec::new();
    // Every value may be met once for every place that leads to it; a program that shares them to multiply ends here.
    let mut budget = 4 * pickle.arena.len() + 1024;
    flatten(
        source,
        &pickle,
        pickle.root,
        String::new(),
        0,
        &mut budget,
        &mut found,
    )?;
    let mut tensors = Vec::with_capacity(found.len());
    let mut total = 0u64;
    for (name, tensor) in found {
        let stored = place(source, &name, tensor, &storages, file)?;
        total = total.saturating_add((stored.elements() * stored.dtype.size()) as u64);
        tensors.push((name, stored));
    }
    if total > source.length.saturating_mul(4) {
        return Err(source.error(format!(
            "its tensors share storages and would take {total} bytes, the file has {}",
            source.length
        )));
    }
    Ok(tensors)
}

/// The zip layout.
fn archive(source: &Source) -> Result<(Pickle, Storages), Error> {
    let damaged =
        |e: &dyn std::fmt::Display| source.error(format!("{e}; damaged, or a download cut off"));
    let file = source.file.try_clone().map_err(|e| damaged(&e))?;
    let mut zip = zip::ZipArchive::new(BufReader::new(file)).map_err(|e| damaged(&e))?;
    let names = zip.file_names().filter_map(Result::ok);
    let names: Vec<String> = names.map(|name| name.into_owned()).collect();
    if let Some(what) = signature::of_archive(&names) {
        return Err(source.error(what));
    }
    let mut entries = Vec::with_capacity(zip.len());
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index).map_err(|e| damaged(&e))?;
        let name = entry.name().map_err(|e| damaged(&e))?.into_owned();
        let size = entry.size();
        if entry.compression() != zip::CompressionMethod::Stored
            || entry.compressed_size() != size
            || entry.encrypted()
        {
            return Err(source.error(format!(
                "'{name}' in it is compressed or encrypted, which torch.save never does"
            )));
        }
        let start = entry.data_start().unwrap_or(u64::MAX);
        if start
            .checked_add(size)
            .is_none_or(|end| end > source.length)
        {
            return Err(source.error(format!(
                "'{name}' in it lies beyond its end: damaged, or a download cut off"
            )));
        }
        entries.push((name, start, size));
    }
    let pickles: Vec<&(String, u64, u64)> = entries
        .iter()
        .filter(|(name, ..)| name == "data.pkl" || name.ends_with("/data.pkl"))
        .collect();
    let [(name, start, size)] = pickles[..] else {
        return Err(source.error(format!(
            "a zip archive with {} files 'data.pkl', torch.save writes one",
            pickles.len()
        )));
    };
    let root = name.trim_end_matches("data.pkl");
    let pickle = run(source, *start, *size)?;
    let mut storages = Storages::new();
    for (name, start, size) in &entries {
        let Some(name) = name.strip_prefix(root) else {
            continue;
        };
        if let Some(key) = name.strip_prefix("data/") {
            if storages.insert(key.to_owned(), (*start, *size)).is_some() {
                return Err(source.error(format!("storage '{key}' is there twice")));
            }
        } else if name == "byteorder" && *size <= 16 {
            let mut order = vec![0; *size as usize];
            source
                .read_at(&mut order, *start)
                .map_err(|e| damaged(&e))?;
            if order != b"little" {
                return Err(source.error("was written by a big-endian machine"));
            }
        }
    }
    Ok((pickle, storages))
}

fn run(source: &Source, start: u64, size: u64) -> Result<Pickle, Error> {
    if size > MAX_PICKLE {
        return Err(source.error(format!(
            "a pickle of {size} bytes, at most {MAX_PICKLE} are read"
        )));
    }
    let mut bytes = vec![0; size as usize];
    source
        .read_at(&mut bytes, start)
        .map_err(|e| source.error(e.to_string()))?;
    pickle::run(&bytes).map_err(|e| source.error(e))
}

/// The layout before PyTorch 1.6: four pickles (magic number, protocol, system, the object), one with the storages' keys,
/// then for each of these 8 bytes number of elements and the elements.
fn legacy(source: &Source) -> Result<(Pickle, Storages), Error> {
    let no = |reason: String| source.error(format!("no PyTorch file ({reason})"));
    let mut bytes = Vec::new();
    (&source.file)
        .take(MAX_PICKLE)
        .read_to_end(&mut bytes)
        .map_err(|e| source.error(e.to_string()))?;
    let mut at = 0;
    let mut next = || {
        let pickle = pickle::run(&bytes[at..]).map_err(&no)?;
        at += pickle.length;
        Ok::<_, Error>(pickle)
    };
    // 0x1950a86a20f9469cfc6c: a number of more than 64 bits.
    if bytes.get(..14) != Some(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19") {
        return Err(no("neither a zip archive nor the layout before 1.6".into()));
    }
    next()?;
    next()?;
    next()?;
    let object = next()?;
    let keys = next()?;
    let Value::List(ids) = keys.value(keys.root) else {
        return Err(no("there is no list of storages".into()));
    };
    // A storage's header does not name its type: the tensors know it.
    let mut types = HashMap::new();
    for value in &object.arena {
        if let Value::Storage(storage) = value {
            types.insert(storage.key.as_str(), storage.dtype);
        }
    }
    let mut storages = Storages::new();
    let mut start = at as u64;
    for &id in ids {
        let key = keys
            .text(id)
            .ok_or_else(|| no("a storage without a key".into()))?;
        let mut count = [0; 8];
        source
            .read_at(&mut count, start)
            .map_err(|_| source.error(format!("cut off before storage '{key}'")))?;
        let count = u64::from_le_bytes(count);
        let Some(dtype) = types.get(key.as_str()) else {
            return Err(no(format!("nothing uses storage '{key}'")));
        };
        start += 8;
        let end = count
            .checked_mul(dtype.size() as u64)
            .and_then(|size| start.checked_add(size));
        let Some(end) = end.filter(|&end| end <= source.length) else {
            return Err(source.error(format!(
                "storage '{key}' of {count} elements lies beyond its end: damaged, or a download cut off"
            )));
        };
        storages.insert(key, (start, end - start));
        start = end;
    }
    Ok((object, storages))
}

/// All tensors below a value, with the way to them.
#[allow(clippy::too_many_arguments)]
fn flatten<'a>(
    source: &Source,
    pickle: &'a Pickle,
    id: Id,
    name: String,
    depth: usize,
    budget: &mut usize,
    found: &mut Vec<(String, &'a TensorRef)>,
) -> Result<(), Error> {
    *budget = budget
        .checked_sub(1)
        .ok_or_else(|| source.error("its objects refer to each other too often"))?;
    let join = |key: &str| match name.is_empty() {
        true => key.to_owned(),
        false => format!("{name}.{key}"),
    };
    match pickle.value(id) {
        Value::Tensor(tensor) => {
            if found.len() >= MAX_TENSORS {
                return Err(source.error(format!("more than {MAX_TENSORS} tensors")));
            }
            found.push((name, tensor));
        }
        // Of an optimiser's state nothing is needed.
        Value::Unread(reason) if !name.starts_with("optimizer.") => {
            return Err(source.tensor_error(&name, reason.as_str()));
        }
        Value::Dict(items) if depth < MAX_DEPTH => {
            for &(key, value) in items {
                let key = pickle.text(key).unwrap_or_else(|| "?".into());
                let name = join(&key);
                if name.len() > MAX_NAME {
                    return Err(source.error("a tensor's name is too long"));
                }
                flatten(source, pickle, value, name, depth + 1, budget, found)?;
            }
        }
        Value::List(items) | Value::Tuple(items) if depth < MAX_DEPTH => {
            for (i, &value) in items.iter().enumerate() {
                let name = join(&i.to_string());
                flatten(source, pickle, value, name, depth + 1, budget, found)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Finds a tensor's bytes and checks that they are all there.
fn place(
    source: &Source,
    name: &str,
    tensor: &TensorRef,
    storages: &Storages,
    file: usize,
) -> Result<StoredTensor, Error> {
    let fail = |reason: String| Err(source.tensor_error(name, reason));
    let storage = &tensor.storage;
    let Some(&(start, length)) = storages.get(&storage.key) else {
        return fail(format!(
            "needs storage '{}', which is not there",
            storage.key
        ));
    };
    let size = storage.dtype.size();
    if storage.elements.checked_mul(size).map(|n| n as u64) != Some(length) {
        return fail(format!(
            "needs {} elements in storage '{}', which has {length} bytes",
            storage.elements, storage.key
        ));
    }
    let (shape, strides) = (&tensor.shape, &tensor.strides);
    let (elements, _) =
        sizes(shape, storage.dtype).map_err(|reason| source.tensor_error(name, reason))?;
    if shape.len() != strides.len() {
        return fail(format!("has shape {shape:?} but {} strides", strides.len()));
    }
    // Last element + 1, where there is one.
    let end = (elements > 0).then_some(()).map_or(Some(0), |()| {
        let steps = shape
            .iter()
            .zip(strides)
            .map(|(d, s)| (d - 1).checked_mul(*s));
        steps
            .into_iter()
            .try_fold(tensor.offset, |sum, step| sum.checked_add(step?))?
            .checked_add(1)
    });
    // More elements than the storage: a stride of 0, which would let a few bytes become any number of weights.
    if end.is_none_or(|end| end > storage.elements) || elements > storage.elements {
        return fail(format!(
            "of shape {shape:?}, strides {strides:?} and offset {} does not fit into its storage of {} elements",
            tensor.offset, storage.elements
        ));
    }
    let mut next = 1;
    let contiguous = shape.iter().zip(strides).rev().all(|(&d, &s)| {
        let row_major = d <= 1 || s == next;
        next *= d;
        row_major
    });
    Ok(StoredTensor {
        dtype: storage.dtype,
        shape: shape.clone(),
        start: start + (tensor.offset * size) as u64,
        strides: (!contiguous).then(|| strides.clone()),
        file,
    })
}
