//! Ops whose products take bf16, against their plain form with rounded operands and against f32.
//!
//! With the machine's unit for bf16 if it has one, else emulated.
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use vit::ops::{self, plain, BlockOptions, Compute, HeldWeights, Precision, Unit};

#[path = "common/block.rs"]
mod forms;

use forms::{block_shapes, fused_block, plain_block, weights};
use Precision::{Bf16, F32};

fn compute(precision: Precision) -> Compute {
    let compute = Compute {
        precision,
        unit: Unit::named("any").unwrap(),
        ..Compute::default()
    };
    assert_eq!(compute.bf16_unit().is_some(), precision == Bf16);
    compute
}

fn numbers(shape: &[usize], salt: usize) -> Tensor {
    let value = |i: usize| ((i * 7919 + salt * 104_729) % 10_007) as f32 / 5_003.5 - 1.0;
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(value).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// `|a - b| / |b|`
fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let (mut error, mut norm) = (0f64, 0f64);
    for (a, b) in flat(a).into_iter().zip(flat(b)) {
        error += f64::from(a - b).powi(2);
        norm += f64::from(b).powi(2);
    }
    (error / norm).sqrt()
}

/// The result and all gradients of an op: in bf16 close to the plain form with the same roundings, and off f32 by what
/// rounding to 8 bits costs.
fn check(
    name: &str,
    shapes: &[Vec<usize>],
    op: impl Fn(&[Tensor], &Compute, bool) -> Result<Tensor>,
) {
    let var = |(i, shape): (usize, &Vec<usize>)| {
        // Wide weights are smaller, as in a model: with large scores softmax makes much of little.
        let scale = match shape[..] {
            [_, inputs] => (8.0 / inputs as f64).sqrt().min(1.0),
            _ => 1.0,
        };
        Var::from_tensor(&(numbers(shape, i) * scale).unwrap()).unwrap()
    };
    let vars: Vec<Var> = shapes.iter().enumerate().map(var).collect();
    let inputs: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let run = |precision, fused| {
        let y = op(&inputs, &compute(precision), fused).unwrap();
        let weights = numbers(y.dims(), 99);
        let loss = (&y * weights).unwrap().sum_all().unwrap();
        let grads = ops::backward(&loss).unwrap();
        // A second time nothing is kept any more.
        let again = loss.backward().unwrap();
        let mut all = vec![y];
        for var in &vars {
            let grad = grads.get(var).unwrap().clone();
            assert_eq!(
                flat(&grad),
                flat(again.get(var).unwrap()),
                "{name}: backward twice"
            );
            all.push(grad);
        }
        all
    };
    let (fused, plain, exact) = (run(Bf16, true), run(Bf16, false), run(F32, true));
    for (i, ((fused, plain), exact)) in fused.iter().zip(&plain).zip(&exact).enumerate() {
        // Rounding turns tiny differences into some of 2^-8; and the plain form does not round in its backward.
        let tolerance = if i == 0 { 5e-3 } else { 2e-2 };
        let error = relative(fused, plain);
        assert!(
            error < tolerance,
            "{name}, tensor {i}: {error:e} from the plain form"
        );
        let error = relative(fused, exact);
        let tolerance = if i == 0 { 1e-2 } else { 6e-2 };
        assert!(error < tolerance, "{name}, tensor {i}: {error:e} from f32");
    }
    // A matrix's gradient comes out of a product of its own, which must have been bf16 as well: the plain form, whose
    // backward does not round, is far from it.
    for (i, ((fused, plain), exact)) in fused.iter().zip(&plain).zip(&exact).enumerate() {
        if i == 0 || shapes[i - 1].len() > 1 {
            let off = relative(fused, exact);
            assert!(off > 1e-4, "{name}, tensor {i}: only {off:e} from f32");
        }
        if i > 0 && shapes[i - 1].len() > 1 {
            let off = relative(fused, plain);
            assert!(
                off > 1e-4,
                "{name}, tensor {i}: its backward was not bf16, {off:e}"
            );
        }
    }
    let again = run(Bf16, true);
    for (a, b) in fused.iter().zip(&again) {
        assert_eq!(flat(a), flat(b), "{name}: the same bits twice");
    }
}

/// Results of products go straight to their places in packed rows; windows of several lengths.
#[test]
fn window_attention() {
    let counts = [49, 20, 33];
    let place = counts.iter().flat_map(|&count| (0..count as u16).rev());
    let (place, rows) = (place.collect::<Vec<_>>(), counts.iter().sum::<usize>());
    let region = (0..rows).map(|row| u8::from(row % 49 > 30)).collect();
    let windows = ops::Windows::new(49, &counts, place, region).unwrap();
    check(
        "window_attention",
        &[vec![2, rows, 3 * 64], vec![2, 49, 49]],
        |x, compute, fused| match fused {
            true => ops::window_attention(&x[0], &x[1], &windows, compute),
            false => plain::window_attention(&x[0], &x[1], &windows, compute),
        },
    );
}

#[test]
fn linear() {
    for (rows, inputs, outputs) in [(1, 40, 3), (7, 33, 18), (65, 96, 130)] {
        let shapes = [vec![rows, inputs], vec![outputs, inputs], vec![outputs]];
        check("linear", &shapes, |x, compute, fused| match fused {
            true => ops::linear(&x[0], &x[1], &x[2], compute),
            false => plain::linear(&x[0], &x[1], &x[2], compute),
        });
    }
}

#[test]
fn attention() {
    for (batch, tokens, heads, dim) in [(2, 9, 2, 8), (1, 50, 3, 64), (1, 197, 1, 32)] {
        let shapes = [vec![batch, tokens, 3 * heads * dim]];
        check("attention", &shapes, |x, compute, fused| match fused {
            true => ops::attention(&x[0], heads, compute),
            false => plain::attention(&x[0], heads, compute),
        });
    }
}

/// With factors of a drop path on both branches.
#[test]
fn block() {
    let factors = |batch: usize, salt: usize| {
        let factor = |i: usize| ((i * 7 + salt) % 5) as f32 / 2.0;
        Some((0..batch).map(factor).collect::<Vec<f32>>())
    };
    for (batch, tokens, heads, d, hidden) in SIZES {
        let shapes = block_shapes(batch, tokens, d, hidden);
        for paths in [
            [None, None],
            [factors(batch, 1), factors(batch, 3)],
            [factors(batch, 2), None],
        ] {
            check("block", &shapes, |x, compute, fused| match fused {
                true => fused_block(x, heads, &paths, compute),
                false => plain_block(x, heads, &paths, compute),
            });
        }
    }
}

/// Images, tokens, heads, width and hidden width: more than 128 rows in all but the first, and than a tile's numbers; odd ones.
const SIZES: [(usize, usize, usize, usize, usize); 3] =
    [(2, 11, 2, 48, 80), (9, 29, 4, 96, 385), (7, 19, 3, 33, 129)];

/// With rotary positions.
#[test]
fn turned_block() {
    for (batch, tokens, heads, d, hidden) in [SIZES[0], SIZES[1]] {
        let shapes = block_shapes(batch, tokens, d, hidden);
        let turns = forms::rotation(batch, tokens, d / heads / 2, &Device::Cpu);
        check("turned block", &shapes, |x, compute, fused| match fused {
            true => forms::fused_turned(x, heads, &[None, None], Some(&turns), compute),
            false => forms::plain_turned(x, heads, &[None, None], Some(&turns), compute),
        });
    }
}

/// Held weights change no bit, over several passes and on threads of a pool; one that changes in place counts at once.
#[test]
fn held_weights() {
    // Many rows; squares; columns.
    for (batch, d, hidden) in [(12, 48, 80), (2, 48, 48), (2, 2, 1)] {
        for precision in [F32, Bf16] {
            let shapes = block_shapes(batch, 11, d, hidden);
            let var = |(i, s): (usize, &Vec<usize>)| Var::from_tensor(&numbers(s, i)).unwrap();
            let vars: Vec<Var> = shapes.iter().enumerate().map(var).collect();
            let pass = |salt: usize, held: Option<&Arc<HeldWeights>>| {
                let mut x: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
                x[0] = (&x[0] * (1.0 + salt as f64)).unwrap();
                let options = BlockOptions {
                    heads: 2,
                    eps: 1e-6,
                    paths: [None, None],
                    rotation: None,
                    compute: compute(precision),
                    held: held.cloned(),
                };
                let y = ops::block(&x[0], &weights(&x), options).unwrap();
                let loss = (&y * numbers(y.dims(), 99)).unwrap().sum_all().unwrap();
                let grads = ops::backward(&loss).unwrap();
                let grads = vars.iter().map(|v| flat(grads.get(v).unwrap()));
                std::iter::once(flat(&y)).chain(grads).collect::<Vec<_>>()
            };
            let passes = |held| [pass(0, held), pass(1, held), pass(0, held)];
            let held = Arc::default();
            let want = passes(None);
            assert_eq!(passes(Some(&held)), want);
            // Four passes at once, each of which waits for tasks of the pool that they share.
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
            let fresh = Arc::default();
            pool.unwrap().scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|_| assert_eq!(passes(Some(&fresh)), want));
                }
            });
            for weight in [3, 5, 9, 11] {
                let var = &vars[weight];
                var.set(&(var.as_tensor() * -0.5).unwrap()).unwrap();
                let changed = passes(None);
                assert_ne!(changed[0][0], want[0][0]);
                assert_eq!(passes(Some(&held)), changed);
            }
        }
    }
}
