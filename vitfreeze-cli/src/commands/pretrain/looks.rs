//! What the model makes of a few images while it trains: one picture of the targets and, after some epochs, a column of
//! predictions beside it. Image and mask follow from the run's seed alone, so that all columns are of the same.
use std::sync::{Arc, Mutex};

use anyhow::{bail, Result};
use candle_core::Device;
use datasets::{EvalTransform, Source};
use localmim::{LocalMim, LocalMimConfig};

use crate::commands::reconstruct::cells::{stage_name, Shown};
use crate::draw::color::GRID;
use crate::draw::{font, Stroke, Svg, Text, SMALL};
use crate::input::look::{hide, Look};

const IMAGES: usize = 2;
/// Of more stages so many are drawn, the first and the last among them.
const STAGES: usize = 4;
const SIDE: f64 = 112.0;
const GAP: f64 = 4.0;
const TOP: f64 = 28.0;
/// A panel and the line below it.
const ROW: f64 = SIDE + 20.0;

/// The images of a run, read when they are first drawn.
pub struct Looks {
    source: Arc<dyn Source>,
    cfg: LocalMimConfig,
    transform: EvalTransform,
    seed: u64,
    ratio: f64,
    shown: Mutex<Vec<Shown>>,
}

impl Looks {
    pub fn new(
        source: Arc<dyn Source>,
        cfg: &LocalMimConfig,
        transform: EvalTransform,
        (seed, ratio): (u64, f64),
    ) -> Self {
        let (cfg, shown) = (cfg.clone(), Mutex::default());
        Self {
            source,
            cfg,
            transform,
            seed,
            ratio,
            shown,
        }
    }

    /// The picture of the targets, and the column of what the model predicts after so many epochs, where the first
    /// `frozen` layers are no longer trained.
    pub fn draw(
        &self,
        model: &LocalMim,
        (epochs, frozen): (usize, usize),
        device: &Device,
    ) -> Result<[Svg; 2]> {
        let mut all = self.shown.lock().unwrap_or_else(|e| e.into_inner());
        if all.is_empty() {
            let mut look = Look::new(Arc::clone(&self.source), self.seed);
            let drawn = (self.seed, self.ratio);
            while all.len() < IMAGES {
                match Shown::next(&mut look, &self.cfg, &self.transform, drawn)? {
                    Some(shown) => all.push(shown),
                    None => break,
                }
            }
        }
        if all.is_empty() {
            bail!("there is not one image");
        }
        let stages = some_of(self.cfg.stages.len());
        let rows = all.len() * stages.len();
        let mut targets = column(
            3,
            rows,
            "Images, what the encoder sees of them, and the targets",
        );
        for (i, head) in ["image", "seen", "target"].iter().enumerate() {
            head_line(&mut targets, i, head);
        }
        let about = format!("Predictions after {epochs} epochs");
        let mut predictions = column(1, rows, &about);
        head_line(&mut predictions, 0, &format!("epoch {epochs}"));
        for (i, shown) in all.iter().enumerate() {
            let row = i * stages.len();
            targets.pixels(panel(0, row), &shown.image);
            let side = self.cfg.side();
            let seen = hide(&shown.image, &shown.masking.mask, side, 1.0);
            targets.pixels(panel(1, row), &seen);
            let cells = shown.cells((&self.cfg, model), &stages, device)?;
            for (j, (cells, &stage)) in cells.iter().zip(&stages).enumerate() {
                cells.draw_target(&mut targets, panel(2, row + j));
                below(&mut targets, 2, row + j, &stage_name(&self.cfg, stage));
                let at = panel(0, row + j);
                match self.cfg.layer(&self.cfg.stages[stage]) < frozen {
                    true => {
                        predictions.outline(at, Stroke::new(GRID, 1.0));
                        let middle = (at[0] + SIDE / 2.0, at[1] + SIDE / 2.0);
                        predictions.text(middle, "dropped", Text::small().middle());
                    }
                    false => {
                        cells.draw_prediction(&mut predictions, at);
                        let error = format!("error {:.4}", cells.error);
                        below(&mut predictions, 0, row + j, &error);
                    }
                }
            }
        }
        Ok([targets, predictions])
    }
}

/// At most [`STAGES`] of so many, evenly.
fn some_of(stages: usize) -> Vec<usize> {
    match stages {
        0..=STAGES => (0..stages).collect(),
        _ => (0..STAGES)
            .map(|i| i * (stages - 1) / (STAGES - 1))
            .collect(),
    }
}

fn column(panels: usize, rows: usize, about: &str) -> Svg {
    Svg::new(
        panels as f64 * (SIDE + 2.0 * GAP),
        TOP + rows as f64 * ROW,
        about,
    )
}

fn panel(column: usize, row: usize) -> [f64; 4] {
    [
        GAP + column as f64 * (SIDE + 2.0 * GAP),
        TOP + row as f64 * ROW,
        SIDE,
        SIDE,
    ]
}

fn head_line(svg: &mut Svg, column: usize, text: &str) {
    let at = panel(column, 0);
    svg.text((at[0] + SIDE / 2.0, 14.0), text, Text::muted().middle());
}

fn below(svg: &mut Svg, column: usize, row: usize, text: &str) {
    let at = panel(column, row);
    let text = font::fit(text, SMALL, SIDE);
    let place = (at[0] + SIDE / 2.0, at[1] + SIDE + 9.0);
    svg.text(place, &text, Text::small().middle());
}

#[cfg(test)]
mod tests {
    use super::some_of;

    #[test]
    fn the_first_and_the_last_stage_are_among_those_drawn() {
        assert_eq!(some_of(0), [0; 0]);
        assert_eq!(some_of(4), [0, 1, 2, 3]);
        assert_eq!(some_of(24), [0, 7, 15, 23]);
    }
}
