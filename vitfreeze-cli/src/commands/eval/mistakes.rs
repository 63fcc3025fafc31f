//! The wrong predictions that a classifier was surest of, as pictures.
use std::sync::Arc;

use anyhow::Result;
use datasets::{EvalTransform, Source, Transform as _};

use crate::draw::{font, Svg, Text, BODY, SMALL};
use crate::input::look::{pixels, Look};

const MOST: usize = 12;
const COLUMNS: usize = 6;
const SIDE: f64 = 112.0;
const GAP: f64 = 12.0;
const MARGIN: f64 = 24.0;
const TOP: f64 = 56.0;
/// A picture and the two lines below it.
const ROW: f64 = SIDE + 44.0;

struct Mistake {
    index: usize,
    class: usize,
    guess: usize,
    probability: f64,
}

/// Those so far, the surest first.
#[derive(Default)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// Looks at one image's logits; one that is no number is no prediction.
    pub fn add(&mut self, index: usize, class: usize, logits: &[f32]) {
        let best = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
        let guess = (1..logits.len()).fold(0, best);
        if guess == class || logits.iter().any(|x| !x.is_finite()) {
            return;
        }
        let sum: f64 = logits
            .iter()
            .map(|x| f64::from(x - logits[guess]).exp())
            .sum();
        let probability = 1.0 / sum;
        let at = self.0.partition_point(|m| m.probability >= probability);
        if at < MOST {
            let mistake = Mistake {
                index,
                class,
                guess,
                probability,
            };
            self.0.insert(at, mistake);
            self.0.truncate(MOST);
        }
    }

    /// The images as the model saw them; `None` if all predictions were right.
    pub fn draw(
        &self,
        source: &Arc<dyn Source>,
        names: &[String],
        transform: &EvalTransform,
    ) -> Result<Option<Svg>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let name = |class: usize| names.get(class).map_or("", String::as_str);
        let all: Vec<String> = self
            .0
            .iter()
            .map(|m| format!("{} taken for {}", name(m.class), name(m.guess)))
            .collect();
        let about = format!("Wrong predictions: {}", all.join(", "));
        let columns = self.0.len().clamp(4, COLUMNS);
        let rows = self.0.len().div_ceil(columns);
        let width = 2.0 * MARGIN + columns as f64 * (SIDE + GAP) - GAP;
        let mut svg = Svg::new(width, TOP + rows as f64 * ROW + 8.0, &about);
        let title = "Wrong predictions with the highest confidence";
        svg.text((MARGIN, 28.0), title, Text::title());
        let look = Look::new(Arc::clone(source), 0);
        for (i, mistake) in self.0.iter().enumerate() {
            let left = MARGIN + (i % columns) as f64 * (SIDE + GAP);
            let top = TOP + (i / columns) as f64 * ROW;
            let image = source.image(mistake.index)?;
            let input = look.input(transform, (mistake.index, &image), 0)?;
            let image = pixels(&input, transform.size(), transform.normalize());
            svg.pixels([left, top, SIDE, SIDE], &image);
            let class = font::fit(name(mistake.class), BODY, SIDE);
            svg.text((left, top + SIDE + 12.0), &class, Text::body());
            let percent = format!(", {:.0} %", 100.0 * mistake.probability);
            let guess = format!("said {}", name(mistake.guess));
            let guess = font::fit(&guess, SMALL, SIDE - font::width(&percent, SMALL));
            let at = (left, top + SIDE + 28.0);
            svg.text(at, &format!("{guess}{percent}"), Text::small());
        }
        Ok(Some(svg))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_surest_mistakes_are_kept() {
        let mut mistakes = Mistakes::default();
        for i in 0..50 {
            mistakes.add(i, 0, &[0.0, i as f32 / 10.0, -1.0]);
            mistakes.add(100 + i, 1, &[0.0, 9.0, -1.0]);
            mistakes.add(200 + i, 1, &[0.0, f32::NAN, -1.0]);
        }
        let kept: Vec<usize> = mistakes.0.iter().map(|m| m.index).collect();
        assert_eq!(kept, (38..50).rev().collect::<Vec<_>>());
        assert!(mistakes.0[0].probability > 0.98);
    }
}
