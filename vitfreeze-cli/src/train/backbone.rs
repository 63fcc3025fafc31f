//! The encoder that is trained or probed, without a head.
use anyhow::Result;
use candle_core::Device;
use vit::{Head, Pretrained};

use super::{Supervised, Training};
use crate::console::{counted, note};
use crate::input::channels::Channels;
use crate::input::normal;
use crate::input::pretrained::{input_size, load, note_normalisation, open, pooling, ModelArgs};
use crate::usage::usage;

/// An encoder and where it comes from.
pub struct Encoder {
    pub pretrained: Pretrained,
    /// Whether the checkpoint has a head, so that its pooling and last norm have been trained.
    pub classifier: bool,
}

/// The encoder of `origin` on square images of the size asked for, and how its tokens are pooled.
pub fn load_encoder(
    training: &Training,
    supervised: &Supervised,
    origin: &str,
    device: &Device,
) -> Result<Encoder> {
    let size = supervised.image_size.map(|n| (n, n));
    let args = ModelArgs::new(
        supervised.heads,
        supervised.window_size,
        size,
        supervised.channels.channels,
    );
    let checkpoint = open(origin, &args)?;
    let classes = checkpoint.config().num_classes;
    let (own, channels) = (checkpoint.config().in_chans, &supervised.channels);
    let wanted = channels.channels.unwrap_or(own);
    normal::check_data(wanted, training.data())?;
    // Those that no file tells are only guessed for RGB.
    if wanted != own || !checkpoint.preprocess().known {
        let asked = Channels {
            channels: Some(wanted),
            ..channels.clone()
        };
        asked.check_new(training.data())?;
    }
    let args = input_size(&checkpoint, args);
    let mut encoder = load(&checkpoint, &args, Head::Drop, device)?;
    let (height, width) = encoder.cfg.image();
    if height != width {
        return Err(usage(format!(
            "{origin}: made for images of {height} x {width} pixels, training needs square ones; give --image-size PX"
        )));
    }
    if classes > 0 {
        note(format!(
            "note: the checkpoint's head ({}) is left out",
            counted(classes, "class")
        ));
    }
    if channels.mean.is_none() {
        note_normalisation(own, wanted);
    }
    encoder.preprocess = normal::prepared(channels, encoder.preprocess)?;
    encoder.cfg.pool = pooling(&checkpoint, supervised.pool.map(Into::into));
    encoder.cfg.validate().map_err(usage)?;
    training.check_batch(height)?;
    Ok(Encoder {
        pretrained: encoder,
        classifier: classes > 0,
    })
}
