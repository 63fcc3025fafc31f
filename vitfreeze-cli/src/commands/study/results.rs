//! What the runs came to: `results.csv`, and sums of it.
use anyhow::Result;

use super::lab::{Arm, Job, Lab, Wanted};
use super::plan::Derived;
use super::statistics::Spread;
use super::{page, report};

/// An arm's pretraining with one seed, and how it was judged.
pub struct Row {
    pub arm: usize,
    pub seed: u64,
    /// `done`, `not run`, or why it failed.
    status: String,
    pub wanted: Option<Wanted>,
    /// Seconds of the pretraining as the clock had it.
    pub wall: Option<f64>,
    loss: Option<f64>,
    /// Layers frozen at each step, of an arm that freezes.
    pub frozen: Vec<usize>,
    /// Percent, by the plan's judges.
    pub top1: Vec<Option<f64>>,
    folder: String,
}

/// All rows.
pub struct Results {
    pub rows: Vec<Row>,
}

/// What is said of an arm beside another.
pub struct Comparison {
    pub arm: usize,
    pub other: usize,
    /// Index of the judge.
    pub judge: usize,
    /// Differences of pairs with the same seed, in points.
    pub points: Spread,
}

/// Writes all files, as the results are so far, and returns what is to be said.
pub fn write(lab: &Lab) -> Result<Vec<String>> {
    let results = Results::read(lab)?;
    let file = |name: &str, text: String| vit::write_atomic(&lab.dir.join(name), text.as_bytes());
    file("results.csv", results.csv(lab))?;
    let document = report::document(lab, &results)?;
    file("report.md", page::markdown(&document))?;
    file("report.html", page::html(&document))?;
    Ok(report::short(lab, &results))
}

impl Results {
    fn read(lab: &Lab) -> Result<Self> {
        let mut rows = Vec::new();
        for &seed in &lab.plan.seeds {
            for arm in lab.in_order() {
                rows.push(Row::read(lab, arm, seed)?);
            }
        }
        Ok(Self { rows })
    }

    /// A row for each pretraining. Only columns with `seconds` in their names differ from one run of the plan to the next.
    fn csv(&self, lab: &Lab) -> String {
        let mut head = vec![
            "variant", "baseline", "against", "seed", "settings", "status", "epochs", "steps",
        ]
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>();
        head.extend(
            ["seconds_measured", "seconds_wall", "frozen_at_end", "loss"].map(str::to_owned),
        );
        for after in &lab.plan.afters {
            head.push(format!("{}_top1", after.judge.command()));
        }
        head.push("folder".into());
        let mut out = line(&head);
        for row in &self.rows {
            let Arm { variant, derived } = lab.arms[row.arm];
            let own = &lab.plan.variants[variant];
            let number = |x: Option<f64>, digits: usize| {
                x.map_or(String::new(), |x| format!("{x:.digits$}"))
            };
            let wanted = row.wanted.as_ref();
            let count = |n: Option<usize>| n.map_or(String::new(), |n| n.to_string());
            let mut cells = vec![
                own.name.clone(),
                match derived {
                    None => String::new(),
                    Some(Derived::TrainLess) => "train less".into(),
                    Some(Derived::StopEarly) => "stop early".into(),
                },
                lab.plan.variants[own.against].name.clone(),
                row.seed.to_string(),
                match derived {
                    None => own.told(),
                    // No freezing: the settings are those of `against`.
                    Some(_) => String::new(),
                },
                row.status.clone(),
                count(wanted.map(|w| w.config.training.epochs)),
                count(wanted.map(|w| w.steps)),
                number(wanted.and_then(|w| w.seconds), 2),
                number(row.wall, 2),
                count(row.frozen.last().copied()),
                number(row.loss, 6),
            ];
            cells.extend(row.top1.iter().map(|&x| number(x, 4)));
            cells.push(row.folder.clone());
            out += &line(&cells);
        }
        out
    }

    /// Rows of an arm, one for each seed.
    pub fn of(&self, arm: usize) -> impl Iterator<Item = &Row> + Clone {
        self.rows.iter().filter(move |row| row.arm == arm)
    }

    /// An arm's accuracies by a judge, over the seeds.
    pub fn accuracy(&self, arm: usize, judge: usize) -> Option<Spread> {
        let values: Vec<f64> = self.of(arm).filter_map(|row| row.top1[judge]).collect();
        Spread::of(&values)
    }

    /// An arm's seconds by measured steps, mean over the seeds.
    pub fn seconds(&self, arm: usize) -> Option<f64> {
        let all = self.of(arm).filter_map(|row| row.wanted.as_ref()?.seconds);
        Spread::of(&all.collect::<Vec<f64>>()).map(|s| s.mean)
    }

    /// An arm's seconds by the clock, mean over the seeds.
    pub fn wall(&self, arm: usize) -> Option<f64> {
        let all = self.of(arm).filter_map(|row| row.wall);
        Spread::of(&all.collect::<Vec<f64>>()).map(|s| s.mean)
    }

    /// Each variant beside the one that it is compared with, then beside its own baselines of equal time.
    pub fn comparisons(&self, lab: &Lab) -> Vec<Comparison> {
        let mut all = Vec::new();
        let arm_of = |variant: usize, derived: Option<Derived>| {
            lab.arms.iter().position(|a| *a == Arm { variant, derived })
        };
        for (variant, own) in lab.plan.variants.iter().enumerate() {
            let Some(arm) = arm_of(variant, None) else {
                continue;
            };
            let against = (own.against != variant)
                .then(|| arm_of(own.against, None))
                .flatten();
            let derived = own
                .baselines
                .iter()
                .filter_map(|&d| arm_of(variant, Some(d)));
            for other in against.into_iter().chain(derived) {
                for judge in 0..lab.plan.afters.len() {
                    let pair = |row: &Row| {
                        let mut others = self.of(other);
                        let same = others.find(|o| o.seed == row.seed)?;
                        Some(row.top1[judge]? - same.top1[judge]?)
                    };
                    let pairs: Vec<f64> = self.of(arm).filter_map(pair).collect();
                    all.extend(Spread::of(&pairs).map(|points| Comparison {
                        arm,
                        other,
                        judge,
                        points,
                    }));
                }
            }
        }
        all
    }
}

impl Row {
    fn read(lab: &Lab, arm: usize, seed: u64) -> Result<Self> {
        let job = |after: Option<usize>| Job { arm, seed, after };
        let result = lab.result(&job(None))?;
        let judged = lab.plan.afters.iter().enumerate();
        let judged = judged.map(|(i, after)| match after.judges(lab.arms[arm].variant) {
            true => Ok(lab.result(&job(Some(i)))?.and_then(|r| r.top1)),
            false => Ok(None),
        });
        let failures: Vec<&str> = std::iter::once(None)
            .chain((0..lab.plan.afters.len()).map(Some))
            .filter_map(|after| lab.failed.get(&(arm, seed, after)))
            .map(String::as_str)
            .collect();
        let status = match (failures.is_empty(), &result) {
            (false, _) => format!("failed: {}", failures.join("; ")),
            (true, Some(_)) => "done".into(),
            (true, None) => "not run".into(),
        };
        let frozen = match (lab.arms[arm].derived, &result) {
            (None, Some(_)) => lab.frozen(lab.arms[arm].variant, seed)?.unwrap_or_default(),
            _ => Vec::new(),
        };
        let folder = lab.dir_of(&job(None))?;
        let folder = folder.as_deref().and_then(|dir| dir.file_name());
        Ok(Self {
            arm,
            seed,
            status,
            wanted: lab.wanted(arm, seed)?,
            wall: result.as_ref().map(|r| r.seconds),
            loss: result.as_ref().and_then(|r| r.loss),
            frozen,
            top1: judged.collect::<Result<_>>()?,
            folder: folder.map_or(String::new(), |name| name.to_string_lossy().into_owned()),
        })
    }
}

/// A line of CSV (RFC 4180).
fn line(cells: &[String]) -> String {
    let cell = |cell: &String| match cell.contains(['"', ',', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.clone(),
    };
    let cells: Vec<String> = cells.iter().map(cell).collect();
    cells.join(",") + "\n"
}
