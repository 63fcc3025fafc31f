//! All images as points.
use crate::draw::axis::Axis;
use crate::draw::color::{self, mix, Color, GRID, MUTED, SERIES, WHITE};
use crate::draw::{font, Stroke, Svg, Text, BODY};

/// Classes with a colour and a form of their own; the points of others are grey.
const MOST_CLASSES: usize = 3 * SERIES.len();

/// Where images lie, and what they are.
pub struct Map {
    pub points: Vec<(f64, f64)>,
    pub labels: Vec<usize>,
    /// Empty without labels.
    pub classes: Vec<String>,
    /// What decided where they lie.
    pub by: String,
}

/// A dot, a square or a triangle.
fn mark(svg: &mut Svg, (x, y): (f64, f64), class: Option<usize>) {
    let (color, form) = match class {
        Some(class) => (color::series(class), class / SERIES.len()),
        None => (mix(MUTED, WHITE, 0.5), 0),
    };
    let rim: Color = WHITE;
    match form {
        0 => svg.dot((x, y), 3.4, color),
        1 => {
            svg.rect([x - 3.8, y - 3.8, 7.6, 7.6], rim, 0.0);
            svg.rect([x - 3.0, y - 3.0, 6.0, 6.0], color, 0.0);
        }
        _ => {
            let triangle = |r: f64| {
                [
                    (x, y - r),
                    (x + 0.9 * r, y + 0.7 * r),
                    (x - 0.9 * r, y + 0.7 * r),
                ]
            };
            svg.area(&triangle(5.2), rim, 1.0);
            svg.area(&triangle(4.0), color, 1.0);
        }
    }
}

impl Map {
    /// Draws it over a rectangle, the names of the classes right of it.
    pub fn draw(&self, svg: &mut Svg, [left, top, width, height]: [f64; 4]) {
        let title = format!("{} images {}", self.points.len(), self.by);
        svg.text((left, top - 16.0), &title, Text::body());
        svg.outline([left, top, width, height], Stroke::new(GRID, 1.0));
        let x = Axis::around(self.points.iter().map(|p| p.0), 0.04);
        let y = Axis::around(self.points.iter().map(|p| p.1), 0.04);
        let named = self.classes.len().min(MOST_CLASSES);
        for (i, point) in self.points.iter().enumerate() {
            let at = (
                left + width * x.place(point.0),
                top + height * (1.0 - y.place(point.1)),
            );
            mark(
                svg,
                at,
                self.labels.get(i).copied().filter(|&label| label < named),
            );
        }
        let right = left + width + 20.0;
        let room = svg.width - right - 34.0;
        for (class, name) in self.classes.iter().take(named).enumerate() {
            let at = (right + 4.0, top + 8.0 + 18.0 * class as f64);
            mark(svg, at, Some(class));
            svg.text(
                (at.0 + 12.0, at.1),
                &font::fit(name, BODY, room),
                Text::body(),
            );
        }
        if self.classes.len() > named {
            let at = (right + 4.0, top + 8.0 + 18.0 * named as f64);
            mark(svg, at, None);
            let text = format!("{} more", self.classes.len() - named);
            svg.text((at.0 + 12.0, at.1), &text, Text::muted());
        }
    }
}
