//! A Swin Transformer on the visible part of an image, as masked pretraining needs it.
use candle_core::{Result, Tensor};

use super::config::Size;
use super::geometry::{region_of, Layout};
use super::{Swin, STAGES};
use crate::ops::{Rows, Windows};
use crate::VitConfig;

/// Patches along the side of a unit: in the last stage it is one token.
pub const UNIT: usize = 1 << (STAGES - 1);

impl VitConfig {
    /// Side in pixels of what masked pretraining hides as a whole: a patch; of a Swin 8 x 8 of them, one token of the last stage.
    pub fn mask_unit(&self) -> usize {
        match self.swin {
            Some(_) => UNIT * self.patch_size,
            None => self.patch_size,
        }
    }
}

impl Swin {
    /// `(B, C, H, W), (B * K) -> [(B, K (8 / 2^i)^2, 2^i D)]`: the tokens behind each of `blocks` (counted over all stages from
    /// 0, ascending) of the units in `ids_keep` alone, K for each image: squares of 8 x 8 patches (32 px), numbered row by row.
    /// Behind the last block of a stage that a merging follows they are those behind that merging, as LocalMIM decodes them: i is
    /// [`SwinConfig::stage_behind`](crate::SwinConfig::stage_behind). Tokens come unit by unit, in one row by row.
    ///
    /// What is hidden is not computed: windows attend to their visible tokens alone (Huang et al., arXiv 2205.13515, section
    /// 3.2), which is what whole windows compute whose hidden tokens are masked. Padding is not seen either.
    ///
    /// # Errors
    /// Shapes that do not fit, units that do not divide the image, a unit that is not there, a block that is not there.
    pub fn visible_features(
        &self,
        images: &Tensor,
        ids_keep: &[u32],
        blocks: &[usize],
    ) -> Result<Vec<Tensor>> {
        self.check_blocks(blocks)?;
        self.cfg.check_images(images)?;
        let (batch, grid) = (images.dim(0)?, self.cfg.grid());
        let units = Units::new(grid, batch, ids_keep)?;
        let x = self.patch_embed.forward(images, Some(&units.patches()))?;
        let mut x = self.embed_norm.forward(&x)?;
        let mut features = Vec::with_capacity(blocks.len());
        let Some(swin) = self.cfg.swin else {
            return Ok(features);
        };
        let wanted = blocks.last().map_or(0, |&last| last + 1);
        for (number, stage) in self.stages.iter().enumerate() {
            let first = swin.first_block(number);
            if wanted <= first {
                break;
            }
            let merging = self.stages.get(number + 1).and_then(|s| s.merging.as_ref());
            let (of_image, whole) = (x.dims3()?, self.cfg.stage_grid(number));
            let layout = |index| {
                let (window, shift) = swin.window(whole, index);
                units.layout((number, whole), window, shift)
            };
            let layouts = [layout(0)?, layout(1)?];
            // Which tokens share a window differs from image to image: all images are one sequence.
            x = x.reshape((1, (), of_image.2))?;
            for (index, block) in stage.blocks.iter().enumerate() {
                x = block.run(&x, &layouts[index % 2], None)?;
                let merges = merging.is_some() && index + 1 == stage.blocks.len();
                if !merges && blocks.contains(&(first + index)) {
                    features.push(x.reshape(of_image)?);
                }
            }
            x = x.reshape(of_image)?;
            let end = first + stage.blocks.len();
            if let (Some(merging), true) = (merging, wanted >= end) {
                x = merging.merge(&x, &units.merging(number)?)?;
                if blocks.contains(&(end - 1)) {
                    features.push(x.clone());
                }
            }
        }
        Ok(features)
    }
}

/// The visible units of a batch.
struct Units<'a> {
    /// Row and column by unit, image by image.
    places: Vec<Size>,
    /// For each image.
    count: usize,
    ids: &'a [u32],
    /// Patches along the image's width.
    columns: usize,
}

impl<'a> Units<'a> {
    fn new((rows, columns): Size, batch: usize, ids: &'a [u32]) -> Result<Self> {
        if !rows.is_multiple_of(UNIT) || !columns.is_multiple_of(UNIT) {
            candle_core::bail!(
                "{rows} x {columns} patches are no whole number of units of {UNIT} x {UNIT}"
            );
        }
        let (down, across) = (rows / UNIT, columns / UNIT);
        let count = ids.len() / batch.max(1);
        if count == 0
            || count * batch != ids.len()
            || ids.iter().any(|&id| id as usize >= down * across)
        {
            candle_core::bail!(
                "{} ids_keep for {batch} images of {} units, or one beyond them",
                ids.len(),
                down * across
            );
        }
        let place = |&id: &u32| (id as usize / across, id as usize % across);
        Ok(Self {
            places: ids.iter().map(place).collect(),
            count,
            ids,
            columns,
        })
    }

    /// The numbers of all patches of the units, of each unit row by row.
    fn patches(&self) -> Vec<u32> {
        let across = self.columns / UNIT;
        let of = |&id: &u32| {
            let (row, column) = (id as usize / across * UNIT, id as usize % across * UNIT);
            let patch =
                move |i: usize| ((row + i / UNIT) * self.columns + column + i % UNIT) as u32;
            (0..UNIT * UNIT).map(patch)
        };
        self.ids.iter().flat_map(of).collect()
    }

    /// The four of each cell of 2 x 2 tokens of an image, in the order of [`super::geometry::merging`].
    fn merging(&self, stage: usize) -> Result<Rows> {
        let side = UNIT >> stage;
        let mut from = Vec::new();
        for unit in 0..self.count {
            for cell in 0..side * side / 4 {
                let (y, x) = (cell / (side / 2) * 2, cell % (side / 2) * 2);
                for (down, right) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                    from.push(((unit * side + y + down) * side + x + right) as u32);
                }
            }
        }
        Rows::new(self.count * side * side, from)
    }

    /// The windows of a stage of this grid, all images' in one sequence.
    fn layout(&self, (stage, grid): (usize, Size), window: Size, shift: Size) -> Result<Layout> {
        let side = UNIT >> stage;
        let padded = (
            grid.0.next_multiple_of(window.0),
            grid.1.next_multiple_of(window.1),
        );
        // (image, window, place, region, token)
        let mut tokens = Vec::with_capacity(self.places.len() * side * side);
        for (unit, &(row, column)) in self.places.iter().enumerate() {
            for i in 0..side * side {
                let (y, x) = (row * side + i / side, column * side + i % side);
                // Where it is after the shift.
                let y = (y + grid.0 - shift.0) % grid.0;
                let x = (x + grid.1 - shift.1) % grid.1;
                let own = (y / window.0) * (padded.1 / window.1) + x / window.1;
                let place = (y % window.0) * window.1 + x % window.1;
                let region = 3 * region_of(y, padded.0, window.0, shift.0)
                    + region_of(x, padded.1, window.1, shift.1);
                let image = unit / self.count;
                tokens.push((image, own, place, region, unit * side * side + i));
            }
        }
        tokens.sort_unstable();
        let mut counts = Vec::new();
        let mut last = None;
        for &(image, own, ..) in &tokens {
            match (last == Some((image, own)), counts.last_mut()) {
                (true, Some(count)) => *count += 1,
                _ => counts.push(1),
            }
            last = Some((image, own));
        }
        let place = tokens.iter().map(|t| t.2 as u16).collect();
        let region = tokens.iter().map(|t| t.3).collect();
        let from = tokens.iter().map(|t| t.4 as u32).collect();
        Ok(Layout {
            windows: Windows::new(window.0 * window.1, &counts, place, region)?,
            rows: Rows::new(tokens.len(), from)?,
        })
    }
}
