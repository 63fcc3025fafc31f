//! Estimates: by hand, against FreezeOut's published estimator, and from measured costs.
use candle_core::{DType, Device, Tensor};
use candle_nn::{linear, Linear, Module, VarBuilder, VarMap};
use freezeout::{
    freezeout_speedup, profile, Change, Costs, Error, Estimate, FreezeOut, LayerCost, Schedule,
    Spacing,
};

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12, "{a} {b}");
}

fn at(changes: &[(usize, usize)], layers: usize) -> Schedule {
    let change = |&(step, frozen): &(usize, usize)| Change { step, frozen };
    Schedule {
        spacing: Spacing::At(changes.iter().map(change).collect()),
        keep_last: 0,
        ..Schedule::cubic(1.0, layers, 100)
    }
}

#[test]
fn a_step_by_hand() {
    let layer = |forward, entry, branch, activations, parameters| LayerCost {
        forward,
        entry,
        branch,
        activations,
        parameters,
    };
    let layers = [
        layer(10.0, 10.0, 0.0, 4.0, 100.0),
        layer(20.0, 5.0, 7.0, 8.0, 200.0),
    ];
    let costs = Costs::of_layers(&layers, layer(1.0, 1.0, 0.0, 2.0, 10.0));
    // Nothing frozen: 3 (10 + 20 + 7 + 1), less the gradient of the images.
    close(costs.step(0).compute, 114.0 - 10.0);
    // Layer 0 frozen: its forward, 3 (20 + 7 + 1), less the gradient of the tokens.
    close(costs.step(1).compute, 10.0 + 84.0 - 5.0);
    // Both: their forward, the head, less the gradient of its input.
    close(costs.step(2).compute, 30.0 + 3.0 - 1.0);
    close(costs.step(1).activations, 10.0);
    close(costs.step(2).gradients, 10.0);
    let estimate = Estimate::new(&at(&[(50, 1), (75, 2)], 2), &costs).unwrap();
    close(
        estimate.compute,
        1.0 - (0.5 * 104.0 + 0.25 * 89.0 + 0.25 * 32.0) / 104.0,
    );
    close(
        estimate.activations,
        1.0 - (0.5 * 14.0 + 0.25 * 10.0 + 0.25 * 2.0) / 14.0,
    );
    close(
        estimate.gradients,
        1.0 - (0.5 * 310.0 + 0.25 * 210.0 + 0.25 * 10.0) / 310.0,
    );
    // Unfreezing costs again.
    let thawed = Estimate::new(&at(&[(0, 2), (50, 0)], 2), &costs).unwrap();
    close(thawed.compute, 1.0 - (0.5 * 32.0 + 0.5 * 104.0) / 104.0);
    let none = Estimate::new(&at(&[], 2), &costs).unwrap();
    assert_eq!(
        (none.compute, none.activations, none.gradients),
        (0.0, 0.0, 0.0)
    );
    let text = estimate.to_string();
    assert!(
        text.starts_with("saves ") && text.contains("% of compute"),
        "{text}"
    );
    // A quarter of the costs until step 60: 104 and 89 become 26 and 22.25.
    let small = costs.clone().scaled(0.25, 1.0);
    let plan = at(&[(50, 1), (75, 2)], 2);
    let growing = Estimate::of_stretches(&plan, &[(0, &small), (60, &costs)]).unwrap();
    let full = 60.0 * 26.0 + 40.0 * 104.0;
    let spent = 50.0 * 26.0 + 10.0 * 22.25 + 15.0 * 89.0 + 25.0 * 32.0;
    close(growing.compute, 1.0 - spent / full);
    close(growing.gradients, estimate.gradients);
    for wrong in [&[][..], &[(1, &costs)], &[(0, &costs), (0, &small)]] {
        let error = Estimate::of_stretches(&plan, wrong)
            .unwrap_err()
            .to_string();
        assert!(error.contains("must begin at step 0"), "{error}");
    }
    let error = Estimate::new(&at(&[], 3), &costs).unwrap_err().to_string();
    assert!(
        error.contains("costs are for 2 layers, the schedule has 3"),
        "{error}"
    );
}

/// FreezeOut's code gives these for two DenseNets (goldens: schedules.json). Its estimate depends on the layers' costs only
/// through the mean of x, x^2 and x^3 over the layers, x = i / N, so three of its 15 values determine costs on four layers
/// that must give the other twelve.
#[test]
fn the_published_estimator() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/freezeout_speedup.json"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let values: Vec<(String, f64, f64, f64)> = serde_json::from_str(&text).unwrap();
    assert_eq!(values.len(), 15);
    for densenet in 0..2 {
        let want = |how: &str, t0: f64| {
            let row = values.iter().find(|v| v.0 == how && v.1 == t0).unwrap();
            [row.2, row.3][densenet]
        };
        // Mean rho of each, from 1 - (1 + mean) / 2.
        let linear = 1.0 - 2.0 * want("linear", 0.5) / 1.3;
        let squared = 1.0 - 2.0 * want("squared", 0.5);
        let cubic = 1.0 - 2.0 * want("cubic", 0.5);
        let m1 = (linear - 0.5) / 0.5;
        let m2 = (squared - 0.25 - 0.5 * m1) / 0.25;
        let m3 = (cubic - 0.125 - 0.375 * m1 - 0.375 * m2) / 0.125;
        // Weights at x = 0, 1/3, 2/3, 1 with these moments.
        let c1 = (18.0 * m1 - 45.0 * m2 + 27.0 * m3) / 2.0;
        let c2 = (-9.0 * m1 + 36.0 * m2 - 27.0 * m3) / 2.0;
        let c3 = (2.0 * m1 - 9.0 * m2 + 9.0 * m3) / 2.0;
        let costs = [1.0 - c1 - c2 - c3, c1, c2, c3];
        for (how, t0, ..) in &values {
            let schedule = Schedule {
                spacing: how.parse().unwrap(),
                ..Schedule::cubic(*t0, 4, 1000)
            };
            let got = freezeout_speedup(&schedule, &costs);
            let want = want(how, *t0);
            assert!((got - want).abs() < 1e-12, "{how} {t0}: {got} {want}");
        }
    }
}

#[test]
fn a_measured_profile() {
    let build = |vb: VarBuilder| -> candle_core::Result<Vec<Linear>> {
        (0..4)
            .map(|i| linear(64, 64, vb.pp("blocks").pp(i)))
            .collect()
    };
    let vars = VarMap::new();
    build(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu)).unwrap();
    let layer_of = |name: &str| name.split('.').nth(1)?.parse().ok();
    let mut freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 4, 100), layer_of).unwrap();
    freeze.freeze_first(1);
    let x = Tensor::ones((32, 64), DType::F32, &Device::Cpu).unwrap();
    let loss = |vb: VarBuilder| {
        let mut x = x.clone();
        for layer in build(vb)? {
            x = layer.forward(&x)?.tanh()?;
        }
        x.sqr()?.mean_all()
    };
    let measured = profile(&mut freeze, 3, loss).unwrap();
    assert_eq!(freeze.frozen(), 1);
    assert_eq!(measured.0.len(), 5);
    for pair in measured.0.windows(2) {
        assert!(pair[0].ops > pair[1].ops, "{measured}");
        assert!(
            pair[0].activation_bytes > pair[1].activation_bytes,
            "{measured}"
        );
        assert_eq!(
            pair[0].gradient_bytes - pair[1].gradient_bytes,
            4 * (64 * 64 + 64)
        );
    }
    // A block: product, sum with the broadcast bias, tanh; 32 x 64 numbers each. The loss: one such and two scalars.
    let block = measured.0[0].activation_bytes - measured.0[1].activation_bytes;
    assert_eq!(block, 3 * 4 * 32 * 64, "{measured}");
    let all = measured.0[4];
    assert_eq!((all.ops, all.backward < 1e-3), (0, true), "{measured}");
    let estimate = Estimate::new(freeze.schedule(), &measured.costs()).unwrap();
    assert!(estimate.activations > 0.0 && estimate.activations < 1.0);
    assert!(measured.to_string().lines().count() == 6);
    let error = profile(&mut freeze, 0, loss).unwrap_err();
    assert!(matches!(error, Error::Profile(_)));
}
