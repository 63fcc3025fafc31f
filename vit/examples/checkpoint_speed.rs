//! Times loading a checkpoint and inference of 32 images; benches/pytorch/checkpoint_speed.py runs it beside PyTorch.
//!
//!     cargo run --release -p candle-vit --example checkpoint_speed -- vit_base.safetensors 3
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use vit::{Checkpoint, LoadOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // candle's second thread pool spins while it waits and takes the cores from the first one.
    std::env::set_var("CANDLE_NUM_THREADS", "1");
    let args: Vec<String> = std::env::args().collect();
    let [_, checkpoint, repeats] = &args[..] else {
        return Err("usage: checkpoint_speed CHECKPOINT REPEATS".into());
    };
    for _ in 0..repeats.parse::<usize>()? {
        let start = Instant::now();
        let pretrained = Checkpoint::open(checkpoint)?.load(&LoadOptions::default())?;
        println!("load {:.4}", start.elapsed().as_secs_f64());
        let model = pretrained.model()?;
        let (height, width) = pretrained.cfg.image();
        let images = Tensor::ones((32, 3, height, width), DType::F32, &Device::Cpu)?;
        let start = Instant::now();
        model.forward(&images)?;
        println!("infer {:.4}", start.elapsed().as_secs_f64());
    }
    Ok(())
}
