//! Fine-tuning and linear probing: whole runs, that they repeat and resume exactly, what they refuse.
mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::*;
use tempfile::TempDir;

/// 4 epochs of 3 steps (2 windows of 2 batches and one of 1), from scratch.
const FEW: [&str; 13] = [
    "finetune",
    "--data=shapes",
    "--samples=40",
    "--model=vit-tiny",
    "--image-size=16",
    "--patch-size=4",
    "--epochs=4",
    "--warmup-epochs=1",
    "--batch-size=8",
    "--accum=2",
    "--lr=1e-3",
    "--layer-decay=0.9",
    "--seed=3",
];

/// Everything that has a state: an average, layers that freeze and come back, clipping.
const STATES: [&str; 3] = ["--ema=0.9", "--freeze=at:3=4,7=9,9=2", "--clip-grad=1"];

fn start(out: &Path, more: &[&str]) -> Command {
    let mut command = vitfreeze(FEW);
    command.args(more).arg("--out").arg(out);
    command
}

fn go_on(command: &str, out: &Path, more: &[&str]) -> Command {
    let mut command = vitfreeze([command, "--resume"]);
    command.arg(out).args(more);
    command
}

/// Same weights, same state, same classifiers, same numbers in the log.
fn assert_same(a: &Path, b: &Path) {
    for file in ["checkpoint", "best", "last"] {
        let file = format!("{file}.safetensors");
        assert!(
            tensors(&a.join(&file)) == tensors(&b.join(&file)),
            "{file} differs"
        );
    }
    assert_eq!(log(a), log(b));
}

fn evaluations(dir: &Path) -> Vec<serde_json::Value> {
    let mut rows = log(dir);
    rows.retain(|row| row.get("top1").is_some());
    rows
}

/// Of result.json.
fn loss_and_top1(dir: &Path) -> [f64; 2] {
    let text = std::fs::read_to_string(dir.join("result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    ["loss", "top1"].map(|key| result[key].as_f64().unwrap())
}

/// train/ and val/ with two classes that a line can tell apart: dark and light.
fn write_images(dir: &Path) {
    for (split, count) in [("train", 32), ("val", 10)] {
        for (class, light) in [("dark", 0), ("light", 120)] {
            let folder = dir.join(split).join(class);
            std::fs::create_dir_all(&folder).unwrap();
            for i in 0..count {
                let pixel = |x, y| {
                    let noise = (x * 31 + y * 17 + i * 7) % 90;
                    image::Rgb([
                        (light + noise) as u8,
                        (light + noise / 2) as u8,
                        light as u8,
                    ])
                };
                let picture = image::RgbImage::from_fn(16, 16, pixel);
                picture.save(folder.join(format!("{i:02}.png"))).unwrap();
            }
        }
    }
}

/// A folder with two_classes/ and pretrained/, a run of a few steps.
fn prepared() -> (TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = (
        dir.path().join("two_classes"),
        dir.path().join("pretrained"),
    );
    write_images(&data);
    ok(pretrain(&run, &["--max-steps=2", "--save-every=100"]));
    (dir, data, run)
}

#[test]
fn a_run_writes_everything_and_repeats_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let [one, again, threads] = ["one", "again", "threads"].map(|name| dir.path().join(name));
    let said = ok(start(
        &one,
        &[&STATES[..], &["--threads=1", "--tensorboard"]].concat(),
    ));
    for word in [
        "froze patch_embed, blocks.0",
        "unfroze blocks.1",
        "moving average top-1",
        "Next:",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    ok(start(&again, &[&STATES[..], &["--threads=1"]].concat()));
    assert_same(&one, &again);
    ok(start(&threads, &[&STATES[..], &["--threads=2"]].concat()));
    assert_same(&one, &threads);

    let rows = rows(&one);
    assert_eq!(rows.len(), 12 + 4);
    let steps: Vec<_> = rows.iter().filter(|r| r.get("top1").is_none()).collect();
    let images: Vec<u64> = steps
        .iter()
        .map(|r| r["images"].as_u64().unwrap())
        .collect();
    assert_eq!(
        images[..6],
        [16, 16, 8, 16, 16, 8],
        "the last window of an epoch is used"
    );
    let lr = steps[3]["lr"].as_array().unwrap();
    assert_eq!(lr.len(), 14);
    assert_eq!(lr[3], 0.0, "frozen");
    let (block, head) = (lr[12].as_f64().unwrap(), lr[13].as_f64().unwrap());
    assert!((block / head - 0.9).abs() < 1e-12, "{block} {head}");
    assert!(steps[0]["grad_norm"].as_f64().unwrap() > 0.0);
    let evaluations = evaluations(&one);
    for (epoch, row) in evaluations.iter().enumerate() {
        assert_eq!(row["epoch"], epoch);
        for key in ["top1", "top5", "loss", "ema_top1", "ema_top5", "ema_loss"] {
            assert!(row[key].is_f64(), "{key}: {row}");
        }
        assert_ne!(row["loss"], row["ema_loss"]);
    }
    let text = std::fs::read_to_string(one.join("result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    let top1 = |row: &serde_json::Value| row["ema_top1"].as_f64().unwrap();
    let best = evaluations.iter().map(top1).fold(0.0, f64::max);
    assert_eq!(result["top1"].as_f64().unwrap(), best);
    assert_eq!(result["kind"], "finetune");
    assert_eq!(result["settings"]["layer-decay"], 0.9);
    let events = std::fs::read_dir(&one).unwrap().flatten();
    let mut events = events.map(|e| e.file_name().into_string().unwrap());
    assert!(events.any(|name| name.contains("tfevents")));

    // What is saved is the average, and says its classes and its images' preparation.
    let raw = tensors(&one.join("checkpoint.safetensors"));
    let last = tensors(&one.join("last.safetensors"));
    for (name, bytes) in &last {
        let average = raw.iter().find(|(n, _)| *n == format!("ema.{name}"));
        assert!(average.is_some_and(|(_, b)| b == bytes), "{name}");
    }
    let said = ok(vitfreeze([
        "inspect",
        one.join("best.safetensors").to_str().unwrap(),
    ]));
    assert!(said.contains("10 classes, 10 of them named"), "{said}");
}

#[test]
fn stopped_or_killed_anywhere_it_resumes_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let [straight, parts, killed] = ["straight", "parts", "killed"].map(|n| dir.path().join(n));
    ok(start(&straight, &STATES));
    ok(start(&parts, &[&STATES[..], &["--max-steps=1"]].concat()));
    // Inside an epoch, at its end, before and after layers change.
    for stop in ["2", "3", "4", "7", "8", "10"] {
        ok(go_on("finetune", &parts, &["--max-steps", stop]));
    }
    ok(go_on("finetune", &parts, &[]));
    assert_same(&straight, &parts);

    let mut kills = 0;
    for attempt in 0..40u64 {
        let mut command = match killed.join("checkpoint.safetensors").exists() {
            true => go_on("finetune", &killed, &[]),
            false => start(&killed, &[&STATES[..], &["--save-every=1"]].concat()),
        };
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(60 + attempt * 61 % 300));
        let over = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        if let Some(status) = over {
            assert!(status.success());
            break;
        }
        kills += 1;
    }
    eprintln!("killed {kills} times");
    assert!(kills >= 2, "{kills}");
    ok(go_on("finetune", &killed, &[]));
    assert_same(&straight, &killed);

    let line = fails(
        go_on("finetune", &straight, &["--mixup=0.5", "--threads=1"]),
        2,
    );
    assert!(
        line.contains("mixup: 0.8 -> 0.5") && !line.contains("threads"),
        "{line}"
    );
    let line = fails(resume(&straight, &[]), 2);
    assert!(line.contains("of a run of vitfreeze finetune"), "{line}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let [straight, stopped] = ["straight", "stopped"].map(|name| dir.path().join(name));
    ok(start(&straight, &[]));
    let mut command = start(&stopped, &["--save-every=100"]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while std::fs::metadata(stopped.join("metrics.jsonl")).map_or(0, |m| m.len()) == 0 {
        sleep(Duration::from_millis(5));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill")
        .args(["-TERM", &id])
        .status()
        .unwrap()
        .success());
    let output = child.wait_with_output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(143), "{said}");
    assert!(said.contains("vitfreeze finetune --resume"), "{said}");
    ok(go_on("finetune", &stopped, &[]));
    let weights = |dir: &Path| tensors(&dir.join("last.safetensors"));
    assert!(weights(&straight) == weights(&stopped));
}

/// What nobody could read is still in the files.
#[cfg(target_os = "linux")]
#[test]
fn a_full_stdout_loses_no_result() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut command = start(&out, &["--max-steps=1"]);
    let output = command.stdout(full.unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(out.join("result.json").exists() && out.join("last.safetensors").exists());
}

/// Names of files do not steer the terminal.
#[cfg(unix)]
#[test]
fn names_of_bad_images_are_printed_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data\u{1b}[31m");
    write_images(&data);
    let one = data.join("train/dark/00.png");
    for i in 0..100 {
        std::fs::copy(&one, data.join(format!("train/dark/more{i}.png"))).unwrap();
    }
    let few = "--model=vit-tiny --image-size=16 --patch-size=4 --batch-size=8 --accum=1 --epochs=1 --warmup-epochs=0";
    let try_on = |bad: usize, code: i32| {
        for i in 0..bad {
            let name = format!("train/light/bad{i}\u{1b}[2J.png");
            std::fs::write(data.join(name), b"not an image").unwrap();
        }
        let mut command = vitfreeze(["finetune", "--data"]);
        command.arg(&data).args(few.split(' '));
        command.arg("--out").arg(dir.path().join(bad.to_string()));
        let output = command.output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(!said.contains('\u{1b}'), "{said}");
        said
    };
    let said = try_on(1, 0);
    assert!(
        said.contains("warning: skipped") && said.contains(r"\u{1b}[2J"),
        "{said}"
    );
    let said = try_on(9, 1);
    let error = said.lines().find(|l| l.starts_with("error: ")).unwrap();
    assert!(
        error.contains("more than 1 %") && error.contains(r"bad1\u{1b}[2J.png"),
        "{error}"
    );
}

/// With and without evaluations in between, the weights are the same.
#[test]
fn evaluating_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [often, once] = ["often", "once"].map(|name| dir.path().join(name));
    ok(start(&often, &["--eval-every=1", "--ema=0.9"]));
    ok(start(&once, &["--eval-every=100", "--ema=0.9"]));
    assert_eq!(
        [evaluations(&often).len(), evaluations(&once).len()],
        [4, 1]
    );
    for file in ["checkpoint.safetensors", "last.safetensors"] {
        assert!(
            tensors(&often.join(file)) == tensors(&once.join(file)),
            "{file}"
        );
    }
    assert_eq!(evaluations(&often)[3], evaluations(&once)[0]);
}

/// From a pretraining run's folder, at another image size; the result is a checkpoint to go on from.
#[test]
fn an_encoder_becomes_a_classifier() {
    let (dir, data, run) = prepared();
    let few = [
        "--epochs=6",
        "--warmup-epochs=1",
        "--batch-size=8",
        "--accum=1",
        "--lr=1e-3",
    ];
    // The task is too easy for the recipe's noise.
    let plain = [
        "--mixup=0",
        "--cutmix=0",
        "--rand-augment=none",
        "--erasing=0",
        "--drop-path=0",
    ];
    let finetune = |from: &Path, name: &str, more: &[&str]| {
        let mut command = vitfreeze(["finetune", "--checkpoint"]);
        command
            .arg(from)
            .arg("--data")
            .arg(&data)
            .args(few)
            .args(plain)
            .args(more);
        let out = dir.path().join(name);
        command.arg("--out").arg(&out);
        (ok(command), out)
    };
    let (said, out) = finetune(&run, "fine", &["--image-size=24", "--freeze=gradual:0.25"]);
    assert!(
        said.contains("24 px") && said.contains("the mean of the patches"),
        "{said}"
    );
    assert!(said.contains("unfroze patch_embed"), "{said}");
    let last = evaluations(&out).pop().unwrap();
    assert!(last["top1"].as_f64().unwrap() > 90.0, "{last}");
    let names: Vec<String> = tensors(&out.join("last.safetensors"))
        .into_iter()
        .map(|t| t.0)
        .collect();
    assert!(names.contains(&"fc_norm.weight".into()) && !names.contains(&"norm.weight".into()));

    let image = data.join("val/light/03.png");
    let mut command = vitfreeze(["classify", "--checkpoint"]);
    command.arg(&out).arg(&image);
    let said = ok(command);
    let first = said.lines().nth(1).unwrap();
    assert!(first.contains("light"), "{said}");

    // A classifier keeps its norm behind the pooling; its head is a new one.
    let (said, _) = finetune(&out.join("best.safetensors"), "again", &["--max-steps=1"]);
    assert!(said.contains("head (2 classes) is left out"), "{said}");
    // Another pooling in front of that norm: the saved classifier is the one that was judged.
    let from = out.join("best.safetensors");
    let (said, out) = finetune(&from, "mixed", &["--pool=token", "--lr=1e-2"]);
    assert!(said.contains("on the class token"), "{said}");
    let mut eval = vitfreeze(["eval", "--checkpoint"]);
    eval.arg(out.join("last.safetensors"));
    eval.arg("--data").arg(&data);
    let judged = dir.path().join("judged");
    eval.arg("--out").arg(&judged);
    ok(eval);
    let want = evaluations(&out).pop().unwrap();
    for (got, key) in loss_and_top1(&judged).iter().zip(["loss", "top1"]) {
        let want = want[key].as_f64().unwrap();
        assert!((got - want).abs() < 1e-5, "{key}: {got} {want}");
    }

    let (said, out) = finetune(&run, "token", &["--pool=token", "--max-steps=1"]);
    assert!(said.contains("on the class token"), "{said}");
    assert!(tensors(&out.join("last.safetensors"))
        .iter()
        .any(|(name, _)| name == "norm.weight"));
    assert!(
        !out.join("best.safetensors").exists(),
        "no whole epoch was judged"
    );
    assert!(out.join("result.json").exists());

    // A run that is not over has only its training state, which gives the same.
    std::fs::remove_file(run.join("encoder.safetensors")).unwrap();
    let (_, again) = finetune(&run, "state", &["--pool=token", "--max-steps=1"]);
    let last = |dir: &Path| tensors(&dir.join("last.safetensors"));
    assert!(last(&out) == last(&again));
}

#[test]
fn linear_probes_learn_and_leave_the_encoder_as_it_is() {
    let (dir, data, run) = prepared();
    let probe = |name: &str, more: &[&str]| {
        let mut command = vitfreeze(["linprobe", "--checkpoint"]);
        let out = dir.path().join(name);
        command
            .arg(&run)
            .arg("--data")
            .arg(&data)
            .arg("--out")
            .arg(&out);
        command.args([
            "--batch-size=16",
            "--accum=1",
            "--epochs=8",
            "--warmup-epochs=1",
            "--lr=2",
        ]);
        command.args(more);
        (command, out)
    };
    for (name, mode) in [("cached", "--cached"), ("augmented", "--cached=false")] {
        let (command, out) = probe(name, &[mode]);
        ok(command);
        let last = evaluations(&out).pop().unwrap();
        assert!(last["top1"].as_f64().unwrap() > 90.0, "{name}: {last}");
        let steps: Vec<_> = rows(&out)
            .into_iter()
            .filter(|r| r.get("top1").is_none())
            .collect();
        let loss = |i: usize| steps[i]["loss"].as_f64().unwrap();
        assert!(loss(31) < 0.8 * loss(0), "{name}: {} {}", loss(0), loss(31));

        // Only the head is new, and the folded head says what the probe said.
        let encoder = tensors(&run.join("encoder.safetensors"));
        let saved = tensors(&out.join("last.safetensors"));
        for (name, bytes) in &encoder {
            assert!(saved.iter().any(|(n, b)| n == name && b == bytes), "{name}");
        }
        assert_eq!(saved.len(), encoder.len() + 2);
        let image = data.join("val/dark/04.png");
        let mut command = vitfreeze(["classify", "--checkpoint"]);
        command.arg(out.join("last.safetensors")).arg(&image);
        let said = ok(command);
        assert!(said.lines().nth(1).unwrap().contains("dark"), "{said}");

        // Stopped and resumed, and on one thread.
        let (command, parts) = probe(
            &format!("{name}-parts"),
            &[mode, "--max-steps=6", "--threads=1"],
        );
        ok(command);
        ok(go_on("linprobe", &parts, &["--max-steps=9"]));
        ok(go_on("linprobe", &parts, &[]));
        assert_same(&out, &parts);
    }
    // So are classes of other names, which the saved classifier would call wrongly.
    let rename = |from: &str, to: &str| {
        for split in ["train", "val"] {
            std::fs::rename(data.join(split).join(from), data.join(split).join(to)).unwrap();
        }
    };
    rename("light", "lit");
    for name in ["cached-parts", "augmented-parts"] {
        let line = fails(go_on("linprobe", &dir.path().join(name), &[]), 2);
        assert!(line.contains("other images or classes"), "{line}");
    }
    rename("lit", "light");
    // Nor are other pixels under the same name, or an image that has got lost, those that the features are of.
    let (one, kept) = (data.join("train/dark/07.png"), dir.path().join("kept.png"));
    std::fs::copy(&one, &kept).unwrap();
    let cached = dir.path().join("cached-parts");
    std::fs::copy(data.join("train/light/03.png"), &one).unwrap();
    let line = fails(go_on("linprobe", &cached, &[]), 2);
    assert!(line.contains("other images"), "{line}");
    std::fs::write(&one, b"not an image").unwrap();
    let line = fails(go_on("linprobe", &cached, &[]), 2);
    assert!(line.contains("other images"), "{line}");
    std::fs::copy(&kept, &one).unwrap();
    ok(go_on("linprobe", &cached, &[]));
    // An encoder that has been trained further is another one.
    ok(resume(&run, &["--max-steps=3"]));
    let line = fails(go_on("linprobe", &dir.path().join("cached-parts"), &[]), 2);
    assert!(line.contains("other weights now"), "{line}");
}

/// DeiT's two tokens: the probe sees their mean, the saved classifier has a head on each.
#[test]
fn a_probe_of_a_distilled_model_is_loaded_as_it_was_judged() {
    let dir = tempfile::tempdir().unwrap();
    let [data, out, judged] = ["data", "out", "judged"].map(|name| dir.path().join(name));
    write_images(&data);
    let mut probe = vitfreeze(["linprobe", "--checkpoint"]);
    probe.arg(checkpoint("timm_distilled"));
    probe.arg("--data").arg(&data).arg("--out").arg(&out);
    let few = "--cached --batch-size=16 --accum=1 --epochs=3 --warmup-epochs=1 --lr=2";
    probe.args(few.split(' '));
    ok(probe);
    let mut eval = vitfreeze(["eval", "--checkpoint"]);
    eval.arg(out.join("last.safetensors"));
    eval.arg("--data").arg(&data).arg("--out").arg(&judged);
    ok(eval);
    let got = loss_and_top1(&judged);
    let want = evaluations(&out).pop().unwrap();
    for (got, key) in got.iter().zip(["loss", "top1"]) {
        let want = want[key].as_f64().unwrap();
        assert!((got - want).abs() < 1e-5, "{key}: {got} {want}");
    }
}

/// It must not be judged by another image's label, nor count.
#[test]
fn an_unreadable_validation_image_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data"), dir.path().join("out"));
    write_images(&data);
    let one = data.join("val/dark/00.png");
    for i in 0..100 {
        std::fs::copy(&one, data.join(format!("val/dark/more{i}.png"))).unwrap();
    }
    std::fs::write(&one, b"not an image").unwrap();
    let few = "--model=vit-tiny --image-size=16 --patch-size=4 --batch-size=8 --accum=1 --epochs=1 --warmup-epochs=0";
    let mut command = vitfreeze(["finetune", "--data"]);
    command
        .arg(&data)
        .args(few.split(' '))
        .arg("--out")
        .arg(&out);
    let said = ok(command);
    assert!(said.contains("00.png"), "{said}");
    assert_eq!(evaluations(&out)[0]["images"], 119);
}

#[test]
fn an_evaluation_that_fails_loses_no_training() {
    let dir = tempfile::tempdir().unwrap();
    let [data, straight, out] = ["data", "straight", "out"].map(|name| dir.path().join(name));
    write_images(&data);
    let few = "--model=vit-tiny --image-size=16 --patch-size=4 --batch-size=8 --accum=1 --epochs=2 --warmup-epochs=0";
    let run = |out: &Path| {
        let mut command = vitfreeze(["finetune", "--ema=0.9", "--data"]);
        command.arg(&data).args(few.split(' '));
        command.arg("--out").arg(out);
        command
    };
    ok(run(&straight));
    for class in ["dark", "light"] {
        for i in 0..10 {
            let path = data.join(format!("val/{class}/{i:02}.png"));
            std::fs::write(path, b"not an image").unwrap();
        }
    }
    let error = fails(run(&out), 1);
    assert!(error.contains("saved after step 8"), "{error}");
    assert!(error.contains("finetune --resume"), "{error}");
    write_images(&data);
    ok(go_on("finetune", &out, &[]));
    assert_same(&straight, &out);
}

#[test]
fn mistakes_are_told_before_anything_is_written() {
    let (dir, data, run) = prepared();
    let (out, none) = (dir.path().join("out"), dir.path().join("none"));
    let checkpoint = run.join("encoder.safetensors");
    let try_on = |command: &str, from: &Path, data: &Path, more: &[&str], code| {
        let mut command = vitfreeze([command, "--checkpoint"]);
        command
            .arg(from)
            .arg("--data")
            .arg(data)
            .arg("--out")
            .arg(&out)
            .args(more);
        let line = fails(command, code);
        assert!(!out.exists(), "{line}");
        line
    };
    let copy = |name: &str| {
        let to = dir.path().join(name);
        write_images(&to);
        to
    };
    let other = copy("other");
    std::fs::rename(other.join("val/light"), other.join("val/bright")).unwrap();
    let empty = copy("empty");
    std::fs::remove_dir_all(empty.join("val")).unwrap();
    std::fs::create_dir_all(empty.join("val/dark")).unwrap();
    std::fs::create_dir_all(empty.join("val/light")).unwrap();
    let no_split = copy("no_split");
    std::fs::remove_dir_all(no_split.join("val")).unwrap();
    let resnet = dir.path().join("resnet.safetensors");
    let tensor = candle_core::Tensor::zeros(
        (4, 3, 7, 7),
        candle_core::DType::F32,
        &candle_core::Device::Cpu,
    );
    candle_core::safetensors::save(&[("conv1.weight", tensor.unwrap())].into(), &resnet).unwrap();
    for command in ["finetune", "linprobe"] {
        let few = &["--batch-size=8", "--accum=1"][..];
        for (line, want) in [
            (
                try_on(command, &resnet, &data, few, 2),
                "no Vision Transformer",
            ),
            (
                try_on(command, &none, &data, few, 2),
                "no such file or folder",
            ),
            (
                try_on(command, &checkpoint, &none, few, 2),
                "no such file or folder",
            ),
            (
                try_on(command, &checkpoint, &other, few, 2),
                "validation has no 'light'",
            ),
            (try_on(command, &checkpoint, &empty, few, 2), "no images"),
            (
                try_on(command, &checkpoint, &no_split, few, 2),
                "no split 'val'",
            ),
            (
                try_on(command, &checkpoint, &data.join("train"), few, 2),
                "no validation split, only the training images",
            ),
            (
                try_on(command, &checkpoint, &data, &["--image-size=18"], 2),
                "18 is not divisible by patch size 4",
            ),
            (
                try_on(command, &checkpoint, &data, &["--batch-size=100"], 2),
                "100",
            ),
            (
                try_on(command, &checkpoint, &data, &["--warmup-epochs=100"], 2),
                "less than epochs",
            ),
            (
                try_on(command, &checkpoint, &data, &["--lr=-1"], 2),
                "lr is -1",
            ),
            (
                try_on(command, &checkpoint, &data, &["--crop-scale=0"], 2),
                "crop-scale is 0",
            ),
        ] {
            assert!(line.contains(want), "{command}: {want}: {line}");
        }
    }
    for (more, want) in [
        ("--model=vit-tiny", "both checkpoint and model"),
        ("--patch-size=8", "patch-size is the checkpoint's"),
        ("--layer-decay=0", "layer-decay is 0"),
        ("--drop-path=1", "drop-path is 1"),
        ("--rand-augment=rand-x9", "'x9' is not understood"),
        ("--mixup=-1", "mixup is -1, it must lie in [0, 1e6]"),
        (
            "--mixup-switch=2",
            "mixup-switch is 2, it must lie in [0, 1]",
        ),
        ("--smoothing=2", "smoothing is 2, it must lie in [0, 1]"),
        ("--heads=7", "7"),
        ("--heads=0", "heads is 0"),
        ("--ema=1", "ema is 1"),
        (
            "--seed=18446744073709551615",
            "seed is 18446744073709551615, it must be at most",
        ),
        ("--clip-grad=0", "clip-grad is 0"),
        ("--freeze=at:2=14", "14 layers"),
        ("--t0=2", "t0 is 2"),
    ] {
        let line = try_on(
            "finetune",
            &checkpoint,
            &data,
            &["--batch-size=8", "--accum=1", more],
            2,
        );
        assert!(line.contains(want), "{more}: {line}");
    }
    for (command, more, want) in [
        ("linprobe", "--batch-size=1", "batch-size is 1"),
        ("finetune", "--min-lr=1", "below min-lr"),
    ] {
        let few = ["--batch-size=8", "--accum=1", more];
        let line = try_on(command, &checkpoint, &data, &few, 2);
        assert!(line.contains(want), "{more}: {line}");
    }
    let line = fails(vitfreeze(["finetune", "--model=vit-tiny"]), 2);
    assert!(line.contains("--data SRC is missing"), "{line}");
    let line = fails(vitfreeze(["linprobe", "--data=shapes"]), 2);
    assert!(line.contains("--checkpoint C is missing"), "{line}");
    let toml = dir.path().join("run.toml");
    for (text, want) in [
        ("layer_decay = 0.5", "did you mean 'layer-decay'?"),
        ("\nepochs = \"three\"", "line 2: epochs: invalid type"),
        ("cached = true", "unknown key 'cached'"),
    ] {
        std::fs::write(&toml, text).unwrap();
        let line = fails(
            vitfreeze(["finetune", "--config", toml.to_str().unwrap()]),
            2,
        );
        assert!(line.contains(want), "{text}: {line}");
    }
}

/// A policy decides, and a run that was cut off at a freeze ends with the same bits.
#[test]
fn a_policy_resumes_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let run = "finetune --data=shapes --samples=40 --model=vit-tiny --image-size=16 --patch-size=4 --epochs=3 \
        --warmup-epochs=1 --batch-size=8 --accum=2 --lr=1e-3 --seed=3 --policy=autofreeze:interval=2 --eval-every=3";
    let start = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let mut command = vitfreeze(run.split_whitespace());
        command.args(more).arg("--out").arg(&out);
        ok(command);
        out
    };
    let straight = start("straight", &[]);
    let steps = |row: &&serde_json::Value| row.get("frozen").is_some();
    let frozen: Vec<u64> = rows(&straight)
        .iter()
        .filter(steps)
        .map(|row| row["frozen"].as_u64().unwrap())
        .collect();
    let froze = frozen.iter().position(|&n| n > 0).unwrap();
    let cut = start("cut", &[&format!("--max-steps={froze}")]);
    let mut go_on = vitfreeze(["finetune", "--resume"]);
    go_on.arg(&cut);
    ok(go_on);
    for file in ["checkpoint.safetensors", "last.safetensors"] {
        let (a, b) = (tensors(&straight.join(file)), tensors(&cut.join(file)));
        assert!(a == b, "{file} differs; frozen: {frozen:?}");
    }
}
