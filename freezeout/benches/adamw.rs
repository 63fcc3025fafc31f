//! One AdamW step over the 86 million parameters of a ViT-B: ours and candle_nn's, in turn.
//!
//!     cargo bench -p freezeout --bench adamw
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, Optimizer as _, ParamsAdamW, VarBuilder, VarMap};
use freezeout::{AdamW, FreezeOut, Optimizer, Schedule};

const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let random = Init::Randn {
        mean: 0.0,
        stdev: 0.02,
    };
    vb.get_with_hints((768, 768), "0.patch_embed", random)?;
    for i in 0..12 {
        let vb = vb.pp(i);
        for (name, rows, columns) in [
            ("qkv", 2304, 768),
            ("proj", 768, 768),
            ("fc1", 3072, 768),
            ("fc2", 768, 3072),
        ] {
            vb.get_with_hints((rows, columns), name, random)?;
            vb.get_with_hints(rows, &format!("{name}.bias"), random)?;
        }
        for name in ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"] {
            vb.get_with_hints(768, name, random)?;
        }
    }
    let schedule = Schedule::cubic(1.0, 12, 1000);
    let layer_of = |name: &str| name.split('.').next()?.parse().ok();
    let mut freeze = FreezeOut::new(&vars, schedule, layer_of)?;
    // The gradient of sum p^2 is 2 p.
    let mut loss = Tensor::zeros((), DType::F32, &Device::Cpu)?;
    for var in vars.all_vars() {
        loss = (loss + var.as_tensor().sqr()?.sum_all()?)?;
    }
    let grads = freeze.backward(&loss)?;
    drop(loss);
    let store = grads.to_store(&freeze);
    let count: usize = freeze.all().map(|(_, var)| var.elem_count()).sum();
    let mut ours = Optimizer::new(AdamW::default());
    let mut theirs = candle_nn::AdamW::new(vars.all_vars(), ParamsAdamW::default())?;
    let mut times = [Vec::new(), Vec::new()];
    // The first round makes the moments and does not count.
    for round in 0..=ROUNDS {
        for (which, times) in times.iter_mut().enumerate() {
            let start = Instant::now();
            if which == 0 {
                ours.step(&freeze, round, &grads)?;
            } else {
                theirs.step(&store)?;
            }
            if round > 0 {
                times.push(1e3 * start.elapsed().as_secs_f64());
            }
        }
    }
    for times in &mut times {
        times.sort_by(f64::total_cmp);
    }
    let [ours, theirs] = times.map(|t| t[ROUNDS / 2]);
    // Reads p, g, m, v and writes p, m, v.
    let gigabytes = 7.0 * 4.0 * count as f64 / 1e9;
    println!("{:.1} million parameters", count as f64 / 1e6);
    println!(
        "freezeout  {ours:7.1} ms   {:.1} GB/s",
        gigabytes / ours * 1e3
    );
    println!(
        "candle_nn  {theirs:7.1} ms   {:.1} times as long",
        theirs / ours
    );
    Ok(())
}
