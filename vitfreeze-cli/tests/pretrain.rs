//! Whole runs: what they write, that they resume exactly, that threads change nothing.
mod common;

use std::process::{Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::*;

#[test]
fn a_run_writes_everything() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let said = ok(pretrain(&out, &["--save-every=10"]));
    for word in ["froze patch_embed", "freezing saved", "Next:", " frozen: "] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let rows = rows(&out);
    assert_eq!(rows.len(), 30);
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row["step"], i);
        assert_eq!(row["epoch"], i / 5);
        assert_eq!(row["lr"].as_array().unwrap().len(), 13);
        assert_eq!(row["stage_losses"].as_array().unwrap().len(), 4);
        assert!(row["images_per_second"].as_f64().unwrap() > 0.0);
        for phase in ["data", "forward", "backward", "optimizer", "total"] {
            assert!(row["seconds"][phase].as_f64().unwrap() >= 0.0);
        }
        let sum: f64 = row["stage_losses"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|l| l.as_f64())
            .sum();
        assert!((sum - row["loss"].as_f64().unwrap()).abs() < 1e-5);
    }
    // The loss falls (while all stages are in it), layers freeze, the graph shrinks with them, stages leave.
    assert!(rows[14]["loss"].as_f64().unwrap() < rows[0]["loss"].as_f64().unwrap());
    assert_eq!(rows[29]["frozen"], 12);
    assert!(
        rows[29]["graph_nodes"].as_u64().unwrap() < rows[0]["graph_nodes"].as_u64().unwrap() / 3
    );
    assert!(rows[29]["stage_losses"][0].is_null() && rows[29]["stage_losses"][3].is_f64());
    // The saved configuration makes the same run.
    let again = dir.path().join("again");
    let mut command = vitfreeze(["pretrain", "--config"]);
    command
        .arg(out.join("config.toml"))
        .arg("--out")
        .arg(&again);
    ok(command);
    assert_same_state(&out, &again);
}

#[test]
fn resuming_before_and_after_freezes_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    let (straight, parts) = (dir.path().join("straight"), dir.path().join("parts"));
    ok(pretrain(&straight, &["--save-every=100"]));
    ok(pretrain(&parts, &["--save-every=100", "--max-steps=7"]));
    for stop in ["15", "16", "17", "23", "29"] {
        ok(resume(&parts, &["--max-steps", stop]));
    }
    ok(resume(&parts, &[]));
    assert_same_state(&straight, &parts);
    let done = ok(resume(&parts, &[]));
    assert!(done.contains("30 steps"), "{done}");
}

/// Layers 0 to 2 and stage 0 freeze, three more follow, and all but two come back.
#[test]
fn a_plan_that_unfreezes_resumes_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let (straight, parts) = (dir.path().join("straight"), dir.path().join("parts"));
    let plan = ["--save-every=100", "--freeze=at:8=3,14=6,20=2"];
    let said = ok(pretrain(&straight, &plan));
    assert!(
        said.contains(
            "step 8: froze patch_embed, blocks.0, blocks.1 and stage 0 with its decoder; 3 of 13"
        ),
        "{said}"
    );
    assert!(
        said.contains("step 20: unfroze blocks.1 and stage 0 with its decoder, blocks.2"),
        "{said}"
    );
    ok(pretrain(&parts, &[&plan[..], &["--max-steps=5"]].concat()));
    for stop in ["8", "9", "14", "19", "20", "21", "26"] {
        ok(resume(&parts, &["--max-steps", stop]));
    }
    ok(resume(&parts, &[]));
    assert_same_state(&straight, &parts);
    let frozen: Vec<u64> = rows(&straight)
        .iter()
        .map(|r| r["frozen"].as_u64().unwrap())
        .collect();
    assert_eq!(
        [frozen[7], frozen[8], frozen[19], frozen[20], frozen[29]],
        [0, 3, 6, 2, 2]
    );
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let one = dir.path().join("1");
    let few = ["--epochs=2", "--save-every=100"];
    ok(pretrain(&one, &[&few[..], &["--threads=1"]].concat()));
    for threads in ["2", "5"] {
        let other = dir.path().join(threads);
        ok(pretrain(
            &other,
            &[&few[..], &["--threads", threads]].concat(),
        ));
        assert_same_state(&one, &other);
    }
    // Resumed with another number of threads, too.
    let mixed = dir.path().join("mixed");
    ok(pretrain(
        &mixed,
        &[&few[..], &["--threads=2", "--max-steps=4"]].concat(),
    ));
    ok(resume(&mixed, &["--threads=3"]));
    assert_same_state(&one, &mixed);
}

/// Killed at 20 moments, resumed each time: the checkpoint always loads, and the end is that of the straight run.
#[test]
fn kill_at_any_moment_and_resume() {
    let dir = tempfile::tempdir().unwrap();
    let (straight, killed) = (dir.path().join("straight"), dir.path().join("killed"));
    ok(pretrain(&straight, &["--save-every=2"]));
    let log = dir.path().join("log");
    let spawn = |mut command: std::process::Command| {
        let log = std::fs::File::create(&log).unwrap();
        command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
    };
    let mut kills = 0;
    for attempt in 0..60u64 {
        let started = killed.join("checkpoint.safetensors").exists();
        let mut child = spawn(if started {
            resume(&killed, &[])
        } else {
            pretrain(&killed, &["--save-every=2"])
        });
        // Moments spread over start, training and saving.
        sleep(Duration::from_millis(20 + attempt * 7919 % 600));
        let over = child.try_wait().unwrap();
        let said = || std::fs::read_to_string(&log).unwrap();
        assert!(over.is_none_or(|status| status.success()), "{}", said());
        child.kill().unwrap();
        child.wait().unwrap();
        if over.is_some() {
            break;
        }
        kills += 1;
        if kills == 20 {
            break;
        }
    }
    eprintln!("killed {kills} times before the end");
    assert!(kills >= 3, "only {kills} kills before the end");
    // However many moments the run itself left, make it 20 by killing it again from the start.
    for attempt in kills..20 {
        let other = dir.path().join(format!("other{attempt}"));
        let mut child = spawn(pretrain(&other, &["--save-every=1"]));
        sleep(Duration::from_millis(30 + attempt * 131 % 900));
        child.kill().unwrap();
        child.wait().unwrap();
        if other.join("checkpoint.safetensors").exists() {
            let said = ok(resume(&other, &["--max-steps=1"]));
            assert!(said.contains("Files in"), "{said}");
        }
        std::fs::remove_dir_all(&other).ok();
    }
    // As a kill leaves it between a file's name and the end of its writing.
    std::fs::create_dir_all(killed.join(".config.toml.saving")).unwrap();
    ok(resume(&killed, &[]));
    assert_same_state(&straight, &killed);
    let mut left: Vec<_> = std::fs::read_dir(&killed)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let files = [
        "checkpoint.safetensors",
        "config.toml",
        "encoder.safetensors",
        "metrics.jsonl",
        "report.html",
        "result.json",
        "seen",
    ];
    assert_eq!(left, files, "nothing half-written stays");
    let mut seen = std::fs::read_dir(killed.join("seen")).unwrap();
    let whole = |e: std::io::Result<std::fs::DirEntry>| {
        e.unwrap().path().extension() == Some("png".as_ref())
    };
    assert!(seen.all(whole));
}

#[cfg(unix)]
#[test]
fn ctrl_c_finishes_the_step_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (straight, stopped) = (dir.path().join("straight"), dir.path().join("stopped"));
    ok(pretrain(&straight, &["--save-every=100"]));
    let child = pretrain(&stopped, &["--save-every=100"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let metrics = stopped.join("metrics.jsonl");
    while std::fs::metadata(&metrics).map_or(0, |m| m.len()) == 0 {
        sleep(Duration::from_millis(5));
    }
    let kill = std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(143), "{said}");
    assert!(said.contains("vitfreeze pretrain --resume"), "{said}");
    ok(resume(&stopped, &[]));
    assert_same_state(&straight, &stopped);
}

#[test]
fn the_last_short_window_of_an_epoch_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    ok(pretrain(
        &out,
        &["--accum=2", "--epochs=2", "--save-every=100"],
    ));
    let images: Vec<u64> = rows(&out)
        .iter()
        .map(|r| r["images"].as_u64().unwrap())
        .collect();
    assert_eq!(images, [16, 16, 8, 16, 16, 8]);
    // Stopped inside an epoch and resumed.
    let parts = dir.path().join("parts");
    ok(pretrain(
        &parts,
        &[
            "--accum=2",
            "--epochs=2",
            "--save-every=100",
            "--max-steps=2",
        ],
    ));
    ok(resume(&parts, &[]));
    assert_same_state(&out, &parts);
}

/// A pipe that nobody reads must not stop a run.
#[cfg(unix)]
#[test]
fn a_closed_output_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let mut command = std::process::Command::new("bash");
    command.args(["-c", "\"$@\" 2>&1 | true; exit ${PIPESTATUS[0]}", "bash"]);
    command
        .arg(env!("CARGO_BIN_EXE_vitfreeze"))
        .args(["pretrain", "--out"]);
    let status = command.arg(&out).args(SMALL).status().unwrap();
    assert!(status.success());
    assert_eq!(rows(&out).len(), 30);
}

/// `vitfreeze bench` of a tiny model.
fn bench(args: &[&str]) -> Output {
    let output = vitfreeze([
        "bench",
        "--model=vit-tiny",
        "--image-size=16",
        "--patch-size=4",
    ])
    .args(["--batch-size=2", "--steps=1"])
    .args(args)
    .output()
    .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    output
}

#[test]
fn bench_prints_json() {
    let output = bench(&["--frozen=0,12", "--profile", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json.get("cubic_saving").is_none(), "not all rows measured");
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for (row, frozen) in rows.iter().zip([0, 12]) {
        assert_eq!(row["frozen"], frozen);
        for key in [
            "images_per_second",
            "forward_s",
            "backward_s",
            "optimizer_s",
        ] {
            assert!(row[key].as_f64().unwrap() > 0.0, "{key}");
        }
        // The ops' times sum to the step's (and the looks at the clock), and their shares to 1.
        let ops = row["profile"].as_array().unwrap();
        let sum = |key: &str| -> f64 { ops.iter().map(|op| op[key].as_f64().unwrap()).sum() };
        let step = 2.0 / row["images_per_second"].as_f64().unwrap();
        assert!((sum("seconds") / step - 1.0).abs() < 0.1);
        assert!((sum("share") - 1.0).abs() < 1e-9);
        for name in ["matmul dW", "attention forward", "hog", "adamw"] {
            let op = ops.iter().find(|op| op["op"] == name);
            assert!(op.unwrap()["calls"].as_u64().unwrap() > 0, "{name}");
        }
    }
    assert_eq!(rows[0]["relative_time"], 1.0);
    assert_eq!(rows[0]["ideal_time"], 1.0);
    assert!(rows[1]["ideal_time"].as_f64().unwrap() < 0.5);
}

#[test]
fn bench_tells_what_a_schedule_saves_and_where_the_time_goes() {
    let output = bench(&["--frozen=all", "--profile"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let starting = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!(starting("matrix products "), 13);
    assert_eq!(starting("A cubic 0.8 schedule "), 1);
    assert_eq!(starting("Measured again after them, "), 1);
    assert_eq!(
        text.lines().filter(|l| l.ends_with("  matmul dW")).count(),
        13
    );
    assert!(fails(vitfreeze(["bench", "--frozen=3,1"]), 2).contains("ascending numbers"));
}

/// Of each policy: cut within an interval and at a freeze, the run ends with the same bits.
#[test]
fn a_policy_decides_and_resumes_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let no_schedule = |arg: &&&str| {
        let schedule = ["--freeze=", "--t0=", "--layer-lr=", "--warmup="];
        !schedule.iter().any(|key| arg.starts_with(key))
    };
    let small: Vec<&str> = SMALL.iter().filter(no_schedule).copied().collect();
    let start = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let mut command = vitfreeze(["pretrain", "--save-every=100", "--out"]);
        command.arg(&out).args(&small).args(more);
        (command, out)
    };
    // The one with several batches a step, whose mean it sees.
    let auto = [
        "--policy=autofreeze:interval=3,start=2",
        "--accum=2",
        "--epochs=5",
    ];
    let plasticity = [
        "--policy=plasticity:interval=2,window=2,patience=1,tolerance=0.95",
        "--epochs=3",
    ];
    for (name, args) in [("auto", &auto[..]), ("plasticity", &plasticity)] {
        let (command, straight) = start(name, args);
        let said = ok(command);
        assert!(said.contains("layers are frozen by "), "{said}");
        assert!(said.contains("froze patch_embed"), "{said}");
        let frozen = frozen_by_step(&straight);
        let froze = frozen.iter().position(|&n| n > 0).unwrap().to_string();
        let cut = [args, &["--max-steps=4"]].concat();
        let (command, parts) = start(&format!("{name}-cut"), &cut);
        ok(command);
        ok(resume(&parts, &["--max-steps", &froze]));
        ok(resume(&parts, &[]));
        assert_same_state(&straight, &parts);
    }
    let straight = dir.path().join("auto");
    let config = std::fs::read_to_string(straight.join("config.toml")).unwrap();
    assert!(
        config.contains("policy = \"autofreeze:interval=3,percentile=50,start=2\""),
        "{config}"
    );
    assert!(config.contains("freeze = \"none\""), "{config}");
    // Its file makes the same run, a flag may take its place; what contradicts it is refused.
    let mut again = vitfreeze(["pretrain", "--max-steps=1", "--config"]);
    again
        .arg(straight.join("config.toml"))
        .arg("--out")
        .arg(dir.path().join("again"));
    again.arg("--freeze=cubic");
    assert!(ok(again).contains("layers frozen from step on"));
    let line = fails(resume(&straight, &["--policy=autofreeze:interval=4"]), 2);
    assert!(
        line.contains("policy: ") && line.contains("interval=4"),
        "{line}"
    );
    let (both, _) = start("both", &["--policy=autofreeze", "--layer-lr=scaled"]);
    assert!(fails(both, 2).contains("layer-lr must be \"shared\""));
    let (both, _) = start("both", &["--policy=autofreeze", "--t0=0.5"]);
    let output = both_output(both);
    assert!(
        output.contains("--policy") && output.contains("--t0"),
        "{output}"
    );
    let file = dir.path().join("both.toml");
    std::fs::write(
        &file,
        "data = \"shapes\"\nfreeze = \"cubic\"\npolicy = \"plasticity\"\n",
    )
    .unwrap();
    let mut both = vitfreeze(["pretrain", "--config"]);
    both.arg(&file);
    assert!(fails(both, 2).contains("one of them decides"));
    let schedule = fails(vitfreeze(["schedule", "--policy=autofreeze"]), 2);
    assert!(schedule.contains("only after the run"), "{schedule}");
}

fn both_output(mut command: std::process::Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    text(&output)
}

fn frozen_by_step(dir: &std::path::Path) -> Vec<u64> {
    rows(dir)
        .iter()
        .map(|r| r["frozen"].as_u64().unwrap())
        .collect()
}
