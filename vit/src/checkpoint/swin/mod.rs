//! Checkpoints of Swin Transformers: timm's, their authors', Hugging Face's, in and out.
mod describe;
mod infer;
mod names;
mod save;

pub(super) use describe::{of_hugging_face, of_timm};
pub(super) use infer::infer;
pub(super) use names::{is_family, is_swin, rename, take_decoders, unsupported, BY_ROW};
pub(super) use save::{
    check as check_hugging_face, differs_in_transformers, to_hugging_face, to_timm,
};

/// Of a block, what is added to scores by offset.
const TABLE: &str = "attn.relative_position_bias_table";
