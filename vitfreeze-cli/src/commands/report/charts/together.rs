//! Several runs in one chart: loss and accuracy against the time of training.
use super::{line, medians_by, smooth, HIGH, LEFT, NAMES, WIDTH};
use crate::commands::report::read::RunRead;
use crate::draw::axis::Axis;
use crate::draw::color::{self, SERIES};
use crate::draw::frame::{EndLabel, Frame};
use crate::draw::{font, Stroke, Svg, Text, TITLE};

/// A run's name and (seconds, value).
type Curve<'a> = (&'a str, Vec<(f64, f64)>);

/// Loss of all runs of a kind, top-1 of those that were evaluated; only charts with two curves and more.
pub fn together(runs: &[RunRead]) -> Vec<Svg> {
    let mut kinds: Vec<String> = runs.iter().map(RunRead::kind).collect();
    kinds.sort();
    kinds.dedup();
    let mut all = Vec::new();
    for kind in kinds {
        let of_kind: Vec<&RunRead> = runs.iter().filter(|run| run.kind() == kind).collect();
        let losses = of_kind.iter().map(|run| (run.name.as_str(), loss(run)));
        let name = match kind.as_str() {
            "pretrain" => "loss of the last stage, logarithmic",
            _ => "loss, logarithmic",
        };
        let log = |values: Vec<f64>| Axis::log_around(values.into_iter());
        all.extend(chart(&format!("Loss: {kind}"), name, losses.collect(), log));
        let accuracies = of_kind.iter().map(|run| (run.name.as_str(), accuracy(run)));
        let name = "top-1 in % on the validation images";
        let linear = |values: Vec<f64>| Axis::around(values.into_iter(), 0.08);
        let title = format!("Accuracy: {kind}");
        all.extend(chart(&title, name, accuracies.collect(), linear));
    }
    all
}

/// (seconds of the steps so far, loss): in pretraining of the last stage, since others leave the sum.
fn loss(run: &RunRead) -> Vec<(f64, f64)> {
    let mut at = 0.0;
    let seconds: Vec<f64> = run
        .steps
        .iter()
        .map(|row| {
            at += row.seconds.total;
            at
        })
        .collect();
    let loss = |row: &crate::run::metrics::Row| match row.stage_losses.last() {
        Some(last) => *last,
        None => Some(row.loss),
    };
    let all = medians_by(&run.steps, |i| seconds[i], loss);
    smooth(
        &all.into_iter().filter(|p| p.1 > 0.0).collect::<Vec<_>>(),
        3,
    )
}

fn accuracy(run: &RunRead) -> Vec<(f64, f64)> {
    let mut rows = run.steps.iter().peekable();
    let mut at = 0.0;
    let mut place = |&(done, top1): &(usize, f64)| {
        while let Some(row) = rows.next_if(|row| row.step < done) {
            at += row.seconds.total;
        }
        (at, top1)
    };
    run.evaluations.iter().map(&mut place).collect()
}

fn chart(
    title: &str,
    name: &str,
    mut curves: Vec<Curve>,
    axis: impl Fn(Vec<f64>) -> Axis,
) -> Option<Svg> {
    curves.retain(|curve| !curve.1.is_empty());
    if curves.len() < 2 {
        return None;
    }
    let longest = curves.iter().flat_map(|c| c.1.iter().map(|p| p.0));
    let longest = longest.fold(1e-3, f64::max);
    let (unit, unit_name) = match longest {
        x if x < 120.0 => (1.0, "seconds"),
        x if x < 7200.0 => (60.0, "minutes"),
        _ => (3600.0, "hours"),
    };
    let high = (1.4 * HIGH).max(18.0 * curves.len() as f64);
    let mut svg = Svg::new(WIDTH, 84.0 + high + 60.0, title);
    svg.text(
        (24.0, 28.0),
        &font::fit(title, TITLE, WIDTH - 48.0),
        Text::title(),
    );
    let frame = Frame {
        area: [LEFT, 84.0, WIDTH - LEFT - NAMES - 40.0, high],
        x: Axis::new(0.0, 1.02 * longest / unit),
        y: axis(
            curves
                .iter()
                .flat_map(|c| c.1.iter().map(|p| p.1))
                .collect(),
        ),
    };
    frame.y_axis(&mut svg, name);
    frame.x_axis(&mut svg, Some(&format!("time of training in {unit_name}")));
    frame.base(&mut svg);
    let mut labels = Vec::new();
    for (i, (name, points)) in curves.into_iter().enumerate() {
        let color = color::series(i);
        // Where the colours begin again lines are dashed.
        let stroke = Stroke::new(color, 1.8).dashed(i / SERIES.len() % 2 == 1);
        let points: Vec<(f64, f64)> = points.iter().map(|p| (p.0 / unit, p.1)).collect();
        labels.push(EndLabel {
            at: line(&mut svg, &frame, &points, stroke),
            text: name.to_owned(),
            color,
        });
    }
    frame.end_labels(&mut svg, labels, NAMES + 40.0);
    Some(svg)
}
