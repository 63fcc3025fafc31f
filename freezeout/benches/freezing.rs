//! Time, peak memory and graph of a training step of 12 residual blocks with more and more of them frozen.
//!
//!     cargo bench -p freezeout --bench freezing
//!
//! Times are medians over rounds in which all numbers of frozen layers are measured in turn. Peak memory is the resident set
//! of a process of its own (Linux only), less what it had before it built the model.
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{linear, Linear, Module, VarBuilder, VarMap};
use freezeout::{profile, AdamW, FreezeOut, Optimizer, Schedule};

/// glibc's allocator hands the memory of a larger graph back to the system at every step, which makes the unfrozen step slower
/// than its ops are, and freezing look better than it is.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BLOCKS: usize = 12;
const DIM: usize = 384;
const ROWS: usize = 400;

struct Net(Vec<(Linear, Linear)>);

impl Net {
    fn new(vb: VarBuilder) -> Result<Self> {
        let block = |i| {
            let vb = vb.pp("blocks").pp(i);
            let fc1 = linear(DIM, 4 * DIM, vb.pp("fc1"))?;
            Ok((fc1, linear(4 * DIM, DIM, vb.pp("fc2"))?))
        };
        Ok(Self((0..BLOCKS).map(block).collect::<Result<_>>()?))
    }

    fn loss(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (fc1, fc2) in &self.0 {
            x = (&x + fc2.forward(&fc1.forward(&x)?.relu()?)?)?;
        }
        x.sqr()?.mean_all()
    }
}

fn setup() -> Result<(FreezeOut, Tensor)> {
    let vars = VarMap::new();
    Net::new(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    let layer_of = |name: &str| name.split('.').nth(1)?.parse().ok();
    let schedule = Schedule::cubic(1.0, BLOCKS, 1000);
    let freeze = FreezeOut::new(&vars, schedule, layer_of).map_err(candle_core::Error::wrap)?;
    Ok((freeze, Tensor::randn(0f32, 1.0, (ROWS, DIM), &Device::Cpu)?))
}

/// Largest resident set so far, in MB.
fn peak() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1e3)
}

/// Three optimiser steps with so many layers frozen.
fn train(frozen: usize) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let before = peak();
    let (mut freeze, x) = setup()?;
    freeze.freeze_first(frozen);
    let (model, mut opt) = (Net::new(freeze.vars())?, Optimizer::new(AdamW::default()));
    for step in 0..3 {
        let grads = freeze.backward(&model.loss(&x)?)?;
        opt.step(&freeze, step, &grads)?;
    }
    if let (Some(before), Some(after)) = (before, peak()) {
        print!("{:.0}", after - before);
    }
    Ok(())
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--train") {
        return train(args.get(at + 1).ok_or("--train N")?.parse()?);
    }
    let (mut freeze, x) = setup()?;
    let rounds = std::env::var("ROUNDS").map_or(7, |n| n.parse().unwrap_or(7));
    let measured = profile(&mut freeze, rounds, |vb| Net::new(vb)?.loss(&x))?;
    eprintln!("{measured}");
    println!(
        "| frozen | forward | backward | backward, of all | ideal | graph nodes | peak memory |"
    );
    println!("|---|---|---|---|---|---|---|");
    for frozen in [0, 3, 6, 9, 11] {
        let row = measured.0[frozen];
        let child = std::process::Command::new(&args[0])
            .args(["--train", &frozen.to_string()])
            .output()?;
        println!(
            "| {frozen} | {:.1} ms | {:.1} ms | {:.3} | {:.3} | {} | {} MB |",
            1e3 * row.forward,
            1e3 * row.backward,
            row.backward / measured.0[0].backward,
            (BLOCKS - frozen) as f64 / BLOCKS as f64,
            row.ops,
            String::from_utf8_lossy(&child.stdout)
        );
    }
    Ok(())
}
