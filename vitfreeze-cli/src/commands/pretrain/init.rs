//! `--init`: a run that begins with a checkpoint's weights.
use std::path::Path;

use anyhow::Result;
use candle_core::Device;
use candle_nn::VarMap;
use localmim::{Begun, LocalMimConfig};
use vit::Checkpoint;

use super::config::Config;
use super::sizes::ImageSizes;
use crate::architecture::{name_of, preset, Architecture};
use crate::console::{counted, note};
use crate::input::channels::RGB;
use crate::input::pretrained::{self, explain, ModelArgs};
use crate::run::folder::checkpoint_path;
use crate::usage::usage;

impl Config {
    /// Fills in what follows from the checkpoint: the encoder's architecture, and of model, image and patch size what is not
    /// given. A run keeps the architecture, so that the checkpoint is read once, when the run begins.
    pub(super) fn follow_init(&mut self) -> Result<()> {
        let Some(origin) = &self.init else {
            return Ok(());
        };
        let encoder = match self.encoder {
            Some(encoder) => encoder,
            None => {
                let checkpoint = open(origin, self)?;
                // Three channels that were no colours are none now.
                if checkpoint.preprocess().bands {
                    self.channels.channels.get_or_insert(RGB);
                }
                let asked = self.image_size.as_ref().map(ImageSizes::last);
                let grows = self.image_size.as_ref().is_some_and(ImageSizes::grow);
                let size = match (asked, checkpoint.config().image()) {
                    (Some(size), _) => size,
                    (None, (height, width)) if height == width => height,
                    (None, (height, width)) => {
                        return Err(usage(format!(
                            "{origin}: made for images of {height} x {width} pixels, pretraining needs square ones; give --image-size PX"
                        )))
                    }
                };
                let cfg = LocalMimConfig::encoder_of(&checkpoint, size, grows).map_err(failed)?;
                Architecture::new(cfg)?
            }
        };
        let cfg = encoder.0;
        let patch = *self.patch_size.get_or_insert(cfg.patch_size);
        if patch != cfg.patch_size {
            return Err(usage(format!(
                "patch-size is {patch}, the patches of {origin} have {} pixels: leave patch-size out, or begin with another checkpoint",
                cfg.patch_size
            )));
        }
        let own = name_of(&cfg);
        let model = self.model.get_or_insert_with(|| own.to_owned());
        if model.as_str() != own {
            let told = preset(model)?;
            return Err(usage(format!(
                "model is {model} ({}), {origin} has {}: leave model out, or begin with another checkpoint",
                size_of(&told),
                size_of(&cfg)
            )));
        }
        self.image_size
            .get_or_insert(ImageSizes::one(cfg.image_size));
        if cfg.in_chans != RGB {
            self.channels.channels.get_or_insert(cfg.in_chans);
        }
        self.encoder = Some(encoder);
        Ok(())
    }
}

fn size_of(cfg: &vit::VitConfig) -> String {
    format!(
        "{} of width {}, {}",
        counted(cfg.depth, "block"),
        cfg.embed_dim,
        counted(cfg.num_heads, "head")
    )
}

/// Puts the checkpoint's weights in the places of the first ones, and says which.
pub fn begin(config: &Config, cfg: &LocalMimConfig, vars: &VarMap, device: &Device) -> Result<()> {
    let Some(origin) = &config.init else {
        return Ok(());
    };
    let checkpoint = open(origin, config)?;
    for line in checkpoint.notes() {
        note(format!("note: {line}"));
    }
    let (own, ours) = (checkpoint.preprocess(), config.preprocess()?);
    if own.known && (&own.mean, &own.std) != (&ours.mean, &ours.std) {
        note(format!(
            "note: {origin} was trained on images of mean {:?} and deviation {:?}; here they are normalised by {:?} and {:?}",
            own.mean, own.std, ours.mean, ours.std
        ));
    }
    pretrained::note_channels(checkpoint.config().in_chans, cfg.vit.in_chans);
    let (size, grows) = (cfg.vit.image_size, config.sizes()?.grow());
    let now = LocalMimConfig::encoder_of(&checkpoint, size, grows).map_err(failed)?;
    if config.encoder != Some(Architecture::new(now)?) {
        return Err(usage(format!(
            "{origin} has another architecture than 'encoder' in the configuration: leave that key out"
        )));
    }
    // Of a run of ours it is known what its decoders were trained for.
    let of =
        (checkpoint.run()).and_then(|json| serde_json::from_str::<Config>(json).ok()?.model().ok());
    let begun = cfg.begin(vars, &checkpoint, of.as_ref(), device);
    let begun = begun.map_err(failed)?;
    for line in lines(origin, &begun) {
        note(line);
    }
    if begun.heads_assumed {
        note(format!(
            "note: heads of decoders are not in {origin}: {} assumed (--decoder-heads)",
            cfg.decoder_num_heads
        ));
    }
    Ok(())
}

fn failed(error: localmim::Error) -> anyhow::Error {
    match error {
        localmim::Error::Vit(error) => explain(error),
        localmim::Error::Config(_) => usage(error),
        other => other.into(),
    }
}

/// Of a pretraining run's folder its training state: the exported encoder has no decoders.
fn open(origin: &str, config: &Config) -> Result<Checkpoint> {
    let dir = Path::new(origin);
    let state = checkpoint_path(dir);
    let is_run = state.is_file() && dir.join("encoder.safetensors").is_file();
    let state = state.to_string_lossy();
    let path = if is_run { &state } else { origin };
    let args = ModelArgs::new(config.heads, config.window_size, None, None);
    pretrained::open_quietly(path, &args)
}

/// What was taken, what is new and what is left out, a line each.
fn lines(origin: &str, begun: &Begun) -> Vec<String> {
    [
        (format!("taken from {origin}"), &begun.taken),
        ("new".to_owned(), &begun.new),
        (format!("left out of {origin}"), &begun.left),
    ]
    .into_iter()
    .filter(|(_, names)| !names.is_empty())
    .map(|(what, names)| {
        format!(
            "init: {} {what}: {}",
            counted(names.len(), "tensor"),
            parts(names)
        )
    })
    .collect()
}

/// Names by what they are parts of, in their order, each with its number: `encoder (150), norm.3 (2)`.
fn parts(names: &[String]) -> String {
    let mut parts: Vec<(String, usize)> = Vec::new();
    for name in names {
        let mut words = name.split('.');
        let part = match (words.next(), words.next()) {
            (Some(first @ ("decoder" | "norm")), Some(k)) => format!("{first}.{k}"),
            (Some(first @ ("head" | "fc_norm")), _) => first.to_owned(),
            _ => "encoder".to_owned(),
        };
        match parts.iter_mut().find(|(other, _)| *other == part) {
            Some((_, count)) => *count += 1,
            None => parts.push((part, 1)),
        }
    }
    let parts = parts
        .iter()
        .map(|(part, count)| format!("{part} ({count})"));
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_by_parts() {
        let names = [
            "blocks.0.a",
            "cls_token",
            "decoder.0.x",
            "decoder.1.x",
            "decoder.1.y",
        ];
        let names = names.map(str::to_owned).to_vec();
        let begun = Begun {
            taken: names,
            new: vec!["norm.0.bias".into()],
            left: Vec::new(),
            heads_assumed: false,
        };
        assert_eq!(
            lines("a", &begun),
            [
                "init: 5 tensors taken from a: encoder (2), decoder.0 (1), decoder.1 (2)",
                "init: 1 tensor new: norm.0 (1)"
            ]
        );
    }
}
