//! The training state on disk: one safetensors file.
//!
//! | tensor | what |
//! |---|---|
//! | `<name>` | a weight |
//! | `optimizer.exp_avg.<name>`, `optimizer.exp_avg_sq.<name>` | AdamW's moments of a live weight |
//! | `optimizer.updates.<name>` | how often it was updated (i64 scalar) |
//!
//! The metadata key `vitfreeze` holds [`Header`] as JSON. What is frozen follows from the step; everything random
//! follows from (seed, epoch, index): nothing else is needed.
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{anyhow, bail, Context, Result};
use candle_core::{DType, Device, Tensor};
use freezeout::{FreezeOut, Optimizer};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::config::Config;

const KEY: &str = "vitfreeze";
const PREFIX: &str = "optimizer.";

/// What is not a tensor.
#[derive(Debug, Serialize, Deserialize)]
pub struct Header {
    /// Version of this layout.
    pub format: u32,
    /// Optimiser steps done.
    pub step: usize,
    /// What the dataset is, to notice another one.
    pub data: Fingerprint,
    /// Numbers of the run.
    pub config: Config,
    /// The program that wrote it.
    pub version: String,
}

/// Number of images, and a hash of their labels and file names in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub images: usize,
    pub names: u64,
}

impl Fingerprint {
    /// FNV-1a over labels and file names; folders do not count, so that a dataset may move.
    pub fn of(source: &dyn datasets::Source) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let mut add = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        for index in 0..source.len() {
            source
                .label(index)
                .to_le_bytes()
                .into_iter()
                .for_each(&mut add);
            let name = source.name(index);
            let name = Path::new(&name).file_name().unwrap_or_default();
            name.as_encoded_bytes().iter().copied().for_each(&mut add);
        }
        Self {
            images: source.len(),
            names: hash,
        }
    }
}

/// A checkpoint in memory.
pub struct Checkpoint {
    pub header: Header,
    tensors: BTreeMap<String, Tensor>,
}

/// Writes the state after `step` optimiser steps; the file is replaced as a whole or not at all. A state that is no longer
/// finite is refused: the file then still holds the last good one.
pub fn save(
    path: &Path,
    config: &Config,
    step: usize,
    data: Fingerprint,
    freeze: &FreezeOut,
    opt: &Optimizer,
) -> Result<()> {
    let header = Header {
        format: 1,
        step,
        data,
        config: config.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let mut tensors = weights(freeze);
    for (name, tensor) in opt.state(freeze)? {
        tensors.insert(format!("{PREFIX}{name}"), tensor);
    }
    if let Some(name) = not_finite(&tensors)? {
        bail!("after step {step} '{name}' is no longer finite; start again with a lower --lr");
    }
    vit::save_atomic(path, &tensors, (KEY, serde_json::to_string(&header)?))?;
    Ok(())
}

/// The first float tensor that holds a NaN or an infinity.
fn not_finite(tensors: &BTreeMap<String, Tensor>) -> Result<Option<&str>> {
    for (name, tensor) in tensors {
        if tensor.dtype().is_float() {
            // One NaN or infinity makes x * 0 summed not 0.
            let zero = (tensor.flatten_all()? * 0.0)?.sum_all()?;
            if zero.to_dtype(DType::F32)?.to_scalar::<f32>()? != 0.0 {
                return Ok(Some(name));
            }
        }
    }
    Ok(None)
}

/// All weights by name.
pub fn weights(freeze: &FreezeOut) -> BTreeMap<String, Tensor> {
    let detached = |(name, var): (&str, &candle_core::Var)| {
        let tensor = var.as_detached_tensor();
        (name.to_owned(), tensor)
    };
    freeze.all().map(detached).collect()
}

impl Checkpoint {
    /// Reads a file that [`save`] wrote.
    pub fn load(path: &Path) -> Result<Self> {
        let at = || path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", at()))?;
        let damaged = |e| anyhow!("{} is no checkpoint, or damaged: {e}", at());
        let (_, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
        let json = metadata
            .metadata()
            .as_ref()
            .and_then(|m| m.get(KEY))
            .ok_or_else(|| damaged(format!("no metadata '{KEY}'")))?;
        let header: Header = serde_json::from_str(json).map_err(|e| damaged(e.to_string()))?;
        if header.format != 1 {
            bail!("{}: format {}, this program reads 1", at(), header.format);
        }
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
            .map_err(|e| damaged(e.to_string()))?
            .into_iter()
            .collect();
        if let Some(name) = not_finite(&tensors)? {
            return Err(damaged(format!("'{name}' is not finite")));
        }
        Ok(Self { header, tensors })
    }

    /// Puts weights and moments in their places.
    pub fn restore(self, freeze: &FreezeOut, opt: &mut Optimizer) -> Result<()> {
        let (mut state, mut weights) = (BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in self.tensors {
            match name.strip_prefix(PREFIX) {
                Some(name) => state.insert(name.to_owned(), tensor),
                None => weights.insert(name, tensor),
            };
        }
        for (name, var) in freeze.all() {
            let Some(tensor) = weights.remove(name) else {
                bail!("the checkpoint has no tensor '{name}'");
            };
            if tensor.shape() != var.shape() || tensor.dtype() != var.dtype() {
                bail!(
                    "tensor '{name}' of the checkpoint is {:?} {:?}, the model's {:?} {:?}",
                    tensor.dtype(),
                    tensor.shape(),
                    var.dtype(),
                    var.shape()
                );
            }
            var.set(&tensor.to_device(var.device())?)?;
        }
        if let Some(name) = weights.keys().next() {
            bail!("the checkpoint has a tensor '{name}' that the model does not");
        }
        // Whatever is live has been updated in every step since it was last unfrozen.
        let step = self.header.step;
        for (name, layer, _) in freeze.live() {
            let updates = state.get(&format!("updates.{name}"));
            let updates = updates.map_or(Ok(0), |t| t.to_scalar::<i64>())?;
            let since = layer.map_or(0, |layer| freeze.schedule().live_since(step, layer));
            if updates != (step - since) as i64 {
                bail!("after {step} steps '{name}' has been updated {updates} times");
            }
        }
        opt.load_state(freeze, &state)?;
        Ok(())
    }
}
