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
    let cases: &[(&[&str], &str)] = &[
        (&["--data=no/such/folder"], "no such file or folder"),
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
        (&["--model=vit-colossal"], "model 'vit-colossal'"),
        (&["--device=tpu"], "expected cpu, cuda"),
        (&["--device=cpu:7"], "expected cpu, cuda"),
        (&["--lr", "-1"], "lr is -1"),
        (&["--image-size=0"], "image-size is 0"),
        (&["--samples=0"], "samples is 0"),
        (
            &["--epochs=5000000000000000000"],
            "epochs is 5000000000000000000",
        ),
        (
            &["--seed=18446744073709551615"],
            "seed is 18446744073709551615",
        ),
        (&["--decoder-dim=4000000000"], "decoder-dim"),
        (&["--t0=1e-120"], "before it has trained"),
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
fn nothing_that_exists_is_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("config.toml"), "precious = 1").unwrap();
    let line = fails(pretrain(&out, &[]), 2);
    assert!(line.contains("is not empty"), "{line}");
    assert_eq!(
        std::fs::read(out.join("config.toml")).unwrap(),
        b"precious = 1"
    );
    std::fs::write(dir.path().join("file"), "").unwrap();
    fails(pretrain(&dir.path().join("file"), &[]), 2);
}

#[test]
fn one_process_at_a_time_works_on_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    ok(pretrain(&out, &["--max-steps=2", "--save-every=100"]));
    let held = std::fs::File::open(out.join("metrics.jsonl")).unwrap();
    held.lock().unwrap();
    let line = fails(resume(&out, &[]), 2);
    assert!(line.contains("another process"), "{line}");
    held.unlock().unwrap();
    ok(resume(&out, &["--max-steps=3"]));
}

#[test]
fn lost_or_damaged_side_files_do_not_stop_a_resume() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    ok(pretrain(&out, &["--max-steps=4", "--save-every=100"]));
    std::fs::remove_file(out.join("config.toml")).unwrap();
    let mut metrics = std::fs::read(out.join("metrics.jsonl")).unwrap();
    metrics.splice(..10, *b"\xff\xfe garbage");
    metrics.extend_from_slice(b"{\"step\": 4, \"torn");
    std::fs::write(out.join("metrics.jsonl"), metrics).unwrap();
    let said = ok(resume(&out, &["--max-steps=6"]));
    assert!(said.contains("1 unreadable line"), "{said}");
    let text =
        String::from_utf8_lossy(&std::fs::read(out.join("metrics.jsonl")).unwrap()).into_owned();
    assert_eq!(text.lines().count(), 6, "{text}");
    assert!(out.join("config.toml").exists());
}

#[test]
fn a_doctored_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let path = out.join("checkpoint.safetensors");
    ok(pretrain(&out, &["--max-steps=3", "--save-every=100"]));
    let good = std::fs::read(&path).unwrap();
    let header_length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(good[8..8 + header_length].to_vec()).unwrap();
    // Same length, other content.
    for (from, to, want) in [
        ("\\\"step\\\":3", "\\\"step\\\":9", "after 9 steps"),
        ("\\\"step\\\":3,", "\\\"step\\\":99", "no checkpoint"),
        (
            "optimizer.exp_avg.blocks.0.attn.proj.bias",
            "optimizer.exp_avg.blocks.9.attn.proj.bias",
            "checkpoint",
        ),
    ] {
        assert!(header.contains(from), "{header}");
        let mut bytes = good.clone();
        bytes[8..8 + header_length].copy_from_slice(header.replacen(from, to, 1).as_bytes());
        std::fs::write(&path, bytes).unwrap();
        let line = fails(resume(&out, &[]), 1);
        assert!(line.contains(want), "{line}");
    }
    let mut bytes = good.clone();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    fails(resume(&out, &[]), 1);
    std::fs::write(&path, good).unwrap();
    ok(resume(&out, &["--max-steps=4"]));
}

#[test]
fn other_images_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("run"));
    write_images(&data, 2, 10);
    ok(on(&data, &out, &["--max-steps=2", "--save-every=100"]));
    // A dataset may move.
    let moved = dir.path().join("moved");
    std::fs::rename(&data, &moved).unwrap();
    let more = [&format!("--data={}", moved.display()), "--max-steps=3"];
    ok(resume(&out, &more));
    std::fs::rename(
        moved.join("train/class0/003.png"),
        moved.join("train/class0/new.png"),
    )
    .unwrap();
    let line = fails(resume(&out, &more), 2);
    assert!(line.contains("other images"), "{line}");
}

/// A flag wins over the file, whichever of the two ways to give the rate each of them uses.
#[test]
fn blr_as_a_flag_wins_over_lr_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("c.toml"), dir.path().join("run"));
    std::fs::write(&file, "lr = 0.5\n").unwrap();
    let mut command = vitfreeze(["pretrain", "--max-steps=1", "--blr=0.064"]);
    command.arg("--config").arg(&file).arg("--out").arg(&out);
    command.args(SMALL.iter().filter(|a| !a.starts_with("--lr")));
    assert!(ok(command).contains("learning rate 2.00e-3"));
}

#[test]
fn a_diverging_run_stops_and_keeps_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    // The update of step 1 makes weights that are huge but finite; the loss of step 2 tells. A checkpoint of them would be
    // of no use.
    for (save_every, kept) in [("--save-every=1", 1), ("--save-every=9", 0)] {
        let out = out.join(save_every);
        let line = fails(pretrain(&out, &["--lr=1e38", save_every]), 1);
        let want = [
            "step 2: the loss is NaN at learning rate",
            &format!("still holds step {kept}"),
        ];
        assert!(want.iter().all(|w| line.contains(w)), "{line}");
        let losses: Vec<_> = rows(&out).iter().map(|r| r["loss"].as_f64()).collect();
        assert!(
            losses.iter().all(Option::is_some),
            "only finite losses are written"
        );
        let said = ok(resume(&out, &["--max-steps=1"]));
        assert!(said.contains("Files in"), "{said}");
    }
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
    assert!(!out.join(".checkpoint.safetensors.saving").exists());
    ok(resume(&out, &["--max-steps=5"]));
}
