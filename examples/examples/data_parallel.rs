//! FreezeOut on many processes. The numbered lines are all that a training loop needs for it; alone it does the same.
//!
//!     cargo run --release -p vitfreeze-examples --example data_parallel
//!     cargo build --release -p vitfreeze-examples --example data_parallel --features mpi
//!     mpirun -np 2 target/release/examples/data_parallel [STEPS [SECONDS until a peer counts as hanging]]
use std::time::Duration;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{linear, Linear, Module, VarBuilder, VarMap};
#[cfg(not(feature = "mpi"))]
use freezeout::distributed::Alone;
#[cfg(feature = "mpi")]
use freezeout::distributed::Mpi;
use freezeout::distributed::{broadcast_weights, Communicator};
use freezeout::{AdamW, FreezeOut, Optimizer, Schedule};

const BATCH: usize = 12; // of all ranks together
const WIDTH: usize = 64;

fn model(vb: VarBuilder) -> Result<Vec<Linear>> {
    (0..5).map(|i| linear(WIDTH, WIDTH, vb.pp(i))).collect()
}

fn loss(model: &[Linear], x: &Tensor) -> Result<Tensor> {
    let hidden = |y: Tensor, layer: &Linear| layer.forward(&y)?.tanh();
    let y = model.iter().try_fold(x.clone(), hidden)?;
    (y - x)?.sqr()?.mean_all()
}

/// Numbers between -1 and 1 that look like chance, the same everywhere.
fn draw(shape: (usize, usize), seed: usize) -> Result<Tensor> {
    let number = |i: usize| ((i + seed * 7919) * 104_729 % 10_007) as f32 / 5003.5 - 1.0;
    Tensor::from_iter((0..shape.0 * shape.1).map(number), &Device::Cpu)?.reshape(shape)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let steps = args.next().transpose()?.unwrap_or(30) as usize;
    let timeout = Duration::from_secs(args.next().transpose()?.unwrap_or(60));
    #[cfg(feature = "mpi")]
    let ranks = Mpi::new(timeout)?; // 1
    #[cfg(not(feature = "mpi"))]
    let (ranks, _) = (Alone, timeout);
    let (rank, size) = (ranks.rank(), ranks.size()); // 2
    if !BATCH.is_multiple_of(size) {
        return Err(format!("{BATCH} samples are not parts of one size for {size} ranks").into());
    }

    let vars = VarMap::new();
    let mut net = model(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    let layer_of = |name: &str| {
        name.split('.')
            .next()?
            .parse()
            .ok()
            .filter(|&i: &usize| i < 4)
    };
    let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 4, steps), layer_of)?;
    for (seed, (_, var)) in freeze
        .all()
        .enumerate()
        .filter(|(_, (_, var))| var.rank() == 2)
    {
        var.set(&(draw((WIDTH, WIDTH), seed)? / 8.0)?)?; // candle's own draw cannot be repeated
    }
    for (_, var) in freeze.all().filter(|(_, var)| var.rank() == 1) {
        var.set(&var.zeros_like()?)?;
    }
    broadcast_weights(&freeze, &ranks, 0)?; // 3
    let mut opt = Optimizer::new(AdamW::default());
    for step in 0..steps {
        if freeze.advance(step)? {
            net = model(freeze.vars())?;
        }
        let batch = draw((BATCH, WIDTH), step)?;
        let part = batch.chunk(size, 0)?[rank].clone(); // 4
        let loss = loss(&net, &part)?;
        let mut grads = freeze.backward(&loss)?;
        let reduced = grads.all_reduce(&ranks)?; // 5
        opt.step(&freeze, step, &grads)?;
        let mut sum = [f64::from(loss.to_scalar::<f32>()?)]; // 6
        ranks.all_reduce_f64(&mut sum)?; // 7
        if rank == 0 {
            let (loss, frozen) = (sum[0] / size as f64, freeze.frozen()); // 8
            println!(
                "step {step} loss {loss:.9} frozen {frozen} bytes {}",
                reduced.bytes
            );
        }
    }
    let mut hash = 0u64;
    for (_, var) in freeze.all() {
        let values = var.flatten_all()?.to_vec1::<f32>()?;
        hash = values
            .iter()
            .fold(hash, |h, x| h.wrapping_mul(31) ^ u64::from(x.to_bits()));
    }
    println!("rank {rank} of {size}: weights {hash:016x}");
    Ok(())
}
