//! `result.json`: what a run came to, for programs that compare runs.
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Accuracies in percent.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunResult {
    /// The subcommand.
    pub kind: String,
    pub top1: Option<f64>,
    pub top5: Option<f64>,
    pub loss: Option<f64>,
    /// The epoch, from 0, whose numbers these are.
    pub best_epoch: Option<usize>,
    pub images: usize,
    /// Percent of the time that freezing saved, against the run's own unfrozen steps; none where chance is larger.
    #[serde(default)]
    pub saved: Option<f64>,
    pub seconds: f64,
    /// The most memory that it took; of several workers the first one's.
    #[serde(default)]
    pub peak_bytes: Option<u64>,
    pub settings: serde_json::Value,
    pub versions: BTreeMap<String, String>,
}

/// Versions of the crates that compute.
pub fn versions() -> BTreeMap<String, String> {
    let crates = env!("VITFREEZE_CRATES").split(',');
    let pairs = crates.filter_map(|c| c.split_once('='));
    let own = ("vitfreeze", env!("CARGO_PKG_VERSION"));
    let all = pairs.chain([own]);
    all.map(|(name, version)| (name.into(), version.into()))
        .collect()
}

/// Writes `dir/result.json`.
pub fn write(dir: &Path, result: &RunResult) -> Result<()> {
    let text = serde_json::to_string_pretty(result)? + "\n";
    Ok(vit::write_atomic(
        &dir.join("result.json"),
        text.as_bytes(),
    )?)
}
