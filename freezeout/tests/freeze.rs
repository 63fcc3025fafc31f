//! Registration, the view, gradients, the optimiser and its state.
use candle_core::{DType, Device, Tensor};
use candle_nn::{linear, Linear, Module, VarBuilder, VarMap};
use freezeout::{AdamW, Error, FreezeOut, LayerLr, Optimizer, Schedule, Spacing, Warmup};

const CPU: Device = Device::Cpu;

struct Net(Vec<Linear>);

impl Net {
    fn new(vb: VarBuilder) -> Self {
        Self((0..3).map(|i| linear(4, 4, vb.pp(i)).unwrap()).collect())
    }

    fn loss(&self, step: usize) -> Tensor {
        let x: Vec<f32> = (0..8).map(|i| ((i + 3 * step) % 7) as f32 - 3.0).collect();
        let mut x = Tensor::from_vec(x, (2, 4), &CPU).unwrap();
        for layer in &self.0 {
            x = layer.forward(&x).unwrap().tanh().unwrap();
        }
        x.sqr().unwrap().mean_all().unwrap()
    }
}

fn net() -> (VarMap, Net) {
    let vars = VarMap::new();
    let net = Net::new(VarBuilder::from_varmap(&vars, DType::F32, &CPU));
    // candle draws from a generator that cannot be seeded.
    for (name, var) in vars.data().lock().unwrap().iter() {
        let salt = name.len() + name.as_bytes()[0] as usize;
        let values: Vec<f32> = (0..var.elem_count())
            .map(|i| ((i * 13 + salt * 5) % 17) as f32 / 17.0 - 0.4)
            .collect();
        var.set(&Tensor::from_vec(values, var.shape(), &CPU).unwrap())
            .unwrap();
    }
    (vars, net)
}

fn layer_of(name: &str) -> Option<usize> {
    name.split('.').next()?.parse().ok()
}

fn bits(freeze: &FreezeOut) -> Vec<(String, Vec<u32>)> {
    let bits = |t: &Tensor| -> Vec<u32> {
        let v = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        v.into_iter().map(f32::to_bits).collect()
    };
    freeze.all().map(|(n, v)| (n.to_owned(), bits(v))).collect()
}

/// A whole run, stopped and taken up again from saved weights and state after `stop` steps.
fn train(stop: Option<usize>) -> Vec<(String, Vec<u32>)> {
    let (vars, mut model) = net();
    let schedule = Schedule::cubic(0.5, 3, 20);
    let mut freeze = FreezeOut::new(&vars, schedule.clone(), layer_of).unwrap();
    let mut opt = Optimizer::new(AdamW::default());
    for step in 0..20 {
        if stop == Some(step) {
            let state = opt.state(&freeze).unwrap();
            let (other, _) = net();
            for (name, var) in freeze.all() {
                other.data().lock().unwrap()[name].set(var).unwrap();
            }
            freeze = FreezeOut::new(&other, schedule.clone(), layer_of).unwrap();
            freeze.advance(step - 1).unwrap();
            opt = Optimizer::new(AdamW::default());
            opt.load_state(&freeze, &state).unwrap();
            model = Net::new(freeze.vars());
        }
        if freeze.advance(step).unwrap() {
            model = Net::new(freeze.vars());
        }
        let grads = freeze.backward(&model.loss(step)).unwrap();
        opt.step(&freeze, step, &grads).unwrap();
        // Moments of live variables only.
        assert_eq!(opt.state(&freeze).unwrap().len(), 3 * freeze.live().count());
    }
    assert_eq!(freeze.frozen(), 2);
    bits(&freeze)
}

#[test]
fn resumed_equals_straight_at_every_step() {
    let straight = train(None);
    for stop in 1..20 {
        assert_eq!(straight, train(Some(stop)), "stopped before step {stop}");
    }
}

#[test]
fn frozen_weights_stay_and_live_ones_move() {
    let (vars, _) = net();
    let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 3, 20), layer_of).unwrap();
    let before = bits(&freeze);
    freeze.freeze_first(2);
    let model = Net::new(freeze.vars());
    let grads = freeze.backward(&model.loss(0)).unwrap();
    assert_eq!(
        grads.iter().map(|(n, _)| n).collect::<Vec<_>>(),
        ["2.bias", "2.weight"]
    );
    Optimizer::new(AdamW::default())
        .step(&freeze, 1, &grads)
        .unwrap();
    for ((name, was), (_, is)) in before.iter().zip(bits(&freeze)) {
        assert_eq!(*was == is, !name.starts_with('2'), "{name}");
    }
    // Frozen or live, a model shares the variables' memory: it sees what happened after it was built.
    let loss = |n: &Net| n.loss(0).to_scalar::<f32>().unwrap();
    assert_eq!(loss(&model), loss(&Net::new(freeze.vars())));
    for var in vars.all_vars() {
        var.set(&var.zeros_like().unwrap()).unwrap();
    }
    assert_eq!(loss(&model), 0.0);
}

#[test]
fn a_starved_variable_is_named() {
    let (vars, model) = net();
    let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 3, 20), layer_of).unwrap();
    // An op without a backward, as candle_nn's softmax_last_dim, cuts the graph in silence.
    let x = Tensor::ones((2, 4), DType::F32, &CPU).unwrap();
    let x = model.0[0].forward(&x).unwrap().detach();
    let loss = model.0[2]
        .forward(&model.0[1].forward(&x).unwrap())
        .unwrap();
    let error = freeze.backward(&loss.sum_all().unwrap()).unwrap_err();
    match &error {
        Error::NoGradient(names) => assert_eq!(names, &["0.bias", "0.weight"]),
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("0.bias, 0.weight"));
}

#[test]
fn registration_is_checked() {
    let (vars, _) = net();
    let new = |layers, layer_of: fn(&str) -> Option<usize>| {
        FreezeOut::new(&vars, Schedule::cubic(0.5, layers, 20), layer_of).err()
    };
    assert!(new(3, layer_of).is_none());
    assert!(matches!(
        new(2, layer_of),
        Some(Error::UnknownLayer {
            layer: 2,
            last: 1,
            ..
        })
    ));
    assert!(matches!(new(4, layer_of), Some(Error::EmptyLayers { layers, .. }) if layers == [3]));
}

#[test]
fn a_model_that_asks_for_another_variable_or_shape_is_told_so() {
    let (vars, _) = net();
    let freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 3, 20), layer_of).unwrap();
    let error = freeze
        .vars()
        .get((4, 4), "3.weight")
        .unwrap_err()
        .to_string();
    assert!(error.contains("no variable '3.weight'"), "{error}");
    let error = freeze
        .vars()
        .get((4, 5), "0.weight")
        .unwrap_err()
        .to_string();
    assert!(error.contains("'0.weight' has shape"), "{error}");
    assert!(freeze.vars().contains_tensor("0.weight"));
}

#[test]
fn saved_state_that_does_not_fit_is_refused() {
    let (vars, model) = net();
    let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 3, 20), layer_of).unwrap();
    let mut opt = Optimizer::new(AdamW::default());
    let grads = freeze.backward(&model.loss(0)).unwrap();
    opt.step(&freeze, 1, &grads).unwrap();
    let good = opt.state(&freeze).unwrap();
    let fails = |change: &dyn Fn(&mut std::collections::BTreeMap<String, Tensor>), want: &str| {
        let mut state = good.clone();
        change(&mut state);
        let error = Optimizer::new(AdamW::default())
            .load_state(&freeze, &state)
            .unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    };
    let zeros = |n: usize| Tensor::zeros(n, DType::F32, &CPU).unwrap();
    fails(
        &|s| drop(s.remove("exp_avg.0.bias")),
        "'exp_avg.0.bias' is missing",
    );
    fails(
        &|s| drop(s.insert("exp_avg_sq.0.bias".into(), zeros(3))),
        "exp_avg_sq.0.bias",
    );
    fails(
        &|s| drop(s.remove("updates.0.bias")),
        "0.bias' has no 'updates'",
    );
    fails(
        &|s| drop(s.insert("updates.9.bias".into(), Tensor::new(1i64, &CPU).unwrap())),
        "belongs to no variable",
    );
    fails(
        &|s| drop(s.insert("updates.0.bias".into(), Tensor::new(-1i64, &CPU).unwrap())),
        "less than 0",
    );
}

/// Gradients accumulated over two halves of a batch equal those of the whole.
#[test]
fn accumulation_is_the_sum() {
    let (vars, model) = net();
    let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 3, 20), layer_of).unwrap();
    let (a, b) = (model.loss(0), model.loss(1));
    let mut sum = freeze.backward(&a).unwrap();
    sum.add(freeze.backward(&b).unwrap()).unwrap();
    let whole = freeze.backward(&(a + b).unwrap()).unwrap();
    for (name, grad) in whole.iter() {
        let difference = (grad - sum.get(name).unwrap()).unwrap().abs().unwrap();
        assert!(
            difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-7,
            "{name}"
        );
    }
}

/// BatchNorm's running statistics are variables without gradient that the forward pass writes: they must not be starved
/// variables, and must not be lost when a frozen layer is rebuilt.
#[test]
fn batch_norm_keeps_its_statistics() {
    use candle_nn::{batch_norm, BatchNorm, ModuleT};
    let build = |vb: VarBuilder| -> (Linear, BatchNorm, Linear) {
        (
            linear(4, 4, vb.pp("0")).unwrap(),
            batch_norm(4, 1e-5, vb.pp("0.bn")).unwrap(),
            linear(4, 1, vb.pp("1")).unwrap(),
        )
    };
    let vars = VarMap::new();
    let mut model = build(VarBuilder::from_varmap(&vars, DType::F32, &CPU));
    let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 2, 20), layer_of).unwrap();
    let mut opt = Optimizer::new(AdamW::default());
    let mean = || {
        let data = vars.data().lock().unwrap();
        data["0.bn.running_mean"].to_vec1::<f32>().unwrap()
    };
    let mut last = mean();
    for step in 0..20 {
        if freeze.advance(step).unwrap() {
            model = build(freeze.vars());
        }
        let x: Vec<f32> = (0..32).map(|i| ((i * 5 + step) % 11) as f32).collect();
        let x = Tensor::from_vec(x, (8, 4), &CPU).unwrap();
        let x = model
            .1
            .forward_t(&model.0.forward(&x).unwrap(), true)
            .unwrap();
        let loss = model
            .2
            .forward(&x)
            .unwrap()
            .sqr()
            .unwrap()
            .mean_all()
            .unwrap();
        let grads = freeze.backward(&loss).unwrap();
        opt.step(&freeze, step, &grads).unwrap();
        assert_ne!(
            last,
            mean(),
            "step {step}: the statistics move, frozen or not"
        );
        last = mean();
    }
    assert_eq!(freeze.frozen(), 1);
    assert!(freeze.all().any(|(name, _)| name == "0.bn.running_var"));
}

/// A layer that asks whether it is live runs BatchNorm and dropout in evaluation mode once it is frozen: its statistics stay,
/// and the same images give the same output.
#[test]
fn frozen_layers_run_in_evaluation_mode() {
    use candle_nn::{batch_norm, conv2d_no_bias, BatchNorm, Conv2d, Dropout, ModuleT};
    struct Cnn(Conv2d, BatchNorm, Dropout, Linear);
    impl Cnn {
        fn new(vb: VarBuilder) -> Self {
            Self(
                conv2d_no_bias(3, 4, 3, Default::default(), vb.pp("0.conv")).unwrap(),
                batch_norm(4, 1e-5, vb.pp("0.bn")).unwrap(),
                Dropout::new(0.5),
                linear(4, 1, vb.pp("1")).unwrap(),
            )
        }

        fn features(&self, x: &Tensor, train: bool) -> Tensor {
            let train = train && freezeout::is_live(self.0.weight());
            let x = self
                .1
                .forward_t(&self.0.forward(x).unwrap(), train)
                .unwrap();
            let x = self.2.forward(&x.relu().unwrap(), train).unwrap();
            x.flatten_from(2).unwrap().mean(2).unwrap()
        }
    }
    let vars = VarMap::new();
    let mut model = Cnn::new(VarBuilder::from_varmap(&vars, DType::F32, &CPU));
    let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 2, 20), layer_of).unwrap();
    let mut opt = Optimizer::new(AdamW::default());
    let statistics = || {
        let data = vars.data().lock().unwrap();
        ["mean", "var"].map(|s| data[&format!("0.bn.running_{s}")].to_vec1::<f32>().unwrap())
    };
    for step in 0..20 {
        if freeze.advance(step).unwrap() {
            model = Cnn::new(freeze.vars());
        }
        let x: Vec<f32> = (0..8 * 3 * 25)
            .map(|i| ((i * 5 + step) % 11) as f32)
            .collect();
        let x = Tensor::from_vec(x, (8, 3, 5, 5), &CPU).unwrap();
        let before = statistics();
        let features = model.features(&x, true);
        let live = freeze.frozen() == 0;
        assert_eq!(before != statistics(), live, "step {step}");
        let again = model.features(&x, true);
        let same = |t: &Tensor| t.to_vec2::<f32>().unwrap();
        assert_eq!(same(&features) != same(&again), live, "step {step}");
        assert_eq!(same(&model.features(&x, false)) == same(&again), !live);
        let loss = model.3.forward(&features).unwrap().sqr().unwrap();
        let grads = freeze.backward(&loss.mean_all().unwrap()).unwrap();
        opt.step(&freeze, step, &grads).unwrap();
    }
    assert_eq!(freeze.frozen(), 1);
}

/// Under `scaled`, common warm-up jumps by 1 / rho at its end; continuous warm-up does not.
#[test]
fn continuous_warmup_has_no_jump() {
    let schedule = |warmup| Schedule {
        warmup,
        warmup_steps: 100,
        layer_lr: LayerLr::Scaled,
        spacing: Spacing::Cubic,
        ..Schedule::cubic(0.8, 13, 1000)
    };
    let jump = |warmup| {
        let s: Schedule = schedule(warmup);
        s.lr(100, Some(0)) / s.lr(99, Some(0))
    };
    assert!((jump(Warmup::Common) - 1.0 / 0.512 / 0.99).abs() < 1e-9);
    assert!((jump(Warmup::Continuous) - 1.0 / 0.99).abs() < 1e-9);
    assert_eq!(schedule(Warmup::Common).frozen(999), 12);
    let none = Schedule {
        spacing: Spacing::None,
        ..schedule(Warmup::Common)
    };
    assert_eq!((none.frozen(999), none.freeze_step(0)), (0, None));
}
