//! Limits of the system, signals, and a run's folder that goes away: one line and an exit code, nothing lost.
#![cfg(target_os = "linux")]
mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::*;

/// `command` under `ulimit -FLAG KIB`.
fn limited(flag: &str, kib: u64, command: &Command) -> Command {
    let mut shell = Command::new("bash");
    let script = format!("ulimit -{flag} {kib} && exec \"$0\" \"$@\"");
    shell
        .args(["-c", &script])
        .arg(command.get_program())
        .args(command.get_args());
    shell
}

#[test]
fn what_does_not_fit_into_memory_is_refused_with_what_would() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let large = "--image-size=224 --samples=9000 --accum=1 --model=vit-base";
    for (command, batch, want) in [
        (
            "bench --frozen=0 --model=vit-base",
            500,
            "for gradients and moments",
        ),
        ("pretrain --patch-size=16", 500, "for weights"),
        (
            "finetune --data=shapes --patch-size=16",
            2000,
            "for the batch",
        ),
    ] {
        let mut words: Vec<&str> = command.split(' ').collect();
        let batch = format!("--batch-size={batch}");
        words.push(&batch);
        if words[0] != "bench" {
            words.extend(large.split(' '));
            words.extend(["--out", out.to_str().unwrap()]);
        }
        let line = fails(limited("v", 4_000_000, &vitfreeze(&words)), 2);
        assert!(line.contains(want) && line.contains("ulimit -v"), "{line}");
        assert!(line.contains("a batch size of about"), "{line}");
        assert!(!out.exists());
        let line = fails(limited("v", 1_600_000, &vitfreeze(&words)), 2);
        assert!(line.contains("no batch fits"), "{line}");
    }
    // Inference asks as well.
    let data = dir.path().join("data");
    classes(&data, &["a", "b"], 8);
    let encoder = checkpoint("timm_distilled");
    let mut embed = vitfreeze(["embed", "--image-size=2048", "--batch-size=4096"]);
    embed
        .arg("--checkpoint")
        .arg(encoder)
        .arg("--data")
        .arg(&data)
        .arg("--out")
        .arg(&out);
    let line = fails(limited("v", 4_000_000, &embed), 2);
    assert!(line.contains("GiB are free (ulimit -v)"), "{line}");
}

/// SIGXFSZ would kill.
#[test]
fn a_limit_of_file_sizes_is_an_error_and_the_last_checkpoint_stays() {
    let dir = tempfile::tempdir().unwrap();
    let [straight, out] = ["straight", "out"].map(|name| dir.path().join(name));
    let line = fails(limited("f", 100, &pretrain(&out, &[])), 1);
    assert!(line.contains("File too large"), "{line}");
    assert!(!out.exists(), "nothing was trained, nothing is left");
    ok(pretrain(&straight, &[]));
    ok(pretrain(&out, &["--max-steps=4"]));
    let line = fails(limited("f", 100, &resume(&out, &[])), 1);
    assert!(
        line.contains("the checkpoint of step 4 is untouched"),
        "{line}"
    );
    ok(resume(&out, &[]));
    assert_same_state(&straight, &out);
}

#[test]
fn a_folder_that_goes_away_is_not_called_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut command = pretrain(&out, &["--save-every=2", "--epochs=2000"]);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_steps(&out);
    std::fs::remove_dir_all(&out).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("checkpoint is gone too"), "{said}");
    assert!(!said.contains("untouched"), "{said}");
}

/// A device, a pipe: whatever is there and is no file stays what it is.
#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_written_over() {
    use std::os::unix::fs::FileTypeExt;
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe.png");
    assert!(Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap()
        .success());
    let path = pipe.to_str().unwrap();
    let encoder = checkpoint("timm_distilled");
    let encoder = encoder.to_str().unwrap();
    let data = dir.path().join("data");
    classes(&data.join("val"), &["ant", "bee"], 2);
    let data = data.to_str().unwrap();
    let embed = [
        "embed",
        "--checkpoint",
        encoder,
        "--data",
        "shapes",
        "--out",
    ];
    let eval = [
        "eval",
        "--checkpoint",
        encoder,
        "--data",
        data,
        "--predictions",
    ];
    for (command, code) in [
        (&["schedule", "--plot"][..], 1),
        (&["data", "preview", "shapes", "--out"], 1),
        (&["data", "cache", "shapes", "--out"], 2),
        (&embed, 1),
        (&eval, 2),
    ] {
        let mut program = vitfreeze(command);
        program.arg(path);
        let line = fails(program, code);
        assert!(line.contains("pipe.png"), "{line}");
        assert!(
            std::fs::metadata(&pipe).unwrap().file_type().is_fifo(),
            "{line}"
        );
    }
}

/// A pipe instead of the metrics would be waited for.
#[cfg(unix)]
#[test]
fn a_pipe_as_metrics_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    ok(pretrain(&out, &["--max-steps=1"]));
    let metrics = out.join("metrics.jsonl");
    std::fs::remove_file(&metrics).unwrap();
    assert!(Command::new("mkfifo")
        .arg(&metrics)
        .status()
        .unwrap()
        .success());
    let line = fails(resume(&out, &[]), 1);
    assert!(line.contains("metrics.jsonl"), "{line}");
    assert!(line.contains("not a regular file"), "{line}");
}

/// `nohup`, and a script's `command &`: what they had the program ignore does not stop it.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_that_was_ignored_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    for signal in ["HUP", "INT", "TERM"] {
        let out = dir.path().join(signal);
        let run = pretrain(
            &out,
            &["--save-every=100000", "--max-steps=60", "--epochs=12"],
        );
        let mut command = Command::new("sh");
        let script = format!("trap '' {signal}; exec \"$@\"");
        command.args(["-c", &script, "sh"]).arg(run.get_program());
        command.args(run.get_args());
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for_steps(&out);
        let kill = Command::new("kill")
            .args([&format!("-{signal}"), &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{signal}: {}", text(&output));
        assert_eq!(rows(&out).len(), 60, "{signal}");
    }
}

/// As shells say it: 128 + the signal.
#[test]
fn each_signal_has_its_exit_code_and_all_save() {
    let dir = tempfile::tempdir().unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        // Where whoever runs the tests has them ignore one, the program ignores it too.
        if ignored.unwrap_or(0) >> (code - 129) & 1 == 1 {
            continue;
        }
        let out = dir.path().join(signal);
        let mut command = pretrain(&out, &["--save-every=100000", "--epochs=2000"]);
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for_steps(&out);
        let id = child.id().to_string();
        assert!(Command::new("kill")
            .args([signal, &id])
            .status()
            .unwrap()
            .success());
        let output = child.wait_with_output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{signal}: {said}");
        assert!(said.contains("saved after step"), "{signal}: {said}");
    }
}

fn wait_for_steps(out: &Path) {
    while std::fs::metadata(out.join("metrics.jsonl")).map_or(0, |m| m.len()) == 0 {
        sleep(Duration::from_millis(5));
    }
}

/// What is printed to be typed can be typed.
#[test]
fn a_folder_that_looks_like_a_flag_can_be_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    for (name, shown) in [("-dash", "./-dash"), ("--out", "./--out"), ("a b", "'a b'")] {
        let mut command = vitfreeze(["pretrain", &format!("--out={name}"), "--max-steps=1"]);
        command.args(SMALL).current_dir(&dir);
        let said = ok(command);
        let hint = format!("vitfreeze pretrain --resume {shown}");
        assert!(said.contains(&hint), "{said}");
        let mut shell = Command::new("bash");
        let typed = format!("\"$0\" pretrain --resume {shown} --max-steps 2");
        shell
            .args(["-c", &typed, env!("CARGO_BIN_EXE_vitfreeze")])
            .current_dir(&dir);
        ok(shell);
    }
}

/// Sparse files of 100 GB: nothing is read that does not fit.
#[test]
fn files_larger_than_the_memory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    ok(pretrain(&run, &["--max-steps=2"]));
    let large = |path: &Path| {
        let file = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        file.unwrap().set_len(100_000_000_000).unwrap();
    };
    let config = dir.path().join("large.toml");
    large(&config);
    let mut command = pretrain(&dir.path().join("new"), &[]);
    command.arg("--config").arg(&config);
    let line = fails(command, 2);
    assert!(
        line.contains("large.toml") && line.contains("memory"),
        "{line}"
    );
    for name in ["metrics.jsonl", "checkpoint.safetensors", "config.toml"] {
        let path = run.join(name);
        let whole = std::fs::read(&path).unwrap();
        large(&path);
        let output = resume(&run, &[]).output().unwrap();
        let said = text(&output);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{said}");
        assert!(said.contains(name) && said.contains("memory"), "{said}");
        std::fs::write(&path, whole).unwrap();
    }
    ok(resume(&run, &[]));
}

/// Help is what a user asked for: where it cannot be written, that is told; that nobody reads on is no error.
#[test]
fn help_that_cannot_be_written_is_an_error() {
    for args in [
        &["--help"][..],
        &["--version"],
        &["-h"],
        &["help", "pretrain"],
        &["schedule", "--help"],
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let mut command = vitfreeze(args);
        let output = command.stdout(full.unwrap()).output().unwrap();
        let error = text(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert!(error.starts_with("error: ") && error.lines().count() == 1);
        let (closed, pipe) = std::io::pipe().unwrap();
        drop(closed);
        let output = vitfreeze(args).stdout(pipe).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_eq!(vitfreeze(args).output().unwrap().status.code(), Some(0));
    }
    // What is wrong with the arguments goes to the other stream, and keeps its exit code.
    for args in [&[][..], &["nonsense"], &["pretrain", "--nonsense"]] {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let output = vitfreeze(args).stderr(full.unwrap()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}
