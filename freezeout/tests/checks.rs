//! The checks of `backward`: what freezing cannot have cut off is named.
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{layer_norm, linear, LayerNorm, Linear, Module, VarBuilder, VarMap};
use freezeout::{Error, FreezeOut, Schedule};

const CPU: Device = Device::Cpu;

/// A residual network with an embedding, a token that is added to it, and an auxiliary tower of its own.
struct Net {
    embed: Linear,
    token: Tensor,
    blocks: Vec<(LayerNorm, Linear, Linear)>,
    tower: Linear,
}

impl Net {
    fn new(vb: VarBuilder) -> Result<Self> {
        let block = |i| {
            let vb = vb.pp("blocks").pp(i);
            Ok((
                layer_norm(8, 1e-5, vb.pp("norm"))?,
                linear(8, 16, vb.pp("fc1"))?,
                linear(16, 8, vb.pp("fc2"))?,
            ))
        };
        Ok(Self {
            embed: linear(8, 8, vb.pp("embed"))?,
            token: vb.get(8, "token")?,
            blocks: (0..4).map(block).collect::<Result<_>>()?,
            tower: linear(8, 8, vb.pp("tower"))?,
        })
    }

    fn loss(&self, tower_last: bool) -> Result<Tensor> {
        let input = Tensor::arange(0f32, 16.0, &CPU)?.reshape((2, 8))?;
        let mut x = self.embed.forward(&input)?.broadcast_add(&self.token)?;
        for (norm, fc1, fc2) in &self.blocks {
            // Transposed twice: candle's layer norm cuts the graph on contiguous input.
            let h = norm.forward(&x.t()?.contiguous()?.t()?)?;
            x = (&x + fc2.forward(&fc1.forward(&h)?.gelu()?)?)?;
        }
        let main = x.sqr()?.mean_all()?;
        let tower = self.tower.forward(&input)?.gelu()?.sqr()?.mean_all()?;
        if tower_last {
            main + tower
        } else {
            tower + main
        }
    }
}

type Warnings = Arc<Mutex<Vec<String>>>;

fn freeze(layer_of: fn(&str) -> Option<usize>) -> (VarMap, FreezeOut, Warnings) {
    let vars = VarMap::new();
    Net::new(VarBuilder::from_varmap(&vars, DType::F32, &CPU)).unwrap();
    let warnings = Warnings::default();
    let seen = warnings.clone();
    let freeze = FreezeOut::new(&vars, Schedule::cubic(0.8, 5, 100), layer_of)
        .unwrap()
        .on_warning(move |text| seen.lock().unwrap().push(text.to_owned()));
    (vars, freeze, warnings)
}

fn right(name: &str) -> Option<usize> {
    match name.split('.').collect::<Vec<_>>()[..] {
        ["embed" | "token", ..] => Some(0),
        ["blocks", i, ..] => i.parse::<usize>().ok().map(|i| i + 1),
        _ => None,
    }
}

fn steps(freeze: &mut FreezeOut, frozen: &[usize], tower_last: bool) {
    for &frozen in frozen {
        freeze.freeze_first(frozen);
        let model = Net::new(freeze.vars()).unwrap();
        for _ in 0..2 {
            freeze.backward(&model.loss(tower_last).unwrap()).unwrap();
        }
    }
}

#[test]
fn a_clean_freeze_is_silent() {
    for tower_last in [false, true] {
        for frozen in [&[0, 1, 2, 3, 4, 5][..], &[0, 3, 5], &[0, 4, 2, 3], &[2, 3]] {
            let (_vars, mut freeze, warnings) = freeze(right);
            steps(&mut freeze, frozen, tower_last);
            assert!(
                warnings.lock().unwrap().is_empty(),
                "{frozen:?} {warnings:?}"
            );
        }
    }
}

#[test]
fn a_live_variable_below_the_boundary_is_named_once() {
    for tower_last in [false, true] {
        let (_vars, mut freeze, warnings) = freeze(|name| match name {
            "token" => None,
            name => right(name),
        });
        steps(&mut freeze, &[0, 1, 2], tower_last);
        let warnings = warnings.lock().unwrap();
        // Layer 0 has nothing below it but its own weights: 2 of its ops remain, the sum of token and embedding among them.
        assert!((1..=2).contains(&warnings.len()), "{warnings:?}");
        let last = warnings.last().unwrap();
        assert!(
            last.contains("'token") && last.contains("freezing layers"),
            "{last}"
        );
        assert!(last.contains("put it into the first layer"), "{last}");
    }
}

#[test]
fn layers_in_the_wrong_order_are_named() {
    let (_vars, mut freeze, warnings) = freeze(|name| match name.split('.').next()? {
        // The blocks' numbers rise, but they come after the embedding.
        "embed" | "token" => Some(4),
        "blocks" => name.split('.').nth(1)?.parse().ok(),
        _ => None,
    });
    steps(&mut freeze, &[0, 1, 2], false);
    let warnings = warnings.lock().unwrap();
    let last = warnings.last().unwrap();
    assert!(last.contains("'token' below the boundary"), "{last}");
}

#[test]
fn a_model_that_was_not_rebuilt_is_an_error() {
    let (_vars, mut freeze, _) = freeze(right);
    let model = Net::new(freeze.vars()).unwrap();
    freeze.backward(&model.loss(false).unwrap()).unwrap();
    freeze.freeze_first(1);
    let error = freeze.backward(&model.loss(false).unwrap()).unwrap_err();
    match &error {
        Error::NotRebuilt(names) => assert_eq!(names, &["embed.bias", "embed.weight", "token"]),
        other => panic!("{other}"),
    }
    assert!(error
        .to_string()
        .contains("rebuild the model from FreezeOut::vars()"));
    let mut freeze = freeze.without_checks();
    freeze.backward(&model.loss(false).unwrap()).unwrap();
}

#[test]
fn variables_that_may_go_without_gradient() {
    let (_vars, freeze, _) = freeze(right);
    let mut freeze = freeze.allow_missing(|name| name.starts_with("tower"));
    let model = Net::new(freeze.vars()).unwrap();
    let x = Tensor::ones((2, 8), DType::F32, &CPU).unwrap();
    let loss = (model.embed.forward(&x).unwrap() + 0.0).unwrap();
    let text = freeze
        .backward(&loss.sum_all().unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("allow_missing") && !text.contains("tower"),
        "{text}"
    );
    let mut freeze = freeze.allow_missing(|name| !name.starts_with("embed"));
    let grads = freeze.backward(&loss.sum_all().unwrap()).unwrap();
    let before = model.token.to_vec1::<f32>().unwrap();
    let mut opt = freezeout::Optimizer::new(freezeout::AdamW::default());
    opt.step(&freeze, 0, &grads).unwrap();
    assert_eq!(model.token.to_vec1::<f32>().unwrap(), before);
}

#[test]
fn one_variable_under_two_names_is_refused() {
    let (vars, _, _) = freeze(right);
    let var = vars.data().lock().unwrap()["token"].clone();
    vars.data().lock().unwrap().insert("token2".into(), var);
    let error = FreezeOut::new(&vars, Schedule::cubic(0.8, 5, 100), right)
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("'token' and 'token2' are one and the same"),
        "{error}"
    );
}

/// A graph that grows for a reason of its own before a freeze raises no alarm.
#[test]
fn a_graph_that_grows_is_silent() {
    let (vars, mut freeze, warnings) = freeze(right);
    let _ = &vars;
    for step in 0..99 {
        freeze.advance(step).unwrap();
        let model = Net::new(freeze.vars()).unwrap();
        let mut loss = model.loss(false).unwrap();
        for _ in 0..step {
            loss = (loss * 1.01).unwrap();
        }
        freeze.backward(&loss).unwrap();
    }
    assert!(freeze.frozen() >= 4);
    assert!(warnings.lock().unwrap().is_empty(), "{warnings:?}");
}

#[test]
fn a_variable_of_unknown_origin_is_counted() {
    let (_vars, mut freeze, warnings) = freeze(right);
    let secret = candle_core::Var::ones(8, DType::F32, &CPU).unwrap();
    for frozen in [0, 2] {
        freeze.freeze_first(frozen);
        let mut model = Net::new(freeze.vars()).unwrap();
        model.token = (model.token + secret.as_tensor()).unwrap();
        let loss = model.loss(false).unwrap();
        freeze.backward(&loss).unwrap();
    }
    let warnings = warnings.lock().unwrap();
    let last = warnings.last().unwrap();
    assert!(
        last.contains("1 variable(s) that FreezeOut does not know"),
        "{last}"
    );
}
