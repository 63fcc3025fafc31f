//! Accuracy against wall time.
use crate::draw::axis::Axis;
use crate::draw::color::{self, SERIES};
use crate::draw::frame::{EndLabel, Frame};
use crate::draw::{font, Stroke, Svg, Text, BODY};

/// A run: (seconds, top-1) after each evaluation.
pub struct Curve {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// The first of its best evaluations.
    fn best(&self) -> (f64, f64) {
        let better = |a: (f64, f64), b: &(f64, f64)| if b.1 > a.1 { *b } else { a };
        self.points.iter().fold((0.0, f64::NEG_INFINITY), better)
    }
}

const LEFT: f64 = 64.0;
const TOP: f64 = 78.0;
const WIDTH: f64 = 470.0;
const HEIGHT: f64 = 320.0;
/// What dots need to be told from each other.
const DOTS_APART: f64 = 9.0;

/// The runs' accuracies: a line through all evaluations, a dot at the best, the name beside it.
pub fn draw(curves: &[Curve]) -> Svg {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let longest = all().map(|p| p.0).fold(1e-3, f64::max);
    let (unit, unit_name) = match longest {
        x if x < 120.0 => (1.0, "seconds"),
        x if x < 7200.0 => (60.0, "minutes"),
        _ => (3600.0, "hours"),
    };
    let names: Vec<String> = curves
        .iter()
        .map(|curve| format!("{}: {:.2} %", curve.name, curve.best().1))
        .collect();
    let widest = names.iter().map(|name| font::width(name, BODY));
    let room = widest.fold(0.0, f64::max).min(320.0) + 36.0;
    let height = HEIGHT.max(17.0 * curves.len() as f64);
    let mut svg = Svg::new(
        LEFT + WIDTH + room,
        TOP + height + 56.0,
        "Top-1 accuracy of runs against wall time",
    );
    svg.text(
        (24.0, 28.0),
        "Accuracy against wall time, pretraining included",
        Text::title(),
    );
    let frame = Frame {
        area: [LEFT, TOP, WIDTH, height],
        x: Axis::new(0.0, 1.03 * longest / unit),
        y: Axis::around(all().map(|p| p.1), 0.06),
    };
    frame.y_axis(&mut svg, "top-1 in %; the dot with a name is a run's best");
    frame.x_axis(&mut svg, Some(&format!("wall time in {unit_name}")));
    frame.base(&mut svg);
    let place = |p: &(f64, f64)| frame.at((p.0 / unit, p.1));
    let all: Vec<Vec<(f64, f64)>> = curves
        .iter()
        .map(|curve| curve.points.iter().map(place).collect())
        .collect();
    let (mut labels, mut taken) = (Vec::new(), Vec::new());
    for (i, ((curve, name), points)) in curves.iter().zip(names).zip(&all).enumerate() {
        let color = color::series(i);
        // Where the colours begin again lines are dashed.
        let stroke = Stroke::new(color, 1.8).dashed(i / SERIES.len() % 2 == 1);
        svg.line(points, stroke);
        // Ninety epochs within a minute are a line without dots.
        let apart = points.windows(2).all(|p| p[1].0 - p[0].0 >= DOTS_APART);
        for &point in points.iter().filter(|_| apart) {
            svg.dot(point, 3.0, color);
        }
        let at = place(&curve.best());
        svg.dot(at, 4.8, color);
        let beside = [at.0 + 10.0, at.1 - 9.0, font::width(&name, BODY), 18.0];
        if beside[0] + beside[2] < frame.right() && is_free(beside, &all, &taken) {
            taken.push(beside);
            svg.text((beside[0], at.1), &name, Text::body().color(color));
            continue;
        }
        labels.push(EndLabel {
            at,
            text: name,
            color,
        });
    }
    frame.end_labels(&mut svg, labels, room);
    svg
}

/// Whether neither a curve nor another name lies in a rectangle.
fn is_free(
    [x, y, width, height]: [f64; 4],
    curves: &[Vec<(f64, f64)>],
    taken: &[[f64; 4]],
) -> bool {
    let inside =
        |p: (f64, f64)| (x - 4.0..x + width + 4.0).contains(&p.0) && (y..y + height).contains(&p.1);
    let crosses = |a: (f64, f64), b: (f64, f64)| {
        let at = |i: u32| {
            let part = f64::from(i) / 64.0;
            (a.0 + part * (b.0 - a.0), a.1 + part * (b.1 - a.1))
        };
        (0..=64).any(|i| inside(at(i)))
    };
    let met = |curve: &Vec<(f64, f64)>| {
        curve.windows(2).any(|p| crosses(p[0], p[1])) || curve.iter().any(|&p| inside(p))
    };
    let over =
        |t: &[f64; 4]| x < t[0] + t[2] && t[0] < x + width && y < t[1] + t[3] && t[1] < y + height;
    !curves.iter().any(met) && !taken.iter().any(over)
}
