//! The grid of `vitfreeze reconstruct`.
use localmim::Masking;

use super::cells::StageCells;
use crate::draw::color::{GRID, INK};
use crate::draw::{font, whole_pixels, Pixels, Stroke, Svg, Text, BODY, SMALL, TITLE};
use crate::input::look::hide;

/// Sides of the panels, by the cells of the finest stage, and the white between them.
const CELL: f64 = 4.0;
const SIDE: (f64, f64) = (144.0, 224.0);
const GAP: f64 = 8.0;
const MARGIN: f64 = 24.0;

/// One image.
pub struct Row {
    pub caption: String,
    pub image: Pixels,
    pub masking: Masking,
    pub stages: Vec<StageCells>,
}

/// What all rows have in common.
pub struct About<'a> {
    pub run: &'a str,
    pub when: &'a str,
    pub ratio: f64,
    /// Patches along a side.
    pub side: usize,
    pub dropped: &'a [String],
}

/// Draws all rows, of which there is at least one.
pub fn draw(about: &About, rows: &[Row]) -> Svg {
    let stages = rows.first().map_or(&[][..], |row| row.stages.as_slice());
    let finest = stages.iter().map(|stage| stage.across).max();
    let side = (CELL * finest.unwrap_or(0) as f64).clamp(SIDE.0, SIDE.1);
    let side = rows
        .first()
        .map_or(side, |row| whole_pixels(side, row.image.width));
    let columns = 2 + 2 * stages.len();
    // Pairs stand a little apart from each other.
    let left = |column: usize| MARGIN + column as f64 * (side + GAP) + (column / 2) as f64 * GAP;
    let high = side + 20.0;
    let top = |row: usize| 92.0 + row as f64 * (high + 4.0);
    let notes = 18.0 * about.dropped.len() as f64;
    let title = format!(
        "{} {}: targets and predictions of what it does not see",
        about.run, about.when
    );
    let width = (left(columns - 1) + side + MARGIN).max(640.0);
    let mut svg = Svg::new(width, top(rows.len()) + notes + 16.0, &title);
    let fitted = font::fit(&title, TITLE, width - 2.0 * MARGIN);
    svg.text((MARGIN, 28.0), &fitted, Text::title());

    let head = |svg: &mut Svg, column: usize, text: &str| {
        let middle = (left(column) + side / 2.0, 78.0);
        svg.text(middle, &font::fit(text, BODY, side), Text::muted().middle());
    };
    head(&mut svg, 0, "image");
    head(
        &mut svg,
        1,
        &format!("seen: {:.0} %", 100.0 * (1.0 - about.ratio)),
    );
    for (k, stage) in stages.iter().enumerate() {
        let column = 2 + 2 * k;
        let (from, to) = (left(column), left(column + 1) + side);
        let across = stage.across;
        let name = format!("{}: {across} × {across} cells", stage.name);
        svg.text(((from + to) / 2.0, 54.0), &name, Text::body().middle());
        svg.line(&[(from, 65.0), (to, 65.0)], Stroke::new(GRID, 1.0));
        head(&mut svg, column, "target");
        head(&mut svg, column + 1, "prediction");
    }
    for (number, row) in rows.iter().enumerate() {
        let square = |column: usize| [left(column), top(number), side, side];
        svg.pixels(square(0), &row.image);
        svg.pixels(
            square(1),
            &hide(&row.image, &row.masking.mask, about.side, 1.0),
        );
        let below = |column: usize| (left(column) + side / 2.0, top(number) + side + 10.0);
        let caption = font::fit(&row.caption, SMALL, side);
        svg.text(below(0), &caption, Text::small().middle());
        for (k, stage) in row.stages.iter().enumerate() {
            stage.draw_target(&mut svg, square(2 + 2 * k));
            stage.draw_prediction(&mut svg, square(3 + 2 * k));
            let error = format!("error {:.4}", stage.error);
            svg.text(below(3 + 2 * k), &error, Text::small().color(INK).middle());
        }
    }
    for (i, line) in about.dropped.iter().enumerate() {
        let at = (MARGIN, top(rows.len()) + 6.0 + 18.0 * i as f64);
        svg.text(
            at,
            &font::fit(line, BODY, width - 2.0 * MARGIN),
            Text::muted(),
        );
    }
    svg
}
