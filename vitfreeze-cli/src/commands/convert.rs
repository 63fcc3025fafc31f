//! `vitfreeze convert`: a checkpoint of any family as a folder that timm or transformers loads.
use std::path::PathBuf;
use std::process::ExitCode;

#[cfg(feature = "hub")]
use anyhow::Context as _;
use anyhow::Result;
use candle_core::{DType, Device};
use clap::ValueEnum;
use vit::{Head, Layout};

use crate::console::{counted, note, print};
use crate::input::pretrained::{explain, load, note_other_size, open, ModelArgs, CHECKPOINT};
use crate::machine::device;
use crate::run::folder::quoted;
use crate::usage::usage;

const EXAMPLES: &str = "\
Examples:
  vitfreeze convert runs/pretrain-1/encoder.safetensors mine --to hf
  vitfreeze convert mae_pretrain_vit_base.pth mae --to timm --dtype f16
  vitfreeze convert hf://facebook/dinov2-small dino --to timm --image-size 224
  vitfreeze convert runs/finetune-1 mine --to timm --upload me/my-vit    and to the Hub (HF_TOKEN)";

/// Flags of `vitfreeze convert`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[arg(value_name = "IN", help = CHECKPOINT)]
    input: String,
    /// Folder to write; must be new or empty
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Layout to write
    #[arg(long, value_enum)]
    to: To,
    /// Type of the numbers
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Type,
    /// Leave the head out
    #[arg(long)]
    drop_head: bool,
    /// Upload the folder to this repository of the Hugging Face Hub; it is created if needed; needs HF_TOKEN
    #[cfg(feature = "hub")]
    #[arg(long, value_name = "ORG/NAME[@BRANCH]")]
    upload: Option<String>,
    /// Create the repository as private
    #[cfg(feature = "hub")]
    #[arg(long, requires = "upload")]
    private: bool,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum To {
    /// timm.create_model("local-dir:OUT", pretrained=True); transformers loads this too, as TimmWrapper
    Timm,
    /// transformers.AutoModel.from_pretrained("OUT")
    Hf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    device::set_threads(0)?;
    let out = std::fs::read_dir(&args.output);
    if args.output.is_file() || out.is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(usage(format!(
            "{} is there already; choose another folder",
            args.output.display()
        )));
    }
    let checkpoint = open(&args.input, &args.model)?;
    note_other_size(&checkpoint, &args.model);
    let head = match args.drop_head {
        true => Head::Drop,
        false => Head::Keep,
    };
    let pretrained = load(&checkpoint, &args.model, head, &Device::Cpu)?;
    let layout = match args.to {
        To::Timm => Layout::Timm,
        To::Hf => Layout::HuggingFace,
    };
    let dtype = match args.dtype {
        Type::F32 => DType::F32,
        Type::F16 => DType::F16,
        Type::Bf16 => DType::BF16,
    };
    let unused = checkpoint.unused();
    if !unused.is_empty() {
        note(format!(
            "note: {} of the checkpoint left out: no part of the encoder (vitfreeze inspect lists them)",
            counted(unused.len(), "tensor")
        ));
    }
    let notes = pretrained.save(&args.output, layout, dtype);
    for line in notes.map_err(explain)? {
        note(format!("note: {line}"));
    }
    let out = quoted(&args.output);
    print(format!("{} -> {out}", checkpoint.family()))?;
    print(match args.to {
        To::Timm => format!(
            "  timm.create_model(\"local-dir:{}\", pretrained=True)",
            args.output.display()
        ),
        To::Hf => format!(
            "  transformers.AutoModel.from_pretrained(\"{}\")",
            args.output.display()
        ),
    })?;
    #[cfg(feature = "hub")]
    if let Some(repo) = &args.upload {
        upload(&args, repo)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "hub")]
fn upload(args: &Args, repo: &str) -> Result<()> {
    use crate::console::{Progress, Unit};
    let progress = std::sync::Arc::new(Progress::new(0, Unit::Bytes));
    let told = progress.clone();
    let on_progress =
        std::sync::Arc::new(move |what: &str, done, total| told.at(what, done, total));
    let page = vit::Hub::from_env()?.upload(&args.output, repo, args.private, on_progress);
    progress.close();
    let page = page.with_context(|| {
        let out = quoted(&args.output);
        format!("{out} is written but not uploaded (hf upload {repo} {out} tries again)")
    })?;
    print(format!("  {page}"))?;
    Ok(())
}
