//! The charts of a training run.
mod together;

pub use together::together;

use super::read::RunRead;
use crate::draw::axis::Axis;
use crate::draw::color::{self, Color, MUTED};
use crate::draw::frame::{EndLabel, Frame};
use crate::draw::{font, Stroke, Svg, Text, BODY, TITLE};
use crate::run::metrics::{median, Row};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 72.0;
/// For the names of lines, right of them.
const NAMES: f64 = 132.0;
const HIGH: f64 = 170.0;
/// From one chart to the next.
const APART: f64 = 96.0;
/// Points of a curve: steps are put together where there are more.
const POINTS: usize = 400;

/// Seconds per step, loss by stage, learning rates; `None` of a run without steps.
pub fn training(run: &RunRead) -> Option<Svg> {
    let last = run.steps.last()?;
    let title = match (run.setting("model"), run.steps.len()) {
        (Some(model), steps) => format!("{}: {model}, {steps} steps", run.name),
        (None, steps) => format!("{}: {steps} steps", run.name),
    };
    let accuracies = !run.evaluations.is_empty();
    let charts = if accuracies { 4.0 } else { 3.0 };
    let height = 78.0 + charts * HIGH + (charts - 1.0) * APART + 60.0;
    let mut svg = Svg::new(WIDTH, height, &title);
    let fitted = font::fit(&title, TITLE, WIDTH - 48.0);
    svg.text((24.0, 28.0), &fitted, Text::title());
    let x = Axis::new(0.0, last.step as f64 + 1.0);
    let area = |i: usize| {
        let top = 84.0 + i as f64 * (HIGH + APART);
        [LEFT, top, WIDTH - LEFT - NAMES, HIGH]
    };
    seconds(&mut svg, run, area(0), x);
    losses(&mut svg, run, area(1), x);
    rates(&mut svg, run, area(2), x);
    if accuracies {
        accuracy(&mut svg, run, area(3), x);
    }
    Some(svg)
}

/// One value for each of at most so many stretches of steps: (middle of the stretch, median).
fn medians(steps: &[Row], value: impl Fn(&Row) -> Option<f64>) -> Vec<(f64, f64)> {
    medians_by(steps, |i| steps[i].step as f64 + 0.5, value)
}

/// The same, each step at its own place.
fn medians_by(
    steps: &[Row],
    place: impl Fn(usize) -> f64,
    value: impl Fn(&Row) -> Option<f64>,
) -> Vec<(f64, f64)> {
    let stretch = steps.len().div_ceil(POINTS).max(1);
    let one = |(i, rows): (usize, &[Row])| {
        let middle = place(i * stretch + rows.len() / 2);
        let values = rows.iter().filter_map(&value).filter(|x| x.is_finite());
        Some((middle, median(values)?))
    };
    steps.chunks(stretch).enumerate().filter_map(one).collect()
}

/// The medians of so many neighbours: single steps of a shared machine are noisy.
fn smooth(points: &[(f64, f64)], around: usize) -> Vec<(f64, f64)> {
    let at = |i: usize| {
        let near = &points[i.saturating_sub(around)..(i + around + 1).min(points.len())];
        let middle = median(near.iter().map(|p| p.1)).unwrap_or(points[i].1);
        (points[i].0, middle)
    };
    (0..points.len()).map(at).collect()
}

/// The first steps of stretches with the same number of frozen layers and the same size of images.
fn stretches(steps: &[Row]) -> Vec<&Row> {
    let mut all: Vec<&Row> = Vec::new();
    for row in steps {
        let same = |last: &&Row| last.frozen == row.frozen && last.image_size == row.image_size;
        if !all.last().is_some_and(same) {
            all.push(row);
        }
    }
    all
}

fn line(svg: &mut Svg, frame: &Frame, points: &[(f64, f64)], stroke: Stroke) -> (f64, f64) {
    let points: Vec<(f64, f64)> = points.iter().map(|p| frame.at(*p)).collect();
    svg.line(&points, stroke);
    points.last().copied().unwrap_or_default()
}

/// Measured seconds, beside those that the counted costs make of an unfrozen step; above them how many layers are frozen.
fn seconds(svg: &mut Svg, run: &RunRead, area: [f64; 4], x: Axis) {
    let measured = smooth(&medians(&run.steps, |row| Some(row.seconds.total)), 4);
    let highest = measured.iter().map(|p| p.1).fold(1e-9, f64::max);
    let frame = Frame {
        area,
        x,
        y: Axis::new(0.0, 1.12 * highest),
    };
    frame.y_axis(svg, "seconds per step");
    frame.x_axis(svg, Some("step"));
    let stretches = stretches(&run.steps);
    let (mut sizes, mut counts) = (Vec::new(), Vec::new());
    for pair in stretches.windows(2) {
        let (before, row) = (pair[0], pair[1]);
        let at = frame.at((row.step as f64, 0.0)).0;
        let line = [(at, area[1]), (at, frame.bottom())];
        svg.line(&line, Stroke::new(MUTED, 0.7).faint(0.5).dashed(true));
        match row.image_size {
            Some(size) if before.image_size != row.image_size => {
                sizes.push((at, format!("{size} px")));
            }
            _ => counts.push((at, row.frozen.to_string())),
        }
    }
    // Where there is no room for all, the few sizes come before the many counts.
    let mut taken: Vec<[f64; 2]> = Vec::new();
    for (at, text) in sizes.into_iter().chain(counts) {
        let half = font::width(&text, BODY) / 2.0 + 2.0;
        let (from, to) = (at - half, at + half);
        if taken.iter().all(|[a, b]| to <= *a || *b <= from) {
            svg.text((at, area[1] - 8.0), &text, Text::small().middle());
            taken.push([from, to]);
        }
    }
    if stretches
        .iter()
        .any(|row| row.frozen != stretches[0].frozen)
    {
        let at = (frame.right() + 8.0, area[1] - 8.0);
        svg.text(at, "layers frozen", Text::small());
    }
    frame.base(svg);
    let mut labels = Vec::new();
    let counted = |row: &Row, frozen: usize| {
        let costs = run.costs_of(row.image_size)?;
        Some(costs.step(frozen).compute)
    };
    let whole = stretches.first().and_then(|first| counted(first, 0));
    if let (Some(whole), Some(unfrozen)) = (whole, run.unfrozen_step()) {
        let mut points = Vec::new();
        for (i, row) in stretches.iter().enumerate() {
            let Some(cost) = counted(row, row.frozen) else {
                continue;
            };
            let y = unfrozen * cost / whole;
            let end = stretches.get(i + 1);
            let end = end.map_or(x.high, |next| next.step as f64);
            points.extend([(row.step as f64, y), (end, y)]);
        }
        let color: Color = color::series(1);
        labels.push(EndLabel {
            at: line(svg, &frame, &points, Stroke::new(color, 1.6).dashed(true)),
            text: "ideal, counted".into(),
            color,
        });
    }
    let color = color::series(0);
    labels.push(EndLabel {
        at: line(svg, &frame, &measured, Stroke::new(color, 2.0)),
        text: "measured".into(),
        color,
    });
    frame.end_labels(svg, labels, NAMES);
}

/// The loss; in pretraining each stage's, until it is dropped.
fn losses(svg: &mut Svg, run: &RunRead, area: [f64; 4], x: Axis) {
    let stages = run.steps.iter().map(|row| row.stage_losses.len()).max();
    let stages = stages.unwrap_or(0);
    let mut curves: Vec<(String, Vec<(f64, f64)>)> = (0..stages)
        .map(|k| {
            let loss = |row: &Row| row.stage_losses.get(k).copied().flatten();
            (format!("stage {k}"), medians(&run.steps, loss))
        })
        .collect();
    if stages == 0 {
        curves.push(("loss".into(), medians(&run.steps, |row| Some(row.loss))));
    }
    let all: Vec<f64> = curves
        .iter()
        .flat_map(|c| c.1.iter().map(|p| p.1))
        .collect();
    let frame = Frame {
        area,
        x,
        y: Axis::log_around(all.iter().copied()),
    };
    let name = if stages > 0 {
        "loss by stage, logarithmic"
    } else {
        "loss, logarithmic"
    };
    frame.y_axis(svg, name);
    frame.x_axis(svg, Some("step"));
    frame.base(svg);
    let mut labels = Vec::new();
    for (k, (name, points)) in curves.into_iter().enumerate() {
        let color = match stages {
            0..=1 => color::series(0),
            _ => color::layer(k, stages),
        };
        let points: Vec<(f64, f64)> = points.into_iter().filter(|p| p.1 > 0.0).collect();
        let Some(last) = points.last().copied() else {
            continue;
        };
        labels.push(EndLabel {
            at: line(svg, &frame, &smooth(&points, 3), Stroke::new(color, 2.0)),
            text: format!("{name}: {:.4}", last.1),
            color,
        });
    }
    frame.end_labels(svg, labels, NAMES);
}

/// The layers' learning rates.
fn rates(svg: &mut Svg, run: &RunRead, area: [f64; 4], x: Axis) {
    let layers = run.steps.iter().map(|row| row.lr.len()).max().unwrap_or(0);
    let highest = run.steps.iter().flat_map(|row| row.lr.iter().copied());
    let frame = Frame {
        area,
        x,
        y: Axis::new(0.0, 1.05 * highest.fold(1e-12, f64::max)),
    };
    frame.y_axis(svg, "learning rate of each layer");
    frame.x_axis(svg, Some("step"));
    frame.base(svg);
    let mut labels = Vec::new();
    for layer in 0..layers {
        // Until it is frozen: behind that the rate is 0, which is no curve.
        let rate = |row: &Row| row.lr.get(layer).copied().filter(|_| row.frozen <= layer);
        let points = medians(&run.steps, rate);
        let color = color::layer(layer, layers);
        let end = line(svg, &frame, &points, Stroke::new(color, 1.8));
        if let Some(frozen) = run
            .steps
            .iter()
            .find(|row| row.frozen > layer && row.step > 0)
        {
            let last = points.last().map_or(0.0, |p| p.1);
            svg.dot(frame.at((frozen.step as f64, last)), 3.6, color);
        }
        if layer == 0 || layer + 1 == layers {
            labels.push(EndLabel {
                at: end,
                text: format!("layer {layer}"),
                color,
            });
        }
    }
    frame.end_labels(svg, labels, NAMES);
}

/// Top-1 after each evaluation.
fn accuracy(svg: &mut Svg, run: &RunRead, area: [f64; 4], x: Axis) {
    let points: Vec<(f64, f64)> = run.evaluations.iter().map(|e| (e.0 as f64, e.1)).collect();
    let frame = Frame {
        area,
        x,
        y: Axis::around(points.iter().map(|p| p.1), 0.08),
    };
    frame.y_axis(svg, "top-1 in % on the validation images");
    frame.x_axis(svg, Some("step"));
    frame.base(svg);
    let color = color::series(0);
    let end = line(svg, &frame, &points, Stroke::new(color, 2.0));
    if points.len() <= 30 {
        points
            .iter()
            .for_each(|p| svg.dot(frame.at(*p), 3.4, color));
    }
    let best = points.iter().map(|p| p.1).fold(0.0, f64::max);
    let text = format!("best {best:.2} %");
    frame.end_labels(
        svg,
        vec![EndLabel {
            at: end,
            text,
            color,
        }],
        NAMES,
    );
}

/// Where the time of all steps went, as one bar; `None` of a run without steps.
pub fn phases(run: &RunRead) -> Option<Svg> {
    let mut sum = run.steps.first()?.seconds;
    run.steps[1..].iter().for_each(|row| sum.add(&row.seconds));
    let all = [
        ("data", sum.data),
        ("forward", sum.forward),
        ("backward", sum.backward),
        ("optimiser", sum.optimizer),
        ("communication", sum.communication),
    ];
    let total: f64 = all.iter().map(|p| p.1).sum();
    if total.is_nan() || total <= 0.0 {
        return None;
    }
    let width = WIDTH - 48.0;
    let mut svg = Svg::new(WIDTH, 84.0, "Where the time of all steps went");
    let (mut left, mut name_left) = (24.0, 24.0);
    for (i, (name, seconds)) in all.iter().enumerate().filter(|(_, p)| p.1 > 0.0) {
        let part = seconds / total;
        svg.rect(
            [left, 20.0, (width * part).max(1.0), 24.0],
            color::series(i),
            0.0,
        );
        left += width * part;
        let text = format!("{name} {:.1} %", 100.0 * part);
        svg.rect([name_left, 58.0, 10.0, 10.0], color::series(i), 2.0);
        svg.text((name_left + 16.0, 63.0), &text, Text::body());
        name_left += 38.0 + font::width(&text, BODY);
    }
    Some(svg)
}
