//! The outlines, as signed distances: negative inside, positive outside, the distance to the edge in between.
//!
//! Formulas after Inigo Quilez, <https://iquilezles.org/articles/distfunctions2d/>. Only arithmetic that is exact by
//! IEEE 754, so that a seed draws the same picture on every machine.

/// A class of shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outline {
    Circle,
    Square,
    Triangle,
    Star,
    Ring,
    Cross,
    Crescent,
    Heart,
    Hexagon,
    Arrow,
}

impl Outline {
    /// In the order of their labels.
    pub const ALL: [Self; 10] = [
        Self::Circle,
        Self::Square,
        Self::Triangle,
        Self::Star,
        Self::Ring,
        Self::Cross,
        Self::Crescent,
        Self::Heart,
        Self::Hexagon,
        Self::Arrow,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Star => "star",
            Self::Ring => "ring",
            Self::Cross => "cross",
            Self::Crescent => "crescent",
            Self::Heart => "heart",
            Self::Hexagon => "hexagon",
            Self::Arrow => "arrow",
        }
    }

    /// Signed distance of (x, y) to the outline around the origin, of radius about 1.
    pub fn distance(self, x: f32, y: f32) -> f32 {
        match self {
            Self::Circle => length(x, y) - 0.92,
            Self::Square => rectangle(x, y, 0.8, 0.8),
            Self::Triangle => triangle(x, y),
            Self::Star => star(x, y),
            Self::Ring => (length(x, y) - 0.72).abs() - 0.23,
            Self::Cross => rectangle(x, y, 1.0, 0.3).min(rectangle(x, y, 0.3, 1.0)),
            Self::Crescent => crescent(x, y),
            Self::Heart => heart(x, y),
            Self::Hexagon => hexagon(x, y),
            Self::Arrow => arrow(x, y),
        }
    }
}

fn length(x: f32, y: f32) -> f32 {
    (x * x + y * y).sqrt()
}

/// Distance to the segment from the origin to (bx, by).
fn to_segment(x: f32, y: f32, bx: f32, by: f32) -> f32 {
    let h = ((x * bx + y * by) / (bx * bx + by * by)).clamp(0.0, 1.0);
    length(x - bx * h, y - by * h)
}

fn rectangle(x: f32, y: f32, half_width: f32, half_height: f32) -> f32 {
    let (dx, dy) = (x.abs() - half_width, y.abs() - half_height);
    length(dx.max(0.0), dy.max(0.0)) + dx.max(dy).min(0.0)
}

/// Equilateral.
fn triangle(x: f32, y: f32) -> f32 {
    const SQRT_3: f32 = 1.732_050_8;
    const HALF_SIDE: f32 = 0.97;
    let (mut x, mut y) = (x.abs() - HALF_SIDE, y + HALF_SIDE / SQRT_3);
    if x + SQRT_3 * y > 0.0 {
        (x, y) = ((x - SQRT_3 * y) / 2.0, (-SQRT_3 * x - y) / 2.0);
    }
    x -= x.clamp(-2.0 * HALF_SIDE, 0.0);
    -length(x, y).copysign(y)
}

/// Five points.
fn star(x: f32, y: f32) -> f32 {
    const RADIUS: f32 = 1.08;
    const INNER: f32 = 0.45;
    // Folding along the mirror lines at 36 degrees leaves one edge.
    const K: (f32, f32) = (0.809_017, -0.587_785_24);
    let mut x = x.abs();
    let mut y = y;
    let fold = 2.0 * (K.0 * x + K.1 * y).max(0.0);
    (x, y) = (x - fold * K.0, y - fold * K.1);
    let fold = 2.0 * (-K.0 * x + K.1 * y).max(0.0);
    (x, y) = (x + fold * K.0, y - fold * K.1);
    (x, y) = (x.abs(), y - RADIUS);
    let (bx, by) = (-K.1 * INNER, K.0 * INNER - 1.0);
    let h = ((x * bx + y * by) / (bx * bx + by * by)).clamp(0.0, RADIUS);
    length(x - bx * h, y - by * h).copysign(y * bx - x * by)
}

/// A disc less a disc.
fn crescent(x: f32, y: f32) -> f32 {
    const OUTER: f32 = 1.0;
    const INNER: f32 = 0.8;
    const APART: f32 = 0.55;
    let (x, y) = (x + 0.15, y.abs());
    let a = (OUTER * OUTER - INNER * INNER + APART * APART) / (2.0 * APART);
    let b = (OUTER * OUTER - a * a).max(0.0).sqrt();
    if APART * (x * b - y * a) > APART * APART * (b - y).max(0.0) {
        length(x - a, y - b)
    } else {
        (length(x, y) - OUTER).max(INNER - length(x - APART, y))
    }
}

fn heart(x: f32, y: f32) -> f32 {
    const SCALE: f32 = 1.65;
    let (x, y) = (x.abs() / SCALE, y / SCALE + 0.57);
    let distance = if x + y > 1.0 {
        length(x - 0.25, y - 0.75) - 0.353_553_4
    } else {
        let m = 0.5 * (x + y).max(0.0);
        length(x, y - 1.0).min(length(x - m, y - m)).copysign(x - y)
    };
    SCALE * distance
}

/// Regular.
fn hexagon(x: f32, y: f32) -> f32 {
    const K: (f32, f32, f32) = (-0.866_025_4, 0.5, 0.577_350_26);
    const INRADIUS: f32 = 0.86;
    let (x, y) = (x.abs(), y.abs());
    let fold = 2.0 * (K.0 * x + K.1 * y).min(0.0);
    let (x, y) = (x - fold * K.0, y - fold * K.1);
    let (x, y) = (x - x.clamp(-K.2 * INRADIUS, K.2 * INRADIUS), y - INRADIUS);
    length(x, y).copysign(y)
}

/// A shaft and a head pointing to the right.
fn arrow(x: f32, y: f32) -> f32 {
    let shaft = rectangle(x + 0.45, y, 0.6, 0.2);
    // The head from its tip, folded to the upper half.
    let (px, py) = (x - 1.08, y.abs());
    let slope = to_segment(px, py, -1.0, 0.78);
    let base = length(px + 1.0, (py - 0.78).max(0.0));
    let inside = px > -1.0 && 0.78 * px + py < 0.0;
    let head = slope.min(base);
    shaft.min(if inside { -head } else { head })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points of a fine grid over [-1.5, 1.5]².
    fn grid() -> impl Iterator<Item = (f32, f32)> {
        (-150..150).flat_map(|y| (-150..150).map(move |x| (x as f32 / 100.0, y as f32 / 100.0)))
    }

    /// Rendering looks no further than that.
    #[test]
    fn outlines_keep_within_their_radius() {
        for outline in Outline::ALL {
            let reach = grid().filter(|&(x, y)| outline.distance(x, y) < 0.0);
            let reach = reach.map(|(x, y)| length(x, y)).fold(0.0, f32::max);
            assert!((0.9..1.15).contains(&reach), "{outline:?} reaches {reach}");
        }
    }

    #[test]
    fn areas_are_those_of_the_shapes() {
        let area = |outline: Outline| {
            grid()
                .filter(|&(x, y)| outline.distance(x, y) < 0.0)
                .count() as f32
                / 10_000.0
        };
        let near = |outline: Outline, expected: f32| {
            let area = area(outline);
            assert!(
                (area / expected - 1.0).abs() < 0.02,
                "{outline:?}: {area}, not {expected}"
            );
        };
        near(Outline::Circle, std::f32::consts::PI * 0.92 * 0.92);
        near(Outline::Square, 1.6 * 1.6);
        near(Outline::Triangle, 3f32.sqrt() * 0.97 * 0.97);
        near(
            Outline::Ring,
            std::f32::consts::PI * (0.95 * 0.95 - 0.49 * 0.49),
        );
        near(Outline::Cross, 2.0 * 2.0 * 0.6 - 0.6 * 0.6);
        near(Outline::Hexagon, 2.0 * 3f32.sqrt() * 0.86 * 0.86);
    }

    /// The distance changes by at most the way walked, so that edges are one pixel wide and not jagged.
    #[test]
    fn distances_are_smooth() {
        for outline in Outline::ALL {
            for (x, y) in grid() {
                let here = outline.distance(x, y);
                let there = outline.distance(x + 0.006, y + 0.008);
                assert!(
                    (here - there).abs() < 0.0101,
                    "{outline:?} at {x}, {y}: {here}, {there}"
                );
            }
        }
    }
}
