//! FreezeOut on a small convolutional network that knows nothing about freezing: backward time falls as layers freeze.
//!
//!     cargo run --release -p vitfreeze-examples --example freeze_cnn
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{conv2d, linear, Conv2d, Conv2dConfig, Linear, Module, VarBuilder, VarMap};
use freezeout::{AdamW, FreezeOut, Optimizer, Schedule};

struct Cnn {
    convs: Vec<Conv2d>,
    head: Linear,
}

impl Cnn {
    fn new(vb: VarBuilder) -> Result<Self> {
        let cfg = Conv2dConfig {
            padding: 1,
            ..Default::default()
        };
        let conv = |i| {
            conv2d(
                if i == 0 { 3 } else { 16 },
                16,
                3,
                cfg,
                vb.pp("convs").pp(i),
            )
        };
        Ok(Self {
            convs: (0..6).map(conv).collect::<Result<_>>()?,
            head: linear(16, 4, vb.pp("head"))?,
        })
    }

    fn loss(&self, images: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let mut x = images.clone();
        for conv in &self.convs {
            x = conv.forward(&x)?.relu()?;
        }
        let logits = self.head.forward(&x.flatten_from(2)?.mean(2)?)?;
        candle_nn::loss::cross_entropy(&logits, labels)
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let device = Device::Cpu;
    let vars = VarMap::new();
    let mut model = Cnn::new(VarBuilder::from_varmap(&vars, DType::F32, &device))?;
    // convs.0 .. convs.5 are layers 0 to 5, the head is the last: 6.
    let layer_of = |name: &str| match name.split('.').collect::<Vec<_>>()[..] {
        ["convs", i, _] => i.parse().ok(),
        _ => Some(6),
    };
    let steps = 60;
    let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 7, steps), layer_of)?;
    let mut opt = Optimizer::new(AdamW::default());
    let (mut seconds, mut since) = (0.0, 0);
    for step in 0..steps {
        if freeze.advance(step)? {
            println!(
                "steps {since:2} to {step:2}: {:5.1} ms backward",
                1e3 * seconds / (step - since) as f64
            );
            println!("{} of 7 layers frozen", freeze.frozen());
            (seconds, since) = (0.0, step);
            model = Cnn::new(freeze.vars())?;
        }
        // The class is the brightness: something a network can learn.
        let labels = Tensor::from_vec((0..16u32).map(|i| i % 4).collect(), 16, &device)?;
        let images = Tensor::randn(0f32, 1.0, (16, 3, 12, 12), &device)?
            .broadcast_add(&labels.to_dtype(DType::F32)?.reshape((16, 1, 1, 1))?)?;
        let loss = model.loss(&images, &labels)?;
        let start = Instant::now();
        let grads = freeze.backward(&loss)?;
        seconds += start.elapsed().as_secs_f64();
        opt.step(&freeze, step, &grads)?;
        if step == 0 || step + 1 == steps {
            println!("step {step}: loss {:.3}", loss.to_scalar::<f32>()?);
        }
    }
    println!(
        "steps {since:2} to {steps}: {:5.1} ms backward",
        1e3 * seconds / (steps - since) as f64
    );
    Ok(())
}
