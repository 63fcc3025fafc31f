//! The whole state as tensors by name: there and back, and what does not fit.
mod common;

use std::collections::BTreeMap;

use candle_core::Tensor;
use common::{bits, layer_of, net, Net};
use freezeout::{
    checkpoint, AdamW, AutoFreeze, Ema, Error, FreezeOut, Optimizer, Plasticity, Schedule,
};

type State = BTreeMap<String, Tensor>;

struct Training {
    freeze: FreezeOut,
    model: Net,
    opt: Optimizer,
    ema: Ema,
}

impl Training {
    fn new() -> Self {
        Self::with(|freeze| freeze)
    }

    fn with(policy: impl FnOnce(FreezeOut) -> FreezeOut) -> Self {
        let (vars, model) = net(3);
        let freeze = FreezeOut::new(&vars, Schedule::cubic(0.5, 3, 20), layer_of).unwrap();
        let freeze = policy(freeze);
        Self {
            model,
            opt: Optimizer::new(AdamW::default()),
            ema: Ema::new(&freeze, 0.9).unwrap(),
            freeze,
        }
    }

    fn advance(&mut self, step: usize) {
        if self.freeze.advance(step).unwrap() {
            self.model = Net::new(3, self.freeze.vars());
        }
    }

    fn train(&mut self, steps: std::ops::Range<usize>) {
        for step in steps {
            self.advance(step);
            let grads = self.freeze.backward(&self.model.loss(step)).unwrap();
            self.opt.step(&self.freeze, step, &grads).unwrap();
            self.ema.update(&self.freeze).unwrap();
        }
    }

    fn state(&self) -> State {
        let state = checkpoint::collect(&self.freeze, &self.opt, Some(&self.ema)).unwrap();
        // As from a file: memory of its own.
        let copy = |(name, t): (String, Tensor)| (name, t.copy().unwrap());
        state.into_iter().map(copy).collect()
    }

    fn restore(&mut self, step: usize, state: State) -> Result<(), Error> {
        if !self.freeze.has_policy() {
            self.advance(step);
        }
        let (freeze, opt) = (&mut self.freeze, &mut self.opt);
        checkpoint::restore(state, step, freeze, opt, Some(&mut self.ema))?;
        self.model = Net::new(3, self.freeze.vars());
        Ok(())
    }
}

#[test]
fn a_restored_training_goes_on_with_the_same_bits() {
    let mut straight = Training::new();
    straight.train(0..20);
    let values = |t: &Training| -> Vec<(String, Vec<f32>)> {
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
        let tensors = t.ema.tensors().iter();
        tensors.map(|(n, t)| (n.clone(), flat(t))).collect()
    };
    // Before, at and after each freeze.
    for stop in 0..20 {
        let mut first = Training::new();
        first.train(0..stop);
        let mut second = Training::new();
        second.restore(stop, first.state()).unwrap();
        second.train(stop..20);
        assert_eq!(bits(&straight.freeze), bits(&second.freeze), "{stop}");
        assert_eq!(values(&straight), values(&second), "{stop}");
        assert_eq!(straight.state().len(), second.state().len());
    }
}

/// A policy's memory is part of it, also where layers come back.
#[test]
fn a_policy_goes_on_with_the_same_bits() {
    let plasticity = |unfreeze: f64| {
        let mut policy = Plasticity::of_weights();
        (policy.interval, policy.window, policy.patience) = (2, 2, 1);
        (policy.tolerance, policy.unfreeze) = (0.9, unfreeze);
        policy
    };
    let with = |unfreeze: Option<f64>| match unfreeze {
        Some(unfreeze) => Training::with(|freeze| freeze.with_policy(plasticity(unfreeze))),
        None => Training::with(|freeze| {
            let mut policy = AutoFreeze::default();
            policy.interval = 3;
            freeze.with_policy(policy)
        }),
    };
    for unfreeze in [None, Some(0.0), Some(0.5)] {
        let mut straight = with(unfreeze);
        let mut frozen = Vec::new();
        for step in 0..20 {
            straight.train(step..step + 1);
            frozen.push(straight.freeze.frozen());
        }
        let most = frozen.iter().copied().max().unwrap();
        assert!(most > 0, "{unfreeze:?}: {frozen:?}");
        assert_eq!(
            frozen.is_sorted(),
            unfreeze != Some(0.5),
            "{unfreeze:?}: {frozen:?}"
        );
        for stop in 0..20 {
            let mut first = with(unfreeze);
            first.train(0..stop);
            let state = first.state();
            let finite = |t: &Tensor| {
                let all = t.flatten_all().unwrap().to_dtype(candle_core::DType::F64);
                all.unwrap()
                    .to_vec1::<f64>()
                    .unwrap()
                    .iter()
                    .all(|x| x.is_finite())
            };
            assert!(state.values().all(finite), "{unfreeze:?}, {stop}");
            let mut second = with(unfreeze);
            second.restore(stop, state).unwrap();
            second.train(stop..20);
            assert_eq!(
                bits(&straight.freeze),
                bits(&second.freeze),
                "{unfreeze:?}, {stop}"
            );
        }
        let mut other = Training::new();
        let line = other.restore(20, straight.state()).unwrap_err().to_string();
        assert!(line.contains("there is no policy"), "{line}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let mut first = Training::new();
    first.train(0..4);
    let fails = |step: usize, change: &dyn Fn(&mut State)| {
        let mut state = first.state();
        change(&mut state);
        Training::new()
            .restore(step, state)
            .unwrap_err()
            .to_string()
    };
    let line = fails(4, &|s| drop(s.remove("1.weight")));
    assert!(line.contains("no tensor '1.weight'"), "{line}");
    let line = fails(4, &|s| {
        let odd = s["1.bias"].clone();
        s.insert("1.weight".into(), odd);
    });
    assert!(
        line.contains("'1.weight' of the checkpoint is F32 [4]"),
        "{line}"
    );
    let line = fails(4, &|s| {
        let more = s["1.bias"].clone();
        s.insert("7.bias".into(), more);
    });
    assert!(line.contains("'7.bias' that the model does not"), "{line}");
    let line = fails(5, &|_| ());
    assert!(
        line.contains("after 5 steps") && line.contains("4 times"),
        "{line}"
    );
    let line = fails(4, &|s| drop(s.remove("optimizer.exp_avg.2.bias")));
    assert!(
        line.contains("exp_avg") && line.contains("2.bias"),
        "{line}"
    );
    let line = fails(4, &|s| drop(s.remove("ema.2.bias")));
    assert!(
        line.contains("average") && line.contains("2.bias"),
        "{line}"
    );
    let mut other = Training::new();
    other.advance(4);
    let (freeze, opt) = (&mut other.freeze, &mut other.opt);
    let line = checkpoint::restore(first.state(), 4, freeze, opt, None).unwrap_err();
    assert!(
        line.to_string().contains("has an average, the run none"),
        "{line}"
    );
}
