//! The picture of `vitfreeze features`.
use super::map::Map;
use super::pca::Pca;
use crate::draw::color::{mix, ramp, Color, WHITE};
use crate::draw::{font, Pixels, Svg, Text, SMALL, TITLE};

/// Heads beyond these are left out.
pub const MOST_HEADS: usize = 16;
const SIDE: f64 = 112.0;
const GAP: f64 = 6.0;
const MARGIN: f64 = 24.0;
const TOP: f64 = 80.0;
const MAP: [f64; 2] = [560.0, 400.0];
/// For the names of classes beside the map.
const NAMES: f64 = 170.0;
/// Behind the foreground.
const GROUND: Color = [24, 26, 28];

/// One image.
pub struct Row {
    pub caption: String,
    pub image: Pixels,
    /// Of its patches.
    pub colors: Vec<Color>,
    /// Of each head, over the patches.
    pub attention: Vec<Vec<f32>>,
}

/// Gives the patches their colours; returns the part of the variance that these tell. `features` are those of all patches of
/// all rows, `width` numbers each.
pub fn color(
    rows: &mut [Row],
    features: &[f32],
    width: usize,
    grid: (usize, usize),
    foreground: bool,
) -> f64 {
    let patches = grid.0 * grid.1;
    let shown: Vec<bool> = match foreground {
        true => front(&Pca::new(features, width, 1), features, grid),
        false => vec![true; patches * rows.len()],
    };
    let kept: Vec<f32> = features
        .chunks_exact(width)
        .zip(&shown)
        .filter(|(_, &shown)| shown)
        .flat_map(|(row, _)| row.iter().copied())
        .collect();
    let pca = Pca::new(&kept, width, 3);
    let components: Vec<Vec<f64>> = pca.of(&kept).collect();
    let ranges: Vec<(f64, f64)> = (0..3)
        .map(|k| range(components.iter().map(|p| p.get(k).copied().unwrap_or(0.0))))
        .collect();
    let mut components = components.into_iter();
    for (row, shown) in rows.iter_mut().zip(shown.chunks(patches)) {
        let patch = |&shown: &bool| match shown.then(|| components.next()).flatten() {
            Some(p) => [0, 1, 2].map(|k| {
                let (low, high) = ranges[k];
                let x = p.get(k).copied().unwrap_or(0.0);
                (255.0 * ((x - low) / (high - low)).clamp(0.0, 1.0)) as u8
            }),
            None => GROUND,
        };
        row.colors = shown.iter().map(patch).collect();
    }
    pca.told
}

/// Which patches lie on the side of the first component where fewer of the images' corners are.
fn front(pca: &Pca, features: &[f32], (high, wide): (usize, usize)) -> Vec<bool> {
    let first: Vec<f64> = pca.of(features).map(|p| p[0]).collect();
    let patches = high * wide;
    let corners = [0, wide - 1, patches - wide, patches - 1];
    let images = first.len() / patches;
    let positive = first
        .chunks_exact(patches)
        .flat_map(|image| corners.map(|at| image[at] > 0.0))
        .filter(|&positive| positive)
        .count();
    let behind = 2 * positive > 4 * images;
    first.iter().map(|&x| (x > 0.0) != behind).collect()
}

/// From the 2nd to the 98th percentile: a few patches far out would leave no colours for the others.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let place = (part * values.len().saturating_sub(1) as f64).round() as usize;
        values.get(place).copied().unwrap_or(0.0)
    };
    let (low, high) = (at(0.02), at(0.98));
    match high > low {
        true => (low, high),
        false => (low - 1.0, low + 1.0),
    }
}

/// Attention as light: from its least to its greatest value.
fn heat(values: &[f32], (high, wide): (usize, usize)) -> Pixels {
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    Pixels::new(wide, high, |x, y| {
        let part = f64::from((values[y * wide + x] - least) / (most - least).max(1e-12));
        // Beyond the ramp's light green to nearly white, so that peaks stand out.
        match part {
            part if part <= 0.8 => ramp(part / 0.8),
            part => mix(ramp(1.0), WHITE, (part - 0.8) * 3.0),
        }
    })
}

/// Draws all rows, and the map below them.
pub fn draw(checkpoint: &str, rows: &[Row], grid: (usize, usize), map: Option<&Map>) -> Svg {
    let heads = rows
        .first()
        .map_or(0, |row| row.attention.len())
        .min(MOST_HEADS);
    let columns = 2 + heads;
    // Images of other proportions than square keep them.
    let high = SIDE * grid.0 as f64 / grid.1 as f64;
    let left = |column: usize| {
        let apart = if column > 1 { 2.0 * GAP } else { 0.0 };
        MARGIN + apart + column as f64 * (SIDE + GAP)
    };
    let top = |row: usize| TOP + row as f64 * (high + GAP + 14.0);
    let mut width = left(columns - 1) + SIDE + MARGIN;
    let mut height = top(rows.len()) + 8.0;
    let under = height + 34.0;
    if map.is_some() {
        width = width.max(MARGIN + MAP[0] + NAMES);
        height = under + MAP[1] + MARGIN;
    }
    let title = format!("What {} makes of images", vit::printable(checkpoint));
    let mut svg = Svg::new(width, height, &title);
    let fitted = font::fit(&title, TITLE, width - 2.0 * MARGIN);
    svg.text((MARGIN, 28.0), &fitted, Text::title());
    let head = |svg: &mut Svg, column: usize, text: &str| {
        let middle = (left(column) + SIDE / 2.0, TOP - 12.0);
        svg.text(middle, text, Text::muted().middle());
    };
    head(&mut svg, 0, "image");
    head(&mut svg, 1, "patches");
    for number in 0..heads {
        head(&mut svg, 2 + number, &format!("head {number}"));
    }
    if heads > 1 {
        let at = (left(2), TOP - 30.0);
        svg.text(
            at,
            "attention of the class token in the last block",
            Text::muted(),
        );
    }
    for (number, row) in rows.iter().enumerate() {
        let tile = |column: usize| [left(column), top(number), SIDE, high];
        svg.pixels(tile(0), &row.image);
        let colors = Pixels::new(grid.1, grid.0, |x, y| row.colors[y * grid.1 + x]);
        svg.pixels(tile(1), &colors);
        for (k, values) in row.attention.iter().take(heads).enumerate() {
            svg.pixels(tile(2 + k), &heat(values, grid));
        }
        let at = (left(0) + SIDE / 2.0, top(number) + high + 9.0);
        let caption = font::fit(&row.caption, SMALL, SIDE);
        svg.text(at, &caption, Text::small().middle());
    }
    if let Some(map) = map {
        map.draw(&mut svg, [MARGIN, under, MAP[0], MAP[1]]);
    }
    svg
}
