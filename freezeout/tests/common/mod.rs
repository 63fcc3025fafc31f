//! A chain of linear layers, and whole training runs of it.
#![allow(dead_code)]
pub mod threads;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::{linear, Linear, Module, VarBuilder, VarMap};
use freezeout::{FreezeOut, Gradients, Optimizer, Policy, Schedule};

pub const CPU: Device = Device::Cpu;

/// Layers named 0, 1, 2, ...
pub struct Net(pub Vec<Linear>);

impl Net {
    pub fn new(layers: usize, vb: VarBuilder) -> Self {
        let layer = |i: usize| linear(4, 4, vb.pp(i)).unwrap();
        Self((0..layers).map(layer).collect())
    }

    pub fn loss(&self, batch: usize) -> Tensor {
        let x: Vec<f32> = (0..8).map(|i| ((i + 3 * batch) % 7) as f32 - 3.0).collect();
        let mut x = Tensor::from_vec(x, (2, 4), &CPU).unwrap();
        for layer in &self.0 {
            x = layer.forward(&x).unwrap().tanh().unwrap();
        }
        x.sqr().unwrap().mean_all().unwrap()
    }

    pub fn outputs(&self) -> Vec<Tensor> {
        let mut x = Tensor::arange(0f32, 12.0, &CPU).unwrap();
        x = (x.reshape((3, 4)).unwrap() / 12.0).unwrap();
        let forward = |layer: &Linear| {
            x = layer.forward(&x).unwrap().tanh().unwrap();
            x.clone()
        };
        self.0.iter().map(forward).collect()
    }
}

/// A net with the same weights every time: candle's generator cannot be seeded.
pub fn net(layers: usize) -> (VarMap, Net) {
    let vars = VarMap::new();
    let net = Net::new(layers, VarBuilder::from_varmap(&vars, DType::F32, &CPU));
    for (name, var) in vars.data().lock().unwrap().iter() {
        let salt = name.len() + name.as_bytes()[0] as usize;
        let values: Vec<f32> = (0..var.elem_count())
            .map(|i| ((i * 13 + salt * 5) % 17) as f32 / 17.0 - 0.4)
            .collect();
        let values = Tensor::from_vec(values, var.shape(), &CPU).unwrap();
        var.set(&values).unwrap();
    }
    (vars, net)
}

pub fn layer_of(name: &str) -> Option<usize> {
    name.split('.').next()?.parse().ok()
}

pub type Bits = Vec<(String, Vec<u32>)>;

pub fn bits(freeze: &FreezeOut) -> Bits {
    let bits = |t: &Tensor| -> Vec<u32> {
        let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    freeze.all().map(|(n, v)| (n.to_owned(), bits(v))).collect()
}

/// What a run does, beside its schedule.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    pub schedule: &'a Schedule,
    pub opt: &'a dyn Fn() -> Optimizer,
    pub policy: Option<&'a dyn Fn() -> Box<dyn Policy>>,
    pub accum: usize,
    /// Rebuild the model when layers freeze.
    pub cut: bool,
    /// Stop before this step, and go on from what was saved.
    pub stop: Option<usize>,
}

impl<'a> Run<'a> {
    pub fn new(schedule: &'a Schedule, opt: &'a dyn Fn() -> Optimizer) -> Self {
        Self {
            schedule,
            opt,
            policy: None,
            accum: 1,
            cut: true,
            stop: None,
        }
    }

    fn freeze(&self, vars: &VarMap) -> FreezeOut {
        let mut freeze = FreezeOut::new(vars, self.schedule.clone(), layer_of)
            .unwrap()
            .on_warning(|warning| panic!("{warning}"));
        if let Some(policy) = self.policy {
            freeze = freeze.with_policy(Boxed(policy()));
        }
        if self.cut {
            freeze
        } else {
            freeze.without_checks()
        }
    }

    /// Trains; gives the weights' bits and how many layers were frozen at each step.
    pub fn train(self) -> (Bits, Vec<usize>) {
        let layers = self.schedule.layers;
        let (vars, mut model) = net(layers);
        let mut freeze = self.freeze(&vars);
        let mut opt = (self.opt)();
        let mut frozen = Vec::new();
        for step in 0..self.schedule.steps {
            if self.stop == Some(step) {
                let (state, policy) = (opt.state(&freeze).unwrap(), freeze.state().unwrap());
                let (other, _) = net(layers);
                for (name, var) in freeze.all() {
                    other.data().lock().unwrap()[name].set(var).unwrap();
                }
                let changed = freeze.frozen();
                freeze = self.freeze(&other);
                if self.policy.is_some() {
                    freeze.load_state(&policy).unwrap();
                } else if step > 0 {
                    freeze.advance(step - 1).unwrap();
                }
                assert_eq!(changed, freeze.frozen());
                opt = (self.opt)();
                opt.load_state(&freeze, &state).unwrap();
                model = Net::new(layers, freeze.vars());
            }
            if freeze.advance(step).unwrap() && self.cut {
                model = Net::new(layers, freeze.vars());
            }
            frozen.push(freeze.frozen());
            if freeze.live().next().is_none() {
                continue;
            }
            freeze.observe_outputs(&model.outputs()).unwrap();
            let mut grads = Gradients::default();
            for micro in 0..self.accum {
                let loss = model.loss(step * self.accum + micro);
                let loss = (loss / self.accum as f64).unwrap();
                grads.add(freeze.backward(&loss).unwrap()).unwrap();
            }
            opt.step(&freeze, step, &grads).unwrap();
        }
        (bits(&freeze), frozen)
    }
}

/// Policies of different types in one list.
struct Boxed(Box<dyn Policy>);

impl Policy for Boxed {
    fn advance(&mut self, step: usize, freeze: &FreezeOut) -> Result<usize, freezeout::Error> {
        self.0.advance(step, freeze)
    }

    fn observe(&mut self, f: &FreezeOut, grads: &Gradients) -> Result<(), freezeout::Error> {
        self.0.observe(f, grads)
    }

    fn observe_outputs(&mut self, outputs: &[Tensor]) -> Result<(), freezeout::Error> {
        self.0.observe_outputs(outputs)
    }

    fn state(&self, f: &FreezeOut) -> Result<BTreeMap<String, Tensor>, freezeout::Error> {
        self.0.state(f)
    }

    fn load_state(
        &mut self,
        freeze: &FreezeOut,
        saved: &BTreeMap<String, Tensor>,
    ) -> Result<(), freezeout::Error> {
        self.0.load_state(freeze, saved)
    }
}
