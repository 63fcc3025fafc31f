//! How long Swin-T takes for a batch of random images: forward alone, and a training step's forward and backward. Prints JSON;
//! benches/pytorch/swin.py runs it beside timm's.
//!
//!     cargo run --release -p candle-vit --example swin_speed -- --model swin-tiny --batch-size 8 --steps 3
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use vit::{Backbone, VitConfig};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let (mut model, mut batch, mut steps) = ("swin-tiny".to_owned(), 8, 3);
    let mut args = std::env::args().skip(1);
    while let Some(key) = args.next() {
        let value = args.next().ok_or("a value is missing")?;
        match key.as_str() {
            "--model" => model = value,
            "--batch-size" => batch = value.parse()?,
            "--steps" => steps = value.parse()?,
            _ => return Err(format!("{key}: unknown; --model, --batch-size, --steps").into()),
        }
    }
    let preset = VitConfig::preset(&model).ok_or("no such model")?;
    let cfg = VitConfig {
        num_classes: 1000,
        ..preset
    };
    let vars = VarMap::new();
    let model = Backbone::new(&cfg, vit::seeded(&vars, 0, DType::F32, &Device::Cpu))?;
    let (height, width) = cfg.image();
    let images = Tensor::randn(0f32, 1.0, (batch, 3, height, width), &Device::Cpu)?;
    // Once before the clock runs: memory, threads.
    step(&model, &images)?;
    let (mut forward, mut both) = (0.0, 0.0);
    for _ in 0..steps {
        let start = Instant::now();
        let loss = loss(&model, &images)?;
        loss.to_scalar::<f32>()?;
        forward += start.elapsed().as_secs_f64();
        vit::ops::backward(&loss)?;
        both += start.elapsed().as_secs_f64();
    }
    let each = |seconds: f64| seconds / steps as f64;
    println!(
        "{{\"forward_s\": {}, \"step_s\": {}}}",
        each(forward),
        each(both)
    );
    Ok(())
}

fn loss(model: &Backbone, images: &Tensor) -> candle_core::Result<Tensor> {
    model.forward(images)?.sqr()?.mean_all()
}

fn step(model: &Backbone, images: &Tensor) -> candle_core::Result<()> {
    vit::ops::backward(&loss(model, images)?).map(drop)
}
