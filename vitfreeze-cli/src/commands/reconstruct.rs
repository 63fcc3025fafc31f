//! `vitfreeze reconstruct`: what a pretraining run makes of the patches that it does not see.
mod glyphs;
mod picture;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use datasets::rng::{rng, uniform};
use datasets::{EvalTransform, Transform as _};
use localmim::{hog, LocalMim, LocalMimConfig, Masking};
use vit::ops::Compute;
use vit::Preprocess;

use crate::commands::pretrain::config::Config;
use crate::console::{counted, note, print};
use crate::draw;
use crate::input::look::{self, Look};
use crate::input::pretrained::eval_transform;
use crate::input::splits::open_split;
use crate::machine::device;
use crate::run::checkpoint::{Checkpoint, Header};
use crate::run::data::RunData;
use crate::run::folder::{checkpoint_path, quoted};
use crate::settings::{bounded, Given, Settings as _};
use crate::usage::usage;
use picture::{Cells, Row, StageCells};

const EXAMPLES: &str = "\
Examples:
  vitfreeze reconstruct --checkpoint runs/pretrain-1 --out seen.png
  vitfreeze reconstruct --checkpoint runs/pretrain-1 --data imagenet --split val --images 4 --seed 7 --out seen.svg
  vitfreeze reconstruct --checkpoint runs/pretrain-1 --all-stages --mask-ratio 0.5 --out seen.png

A row is an image: whole; what the encoder sees of it; then for each stage its target (histograms of
oriented gradients) and its prediction. A line in a cell stands for an orientation, as an edge runs;
the longer, the more of it. Cells that the encoder saw are grey: they do not count in the error.";

/// Flags of `vitfreeze reconstruct`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of a run of 'vitfreeze pretrain', or its checkpoint.safetensors
    #[arg(long, value_name = "RUN")]
    checkpoint: PathBuf,
    /// Dataset of any kind; see 'vitfreeze data --help' [default: that of the run]
    #[arg(long, value_name = "SRC")]
    data: Option<String>,
    /// Which split, where there are several
    #[arg(long, value_name = "NAME", default_value = "train")]
    split: String,
    /// Picture to write (.png or .svg)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Images
    #[arg(long, value_name = "N", default_value_t = 6)]
    images: usize,
    /// Which images and which patches: both are drawn from it
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Part of the patches that is hidden [default: the run's]
    #[arg(long, value_name = "X")]
    mask_ratio: Option<f64>,
    /// Draw the stages that were dropped during the run as well, as they were then
    #[arg(long)]
    all_stages: bool,
    /// Threads, 0 = one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    draw::check(&args.out)?;
    bounded(&[("--images", args.images, 64)])?;
    device::set_threads(args.threads)?;
    let run = Run::load(&args.checkpoint)?;
    let ratio = args.mask_ratio.unwrap_or(run.config.mask_ratio);
    let patches = run.cfg.vit.patches();
    Masking::visible(patches, ratio).map_err(usage)?;
    let checkpoint = args.checkpoint.to_string_lossy();
    let data = RunData::asked_or_of(args.data.as_deref(), None, None, &checkpoint)?;
    let size = run.cfg.vit.image_size;
    let source = open_split(&data.data, &args.split, data.samples(), size)?;
    note(source.describe());

    let (drawn, dropped) = run.stages(args.all_stages)?;
    for line in &dropped {
        note(format!("note: {line}"));
    }
    let transform = run.transform();
    let mut look = Look::new(source, args.seed);
    let mut rows = Vec::new();
    while rows.len() < args.images {
        let Some((index, image)) = look.next_image()? else {
            break;
        };
        let input = look.input(&transform, (index, &image), 0)?;
        let mut rng = rng(args.seed, "mask", 0, index as u64);
        let noise: Vec<f32> = (0..patches).map(|_| uniform(&mut rng)).collect();
        let masking = Masking::from_noise(&noise, patches, ratio)?;
        rows.push(Row {
            caption: match look.class(index) {
                class if class.is_empty() => vit::printable(&name_of(&look, index)),
                class => class,
            },
            image: look::pixels(&input, transform.size(), transform.normalize()),
            stages: run.cells(&input, &masking, &drawn)?,
            masking,
        });
    }
    if rows.is_empty() {
        bail!("there is not one image");
    }
    let about = picture::About {
        run: &run.name(&args.checkpoint),
        when: &run.when(),
        ratio,
        side: run.cfg.side(),
        bins: run.cfg.hog_bins,
        dropped: &dropped,
    };
    draw::save(&args.out, &picture::draw(&about, &rows))?;
    for (k, stage) in rows[0].stages.iter().enumerate() {
        let errors = rows.iter().map(|row| row.stages[k].error);
        let mean = errors.sum::<f64>() / rows.len() as f64;
        print(format!("{}: mean error {mean:.4}", stage.name))?;
    }
    print(quoted(&args.out))?;
    Ok(ExitCode::SUCCESS)
}

/// The file alone, where folders have no classes.
fn name_of(look: &Look, index: usize) -> String {
    let name = look.name(index);
    let file = Path::new(&name).file_name();
    file.map_or(name.clone(), |file| file.to_string_lossy().into_owned())
}

/// A run of pretraining, as its last checkpoint has it.
struct Run {
    header: Header<Config>,
    config: Config,
    cfg: LocalMimConfig,
    model: LocalMim,
    /// Layers that a policy had frozen, where one decided.
    frozen: Option<usize>,
}

impl Run {
    fn load(path: &Path) -> Result<Self> {
        let path = match path.is_dir() {
            true => checkpoint_path(path),
            false => path.to_owned(),
        };
        if !path.is_file() {
            return Err(usage(format!(
                "{}: there is no such file; --checkpoint takes the folder of a run of vitfreeze pretrain",
                path.display()
            )));
        }
        let checkpoint = Checkpoint::<Config>::load(&path)?;
        let frozen = checkpoint.frozen();
        let header = checkpoint.header;
        let config = Config::of_checkpoint(&header.config, &Given::nothing())?;
        let cfg = config.model()?;
        let tensors = checkpoint.tensors.into_iter().collect();
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let model = LocalMim::new(&cfg, weights)
            .with_context(|| format!("{} does not hold its model", path.display()))?;
        Ok(Self {
            header,
            config,
            cfg,
            model,
            frozen,
        })
    }

    /// Images as the run's encoder is judged on them: its size, the usual crop, the normalisation of its training.
    fn transform(&self) -> EvalTransform {
        let size = self.cfg.vit.image();
        eval_transform(&Preprocess::usual(size), size)
    }

    /// The stages to draw, and a line about each that is dropped at this step.
    fn stages(&self, all: bool) -> Result<(Vec<usize>, Vec<String>)> {
        let Header { step, workers, .. } = self.header;
        let training = &self.config.training;
        let batches = self.header.data.images / (training.batch_size * workers).max(1);
        let plan = training.plan(batches.max(1), workers)?;
        let schedule = self.config.schedule(&plan, self.cfg.layers())?;
        // What was trained in the last step that was done.
        let frozen = schedule.frozen(step.saturating_sub(1));
        let frozen = self.frozen.unwrap_or(frozen);
        let (mut drawn, mut dropped) = (Vec::new(), Vec::new());
        for (k, stage) in self.cfg.stages.iter().enumerate() {
            let layer = stage.block + 1;
            if layer >= frozen {
                drawn.push(k);
                continue;
            }
            let since = match (self.frozen, schedule.freeze_step(layer)) {
                (Some(_), _) => "by the run's policy".to_owned(),
                (None, step) => {
                    let epoch = step.unwrap_or(0) as f64 / plan.steps.per_epoch() as f64;
                    format!("at epoch {epoch:.1} of the run")
                }
            };
            dropped.push(format!(
                "{} was dropped {since}{}",
                self.stage_name(k),
                match all {
                    true => "; drawn as it was then",
                    false => "; --all-stages draws it",
                }
            ));
        }
        match all {
            true => Ok(((0..self.cfg.stages.len()).collect(), dropped)),
            false => Ok((drawn, dropped)),
        }
    }

    fn stage_name(&self, k: usize) -> String {
        format!("stage {k}, block {}", self.cfg.stages[k].block)
    }

    /// Targets, predictions and errors of one image.
    fn cells(&self, input: &[f32], masking: &Masking, drawn: &[usize]) -> Result<Vec<StageCells>> {
        let size = self.cfg.vit.image_size;
        let image = Tensor::from_slice(input, (1, 3, size, size), &Device::Cpu)?;
        let stage = |&k: &usize| self.cfg.stages[k];
        let pools: Vec<usize> = drawn.iter().map(|k| self.cfg.pool(&stage(k))).collect();
        let targets = hog(
            &image,
            self.cfg.hog_bins,
            self.cfg.finest_pool(),
            &pools,
            &Compute::default(),
        )?;
        let predictions = self.model.predict(&image, masking)?;
        let one = |(k, target): (&usize, Tensor)| {
            let stage = stage(k);
            let values = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
            let cells = StageCells {
                name: self.stage_name(*k),
                target: Cells::new(self.cfg.grid(&stage), values(&target)?),
                prediction: Cells::new(self.cfg.grid(&stage), values(&predictions[*k].pred)?),
                hidden: masking.on_grid(self.cfg.side(), stage.scale),
                error: 0.0,
            };
            Ok::<_, anyhow::Error>(cells.with_error())
        };
        drawn.iter().zip(targets).map(one).collect()
    }

    fn name(&self, path: &Path) -> String {
        let dir = match path.is_dir() {
            true => path,
            false => path.parent().unwrap_or(path),
        };
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        format!("{} ({})", vit::printable(&name), self.config.model)
    }

    fn when(&self) -> String {
        format!("after {}", counted(self.header.step, "step"))
    }
}
