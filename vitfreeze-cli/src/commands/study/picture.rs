//! The pictures of a study.
use super::lab::{Arm, Lab};
use super::plan::Derived;
use super::results::Results;
use crate::draw::axis::Axis;
use crate::draw::color;
use crate::draw::frame::{EndLabel, Frame};
use crate::draw::{Stroke, Svg, Text};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 84.0;
const HIGH: f64 = 320.0;
/// For names, right of the chart.
const NAMES: f64 = 190.0;
/// Colours of the two curves of equal time.
const LESS: usize = 1;
const EARLY: usize = 2;

/// An arm's place.
struct Point {
    arm: usize,
    seconds: f64,
    mean: f64,
    /// Half the interval's length.
    half: Option<f64>,
}

/// A judge's accuracies against measured time, with what no freezing reaches in the same time; `None` without results.
pub fn against_time(lab: &Lab, results: &Results, judge: usize) -> Option<Svg> {
    let points: Vec<Point> = (0..lab.arms.len())
        .filter_map(|arm| {
            let spread = results.accuracy(arm, judge)?;
            Some(Point {
                arm,
                seconds: results.seconds(arm)?,
                mean: spread.mean,
                half: spread.half_interval(),
            })
        })
        .collect();
    if points.is_empty() {
        return None;
    }
    let longest = points.iter().map(|p| p.seconds).fold(0.0, f64::max);
    let (unit, unit_name) = match longest {
        x if x < 120.0 => (1.0, "seconds"),
        x if x < 7200.0 => (60.0, "minutes"),
        _ => (3600.0, "hours"),
    };
    let command = lab.plan.afters[judge].judge.command();
    let title = format!("Top-1 by {command} against the time of pretraining");
    let mut svg = chart(&title);
    let ends = points.iter().flat_map(|&Point { mean, half, .. }| {
        // An interval of two seeds may be six times as long as all else: it is cut off.
        let half = half.unwrap_or(0.0).min(3.0);
        [mean - half, mean + half]
    });
    let frame = Frame {
        area: area(),
        x: Axis::around(points.iter().map(|p| p.seconds / unit), 0.1),
        y: Axis::around(ends, 0.06),
    };
    frame.y_axis(
        &mut svg,
        "top-1 in %, mean over the seeds and its 95 % interval",
    );
    frame.x_axis(&mut svg, Some(&format!("measured time in {unit_name}")));
    frame.base(&mut svg);
    let place = |(x, y): (f64, f64)| {
        let (x, y) = frame.at((x / unit, y));
        (x, y.clamp(frame.area[1], frame.bottom()))
    };
    let mut labels = Vec::new();
    // What no freezing reaches: each variant that others are compared with, and its parts and short forms.
    for against in 0..lab.plan.variants.len() {
        for (derived, name, hue) in [
            (Derived::TrainLess, "train less", LESS),
            (Derived::StopEarly, "stop early", EARLY),
        ] {
            let belongs = |arm: &Arm| match arm.derived {
                None => arm.variant == against,
                Some(d) => d == derived && lab.plan.variants[arm.variant].against == against,
            };
            let mut curve: Vec<(f64, f64)> = points
                .iter()
                .filter(|p| belongs(&lab.arms[p.arm]))
                .map(|p| (p.seconds, p.mean))
                .collect();
            if curve.len() < 2 {
                continue;
            }
            curve.sort_by(|a, b| a.0.total_cmp(&b.0));
            let curve: Vec<(f64, f64)> = curve.into_iter().map(place).collect();
            let color = color::series(hue);
            svg.line(
                &curve,
                Stroke::new(color, 1.6).dashed(derived == Derived::StopEarly),
            );
            labels.push(EndLabel {
                at: curve[0],
                text: name.into(),
                color,
            });
        }
    }
    for point in points {
        let Point {
            arm,
            seconds: x,
            mean,
            half,
        } = point;
        let hue = match lab.arms[arm].derived {
            None => 0,
            Some(Derived::TrainLess) => LESS,
            Some(Derived::StopEarly) => EARLY,
        };
        let (color, at) = (color::series(hue), place((x, mean)));
        if let Some(half) = half {
            let line = [place((x, mean - half)), place((x, mean + half))];
            svg.line(&line, Stroke::new(color, 1.0).faint(0.5));
        }
        svg.dot(at, if hue == 0 { 4.8 } else { 3.4 }, color);
        if hue == 0 {
            labels.push(EndLabel {
                at,
                text: lab.name(arm),
                color,
            });
        }
    }
    frame.end_labels(&mut svg, labels, NAMES);
    Some(svg)
}

/// How many layers each variant froze, over its run, with the first seed; `None` where none froze any.
pub fn frozen(lab: &Lab, results: &Results) -> Option<Svg> {
    let mut curves = Vec::new();
    for (arm, parts) in lab
        .arms
        .iter()
        .enumerate()
        .filter(|(_, a)| a.derived.is_none())
    {
        let row = results
            .of(arm)
            .find(|row| row.frozen.last().is_some_and(|&n| n > 0));
        if let Some(row) = row {
            curves.push((lab.plan.variants[parts.variant].name.clone(), &row.frozen));
        }
    }
    if curves.is_empty() {
        return None;
    }
    let layers = lab.plan.variants.iter().map(|v| v.schedule.layers).max()?;
    let mut svg = chart("Frozen layers over the run");
    let frame = Frame {
        area: area(),
        x: Axis::new(0.0, 100.0),
        y: Axis::new(0.0, layers as f64),
    };
    frame.y_axis(&mut svg, "layers frozen, with the first seed");
    frame.x_axis(&mut svg, Some("% of the run's steps"));
    frame.base(&mut svg);
    let mut labels = Vec::new();
    for (i, (name, frozen)) in curves.into_iter().enumerate() {
        let part = |step: usize| 100.0 * step as f64 / frozen.len() as f64;
        let mut points = vec![(0.0, 0.0)];
        let mut last = 0;
        for (step, &now) in frozen
            .iter()
            .enumerate()
            .filter(|(i, &n)| *i == 0 || n != frozen[i - 1])
        {
            points.extend([(part(step), last as f64), (part(step), now as f64)]);
            last = now;
        }
        points.push((100.0, last as f64));
        let points: Vec<(f64, f64)> = points.into_iter().map(|p| frame.at(p)).collect();
        let (color, dashed) = (color::series(i), i / color::SERIES.len() % 2 == 1);
        svg.line(&points, Stroke::new(color, 1.6).dashed(dashed));
        labels.push(EndLabel {
            at: points.last().copied().unwrap_or_default(),
            text: name,
            color,
        });
    }
    frame.end_labels(&mut svg, labels, NAMES);
    Some(svg)
}

fn area() -> [f64; 4] {
    [LEFT, TOP, WIDTH - LEFT - NAMES, HIGH]
}

fn chart(title: &str) -> Svg {
    let mut svg = Svg::new(WIDTH, TOP + HIGH + 56.0, title);
    svg.text((24.0, 28.0), title, Text::title());
    svg
}
