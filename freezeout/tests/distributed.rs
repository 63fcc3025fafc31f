//! Data parallel training: ranks that are threads against one process with the whole batch.
mod common;

use std::collections::BTreeMap;
use std::rc::Rc;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use candle_nn::{conv2d, linear, Conv2d, Conv2dConfig, Linear, Module, VarBuilder, VarMap};
use common::threads::Threads;
use common::{bits, layer_of, threads, Bits, CPU};
use freezeout::distributed::{broadcast_weights, Alone, Communicator, Reduced, Seen};
use freezeout::{AdamW, AutoFreeze, Error, FreezeOut, Gradients, Optimizer, Schedule, Sgd};

const STEPS: usize = 24;
/// Samples of a step over all ranks: can be divided by 1, 2 and 3.
const BATCH: usize = 12;

trait Model: Sized {
    const LAYERS: usize;
    fn new(vb: VarBuilder) -> Self;
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor>;
}

/// Layers 0 to 3 and one that never freezes.
struct Mlp(Vec<Linear>);

impl Model for Mlp {
    const LAYERS: usize = 4;

    fn new(vb: VarBuilder) -> Self {
        let layer = |i: usize| match i {
            4 => linear(48, 1, vb.pp("head")).unwrap(),
            _ => linear(48, 48, vb.pp(i)).unwrap(),
        };
        Self((0..5).map(layer).collect())
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let mut x = x.flatten_from(1)?;
        for (i, layer) in self.0.iter().enumerate() {
            x = layer.forward(&x)?;
            x = if i < 4 { x.tanh()? } else { x };
        }
        Ok(x)
    }
}

struct Cnn(Vec<Conv2d>, Linear);

impl Model for Cnn {
    const LAYERS: usize = 3;

    fn new(vb: VarBuilder) -> Self {
        let cfg = Conv2dConfig {
            padding: 1,
            ..Default::default()
        };
        let conv = |i: usize| conv2d([3, 6, 6][i], 6, 3, cfg, vb.pp(i)).unwrap();
        Self(
            (0..3).map(conv).collect(),
            linear(6, 1, vb.pp("head")).unwrap(),
        )
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let mut x = x.clone();
        for conv in &self.0 {
            x = conv.forward(&x)?.tanh()?;
        }
        self.1.forward(&x.flatten_from(2)?.mean(2)?)
    }
}

/// Weights that differ between ranks, as drawn ones do, but for `salt` 0.
fn vars<M: Model>(salt: usize) -> (VarMap, M) {
    let vars = VarMap::new();
    let model = M::new(VarBuilder::from_varmap(&vars, DType::F32, &CPU));
    for (name, var) in vars.data().lock().unwrap().iter() {
        let seed = salt + name.bytes().map(usize::from).sum::<usize>();
        let n = var.elem_count();
        let scale = if var.rank() > 1 {
            (var.dims()[0] as f32).sqrt()
        } else {
            1.0
        };
        let value = |i: usize| (((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0) / scale;
        let values = Tensor::from_iter((0..n).map(value), &CPU).unwrap();
        var.set(&values.reshape(var.shape()).unwrap()).unwrap();
    }
    (vars, model)
}

/// (samples, 3, 4, 4) and (samples, 1).
fn batch(step: usize) -> (Tensor, Tensor) {
    let pixel = |i: usize| (((i + step * 577) * 7907) % 613) as f32 / 306.5 - 1.0;
    let x = Tensor::from_iter((0..BATCH * 48).map(pixel), &CPU).unwrap();
    let y = Tensor::from_iter((0..BATCH).map(|i| pixel(i * 31 + 5)), &CPU).unwrap();
    (
        x.reshape((BATCH, 3, 4, 4)).unwrap(),
        y.reshape((BATCH, 1)).unwrap(),
    )
}

struct Trained {
    losses: Vec<f64>,
    reduced: Vec<Reduced>,
    frozen: Vec<usize>,
    norms: Vec<Option<f64>>,
    weights: Bits,
}

#[derive(Clone, Copy)]
struct Run {
    opt: fn() -> Optimizer,
    accum: usize,
    adaptive: bool,
    /// Whether `all_reduce` is called at all.
    call: bool,
}

impl Run {
    fn new(opt: fn() -> Optimizer) -> Self {
        Self {
            opt,
            accum: 1,
            adaptive: false,
            call: true,
        }
    }

    fn train<M: Model>(self, ranks: &dyn Communicator) -> Trained {
        let (vars, mut model) = vars::<M>(ranks.rank());
        let schedule = Schedule::cubic(0.5, M::LAYERS, STEPS);
        let mut freeze = FreezeOut::new(&vars, schedule, layer_of).unwrap();
        if self.adaptive {
            let mut policy = AutoFreeze::default();
            policy.interval = 4;
            freeze = freeze.with_policy(policy).with_reduced_gradients();
        }
        broadcast_weights(&freeze, ranks, 0).unwrap();
        let mut opt = (self.opt)();
        let mut out = Trained {
            losses: Vec::new(),
            reduced: Vec::new(),
            frozen: Vec::new(),
            norms: Vec::new(),
            weights: Bits::new(),
        };
        for step in 0..STEPS {
            if freeze.advance(step).unwrap() {
                model = M::new(freeze.vars());
            }
            let (x, y) = batch(step % 2); // two batches, so that the loss falls
            let mut grads: Option<Gradients> = None;
            let mut total = 0.0;
            for micro in 0..self.accum {
                let part = |all: &Tensor| {
                    let parts = all.chunk(ranks.size() * self.accum, 0).unwrap();
                    parts[ranks.rank() * self.accum + micro].clone()
                };
                let error = (model.forward(&part(&x)).unwrap() - part(&y)).unwrap();
                let loss = (error.sqr().unwrap().mean_all().unwrap() / self.accum as f64).unwrap();
                total += f64::from(loss.to_scalar::<f32>().unwrap());
                let more = freeze.backward(&loss).unwrap();
                match &mut grads {
                    Some(sum) => sum.add(more).unwrap(),
                    None => grads = Some(more),
                }
            }
            let mut grads = grads.unwrap();
            if self.call {
                out.reduced.push(grads.all_reduce(ranks).unwrap());
            }
            if self.adaptive {
                freeze.observe(&grads).unwrap();
            }
            out.norms.push(opt.step(&freeze, step, &grads).unwrap());
            let mut loss = [total];
            ranks.all_reduce_f64(&mut loss).unwrap();
            out.losses.push(loss[0] / ranks.size() as f64);
            out.frozen.push(freeze.frozen());
        }
        out.weights = bits(&freeze);
        out
    }
}

fn sgd() -> Optimizer {
    Optimizer::new(Sgd::default())
}

fn adamw() -> Optimizer {
    Optimizer::new(AdamW::default())
}

fn clipped() -> Optimizer {
    adamw().clip_norm(0.05)
}

fn near(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * a.abs().max(b.abs())
}

/// Elements of the variables that are live with so many layers frozen.
fn live<M: Model>(frozen: usize) -> usize {
    let (vars, _) = vars::<M>(0);
    let map = vars.data().lock().unwrap();
    let live = |name: &str| layer_of(name).is_none_or(|layer| layer >= frozen);
    map.iter()
        .filter(|(name, _)| live(name))
        .map(|(_, var)| var.elem_count())
        .sum()
}

fn like_one_process<M: Model>(run: Run) {
    let alone = run.train::<M>(&Alone);
    assert!(
        alone.losses[STEPS - 2] < 0.9 * alone.losses[0],
        "{:?}",
        alone.losses
    );
    assert!(alone
        .reduced
        .iter()
        .all(|reduced| *reduced == Reduced::default()));
    for size in [2, 3] {
        let ranks = threads::run(size, |ranks| run.train::<M>(ranks));
        let first = &ranks[0];
        for (step, (loss, want)) in first.losses.iter().zip(&alone.losses).enumerate() {
            // Sums of parts round otherwise, and each step carries that on: 1.2e-6 after 14 on a machine without AVX-512.
            assert!(
                near(*loss, *want, 1e-5),
                "{size} ranks, step {step}: {loss}, not {want}"
            );
        }
        for (norm, want) in first.norms.iter().zip(&alone.norms) {
            let close = |(a, b): (f64, f64)| near(a, b, 1e-5);
            assert!(norm.zip(*want).is_none_or(close), "{norm:?}, not {want:?}");
        }
        for (reduced, &frozen) in first.reduced.iter().zip(&first.frozen) {
            assert_eq!(reduced.bytes, 4 * live::<M>(frozen));
        }
        assert!(first.frozen[STEPS - 1] > 1);
        for other in &ranks[1..] {
            assert_eq!(other.weights, first.weights);
            assert_eq!(other.frozen, first.frozen);
        }
        let again = threads::run(size, |ranks| run.train::<M>(ranks).weights);
        assert_eq!(again[0], first.weights);
    }
}

#[test]
fn an_mlp_trains_as_in_one_process() {
    like_one_process::<Mlp>(Run::new(adamw));
}

#[test]
fn a_cnn_trains_as_in_one_process() {
    like_one_process::<Cnn>(Run::new(sgd));
}

#[test]
fn clipping_sees_the_reduced_norm() {
    like_one_process::<Mlp>(Run::new(clipped));
    let norms = Run::new(clipped).train::<Mlp>(&Alone).norms;
    assert!(norms[0].is_some_and(|norm| norm > 0.05), "{norms:?}");
}

#[test]
fn accumulation_reduces_once_a_step() {
    let run = Run {
        accum: 2,
        ..Run::new(adamw)
    };
    like_one_process::<Mlp>(run);
}

#[test]
fn autofreeze_decides_alike_on_all_ranks() {
    let run = Run {
        adaptive: true,
        ..Run::new(adamw)
    };
    like_one_process::<Mlp>(run);
}

#[test]
fn alone_is_as_no_call() {
    let with = Run::new(adamw).train::<Mlp>(&Alone);
    let without = Run {
        call: false,
        ..Run::new(adamw)
    };
    assert_eq!(with.weights, without.train::<Mlp>(&Alone).weights);
    // Nothing is copied: the very tensors.
    let (vars, model) = vars::<Mlp>(0);
    let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 4, 10), layer_of).unwrap();
    let loss = model.forward(&batch(0).0).unwrap().mean_all().unwrap();
    let mut grads = freeze.backward(&loss).unwrap();
    let ids = |grads: &Gradients| -> Vec<_> { grads.iter().map(|(_, g)| g.id()).collect() };
    let before = ids(&grads);
    assert_eq!(grads.all_reduce(&Alone).unwrap(), Reduced::default());
    assert_eq!(ids(&grads), before);
    assert!(Alone.broadcast(&mut [1], 1).is_err());
}

#[test]
fn ranks_that_disagree_are_told_on_all_of_them() {
    // Frozen layers and the head's name by rank: more frozen on one; the same elements under other names.
    let cases = [
        (
            [(1, "head"), (2, "head"), (1, "head")],
            "rank 0 has 8 of 7105 elements, rank 1 has 6 of 4753 elements",
        ),
        (
            [(1, "head"), (1, "head"), (1, "tail")],
            "rank 2 has 8 of 7105 elements under other names",
        ),
    ];
    for (case, want) in cases {
        let messages = threads::run(3, |ranks| {
            let (frozen, head) = case[ranks.rank()];
            let (from, _) = vars::<Mlp>(0);
            let renamed = VarMap::new();
            for (name, var) in from.data().lock().unwrap().iter() {
                let name = name.replace("head", head);
                renamed.data().lock().unwrap().insert(name, var.clone());
            }
            let mut freeze =
                FreezeOut::new(&renamed, Schedule::cubic(0.5, 4, 10), layer_of).unwrap();
            freeze.freeze_first(frozen);
            let vb = freeze
                .vars()
                .rename_f(move |name: &str| name.replace("head", head));
            let loss = Mlp::new(vb)
                .forward(&batch(0).0)
                .unwrap()
                .mean_all()
                .unwrap();
            let mut grads = freeze.backward(&loss).unwrap();
            let error = grads.all_reduce(ranks).unwrap_err();
            assert!(matches!(error, Error::Distributed(_)));
            error.to_string()
        });
        for (rank, message) in messages.iter().enumerate() {
            assert!(
                message.starts_with(&format!("rank {rank} of 3: ")),
                "{message}"
            );
            assert!(message.contains(want), "{message}");
        }
    }
    // Other variables before training.
    let errors = threads::run(2, |ranks| {
        let (vars, _) = vars::<Mlp>(0);
        if ranks.rank() == 1 {
            vars.data().lock().unwrap().remove("head.bias");
        }
        let freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 4, 10), layer_of).unwrap();
        broadcast_weights(&freeze, ranks, 0)
            .unwrap_err()
            .to_string()
    });
    assert!(
        errors.iter().all(|e| e.contains("same variables")),
        "{errors:?}"
    );
}

#[test]
fn a_policy_needs_the_reduced_gradients() {
    let (vars, model) = vars::<Mlp>(0);
    let schedule = Schedule::cubic(0.5, 4, 100);
    let mut policy = AutoFreeze::default();
    policy.interval = 2;
    let make = || {
        FreezeOut::new(&vars, schedule.clone(), layer_of)
            .unwrap()
            .with_policy(policy.clone())
    };
    let loss = || model.forward(&batch(0).0).unwrap().mean_all().unwrap();
    let mut freeze = make();
    let grads = freeze.backward(&loss()).unwrap();
    let error = freeze.observe(&grads).unwrap_err().to_string();
    assert!(error.contains("with_reduced_gradients"), "{error}");
    // Never shown any.
    let mut freeze = make().with_reduced_gradients();
    for step in 0..2 {
        freeze.advance(step).unwrap();
        freeze.backward(&loss()).unwrap();
    }
    let error = freeze.advance(2).unwrap_err().to_string();
    assert!(error.contains("FreezeOut::observe"), "{error}");
    // Without a policy there is nothing to show.
    let mut freeze = FreezeOut::new(&vars, schedule.clone(), layer_of).unwrap();
    freeze.observe(&grads).unwrap();
}

#[test]
fn other_types_and_layouts_are_reduced_too() {
    types_and_layouts(|ranks| Box::new(ranks.clone()));
}

/// Ranks that reach the tensors where they are, as NCCL does on GPUs.
#[derive(Debug)]
struct OnDevice(Threads);

impl Communicator for OnDevice {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn all_reduce(&self, _: &mut [f32]) -> Result<(), Error> {
        panic!("through the host")
    }

    fn all_reduce_f64(&self, values: &mut [f64]) -> Result<(), Error> {
        self.0.all_reduce_f64(values)
    }

    fn all_reduce_tensors(&self, tensors: &[&Tensor]) -> Option<Result<Vec<Tensor>, Error>> {
        let sum = |t: &&Tensor| {
            let mut values = t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            self.0.all_reduce(&mut values)?;
            Ok(Tensor::from_vec(values, t.shape(), &CPU)?)
        };
        Some(tensors.iter().map(sum).collect())
    }

    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<(), Error> {
        self.0.broadcast(bytes, root)
    }

    fn barrier(&self) -> Result<(), Error> {
        self.0.barrier()
    }
}

#[test]
fn tensors_are_reduced_where_they_are() {
    types_and_layouts(|ranks| Box::new(OnDevice(ranks.clone())));
}

fn types_and_layouts(ranks: impl Fn(&Threads) -> Box<dyn Communicator> + Sync) {
    let means = threads::run(2, |threads| {
        let ranks = &*ranks(threads);
        let mut means = BTreeMap::new();
        for dtype in [DType::F64, DType::BF16, DType::F16, DType::F32] {
            let vars = VarMap::new();
            let vb = VarBuilder::from_varmap(&vars, dtype, &CPU);
            let w = vb
                .get_with_hints((3, 2), "0.w", candle_nn::Init::Const(0.5))
                .unwrap();
            let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 1, 10), layer_of).unwrap();
            let x: Vec<f32> = (0..6).map(|i| (i + 2 * ranks.rank()) as f32).collect();
            let x = Tensor::from_vec(x, (2, 3), &CPU)
                .unwrap()
                .to_dtype(dtype)
                .unwrap();
            // The gradient of a transposed product is not contiguous.
            let loss = (w.t().unwrap() * x).unwrap().sum_all().unwrap();
            let mut grads = freeze.backward(&loss).unwrap();
            assert_eq!(grads.all_reduce(ranks).unwrap().bytes, 24);
            let grad = grads.get("0.w").unwrap();
            assert_eq!(grad.dtype(), dtype);
            let grad = grad.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
            means.insert(format!("{dtype:?}"), grad);
        }
        means
    });
    for mean in means.iter().flat_map(BTreeMap::values) {
        assert_eq!(*mean, [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]);
    }
}

#[test]
fn weights_of_any_type_reach_all_ranks() {
    let all = threads::run(3, |ranks| {
        let vars = VarMap::new();
        for (name, dtype) in [
            ("0.a", DType::F32),
            ("0.b", DType::BF16),
            ("0.c", DType::F64),
        ] {
            let value = candle_nn::Init::Const(0.1 + ranks.rank() as f64);
            let vb = VarBuilder::from_varmap(&vars, dtype, &CPU);
            vb.get_with_hints((2, 3), name, value).unwrap();
        }
        let freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 1, 10), layer_of).unwrap();
        broadcast_weights(&freeze, ranks, 2).unwrap();
        let values = |t: &Tensor| {
            t.to_dtype(DType::F64)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f64>()
                .unwrap()
        };
        freeze.all().map(|(_, var)| values(var)).collect::<Vec<_>>()
    });
    assert_eq!(all[0], all[2]);
    assert_eq!(all[1], all[2]);
    assert_eq!(all[0][0][0], f64::from(2.1f32));
}

#[test]
fn more_than_a_bucket_goes_in_several() {
    let sums = threads::run(2, |ranks| {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &CPU);
        // 4 MB, 28 MB (more than a bucket), 24 MB, 2 bytes times 4.
        let sizes = [1 << 20, 7 << 20, 6 << 20, 2];
        for (i, size) in sizes.into_iter().enumerate() {
            vb.get_with_hints(size, &format!("{i}.w"), candle_nn::Init::Const(0.0))
                .unwrap();
        }
        let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 4, 10), layer_of).unwrap();
        let mut loss = Tensor::zeros((), DType::F32, &CPU).unwrap();
        for (i, (_, _, var)) in freeze.live().enumerate() {
            let factor = (i + 1 + 10 * ranks.rank()) as f64;
            loss = (loss + (var.as_tensor() * factor).unwrap().sum_all()).unwrap();
        }
        let mut grads = freeze.backward(&loss).unwrap();
        let reduced = grads.all_reduce(ranks).unwrap();
        assert_eq!(reduced.bytes, 4 * sizes.iter().sum::<usize>());
        let ends = |t: &Tensor| {
            let values = t.to_vec1::<f32>().unwrap();
            assert!(values.iter().all(|value| *value == values[0]));
            values[0]
        };
        grads.iter().map(|(_, grad)| ends(grad)).collect::<Vec<_>>()
    });
    assert_eq!(sums, [[6.0, 7.0, 8.0, 9.0], [6.0, 7.0, 8.0, 9.0]]);
}

/// A backward pass that shows gradients as it would find them: from the last layer on, not that of the head's bias, and the
/// first part alone of the head's weight.
fn showing(loss: &Tensor, vars: &[Var], mut seen: Seen) -> candle_core::Result<GradStore> {
    let store = loss.backward()?;
    for var in vars.iter().rev().filter(|var| var.dims() != [1]) {
        match store.get(var) {
            Some(grad) if var.dims() == [1, 48] => seen(var, &(grad / 2.0)?),
            Some(grad) => seen(var, grad),
            None => {}
        }
    }
    Ok(store)
}

#[test]
fn overlapped_sums_are_the_same() {
    let train = |ranks: &Rc<dyn Communicator>, overlap: bool| {
        let (vars, mut model) = vars::<Mlp>(0);
        let schedule = Schedule::cubic(0.5, 4, STEPS);
        let mut freeze = FreezeOut::new(&vars, schedule, layer_of).unwrap();
        let all: Vec<Var> = freeze.all().map(|(_, var)| var.clone()).collect();
        let (mut opt, mut bytes) = (adamw(), Vec::new());
        for step in 0..STEPS {
            if freeze.advance(step).unwrap() {
                model = Mlp::new(freeze.vars());
            }
            let x = batch(step).0.chunk(2 * ranks.size(), 0).unwrap();
            let loss = |micro: usize| {
                let out = model.forward(&x[2 * ranks.rank() + micro]).unwrap();
                out.sqr().unwrap().mean_all().unwrap()
            };
            let mut grads = freeze.backward(&loss(0)).unwrap();
            let reduced = if overlap {
                let show = |loss: &Tensor, seen: Seen| showing(loss, &all, seen);
                let both = freeze.backward_reduced(&loss(1), Some(grads), ranks, show);
                let (sum, reduced) = both.unwrap();
                grads = sum;
                reduced
            } else {
                grads.add(freeze.backward(&loss(1)).unwrap()).unwrap();
                grads.all_reduce(ranks.as_ref()).unwrap()
            };
            bytes.push(reduced.bytes);
            opt.step(&freeze, step, &grads).unwrap();
        }
        (bits(&freeze), bytes)
    };
    for size in [1, 2, 3] {
        let runs = threads::run(size, |ranks| {
            let ranks: Rc<dyn Communicator> = Rc::new(ranks.clone());
            (train(&ranks, true), train(&ranks, false))
        });
        for ((weights, bytes), (want, want_bytes)) in &runs {
            assert_eq!(weights, want);
            // The head's weight went twice, since what was shown was not all.
            let again = if size == 1 { 0 } else { 4 * 48 };
            assert!(bytes.iter().zip(want_bytes).all(|(a, b)| *a == b + again));
        }
    }
    // Disagreement is seen before anything is sent.
    let errors = threads::run(2, |ranks| {
        let ranks: Rc<dyn Communicator> = Rc::new(ranks.clone());
        let (vars, _) = vars::<Mlp>(0);
        let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 4, 10), layer_of).unwrap();
        freeze.freeze_first(ranks.rank());
        let loss = Mlp::new(freeze.vars())
            .forward(&batch(0).0)
            .unwrap()
            .mean_all()
            .unwrap();
        let nothing = |_: &Tensor, _: Seen| -> candle_core::Result<GradStore> { unreachable!() };
        freeze
            .backward_reduced(&loss, None, &ranks, nothing)
            .unwrap_err()
            .to_string()
    });
    assert!(
        errors.iter().all(|error| error.contains("rank 1 has 8")),
        "{errors:?}"
    );
}
