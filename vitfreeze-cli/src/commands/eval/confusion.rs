//! A confusion matrix as a picture.
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::accuracy;
use crate::plot::{Area, Drawn, Picture};

/// About so wide and high is the matrix in pixels.
const SIDE: usize = 760;
/// Most classes whose cells are large enough for a number, and whose names fit.
const NUMBERED: usize = 20;
const NAMED: usize = 60;
const LEFT: i32 = 170;
const TOP: i32 = 50;
const BOTTOM: i32 = 150;

/// Each row is the images of one class; the darker a cell, the greater the part of them that was taken for that column.
pub struct Confusion<'a> {
    names: &'a [String],
    cells: &'a accuracy::Confusion,
    /// Classes that share a cell, neighbours: a picture of a pixel for each of 21,841 classes opens nowhere.
    group: usize,
    /// Side of a cell in pixels.
    cell: i32,
}

impl<'a> Confusion<'a> {
    pub fn new(names: &'a [String], cells: &'a accuracy::Confusion) -> Self {
        let classes = names.len().max(1);
        let group = classes.div_ceil(2 * SIDE);
        let cell = (SIDE / classes.div_ceil(group)).clamp(1, 76) as i32;
        Self {
            names,
            cells,
            group,
            cell,
        }
    }

    /// Images by (row, column), and those of each row.
    fn grouped(&self) -> (accuracy::Confusion, Vec<u64>) {
        let mut sums = vec![0; self.names.len().div_ceil(self.group)];
        let mut grouped = accuracy::Confusion::new();
        for (&(class, guess), &images) in self.cells {
            let (row, column) = (class / self.group, guess / self.group);
            sums[row] += images;
            *grouped.entry((row, column)).or_default() += images;
        }
        (grouped, sums)
    }

    fn side(&self) -> i32 {
        self.cell * self.names.len().div_ceil(self.group) as i32
    }
}

/// White to dark blue. The square root keeps rare confusions visible.
fn shade(part: f64) -> RGBColor {
    let mix = |light: f64, dark: f64| (light + part.sqrt() * (dark - light)) as u8;
    RGBColor(mix(255.0, 8.0), mix(255.0, 48.0), mix(255.0, 107.0))
}

fn short(name: &str) -> String {
    let mut chars = name.chars().filter(|c| !c.is_control());
    let text: String = chars.by_ref().take(17).collect();
    match chars.next() {
        Some(_) => text + "..",
        None => text,
    }
}

impl Picture for Confusion<'_> {
    fn size(&self) -> (u32, u32) {
        let side = self.side().max(300);
        ((LEFT + side + 30) as u32, (TOP + side + BOTTOM) as u32)
    }

    fn paint<B: DrawingBackend>(&self, area: &Area<B>) -> Drawn<B::ErrorType> {
        let (classes, cell, side) = (self.names.len(), self.cell, self.side());
        let font = ("sans-serif", 14).into_font();
        let at = |h, v| font.clone().color(&BLACK).pos(Pos::new(h, v));
        let title = "rows: true class; columns: predicted; darker: a larger part of the row";
        let title = match self.group {
            1 => title.to_owned(),
            group => format!("{title}; {group} classes each"),
        };
        area.draw(&Text::new(title, (10, 16), at(HPos::Left, VPos::Top)))?;
        let (cells, sums) = self.grouped();
        for ((row, column), count) in cells {
            let (left, top) = (LEFT + column as i32 * cell, TOP + row as i32 * cell);
            let part = count as f64 / sums[row] as f64;
            // The far corner is outside; large cells leave a white line between them.
            let filled = if cell < 8 { cell } else { cell - 1 };
            let corners = [(left, top), (left + filled, top + filled)];
            area.draw(&Rectangle::new(corners, shade(part).filled()))?;
            if classes <= NUMBERED {
                let color = if part > 0.25 { WHITE } else { BLACK };
                let style = at(HPos::Center, VPos::Center).color(&color);
                let middle = (left + cell / 2, top + cell / 2);
                area.draw(&Text::new(count.to_string(), middle, style))?;
            }
        }
        let frame = [(LEFT - 1, TOP - 1), (LEFT + side, TOP + side)];
        area.draw(&Rectangle::new(frame, BLACK.mix(0.5).stroke_width(1)))?;
        // Where names do not fit, numbers of classes at regular places.
        let every = match classes {
            0..=NAMED => 1,
            61..=200 => 20,
            _ => 100 * self.group,
        };
        for class in (0..classes).step_by(every) {
            let middle = (class / self.group) as i32 * cell + cell / 2;
            let text = match classes <= NAMED {
                true => self.names.get(class).map_or(String::new(), |n| short(n)),
                false => class.to_string(),
            };
            let style = at(HPos::Right, VPos::Center);
            area.draw(&Text::new(text.clone(), (LEFT - 8, TOP + middle), style))?;
            let turned = FontTransform::Rotate90;
            let style = font.clone().transform(turned).color(&BLACK);
            let style = style.pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(text, (LEFT + middle, TOP + side + 8), style))?;
        }
        Ok(())
    }
}
