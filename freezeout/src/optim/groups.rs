//! Learning rate and weight decay by variable.

/// What a rule for groups gets to see of a variable.
#[derive(Debug, Clone, Copy)]
pub struct Param<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its layer, `None` if it is in none.
    pub layer: Option<usize>,
    /// Its shape.
    pub dims: &'a [usize],
}

/// Factors for one variable.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// The schedule's rate is multiplied with it.
    pub lr_scale: f64,
    /// The optimiser's weight decay is multiplied with it: 0 = no decay.
    pub weight_decay: f64,
}

impl Group {
    /// The usual: full rate, weight decay where [`decays`] says so.
    pub fn of(param: &Param<'_>) -> Self {
        Self {
            lr_scale: 1.0,
            weight_decay: f64::from(u8::from(decays(param.name, param.dims.len()))),
        }
    }
}

/// Whether weight decay applies to a variable: 2 or more dimensions and not a bias, nor Swin's table of them
/// (`relative_position_bias_table`), as its authors have it.
pub fn decays(name: &str, rank: usize) -> bool {
    rank >= 2 && !name.ends_with("bias") && !name.ends_with("relative_position_bias_table")
}

/// Layer-wise learning rate decay (ELECTRA, arXiv 2003.10555; BEiT, MAE): a variable of layer i has the factor
/// `decay^(layers - i)`, variables in no layer (the head) 1. For a ViT `layers` is its depth + 1. Tokens and position
/// embedding (`cls_token`, `dist_token`, `reg_token`, `pos_embed`) have no weight decay, as in MAE and timm.
pub fn layer_decay(decay: f64, layers: usize) -> impl Fn(&Param<'_>) -> Group + Send + 'static {
    move |param| {
        let layer = param.layer.unwrap_or(layers).min(layers);
        let token = ["cls_token", "dist_token", "reg_token", "pos_embed"].contains(&param.name);
        Group {
            lr_scale: decay.powi(i32::try_from(layers - layer).unwrap_or(i32::MAX)),
            weight_decay: if token {
                0.0
            } else {
                Group::of(param).weight_decay
            },
        }
    }
}
