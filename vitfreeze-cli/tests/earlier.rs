//! Runs that the program of 2026-11-28 (version 0.1.0, before all commands had one training loop) began, gone on with by this
//! one. `tests/fixtures/earlier` holds what it left after some steps, and the metrics of the whole run, which other
//! processors round otherwise.
mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use common::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/earlier")
        .join(name)
}

/// A copy of the run's folder, since it is written to.
fn copy(name: &str, dir: &Path) -> PathBuf {
    let to = dir.join(name);
    std::fs::create_dir(&to).unwrap();
    for file in std::fs::read_dir(fixture(name)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    to
}

fn losses(path: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    rows.map(|row| row["loss"].as_f64().unwrap()).collect()
}

/// Whether f32 numbers differ by rounding alone.
fn near(a: &[u8], b: &[u8]) -> bool {
    let numbers = |bytes: &[u8]| -> Vec<f32> {
        let each = bytes.chunks_exact(4);
        each.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    };
    let (a, b) = (numbers(a), numbers(b));
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-6)
}

/// Restored bit for bit; then the steps that are left come to the same losses.
fn check(command: &str) {
    let dir = tempfile::tempdir().unwrap();
    let run = copy(command, dir.path());
    let encoder = checkpoint("timm_distilled");
    let go_on = |more: &[&str]| {
        let mut program = vitfreeze([command, "--resume"]);
        program.arg(&run).arg("--checkpoint").arg(&encoder);
        program.args(more);
        ok(program)
    };
    std::fs::remove_file(run.join("last.safetensors")).unwrap();
    go_on(&["--max-steps=7"]);
    let last = "last.safetensors";
    let (got, want) = (
        tensors(&run.join(last)),
        tensors(&fixture(command).join(last)),
    );
    assert_eq!(got.len(), want.len());
    for ((name, got), (same, want)) in got.iter().zip(&want) {
        assert_eq!(name, same);
        // A probe's BatchNorm is folded into its bias by a product, which rounds as the machine does.
        match command == "linprobe" && name.starts_with("head") && name.ends_with(".bias") {
            true => assert!(near(got, want), "{name}"),
            false => assert!(got == want, "{name}"),
        }
    }
    go_on(&[]);
    let (got, want) = (
        losses(&run.join("metrics.jsonl")),
        losses(&fixture(command).join("rest.jsonl")),
    );
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(&want) {
        assert!((got / want - 1.0).abs() < 1e-3, "{got} {want}");
    }
}

#[test]
fn finetune() {
    check("finetune");
}

#[test]
fn linprobe() {
    check("linprobe");
}

/// A pretraining's weights are too large to be kept here: the earlier header and config.toml take the places of this
/// program's own, and the run ends with the bits of one that was never stopped.
#[test]
fn pretrain() {
    let dir = tempfile::tempdir().unwrap();
    let header = std::fs::read_to_string(fixture("pretrain/header.json")).unwrap();
    let config = fixture("pretrain/config.toml");
    let start = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let mut program = vitfreeze(["pretrain", "--config"]);
        program.arg(&config).arg("--out").arg(&out).args(more);
        ok(program);
        out
    };
    let straight = start("straight", &[]);
    let stopped = start("stopped", &["--max-steps=11"]);
    let path = stopped.join("checkpoint.safetensors");
    let state = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    let metadata = HashMap::from([("vitfreeze".to_owned(), header)]);
    safetensors::serialize_to_file(&state, Some(metadata), &path).unwrap();
    std::fs::copy(&config, stopped.join("config.toml")).unwrap();
    ok(resume(&stopped, &[]));
    for file in ["checkpoint.safetensors", "encoder.safetensors"] {
        assert_eq!(
            tensors(&straight.join(file)),
            tensors(&stopped.join(file)),
            "{file}"
        );
    }
}
