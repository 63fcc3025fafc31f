//! The model against the original's numbers in PyTorch (see scripts/make_fixtures.py).
use std::collections::HashMap;
use std::sync::OnceLock;

use candle_core::{safetensors, DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use freezeout::{AdamW, FreezeOut, Optimizer, Schedule, Spacing};
use localmim::{hog, LocalMim, LocalMimConfig, Masking, Stage, Target};
use serde_json::Value;
use vit::ops::Compute;
use vit::{PosEmbed, VitConfig};

/// Where the model runs: on the CPU, or with `VITFREEZE_TEST_DEVICE=cuda` on a GPU (docs/gpu.md).
fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let open = || match std::env::var("VITFREEZE_TEST_DEVICE").as_deref() {
        Ok("cuda") => Device::new_cuda(0).unwrap(),
        _ => Device::Cpu,
    };
    DEVICE.get_or_init(open).clone()
}

/// As usual, or by candle's own ops with `VITFREEZE_PLAIN_OPS=1`.
fn compute() -> Compute {
    let plain = match std::env::var("VITFREEZE_PLAIN_OPS").as_deref() {
        Ok("1") => true,
        Err(_) | Ok("" | "0") => false,
        Ok(other) => panic!("VITFREEZE_PLAIN_OPS is '{other}', it must be 0 or 1"),
    };
    Compute {
        plain,
        ..Compute::default()
    }
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn load(name: &str) -> HashMap<String, Tensor> {
    safetensors::load(fixture(name), &device()).unwrap()
}

fn json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

fn config() -> LocalMimConfig {
    LocalMimConfig {
        vit: VitConfig {
            image_size: 64,
            patch_size: 16,
            embed_dim: 48,
            depth: 12,
            num_heads: 4,
            mlp_ratio: 4.0,
            norm_eps: 1e-6,
            pos_embed: PosEmbed::SinCos,
            ..VitConfig::default()
        },
        stages: Stage::default_for(12).unwrap(),
        decoder_embed_dim: 32,
        decoder_depth: 1,
        decoder_num_heads: 4,
        target: Target::Hog,
        hog_bins: 9,
    }
}

/// The golden model's variables and its model.
fn golden_model() -> (VarMap, LocalMim, HashMap<String, Tensor>) {
    let tensors = load("mim_tiny.safetensors");
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &device());
    let model = LocalMim::new(&config(), vb).unwrap();
    let model = model.with_compute(&compute());
    let map = vars.data().lock().unwrap();
    let mut stored: Vec<&str> = tensors
        .keys()
        .filter_map(|k| k.strip_prefix("model."))
        .collect();
    let mut ours: Vec<&str> = map.keys().map(String::as_str).collect();
    stored.sort();
    ours.sort();
    assert_eq!(ours, stored, "our variable names are the original's");
    for (name, var) in map.iter() {
        var.set(&tensors[&format!("model.{name}")]).unwrap();
    }
    drop(map);
    (vars, model, tensors)
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap()
}

/// Largest difference over the largest value.
fn relative(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    let (got, want) = (flat(got), flat(want));
    let scale = want.iter().fold(0f64, |m, &x| m.max(f64::from(x).abs()));
    let error = got.iter().zip(&want).fold(0f64, |m, (&a, &b)| {
        m.max((f64::from(a) - f64::from(b)).abs())
    });
    assert!(got.iter().all(|x| x.is_finite()));
    error / scale
}

/// Norm of the difference over the norm: AdamW turns the rounding noise of single weights whose gradient is almost 0 into
/// parts of a step, so the largest single difference says little.
fn relative_norm(got: &Tensor, want: &Tensor) -> f64 {
    let norm = |t: &Tensor| {
        flat(t)
            .iter()
            .map(|&x| f64::from(x).powi(2))
            .sum::<f64>()
            .sqrt()
    };
    norm(&(got - want).unwrap()) / norm(want)
}

fn masking(noise: &Tensor) -> Masking {
    Masking::from_noise(&flat(noise), noise.dim(1).unwrap(), 0.75).unwrap()
}

#[test]
fn masks_are_exact() {
    let t = load("mim_tiny.safetensors");
    let m = masking(&t["noise"]);
    let want: Vec<u32> = t["ids_restore"]
        .flatten_all()
        .unwrap()
        .to_vec1::<i64>()
        .unwrap()
        .into_iter()
        .map(|x| x as u32)
        .collect();
    assert_eq!(*m.ids_restore, want);
    assert_eq!(m.mask, flat(&t["mask"]));
    assert_eq!(m.ids_keep.len(), 2 * 4);
}

#[test]
fn latents_predictions_targets_and_losses() {
    let (_, model, t) = golden_model();
    let info = json("mim_tiny.json");
    let masking = masking(&t["noise"]);
    let outputs = model.predict(&t["imgs"], &masking).unwrap();
    let targets = hog(&t["imgs"], 9, 4, &[4, 8, 16, 32], &compute()).unwrap();
    for (k, output) in outputs.iter().enumerate() {
        for (what, got) in [
            ("latent", &output.latent),
            ("pred", &output.pred),
            ("target", &targets[k]),
        ] {
            let error = relative(got, &t[&format!("{what}.{k}")]);
            assert!(error < 1e-5, "{what} {k}: {error:e}");
        }
    }
    let loss = model.loss(&t["imgs"], &masking).unwrap();
    let check = |got: f32, want: &Value, what: &str| {
        let want = want.as_f64().unwrap();
        let error = (f64::from(got) - want).abs() / want;
        assert!(error < 1e-5, "{what}: {got}, not {want}");
    };
    let scalar = |t: &Tensor| t.to_scalar::<f32>().unwrap();
    check(scalar(&loss.total), &info["loss_total"], "total loss");
    for (k, stage) in loss.stages.iter().enumerate() {
        let got = scalar(stage.as_ref().unwrap());
        check(got, &info["losses"][k], &format!("loss of stage {k}"));
    }
}

#[test]
fn every_gradient() {
    let (vars, model, t) = golden_model();
    let loss = model.loss(&t["imgs"], &masking(&t["noise"])).unwrap();
    let grads = loss.total.backward().unwrap();
    let map = vars.data().lock().unwrap();
    for (name, var) in map.iter() {
        let got = grads
            .get(var)
            .unwrap_or_else(|| panic!("{name}: no gradient"));
        let error = relative(got, &t[&format!("grad.{name}")]);
        assert!(error < 1e-4, "{name}: {error:e}");
    }
    assert_eq!(
        map.len(),
        t.keys().filter(|k| k.starts_with("grad.")).count()
    );
}

#[test]
fn five_adamw_steps() {
    let (vars, mut model, _) = golden_model();
    let t = load("train5.safetensors");
    let info = json("train5.json");
    let cfg = config();
    let schedule = Schedule {
        spacing: Spacing::None,
        lr: info["lr"].as_f64().unwrap(),
        min_lr: info["lr"].as_f64().unwrap(),
        ..Schedule::cubic(1.0, cfg.layers(), 5)
    };
    let mut freeze = FreezeOut::new(&vars, schedule, |n| cfg.layer_of(n, false)).unwrap();
    let mut opt = Optimizer::new(AdamW {
        weight_decay: info["weight_decay"].as_f64().unwrap(),
        ..Default::default()
    });
    for step in 0..5 {
        if freeze.advance(step).unwrap() {
            model = LocalMim::new(&cfg, freeze.vars()).unwrap();
            model = model.with_compute(&compute());
        }
        let images = t["imgs"].get(step).unwrap();
        let noise = t["noise"].get(step).unwrap();
        let loss = model.loss(&images, &masking(&noise)).unwrap().total;
        let got = f64::from(loss.to_scalar::<f32>().unwrap());
        let want = info["losses"][step].as_f64().unwrap();
        assert!(
            (got - want).abs() / want < 1e-5,
            "step {step}: {got}, not {want}"
        );
        let grads = freeze.backward(&loss).unwrap();
        let norm: f64 = grads
            .iter()
            .flat_map(|(_, g)| flat(g))
            .map(|x| f64::from(x).powi(2))
            .sum();
        let want = info["grad_norms"][step].as_f64().unwrap();
        assert!(
            (norm.sqrt() - want).abs() / want < 1e-4,
            "gradient norm {step}"
        );
        opt.step(&freeze, step, &grads).unwrap();
    }
    for (name, var) in freeze.all() {
        let (mut got, mut want) = (var.as_tensor().clone(), t[&format!("final.{name}")].clone());
        if name.ends_with("qkv.bias") {
            // A constant added to all keys changes no softmax: the gradient of the keys' bias is 0 but for rounding, which
            // AdamW blows up to full steps. Queries and values are compared.
            let without_keys = |x: &Tensor| {
                let third = x.dim(0).unwrap() / 3;
                let part = |i| x.narrow(0, i * third, third).unwrap();
                Tensor::cat(&[part(0), part(2)], 0).unwrap()
            };
            (got, want) = (without_keys(&got), without_keys(&want));
        }
        let error = relative_norm(&got, &want);
        assert!(error < 1e-4, "{name}: {error:e}");
    }
}

/// Six images, 9 and 18 bins, four pools; flat regions included, whose bins rounding noise decides.
#[test]
fn hog_targets() {
    let t = load("hog.safetensors");
    let pools = [4, 8, 16, 32];
    for bins in [9, 18] {
        let targets = hog(&t["imgs"], bins, 4, &pools, &compute()).unwrap();
        for (pool, got) in pools.iter().zip(&targets) {
            let want = &t[&format!("hog_nb{bins}_pool{pool}")];
            assert_eq!(got.dims(), want.dims());
            for image in 0..6 {
                let (got, want) = (got.get(image).unwrap(), want.get(image).unwrap());
                let worst = flat(&got)
                    .iter()
                    .zip(flat(&want))
                    .fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(
                    worst < 1e-5,
                    "bins {bins}, pool {pool}, image {image}: {worst:e}"
                );
            }
        }
    }
}
