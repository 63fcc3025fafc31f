//! Which vector stands for an image where no file says it.
use candle_core::Device;

use super::family::Recipe;
use super::{Checkpoint, Family};
use crate::{sincos_2d, Pool};

/// More than half and bfloat16 round by, and less than a table that was learnt is away from the fixed one.
const NEAR: f32 = 0.01;

/// The pooling, and why it is an assumption where it is one. The class token where pretraining trained it (DINO), in
/// classifiers their own; the mean of the patches after masked pretraining, which asks nothing of the class token.
pub(super) fn assume(checkpoint: &Checkpoint) -> (Pool, Option<&'static str>) {
    use Family::{
        Dino, Dinov2, Dinov3, HfDeit, HfDinov2, HfDinov3, HfSwin, HfVit, HfVitMae, LocalMim,
        LocalMimSwin, Mae, Swin, Timm,
    };
    let cfg = checkpoint.config();
    match checkpoint.family() {
        _ if cfg.num_classes > 0 || cfg.dist_token || cfg.fc_norm => (cfg.pool, None),
        Dino | Dinov2 | Dinov3 | HfDinov2 | HfDinov3 => (cfg.pool, None),
        Mae | LocalMim | HfVitMae | Swin | LocalMimSwin | HfSwin => (Pool::Avg, None),
        Timm | HfVit | HfDeit if has_fixed_table(checkpoint) => (
            Pool::Avg,
            Some("no file gives the pooling: mean of the patches assumed, as after masked pretraining, since the position table is the fixed one"),
        ),
        Timm | HfVit | HfDeit => (
            cfg.pool,
            Some("no file gives the pooling: class token assumed"),
        ),
    }
}

/// Whether the position table is the sin-cos one that MAE and its kin have.
fn has_fixed_table(checkpoint: &Checkpoint) -> bool {
    let cfg = checkpoint.config();
    let Some(Recipe::Copy(name)) = checkpoint.named.recipes.get("pos_embed") else {
        return false;
    };
    let Ok(fixed) = sincos_2d(cfg.embed_dim, cfg.grid(), &Device::Cpu) else {
        return false;
    };
    let fixed = fixed.flatten_all().and_then(|t| t.to_vec1::<f32>());
    let (Ok(fixed), Ok(stored)) = (fixed, checkpoint.values(name)) else {
        return false;
    };
    let patches = cfg.patches() * cfg.embed_dim;
    let (Some(a), Some(b)) = (
        fixed.len().checked_sub(patches),
        stored.len().checked_sub(patches),
    ) else {
        return false;
    };
    let (fixed, stored) = (&fixed[a..], &stored[b..]);
    patches > 0 && fixed.iter().zip(stored).all(|(x, y)| (x - y).abs() < NEAR)
}
