//! A schedule: learning rates above, below them when each layer trains.
use freezeout::{LayerLr, Schedule};

use crate::draw::axis::Axis;
use crate::draw::color::{self, Color, GRID, MUTED};
use crate::draw::frame::Frame;
use crate::draw::{font, Stroke, Svg, Text, BODY, SMALL};

/// Points of a curve.
const POINTS: usize = 600;
/// Widths of the drawing and of its margins.
const WIDTH: f64 = 760.0;
const MARGIN: f64 = 24.0;
/// Where the curves begin, how high they are, and how high each layer's bar is with its gap.
const TOP: f64 = 78.0;
const CURVES: f64 = 190.0;
const ROW: f64 = 17.0;
/// Most layers whose names all fit beside their bars.
const MOST_LABELS: usize = 64;

/// The picture of `schedule`, whose layers have these names; `epoch` tells when a step is.
pub fn draw(
    title: &str,
    schedule: &Schedule,
    labels: &[String],
    epoch: &dyn Fn(usize) -> f64,
) -> Svg {
    let names: Vec<String> = labels
        .iter()
        .enumerate()
        .map(|(layer, label)| format!("{layer} {label}"))
        .collect();
    let widest = names.iter().map(|name| font::width(name, BODY));
    let left = MARGIN + widest.fold(60.0, f64::max) + 10.0;
    let width = WIDTH - left - MARGIN - 8.0;
    let row = if labels.len() > MOST_LABELS { 6.0 } else { ROW };
    let bars = row * labels.len() as f64;
    let mut svg = Svg::new(WIDTH, TOP + CURVES + 40.0 + bars + 56.0, title);
    let title = font::fit(title, Text::title().size, WIDTH - 2.0 * MARGIN);
    svg.text((MARGIN, 28.0), &title, Text::title());
    let picture = Picture {
        schedule,
        layers: labels.len(),
        epoch,
        x: Axis::new(0.0, epoch(schedule.steps)),
    };
    picture.rates(&mut svg, [left, TOP, width, CURVES]);
    picture.bars(&mut svg, [left, TOP + CURVES + 40.0, width, bars], &names);
    svg
}

struct Picture<'a> {
    schedule: &'a Schedule,
    layers: usize,
    epoch: &'a dyn Fn(usize) -> f64,
    x: Axis,
}

impl Picture<'_> {
    /// One curve for all layers has the colour of none.
    fn line_color(&self, layer: usize) -> Color {
        match self.schedule.layer_lr {
            LayerLr::Shared => MUTED,
            _ => color::layer(layer, self.layers),
        }
    }

    /// The learning rate of each layer over the epochs; a dot where it freezes.
    fn rates(&self, svg: &mut Svg, area: [f64; 4]) {
        let schedule = self.schedule;
        let last = schedule.steps - 1;
        let steps: Vec<usize> = (0..=POINTS).map(|i| i * last / POINTS).collect();
        let rate = |step: usize, layer: usize| schedule.lr(step, Some(layer));
        let all =
            (0..self.layers).flat_map(|layer| steps.iter().map(move |&step| rate(step, layer)));
        let highest = all.fold(f64::MIN_POSITIVE, f64::max);
        let frame = Frame {
            area,
            x: self.x,
            y: Axis::new(0.0, 1.04 * highest),
        };
        frame.x_axis(svg, None);
        frame.y_axis(svg, "learning rate");
        frame.base(svg);
        for layer in 0..self.layers {
            // One line for each stretch of training.
            for stretch in steps.split(|&step| schedule.is_frozen(step, layer)) {
                let points: Vec<(f64, f64)> = stretch
                    .iter()
                    .map(|&step| frame.at(((self.epoch)(step), rate(step, layer))))
                    .collect();
                svg.line(&points, Stroke::new(self.line_color(layer), 2.0));
            }
        }
        // Common to all layers under shared rates, so drawn last.
        let mut numbered = f64::NEG_INFINITY;
        for layer in 0..self.layers {
            let Some(step) = schedule.freeze_step(layer).filter(|&step| step > 0) else {
                continue;
            };
            let (x, y) = frame.at(((self.epoch)(step), rate(step - 1, layer)));
            svg.dot((x, y), 4.2, color::layer(layer, self.layers));
            // Only where all follow one curve are the dots far enough from each other to be numbered, and not all of many.
            let number = layer.to_string();
            let room = font::width(&number, SMALL) + 4.0;
            if schedule.layer_lr == LayerLr::Shared && x - numbered >= room {
                svg.text((x + 3.0, y - 11.0), &number, Text::small().middle());
                numbered = x;
            }
        }
    }

    /// A bar for each layer while it trains, and the epoch that ends it.
    fn bars(&self, svg: &mut Svg, area: [f64; 4], names: &[String]) {
        let frame = Frame {
            area,
            x: self.x,
            y: Axis::new(0.0, names.len() as f64),
        };
        frame.x_axis(svg, Some("epoch; a bar while the layer trains"));
        let [left, top, _, height] = area;
        let row = height / names.len() as f64;
        let changes = self.schedule.changes();
        let mut changes: Vec<usize> = changes.iter().map(|change| change.step).collect();
        changes.insert(0, 0);
        changes.push(self.schedule.steps);
        for (layer, name) in names.iter().enumerate() {
            // The input is below, as the network is usually drawn.
            let y = top + row * (names.len() - 1 - layer) as f64;
            let x = |step: usize| frame.at(((self.epoch)(step), 0.0)).0;
            let mut stretches: Vec<(usize, usize)> = Vec::new();
            for pair in changes.windows(2).filter(|pair| pair[0] < pair[1]) {
                match stretches.last_mut() {
                    _ if self.schedule.is_frozen(pair[0], layer) => {}
                    Some(last) if last.1 == pair[0] => last.1 = pair[1],
                    _ => stretches.push((pair[0], pair[1])),
                }
            }
            for (start, end) in stretches {
                let bar = [x(start), y + 0.14 * row, x(end) - x(start), 0.72 * row];
                svg.rect(bar, color::layer(layer, self.layers), 0.0);
            }
            let every = names.len().div_ceil(MOST_LABELS);
            if layer % (4 * every - 3) != 0 {
                continue;
            }
            svg.text((left - 10.0, y + row / 2.0), name, Text::body().end());
            if let Some(step) = self.schedule.freeze_step(layer).filter(|&step| step > 0) {
                let at = (x(step) + 7.0, y + row / 2.0);
                svg.text(at, &format!("{:.1}", (self.epoch)(step)), Text::small());
            }
        }
        frame.base(svg);
        svg.line(
            &[(left, top), (left, frame.bottom())],
            Stroke::new(GRID, 1.0),
        );
    }
}
