//! A pretrained ViT from the Hugging Face Hub: what it is, an image's features, its likeliest classes.
//!
//! CHECKPOINT is anything that `vit::Checkpoint::open` knows: `hf://org/name`, a file of timm, MAE, DINO or Hugging Face, a
//! folder. IMAGE is a JPEG or PNG file.
//!
//!     cargo run --release -p vitfreeze-examples --features hub --example load_from_hub -- hf://timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k cat.jpg
use std::error::Error;

use candle_core::{Device, Tensor, D};
use datasets::{EvalTransform, Interpolation, Normalize};
use vit::{Checkpoint, Filter, LoadOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, origin, image] = &args[..] else {
        return Err("usage: load_from_hub CHECKPOINT IMAGE".into());
    };

    // Downloaded once, into the cache that Python's huggingface_hub uses too. Nothing in it is run.
    let checkpoint = Checkpoint::open(origin)?;
    let cfg = checkpoint.config();
    println!(
        "{}: width {}, {} blocks, {} px, patches of {}",
        checkpoint.family(),
        cfg.embed_dim,
        cfg.depth,
        cfg.image_size,
        cfg.patch_size
    );
    // What the files say that nothing here heeds.
    for note in checkpoint.notes() {
        println!("note: {note}");
    }
    let pretrained = checkpoint.load(&LoadOptions::default())?;
    let model = pretrained.model()?;

    // Images as the model was trained on them: another crop or mean costs accuracy, and nothing would tell.
    let p = &pretrained.preprocess;
    let (height, width) = pretrained.cfg.image();
    let transform = EvalTransform {
        size: (height, width),
        crop_pct: p.crop_pct,
        squash: p.squash,
        floor_margin: p.floor_margin,
        interpolation: match p.filter {
            Filter::Bicubic => Interpolation::Bicubic,
            Filter::Bilinear => Interpolation::Bilinear,
            other => {
                return Err(format!("resizing by {} is not in this example", other.name()).into())
            }
        },
        normalize: Normalize {
            mean: p.mean[..].try_into()?,
            std: p.std[..].try_into()?,
        },
    };
    let mut pixels = vec![0f32; 3 * height * width];
    transform.apply(&datasets::decode(&std::fs::read(image)?)?, &mut pixels)?;
    let images = Tensor::from_vec(pixels, (1, 3, height, width), &Device::Cpu)?;

    let tokens = model.forward_features(&images)?;
    let features = model.pool(&tokens)?;
    println!("tokens {:?}, features {:?}", tokens.dims(), features.dims());
    if pretrained.cfg.num_classes > 0 {
        let logits = model.forward(&images)?;
        let chances = candle_nn::ops::softmax(&logits, D::Minus1)?.to_vec2::<f32>()?;
        let mut order: Vec<usize> = (0..pretrained.cfg.num_classes).collect();
        order.sort_by(|&a, &b| chances[0][b].total_cmp(&chances[0][a]));
        for class in order.into_iter().take(3) {
            let name = pretrained.labels.get(&class).map_or("", |name| name);
            println!("{:5.1} %  class {class} {name}", 100.0 * chances[0][class]);
        }
    }
    Ok(())
}
