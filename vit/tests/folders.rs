//! What stands beside the tensors: preprocessing, prefixes, names; and folders written.
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use vit::{Checkpoint, Family, Filter, Hints, Layout, LoadOptions, Preprocess, VitConfig};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/checkpoints")
        .join(name)
}

fn open(path: &Path) -> Checkpoint {
    let hints = Hints {
        num_heads: Some(3),
        ..Hints::default()
    };
    Checkpoint::open_with(path.to_str().unwrap(), &hints).unwrap()
}

#[test]
fn hugging_face_preprocessing() {
    let dir = tempfile::tempdir().unwrap();
    let from = fixture("hf_deit");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    let read = |json: &str| -> Preprocess {
        let rest = r#""image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2"#;
        let text = format!("{{{json}, {rest}}}");
        fs::write(dir.path().join("preprocessor_config.json"), text).unwrap();
        open(dir.path()).preprocess()
    };
    let cases = [
        // google/vit-base-patch16-224, now and before: all of the image, proportions lost.
        (
            r#""size": {"height": 32, "width": 48}, "image_processor_type": "ViTImageProcessorFast""#,
            (32, 48),
            1.0,
            true,
        ),
        (
            r#""size": 32, "feature_extractor_type": "ViTFeatureExtractor""#,
            (32, 32),
            1.0,
            true,
        ),
        // facebook/deit-base-distilled-patch16-224
        (
            r#""size": 40, "crop_size": 32, "do_center_crop": true"#,
            (32, 32),
            0.8,
            true,
        ),
        // facebook/dinov2-base
        (
            r#""size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "image_processor_type": "BitImageProcessor""#,
            (32, 32),
            0.8,
            false,
        ),
        (
            r#""size": 40, "crop_size": 32, "feature_extractor_type": "CLIPFeatureExtractor""#,
            (32, 32),
            0.8,
            false,
        ),
    ];
    for (json, size, crop_pct, squash) in cases {
        let p = read(json);
        assert_eq!(
            (p.size, p.crop_pct, p.squash),
            (Some(size), (crop_pct, crop_pct), squash),
            "{json}"
        );
        assert!(p.known && p.filter == Filter::Bilinear);
        // And what we write says the same.
        let image = Some(size);
        let options = LoadOptions {
            image,
            ..LoadOptions::default()
        };
        if size == (32, 32) {
            for layout in [Layout::HuggingFace, Layout::Timm] {
                let out = tempfile::tempdir().unwrap();
                let model = open(dir.path()).load(&options).unwrap();
                model.save(out.path(), layout, DType::F32).unwrap();
                assert_eq!(open(out.path()).preprocess(), p, "{json}, {layout:?}");
            }
        }
    }
}

#[test]
fn prefixes() {
    let tensors =
        candle_core::safetensors::load(fixture("timm_clip/model.safetensors"), &Device::Cpu);
    let tensors = tensors.unwrap();
    let zeros: HashMap<String, Tensor> = tensors
        .iter()
        .map(|(name, t)| (name.clone(), t.zeros_like().unwrap()))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let load = |copies: [(&str, &HashMap<String, Tensor>); 2]| {
        let all: HashMap<String, Tensor> = copies
            .iter()
            .flat_map(|(prefix, copy)| {
                copy.iter()
                    .map(move |(n, t)| (format!("{prefix}{n}"), t.clone()))
            })
            .collect();
        candle_core::safetensors::save(&all, &path).unwrap();
        let checkpoint = open(&path);
        let loaded = checkpoint.load(&LoadOptions::default()).unwrap();
        let sum = loaded.tensors["blocks.0.attn.proj.weight"].abs().unwrap();
        let sum = sum.sum_all().unwrap().to_scalar::<f32>().unwrap();
        (checkpoint.family(), sum > 0.0)
    };
    // Averages and teachers before others; a module whose name only contains these letters is no average.
    for (good, other) in [
        ("model_ema.", "model."),
        ("state_dict_ema.", "state_dict."),
        ("teacher.", "student."),
        ("model.", "schema."),
        ("a.", "student."),
    ] {
        let found = load([(good, &tensors), (other, &zeros)]);
        assert_eq!(found, (Family::Timm, true), "{good} {other}");
    }
    // A backbone is DINO's only with its head beside it.
    assert_eq!(
        load([("backbone.", &tensors), ("x.", &zeros)]).0,
        Family::Timm
    );
    assert_eq!(open(&fixture("dino.pth")).family(), Family::Dino);
}

#[test]
fn dinov2_is_resampled_as_timm_does() {
    let options = LoadOptions {
        image: Some((40, 56)),
        ..LoadOptions::default()
    };
    let table = |name: &str| {
        let loaded = open(&fixture(name)).load(&options).unwrap();
        let table = loaded.tensors["pos_embed"].flatten_all().unwrap();
        table.to_vec1::<f32>().unwrap()
    };
    assert_eq!(table("dinov2_registers.pth"), table("timm_registers"));
}

#[test]
fn names_from_files_do_not_reach_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let name = "evil\u{1b}[2J\nok\u{202e}";
    let tensors = HashMap::from([(name, Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap())]);
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let error = Checkpoint::open(path.to_str().unwrap()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(r"evil\u{1b}[2J\nok\u{202e}"), "{text}");
    assert!(!text.contains(['\u{1b}', '\n', '\u{202e}']), "{text}");
    assert_eq!(vit::printable("Löwe, 'cat' \\ 猫"), "Löwe, 'cat' \\ 猫");
}

#[test]
fn a_folder_is_written_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let entries = || fs::read_dir(dir.path()).unwrap().count();
    let model = open(&fixture("hf_deit"))
        .load(&LoadOptions::default())
        .unwrap();
    // Stands where the weights are to be written.
    let out = dir.path().join("out");
    let old = dir.path().join(".out.saving");
    fs::create_dir(&old).unwrap();
    fs::write(old.join("left"), "by a killed process").unwrap();
    model.save(&out, Layout::HuggingFace, DType::F32).unwrap();
    assert_eq!((entries(), fs::read_dir(&out).unwrap().count()), (1, 3));
    // What is there stays.
    fs::write(out.join("preprocessor_config.json"), "mine").unwrap();
    fs::remove_file(out.join("config.json")).unwrap();
    let error = model
        .save(&out, Layout::HuggingFace, DType::F32)
        .unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!(
        fs::read(out.join("preprocessor_config.json")).unwrap(),
        b"mine"
    );
    assert_eq!((entries(), fs::read_dir(&out).unwrap().count()), (1, 2));
    // A save that fails leaves nothing: a file is where the parent folder should be.
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    model
        .save(&file.join("x"), Layout::Timm, DType::F32)
        .unwrap_err();
    model.save(&file, Layout::Timm, DType::F32).unwrap_err();
    assert_eq!(entries(), 2);
}

#[test]
fn the_header_of_an_encoder_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("encoder.safetensors");
    let tensors = [(
        "a".to_owned(),
        Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap(),
    )];
    let cfg = VitConfig::default();
    vit::save_encoder(&path, &cfg, &tensors.into()).unwrap();
    assert_eq!(VitConfig::of_file(&path).unwrap(), cfg);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
    let error = VitConfig::of_file(&path).unwrap_err().to_string();
    assert!(error.contains("cut off"), "{error}");
    fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert!(VitConfig::of_file(&path).is_err());
}

#[test]
fn sizes_that_a_file_states_are_bounded() {
    let cfg = VitConfig::default();
    for image in [(16, 1 << 30), (8192, 8192), (0, 16)] {
        assert!(cfg.with_image(image).validate().is_err(), "{image:?}");
    }
}
