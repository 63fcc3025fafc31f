//! A confusion matrix as a picture.
use crate::accuracy;
use crate::draw::color::{mix, Color, INK, MUTED, WHITE};
use crate::draw::{font, Pixels, Stroke, Svg, Text, BODY};

/// About so wide and high is the matrix.
const SIDE: usize = 640;
/// Most classes whose cells are large enough for a number, and whose names fit.
const NUMBERED: usize = 20;
const NAMED: usize = 45;
const MARGIN: f64 = 24.0;
const TOP: f64 = 76.0;
/// The longest name that is written whole.
const LONGEST: f64 = 140.0;

/// White to dark blue. The square root keeps rare confusions visible.
fn shade(part: f64) -> Color {
    mix(WHITE, [8, 48, 107], part.sqrt())
}

/// Each row is the images of one class; the darker a cell, the greater the part of them that was taken for that column.
pub fn draw(names: &[String], cells: &accuracy::Confusion) -> Svg {
    let classes = names.len().max(1);
    // Classes that share a cell, neighbours: a picture of a pixel for each of 21,841 classes opens nowhere.
    let group = classes.div_ceil(2 * SIDE);
    let rows = classes.div_ceil(group);
    let side = (SIDE as f64).min(56.0 * rows as f64);
    let cell = side / rows as f64;
    let named = classes <= NAMED;
    let label = |class: usize| match named {
        true => font::fit(names.get(class).map_or("", String::as_str), BODY, LONGEST),
        false => class.to_string(),
    };
    // Where names do not fit, numbers of classes at regular places.
    let every = match classes {
        0..=NAMED => 1,
        46..=200 => 20,
        _ => 100 * group,
    };
    let labels: Vec<(usize, String)> = (0..classes)
        .step_by(every)
        .map(|class| (class, label(class)))
        .collect();
    let widest = labels.iter().map(|(_, text)| font::width(text, BODY));
    let widest = widest.fold(0.0, f64::max);
    let left = MARGIN + widest + 34.0;

    let about = "Confusion matrix: which class was taken for which";
    let width = (left + side + MARGIN).max(460.0);
    let mut svg = Svg::new(width, TOP + side + widest + 54.0, about);
    svg.text(
        (MARGIN, 28.0),
        "Which class was taken for which",
        Text::title(),
    );
    let how = "darker: a larger part of the row";
    let how = match group {
        1 => how.to_owned(),
        group => format!("{how}; {group} classes in each row and column"),
    };
    svg.text((MARGIN, 50.0), &how, Text::muted());

    let (grouped, sums) = grouped(cells, group, rows);
    let part = |row: usize, column: usize| {
        let count = grouped.get(&(row, column)).copied().unwrap_or(0);
        count as f64 / sums[row].max(1) as f64
    };
    let pixels = Pixels::new(rows, rows, |column, row| shade(part(row, column)));
    svg.pixels([left, TOP, side, side], &pixels);
    if cell >= 12.0 {
        let at = (1..rows).map(|i| cell * i as f64);
        let across = at
            .clone()
            .map(|y| [(left, TOP + y), (left + side, TOP + y)]);
        let down = at.map(|x| [(left + x, TOP), (left + x, TOP + side)]);
        let lines: Vec<[(f64, f64); 2]> = across.chain(down).collect();
        svg.lines(lines.iter().map(|line| &line[..]), Stroke::new(WHITE, 1.0));
    }
    svg.outline([left, TOP, side, side], Stroke::new(MUTED, 1.0));
    let middle = |class: usize| (class / group) as f64 * cell + cell / 2.0;
    if classes <= NUMBERED {
        for (&(row, column), count) in &grouped {
            let dark = part(row, column) > 0.2;
            let style = Text::body().color(if dark { WHITE } else { INK });
            let at = (left + middle(column), TOP + middle(row));
            svg.text(at, &count.to_string(), style.middle());
        }
    }
    for (class, text) in labels {
        let at = (left - 8.0, TOP + middle(class));
        svg.text(at, &text, Text::body().end());
        let at = (left + middle(class), TOP + side + 8.0);
        svg.text(at, &text, Text::body().turned(90.0));
    }
    let center = side / 2.0;
    let style = Text::muted().middle();
    svg.text((MARGIN, TOP + center), "true class", style.turned(-90.0));
    let below = TOP + side + widest + 28.0;
    svg.text((left + center, below), "predicted class", style);
    svg
}

/// Images by (row, column), and those of each row.
fn grouped(
    cells: &accuracy::Confusion,
    group: usize,
    rows: usize,
) -> (accuracy::Confusion, Vec<u64>) {
    let mut sums = vec![0; rows];
    let mut grouped = accuracy::Confusion::new();
    for (&(class, guess), &images) in cells {
        let (row, column) = (class / group, guess / group);
        sums[row] += images;
        *grouped.entry((row, column)).or_default() += images;
    }
    (grouped, sums)
}
