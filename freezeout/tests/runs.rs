//! Whole runs: cut == uncut and resumed == straight, bit for bit, for every optimiser, schedule and policy.
mod common;

use candle_core::DType;
use common::{net, Run};
use freezeout::{
    AdamW, AutoFreeze, Change, Ema, FreezeOut, Lars, LayerLr, Lion, Optimizer, Plasticity, Policy,
    Schedule, Sgd, Spacing, Warmup,
};
use proptest::prelude::*;

/// A way to make an optimiser.
type Make = (&'static str, fn() -> Optimizer);
/// A way to make a policy.
type MakePolicy = (&'static str, fn() -> Box<dyn Policy>);

fn optimisers() -> Vec<Make> {
    vec![
        ("adamw", || Optimizer::new(AdamW::default())),
        ("adamw clipped", || {
            Optimizer::new(AdamW::default()).clip_norm(0.01)
        }),
        ("sgd", || {
            Optimizer::new(Sgd {
                momentum: 0.0,
                ..Sgd::default()
            })
        }),
        ("nesterov", || {
            Optimizer::new(Sgd::default()).clip_value(0.001)
        }),
        ("lars", || Optimizer::new(Lars::default())),
        ("lion", || Optimizer::new(Lion::default())),
    ]
}

/// Norm clipping sees the live variables only, so it is the one thing in which cut and uncut runs may differ; both freeze
/// the same variables, so they do not.
#[test]
fn cut_equals_uncut_for_every_optimiser() {
    let schedule = Schedule::cubic(0.5, 3, 20);
    for (name, opt) in optimisers() {
        let cut = Run::new(&schedule, &opt).train();
        let uncut = Run {
            cut: false,
            ..Run::new(&schedule, &opt)
        };
        assert_eq!(cut, uncut.train(), "{name}");
        assert_eq!(cut.1.last(), Some(&2));
    }
}

#[test]
fn resumed_equals_straight_for_every_optimiser_at_every_step() {
    // Freezes two layers, thaws them, freezes one again.
    let changes = [(3, 1), (5, 2), (9, 0), (14, 1)];
    let change = |(step, frozen)| Change { step, frozen };
    let plan = Schedule {
        spacing: Spacing::At(changes.map(change).to_vec()),
        layer_lr: LayerLr::Unscaled,
        ..Schedule::cubic(1.0, 3, 18)
    };
    for (name, opt) in optimisers() {
        let straight = Run::new(&plan, &opt).train();
        assert_eq!(straight.1[2..15], [0, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0, 0, 1]);
        for stop in 1..18 {
            let run = Run {
                stop: Some(stop),
                ..Run::new(&plan, &opt)
            };
            assert_eq!(straight, run.train(), "{name}, stopped before step {stop}");
        }
    }
}

/// Stretches in which everything is frozen, so that no optimiser step is taken, free the state all the same.
#[test]
fn resumed_equals_straight_around_a_stretch_without_training() {
    let changes = [(3, 3), (6, 1)].map(|(step, frozen)| Change { step, frozen });
    let plan = Schedule {
        spacing: Spacing::At(changes.to_vec()),
        keep_last: 0,
        ..Schedule::cubic(1.0, 3, 10)
    };
    for (name, opt) in optimisers() {
        let straight = Run::new(&plan, &opt).train();
        assert_eq!(straight.1, [0, 0, 0, 3, 3, 3, 1, 1, 1, 1]);
        for stop in 1..10 {
            let run = Run {
                stop: Some(stop),
                ..Run::new(&plan, &opt)
            };
            assert_eq!(straight, run.train(), "{name}, stopped before step {stop}");
        }
    }
}

/// What a policy keeps live trains, whatever spacing the schedule came with.
#[test]
fn a_policy_replaces_the_spacing() {
    let (vars, model) = net(3);
    let schedule = Schedule::cubic(0.5, 3, 100);
    let mut freeze = FreezeOut::new(&vars, schedule, common::layer_of)
        .unwrap()
        .with_policy(AutoFreeze::default());
    let mut opt = Optimizer::new(Sgd::default());
    freeze.advance(90).unwrap();
    let before = common::bits(&freeze);
    let grads = freeze.backward(&model.loss(0)).unwrap();
    opt.step(&freeze, 90, &grads).unwrap();
    for ((name, was), (_, is)) in before.iter().zip(common::bits(&freeze)) {
        assert_ne!(*was, is, "{name}");
    }
}

#[test]
fn a_policy_refuses_state_that_does_not_fit() {
    let schedule = Schedule::cubic(1.0, 3, 100);
    let freeze = |policy: Plasticity| {
        let (vars, model) = net(3);
        let freeze = FreezeOut::new(&vars, schedule.clone(), common::layer_of);
        (freeze.unwrap().with_policy(policy), model)
    };
    let (mut good, model) = freeze(Plasticity::of_weights());
    good.advance(0).unwrap();
    good.backward(&model.loss(0)).unwrap();
    let saved = good.state().unwrap();
    freeze(Plasticity::of_weights())
        .0
        .load_state(&saved)
        .unwrap();
    let scalar = |n: i64| candle_core::Tensor::new(n, &common::CPU).unwrap();
    for (key, tensor, want) in [
        (
            "freeze.frozen",
            Some(scalar(3)),
            "at most 2 layers may freeze",
        ),
        ("freeze.frozen", Some(scalar(-1)), "less than 0"),
        ("freeze.frozen", None, "'freeze.frozen' is missing"),
        (
            "policy.frozen",
            Some(scalar(i64::MAX)),
            "there are 3 layers",
        ),
        ("policy.flat", None, "'flat' is missing"),
        (
            "policy.reference.0.weight",
            Some(scalar(1)),
            "'reference.0.weight' of shape [] fits nothing",
        ),
        ("other", Some(scalar(1)), "'other' is not part of it"),
    ] {
        let mut bad = saved.clone();
        match tensor {
            Some(tensor) => bad.insert(key.to_owned(), tensor),
            None => bad.remove(key),
        };
        let error = freeze(Plasticity::of_weights())
            .0
            .load_state(&bad)
            .unwrap_err()
            .to_string();
        assert!(error.contains(want), "{key}: {error}");
    }
}

fn policies() -> Vec<MakePolicy> {
    vec![
        ("autofreeze", || {
            let mut policy = AutoFreeze::default();
            (policy.interval, policy.start) = (3, 2);
            Box::new(policy)
        }),
        ("plasticity of weights", || {
            let mut policy = Plasticity::of_weights();
            (policy.interval, policy.window, policy.patience) = (2, 2, 1);
            policy.tolerance = 0.5;
            Box::new(policy)
        }),
        ("plasticity of outputs", || {
            let mut policy = Plasticity::of_outputs();
            (policy.interval, policy.window, policy.patience) = (2, 2, 1);
            (policy.tolerance, policy.unfreeze) = (0.9, 0.6);
            Box::new(policy)
        }),
    ]
}

#[test]
fn policies_freeze_a_prefix_and_resume_exactly() {
    let schedule = Schedule {
        lr: 0.02,
        ..Schedule::cubic(1.0, 4, 30)
    };
    let opt = || Optimizer::new(AdamW::default());
    for (name, policy) in policies() {
        let run = Run {
            policy: Some(&policy),
            accum: 2,
            ..Run::new(&schedule, &opt)
        };
        let straight = run.train();
        let most = straight.1.iter().max().copied();
        assert!(most > Some(0), "{name} froze nothing");
        assert!(most < Some(4), "{name} froze the last layer");
        if name.ends_with("outputs") {
            let falls = straight.1.windows(2).any(|pair| pair[1] < pair[0]);
            assert!(falls, "{name} unfroze nothing: {:?}", straight.1);
        }
        let uncut = Run { cut: false, ..run };
        assert_eq!(straight, uncut.train(), "{name}, uncut");
        for stop in 0..30 {
            let resumed = Run {
                stop: Some(stop),
                ..run
            };
            assert_eq!(
                straight,
                resumed.train(),
                "{name}, stopped before step {stop}"
            );
        }
    }
}

#[test]
fn the_average_is_the_same_cut_and_uncut_and_can_be_saved() {
    let average = |cut: bool, stop: usize| {
        let (vars, mut model) = net(3);
        let new = || FreezeOut::new(&vars, Schedule::cubic(0.5, 3, 20), common::layer_of).unwrap();
        let mut freeze = new();
        if !cut {
            freeze = new().without_checks();
        }
        let mut opt = Optimizer::new(Sgd::default());
        let mut ema = Ema::new(&freeze, 0.9).unwrap();
        for step in 0..20 {
            if step == stop {
                let saved = ema.tensors().clone();
                ema = Ema::new(&freeze, 0.9).unwrap();
                ema.load(&saved).unwrap();
            }
            if freeze.advance(step).unwrap() && cut {
                model = common::Net::new(3, freeze.vars());
            }
            let grads = freeze.backward(&model.loss(step)).unwrap();
            opt.step(&freeze, step, &grads).unwrap();
            ema.update(&freeze).unwrap();
        }
        let tensor = |name: &str| ema.tensors()[name].flatten_all().unwrap();
        let tensors = ["0.weight", "2.bias"].map(|n| tensor(n).to_vec1::<f32>().unwrap());
        // A model over the average computes with it.
        let averaged = common::Net::new(3, ema.vars());
        (tensors, averaged.loss(0).to_scalar::<f32>().unwrap())
    };
    let straight = average(true, 99);
    assert_eq!(straight, average(false, 99));
    assert_eq!(straight, average(true, 11));
    // e = 0.9 e + 0.1 p of one element by hand.
    let (vars, _) = net(1);
    let freeze = FreezeOut::new(&vars, Schedule::cubic(1.0, 1, 9), common::layer_of).unwrap();
    let mut ema = Ema::new(&freeze, 0.9).unwrap();
    let before = ema.tensors()["0.bias"].to_vec1::<f32>().unwrap()[0];
    let var = vars.data().lock().unwrap()["0.bias"].clone();
    var.set(&(var.ones_like().unwrap() * 3.0).unwrap()).unwrap();
    ema.update(&freeze).unwrap();
    let after = ema.tensors()["0.bias"].to_vec1::<f32>().unwrap()[0];
    assert!((after - (0.9 * before + 0.3)).abs() < 1e-6);
    assert_eq!(ema.tensors()["0.bias"].dtype(), DType::F32);
    assert!(Ema::new(&freeze, 1.5).is_err());
    assert!(ema.load(&Default::default()).is_err());
}

/// Any valid schedule.
fn schedules() -> impl Strategy<Value = Schedule> {
    let spacing = prop_oneof![
        Just(Spacing::Linear),
        Just(Spacing::Squared),
        Just(Spacing::Cubic),
        (3u32..40).prop_map(|p| Spacing::Power(f64::from(p) / 10.0)),
        proptest::collection::vec((1usize..6, 0usize..6), 1..5).prop_map(|pairs| {
            let mut step = 0;
            let change = |(after, frozen): (usize, usize)| {
                step += after;
                Change { step, frozen }
            };
            let mut changes: Vec<Change> = pairs.into_iter().map(change).collect();
            // Every run has at least 8 steps.
            changes.retain(|change| change.step < 8);
            Spacing::At(changes)
        }),
    ];
    let rates = prop_oneof![
        Just(LayerLr::Scaled),
        Just(LayerLr::Unscaled),
        Just(LayerLr::Shared)
    ];
    let numbers = (10u32..100, 0usize..4, 1usize..3, 1usize..3);
    (2usize..6, 8usize..16, spacing, rates, numbers).prop_map(
        |(layers, steps, mut spacing, layer_lr, (t0, warmup_steps, group, keep_last))| {
            if let Spacing::At(changes) = &mut spacing {
                for change in changes {
                    change.frozen = change.frozen.min(layers - keep_last.min(layers));
                }
            }
            // Scaled rates are for stretches of some length.
            let plan = matches!(spacing, Spacing::At(_));
            let scaled = plan && layer_lr == LayerLr::Scaled;
            let layer_lr = if scaled { LayerLr::Unscaled } else { layer_lr };
            Schedule {
                spacing,
                layer_lr,
                warmup_steps,
                group,
                keep_last,
                warmup: Warmup::Continuous,
                ..Schedule::cubic(f64::from(t0) / 100.0, layers, steps)
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_run_is_exact(
        schedule in schedules(), which in 0usize..6, accum in 1usize..4, stop in 0usize..16,
    ) {
        let opt = optimisers()[which].1;
        let run = Run { accum, ..Run::new(&schedule, &opt) };
        let straight = run.train();
        prop_assert_eq!(&straight, &Run { cut: false, ..run }.train());
        prop_assert_eq!(&straight, &Run { stop: Some(stop), ..run }.train());
    }

    #[test]
    fn any_schedule_is_consistent(schedule in schedules()) {
        prop_assert!(schedule.validate().is_ok(), "{:?}", schedule);
        let plan = Schedule { spacing: Spacing::At(schedule.changes()), ..schedule.clone() };
        for step in 0..schedule.steps {
            let frozen = schedule.frozen(step);
            prop_assert!(frozen + schedule.keep_last <= schedule.layers);
            prop_assert_eq!(plan.frozen(step), frozen);
            for layer in 0..schedule.layers {
                let lr = schedule.lr(step, Some(layer));
                prop_assert!(lr.is_finite() && lr >= 0.0, "lr {} at {} of {}", lr, step, layer);
                prop_assert_eq!(schedule.is_frozen(step, layer), layer < frozen);
                let shortest = match schedule.spacing {
                    Spacing::At(_) => 1.0 / schedule.steps as f64,
                    _ => schedule.ratio(layer),
                };
                prop_assert!(lr <= 1.0001 * schedule.lr / shortest);
            }
        }
        let text = serde_json::to_string(&schedule).unwrap();
        prop_assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
    }
}
