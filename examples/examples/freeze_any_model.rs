//! Ten lines of freezing around a model that knows nothing about it: time and graph fall with every layer that freezes.
//!
//!     cargo run --release -p vitfreeze-examples --example freeze_any_model
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{linear, Linear, Module, VarBuilder, VarMap};
use freezeout::{AdamW, FreezeOut, Layers, Optimizer, Schedule};

/// A multi-layer perceptron with eight hidden layers, as one would write it without freezing.
struct Mlp {
    hidden: Vec<Linear>,
    head: Linear,
}

impl Mlp {
    fn new(vb: VarBuilder) -> Result<Self> {
        let layer = |i| {
            linear(
                if i == 0 { 16 } else { 256 },
                256,
                vb.pp(format!("hidden.{i}")),
            )
        };
        Ok(Self {
            hidden: (0..8).map(layer).collect::<Result<_>>()?,
            head: linear(256, 1, vb.pp("head"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for layer in &self.hidden {
            x = layer.forward(&x)?.relu()?;
        }
        self.head.forward(&x)?.squeeze(1)
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let device = Device::Cpu;
    let vars = VarMap::new();
    let mut model = Mlp::new(VarBuilder::from_varmap(&vars, DType::F32, &device))?;

    let layers = Layers::infer(&vars)?; // hidden.0 to hidden.7; the head is in no layer
    println!("{layers}");
    let steps = 160;
    let schedule = Schedule::cubic(0.4, layers.len(), steps);
    let mut freeze = FreezeOut::with_layers(&vars, schedule, &layers)?;
    let mut opt = Optimizer::new(AdamW::default());

    println!("frozen   steps     ms/step   graph nodes   loss");
    let (mut start, mut since) = (Instant::now(), 0);
    for step in 0..steps {
        // The function to learn: whether the first half of the numbers is larger than the second.
        let x = Tensor::randn(0f32, 1.0, (128, 16), &device)?;
        let target = (x.narrow(1, 0, 8)?.sum(1)? - x.narrow(1, 8, 8)?.sum(1)?)?.tanh()?;

        if freeze.advance(step)? {
            model = Mlp::new(freeze.vars())?; // rebuilt without the frozen layers' graph
        }
        let loss = (model.forward(&x)? - target)?.sqr()?.mean_all()?;
        let grads = freeze.backward(&loss)?;
        opt.step(&freeze, step, &grads)?;

        let next = freeze.schedule().frozen(step + 1);
        if next != freeze.frozen() || step + 1 == steps {
            println!(
                "{:>6}   {:>3} - {:<3} {:>8.2}   {:>11}   {:.3}",
                freeze.frozen(),
                since,
                step,
                1e3 * start.elapsed().as_secs_f64() / (step + 1 - since) as f64,
                loss.sorted_nodes().len(),
                loss.to_scalar::<f32>()?
            );
            (start, since) = (Instant::now(), step + 1);
        }
    }
    Ok(())
}
