//! Pictures: writing any as PNG or SVG, and a schedule's: learning rates above, below them when each layer trains.
use std::path::Path;
use std::sync::Once;

use anyhow::{anyhow, Result};
use freezeout::{LayerLr, Schedule};
use plotters::prelude::*;
use plotters::style::{register_font, FontStyle};

use crate::usage::usage;

const WIDTH: u32 = 1200;
/// Points of a curve.
const POINTS: usize = 600;

/// Refuses a file name that says neither PNG nor SVG.
pub fn check(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        let (path, folder) = (path.display(), folder.display());
        return Err(usage(format!(
            "cannot write {path}: there is no folder {folder}"
        )));
    }
    match path.extension().and_then(|e| e.to_str()) {
        Some("png" | "svg") => Ok(()),
        _ => Err(usage(format!(
            "{}: the name must end in .png or .svg",
            path.display()
        ))),
    }
}

/// What can be drawn on pixels and as SVG alike.
pub trait Picture {
    /// Width and height in pixels.
    fn size(&self) -> (u32, u32);

    /// Draws it on a white ground.
    fn paint<B: DrawingBackend>(&self, area: &Area<B>) -> Drawn<B::ErrorType>;
}

/// Draws a schedule to `path`.
pub fn draw(
    path: &Path,
    title: &str,
    schedule: &Schedule,
    labels: &[String],
    epoch: &dyn Fn(usize) -> f64,
) -> Result<()> {
    let picture = Timetable {
        title,
        schedule,
        labels,
        epoch,
    };
    save(path, &picture)
}

/// Draws to `path`; the file is written as a whole or not at all.
pub fn save(path: &Path, picture: &impl Picture) -> Result<()> {
    static FONT: Once = Once::new();
    // A font of our own: the machine may have none.
    FONT.call_once(|| {
        let font = dejavu::sans::regular();
        if register_font("sans-serif", FontStyle::Normal, font).is_err() {
            eprintln!("the plot's font cannot be read");
        }
    });
    let (width, height) = picture.size();
    let failed = |e: &dyn std::fmt::Display| anyhow!("cannot draw {}: {e}", path.display());
    let bytes = if path.extension().is_some_and(|e| e == "svg") {
        let mut text = String::new();
        let area = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
        paint(&area, picture).map_err(|e| failed(&e))?;
        drop(area);
        text.into_bytes()
    } else {
        let mut pixels = vec![0; (3 * width * height) as usize];
        let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        paint(&area, picture).map_err(|e| failed(&e))?;
        drop(area);
        let mut png = Vec::new();
        let encoder = image::codecs::png::PngEncoder::new(&mut png);
        let color = image::ExtendedColorType::Rgb8;
        image::ImageEncoder::write_image(encoder, &pixels, width, height, color)?;
        png
    };
    Ok(vit::write_atomic(path, &bytes)?)
}

pub type Area<B> = DrawingArea<B, plotters::coord::Shift>;
pub type Drawn<E> = Result<(), DrawingAreaErrorKind<E>>;

fn paint<B: DrawingBackend>(area: &Area<B>, picture: &impl Picture) -> Drawn<B::ErrorType> {
    area.fill(&WHITE)?;
    picture.paint(area)?;
    area.present()
}

struct Timetable<'a> {
    title: &'a str,
    schedule: &'a Schedule,
    labels: &'a [String],
    epoch: &'a dyn Fn(usize) -> f64,
}

impl Picture for Timetable<'_> {
    fn size(&self) -> (u32, u32) {
        (WIDTH, 460 + 20 * self.labels.len() as u32)
    }

    fn paint<B: DrawingBackend>(&self, area: &Area<B>) -> Drawn<B::ErrorType> {
        let area = area.titled(self.title, ("sans-serif", 20))?;
        let (above, below) = area.split_vertically(360);
        rates(&above, self.schedule, self.labels.len(), self.epoch)?;
        bars(&below, self.schedule, self.labels, self.epoch)
    }
}

/// Violet (input), teal, light green (output).
fn color(layer: usize, layers: usize) -> RGBColor {
    const STOPS: [[f64; 3]; 3] = [
        [68.0, 1.0, 84.0],
        [33.0, 145.0, 140.0],
        [150.0, 210.0, 60.0],
    ];
    let place = 2.0 * layer as f64 / layers.saturating_sub(1).max(1) as f64;
    let (from, part) = (place.floor().min(1.0), place - place.floor().min(1.0));
    let (from, to) = (STOPS[from as usize], STOPS[from as usize + 1]);
    let mix = |c: usize| (from[c] + part * (to[c] - from[c])) as u8;
    RGBColor(mix(0), mix(1), mix(2))
}

/// The learning rate of each layer over the epochs; a dot where it freezes.
fn rates<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    schedule: &Schedule,
    layers: usize,
    epoch: &dyn Fn(usize) -> f64,
) -> Drawn<B::ErrorType> {
    let last = schedule.steps - 1;
    let steps: Vec<usize> = (0..=POINTS).map(|i| i * last / POINTS).collect();
    let rate = |step: usize, layer: usize| schedule.lr(step, Some(layer));
    let all = (0..layers).flat_map(|layer| steps.iter().map(move |&step| rate(step, layer)));
    let highest = all.fold(f64::MIN_POSITIVE, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin_right(30)
        .x_label_area_size(24)
        .y_label_area_size(150)
        .build_cartesian_2d(0.0..epoch(schedule.steps), 0.0..1.05 * highest)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .y_label_formatter(&|lr| format!("{lr:.1e}"))
        .label_style(("sans-serif", 14))
        .draw()?;
    let name = Text::new("learning rate", (8, 0), ("sans-serif", 14));
    area.draw(&name)?;
    for layer in 0..layers {
        let color = color(layer, layers);
        // One line for each stretch of training.
        for stretch in steps.split(|&step| schedule.is_frozen(step, layer)) {
            let points = stretch.iter().map(|&step| (epoch(step), rate(step, layer)));
            chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
        }
    }
    // Common to all layers under shared rates, so drawn last.
    for layer in 0..layers {
        let Some(step) = schedule.freeze_step(layer).filter(|&step| step > 0) else {
            continue;
        };
        let at = (epoch(step), rate(step - 1, layer));
        chart.draw_series([Circle::new(at, 4, color(layer, layers).filled())])?;
        // Only where all follow one curve are the dots far enough from each other to be numbered.
        if schedule.layer_lr == LayerLr::Shared && layers <= 40 {
            let number = Text::new(layer.to_string(), (4, -16), ("sans-serif", 14));
            chart.draw_series([EmptyElement::at(at) + number])?;
        }
    }
    Ok(())
}

/// A bar for each layer while it trains.
fn bars<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    schedule: &Schedule,
    labels: &[String],
    epoch: &dyn Fn(usize) -> f64,
) -> Drawn<B::ErrorType> {
    let layers = labels.len();
    let mut chart = ChartBuilder::on(area)
        .margin_right(30)
        .margin_top(10)
        .x_label_area_size(44)
        .y_label_area_size(150)
        .build_cartesian_2d(0.0..epoch(schedule.steps), 0.0..layers as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(WHITE)
        .disable_y_axis()
        .x_desc("epoch; a bar while the layer trains")
        .label_style(("sans-serif", 14))
        .draw()?;
    let mut changes: Vec<usize> = schedule
        .changes()
        .iter()
        .map(|change| change.step)
        .collect();
    changes.insert(0, 0);
    changes.push(schedule.steps);
    for (layer, label) in labels.iter().enumerate() {
        let bottom = layer as f64;
        for pair in changes.windows(2).filter(|pair| pair[0] < pair[1]) {
            if !schedule.is_frozen(pair[0], layer) {
                let corners = [
                    (epoch(pair[0]), bottom + 0.12),
                    (epoch(pair[1]), bottom + 0.88),
                ];
                chart.draw_series([Rectangle::new(corners, color(layer, layers).filled())])?;
            }
        }
        let start = (0.0, bottom + 0.5);
        let text = Text::new(format!("{layer} {label}"), (-142, -7), ("sans-serif", 14));
        chart.draw_series([EmptyElement::at(start) + text])?;
        if let Some(step) = schedule.freeze_step(layer).filter(|&step| step > 0) {
            let end = (epoch(step), bottom + 0.5);
            let text = Text::new(format!("{:.1}", epoch(step)), (6, -7), ("sans-serif", 14));
            chart.draw_series([EmptyElement::at(end) + text])?;
        }
    }
    Ok(())
}
