//! An SVG document in the making.
use std::fmt::Write as _;

use super::color::{Color, INK, MUTED, WHITE};
use super::font::FAMILY;
use super::raster::SCALE;
use super::{Pixels, BODY, SMALL, TITLE};

/// A picture; distances are in CSS pixels, y goes down.
pub struct Svg {
    pub width: f64,
    pub height: f64,
    /// What a reader hears who cannot see it.
    about: String,
    body: String,
}

/// How a line is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Stroke {
    pub color: Color,
    pub width: f64,
    pub dashed: bool,
    pub opacity: f64,
}

impl Stroke {
    pub fn new(color: Color, width: f64) -> Self {
        Self {
            color,
            width,
            dashed: false,
            opacity: 1.0,
        }
    }

    pub fn faint(self, opacity: f64) -> Self {
        Self { opacity, ..self }
    }

    pub fn dashed(self, dashed: bool) -> Self {
        Self { dashed, ..self }
    }
}

/// Which part of a text its place is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// How a text is set. Its place is its anchor, at half the height of its letters.
#[derive(Debug, Clone, Copy)]
pub struct Text {
    pub size: f64,
    pub color: Color,
    pub anchor: Anchor,
    /// Degrees, clockwise.
    pub turn: f64,
}

impl Text {
    pub const fn title() -> Self {
        Self::new(TITLE, INK)
    }

    pub const fn body() -> Self {
        Self::new(BODY, INK)
    }

    pub const fn muted() -> Self {
        Self::new(BODY, MUTED)
    }

    pub const fn small() -> Self {
        Self::new(SMALL, MUTED)
    }

    const fn new(size: f64, color: Color) -> Self {
        Self {
            size,
            color,
            anchor: Anchor::Start,
            turn: 0.0,
        }
    }

    pub const fn color(self, color: Color) -> Self {
        Self { color, ..self }
    }

    pub const fn middle(self) -> Self {
        Self {
            anchor: Anchor::Middle,
            ..self
        }
    }

    pub const fn end(self) -> Self {
        Self {
            anchor: Anchor::End,
            ..self
        }
    }

    pub const fn turned(self, turn: f64) -> Self {
        Self { turn, ..self }
    }
}

impl Svg {
    /// An empty white picture.
    pub fn new(width: f64, height: f64, about: &str) -> Self {
        Self {
            width,
            height,
            about: about.to_owned(),
            body: String::new(),
        }
    }

    /// A filled rectangle, whose corners are rounded by `round`.
    pub fn rect(&mut self, [x, y, width, height]: [f64; 4], fill: Color, round: f64) {
        let _ = writeln!(
            self.body,
            r#"<rect x="{}" y="{}" width="{}" height="{}" rx="{}" fill="{}"/>"#,
            n(x),
            n(y),
            n(width),
            n(height),
            n(round),
            hex(fill)
        );
    }

    /// The outline of a rectangle.
    pub fn outline(&mut self, [x, y, w, h]: [f64; 4], stroke: Stroke) {
        self.line(
            &[(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)],
            stroke,
        );
    }

    /// A line through points.
    pub fn line(&mut self, points: &[(f64, f64)], stroke: Stroke) {
        self.lines([points], stroke);
    }

    /// Many lines of one kind; they are one element.
    pub fn lines<'a>(&mut self, lines: impl IntoIterator<Item = &'a [(f64, f64)]>, stroke: Stroke) {
        let mut path = String::new();
        for line in lines {
            for (i, (x, y)) in line.iter().enumerate() {
                let _ = write!(
                    path,
                    "{}{} {}",
                    if i == 0 { 'M' } else { 'L' },
                    n(*x),
                    n(*y)
                );
            }
        }
        let Stroke {
            color,
            width,
            dashed,
            opacity,
        } = stroke;
        let dashes = if dashed {
            r#" stroke-dasharray="6 4""#
        } else {
            ""
        };
        if !path.is_empty() {
            let _ = writeln!(
                self.body,
                r#"<path d="{path}" fill="none" stroke="{}" stroke-width="{}" stroke-opacity="{}" stroke-linejoin="round" stroke-linecap="round"{dashes}/>"#,
                hex(color),
                n(width),
                n(opacity)
            );
        }
    }

    /// A filled area.
    pub fn area(&mut self, points: &[(f64, f64)], fill: Color, opacity: f64) {
        let mut path = String::new();
        for (i, (x, y)) in points.iter().enumerate() {
            let _ = write!(
                path,
                "{}{} {}",
                if i == 0 { 'M' } else { 'L' },
                n(*x),
                n(*y)
            );
        }
        let (fill, opacity) = (hex(fill), n(opacity));
        let _ = writeln!(
            self.body,
            r#"<path d="{path}Z" fill="{fill}" fill-opacity="{opacity}"/>"#
        );
    }

    /// A dot with a white rim, which keeps it apart from lines under it.
    pub fn dot(&mut self, (x, y): (f64, f64), radius: f64, fill: Color) {
        let _ = writeln!(
            self.body,
            r#"<circle cx="{}" cy="{}" r="{}" fill="{}" stroke="{}" stroke-width="1.2"/>"#,
            n(x),
            n(y),
            n(radius),
            hex(fill),
            hex(WHITE)
        );
    }

    pub fn text(&mut self, (x, y): (f64, f64), text: &str, style: Text) {
        let anchor = match style.anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let turn = match style.turn {
            0.0 => String::new(),
            turn => format!(r#" transform="rotate({} {} {})""#, n(turn), n(x), n(y)),
        };
        // Half of what a digit is high.
        let y = y + 0.365 * style.size;
        let _ = writeln!(
            self.body,
            r#"<text x="{}" y="{}" font-size="{}" fill="{}" text-anchor="{anchor}"{turn}>{}</text>"#,
            n(x),
            n(y),
            n(style.size),
            hex(style.color),
            escaped(text)
        );
    }

    /// Pixels over a rectangle: each with sharp edges where they are stretched, smooth where they are shrunk.
    pub fn pixels(&mut self, [x, y, width, height]: [f64; 4], pixels: &Pixels) {
        let sharp = match pixels.width as f64 <= f64::from(SCALE) * width {
            true => r#" style="image-rendering:pixelated""#,
            false => "",
        };
        let _ = writeln!(
            self.body,
            r#"<image x="{}" y="{}" width="{}" height="{}" preserveAspectRatio="none"{sharp} href="{}"/>"#,
            n(x),
            n(y),
            n(width),
            n(height),
            pixels.data_url()
        );
    }

    /// The whole document.
    pub fn document(&self) -> String {
        let (width, height) = (n(self.width), n(self.height));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"{FAMILY}\" role=\"img\">\n<title>{}</title>\n<rect width=\"{width}\" height=\"{height}\" \
             fill=\"{}\"/>\n{}</svg>\n",
            escaped(&self.about),
            hex(WHITE),
            self.body
        )
    }
}

fn hex([r, g, b]: Color) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// A number in as few letters as a hundredth of a pixel takes; what is no number is far away from the picture, not a
/// broken document.
fn n(x: f64) -> String {
    if !x.is_finite() {
        return "-99999".into();
    }
    let text = format!("{x:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    match text {
        "-0" => "0".into(),
        _ => text.into(),
    }
}

/// Text out of names, which may hold anything.
pub fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            // XML has no place for most of these.
            c if c.is_control() || c == '\u{fffe}' || c == '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_do_not_break_the_document() {
        let mut svg = Svg::new(100.0, 50.0, "a \"b\" <c>\u{1}");
        svg.text((1.0, f64::NAN), "</text><script>\0\u{1b}[2J", Text::body());
        svg.dot((f64::INFINITY, 1.0 / 3.0), 3.0, WHITE);
        let text = svg.document();
        assert!(!text.contains("<script") && !text.contains('\u{1b}'));
        assert!(text.contains("cy=\"0.33\""), "{text}");
        assert!(super::super::raster::png(&text)
            .unwrap()
            .starts_with(b"\x89PNG"));
        assert_eq!([n(-0.001), n(2.0), n(1.5)], ["0", "2", "1.5"]);
    }
}
