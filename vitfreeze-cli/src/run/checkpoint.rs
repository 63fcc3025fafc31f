//! The training state on disk: one safetensors file.
//!
//! Its tensors are those of [`freezeout::checkpoint`]. The metadata key `vitfreeze` holds [`Header`] as JSON. What
//! is frozen follows from the step, or under a policy from its memory, which is among the tensors; everything random follows
//! from (seed, epoch, index): nothing else is needed.
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{anyhow, bail, Context, Result};
use candle_core::{DType, Device, Tensor};
use freezeout::{Ema, FreezeOut, Optimizer};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::settings::{changes, Settings};
use crate::usage::usage;

const KEY: &str = "vitfreeze";

/// What is not a tensor.
#[derive(Debug, Serialize, Deserialize)]
pub struct Header<C> {
    /// Version of this layout.
    pub format: u32,
    /// The subcommand whose run it is.
    #[serde(default = "pretrain")]
    pub command: String,
    /// Optimiser steps done.
    pub step: usize,
    /// What the dataset is, to notice another one.
    pub data: Fingerprint,
    /// Numbers of the run.
    pub config: C,
    /// The model's own, [`vit::Pretrained::metadata`]: what reads its weights need not infer it. Of states of before
    /// 2026-11-29, and of a probe's head, there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Value>,
    /// The program that wrote it.
    pub version: String,
    /// The best evaluation so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// Processes that trained together.
    #[serde(default = "one")]
    pub workers: usize,
}

fn one() -> usize {
    1
}

/// An evaluation, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub epoch: usize,
    pub top1: f64,
    pub top5: f64,
    pub loss: f64,
    /// Images judged.
    pub images: usize,
}

fn pretrain() -> String {
    "pretrain".into()
}

impl<S: Settings> Header<S> {
    /// After so many steps.
    pub fn new(
        config: &S,
        model: Option<Value>,
        step: usize,
        data: Fingerprint,
        best: Option<Best>,
        workers: usize,
    ) -> Self {
        Self {
            format: 1,
            command: S::COMMAND.into(),
            step,
            data,
            config: config.clone(),
            model,
            version: env!("CARGO_PKG_VERSION").into(),
            best,
            workers,
        }
    }
}

impl<C> Header<C> {
    /// How the model that the run has now differs from the saved one, as "key: was -> is"; nothing where either is unknown.
    pub fn changed_model(&self, now: Option<Value>) -> Result<Vec<String>> {
        let (Some(old), Some(now)) = (&self.model, now) else {
            return Ok(Vec::new());
        };
        // As it is once it was written and read: the last bit of a number may be another.
        let now: Value = serde_json::from_str(&now.to_string())?;
        Ok(changes(&flat(old), &flat(&now)))
    }
}

/// A model's keys and values, those of its preprocessing as `preprocess.KEY`; without the names of the classes, which are the data's.
fn flat(model: &Value) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    let Value::Object(keys) = model else {
        all.insert("model".to_owned(), model.clone());
        return all;
    };
    for (key, value) in keys.iter().filter(|(key, _)| *key != "labels") {
        match value {
            Value::Object(inner) if key == "preprocess" => {
                all.extend(inner.iter().map(|(k, v)| (format!("{key}.{k}"), v.clone())));
            }
            _ => {
                all.insert(key.clone(), value.clone());
            }
        }
    }
    all
}

/// What is read before the configuration, whose type depends on it.
#[derive(Deserialize)]
struct Kind {
    format: u32,
    #[serde(default = "pretrain")]
    command: String,
}

/// What a run is made from: number of images, a hash of their labels and file names in order (and of the classes' names
/// where these are learnt), and a hash of the weights that it only reads (0: there are none).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub images: usize,
    pub names: u64,
    #[serde(default)]
    pub weights: u64,
}

impl Fingerprint {
    /// Folders do not count, so that a dataset may move.
    pub fn of(source: &dyn datasets::Source) -> Self {
        let mut hash = FNV;
        for index in 0..source.len() {
            hash = fnv(hash, &source.label(index).to_le_bytes());
            let name = source.name(index);
            let name = Path::new(&name).file_name().unwrap_or_default();
            hash = fnv(hash, name.as_encoded_bytes());
        }
        Self {
            images: source.len(),
            names: hash,
            weights: 0,
        }
    }

    /// The same with the names of the classes, for whoever trains on them.
    pub fn with_classes(self, classes: &[String]) -> Self {
        let add = |hash, name: &String| fnv(fnv(hash, name.as_bytes()), &[0]);
        Self {
            names: classes.iter().fold(self.names, add),
            ..self
        }
    }

    /// The same with a hash of what was read of the images.
    pub fn with_pixels(self, hash: u64) -> Self {
        Self {
            names: fnv(self.names, &hash.to_le_bytes()),
            ..self
        }
    }

    /// The same with the hash of these weights.
    pub fn with_weights(self, tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        Ok(Self {
            weights: hash_of(tensors)?,
            ..self
        })
    }

    /// All of it in one number.
    pub fn hash(&self) -> u64 {
        let numbers = [self.images as u64, self.names, self.weights];
        numbers
            .iter()
            .fold(FNV, |hash, number| fnv(hash, &number.to_le_bytes()))
    }
}

/// A hash of tensors and their names.
pub fn hash_of(tensors: &BTreeMap<String, Tensor>) -> Result<u64> {
    let mut hash = FNV;
    for (name, tensor) in tensors {
        hash = fnv(hash, name.as_bytes());
        let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        for value in tensor.flatten_all()?.to_vec1::<f32>()? {
            hash = fnv(hash, &value.to_le_bytes());
        }
    }
    Ok(hash)
}

pub const FNV: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a.
pub fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A checkpoint in memory.
pub struct Checkpoint<C> {
    pub header: Header<C>,
    pub tensors: BTreeMap<String, Tensor>,
}

/// Writes the state that `header` describes, to take the place of the file as a whole once it is committed. A state that is
/// no longer finite is refused: the file then still holds the last good one.
pub fn stage<C: Serialize>(
    path: &Path,
    header: &Header<C>,
    freeze: &FreezeOut,
    opt: &Optimizer,
    ema: Option<&Ema>,
) -> Result<vit::Staged> {
    let step = header.step;
    let tensors = freezeout::checkpoint::collect(freeze, opt, ema)?;
    if let Some(name) = not_finite(&tensors)? {
        bail!("after step {step} '{name}' is no longer finite; start again with a lower --lr");
    }
    let header = serde_json::to_string(header)?;
    Ok(vit::Staged::new(path, &tensors, (KEY, header))?)
}

/// The first float tensor that holds a NaN or an infinity.
fn not_finite(tensors: &BTreeMap<String, Tensor>) -> Result<Option<&str>> {
    for (name, tensor) in tensors {
        // A policy's tables are empty at first.
        if tensor.dtype().is_float() && tensor.elem_count() > 0 {
            // One NaN or infinity makes x * 0 summed not 0.
            let zero = (tensor.flatten_all()? * 0.0)?.sum_all()?;
            if zero.to_dtype(DType::F32)?.to_scalar::<f32>()? != 0.0 {
                return Ok(Some(name));
            }
        }
    }
    Ok(None)
}

impl<S: Settings> Checkpoint<S> {
    /// Reads a file that [`stage`] wrote.
    pub fn load(path: &Path) -> Result<Self> {
        let at = || path.display().to_string();
        let bytes =
            crate::input::files::bytes(path).with_context(|| format!("cannot read {}", at()))?;
        let damaged = |e| anyhow!("{} is no checkpoint, or damaged: {e}", at());
        let (_, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
        let json = metadata
            .metadata()
            .as_ref()
            .and_then(|m| m.get(KEY))
            .ok_or_else(|| damaged(format!("no metadata '{KEY}'")))?;
        let kind: Kind = serde_json::from_str(json).map_err(|e| damaged(e.to_string()))?;
        if kind.format != 1 {
            bail!("{}: format {}, this program reads 1", at(), kind.format);
        }
        if kind.command != S::COMMAND {
            return Err(usage(format!(
                "{} is of a run of vitfreeze {}, resume it with that",
                at(),
                kind.command.escape_debug()
            )));
        }
        let header = serde_json::from_str(json).map_err(|e| damaged(e.to_string()))?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
            .map_err(|e| damaged(e.to_string()))?
            .into_iter()
            .collect();
        if let Some(name) = not_finite(&tensors)? {
            return Err(damaged(format!("'{name}' is not finite")));
        }
        Ok(Self { header, tensors })
    }

    /// How many layers a policy had frozen; `None` under a schedule.
    pub fn frozen(&self) -> Option<usize> {
        let tensor = self.tensors.get("freezing.freeze.frozen")?;
        let frozen = tensor.to_scalar::<i64>().ok()?;
        usize::try_from(frozen).ok()
    }

    /// Puts weights, moments, average and a policy's memory in their places.
    pub fn restore(
        self,
        freeze: &mut FreezeOut,
        opt: &mut Optimizer,
        ema: Option<&mut Ema>,
    ) -> Result<()> {
        Ok(freezeout::checkpoint::restore(
            self.tensors,
            self.header.step,
            freeze,
            opt,
            ema,
        )?)
    }
}
