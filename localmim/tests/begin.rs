//! Models that begin with a checkpoint's weights.
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use localmim::{LocalMim, LocalMimConfig, Masking, Stage, Target};
use vit::{Checkpoint, Head, Hints, LoadOptions, PosEmbed, Vit, VitConfig};

const CPU: Device = Device::Cpu;

/// A tiny checkpoint of vit/tests: width 24, 2 blocks, patch 8, 32 px.
fn checkpoint(name: &str) -> Checkpoint {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vit/tests/fixtures/checkpoints");
    Checkpoint::open(root.join(name).to_str().unwrap()).unwrap()
}

fn config(vit: VitConfig) -> LocalMimConfig {
    let stages = [(0, 2.0), (1, 1.0)];
    LocalMimConfig {
        vit,
        stages: stages.map(|(block, scale)| Stage { block, scale }).to_vec(),
        decoder_embed_dim: 8,
        decoder_depth: 1,
        decoder_num_heads: 2,
        target: Target::Hog,
        hog_bins: 9,
    }
}

fn images(size: usize) -> Tensor {
    let value = |i: usize| ((i * 7919) % 1000) as f32 / 300.0 - 1.5;
    let data: Vec<f32> = (0..2 * 3 * size * size).map(value).collect();
    Tensor::from_vec(data, (2, 3, size, size), &CPU).unwrap()
}

fn weights(vars: &VarMap) -> BTreeMap<String, Tensor> {
    let map = vars.data().lock().unwrap();
    map.iter()
        .map(|(name, var)| (name.clone(), var.as_detached_tensor()))
        .collect()
}

fn bits(t: &Tensor) -> Vec<u32> {
    let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// What is exported at once computes what the checkpoint does, and every variable trains: LayerScale, registers, a
/// distillation token, CLIP's norm, SwiGLU among them.
#[test]
fn the_encoder_of_any_family() {
    for name in [
        "timm_clip",
        "timm_deit3",
        "timm_distilled",
        "timm_registers",
        "timm_swiglu",
        "hf_deit",
        "hf_deit_teacher",
        "hf_dinov2",
        "hf_dinov2_registers",
        "hf_dinov2_swiglu",
        "hf_vit_tanh",
        "../dinov3/timm_plus",
        "../dinov3/hf_plain",
    ] {
        let checkpoint = checkpoint(name);
        let size = checkpoint.config().image_size;
        let cfg = config(LocalMimConfig::encoder_of(&checkpoint, size).unwrap());
        let rotary = name.contains("dinov3");
        match rotary {
            true => assert_eq!(cfg.vit.pos_embed, PosEmbed::Rope { theta: 100.0 }),
            false => assert_eq!(cfg.vit.pos_embed, PosEmbed::Learnt, "{name}"),
        }
        let vars = VarMap::new();
        let model = LocalMim::new(&cfg, vit::seeded(&vars, 0, DType::F32, &CPU)).unwrap();
        let begun = cfg.begin(&vars, &checkpoint, None, &CPU).unwrap();
        let new = |name: &String| name.starts_with("decoder.") || name.starts_with("norm.0.");
        assert!(begun.new.iter().all(new), "{name}: {:?}", begun.new);

        let image = images(size);
        let options = LoadOptions {
            head: Head::Drop,
            ..LoadOptions::default()
        };
        let own = checkpoint.load(&options).unwrap();
        if own.tensors.contains_key("norm.weight") {
            let tensors = cfg.encoder_tensors(&weights(&vars)).unwrap();
            let vb = VarBuilder::from_tensors(tensors.into_iter().collect(), DType::F32, &CPU);
            let exported = Vit::new(&cfg.vit, vb).unwrap();
            let got = exported.forward_features(&image).unwrap();
            let want = own.model().unwrap().forward_features(&image).unwrap();
            assert!(bits(&got) == bits(&want), "{name}");
        }

        let noise: Vec<f32> = (0..2 * cfg.vit.patches())
            .map(|i| (i * 7 % 16) as f32)
            .collect();
        let masking = Masking::from_noise(&noise, cfg.vit.patches(), 0.75).unwrap();
        let grads = model
            .loss(&image, &masking)
            .unwrap()
            .total
            .backward()
            .unwrap();
        for (variable, var) in vars.data().lock().unwrap().iter() {
            let grad = grads.get(var);
            let grad = grad.unwrap_or_else(|| panic!("{name}: {variable} has no gradient"));
            assert!(
                bits(grad).iter().any(|&x| x << 1 != 0),
                "{name}: {variable}"
            );
            assert!(
                cfg.layer_of(variable, false).is_some(),
                "{name}: {variable}"
            );
        }
    }
}

/// MAE's fixed table stays fixed on its own grid; on another it is resampled, and trains.
#[test]
fn position_tables() {
    let mae = checkpoint_of_mae();
    let same = LocalMimConfig::encoder_of(&mae, 16).unwrap();
    assert_eq!(same.pos_embed, PosEmbed::SinCos);
    let larger = LocalMimConfig::encoder_of(&mae, 24).unwrap();
    assert_eq!(larger.pos_embed, PosEmbed::Learnt);
    let cfg = config(larger);
    let vars = VarMap::new();
    LocalMim::new(&cfg, vit::seeded(&vars, 0, DType::F32, &CPU)).unwrap();
    cfg.begin(&vars, &mae, None, &CPU).unwrap();
    let options = LoadOptions {
        image: Some((24, 24)),
        ..LoadOptions::default()
    };
    let want = &mae.load(&options).unwrap().tensors["pos_embed"];
    assert_eq!(want.dims(), [1, 37, 16]);
    assert!(bits(&weights(&vars)["pos_embed"]) == bits(want));
}

fn checkpoint_of_mae() -> Checkpoint {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vit_mae");
    Checkpoint::open(root.to_str().unwrap()).unwrap()
}

/// MAE's decoder is taken where it fits: as deep and wide, at scale 1, for pixels.
#[test]
fn decoders_are_taken_whole_or_not_at_all() {
    let mae = checkpoint_of_mae();
    let vit = LocalMimConfig::encoder_of(&mae, 16).unwrap();
    let plain = LocalMimConfig {
        stages: vec![Stage {
            block: 1,
            scale: 1.0,
        }],
        decoder_depth: 2,
        target: Target::Pixel { normalise: true },
        ..config(vit)
    };
    let begin = |cfg: &LocalMimConfig, of: Option<&LocalMimConfig>| {
        let vars = VarMap::new();
        LocalMim::new(cfg, vit::seeded(&vars, 0, DType::F32, &CPU)).unwrap();
        cfg.begin(&vars, &mae, of, &CPU).unwrap()
    };
    let whole = begin(&plain, None);
    assert!(whole.new.is_empty() && whole.left.is_empty(), "{whole:?}");
    assert!(begin(&plain, Some(&plain)).new.is_empty());
    let other = |change: fn(&mut LocalMimConfig)| {
        let mut cfg = plain.clone();
        change(&mut cfg);
        cfg
    };
    for cfg in [
        other(|cfg| cfg.target = Target::Hog),
        other(|cfg| cfg.stages[0].scale = 0.5),
        other(|cfg| cfg.decoder_embed_dim = 16),
        other(|cfg| cfg.decoder_depth = 3),
    ] {
        let begun = begin(&cfg, None);
        assert!(begun.new.iter().all(|name| name.starts_with("decoder.0.")));
        assert!(begun.taken.iter().all(|name| !name.starts_with("decoder.")));
        assert!(begun.left.contains(&"decoder.0.embed.weight".to_owned()));
    }
    // Of the same shapes, but trained for another target or block.
    for of in [
        other(|cfg| cfg.target = Target::Pixel { normalise: false }),
        other(|cfg| cfg.stages[0].block = 0),
    ] {
        assert!(!begin(&plain, Some(&of)).new.is_empty());
    }
}

/// The same model under MAE's own names, and under those that transformers 4 writes, begins with the same bits.
#[test]
fn other_names_of_mae_mean_the_same() {
    let hugging_face = checkpoint_of_mae();
    let cfg = LocalMimConfig {
        stages: vec![Stage {
            block: 1,
            scale: 1.0,
        }],
        decoder_depth: 2,
        target: Target::Pixel { normalise: false },
        ..config(LocalMimConfig::encoder_of(&hugging_face, 16).unwrap())
    };
    let begin = |checkpoint: &Checkpoint| {
        let vars = VarMap::new();
        LocalMim::new(&cfg, vit::seeded(&vars, 0, DType::F32, &CPU)).unwrap();
        let begun = cfg.begin(&vars, checkpoint, None, &CPU).unwrap();
        assert!(begun.new.is_empty() && begun.left.is_empty(), "{begun:?}");
        weights(&vars)
    };
    let want = begin(&hugging_face);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vit_mae");
    std::fs::create_dir_all(&folder).unwrap();
    let origin = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vit_mae");
    std::fs::copy(origin.join("config.json"), folder.join("config.json")).unwrap();
    let file = "model.safetensors";
    let all = candle_core::safetensors::load(origin.join(file), &CPU).unwrap();
    let rename = |name: String| name.replace("decoder_encoder.layer.", "decoder_layers.");
    let all = all.into_iter().map(|(name, tensor)| (rename(name), tensor));
    candle_core::safetensors::save(&all.collect(), folder.join(file)).unwrap();
    let got = begin(&Checkpoint::open(folder.to_str().unwrap()).unwrap());
    assert!(got
        .iter()
        .all(|(name, tensor)| bits(tensor) == bits(&want[name])));

    let mut stored = cfg.encoder_tensors(&want).unwrap();
    for (name, tensor) in &want {
        if let Some(name) = name.strip_prefix("decoder.0.") {
            let (name, tensor) = match name.strip_prefix("pred.0.") {
                // A linear layer there.
                Some("weight") => ("pred.weight".into(), tensor.flatten_from(1).unwrap()),
                Some(kind) => (format!("pred.{kind}"), tensor.clone()),
                None => (name.to_owned(), tensor.clone()),
            };
            let name = match name.as_str() {
                "mask_token" => name,
                name => format!("decoder_{name}"),
            };
            stored.insert(name, tensor);
        }
    }
    let table = vit::sincos_2d(8, (4, 4), &CPU).unwrap();
    stored.insert("decoder_pos_embed".into(), table.clone());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mae.safetensors");
    let save = |stored: &BTreeMap<String, Tensor>| {
        let all = stored.clone().into_iter().collect();
        candle_core::safetensors::save(&all, &path).unwrap();
        let hints = Hints {
            num_heads: Some(2),
            norm_eps: Some(1e-12),
            ..Hints::default()
        };
        Checkpoint::open_with(path.to_str().unwrap(), &hints).unwrap()
    };
    let got = begin(&save(&stored));
    for (name, want) in &want {
        assert!(bits(&got[name]) == bits(want), "{name}");
    }
    // A decoder that was trained with another position table is not taken.
    stored.insert("decoder_pos_embed".into(), (table * 0.0).unwrap());
    let vars = VarMap::new();
    LocalMim::new(&cfg, vit::seeded(&vars, 0, DType::F32, &CPU)).unwrap();
    let begun = cfg.begin(&vars, &save(&stored), None, &CPU).unwrap();
    assert!(begun.new.contains(&"decoder.0.embed.weight".to_owned()));
}
