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
        let cfg = config(LocalMimConfig::encoder_of(&checkpoint, size, false).unwrap());
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

/// MAE's fixed table stays fixed on its own grid; on another it is resampled, and trains. Where images grow it is computed
/// for each size.
#[test]
fn position_tables() {
    let mae = checkpoint_of_mae();
    let same = LocalMimConfig::encoder_of(&mae, 16, false).unwrap();
    assert_eq!(same.pos_embed, PosEmbed::SinCos);
    let larger = LocalMimConfig::encoder_of(&mae, 24, false).unwrap();
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

    let growing = LocalMimConfig::encoder_of(&mae, 24, true).unwrap();
    assert_eq!(growing.pos_embed, PosEmbed::SinCos);
    let cfg = config(growing);
    let vars = VarMap::new();
    LocalMim::new(&cfg, vit::seeded(&vars, 0, DType::F32, &CPU)).unwrap();
    cfg.begin(&vars, &mae, None, &CPU).unwrap();
    let weights = weights(&vars);
    assert!(!weights.contains_key("pos_embed"));
    let exported = &cfg.encoder_tensors(&weights).unwrap()["pos_embed"];
    let fixed = vit::sincos_2d(16, (6, 6), &CPU).unwrap();
    assert!(bits(exported) == bits(&fixed));
    // One that was learnt is no such table.
    let learnt = checkpoint("hf_dinov2");
    let learnt = LocalMimConfig::encoder_of(&learnt, 48, true).unwrap();
    assert_eq!(learnt.pos_embed, PosEmbed::Learnt);
}

fn checkpoint_of_mae() -> Checkpoint {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vit_mae");
    Checkpoint::open(root.to_str().unwrap()).unwrap()
}

/// MAE's decoder is taken where it fits: as deep and wide, at scale 1, for pixels.
#[test]
fn decoders_are_taken_whole_or_not_at_all() {
    let mae = checkpoint_of_mae();
    let vit = LocalMimConfig::encoder_of(&mae, 16, false).unwrap();
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
        // All its shapes fit, but it has more blocks, other heads.
        other(|cfg| cfg.decoder_depth = 1),
        other(|cfg| cfg.decoder_num_heads = 1),
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
        other(|cfg| cfg.decoder_num_heads = 1),
    ] {
        assert!(!begin(&plain, Some(&of)).new.is_empty());
    }
    // It hung on the last block, so it does again, whatever stages come before.
    let two = other(|cfg| {
        let scale = 1.0;
        cfg.stages.insert(0, Stage { block: 0, scale });
    });
    let begun = begin(&two, None);
    let first = |name: &String| name.starts_with("decoder.0.") || name.starts_with("norm.0.");
    assert!(begun.new.iter().all(first), "{:?}", begun.new);
    assert!(begun.taken.contains(&"decoder.1.embed.weight".to_owned()));
    assert!(begun.left.is_empty(), "{:?}", begun.left);
    let halved = other(|cfg| {
        let scale = 0.5;
        cfg.stages = vec![
            Stage {
                block: 0,
                scale: 1.0,
            },
            Stage { block: 1, scale },
        ];
    });
    let begun = begin(&halved, None);
    assert!(begun.taken.iter().all(|name| !name.starts_with("decoder.")));
}

/// A stage finds its decoder by block and scale, whatever its number was.
#[test]
fn stages_are_told_by_block_and_scale() {
    let encoder = VitConfig {
        image_size: 32,
        patch_size: 8,
        embed_dim: 24,
        depth: 4,
        num_heads: 3,
        pos_embed: PosEmbed::SinCos,
        ..VitConfig::default()
    };
    let with = |stages: &[(usize, f64)]| LocalMimConfig {
        stages: (stages.iter())
            .map(|&(block, scale)| Stage { block, scale })
            .collect(),
        ..config(encoder)
    };
    let first = with(&[(0, 2.0), (1, 2.0), (2, 1.0), (3, 0.5)]);
    let vars = VarMap::new();
    LocalMim::new(&first, vit::seeded(&vars, 5, DType::F32, &CPU)).unwrap();
    let saved = weights(&vars);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("four_stages.safetensors");
    candle_core::safetensors::save(&saved.clone().into_iter().collect(), &path).unwrap();
    let hints = Hints {
        num_heads: Some(3),
        image: Some((32, 32)),
        pos_embed: Some(PosEmbed::SinCos),
        ..Hints::default()
    };
    let checkpoint = Checkpoint::open_with(path.to_str().unwrap(), &hints).unwrap();
    let begin = |cfg: &LocalMimConfig, of: Option<&LocalMimConfig>| {
        let vars = VarMap::new();
        LocalMim::new(cfg, vit::seeded(&vars, 6, DType::F32, &CPU)).unwrap();
        let begun = cfg.begin(&vars, &checkpoint, of, &CPU).unwrap();
        (begun, weights(&vars))
    };
    for (stages, numbers) in [
        (&[(3, 0.5)][..], &[Some(3)][..]),
        (&[(1, 2.0), (3, 0.5)], &[Some(1), Some(3)]),
        (&[(0, 1.0), (2, 1.0), (3, 0.5)], &[None, Some(2), Some(3)]),
        // The same shapes, another block.
        (&[(0, 2.0), (2, 2.0), (3, 0.5)], &[Some(0), None, Some(3)]),
    ] {
        let (begun, got) = begin(&with(stages), Some(&first));
        assert!(!begun.heads_assumed);
        for (name, tensor) in &got {
            let mut words = name.splitn(3, '.');
            let (part, number, rest) = (words.next().unwrap(), words.next(), words.next());
            let number = match part {
                "decoder" | "norm" => numbers[number.unwrap().parse::<usize>().unwrap()],
                _ => continue,
            };
            let Some(number) = number else {
                assert!(begun.new.contains(name), "{stages:?}: {name}");
                continue;
            };
            let theirs = format!("{part}.{number}.{}", rest.unwrap());
            assert!(bits(tensor) == bits(&saved[&theirs]), "{stages:?}: {name}");
            assert!(begun.taken.contains(name), "{stages:?}: {name}");
        }
    }
    // Nobody knows its blocks and heads: as many are those in their order, and that is told.
    let (begun, _) = begin(&first, None);
    assert!(begun.new.is_empty() && begun.heads_assumed, "{begun:?}");
    let (begun, _) = begin(&with(&[(0, 2.0), (3, 0.5)]), None);
    let decoders = |name: &String| name.starts_with("decoder.");
    assert!(!begun.taken.iter().any(decoders) && !begun.heads_assumed);
}

/// One number has no deviation.
#[test]
fn cells_of_one_number_are_not_normalised() {
    let cfg = |in_chans, scale, normalise| {
        let vit = VitConfig {
            image_size: 16,
            patch_size: 4,
            embed_dim: 24,
            depth: 2,
            num_heads: 3,
            in_chans,
            ..VitConfig::default()
        };
        let mut cfg = config(vit);
        cfg.stages[0].scale = scale;
        cfg.target = Target::Pixel { normalise };
        cfg
    };
    for (in_chans, scale, normalise) in [(1, 2.0, true), (1, 4.0, false), (2, 4.0, true)] {
        cfg(in_chans, scale, normalise).validate().unwrap();
    }
    let error = cfg(1, 4.0, true).validate().unwrap_err().to_string();
    assert!(
        error.contains("stage at block 0: with scale 4 its cells are single numbers")
            && error.contains("leave norm-pix out"),
        "{error}"
    );
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
        ..config(LocalMimConfig::encoder_of(&hugging_face, 16, false).unwrap())
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
