//! The reference pretraining on ImageNet-1K as library code: LocalMIM on a ViT-B/16 under FreezeOut, with exact resume.
//!
//! DATA is anything that `datasets::open` knows: `shapes`, a folder of class folders, ILSVRC2012's tars, WebDataset, Parquet.
//! OUT gets checkpoint.safetensors after every epoch and encoder.safetensors at the end; the same command goes on where it
//! stopped. `--tiny`: a small model and few epochs. `vitfreeze pretrain` has progress, metrics, checks, ctrl-C besides.
//!
//!     cargo run --release -p vitfreeze-examples --example pretrain_imagenet -- shapes runs/tiny --tiny
//!     cargo run --release -p vitfreeze-examples --example pretrain_imagenet -- imagenet runs/vit-base
//!
//! On many processes: built with `--features mpi`, under `mpirun -np N --bind-to none`, OUT on a disk that all see.
use std::error::Error;
use std::path::Path;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use datasets::{rng, Loader, LoaderConfig, PretrainTransform};
use freezeout::{distributed::Communicator, *};
use localmim::{LocalMim, LocalMimConfig, Masking};
use vit::VitConfig;
use vitfreeze_examples::{args, check_loss, mark, marked, together};

const SEED: u64 = 0; // everything random follows from it: first weights, order, crops, masks
const MASK_RATIO: f64 = 0.75;

fn main() -> Result<(), Box<dyn Error>> {
    together(Duration::from_secs(600), train)
}

fn train(ranks: &dyn Communicator, threads: usize) -> Result<(), Box<dyn Error>> {
    let ([data, out], tiny) = args("pretrain_imagenet DATA OUT")?;
    let out = Path::new(&out);
    // The thesis' run (arXiv 2312.02194): 100 epochs, 2048 images a step in 32 batches.
    let (name, size, patch, batch_size, accum, epochs, warmup) = match tiny {
        false => ("vit-base", 224, 16, 64, 32, 100, 10),
        true => ("vit-tiny", 32, 8, 64, 4, 2, 0),
    };
    let device = Device::Cpu;
    let preset = VitConfig::preset(name).ok_or("no such model")?;
    let cfg = LocalMimConfig::new(VitConfig {
        image_size: size,
        patch_size: patch,
        ..preset
    })?;
    let loader = LoaderConfig {
        batch_size,
        seed: SEED,
        threads,
        rank: ranks.rank(),
        ranks: ranks.size(),
        ..LoaderConfig::default()
    };
    let transform = PretrainTransform::imagenet(size);
    let loader = Loader::new(datasets::open(&data, "train")?, transform, loader)?;
    let steps = Steps::new(loader.batches_per_epoch(), accum, epochs)?;

    let schedule = Schedule {
        warmup_steps: warmup * steps.per_epoch(),
        lr: 2e-4 * (batch_size * steps.largest() * ranks.size()) as f64 / 256.0,
        min_lr: 1e-6,
        layer_lr: LayerLr::Shared,
        ..Schedule::cubic(0.8, cfg.layers(), steps.total())
    };
    let vars = VarMap::new();
    let mut model = LocalMim::new(&cfg, vit::seeded(&vars, SEED, DType::F32, &device))?;
    let mut freeze = FreezeOut::new(&vars, schedule, |name| cfg.layer_of(name, false))?;
    let mut opt = Optimizer::new(AdamW::default());

    std::fs::create_dir_all(out)?;
    let file = out.join("checkpoint.safetensors");
    let mut first = 0;
    if file.exists() {
        let mut saved = candle_core::safetensors::load(&file, &device)?;
        first = marked(&mut saved, ranks)?;
        if freeze.advance(first)? {
            model = LocalMim::new(&cfg, freeze.vars())?;
        }
        let saved = saved.into_iter().collect();
        checkpoint::restore(saved, first, &mut freeze, &mut opt, None)?;
    }
    let mut batches = loader.stream(steps.epoch(first), steps.first_batch(first));
    for step in first..freeze.schedule().steps {
        if freeze.advance(step)? {
            model = LocalMim::new(&cfg, freeze.vars())?;
        }
        let (mut grads, mut mean, micro) = (Gradients::default(), [0.0], steps.batches(step));
        for _ in 0..micro {
            let batch = batches.next().ok_or("the loader ended early")??;
            let noise = rng::noise(SEED, "mask", &batch, cfg.vit.patches());
            let masking = Masking::from_noise(&noise, cfg.vit.patches(), MASK_RATIO)?;
            let images = Tensor::from_vec(batch.images, (batch_size, 3, size, size), &device)?;
            let loss = (model.loss(&images, &masking)?.total / micro as f64)?;
            mean[0] += f64::from(loss.to_scalar::<f32>()?) / ranks.size() as f64;
            grads.add(freeze.backward_by(&loss, vit::ops::backward)?)?;
        }
        grads.all_reduce(ranks)?; // a frozen layer has no gradient and sends nothing
        ranks.all_reduce_f64(&mut mean)?;
        check_loss(step, mean[0])?;
        opt.step(&freeze, step, &grads)?;
        let done = step + 1;
        if steps.ends_epoch(done) && ranks.rank() == 0 {
            let mut state = checkpoint::collect(&freeze, &opt, None)?;
            state.insert("step".into(), mark(done, ranks)?);
            vit::save_atomic(&file, &state, ("model", name.into()))?;
            let (epoch, loss, frozen) = (steps.epoch(done), mean[0], freeze.frozen());
            println!("epoch {epoch}/{epochs}: loss {loss:.4}, {frozen} layers frozen");
        }
    }
    if ranks.rank() == 0 {
        let file = out.join("encoder.safetensors");
        let encoder = cfg.encoder_tensors(&checkpoint::weights(&freeze))?;
        vit::save_encoder(&file, &cfg.vit, &encoder)?;
        println!("{}", file.display());
    }
    Ok(())
}
