//! Swin Transformers in all commands that take a checkpoint, on a tiny one of vit/tests: width 8 to 64, 64 px.
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;

fn swin(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("../vit/tests/fixtures/swin").join(name)
}

/// Six steps; layers freeze from the third on.
fn finetune(out: &Path, more: &[&str]) -> Command {
    let mut command = vitfreeze([
        "finetune",
        "--data=shapes",
        "--samples=40",
        "--batch-size=8",
    ]);
    command.args(["--accum=2", "--epochs=2", "--warmup-epochs=0", "--lr=1e-3"]);
    command.args(["--freeze=at:2=2,4=4", "--clip-grad=1", "--seed=3"]);
    command.arg("--checkpoint").arg(swin("timm"));
    command.arg("--out").arg(out).args(more);
    command
}

fn go_on(out: &Path, more: &[&str]) -> Command {
    let mut command = vitfreeze(["finetune", "--resume"]);
    command.arg(out).args(more);
    command
}

fn assert_same(a: &Path, b: &Path) {
    for file in ["checkpoint.safetensors", "last.safetensors"] {
        let (a, b) = (tensors(&a.join(file)), tensors(&b.join(file)));
        assert!(a == b, "{file}");
    }
    assert_eq!(log(a), log(b));
}

#[test]
fn finetune_repeats_and_resumes_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let [one, threads, parts] = ["one", "threads", "parts"].map(|name| dir.path().join(name));
    let said = ok(finetune(&one, &["--threads=1"]));
    for word in [
        "5 blocks of width 8 to 64, 64 px, patch 4",
        "on the mean of the patches",
        "froze patch_embed, layers.0.blocks.0",
        "froze layers.1.blocks.0",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    ok(finetune(&threads, &["--threads=2"]));
    assert_same(&one, &threads);
    ok(finetune(&parts, &["--max-steps=1"]));
    for stop in ["2", "3", "5"] {
        ok(go_on(&parts, &["--max-steps", stop]));
    }
    ok(go_on(&parts, &[]));
    assert_same(&one, &parts);

    // The classifier, for all who take one.
    let best = one.join("best.safetensors");
    let said = ok(vitfreeze(["inspect", best.to_str().unwrap()]));
    for word in [
        "family        Swin",
        "width 8 to 64, blocks [1, 2, 1, 1], heads [1, 2, 2, 4], windows of 4, MLP 16 to 128 GELU",
        "256 patches, a bias by offset in a window",
        "10 classes, 10 of them named",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let mut command = vitfreeze(["eval", "--checkpoint"]);
    command.arg(&one).arg("--out").arg(dir.path().join("eval"));
    ok(command);
    let folder = dir.path().join("images");
    classes(&folder, &["a"], 1);
    let image = std::fs::read_dir(folder.join("a")).unwrap();
    let image = image.flatten().next().unwrap().path();
    let mut command = vitfreeze(["classify", "--checkpoint"]);
    command.arg(&one).arg(&image);
    assert!(ok(command).contains('%'));
    // There and back: the same tensors.
    let mut command = vitfreeze(["convert", "--to=timm"]);
    command.arg(&best).arg(dir.path().join("timm"));
    ok(command);
    let said = ok(vitfreeze([
        "inspect",
        dir.path().join("timm").to_str().unwrap(),
    ]));
    assert!(said.contains("10 classes, 10 of them named"), "{said}");
    let (a, b) = (
        tensors(&best),
        tensors(&dir.path().join("timm/model.safetensors")),
    );
    let renamed: Vec<_> = b
        .into_iter()
        .map(|(name, bytes)| (name.replace("head.fc.", "head."), bytes))
        .collect();
    assert!(a == renamed);
}

#[test]
fn features_of_any_layout() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    classes(&images, &["dark", "light"], 2);
    for name in ["timm", "authors.pth", "localmim.pth", "hf", "hf_base"] {
        let mut command = vitfreeze(["knn", "--data=shapes", "--samples=40", "--checkpoint"]);
        let out = dir.path().join(format!("knn-{name}"));
        command.arg(swin(name)).arg("--out").arg(out);
        assert!(ok(command).contains("64 numbers each"));
        let mut command = vitfreeze(["embed", "--checkpoint"]);
        let out = dir.path().join(format!("{name}.safetensors"));
        command.arg(swin(name)).arg("--out").arg(&out);
        command.arg("--data").arg(&images);
        ok(command);
        assert!(out.is_file());
    }
    let probe = dir.path().join("probe");
    let mut command = vitfreeze(["linprobe", "--data=shapes", "--samples=40", "--epochs=2"]);
    command.args([
        "--warmup-epochs=0",
        "--batch-size=8",
        "--accum=1",
        "--cached",
    ]);
    command.arg("--checkpoint").arg(swin("hf"));
    ok({
        command.arg("--out").arg(&probe);
        command
    });
    let mut command = vitfreeze(["eval", "--checkpoint"]);
    command
        .arg(&probe)
        .arg("--out")
        .arg(dir.path().join("eval"));
    ok(command);
    let hf = dir.path().join("to_hf");
    let mut command = vitfreeze(["convert", "--to=hf"]);
    command.arg(swin("hf")).arg(&hf);
    ok(command);
    let said = ok(vitfreeze(["inspect", hf.to_str().unwrap()]));
    assert!(said.contains("Hugging Face Swin (swin)"), "{said}");
}

/// A tiny run of LocalMIM that begins with the tiny checkpoint, and what others make of it.
fn pretrain_swin(out: &Path, more: &[&str]) -> Command {
    let mut command = vitfreeze(["pretrain", "--data=shapes", "--samples=24", "--epochs=3"]);
    command.args([
        "--warmup-epochs=1",
        "--batch-size=8",
        "--accum=1",
        "--lr=1e-3",
    ]);
    command.args(["--decoder-dim=16", "--decoder-heads=2", "--mask-ratio=0.5"]);
    command.args(["--t0=0.5", "--hog-bins=4"]);
    command.arg("--init").arg(swin("timm"));
    command.arg("--out").arg(out).args(more);
    command
}

#[test]
fn pretraining_repeats_and_resumes_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let [one, threads, parts] = ["one", "threads", "parts"].map(|name| dir.path().join(name));
    let said = ok(pretrain_swin(&one, &["--threads=1"]));
    for word in [
        "swin 64 px, patch 4, 4 decoders",
        "encoder (",
        "froze patch_embed",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    ok(pretrain_swin(&threads, &["--threads=2"]));
    assert_same_state(&one, &threads);
    ok(pretrain_swin(&parts, &["--max-steps=2"]));
    ok(resume(&parts, &["--max-steps=5"]));
    ok(resume(&parts, &[]));
    assert_same_state(&one, &parts);

    for file in ["checkpoint.safetensors", "encoder.safetensors"] {
        let mut command = vitfreeze(["knn", "--data=shapes", "--samples=40", "--checkpoint"]);
        let out = dir.path().join(format!("knn-{file}"));
        command.arg(one.join(file)).arg("--out").arg(out);
        ok(command);
    }
    let mut command = vitfreeze(["reconstruct", "--images=1", "--checkpoint"]);
    let picture = dir.path().join("a.svg");
    command.arg(&one).arg("--out").arg(picture);
    ok(command);
    let mut command = vitfreeze([
        "finetune",
        "--samples=40",
        "--batch-size=8",
        "--max-steps=1",
    ]);
    command.arg("--checkpoint").arg(&one);
    command.arg("--out").arg(dir.path().join("tuned"));
    ok(command);
    // A run begins with another one's weights, decoders included.
    let again = dir.path().join("again");
    let init = format!("--init={}", one.display());
    let still = ["--lr=0", "--min-lr=0", "--max-steps=1", &init];
    let said = ok(pretrain_swin(&again, &still));
    assert!(
        said.contains("decoder.3 (") && !said.contains(" new: "),
        "{said}"
    );
    // A decoder goes with the merging that it reads behind.
    let mut command = vitfreeze(["schedule", "--data=shapes", "--samples=24", "--epochs=3"]);
    command.args(["--warmup-epochs=1", "--batch-size=8", "--accum=1"]);
    command.arg("--init").arg(swin("timm"));
    let said = ok(command);
    assert!(said.contains("layers.1.blocks.0 + stage 0"), "{said}");
}

/// The published checkpoint's layout, in the commands that take it.
#[test]
fn a_checkpoint_of_localmim() {
    let dir = tempfile::tempdir().unwrap();
    let file = swin("localmim.pth");
    let said = ok(vitfreeze(["inspect", file.to_str().unwrap()]));
    for word in [
        "family        LocalMIM Swin",
        "width 8 to 64, blocks [2, 2, 1, 1], heads [1, 2, 2, 4], windows of 4, MLP 16 to 128 GELU, eps 1e-6",
        "images        64 x 64, patch 4",
        "not loaded    ",
        "mergings' weights are reordered",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains("warning"), "{said}");
    let init = format!("--init={}", file.display());
    let out = dir.path().join("on");
    let more = ["--hog-bins=18", "--max-steps=1", &init];
    let said = ok(pretrain_swin(&out, &more));
    for word in [
        "init: 175 tensors taken from",
        "decoder.0 (19), decoder.1 (19), decoder.2 (19), decoder.3 (19), encoder (91)",
        "heads of decoders are not in",
        "mergings' weights are reordered",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(
        !said.contains(" new: ") && !said.contains("left out"),
        "{said}"
    );
    // Columns first from now on: what is written needs no note.
    let timm = dir.path().join("timm");
    let mut command = vitfreeze(["convert", "--to=timm"]);
    command.arg(&file).arg(&timm);
    assert!(ok(command).contains("trained with 1e-6"));
    let tuned = dir.path().join("tuned");
    let mut command = finetune(&tuned, &["--max-steps=1"]);
    command.arg("--checkpoint").arg(&file);
    assert!(ok(command).contains("6 blocks of width 8 to 64"));
    for (written, eps) in [(timm, "1e-5"), (tuned, "1e-6")] {
        let said = ok(vitfreeze(["inspect", written.to_str().unwrap()]));
        assert!(said.contains(&format!("eps {eps}")), "{said}");
        assert!(!said.contains("reordered"), "{said}");
    }
}

#[test]
fn what_does_not_fit_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let line = |command: Command| fails(command, 2);
    let told = line(finetune(&out, &["--pool=token"]));
    assert!(told.contains("a Swin has no class token"), "{told}");
    let told = line(finetune(&out, &["--image-size=66"]));
    assert!(
        told.contains("66 is not divisible by patch size 4"),
        "{told}"
    );
    let told = line(vitfreeze([
        "finetune",
        "--data=shapes",
        "--model=swin-huge",
    ]));
    assert!(
        told.contains("swin-tiny, swin-small, swin-base or swin-large"),
        "{told}"
    );
    let told = line(pretrain_swin(&out, &["--image-size=48"]));
    assert!(
        told.contains("48 is not divisible by the unit that is hidden, 32"),
        "{told}"
    );
    let told = line(pretrain_swin(&out, &["--image-size=32"]));
    assert!(
        told.contains("mask ratio 0.5 keeps 0 of 1 patches"),
        "{told}"
    );
    assert!(
        told.contains("in squares of 32 px, of which 32 px make 1"),
        "{told}"
    );
    let told = line(pretrain_swin(&out, &["--train-cls-token"]));
    assert!(told.contains("a Swin has no class token"), "{told}");
    let told = line(pretrain_swin(&out, &["--stages=all"]));
    assert!(told.contains("leave it out for a Swin"), "{told}");
    let told = line(pretrain_swin(&out, &["--image-size=64:50%,96"]));
    assert!(told.contains("its images cannot grow"), "{told}");
    let told = line(pretrain_swin(&out, &["--model=swin-tiny"]));
    assert!(told.contains("model is swin-tiny"), "{told}");
    let mut command = vitfreeze(["features", "shapes", "--checkpoint"]);
    command
        .arg(swin("timm"))
        .arg("--out")
        .arg(dir.path().join("a.png"));
    assert!(line(command).contains("a Swin, which has no class token"));
    let mut command = vitfreeze(["convert", "--to=hf"]);
    command.arg(swin("timm")).arg(dir.path().join("hf"));
    let told = line(command);
    assert!(
        told.contains("cannot be saved in the hf layout") && told.contains("--to timm"),
        "{told}"
    );
    assert!(!out.exists());
    // Smaller images than the checkpoint's are fine: its tables are resampled.
    ok(finetune(&out, &["--image-size=32", "--max-steps=1"]));
}

#[test]
fn windows_of_a_new_one_and_of_a_file_that_tells_none() {
    let dir = tempfile::tempdir().unwrap();
    let few = |command: &str, model: &str, name: &str, more: &[&str]| {
        let mut program = vitfreeze([command, "--data=shapes", "--samples=8", "--batch-size=8"]);
        program.args(["--accum=1", "--epochs=2", "--warmup-epochs=0", "--lr=1e-3"]);
        program.args(["--image-size=64", "--max-steps=1", "--window-size=4"]);
        program.arg(format!("--model={model}")).args(more);
        program.arg("--out").arg(dir.path().join(name));
        program
    };
    for (command, export) in [("finetune", "last"), ("pretrain", "encoder")] {
        ok(few(command, "swin-tiny", command, &[]));
        let run = dir.path().join(command);
        for name in ["checkpoint", export] {
            let mut inspect = vitfreeze(["inspect"]);
            inspect.arg(run.join(format!("{name}.safetensors")));
            let said = ok(inspect);
            assert!(said.contains("windows of 4"), "{said}");
        }
        let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
        assert!(config.contains("window-size = 4\n"), "{config}");
        let mut other = vitfreeze([command, "--window-size=8", "--resume"]);
        other.arg(&run);
        let line = fails(other, 2);
        assert!(line.contains("window-size: 4 -> 8"), "{line}");
        let line = fails(few(command, "vit-tiny", "vit", &["--patch-size=8"]), 2);
        assert!(line.contains("window-size is for a Swin"), "{line}");
        let line = fails(few(command, "swin-tiny", "wide", &["--window-size=65"]), 2);
        assert!(line.contains("it must be 1 to 64"), "{line}");
    }
    // No file beside the authors' tells them; the tables do.
    let inspect = |path: &Path, side: &str| {
        let mut command = vitfreeze(["inspect", "--window-size", side]);
        command.arg(path);
        command
    };
    let authors = swin("authors.pth");
    assert!(ok(inspect(&authors, "4")).contains("windows of 4"));
    let line = fails(inspect(&authors, "8"), 2);
    assert!(
        line.contains("correct the size of windows (--window-size)"),
        "{line}"
    );
    let line = fails(inspect(&checkpoint("hf_dinov2"), "4"), 2);
    assert!(line.contains("it is a ViT, which has no windows"), "{line}");
}
