//! `--dtype bf16`: says what multiplies, trains, resumes exactly, and where there is no unit computes in f32.
mod common;

use std::process::Command;

use common::*;

/// With this machine's unit, or emulated.
fn any(mut command: Command) -> Command {
    command.env("VITFREEZE_BF16", "any");
    command
}

fn none(mut command: Command) -> Command {
    command.env("VITFREEZE_BF16", "none");
    command
}

#[test]
fn a_run_in_bf16_resumes_exactly_with_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    let flags = ["--dtype=bf16", "--save-every=100"];
    let said = ok(any(pretrain(&path("straight"), &flags)));
    let unit = said.lines().find(|line| line.starts_with("bf16: "));
    let units = ["bf16: AMX", "bf16: AVX-512-BF16", "bf16: emulated"];
    assert!(unit.is_some_and(|line| units.contains(&line)), "{said}");
    let stopped = [&flags[..], &["--max-steps=7", "--threads=1"]].concat();
    ok(any(pretrain(&path("parts"), &stopped)));
    ok(any(resume(
        &path("parts"),
        &["--max-steps=17", "--threads=3"],
    )));
    ok(any(resume(&path("parts"), &[])));
    assert_same_state(&path("straight"), &path("parts"));

    // Close to f32, and not the same.
    ok(pretrain(&path("f32"), &["--save-every=100"]));
    let (bf16, f32) = (rows(&path("straight")), rows(&path("f32")));
    let loss = |row: &serde_json::Value| row["loss"].as_f64().unwrap();
    assert!(bf16.iter().zip(&f32).any(|(a, b)| loss(a) != loss(b)));
    for (a, b) in bf16.iter().zip(&f32) {
        let error = (loss(a) - loss(b)).abs() / loss(b);
        assert!(
            error < 0.01,
            "step {}: {} and {}",
            a["step"],
            loss(a),
            loss(b)
        );
    }

    // The type belongs to the run.
    let said = fails(resume(&path("parts"), &["--dtype=f32"]), 2);
    assert!(said.contains("dtype: \"bf16\" -> \"f32\""), "{said}");
}

#[test]
fn nonsense_in_a_debugging_variable_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    for (name, value, want) in [
        (
            "VITFREEZE_BF16",
            "nonsense",
            "VITFREEZE_BF16: 'nonsense' is none of",
        ),
        (
            "VITFREEZE_PLAIN_OPS",
            "yes",
            "VITFREEZE_PLAIN_OPS is 'yes', it must be 0 or 1",
        ),
    ] {
        let mut run = pretrain(&dir.path().join("run"), &[]);
        run.env(name, value);
        let said = fails(run, 2);
        assert!(said.contains(want), "{said}");
        assert!(!dir.path().join("run").exists());
    }
}

#[test]
fn without_a_unit_it_says_so_and_computes_in_f32() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    let few = ["--save-every=100", "--max-steps=6"];
    let said = ok(none(pretrain(
        &path("bf16"),
        &[&few[..], &["--dtype=bf16"]].concat(),
    )));
    assert!(
        said.contains("bf16: not available here, using f32"),
        "{said}"
    );
    ok(pretrain(&path("f32"), &few));
    let losses = |name| -> Vec<f64> {
        let loss = |row: &serde_json::Value| row["loss"].as_f64().unwrap();
        rows(&path(name)).iter().map(loss).collect()
    };
    assert_eq!(losses("bf16"), losses("f32"));
}

#[test]
fn other_types_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let said = fails(pretrain(&dir.path().join("run"), &["--dtype=f16"]), 2);
    assert!(said.contains("'f16' for '--dtype"), "{said}");
    assert!(!dir.path().join("run").exists());
}

/// Every command that takes the flag computes something else with it, and nothing much else.
#[test]
fn every_command_heeds_it() {
    let dir = tempfile::tempdir().unwrap();
    let (data, names) = (dir.path().join("data"), ["ant", "bee", "cat", "dog", "elk"]);
    for split in ["train", "val"] {
        classes(&data.join(split), &names, 4);
    }
    let result = |out: &std::path::Path, key: &str| -> f64 {
        let text = std::fs::read_to_string(out.join("result.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json[key].as_f64().unwrap()
    };
    let training = [
        "--batch-size=8",
        "--accum=1",
        "--epochs=2",
        "--warmup-epochs=1",
    ];
    for (command, model, more) in [
        ("finetune", "hf_deit", &training[..]),
        ("linprobe", "hf_deit", &training[..]),
        ("eval", "hf_deit", &[]),
    ] {
        let loss = ["f32", "bf16"].map(|dtype| {
            let out = dir.path().join(format!("{command}-{dtype}"));
            let mut run = vitfreeze([command, "--dtype", dtype, "--checkpoint"]);
            run.arg(checkpoint(model)).arg("--data").arg(&data);
            ok(any({
                run.args(more).arg("--out").arg(&out);
                run
            }));
            result(&out, "loss")
        });
        assert!(loss[0] != loss[1], "{command}: {loss:?}");
        assert!(
            (loss[0] - loss[1]).abs() < 0.05 * loss[0],
            "{command}: {loss:?}"
        );
    }
    let features = ["f32", "bf16"].map(|dtype| {
        let out = dir.path().join(format!("{dtype}.safetensors"));
        let mut run = vitfreeze(["embed", "--dtype", dtype, "--checkpoint"]);
        run.arg(checkpoint("hf_deit")).arg("--data").arg(&data);
        run.arg("--out").arg(&out);
        ok(any(run));
        tensors(&out)
    });
    assert!(features[0] != features[1], "embed");
    let mut run = vitfreeze(["knn", "--dtype=bf16", "--checkpoint"]);
    run.arg(checkpoint("hf_deit")).arg("--data").arg(&data);
    run.arg("--out").arg(dir.path().join("knn"));
    assert!(ok(any(run)).contains("bf16: "));
    let small = [
        "--model=vit-tiny",
        "--image-size=32",
        "--patch-size=8",
        "--batch-size=2",
        "--steps=1",
        "--frozen=0",
        "--json",
    ];
    for (unit, want) in [("emulated", Some("emulated")), ("none", None)] {
        let mut run = vitfreeze(["bench", "--dtype=bf16"]);
        let output = run
            .args(small)
            .env("VITFREEZE_BF16", unit)
            .output()
            .unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["unit"].as_str(), want);
    }
}
