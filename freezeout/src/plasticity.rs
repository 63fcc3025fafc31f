//! Plasticity: freeze the layers that have stopped moving.
use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, D};

use crate::policy::{count, frozen, rows, table};
use crate::reduce::{squared_distance, sum_of_squares};
use crate::{Error, FreezeOut, Policy};

/// Freezes the front layer once its plasticity no longer changes (Egeria, EuroSys 2023, arXiv 2201.06227, section 4).
///
/// Every `interval` steps the plasticity P of the live layers is measured against a reference, a snapshot that is then
/// renewed:
///
/// - [`Plasticity::of_weights`]: `P = |w - w_ref| / |w_ref|` over all weights of the layer;
/// - [`Plasticity::of_outputs`]: the similarity-preserving loss `P = |G - G_ref|^2 / b^2` of the layer's outputs for one
///   fixed batch of b samples, `G` their b x b Gram matrix with rows of length 1. Show the outputs with
///   [`FreezeOut::observe_outputs`] before each measurement.
///
/// P is smoothed over `window` measurements, and a line is fitted to the last `window` smoothed values. The front live layer
/// freezes when the line's slope stays below `tolerance` times the steepest slope that it ever had, `patience` times in a
/// row. When the schedule's global rate has fallen to `unfreeze` times what it was at the last freeze, all layers are
/// unfrozen and measured afresh.
#[derive(Debug, Clone)]
pub struct Plasticity {
    /// Steps between measurements. 100.
    pub interval: usize,
    /// Measurements that are smoothed and fitted. 5.
    pub window: usize,
    /// Part of the steepest slope that counts as flat. 0.2.
    pub tolerance: f64,
    /// Flat fits in a row before a layer freezes. 2.
    pub patience: usize,
    /// Factor of the learning rate at which everything is unfrozen; 0 = never. 0, since under a cosine it is of no use.
    pub unfreeze: f64,
    outputs: bool,
    memory: Memory,
}

#[derive(Debug, Clone, Default)]
struct Memory {
    frozen: usize,
    /// Flat fits in a row of the front layer.
    flat: usize,
    /// Global learning rate when a layer last froze.
    rate: f64,
    /// Plasticities of each layer since the start, at most `2 * window`.
    history: Vec<Vec<f64>>,
    /// Steepest slope of each layer.
    steepest: Vec<f64>,
    /// Weights by name, or Gram matrices by layer, at the last measurement.
    reference: BTreeMap<String, Tensor>,
    /// Gram matrices shown since.
    shown: BTreeMap<String, Tensor>,
}

impl Plasticity {
    /// Measures the weights; needs one copy of the live ones.
    pub fn of_weights() -> Self {
        Self {
            interval: 100,
            window: 5,
            tolerance: 0.2,
            patience: 2,
            unfreeze: 0.0,
            outputs: false,
            memory: Memory::default(),
        }
    }

    /// Measures outputs that are shown to it.
    pub fn of_outputs() -> Self {
        Self {
            outputs: true,
            ..Self::of_weights()
        }
    }

    /// Plasticity of each live layer against the reference, which is renewed; `None` without a reference.
    fn measure(&mut self, freeze: &FreezeOut) -> Result<Option<Vec<f64>>, Error> {
        let memory = &mut self.memory;
        let layers = freeze.schedule().layers;
        let (mut moved, mut length) = (vec![0.0; layers], vec![0.0; layers]);
        let mut now = BTreeMap::new();
        if self.outputs {
            now = std::mem::take(&mut memory.shown);
            if now.is_empty() {
                return Err(Error::Policy(format!(
                    "Plasticity::of_outputs: no outputs shown in the last {} steps; call FreezeOut::observe_outputs",
                    self.interval
                )));
            }
            for (layer, moved) in moved.iter_mut().enumerate() {
                let key = layer.to_string();
                if let (Some(gram), Some(reference)) = (now.get(&key), memory.reference.get(&key)) {
                    let samples = gram.dim(0)? as f64;
                    // The square root is taken below.
                    *moved = (squared_distance(gram, reference)? / samples.powi(2)).powi(2);
                }
            }
            length = vec![1.0; layers];
        } else {
            for (name, layer, var) in freeze.live() {
                let Some(layer) = layer else {
                    continue;
                };
                if let Some(reference) = memory.reference.get(name) {
                    moved[layer] += squared_distance(var, reference)?;
                    length[layer] += sum_of_squares(reference)?;
                }
                now.insert(name.to_owned(), var.as_detached_tensor().copy()?.detach());
            }
        }
        let first = memory.reference.is_empty();
        memory.reference = now;
        let ratio = |(m, l): (f64, f64)| if l > 0.0 { (m / l).sqrt() } else { 0.0 };
        let plasticity = moved.into_iter().zip(length).map(ratio).collect();
        Ok((!first).then_some(plasticity))
    }
}

impl Policy for Plasticity {
    fn advance(&mut self, step: usize, freeze: &FreezeOut) -> Result<usize, Error> {
        if self.interval == 0 || self.window < 2 || self.patience == 0 || self.tolerance.is_nan() {
            return Err(Error::Policy(format!(
                "Plasticity: interval {} and patience {} must be at least 1, window {} at least 2, tolerance {} a number",
                self.interval, self.patience, self.window, self.tolerance
            )));
        }
        let schedule = freeze.schedule();
        let rate = schedule.lr(step, None);
        if self.memory.frozen > 0 && rate <= self.unfreeze * self.memory.rate {
            self.memory = Memory::default();
            return Ok(0);
        }
        if !step.is_multiple_of(self.interval) || (self.outputs && step == 0) {
            return Ok(self.memory.frozen);
        }
        let Some(plasticity) = self.measure(freeze)? else {
            return Ok(self.memory.frozen);
        };
        let memory = &mut self.memory;
        memory.history.resize(schedule.layers, Vec::new());
        memory.steepest.resize(schedule.layers, 0.0);
        let mut front_is_flat = false;
        for (layer, plasticity) in plasticity.into_iter().enumerate().skip(memory.frozen) {
            let history = &mut memory.history[layer];
            history.push(plasticity);
            if history.len() > 2 * self.window {
                history.remove(0);
            }
            let Some(slope) = slope(history, self.window) else {
                continue;
            };
            memory.steepest[layer] = memory.steepest[layer].max(slope);
            front_is_flat |=
                layer == memory.frozen && slope < self.tolerance * memory.steepest[layer];
        }
        memory.flat = if front_is_flat { memory.flat + 1 } else { 0 };
        if memory.flat >= self.patience && memory.frozen < schedule.layers - schedule.keep_last {
            memory.frozen += 1;
            (memory.flat, memory.rate) = (0, rate);
        }
        Ok(memory.frozen)
    }

    fn observe_outputs(&mut self, outputs: &[Tensor]) -> Result<(), Error> {
        if self.outputs {
            for (layer, output) in outputs.iter().enumerate() {
                self.memory.shown.insert(layer.to_string(), gram(output)?);
            }
        }
        Ok(())
    }

    fn state(&self, _: &FreezeOut) -> Result<BTreeMap<String, Tensor>, Error> {
        let memory = &self.memory;
        let number = |n: usize| Tensor::new(n as i64, &Device::Cpu);
        // Rows of equal length: padded with what is no plasticity, but finite, for a checkpoint may refuse anything else.
        let padded = |row: &Vec<f64>| {
            let mut row = row.clone();
            row.resize(2 * self.window, -1.0);
            row
        };
        let history: Vec<Vec<f64>> = memory.history.iter().map(padded).collect();
        let mut out = BTreeMap::from([
            ("frozen".to_owned(), number(memory.frozen)?),
            ("flat".to_owned(), number(memory.flat)?),
            ("rate".to_owned(), table(&[vec![memory.rate]])?),
            ("history".to_owned(), table(&history)?),
            (
                "steepest".to_owned(),
                table(std::slice::from_ref(&memory.steepest))?,
            ),
        ]);
        for (kind, tensors) in [("reference", &memory.reference), ("shown", &memory.shown)] {
            for (name, tensor) in tensors {
                out.insert(format!("{kind}.{name}"), tensor.clone());
            }
        }
        Ok(out)
    }

    fn load_state(
        &mut self,
        freeze: &FreezeOut,
        saved: &BTreeMap<String, Tensor>,
    ) -> Result<(), Error> {
        let layers = freeze.schedule().layers;
        let steepest = rows(saved, "steepest", 1)?.concat();
        if !steepest.is_empty() && steepest.len() != layers {
            return Err(Error::Policy(format!(
                "'steepest' has {} layers, the schedule {layers}",
                steepest.len()
            )));
        }
        let mut history = rows(saved, "history", steepest.len())?;
        for row in &mut history {
            row.retain(|&p| p >= 0.0);
        }
        let vars = freeze.layers();
        let fits = |name: &str, tensor: &Tensor| match (self.outputs, vars.get(name)) {
            (false, Some((_, var))) => tensor.shape() == var.shape(),
            (false, None) => false,
            (true, _) => {
                name.parse::<usize>().is_ok_and(|layer| layer < layers) && tensor.rank() == 2
            }
        };
        let device = vars
            .values()
            .next()
            .map_or(&Device::Cpu, |(_, var)| var.device());
        let part = |kind: &str| -> Result<BTreeMap<String, Tensor>, Error> {
            let mut part = BTreeMap::new();
            for (key, tensor) in saved {
                let Some(name) = key.strip_prefix(kind).and_then(|k| k.strip_prefix('.')) else {
                    continue;
                };
                if !fits(name, tensor) {
                    let shape = tensor.shape();
                    return Err(Error::Policy(format!(
                        "'{key}' of shape {shape:?} fits nothing"
                    )));
                }
                part.insert(name.to_owned(), tensor.to_device(device)?);
            }
            Ok(part)
        };
        let rate = rows(saved, "rate", 1)?.concat();
        self.memory = Memory {
            frozen: frozen(saved, freeze)?,
            flat: count(saved, "flat")?,
            rate: rate.first().copied().unwrap_or(0.0),
            history,
            steepest,
            reference: part("reference")?,
            shown: part("shown")?,
        };
        Ok(())
    }
}

/// `(b, ...) -> (b, b)`: scalar products of the samples, each row of length 1.
fn gram(output: &Tensor) -> Result<Tensor, Error> {
    let flat = output.detach().to_dtype(DType::F32)?.flatten_from(1)?;
    let gram = flat.matmul(&flat.t()?.contiguous()?)?;
    let length = (gram.sqr()?.sum_keepdim(D::Minus1)?.sqrt()? + 1e-12)?;
    Ok(gram.broadcast_div(&length)?.contiguous()?.detach())
}

/// Absolute slope of a line through the last `window` averages over `window` values each; fewer at the start. `None` with
/// less than `window` values.
fn slope(values: &[f64], window: usize) -> Option<f64> {
    if values.len() < window {
        return None;
    }
    let average = |end: usize| {
        let part = &values[end.saturating_sub(window)..end];
        part.iter().sum::<f64>() / part.len() as f64
    };
    let ends = values.len() + 1 - window..=values.len();
    let smooth: Vec<f64> = ends.map(average).collect();
    let middle = (window - 1) as f64 / 2.0;
    let mean = smooth.iter().sum::<f64>() / window as f64;
    let products = smooth
        .iter()
        .enumerate()
        .map(|(i, y)| (i as f64 - middle) * (y - mean));
    let squares = (0..window).map(|i| (i as f64 - middle).powi(2));
    Some((products.sum::<f64>() / squares.sum::<f64>()).abs())
}

#[cfg(test)]
mod tests {
    use super::slope;

    #[test]
    fn a_line_has_its_slope() {
        let line: Vec<f64> = (0..6).map(|i| 10.0 - 2.0 * f64::from(i)).collect();
        // With all windows full, smoothing does not change a line.
        assert!((slope(&line, 3).unwrap() - 2.0).abs() < 1e-12);
        assert_eq!(slope(&line[..2], 3), None);
        assert_eq!(slope(&[5.0; 6], 3), Some(0.0));
    }
}
