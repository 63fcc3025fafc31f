//! Fine-tuning from the head down: the same machine run backwards (ULMFiT's gradual unfreezing).
//!
//! A network learns a task, then gets a new head for another one. At first the head alone trains, then one layer more every
//! ten steps, each with a smaller rate than the one above it.
//!
//!     cargo run --release -p vitfreeze-examples --example gradual_unfreeze
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{linear, Linear, Module, VarBuilder, VarMap};
use freezeout::{layer_decay, AdamW, FreezeOut, Layers, Optimizer, Schedule};

struct Net {
    blocks: Vec<Linear>,
    head: Linear,
}

impl Net {
    fn new(head: &str, vb: VarBuilder) -> Result<Self> {
        let block = |i| linear(if i == 0 { 12 } else { 64 }, 64, vb.pp("blocks").pp(i));
        Ok(Self {
            blocks: (0..4).map(block).collect::<Result<_>>()?,
            head: linear(64, 1, vb.pp(head))?,
        })
    }

    fn loss(&self, x: &Tensor, target: &Tensor) -> Result<Tensor> {
        let mut h = x.clone();
        for block in &self.blocks {
            h = block.forward(&h)?.gelu()?;
        }
        (self.head.forward(&h)?.squeeze(1)? - target)?
            .sqr()?
            .mean_all()
    }
}

/// Numbers, and the length of their first `n`, which is what there is to learn.
fn batch(n: usize) -> Result<(Tensor, Tensor)> {
    let x = Tensor::randn(0f32, 1.0, (64, 12), &Device::Cpu)?;
    let target = x.narrow(1, 0, n)?.sqr()?.sum(1)?.sqrt()?;
    Ok((x, target))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let vars = VarMap::new();
    let vb = || VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let model = Net::new("head", vb())?;
    let layers = Layers::of(&vars)
        .blocks("blocks.{i}")
        .leave_out(&["head"])
        .build()?;
    let schedule = Schedule {
        lr: 3e-3,
        ..Schedule::cubic(1.0, 4, 200)
    };
    let mut pretrain = FreezeOut::with_layers(&vars, schedule, &layers)?;
    let mut opt = Optimizer::new(AdamW::default());
    for step in 0..200 {
        let (x, target) = batch(12)?;
        let loss = model.loss(&x, &target)?;
        let grads = pretrain.backward(&loss)?;
        opt.step(&pretrain, step, &grads)?;
    }

    // Another task with a head of its own; the old one goes.
    vars.data()
        .lock()
        .map_err(|_| "poisoned")?
        .retain(|name, _| !name.starts_with("head"));
    Net::new("head_2", vb())?;
    let layers = Layers::of(&vars)
        .blocks("blocks.{i}")
        .leave_out(&["head_2"])
        .build()?;
    // Four blocks are frozen at first; the last thaws at 10, the first at 40.
    let plan: Schedule = Schedule {
        lr: 3e-3,
        spacing: "at:0=4,10=3,20=2,30=1,40=0".parse()?,
        keep_last: 0,
        ..Schedule::cubic(1.0, 4, 80)
    };
    let mut freeze = FreezeOut::with_layers(&vars, plan, &layers)?;
    let mut opt = Optimizer::new(AdamW::default()).groups(layer_decay(0.8, 4));
    let mut model = Net::new("head_2", freeze.vars())?;
    for step in 0..80 {
        if freeze.advance(step)? {
            model = Net::new("head_2", freeze.vars())?;
        }
        let (x, target) = batch(6)?;
        let loss = model.loss(&x, &target)?;
        let grads = freeze.backward(&loss)?;
        opt.step(&freeze, step, &grads)?;
        if step % 10 == 9 {
            let (live, loss) = (4 - freeze.frozen(), loss.to_scalar::<f32>()?);
            println!("step {step}: loss {loss:.4}, head and {live} of 4 blocks train");
        }
    }
    Ok(())
}
