//! Freezing beside what you have: candle_nn's own AdamW, your own learning rate, your own loop.
//!
//! candle's optimisers skip a variable that has no gradient. A frozen layer has none, so it stays as it is, and three lines
//! are all there is to add. What you forgo is a rate for each layer, and moments that are freed as layers freeze: those need
//! `freezeout::Optimizer` (freeze_any_model).
//!
//!     cargo run --release -p vitfreeze-examples --example adopt_scheduler_only
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{linear, AdamW, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use freezeout::{FreezeOut, Layers, Schedule};

const STEPS: usize = 200;
const BLOCKS: usize = 6;

struct Net {
    blocks: Vec<Linear>,
    head: Linear,
}

impl Net {
    fn new(vb: VarBuilder) -> Result<Self> {
        let block = |i| linear(if i == 0 { 16 } else { 128 }, 128, vb.pp("blocks").pp(i));
        Ok(Self {
            blocks: (0..BLOCKS).map(block).collect::<Result<_>>()?,
            head: linear(128, 1, vb.pp("head"))?,
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

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let vars = VarMap::new();
    let mut model = Net::new(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    let mut opt = AdamW::new(vars.all_vars(), ParamsAdamW::default())?;
    let layers = Layers::of(&vars)
        .blocks("blocks.{i}")
        .leave_out(&["head"])
        .build()?;
    let schedule = Schedule::cubic(0.5, BLOCKS, STEPS);
    let mut freeze = FreezeOut::with_layers(&vars, schedule, &layers)?; // 1: when what freezes

    for step in 0..STEPS {
        // 2: built anew where layers freeze. It copies no weights.
        if freeze.advance(step)? {
            model = Net::new(freeze.vars())?;
            println!("step {step}: {} of {BLOCKS} blocks frozen", freeze.frozen());
        }
        opt.set_learning_rate(1e-3 * (1.0 - step as f64 / STEPS as f64));
        let x = Tensor::randn(0f32, 1.0, (64, 16), &Device::Cpu)?;
        let target = x.sqr()?.sum(1)?.sqrt()?;
        let loss = model.loss(&x, &target)?;
        let grads = freeze.backward(&loss)?; // 3: instead of loss.backward(); it checks that nothing has lost its gradient
        opt.step(&grads.to_store(&freeze))?;
        if step % 50 == 49 {
            println!("step {step}: loss {:.4}", loss.to_scalar::<f32>()?);
        }
    }
    Ok(())
}
