//! Images that grow while a run goes on: `--image-size 8:50%,16`.
mod common;

use std::path::Path;

use common::*;

/// 30 steps, the first 15 with images of 8 px; layers freeze from step 16 on.
const GROW: [&str; 2] = ["--save-every=100", "--image-size=8:50%,16"];

/// With flags beside these.
fn growing(out: &Path, more: &[&str]) -> std::process::Command {
    pretrain(out, &[&GROW[..], more].concat())
}

fn sizes(dir: &Path) -> Vec<u64> {
    let size = |row: &serde_json::Value| row["image_size"].as_u64().unwrap_or(0);
    rows(dir).iter().map(size).collect()
}

#[test]
fn resuming_across_the_change_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let straight = at("straight");
    let said = ok(growing(&straight, &["--threads=1"]));
    for line in [
        "vit-tiny 8 px, 16 px from step 15 on, patch 4",
        "step 15: images of 16 px from here on",
        "  8 px  ",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let want = [vec![8; 15], vec![16; 15]].concat();
    assert_eq!(sizes(&straight), want);
    // At other moments, before it, at it, behind it; with other threads.
    for (name, stops) in [("a", &["14", "15", "16"][..]), ("b", &["7", "20"])] {
        let parts = at(name);
        ok(growing(&parts, &["--max-steps=3", "--threads=2"]));
        for stop in stops {
            ok(resume(&parts, &["--threads=3", "--max-steps", stop]));
        }
        ok(resume(&parts, &[]));
        assert_same_state(&straight, &parts);
        assert_eq!(sizes(&parts), want);
    }
    // The saved configuration makes the same run.
    let config = std::fs::read_to_string(straight.join("config.toml")).unwrap();
    assert!(config.contains("image-size = \"8:50%,16\""), "{config}");
    let mut again = vitfreeze(["pretrain", "--config"]);
    again.arg(straight.join("config.toml"));
    again.arg("--out").arg(at("again"));
    ok(again);
    assert_same_state(&straight, &at("again"));
    let line = fails(resume(&straight, &["--image-size=8:60%,16"]), 2);
    assert!(
        line.contains("image-size: \"8:50%,16\" -> \"8:60%,16\""),
        "{line}"
    );
    // The encoder's table is that of the last size: 1 + 4 x 4 places.
    let encoder = tensors(&straight.join("encoder.safetensors"));
    let table = encoder
        .iter()
        .find(|(name, _)| name == "pos_embed")
        .unwrap();
    assert_eq!(table.1.len(), 4 * (1 + 16) * 192);
    let mut inspect = vitfreeze(["inspect"]);
    inspect.arg(straight.join("checkpoint.safetensors"));
    assert!(ok(inspect).contains("16 x 16, patch 4"));
    let page = std::fs::read_to_string(straight.join("report.html")).unwrap();
    assert!(page.contains("16 px") && page.contains("<th scope=\"col\">px</th>"));
    let mut watch = vitfreeze(["watch", "--once"]);
    watch.arg(&straight);
    assert!(ok(watch).contains("16 px  loss"));
    let mut knn = vitfreeze(["knn", "--threads=1", "--checkpoint"]);
    knn.arg(&straight).arg("--out").arg(at("knn"));
    ok(knn);
}

/// Batches, accumulation, changes by epoch, a plan that freezes in the step of the change.
#[test]
fn ends_in_epochs_with_accumulation() {
    let dir = tempfile::tempdir().unwrap();
    let (straight, parts) = (dir.path().join("straight"), dir.path().join("parts"));
    // 3 steps an epoch: 9 and 12.
    let flags = [
        "--image-size=8:3,16:4,24",
        "--accum=2",
        "--layer-lr=shared",
        "--freeze=at:9=4,12=8",
    ];
    ok(growing(&straight, &flags));
    let want = [vec![8; 9], vec![16; 3], vec![24; 6]].concat();
    assert_eq!(sizes(&straight), want);
    ok(growing(&parts, &[&flags[..], &["--max-steps=9"]].concat()));
    for stop in ["10", "12", "13"] {
        ok(resume(&parts, &["--max-steps", stop]));
    }
    ok(resume(&parts, &[]));
    assert_same_state(&straight, &parts);
}

/// Until they grow, the steps are those of a run that stays small; a single size is what it was.
#[test]
fn the_first_steps_are_those_of_small_images() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // Images that do not depend on the size, as drawn ones do.
    classes(&at("set"), &["a", "b"], 20);
    let data = format!("--data={}", at("set").display());
    let run = |name: &str, more: &[&str]| {
        ok(pretrain(
            &at(name),
            &[&["--save-every=100", &data][..], more].concat(),
        ))
    };
    run("small", &["--image-size=8", "--max-steps=15"]);
    run("growing", &[GROW[1], "--max-steps=15"]);
    let checkpoint = |name: &str| tensors(&at(name).join("checkpoint.safetensors"));
    assert!(checkpoint("small") == checkpoint("growing"));
    let losses = |name: &str| -> Vec<f64> {
        let loss = |row: &serde_json::Value| row["loss"].as_f64().unwrap();
        rows(&at(name)).iter().map(loss).collect()
    };
    assert_eq!(losses("small"), losses("growing"));
    let config = std::fs::read_to_string(at("small").join("config.toml")).unwrap();
    assert!(config.contains("image-size = 8\n"), "{config}");
    assert!(rows(&at("small"))[0].get("image_size").is_none());
}

#[test]
fn what_does_not_fit_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    for (sizes, said) in [
        ("8:50%", "the last one goes to the end: 8"),
        ("8,16", "'8' does not say until when"),
        ("16:50%,8", "image-size 16:50%,8: sizes must grow"),
        ("8:6,16", "8 px must end within the run's 6 epochs"),
        ("8:100%,16", "8 px must end within"),
        ("8:1%,16", "none of the run's 30 steps is left for 8 px"),
        (
            "10:50%,16",
            "image-size 10:50%,16: 10 px: image size 10 is not divisible by patch size 4",
        ),
        (
            "12:50%,16",
            "12 px: stage at block 11: 3 x 3 patches cannot be pooled",
        ),
        ("4:50%,16", "4 px: "),
        ("8:50%,9999", "image-size is 9999, it must be 1 to 4096"),
        ("0:50%,16", "image-size is 0"),
    ] {
        let line = fails(pretrain(&out, &[&format!("--image-size={sizes}")]), 2);
        assert!(line.contains(said), "{sizes}: {line}");
        assert!(!out.exists());
    }
    let file = dir.path().join("run.toml");
    for (value, said) in [
        (
            "\"8,16\"",
            "line 1: image-size: '8' does not say until when",
        ),
        ("-8", "line 1: image-size: "),
        ("true", "expected a size in pixels"),
    ] {
        std::fs::write(&file, format!("image-size = {value}")).unwrap();
        let mut command = pretrain(&out, &["--config"]);
        command.arg(&file);
        let line = fails(command, 2);
        assert!(line.contains(said), "{value}: {line}");
    }
}

/// A step at 128 px has 64 of 196 patches, and a third of the work.
#[test]
fn a_schedule_tells_what_growing_saves() {
    let schedule = |more: &[&str]| {
        let flags = ["schedule", "--model=vit-base", "--data=imagenet"];
        ok(vitfreeze(flags.iter().chain(more)))
    };
    let said = schedule(&["--image-size=128:80%,224"]);
    for line in [
        "vit-base 128:80%,224 px, 1281167 images: 100 epochs of 626 steps",
        "128 px         0.0   50080",
        "224 px        80.0   12520        100.0 %",
        "Against training every layer to the end with the same images this saves",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let percent = |said: &str, before: &str| -> f64 {
        let rest = &said[said.find(before).unwrap() + before.len()..];
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    let small = percent(&said, "0.0   50080");
    assert!((32.0..35.0).contains(&small), "{said}");
    let (alone, both) = (
        percent(&said, "growing images save"),
        percent(&said, "with what freezes"),
    );
    let want = 0.8 * (100.0 - small);
    assert!((alone - want).abs() < 0.11, "{alone} {want}: {said}");
    assert!(both > alone + 5.0, "{said}");
    let none = schedule(&["--image-size=128:80%,224", "--freeze=none"]);
    assert_eq!(percent(&none, "with what freezes"), alone);
    // By epochs the same.
    let epochs = schedule(&["--image-size=128:80,224"]);
    assert_eq!(said.replace("128:80%", "128:80"), epochs);
    let workers = ["--workers=1", "--images-per-second=500", "--freeze=none"];
    let whole = |sizes: &str| {
        let said = schedule(&[&workers[..], &[&format!("--image-size={sizes}")]].concat());
        let line = said.lines().find(|l| l.starts_with("whole run")).unwrap();
        line["whole run".len()..]
            .trim()
            .split("  ")
            .next()
            .unwrap()
            .to_owned()
    };
    // 62600 steps of 2048 images.
    assert_eq!(whole("224"), "71 h 13 min");
    let hours = 71.225 * (1.0 - alone / 100.0);
    let told = whole("128:80%,224");
    assert_eq!(
        told.split(' ').next().unwrap(),
        (hours as u64).to_string(),
        "{told}"
    );
}
