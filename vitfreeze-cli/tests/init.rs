//! `pretrain --init`: runs that begin with a checkpoint's weights. `--target pixel`: runs that predict pixels.
mod common;

use std::path::Path;
use std::process::Command;

use common::*;

/// A run of two blocks that begins with a checkpoint of vit/tests: width 24, patch 8, 32 px.
fn begun(origin: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = vitfreeze(["pretrain", "--data=shapes", "--samples=24", "--epochs=3"]);
    command.args([
        "--warmup-epochs=1",
        "--batch-size=8",
        "--accum=1",
        "--lr=1e-3",
    ]);
    command.args(["--decoder-dim=16", "--decoder-heads=2", "--stages=0:2,1:1"]);
    command
        .arg("--init")
        .arg(origin)
        .arg("--out")
        .arg(out)
        .args(more);
    command
}

/// A learning rate of 0: the weights at the end are those at the beginning.
const STILL: [&str; 3] = ["--lr=0", "--min-lr=0", "--max-steps=1"];

#[test]
fn a_run_begins_with_another_ones_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    ok(pretrain(&first, &["--max-steps=4"]));
    let init = format!("--init={}", first.display());
    let again = |out: &Path, more: &[&str]| {
        let init = [&[init.as_str()], &STILL[..], more].concat();
        ok(pretrain(out, &init))
    };
    let said = again(&second, &["--seed=8"]);
    assert!(said.contains("init: 239 tensors taken from "), "{said}");
    assert!(
        said.contains("encoder (147)") && said.contains("decoder.3 ("),
        "{said}"
    );
    assert!(
        !said.contains(" new: ") && !said.contains("left out"),
        "{said}"
    );
    assert!(said.contains(", begun with "), "{said}");
    let weights = |run: &Path| {
        let all = tensors(&run.join("checkpoint.safetensors")).into_iter();
        all.filter(|(name, _)| !name.starts_with("optimizer."))
            .collect::<Vec<_>>()
    };
    assert!(weights(&first) == weights(&second));

    // Other stages and targets: the decoders that do not fit are new. The exported encoder has none.
    let said = again(&dir.path().join("a"), &["--stages=1:4,3:2,10:1,11:0.5"]);
    assert!(
        said.contains(" new: decoder.2 (") && said.contains("norm.2 (2)"),
        "{said}"
    );
    let said = again(&dir.path().join("b"), &["--target=pixel"]);
    assert!(
        said.contains(" new: decoder.0 (") && said.contains("decoder.3 ("),
        "{said}"
    );
    assert!(
        said.contains("left out of ") && said.contains("norm.3 (2)"),
        "{said}"
    );
    let encoder = format!("--init={}", first.join("encoder.safetensors").display());
    let more = [&[encoder.as_str()], &STILL[..]].concat();
    let said = ok(pretrain(&dir.path().join("c"), &more));
    assert!(said.contains("encoder (147), norm.3 (2)"), "{said}");
}

/// Cut or not, the checkpoint there or gone: the same bits.
#[test]
fn it_resumes_exactly_without_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let origin = dir.path().join("origin");
    std::fs::create_dir(&origin).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(checkpoint("hf_dinov2").join(file), origin.join(file)).unwrap();
    }
    let (straight, parts) = (dir.path().join("straight"), dir.path().join("parts"));
    let said = ok(begun(&origin, &straight, &[]));
    assert!(
        said.contains("left out") || said.contains("norm.1 (2)"),
        "{said}"
    );
    ok(begun(&origin, &parts, &["--max-steps=2"]));
    let config = std::fs::read_to_string(parts.join("config.toml")).unwrap();
    for key in [
        "init = ",
        "encoder = ",
        "model = \"vit\"",
        "image-size = 32",
        "patch-size = 8",
    ] {
        assert!(config.contains(key), "{key}: {config}");
    }
    std::fs::remove_dir_all(&origin).unwrap();
    let said = ok(resume(&parts, &["--max-steps=5"]));
    assert!(!said.contains("init: "), "{said}");
    std::fs::remove_file(parts.join("config.toml")).unwrap();
    ok(resume(&parts, &[]));
    assert_same_state(&straight, &parts);
    // What others make of it: the training state and the exported encoder.
    for file in ["checkpoint.safetensors", "encoder.safetensors"] {
        let mut command = vitfreeze(["knn", "--data=shapes", "--samples=40", "--checkpoint"]);
        command.arg(parts.join(file));
        command.arg("--out").arg(dir.path().join("knn").join(file));
        ok(command);
    }
    let mut command = vitfreeze(["reconstruct", "--images=1", "--checkpoint"]);
    command
        .arg(&parts)
        .arg("--out")
        .arg(dir.path().join("a.svg"));
    ok(command);
    // The same run from its configuration needs the checkpoint again.
    let mut command = vitfreeze(["pretrain", "--config"]);
    command
        .arg(parts.join("config.toml"))
        .arg("--out")
        .arg(dir.path().join("b"));
    assert!(fails(command, 2).contains("origin: no such file or folder"));
}

#[test]
fn another_size_resamples_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let origin = checkpoint("timm_deit3");
    let out = dir.path().join("a");
    let said = ok(begun(&origin, &out, &["--image-size=48", "--max-steps=1"]));
    assert!(said.contains(" 48 px, patch 8"), "{said}");
    let mut command = vitfreeze(["schedule", "--data=shapes", "--stages=0:2,1:1", "--init"]);
    command.arg(&origin);
    assert!(ok(command).contains("blocks.1 + stage 1"));
    // A table that is not square, too.
    let out = dir.path().join("b");
    let line = fails(begun(&checkpoint("timm_nonsquare"), &out, &[]), 2);
    assert!(line.contains("give --image-size PX"), "{line}");
    let origin = checkpoint("timm_nonsquare");
    ok(begun(&origin, &out, &["--image-size=32", "--max-steps=1"]));
}

#[test]
fn what_does_not_fit_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let (run, out) = (dir.path().join("run"), dir.path().join("out"));
    let origin = checkpoint("hf_dinov2");
    ok(begun(&origin, &run, &["--max-steps=1"]));
    let line = |more: &[&str]| fails(begun(&origin, &out, more), 2);
    let told = line(&["--patch-size=16"]);
    assert!(told.contains("patch-size is 16, the patches of "), "{told}");
    let told = line(&["--model=vit-small"]);
    assert!(
        told.contains("model is vit-small (12 blocks of width 384, 6 heads)")
            && told.contains("has 2 blocks of width 24, 3 heads"),
        "{told}"
    );
    assert!(line(&["--stages=default"]).contains("at least 8 blocks"));
    assert!(line(&["--image-size=36"]).contains("not divisible by patch size 8"));
    assert!(line(&["--norm-pix"]).contains("--target pixel"));
    assert!(line(&["--heads=0"]).contains("heads is 0, it must be 1 to"));
    let told = fails(pretrain(&out, &["--heads=3"]), 2);
    assert!(
        told.contains("heads is for the encoder of --init"),
        "{told}"
    );
    let gone = fails(begun(Path::new("no/such"), &out, &[]), 2);
    assert!(gone.contains("no such file or folder"), "{gone}");
    let mut command = resume(&run, &["--init"]);
    command.arg(&origin);
    let told = fails(command, 2);
    assert!(
        told.contains("--init starts a new run") && told.contains("--resume"),
        "{told}"
    );
    // The architecture that a configuration keeps is the checkpoint's, or the run says so.
    let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
    let other = dir.path().join("other.toml");
    std::fs::write(&other, config.replace("1e-6", "1e-5")).unwrap();
    let mut command = vitfreeze(["pretrain", "--config"]);
    command.arg(&other).arg("--out").arg(&out);
    assert!(fails(command, 2).contains("another architecture than 'encoder'"));
    std::fs::write(&other, "encoder = '{}'\n").unwrap();
    let mut command = vitfreeze(["pretrain", "--config"]);
    command.arg(&other).arg("--out").arg(&out);
    assert!(fails(command, 2).contains("encoder: no architecture"));
    assert!(!out.exists());
}

/// What a resumed run must not change is told as such, whether or not the checkpoint of --init is still there.
#[test]
fn a_resume_with_other_numbers_needs_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (first, run) = (dir.path().join("first"), dir.path().join("run"));
    ok(pretrain(&first, &["--max-steps=1"]));
    let init = format!("--init={}", first.display());
    ok(pretrain(&run, &[&init, "--max-steps=1"]));
    std::fs::remove_dir_all(&first).unwrap();
    let line = fails(resume(&run, &["--image-size=32"]), 2);
    let told = "was trained with other numbers (image-size: 16 -> 32)";
    assert!(line.contains(told), "{line}");
    // Nor does a file of settings from which the architecture is gone.
    let file = run.join("config.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    let lines = config.lines().filter(|line| !line.starts_with("encoder"));
    let without: Vec<&str> = lines.collect();
    std::fs::write(&file, without.join("\n")).unwrap();
    let line = fails(resume(&run, &["--seed=8"]), 2);
    assert!(line.contains("other numbers (seed: 7 -> 8)"), "{line}");
    ok(resume(&run, &["--max-steps=2"]));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), config);
}

/// No file tells the heads of an encoder of unusual width, nor those of MAE's decoder.
#[test]
fn heads_that_no_file_tells() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let from = root.join("../localmim/tests/fixtures/vit_mae/model.safetensors");
    let origin = dir.path().join("mae.safetensors");
    std::fs::copy(from, &origin).unwrap();
    let flags = [
        "--stages=1:1",
        "--decoder-dim=8",
        "--decoder-depth=2",
        "--target=pixel",
        "--max-steps=1",
    ];
    let out = dir.path().join("a");
    let line = fails(begun(&origin, &out, &flags), 2);
    assert!(line.contains("of width 16; give it (--heads N"), "{line}");
    let flags = [&flags[..], &["--heads=2"]].concat();
    let said = ok(begun(&origin, &out, &flags));
    let assumed = "note: heads of decoders are not in ";
    assert!(
        said.contains("decoder.0 (") && said.contains(assumed),
        "{said}"
    );
    assert!(said.contains(": 2 assumed (--decoder-heads)"), "{said}");
    let config = std::fs::read_to_string(out.join("config.toml")).unwrap();
    assert!(config.contains("heads = 2\n"), "{config}");
    std::fs::remove_file(&origin).unwrap();
    ok(resume(&out, &["--max-steps=2"]));
    let line = fails(resume(&out, &["--heads=4"]), 2);
    assert!(line.contains("heads: 2 -> 4"), "{line}");
}

/// Decoders are those of the same block and scale, as deep, with as many heads.
#[test]
fn decoders_are_taken_whole_or_are_new() {
    let dir = tempfile::tempdir().unwrap();
    let (first, out) = (dir.path().join("first"), |name: &str| dir.path().join(name));
    ok(pretrain(&first, &["--decoder-depth=2", "--max-steps=1"]));
    let init = format!("--init={}", first.display());
    let again = |name: &str, more: &[&str]| {
        let flags = [&[init.as_str(), "--decoder-depth=2"], &STILL[..], more].concat();
        ok(pretrain(&out(name), &flags))
    };
    let said = again("last", &["--stages=11:0.5"]);
    assert!(
        said.contains("decoder.0 (") && !said.contains(" new: "),
        "{said}"
    );
    for (name, flag) in [
        ("heads", "--decoder-heads=1"),
        ("depth", "--decoder-depth=1"),
    ] {
        let said = again(name, &[flag]);
        assert!(
            said.contains("encoder (147), norm.3 (2)\n"),
            "{name}: {said}"
        );
    }
}

/// Pixels: the loss falls, layers freeze, cut is uncut, any number of threads gives the same bits, pictures are drawn.
#[test]
fn pixels_are_predicted() {
    let dir = tempfile::tempdir().unwrap();
    let pixel = ["--target=pixel", "--norm-pix", "--save-every=100"];
    let run = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        ok(pretrain(&out, &[&pixel[..], more].concat()));
        out
    };
    let straight = run("straight", &["--threads=1"]);
    let parts = run("parts", &["--threads=2", "--max-steps=7"]);
    for stop in ["16", "23"] {
        ok(resume(&parts, &["--max-steps", stop]));
    }
    ok(resume(&parts, &["--threads=3"]));
    assert_same_state(&straight, &parts);
    let rows = rows(&straight);
    assert!(rows[14]["loss"].as_f64().unwrap() < rows[0]["loss"].as_f64().unwrap());
    assert_eq!(rows[29]["frozen"], 12);
    let config = std::fs::read_to_string(straight.join("config.toml")).unwrap();
    assert!(config.contains("target = \"pixel\"") && config.contains("norm-pix = true"));
    let refused = fails(resume(&parts, &["--norm-pix=false"]), 2);
    assert!(refused.contains("norm-pix: true -> false"), "{refused}");
    assert_eq!(std::fs::read_dir(straight.join("seen")).unwrap().count(), 7);
    let out = dir.path().join("seen.svg");
    let mut command = vitfreeze(["reconstruct", "--images=2", "--all-stages", "--checkpoint"]);
    command.arg(&straight).arg("--out").arg(&out);
    let said = ok(command);
    assert!(said.contains("stage 3, block 11: mean error"), "{said}");
    // Images, what is seen of them, and pictures for four targets and four predictions of each.
    let picture = std::fs::read_to_string(&out).unwrap();
    assert_eq!(picture.matches("<image").count(), 2 * (2 + 4 + 4));
}

/// Plain MAE: one deep decoder at the last block, from transformers' checkpoint.
#[test]
fn plain_mae_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let origin = root.join("../localmim/tests/fixtures/vit_mae");
    let more = [
        "--stages=1:1",
        "--decoder-dim=8",
        "--decoder-depth=2",
        "--target=pixel",
    ];
    let said = ok(begun(&origin, &dir.path().join("a"), &more));
    assert!(
        said.contains("encoder (") && said.contains("decoder.0 (") && said.contains("norm.0 (2)"),
        "{said}"
    );
    assert!(
        !said.contains(" new: ") && !said.contains("left out"),
        "{said}"
    );
}

/// With images that grow and pixels to predict, across the change, and without the first run's folder.
#[test]
fn it_may_grow() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    ok(pretrain(&at("first"), &["--max-steps=4"]));
    let init = format!("--init={}", at("first").display());
    let flags = [
        &init,
        "--image-size=8:50%,16",
        "--target=pixel",
        "--norm-pix",
        "--save-every=100",
    ];
    let said = ok(pretrain(&at("straight"), &flags));
    assert!(said.contains("16 px from step 15 on"), "{said}");
    assert!(said.contains("encoder (147)"), "{said}");
    ok(pretrain(
        &at("parts"),
        &[&flags[..], &["--max-steps=14"]].concat(),
    ));
    std::fs::remove_dir_all(at("first")).unwrap();
    ok(resume(&at("parts"), &["--max-steps=15"]));
    ok(resume(&at("parts"), &[]));
    assert_same_state(&at("straight"), &at("parts"));
    // The fixed table is computed for each size, that of a smaller run too.
    ok(pretrain(&at("small"), &["--max-steps=4"]));
    let init = format!("--init={}", at("small").display());
    let flags = [&init[..], "--image-size=8:50%,32", "--save-every=100"];
    let said = ok(pretrain(&at("larger"), &flags));
    assert!(said.contains("32 px from step 15 on"), "{said}");
    assert!(said.contains("encoder (147)"), "{said}");
    ok(pretrain(
        &at("cut"),
        &[&flags[..], &["--max-steps=14"]].concat(),
    ));
    std::fs::remove_dir_all(at("small")).unwrap();
    ok(resume(&at("cut"), &[]));
    assert_same_state(&at("larger"), &at("cut"));
    ok(pretrain(&at("new"), &["--image-size=32", "--max-steps=1"]));
    let table = |run: &str| {
        let mut all = tensors(&at(run).join("encoder.safetensors")).into_iter();
        all.find(|(name, _)| name == "pos_embed").unwrap()
    };
    assert!(table("larger") == table("new"));
    // A table that trains is for one size.
    let out = at("refused");
    let line = fails(
        begun(&checkpoint("hf_dinov2"), &out, &["--image-size=16:50%,32"]),
        2,
    );
    assert!(
        line.contains("image-size 16:50%,32: the checkpoint's position table"),
        "{line}"
    );
    assert!(!out.exists());
}

/// The patch embedding of RGB is adapted to other channels, as everywhere.
#[test]
fn it_may_have_other_channels() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    ok(pretrain(&at("first"), &["--max-steps=4"]));
    for class in ["a", "b"] {
        std::fs::create_dir_all(at("grey").join(class)).unwrap();
        for i in 0..12u8 {
            let image = image::GrayImage::from_fn(20, 20, |x, y| {
                image::Luma([(x * y) as u8 ^ i.wrapping_mul(19)])
            });
            let path = at("grey").join(class).join(format!("{i}.png"));
            image.save(path).unwrap();
        }
    }
    let data = format!("--data={}", at("grey").display());
    let init = format!("--init={}", at("first").display());
    for target in ["--target=hog", "--target=pixel"] {
        let grey = ["--channels=1", "--mean=0.5", "--std=0.25", &data, &init];
        let out = at(&target.replace("--target=", ""));
        let said = ok(pretrain(&out, &[&grey[..], &STILL[..], &[target]].concat()));
        assert!(said.contains("encoder (147)"), "{said}");
        let told = "images of 3 channels; its patch embedding is summed for 1";
        assert!(said.contains(told), "{said}");
        let patches = |run: &Path| {
            let all = tensors(&run.join("encoder.safetensors")).into_iter();
            let mut all = all.filter(|(name, _)| name == "patch_embed.proj.weight");
            let (_, bytes) = all.next().unwrap();
            let float = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
            bytes.chunks_exact(4).map(float).collect::<Vec<f32>>()
        };
        let (rgb, one) = (patches(&at("first")), patches(&out));
        assert_eq!((rgb.len(), one.len()), (192 * 3 * 16, 192 * 16));
        for (i, value) in one.iter().enumerate() {
            let of = |channel: usize| rgb[(i / 16 * 3 + channel) * 16 + i % 16];
            assert!((value - (of(0) + of(1) + of(2))).abs() < 1e-6);
        }
    }
}
