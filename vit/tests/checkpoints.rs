//! Checkpoints of every family compute what the library computes that saved them.
use std::path::{Path, PathBuf};

use candle_core::{safetensors, DType, Device, Tensor};
use vit::{Checkpoint, Error, Family, Head, Hints, LoadOptions, Pool, Resample};

const CPU: Device = Device::Cpu;
/// Of the largest absolute value, or of 1.
const TOLERANCE: f32 = 1e-5;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn close(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (got, want) = (flat(got), flat(want));
    let scale = want.iter().fold(1f32, |m, x| m.max(x.abs()));
    for (i, (a, b)) in got.iter().zip(&want).enumerate() {
        assert!(
            (a - b).abs() <= TOLERANCE * scale,
            "{what}[{i}]: {a}, not {b}"
        );
    }
}

fn open(path: &Path, hints: &Hints) -> Checkpoint {
    Checkpoint::open_with(path.to_str().unwrap(), hints).unwrap_or_else(|e| panic!("{e}"))
}

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> vit::Vit {
    let loaded = checkpoint.load(options).unwrap_or_else(|e| panic!("{e}"));
    loaded.model().unwrap()
}

/// Loads a case of make_fixtures.py and compares tokens and logits.
fn case(name: &str, family: Family) -> Checkpoint {
    let folder = fixture("checkpoints");
    let io = folder.join(format!("{name}.io.safetensors"));
    let io = safetensors::load(io, &CPU).unwrap();
    let mut path = folder.join(name);
    // Only folders have a config.json that tells the heads.
    let mut hints = Hints::default();
    if !path.exists() {
        path = folder.join(format!("{name}.pth"));
        hints.num_heads = Some(3);
    }
    let checkpoint = open(&path, &hints);
    assert_eq!(checkpoint.family(), family, "{name}");
    let model = load(&checkpoint, &LoadOptions::default());
    let tokens = model.forward_features(&io["images"]).unwrap();
    close(&tokens, &io["tokens"], &format!("{name}: tokens"));
    match io.get("logits") {
        // timm's models without a head give what the head would have seen.
        Some(features) if model.config().num_classes == 0 => {
            let got = model.pool(&tokens).unwrap();
            close(&got, features, &format!("{name}: features"));
        }
        Some(logits) => {
            let got = model.forward(&io["images"]).unwrap();
            close(&got, logits, &format!("{name}: logits"));
        }
        None => {}
    }
    if let Some(logits) = io.get("resized_logits") {
        let images = &io["resized_images"];
        let options = LoadOptions {
            image: Some((images.dim(2).unwrap(), images.dim(3).unwrap())),
            ..LoadOptions::default()
        };
        let got = load(&checkpoint, &options).forward(images).unwrap();
        close(&got, logits, &format!("{name}: logits at another size"));
    }
    checkpoint
}

#[test]
fn timm() {
    for name in [
        "timm_clip",
        "timm_swiglu",
        "timm_nonsquare",
        "timm_distilled",
        "timm_deit3",
        "timm_registers",
    ] {
        let checkpoint = case(name, Family::Timm);
        assert!(checkpoint.unused().is_empty(), "{name}");
        assert!(
            checkpoint.notes().is_empty(),
            "{name}: {:?}",
            checkpoint.notes()
        );
        assert_eq!(checkpoint.labels()[&4], "elk");
    }
}

#[test]
fn pytorch_files() {
    let mae = case("mae", Family::Mae);
    assert_eq!(mae.unused().len(), 4 + 1, "{:?}", mae.unused());
    case("dino", Family::Dino);
    case("dinov2_registers", Family::Dinov2);
    case("module_f16", Family::Timm);
}

#[test]
fn hugging_face() {
    case("hf_deit_teacher", Family::HfDeit);
    let deit = case("hf_deit", Family::HfDeit);
    assert_eq!(deit.labels()[&0], "ant");
    assert_eq!(deit.preprocess().mean, [0.5, 0.4, 0.3]);
    assert_eq!(deit.preprocess().crop_pct, (0.8, 0.8));
    case("hf_vit_tanh", Family::HfVit);
    let dino = case("hf_dinov2", Family::HfDinov2);
    assert_eq!(dino.config().pool, Pool::TokenAvg);
    case("hf_dinov2_swiglu", Family::HfDinov2);
    case("hf_dinov2_registers", Family::HfDinov2);
}

/// Writes the tensors of a golden file that start with `prefix` as a checkpoint.
fn golden(file: &str, prefix: &str, folder: &Path) -> PathBuf {
    let all = safetensors::load(fixture(file), &CPU).unwrap();
    let tensors = all.into_iter().filter_map(|(name, tensor)| {
        let name = name.strip_prefix(prefix)?;
        Some((name.to_owned(), tensor))
    });
    let path = folder.join(format!("{}safetensors", prefix.replace("model.", "")));
    safetensors::save(&tensors.collect(), &path).unwrap();
    path
}

#[test]
fn golden_timm_vit_tiny() {
    let folder = tempfile::tempdir().unwrap();
    let hints = Hints {
        num_heads: Some(3),
        ..Hints::default()
    };
    let path = golden("timm_vit_tiny.safetensors", "model.", folder.path());
    let model = load(&open(&path, &hints), &LoadOptions::default());
    let io = safetensors::load(fixture("timm_vit_tiny.safetensors"), &CPU).unwrap();
    let tokens = model.forward_features(&io["imgs"]).unwrap();
    close(&tokens, &io["features"], "features");
    close(
        &model.forward(&io["imgs"]).unwrap(),
        &io["logits"],
        "logits",
    );
}

#[test]
fn golden_vit_finetune() {
    let folder = tempfile::tempdir().unwrap();
    let hints = Hints {
        num_heads: Some(4),
        ..Hints::default()
    };
    let io = safetensors::load(fixture("vit_finetune.safetensors"), &CPU).unwrap();
    for (prefix, pool) in [("gp.", Pool::Avg), ("cls.", Pool::Token)] {
        let path = golden(
            "vit_finetune.safetensors",
            &format!("{prefix}model."),
            folder.path(),
        );
        let checkpoint = open(&path, &hints);
        assert_eq!(checkpoint.config().pool, pool);
        assert_eq!(checkpoint.config().fc_norm, pool == Pool::Avg);
        let model = load(&checkpoint, &LoadOptions::default());
        let tokens = model.forward_features(&io["imgs"]).unwrap();
        let features = model.pool(&tokens).unwrap();
        close(&features, &io[&format!("{prefix}features")], "features");
        let logits = model.forward(&io["imgs"]).unwrap();
        close(&logits, &io[&format!("{prefix}logits")], "logits");
    }
}

#[test]
fn golden_hf_vit() {
    let folder = tempfile::tempdir().unwrap();
    let hints = Hints {
        num_heads: Some(4),
        ..Hints::default()
    };
    let io = safetensors::load(fixture("hf_vit.safetensors"), &CPU).unwrap();
    let images = &io["imgs"];

    let path = golden("hf_vit.safetensors", "vit_model.model.", folder.path());
    let checkpoint = open(&path, &hints);
    assert_eq!(
        checkpoint.unused(),
        ["pooler.dense.bias", "pooler.dense.weight"]
    );
    let model = load(&checkpoint, &LoadOptions::default());
    let tokens = model.forward_features(images).unwrap();
    close(&tokens, &io["vit_model.last_hidden_state"], "ViTModel");

    let path = golden("hf_vit.safetensors", "vit_cls.model.", folder.path());
    let model = load(&open(&path, &hints), &LoadOptions::default());
    let logits = model.forward(images).unwrap();
    close(&logits, &io["vit_cls.logits"], "ViTForImageClassification");
}

/// The masked encoder, seen through the decoder that the golden has: the decoder is rebuilt here from the same parts.
#[test]
fn golden_hf_mae() {
    use std::collections::HashMap;

    use candle_nn::VarBuilder;
    use vit::{ops::plain, Block, LayerNorm, Linear, VitConfig};

    let folder = tempfile::tempdir().unwrap();
    let hints = Hints {
        num_heads: Some(4),
        ..Hints::default()
    };
    let io = safetensors::load(fixture("hf_vit.safetensors"), &CPU).unwrap();
    let path = golden("hf_vit.safetensors", "vit_mae.model.", folder.path());
    let checkpoint = open(&path, &hints);
    assert_eq!(checkpoint.family(), Family::HfVitMae);
    let pretrained = checkpoint.load(&LoadOptions::default()).unwrap();
    let model = pretrained.model().unwrap();

    let ids_restore = io["vit_mae.ids_restore"].to_vec2::<i64>().unwrap();
    let restore: Vec<u32> = ids_restore.iter().flatten().map(|&i| i as u32).collect();
    let mut keep = Vec::new();
    for ids in &ids_restore {
        // ids_restore is the inverse of the shuffle; a quarter of the 16 patches stays.
        keep.extend((0..4).map(|k| ids.iter().position(|&i| i == k).unwrap() as u32));
    }
    let last = model.config().depth - 1;
    let tokens = model.features(&io["imgs"], Some(&keep), &[last]).unwrap();
    let norm = &pretrained.tensors;
    let latent =
        plain::layer_norm(&tokens[0], &norm["norm.weight"], &norm["norm.bias"], 1e-12).unwrap();

    // The decoder's layers under the names that Block reads.
    let mut decoder = HashMap::new();
    for (name, tensor) in &io {
        let Some(name) = name.strip_prefix("vit_mae.model.decoder.") else {
            continue;
        };
        let name = name
            .replace("layernorm_before", "norm1")
            .replace("layernorm_after", "norm2")
            .replace("attention.output.dense", "attn.proj")
            .replace("intermediate.dense", "mlp.fc1")
            .replace("output.dense", "mlp.fc2");
        if name.contains(".query.") {
            let stored = |part| {
                let name = format!("vit_mae.model.decoder.{name}").replace("query", part);
                io[&name].clone()
            };
            let qkv = Tensor::cat(&[stored("query"), stored("key"), stored("value")], 0).unwrap();
            decoder.insert(name.replace("attention.attention.query", "attn.qkv"), qkv);
        }
        decoder.insert(name, tensor.clone());
    }
    let vb = VarBuilder::from_tensors(decoder, DType::F32, &CPU);
    let x = Linear::new(48, 32, vb.pp("decoder_embed")).unwrap();
    let x = x.forward(&latent).unwrap();
    let mask_token = vb.get((1, 1, 32), "mask_token").unwrap();
    let pos_embed = vb.get((1, 17, 32), "decoder_pos_embed").unwrap();
    let mut x = plain::unshuffle(&x, &mask_token, &pos_embed, &restore).unwrap();
    let cfg = VitConfig {
        embed_dim: 32,
        num_heads: 4,
        depth: 2,
        mlp_ratio: 2.0,
        norm_eps: 1e-12,
        ..VitConfig::default()
    };
    for i in 0..2 {
        let block = Block::new(&cfg, i, vb.pp("decoder_layers").pp(i)).unwrap();
        x = block.forward(&x).unwrap();
    }
    let norm = LayerNorm::new(32, 1e-12, vb.pp("decoder_norm")).unwrap();
    let pred = Linear::new(32, 768, vb.pp("decoder_pred")).unwrap();
    let x = pred.forward(&norm.forward(&x).unwrap()).unwrap();
    close(&x.narrow(1, 1, 16).unwrap(), &io["vit_mae.logits"], "MAE");
}

/// MAE's bicubic resampling; timm's is in the cases above.
#[test]
fn position_tables_resample() {
    let io = safetensors::load(fixture("interp.safetensors"), &CPU).unwrap();
    for (from, to) in [(4, 3), (4, 6), (8, 5)] {
        let table = &io[&format!("interp_{from}_to_{to}.in")];
        let want = &io[&format!("interp_{from}_to_{to}.out")];
        let how = Resample::Plain;
        let got = vit::resample_pos_embed(table, 1, (from, from), (to, to), how).unwrap();
        close(&got, want, &format!("{from} -> {to}"));
    }
}

#[test]
fn heads_change_by_choice_only() {
    let path = fixture("checkpoints/timm_clip");
    let checkpoint = open(&path, &Hints::default());
    assert_eq!(checkpoint.config().num_classes, 5);
    let options = |head| LoadOptions {
        head,
        ..LoadOptions::default()
    };
    let dropped = checkpoint.load(&options(Head::Drop)).unwrap();
    assert_eq!(dropped.cfg.num_classes, 0);
    assert!(!dropped.tensors.contains_key("head.weight"));
    let new = Head::New {
        classes: 7,
        seed: 1,
    };
    let new = checkpoint.load(&options(new)).unwrap();
    assert_eq!(new.tensors["head.weight"].dims(), [7, 24]);
    let images = Tensor::zeros((1, 3, 32, 32), DType::F32, &CPU).unwrap();
    let logits = new.model().unwrap().forward(&images).unwrap();
    assert_eq!(logits.dims(), [1, 7]);
}

/// One error names everything that is wrong.
#[test]
fn differences_come_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = golden("timm_vit_tiny.safetensors", "model.", folder.path());
    let mut tensors = safetensors::load(&path, &CPU).unwrap();
    tensors.remove("blocks.1.attn.qkv.weight");
    tensors.remove("norm.bias");
    let zeros = |n| Tensor::zeros(n, DType::F32, &CPU).unwrap();
    tensors.insert("blocks.0.norm1.bias".into(), zeros(95));
    tensors.insert("blocks.0.attn.q_norm.weight".into(), zeros(32));
    tensors.insert("what.is.this".into(), zeros(1));
    safetensors::save(&tensors, &path).unwrap();
    let hints = Hints {
        num_heads: Some(3),
        ..Hints::default()
    };
    let error = open(&path, &hints).load(&LoadOptions::default());
    let Err(Error::Mismatch(mismatch)) = error else {
        panic!("{error:?}");
    };
    assert_eq!(mismatch.missing, ["blocks.1.attn.qkv.weight", "norm.bias"]);
    assert_eq!(
        mismatch.unexpected,
        ["what.is.this", "blocks.0.attn.q_norm.weight"]
    );
    let wrong = ("blocks.0.norm1.bias".to_owned(), vec![95], vec![96]);
    assert_eq!(mismatch.misshaped, [wrong]);
    let text = mismatch.to_string();
    assert!(
        !text.contains('\n') && text.contains("2 missing: blocks.1"),
        "{text}"
    );
}

#[test]
fn nan_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = golden("timm_vit_tiny.safetensors", "model.", folder.path());
    let mut tensors = safetensors::load(&path, &CPU).unwrap();
    let mut values = tensors["norm.weight"].to_vec1::<f32>().unwrap();
    values[17] = f32::NAN;
    tensors.insert("norm.weight".into(), Tensor::new(values, &CPU).unwrap());
    safetensors::save(&tensors, &path).unwrap();
    let hints = Hints {
        num_heads: Some(3),
        ..Hints::default()
    };
    let error = open(&path, &hints)
        .load(&LoadOptions::default())
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("'norm.weight' has NaN") && text.contains("safetensors"),
        "{text}"
    );
}

/// One file with everything: names of the classes, preprocessing, pooling, and the table where there was none.
#[test]
fn a_classifier_in_one_file() {
    use vit::{PosEmbed, Preprocess, Pretrained, VitConfig};

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("best.safetensors");
    let cfg = VitConfig {
        image_size: 32,
        patch_size: 8,
        embed_dim: 24,
        num_heads: 2,
        depth: 2,
        pool: Pool::Avg,
        pos_embed: PosEmbed::SinCos,
        num_classes: 3,
        ..VitConfig::default()
    };
    let vars = candle_nn::VarMap::new();
    vit::Vit::new(&cfg, vit::seeded(&vars, 5, DType::F32, &CPU)).unwrap();
    let map = vars.data().lock().unwrap();
    let tensors = map.iter().map(|(n, v)| (n.clone(), v.as_detached_tensor()));
    let names = ["cat", "dog", "eel"].map(str::to_owned);
    let fixed = Pretrained {
        cfg,
        tensors: tensors.collect(),
        labels: names.into_iter().enumerate().collect(),
        preprocess: Preprocess {
            mean: vec![0.5; 3],
            known: true,
            ..Preprocess::usual((32, 32))
        },
    };
    let images = Tensor::arange(0f32, (3 * 32 * 32) as f32, &CPU).unwrap();
    let images = (images.reshape((1, 3, 32, 32)).unwrap() / 3072.0).unwrap();
    let want = fixed.model().unwrap().forward(&images).unwrap();
    let learnt = fixed.clone().with_learnt_table().unwrap();
    assert_eq!(learnt.tensors["pos_embed"].dims(), [1, 17, 24]);
    for (pretrained, pos_embed) in [(fixed, PosEmbed::SinCos), (learnt, PosEmbed::Learnt)] {
        pretrained.save_file(&path).unwrap();
        // By its folder, too.
        let checkpoint = Checkpoint::open(folder.path().to_str().unwrap()).unwrap();
        assert_eq!(checkpoint.config().pos_embed, pos_embed);
        assert_eq!(checkpoint.config().pool, Pool::Avg);
        let loaded = checkpoint.load(&LoadOptions::default()).unwrap();
        assert_eq!(loaded.labels, pretrained.labels);
        assert_eq!(loaded.preprocess, pretrained.preprocess);
        let got = loaded.model().unwrap().forward(&images).unwrap();
        close(&got, &want, "logits");
    }
}
