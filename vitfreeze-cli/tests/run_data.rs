//! Commands that take a run's encoder or classifier take the run's data, too, unless told otherwise.
mod common;

use std::path::Path;

use common::*;

fn of_run(command: &str, checkpoint: &Path, out: &Path, more: &[&str]) -> std::process::Command {
    let mut command = vitfreeze([command, "--checkpoint"]);
    command.arg(checkpoint).arg("--out").arg(out).args(more);
    command
}

const SHORT: [&str; 4] = [
    "--epochs=1",
    "--warmup-epochs=0",
    "--batch-size=8",
    "--accum=1",
];

#[test]
fn the_next_commands_need_no_data() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let said = ok(pretrain(&at("p"), &["--max-steps=2"]));
    for next in [
        "vitfreeze knn --checkpoint",
        "vitfreeze linprobe --checkpoint",
        "vitfreeze finetune --checkpoint",
    ] {
        assert!(said.contains(next), "{said}");
    }
    let note = "note: the data of the checkpoint's run: --data shapes --samples 40";
    let said = ok(of_run("knn", &at("p"), &at("k"), &[]));
    assert!(
        said.contains(note) && said.contains("10 validation against 40 training"),
        "{said}"
    );
    // A file of the run, too; a flag goes before the run's.
    let file = at("p").join("encoder.safetensors");
    let said = ok(of_run("knn", &file, &at("k2"), &["--samples=80"]));
    assert!(said.contains("20 validation against 80 training"), "{said}");
    let said = ok(of_run("linprobe", &at("p"), &at("l"), &SHORT));
    assert!(said.contains(note), "{said}");
    let said = ok(of_run("finetune", &at("p"), &at("f"), &SHORT));
    assert!(said.contains(note), "{said}");
    let saved = std::fs::read_to_string(at("f").join("config.toml")).unwrap();
    assert!(
        saved.contains("data = \"shapes\"") && saved.contains("samples = 40"),
        "{saved}"
    );
    let said = ok(of_run("eval", &at("f"), &at("e"), &[]));
    assert!(said.contains(note) && said.contains("10 images"), "{said}");
}

#[test]
fn the_run_of_other_images_lends_its_folders() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    classes(&at("a/train"), &["dark", "grey", "light"], 6);
    classes(&at("b/val"), &["dark", "light"], 2);
    let mut command = vitfreeze([
        "finetune",
        "--model=vit-tiny",
        "--image-size=32",
        "--patch-size=8",
    ]);
    command.args(SHORT).arg("--out").arg(at("f"));
    command
        .arg("--data")
        .arg(at("a"))
        .arg("--val-data")
        .arg(at("b"));
    // Validation with a part of the classes is taken by name.
    let said = ok(command);
    assert!(said.contains("no images of 1 of the 3 classes"), "{said}");
    let said = ok(of_run("eval", &at("f"), &at("e"), &[]));
    assert!(
        said.contains("--val-data") && said.contains("4 images"),
        "{said}"
    );
    assert!(
        said.contains("only 2 of the checkpoint's 3 classes"),
        "{said}"
    );
    let said = ok(of_run("knn", &at("f"), &at("k"), &[]));
    assert!(said.contains("4 validation against 18 training"), "{said}");
    // The run's folder without its configuration lends nothing, nor does a damaged one.
    for text in [None, Some("data = "), Some("data = \"\"")] {
        let config = at("f").join("config.toml");
        match text {
            None => std::fs::remove_file(&config).unwrap(),
            Some(text) => std::fs::write(&config, text).unwrap(),
        }
        for command in ["eval", "knn", "linprobe"] {
            let error = fails(of_run(command, &at("f"), &at("none"), &[]), 2);
            assert!(error.contains("--data SRC is missing"), "{error}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_config_toml_that_is_no_file_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    ok(pretrain(&at("p"), &["--max-steps=1"]));
    let config = at("p").join("config.toml");
    std::fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink("gone", &config).unwrap();
    for command in ["knn", "linprobe", "finetune"] {
        let output = of_run(command, &at("p"), &at("out"), &[]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            error.contains("config.toml is no file or a broken link"),
            "{error}"
        );
    }
    let error = fails(resume(&at("p"), &[]), 2);
    assert!(error.contains("config.toml"), "{error}");
}
