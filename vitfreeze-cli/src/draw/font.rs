//! The one font: DejaVu Sans, which the program carries, since a machine may have none.
use std::sync::OnceLock;

use ttf_parser::Face;

/// What an SVG asks its reader for; readers without DejaVu have one of nearly the same width.
pub const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

/// The font's file.
pub fn bytes() -> &'static [u8] {
    dejavu::sans::regular()
}

fn parsed() -> Option<&'static Face<'static>> {
    static FONT: OnceLock<Option<Face<'static>>> = OnceLock::new();
    FONT.get_or_init(|| Face::parse(bytes(), 0).ok()).as_ref()
}

/// How wide a text is at this size.
pub fn width(text: &str, size: f64) -> f64 {
    let Some(font) = parsed() else {
        return 0.6 * size * text.chars().count() as f64;
    };
    let advance = |c| font.glyph_hor_advance(font.glyph_index(c)?);
    // A letter of a script that the font does not have is as wide as it is high.
    let of = |c| {
        advance(c).map_or(size, |units| {
            size * f64::from(units) / f64::from(font.units_per_em())
        })
    };
    text.chars().map(of).sum()
}

/// The text, its middle left out if it would be wider than `room`: names differ at their ends as often as at their starts.
pub fn fit(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_owned();
    }
    let letters: Vec<char> = text.chars().collect();
    let mut kept = letters.len();
    loop {
        kept -= 1;
        let head: String = letters[..kept.div_ceil(2)].iter().collect();
        let tail: String = letters[letters.len() - kept / 2..].iter().collect();
        let short = format!("{head}…{tail}");
        if kept == 0 || width(&short, size) <= room {
            return short;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_and_cuts() {
        assert!(width("iii", 12.0) < width("mmm", 12.0));
        assert!((width("mm", 24.0) - 4.0 * width("m", 12.0)).abs() < 1e-3);
        assert_eq!(fit("short", 12.0, 100.0), "short");
        let cut = fit("pretrain-with-a-long-name-7", 12.0, 100.0);
        assert!(
            cut.contains('…') && cut.ends_with('7') && width(&cut, 12.0) <= 100.0,
            "{cut}"
        );
        assert_eq!(fit("ab", 12.0, 0.0), "…");
    }
}
