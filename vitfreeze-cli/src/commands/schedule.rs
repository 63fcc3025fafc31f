//! `vitfreeze schedule`: what a freezing schedule will do, before anything is trained.
pub mod picture;
mod workers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use datasets::MAX_PIXELS;
use freezeout::{freezeout_speedup, Costs, Estimate, LayerCost, Schedule, Spacing};
use localmim::LocalMimConfig;

use crate::commands::pretrain::config::Config;
use crate::commands::pretrain::sizes::ImageSizes;
use crate::console::{counted, note, percent, print};
use crate::costs;
use crate::draw;
use crate::input::dataset;
use crate::settings::{Given, Settings as _};
use crate::train::Training;
use crate::usage::usage;

const EXAMPLES: &str = "\
Examples:
  vitfreeze schedule --model vit-base --epochs 100 --warmup-epochs 10
  vitfreeze schedule --config configs/vit-b16-imagenet.toml --layer-lr scaled --plot schedule.png
  vitfreeze schedule --model vit-large --freeze power:2 --t0 0.6 --plot schedule.svg
  vitfreeze schedule --model vit-base --accum 4 --workers 8 --bandwidth 10 --images-per-second 932

Takes all flags of vitfreeze pretrain. Images are counted, not read. Nothing is trained.";

/// ImageNet-1K's training images, where nothing else is known.
const IMAGENET: usize = 1_281_167;

/// Flags of `vitfreeze schedule`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, args_override_self = true, allow_negative_numbers = true)]
pub struct Args {
    /// Configuration file (TOML) of vitfreeze pretrain; flags override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Number of training images [default: those of --data, where it is on this machine; with --model alone
    /// ImageNet-1K's 1281167]
    #[arg(long, value_name = "N")]
    images: Option<usize>,
    /// Draw the learning rates and freezing times to FILE, .png or .svg
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    workers: workers::Flags,
    #[command(flatten)]
    flags: Given<Config>,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    args.workers.check()?;
    let mut flags = args.flags;
    // A model without data is asked about for its published use. Without both it is the demonstration's schedule.
    let published =
        args.config.is_none() && flags.has("model") && !flags.has("data") && !flags.has("samples");
    if published {
        flags.set("data", |c| c.training.data = Some("imagenet".into()));
        note("note: no --data or --config: ImageNet-1K assumed");
    }
    let config = Config::new(args.config.as_deref(), &flags)?;
    if let Some(policy) = &config.policy {
        return Err(usage(format!(
            "policy is {policy}: what it freezes is known only after the run; vitfreeze report shows it"
        )));
    }
    let (cfg, training) = (config.model()?, &config.training);
    let images = match args.images {
        Some(0) => return Err(usage("images is 0, it must be at least 1")),
        Some(images) => images,
        None if published => IMAGENET,
        None => count(training)?,
    };
    let workers = args.workers.count();
    let batches = images / (training.batch_size * workers);
    if batches == 0 {
        let times = match workers {
            1 => String::new(),
            _ => format!(" x {workers} workers"),
        };
        return Err(usage(format!(
            "batch-size {}{times} is larger than the {images} images; choose at most {}",
            training.batch_size,
            images / workers
        )));
    }
    let plan = training.plan(batches, workers)?;
    let schedule = config.schedule(&plan, cfg.layers())?;
    let epoch = |step: usize| step as f64 / plan.steps.per_epoch() as f64;
    if let Some(path) = &args.plot {
        draw::check(path)?;
    }
    let layers = costs::layers(&cfg, config.mask_ratio);
    let costs = config.costs(&plan.steps)?;
    let on_workers = args.workers.table(&config, &costs, &plan, &schedule)?;
    print(table(
        images,
        &config,
        &cfg,
        &schedule,
        (&layers, &costs),
        &epoch,
    )?)?;
    if let Some(text) = on_workers {
        print(text)?;
    }
    if let Some(path) = &args.plot {
        let title = format!(
            "{}, {}: freezing {} from t0 = {}, learning rates {}",
            config.name(),
            counted(training.epochs, "epoch"),
            config.freeze,
            config.t0,
            name_of(&config)?
        );
        let picture = picture::draw(&title, &schedule, &labels(&cfg), &epoch);
        draw::save(path, &picture)?;
        note(format!("drawn to {}", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// The training images of a dataset that lies here; else as many as ImageNet-1K has.
fn count(training: &Training) -> Result<usize> {
    let data = training.data();
    if data == "shapes" {
        return Ok(training.samples);
    }
    if data.starts_with("hf://") || !may_be_here(data) {
        note(format!(
            "note: {data} is not on this machine: ImageNet-1K's {IMAGENET} images assumed; --images N sets another number"
        ));
        return Ok(IMAGENET);
    }
    Ok(dataset::open(data, "train", MAX_PIXELS)?.len())
}

/// Whether there is something of this name, or it is a pattern of shards, which opening says more of.
fn may_be_here(data: &str) -> bool {
    data.contains('{') || Path::new(data).symlink_metadata().is_ok()
}

fn name_of(config: &Config) -> Result<String> {
    let name = serde_json::to_value(config.layer_lr)?;
    Ok(name.as_str().unwrap_or_default().to_owned())
}

/// What each layer is called.
pub fn labels(cfg: &LocalMimConfig) -> Vec<String> {
    let mut labels = vec!["patch_embed".to_owned()];
    for block in 0..cfg.vit.depth {
        let stages = cfg.stages_of(block + 1);
        let stages: String = stages.map(|k| format!(" + stage {k}")).collect();
        labels.push(format!("{}{stages}", cfg.vit.block_name(block)));
    }
    labels
}

fn table(
    images: usize,
    config: &Config,
    cfg: &LocalMimConfig,
    schedule: &Schedule,
    (layers, stretches): (&[LayerCost], &[(usize, Costs)]),
    epoch: &dyn Fn(usize) -> f64,
) -> Result<String> {
    let (training, sizes) = (&config.training, config.sizes()?);
    let last = sizes.last();
    // An unfrozen step at the size that the images have at the end.
    let whole = costs::of_step(stretches, schedule.steps, 0);
    let mut out = format!(
        "{} {sizes} px, {}: {} of {}, {} of warm-up, learning rate {:.2e}\n\n",
        config.name(),
        counted(images, "image"),
        counted(training.epochs, "epoch"),
        counted(schedule.steps / training.epochs, "step"),
        training.warmup_epochs,
        schedule.lr
    );
    let changes = schedule.changes();
    let labels = labels(cfg);
    let wide = labels.iter().map(String::len).max().unwrap_or(0).max(20);
    out += &format!(
        "layer  {:<wide$}  freezes at epoch  first lr  share of compute  step then\n",
        "what"
    );
    for (layer, label) in labels.iter().enumerate() {
        let cost = &layers[layer];
        let not_needed = if layer == 0 { cost.entry } else { 0.0 };
        let share = (3.0 * (cost.forward + cost.branch) - not_needed) / whole;
        let freezes = schedule.freeze_step(layer);
        let starts = changes.iter().map(|c| c.step.max(schedule.warmup_steps));
        let first_step = std::iter::once(schedule.warmup_steps)
            .chain(starts)
            .find(|&step| !schedule.is_frozen(step, layer));
        let first = first_step.map_or(0.0, |step| schedule.lr(step, Some(layer)));
        let then = freezes.map_or(String::new(), |step| {
            let cost = costs::of_step(stretches, step, schedule.frozen(step));
            format!("{:>7.1} %", 100.0 * cost / whole)
        });
        let freezes = freezes.map_or("never".to_owned(), |step| format!("{:.1}", epoch(step)));
        let row = format!(
            "{layer:>5}  {label:<wide$}  {freezes:>16}  {first:>8.2e}  {:>14.1} %  {then}",
            100.0 * share
        );
        out += row.trim_end();
        out.push('\n');
    }
    out.push('\n');
    if changes
        .windows(2)
        .any(|pair| pair[0].frozen > pair[1].frozen)
    {
        for change in &changes {
            let at = epoch(change.step);
            out += &format!(
                "from epoch {at:.1} on {} of {} layers are frozen\n",
                change.frozen, schedule.layers
            );
        }
        out.push('\n');
    }
    if sizes.grow() {
        out += &sizes_table(&sizes, schedule, stretches, whole, epoch);
    }
    let of_run: Vec<(usize, &Costs)> = stretches.iter().map(|(step, c)| (*step, c)).collect();
    if let Ok(estimate) = Estimate::of_stretches(schedule, &of_run) {
        let same = if sizes.grow() {
            " with the same images"
        } else {
            ""
        };
        out += &format!("Against training every layer to the end{same} this {estimate}\n");
        out += "(counted in multiplications; the time of forward pass and data loading alone does not shrink).\n";
        if sizes.grow() {
            let part = costs::unfrozen(stretches, schedule.steps) / (schedule.steps as f64 * whole);
            out += &format!(
                "Against {last} px from the beginning growing images save {} of compute, with what freezes {}.\n",
                percent(1.0 - part),
                percent(1.0 - part * (1.0 - estimate.compute))
            );
        }
    }
    // It takes all steps of a layer for as expensive.
    if !matches!(schedule.spacing, Spacing::At(_)) && !sizes.grow() {
        let forward: Vec<f64> = layers
            .iter()
            .map(|layer| layer.forward + layer.branch)
            .collect();
        out += &format!(
            "FreezeOut's own estimator, which assumes that the backward pass costs as much as the forward pass: {}.\n",
            percent(freezeout_speedup(schedule, &forward))
        );
    }
    if config.train_cls_token {
        out += "With train-cls-token the frozen blocks still run their backward pass: only decoders and optimiser steps are saved.\n";
    }
    Ok(out)
}

/// How long each size of the images lasts, and what its steps cost.
fn sizes_table(
    sizes: &ImageSizes,
    schedule: &Schedule,
    stretches: &[(usize, Costs)],
    whole: f64,
    epoch: &dyn Fn(usize) -> f64,
) -> String {
    let mut out = "images  from epoch   steps  unfrozen step\n".to_owned();
    let ends = stretches.iter().skip(1).map(|(step, _)| *step);
    let ends = ends.chain([schedule.steps]);
    for ((size, (start, costs)), end) in sizes.all().zip(stretches).zip(ends) {
        out += &format!(
            "{:>6}  {:>10.1}  {:>6}  {:>11.1} %\n",
            format!("{size} px"),
            epoch(*start),
            end - start,
            100.0 * costs.step(0).compute / whole
        );
    }
    out + &format!(
        "(shares and steps are parts of an unfrozen step at {} px)\n\n",
        sizes.last()
    )
}
