//! eval of a tiny classifier on a folder of images.
mod common;

use std::path::Path;

use common::{checkpoint, classes, fails, ok, vitfreeze};

/// Those of the fixture hf_deit.
const NAMES: [&str; 5] = ["ant", "bee", "cat", "dog", "elk"];

fn eval(data: &Path, out: &Path, more: &[&str]) -> std::process::Command {
    let mut command = vitfreeze(["eval", "--checkpoint"]);
    command.arg(checkpoint("hf_deit"));
    command.arg("--data").arg(data).arg("--out").arg(out);
    command.args(more);
    command
}

#[test]
fn the_files_agree_with_each_other_and_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    classes(&data.join("val"), &NAMES, 3);
    std::fs::write(data.join("val/bee/7.png"), b"no image").unwrap();
    let before = std::fs::read(checkpoint("hf_deit").join("model.safetensors")).unwrap();
    let outs = ["1", "2"].map(|threads| {
        let out = folder.path().join(threads);
        let table = folder.path().join(format!("{threads}.csv"));
        let mut command = eval(&data, &out, &["--threads", threads, "--batch-size=4"]);
        command.arg("--predictions").arg(&table);
        let text = ok(command);
        assert!(text.contains("1 image(s) left out"), "{text}");
        let mut files = vec![std::fs::read_to_string(table).unwrap()];
        for name in ["per_class.csv", "confusion.csv"] {
            files.push(std::fs::read_to_string(out.join(name)).unwrap());
        }
        let picture = image::open(out.join("confusion.png")).unwrap();
        assert!(picture.width() > 300);
        (out, files)
    });
    assert_eq!(outs[0].1, outs[1].1);
    // Evaluation changes nothing.
    let after = std::fs::read(checkpoint("hf_deit").join("model.safetensors")).unwrap();
    assert!(before == after);

    let (out, files) = &outs[0];
    let result: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("result.json")).unwrap()).unwrap();
    assert_eq!(result["images"], 15);
    assert_eq!(result["top5"], 100.0);
    let lines: Vec<Vec<&str>> = files[0].lines().map(|l| l.split(',').collect()).collect();
    assert_eq!(lines.len(), 16);
    let right = lines[1..].iter().filter(|l| l[1] == l[2]).count();
    assert!((result["top1"].as_f64().unwrap() - 100.0 * right as f64 / 15.0).abs() < 1e-9);
    let diagonal: usize = files[2]
        .lines()
        .skip(1)
        .enumerate()
        .map(|(i, line)| {
            line.split(',')
                .nth(i + 1)
                .unwrap()
                .parse::<usize>()
                .unwrap()
        })
        .sum();
    assert_eq!(diagonal, right);
    // The loss is the mean of -ln of the label's probability; all five are in each line.
    let loss = lines[1..].iter().map(|line| {
        let place = (2..12).step_by(2).find(|&i| line[i] == line[1]).unwrap();
        -line[place + 1].parse::<f64>().unwrap().ln()
    });
    let loss = loss.sum::<f64>() / 15.0;
    assert!((result["loss"].as_f64().unwrap() - loss).abs() < 1e-4);
    assert!(files[1].contains("bee,3,"), "{}", files[1]);
}

#[test]
fn mistakes_are_told_before_anything_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    classes(&data.join("val"), &["ant", "bee"], 2);
    let error = fails(eval(&data, &out, &[]), 2);
    assert!(error.contains("5 classes, the data 2"), "{error}");
    let error = fails(eval(&data, &out, &["--split=train"]), 2);
    assert!(error.contains("no split 'train'"), "{error}");
    let shapes = eval(Path::new("shapes"), &out, &["--split=foo"]);
    let error = fails(shapes, 2);
    assert!(error.contains("shapes: no split 'foo'"), "{error}");
    let mut headless = vitfreeze(["eval", "--checkpoint"]);
    headless.arg(checkpoint("hf_dinov2_swiglu"));
    headless.arg("--data").arg(&data);
    let error = fails(headless, 2);
    assert!(error.contains("no head"), "{error}");
    let mut missing = eval(&data, &out, &[]);
    missing.arg("--predictions=nowhere/p.csv");
    fails(missing, 2);
    assert!(!out.exists());
}

#[test]
fn predictions_may_lie_in_the_folder_and_a_failure_leaves_none() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    classes(&data.join("val"), &NAMES, 2);
    let predictions = |path: &Path| {
        let mut command = eval(&data, &out, &[]);
        command.arg("--predictions").arg(path);
        command
    };
    let error = fails(predictions(folder.path()), 2);
    assert!(error.contains("is a folder"), "{error}");
    assert!(!out.exists());
    ok(predictions(&out.join("p.csv")));
    assert!(out.join("p.csv").exists() && out.join("result.json").exists());
}

/// What nobody could read is still in the files.
#[cfg(target_os = "linux")]
#[test]
fn a_full_stdout_loses_no_result() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    classes(&data.join("val"), &NAMES, 2);
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut command = eval(&data, &out, &[]);
    let output = command.stdout(full.unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(out.join("result.json").exists() && out.join("confusion.png").exists());
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing_behind() {
    use std::time::Duration;
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    classes(&data.join("val"), &NAMES, 200);
    let mut command = eval(&data, &out, &["--batch-size=1", "--threads=1"]);
    command
        .arg("--predictions")
        .arg(folder.path().join("p.csv"));
    let mut child = command.spawn().unwrap();
    // The table is made once signals are listened to.
    let listing = || std::fs::read_dir(folder.path()).unwrap().count();
    while listing() < 3 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let id = child.id().to_string();
    let kill = std::process::Command::new("kill")
        .args(["-INT", &id])
        .status();
    assert!(kill.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(listing(), 1, "only the data is left");
}
