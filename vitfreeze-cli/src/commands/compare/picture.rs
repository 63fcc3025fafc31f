//! Accuracy against wall time.
use plotters::prelude::*;

use crate::plot::{Area, Drawn, Picture};

/// A run: (seconds, top-1) after each evaluation.
pub struct Curve {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// All runs.
pub struct Accuracies {
    pub curves: Vec<Curve>,
}

/// Okabe and Ito's colours, which people with any colour vision tell apart.
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];

impl Picture for Accuracies {
    fn size(&self) -> (u32, u32) {
        (1000, 560 + 22 * self.curves.len() as u32)
    }

    fn paint<B: DrawingBackend>(&self, area: &Area<B>) -> Drawn<B::ErrorType> {
        let (above, below) = area.split_vertically(540);
        let all = || self.curves.iter().flat_map(|curve| &curve.points);
        let longest = all().map(|p| p.0).fold(1e-3, f64::max);
        let (low, high) = all().fold((100f64, 0f64), |(l, h), p| (l.min(p.1), h.max(p.1)));
        let (unit, name) = match longest {
            x if x < 120.0 => (1.0, "wall time in seconds, pretraining included"),
            x if x < 7200.0 => (60.0, "wall time in minutes, pretraining included"),
            _ => (3600.0, "wall time in hours, pretraining included"),
        };
        let room = (0.08 * (high - low)).max(0.5);
        let mut chart = ChartBuilder::on(&above)
            .margin(20)
            .x_label_area_size(50)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..1.05 * longest / unit, low - room..high + room)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(name)
            .y_desc("top-1 in %")
            .label_style(("sans-serif", 14))
            .draw()?;
        for (i, curve) in self.curves.iter().enumerate() {
            let color = COLORS[i % COLORS.len()];
            let points: Vec<(f64, f64)> = curve.points.iter().map(|p| (p.0 / unit, p.1)).collect();
            chart.draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?;
            let dots = points
                .into_iter()
                .map(|p| Circle::new(p, 4, color.filled()));
            chart.draw_series(dots)?;
            // Below, where no curve can be under it.
            let y = 6 + 22 * i as i32;
            below.draw(&Circle::new((90, y + 7), 5, color.filled()))?;
            let best = curve.points.iter().map(|p| p.1).fold(0.0, f64::max);
            let text = format!("{}: best {best:.2} %", curve.name.escape_debug());
            below.draw(&Text::new(text, (104, y), ("sans-serif", 14)))?;
        }
        Ok(())
    }
}
