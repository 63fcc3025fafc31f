//! The reference fine-tuning on ImageNet-1K as library code: MAE's recipe on a pretrained ViT-B/16, with exact resume.
//!
//! ENCODER is any checkpoint that `vit::Checkpoint::open` knows, DATA anything that `datasets::open` knows. OUT gets
//! checkpoint.safetensors after every epoch and classifier.safetensors at the end; the same command goes on where it stopped.
//!
//!     cargo run --release -p vitfreeze-examples --example finetune_imagenet -- ENCODER imagenet runs/finetuned
//!     cargo run --release -p vitfreeze-examples --example finetune_imagenet -- ENCODER shapes runs/tiny --tiny
//!
//! On many processes: built with `--features mpi`, under `mpirun -np N --bind-to none`, OUT on a disk that all see.
use std::error::Error;
use std::path::Path;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use datasets::{rng, FinetuneTransform, Loader, LoaderConfig, Mixup};
use freezeout::{distributed::Communicator, *};
use vit::{Checkpoint, Drops, LoadOptions, Pool, Vit};
use vitfreeze_examples::{args, check_loss, mark, marked, together, top1};

const SEED: u64 = 0; // everything random follows from it: the head, order, augmentation, drop path
const CPU: Device = Device::Cpu;

fn main() -> Result<(), Box<dyn Error>> {
    together(Duration::from_secs(600), train)
}

fn train(ranks: &dyn Communicator, threads: usize) -> Result<(), Box<dyn Error>> {
    let ([origin, data, out], tiny) = args("finetune_imagenet ENCODER DATA OUT")?;
    // From a checkpoint of 100 epochs: 1024 images a step in 32 batches.
    let (size, batch, accum, epochs, warmup) = match tiny {
        false => (224, 32, 32, 100, 20),
        true => (32, 32, 4, 1, 0),
    };
    let val = datasets::open(&data, "val")?;
    let classes = val.classes().len();
    let config = LoaderConfig {
        batch_size: batch,
        seed: SEED,
        threads,
        rank: ranks.rank(),
        ranks: ranks.size(),
        ..LoaderConfig::default()
    };
    let transform = FinetuneTransform::imagenet(size);
    let loader = Loader::new(datasets::open(&data, "train")?, transform, config)?;
    let steps = Steps::new(loader.batches_per_epoch(), accum, epochs)?;
    let mut encoder = Checkpoint::open(&origin)?.load(&LoadOptions::default())?;
    (encoder.cfg.pool, encoder.cfg.drop_path_rate) = (Pool::Avg, 0.1);
    let pretrained = encoder.with_new_head(classes, true, |_, count| {
        let mut rng = rng::rng(SEED, "head", 0, 0);
        (0..count).map(|_| 2e-5 * rng::normal(&mut rng)).collect()
    })?;
    let (cfg, vars) = (pretrained.cfg, pretrained.vars()?);
    let schedule = Schedule {
        warmup_steps: warmup * steps.per_epoch(),
        lr: 1e-3 * (batch * steps.largest() * ranks.size()) as f64 / 256.0,
        min_lr: 1e-6,
        spacing: Spacing::None, // or cubic: then the model is built anew where layers freeze, as in pretrain_imagenet
        ..Schedule::cubic(1.0, cfg.depth + 1, steps.total())
    };
    let mut freeze = FreezeOut::new(&vars, schedule, vit::layer_of)?;
    let adamw = AdamW {
        beta2: 0.999,
        ..AdamW::default()
    };
    let mut opt = Optimizer::new(adamw).groups(layer_decay(0.75, cfg.depth + 1));
    let mixup = Mixup::imagenet(classes);
    let out = Path::new(&out);
    std::fs::create_dir_all(out)?;
    let file = out.join("checkpoint.safetensors");
    let mut first = 0;
    if file.exists() {
        let mut saved = candle_core::safetensors::load(&file, &CPU)?;
        first = marked(&mut saved, ranks)?;
        let saved = saved.into_iter().collect();
        checkpoint::restore(saved, first, &mut freeze, &mut opt, None)?;
    }
    let model = Vit::new(&cfg, freeze.vars())?;
    let mut batches = loader.stream(steps.epoch(first), steps.first_batch(first));
    for step in first..freeze.schedule().steps {
        let (mut grads, mut mean, micro) = (Gradients::default(), [0.0], steps.batches(step));
        for _ in 0..micro {
            let mut part = batches.next().ok_or("the loader ended early")??;
            let targets = mixup.apply(&mut part, (size, size), SEED)?;
            let targets = Tensor::from_vec(targets, (batch, classes), &CPU)?;
            let drops = rng::keys(SEED, "drop", &part);
            let images = Tensor::from_vec(part.images, (batch, 3, size, size), &CPU)?;
            let logits = model.forward_train(&images, Drops(&drops))?;
            let loss = (vit::soft_target_cross_entropy(&logits, &targets)? / micro as f64)?;
            mean[0] += f64::from(loss.to_scalar::<f32>()?) / ranks.size() as f64;
            grads.add(freeze.backward_by(&loss, vit::ops::backward)?)?;
        }
        grads.all_reduce(ranks)?;
        ranks.all_reduce_f64(&mut mean)?;
        check_loss(step, mean[0])?;
        opt.step(&freeze, step, &grads)?;
        if steps.ends_epoch(step + 1) {
            let mut state = checkpoint::collect(&freeze, &opt, None)?;
            state.insert("step".into(), mark(step + 1, ranks)?);
            let weights = checkpoint::weights(&freeze).into_iter().collect();
            let plain = Vit::new(&cfg, VarBuilder::from_tensors(weights, DType::F32, &CPU))?;
            let top1 = top1(&plain, &val, size, threads, ranks)?;
            if ranks.rank() == 0 {
                vit::save_atomic(&file, &state, ("kind", "finetune".into()))?;
                let (epoch, loss) = (steps.epoch(step) + 1, mean[0]);
                println!("epoch {epoch}/{epochs}: loss {loss:.4}, top-1 {top1:.2} %");
            }
        }
    }
    if ranks.rank() == 0 {
        let mut classifier = pretrained;
        classifier.tensors = checkpoint::weights(&freeze);
        classifier.save_file(&out.join("classifier.safetensors"))?;
    }
    Ok(())
}
