//! The plan of a study: what is tried, how often, and how it is judged.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;

use anyhow::Result;
use clap::Parser as _;
use freezeout::Schedule;
use serde::Deserialize;
use toml::{Table, Value};

use crate::commands::pretrain::config::Config;
use crate::commands::pretrain::sizes::ImageSizes;
use crate::commands::{finetune, knn, linprobe};
use crate::input::files;
use crate::run::checkpoint::{fnv, FNV};
use crate::settings::{one_line, parse, Settings as _};
use crate::usage::usage;

/// Keys that change no result.
const RUNNING: [&str; 3] = ["threads", "save-every", "tensorboard"];
/// Keys that change no step's time.
const TIMELESS: [&str; 18] = [
    "save-every",
    "tensorboard",
    "init",
    "freeze",
    "t0",
    "policy",
    "layer-lr",
    "warmup",
    "seed",
    "epochs",
    "warmup-epochs",
    "lr",
    "blr",
    "min-lr",
    "weight-decay",
    "beta1",
    "beta2",
    "eps",
];
/// Most variants and seeds.
const MOST: usize = 1000;

/// A baseline that follows from a variant's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Derived {
    /// No freezing, so few epochs that it takes the variant's time, with a whole schedule of its own.
    TrainLess,
    /// No freezing, stopped after the variant's time.
    StopEarly,
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    title: Option<String>,
    seeds: Vec<u64>,
    #[serde(default)]
    baselines: Vec<Derived>,
    base: Table,
    #[serde(default)]
    variant: Vec<VariantFile>,
    #[serde(default)]
    after: AfterFile,
}

#[derive(Deserialize)]
struct VariantFile {
    name: String,
    against: Option<String>,
    baselines: Option<Vec<Derived>>,
    #[serde(flatten)]
    keys: Table,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AfterFile {
    knn: Option<Table>,
    linprobe: Option<Table>,
    finetune: Option<Table>,
}

/// What is tried.
pub struct Variant {
    pub name: String,
    /// The variant that it is compared with; itself for one that is compared with none.
    pub against: usize,
    pub baselines: Vec<Derived>,
    /// The plan's keys that make it another than the base.
    pub keys: Table,
    config: Config,
    /// The schedule; without freezing under a policy.
    pub schedule: Schedule,
    /// The sizes of its images, each with its first step.
    pub sizes: Vec<(usize, usize)>,
}

impl Variant {
    /// All numbers of its run with this seed.
    pub fn config(&self, seed: u64) -> Config {
        let mut config = self.config.clone();
        config.training.seed = seed;
        config
    }

    pub fn steps_per_epoch(&self) -> usize {
        self.schedule.steps / self.config.training.epochs
    }

    /// Whether a policy decides what freezes.
    pub fn adaptive(&self) -> bool {
        self.config.policy.is_some()
    }

    /// Whether anything of it may freeze.
    fn freezes(&self) -> bool {
        self.adaptive() || !self.schedule.changes().is_empty()
    }

    /// Whether its images become larger as it goes on.
    fn grows(&self) -> bool {
        self.sizes.len() > 1
    }

    /// Whether it may take less time than another: it freezes, or begins with smaller images where that does not.
    fn may_save(&self, other: &Self) -> bool {
        self.freezes() || self.grows() && !other.grows()
    }

    /// Side of the images of a step.
    pub fn size(&self, step: usize) -> usize {
        let at = self.sizes.iter().rfind(|(first, _)| *first <= step);
        at.map_or(0, |(_, size)| *size)
    }

    /// All numbers of frozen layers that its steps may have, by the size of their images.
    pub fn frozen_counts(&self) -> BTreeMap<usize, BTreeSet<usize>> {
        // No step that is not frozen is left out: others are compared with it.
        let mut all: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (_, size) in &self.sizes {
            all.entry(*size).or_default().insert(0);
        }
        let changes = self.schedule.changes();
        let changes = changes.iter().map(|change| change.step);
        let starts = self.sizes.iter().map(|(first, _)| *first).chain(changes);
        for step in starts {
            let counts = all.entry(self.size(step)).or_default();
            match self.adaptive() {
                true => counts.extend(0..self.schedule.layers),
                false => drop(counts.insert(self.schedule.frozen(step))),
            }
        }
        all
    }

    /// The keys that differ from the base, as text.
    pub fn told(&self) -> String {
        let key = |(key, value): (&String, &Value)| format!("{key}={}", plain(value));
        let keys: Vec<String> = self.keys.iter().map(key).collect();
        keys.join(" ")
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What judges an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Judge {
    Knn,
    Linprobe,
    Finetune,
}

impl Judge {
    /// The subcommand.
    pub fn command(self) -> &'static str {
        match self {
            Self::Knn => "knn",
            Self::Linprobe => "linprobe",
            Self::Finetune => "finetune",
        }
    }
}

/// A judge with its settings.
pub struct After {
    pub judge: Judge,
    /// Its flags but those that name the checkpoint, the seed and the folder.
    pub flags: Vec<String>,
    /// The variants, and what follows from them, that it judges.
    of: Vec<usize>,
    /// Passes over the training images.
    pub epochs: usize,
}

impl After {
    /// Whether it judges this variant and what follows from it.
    pub fn judges(&self, variant: usize) -> bool {
        self.of.contains(&variant)
    }

    /// Of a probe: whether it computes the features once.
    pub fn cached(&self) -> bool {
        let on = |flag: &String| matches!(flag.as_str(), "--cached" | "--cached=true");
        self.flags.iter().any(on)
    }
}

/// A study.
pub struct Plan {
    pub title: String,
    pub seeds: Vec<u64>,
    pub variants: Vec<Variant>,
    pub afters: Vec<After>,
    /// The file as it was.
    pub text: String,
}

impl Plan {
    /// Reads and checks all of it, also against the images; `data` takes the place of the base's.
    pub fn read(path: &Path, data: Option<&str>) -> Result<Self> {
        let origin = path.display().to_string();
        let text = files::text(path).map_err(|e| usage(format!("cannot read {origin}: {e}")))?;
        let mut file: File = toml::from_str(&text)
            .map_err(|e| usage(format!("{origin}: {}", one_line(&e, &text))))?;
        let refuse = |what: String| Err(usage(format!("{origin}: {what}")));
        if let Some(data) = data {
            file.base.insert("data".into(), Value::String(data.into()));
        }
        if file.seeds.is_empty() || file.variant.is_empty() {
            return refuse("seeds and [[variant]] must name at least one each".into());
        }
        if file.seeds.len() > MOST || file.variant.len() > MOST {
            return refuse(format!("more than {MOST} seeds or variants"));
        }
        if file.seeds.iter().collect::<BTreeSet<_>>().len() < file.seeds.len() {
            return refuse("a seed is named twice".into());
        }
        check_keys(&file.base, &format!("{origin}: [base]"))?;
        let names: Vec<String> = file.variant.iter().map(|v| v.name.clone()).collect();
        let index = |name: &str, wanted_by: &str| {
            let found = names.iter().position(|n| n == name);
            found.ok_or_else(|| {
                usage(format!(
                    "{origin}: {wanted_by}: there is no variant {name:?}, but {}",
                    names.join(", ")
                ))
            })
        };
        let mut variants: Vec<Variant> = Vec::new();
        for (i, variant) in file.variant.iter().enumerate() {
            let at = format!("{origin}: [[variant]] {:?}", variant.name);
            check_name(&variant.name).map_err(|e| usage(format!("{at}: {e}")))?;
            if names[..i].contains(&variant.name) {
                return Err(usage(format!("{at}: there are two of this name")));
            }
            check_keys(&variant.keys, &at)?;
            let in_place = |e: anyhow::Error| usage(format!("{at}: {e:#}"));
            let config = config_of(&file.base, &variant.keys).map_err(in_place)?;
            let batches = crate::commands::pretrain::batches(&config).map_err(in_place)?;
            let steps = config.training.plan(batches, 1).map_err(in_place)?;
            let layers = config.model()?.layers();
            let schedule = config.schedule(&steps, layers).map_err(in_place)?;
            let sizes = config.sizes()?.by_step(&steps.steps).map_err(in_place)?;
            let against = match &variant.against {
                Some(name) => index(name, &format!("[[variant]] {:?}: against", variant.name))?,
                None => 0,
            };
            variants.push(Variant {
                name: variant.name.clone(),
                against,
                baselines: Vec::new(),
                keys: variant.keys.clone(),
                config,
                schedule,
                sizes,
            });
        }
        for (i, variant) in file.variant.iter().enumerate() {
            let (own, other) = (&variants[i], &variants[variants[i].against]);
            if !own.may_save(other) || variants[i].against == i {
                if variant.baselines.as_ref().is_some_and(|b| !b.is_empty()) {
                    return refuse(format!(
                        "[[variant]] {:?}: baselines of equal time belong to variants that freeze, or whose images grow, and are compared with another",
                        variant.name
                    ));
                }
                continue;
            }
            let baselines = variant.baselines.as_ref().unwrap_or(&file.baselines);
            if other.freezes() && !baselines.is_empty() {
                return refuse(format!(
                    "[[variant]] {:?}: {:?}, with which it is compared, freezes too; baselines of equal time need one that does not: say against = \"NAME\", or baselines = []",
                    variant.name, other.name
                ));
            }
            let epochs = |variant: &Variant| variant.config.training.epochs;
            if epochs(own) > epochs(other) && !baselines.is_empty() {
                return refuse(format!(
                    "[[variant]] {:?}: it trains longer than {:?}, with which it is compared, and nothing of that takes as long: say against = \"NAME\", or baselines = []",
                    variant.name, other.name
                ));
            }
            variants[i].baselines = baselines.clone();
        }
        let mut afters = Vec::new();
        for (judge, keys) in [
            (Judge::Knn, file.after.knn.take()),
            (Judge::Linprobe, file.after.linprobe.take()),
            (Judge::Finetune, file.after.finetune.take()),
        ] {
            let Some(mut keys) = keys else {
                continue;
            };
            let at = format!("[after.{}]", judge.command());
            let of = match keys.remove("of") {
                None => (0..variants.len()).collect(),
                Some(of) => {
                    let named: Vec<String> = of.try_into().map_err(|_| {
                        usage(format!(
                            "{origin}: {at}: of must be a list of variants' names"
                        ))
                    })?;
                    let named = named.iter().map(|name| index(name, &format!("{at}: of")));
                    named.collect::<Result<Vec<usize>>>()?
                }
            };
            let after = After::new(judge, &keys, of, &variants[0].config);
            afters.push(after.map_err(|e| usage(format!("{origin}: {at}: {e:#}")))?);
        }
        if afters.is_empty() {
            return refuse("the plan evaluates nothing: give [after.knn], [after.linprobe] or [after.finetune]".into());
        }
        Ok(Self {
            title: vit::printable(file.title.as_deref().unwrap_or("A study")),
            seeds: file.seeds,
            variants,
            afters,
            text,
        })
    }
}

impl After {
    fn new(judge: Judge, keys: &Table, of: Vec<usize>, run: &Config) -> Result<Self> {
        let mut flags = Vec::new();
        for (key, value) in keys {
            // A run's folder, its checkpoint and its seed are the study's.
            if [
                "checkpoint",
                "out",
                "resume",
                "config",
                "nproc",
                "max-steps",
            ]
            .contains(&key.as_str())
            {
                return Err(usage(format!("'{key}' is the study's to say")));
            }
            if judge != Judge::Knn && key == "seed" {
                return Err(usage("the seed is that of the run that is evaluated"));
            }
            flags.push(match value {
                Value::Table(_) | Value::Array(_) => {
                    return Err(usage(format!(
                        "{key}: a list or section is no value of a flag"
                    )))
                }
                value => format!("--{key}={}", plain(value)),
            });
        }
        // With the run's data, whose folder is not there yet.
        let data = [
            format!("--data={}", run.training.data()),
            format!("--samples={}", run.training.samples),
        ];
        let known = |key: &str| keys.contains_key(key);
        let data = data.into_iter().zip(["data", "samples"]);
        let data = data.filter(|(_, key)| !known(key)).map(|(flag, _)| flag);
        let name = [judge.command().to_owned(), "--checkpoint=encoder".into()];
        let all: Vec<String> = name.into_iter().chain(data).chain(flags.clone()).collect();
        let said = |e: clap::Error| {
            let text = e.to_string();
            let line = text.lines().next().unwrap_or_default();
            usage(line.trim_start_matches("error: "))
        };
        let epochs = match judge {
            Judge::Knn => knn::Args::try_parse_from(all).map(|_| 0).map_err(said)?,
            Judge::Linprobe => linprobe::Args::try_parse_from(all)
                .map_err(said)?
                .epochs()?,
            Judge::Finetune => finetune::Args::try_parse_from(all)
                .map_err(said)?
                .epochs()?,
        };
        Ok(Self {
            judge,
            flags,
            of,
            epochs,
        })
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match !name.is_empty()
        && name.len() <= 60
        && name.chars().all(plain)
        && !name.starts_with(['.', '-'])
    {
        true => Ok(()),
        false => {
            Err("a name is 1 to 60 letters, digits, '.', '_' and '-'; it is part of a folder's")
        }
    }
}

/// Refuses a key that vitfreeze pretrain does not have, and a value that it could not be.
fn check_keys(keys: &Table, at: &str) -> Result<()> {
    for (key, value) in keys {
        if key == "seed" {
            return Err(usage(format!("{at}: the seeds are those of seeds = [...]")));
        }
        let alone = Table::from_iter([(key.clone(), value.clone())]);
        let text = toml::to_string(&alone).map_err(usage)?;
        // Its line is none of the file's.
        parse::<Config>(&text, at).map_err(|e| usage(e.to_string().replace(": line 1:", ":")))?;
    }
    Ok(())
}

/// The base's keys, then the variant's, as a file's and flags go together.
fn config_of(base: &Table, keys: &Table) -> Result<Config> {
    let mut all = base.clone();
    Config::complete(&mut all, keys);
    all.extend(keys.clone());
    Config::of_table(all)
}

/// No freezing, so many epochs: the rest is that of `config`.
pub fn shortened(config: &Config, epochs: usize) -> Config {
    let mut config = config.clone();
    if let Some(sizes) = config.image_size.take_if(|sizes| sizes.grow()) {
        // Each size keeps its part of the run.
        config.image_size = Some(sizes.in_parts(config.training.epochs));
    }
    config.training.epochs = epochs;
    config.training.warmup_epochs = config.training.warmup_epochs.min(epochs - 1);
    config
}

/// What tells a run from every other one: all its settings but those that change no result.
pub fn fingerprint(config: &Config) -> Result<u64> {
    hash_without(config, &RUNNING)
}

/// The same with images of this size from beginning to end.
pub fn at_size(config: &Config, size: usize) -> Config {
    Config {
        image_size: Some(ImageSizes::one(size)),
        ..config.clone()
    }
}

/// What tells how long a step takes.
pub fn pace_key(config: &Config) -> Result<String> {
    Ok(format!("{:016x}", hash_without(config, &TIMELESS)?))
}

/// The configuration of a run of which nothing is told.
fn defaults() -> Result<&'static Table> {
    static DEFAULTS: OnceLock<Table> = OnceLock::new();
    if let Some(defaults) = DEFAULTS.get() {
        return Ok(defaults);
    }
    let defaults = Table::try_from(Config::of_table(Table::new())?)?;
    Ok(DEFAULTS.get_or_init(|| defaults))
}

/// Keys with their defaults do not count, so that a later program, which has more of them, still knows its runs.
fn hash_without(config: &Config, left_out: &[&str]) -> Result<u64> {
    let mut table = Table::try_from(config)?;
    let defaults = defaults()?;
    table.retain(|key, value| !left_out.contains(&key) && defaults.get(key) != Some(value));
    Ok(fnv(FNV, toml::to_string(&table)?.as_bytes()))
}
