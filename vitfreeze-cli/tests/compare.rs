//! compare on folders with results.
mod common;

use std::path::Path;

use common::{fails, ok, vitfreeze};

fn result(dir: &Path, kind: &str, top1: &str, seconds: f64, settings: &str) {
    std::fs::create_dir_all(dir).unwrap();
    let text = format!(
        r#"{{"kind":"{kind}","top1":{top1},"top5":null,"loss":0.5,"best_epoch":null,"images":10,
            "seconds":{seconds},"settings":{settings},"versions":{{}}}}"#
    );
    std::fs::write(dir.join("result.json"), text).unwrap();
}

#[test]
fn table_and_picture() {
    let folder = tempfile::tempdir().unwrap();
    let dir = |name: &str| folder.path().join(name);
    result(&dir("p"), "pretrain", "null", 100.0, "{}");
    let settings = format!(r#"{{"checkpoint":{:?}}}"#, dir("p"));
    result(&dir("f"), "finetune", "71.25", 50.0, &settings);
    let rows = r#"{"step":0,"frozen":0,"seconds":{"data":1.0,"total":10.0}}
{"step":0,"epoch":0,"top1":60.0,"top5":90.0,"loss":1.0,"images":10,"seconds":2.0}
{"step":1,"frozen":0,"seconds":{"data":1.0,"total":30.0}}
{"step":1,"epoch":1,"top1":71.25,"top5":90.0,"loss":1.0,"images":10,"seconds":2.0}
torn"#;
    std::fs::write(dir("f").join("metrics.jsonl"), rows).unwrap();
    std::fs::write(dir("p").join("metrics.jsonl"), "").unwrap();
    for name in ["a.png", "a.svg"] {
        let mut command = vitfreeze(["compare"]);
        command
            .args([dir("p"), dir("f")])
            .arg("--out")
            .arg(dir(name));
        let text = ok(command);
        let line = text.lines().find(|l| l.contains("finetune")).unwrap();
        // 50 s, and 150 s with its pretraining.
        for part in ["71.25", "0.5000", " 50 s", "2 min 30 s"] {
            assert!(line.contains(part), "{part}: {text}");
        }
        assert!(text.contains("1 unreadable line"), "{text}");
    }
    image::open(dir("a.png")).unwrap();
    let svg = std::fs::read_to_string(dir("a.svg")).unwrap();
    // By the run's name, not its whole path.
    assert!(svg.contains(">f: 71.25 %<"), "{svg}");
}

#[test]
fn damaged_runs_are_named_and_the_others_shown() {
    let folder = tempfile::tempdir().unwrap();
    let dir = |name: &str| folder.path().join(name);
    result(&dir("good"), "eval", "12.5", 1.0, "{}");
    std::fs::create_dir(dir("bad")).unwrap();
    std::fs::write(dir("bad/result.json"), "{\"kind\":").unwrap();
    let mut command = vitfreeze(["compare"]);
    command.args([dir("bad"), dir("good")]);
    let output = command.output().unwrap();
    let text = common::text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("12.50") && text.contains("bad/result.json is damaged"),
        "{text}"
    );
    // Other JSON, also a list of just the values.
    let values = r#"["eval", 1, 2, 3, null, 10, null, 1, {}, {}]"#;
    for other in [values, "[]", "null", "7", "{}", r#"{"kind":3}"#, ""] {
        std::fs::write(dir("bad/result.json"), other).unwrap();
        let mut command = vitfreeze(["compare"]);
        command.args([dir("bad"), dir("good")]);
        let output = command.output().unwrap();
        let text = common::text(&output);
        assert_eq!(output.status.code(), Some(1), "{other}: {text}");
        let damaged = text.contains("bad/result.json is damaged, or not of a run");
        assert!(text.contains("12.50") && damaged, "{other}: {text}");
    }
    // One that still runs, or was stopped.
    std::fs::remove_file(dir("bad/result.json")).unwrap();
    std::fs::write(dir("bad/checkpoint.safetensors"), "").unwrap();
    let mut command = vitfreeze(["compare"]);
    command.args([dir("bad"), dir("good")]);
    let output = command.output().unwrap();
    let text = common::text(&output);
    assert!(text.contains("has no result yet"), "{text}");
    let mut command = vitfreeze(["compare"]);
    command.arg(dir("good")).arg("--out=a.jpg");
    let error = fails(command, 2);
    assert!(error.contains(".png or .svg"), "{error}");
}
