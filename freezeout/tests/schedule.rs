//! Plans, groups, decays and their errors; the original's numbers are in goldens.rs.
use freezeout::{Change, Curve, Decay, LayerLr, Schedule, Spacing};

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12, "{a} {b}");
}

#[test]
fn explicit_freeze_steps() {
    let plan = Schedule::freeze_at(&[Some(10), Some(10), Some(40), None], 100).unwrap();
    plan.validate().unwrap();
    assert_eq!([9, 10, 39, 40, 99].map(|s| plan.frozen(s)), [0, 2, 2, 3, 3]);
    assert_eq!(
        (0..4).map(|l| plan.freeze_step(l)).collect::<Vec<_>>(),
        [Some(10), Some(10), Some(40), None]
    );
    assert_eq!(
        (0..4).map(|l| plan.ratio(l)).collect::<Vec<_>>(),
        [0.1, 0.1, 0.4, 1.0]
    );
    let error = Schedule::freeze_at(&[Some(20), Some(10)], 100).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("layer 1 would freeze before layer 0"),
        "{error}"
    );
    let error = Schedule::freeze_at(&[None, Some(10)], 100).unwrap_err();
    assert!(error.to_string().contains("layer 1"), "{error}");
}

#[test]
fn own_decays_follow_the_stretches_of_a_plan() {
    let changes = [(0, 2), (20, 1), (60, 2), (80, 0)].map(|(step, frozen)| Change { step, frozen });
    let plan = Schedule {
        spacing: Spacing::At(changes.to_vec()),
        layer_lr: LayerLr::Scaled,
        decay: Decay::Linear,
        lr: 1.0,
        ..Schedule::cubic(1.0, 3, 100)
    };
    plan.validate().unwrap();
    // Layer 1 trains from 20 to 60 and from 80 on: 0.4 and 0.2 of the run.
    close(plan.lr(20, Some(1)), 1.0 / 0.4);
    close(plan.lr(40, Some(1)), 0.5 / 0.4);
    close(plan.lr(59, Some(1)), 0.025 / 0.4);
    assert_eq!(plan.lr(60, Some(1)), 0.0);
    close(plan.lr(80, Some(1)), 1.0 / 0.2);
    // Layer 0 from 80 on, layer 2 all the time.
    assert_eq!(plan.lr(79, Some(0)), 0.0);
    close(plan.lr(90, Some(0)), 0.5 / 0.2);
    close(plan.lr(50, Some(2)), 0.5);
    assert_eq!(plan.freeze_step(0), Some(0));
    assert_eq!(plan.changes(), changes);
    let since = |step, layer| plan.live_since(step, layer);
    assert_eq!(
        [since(59, 1), since(60, 1), since(99, 1), since(99, 2)],
        [20, 60, 80, 0]
    );
}

#[test]
fn unfreezing_from_the_head_down() {
    let plan = Schedule::gradual_unfreeze(&[100, 200], 3, 1000);
    plan.validate().unwrap();
    assert_eq!(
        [0, 99, 100, 199, 200].map(|s| plan.frozen(s)),
        [2, 2, 1, 1, 0]
    );
    // One shared cosine, for those who train.
    assert_eq!(plan.lr(50, Some(1)), 0.0);
    assert_eq!(plan.lr(150, Some(1)), plan.lr(150, None));
    // Any schedule as a plan, edited: everything thaws for the last tenth.
    let cubic = Schedule::cubic(0.8, 4, 1000);
    let mut changes = cubic.changes();
    changes.push(Change {
        step: 900,
        frozen: 0,
    });
    let thawed = Schedule {
        spacing: Spacing::At(changes),
        ..cubic
    };
    thawed.validate().unwrap();
    assert_eq!([899, 900, 999].map(|s| thawed.frozen(s)), [3, 0, 0]);
}

#[test]
fn groups_and_last_layers() {
    let schedule = Schedule {
        group: 3,
        ..Schedule::cubic(0.5, 9, 1000)
    };
    let steps: Vec<_> = (0..9).map(|l| schedule.freeze_step(l)).collect();
    assert_eq!(steps[0], steps[2]);
    assert_eq!(steps[3], steps[5]);
    assert!(steps[2] < steps[3] && steps[5] < steps[6]);
    // The last layer of the last group never freezes, whatever its group does.
    assert_eq!(steps[8], None);
    let schedule = Schedule {
        keep_last: 4,
        ..Schedule::cubic(0.5, 9, 1000)
    };
    assert_eq!(schedule.frozen(999), 5);
    assert_eq!(
        schedule.freeze_step(4),
        Schedule::cubic(0.5, 9, 1000).freeze_step(4)
    );
}

#[test]
fn powers_and_decays() {
    let power = |p| Schedule {
        spacing: Spacing::Power(p),
        ..Schedule::cubic(0.7, 7, 999)
    };
    let cubic = Schedule::cubic(0.7, 7, 999);
    for layer in 0..7 {
        close(power(3.0).ratio(layer), cubic.ratio(layer));
        assert!(power(1.5).ratio(layer) >= cubic.ratio(layer));
    }
    let decay = |decay| Schedule {
        decay,
        lr: 2.0,
        min_lr: 1.0,
        ..Schedule::cubic(1.0, 2, 100)
    };
    close(decay(Decay::Cosine).lr(50, None), 1.5);
    close(decay(Decay::Linear).lr(75, None), 1.25);
    close(decay(Decay::Constant).lr(99, None), 2.0);
    let curve = Decay::Custom(Curve::new(|x| (1.0 - x) * (1.0 - x)));
    close(decay(curve.clone()).lr(50, None), 1.25);
    assert!(serde_json::to_string(&decay(curve)).is_err());
}

/// A loop that runs past the schedule's end keeps its last layers and its last rate.
#[test]
fn past_the_end() {
    for spacing in [Spacing::Cubic, Spacing::None] {
        let schedule = Schedule {
            spacing,
            min_lr: 1e-5,
            ..Schedule::cubic(0.8, 3, 100)
        };
        let frozen = schedule.frozen(99);
        assert_eq!([100, 101, 500].map(|s| schedule.frozen(s)), [frozen; 3]);
        assert_eq!([100, 150, 500].map(|s| schedule.lr(s, Some(2))), [1e-5; 3]);
        assert_eq!(schedule.lr(150, None), 1e-5);
    }
}

#[test]
fn text_of_a_spacing() {
    for text in [
        "linear",
        "squared",
        "cubic",
        "none",
        "power:2.5",
        "at:500=1,700=2",
        "at:",
    ] {
        let spacing: Spacing = text.parse().unwrap();
        assert_eq!(spacing.to_string(), text);
        let json = serde_json::to_string(&spacing).unwrap();
        assert_eq!(json, format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Spacing>(&json).unwrap(), spacing);
    }
    for text in [
        "", "cube", "power:", "power:x", "at:5", "at:5=x", "at:=", "at:1=1,", "at:-1=2",
    ] {
        let error = text.parse::<Spacing>().unwrap_err().to_string();
        assert!(
            error.contains("expected linear, squared, cubic"),
            "{text}: {error}"
        );
    }
}

#[test]
fn numbers_out_of_range_are_named() {
    let good = Schedule::cubic(0.5, 3, 20);
    let at = |changes: &[(usize, usize)]| {
        let change = |&(step, frozen): &(usize, usize)| Change { step, frozen };
        Spacing::At(changes.iter().map(change).collect())
    };
    for (bad, want) in [
        (
            Schedule {
                t0: 0.0,
                ..good.clone()
            },
            "t0 is 0",
        ),
        (
            Schedule {
                t0: f64::NAN,
                ..good.clone()
            },
            "t0 is NaN",
        ),
        (
            Schedule {
                t0: 1e-4,
                ..good.clone()
            },
            "before it has trained",
        ),
        (
            Schedule {
                steps: 0,
                ..good.clone()
            },
            "steps is 0",
        ),
        (
            Schedule {
                layers: 0,
                ..good.clone()
            },
            "layers is 0",
        ),
        (
            Schedule {
                warmup_steps: 20,
                ..good.clone()
            },
            "warmup_steps",
        ),
        (
            Schedule {
                steps: usize::MAX,
                ..good.clone()
            },
            "at most 2^48",
        ),
        (
            Schedule {
                spacing: at(&[(50, 1)]),
                ..good.clone()
            },
            "step 50 lies beyond the run's 20 steps",
        ),
        (
            Schedule {
                spacing: at(&[(1, 1)]),
                layer_lr: LayerLr::Scaled,
                steps: 100,
                ..good.clone()
            },
            "layer 0 trains for 1.0 % of the steps from step 0 on",
        ),
        (
            Schedule {
                lr: f64::INFINITY,
                ..good.clone()
            },
            "lr is inf",
        ),
        (
            Schedule {
                min_lr: -1.0,
                ..good.clone()
            },
            "min_lr is -1",
        ),
        (
            Schedule {
                group: 0,
                ..good.clone()
            },
            "group is 0",
        ),
        (
            Schedule {
                keep_last: 4,
                ..good.clone()
            },
            "keep_last is 4, there are 3 layers",
        ),
        (
            Schedule {
                spacing: Spacing::Power(0.0),
                ..good.clone()
            },
            "power:0",
        ),
        (
            Schedule {
                spacing: Spacing::Power(f64::NAN),
                ..good.clone()
            },
            "power:NaN",
        ),
        (
            Schedule {
                spacing: at(&[(5, 3)]),
                ..good.clone()
            },
            "freezes 3 layers, at most 2",
        ),
        (
            Schedule {
                spacing: at(&[(5, 1), (5, 2)]),
                ..good.clone()
            },
            "step 5 comes after step 5",
        ),
    ] {
        let error = bad.validate().unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    Schedule {
        spacing: at(&[(5, 3)]),
        keep_last: 0,
        ..good
    }
    .validate()
    .unwrap();
}
