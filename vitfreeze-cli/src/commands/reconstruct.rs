//! `vitfreeze reconstruct`: what a pretraining run makes of the patches that it does not see.
pub mod cells;
mod glyphs;
mod picture;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{anyhow, bail, Result};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use localmim::{LocalMim, LocalMimConfig, Masking};

use crate::commands::pretrain::config::Config;
use crate::console::{counted, note, print};
use crate::draw;
use crate::input::channels::RGB;
use crate::input::look::Look;
use crate::input::pretrained::eval_transform;
use crate::input::splits::open_split;
use crate::machine::device;
use crate::run::checkpoint::{Checkpoint, Header};
use crate::run::data::RunData;
use crate::run::folder::{checkpoint_path, quoted};
use crate::settings::{bounded, Given, Settings as _};
use crate::usage::usage;
use cells::{stage_name, Shown};
use picture::Row;

const EXAMPLES: &str = "\
Examples:
  vitfreeze reconstruct --checkpoint runs/pretrain-1 --out seen.png
  vitfreeze reconstruct --checkpoint runs/pretrain-1 --images 4 --seed 7 --out seen.svg
  vitfreeze reconstruct --checkpoint runs/pretrain-1 --all-stages --mask-ratio 0.5 --out seen.png

Each row is an image: whole, then what the encoder sees of it, then for each stage its target (histograms \
of oriented gradients) and its prediction. A line in a cell shows an orientation, along the edge; the \
longer the line, the more of it. Cells that the encoder saw are grey: they do not count in the error. \
Of a run with --target pixel both are pictures. Where the encoder saw the image, it is drawn as it is; \
elsewhere as predicted. Normalised cells get their own mean and deviation back.";

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
    Masking::visible(run.cfg.units(), ratio).map_err(usage)?;
    let checkpoint = args.checkpoint.to_string_lossy();
    let data = RunData::asked_or_of(args.data.as_deref(), None, None, &checkpoint)?;
    let size = run.cfg.vit.image_size;
    let source = open_split(&data.data, &args.split, data.samples(), size)?;
    note(source.describe());

    let (drawn, dropped) = run.stages(args.all_stages)?;
    for line in &dropped {
        note(format!("note: {line}"));
    }
    let transform = eval_transform(&run.config.preprocess()?, run.cfg.vit.image());
    let mut look = Look::new(source, args.seed);
    let mut rows = Vec::new();
    while rows.len() < args.images {
        let Some(shown) = Shown::next(&mut look, &run.cfg, &transform, (args.seed, ratio))? else {
            break;
        };
        rows.push(Row {
            caption: match look.class(shown.index) {
                class if class.is_empty() => vit::printable(&name_of(&look, shown.index)),
                class => class,
            },
            stages: shown.cells((&run.cfg, &run.model), &drawn, &Device::Cpu)?,
            image: shown.image,
            masking: shown.masking,
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
        let config = Config::of_checkpoint(&header.config, None, &Given::nothing())?;
        let cfg = config.model()?;
        if cfg.vit.in_chans != RGB {
            return Err(usage(format!(
                "vitfreeze reconstruct draws RGB images; this run's have {}",
                counted(cfg.vit.in_chans, "channel")
            )));
        }
        let tensors = checkpoint.tensors.into_iter().collect();
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let model = LocalMim::new(&cfg, weights).map_err(|e| {
            let why = e.to_string();
            // Without the trace that candle adds where RUST_BACKTRACE is set.
            let why = why.lines().next().unwrap_or_default();
            anyhow!("{} does not hold its model: {why}", path.display())
        })?;
        Ok(Self {
            header,
            config,
            cfg,
            model,
            frozen,
        })
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
            let layer = self.cfg.layer(stage);
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
                stage_name(&self.cfg, k),
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

    fn name(&self, path: &Path) -> String {
        let dir = match path.is_dir() {
            true => path,
            false => path.parent().unwrap_or(path),
        };
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        format!("{} ({})", vit::printable(&name), self.config.name())
    }

    fn when(&self) -> String {
        format!("after {}", counted(self.header.step, "step"))
    }
}
