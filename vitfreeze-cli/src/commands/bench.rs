//! `vitfreeze bench`: the training step, timed with more and more layers frozen.
mod op_times;

use std::process::ExitCode;

use anyhow::{bail, Result};
use candle_core::{DType, Tensor};
use candle_nn::VarMap;
use freezeout::{AdamW, Costs, FreezeOut, Optimizer, StepCost};
use localmim::{LocalMim, LocalMimConfig, Masking};
use serde::Serialize;
use vit::ops::profile::Profile;
use vit::ops::{Compute, Hold};
use vit::VitConfig;

use crate::architecture::{preset, stages};
use crate::console::{note, print, print_json};
use crate::costs;
use crate::machine::budget::Budget;
use crate::machine::device::{self, Dtype};
use crate::machine::workers::{self, Workers};
use crate::machine::Machine;
use crate::run::metrics::{median, timed_on};
use crate::settings::bounded;
use crate::train::check_batch;
use crate::usage::usage;

const EXAMPLES: &str = "\
Examples:
  vitfreeze bench                                        vit-small at 224 px, batch 16
  vitfreeze bench --model vit-base --steps 5 --frozen 0,12
  vitfreeze bench --frozen 0,12 --profile                the costliest ops
  vitfreeze bench --frozen all                           and what a whole schedule saves
  vitfreeze bench --nproc 2 --model vit-base             two workers, 8 images each
  vitfreeze bench --json > bench.json
  python3 benches/pytorch/compare.py --vitfreeze target/release/vitfreeze";

/// Flags of `vitfreeze bench`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, args_override_self = true, allow_negative_numbers = true)]
pub struct Args {
    /// vit-tiny, vit-small, vit-base, vit-large, vit-huge, swin-tiny, swin-small, swin-base or swin-large
    #[arg(long, default_value = "vit-small", value_name = "NAME")]
    model: String,
    /// Side of the image in pixels
    #[arg(long, default_value_t = 224, value_name = "PX")]
    image_size: usize,
    /// Side of a patch in pixels [default: 16, vit-huge 14, Swin 4]
    #[arg(long, value_name = "PX")]
    patch_size: Option<usize>,
    /// Images in a step, of all workers together
    #[arg(long, default_value_t = 16, value_name = "N")]
    batch_size: usize,
    /// Timed steps for each row, after one that warms up
    #[arg(long, default_value_t = 5, value_name = "N")]
    steps: usize,
    /// Which blocks are decoded: default, all, or BLOCK:SCALE,... with scales 8, 4, 2, 1, 0.5
    #[arg(long, default_value = "default", value_name = "LIST")]
    stages: String,
    /// Numbers of frozen layers, ascending, each once; or all
    #[arg(long, default_value = "0,3,5,10,12", value_name = "LIST")]
    frozen: String,
    /// Each step is shared among the workers
    #[command(flatten)]
    workers: workers::Flags,
    /// Threads of a worker, 0 = one per core, shared by the workers of a machine
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    device: String,
    /// Type of the operands of matrix products; f32 where the processor has no bf16 unit
    #[arg(long, value_enum, default_value = "f32", value_name = "NAME")]
    dtype: Dtype,
    /// Also show which ops take the time (on a GPU: which phases)
    #[arg(long)]
    profile: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Output<'a> {
    model: &'a str,
    image_size: usize,
    patch_size: usize,
    batch_size: usize,
    steps: usize,
    workers: usize,
    /// Of each worker.
    threads: usize,
    device: &'a str,
    dtype: Dtype,
    /// What multiplies bf16; none: f32 was measured.
    unit: Option<&'static str>,
    /// What the units of all workers' threads can do in registers alone: 1e9 multiplications and additions a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_gflops: Option<f64>,
    version: &'a str,
    rows: Vec<Row>,
    /// With every number of frozen layers measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    cubic_saving: Option<Saving>,
}

/// What the cubic schedule of [`costs::cubic_saving`] saves, parts of 1.
#[derive(Serialize)]
struct Saving {
    measured: f64,
    ideal: f64,
    /// By how much longer the first row's step took when it was measured again after the last one: the saving has it inside.
    drift: f64,
}

/// Medians over the steps, the first worker's.
#[derive(Serialize)]
struct Row {
    frozen: usize,
    images_per_second: f64,
    forward_s: f64,
    backward_s: f64,
    optimizer_s: f64,
    #[serde(flatten)]
    communication: Option<Communication>,
    peak_bytes: Option<u64>,
    graph_nodes: usize,
    /// The step's time as a part of the first row's, and what it would be if time followed the multiplications.
    relative_time: f64,
    ideal_time: f64,
    /// The step's multiplications a second as a part of the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    of_limit: Option<f64>,
    /// All ops, costliest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profile: Vec<op_times::Row>,
}

/// Of several workers.
#[derive(Serialize)]
struct Communication {
    /// Of each one's gradients in a step.
    reduced_bytes: usize,
    /// What the step spent on that beside the backward pass, waiting for slower workers included.
    communication_s: f64,
}

/// Part of the patches that is removed, as in pretraining.
const MASK_RATIO: f64 = 0.75;

/// Head of the table.
const COLUMNS: [&str; 9] = [
    "frozen",
    "images/s",
    "forward",
    "backward",
    "optimiser",
    "peak",
    "of first",
    "ideal",
    "of limit",
];

/// Runs it, together with the other workers that a launcher has started.
pub fn run(args: Args) -> Result<ExitCode> {
    workers::together(&args.workers, |workers| bench(&args, workers))
}

fn bench(args: &Args, workers: &Workers) -> Result<ExitCode> {
    let machine = workers.agree(Machine::open(&args.device, args.threads, workers))?;
    let machine = machine.connected()?;
    let output = measure(args, workers.agree(Bench::new(args, machine))?)?;
    if !workers.first() {
        return Ok(ExitCode::SUCCESS);
    }
    if args.json {
        print_json(&output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let shared = match output.workers {
        1 => String::new(),
        workers => format!(" shared by {workers} workers"),
    };
    print(format!(
        "{} {} px, patch {}, batch {}{shared}, {}, {} threads on {}: median of {} steps",
        output.model,
        output.image_size,
        output.patch_size,
        output.batch_size,
        output.dtype.describe(output.unit),
        output.threads,
        output.device,
        output.steps
    ))?;
    if let Some(limit) = output.limit_gflops {
        print(format!(
            "limit: {limit:.0} GFLOP/s, a loop in registers on all threads; 'of limit' compares the step's products with it"
        ))?;
    }
    let mut head = COLUMNS.map(|c| format!("{c:>10}")).concat();
    if output.workers > 1 {
        head += &format!("{:>12}{:>15}{:>10}", "reduced", "communication", "of step");
    }
    print(head)?;
    for row in &output.rows {
        let peak = match row.peak_bytes {
            Some(bytes) => format!("{:.2} GB", bytes as f64 / 1e9),
            None => "-".into(),
        };
        let of_limit = match row.of_limit {
            Some(part) => format!("{:.1} %", 100.0 * part),
            None => "-".into(),
        };
        let communication = row.communication.as_ref().map(|c| {
            let step = output.batch_size as f64 / row.images_per_second;
            format!(
                "{:>9.1} MB{:>13.3} s{:>8.1} %",
                c.reduced_bytes as f64 / 1e6,
                c.communication_s,
                100.0 * c.communication_s / step
            )
        });
        print(format!(
            "{:>10}{:>10.2}{:>8.3} s{:>8.3} s{:>8.3} s{peak:>10}{:>8.1} %{:>8.1} %{of_limit:>10}{}",
            row.frozen,
            row.images_per_second,
            row.forward_s,
            row.backward_s,
            row.optimizer_s,
            100.0 * row.relative_time,
            100.0 * row.ideal_time,
            communication.unwrap_or_default()
        ))?;
    }
    for row in output.rows.iter().filter(|row| !row.profile.is_empty()) {
        print(op_times::table(row.frozen, &row.profile))?;
    }
    if let Some(saving) = output.cubic_saving {
        print(format!(
            "\nA cubic 0.8 schedule (100 epochs, 10 of warm-up) saves {:.1} % by the steps measured, {:.1} % ideally\n\
            Measured again after them, the first row's step changed by {:+.1} %: the machine's drift, which is in the saving",
            100.0 * saving.measured,
            100.0 * saving.ideal,
            100.0 * saving.drift
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is measured.
struct Bench {
    cfg: LocalMimConfig,
    compute: Compute,
    /// Numbers of frozen layers.
    counts: Vec<usize>,
    machine: Machine,
    freeze: FreezeOut,
    images: Tensor,
    masking: Masking,
}

impl Bench {
    fn new(args: &Args, machine: Machine) -> Result<Self> {
        let workers = &machine.workers;
        let preset = preset(&args.model)?;
        let vit = VitConfig {
            image_size: args.image_size,
            patch_size: args.patch_size.unwrap_or(preset.patch_size),
            ..preset
        };
        let cfg = LocalMimConfig {
            stages: stages(&args.stages, &vit)?,
            ..LocalMimConfig::new(vit).map_err(usage)?
        };
        cfg.validate().map_err(usage)?;
        Masking::visible(cfg.units(), MASK_RATIO).map_err(usage)?;
        bounded(&[
            ("--steps", args.steps, 1_000_000),
            ("--batch-size", args.batch_size, 1_000_000),
            ("--image-size", args.image_size, 4096),
        ])?;
        check_batch(args.batch_size, args.image_size)?;
        if !args.batch_size.is_multiple_of(workers.size()) {
            return Err(usage(format!(
                "--batch-size {} cannot be shared evenly by {} workers",
                args.batch_size,
                workers.size()
            )));
        }
        let batch = args.batch_size / workers.size();
        let counts = frozen_layers(&args.frozen, vit.depth)?;
        let device = &machine.device;
        let compute = Compute {
            profile: match args.profile {
                true => Profile::start(),
                false => Profile::default(),
            },
            // As in training with one batch a step.
            hold: Hold::Frozen,
            ..args.dtype.compute(device)?
        };
        let least = counts.iter().copied().min().unwrap_or(0);
        let budget = Budget::pretraining(&cfg, MASK_RATIO, batch, least, compute.precision);
        budget.check_for(device, workers.local)?;
        let vars = VarMap::new();
        LocalMim::new(&cfg, vit::seeded(&vars, 0, DType::F32, device))?; // makes the variables
        let schedule = freezeout::Schedule::cubic(1.0, cfg.layers(), 1_000_000);
        let freeze = FreezeOut::new(&vars, schedule, |name| cfg.layer_of(name, false))?;

        let shape = (batch, 3, vit.image_size, vit.image_size);
        let mut rng = datasets::rng::rng(0, "bench", workers.rank() as u64, 0);
        let count = 3 * batch * vit.image_size * vit.image_size;
        let pixels: Vec<f32> = (0..count)
            .map(|_| datasets::rng::normal(&mut rng))
            .collect();
        let images = Tensor::from_vec(pixels, shape, device)?;
        let noise: Vec<f32> = (0..batch * cfg.units())
            .map(|_| datasets::rng::uniform(&mut rng))
            .collect();
        Ok(Self {
            masking: Masking::from_noise(&noise, cfg.units(), MASK_RATIO)?,
            cfg,
            compute,
            counts,
            machine,
            freeze,
            images,
        })
    }
}

fn measure(args: &Args, bench: Bench) -> Result<Output<'_>> {
    let Bench {
        cfg,
        compute,
        counts,
        machine,
        mut freeze,
        images,
        masking,
    } = bench;
    let (vit, device, workers) = (&cfg.vit, &machine.device, &machine.workers);
    let mut opt = Optimizer::new(AdamW::default());
    let ideal = costs::costs(&cfg, MASK_RATIO);
    let limit = limit(&compute, &machine)?;
    let profile = &compute.profile;

    let all = counts.iter().copied().eq(0..=vit.depth);
    let mut rows: Vec<Row> = Vec::new();
    let mut step = 0;
    // With all rows the first one again: a machine that drifts would be taken for a saving.
    for frozen in counts.iter().copied().chain(all.then_some(0)) {
        freeze.freeze_first(frozen);
        let model = LocalMim::new(&cfg, freeze.vars())?.with_compute(&compute);
        opt.forget_frozen(&freeze);
        // Before the step that warms up, which then takes the memory that this row needs.
        device::release_memory(device);
        let mut samples = Vec::new();
        let (mut graph_nodes, mut peak_known, mut reduced_bytes) = (0, false, 0);
        for i in 0..=args.steps {
            let (mut forward, mut backward, mut optimizer) = (0.0, 0.0, 0.0);
            if i == 1 {
                peak_known = device::reset_peak(device);
                profile.take();
            }
            // Regions around the wait for the device: inside it they would be the time of the launches.
            let loss = profile
                .timed("rest of forward", || {
                    timed_on(device, &mut forward, || model.loss(&images, &masking))
                })?
                .total;
            if !loss.to_scalar::<f32>()?.is_finite() {
                bail!("step {step}: the loss is not finite");
            }
            graph_nodes = loss.sorted_nodes().len();
            // As in training: gradients are on their way to the other workers meanwhile.
            let (grads, reduced) = profile.timed("rest of backward", || {
                let seen = vit::ops::backward_seen;
                let run = || freeze.backward_reduced(&loss, None, workers.comm(), seen);
                timed_on(device, &mut backward, run)
            })?;
            drop(loss);
            reduced_bytes = reduced.bytes;
            profile.timed("adamw", || {
                let run = || opt.step(&freeze, step, &grads);
                timed_on(device, &mut optimizer, run)
            })?;
            step += 1;
            if i > 0 {
                let computed = backward - reduced.seconds;
                let whole = forward + backward + optimizer;
                samples.push([forward, computed, optimizer, reduced.seconds, whole]);
            }
        }
        let middle = |k: usize| median(samples.iter().map(|s| s[k])).unwrap_or(f64::NAN);
        let images_per_second = args.batch_size as f64 / middle(4);
        let first_speed = rows
            .first()
            .map_or(images_per_second, |row| row.images_per_second);
        rows.push(Row {
            frozen,
            images_per_second,
            forward_s: middle(0),
            backward_s: middle(1),
            optimizer_s: middle(2),
            communication: (workers.size() > 1).then(|| Communication {
                reduced_bytes,
                communication_s: middle(3),
            }),
            peak_bytes: device::peak_bytes(device).filter(|_| peak_known),
            graph_nodes,
            relative_time: first_speed / images_per_second,
            ideal_time: ideal.step(frozen).compute / ideal.step(counts[0]).compute,
            of_limit: limit.map(|limit| ideal.step(frozen).compute * images_per_second / limit),
            profile: op_times::rows(&profile.take(), args.steps),
        });
        if !args.json {
            note(format!("{frozen} frozen: done"));
        }
    }
    let again = rows.pop_if(|_| all);
    Ok(Output {
        model: &args.model,
        image_size: vit.image_size,
        patch_size: vit.patch_size,
        batch_size: args.batch_size,
        steps: args.steps,
        workers: workers.size(),
        threads: machine.threads,
        device: &args.device,
        dtype: args.dtype,
        unit: compute.bf16_unit(),
        limit_gflops: limit.map(|limit| 2.0 * limit / 1e9),
        version: env!("CARGO_PKG_VERSION"),
        cubic_saving: match again {
            Some(again) => Some(saving(&cfg, &rows, &again, &ideal)?),
            None => None,
        },
        rows,
    })
}

/// Multiplications a second that no step of all workers together exceeds, if it is known: all of them measure at once.
fn limit(compute: &Compute, machine: &Machine) -> Result<Option<f64>> {
    let mine = match machine.device.is_cpu() {
        true => compute.limit(),
        false => None,
    };
    let mut sum = [mine.unwrap_or(f64::NAN)];
    machine.workers.comm().all_reduce_f64(&mut sum)?;
    Ok(Some(sum[0]).filter(|limit| limit.is_finite()))
}

/// `all`, or ascending numbers up to `depth`.
fn frozen_layers(list: &str, depth: usize) -> Result<Vec<usize>> {
    if list == "all" {
        return Ok((0..=depth).collect());
    }
    let numbers = list.split(',').map(|n| n.trim().parse());
    match numbers.collect::<Result<Vec<usize>, _>>() {
        Ok(numbers)
            if numbers.is_sorted_by(|a, b| a < b) && numbers.iter().all(|&n| n <= depth) =>
        {
            Ok(numbers)
        }
        _ => Err(usage(format!(
            "--frozen {list}: expected ascending numbers up to {depth}, each once, or all"
        ))),
    }
}

/// From a row for every number of frozen layers, and the first one measured again.
fn saving(cfg: &LocalMimConfig, rows: &[Row], again: &Row, ideal: &Costs) -> Result<Saving> {
    let cost = |row: &Row| StepCost {
        compute: row.relative_time,
        ..Default::default()
    };
    let mut steps: Vec<StepCost> = rows.iter().map(cost).collect();
    // All layers frozen: no step of the schedule.
    steps.extend(steps.last().copied());
    Ok(Saving {
        measured: costs::cubic_saving(cfg, &Costs::new(steps))?,
        ideal: costs::cubic_saving(cfg, ideal)?,
        drift: again.relative_time - 1.0,
    })
}
