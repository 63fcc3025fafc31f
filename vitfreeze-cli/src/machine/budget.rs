//! Whether a model and its batches fit into memory, asked before anything large is made.
//!
//! Counted is what there must be at once: a floor, so that nothing is refused that would have fit.
use anyhow::Result;
use candle_core::Device;
use freezeout::Schedule;
use localmim::{LocalMimConfig, Stage};
use vit::ops::Precision;
use vit::{Activation, VitConfig};

use crate::costs;
use crate::machine::memory::{self, Room};
use crate::usage::usage;

const F32: f64 = 4.0;
/// A batch that is computed, and one that is being filled meanwhile.
const BATCHES: f64 = 2.0;

/// Bytes that a command needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    weights: f64,
    /// Gradients, moments, an average.
    state: f64,
    /// Pixels and activations of an image.
    image: f64,
    batch: usize,
}

impl Budget {
    /// A LocalMIM pretraining by AdamW; the first `frozen` layers never train.
    pub fn pretraining(
        cfg: &LocalMimConfig,
        mask_ratio: f64,
        batch: usize,
        frozen: usize,
        precision: Precision,
    ) -> Self {
        let vit = &cfg.vit;
        let layers = costs::layers(cfg, mask_ratio);
        let parameters =
            |from: usize| -> f64 { layers.iter().skip(from).map(|l| l.parameters).sum() };
        let share = (cfg.units() as f64 * (1.0 - mask_ratio)).floor() / cfg.units() as f64;
        let encoder: f64 = match vit.swin {
            None => {
                let visible = share * vit.patches() as f64 + 1.0;
                let trained = trained_blocks(vit, frozen) as f64;
                trained * encoder_block(vit, visible, precision)
            }
            Some(_) => share * trained_bytes(vit, trained_blocks(vit, frozen), precision),
        };
        let decoder = |stage: &Stage| {
            let tokens = (cfg.units() * cfg.tokens_across(stage).pow(2)) as f64;
            let dim = cfg.decoder_dim(stage) as f64;
            cfg.decoder_depth as f64 * block_bytes(tokens, dim, 4.0, precision)
        };
        let live = cfg.stages.iter().filter(|s| cfg.layer(s) >= frozen);
        Self {
            // Frozen ones twice: once as products want them.
            weights: F32 * (2.0 * parameters(0) - parameters(frozen)),
            state: F32 * 3.0 * parameters(frozen),
            image: pixels(vit) + encoder + live.map(decoder).sum::<f64>(),
            batch,
        }
    }

    /// A supervised training by AdamW, with a moving average or without; the first `frozen` layers never train.
    pub fn finetuning(
        cfg: &VitConfig,
        batch: usize,
        frozen: usize,
        average: bool,
        precision: Precision,
    ) -> Self {
        let trained = trained_blocks(cfg, frozen);
        let all = parameters(cfg, cfg.depth);
        let averages = if average { all } else { 0.0 };
        Self {
            weights: F32 * all,
            state: F32 * (3.0 * parameters(cfg, trained) + averages),
            image: pixels(cfg) + trained_bytes(cfg, trained, precision),
            batch,
        }
    }

    /// A model that only computes: one block's activations at a time.
    pub fn inference(cfg: &VitConfig, batch: usize, precision: Precision) -> Self {
        Self {
            weights: F32 * parameters(cfg, cfg.depth),
            state: 0.0,
            image: pixels(cfg) + encoder_block(cfg, all_tokens(cfg), precision),
            batch,
        }
    }

    /// The same where the weights are in memory already.
    pub fn beside_weights(self) -> Self {
        Self {
            weights: 0.0,
            ..self
        }
    }

    /// Refuses what is larger than the memory that there is. On a GPU nothing is known and nothing refused.
    ///
    /// # Errors
    /// A usage error with the sizes and a batch that fits.
    pub fn check(&self, device: &Device) -> Result<()> {
        self.check_for(device, 1)
    }

    /// The same of so many processes that share the memory.
    ///
    /// # Errors
    /// As [`check`](Budget::check).
    pub fn check_for(&self, device: &Device, workers: usize) -> Result<()> {
        let fits = |room: Room| {
            self.fits(Room {
                bytes: room.bytes / workers as u64,
                ..room
            })
        };
        match device {
            Device::Cpu => memory::room().map_or(Ok(()), fits),
            _ => Ok(()),
        }
    }

    fn fits(&self, room: Room) -> Result<()> {
        let (fixed, images) = (self.weights + self.state, self.image * self.batch as f64);
        let free = room.bytes as f64;
        if fixed + images <= free {
            return Ok(());
        }
        let parts = [
            ("for weights", self.weights),
            ("for gradients and moments", self.state),
            ("for the batch", images),
        ];
        let parts = parts.iter().filter(|(_, bytes)| *bytes > 0.0);
        let parts: Vec<String> = parts
            .map(|(what, bytes)| format!("{} {what}", size(*bytes)))
            .collect();
        // A tenth is left for what is not counted.
        let batch = ((0.9 * free - fixed) / self.image).floor();
        let way = match batch >= 1.0 {
            true => format!("a batch size of about {batch} fits"),
            false => "no batch fits: take a smaller model or smaller images".to_owned(),
        };
        Err(usage(format!(
            "batch-size {} needs at least {} of memory ({}), {} are free ({}); {way}",
            self.batch,
            size(fixed + images),
            parts.join(", "),
            size(free),
            room.set_by,
        )))
    }
}

fn size(bytes: f64) -> String {
    let (number, unit) = crate::console::memory(bytes);
    format!("{number} {unit}")
}

/// How many layers, counted from the input, are frozen at every step.
pub fn always_frozen(schedule: &Schedule) -> usize {
    let changes = schedule.changes();
    match changes.first() {
        Some(first) if first.step == 0 => changes.iter().map(|c| c.frozen).min().unwrap_or(0),
        _ => 0,
    }
}

fn pixels(cfg: &VitConfig) -> f64 {
    let (height, width) = cfg.image();
    BATCHES * F32 * (cfg.in_chans * height * width) as f64
}

/// Parameters of a model of so many blocks, the last ones, but for vectors and what stands between a Swin's stages.
fn parameters(cfg: &VitConfig, blocks: usize) -> f64 {
    let patch = (cfg.patch_size * cfg.patch_size) as f64;
    let head = (cfg.features() * cfg.num_classes) as f64;
    // A gated hidden layer leaves half as wide as it was made.
    let layers = match cfg.activation {
        Activation::SwiGlu => 1.5,
        _ => 2.0,
    };
    let widths = last_blocks(cfg, blocks).map(|(_, dim)| dim * dim);
    cfg.in_chans as f64 * patch * cfg.embed_dim as f64
        + (4.0 + layers * cfg.mlp_ratio) * widths.sum::<f64>()
        + head
}

/// Tokens and width of the last so many blocks.
fn last_blocks(cfg: &VitConfig, blocks: usize) -> impl Iterator<Item = (f64, f64)> + '_ {
    let of = |block: usize| match cfg.swin.and_then(|swin| swin.place(block)) {
        None => (all_tokens(cfg), cfg.embed_dim as f64),
        Some((stage, _)) => {
            let (rows, columns) = cfg.stage_grid(stage);
            ((rows * columns) as f64, cfg.stage_dim(stage) as f64)
        }
    };
    (cfg.depth.saturating_sub(blocks)..cfg.depth).map(of)
}

/// What the last so many blocks keep of an image for their backward pass. Those of a Swin are their ops one by one, of which each
/// keeps its input: norms, rows in and out of windows, qkv, heads, projection, both sides of GELU, both residuals.
fn trained_bytes(cfg: &VitConfig, blocks: usize, precision: Precision) -> f64 {
    let bytes = |(tokens, dim): (f64, f64)| match cfg.swin {
        None => block_bytes(tokens, dim, cfg.mlp_ratio, precision),
        Some(_) => F32 * tokens * dim * (12.0 + 2.0 * cfg.mlp_ratio),
    };
    last_blocks(cfg, blocks).map(bytes).sum()
}

/// Blocks that train at some time: layer 0 is the patch embedding.
fn trained_blocks(cfg: &VitConfig, frozen: usize) -> usize {
    (cfg.depth + 1).saturating_sub(frozen).min(cfg.depth)
}

fn all_tokens(cfg: &VitConfig) -> f64 {
    (cfg.patches() + cfg.prefix_tokens()) as f64
}

fn encoder_block(cfg: &VitConfig, tokens: f64, precision: Precision) -> f64 {
    block_bytes(tokens, cfg.embed_dim as f64, cfg.mlp_ratio, precision)
}

/// What `vit::ops::block` keeps of an image for its backward: its input, the middle of the residual stream, qkv, the heads'
/// output, the hidden layer; the latter three in bf16 where products are.
fn block_bytes(tokens: f64, dim: f64, ratio: f64, precision: Precision) -> f64 {
    let operand = match precision {
        Precision::F32 => F32,
        Precision::Bf16 => 2.0,
    };
    tokens * dim * (2.0 * F32 + (4.0 + ratio) * operand)
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: Precision = Precision::F32;

    fn mim(name: &str) -> LocalMimConfig {
        LocalMimConfig::new(VitConfig::preset(name).unwrap()).unwrap()
    }

    /// Below the peaks that `vitfreeze bench --frozen 0` measured (Intel Xeon, 2026-11-28), and not far below: bytes by
    /// model and batch.
    #[test]
    fn the_floor_lies_below_what_was_measured() {
        let measured = [
            ("vit-small", 4, 0.655e9),
            ("vit-small", 16, 1.005e9),
            ("vit-base", 4, 1.851e9),
            ("vit-base", 16, 2.173e9),
            // AMD EPYC, 2026-11-29.
            ("swin-tiny", 8, 1.04e9),
        ];
        for (model, batch, peak) in measured {
            let budget = Budget::pretraining(&mim(model), 0.75, batch, 0, F);
            let need = budget.weights + budget.state + budget.image * batch as f64;
            let part = need / peak;
            assert!((0.6..1.0).contains(&part), "{model} {batch}: {part}");
        }
    }

    const GIB: f64 = (1u64 << 30) as f64;

    #[test]
    fn it_refuses_with_what_would_fit() {
        let room = |gib: f64| Room {
            bytes: (gib * GIB) as u64,
            set_by: "ulimit -v",
        };
        let cfg = VitConfig::preset("vit-base").unwrap();
        let large = Budget::finetuning(&cfg, 512, 0, false, F);
        assert!(large.fits(room(1000.0)).is_ok());
        let line = large.fits(room(8.0)).unwrap_err().to_string();
        let batch: f64 = line
            .split("about ")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!((1.0..512.0).contains(&batch), "{line}");
        assert!(
            line.contains("batch-size 512") && line.contains("(ulimit -v)"),
            "{line}"
        );
        let small = Budget {
            batch: batch as usize,
            ..large
        };
        assert!(small.fits(room(8.0)).is_ok());
        let line = large.fits(room(0.5)).unwrap_err().to_string();
        assert!(line.contains("no batch fits"), "{line}");
        // Less of everything: frozen layers, bf16, no training at all.
        let bytes = |b: Budget| b.weights + b.state + b.image * 512.0;
        assert!(bytes(Budget::finetuning(&cfg, 512, 6, false, F)) < bytes(large));
        assert!(bytes(Budget::finetuning(&cfg, 512, 0, true, F)) > bytes(large));
        assert!(bytes(Budget::inference(&cfg, 512, F)) < bytes(large) / 4.0);
        assert!(bytes(large.beside_weights()) < bytes(large));
        let narrow = Budget::finetuning(&cfg, 512, 0, false, Precision::Bf16);
        assert!(bytes(narrow) < bytes(large));
    }

    #[test]
    fn layers_that_never_train_are_counted_over_the_whole_run() {
        use freezeout::{Change, Spacing};
        let plan = |changes: &[(usize, usize)]| Schedule {
            spacing: Spacing::At(
                changes
                    .iter()
                    .map(|&(step, frozen)| Change { step, frozen })
                    .collect(),
            ),
            ..Schedule::cubic(0.8, 13, 100)
        };
        assert_eq!(always_frozen(&Schedule::cubic(0.8, 13, 100)), 0);
        assert_eq!(always_frozen(&plan(&[(0, 5), (20, 8)])), 5);
        assert_eq!(always_frozen(&plan(&[(0, 5), (20, 2)])), 2);
        assert_eq!(always_frozen(&plan(&[(10, 5)])), 0);
    }
}
