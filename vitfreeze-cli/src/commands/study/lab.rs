//! What a study consists of: its runs in their order, how long they take, which are done.
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{anyhow, Context, Result};
use freezeout::Steps;
use serde_json::Value;

use super::plan::{at_size, fingerprint, pace_key, shortened, Derived, Judge, Plan};
use crate::commands::pretrain::{self, config::Config};
use crate::console::{counted, note};
use crate::input::files;
use crate::run::checkpoint::fnv;
use crate::run::metrics::Row;
use crate::run::result::RunResult;
use crate::run::work::Work;
use crate::settings::{Given, Settings as _};
use crate::train::Pace;
use crate::usage::usage;

/// What tells that a run is done: the last file in its folder.
pub const DONE: &str = "study.json";

/// A variant, or a baseline that follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arm {
    pub variant: usize,
    pub derived: Option<Derived>,
}

/// A run to be done.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub arm: usize,
    pub seed: u64,
    /// Pretraining, or what judges it: one of the plan's.
    pub after: Option<usize>,
}

/// A pretraining.
pub struct Wanted {
    pub config: Config,
    /// Steps after which it ends, where that is before its schedule does.
    pub stop: Option<usize>,
    pub steps: usize,
    /// The steps' seconds as measured at the start; `None` of a policy that has not run yet.
    pub seconds: Option<f64>,
}

impl Wanted {
    fn hash(&self) -> Result<u64> {
        let stop = self.stop.map_or(0, |n| n as u64);
        Ok(fnv(fingerprint(&self.config)?, &stop.to_le_bytes()))
    }
}

/// A study at work.
pub struct Lab {
    pub plan: Plan,
    pub dir: PathBuf,
    /// All of them, in the order in which each seed has them.
    pub arms: Vec<Arm>,
    paces: BTreeMap<String, Pace>,
    /// What failed in this session, and why.
    pub failed: BTreeMap<(usize, u64, Option<usize>), String>,
}

impl Lab {
    /// Measures steps whose time is not known yet.
    pub fn open(plan: Plan, dir: &Path) -> Result<Self> {
        let mut arms: Vec<Arm> = Vec::new();
        let own = |adaptive: bool| {
            let variants = plan.variants.iter().enumerate();
            let variants = variants.filter(move |(_, v)| v.adaptive() == adaptive);
            variants.map(|(variant, _)| Arm {
                variant,
                derived: None,
            })
        };
        // Policies first: what is compared with them at equal time follows from what they froze. The runs that follow from a
        // variant come last, for they are of no use alone.
        arms.extend(own(true).chain(own(false)));
        for (variant, v) in plan.variants.iter().enumerate() {
            arms.extend(v.baselines.iter().map(|&derived| Arm {
                variant,
                derived: Some(derived),
            }));
        }
        let mut lab = Self {
            arms,
            dir: dir.to_owned(),
            paces: BTreeMap::new(),
            failed: BTreeMap::new(),
            plan,
        };
        lab.measure()?;
        Ok(lab)
    }

    /// All steps that may occur: those of variants that differ in nothing that takes time are the same ones.
    fn measure(&mut self) -> Result<()> {
        let path = self.dir.join("steps.json");
        if path.is_file() {
            let text = files::text(&path)?;
            self.paces = serde_json::from_str(&text)
                .with_context(|| format!("{} is damaged; remove it", path.display()))?;
        }
        let mut counts: BTreeMap<String, (BTreeSet<usize>, Config)> = BTreeMap::new();
        for variant in &self.plan.variants {
            for (size, frozen) in variant.frozen_counts() {
                let config = at_size(&variant.config(self.plan.seeds[0]), size);
                let entry = counts.entry(pace_key(&config)?);
                let (counts, _) = entry.or_insert((BTreeSet::new(), config));
                counts.extend(frozen);
            }
        }
        for (key, (counts, config)) in counts {
            let known = self.paces.remove(&key);
            let is_known = |n: usize| known.as_ref().is_some_and(|pace| pace.step(n).is_some());
            // Beside those that are new one that is known, by which their times are held against the others'.
            let (old, new): (Vec<usize>, Vec<usize>) = counts.iter().partition(|n| is_known(**n));
            let counts: Vec<usize> = match new.is_empty() {
                true => Vec::new(),
                false => old.into_iter().take(1).chain(new).collect(),
            };
            if let (true, Some(known)) = (counts.is_empty(), known.clone()) {
                self.paces.insert(key, known);
                continue;
            }
            note(format!(
                "measuring steps with {} of frozen layers, by turns",
                counted(counts.len(), "number")
            ));
            let measured = pretrain::pace(&config, &counts)?;
            let pace = match known {
                Some(known) => known.with(&measured),
                None => measured,
            };
            self.paces.insert(key, pace);
            let text = serde_json::to_string_pretty(&self.paces)? + "\n";
            vit::write_atomic(&path, text.as_bytes())?;
        }
        Ok(())
    }

    /// Seconds of a step of this variant with images of this size and so many layers frozen.
    fn step(&self, variant: usize, size: usize, frozen: usize) -> Result<f64> {
        let config = self.plan.variants[variant].config(self.plan.seeds[0]);
        let pace = self.paces.get(&pace_key(&at_size(&config, size))?);
        pace.and_then(|pace| pace.step(frozen))
            .ok_or_else(|| anyhow!("no step at {size} px with {frozen} layers frozen was measured"))
    }

    /// Seconds of all steps of a run of this variant with nothing frozen, whose images have these sizes.
    fn unfrozen(&self, variant: usize, sizes: &[(usize, usize)]) -> Result<Work> {
        let seconds = |&(first, size): &(usize, usize)| Ok((first, self.step(variant, size, 0)?));
        let parts = sizes.iter().map(seconds);
        Ok(Work::by_step(parts.collect::<Result<_>>()?))
    }

    /// All runs: of each seed everything, before the next begins. Several devices could share the list: runs depend on
    /// nothing but the pretraining that they judge, and a baseline on its variant.
    pub fn jobs(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        for &seed in &self.plan.seeds {
            for (arm, Arm { variant, .. }) in self.arms.iter().enumerate() {
                let judges = self.plan.afters.iter().enumerate();
                let judges = judges.filter(|(_, after)| after.judges(*variant));
                let all = std::iter::once(None).chain(judges.map(|(i, _)| Some(i)));
                jobs.extend(all.map(|after| Job { arm, seed, after }));
            }
        }
        jobs
    }

    /// What an arm is called; also a part of its folders' names.
    pub fn name(&self, arm: usize) -> String {
        let Arm { variant, derived } = self.arms[arm];
        let name = &self.plan.variants[variant].name;
        match derived {
            None => name.clone(),
            Some(Derived::TrainLess) => format!("{name}-train-less"),
            Some(Derived::StopEarly) => format!("{name}-stop-early"),
        }
    }

    pub fn told(&self, job: &Job) -> String {
        let what = match job.after {
            None => "pretrain",
            Some(after) => self.plan.afters[after].judge.command(),
        };
        format!("{} seed {}: {what}", self.name(job.arm), job.seed)
    }

    /// How many layers are frozen at each step; `None` of a policy that has not run yet.
    pub fn frozen(&self, variant: usize, seed: u64) -> Result<Option<Vec<usize>>> {
        let v = &self.plan.variants[variant];
        if !v.adaptive() {
            return Ok(Some(
                (0..v.schedule.steps)
                    .map(|s| v.schedule.frozen(s))
                    .collect(),
            ));
        }
        let hash = fnv(fingerprint(&v.config(seed))?, &0u64.to_le_bytes());
        let Some(dir) = self.folder(hash)?.filter(|dir| dir.join(DONE).is_file()) else {
            return Ok(None);
        };
        let text = files::text(&dir.join("metrics.jsonl"))?;
        let rows = text.lines().map(serde_json::from_str::<Row>);
        let frozen = rows.map(|row| row.map(|row| row.frozen));
        let frozen: Vec<usize> = frozen
            .collect::<Result<_, _>>()
            .with_context(|| format!("{} is damaged", dir.join("metrics.jsonl").display()))?;
        Ok(Some(frozen))
    }

    /// An arm's pretraining; `None` while that depends on a policy that has not run yet.
    pub fn wanted(&self, arm: usize, seed: u64) -> Result<Option<Wanted>> {
        let Arm { variant, derived } = self.arms[arm];
        let own = &self.plan.variants[variant];
        let sum = |frozen: Vec<usize>| {
            let mut known: BTreeMap<(usize, usize), f64> = BTreeMap::new();
            let mut sum = 0.0;
            for (step, n) in frozen.into_iter().enumerate() {
                sum += match known.entry((own.size(step), n)) {
                    Entry::Occupied(seconds) => *seconds.get(),
                    Entry::Vacant(new) => *new.insert(self.step(variant, own.size(step), n)?),
                };
            }
            Ok::<f64, anyhow::Error>(sum)
        };
        let seconds = self.frozen(variant, seed)?.map(sum).transpose()?;
        let Some(derived) = derived else {
            return Ok(Some(Wanted {
                config: own.config(seed),
                stop: None,
                steps: own.schedule.steps,
                seconds,
            }));
        };
        let Some(seconds) = seconds else {
            return Ok(None);
        };
        let base = &self.plan.variants[own.against];
        let (config, per_epoch) = (base.config(seed), base.steps_per_epoch());
        let wanted = match derived {
            Derived::TrainLess => {
                // A variant may be slower than training without freezing: more than all of that is not less.
                let epochs = nearest(seconds, config.training.epochs, |epochs| {
                    self.shorter(own.against, epochs)
                })?;
                Wanted {
                    config: shortened(&config, epochs),
                    stop: None,
                    steps: epochs * per_epoch,
                    seconds: Some(self.shorter(own.against, epochs)?),
                }
            }
            Derived::StopEarly => {
                let work = self.unfrozen(own.against, &base.sizes)?;
                let time = |steps| Ok(work.of_first(steps));
                let steps = nearest(seconds, base.schedule.steps, time)?;
                Wanted {
                    config,
                    stop: Some(steps).filter(|&steps| steps < base.schedule.steps),
                    steps,
                    seconds: Some(work.of_first(steps)),
                }
            }
        };
        Ok(Some(wanted))
    }

    /// Seconds of this variant without freezing, shortened to so many epochs.
    fn shorter(&self, variant: usize, epochs: usize) -> Result<f64> {
        let base = &self.plan.variants[variant];
        let config = shortened(&base.config(self.plan.seeds[0]), epochs);
        let steps = Steps::new(base.steps_per_epoch(), 1, epochs)?;
        // So short that a size has no step: it could not be run.
        let Ok(sizes) = config.sizes()?.by_step(&steps) else {
            return Ok(0.0);
        };
        Ok(self.unfrozen(variant, &sizes)?.of_first(steps.total()))
    }

    /// The folder of the run with this hash, whatever its arm was called then.
    fn folder(&self, hash: u64) -> Result<Option<PathBuf>> {
        let end = format!("-{hash:016x}");
        for entry in std::fs::read_dir(self.dir.join("runs"))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(&end) {
                return Ok(Some(entry.path()));
            }
        }
        Ok(None)
    }

    /// The folder of a job, there already or not; `None` while its settings are not known.
    pub fn dir_of(&self, job: &Job) -> Result<Option<PathBuf>> {
        let Some(wanted) = self.wanted(job.arm, job.seed)? else {
            return Ok(None);
        };
        let (mut hash, mut name) = (
            wanted.hash()?,
            format!("{}-s{}", self.name(job.arm), job.seed),
        );
        if let Some(after) = job.after.map(|i| &self.plan.afters[i]) {
            name += &format!("-{}", after.judge.command());
            for flag in
                std::iter::once(after.judge.command()).chain(after.flags.iter().map(|f| f.as_str()))
            {
                hash = fnv(fnv(hash, flag.as_bytes()), &[0]);
            }
        }
        let there = self.folder(hash)?;
        let new = || self.dir.join("runs").join(format!("{name}-{hash:016x}"));
        Ok(Some(there.unwrap_or_else(new)))
    }

    /// Refuses a pretraining whose folder's name fits and whose settings do not: of a program with other defaults.
    pub fn check(&self, job: &Job) -> Result<()> {
        let (Some(wanted), Some(dir)) = (self.wanted(job.arm, job.seed)?, self.dir_of(job)?) else {
            return Ok(());
        };
        let path = dir.join("config.toml");
        if job.after.is_some() || !path.is_file() {
            return Ok(());
        }
        let was = Config::of_run(&path, &Given::nothing())?;
        let differences = wanted.config.differences(&was)?;
        match differences.is_empty() {
            true => Ok(()),
            false => Err(usage(format!(
                "{} was made with other settings ({}); move it away",
                dir.display(),
                differences.join(", ")
            ))),
        }
    }

    /// Arms as a reader expects them: variants in the plan's order, each before what follows from it.
    pub fn in_order(&self) -> Vec<usize> {
        let mut arms: Vec<usize> = (0..self.arms.len()).collect();
        arms.sort_by_key(|&arm| (self.arms[arm].variant, self.arms[arm].derived.is_some()));
        arms
    }

    pub fn is_done(&self, job: &Job) -> Result<bool> {
        Ok(self.result(job)?.is_some())
    }

    /// The result of a job that is done. One that cannot be read is none: the job is done again.
    pub fn result(&self, job: &Job) -> Result<Option<RunResult>> {
        let dir = self.dir_of(job)?.filter(|dir| dir.join(DONE).is_file());
        let text = dir.and_then(|dir| files::text(&dir.join("result.json")).ok());
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// The jobs that are not done, and have not failed.
    pub fn left(&self, jobs: &[Job]) -> Vec<Job> {
        let left = |job: &&Job| {
            let failed = |after| self.failed.contains_key(&(job.arm, job.seed, after));
            !failed(None) && !failed(job.after) && !self.is_done(job).unwrap_or(false)
        };
        jobs.iter().filter(left).copied().collect()
    }

    /// About how many seconds these jobs take.
    pub fn expected(&self, jobs: &[Job]) -> f64 {
        let factors = self.factors();
        let one = |job: &Job| {
            let judge = job.after.map(|after| self.plan.afters[after].judge);
            self.expected_of(job) * factors.get(&judge).copied().unwrap_or(1.0)
        };
        // An empty sum of floats is -0.
        jobs.iter().map(one).sum::<f64>() + 0.0
    }

    /// By how much runs of each kind took longer than expected so far.
    fn factors(&self) -> BTreeMap<Option<Judge>, f64> {
        let mut sums: BTreeMap<Option<Judge>, (f64, f64)> = BTreeMap::new();
        for job in self.jobs() {
            // A baseline that was stopped early is a part of another run.
            let part =
                self.arms[job.arm].derived == Some(Derived::StopEarly) && job.after.is_none();
            if let (Ok(Some(result)), false) = (self.result(&job), part) {
                let judge = job.after.map(|after| self.plan.afters[after].judge);
                let (took, expected) = sums.entry(judge).or_default();
                *took += result.seconds;
                *expected += self.expected_of(&job);
            }
        }
        let factor = |(judge, (took, expected))| (judge, took / f64::max(expected, 1e-9));
        sums.into_iter().map(factor).collect()
    }

    /// By measured steps. What judges is guessed until the first one is done: the forward pass of a whole image takes about as
    /// long as a pretraining step of one, which sees a quarter of it, goes back, and decodes; a step of fine-tuning three
    /// times as long. There are a quarter as many validation images as others.
    fn expected_of(&self, job: &Job) -> f64 {
        let Arm { variant, derived } = self.arms[job.arm];
        let own = &self.plan.variants[variant];
        let work = self.unfrozen(variant, &own.sizes);
        let work = work.unwrap_or(Work::by_step(Vec::new()));
        let whole = work.of_first(own.schedule.steps);
        let Some(after) = job.after.map(|i| &self.plan.afters[i]) else {
            if derived == Some(Derived::StopEarly) {
                return 0.0;
            }
            let wanted = self.wanted(job.arm, job.seed).ok().flatten();
            return wanted.and_then(|w| w.seconds).unwrap_or(whole);
        };
        // At the size of the run's end, as the encoder is judged.
        let steps = own.schedule.steps;
        let epoch = work.between(steps - own.steps_per_epoch().min(steps), steps);
        match after.judge {
            // A cached probe trains in seconds.
            Judge::Linprobe if !after.cached() => 1.25 * epoch * after.epochs as f64,
            Judge::Knn | Judge::Linprobe => 1.25 * epoch,
            Judge::Finetune => 3.25 * epoch * after.epochs as f64,
        }
    }
}

/// The number, from 1 to `most`, whose time is nearest to so many seconds; more take longer.
fn nearest(seconds: f64, most: usize, time: impl Fn(usize) -> Result<f64>) -> Result<usize> {
    // The first one whose time suffices.
    let (mut low, mut high) = (1, most.max(1));
    while low < high {
        let middle = low + (high - low) / 2;
        match time(middle)? < seconds {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    let below = low > 1 && seconds - time(low - 1)? < time(low)? - seconds;
    Ok(if below { low - 1 } else { low })
}

/// Text of a JSON file that is written last into a folder.
pub fn done_text() -> String {
    Value::from(env!("CARGO_PKG_VERSION")).to_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::nearest;
    use crate::run::work::Work;

    #[test]
    fn baselines_take_the_nearest_time() {
        let of = |seconds, work: Work| nearest(seconds, 100, |n| Ok(work.of_first(n))).unwrap();
        // A variant of 100 epochs that saves an eighth: 87.5 epochs' time.
        assert_eq!(of(87.5, Work::even()), 88);
        assert_eq!(of(87.4, Work::even()), 87);
        assert_eq!(of(0.2, Work::even()), 1);
        assert_eq!(of(123.0, Work::even()), 100);
        // 80 of half a second, then whole ones.
        let growing = Work::by_step(vec![(0, 0.5), (80, 1.0)]);
        assert_eq!(of(20.2, growing.clone()), 40);
        assert_eq!(of(45.4, growing), 85);
    }
}
