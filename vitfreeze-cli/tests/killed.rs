//! `kill -9` between two saves, for every command that trains: the checkpoint that is there is the one that a run stopped at
//! its step would have written, and the run that goes on from it ends with the same bits.
#![cfg(unix)]
mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::*;

const SAVE_EVERY: &str = "--save-every=3";

/// Steps done of the checkpoint in `dir`, if there is one.
fn saved_step(dir: &Path) -> Option<u64> {
    let bytes = std::fs::read(dir.join("checkpoint.safetensors")).ok()?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).ok()?;
    let json = header.metadata().as_ref()?.get("vitfreeze")?;
    let json: serde_json::Value = serde_json::from_str(json).ok()?;
    json["step"].as_u64()
}

/// Kills `command` as soon as it has saved a step beyond `known`, and returns that step; `None` if it ended before.
fn kill_after_a_save(mut command: Command, dir: &Path, known: u64) -> Option<u64> {
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    loop {
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "{command:?} hangs"
        );
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{command:?}");
            return None;
        }
        if saved_step(dir).is_some_and(|step| step > known) {
            child.kill().unwrap();
            child.wait().unwrap();
            return saved_step(dir);
        }
        sleep(Duration::from_millis(1));
    }
}

fn assert_same_tensors(a: &Path, b: &Path, what: &str) {
    let (a, b) = (tensors(a), tensors(b));
    for ((name, x), (other, y)) in a.iter().zip(&b) {
        assert_eq!(name, other, "{what}");
        assert!(x == y, "{what}: '{name}' differs");
    }
    assert_eq!(a.len(), b.len(), "{what}");
}

/// `args` start a run of the subcommand that they begin with; `files` are what it leaves.
fn check(args: &[&str], files: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let start = |name: &str, more: &[&str]| {
        let mut command = vitfreeze(args);
        let out = dir.path().join(name);
        command.args([SAVE_EVERY]).args(more).arg("--out").arg(&out);
        (command, out)
    };
    let go_on = |out: &Path| {
        let mut command = vitfreeze([args[0], "--resume"]);
        command.arg(out);
        command
    };
    let (command, straight) = start("straight", &[]);
    ok(command);
    let (mut command, killed) = start("killed", &[]);
    let mut kills = 0;
    let mut known = 0;
    while let Some(step) = kill_after_a_save(command, &killed, known) {
        (kills, known) = (kills + 1, step);
        let (until, stopped) = start(&format!("until{step}"), &[&format!("--max-steps={step}")]);
        ok(until);
        let path = |dir: &Path| dir.join("checkpoint.safetensors");
        let what = format!("{args:?}: checkpoint of step {step}");
        assert_same_tensors(&path(&stopped), &path(&killed), &what);
        command = go_on(&killed);
    }
    assert!(kills >= 2, "{args:?}: killed {kills} times only");
    for file in files.iter().chain(&["checkpoint"]) {
        let file = format!("{file}.safetensors");
        let what = format!("{args:?}: {file} after {kills} kills");
        assert_same_tensors(&straight.join(&file), &killed.join(&file), &what);
    }
    assert_eq!(log(&straight), log(&killed));
}

#[test]
fn pretrain() {
    let run: Vec<&str> = ["pretrain"].iter().chain(&SMALL).copied().collect();
    check(&run, &["encoder"]);
    let more = ["--accum=2", "--freeze=at:3=4,6=9,9=2", "--epochs=5"];
    check(&[&run[..], &more].concat(), &["encoder"]);
}

#[test]
fn finetune() {
    let run = "finetune --data=shapes --samples=40 --model=vit-tiny --image-size=16 --patch-size=4 --epochs=4 \
        --warmup-epochs=1 --batch-size=8 --lr=1e-3 --layer-decay=0.9 --seed=3";
    let run: Vec<&str> = run.split_whitespace().collect();
    let classifiers = ["best", "last"];
    check(&[&run[..], &["--accum=1"]].concat(), &classifiers);
    let states = [
        "--accum=2",
        "--ema=0.9",
        "--freeze=at:3=4,7=9,9=2",
        "--clip-grad=1",
    ];
    check(&[&run[..], &states].concat(), &classifiers);
}

/// BatchNorm's statistics change in the forward pass of the step after the save.
#[test]
fn linprobe() {
    let encoder = checkpoint("timm_distilled");
    let mut run = vec!["linprobe", "--checkpoint", encoder.to_str().unwrap()];
    let more = "--data=shapes --samples=64 --batch-size=8 --epochs=4 --warmup-epochs=1 --lr=2";
    run.extend(more.split_whitespace());
    let modes: [&[&str]; 3] = [
        &["--cached=false", "--accum=1"],
        &["--cached=false", "--accum=2", "--epochs=6"],
        &["--cached", "--accum=1", "--eval-every=2"],
    ];
    for mode in modes {
        check(&[&run[..], mode].concat(), &["best", "last"]);
    }
}
