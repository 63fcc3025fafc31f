//! inspect, convert, embed and classify on the tiny checkpoints of vit/tests.
mod common;

use std::path::{Path, PathBuf};

use common::{fails, ok, vitfreeze};

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
