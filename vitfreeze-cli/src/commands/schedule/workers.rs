//! `vitfreeze schedule --workers`: how long steps take on many workers, and what the schedule saves there.
use anyhow::Result;
use freezeout::{Cluster, Costs, Estimate, Schedule};
use localmim::LocalMimConfig;

use crate::architecture::preset;
use crate::commands::pretrain::config::Config;
use crate::console::{counted, duration, note, percent};
use crate::costs;
use crate::run::work::Work;
use crate::train::Plan;
use crate::usage::usage;

/// Flags of many workers.
#[derive(clap::Args)]
pub struct Flags {
    /// Predict the wall clock of N workers, each with a batch of --batch-size
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    workers: Option<u32>,
    /// What each worker's link carries in each direction, in Gbit/s; for --workers
    #[arg(long, value_name = "GBIT")]
    bandwidth: Option<f64>,
    /// What one worker computes with nothing frozen, as 'vitfreeze bench' measures it; for --workers [default: an H100's in
    /// f32, 932 images/s with vit-base at 224 px, other models by their multiplications]
    #[arg(long, value_name = "X")]
    images_per_second: Option<f64>,
}

/// Images/s of an H100 with vit-base at 224 px in f32 (docs/gpu.md).
const H100_VIT_BASE: f64 = 932.0;

impl Flags {
    /// How many there are to be.
    pub fn count(&self) -> usize {
        self.workers.map_or(1, |count| count as usize)
    }

    /// Refuses what does not go together.
    pub fn check(&self) -> Result<()> {
        let numbers = [
            ("bandwidth", self.bandwidth),
            ("images-per-second", self.images_per_second),
        ];
        for (name, value) in numbers {
            let Some(value) = value else { continue };
            if self.workers.is_none() {
                return Err(usage(format!(
                    "--{name} is for many workers: give --workers N"
                )));
            }
            // NaN is in no range.
            if !(0.01..=1e9).contains(&value) {
                return Err(usage(format!(
                    "{name} is {value}, it must be 0.01 to 1000000000"
                )));
            }
        }
        match self.workers {
            Some(workers @ 2..) if self.bandwidth.is_none() => Err(usage(format!(
                "--workers {workers} needs --bandwidth GBIT, what each worker's link carries in Gbit/s"
            ))),
            _ => Ok(()),
        }
    }

    /// What is to be said about so many workers, if they were asked for.
    pub fn table(
        &self,
        config: &Config,
        costs: &[(usize, Costs)],
        plan: &Plan,
        schedule: &Schedule,
    ) -> Result<Option<String>> {
        let Some(workers) = self.workers else {
            return Ok(None);
        };
        // What is given is the speed at the size that the images have at the end.
        let Some((_, at_end)) = costs.last() else {
            return Ok(None);
        };
        let speed = match self.images_per_second {
            Some(speed) => speed,
            None => h100(at_end)?,
        };
        let batch = config.training.batch_size;
        let second = batch as f64 / speed / at_end.step(0).compute;
        let in_seconds =
            |(step, costs): &(usize, Costs)| (*step, costs.clone().scaled(second, 4.0));
        let all: Vec<(usize, Costs)> = costs.iter().map(in_seconds).collect();
        let stretches: Vec<(usize, &Costs)> = all.iter().map(|(step, c)| (*step, c)).collect();
        let costs = &at_end.clone().scaled(second, 4.0);
        let sizes = config.sizes()?;
        let cluster = Cluster {
            micro_steps: plan.steps.largest(),
            ..Cluster::new(workers as usize, self.bandwidth.unwrap_or(f64::INFINITY))
        };
        let last = schedule.frozen(schedule.steps - 1);
        let mut out = format!(
            "{}{}: steps of {}, {} images/s of one worker with nothing frozen\n",
            counted(cluster.workers, "worker"),
            self.bandwidth
                .map_or(String::new(), |gbit| format!(", link of {gbit} Gbit/s")),
            counted(plan.images, "image"),
            (100.0 * speed).round() / 100.0
        );
        let bytes = [0, last].map(|frozen| cluster.step(costs, frozen).map(|step| step.bytes));
        let [first_bytes, last_bytes] = bytes;
        out += &format!(
            "gradients that each reduces: {} with nothing frozen, {} at the end ({last} frozen)\n\n",
            megabytes(first_bytes?),
            megabytes(last_bytes?)
        );
        let columns = [
            Cluster {
                overlap: false,
                ..cluster
            },
            cluster,
        ];
        let mut row = |name: &str, cell: &dyn Fn(&Cluster) -> Result<String>| -> Result<()> {
            let [after, meanwhile] = &columns;
            out += &format!("{name:<42}{:>16}{:>18}\n", cell(after)?, cell(meanwhile)?);
            Ok(())
        };
        let seconds = |cluster: &Cluster, costs: &Costs, frozen: usize| -> Result<String> {
            let seconds = cluster.step(costs, frozen)?.seconds();
            Ok(format!("{seconds:.3} s"))
        };
        let on = |cluster: &Cluster| Estimate::of_stretches_on(schedule, &stretches, cluster);
        let saved = |cluster: &Cluster| -> Result<String> { Ok(percent(on(cluster)?.time)) };
        row("gradients go", &|cluster| {
            let when = match cluster.overlap {
                true => "during backward",
                false => "after backward",
            };
            Ok(when.to_owned())
        })?;
        for (size, (_, costs)) in sizes.all().zip(&all) {
            let at = match sizes.grow() {
                true => format!(" at {size} px"),
                false => String::new(),
            };
            let name = format!("step{at} with nothing frozen");
            row(&name, &|c| seconds(c, costs, 0))?;
        }
        row("step at the end", &|c| seconds(c, costs, last))?;
        row("whole run", &|cluster| {
            let mut unfrozen = Vec::new();
            for (step, costs) in &all {
                unfrozen.push((*step, cluster.step(costs, 0)?.seconds()));
            }
            let unfrozen = Work::by_step(unfrozen).of_first(schedule.steps);
            Ok(duration(unfrozen * (1.0 - on(cluster)?.time)))
        })?;
        row("saved of compute", &|c| Ok(percent(on(c)?.compute)))?;
        row("saved of wall clock", &saved)?;
        row("saved if frozen layers were reduced too", &|c| {
            saved(&Cluster {
                frozen_sent: true,
                ..*c
            })
        })?;
        out += "(a ring of workers that never wait for data or for the slowest; latency is not counted)";
        Ok(Some(out))
    }
}

/// What the card would compute, if its time followed the multiplications.
fn h100(costs: &Costs) -> Result<f64> {
    let base = LocalMimConfig::new(preset("vit-base")?)?;
    let base = costs::costs(&base, 0.75).step(0).compute;
    note("note: no --images-per-second: an H100 in f32 assumed; 'vitfreeze bench' measures yours");
    Ok(H100_VIT_BASE * base / costs.step(0).compute)
}

fn megabytes(bytes: f64) -> String {
    format!("{:.1} MB", bytes / 1e6)
}
