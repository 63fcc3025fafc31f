//! What others' files say about images: every key is heeded, refused, or named in a note.
use std::fs;
use std::path::Path;

use candle_core::DType;
use serde_json::{json, Value};
use vit::{Checkpoint, Error, Filter, Hints, Layout, LoadOptions, Preprocess};

/// The checkpoint of a fixture with this file instead of its own.
fn with(fixture: &str, file: &str, json: &Value) -> Result<Checkpoint, Error> {
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/checkpoints")
        .join(fixture);
    for name in ["config.json", "model.safetensors"] {
        fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join(file), json.to_string()).unwrap();
    let hints = Hints {
        num_heads: Some(3),
        ..Hints::default()
    };
    Checkpoint::open_with(dir.path().to_str().unwrap(), &hints)
}

fn hf(json: Value) -> Result<Checkpoint, Error> {
    with("hf_deit", "preprocessor_config.json", &json)
}

/// A valid file with these keys besides.
fn vit(more: Value) -> Value {
    let mut json = json!({
        "image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    });
    for (key, value) in more.as_object().unwrap() {
        json[key] = value.clone();
    }
    json
}

fn timm(more: Value) -> Result<Checkpoint, Error> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/checkpoints/timm_registers/config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(from).unwrap()).unwrap();
    for (key, value) in more.as_object().unwrap() {
        json["pretrained_cfg"][key] = value.clone();
    }
    with("timm_registers", "config.json", &json)
}

#[test]
fn values_are_scaled_as_the_processor_says() {
    let cases = [
        (json!({"do_normalize": false}), [0.0; 3], [1.0; 3]),
        (json!({"do_normalize": null}), [0.0; 3], [1.0; 3]),
        (
            json!({"do_normalize": false, "do_rescale": false}),
            [0.0; 3],
            [1.0 / 255.0; 3],
        ),
        (
            json!({"do_rescale": false, "image_mean": 127.5, "image_std": [127.5, 127.5, 127.5]}),
            [0.5; 3],
            [0.5; 3],
        ),
        (
            json!({"rescale_factor": 2.0 / 255.0, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}),
            [0.5; 3],
            [0.5; 3],
        ),
        (
            json!({"rescale_factor": 0.00392156862745098}),
            [0.5; 3],
            [0.5; 3],
        ),
    ];
    for (more, mean, std) in cases {
        let p = hf(vit(more.clone())).unwrap().preprocess();
        assert_eq!((&p.mean[..], &p.std[..]), (&mean[..], &std[..]), "{more}");
    }
}

#[test]
fn resample_has_pillows_numbers_and_the_classes_defaults() {
    use Filter::{Bicubic, Bilinear, Box, Hamming, Lanczos, Nearest};
    let order = [Nearest, Lanczos, Bilinear, Bicubic, Box, Hamming];
    for (number, filter) in order.into_iter().enumerate() {
        let p = hf(vit(json!({"resample": number}))).unwrap().preprocess();
        assert_eq!(p.filter, filter);
    }
    // transformers 5.24: the class attributes.
    let classes = [
        ("ViTImageProcessor", Bilinear, 224, 1.0, true),
        ("ViTFeatureExtractor", Bilinear, 224, 1.0, true),
        ("DINOv3ViTImageProcessorFast", Bilinear, 224, 1.0, true),
        ("BitImageProcessor", Bicubic, 224, 1.0, false),
        ("CLIPImageProcessorPil", Bicubic, 224, 1.0, false),
        ("DeiTImageProcessor", Bicubic, 224, 0.875, true),
        ("SiglipImageProcessor", Bicubic, 224, 1.0, true),
    ];
    for (class, filter, size, crop_pct, squash) in classes {
        let p = hf(json!({"image_processor_type": class})).unwrap();
        assert!(p.notes().is_empty(), "{:?}", p.notes());
        let p = p.preprocess();
        assert_eq!(
            (p.filter, p.size, p.crop_pct, p.squash),
            (filter, Some((size, size)), (crop_pct, crop_pct), squash),
            "{class}"
        );
    }
    // Without a class, that of the model: this one is DeiT.
    assert_eq!(hf(json!({})).unwrap().preprocess().filter, Bicubic);
}

#[test]
fn what_cannot_be_heeded_is_refused_with_its_name() {
    for (key, value) in [
        ("resample", json!(6)),
        ("resample", json!("bicubic")),
        ("resample", json!(2.0)),
        ("do_normalize", json!("false")),
        ("do_resize", json!(0)),
        ("image_std", json!([0.5, 0, 0.5])),
        ("image_std", json!([0.5, -1, 0.5])),
        ("image_mean", json!([0.5, 0.5])),
        ("image_mean", json!([0.5, 1e39, 0.5])),
        ("image_mean", json!("imagenet")),
        ("rescale_factor", json!(0)),
        ("rescale_factor", json!(-1)),
        ("size", json!({"longest_edge": 224})),
        ("size", json!({"shortest_edge": 224, "longest_edge": 448})),
        ("size", json!(0)),
        ("size", json!("224")),
    ] {
        let error = hf(vit(json!({key: value}))).unwrap_err().to_string();
        assert!(error.contains(&format!("'{key}'")), "{error}");
        assert!(error.contains("preprocessor_config.json"), "{error}");
    }
    let larger = json!({"do_center_crop": true, "crop_size": 48});
    let error = hf(vit(larger)).unwrap_err().to_string();
    assert!(error.contains("'crop_size'"), "{error}");
    for (key, value) in [
        ("crop_mode", json!("border")),
        ("interpolation", json!("random")),
        ("interpolation", json!(3)),
        ("crop_pct", json!(1.5)),
        ("crop_pct", json!("1.0")),
        ("std", json!([0, 0, 0])),
        ("mean", json!([0.5])),
        ("input_size", json!(224)),
    ] {
        let error = timm(json!({key: value})).unwrap_err().to_string();
        assert!(error.contains(&format!("'{key}'")), "{error}");
    }
}

#[test]
fn what_is_not_known_is_named_once() {
    let note = |checkpoint: Checkpoint, name: &str| {
        let notes = checkpoint.notes();
        let about = notes.iter().filter(|n| n.contains(name)).count();
        assert_eq!(about, 1, "{name}: {notes:?}");
    };
    for (key, value) in [
        ("do_flip_channel_order", json!(true)),
        ("crop_pct", json!(0.9)),
        ("do_pad", json!(true)),
        ("do_resize", json!(false)),
        ("image_processor_type", json!("LevitImageProcessor")),
    ] {
        let name = value.as_str().unwrap_or(key).to_owned();
        note(hf(vit(json!({key: value}))).unwrap(), &name);
    }
    note(timm(json!({"rotate": 90})).unwrap(), "rotate");
    note(timm(json!({"mean": null})).unwrap(), "mean");
    note(timm(json!({"label_offset": 1})).unwrap(), "label_offset");
    // Of no meaning for a ViT's input, or switched off.
    let quiet =
        json!({"do_convert_rgb": true, "processor_class": "X", "do_pad": false, "pad_size": null});
    assert!(hf(vit(quiet)).unwrap().notes().is_empty());
}

#[test]
fn timms_defaults_and_its_older_files() {
    let absent = json!({"mean": null, "std": null, "crop_pct": null, "interpolation": null, "crop_mode": null});
    let p = timm(absent).unwrap().preprocess();
    let want = Preprocess {
        crop_pct: (0.875, 0.875),
        size: p.size,
        known: true,
        ..Preprocess::usual((224, 224))
    };
    assert_eq!(p, want);
    for (name, filter) in [
        ("nearest", Filter::Nearest),
        ("lanczos", Filter::Lanczos),
        ("box", Filter::Box),
    ] {
        let p = timm(json!({"interpolation": name})).unwrap().preprocess();
        assert_eq!(p.filter, filter);
    }
    let old = json!({"architecture": "vit_small_patch14_reg4_dinov2", "num_classes": 0, "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25], "interpolation": "bilinear", "crop_pct": 0.9});
    let p = with("timm_registers", "config.json", &old).unwrap();
    // The fixture is narrower than the model of this name.
    let said = "its files say 6 attention heads; 3 are taken, as asked for";
    assert_eq!(p.notes(), [said]);
    let p = p.preprocess();
    assert_eq!(
        (p.mean, p.std, p.crop_pct, p.filter),
        (vec![0.5; 3], vec![0.25; 3], (0.9, 0.9), Filter::Bilinear)
    );
}

/// The checkpoint that was read, loaded for the size that its files say and written again.
fn written(checkpoint: &Checkpoint, layout: Layout) -> (tempfile::TempDir, Vec<String>) {
    let options = LoadOptions {
        image: checkpoint.preprocess().size,
        ..LoadOptions::default()
    };
    let out = tempfile::tempdir().unwrap();
    let model = checkpoint.load(&options).unwrap();
    let notes = model.save(out.path(), layout, DType::F32).unwrap();
    (out, notes)
}

fn read(dir: &Path) -> Preprocess {
    Checkpoint::open(dir.to_str().unwrap())
        .unwrap()
        .preprocess()
}

#[test]
fn sides_have_their_own_sizes() {
    // Class, size, crop; what images become before the crop.
    let cases = [
        (
            "ViT",
            json!({"height": 40, "width": 64}),
            json!(32),
            (40, 64),
            true,
        ),
        ("ViT", json!([48, 32]), json!([32, 16]), (48, 32), true),
        (
            "DeiT",
            json!({"height": 32, "width": 57}),
            json!({"height": 32, "width": 48}),
            (32, 57),
            true,
        ),
        (
            "Bit",
            json!({"shortest_edge": 40}),
            json!({"height": 32, "width": 24}),
            (40, 40),
            false,
        ),
        (
            "Bit",
            json!({"shortest_edge": 71}),
            json!({"height": 24, "width": 64}),
            (71, 71),
            false,
        ),
        (
            "CLIP",
            json!(50),
            json!({"height": 48, "width": 16}),
            (50, 50),
            false,
        ),
    ];
    for (class, size, crop, resized, squash) in cases {
        let json = vit(
            json!({"image_processor_type": format!("{class}ImageProcessor"), "size": size,
            "crop_size": crop, "do_center_crop": true}),
        );
        let checkpoint = hf(json.clone()).unwrap();
        let p = checkpoint.preprocess();
        let image = p.size.unwrap();
        let to = |side: usize, part: f64| (side as f64 / part) as usize;
        let got = (to(image.0, p.crop_pct.0), to(image.1, p.crop_pct.1));
        assert_eq!(
            (got, p.squash, p.floor_margin),
            (resized, squash, true),
            "{json}"
        );

        let (out, notes) = written(&checkpoint, Layout::HuggingFace);
        assert!(notes.is_empty(), "{notes:?}");
        assert_eq!(read(out.path()), p, "{json}");
        let (out, notes) = written(&checkpoint, Layout::Timm);
        assert!(
            p.crop_pct.0 == p.crop_pct.1 || notes[0].contains("crop_pct"),
            "{notes:?}"
        );
        assert_eq!(read(out.path()).crop_pct, (p.crop_pct.0, p.crop_pct.0));

        let options = LoadOptions {
            image: p.size,
            ..LoadOptions::default()
        };
        let file = out.path().join("own.safetensors");
        checkpoint.load(&options).unwrap().save_file(&file).unwrap();
        assert_eq!(read(&file), Preprocess { size: None, ..p });
    }
}

#[test]
fn a_reader_who_crops_otherwise_is_told_of() {
    let timms = |more: Value| timm(more).unwrap();
    let processor = |size: usize| {
        hf(vit(
            json!({"size": size, "crop_size": 32, "do_center_crop": true}),
        ))
        .unwrap()
    };
    // The margin of the longer side may be any; that of squashed images is known.
    for (checkpoint, layout, words) in [
        (
            timms(json!({})),
            Layout::HuggingFace,
            Some("one pixel earlier"),
        ),
        (timms(json!({})), Layout::Timm, None),
        (
            timms(json!({"crop_mode": "squash", "crop_pct": 1.0})),
            Layout::HuggingFace,
            None,
        ),
        (processor(39), Layout::Timm, Some("one pixel later")),
        (processor(39), Layout::HuggingFace, None),
        (processor(37), Layout::Timm, None),
        (processor(40), Layout::Timm, None),
    ] {
        let (out, notes) = written(&checkpoint, layout);
        assert_eq!(read(out.path()), checkpoint.preprocess());
        let told = notes.iter().find(|n| n.contains("half a pixel"));
        assert_eq!(told.is_some(), words.is_some(), "{notes:?}");
        assert!(
            told.is_none_or(|n| n.contains(words.unwrap_or_default())),
            "{notes:?}"
        );
    }
    // Not square: timm covers both sides, transformers knows a shorter one only; what is written can be read.
    let wide = timms(json!({"input_size": [3, 24, 40], "crop_pct": 0.9}));
    let (out, notes) = written(&wide, Layout::HuggingFace);
    assert!(
        notes.iter().any(|n| n.contains("shorter side to 44")),
        "{notes:?}"
    );
    assert_eq!(read(out.path()).size, Some((24, 40)));
}
