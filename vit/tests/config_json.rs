//! config.json of Hugging Face and timm: every key of the model is heeded, refused, or named in a note.
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{json, Value};
use vit::{Activation, Checkpoint, Error, Hints};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/checkpoints")
        .join(name)
}

/// The checkpoint of a fixture with another config.json.
fn with(name: &str, config: &str) -> Result<Checkpoint, Error> {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
    }
    fs::write(dir.path().join("config.json"), config).unwrap();
    Checkpoint::open(dir.path().to_str().unwrap())
}

/// Its own config.json.
fn own(name: &str) -> Value {
    let text = fs::read(fixture(name).join("config.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// With one key set to this.
fn set(name: &str, key: &str, value: Value) -> Result<Checkpoint, Error> {
    let mut json = own(name);
    json[key] = value;
    with(name, &json.to_string())
}

#[test]
fn values_that_cannot_be_heeded_are_errors() {
    for (key, value) in [
        ("hidden_act", json!("relu")),
        ("hidden_act", json!(1)),
        ("hidden_act", json!("silu")), // a gate that the tensors do not have
        ("layer_norm_eps", json!("1e-6")),
        ("layer_norm_eps", json!(0)),
        ("num_attention_heads", json!(-3)),
        ("image_size", json!(-3)),
        ("num_hidden_layers", json!("two")),
        ("qkv_bias", json!("yes")),
        ("architectures", json!("ViTModel")),
        ("model_type", json!(3)),
        ("id2label", json!("ant, bee")),
    ] {
        let error = set("hf_deit", key, value.clone()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("'{key}'")) && error.contains("config.json"),
            "{key} {value}: {error}"
        );
    }
    // The file beside it has a mean of three.
    let error = set("hf_deit", "num_channels", json!(1));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("for each of 1 channels"), "{error}");
    let eps = set("hf_deit", "layer_norm_eps", json!(1e-5)).unwrap();
    assert_eq!(eps.config().norm_eps, 1e-5);
}

#[test]
fn what_contradicts_the_tensors_is_an_error_with_both_numbers() {
    for (name, key, value, parts) in [
        ("hf_deit", "num_hidden_layers", json!(1), ["1,", "2;"]),
        ("hf_deit", "hidden_size", json!(48), ["48,", "24;"]),
        ("hf_deit", "intermediate_size", json!(96), ["96,", "48;"]),
        ("hf_deit", "patch_size", json!(16), ["[16,16]", "[8,8]"]),
        (
            "hf_deit",
            "image_size",
            json!([64, 32]),
            ["[64,32]", "[32,32]"],
        ),
        ("hf_deit", "qkv_bias", json!(false), ["false,", "true;"]),
        (
            "hf_dinov2",
            "use_swiglu_ffn",
            json!(true),
            ["true,", "false;"],
        ),
        ("hf_dinov2", "mlp_ratio", json!(4), ["4.0,", "2.0;"]),
        (
            "hf_dinov2_registers",
            "num_register_tokens",
            json!(4),
            ["4,", "3;"],
        ),
    ] {
        let error = set(name, key, value).unwrap_err().to_string();
        assert!(error.contains(&format!("'{key}'")), "{error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    for (key, value) in [
        ("depth", json!(3)),
        ("embed_dim", json!(48)),
        ("qkv_bias", json!(false)),
        ("act_layer", json!("silu")),
        ("no_embed_class", json!("no")),
    ] {
        let mut json = own("timm_registers");
        json["model_args"][key] = value;
        let error = with("timm_registers", &json.to_string()).unwrap_err();
        assert!(error.to_string().contains(&format!("'{key}'")), "{error}");
    }
}

#[test]
fn what_transformers_itself_writes_needs_no_note() {
    for name in [
        "hf_deit",
        "hf_deit_teacher",
        "hf_dinov2",
        "hf_dinov2_registers",
        "hf_dinov2_swiglu",
        "hf_vit_tanh",
    ] {
        let checkpoint = with(name, &own(name).to_string()).unwrap();
        let about = |n: &&String| n.contains("config.json");
        assert_eq!(checkpoint.notes().iter().find(about), None, "{name}");
    }
    // Keys of training, of parts that are left out, and of older versions.
    let mut json = own("hf_vit_tanh");
    for (key, value) in [
        ("torch_dtype", json!("float16")),
        ("_name_or_path", json!("google/vit")),
        ("hidden_dropout_prob", json!(0.1)),
        ("drop_path_rate", json!(0.1)),
        ("problem_type", json!("single_label_classification")),
        ("decoder_num_hidden_layers", json!(8)),
        ("mask_ratio", json!(0.75)),
        ("norm_pix_loss", json!(true)),
        ("use_mask_token", json!(true)),
        ("layerscale_value", json!(1.0)),
        ("encoder_stride", json!(16)),
    ] {
        json[key] = value;
    }
    let checkpoint = with("hf_vit_tanh", &json.to_string()).unwrap();
    assert!(checkpoint.notes().is_empty(), "{:?}", checkpoint.notes());
    assert_eq!(checkpoint.config().activation, Activation::GeluTanh);
}

#[test]
fn what_is_not_known_is_in_one_note() {
    let mut json = own("hf_deit");
    for (key, value) in [
        ("use_relative_position_bias", json!(true)), // BEiT's
        ("use_mean_pooling", json!(true)),
        ("rope_theta", json!(100.0)), // DINOv3's
        ("quantization_config", json!({"load_in_8bit": true})),
        ("auto_map", json!({"AutoModel": "code.Mine"})),
        ("switched_off", json!(false)),
    ] {
        json[key] = value;
    }
    let checkpoint = with("hf_deit", &json.to_string()).unwrap();
    let notes: Vec<&String> = checkpoint.notes().iter().collect();
    let [note] = notes[..] else {
        panic!("{notes:?}");
    };
    for name in [
        "use_relative_position_bias",
        "use_mean_pooling",
        "rope_theta",
        "quantization_config",
        "auto_map",
    ] {
        assert!(note.contains(name), "{note}");
    }
    assert!(!note.contains("switched_off"), "{note}");
    // timm's, outside and inside.
    for (place, key) in [
        ("", "sampling"),
        ("model_args", "pool_include_prefix"),
        ("pretrained_cfg", "rotate"),
    ] {
        let mut json = own("timm_deit3");
        match place {
            "" => json[key] = json!(true),
            _ => json[place][key] = json!(true),
        }
        let checkpoint = with("timm_deit3", &json.to_string()).unwrap();
        let about = checkpoint.notes().iter().filter(|n| n.contains(key));
        assert_eq!(about.count(), 1, "{:?}", checkpoint.notes());
    }
}

#[test]
fn what_would_give_other_numbers_in_transformers_is_noted() {
    for (key, value, word) in [
        (
            "problem_type",
            json!("multi_label_classification"),
            "softmax",
        ),
        ("architectures", json!(["Dinov2Backbone"]), "Dinov2Backbone"),
        ("num_attention_heads", Value::Null, "12 taken"),
        ("id2label", json!({"0": "ant", "7": "elk"}), "name class 7"),
    ] {
        let checkpoint = set("hf_dinov2", key, value).unwrap();
        let notes = checkpoint.notes();
        assert!(notes.iter().any(|n| n.contains(word)), "{notes:?}");
        assert!(notes.iter().all(|n| n.contains(key) || n.contains(word)));
    }
}

#[test]
fn a_file_without_a_model_type_is_read_all_the_same() {
    let bare = json!({"num_attention_heads": 6, "hidden_act": "gelu_new", "lr": 0.1});
    let checkpoint = with("hf_vit_tanh", &bare.to_string()).unwrap();
    assert_eq!(checkpoint.config().num_heads, 6);
    assert_eq!(checkpoint.config().activation, Activation::GeluTanh);
    let notes = checkpoint.notes();
    assert!(notes.iter().any(|n| n.contains("lr")), "{notes:?}");
    let error = with("hf_vit_tanh", "[1, 2]").unwrap_err().to_string();
    assert!(
        error.contains("config.json") && error.contains("object"),
        "{error}"
    );
}

#[test]
fn numbers_that_json_does_not_have_are_named() {
    for (key, number) in [
        ("layer_norm_eps", "1e400"),
        ("image_size", "NaN"),
        ("initializer_range", "-Infinity"),
    ] {
        let text = format!("{{\n \"model_type\": \"deit\",\n \"{key}\": {number}\n}}");
        let error = with("hf_deit", &text).unwrap_err().to_string();
        let want = format!("config.json: '{key}' has {number}, which is no finite number");
        assert!(error.contains(&want), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture("hf_deit").join(name), dir.path().join(name)).unwrap();
    }
    let file = dir.path().join("preprocessor_config.json");
    fs::write(file, r#"{"image_mean": [0.5, 1e400, 0.5]}"#).unwrap();
    let error = Checkpoint::open(dir.path().to_str().unwrap()).unwrap_err();
    assert!(
        error.to_string().contains("'image_mean' has 1e400"),
        "{error}"
    );
}

#[test]
fn a_folder_with_one_file_of_any_name_is_read_with_its_config() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deit.safetensors");
    fs::copy(fixture("hf_deit/model.safetensors"), &path).unwrap();
    fs::copy(
        fixture("hf_deit/config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    let folder = Checkpoint::open(dir.path().to_str().unwrap()).unwrap();
    assert_eq!((folder.config().num_heads, folder.labels().len()), (3, 5));
    // The file alone may be one of several.
    let hints = Hints {
        num_heads: Some(3),
        ..Hints::default()
    };
    let file = Checkpoint::open_with(path.to_str().unwrap(), &hints).unwrap();
    assert!(file.labels().is_empty());
    assert!(
        file.notes().iter().any(|n| n.contains("is not used")),
        "{:?}",
        file.notes()
    );
}

#[test]
fn heads_that_the_user_gives_go_before_the_file() {
    let hints = Hints {
        num_heads: Some(6),
        ..Hints::default()
    };
    let folder = fixture("hf_deit");
    let checkpoint = Checkpoint::open_with(folder.to_str().unwrap(), &hints).unwrap();
    assert_eq!(checkpoint.config().num_heads, 6);
}

/// A link to nowhere, a pipe or a folder instead of a file is no file that is not there.
#[cfg(unix)]
#[test]
fn what_is_there_but_no_file_is_an_error_that_names_it() {
    let names = [
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "vit.pth",
    ];
    for name in names {
        let dir = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(fixture("hf_deit").join(file), dir.path().join(file)).unwrap();
        }
        if !name.ends_with("config.json") {
            fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        }
        let path = dir.path().join(name);
        let refused = |words: &str| {
            let error = Checkpoint::open(dir.path().to_str().unwrap()).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(name) && error.contains(words), "{error}");
            assert!(!error.contains('\n'), "{error}");
        };
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink("../blobs/gone", &path).unwrap();
        refused("a link to ../blobs/gone, which leads nowhere");
        fs::remove_file(&path).unwrap();
        if name.ends_with("config.json") {
            let made = std::process::Command::new("mkfifo").arg(&path).status();
            assert!(made.unwrap().success());
            refused("not a file");
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
            refused("not a file");
        }
    }
}
