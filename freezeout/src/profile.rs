//! The cost of the user's own step, measured.
use std::collections::HashMap;
use std::fmt;
use std::time::Instant;

use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::estimate::{Costs, StepCost};
use crate::{Error, FreezeOut};

/// One line of a [`Profile`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Frozen layers.
    pub frozen: usize,
    /// Seconds of the forward pass, rebuilding included; median.
    pub forward: f64,
    /// Seconds of the backward pass; median.
    pub backward: f64,
    /// Recorded ops in the graph.
    pub ops: usize,
    /// Bytes that the recorded ops' results hold.
    pub activation_bytes: usize,
    /// Bytes of the live variables, and so of their gradients.
    pub gradient_bytes: usize,
}

/// What a step costs with 0, 1, ... all layers frozen. Made by [`profile`]; print it.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile(pub Vec<Measured>);

/// Times the forward and the backward pass for every number of frozen layers. `loss` builds the model and computes the
/// loss of a batch; nothing is trained, running statistics are put back. All numbers of frozen layers are measured in turn,
/// `repeats` times, each after a step that does not count: the memory that a smaller graph gave back to the system must be
/// there again.
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use candle_nn::{linear, Module, VarBuilder, VarMap};
/// # use freezeout::{profile, Estimate, FreezeOut, Schedule};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let vars = VarMap::new();
/// # let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// # for i in 0..2 { linear(2, 2, vb.pp("blocks").pp(i))?; }
/// # let layer_of = |name: &str| name.split('.').nth(1)?.parse().ok();
/// let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 2, 1000), layer_of)?;
/// let x = Tensor::randn(0f32, 1.0, (4, 2), &Device::Cpu)?;
/// let measured = profile(&mut freeze, 5, |vb| {
///     let (first, second) = (linear(2, 2, vb.pp("blocks.0"))?, linear(2, 2, vb.pp("blocks.1"))?);
///     second.forward(&first.forward(&x)?)?.sqr()?.mean_all()
/// })?;
/// println!("{measured}{}", Estimate::new(freeze.schedule(), &measured.costs())?);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// What `loss` or candle reports; a step that leaves nothing to train is measured without backward pass.
pub fn profile(
    freeze: &mut FreezeOut,
    repeats: usize,
    mut loss: impl FnMut(VarBuilder<'static>) -> candle_core::Result<Tensor>,
) -> Result<Profile, Error> {
    if repeats == 0 {
        return Err(Error::Profile("repeats is 0, it must be at least 1".into()));
    }
    let before = freeze.frozen();
    let mut kept = Vec::new();
    for (name, var) in freeze.buffers() {
        kept.push((
            name.to_owned(),
            var.clone(),
            var.as_detached_tensor().copy()?,
        ));
    }
    let measured = measure(freeze, repeats, &mut loss);
    freeze.freeze_first(before);
    for (_, var, values) in kept {
        var.set(&values)?;
    }
    measured
}

fn measure(
    freeze: &mut FreezeOut,
    repeats: usize,
    loss: &mut impl FnMut(VarBuilder<'static>) -> candle_core::Result<Tensor>,
) -> Result<Profile, Error> {
    let layers = freeze.schedule().layers;
    let mut times = vec![(Vec::new(), Vec::new()); layers + 1];
    let mut rows = Vec::new();
    for round in 0..repeats {
        for (frozen, times) in times.iter_mut().enumerate() {
            freeze.freeze_first(frozen);
            step(loss(freeze.vars())?)?;
            let start = Instant::now();
            let loss = loss(freeze.vars())?;
            // A GPU works on while the program does: a pass lasts until it is done.
            loss.device().synchronize()?;
            times.0.push(start.elapsed().as_secs_f64());
            if round == 0 {
                rows.push(sizes(freeze, &loss));
            }
            let start = Instant::now();
            step(loss)?;
            times.1.push(start.elapsed().as_secs_f64());
        }
    }
    for (row, (forward, backward)) in rows.iter_mut().zip(times) {
        row.forward = median(forward);
        row.backward = median(backward);
    }
    Ok(Profile(rows))
}

/// Runs the backward pass, if anything trains, until the device is done, and drops graph and gradients.
fn step(loss: Tensor) -> Result<(), Error> {
    if loss.track_op() {
        drop(loss.backward()?);
    }
    Ok(loss.device().synchronize()?)
}

/// All but the times.
fn sizes(freeze: &FreezeOut, loss: &Tensor) -> Measured {
    let (ops, activation_bytes) = graph(loss);
    let bytes = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
    Measured {
        frozen: freeze.frozen(),
        forward: 0.0,
        backward: 0.0,
        ops,
        activation_bytes,
        gradient_bytes: freeze.live().map(|(_, _, var)| bytes(var)).sum(),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    0.5 * (values[(n - 1) / 2] + values[n / 2])
}

/// Number of recorded ops, and the bytes of their results; results that share memory (a transposition) count once.
fn graph(loss: &Tensor) -> (usize, usize) {
    let mut memory: HashMap<usize, usize> = HashMap::new();
    let mut ops = 0;
    for node in loss.sorted_nodes() {
        let (storage, _) = node.storage_and_layout();
        let address = std::ptr::from_ref(&*storage) as usize;
        let bytes = node.elem_count() * node.dtype().size_in_bytes();
        let largest = memory.entry(address).or_default();
        // A variable's own memory, also seen through a transposition, is no activation.
        if node.is_variable() {
            *largest = usize::MAX;
        } else {
            ops += 1;
            *largest = (*largest).max(bytes);
        }
    }
    let activations = memory.values().filter(|&&bytes| bytes != usize::MAX);
    (ops, activations.sum())
}

impl Profile {
    /// The measured times and sizes as [`Costs`], for an [`Estimate`](crate::Estimate).
    pub fn costs(&self) -> Costs {
        let cost = |row: &Measured| StepCost {
            compute: row.forward + row.backward,
            backward: row.backward,
            activations: row.activation_bytes as f64,
            gradients: row.gradient_bytes as f64,
        };
        Costs(self.0.iter().map(cost).collect())
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "frozen  forward ms  backward ms   step    ops  activations MB"
        )?;
        let whole = |row: &Measured| row.forward + row.backward;
        let first = self.0.first().map_or(1.0, whole);
        for row in &self.0 {
            writeln!(
                f,
                "{:>6}  {:>10.2}  {:>11.2}  {:>4.0} %  {:>5}  {:>14.2}",
                row.frozen,
                1e3 * row.forward,
                1e3 * row.backward,
                100.0 * whole(row) / first,
                row.ops,
                row.activation_bytes as f64 / 1e6
            )?;
        }
        Ok(())
    }
}
