//! Pixel targets against PyTorch, and plain MAE against transformers (see scripts/pixel_fixtures.py).
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{safetensors, DType, Device, Tensor, Var};
use candle_nn::VarMap;
use localmim::{LocalMim, LocalMimConfig, Masking, Stage, Target};
use vit::ops::Compute;
use vit::{Checkpoint, PosEmbed, VitConfig};

const CPU: Device = Device::Cpu;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn load(name: &str) -> HashMap<String, Tensor> {
    safetensors::load(fixture(name), &CPU).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference over the largest value.
fn relative(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    let largest = |values: &[f32]| values.iter().fold(0f32, |m, x| m.max(x.abs()));
    let far: Vec<f32> = flat(got)
        .iter()
        .zip(flat(want))
        .map(|(a, b)| a - b)
        .collect();
    assert!(far.iter().all(|x| x.is_finite()));
    f64::from(largest(&far)) / f64::from(largest(&flat(want)))
}

fn masking(noise: &Tensor) -> Masking {
    Masking::from_noise(&flat(noise), noise.dim(1).unwrap(), 0.75).unwrap()
}

/// Four stages, pixel targets, a learnt position table: losses, targets and every gradient.
#[test]
fn four_stages_as_in_pytorch() {
    let t = load("pixel_tiny.safetensors");
    let stages = [(0, 4.0), (1, 2.0), (2, 1.0), (3, 0.5)];
    for (name, normalise) in [("raw", false), ("normalised", true)] {
        let cfg = LocalMimConfig {
            vit: VitConfig {
                image_size: 32,
                patch_size: 8,
                embed_dim: 16,
                depth: 4,
                num_heads: 2,
                pos_embed: PosEmbed::Learnt,
                ..VitConfig::default()
            },
            stages: stages.map(|(block, scale)| Stage { block, scale }).to_vec(),
            decoder_embed_dim: 8,
            decoder_depth: 1,
            decoder_num_heads: 2,
            target: Target::Pixel { normalise },
            hog_bins: 9,
        };
        let vars = VarMap::new();
        let model = LocalMim::new(&cfg, vit::seeded(&vars, 0, DType::F32, &CPU)).unwrap();
        let map = vars.data().lock().unwrap();
        let stored = t.keys().filter(|key| key.starts_with("model.")).count();
        assert_eq!(map.len(), stored);
        for (name, var) in map.iter() {
            var.set(&t[&format!("model.{name}")]).unwrap();
        }
        let masking = masking(&t["noise"]);
        let targets = cfg.targets(&t["images"], &cfg.stages, &Compute::default());
        for (k, target) in targets.unwrap().iter().enumerate() {
            if let Some(want) = t.get(&format!("{name}.target.{k}")) {
                let error = relative(&target.get(0).unwrap(), want);
                assert!(error < 1e-6, "{name} target {k}: {error:e}");
            }
        }
        let loss = model.loss(&t["images"], &masking).unwrap();
        let losses: Vec<Tensor> = loss.stages.into_iter().map(Option::unwrap).collect();
        let losses = Tensor::stack(&losses, 0).unwrap();
        let error = relative(&losses, &t[&format!("{name}.losses")]);
        assert!(error < 1e-6, "{name} losses: {error:e}");
        let grads = loss.total.backward().unwrap();
        let mut compared = 0;
        for (variable, var) in map.iter() {
            let got = grads.get(var).unwrap();
            if let Some(want) = t.get(&format!("{name}.grad.{variable}")) {
                let error = relative(got, want);
                assert!(error < 1e-4, "{name} {variable}: {error:e}");
                compared += 1;
            }
        }
        assert_eq!(compared, if normalise { stored } else { 3 });
        grads_are_slopes(&cfg, &map, &grads, &t["images"], &masking);
    }
}

/// Central differences, in the direction of the gradient itself, of a variable of each kind.
fn grads_are_slopes(
    cfg: &LocalMimConfig,
    map: &HashMap<String, Var>,
    grads: &candle_core::backprop::GradStore,
    images: &Tensor,
    masking: &Masking,
) {
    let value = |name: &str, tensor: &Tensor| {
        let mut all: HashMap<String, Tensor> = map
            .iter()
            .map(|(n, v)| (n.clone(), v.as_detached_tensor()))
            .collect();
        all.insert(name.to_owned(), tensor.clone());
        // Variables, so that no stage is dead.
        let all = VarMap::new().also(all);
        let vb = candle_nn::VarBuilder::from_varmap(&all, DType::F32, &CPU);
        let model = LocalMim::new(cfg, vb).unwrap();
        let loss = model.loss(images, masking).unwrap().total;
        f64::from(loss.to_scalar::<f32>().unwrap())
    };
    for name in [
        "pos_embed",
        "decoder.0.pred.0.weight",
        "decoder.3.pred.1.bias",
        "norm.1.weight",
    ] {
        let (var, grad) = (&map[name], grads.get(&map[name]).unwrap());
        let norm = flat(grad)
            .iter()
            .map(|&x| f64::from(x).powi(2))
            .sum::<f64>()
            .sqrt();
        let step = 2e-2;
        let direction = (grad * (step / norm)).unwrap();
        let (up, down) = (
            (var.as_tensor() + &direction).unwrap(),
            (var.as_tensor() - &direction).unwrap(),
        );
        let slope = (value(name, &up) - value(name, &down)) / (2.0 * step);
        assert!(
            (slope - norm).abs() < 2e-2 * norm,
            "{name}: {slope}, not {norm}"
        );
    }
}

trait Also {
    fn also(self, tensors: HashMap<String, Tensor>) -> Self;
}

impl Also for VarMap {
    fn also(self, tensors: HashMap<String, Tensor>) -> Self {
        {
            let mut map = self.data().lock().unwrap();
            for (name, tensor) in tensors {
                map.insert(name, Var::from_tensor(&tensor).unwrap());
            }
        }
        self
    }
}

/// transformers' ViTMAEForPreTraining: its checkpoint begins a model of one deep decoder at the last block, which gives its
/// predictions and its losses, with normalised pixels and without.
#[test]
fn plain_mae_as_in_transformers() {
    let t = load("vit_mae.io.safetensors");
    let checkpoint = Checkpoint::open(fixture("vit_mae").to_str().unwrap()).unwrap();
    let vit = LocalMimConfig::encoder_of(&checkpoint, 16, false).unwrap();
    assert_eq!((vit.pos_embed, vit.norm_eps), (PosEmbed::SinCos, 1e-12));
    for (name, normalise) in [("raw", false), ("normalised", true)] {
        let cfg = LocalMimConfig {
            vit,
            stages: vec![Stage {
                block: 1,
                scale: 1.0,
            }],
            decoder_embed_dim: 8,
            decoder_depth: 2,
            decoder_num_heads: 2,
            target: Target::Pixel { normalise },
            hog_bins: 9,
        };
        let vars = VarMap::new();
        let model = LocalMim::new(&cfg, vit::seeded(&vars, 0, DType::F32, &CPU)).unwrap();
        let begun = cfg.begin(&vars, &checkpoint, None, &CPU).unwrap();
        assert_eq!((begun.new.len(), begun.left.len()), (0, 0), "{begun:?}");
        let masking = masking(&t["noise"]);
        assert_eq!(masking.mask, flat(&t["mask"]));
        let output = model.predict(&t["images"], &masking).unwrap().remove(0);
        let error = relative(&output.pred, &t["logits"]);
        assert!(error < 1e-5, "predictions: {error:e}");
        let loss = model.loss(&t["images"], &masking).unwrap().total;
        let got = f64::from(loss.to_scalar::<f32>().unwrap());
        let want = f64::from(t[&format!("{name}.loss")].to_scalar::<f32>().unwrap());
        assert!(
            (got - want).abs() < 1e-5 * want,
            "{name}: {got}, not {want}"
        );
    }
}
