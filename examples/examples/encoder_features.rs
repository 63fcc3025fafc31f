//! Loads an exported encoder and writes its features, for comparison with timm's (scripts/timm_check.py).
//!
//!     cargo run --release -p vitfreeze-examples --example encoder_features -- runs/pretrain-1/encoder.safetensors features.safetensors
//!     python3 scripts/timm_check.py runs/pretrain-1/encoder.safetensors --features features.safetensors
use std::collections::HashMap;
use std::error::Error;

use candle_core::{safetensors, DType, Device, Tensor};
use candle_nn::VarBuilder;
use vit::{Vit, VitConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, encoder, output] = &args[..] else {
        return Err("usage: encoder_features ENCODER.safetensors OUTPUT.safetensors".into());
    };
    let cfg = VitConfig::of_file(encoder.as_ref())?;
    let tensors = safetensors::load(encoder, &Device::Cpu)?;
    let model = Vit::new(
        &cfg,
        VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu),
    )?;

    let size = cfg.image_size;
    let mut rng = datasets::rng::rng(0, "images", 0, 0);
    let pixels: Vec<f32> = (0..4 * 3 * size * size)
        .map(|_| datasets::rng::normal(&mut rng))
        .collect();
    let images = Tensor::from_vec(pixels, (4, 3, size, size), &Device::Cpu)?;
    let features = model.forward_features(&images)?;
    println!("{encoder}: features {:?}", features.dims());
    let out = HashMap::from([("images", images), ("features", features)]);
    safetensors::save(&out, output)?;
    Ok(())
}
