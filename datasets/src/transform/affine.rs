//! Rotating, shearing and shifting, as Pillow's `Image.transform` with an affine matrix.

use crate::{Image, Interpolation};

/// The image whose pixel at (x, y) is that of `image` at (a x + b y + c, d x + e y + f), centres of pixels being at
/// halves; `fill` where that lies outside. Results are cut to whole levels, not rounded, as Pillow's are.
pub(super) fn transform(
    image: &Image,
    [a, b, c, d, e, f]: [f64; 6],
    fill: [u8; 3],
    interpolation: Interpolation,
) -> Image {
    let (width, height) = (image.width, image.height);
    let mut rgb = Vec::with_capacity(image.rgb.len());
    for row in 0..height {
        let y = row as f64 + 0.5;
        for column in 0..width {
            let x = column as f64 + 0.5;
            let (from_x, from_y) = (a * x + b * y + c, d * x + e * y + f);
            let inside =
                (0.0..width as f64).contains(&from_x) && (0.0..height as f64).contains(&from_y);
            rgb.extend(if inside {
                sample(image, from_x - 0.5, from_y - 0.5, interpolation)
            } else {
                fill
            });
        }
    }
    Image { width, height, rgb }
}

/// The matrix of a rotation by `degrees`, counterclockwise, about the centre.
pub(super) fn rotation(width: usize, height: usize, degrees: f64) -> [f64; 6] {
    let angle = -degrees.rem_euclid(360.0).to_radians();
    // Pillow rounds to 15 digits, so that a quarter turn is exact.
    let round = |v: f64| (v * 1e15).round() / 1e15;
    let (sin, cos) = (round(libm::sin(angle)), round(libm::cos(angle)));
    let (x, y) = (width as f64 / 2.0, height as f64 / 2.0);
    [
        cos,
        sin,
        cos * -x + sin * -y + x,
        -sin,
        cos,
        -sin * -x + cos * -y + y,
    ]
}

/// The value at (x, y), where whole numbers are centres of pixels. Beyond the border its pixels go on.
fn sample(image: &Image, x: f64, y: f64, interpolation: Interpolation) -> [u8; 3] {
    let (left, top) = (x.floor(), y.floor());
    let (dx, dy) = (x - left, y - top);
    let (left, top) = (left as isize, top as isize);
    let column = |offset: isize| 3 * (left + offset).clamp(0, image.width as isize - 1) as usize;
    let row = |offset: isize| {
        let row = (top + offset).clamp(0, image.height as isize - 1) as usize;
        &image.rgb[3 * row * image.width..][..3 * image.width]
    };
    let at = |line: &[u8], offset: usize| f64::from(line[offset]);
    match interpolation {
        Interpolation::Bilinear => {
            let columns = [column(0), column(1)];
            let lines = [row(0), row(1)];
            std::array::from_fn(|c| {
                let [above, below] = lines.map(|line| {
                    let (v, w) = (at(line, columns[0] + c), at(line, columns[1] + c));
                    v + (w - v) * dx
                });
                (above + (below - above) * dy) as u8
            })
        }
        // Of the others only nearest exists for this in Pillow; no augmentation asks for it.
        _ => {
            let columns = [column(-1), column(0), column(1), column(2)];
            let lines = [row(-1), row(0), row(1), row(2)];
            std::array::from_fn(|c| {
                let values = lines.map(|line| cubic(columns.map(|x| at(line, x + c)), dx));
                cubic(values, dy) as u8
            })
        }
    }
}

/// Cubic convolution with a = -1, which Pillow uses here (and -0.5 when resizing).
fn cubic([v1, v2, v3, v4]: [f64; 4], d: f64) -> f64 {
    let p2 = v3 - v1;
    let p3 = 2.0 * (v1 - v2) + v3 - v4;
    let p4 = v4 - v3 + v2 - v1;
    v2 + d * (p2 + d * (p3 + d * p4))
}
