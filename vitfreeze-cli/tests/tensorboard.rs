//! Event files of pretraining: one a session, none without the flag. scripts/tensorboard_check.py reads them with the
//! real package.
mod common;

use std::path::{Path, PathBuf};

use common::{ok, pretrain, resume};

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<PathBuf> = entries
        .filter(|p| p.to_string_lossy().contains("tfevents"))
        .collect();
    files.sort();
    files
}

/// The events, by the lengths that frame them.
fn events(path: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let (mut rest, mut events) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        events.push(rest[12..12 + length].to_vec());
        rest = &rest[16 + length..];
    }
    events
}

#[test]
fn a_session_writes_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let line = common::fails(pretrain(&out, &["--histograms"]), 2);
    assert!(line.contains("--histograms is for --tensorboard"), "{line}");
    ok(pretrain(&out, &["--max-steps=3"]));
    assert!(files(&out).is_empty());
    ok(resume(&out, &["--max-steps=5", "--tensorboard"]));
    ok(resume(&out, &["--max-steps=7", "--tensorboard"]));
    let files = files(&out);
    assert_eq!(files.len(), 2);
    let rows = common::rows(&out);
    for (file, steps) in files.iter().zip([[3, 4], [5, 6]]) {
        let events = events(file);
        let has = |event: &Vec<u8>, text: &str| {
            event
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        assert!(has(&events[0], "brain.Event:2"));
        // SessionLog START at the first step, so that TensorBoard drops what a killed session logged of it.
        assert!(events[1].ends_with(&[2 << 3, steps[0] as u8, 7 << 3 | 2, 2, 1 << 3, 1]));
        let losses: Vec<&Vec<u8>> = events
            .iter()
            .filter(|e| has(e, "\u{a}train/loss\u{15}"))
            .collect();
        assert_eq!(losses.len(), 2);
        for (event, step) in losses.iter().zip(steps) {
            let value = f32::from_le_bytes(event[event.len() - 4..].try_into().unwrap());
            assert_eq!(value, rows[step]["loss"].as_f64().unwrap() as f32);
        }
        for tag in [
            "train/loss_stage_0",
            "lr/layer_00",
            "lr/layer_12",
            "frozen",
            "images_per_second",
        ] {
            assert_eq!(events.iter().filter(|e| has(e, tag)).count(), 2, "{tag}");
        }
    }
    let result: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("result.json")).unwrap()).unwrap();
    assert_eq!(result["kind"], "pretrain");
    assert_eq!(result["images"], 7 * 8);
}

/// Every number read back by the real package, for each training command. Needs a Python that has it, named by
/// `VITFREEZE_PYTHON` (.ci/run makes one); without, there is nothing to compare with.
#[test]
fn the_real_package_reads_them_back() {
    let Some(python) = std::env::var_os("VITFREEZE_PYTHON") else {
        eprintln!("skipped: VITFREEZE_PYTHON names no Python with the package tensorboard");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = |name| folder.path().join(name);
    let both = ["--tensorboard", "--histograms"];
    ok(pretrain(&path("pretrain"), &both));
    let shapes = [
        "--data=shapes",
        "--samples=40",
        "--image-size=32",
        "--batch-size=8",
        "--accum=1",
    ];
    for command in ["finetune", "linprobe"] {
        let mut run =
            common::vitfreeze([command, "--tensorboard", "--epochs=3", "--warmup-epochs=1"]);
        run.args(shapes).arg("--checkpoint").arg(path("pretrain"));
        run.arg("--out").arg(path(command));
        ok(run);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/tensorboard_check.py");
    for command in ["pretrain", "finetune", "linprobe"] {
        let mut check = std::process::Command::new(&python);
        check.arg(&script).arg(path(command));
        let said = ok(check);
        assert!(said.contains("are those of metrics.jsonl"), "{said}");
        if command == "pretrain" {
            let wanted = "6 pictures, 13 histograms, the configuration as text";
            assert!(said.contains(wanted), "{said}");
        }
    }
}
