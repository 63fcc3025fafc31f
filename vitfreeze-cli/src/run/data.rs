//! The dataset that a run was made with, for whoever judges or trains what came out of it.
use std::io::Read;
use std::path::Path;

use anyhow::Result;
use toml::{Table, Value};

use crate::console::note;
use crate::input::dataset::SAMPLES;
use crate::usage::usage;

/// Longest config.toml that is read.
const MAX_CONFIG: u64 = 1 << 20;

/// `--data`, `--val-data` and `--samples`.
#[derive(Debug, Default)]
pub struct RunData {
    pub data: String,
    pub val_data: Option<String>,
    pub samples: Option<usize>,
}

impl RunData {
    /// What was asked for, or that of the run in whose folder `checkpoint` is, which is said.
    pub fn asked_or_of(
        data: Option<&str>,
        val_data: Option<&str>,
        samples: Option<u32>,
        checkpoint: &str,
    ) -> Result<Self> {
        let asked = Self {
            data: data.unwrap_or_default().into(),
            val_data: val_data.map(str::to_owned),
            samples: samples.map(|n| n as usize),
        };
        if data.is_some() {
            return Ok(asked);
        }
        let Some(of_run) = Self::of(checkpoint) else {
            return Err(usage(format!(
                "--data SRC is missing: {checkpoint} belongs to no run whose data could be used"
            )));
        };
        let all = Self {
            data: of_run.data,
            val_data: asked.val_data.or(of_run.val_data),
            samples: asked.samples.or(of_run.samples),
        };
        all.tell();
        Ok(all)
    }

    /// That of the run in whose folder `checkpoint` is.
    pub fn of(checkpoint: &str) -> Option<Self> {
        let path = Path::new(checkpoint);
        let dir = if path.is_dir() { path } else { path.parent()? };
        let config = dir.join("config.toml");
        config.symlink_metadata().ok()?;
        if !config.is_file() {
            note(vit::printable(&format!(
                "warning: {} is no file or a broken link: the data of the checkpoint's run are unknown",
                config.display()
            )));
            return None;
        }
        let mut text = String::new();
        let file = std::fs::File::open(config).ok()?;
        file.take(MAX_CONFIG).read_to_string(&mut text).ok()?;
        let table: Table = toml::from_str(&text).ok()?;
        let text = |key| table.get(key).and_then(Value::as_str).map(str::to_owned);
        let samples = table.get("samples").and_then(Value::as_integer);
        Some(Self {
            data: text("data").filter(|data| !data.is_empty())?,
            val_data: text("val-data"),
            // Of other data all images are used.
            samples: samples
                .filter(|_| text("data").as_deref() == Some("shapes"))
                .and_then(|n| n.try_into().ok()),
        })
    }

    /// Says what is taken without having been asked for.
    pub fn tell(&self) {
        let samples = match (self.data.as_str(), self.samples) {
            ("shapes", Some(samples)) => format!(" --samples {samples}"),
            _ => String::new(),
        };
        let val_data = match &self.val_data {
            Some(val_data) => format!(" --val-data {val_data}"),
            None => String::new(),
        };
        let line = format!(
            "note: the data of the checkpoint's run: --data {}{samples}{val_data}",
            self.data
        );
        note(vit::printable(&line));
    }

    /// Images of 'shapes'.
    pub fn samples(&self) -> usize {
        self.samples.unwrap_or(SAMPLES)
    }
}
