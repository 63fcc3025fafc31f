//! Rotary positions (DINOv3) in every command that takes a checkpoint.
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;

/// Of vit/tests: width 24, 2 blocks, patch 8, 32 px.
fn dinov3(name: &str) -> PathBuf {
    checkpoint("..").join("dinov3").join(name)
}

fn with(command: &str, origin: &Path, data: &Path, more: &[&str]) -> Command {
    let mut command = vitfreeze([command, "--checkpoint"]);
    command.arg(origin).arg("--data").arg(data).args(more);
    command
}

/// Two classes that brightness tells apart, to train on and to judge by.
fn images(dir: &Path) {
    for (split, count) in [("train", 8), ("val", 4)] {
        classes(&dir.join(split), &["dark", "light"], count);
    }
}

#[test]
fn features_and_what_they_are_for() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    images(&data);
    let said = ok({
        let mut command = vitfreeze(["inspect"]);
        command.arg(dinov3("timm_plus"));
        command
    });
    for part in [
        "rotary positions (theta 100)",
        "2 registers",
        "SwiGLU",
        "no bias of keys",
        "eps 1e-5",
        "mean of patches\n",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let embed = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let mut command = with("embed", &dinov3("hf_gated"), &data.join("val"), more);
        command.arg("--out").arg(&out);
        ok(command);
        tensors(&out)
    };
    let one = embed("one", &["--threads=1"]);
    assert!(one == embed("two", &["--threads=2"]));
    assert!(one != embed("wide", &["--image-size=32x48"]));
    assert_eq!(one.len(), embed("large", &["--image-size=64"]).len());
    for (name, more) in [
        ("knn", &["--batch-size=5"][..]),
        (
            "linprobe",
            &["--epochs=2", "--warmup-epochs=1", "--batch-size=4"],
        ),
    ] {
        let mut command = with(name, &dinov3("timm_plain"), &data, more);
        command.arg("--out").arg(dir.path().join(name));
        let said = ok(command);
        assert!(said.contains("top-1"), "{said}");
    }
    let image = data.join("val/dark/0.png");
    let mut command = vitfreeze(["classify", "--checkpoint"]);
    command.arg(dinov3("timm_head")).arg(image);
    let said = ok(command);
    assert!(said.contains("bee"), "{said}");
}

fn finetune(data: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = with("finetune", &dinov3("timm_plus"), data, more);
    command.arg("--out").arg(out).args([
        "--epochs=4",
        "--warmup-epochs=1",
        "--batch-size=4",
        "--lr=1e-3",
        "--layer-decay=0.8",
        "--drop-path=0.2",
        "--freeze=cubic",
        "--t0=0.5",
        "--seed=5",
    ]);
    command
}

#[test]
fn a_classifier_resumes_exactly_and_goes_to_timm() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    images(&data);
    let [straight, parts, again] = ["straight", "parts", "again"].map(|name| dir.path().join(name));
    let said = ok(finetune(&data, &straight, &["--threads=1"]));
    assert!(
        said.contains("froze") && said.contains("cannot be saved"),
        "{said}"
    );
    ok(finetune(&data, &parts, &["--max-steps=1", "--threads=2"]));
    for more in [&["--max-steps=6"][..], &["--max-steps=7"], &[]] {
        let mut command = vitfreeze(["finetune", "--resume"]);
        command.arg(&parts).args(more);
        ok(command);
    }
    for file in ["checkpoint", "best", "last"] {
        let file = format!("{file}.safetensors");
        assert!(
            tensors(&straight.join(&file)) == tensors(&parts.join(&file)),
            "{file} differs"
        );
    }
    assert_eq!(log(&straight), log(&parts));
    let names: Vec<String> = (tensors(&straight.join("last.safetensors")).into_iter())
        .map(|(name, _)| name)
        .collect();
    assert!(names.contains(&"blocks.1.attn.q_bias".to_owned()));
    assert!(!names.contains(&"pos_embed".to_owned()));

    let evaluated = |origin: &Path, name: &str| {
        let mut command = with("eval", origin, &data, &[]);
        command.arg("--out").arg(dir.path().join(name));
        let said = ok(command);
        let line = said.lines().find(|line| line.starts_with("top-1"));
        line.unwrap().split(';').next().unwrap().to_owned()
    };
    let mut convert = vitfreeze(["convert", "--to=timm"]);
    convert.arg(&straight).arg(&again);
    ok(convert);
    assert_eq!(evaluated(&straight, "ours"), evaluated(&again, "timms"));
    for (origin, why) in [
        (&straight, "fc_norm"),
        (&dinov3("timm_head"), "--drop-head"),
    ] {
        let mut convert = vitfreeze(["convert", "--to=hf"]);
        convert.arg(origin).arg(dir.path().join("hf"));
        let line = fails(convert, 2);
        assert!(line.contains(why), "{line}");
    }
}

#[test]
fn pretraining_goes_on_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let begun = |out: &Path, more: &[&str]| {
        let mut command = vitfreeze(["pretrain", "--data=shapes", "--samples=24", "--epochs=3"]);
        command.args([
            "--warmup-epochs=1",
            "--batch-size=8",
            "--accum=1",
            "--lr=1e-3",
        ]);
        command.args(["--decoder-dim=16", "--decoder-heads=2", "--stages=0:2,1:1"]);
        command.arg("--init").arg(dinov3("hf_plain"));
        command.arg("--out").arg(out).args(more);
        ok(command)
    };
    let [straight, parts, grown] = ["straight", "parts", "grown"].map(|name| dir.path().join(name));
    let said = begun(&straight, &[]);
    assert!(
        said.contains("taken from") && !said.contains("pos_embed,"),
        "{said}"
    );
    begun(&parts, &["--max-steps=4"]);
    ok(resume(&parts, &[]));
    assert_same_state(&straight, &parts);
    let mut inspect = vitfreeze(["inspect"]);
    inspect.arg(straight.join("encoder.safetensors"));
    let said = ok(inspect);
    assert!(said.contains("rotary positions (theta 100)"), "{said}");
    // Any size: the angles follow the grid.
    begun(&grown, &["--image-size=32:50%,48"]);
    let rows = rows(&grown);
    assert_eq!(rows.last().unwrap()["image_size"], 48);
}

#[test]
fn what_does_not_fit_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    images(&data);
    let out = dir.path().join("out");
    let refused = |more: &[&str], parts: &[&str]| {
        let mut command = with("embed", &dinov3("timm_plus"), &data.join("val"), more);
        command.arg("--out").arg(&out);
        let line = fails(command, 2);
        for part in parts {
            assert!(line.contains(part), "{line}");
        }
    };
    refused(&["--image-size=36"], &["36", "patch size 8"]);
    refused(&["--image-size=4096"], &["262144 patches"]);
    refused(&["--heads=4"], &["heads of width 6"]);
    // Another kind of rotary positions, by its name.
    let other = dir.path().join("eva02");
    std::fs::create_dir(&other).unwrap();
    let file = "model.safetensors";
    std::fs::copy(dinov3("timm_plus").join(file), other.join(file)).unwrap();
    let config = r#"{"architecture": "eva02_small_patch14_224", "num_classes": 0}"#;
    std::fs::write(other.join("config.json"), config).unwrap();
    let mut inspect = vitfreeze(["inspect"]);
    inspect.arg(&other);
    let text = text(&inspect.output().unwrap());
    assert!(
        text.contains("eva02_small_patch14_224") && text.contains("of another kind"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
}
