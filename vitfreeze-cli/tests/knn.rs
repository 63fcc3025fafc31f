//! knn on a tiny checkpoint and a folder of images.
mod common;

use std::path::Path;

use common::{checkpoint, classes, fails, ok, vitfreeze};

fn knn(data: &Path, out: &Path, more: &[&str]) -> std::process::Command {
    let mut command = vitfreeze(["knn", "--checkpoint"]);
    command.arg(checkpoint("hf_dinov2_swiglu"));
    command.arg("--data").arg(data).arg("--out").arg(out);
    command.args(more);
    command
}

#[test]
fn colours_are_told_apart_with_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    classes(&data.join("train"), &["dark", "light"], 9);
    classes(&data.join("val"), &["dark", "light"], 4);
    // Two bad images, one in each split, are left out and counted.
    for split in ["train", "val"] {
        std::fs::write(data.join(split).join("dark/9.png"), b"no image").unwrap();
    }
    let results: Vec<serde_json::Value> = ["1", "2"]
        .iter()
        .map(|threads| {
            let out = folder.path().join(threads);
            let text = ok(knn(&data, &out, &["--threads", threads, "--batch-size=5"]));
            assert!(
                text.contains("left out") && text.contains("18 training"),
                "{text}"
            );
            assert!(text.contains("so k = 10"), "{text}");
            let bytes = std::fs::read(out.join("result.json")).unwrap();
            serde_json::from_slice(&bytes).unwrap()
        })
        .collect();
    assert_eq!(results[0]["top1"], 100.0);
    assert_eq!(results[0]["images"], 8);
    assert_eq!(results[0]["settings"], results[1]["settings"]);
    let rows = |threads| std::fs::read(folder.path().join(threads).join("metrics.jsonl")).unwrap();
    assert_eq!(rows("1"), rows("2"));
    // A quick look mixes the classes: more than the first class is among six.
    let text = ok(knn(&data, &folder.path().join("few"), &["--max-images=6"]));
    assert!(text.contains("6 of 19 images"), "{text}");
}

#[test]
fn mistakes_are_told_before_anything_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    classes(&data.join("train"), &["dark", "light"], 3);
    let error = fails(knn(&data, &out, &[]), 2);
    assert!(error.contains("no split 'val'"), "{error}");
    classes(&data.join("val"), &["dark", "grey"], 3);
    let error = fails(knn(&data, &out, &[]), 2);
    assert!(
        error.contains("differ") && error.contains("'light'"),
        "{error}"
    );
    let mut distilled = vitfreeze(["knn", "--pool=avg", "--checkpoint"]);
    distilled.arg(checkpoint("timm_distilled"));
    distilled.arg("--data").arg(&data).arg("--out").arg(&out);
    let error = fails(distilled, 2);
    assert!(error.contains("distillation token"), "{error}");
    assert!(!out.exists());
}

/// What nobody could read is still in the files.
#[cfg(target_os = "linux")]
#[test]
fn a_full_stdout_loses_no_result() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    for split in ["train", "val"] {
        classes(&data.join(split), &["dark", "light"], 3);
    }
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut command = knn(&data, &out, &[]);
    let output = command.stdout(full.unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(out.join("result.json").exists() && out.join("metrics.jsonl").exists());
}

/// embed and knn see the same vector of an image, and say once what they assume.
#[test]
fn pooling_is_the_checkpoints_own_in_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for split in ["train", "val"] {
        classes(&data.join(split), &["dark", "light"], 3);
    }
    // config.json says token; a family that has trained it; one that has not; bare tensors that tell nothing.
    let bare = folder.path().join("bare.safetensors");
    std::fs::copy(
        checkpoint("timm_registers").join("model.safetensors"),
        &bare,
    )
    .unwrap();
    for (number, (path, pool, assumed)) in [
        (checkpoint("timm_registers"), "token", false),
        (checkpoint("dino.pth"), "token", false),
        (checkpoint("mae.pth"), "avg", false),
        (bare, "token", true),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(number.to_string());
        let text = ok(knn_of(&path, &data, &out));
        let result = std::fs::read(out.join("result.json")).unwrap();
        let result: serde_json::Value = serde_json::from_slice(&result).unwrap();
        assert_eq!(result["settings"]["pool"], pool, "{path:?}");
        let times = text.matches("no file gives the pooling").count();
        assert_eq!(times, usize::from(assumed), "{path:?}: {text}");
        let mut command = vitfreeze(["embed", "--heads=3", "--image-size=32", "--checkpoint"]);
        command.arg(&path).arg("--data").arg(&data);
        command
            .arg("--out")
            .arg(folder.path().join(format!("{number}.safetensors")));
        let text = ok(command);
        let times = text.matches("no file gives the pooling").count();
        assert_eq!(times, usize::from(assumed), "{path:?}: {text}");
        // What the flag says is no assumption.
        let mut command = knn_of(&path, &data, &folder.path().join(format!("{number}-asked")));
        command.arg("--pool=token");
        assert!(!ok(command).contains("gives the pooling"), "{path:?}");
    }
}

fn knn_of(checkpoint: &Path, data: &Path, out: &Path) -> std::process::Command {
    let mut command = vitfreeze(["knn", "--heads=3", "--image-size=32", "--checkpoint"]);
    command.arg(checkpoint).arg("--data").arg(data);
    command.arg("--out").arg(out);
    command
}
