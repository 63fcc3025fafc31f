//! Images of other channels than RGB: `--channels`, from a dataset's statistics to a classifier.
mod common;

use std::path::Path;
use std::process::Command;

use common::*;

const RUN: [&str; 4] = [
    "--epochs=2",
    "--save-every=100",
    "--threads=2",
    "--crop-scale=0.5",
];

/// Class folders of 16-bit grey PNG files; each class has a brightness of its own.
fn grey(dir: &Path, count: u16) {
    for (name, level) in [("dark", 2000u16), ("light", 52_000)] {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        for i in 0..count {
            let pixel = |x: u32, y: u32| image::Luma([level + i * 40 + (x * y) as u16]);
            let image = image::ImageBuffer::<image::Luma<u16>, Vec<u16>>::from_fn(20, 24, pixel);
            image.save(dir.join(format!("{i}.png"))).unwrap();
        }
    }
}

/// The same as NumPy arrays of floating-point numbers.
fn arrays(dir: &Path, count: usize, channels: usize) {
    for (name, level) in [("dry", -3.0f32), ("wet", 4.0)] {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        for i in 0..count {
            let shape = format!("(18, 18, {channels})");
            let head = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
            let mut file = b"\x93NUMPY\x01\0".to_vec();
            file.extend((head.len() as u16).to_le_bytes());
            file.extend(head.as_bytes());
            for at in 0..18 * 18 * channels {
                let value = level + ((at * 7919 + i) % 13) as f32 / 9.0;
                file.extend(value.to_le_bytes());
            }
            std::fs::write(dir.join(format!("{i}.npy")), file).unwrap();
        }
    }
}

/// What `data inspect --stats` prints to be pasted.
fn statistics(data: &Path, channels: &str) -> Vec<String> {
    let mut command = vitfreeze(["data", "inspect", "--stats", "--channels", channels]);
    command.arg(data.join("train"));
    let said = ok(command);
    let line = said.lines().find(|line| line.contains("--mean=")).unwrap();
    line.split_whitespace().map(str::to_owned).collect()
}

fn with(command: &str, checkpoint: &Path, data: &Path, more: &[&str]) -> Command {
    let mut run = vitfreeze([command, "--checkpoint"]);
    run.arg(checkpoint).arg("--data").arg(data).args(more);
    run
}

#[test]
fn grey_of_16_bits_from_statistics_to_a_classifier() {
    let dir = tempfile::tempdir().unwrap();
    let (data, at) = (dir.path().join("set"), |name: &str| dir.path().join(name));
    grey(&data.join("train"), 20);
    grey(&data.join("val"), 5);
    let normal = statistics(&data, "1");
    // Between the two brightnesses, half of their distance around it.
    let number = |text: &str| -> f64 { text.split('=').nth(1).unwrap().parse().unwrap() };
    assert!((number(&normal[0]) - 0.42).abs() < 0.01, "{normal:?}");
    assert!((number(&normal[1]) - 0.38).abs() < 0.01, "{normal:?}");
    let from = format!("--data={}", data.display());
    let mut flags = vec![&from[..], "--channels=1", &normal[0], &normal[1]];
    flags.extend(RUN);
    let straight = at("straight");
    ok(pretrain(&straight, &flags));
    let config = std::fs::read_to_string(straight.join("config.toml")).unwrap();
    assert!(
        config.contains("channels = 1\n") && config.contains("mean = ["),
        "{config}"
    );
    // The same bits on other threads, and stopped in between.
    let parts = at("parts");
    ok(pretrain(
        &parts,
        &[&flags[..], &["--threads=1", "--max-steps=4"]].concat(),
    ));
    ok(resume(&parts, &["--threads=3"]));
    assert_same_state(&straight, &parts);
    let encoder = tensors(&straight.join("encoder.safetensors"));
    let weight = encoder
        .iter()
        .find(|(name, _)| name == "patch_embed.proj.weight");
    assert_eq!(weight.unwrap().1.len(), 4 * 192 * 16);
    for file in ["encoder.safetensors", "checkpoint.safetensors"] {
        let mut inspect = vitfreeze(["inspect"]);
        inspect.arg(straight.join(file));
        let said = ok(inspect);
        assert!(said.contains("16 x 16, 1 channel, patch 4"), "{said}");
    }
    // All that follows takes channels, mean and deviation from the checkpoint.
    let out = |name: &str| format!("--out={}", at(name).display());
    let top1 = |name: &str| {
        let text = std::fs::read_to_string(at(name).join("result.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["top1"].as_f64().unwrap()
    };
    ok(with("knn", &straight, &data, &[&out("knn")]));
    assert_eq!(top1("knn"), 100.0);
    let embedded = at("features.safetensors");
    let embed = ["--out", embedded.to_str().unwrap()];
    ok(with(
        "embed",
        &straight.join("encoder.safetensors"),
        &data,
        &embed,
    ));
    assert!(embedded.is_file());
    let few = [
        "--epochs=1",
        "--warmup-epochs=0",
        "--batch-size=8",
        "--accum=1",
    ];
    let said = ok(with(
        "finetune",
        &straight,
        &data,
        &[&few[..], &[&out("tuned")]].concat(),
    ));
    assert!(
        said.contains("images of 1 channel are cropped and mirrored"),
        "{said}"
    );
    ok(with(
        "linprobe",
        &straight,
        &data,
        &[&few[..], &[&out("probed")]].concat(),
    ));
    let best = at("tuned").join("best.safetensors");
    ok(with("eval", &best, &data, &[&out("judged")]));
    assert_eq!(top1("judged"), top1("tuned"));
    let mut classify = vitfreeze(["classify", "--checkpoint"]);
    classify.arg(&best).arg(data.join("val/dark/0.png"));
    assert!(ok(classify).contains(" %  "));
    // What draws colours says that there are none.
    let mut features = vitfreeze(["features"]);
    features.arg(&data).arg("--checkpoint").arg(&straight);
    features.arg(out("features.png"));
    assert!(fails(features, 2).contains("draws RGB images; the model is for images of 1 channel"));
    let mut reconstruct = vitfreeze(["reconstruct", "--checkpoint"]);
    reconstruct.arg(&straight).arg(out("cells.png"));
    assert!(fails(reconstruct, 2).contains("draws RGB images; this run's have 1 channel"));
    assert!(!straight.join("seen").exists());
}

#[test]
fn arrays_of_five_channels_and_an_encoder_of_three() {
    let dir = tempfile::tempdir().unwrap();
    let (data, at) = (dir.path().join("set"), |name: &str| dir.path().join(name));
    arrays(&data.join("train"), 20, 5);
    arrays(&data.join("val"), 5, 5);
    let normal = statistics(&data, "5");
    assert_eq!(normal[0].split(',').count(), 5, "{normal:?}");
    let from = format!("--data={}", data.display());
    let mut flags = vec![
        &from[..],
        "--channels=5",
        &normal[0],
        &normal[1],
        "--image-size=8:50%,16",
    ];
    flags.extend(RUN);
    let (straight, parts) = (at("straight"), at("parts"));
    ok(pretrain(&straight, &flags));
    ok(pretrain(&parts, &[&flags[..], &["--max-steps=5"]].concat()));
    ok(resume(&parts, &[]));
    assert_same_state(&straight, &parts);
    let out = |name: &str| format!("--out={}", at(name).display());
    let said = ok(with("knn", &straight, &data, &[&out("knn")]));
    assert!(said.contains("100.00"), "{said}");
    // An encoder of colours, adapted.
    ok(pretrain(&at("rgb"), &RUN));
    let few = [
        "--epochs=1",
        "--warmup-epochs=0",
        "--batch-size=8",
        "--accum=1",
    ];
    let own = [&normal[0][..], &normal[1], "--channels=5", &out("tuned")];
    let said = ok(with(
        "finetune",
        &at("rgb"),
        &data,
        &[&few[..], &own].concat(),
    ));
    let told = "for images of 3 channels; its patch embedding is repeated and scaled for 5";
    assert!(said.contains(told), "{said}");
    let said = ok(with(
        "knn",
        &at("rgb"),
        &data,
        &["--channels=5", &out("knn-rgb")],
    ));
    assert!(said.contains(told), "{said}");
    // It has no flags for them: what it takes it says. What trains must be told.
    let told = "with the mean and deviation of the checkpoint's 3 channels, repeated in order";
    assert!(said.contains(told), "{said}");
    for command in ["finetune", "linprobe"] {
        let refused = out("refused");
        let five = [&few[..], &["--channels=5", &refused]].concat();
        let line = fails(with(command, &at("rgb"), &data, &five), 2);
        assert!(
            line.contains("--channels 5 needs --mean and --std") && line.contains("--stats prints"),
            "{line}"
        );
    }
    assert!(!at("refused").exists());
    // Without being told an encoder of colours finds none in them: every image is left out.
    let line = fails(with("knn", &at("rgb"), &data, &[&out("none")]), 1);
    assert!(
        line.contains("the number of channels must be said"),
        "{line}"
    );
}

#[test]
fn three_channels_that_are_no_colours() {
    let dir = tempfile::tempdir().unwrap();
    let (data, at) = (dir.path().join("set"), |name: &str| dir.path().join(name));
    arrays(&data.join("train"), 20, 3);
    arrays(&data.join("val"), 5, 3);
    let normal = statistics(&data, "3");
    let from = format!("--data={}", data.display());
    let mut flags = vec![&from[..], "--channels=3", &normal[0], &normal[1]];
    flags.extend(RUN);
    let (straight, parts) = (at("straight"), at("parts"));
    ok(pretrain(&straight, &flags));
    ok(pretrain(&parts, &[&flags[..], &["--max-steps=4"]].concat()));
    ok(resume(&parts, &["--threads=1"]));
    assert_same_state(&straight, &parts);
    // All files of it tell how its images are read, what is converted too.
    let out = |name: &str| format!("--out={}", at(name).display());
    for layout in ["timm", "hf"] {
        let mut convert = vitfreeze(["convert", "--to", layout]);
        ok({
            convert
                .arg(straight.join("encoder.safetensors"))
                .arg(at(layout));
            convert
        });
    }
    for of in ["encoder.safetensors", "checkpoint.safetensors"] {
        let said = ok(with("knn", &straight.join(of), &data, &[&out(of)]));
        assert!(said.contains("100.00"), "{said}");
    }
    for of in ["timm", "hf"] {
        let said = ok(with("knn", &at(of), &data, &[&out(&format!("of-{of}"))]));
        assert!(said.contains("100.00"), "{said}");
    }
    // RGB of 8 bits has no such values.
    let line = fails(pretrain(&at("rgb"), &[&from[..], "--epochs=2"]), 1);
    assert!(
        line.contains("the number of channels must be said"),
        "{line}"
    );
}

#[test]
fn a_cache_has_colours_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (set, cache) = (dir.path().join("set"), dir.path().join("set.cache"));
    grey(&set, 10);
    let mut make = vitfreeze(["data", "cache"]);
    make.arg(&set).arg("--out").arg(&cache);
    ok(make);
    let data = format!("--data={}", cache.display());
    let flags = [&data[..], "--channels=1", "--mean=0.4", "--std=0.3"];
    let line = fails(pretrain(&dir.path().join("run"), &flags), 1);
    assert!(line.contains("a cache holds RGB of 8 bits"), "{line}");
}

#[test]
fn what_does_not_fit_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let set = dir.path().join("set");
    arrays(&set, 20, 5);
    let data = format!("--data={}", set.display());
    let three = "--mean=0.1,0.2,0.3";
    for (flags, said) in [
        (&["--channels=0"][..], "channels is 0, it must be 1 to 1024"),
        (
            &["--channels=5"],
            "channels is 5, but 'shapes' are drawn in red, green and blue: give your own images",
        ),
        (
            &["--channels=5", "--mean=1,1,1,1,1", "--std=1,1,1,1,1"],
            "channels is 5, but 'shapes' are drawn",
        ),
        (
            &["--channels=5", &data],
            "set --channels 5 --stats prints them",
        ),
        (
            &["--mean=1e39,0,0", "--std=1,1,1"],
            "mean: 1e39 is more than f32 holds",
        ),
        (
            &["--mean=0,0,0", "--std=1e-30,1,1"],
            "mean 0e0 and deviation 1e-30 make numbers up to 1e30",
        ),
        (
            &["--mean=1e38,0,0", "--std=1,1,1"],
            "more than can be computed with",
        ),
        (&[three], "--mean and --std belong together"),
        (
            &[three, "--std=0.1,0.2"],
            "std has 2 numbers, images have 3 channels",
        ),
        (
            &[three, "--std=0.1,0.2,0"],
            "std: 0 is not what a channel can have",
        ),
        (&["--mean=nan,1,1", "--std=1,1,1"], "mean: NaN is not"),
        (
            &["--channels=1", three, three],
            "--mean and --std belong together",
        ),
        (
            &["--channels=5", "--mean=1,1,1,1,1", "--std=1,1,1,1"],
            "std has 4 numbers",
        ),
    ] {
        let line = fails(pretrain(&out, flags), 2);
        assert!(line.contains(said), "{flags:?}: {line}");
        assert!(!out.exists());
    }
    let four = ["--channels=4", "--mean=0,0,0,0", "--std=1,1,1,1"];
    let flags = [&[&data[..], "--epochs=2"], &four[..]].concat();
    let line = fails(pretrain(&out, &flags), 1);
    assert!(line.contains("5 channels, 4 are wanted"), "{line}");
    // Cells of one grey pixel have no deviation.
    let grey = ["--channels=1", "--mean=0.5", "--std=0.25"];
    let flags = [&grey[..], &["--target=pixel", "--norm-pix"]].concat();
    let none = dir.path().join("none");
    let line = fails(pretrain(&none, &flags), 2);
    assert!(
        line.contains("stage at block 1: with scale 4 its cells are"),
        "{line}"
    );
    assert!(!none.exists());
    // A schedule has no images to normalise.
    let schedule = [
        "schedule",
        "--model=vit-tiny",
        "--data=imagenet",
        "--channels=13",
    ];
    ok(vitfreeze(schedule));
    // RGB with its own mean and deviation, which the encoder's file tells.
    let own = at_own(&dir.path().join("own"));
    assert!(own.contains("\"mean\":[0.1000"), "{own}");
}

/// A run with a mean of its own; the metadata of its encoder.
fn at_own(out: &Path) -> String {
    // Of two the later is meant, as of any other flag.
    let flags = [
        "--mean=0.4,0.4,0.4",
        "--mean=0.1,0.2,0.3",
        "--std=0.5,0.5,0.5",
        "--max-steps=1",
    ];
    ok(pretrain(out, &flags));
    let bytes = std::fs::read(out.join("encoder.safetensors")).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    metadata.metadata().as_ref().unwrap()["vitfreeze"].clone()
}
