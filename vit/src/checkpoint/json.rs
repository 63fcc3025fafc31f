//! JSON of others, with errors that name the key.
use serde_json::Value;

use crate::shown;

/// # Errors
/// What is wrong: JSON has finite numbers only, but Python reads 1e400 and writes NaN.
pub(crate) fn parse(text: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(text).map_err(|e| {
        let culprit = infinite(text).filter(|(_, _, line)| *line <= e.line());
        match culprit {
            Some((key, number, _)) => format!(
                "'{}' has {}, which is no finite number; correct it",
                shown(&key),
                shown(&number)
            ),
            None => format!("not JSON: {e}"),
        }
    })
}

/// The first number that is not finite: the key before it, the number, its line.
fn infinite(text: &[u8]) -> Option<(String, String, usize)> {
    let text = String::from_utf8_lossy(text);
    let (mut rest, mut line, mut key) = (&*text, 1, "");
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => string_length(rest),
            c if c.is_whitespace() || "{}[],:".contains(c) => {
                line += usize::from(c == '\n');
                c.len_utf8()
            }
            _ => {
                let ends = |c: char| c.is_whitespace() || "{}[],:\"".contains(c);
                rest.find(ends).unwrap_or(rest.len())
            }
        };
        let (token, after) = rest.split_at(length);
        if first == '"' && after.trim_start().starts_with(':') {
            key = token.trim_matches('"');
        } else if token.parse::<f64>().is_ok_and(|x| !x.is_finite()) {
            return Some((key.to_owned(), token.to_owned(), line));
        }
        rest = after;
    }
    None
}

/// Up to and with the closing quote.
fn string_length(text: &str) -> usize {
    let mut escaped = true; // the opening quote
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_without_bounds_is_named_with_its_key() {
        for (text, want) in [
            (r#"{"image_mean": [0.5, 1e400]}"#, "'image_mean' has 1e400"),
            ("{\"a\\\"b\": 1,\n \"std\" : NaN}", "'std' has NaN"),
            (r#"{"a": {"lr": -Infinity}}"#, "'lr' has -Infinity"),
            (r#"{"x": "1e999", "eps": -1e999}"#, "'eps' has -1e999"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
        for text in [
            "{\"a\": 1,}\n{\"b\": 1e400}",
            "{",
            "[1",
            "\"",
            "{\"a\" 1}",
            "\\",
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.starts_with("not JSON: "), "{error}");
        }
        assert!(parse(br#"{"a": "NaN", "b": 1e300}"#).is_ok());
    }
}
