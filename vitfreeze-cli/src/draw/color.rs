//! The colours of all pictures.

/// Red, green, blue.
pub type Color = [u8; 3];

pub const WHITE: Color = [255, 255, 255];
/// Text and axes.
pub const INK: Color = [34, 34, 34];
/// What explains, and ticks.
pub const MUTED: Color = [95, 99, 104];
/// Lines behind the data.
pub const GRID: Color = [228, 230, 232];

/// Okabe and Ito's colours, which people with any colour vision tell apart; the yellow, which white paper swallows, is left
/// out.
pub const SERIES: [Color; 7] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [86, 180, 233],
    [230, 159, 0],
    [0, 0, 0],
];

/// The colour of the `i`-th of several things without an order.
pub fn series(i: usize) -> Color {
    SERIES[i % SERIES.len()]
}

/// A colour between two.
pub fn mix(from: Color, to: Color, part: f64) -> Color {
    let one = |c: usize| {
        let (from, to) = (f64::from(from[c]), f64::from(to[c]));
        (from + part.clamp(0.0, 1.0) * (to - from)).round() as u8
    };
    [one(0), one(1), one(2)]
}

/// Violet, teal, light green: dark to light, so that it is an order in grey as well. `place` is from 0 to 1.
pub fn ramp(place: f64) -> Color {
    const STOPS: [Color; 3] = [[68, 1, 84], [33, 145, 140], [150, 210, 60]];
    match 2.0 * place {
        x if x < 1.0 => mix(STOPS[0], STOPS[1], x),
        x => mix(STOPS[1], STOPS[2], x - 1.0),
    }
}

/// The colour of one of several layers, from the input to the output: no lighter than a line on white may be.
pub fn layer(layer: usize, layers: usize) -> Color {
    ramp(0.85 * layer as f64 / layers.saturating_sub(1).max(1) as f64)
}
