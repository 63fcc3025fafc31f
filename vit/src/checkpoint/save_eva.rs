//! Models with rotary positions in the words of timm, whose DINOv3 is one of its EVA models.
use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::{json, Value};

use super::save::ratio_of;
use crate::{Activation, Error, VitConfig};

/// A model function with DINOv3's norm; what it sets beside that, [`args`] sets too.
pub(super) const ARCHITECTURE: &str = "vit_small_patch16_dinov3";
/// timm rounds the width of a gated MLP up to a multiple of it, and has its two halves apart then.
const ALIGNED: usize = 8;

/// Whether timm has such an architecture.
///
/// # Errors
/// [`Error::Layout`] with what it lacks.
pub(super) fn check(cfg: &VitConfig) -> Result<(), Error> {
    if cfg.rope_theta().is_none() {
        return Ok(());
    }
    let lacks = match cfg.activation {
        _ if cfg.dist_token => "no distillation token",
        Activation::GeluTanh | Activation::QuickGelu => "no activation but exact GELU and SwiGLU",
        Activation::Gelu | Activation::SwiGlu => return Ok(()),
    };
    Err(Error::Layout {
        layout: "timm",
        reason: format!("its models with rotary positions have {lacks}; keep the checkpoint as it is, or use --to hf"),
    })
}

/// Whether the halves of the MLP's hidden layer are two tensors.
fn halved(cfg: &VitConfig) -> bool {
    cfg.activation == Activation::SwiGlu && (cfg.mlp_hidden() / 2).is_multiple_of(ALIGNED)
}

/// Of `model_args` what other ViTs have not, or otherwise.
pub(super) fn args(cfg: &VitConfig) -> Value {
    let gated = cfg.activation == Activation::SwiGlu;
    let hidden = cfg.mlp_hidden() / (1 + usize::from(gated));
    let mut args = json!({
        "mlp_ratio": ratio_of(hidden, cfg.embed_dim),
        "swiglu_mlp": gated,
        "swiglu_align_to": if halved(cfg) { ALIGNED } else { 0 },
        "num_reg_tokens": cfg.reg_tokens,
        "use_fc_norm": cfg.fc_norm,
        "use_pre_transformer_norm": cfg.pre_norm,
        "use_abs_pos_emb": false,
        "use_rot_pos_emb": true,
        "rope_type": "dinov3",
        "rope_rotate_half": true,
        "rope_temperature": cfg.rope_theta(),
    });
    if cfg.qkv_bias && cfg.key_bias {
        // EVA's own attention has no bias of keys.
        args["attn_type"] = json!("rope");
    }
    args
}

/// EVA's names.
pub(super) fn rename(
    cfg: &VitConfig,
    tensors: BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>, Error> {
    let mut out = BTreeMap::new();
    for (name, tensor) in tensors {
        let name = name
            .replace(".ls1.gamma", ".gamma_1")
            .replace(".ls2.gamma", ".gamma_2");
        if halved(cfg) && name.contains(".mlp.fc1.") {
            let half = tensor.dim(0)? / 2;
            for (i, theirs) in [".mlp.fc1_g.", ".mlp.fc1_x."].into_iter().enumerate() {
                let part = tensor.narrow(0, i * half, half)?.contiguous()?;
                out.insert(name.replace(".mlp.fc1.", theirs), part);
            }
        } else {
            out.insert(name, tensor);
        }
    }
    Ok(out)
}
