//! Histograms of oriented gradients as lines.
use crate::draw::color::{mix, Color, INK, WHITE};
use crate::draw::{Stroke, Svg};

/// What the encoder did not see, and what it saw.
const HIDDEN: Color = INK;
const SEEN: f64 = 0.28;
/// Steps from seen to hidden: a cell of a coarse stage can be partly both.
const SHADES: usize = 4;
/// Shorter lines, as parts of a half cell, are left out: of noise and of what is nearly nothing.
const LEAST: f64 = 0.12;

/// Draws one stage's cells over a square: in each a line for each orientation, as the edge runs, longer the more of it.
/// `histograms` has `3 * bins` numbers for each cell, of which the three colours' mean is drawn.
pub fn draw(
    svg: &mut Svg,
    [left, top, side, _]: [f64; 4],
    (histograms, bins): (&[f32], usize),
    hidden: &[f32],
) {
    let across = (hidden.len() as f64).sqrt().round().max(1.0) as usize;
    let cell = side / across as f64;
    let mut lines: Vec<Vec<[(f64, f64); 2]>> = vec![Vec::new(); SHADES + 1];
    for (i, (histogram, &hidden)) in histograms.chunks_exact(3 * bins).zip(hidden).enumerate() {
        let x = left + (i % across) as f64 * cell + cell / 2.0;
        let y = top + (i / across) as f64 * cell + cell / 2.0;
        let shade = (f64::from(hidden.clamp(0.0, 1.0)) * SHADES as f64).round() as usize;
        for bin in 0..bins {
            let sum: f32 = (0..3).map(|channel| histogram[channel * bins + bin]).sum();
            let length = f64::from(sum / 3.0).min(1.0);
            if length.is_nan() || length < LEAST {
                continue;
            }
            // The bin's phase is atan2(gx, gy): the gradient points to (sin, cos), so the edge runs along (cos, -sin).
            let phase = (bin as f64 + 0.5) / bins as f64 * std::f64::consts::PI;
            let (dx, dy) = (
                phase.cos() * length * cell / 2.0,
                -phase.sin() * length * cell / 2.0,
            );
            lines[shade].push([(x - dx, y - dy), (x + dx, y + dy)]);
        }
    }
    for (shade, lines) in lines.iter().enumerate() {
        let part = SEEN + (1.0 - SEEN) * shade as f64 / SHADES as f64;
        let stroke = Stroke::new(mix(WHITE, HIDDEN, part), (cell / 9.0).clamp(0.45, 1.6));
        svg.lines(lines.iter().map(|line| &line[..]), stroke);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use vit::ops::Compute;

    /// An image that is dark above and light below has a horizontal edge, and its glyph is a horizontal line.
    #[test]
    fn lines_run_along_the_edges() {
        let size = 8;
        for (horizontal, want) in [(true, true), (false, false)] {
            let value = |i: usize| {
                let (x, y) = (i % size, i / size % size);
                f32::from(u8::from(if horizontal { y } else { x } >= size / 2))
            };
            let data: Vec<f32> = (0..3 * size * size).map(value).collect();
            let image = Tensor::from_vec(data, (1, 3, size, size), &Device::Cpu).unwrap();
            let target = localmim::hog(&image, 9, size, &[size], &Compute::default())
                .unwrap()
                .remove(0);
            let target: Vec<f32> = target.flatten_all().unwrap().to_vec1().unwrap();
            let mut svg = Svg::new(10.0, 10.0, "");
            draw(&mut svg, [0.0, 0.0, 10.0, 10.0], (&target, 9), &[1.0]);
            let text = svg.document();
            let path = text
                .split("d=\"M")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap();
            let numbers: Vec<f64> = path
                .split(['L', ' ', 'M'])
                .map(|n| n.parse().unwrap())
                .collect();
            let (wide, high) = (numbers[2] - numbers[0], numbers[3] - numbers[1]);
            assert_eq!(wide.abs() > 2.0 * high.abs(), want, "{path}");
            assert_eq!(high.abs() > 2.0 * wide.abs(), !want, "{path}");
        }
    }
}
