//! What a study says, in words and tables.
use anyhow::Result;

use super::lab::Lab;
use super::page::{Block, Document, Table};
use super::picture;
use super::plan::Derived;
use super::results::{Comparison, Results};
use super::statistics::{Spread, CONFIDENCE};
use crate::commands::schedule;
use crate::console::{counted, duration, percent};

/// `31.25 ± 0.40`.
fn spread(spread: Option<Spread>) -> String {
    match spread {
        None => "-".into(),
        Some(Spread {
            mean, deviation, ..
        }) => match deviation {
            Some(deviation) => format!("{mean:.2} \u{b1} {deviation:.2}"),
            None => format!("{mean:.2}"),
        },
    }
}

/// A number with its sign, as it is read.
fn signed(x: f64) -> String {
    format!("{x:+.2}").replace('-', "\u{2212}")
}

fn seconds(x: Option<f64>) -> String {
    x.map_or("-".into(), duration)
}

/// Which is better, where the interval does not cover zero.
fn verdict(comparison: &Comparison) -> &'static str {
    match (comparison.points.sign(), comparison.points.count) {
        (1, _) => "better",
        (-1, _) => "worse",
        (_, 1) => "one seed: not decidable",
        _ if comparison.points.all_alike() && comparison.points.mean != 0.0 => {
            "every pair the same: not decidable"
        }
        _ => "no difference shown",
    }
}

fn interval(points: &Spread) -> String {
    match points.half_interval() {
        Some(half) => format!(
            "{} to {}",
            signed(points.mean - half),
            signed(points.mean + half)
        ),
        None => "-".into(),
    }
}

/// The time that an arm takes less than another, part of 1.
fn less_time(results: &Results, arm: usize, other: usize) -> Option<f64> {
    Some(1.0 - results.seconds(arm)? / results.seconds(other)?)
}

/// Everything, for a reader.
pub fn document(lab: &Lab, results: &Results) -> Result<Document> {
    let plan = &lab.plan;
    let mut blocks = vec![Block::Text(format!(
        "{} of pretraining and their evaluations: {}, {} ({}). vitfreeze {}, plan.toml.",
        counted(results.rows.len(), "run"),
        counted(plan.variants.len(), "variant"),
        counted(plan.seeds.len(), "seed"),
        plan.seeds
            .iter()
            .map(u64::to_string)
            .collect::<Vec<_>>()
            .join(", "),
        env!("CARGO_PKG_VERSION"),
    ))];
    let not_done = lab.left(&lab.jobs()).len() + lab.failed.len();
    if not_done > 0 {
        blocks.push(Block::Text(format!(
            "Not complete: {} to do or failed; what follows is of the others.",
            counted(not_done, "run")
        )));
    }
    blocks.push(Block::Heading("What came out".into()));
    blocks.extend(claims(lab, results).into_iter().map(Block::Text));
    blocks.push(Block::Heading("Accuracy and time".into()));
    blocks.push(Block::Text(
        "Top-1 in % on the validation images: mean \u{b1} standard deviation over the seeds. Measured time: the seconds of steps with each number of frozen layers, timed by turns at the start, summed over the run's steps; a machine that drifts changes it for none. The wall clock is beside it; what else the machine did meanwhile is in it.".into(),
    ));
    blocks.push(Block::Table(arms(lab, results)));
    blocks.push(Block::Text(
        "train-less: no freezing, so many epochs that the measured time is that of the variant, with a whole schedule of learning rates. stop-early: the run without freezing, as it was after that time. A probe and a fine-tuned classifier count by their best epoch, k-NN by k = 20.".into(),
    ));
    for judge in 0..plan.afters.len() {
        if let Some(svg) = picture::against_time(lab, results, judge) {
            blocks.push(Block::Picture(svg));
        }
    }
    blocks.push(Block::Heading("Differences".into()));
    let comparisons = results.comparisons(lab);
    blocks.push(Block::Text(format!(
        "Differences of pairs with the same seed, in points of top-1, and the {:.0} % interval of their mean by Student's t. Where it covers zero nothing is claimed. Of {} at {:.0} % about {:.1} would leave zero out by chance alone.",
        100.0 * CONFIDENCE,
        counted(comparisons.len(), "interval"),
        100.0 * CONFIDENCE,
        comparisons.len() as f64 * (1.0 - CONFIDENCE),
    )));
    blocks.push(Block::Table(differences(lab, results, &comparisons)));
    blocks.push(Block::Heading("What froze when".into()));
    if let Some(svg) = picture::frozen(lab, results) {
        blocks.push(Block::Picture(svg));
    }
    blocks.push(Block::Table(freezing_times(lab, results)));
    for variant in plan.variants.iter().filter(|v| !v.adaptive()) {
        if variant.schedule.changes().is_empty() {
            continue;
        }
        let config = variant.config(plan.seeds[0]);
        let per_epoch = variant.steps_per_epoch();
        let title = format!("{}: learning rates and freezing times", variant.name);
        let labels = schedule::labels(&config.model()?);
        let epoch = |step: usize| step as f64 / per_epoch as f64;
        let svg = schedule::picture::draw(&title, &variant.schedule, &labels, &epoch);
        blocks.push(Block::Folded(title, svg));
    }
    Ok(Document {
        title: plan.title.clone(),
        blocks,
    })
}

/// What may be said: a sentence for each variant and judge, and whether anything beats training less.
fn claims(lab: &Lab, results: &Results) -> Vec<String> {
    let comparisons = results.comparisons(lab);
    let mut out: Vec<String> = comparisons.iter().map(|c| claim(lab, results, c)).collect();
    let at_equal_time = |c: &&Comparison| lab.arms[c.other].derived == Some(Derived::TrainLess);
    let equal: Vec<&Comparison> = comparisons.iter().filter(at_equal_time).collect();
    let better: Vec<String> = equal
        .iter()
        .filter(|c| c.points.sign() > 0)
        // Epochs are whole, so that the times differ a little.
        .filter(|c| less_time(results, c.arm, c.other).is_some_and(|less| less > -0.01))
        .map(|c| {
            format!(
                "{} ({})",
                lab.name(c.arm),
                lab.plan.afters[c.judge].judge.command()
            )
        })
        .collect();
    if !equal.is_empty() {
        out.push(match better.is_empty() {
            true => "No variant is shown to be better than training less for the same time.".into(),
            false => format!(
                "Shown to be better than training less for the same time: {}.",
                better.join(", ")
            ),
        });
    }
    out
}

fn claim(lab: &Lab, results: &Results, c: &Comparison) -> String {
    let time = match less_time(results, c.arm, c.other) {
        Some(less) if less >= 0.0005 => format!("{} less measured time", percent(less)),
        Some(less) if less <= -0.0005 => format!("{} more measured time", percent(-less)),
        Some(_) => "the same measured time".into(),
        None => "unknown time".into(),
    };
    let points = &c.points;
    let interval = match points.half_interval() {
        Some(_) => format!(" ({}; {})", interval(points), counted(points.count, "pair")),
        None => String::new(),
    };
    format!(
        "{} beside {}, {}: {} points{interval}, {time}: {}.",
        lab.name(c.arm),
        lab.name(c.other),
        lab.plan.afters[c.judge].judge.command(),
        signed(points.mean),
        verdict(c)
    )
}

fn arms(lab: &Lab, results: &Results) -> Table {
    let mut head = vec![
        "run".to_owned(),
        "settings".into(),
        "epochs".into(),
        "measured time".into(),
        "wall clock".into(),
    ];
    head.extend(lab.plan.afters.iter().map(|a| a.judge.command().to_owned()));
    let rows = lab.in_order().into_iter().map(|arm| {
        let (own, derived) = (
            &lab.plan.variants[lab.arms[arm].variant],
            lab.arms[arm].derived,
        );
        let base = match derived {
            None => own,
            Some(_) => &lab.plan.variants[own.against],
        };
        let wanted = results.of(arm).find_map(|row| row.wanted.as_ref());
        let epochs = wanted.map_or("-".to_owned(), |wanted| {
            let epochs = wanted.steps as f64 / base.steps_per_epoch() as f64;
            let text = format!("{epochs:.2}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        });
        let settings = match derived {
            None => own.told(),
            Some(_) => String::new(),
        };
        let mut cells = vec![
            lab.name(arm),
            settings,
            epochs,
            seconds(results.seconds(arm)),
            seconds(results.wall(arm)),
        ];
        cells.extend((0..lab.plan.afters.len()).map(|judge| spread(results.accuracy(arm, judge))));
        cells
    });
    Table {
        head,
        rows: rows.collect(),
    }
}

fn differences(lab: &Lab, results: &Results, comparisons: &[Comparison]) -> Table {
    let head = [
        "run",
        "beside",
        "evaluation",
        "points",
        "interval",
        "pairs",
        "time",
        "verdict",
    ];
    let rows = comparisons.iter().map(|c| {
        let time = less_time(results, c.arm, c.other);
        vec![
            lab.name(c.arm),
            lab.name(c.other),
            lab.plan.afters[c.judge].judge.command().to_owned(),
            signed(c.points.mean),
            interval(&c.points),
            c.points.count.to_string(),
            time.map_or("-".into(), |less| percent(-less).replace('-', "\u{2212}")),
            verdict(c).to_owned(),
        ]
    });
    Table {
        head: head.map(str::to_owned).into(),
        rows: rows.collect(),
    }
}

/// The epoch, mean over the seeds, at which each layer first froze.
fn freezing_times(lab: &Lab, results: &Results) -> Table {
    let layers = lab
        .plan
        .variants
        .iter()
        .map(|v| v.schedule.layers)
        .max()
        .unwrap_or(0);
    let mut head = vec!["frozen from epoch on".to_owned()];
    head.extend((0..layers).map(|layer| format!("layer {layer}")));
    let mut rows = Vec::new();
    for arm in lab.in_order() {
        let parts = lab.arms[arm];
        let own = &lab.plan.variants[parts.variant];
        if parts.derived.is_some()
            || results
                .of(arm)
                .all(|row| row.frozen.last().is_none_or(|&n| n == 0))
        {
            continue;
        }
        let per_epoch = own.steps_per_epoch() as f64;
        let mut cells = vec![own.name.clone()];
        for layer in 0..layers {
            let first = |frozen: &Vec<usize>| frozen.iter().position(|&n| n > layer);
            let times = results.of(arm).filter_map(|row| first(&row.frozen));
            let times: Vec<f64> = times.map(|step| step as f64 / per_epoch).collect();
            let seeds = results.of(arm).filter(|row| !row.frozen.is_empty()).count();
            cells.push(match Spread::of(&times) {
                Some(spread) if spread.count == seeds => format!("{:.1}", spread.mean),
                Some(spread) => format!("{:.1} in {} of {seeds}", spread.mean, spread.count),
                None => "never".into(),
            });
        }
        rows.push(cells);
    }
    Table { head, rows }
}

/// The most important lines, for the terminal.
pub fn short(lab: &Lab, results: &Results) -> Vec<String> {
    claims(lab, results)
}
