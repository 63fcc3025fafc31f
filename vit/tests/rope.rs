//! Rotary positions: DINOv3's checkpoints compute what timm and transformers compute of them, and have their gradients
//! (scripts/dinov3_fixtures.py).
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{safetensors, DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use serde_json::{json, Value};
use vit::ops::{Compute, Precision, Unit};
use vit::{
    axial_rope, Activation, Checkpoint, Error, Family, Head, Hints, Layout, LoadOptions, Pool,
    PosEmbed, Pretrained, Vit, VitConfig,
};

const CPU: Device = Device::Cpu;
/// Of the largest absolute value, or of 1.
const TOLERANCE: f32 = 1e-5;
const CASES: [(&str, Family); 7] = [
    ("timm_plain", Family::Timm),
    ("timm_plus", Family::Timm),
    ("timm_head", Family::Timm),
    ("hf_plain", Family::HfDinov3),
    ("hf_gated", Family::HfDinov3),
    ("hf_biases", Family::HfDinov3),
    ("meta.pth", Family::Dinov3),
];
/// Those whose gradients are known.
const GRADIENTS: [&str; 3] = ["timm_plus", "hf_gated", "hf_biases"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/dinov3")
        .join(name)
}

fn io(name: &str) -> BTreeMap<String, Tensor> {
    let name = name.trim_end_matches(".pth");
    let path = fixture(&format!("{name}.io.safetensors"));
    safetensors::load(path, &CPU).unwrap().into_iter().collect()
}

fn open(path: &Path) -> Result<Checkpoint, Error> {
    // Only folders have a config.json that tells them.
    let alone = path.is_file();
    let hints = Hints {
        num_heads: alone.then_some(3),
        fallback_image: alone.then_some((32, 32)),
        ..Hints::default()
    };
    Checkpoint::open_with(path.to_str().unwrap(), &hints)
}

fn checkpoint(name: &str) -> Checkpoint {
    open(&fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(t: &Tensor) -> Vec<u32> {
    flat(t).into_iter().map(f32::to_bits).collect()
}

fn close(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (flat(got), flat(want));
    let scale = want.iter().fold(1f32, |m, x| m.max(x.abs()));
    for (i, (a, b)) in got.iter().zip(&want).enumerate() {
        assert!(
            (a - b).abs() <= TOLERANCE * scale,
            "{what}[{i}]: {a}, not {b}"
        );
    }
}

fn of_size(images: &Tensor) -> LoadOptions {
    LoadOptions {
        image: Some((images.dim(2).unwrap(), images.dim(3).unwrap())),
        ..LoadOptions::default()
    }
}

/// The fused forms and the plain ones.
fn forms() -> [Compute; 2] {
    [false, true].map(|plain| Compute {
        plain,
        ..Compute::default()
    })
}

#[test]
fn tokens_and_logits_of_both_libraries() {
    for (name, family) in CASES {
        let (checkpoint, io) = (checkpoint(name), io(name));
        assert_eq!(checkpoint.family(), family, "{name}");
        assert!(checkpoint.config().rope_theta().is_some(), "{name}");
        checkpoint.check().unwrap();
        for compute in forms() {
            for prefix in ["", "other_"] {
                let images = &io[&format!("{prefix}images")];
                let loaded = checkpoint.load(&of_size(images)).unwrap();
                let model = loaded.model().unwrap().with_compute(&compute);
                let tokens = model.forward_features(images).unwrap();
                let want = &io[&format!("{prefix}tokens")];
                close(&tokens, want, &format!("{name}: {prefix}tokens"));
                if let Some(want) = io.get(&format!("{prefix}logits")) {
                    let got = model.forward(images).unwrap();
                    close(&got, want, &format!("{name}: {prefix}logits"));
                }
            }
        }
    }
    // Nothing had to be assumed, and what is left out is no part of the encoder.
    for name in ["timm_plain", "timm_plus", "timm_head"] {
        let checkpoint = checkpoint(name);
        assert!(checkpoint.notes().is_empty(), "{:?}", checkpoint.notes());
        assert!(checkpoint.unused().is_empty() && checkpoint.pool_note().is_none());
    }
    assert_eq!(checkpoint("timm_plus").config().pool, Pool::Avg);
    assert_eq!(checkpoint("timm_plain").config().pool, Pool::Token);
    let hf = checkpoint("hf_plain");
    assert_eq!(hf.unused(), ["embeddings.mask_token"]);
    assert_eq!((hf.config().pool, hf.pool_note()), (Pool::Token, None));
    let [note] = hf.notes() else {
        panic!("{:?}", hf.notes());
    };
    assert!(note.contains("pos_embed_rescale"), "{note}");
    assert!(hf.preprocess().squash && hf.preprocess().known);
    // Periods, masks of biases and the mask token.
    assert_eq!(checkpoint("meta.pth").unused().len(), 4);
}

/// Ours by the library's name: parts of what is one tensor here.
fn of_theirs(name: &str, ours: &BTreeMap<String, Tensor>) -> Tensor {
    let part = |whole: &str, i: usize, of: usize| {
        let tensor = &ours[whole];
        let rows = tensor.dim(0).unwrap() / of;
        tensor.narrow(0, i * rows, rows).unwrap()
    };
    let name = name
        .replace("gamma_1", "ls1.gamma")
        .replace("gamma_2", "ls2.gamma")
        .replace("layer_scale1.lambda1", "ls1.gamma")
        .replace("layer_scale2.lambda1", "ls2.gamma")
        .replace("model.layer.", "blocks.")
        .replace("embeddings.patch_embeddings.", "patch_embed.proj.")
        .replace("embeddings.register_tokens", "reg_token")
        .replace("embeddings.cls_token", "cls_token")
        .replace("attention.o_proj", "attn.proj")
        .replace("mlp.down_proj", "mlp.fc2");
    let parts = [
        ("mlp.fc1_g", "mlp.fc1", 0, 2),
        ("mlp.fc1_x", "mlp.fc1", 1, 2),
        ("mlp.gate_proj", "mlp.fc1", 0, 2),
        ("attention.q_proj", "attn.qkv", 0, 3),
        ("attention.k_proj", "attn.qkv", 1, 3),
        ("attention.v_proj", "attn.qkv", 2, 3),
    ];
    for (theirs, whole, i, of) in parts {
        if name.contains(theirs) {
            return part(&name.replace(theirs, whole), i, of);
        }
    }
    if name.contains("mlp.up_proj") {
        let whole = name.replace("mlp.up_proj", "mlp.fc1");
        let plain = ours[&whole].dim(0).unwrap() == 48;
        return part(&whole, usize::from(!plain), if plain { 1 } else { 2 });
    }
    ours[&name].clone()
}

#[test]
fn gradients_of_both_libraries() {
    for name in GRADIENTS {
        let (checkpoint, io) = (checkpoint(name), io(name));
        let loaded = checkpoint.load(&of_size(&io["other_images"])).unwrap();
        for compute in forms() {
            let vars = loaded.vars().unwrap();
            let vb = VarBuilder::from_varmap(&vars, DType::F32, &CPU);
            let model = Vit::new(&loaded.cfg, vb).unwrap().with_compute(&compute);
            let tokens = model.forward_features(&io["other_images"]).unwrap();
            let loss = (tokens * &io["weights"]).unwrap().sum_all().unwrap();
            let grads = vit::ops::backward(&loss).unwrap();
            let map = vars.data().lock().unwrap();
            let ours: BTreeMap<String, Tensor> = map
                .iter()
                .map(|(n, var)| (n.clone(), grads.get(var).unwrap().clone()))
                .collect();
            let wanted = io.iter().filter_map(|(n, t)| {
                let theirs = n.strip_prefix("grad.")?;
                (theirs != "embeddings.mask_token").then_some((theirs, t))
            });
            let mut compared = 0;
            for (theirs, want) in wanted {
                let got = of_theirs(theirs, &ours);
                compared += want.elem_count();
                close(&got, want, &format!("{name}: gradient of {theirs}"));
            }
            let all: usize = ours.values().map(Tensor::elem_count).sum();
            assert_eq!(compared, all, "{name}");
        }
    }
}

/// Positions are those of a patch's number, whatever its place among the kept ones.
#[test]
fn positions_follow_the_kept_patches() {
    let (checkpoint, io) = (checkpoint("hf_biases"), io("hf_biases"));
    let images = &io["images"];
    for compute in forms() {
        let model = checkpoint.load(&of_size(images)).unwrap().model().unwrap();
        let model = model.with_compute(&compute);
        let patches = 16u32;
        let order: Vec<u32> = (0..patches).map(|i| (i * 5 + 3) % patches).collect();
        let back: Vec<u32> = (0..patches).rev().collect();
        let ids = [order.clone(), back.clone()].concat();
        let whole = model.features(images, None, &[1]).unwrap().remove(0);
        let kept = model.features(images, Some(&ids), &[1]).unwrap().remove(0);
        for (image, ids) in [order, back].iter().enumerate() {
            let places: Vec<u32> = (0..3).chain(ids.iter().map(|id| id + 3)).collect();
            let places = Tensor::new(places, &CPU).unwrap();
            let want = whole.get(image).unwrap().index_select(&places, 0).unwrap();
            close(&kept.get(image).unwrap(), &want, "kept");
        }
        // And they matter: patches at other places have other features.
        let elsewhere: Vec<u32> = (0..8).chain(8..16).collect();
        let some = model.features(images, Some(&elsewhere), &[1]).unwrap();
        assert_eq!(some[0].dims(), [2, 3 + 8, 24]);
        assert!(model.features(images, Some(&[0, 99]), &[1]).is_err());
    }
}

#[test]
fn a_table_of_angles() {
    let [cos, sin] = axial_rope(8, (2, 3), 100.0, &CPU).unwrap();
    assert_eq!(cos.dims(), [6, 4]);
    let (cos, sin) = (cos.to_vec2::<f32>().unwrap(), sin.to_vec2::<f32>().unwrap());
    // Patch (1, 0): its middle is at 1/2 and -2/3; periods 1 and sqrt(100).
    let tau = std::f64::consts::TAU;
    for (k, angle) in [0.5, 0.05, -2.0 / 3.0, -2.0 / 30.0].into_iter().enumerate() {
        let (s, c) = (tau * angle).sin_cos();
        assert!((f64::from(cos[3][k]) - c).abs() < 1e-7);
        assert!((f64::from(sin[3][k]) - s).abs() < 1e-7);
    }
    assert!(axial_rope(6, (2, 3), 100.0, &CPU).is_err());
    assert!(axial_rope(0, (2, 3), 100.0, &CPU).is_err());
    assert_eq!(axial_rope(4, (0, 3), 1.0, &CPU).unwrap()[0].dims(), [0, 2]);
}

/// bf16 products, one thread or several: near the numbers of f32, and the same bits.
#[test]
fn any_threads_the_same_bits() {
    let (checkpoint, io) = (checkpoint("timm_plus"), io("timm_plus"));
    let images = &io["other_images"];
    let loaded = checkpoint.load(&of_size(images)).unwrap();
    for precision in [Precision::F32, Precision::Bf16] {
        // Without LayerScale and gates, blocks run as one op.
        for fused in [false, true] {
            let cfg = match fused {
                false => loaded.cfg,
                true => VitConfig {
                    init_values: None,
                    activation: Activation::Gelu,
                    ..loaded.cfg
                },
            };
            let run = |threads| {
                let compute = Compute {
                    precision,
                    unit: Unit::named("any").unwrap(),
                    ..Compute::default()
                };
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                pool.unwrap().install(|| {
                    let vars = VarMap::new();
                    let vb = vit::seeded(&vars, 3, DType::F32, &CPU);
                    let model = Vit::new(&cfg, vb).unwrap().with_compute(&compute);
                    let tokens = model.forward_features(images).unwrap();
                    let loss = (&tokens * &io["weights"]).unwrap().sum_all().unwrap();
                    let grads = vit::ops::backward(&loss).unwrap();
                    let map = vars.data().lock().unwrap();
                    let map: BTreeMap<_, _> = map.iter().collect();
                    let grads = map.into_values().map(|var| bits(grads.get(var).unwrap()));
                    std::iter::once(bits(&tokens))
                        .chain(grads)
                        .collect::<Vec<_>>()
                })
            };
            let one = run(1);
            assert!(one == run(3), "{precision:?}, fused: {fused}");
        }
    }
    let half = Compute {
        precision: Precision::Bf16,
        unit: Unit::named("any").unwrap(),
        ..Compute::default()
    };
    let model = loaded.model().unwrap().with_compute(&half);
    let got = flat(&model.forward_features(images).unwrap());
    let want = flat(&io["other_tokens"]);
    let far = got.iter().zip(&want).map(|(a, b)| (a - b).abs());
    assert!(far.fold(0f32, f32::max) < 0.2);
}

/// All tensors of a safetensors file, by name.
fn stored(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u32>)> {
    let mut tensors = safetensors::load(folder.join("model.safetensors"), &CPU).unwrap();
    // No part of the encoder.
    tensors.remove("embeddings.mask_token");
    tensors
        .into_iter()
        .map(|(name, t)| (name, (t.dims().to_vec(), bits(&t))))
        .collect()
}

/// From timm to transformers and back, and the other way round: the same tensors to the bit, and the same numbers.
#[test]
fn there_and_back() {
    use Layout::{HuggingFace, Timm};
    let dir = tempfile::tempdir().unwrap();
    for (name, way) in [
        ("timm_plain", [HuggingFace, Timm]),
        ("timm_plus", [HuggingFace, Timm]),
        ("hf_plain", [Timm, HuggingFace]),
        ("hf_gated", [Timm, HuggingFace]),
        ("hf_biases", [Timm, HuggingFace]),
    ] {
        let io = io(name);
        let mut at = fixture(name);
        let first = open(&at).unwrap();
        for (i, layout) in way.into_iter().enumerate() {
            let loaded = open(&at).unwrap().load(&LoadOptions::default()).unwrap();
            at = dir.path().join(format!("{name}-{i}"));
            loaded.save(&at, layout, DType::F32).unwrap();
            let again = open(&at).unwrap();
            assert!(again.notes().is_empty(), "{:?}", again.notes());
            let pool = first.config().pool;
            let cfg = VitConfig {
                pool: if layout == Timm { pool } else { Pool::Token },
                init_values: again.config().init_values,
                ..*first.config()
            };
            if layout == Timm && name.starts_with("hf") {
                assert_eq!(again.config(), &cfg, "{name}");
            }
            let model = again.load(&of_size(&io["other_images"])).unwrap();
            let tokens = model.model().unwrap();
            let tokens = tokens.forward_features(&io["other_images"]).unwrap();
            close(&tokens, &io["other_tokens"], name);
        }
        assert!(stored(&at) == stored(&fixture(name)), "{name}");
    }
    // One file of ours, and a classifier, which transformers lacks.
    let head = checkpoint("timm_head")
        .load(&LoadOptions::default())
        .unwrap();
    let path = dir.path().join("best.safetensors");
    head.save_file(&path).unwrap();
    let again = Checkpoint::open(path.to_str().unwrap()).unwrap();
    assert_eq!(again.config(), &head.cfg);
    assert_eq!(again.config().pos_embed, PosEmbed::Rope { theta: 30.0 });
    let same = again.load(&LoadOptions::default()).unwrap();
    assert!(same.tensors.keys().eq(head.tensors.keys()));
    let error = head.save(&dir.path().join("no"), HuggingFace, DType::F32);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("no classifier") && error.contains("--drop-head"),
        "{error}"
    );
    let odd = |change: fn(&mut VitConfig)| {
        let mut cfg = head.cfg;
        change(&mut cfg);
        Pretrained {
            cfg,
            ..head.clone()
        }
    };
    let tanh = odd(|cfg| cfg.activation = Activation::GeluTanh);
    let error = tanh
        .save(&dir.path().join("no"), Timm, DType::F32)
        .unwrap_err();
    assert!(error.to_string().contains("exact GELU"), "{error}");
    // A head of its own, trained here: timm takes it.
    let draw = |_: &str, count| vec![0.5; count];
    let fresh = checkpoint("hf_plain").load(&LoadOptions {
        head: Head::Drop,
        ..LoadOptions::default()
    });
    let classifier = fresh.unwrap().with_new_head(4, true, draw).unwrap();
    assert!(!classifier.tensors.contains_key("pos_embed"));
    let folder = dir.path().join("classifier");
    classifier.save(&folder, Timm, DType::F32).unwrap();
    assert_eq!(open(&folder).unwrap().config().num_classes, 4);
}

/// The folder of a fixture with another config.json.
fn with(name: &str, change: impl FnOnce(&mut Value)) -> Result<Checkpoint, Error> {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
    }
    let path = dir.path().join("config.json");
    let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
    let checkpoint = Checkpoint::open(dir.path().to_str().unwrap())?;
    checkpoint.check()?;
    checkpoint.load(&LoadOptions::default())?;
    Ok(checkpoint)
}

fn refused(result: Result<Checkpoint, Error>, parts: &[&str]) {
    let error = result.map(|c| *c.config()).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    for part in parts {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn what_config_json_says_is_heeded_or_refused() {
    let hf = |key: &str, value: Value| with("hf_gated", |json| json[key] = value);
    let theta = hf("rope_theta", json!(31.5)).unwrap();
    assert_eq!(theta.config().rope_theta(), Some(31.5));
    assert_eq!(
        hf("layer_norm_eps", json!(1e-7)).unwrap().config().norm_eps,
        1e-7
    );
    assert_eq!(
        hf("image_size", json!(40)).unwrap().config().image(),
        (40, 40)
    );
    let bare = with("hf_gated", |json| {
        let keep = [
            "model_type",
            "use_gated_mlp",
            "hidden_act",
            "num_attention_heads",
        ];
        let all = json.as_object_mut().unwrap();
        all.retain(|key, _| keep.contains(&key.as_str()));
    });
    let bare = bare.unwrap();
    assert_eq!(bare.config().rope_theta(), Some(100.0));
    assert_eq!(
        (bare.config().norm_eps, bare.config().image_size),
        (1e-5, 224)
    );
    assert!(bare.notes().iter().any(|n| n.contains("224 x 224")));
    for value in [json!(0), json!(-1), json!(1e300), json!("100"), json!(null)] {
        match value.is_null() {
            true => assert!(hf("rope_theta", value).is_ok()),
            false => refused(hf("rope_theta", value), &["'rope_theta'", "config.json"]),
        }
    }
    for (key, value, parts) in [
        ("key_bias", json!(true), &["true, the tensors false"][..]),
        ("query_bias", json!(true), &["true, the tensors false"]),
        ("value_bias", json!("no"), &["true or false"]),
        ("use_gated_mlp", json!(false), &["false, the tensors true"]),
        ("hidden_act", json!("gelu"), &["silu"]),
        ("use_gated_mlp", json!(null), &["false, the tensors true"]),
        ("mlp_bias", json!(false), &["false, the tensors true"]),
        ("proj_bias", json!(false), &["false, the tensors true"]),
        (
            "rope_parameters",
            json!({"rope_theta": 50.0}),
            &["the same theta"],
        ),
        ("intermediate_size", json!(80), &["80, the tensors 40"]),
        ("num_register_tokens", json!(4), &["4, the tensors 2"]),
        ("num_attention_heads", json!(4), &["heads of width 6"]),
        ("num_attention_heads", json!(5), &["not divisible"]),
        ("image_size", json!(36), &["not divisible by patch size 8"]),
        ("image_size", json!(1u64 << 40), &["image"]),
        ("hidden_size", json!(48), &["48, the tensors 24"]),
    ] {
        let parts = [&[key][..], parts].concat();
        let parts: Vec<&str> = match key {
            "num_attention_heads" | "image_size" => parts[1..].to_vec(),
            _ => parts,
        };
        refused(hf(key, value), &parts);
    }
    // A file that names its class alone.
    let class = with("hf_gated", |json| {
        json["rope_theta"] = json!(31.5);
        json.as_object_mut().unwrap().remove("model_type");
    });
    assert_eq!(class.unwrap().config().rope_theta(), Some(31.5));
    // Of another model type the key says nothing of rotary positions.
    refused(hf("model_type", json!("vit")), &["intermediate_size"]);
}

#[test]
fn timms_other_rotary_models_are_refused_by_name() {
    for name in [
        "eva02_tiny_patch14_224.mim_in22k",
        "vit_small_patch16_rope_224",
        "vit_base_patch16_rope_mixed_ape_224",
        "vit_pe_core_base_patch16_224",
        "vit_base_patch16_sapiens2",
    ] {
        let other = with("timm_plus", |json| json["architecture"] = json!(name));
        refused(other, &[name, "DINOv3"]);
    }
    let arg = |key: &str, value: Value| with("timm_plus", |json| json["model_args"][key] = value);
    for (key, value) in [
        ("rope_type", json!("cat")),
        ("rope_type", json!("mixed")),
        ("rope_grid_indexing", json!("xy")),
        ("rope_grid_offset", json!(0.5)),
        ("rope_rotate_half", json!(false)),
        ("use_abs_pos_emb", json!(true)),
        ("use_post_norm", json!(true)),
        ("rope_temperature", json!(0)),
        ("num_reg_tokens", json!(3)),
    ] {
        refused(arg(key, value), &[key]);
    }
    let theta = arg("rope_temperature", json!(20)).unwrap();
    assert_eq!(theta.config().rope_theta(), Some(20.0));
    let noted = arg("rope_rescale_coords", json!(2.0)).unwrap();
    assert!(noted
        .notes()
        .iter()
        .any(|n| n.contains("rope_rescale_coords")));
    // Without them it is no model of ours.
    refused(arg("use_rot_pos_emb", json!(false)), &["use_rot_pos_emb"]);
}

#[test]
fn a_lone_file_is_told_by_its_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lone.safetensors");
    let write = |name: &str, change: &dyn Fn(&mut HashMap<String, Tensor>)| -> Result<_, Error> {
        let mut all = safetensors::load(fixture(name).join("model.safetensors"), &CPU).unwrap();
        change(&mut all);
        safetensors::save(&all, &path).unwrap();
        let checkpoint = open(&path)?;
        checkpoint.check()?;
        Ok(checkpoint)
    };
    for name in ["timm_plain", "timm_plus", "hf_plain", "hf_gated"] {
        let lone = write(name, &|_| {}).unwrap();
        assert_eq!(lone.config().rope_theta(), Some(100.0), "{name}");
        assert_eq!(lone.config().norm_eps, 1e-5);
        let io = io(name);
        let model = lone.load(&of_size(&io["images"])).unwrap().model().unwrap();
        let tokens = model.forward_features(&io["images"]).unwrap();
        close(&tokens, &io["tokens"], name);
    }
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &CPU).unwrap();
    // A table as well; keys' biases, as other rotary models have; no registers.
    let table = write("timm_plus", &|all| {
        all.insert("pos_embed".into(), zeros(&[1, 19, 24]));
    });
    refused(table, &["q_bias", "no rotary positions of DINOv3's kind"]);
    let other = write("timm_plain", &|all| {
        for block in 0..2 {
            all.insert(format!("blocks.{block}.attn.qkv.bias"), zeros(&[72]));
        }
    });
    refused(other, &["missing: pos_embed"]);
    let none = write("timm_plain", &|all| drop(all.remove("reg_token")));
    refused(none, &["missing: pos_embed"]);
    let frequencies = write("timm_plain", &|all| {
        all.insert("rope.freqs".into(), zeros(&[2, 2, 3, 4]));
    });
    refused(frequencies, &["unexpected: rope.freqs"]);
    // What follows from the architecture is left out; a norm behind the pooling is of another kind of model.
    let periods = write("timm_plain", &|all| {
        all.insert("rope.periods".into(), zeros(&[2]));
    });
    assert_eq!(periods.unwrap().config().rope_theta(), Some(100.0));
    let pooled = write("timm_plain", &|all| {
        for part in ["weight", "bias"] {
            all.remove(&format!("norm.{part}"));
            all.insert(format!("fc_norm.{part}"), zeros(&[24]));
        }
    });
    refused(pooled, &["missing: pos_embed"]);
    // What is missing, what is odd.
    let gate = write("timm_plus", &|all| {
        drop(all.remove("blocks.1.mlp.fc1_g.weight"))
    });
    refused(gate, &["missing: blocks.1.mlp.fc1.weight", "fc1_x.weight"]);
    let bias = write("hf_biases", &|all| {
        drop(all.remove("layer.1.attention.q_proj.bias"))
    });
    refused(bias, &["missing: blocks.1.attn.qkv.bias", "k_proj.bias"]);
    let shape = write("timm_plus", &|all| {
        all.insert("blocks.0.attn.v_bias".into(), zeros(&[23]));
    });
    refused(shape, &["blocks.0.attn.v_bias [23] instead of [24]"]);
    // transformers has a tensor of no registers.
    let bare = write("hf_plain", &|all| {
        all.insert("embeddings.register_tokens".into(), zeros(&[1, 0, 24]));
    });
    assert_eq!(bare.unwrap().config().reg_tokens, 0);
}

#[test]
fn architectures_that_cannot_be() {
    let base = VitConfig {
        image_size: 32,
        patch_size: 8,
        embed_dim: 24,
        num_heads: 3,
        depth: 2,
        pos_embed: PosEmbed::Rope { theta: 100.0 },
        ..VitConfig::default()
    };
    base.validate().unwrap();
    for theta in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e10] {
        let pos_embed = PosEmbed::Rope { theta };
        let error = VitConfig { pos_embed, ..base }.validate().unwrap_err();
        assert!(error.to_string().contains("theta"), "{error}");
    }
    let error = VitConfig {
        num_heads: 4,
        ..base
    }
    .validate()
    .unwrap_err();
    assert!(error.to_string().contains("heads of width 6"), "{error}");
    // As JSON and back; a file from before has no such key.
    let json = serde_json::to_string(&base).unwrap();
    assert!(json.contains(r#""pos_embed":{"rope":{"theta":100.0}}"#) && !json.contains("key_bias"));
    assert_eq!(serde_json::from_str::<VitConfig>(&json).unwrap(), base);
    let apart = VitConfig {
        key_bias: false,
        ..base
    };
    let json = serde_json::to_string(&apart).unwrap();
    assert_eq!(serde_json::from_str::<VitConfig>(&json).unwrap(), apart);
}
