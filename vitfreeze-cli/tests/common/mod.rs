//! Running the binary on a run small enough for tests.
#![allow(dead_code)]
use std::path::Path;
use std::process::{Command, Output};

/// 30 steps of 6 epochs, 16 px images; layers freeze from step 16 on.
pub const SMALL: [&str; 22] = [
    "--samples=40",
    "--image-size=16",
    "--patch-size=4",
    "--model=vit-tiny",
    "--decoder-dim=16",
    "--decoder-heads=2",
    "--epochs=6",
    "--warmup-epochs=1",
    "--batch-size=8",
    "--accum=1",
    "--lr=1e-3",
    "--seed=7",
    "--mask-ratio=0.75",
    "--hog-bins=9",
    "--stages=default",
    "--freeze=cubic",
    "--t0=0.7",
    "--layer-lr=scaled",
    "--warmup=continuous",
    "--weight-decay=0.05",
    "--min-lr=1e-6",
    "--crop-scale=0.2",
];

/// `vitfreeze` with these arguments.
pub fn vitfreeze<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vitfreeze"));
    command.args(args);
    command
}

/// A new small run into `out`.
pub fn pretrain(out: &Path, more: &[&str]) -> Command {
    let mut command = vitfreeze(["pretrain", "--out"]);
    command.arg(out).args(SMALL).args(more);
    command
}

/// The same run, gone on with.
pub fn resume(out: &Path, more: &[&str]) -> Command {
    let mut command = vitfreeze(["pretrain", "--resume"]);
    command.arg(out).args(more);
    command
}

pub fn text(output: &Output) -> String {
    let show = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", show(&output.stdout), show(&output.stderr))
}

/// Runs a command that must succeed.
pub fn ok(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// Runs a command that must fail with this exit code and one line, and returns the line.
pub fn fails(mut command: Command, code: i32) -> String {
    let output = command.output().unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {text}");
    let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "{command:?}: {text}");
    assert!(!text.contains("panicked"), "{text}");
    lines[0].to_owned()
}

/// The tensors of a safetensors file and their bytes, without its metadata.
pub fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = file
        .iter()
        .map(|(name, view)| (name.to_owned(), view.data().to_vec()))
        .collect();
    all.sort();
    all
}

/// Same weights, same optimiser state, bit for bit.
pub fn assert_same_state(a: &Path, b: &Path) {
    for file in ["checkpoint.safetensors", "encoder.safetensors"] {
        let (a, b) = (tensors(&a.join(file)), tensors(&b.join(file)));
        assert_eq!(a.len(), b.len(), "{file}");
        for ((name, x), (other, y)) in a.iter().zip(&b) {
            assert_eq!(name, other);
            assert!(x == y, "{file}: '{name}' differs");
        }
    }
    let losses = |dir: &Path| -> Vec<(u64, f64, u64)> {
        rows(dir)
            .iter()
            .map(|r| {
                (
                    r["step"].as_u64().unwrap(),
                    r["loss"].as_f64().unwrap(),
                    r["frozen"].as_u64().unwrap(),
                )
            })
            .collect()
    };
    assert_eq!(losses(a), losses(b));
}

/// The lines of metrics.jsonl.
pub fn rows(dir: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

/// The lines of metrics.jsonl without times.
pub fn log(dir: &Path) -> Vec<serde_json::Value> {
    let mut rows = rows(dir);
    for row in &mut rows {
        let row = row.as_object_mut().unwrap();
        row.retain(|key, _| !key.contains("seconds") && key != "images_per_second");
    }
    rows
}

/// A tiny checkpoint of vit/tests.
pub fn checkpoint(name: &str) -> std::path::PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("../vit/tests/fixtures/checkpoints").join(name)
}

/// Makes class folders of so many images each; every class has a brightness of its own.
pub fn classes(dir: &Path, names: &[&str], count: u8) {
    for (name, level) in names.iter().zip([20u8, 230, 120, 70, 180]) {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        for i in 0..count {
            let pixels = image::RgbImage::from_fn(40, 50, |x, y| {
                image::Rgb([level, level.wrapping_add(i), (x * y) as u8 / 8 + i])
            });
            pixels.save(dir.join(format!("{i}.png"))).unwrap();
        }
    }
}
