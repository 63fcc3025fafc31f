//! Which files make up a checkpoint, and what stands beside them.
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::describe::Description;
use super::table::{Source, StoredTensor};
use super::{json, safetensors, signature, torch};
use crate::error::some;
use crate::{shown, Error};

/// Longest JSON file that is read. An index of shards has about 100 bytes a tensor.
const MAX_JSON: u64 = 16 << 20;
/// What a repository's weights are called on the Hub, the first that is there.
#[cfg(feature = "hub")]
pub(crate) const WEIGHTS: &[&str] = NAMES.split_at(4).0;
/// What a folder's are called.
const NAMES: [&str; 8] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "best.safetensors",
    "last.safetensors",
    "encoder.safetensors",
    "checkpoint.safetensors",
];

/// How the names of others end. What is inside decides how it is read.
const ENDINGS: [&str; 8] = [
    ".safetensors",
    ".pth",
    ".pt",
    ".bin",
    ".pth.tar",
    ".pt.tar",
    ".ckpt",
    ".pkl",
];

/// What Hugging Face's Trainer puts beside the weights under the same endings.
const OF_TRAINING: [&str; 5] = [
    "training_args.",
    "optimizer.",
    "scheduler.",
    "rng_state",
    "scaler.",
];

/// Whether a file's name is one that weights have.
pub(crate) fn is_weights(name: &str) -> bool {
    ENDINGS.iter().any(|end| name.ends_with(end))
        && !OF_TRAINING.iter().any(|start| name.starts_with(start))
}

/// All headers of a checkpoint.
pub(crate) struct Read {
    pub sources: Vec<Source>,
    pub tensors: BTreeMap<String, StoredTensor>,
    pub description: Description,
}

/// Reads the headers of a file, a folder or an index of shards.
pub(crate) fn read(path: &Path) -> Result<Read, Error> {
    let folder = path.is_dir();
    let weights = if folder {
        in_folder(path)?
    } else {
        path.to_owned()
    };
    let name = weights.file_name().unwrap_or_default().to_string_lossy();
    let (paths, index) = match name.ends_with(".index.json") {
        true => {
            let index = shards(&weights)?;
            let files: BTreeSet<&String> = index.values().collect();
            let paths = files
                .into_iter()
                .map(|f| weights.with_file_name(f))
                .collect();
            (paths, Some(index))
        }
        false => (vec![weights.clone()], None),
    };
    let mut read = Read {
        sources: Vec::new(),
        tensors: BTreeMap::new(),
        description: Description::default(),
    };
    for path in &paths {
        let source = Source::open(path).map_err(|e| match index {
            Some(_) => Error::Read {
                path: path.clone(),
                reason: format!("a shard that {name} names: {}", reason(&e)),
            },
            None => e,
        })?;
        let file = read.sources.len();
        let mut start = [0; 9];
        let json = source.read_at(&mut start, 0).is_ok() && start[8] == b'{';
        if !json {
            if let Some(what) = signature::told(&source) {
                return Err(source.error(what));
            }
        }
        let tensors = if json || path.extension().is_some_and(|e| e == "safetensors") {
            let header = safetensors::read(&source, file)?;
            if let Some(text) = header.metadata.get("vitfreeze") {
                let added = read.description.add_metadata(text);
                added.map_err(|reason| source.error(format!("metadata 'vitfreeze': {reason}")))?;
            }
            header.tensors
        } else {
            torch::read(&source, file)?
        };
        for (name, tensor) in tensors {
            if read.tensors.contains_key(&name) {
                return Err(source.tensor_error(&name, "is there twice"));
            }
            read.tensors.insert(name, tensor);
        }
        read.sources.push(source);
    }
    if let Some(index) = index {
        check_index(&weights, &index, &read)?;
    }
    // What stands beside one of several files may be about another.
    if folder || NAMES.contains(&name.as_ref()) {
        if let Some(json) = beside(&weights, "config.json")? {
            let added = read.description.add_config(&json);
            added.map_err(|reason| said(&weights, "config.json", reason))?;
        }
        if let Some(json) = beside(&weights, "preprocessor_config.json")? {
            let added = read.description.add_preprocessor(&json);
            added.map_err(|reason| said(&weights, "preprocessor_config.json", reason))?;
        }
    } else if !read.description.told && weights.with_file_name("config.json").is_file() {
        read.description.notes.push(format!(
            "config.json beside '{}' is not used: it may belong to another model; to use it, give a folder with these two files alone",
            shown(&name)
        ));
    }
    Ok(read)
}

/// What a file beside the weights says that cannot be heeded.
fn said(weights: &Path, name: &str, reason: String) -> Error {
    Error::Read {
        path: weights.with_file_name(name),
        reason: format!("{reason}; correct the file if it is wrong"),
    }
}

fn reason(error: &Error) -> String {
    match error {
        Error::Read { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}

/// The weights in a folder.
fn in_folder(folder: &Path) -> Result<PathBuf, Error> {
    let fail = |reason: String| Error::Read {
        path: folder.to_owned(),
        reason,
    };
    let named = |name: &&&str| is_there(&folder.join(name)) && !folder.join(name).is_dir();
    if let Some(name) = NAMES.iter().find(named) {
        return Ok(folder.join(name));
    }
    let entries = std::fs::read_dir(folder).map_err(|e| fail(e.to_string()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    found.sort();
    // What torch.save wrote, unpacked by a browser: here or one level down.
    let unpacked = |path: &Path| path.join("data.pkl").is_file();
    if let Some(at) = std::iter::once(folder)
        .chain(found.iter().map(PathBuf::as_path))
        .find(|path| unpacked(path))
    {
        return Err(fail(format!(
            "'{}' is a .pth file that was unpacked, as some browsers do; download it again and leave it packed",
            at.file_name().unwrap_or_default().to_string_lossy()
        )));
    }
    found.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        is_weights(&name) && (path.is_file() || !path.exists())
    });
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(fail(
            "no checkpoint in this folder; expected model.safetensors, pytorch_model.bin or one other".into(),
        )),
        n => {
            let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let names: Vec<String> = found.iter().map(name).collect();
            Err(fail(format!(
                "{n} checkpoints in this folder; name one of the files: {}",
                some(&names)
            )))
        }
    }
}

/// Tensor -> shard. Shards lie beside the index: nothing that leaves its folder is followed.
fn shards(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let fail = |reason: String| Error::Read {
        path: path.to_owned(),
        reason,
    };
    let json = json_of(path)?;
    let map = json["weight_map"].as_object();
    let map = map.ok_or_else(|| fail("no 'weight_map' in it".into()))?;
    let mut shards = BTreeMap::new();
    for (tensor, file) in map {
        let name = file.as_str().unwrap_or_default();
        let mut parts = Path::new(name).components();
        let plain = matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
        if !plain || name.contains(['/', '\\']) {
            return Err(fail(format!(
                "tensor '{}' is in '{}', which is no plain file name",
                shown(tensor),
                shown(name)
            )));
        }
        shards.insert(tensor.clone(), name.to_owned());
    }
    match shards.is_empty() {
        true => Err(fail("its 'weight_map' is empty".into())),
        false => Ok(shards),
    }
}

/// The shards that an index names.
#[cfg(feature = "hub")]
pub(crate) fn shard_names(index: &Path) -> Result<BTreeSet<String>, Error> {
    Ok(shards(index)?.into_values().collect())
}

/// Every tensor of the index is in the shard that it names, and no shard has others.
fn check_index(path: &Path, index: &BTreeMap<String, String>, read: &Read) -> Result<(), Error> {
    let mut wrong = Vec::new();
    for (tensor, shard) in index {
        let stored = read.tensors.get(tensor).map(|t| &read.sources[t.file].path);
        if stored
            .and_then(|p| p.file_name())
            .is_none_or(|f| f != shard.as_str())
        {
            wrong.push(format!("{tensor} (in {shard})"));
        }
    }
    let extra = read
        .tensors
        .keys()
        .filter(|name| !index.contains_key(*name));
    wrong.extend(extra.map(|name| format!("{name} (not in the index)")));
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(Error::Read {
            path: path.to_owned(),
            reason: format!("index and shards differ: {}", some(&wrong)),
        }),
    }
}

fn beside(weights: &Path, name: &str) -> Result<Option<Value>, Error> {
    let path = weights.with_file_name(name);
    match is_there(&path) {
        true => json_of(&path).map(Some),
        false => Ok(None),
    }
}

/// Whether anything has this name. A link to nowhere, a pipe, a folder instead of a file are not passed over: reading
/// them is an error that names them.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn json_of(path: &Path) -> Result<Value, Error> {
    let source = Source::open(path)?;
    if source.length > MAX_JSON {
        return Err(source.error(format!(
            "{} bytes, at most {MAX_JSON} are read",
            source.length
        )));
    }
    let mut text = Vec::new();
    (&source.file)
        .take(MAX_JSON)
        .read_to_end(&mut text)
        .map_err(|e| source.error(e.to_string()))?;
    json::parse(&text).map_err(|reason| source.error(reason))
}
