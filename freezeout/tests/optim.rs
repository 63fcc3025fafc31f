//! The optimisers against PyTorch's (tests/make_fixtures.py), and the fused way against the composed one.
use std::collections::HashMap;

use candle_core::{safetensors, DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use freezeout::{
    layer_decay, AdamW, Decay, FreezeOut, Group, Lars, Lion, Optimizer, Param, Schedule, Sgd,
    Spacing,
};

const CPU: Device = Device::Cpu;
const NAMES: [&str; 2] = ["bias", "weight"];

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A constant rate of 1e-3, nothing freezes.
fn schedule() -> Schedule {
    Schedule {
        spacing: Spacing::None,
        decay: Decay::Constant,
        ..Schedule::cubic(1.0, 1, 100)
    }
}

/// 100 steps with the fixture's gradients; weights after 1, 10 and 100.
fn run(mut opt: Optimizer, dtype: DType) -> HashMap<String, Tensor> {
    let fixture = safetensors::load(fixture("optim.safetensors"), &CPU).unwrap();
    let vars = VarMap::new();
    for name in NAMES {
        let start = fixture[&format!("start.{name}")].to_dtype(dtype).unwrap();
        let var = Var::from_tensor(&start).unwrap();
        vars.data().lock().unwrap().insert(name.into(), var);
    }
    let mut freeze = FreezeOut::new(&vars, schedule(), |_| Some(0)).unwrap();
    let mut out = HashMap::new();
    for step in 0..100usize {
        let loss = NAMES.map(|name| {
            let var = vars.data().lock().unwrap()[name].clone();
            let salt = if name == "bias" { 1000 } else { 0 };
            let gradient: Vec<f32> = (0..var.elem_count())
                .map(|i| ((37 * (i + salt) + 101 * step) % 89) as f32 - 44.0)
                .map(|g| g / 64.0)
                .collect();
            let gradient = Tensor::from_vec(gradient, var.shape(), &CPU).unwrap();
            let product = var.as_tensor() * gradient.to_dtype(dtype).unwrap();
            product.unwrap().sum_all().unwrap()
        });
        let grads = freeze.backward(&(&loss[0] + &loss[1]).unwrap()).unwrap();
        opt.step(&freeze, step, &grads).unwrap();
        if [1, 10, 100].contains(&(step + 1)) {
            for (name, var) in freeze.all() {
                let copy = var.as_detached_tensor().copy().unwrap();
                out.insert(format!("{}.{name}", step + 1), copy);
            }
        }
    }
    out
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    let [a, b] = [a, b].map(|t| t.to_dtype(DType::F64).unwrap());
    let d = (a - b).unwrap().abs().unwrap().max_all().unwrap();
    d.to_scalar::<f64>().unwrap()
}

#[test]
fn a_hundred_steps_equal_pytorchs() {
    let want = safetensors::load(fixture("optim.safetensors"), &CPU).unwrap();
    let sgd = |momentum, nesterov| Sgd {
        momentum,
        nesterov,
        weight_decay: 0.05,
    };
    let lars = Lars {
        weight_decay: 0.05,
        ..Lars::default()
    };
    type Make<'a> = Box<dyn Fn() -> Optimizer + 'a>;
    let slow = AdamW {
        beta1: 0.95,
        beta2: 0.9999,
        ..AdamW::default()
    };
    let runs: [(&str, Make); 9] = [
        ("adamw_999", Box::new(|| Optimizer::new(slow))),
        ("adamw", Box::new(|| Optimizer::new(AdamW::default()))),
        (
            "adamw_norm",
            Box::new(|| Optimizer::new(AdamW::default()).clip_norm(0.7)),
        ),
        (
            "adamw_value",
            Box::new(|| Optimizer::new(AdamW::default()).clip_value(0.25)),
        ),
        ("sgd", Box::new(|| Optimizer::new(sgd(0.0, false)))),
        ("sgd_momentum", Box::new(|| Optimizer::new(sgd(0.9, false)))),
        ("sgd_nesterov", Box::new(|| Optimizer::new(sgd(0.9, true)))),
        ("lars", Box::new(|| Optimizer::new(lars))),
        ("lion", Box::new(|| Optimizer::new(Lion::default()))),
    ];
    for (name, make) in runs {
        // f32: fused. f64: composed tensor ops, as on a GPU; PyTorch's own rounding then adds to the difference.
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 3e-6)] {
            let got = run(make(), dtype);
            assert_eq!(got.len(), 6);
            for (key, tensor) in got {
                let difference = largest_difference(&tensor, &want[&format!("{name}.{key}")]);
                assert!(
                    difference < tolerance,
                    "{name} {dtype:?} {key}: {difference}"
                );
            }
        }
    }
}

/// Every name, rate and decay of MAE's fine-tuning groups for ViT-B.
#[test]
fn layer_decay_is_maes() {
    let text = std::fs::read_to_string(fixture("param_groups_lrd_vit_b.json")).unwrap();
    type Groups = HashMap<String, HashMap<String, (f64, f64)>>;
    let settings: Groups = serde_json::from_str(&text).unwrap();
    let layer_of = |name: &str| match name.split('.').collect::<Vec<_>>()[..] {
        ["cls_token" | "pos_embed" | "patch_embed", ..] => Some(0),
        ["blocks", i, ..] => i.parse::<usize>().ok().map(|i| i + 1),
        _ => None,
    };
    let mut compared = 0;
    for (setting, groups) in settings {
        let decay = setting.rsplit_once("layer_decay=").unwrap().1;
        let rule = layer_decay(decay.parse().unwrap(), 13);
        for (name, (scale, weight_decay)) in groups {
            let dims: &[usize] = match &name {
                n if n.ends_with("bias") || n.contains("norm") => &[768],
                n if n.contains("patch_embed") => &[768, 3, 16, 16],
                n if n.contains("token") || n.contains("pos") => &[1, 1, 768],
                _ => &[768, 768],
            };
            let layer = layer_of(&name);
            let got = rule(&Param {
                name: &name,
                layer,
                dims,
            });
            assert!((got.lr_scale - scale).abs() < 1e-12, "{setting} {name}");
            assert_eq!(0.05 * got.weight_decay, weight_decay, "{setting} {name}");
            compared += 1;
        }
    }
    assert!(compared >= 150, "{compared}");
}

/// A user with an optimiser of candle_nn adds freezing alone: what is frozen gets no gradient, so it is left as it is.
#[test]
fn works_with_candle_nn_optimisers() {
    use candle_nn::{linear, Linear, Module, Optimizer as _, ParamsAdamW};
    let build = |vb: VarBuilder| -> Vec<Linear> {
        (0..3).map(|i| linear(4, 4, vb.pp(i)).unwrap()).collect()
    };
    let train = |cut: bool| {
        let vars = VarMap::new();
        let mut model = build(VarBuilder::from_varmap(&vars, DType::F32, &CPU));
        for var in vars.all_vars() {
            let values: Vec<f32> = (0..var.elem_count())
                .map(|i| i as f32 / 20.0 - 0.3)
                .collect();
            var.set(&Tensor::from_vec(values, var.shape(), &CPU).unwrap())
                .unwrap();
        }
        let layer_of = |name: &str| name.split('.').next()?.parse().ok();
        let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 3, 20), layer_of).unwrap();
        let mut opt = candle_nn::AdamW::new(vars.all_vars(), ParamsAdamW::default()).unwrap();
        for step in 0..20 {
            if freeze.advance(step).unwrap() && cut {
                model = build(freeze.vars());
            }
            let mut x = Tensor::ones((2, 4), DType::F32, &CPU).unwrap();
            for layer in &model {
                x = layer.forward(&x).unwrap().tanh().unwrap();
            }
            let loss = x.sqr().unwrap().sum_all().unwrap();
            opt.set_learning_rate(freeze.schedule().lr(step, None));
            if cut {
                let grads = freeze.backward(&loss).unwrap();
                opt.step(&grads.to_store(&freeze)).unwrap();
            } else {
                let mut grads = loss.backward().unwrap();
                for (name, var) in freeze.all() {
                    if !freeze.is_live(name) {
                        grads.remove(var);
                    }
                }
                opt.step(&grads).unwrap();
            }
        }
        assert_eq!(freeze.frozen(), 2);
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        freeze.all().map(|(_, v)| values(v)).collect::<Vec<_>>()
    };
    assert_eq!(train(true), train(false));
}

#[test]
fn the_norm_is_reported_and_a_missing_gradient_updates_nothing() {
    let vars = VarMap::new();
    for name in NAMES {
        let ones = Tensor::ones((2, 2), DType::F32, &CPU).unwrap();
        let var = Var::from_tensor(&ones).unwrap();
        vars.data().lock().unwrap().insert(name.into(), var);
    }
    let all = |freeze: &FreezeOut| -> Vec<Vec<f32>> {
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        freeze.all().map(|(_, v)| values(v)).collect()
    };
    let mut freeze = FreezeOut::new(&vars, schedule(), |_| Some(0)).unwrap();
    let [a, b] = NAMES.map(|n| vars.data().lock().unwrap()[n].as_tensor().clone());
    let grads = freeze
        .backward(&(a * 3.0).unwrap().add(&b).unwrap().sum_all().unwrap())
        .unwrap();
    // 4 elements of 3 and 4 of 1.
    assert!((grads.norm().unwrap() - 40f64.sqrt()).abs() < 1e-9);
    let mut opt = Optimizer::new(Sgd::default()).clip_norm(1.0);
    let norm = opt.step(&freeze, 0, &grads).unwrap();
    assert!((norm.unwrap() - 40f64.sqrt()).abs() < 1e-9);
    let before = all(&freeze);
    let error = opt.step(&freeze, 1, &Default::default()).unwrap_err();
    assert!(error.to_string().contains("bias, weight"), "{error}");
    assert_eq!(before, all(&freeze));
}

/// Half precision is updated in f32, so eps is not 0.
#[test]
fn half_precision_stays_finite() {
    for dtype in [DType::F16, DType::BF16] {
        let weights = run(Optimizer::new(AdamW::default()), dtype);
        let weights = weights["100.weight"].to_dtype(DType::F32).unwrap();
        let values = weights.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(
            values.iter().all(|v| v.is_finite() && v.abs() < 1.0),
            "{values:?}"
        );
    }
}

#[test]
fn numbers_out_of_range_are_named() {
    let vars = VarMap::new();
    let var = Var::ones((2, 2), DType::F32, &CPU).unwrap();
    vars.data().lock().unwrap().insert("w".into(), var.clone());
    let mut freeze = FreezeOut::new(&vars, schedule(), |_| Some(0)).unwrap();
    let grads = freeze
        .backward(&var.as_tensor().sum_all().unwrap())
        .unwrap();
    let adamw = || Optimizer::new(AdamW::default());
    let beta2 = AdamW {
        beta2: 1.0,
        ..AdamW::default()
    };
    let negative = |_: &Param<'_>| Group {
        lr_scale: -1.0,
        weight_decay: 1.0,
    };
    for (mut opt, want) in [
        (adamw().clip_value(-1.0), "clipped to -1"),
        (adamw().clip_norm(f64::NAN), "clipped to NaN"),
        (
            Optimizer::new(beta2),
            "adamw: beta2 is 1, it must be 0 or more and less than 1",
        ),
        (adamw().groups(negative), "group of 'w'"),
    ] {
        let error = opt.step(&freeze, 0, &grads).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn optimisers_by_name_and_groups() {
    for name in ["adamw", "sgd", "lars", "lion"] {
        assert_eq!(Optimizer::named(name).unwrap().rule().name(), name);
    }
    let error = Optimizer::named("adam").unwrap_err().to_string();
    assert!(error.contains("adamw, sgd, lars and lion"), "{error}");
    // A group of rate 0 stays.
    let freeze_bias = |param: &Param<'_>| Group {
        lr_scale: f64::from(u8::from(param.name != "bias")),
        ..Group::of(param)
    };
    let got = run(
        Optimizer::new(Lion::default()).groups(freeze_bias),
        DType::F32,
    );
    assert_eq!(largest_difference(&got["1.bias"], &got["100.bias"]), 0.0);
    assert!(largest_difference(&got["1.weight"], &got["100.weight"]) > 1e-3);
}

/// State goes to another device by way of the host, and weights go on as if it had stayed. With `VITFREEZE_TEST_DEVICE=cuda`
/// (docs/gpu.md) the other one is a GPU, where AdamW is a kernel of its own.
#[test]
fn state_changes_the_device() {
    let other = match std::env::var("VITFREEZE_TEST_DEVICE").as_deref() {
        Ok("cuda") => Device::new_cuda(0).unwrap(),
        _ => CPU,
    };
    let train = |devices: [&Device; 3]| {
        let mut weights = Tensor::arange_step(0f32, 3.0, 0.01, &CPU).unwrap();
        let mut state = None;
        for device in devices {
            let vars = VarMap::new();
            let var = Var::from_tensor(&weights.to_device(device).unwrap()).unwrap();
            vars.data().lock().unwrap().insert("w".into(), var.clone());
            let mut freeze = FreezeOut::new(&vars, schedule(), |_| Some(0)).unwrap();
            let mut opt = Optimizer::new(AdamW::default());
            if let Some(state) = &state {
                opt.load_state(&freeze, state).unwrap();
            }
            for step in 0..3 {
                let loss = var.as_tensor().sin().unwrap().sum_all().unwrap();
                let grads = freeze.backward(&loss).unwrap();
                opt.step(&freeze, step, &grads).unwrap();
            }
            weights = var.as_detached_tensor().to_device(&CPU).unwrap();
            state = Some(opt.state(&freeze).unwrap());
        }
        let state = state.unwrap();
        assert_eq!(state["updates.w"].to_scalar::<i64>().unwrap(), 9);
        [
            weights,
            state["exp_avg.w"].clone(),
            state["exp_avg_sq.w"].clone(),
        ]
    };
    for (got, want) in train([&CPU, &other, &CPU]).iter().zip(&train([&CPU; 3])) {
        assert!(largest_difference(got, want) < 1e-6);
    }
}
