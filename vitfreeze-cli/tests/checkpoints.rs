//! inspect, convert, embed and classify on the tiny checkpoints of vit/tests.
mod common;

use std::path::{Path, PathBuf};

use common::{classes, fails, ok, pretrain, resume, tensors, vitfreeze};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../vit/tests/fixtures/checkpoints")
        .join(name)
}

fn run(args: &[&dyn AsRef<std::ffi::OsStr>]) -> std::process::Command {
    vitfreeze(args.iter().map(|a| a.as_ref()))
}

#[test]
fn inspect_tells_what_it_is() {
    let text = ok(run(&[&"inspect", &fixture("mae.pth"), &"--heads=3"]));
    for part in ["MAE", "width 24, 2 blocks, 3 heads", "not loaded", "norm "] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let error = fails(run(&[&"inspect", &fixture("mae.pth")]), 2);
    assert!(error.contains("--heads"), "{error}");
    let error = fails(run(&[&"inspect", &"nowhere.pth"]), 2);
    assert!(error.contains("nowhere.pth"), "{error}");
    fails(run(&[&"inspect", &fixture("../../make_fixtures.py")]), 1);
}

#[test]
fn convert_writes_a_checkpoint_that_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let source = fixture("timm_registers");
    ok(run(&[
        &"convert",
        &source,
        &out,
        &"--to=hf",
        &"--dtype=bf16",
    ]));
    let text = ok(run(&[&"inspect", &out]));
    assert!(
        text.contains("Hugging Face DINOv2") && text.contains("3 registers"),
        "{text}"
    );
    // Nothing is written over.
    let error = fails(run(&[&"convert", &source, &out, &"--to=timm"]), 2);
    assert!(error.contains("is there already"), "{error}");
    let kept = folder.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(kept.join("preprocessor_config.json"), "mine").unwrap();
    let error = fails(run(&[&"convert", &source, &kept, &"--to=hf"]), 2);
    assert!(error.contains("is there already"), "{error}");
    let other = folder.path().join("other");
    let error = fails(
        run(&[&"convert", &fixture("timm_clip"), &other, &"--to=hf"]),
        2,
    );
    assert!(
        error.contains("cannot be saved") && !other.exists(),
        "{error}"
    );
}

#[test]
fn embed_and_classify() {
    let folder = tempfile::tempdir().unwrap();
    for (class, level) in [("dark", 20u8), ("light", 230)] {
        let dir = folder.path().join("data").join(class);
        std::fs::create_dir_all(&dir).unwrap();
        for i in 0..3u8 {
            let pixels = image::RgbImage::from_pixel(40, 50, image::Rgb([level, level + i, 9]));
            pixels.save(dir.join(format!("{i}.png"))).unwrap();
        }
    }
    let (data, out) = (
        folder.path().join("data"),
        folder.path().join("f.safetensors"),
    );
    let checkpoint = fixture("hf_deit");
    let embed = [
        &"embed" as &dyn AsRef<std::ffi::OsStr>,
        &"--checkpoint",
        &checkpoint,
        &"--data",
        &data,
        &"--out",
        &out,
        &"--batch-size=4",
    ];
    ok(run(&embed));
    let bytes = std::fs::read(&out).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("features").unwrap().shape(), [6, 24]);
    assert_eq!(file.tensor("labels").unwrap().shape(), [6]);
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let about = &metadata.metadata().as_ref().unwrap()["vitfreeze"];
    assert!(about.contains("0.png") && about.contains("dark"), "{about}");

    let image = data.join("dark/0.png");
    let text = ok(run(&[&"classify", &"--checkpoint", &checkpoint, &image]));
    for name in ["ant", "bee", "cat", "dog", "elk", " %"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    let text = fails(
        run(&[&"classify", &"--checkpoint", &checkpoint, &"no.jpg"]),
        1,
    );
    assert!(text.contains("no.jpg"), "{text}");
    let features = fixture("hf_dinov2_swiglu");
    let text = fails(run(&[&"classify", &"--checkpoint", &features, &image]), 2);
    assert!(text.contains("no head"), "{text}");
}

/// The features of `data`, and what was said.
fn features(checkpoint: &Path, data: &Path, out: &Path) -> (Vec<(String, Vec<u8>)>, String) {
    let text = ok(run(&[
        &"embed",
        &"--heads=3",
        &"--threads=1",
        &"--checkpoint",
        &checkpoint,
        &"--data",
        &data,
        &"--out",
        &out,
    ]));
    (tensors(out), text)
}

/// What is converted gives the same features, to the bit: small images whole, larger ones cropped; and a folder of ours
/// says how its images are prepared.
#[test]
fn convert_keeps_how_images_are_prepared() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    classes(&at("data"), &["dark", "light"], 2);
    let bare = at("bare.safetensors");
    std::fs::copy(fixture("timm_deit3").join("model.safetensors"), &bare).unwrap();
    let run_folder = at("run");
    ok(pretrain(&run_folder, &["--max-steps=1"]));
    let large = at("large.safetensors");
    // The same tensors for images of 80 px: above what is judged whole.
    let to = at("large");
    ok(run(&[
        &"convert",
        &bare,
        &to,
        &"--to=timm",
        &"--heads=3",
        &"--image-size=80",
    ]));
    std::fs::copy(to.join("model.safetensors"), &large).unwrap();
    for (number, (source, ours)) in [(bare, false), (large, false), (run_folder, true)]
        .into_iter()
        .enumerate()
    {
        let (want, said) = features(&source, &at("data"), &at("want.safetensors"));
        assert_eq!(said.contains("no file says how images"), !ours, "{said}");
        assert!(
            !ours || !said.contains("no file gives the pooling"),
            "{said}"
        );
        for layout in ["timm", "hf"] {
            let out = at(&format!("{number}-{layout}"));
            ok(run(&[
                &"convert",
                &source,
                &out,
                &format!("--to={layout}"),
                &"--drop-head",
                &"--heads=3",
            ]));
            let (got, said) = features(&out, &at("data"), &at("got.safetensors"));
            assert!(!said.contains("no file says how images"), "{said}");
            assert!(got == want, "{source:?} by {layout}");
        }
    }
}

/// A copy of a fixture with these bytes in a file.
fn changed(name: &str, to: &Path, file: &str, json: &str) {
    std::fs::create_dir_all(to).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(name).join(file), to.join(file)).unwrap();
    }
    std::fs::write(to.join(file), json).unwrap();
}

/// Notes and warnings of a command that succeeds.
fn said_of(args: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let output = run(args).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn a_size_that_is_not_the_models_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    classes(&at("data"), &["dark", "light"], 1);
    let timm = std::fs::read_to_string(fixture("timm_registers").join("config.json")).unwrap();
    let mut timm: serde_json::Value = serde_json::from_str(&timm).unwrap();
    timm["pretrained_cfg"]["input_size"] = serde_json::json!([3, 64, 48]);
    let images = "preprocessor_config.json";
    for (number, (fixture, file, json, size)) in [
        (
            "hf_deit",
            images,
            r#"{"size": 48, "image_processor_type": "ViTImageProcessor"}"#.to_owned(),
            "48 x 48",
        ),
        (
            "hf_deit",
            images,
            r#"{"image_processor_type": "BitImageProcessor", "size": 80, "crop_size": 40}"#.into(),
            "40 x 40",
        ),
        ("hf_deit", images, "{}".into(), "224 x 224"),
        ("timm_registers", "config.json", timm.to_string(), "64 x 48"),
        (
            "hf_deit",
            images,
            r#"{"size": 32, "crop_size": 32}"#.into(),
            "",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let source = at(&format!("source-{number}"));
        changed(fixture, &source, file, &json);
        let asked = format!("--image-size={}", size.replace(' ', ""));
        let out = at(&format!("out-{number}"));
        let convert: [&dyn AsRef<std::ffi::OsStr>; 4] = [&"convert", &source, &out, &"--to=hf"];
        let features = at(&format!("f-{number}"));
        let (data, checkpoint) = (at("data"), &source);
        let embed: [&dyn AsRef<std::ffi::OsStr>; 7] = [
            &"embed",
            &"--checkpoint",
            checkpoint,
            &"--data",
            &data,
            &"--out",
            &features,
        ];
        let inspect: [&dyn AsRef<std::ffi::OsStr>; 2] = [&"inspect", &source];
        for (command, words) in [
            (&embed[..], "the files' size is used"),
            (&inspect[..], "the latter is used"),
            (&convert[..], "the latter is used"),
        ] {
            let said = said_of(command);
            let note = format!("prepare images of {size}, its position table is for 32 x 32");
            let told = said
                .lines()
                .find(|line| line.contains("its position table is for"));
            assert_eq!(told.is_some(), !size.is_empty(), "{said}");
            assert!(
                told.is_none_or(|l| l.contains(&note) && l.contains(words)),
                "{said}"
            );
        }
        // What is written is of the size of the model that is written.
        let written = std::fs::read_to_string(out.join(images)).unwrap();
        let written: serde_json::Value = serde_json::from_str(&written).unwrap();
        let side = serde_json::json!({"height": 32, "width": 32});
        assert_eq!(written["crop_size"], side, "{json}");
        if !size.is_empty() {
            let said = said_of(&[&"inspect", &source, &asked]);
            assert!(!said.contains("position table"), "{said}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_link_to_nowhere_is_not_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, file) in [
        ("a", "config.json"),
        ("b", "preprocessor_config.json"),
        ("c", "model.safetensors"),
    ] {
        changed("hf_deit", &at(name), "preprocessor_config.json", "{}");
        std::fs::remove_file(at(name).join(file)).unwrap();
        std::os::unix::fs::symlink("gone", at(name).join(file)).unwrap();
        let text = fails(run(&[&"inspect", &at(name)]), 1);
        assert!(
            text.contains(file) && text.contains("leads nowhere"),
            "{text}"
        );
    }
    let text = fails(run(&[&"inspect", &at("c/model.safetensors")]), 1);
    assert!(text.contains("a link to gone"), "{text}");
}

#[test]
fn helps_name_checkpoints_alike() {
    for command in [
        "inspect", "convert", "embed", "classify", "knn", "eval", "linprobe", "finetune",
    ] {
        let text = ok(run(&[&command, &"--help"]));
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let one = "Run folder, file (.safetensors, .pth, .bin, .index.json), folder, or \
                   hf://org/name[/file][@revision]";
        assert!(text.contains(one), "{command}: {text}");
        assert!(!text.contains("hf://org/name@"), "{command}: {text}");
    }
}

#[test]
fn names_of_any_length_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let bytes = std::fs::read(fixture("timm_deit3").join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for length in [101, 65_535, 65_536, 200_000] {
        let mut all: Vec<_> = file.tensors();
        let extra = all[0].1.clone();
        all.push(("n".repeat(length), extra));
        safetensors::serialize_to_file(all, None, &path).unwrap();
        let text = ok(run(&[&"inspect", &path, &"--heads=3"]));
        assert!(text.contains(&format!("({length} characters)")), "{length}");
        assert!(text.lines().all(|line| line.len() < 400), "{length}");
    }
}

#[test]
fn a_file_where_its_run_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["checkpoint.safetensors", "best.safetensors", "config.toml"] {
        let file = folder.path().join(name);
        std::fs::write(&file, "").unwrap();
        let error = fails(resume(&file, &[]), 2);
        let folder = folder.path().display().to_string();
        assert!(
            error.contains("is a file") && error.ends_with(&format!("--resume {folder}")),
            "{error}"
        );
    }
}

/// Told before hours of training, not after; and what convert then says is the way that works.
#[test]
fn finetune_says_at_its_start_what_convert_cannot_write() {
    let folder = tempfile::tempdir().unwrap();
    let registers = fixture("timm_registers").display().to_string();
    let deit = fixture("hf_deit").display().to_string();
    for (number, (from, told)) in [
        (vec!["--model=vit-tiny", "--patch-size=4"], true),
        (
            vec!["--model=vit-tiny", "--patch-size=4", "--pool=token"],
            false,
        ),
        (vec!["--checkpoint", &registers], false),
        (vec!["--checkpoint", &registers, "--pool=avg"], true),
        (vec!["--checkpoint", &deit], false),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(number.to_string());
        let mut command = vitfreeze([
            "finetune",
            "--data=shapes",
            "--samples=40",
            "--image-size=16",
            "--epochs=1",
            "--warmup-epochs=0",
            "--batch-size=8",
            "--accum=1",
            "--lr=1e-3",
        ]);
        command.args(&from).arg("--out").arg(&out);
        let text = ok(command);
        let note = "note: what this trains cannot be saved in the hf layout";
        assert_eq!(
            text.matches(note).count(),
            usize::from(told),
            "{from:?}: {text}"
        );
        let hf = folder.path().join(format!("{number}-hf"));
        let convert = run(&[&"convert", &out, &hf, &"--to=hf"]);
        match told {
            true => assert!(fails(convert, 2).contains("TimmWrapper")),
            false => drop(ok(convert)),
        }
        let timm = folder.path().join(format!("{number}-timm"));
        ok(run(&[&"convert", &out, &timm, &"--to=timm"]));
    }
}
