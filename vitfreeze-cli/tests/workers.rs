//! Several workers under mpirun. Needs the feature `mpi` and MPI itself: `scripts/mpi_tests.sh`.
#![cfg(feature = "mpi")]
mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::*;
use serde_json::Value;

/// A run that freezes from step 7 on: 12 images a step, 3 steps an epoch.
const RUN: &str = "--data=shapes --samples=40 --model=vit-tiny --image-size=16 --patch-size=4 --decoder-dim=16 \
    --decoder-heads=2 --epochs=6 --warmup-epochs=1 --accum=1 --lr=1e-3 --seed=7 --t0=0.7 --threads=1";

/// `vitfreeze ARGS` on so many workers.
fn mpirun(workers: usize, args: &[&str]) -> Command {
    let mut command = mpirun_of(workers, env!("CARGO_BIN_EXE_vitfreeze"));
    command.args(args);
    command
}

fn mpirun_of(workers: usize, program: &str) -> Command {
    let mut command = Command::new("mpirun");
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1");
    command.env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.args(["--oversubscribe", "-np", &workers.to_string(), program]);
    command
}

fn pretrain(workers: usize, batch: usize, out: &Path, more: &[&str]) -> Command {
    let (batch, out) = (format!("--batch-size={batch}"), out.to_str().unwrap());
    let mut args = vec!["pretrain", "--out", out, &batch];
    args.extend(RUN.split_whitespace());
    args.extend(more);
    mpirun(workers, &args)
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap()
}

fn assert_close(got: &Path, want: &Path, part: f64) {
    let (got, want) = (rows(got), rows(want));
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(&want) {
        let (a, b) = (number(got, "loss"), number(want, "loss"));
        assert!((a / b - 1.0).abs() < part, "{got}\n{want}");
        for key in ["step", "lr", "frozen", "images", "epoch"] {
            assert_eq!(got[key], want[key], "{got}\n{want}");
        }
    }
}

struct Runs(tempfile::TempDir);

impl Runs {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

#[test]
fn workers_train_as_one_does_with_the_whole_batch() {
    let runs = Runs::new();
    ok(pretrain(1, 12, &runs.at("one"), &[]));
    for (workers, batch) in [(2, 6), (3, 4)] {
        let [out, again] = ["a", "b"].map(|name| runs.at(&format!("{name}{workers}")));
        let said = ok(pretrain(workers, batch, &out, &[]));
        assert!(said.contains(&format!("{workers} workers")), "{said}");
        assert_eq!(said.matches("Files in").count(), 1, "one speaks: {said}");
        assert_close(&out, &runs.at("one"), 1e-5);
        // From run to run: the same bits.
        ok(pretrain(workers, batch, &again, &[]));
        assert_same_state(&out, &again);
        // A frozen layer sends nothing.
        let rows = rows(&out);
        let bytes = |row: &Value| row["reduced_bytes"].as_u64().unwrap();
        let first = bytes(&rows[0]);
        assert!(bytes(&rows[17]) < first);
        for pair in rows.windows(2) {
            let frozen = pair[1]["frozen"] != pair[0]["frozen"];
            assert_eq!(frozen, bytes(&pair[1]) < bytes(&pair[0]));
        }
    }
}

/// A policy sees what all computed, and so freezes on all alike, and as one does.
#[test]
fn a_policy_decides_for_all() {
    let runs = Runs::new();
    let policy = [
        "--policy=plasticity:interval=2,window=2,patience=1,tolerance=0.95",
        "--layer-lr=shared",
    ];
    // Without --t0, which is the schedule's.
    let run = |workers, batch: &str, out: &Path| {
        let out = format!("--out={}", out.display());
        let args = RUN
            .split_whitespace()
            .filter(|arg| !arg.starts_with("--t0"));
        let args: Vec<&str> = ["pretrain", &out, batch]
            .into_iter()
            .chain(args)
            .chain(policy)
            .collect();
        ok(mpirun(workers, &args))
    };
    run(1, "--batch-size=12", &runs.at("one"));
    run(2, "--batch-size=6", &runs.at("two"));
    assert_close(&runs.at("two"), &runs.at("one"), 1e-5);
    assert!(rows(&runs.at("two")).last().unwrap()["frozen"].as_u64() > Some(0));
}

#[test]
fn another_number_of_workers_goes_on() {
    let runs = Runs::new();
    ok(pretrain(1, 12, &runs.at("one"), &[]));
    let out = runs.at("run");
    let said = ok(pretrain(2, 6, &out, &["--max-steps=5"]));
    assert!(said.contains(" --nproc 2    the other 13 steps"), "{said}");
    let dir = out.to_str().unwrap();
    let go_on = |workers, more: &[&str]| {
        let args = [&["pretrain", "--resume", dir][..], more].concat();
        mpirun(workers, &args)
    };
    let line = fails(go_on(1, &[]), 2);
    assert!(
        line.contains("steps of 12 images") && line.contains("--batch-size"),
        "{line}"
    );
    let said = ok(go_on(1, &["--batch-size=12", "--max-steps=11"]));
    assert!(said.contains("2 workers began this run"), "{said}");
    ok(go_on(3, &["--batch-size=4"]));
    assert_close(&out, &runs.at("one"), 1e-5);
    // A machine that cannot take as much at once takes it in pieces.
    let out = runs.at("pieces");
    ok(pretrain(2, 6, &out, &["--max-steps=5"]));
    let dir = out.to_str().unwrap();
    let pieces = ["pretrain", "--resume", dir, "--batch-size=6", "--accum=2"];
    let said = ok(mpirun(1, &pieces));
    assert!(said.contains("2 workers began this run"), "{said}");
    assert_close(&out, &runs.at("one"), 1e-5);
}

/// Some have no validation image then, or one that is damaged.
#[test]
fn more_workers_than_validation_images() {
    let runs = Runs::new();
    let data = runs.at("data");
    classes(&data.join("train"), &["a", "b"], 12);
    classes(&data.join("val"), &["a", "b"], 1);
    std::fs::write(data.join("val/a/1.png"), b"no image").unwrap();
    let encoder = format!("--checkpoint={}", checkpoint("timm_distilled").display());
    let data = format!("--data={}", data.display());
    for command in ["finetune", "linprobe"] {
        let run = |workers, batch: &str| {
            let dir = runs.at(&format!("{command}{workers}"));
            let out = format!("--out={}", dir.display());
            let more = [
                "--epochs=1",
                "--warmup-epochs=0",
                "--accum=1",
                "--lr=1e-3",
                "--threads=1",
            ];
            let args = [&[command, &encoder, &data, &out, batch][..], &more].concat();
            let said = ok(mpirun(workers, &args));
            assert_eq!(said.matches("warning: left out").count(), 1, "{said}");
            let rows = rows(&dir);
            let row = rows.last().unwrap();
            (row["images"].clone(), row["top1"].clone())
        };
        assert_eq!(
            run(4, "--batch-size=2"),
            run(1, "--batch-size=8"),
            "{command}"
        );
    }
}

/// Where each worker has a file of its own, as machines may have.
#[test]
fn workers_that_would_not_train_the_same_are_refused() {
    let runs = Runs::new();
    for (rank, file) in ["0.toml", "1.toml"].iter().enumerate() {
        std::fs::write(runs.at(file), format!("min-lr = {}e-6\n", rank + 1)).unwrap();
    }
    let (file, out) = (runs.at("$OMPI_COMM_WORLD_RANK.toml"), runs.at("run"));
    let run = format!(
        "exec {} pretrain --config {} --out {} --batch-size=6 {RUN}",
        env!("CARGO_BIN_EXE_vitfreeze"),
        file.display(),
        out.display()
    );
    let mut command = mpirun_of(2, "sh");
    command.args(["-c", &run]);
    let line = fails(command, 2);
    let told = "worker 2 of 2: this worker has other settings than worker 1 (min-lr: 0.000001 -> 0.000002)";
    assert!(line.contains(told), "{line}");
    assert!(!out.exists());
    // One that would stop earlier.
    let run = format!(
        "exec {} pretrain --max-steps $((2 + OMPI_COMM_WORLD_RANK)) --out {} --batch-size=6 {RUN}",
        env!("CARGO_BIN_EXE_vitfreeze"),
        out.display()
    );
    let mut command = mpirun_of(2, "sh");
    command.args(["-c", &run]);
    let line = fails(command, 2);
    assert!(line.contains("has other --max-steps"), "{line}");
    let line = fails(mpirun(2, &["pretrain", "--nproc=3"]), 2);
    assert!(line.contains("mpirun has started 2 of it"), "{line}");
}

#[test]
fn classifiers_train_on_workers() {
    let runs = Runs::new();
    let encoder = checkpoint("timm_distilled");
    let encoder = encoder.to_str().unwrap();
    const MORE: &str =
        "--data=shapes --samples=40 --epochs=4 --warmup-epochs=1 --accum=1 --lr=1e-3 --threads=1";
    for command in ["finetune", "linprobe"] {
        let run = |workers: usize, batch: &str, out: &Path| {
            let out = out.to_str().unwrap();
            let mut args = vec![command, "--checkpoint", encoder, "--out", out, batch];
            args.extend(MORE.split_whitespace());
            ok(mpirun(workers, &args))
        };
        let [one, two] = ["one", "two"].map(|name| runs.at(&format!("{command}-{name}")));
        run(1, "--batch-size=8", &one);
        run(2, "--batch-size=4", &two);
        // Stopped after an epoch's evaluation, which is not done again.
        let again = runs.at(&format!("{command}-again"));
        let stopped = ["--max-steps=10", "--batch-size=4"];
        let dir = again.to_str().unwrap();
        let mut args = vec![command, "--checkpoint", encoder, "--out", dir];
        args.extend(MORE.split_whitespace().chain(stopped));
        ok(mpirun(2, &args));
        ok(mpirun(2, &[command, "--resume", dir]));
        let state = |dir: &Path| tensors(&dir.join("checkpoint.safetensors"));
        assert!(state(&again) == state(&two), "{command}");
        let evaluations = |dir: &Path| -> Vec<Value> {
            let rows = rows(dir);
            rows.into_iter()
                .filter(|r| r.get("top1").is_some())
                .collect()
        };
        let (got, want) = (evaluations(&two), evaluations(&one));
        assert!(got.len() == 4 && want.len() == 4);
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(got["images"], want["images"]);
            assert_eq!(got["top1"], want["top1"], "{command}");
            assert!(
                (number(got, "loss") / number(want, "loss") - 1.0).abs() < 1e-4,
                "{command}: {got}\n{want}"
            );
        }
    }
}

/// The processes of the workers, in order of their start.
fn workers_of(child: &Child) -> Vec<String> {
    let ps = Command::new("ps")
        .args(["-o", "pid=,comm=", "--ppid", &child.id().to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&ps.stdout).into_owned();
    let of_ours = text.lines().filter(|l| l.contains("vitfreeze"));
    of_ours
        .map(|l| l.split_whitespace().next().unwrap().to_owned())
        .collect()
}

/// The program starts its own workers.
fn nproc(args: &[&str]) -> Command {
    let mut command = vitfreeze(args);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1");
    command.env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command
}

/// `--nproc`: the program starts mpiexec itself, and what it alone is sent reaches the workers.
#[test]
fn the_program_starts_workers_itself() {
    let runs = Runs::new();
    let out = runs.at("run");
    let start = |out: &Path, more: &[&str]| {
        let mut command = nproc(&["pretrain", "--nproc=2", "--batch-size=6", "--out"]);
        command.arg(out).args(RUN.split_whitespace()).args(more);
        command
    };
    ok(start(&out, &[]));
    ok(pretrain(2, 6, &runs.at("mpirun"), &[]));
    assert_same_state(&out, &runs.at("mpirun"));
    let long = runs.at("long");
    let child = start(&long, &["--epochs=3000"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while std::fs::metadata(long.join("metrics.jsonl")).map_or(0, |m| m.len()) < 2000 {
        sleep(Duration::from_millis(10));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill")
        .args(["-TERM", &id])
        .status()
        .unwrap()
        .success());
    let output = child.wait_with_output().unwrap();
    let said = text(&output);
    assert!(said.contains("saved after step"), "{said}");
    assert_eq!(output.status.code(), Some(143), "{said}");
}

#[test]
fn bench_on_workers() {
    let tiny = ["--model=vit-tiny", "--image-size=16", "--patch-size=4"];
    let run = |more: &[&str]| {
        let mut command = nproc(&["bench", "--nproc=2", "--threads=1", "--steps=2"]);
        command.args(tiny).args(more);
        command
    };
    let output = run(&["--batch-size=4", "--frozen=0,1,12", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["workers"], &report["batch_size"]),
        (&2.into(), &4.into())
    );
    let rows = report["rows"].as_array().unwrap();
    let bytes = |row: usize| rows[row]["reduced_bytes"].as_u64().unwrap();
    // The patch embedding: 48 weights, a bias and the class token of 192 each.
    assert_eq!(bytes(0) - bytes(1), 4 * 50 * 192);
    assert!(bytes(2) < bytes(1) / 3);
    for row in rows {
        for key in ["forward_s", "backward_s", "optimizer_s", "communication_s"] {
            assert!(number(row, key) > 0.0, "{row}");
        }
    }
    // What is predicted is what is sent.
    let mut schedule = vitfreeze(["schedule", "--workers=2", "--bandwidth=1"]);
    schedule.args(tiny);
    let said = ok(schedule);
    let want = format!("{:.1} MB with nothing frozen", bytes(0) as f64 / 1e6);
    assert!(said.contains(&want), "{want}: {said}");
    let said = ok(run(&["--batch-size=4", "--frozen=0,12"]));
    assert!(said.contains("batch 4 shared by 2 workers"), "{said}");
    assert_eq!(said.matches("communication").count(), 1, "{said}");
    let line = fails(run(&["--batch-size=3"]), 2);
    assert!(
        line.contains("cannot be shared evenly by 2 workers"),
        "{line}"
    );
}

/// Starts a long run on two workers, does something to one once it steps, and gives exit code, output and seconds until
/// the end.
fn disturbed(out: &Path, signal: &str, which: usize) -> (Option<i32>, String, f64) {
    let mut command = pretrain(2, 6, out, &["--epochs=3000", "--save-every=2"]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while std::fs::metadata(out.join("metrics.jsonl")).map_or(0, |m| m.len()) < 2000 {
        assert!(began.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(10));
    }
    let pids = workers_of(&child);
    assert_eq!(pids.len(), 2);
    let kill = Command::new("kill").args([signal, &pids[which]]).status();
    assert!(kill.unwrap().success());
    let sent = Instant::now();
    let output = child.wait_with_output().unwrap();
    (
        output.status.code(),
        text(&output),
        sent.elapsed().as_secs_f64(),
    )
}

#[test]
fn all_stop_when_one_is_asked_to() {
    let runs = Runs::new();
    for which in [0, 1] {
        let out = runs.at(&format!("run{which}"));
        let (_, said, _) = disturbed(&out, "-TERM", which);
        assert_eq!(said.matches("saved after step").count(), 1, "{said}");
        assert!(said.contains("vitfreeze pretrain --resume"), "{said}");
        assert!(said.contains("--nproc 2"), "{said}");
        let (dir, step) = (out.to_str().unwrap(), rows(&out).len() + 1);
        let more = format!("--max-steps={step}");
        ok(mpirun(2, &["pretrain", "--resume", dir, &more]));
    }
}

#[test]
fn a_killed_worker_ends_the_job() {
    let runs = Runs::new();
    let out = runs.at("run");
    let (code, said, seconds) = disturbed(&out, "-KILL", 1);
    assert_ne!(code, Some(0), "{said}");
    assert!(seconds < 30.0, "{seconds}");
    let dir = out.to_str().unwrap();
    let step = rows(&out).len() + 2;
    let more = format!("--max-steps={step}");
    ok(mpirun(2, &["pretrain", "--resume", dir, &more]));
}

#[test]
fn one_message_tells_what_went_wrong() {
    let runs = Runs::new();
    let count = |said: &str| said.matches("error: ").count();
    // All of them find it.
    let output = pretrain(2, 6, &runs.at("a"), &["--data=nowhere"])
        .output()
        .unwrap();
    let said = text(&output);
    assert!(
        count(&said) == 1 && said.contains("worker 1 of 2"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(2), "{said}");
    // Diverges.
    let output = pretrain(2, 6, &runs.at("b"), &["--lr=1e30", "--min-lr=0"])
        .output()
        .unwrap();
    let said = text(&output);
    assert!(count(&said) == 1 && said.contains("the loss is"), "{said}");
    // So does an evaluation.
    let encoder = format!("--checkpoint={}", checkpoint("timm_distilled").display());
    let out = format!("--out={}", runs.at("e").display());
    let run = [
        "finetune",
        &encoder,
        &out,
        "--data=shapes",
        "--samples=16",
        "--batch-size=8",
        "--accum=1",
        "--epochs=2",
        "--warmup-epochs=0",
        "--lr=1e30",
        "--min-lr=1e29",
        "--threads=1",
    ];
    let line = fails(mpirun(2, &run), 1);
    assert!(
        line.contains("worker 1 of 2: ") && line.contains("the validation loss is"),
        "{line}"
    );
    // Only one of them cannot read its images.
    let data = runs.at("data");
    for split in ["train", "val"] {
        classes(&data.join(split), &["a", "b"], 12);
    }
    for i in 0..4 {
        std::fs::write(data.join(format!("train/a/{i}.png")), b"no image").unwrap();
    }
    let data = format!("--data={}", data.display());
    let output = pretrain(2, 6, &runs.at("c"), &[&data]).output().unwrap();
    let said = text(&output);
    assert!(count(&said) == 1 && said.contains("of 2: "), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
    // The same where a loss needs all of them, who must not wait for the one.
    let (out, began) = (format!("--out={}", runs.at("d").display()), Instant::now());
    let run = [
        "linprobe",
        &encoder,
        &data,
        &out,
        "--batch-size=6",
        "--accum=2",
        "--epochs=2",
        "--warmup-epochs=1",
        "--threads=1",
        "--worker-timeout=60",
    ];
    let line = fails(mpirun(2, &run), 1);
    assert!(line.contains("of 2: "), "{line}");
    assert!(began.elapsed() < Duration::from_secs(50), "{line}");
}

#[test]
fn a_full_disk_of_the_first_stops_both_and_loses_nothing() {
    let runs = Runs::new();
    let out = runs.at("run");
    ok(pretrain(2, 6, &out, &["--max-steps=4"]));
    let before = std::fs::read(out.join("checkpoint.safetensors")).unwrap();
    // Only the first writes, and may write less than a checkpoint.
    let vitfreeze = env!("CARGO_BIN_EXE_vitfreeze");
    let (dir, blocks) = (out.display(), before.len() / 1024);
    let go_on = format!(
        "test \"$OMPI_COMM_WORLD_RANK\" = 1 || ulimit -f {blocks}; exec {vitfreeze} pretrain --resume {dir}"
    );
    let mut command = mpirun_of(2, "bash");
    command.args(["-c", &go_on]);
    let output = command.output().unwrap();
    let said = text(&output);
    assert_eq!(said.matches("error: worker 1 of 2: ").count(), 1, "{said}");
    assert!(!said.contains("worker 2"), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
    let after = std::fs::read(out.join("checkpoint.safetensors")).unwrap();
    assert!(before == after, "the checkpoint is not as it was");
}
