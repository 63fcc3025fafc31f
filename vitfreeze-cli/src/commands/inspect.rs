//! `vitfreeze inspect`: what a checkpoint is.
use std::process::ExitCode;

use anyhow::Result;
use rayon::prelude::*;
use vit::{shown, Activation, Checkpoint, Pool, PosEmbed, StoredTensor, StoredType};

use crate::console::{amount, counted, print};
use crate::input::channels::RGB;
use crate::input::pretrained::{explain, note_other_size, open, ModelArgs, CHECKPOINT};
use crate::machine::device;

const EXAMPLES: &str = "\
Examples:
  vitfreeze inspect runs/pretrain-1/encoder.safetensors
  vitfreeze inspect mae_pretrain_vit_base.pth
  vitfreeze inspect hf://google/vit-base-patch16-224";

/// Flags of `vitfreeze inspect`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[arg(help = CHECKPOINT)]
    checkpoint: String,
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    device::set_threads(0)?;
    let checkpoint = open(&args.checkpoint, &args.model)?;
    note_other_size(&checkpoint, &args.model);
    for line in summary(&checkpoint) {
        print(line)?;
    }
    if let Err(e) = checkpoint.check() {
        print(format!("warning       {e}"))?;
    }
    let tensors: Vec<(&String, &StoredTensor)> = checkpoint.tensors().iter().collect();
    let norms: Result<Vec<Norm>, vit::Error> = tensors
        .par_iter()
        .map(|(name, tensor)| Norm::of(&checkpoint, name, tensor))
        .collect();
    let norms = norms.map_err(explain)?;
    let names: Vec<String> = tensors.iter().map(|(name, _)| shown(name)).collect();
    let width = names.iter().map(|name| name.chars().count()).max();
    let width = width.unwrap_or(0);
    print(format!("\n{:width$}  type  shape", "tensor"))?;
    let mut bad = 0;
    for (((_, tensor), name), norm) in tensors.iter().zip(&names).zip(&norms) {
        bad += usize::from(norm.not_finite > 0);
        let shape = format!("{:?}", tensor.shape);
        let norm = norm.text();
        print(format!(
            "{name:width$}  {:4}  {shape:20} {norm}",
            tensor.dtype.name()
        ))?;
    }
    if bad > 0 {
        print(format!("\n{} with NaN or infinity", counted(bad, "tensor")))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(checkpoint: &Checkpoint) -> Vec<String> {
    let cfg = checkpoint.config();
    let activation = match cfg.activation {
        Activation::Gelu => "GELU",
        Activation::GeluTanh => "GELU (tanh)",
        Activation::QuickGelu => "quick GELU",
        Activation::SwiGlu => "SwiGLU",
    };
    let (height, width) = cfg.image();
    let channels = match cfg.in_chans {
        RGB => String::new(),
        other => format!(", {}", counted(other, "channel")),
    };
    let mut parts = Vec::new();
    if cfg.swin.is_none() {
        parts.push("class token".to_owned());
    }
    if cfg.dist_token {
        parts.push("distillation token".into());
    }
    if cfg.reg_tokens > 0 {
        parts.push(format!("{} registers", cfg.reg_tokens));
    }
    let positions = match (cfg.pos_embed, cfg.no_embed_class) {
        _ if cfg.swin.is_some() => "a bias by offset in a window".to_owned(),
        (PosEmbed::SinCos, _) => "sin-cos positions".to_owned(),
        (PosEmbed::Rope { theta }, _) => format!("rotary positions (theta {theta})"),
        (PosEmbed::Learnt, true) => "learnt positions of patches".to_owned(),
        (PosEmbed::Learnt, false) => "learnt positions".to_owned(),
    };
    parts.push(format!("{} patches, {positions}", cfg.patches()));
    for (is, what) in [
        (!cfg.qkv_bias, "no qkv bias"),
        (cfg.qkv_bias && !cfg.key_bias, "no bias of keys"),
        (cfg.init_values.is_some(), "LayerScale"),
        (cfg.pre_norm, "norm before the blocks"),
    ] {
        if is {
            parts.push(what.into());
        }
    }
    let pool = match cfg.pool {
        Pool::Token => "class token",
        Pool::Avg => "mean of patches",
        Pool::TokenAvg => "class token and mean of patches",
    };
    let norm = if cfg.fc_norm { ", fc_norm" } else { "" };
    let assumed = checkpoint.pool_note().map_or("", |_| " (assumed)");
    let head = match cfg.num_classes {
        0 => "none".to_owned(),
        n => format!("{n} classes, {} of them named", checkpoint.labels().len()),
    };
    let tensors = checkpoint.tensors();
    let unused = checkpoint.unused();
    let count =
        |names: &mut dyn Iterator<Item = &StoredTensor>| names.map(|t| t.elements()).sum::<usize>();
    let all = count(&mut tensors.values());
    let left = count(&mut unused.iter().filter_map(|name| tensors.get(*name)));
    let name = checkpoint
        .name()
        .map_or(String::new(), |n| format!(" ({})", shown(n)));
    let sizes = match &cfg.swin {
        None => format!(
            "width {}, {} blocks, {} heads, MLP {}",
            cfg.embed_dim,
            cfg.depth,
            cfg.num_heads,
            cfg.mlp_hidden()
        ),
        Some(swin) => format!(
            "width {} to {}, blocks {:?}, heads {:?}, windows of {}, MLP {} to {}",
            cfg.embed_dim,
            cfg.features(),
            swin.depths,
            swin.num_heads,
            swin.window_size,
            cfg.mlp_hidden(),
            8 * cfg.mlp_hidden()
        ),
    };
    let mut lines = vec![
        format!("family        {}{name}", checkpoint.family()),
        format!("architecture  {sizes} {activation}, eps {:e}", cfg.norm_eps),
        format!(
            "images        {height} x {width}{channels}, patch {}",
            cfg.patch_size
        ),
        format!("tokens        {}", parts.join(", ")),
        format!("pooling       {pool}{norm}{assumed}"),
        format!("head          {head}"),
        format!(
            "parameters    {} in {} tensors",
            amount(all - left),
            tensors.len() - unused.len()
        ),
    ];
    if !unused.is_empty() {
        lines.push(format!(
            "not loaded    {} in {} tensors: {}",
            amount(left),
            unused.len(),
            some(&unused)
        ));
    }
    lines
}

fn some(names: &[&str]) -> String {
    let first: Vec<String> = names.iter().take(6).map(|name| shown(name)).collect();
    let first = first.join(", ");
    match names.len().saturating_sub(6) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Euclidean norm and numbers that are none.
struct Norm {
    norm: Option<f64>,
    not_finite: usize,
}

impl Norm {
    fn of(checkpoint: &Checkpoint, name: &str, tensor: &StoredTensor) -> Result<Self, vit::Error> {
        if matches!(tensor.dtype, StoredType::Other(..)) {
            return Ok(Self {
                norm: None,
                not_finite: 0,
            });
        }
        let values = checkpoint.values(name)?;
        let finite = values.iter().filter(|x| x.is_finite());
        let squares: f64 = finite.map(|&x| f64::from(x) * f64::from(x)).sum();
        Ok(Self {
            norm: Some(squares.sqrt()),
            not_finite: values.iter().filter(|x| !x.is_finite()).count(),
        })
    }

    fn text(&self) -> String {
        let norm = self.norm.map_or(String::new(), |x| format!("norm {x:.4}"));
        match self.not_finite {
            0 => norm,
            n => format!("{norm}  NaN or infinite: {n}"),
        }
    }
}
