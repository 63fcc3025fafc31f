//! A step on many workers, by hand.
use freezeout::{
    Change, Cluster, Costs, Error, Estimate, LayerCost, Schedule, Spacing, StepCost, StepTime,
};

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12, "{a} {b}");
}

/// Bytes of a bucket.
const BUCKET: f64 = 26_214_400.0;

/// Two layers of two buckets each: forward 1 s; backward 1.2 s for the last layer, 0.8 s for the first.
fn costs() -> Costs {
    let step = |compute, backward, buckets: f64| StepCost {
        compute,
        backward,
        gradients: buckets * BUCKET,
        activations: 1.0,
    };
    Costs::new(vec![
        step(3.0, 2.0, 4.0),
        step(2.2, 1.2, 2.0),
        step(1.0, 0.0, 0.0),
    ])
}

/// Two workers that reduce a bucket in half a second.
fn pair() -> Cluster {
    Cluster::new(2, 16.0 * BUCKET / 1e9)
}

/// The first layer freezes at half of the run, the second at three quarters.
fn schedule() -> Schedule {
    let change = |step, frozen| Change { step, frozen };
    Schedule {
        spacing: Spacing::At(vec![change(50, 1), change(75, 2)]),
        keep_last: 0,
        ..Schedule::cubic(1.0, 2, 100)
    }
}

fn steps(cluster: &Cluster) -> [StepTime; 3] {
    [0, 1, 2].map(|frozen| cluster.step(&costs(), frozen).unwrap())
}

#[test]
fn one_worker_is_the_estimate_without_any() {
    let alone = Estimate::new(&schedule(), &costs()).unwrap();
    assert_eq!(alone.time, alone.compute);
    for cluster in [
        Cluster::new(1, 1e-3),
        Cluster {
            overlap: false,
            frozen_sent: true,
            ..Cluster::new(1, 1e-3)
        },
        Cluster::new(1024, f64::INFINITY),
    ] {
        let estimate = Estimate::on(&schedule(), &costs(), &cluster).unwrap();
        assert_eq!(estimate, alone, "{cluster:?}");
        let wait = steps(&cluster).map(|step| step.wait);
        assert_eq!(wait, [0.0; 3], "{cluster:?}");
    }
    assert_eq!(steps(&Cluster::new(1, 1.0)).map(|s| s.bytes), [0.0; 3]);
}

#[test]
fn reduced_after_the_backward_pass() {
    let cluster = Cluster {
        overlap: false,
        ..pair()
    };
    for (step, seconds) in steps(&cluster).iter().zip([5.0, 3.2, 1.0]) {
        close(step.seconds(), seconds);
    }
    let estimate = Estimate::on(&schedule(), &costs(), &cluster).unwrap();
    close(
        estimate.time,
        1.0 - (0.5 * 5.0 + 0.25 * 3.2 + 0.25 * 1.0) / 5.0,
    );
    close(
        estimate.compute,
        1.0 - (0.5 * 3.0 + 0.25 * 2.2 + 0.25) / 3.0,
    );
    let sent = Cluster {
        frozen_sent: true,
        ..cluster
    };
    for (step, seconds) in steps(&sent).iter().zip([5.0, 4.2, 3.0]) {
        close(step.seconds(), seconds);
        close(step.bytes, 4.0 * BUCKET);
    }
    // 2 * 3 / 4 of the bytes instead of 2 * 1 / 2.
    let four = Cluster {
        workers: 4,
        ..cluster
    };
    close(four.step(&costs(), 0).unwrap().wait, 3.0);
}

/// Buckets are ready 1.4, 0.8, 0.4 and 0 s before the backward pass ends. The second can go at once, since the first took
/// 0.5 s; from it on three take 1.5 s.
#[test]
fn reduced_meanwhile() {
    for (step, wait) in steps(&pair()).iter().zip([0.7, 0.5, 0.0]) {
        close(step.wait, wait);
    }
    // Frozen layers' buckets come last: 0.6 s are left when the first of four is ready, none when the second is.
    let sent = Cluster {
        frozen_sent: true,
        ..pair()
    };
    for (step, wait) in steps(&sent).iter().zip([0.7, 1.5, 2.0]) {
        close(step.wait, wait);
    }
    let out = Estimate::on(&schedule(), &costs(), &pair()).unwrap();
    close(out.time, 1.0 - (0.5 * 3.7 + 0.25 * 2.7 + 0.25 * 1.0) / 3.7);
    let kept = Estimate::on(&schedule(), &costs(), &sent).unwrap();
    close(kept.time, 1.0 - (0.5 * 3.7 + 0.25 * 3.7 + 0.25 * 3.0) / 3.7);
    // Nothing to hide behind: the backward pass is not told.
    let flat = [0, 1, 2].map(|frozen| StepCost {
        backward: 0.0,
        ..costs().step(frozen)
    });
    let flat = Costs::new(flat.to_vec());
    close(pair().step(&flat, 0).unwrap().wait, 2.0);
    // A link that is fast enough leaves the last bucket.
    let fast = Cluster {
        gbit: 10.0 * pair().gbit,
        ..pair()
    };
    close(fast.step(&costs(), 0).unwrap().wait, 0.05);
}

/// Half a bucket more: the last one is short.
#[test]
fn a_last_bucket_that_is_not_full() {
    let one = |backward, buckets: f64| StepCost {
        compute: 1.0 + backward,
        backward,
        gradients: buckets * BUCKET,
        activations: 1.0,
    };
    let costs = Costs::new(vec![one(1.5, 1.5), one(0.0, 0.0)]);
    // The first bucket is ready 0.5 s before the end: 0.75 - 0.5; the other one takes 0.25 s.
    close(pair().step(&costs, 0).unwrap().wait, 0.25);
    let slower = Cluster {
        gbit: 0.5 * pair().gbit,
        ..pair()
    };
    close(slower.step(&costs, 0).unwrap().wait, 1.0);
}

#[test]
fn micro_steps_are_reduced_once() {
    let cluster = Cluster {
        micro_steps: 3,
        ..pair()
    };
    let step = cluster.step(&costs(), 0).unwrap();
    close(step.compute, 9.0);
    close(step.wait, 0.7);
}

#[test]
fn everything_frozen_from_the_start() {
    let schedule = Schedule {
        spacing: Spacing::At(vec![Change { step: 0, frozen: 2 }]),
        ..schedule()
    };
    let saved = |cluster| Estimate::on(&schedule, &costs(), &cluster).unwrap().time;
    close(saved(pair()), 1.0 - 1.0 / 3.7);
    let sent = Cluster {
        frozen_sent: true,
        ..pair()
    };
    close(saved(sent), 1.0 - 3.0 / 3.7);
}

/// Of layers: the backward pass of layer i, with its branch, is twice their forward pass.
#[test]
fn the_backward_pass_of_layers() {
    let layer = |forward, entry, branch, parameters| LayerCost {
        forward,
        entry,
        branch,
        parameters,
        ..Default::default()
    };
    let layers = [layer(10.0, 10.0, 0.0, 3.0), layer(20.0, 5.0, 7.0, 2.0)];
    let costs = Costs::of_layers(&layers, layer(1.0, 1.0, 0.0, 1.0));
    let backward = [0, 1, 2].map(|frozen| costs.step(frozen).backward);
    assert_eq!(backward, [76.0 - 10.0, 56.0 - 5.0, 2.0 - 1.0]);
    let scaled = costs.clone().scaled(0.5, 4.0);
    close(scaled.step(0).compute, 0.5 * costs.step(0).compute);
    close(scaled.step(1).backward, 25.5);
    close(scaled.step(1).gradients, 12.0);
}

#[test]
fn bad_numbers() {
    let error = |cluster: Cluster| match cluster.step(&costs(), 0) {
        Err(Error::Cluster(text)) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        error(Cluster::new(0, 1.0)),
        "workers is 0, it must be at least 1"
    );
    for gbit in [0.0, -1.0, f64::NAN] {
        assert!(error(Cluster::new(2, gbit)).contains("it must be at least 1e-9"));
    }
    let none = Cluster {
        micro_steps: 0,
        ..pair()
    };
    assert_eq!(error(none), "micro_steps is 0, it must be at least 1");
    for bytes in [-1.0, 1e30, f64::NAN, f64::INFINITY] {
        let costs = Costs::new(vec![StepCost {
            gradients: bytes,
            ..Default::default()
        }]);
        let error = pair().step(&costs, 0).unwrap_err().to_string();
        assert!(error.contains("bytes of gradients"), "{error}");
    }
    let other = Schedule::cubic(0.5, 3, 100);
    let error = Estimate::on(&other, &costs(), &pair()).unwrap_err();
    assert!(error.to_string().contains("costs are for 2 layers"));
}
