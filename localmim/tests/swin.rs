//! LocalMIM on a Swin Transformer: against whole windows that are masked, in PyTorch (scripts/swin_fixtures.py); freezing.
use std::collections::BTreeMap;

use candle_core::{safetensors, DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use freezeout::{AdamW, Change, FreezeOut, Optimizer, Schedule, Spacing};
use localmim::{LocalMim, LocalMimConfig, Masking, Stage, Target};
use vit::ops::Compute;
use vit::{Swin, SwinConfig, VitConfig};

const CPU: Device = Device::Cpu;

fn config(image: usize, in_chans: usize) -> LocalMimConfig {
    config_of([2, 2, 1, 1], 4, (image, in_chans))
}

fn config_of(
    depths: [usize; 4],
    patch_size: usize,
    (image, in_chans): (usize, usize),
) -> LocalMimConfig {
    let swin = SwinConfig {
        depths,
        num_heads: [1, 2, 2, 4],
        window_size: 4,
    };
    let vit = VitConfig {
        mlp_ratio: 2.0,
        in_chans,
        patch_size,
        ..swin.model(8).with_image((image, image))
    };
    LocalMimConfig {
        decoder_embed_dim: 16,
        decoder_num_heads: 2,
        target: Target::Pixel { normalise: false },
        ..LocalMimConfig::new(vit).unwrap()
    }
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn close(got: &Tensor, want: &Tensor, tolerance: f32, what: &str) {
    let (got, want) = (flat(got), flat(want));
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1f32, |m, x| m.max(x.abs()));
    for (i, (a, b)) in got.iter().zip(&want).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * scale,
            "{what}[{i}]: {a}, not {b}"
        );
    }
}

/// Visible tokens alone are what whole windows compute whose hidden tokens are masked; predictions, losses, gradients follow.
#[test]
fn goldens() {
    golden("swin_masked", &config_of([2, 2, 1, 1], 2, (32, 1)));
}

/// The same where windows do not divide a stage, whose padding is not seen.
#[test]
fn goldens_with_padding() {
    let cfg = config_of([1, 1, 2, 1], 2, (48, 1));
    assert_eq!(cfg.vit.stage_grid(2), (6, 6));
    golden("swin_masked_padded", &cfg);
}

fn golden(name: &str, cfg: &LocalMimConfig) {
    let root = env!("CARGO_MANIFEST_DIR");
    let path = format!("{root}/tests/fixtures/{name}.safetensors");
    let io = safetensors::load(path, &CPU).unwrap();
    for plain in [false, true] {
        let compute = &Compute {
            plain,
            ..Compute::default()
        };
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &CPU);
        let model = LocalMim::new(cfg, vb.clone())
            .unwrap()
            .with_compute(compute);
        let map = vars.data().lock().unwrap();
        let mut stored: Vec<&str> = io.keys().filter_map(|k| k.strip_prefix("model.")).collect();
        let mut ours: Vec<&str> = map.keys().map(String::as_str).collect();
        stored.sort_unstable();
        ours.sort_unstable();
        assert_eq!(ours, stored);
        for (name, var) in map.iter() {
            var.set(&io[&format!("model.{name}")]).unwrap();
        }
        drop(map);
        let noise = flat(&io["noise"]);
        let masking = Masking::from_noise(&noise, cfg.units(), 0.5).unwrap();
        let images = &io["images"];
        let encoder = Swin::encoder(&cfg.vit, vb).unwrap().with_compute(compute);
        let blocks: Vec<usize> = cfg.stages.iter().map(|stage| stage.block).collect();
        let tokens = encoder
            .visible_features(images, &masking.ids_keep, &blocks)
            .unwrap();
        for (k, tokens) in tokens.iter().enumerate() {
            let what = format!("tokens of stage {k}, plain {plain}");
            close(tokens, &io[&format!("tokens.{k}")], 1e-5, &what);
        }
        for (k, output) in model.predict(images, &masking).unwrap().iter().enumerate() {
            let what = format!("prediction of stage {k}, plain {plain}");
            close(&output.pred, &io[&format!("pred.{k}")], 1e-5, &what);
        }
        let loss = model.loss(images, &masking).unwrap();
        for (k, stage) in loss.stages.iter().enumerate() {
            let what = format!("loss of stage {k}, plain {plain}");
            close(
                stage.as_ref().unwrap(),
                &io[&format!("loss.{k}")],
                1e-5,
                &what,
            );
        }
        let grads = vit::ops::backward(&loss.total).unwrap();
        let map = vars.data().lock().unwrap();
        for (name, var) in map.iter() {
            let grad = grads.get(var).unwrap_or_else(|| panic!("{name}"));
            if let Some(want) = io.get(&format!("grad.{name}")) {
                let what = format!("gradient of {name}, plain {plain}");
                close(grad, want, 2e-5, &what);
            }
        }
    }
}

/// Where windows do not divide the stages, and are as small as they are: the fused form and the plain one, which computes whole
/// windows, agree; other units may change as they like.
#[test]
fn what_is_hidden_is_not_seen() {
    for (image, window) in [(96, 4), (96, 7), (128, 5), (64, 2)] {
        let mut cfg = config(image, 3);
        let swin = cfg.vit.swin.as_mut().unwrap();
        swin.window_size = window;
        let vars = VarMap::new();
        let vb = vit::seeded(&vars, 1, DType::F32, &CPU);
        let encoder = Swin::encoder(&cfg.vit, vb).unwrap();
        let noise = numbers(2 * cfg.units(), 3);
        let masking = Masking::from_noise(&noise, cfg.units(), 0.5).unwrap();
        let pixels = numbers(2 * 3 * image * image, 4);
        let tensor =
            |pixels: &[f32]| Tensor::from_slice(pixels, (2, 3, image, image), &CPU).unwrap();
        let last = [cfg.vit.depth - 1];
        let of = |encoder: &Swin, pixels: &[f32]| {
            let all = encoder.visible_features(&tensor(pixels), &masking.ids_keep, &last);
            flat(&all.unwrap()[0])
        };
        let got = of(&encoder, &pixels);
        let plain = encoder.clone().with_compute(&Compute {
            plain: true,
            ..Compute::default()
        });
        for (a, b) in got.iter().zip(of(&plain, &pixels)) {
            assert!(
                (a - b).abs() < 1e-4,
                "{image} px, windows of {window}: {a}, not {b}"
            );
        }
        let (units, side) = (cfg.side(), image / cfg.side());
        let mut other = pixels.clone();
        for (i, pixel) in other.iter_mut().enumerate() {
            let (sample, y, x) = (i / (3 * image * image), i / image % image, i % image);
            let unit = sample * cfg.units() + y / side * units + x / side;
            if masking.mask[unit] > 0.0 {
                *pixel += 1.0;
            }
        }
        assert_eq!(got, of(&encoder, &other));
    }
}

fn numbers(count: usize, salt: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 7919 + salt * 104_729) % 10_007) as f32 / 5_003.5 - 1.0)
        .collect()
}

const STEPS: usize = 12;

/// A run in which each layer but the last freezes at a step of its own; with `cut` the model is rebuilt at a freeze. Weights as
/// bits, and the nodes of each step's graph.
fn train(cut: bool, threads: usize) -> (BTreeMap<String, Vec<u32>>, Vec<usize>) {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    pool.install(|| {
        let cfg = LocalMimConfig {
            target: Target::Hog,
            hog_bins: 3,
            ..config(64, 3)
        };
        let vars = VarMap::new();
        let vb = vit::seeded(&vars, 5, DType::F32, &CPU);
        let mut model = LocalMim::new(&cfg, vb).unwrap();
        let changes = (1..cfg.layers()).map(|frozen| Change {
            step: 2 + frozen,
            frozen,
        });
        let schedule = Schedule {
            spacing: Spacing::At(changes.collect()),
            warmup_steps: 2,
            ..Schedule::cubic(0.4, cfg.layers(), STEPS)
        };
        let layer_of = |name: &str| cfg.layer_of(name, false);
        let mut freeze = FreezeOut::new(&vars, schedule, layer_of).unwrap();
        if !cut {
            freeze = freeze.without_checks();
        }
        let mut opt = Optimizer::new(AdamW::default());
        let mut nodes = Vec::new();
        for step in 0..STEPS {
            if freeze.advance(step).unwrap() && cut {
                model = LocalMim::new(&cfg, freeze.vars()).unwrap();
            }
            let images = numbers(3 * 3 * 64 * 64, step);
            let images = Tensor::from_vec(images, (3, 3, 64, 64), &CPU).unwrap();
            let noise = numbers(3 * cfg.units(), step + 1000);
            let masking = Masking::from_noise(&noise, cfg.units(), 0.5).unwrap();
            let loss = model.loss(&images, &masking).unwrap();
            for (stage, loss) in cfg.stages.iter().zip(&loss.stages) {
                let live = !cut || cfg.layer(stage) >= freeze.frozen();
                assert_eq!(loss.is_some(), live, "step {step}, {stage:?}");
            }
            let loss = loss.total;
            nodes.push(loss.sorted_nodes().len());
            let grads = freeze.backward_by(&loss, vit::ops::backward).unwrap();
            opt.step(&freeze, step, &grads).unwrap();
        }
        assert_eq!(freeze.frozen(), 6, "the schedule freezes");
        let bits = |t: &Tensor| flat(t).into_iter().map(f32::to_bits).collect();
        let weights = freeze
            .all()
            .map(|(n, v)| (n.to_owned(), bits(v.as_tensor())));
        (weights.collect(), nodes)
    })
}

#[test]
fn cut_equals_uncut_on_any_threads() {
    let (weights, nodes) = train(true, 1);
    assert!(
        nodes[2..9].is_sorted_by(|a, b| a > b),
        "each freeze shortens the graph: {nodes:?}"
    );
    for threads in [1, 2, 5] {
        assert!(weights == train(true, threads).0, "{threads} threads");
    }
    let (uncut, whole) = train(false, 2);
    assert!(nodes.last() < whole.last());
    for (name, bits) in &weights {
        assert_eq!(bits, &uncut[name], "{name}");
    }
}

#[test]
fn layers_and_sizes() {
    let cfg = LocalMimConfig::new(VitConfig::preset("swin-base").unwrap()).unwrap();
    cfg.validate().unwrap();
    assert_eq!((cfg.side(), cfg.units(), cfg.hog_bins), (7, 49, 18));
    let of = |f: fn(&LocalMimConfig, &Stage) -> usize| -> Vec<usize> {
        cfg.stages.iter().map(|stage| f(&cfg, stage)).collect()
    };
    assert_eq!(of(LocalMimConfig::pool), [8, 16, 32, 32]);
    assert_eq!(of(LocalMimConfig::grid), [28, 14, 7, 7]);
    assert_eq!(of(LocalMimConfig::tokens_across), [4, 2, 1, 1]);
    assert_eq!(of(LocalMimConfig::width), [256, 512, 1024, 1024]);
    assert_eq!(of(LocalMimConfig::decoder_dim), [64, 128, 128, 128]);
    assert_eq!(of(|_, stage| stage.block), [1, 3, 21, 23]);
    assert_eq!(of(LocalMimConfig::layer), [3, 5, 23, 24]);
    assert_eq!(cfg.decoder_num_heads, 4);
    let layer = |name: &str| cfg.layer_of(name, false);
    assert_eq!(layer("patch_embed.norm.weight"), Some(0));
    assert_eq!(layer("layers.2.downsample.norm.weight"), Some(5));
    // A decoder goes with the merging that feeds it.
    assert_eq!(layer("layers.3.downsample.reduction.weight"), Some(23));
    assert_eq!(layer("decoder.2.mask_token"), Some(23));
    assert_eq!(layer("norm.0.bias"), Some(3));
    assert_eq!(layer("norm.3.bias"), Some(24));
    assert_eq!(cfg.stages_of(5).collect::<Vec<_>>(), [1]);

    let refused = |change: fn(&mut LocalMimConfig)| {
        let mut cfg = cfg.clone();
        change(&mut cfg);
        cfg.validate().unwrap_err().to_string()
    };
    let said = refused(|c| c.vit = c.vit.with_image((240, 240)));
    assert!(said.contains("240 is not divisible by the unit"), "{said}");
    let said = refused(|c| {
        c.vit = c.vit.with_image((256, 256));
        c.stages[0].scale = 0.5;
    });
    assert!(said.contains("less than half of the 4 tokens"), "{said}");
    let said = refused(|c| c.decoder_embed_dim = 132);
    assert!(
        said.contains("half as wide as decoder-dim 132, 66, which must be divisible by 4"),
        "{said}"
    );
    let said = refused(|c| c.stages[3].block = 30);
    assert!(said.contains("the encoder has blocks 0 to 23"), "{said}");
    let encoder = Swin::encoder(&config(64, 3).vit, {
        let vars = VarMap::new();
        VarBuilder::from_varmap(&vars, DType::F32, &CPU)
    });
    let encoder = encoder.unwrap();
    let images = Tensor::zeros((1, 3, 64, 64), DType::F32, &CPU).unwrap();
    for ids in [&[][..], &[4], &[u32::MAX]] {
        assert!(encoder.visible_features(&images, ids, &[0]).is_err());
    }
    assert!(encoder.visible_features(&images, &[0], &[6]).is_err());
}

/// Stages at any block, also inside a stage of the Swin, and scales other than a cell for each token, whose heads are a ViT's.
#[test]
fn other_stages() {
    let stages = [(0, 8.0), (1, 8.0), (2, 1.0), (5, 0.5)];
    let cfg = LocalMimConfig {
        stages: stages.map(|(block, scale)| Stage { block, scale }).to_vec(),
        ..config_of([2, 2, 1, 1], 4, (64, 3))
    };
    let refused = cfg.validate().unwrap_err().to_string();
    assert!(refused.contains("scale 1 is less than half"), "{refused}");
    let cfg = LocalMimConfig {
        stages: [(0, 8.0), (1, 8.0), (3, 1.0), (5, 0.5)]
            .map(|(block, scale)| Stage { block, scale })
            .to_vec(),
        ..cfg
    };
    let vars = VarMap::new();
    let vb = vit::seeded(&vars, 5, DType::F32, &CPU);
    let model = LocalMim::new(&cfg, vb).unwrap();
    let images = Tensor::from_vec(numbers(2 * 3 * 64 * 64, 1), (2, 3, 64, 64), &CPU).unwrap();
    let masking = Masking::from_noise(&numbers(8, 2), 4, 0.5).unwrap();
    for (stage, output) in cfg
        .stages
        .iter()
        .zip(model.predict(&images, &masking).unwrap())
    {
        let cells = cfg.grid(stage).pow(2);
        assert_eq!(output.pred.dims(), [2, cells, cfg.outputs(stage)]);
    }
    let loss = model.loss(&images, &masking).unwrap().total;
    let grads = vit::ops::backward(&loss).unwrap();
    let names = vars.data().lock().unwrap();
    assert!(names.contains_key("decoder.0.pred.weight"));
    assert!(names.contains_key("decoder.1.pred.0.weight"));
    for (name, var) in names.iter() {
        assert!(grads.get(var).is_some(), "{name}");
        assert!(cfg.layer_of(name, false).is_some(), "{name}");
    }
}

fn published(name: &str) -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    format!("{root}/../vit/tests/fixtures/swin/{name}")
}

/// A checkpoint as LocalMIM's authors lay it out goes on: encoder, norms and decoders are taken, and predict what it does.
#[test]
fn a_published_checkpoint_goes_on() {
    let checkpoint = vit::Checkpoint::open(&published("localmim.pth")).unwrap();
    let io = safetensors::load(published("localmim.io.safetensors"), &CPU).unwrap();
    let vit = LocalMimConfig::encoder_of(&checkpoint, 64, false).unwrap();
    let cfg = LocalMimConfig {
        decoder_embed_dim: 16,
        decoder_num_heads: 2,
        ..LocalMimConfig::new(vit).unwrap()
    };
    let begin = |cfg: &LocalMimConfig| {
        let vars = VarMap::new();
        let vb = vit::seeded(&vars, 0, DType::F32, &CPU);
        let model = LocalMim::new(cfg, vb).unwrap();
        let begun = cfg.begin(&vars, &checkpoint, None, &CPU).unwrap();
        (model, begun)
    };
    let (model, begun) = begin(&cfg);
    assert!(begun.new.is_empty() && begun.left.is_empty(), "{begun:?}");
    assert!(begun.heads_assumed);
    let masking = Masking::from_noise(&flat(&io["noise"]), cfg.units(), 0.5).unwrap();
    let outputs = model.predict(&io["images"], &masking).unwrap();
    for (k, output) in outputs.iter().enumerate() {
        close(&output.pred, &io[&format!("pred.{k}")], 1e-5, "prediction");
    }
    // Other decoders are new: each whole, with its norm but for the last one's, which is the encoder's.
    let other = LocalMimConfig {
        decoder_embed_dim: 32,
        ..cfg.clone()
    };
    let (_, begun) = begin(&other);
    let of_decoder = |name: &String| name.starts_with("decoder.") || name.starts_with("norm.");
    assert!(begun.new.iter().all(of_decoder), "{:?}", begun.new);
    assert!(begun.taken.contains(&"norm.3.weight".to_owned()));
    assert!(!begun.taken.iter().any(|name| name.starts_with("decoder.")));
    // On other images the grids are others, and the tables follow.
    let larger = LocalMimConfig {
        vit: LocalMimConfig::encoder_of(&checkpoint, 128, false).unwrap(),
        ..cfg
    };
    assert!(begin(&larger).1.new.is_empty());
}

/// The same of a classifier, with drop path and clipped gradients.
fn tune(cut: bool) -> BTreeMap<String, Vec<u32>> {
    let cfg = VitConfig {
        num_classes: 3,
        drop_path_rate: 0.2,
        ..config(64, 3).vit
    };
    let vars = VarMap::new();
    let vb = vit::seeded(&vars, 6, DType::F32, &CPU);
    let mut model = Swin::new(&cfg, vb).unwrap();
    let schedule = Schedule::cubic(0.4, cfg.depth + 1, STEPS);
    let mut freeze = FreezeOut::new(&vars, schedule, |name| cfg.layer_of(name)).unwrap();
    if !cut {
        freeze = freeze.without_checks();
    }
    let mut opt = Optimizer::new(AdamW::default());
    for step in 0..STEPS {
        if freeze.advance(step).unwrap() && cut {
            model = Swin::new(&cfg, freeze.vars()).unwrap();
        }
        let images = numbers(3 * 3 * 64 * 64, step);
        let images = Tensor::from_vec(images, (3, 3, 64, 64), &CPU).unwrap();
        let seeds = [1, 2, 3].map(|image| 10 * step as u64 + image);
        let logits = model.forward_train(&images, vit::Drops(&seeds)).unwrap();
        let loss = vit::cross_entropy(&logits, &[0, 1, 2], 0.1).unwrap();
        let grads = freeze.backward_by(&loss, vit::ops::backward).unwrap();
        opt.step(&freeze, step, &grads).unwrap();
    }
    assert!(freeze.frozen() >= 5, "the schedule freezes");
    let bits = |t: &Tensor| flat(t).into_iter().map(f32::to_bits).collect();
    freeze
        .all()
        .map(|(name, var)| (name.to_owned(), bits(var.as_tensor())))
        .collect()
}

#[test]
fn a_classifier_is_the_same_cut_and_uncut() {
    let (cut, uncut) = (tune(true), tune(false));
    for (name, bits) in &cut {
        assert_eq!(bits, &uncut[name], "{name}");
    }
}
