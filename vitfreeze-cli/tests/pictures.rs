//! reconstruct, features and report: pictures of what a model does and what a run did.
mod common;

use std::path::Path;

use common::*;

/// A run of 30 steps, and one cut at its 20th, where the first stages are dropped.
#[test]
fn reconstructions_of_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let (run, out) = (dir.path().join("run"), dir.path().join("seen.svg"));
    ok(pretrain(&run, &["--max-steps=10"]));
    let draw = |more: &[&str]| {
        let mut command = vitfreeze(["reconstruct", "--images=2", "--checkpoint"]);
        command.arg(&run).arg("--out").arg(&out).args(more);
        let said = ok(command);
        (said, std::fs::read_to_string(&out).unwrap())
    };
    let (said, picture) = draw(&[]);
    for stage in 0..4 {
        assert!(said.contains(&format!("stage {stage}, block ")), "{said}");
    }
    assert!(said.contains("--data shapes --samples 40"), "{said}");
    assert!(picture.contains("seen: 25 %") && picture.contains("after 10 steps"));
    assert_eq!(picture.matches(">target<").count(), 4);
    // The same arguments, the same picture; another seed, another.
    assert_eq!(draw(&[]).1, picture);
    assert_ne!(draw(&["--seed=1"]).1, picture);
    assert!(draw(&["--mask-ratio=0.5"]).1.contains("seen: 50 %"));
    // Not trained to say so, it is far off, and the error is the loss: that of MSE of unit vectors in 9 bins.
    let error = said.lines().find(|l| l.starts_with("stage 0")).unwrap();
    let error: f64 = error.split_whitespace().last().unwrap().parse().unwrap();
    assert!(error > 0.0 && error < 1.0, "{error}");

    ok(resume(&run, &["--max-steps=25"]));
    let (said, picture) = draw(&[]);
    assert!(
        said.contains("stage 0, block 1 was dropped at epoch"),
        "{said}"
    );
    assert!(picture.matches(">target<").count() < 4);
    assert!(picture.contains("was dropped at epoch"));
    let (said, picture) = draw(&["--all-stages"]);
    assert_eq!(picture.matches(">target<").count(), 4);
    assert!(said.contains("drawn as it was then"), "{said}");
}

#[test]
fn reconstruct_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    ok(pretrain(&run, &["--max-steps=1"]));
    let of = |checkpoint: &Path, more: &[&str], code| {
        let mut command = vitfreeze(["reconstruct", "--checkpoint"]);
        command.arg(checkpoint).args(more);
        if !more.iter().any(|m| m.starts_with("--out")) {
            command.arg(format!("--out={}", dir.path().join("a.png").display()));
        }
        fails(command, code)
    };
    assert!(of(&run, &["--out=a.gif"], 2).contains(".png or .svg"));
    assert!(of(&run, &["--mask-ratio=1"], 2).contains("mask ratio 1"));
    assert!(of(&run, &["--images=0"], 2).contains("--images"));
    assert!(of(dir.path(), &[], 2).contains("checkpoint.safetensors"));
    let encoder = run.join("encoder.safetensors");
    std::fs::copy(run.join("checkpoint.safetensors"), &encoder).unwrap();
    let bytes = std::fs::read(&encoder).unwrap();
    std::fs::write(
        run.join("checkpoint.safetensors"),
        &bytes[..bytes.len() / 2],
    )
    .unwrap();
    assert!(of(&run, &[], 1).contains("checkpoint.safetensors is no checkpoint, or damaged"));
    assert!(!dir.path().join("a.png").exists());
}

/// Checkpoints of several families, with and without labels.
#[test]
fn features_of_any_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    classes(&images, &["cat", "dog", "<b>&"], 4);
    let run = dir.path().join("run");
    ok(pretrain(&run, &["--max-steps=1"]));
    let mut checkpoints = vec![run];
    checkpoints.extend(
        [
            "hf_dinov2",
            "timm_nonsquare",
            "timm_distilled",
            "timm_clip",
            "hf_dinov2_registers",
        ]
        .map(checkpoint),
    );
    for checkpoint in &checkpoints {
        for (name, more) in [
            ("a.svg", &[][..]),
            ("b.png", &["--foreground", "--map-images=5"]),
            ("c.svg", &["--map=tsne"]),
        ] {
            let mut command = vitfreeze(["features"]);
            command.arg(&images).arg("--checkpoint").arg(checkpoint);
            command.arg("--images=2").args(more);
            command.arg("--out").arg(dir.path().join(name));
            let said = ok(command);
            assert!(said.contains("three components hold"), "{said}");
        }
        let picture = std::fs::read_to_string(dir.path().join("a.svg")).unwrap();
        assert!(picture.contains(">head 0<") && picture.contains("12 images by the two"));
        assert!(picture.contains("&lt;b&gt;&amp;") && !picture.contains("<b>"));
        image::open(dir.path().join("b.png")).unwrap();
        let picture = std::fs::read_to_string(dir.path().join("c.svg")).unwrap();
        assert!(picture.contains("12 images by t-SNE"));
    }
    let mut command = vitfreeze(["features"]);
    command
        .arg(&images)
        .arg("--checkpoint")
        .arg(&checkpoints[0]);
    command.arg("--out=a.jpg");
    assert!(fails(command, 2).contains(".png or .svg"));
    let mut command = vitfreeze(["features", "--map=tsne", "--map-images=6000", "--out=a.png"]);
    command
        .arg(&images)
        .arg("--checkpoint")
        .arg(&checkpoints[0]);
    assert!(fails(command, 2).contains("at most 5000 with --map tsne"));
}

/// Each training leaves a page and pictures that are the same whether it was cut or not; where they cannot be written it ends
/// well all the same.
#[test]
fn a_training_leaves_its_report() {
    let dir = tempfile::tempdir().unwrap();
    let (straight, parts) = (dir.path().join("straight"), dir.path().join("parts"));
    let said = ok(pretrain(&straight, &[]));
    assert!(said.contains("report.html"), "{said}");
    ok(pretrain(&parts, &["--max-steps=7"]));
    ok(resume(&parts, &["--max-steps=10"]));
    ok(resume(&parts, &[]));
    assert_same_state(&straight, &parts);
    let seen = |run: &Path| {
        let entries = std::fs::read_dir(run.join("seen")).unwrap();
        let mut all: Vec<_> = entries
            .map(|e| e.unwrap().path())
            .map(|path| {
                (
                    path.file_name().unwrap().to_owned(),
                    std::fs::read(path).unwrap(),
                )
            })
            .collect();
        all.sort();
        all
    };
    assert_eq!(seen(&straight).len(), 7);
    assert!(seen(&straight) == seen(&parts));
    for run in [&straight, &parts] {
        let page = std::fs::read_to_string(run.join("report.html")).unwrap();
        assert!(page.contains("Predictions after epoch 6"));
    }

    // A classifier's has the confusion matrix of its best evaluation.
    let probe = dir.path().join("probe");
    let mut command = vitfreeze(["linprobe", "--cached", "--epochs=3", "--warmup-epochs=1"]);
    command.args([
        "--data=shapes",
        "--samples=40",
        "--batch-size=8",
        "--accum=1",
    ]);
    command
        .arg("--checkpoint")
        .arg(&straight)
        .arg("--out")
        .arg(&probe);
    ok(command);
    image::open(probe.join("confusion.png")).unwrap();
    let page = std::fs::read_to_string(probe.join("report.html")).unwrap();
    assert!(page.contains("Confusion matrix of probe"));

    let hindered = dir.path().join("hindered");
    ok(pretrain(&hindered, &["--max-steps=4"]));
    std::fs::write(hindered.join("seen"), "").unwrap();
    let page = hindered.join("report.html");
    std::fs::remove_file(&page).unwrap();
    std::fs::create_dir(&page).unwrap();
    let said = ok(resume(&hindered, &["--max-steps=10"]));
    assert!(said.contains("note: there is no report.html"), "{said}");
    assert!(
        said.contains("note: the model's predictions are not drawn"),
        "{said}"
    );
}

/// Without a terminal: how a run stands, in lines.
#[test]
fn a_run_is_watched() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let said = ok(pretrain(&run, &["--max-steps=20", "--watch"]));
    assert!(said.contains("--watch draws on a terminal"), "{said}");
    let said = ok(vitfreeze(["watch".as_ref(), run.as_os_str()]));
    for part in [
        "run: ended before its end",
        "step 20/30  epoch 4/6",
        "phases",
        "/13 ",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let before = std::fs::read_dir(&run).unwrap().count();
    std::fs::remove_file(run.join("checkpoint.safetensors")).unwrap();
    let said = ok(vitfreeze(["watch".as_ref(), run.as_os_str()]));
    assert!(
        said.contains("no readable checkpoint.safetensors"),
        "{said}"
    );
    assert_eq!(std::fs::read_dir(&run).unwrap().count() + 1, before);
    let watch = |path: &Path| vitfreeze(["watch".as_ref(), path.as_os_str()]);
    assert!(fails(watch(dir.path()), 1).contains("holds no run"));
    assert!(fails(watch(&dir.path().join("no")), 1).contains("there is no such folder"));
}

/// The page loads nothing, and a damaged run is named.
#[test]
fn a_report_is_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("a<b>&c");
    ok(pretrain(&run, &["--max-steps=25"]));
    let (page, chart) = (dir.path().join("r.html"), dir.path().join("r.png"));
    let report = |runs: &[&Path], out: &Path| {
        let mut command = vitfreeze(["report"]);
        command.args(runs).arg("--out").arg(out);
        command
    };
    ok(report(&[&run], &page));
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("a&lt;b&gt;&amp;c") && !text.contains("a<b>"));
    // Nothing is fetched: the only address is the name of SVG's namespace.
    let addresses = text.matches("://").count();
    assert_eq!(
        addresses,
        text.matches("xmlns=\"http://www.w3.org/2000/svg\"").count()
    );
    assert!(!text.contains("<script"));
    for part in [
        "What it predicted",
        "Predictions after epoch 5",
        "peak memory",
        "The same as numbers",
        "To run it again",
        "vitfreeze pretrain --config",
        "seconds per step",
        "ideal, counted",
        "stage 0: ",
        "stage 3: ",
        "layer 12",
        "forward ",
        "<td>25</td>",
    ] {
        assert!(text.contains(part), "{part}");
    }
    ok(report(&[&run], &chart));
    image::open(&chart).unwrap();

    // A torn line is counted; a folder without a run is an error beside the others, and of its own.
    let metrics = run.join("metrics.jsonl");
    let mut lines = std::fs::read_to_string(&metrics).unwrap();
    lines.push_str("{\"step\":25,\"lo");
    std::fs::write(&metrics, lines).unwrap();
    let nothing = dir.path().join("nothing");
    std::fs::create_dir(&nothing).unwrap();
    let line = fails(report(&[&run, &nothing], &page), 1);
    assert!(line.contains("nothing holds no run"), "{line}");
    let said = ok(report(&[&run, &run], &page));
    assert!(said.contains("1 unreadable line"), "{said}");
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("Side by side") && text.contains("loss of the last stage"));
    assert!(text.contains("1 unreadable line in metrics.jsonl left out"));
    std::fs::remove_file(run.join("checkpoint.safetensors")).unwrap();
    std::fs::write(run.join("metrics.jsonl"), "").unwrap();
    std::fs::write(run.join("seen/epoch-00005.png"), "no picture").unwrap();
    let said = ok(report(&[&run], &page));
    for lack in ["no step in metrics.jsonl", "no checkpoint.safetensors"] {
        assert_eq!(said.matches(lack).count(), 1, "{said}");
        assert!(std::fs::read_to_string(&page).unwrap().contains(lack));
    }
    std::fs::write(run.join("result.json"), "{\"kind\":").unwrap();
    let mut command = report(&[&run], &page);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(common::text(&output).contains("result.json is damaged"));
    assert!(fails(report(&[&run, &run], &chart), 2).contains("a picture is of one run"));
    assert!(fails(report(&[&run], Path::new("r.pdf")), 2).contains("(or .html)"));
}
