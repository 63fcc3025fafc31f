//! Bad input, bad disks, bad numbers: one clear line, the right exit code, nothing lost.
mod common;

use std::path::Path;

use common::*;

fn write_images(dir: &Path, classes: usize, per_class: usize) {
    for class in 0..classes {
        let folder = dir.join(format!("train/class{class}"));
        std::fs::create_dir_all(&folder).unwrap();
        for i in 0..per_class {
            let pixel =
                |x, y| image::Rgb([(x * 9 + i as u32) as u8, (y * 11) as u8, class as u8 * 40]);
            let picture = image::RgbImage::from_fn(20, 24, pixel);
            picture.save(folder.join(format!("{i:03}.png"))).unwrap();
        }
    }
}

fn on(data: &Path, out: &Path, more: &[&str]) -> std::process::Command {
    let mut command = pretrain(out, more);
    command.arg("--data").arg(data);
    command
}

#[test]
fn usage_errors_exit_2_with_one_line_and_leave_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let cases: [(&[&str], &str); 17] = [
        (&["--data=no/such/folder"], "no such folder"),
        (
            &["--image-size=30"],
            "image size 30 is not divisible by patch size 4",
        ),
        (&["--image-size=12"], "cannot be pooled"),
        (&["--batch-size=41"], "41"),
        (&["--t0=0"], "t0 is 0, it must lie in (0, 1]"),
        (&["--t0=1.5"], "t0 is 1.5"),
        (&["--t0=nan"], "t0 is NaN"),
        (&["--lr=-1"], "lr is -1"),
        (&["--warmup-epochs=6"], "less than epochs"),
        (&["--mask-ratio=1"], "mask ratio 1"),
        (&["--mask-ratio=0"], "mask ratio 0"),
        (&["--stages=1:4,3"], "'3' is not BLOCK:SCALE"),
        (
            &["--stages=1:4,3:2"],
            "the last stage must be at the last block",
        ),
        (&["--stages=11:3"], "scale 3 is none of"),
        (&["--model=vit-giant"], "model 'vit-giant'"),
        (&["--device=tpu"], "expected cpu, cuda"),
        (&["--config=none.toml"], "cannot read none.toml"),
    ];
    for (args, want) in cases {
        let command = pretrain(&out, args);
        let line = fails(command, 2);
        assert!(line.contains(want), "{args:?}: {line}");
        assert!(!out.exists(), "{args:?} left a folder");
    }
}

#[test]
fn configuration_files_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    for (text, want) in [
        ("epoch = 3", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("batch_size = 3", "did you mean 'batch-size'?"),
        ("out = \"x\"", "unknown key 'out'"),
        ("\nepochs = \"three\"", "line 2"),
        ("epochs = [", "line 1"),
        ("freeze = \"cubed\"", "cubed"),
    ] {
        std::fs::write(&file, text).unwrap();
        let line = fails(
            vitfreeze(["pretrain", "--config", file.to_str().unwrap()]),
            2,
        );
        assert!(
            line.contains(want) && line.contains("run.toml"),
            "{text}: {line}"
        );
    }
}

#[test]
fn folders_without_images() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    std::fs::create_dir_all(data.join("cats")).unwrap();
    let line = fails(on(&data, &out, &[]), 2);
    assert!(line.contains("no images"), "{line}");
    write_images(&data.join("cats"), 1, 1);
    std::fs::create_dir_all(data.join("dogs")).unwrap();
    let line = fails(on(&data, &out, &[]), 2);
    assert!(line.contains("dogs"), "{line}");
}

#[test]
fn damaged_images_are_skipped_up_to_one_percent() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    write_images(&data, 4, 50);
    let file = |i: usize| data.join(format!("train/class{}/{:03}.png", i % 4, i));
    std::fs::write(file(3), b"not an image").unwrap();
    let bytes = std::fs::read(file(6)).unwrap();
    std::fs::write(file(6), &bytes[..bytes.len() / 2]).unwrap();
    let few = ["--epochs=2", "--save-every=1000"];
    let said = ok(on(&data, &out, &few));
    assert!(
        said.contains("warning: skipped") && said.contains("003.png"),
        "{said}"
    );
    assert!(said.contains("2 damaged"), "{said}");
    // A third one is more than 1 % of 200.
    std::fs::write(file(9), b"").unwrap();
    std::fs::remove_dir_all(&out).unwrap();
    let line = fails(on(&data, &out, &few), 1);
    for name in ["003.png", "006.png", "009.png"] {
        assert!(line.contains(name), "{line}");
    }
}

#[test]
fn resuming_with_other_numbers_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let line = fails(resume(&out, &[]), 2);
    assert!(line.contains("holds no run"), "{line}");
    ok(pretrain(&out, &["--max-steps=2", "--save-every=100"]));
    let before = std::fs::read(out.join("checkpoint.safetensors")).unwrap();
    let line = fails(
        resume(&out, &["--model=vit-small", "--t0=0.9", "--threads=2"]),
        2,
    );
    assert!(
        line.contains("model: \"vit-tiny\" -> \"vit-small\"") && line.contains("t0: 0.7 -> 0.9"),
        "{line}"
    );
    assert!(!line.contains("threads"), "{line}");
    let line = fails(pretrain(&out, &[]), 2);
    assert!(line.contains("holds a run already"), "{line}");
    assert_eq!(
        before,
        std::fs::read(out.join("checkpoint.safetensors")).unwrap()
    );

    for damage in ["truncated", "other"] {
        let bytes = match damage {
            "truncated" => before[..before.len() / 2].to_vec(),
            _ => b"something else".to_vec(),
        };
        std::fs::write(out.join("checkpoint.safetensors"), bytes).unwrap();
        let line = fails(resume(&out, &[]), 1);
        assert!(line.contains("checkpoint.safetensors"), "{line}");
    }
}

#[test]
fn a_diverging_run_stops_and_keeps_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let command = pretrain(&out, &["--lr=1e30", "--save-every=1"]);
    let line = fails(command, 1);
    assert!(
        line.contains("the loss is NaN at learning rate") && line.contains("step"),
        "{line}"
    );
    let rows = rows(&out);
    let last = rows.last().unwrap()["loss"].as_f64();
    assert!(last.is_some(), "only finite losses are written");
    assert!(ok(resume(&out, &[&format!("--max-steps={}", rows.len())])).contains("Files in"));
}

/// A limit on file sizes stands for a full disk: the write fails half way.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    ok(pretrain(&out, &["--max-steps=3", "--save-every=100"]));
    let before = std::fs::read(out.join("checkpoint.safetensors")).unwrap();
    let mut command = std::process::Command::new("bash");
    command.args(["-c", "trap '' XFSZ; ulimit -f 8192; exec \"$@\"", "bash"]);
    command.arg(env!("CARGO_BIN_EXE_vitfreeze"));
    command
        .args(["pretrain", "--max-steps=5", "--resume"])
        .arg(&out);
    let line = fails(command, 1);
    assert!(
        line.contains("checkpoint of step 3 is untouched") && line.contains("--resume"),
        "{line}"
    );
    assert_eq!(
        before,
        std::fs::read(out.join("checkpoint.safetensors")).unwrap()
    );
    assert!(!out.join("checkpoint.safetensors.tmp").exists());
    ok(resume(&out, &["--max-steps=5"]));
}
