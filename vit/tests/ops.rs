//! Every fused op against its plain form, and its gradients against central differences of the plain form in f64.
use std::sync::{Arc, LazyLock, OnceLock};

use candle_core::{DType, Device, Result, Tensor, Var};
use vit::ops::{self, plain, Compute};

#[path = "common/block.rs"]
mod forms;

use forms::block_shapes;

fn fused_block(x: &[Tensor], heads: usize, paths: &[Option<Vec<f32>>; 2]) -> Result<Tensor> {
    forms::fused_block(x, heads, paths, &F32)
}

fn plain_block(x: &[Tensor], heads: usize, paths: &[Option<Vec<f32>>; 2]) -> Result<Tensor> {
    forms::plain_block(x, heads, paths, &F32)
}

/// As usual.
static F32: LazyLock<Compute> = LazyLock::new(Compute::default);

const CPU: Device = Device::Cpu;

/// Where the fused forms run: on the CPU, or with `VITFREEZE_TEST_DEVICE=cuda` on a GPU (docs/gpu.md).
fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let open = || match std::env::var("VITFREEZE_TEST_DEVICE").as_deref() {
        Ok("cuda") => Device::new_cuda(0).unwrap(),
        _ => Device::Cpu,
    };
    DEVICE.get_or_init(open).clone()
}

/// Numbers in [-2, 2) that depend on the position and on `salt` alone.
fn numbers(shape: &[usize], salt: u64) -> Tensor {
    let count = shape.iter().product::<usize>();
    let value = |i: usize| {
        let mut x = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ salt.wrapping_mul(0x1234_5678_9abc_def1);
        x ^= x >> 31;
        x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^= x >> 29;
        (x >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    };
    Tensor::from_vec((0..count).map(value).collect::<Vec<f32>>(), shape, &CPU).unwrap()
}

/// The same on [`device`].
fn input(shape: &[usize], salt: u64) -> Tensor {
    numbers(shape, salt).to_device(&device()).unwrap()
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn close(got: &Tensor, want: &[f64], tolerance: f64, what: &str) {
    let got = flat(got);
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-3f64, |m, x| m.max(x.abs()));
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * scale,
            "{what}[{i}]: {a}, not {b}"
        );
    }
}

/// Checks value and all gradients of `fused` for inputs of these shapes.
fn check(
    name: &str,
    shapes: &[&[usize]],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let vars: Vec<Var> = shapes
        .iter()
        .enumerate()
        .map(|(i, shape)| Var::from_tensor(&input(shape, i as u64)).unwrap())
        .collect();
    let inputs: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let exact: Vec<Tensor> = inputs
        .iter()
        .map(|t| t.detach().to_device(&CPU).unwrap())
        .map(|t| t.to_dtype(DType::F64).unwrap())
        .collect();
    let y = fused(&inputs).unwrap();
    let want = plain(&exact).unwrap();
    assert_eq!(y.dims(), want.dims(), "{name}");
    close(&y, &flat(&want), 1e-5, name);

    // loss = sum(weights * y), so that every output counts differently.
    let weights = numbers(y.dims(), 99);
    let exact_weights = weights.to_dtype(DType::F64).unwrap();
    let weights = weights.to_device(&device()).unwrap();
    let grads = (&y * &weights)
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    let loss = |inputs: &[Tensor]| -> f64 {
        let y = plain(inputs).unwrap();
        (y * &exact_weights)
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar()
            .unwrap()
    };
    for (k, var) in vars.iter().enumerate() {
        let grad = grads
            .get(var)
            .unwrap_or_else(|| panic!("{name}: no gradient of input {k}"));
        let base = flat(&exact[k]);
        let step = 1e-5;
        let numeric: Vec<f64> = (0..base.len())
            .map(|i| {
                let at = |delta: f64| {
                    let mut values = base.clone();
                    values[i] += delta;
                    let mut inputs = exact.clone();
                    inputs[k] = Tensor::from_vec(values, shapes[k], &CPU).unwrap();
                    loss(&inputs)
                };
                (at(step) - at(-step)) / (2.0 * step)
            })
            .collect();
        close(
            grad,
            &numeric,
            2e-5,
            &format!("{name}: gradient of input {k}"),
        );
    }

    // Plain inputs get no gradient and change no other one's.
    for (k, var) in vars.iter().enumerate() {
        let mixed: Vec<Tensor> = inputs
            .iter()
            .enumerate()
            .map(|(i, t)| if i == k { t.clone() } else { t.detach() })
            .collect();
        let loss = (fused(&mixed).unwrap() * &weights)
            .unwrap()
            .sum_all()
            .unwrap();
        let alone = loss.backward().unwrap();
        assert_eq!(flat(alone.get(var).unwrap()), flat(grads.get(var).unwrap()));
    }
}

#[test]
fn linear() {
    for (rows, inputs, outputs) in [(1, 1, 1), (2, 3, 5), (33, 17, 9), (300, 4, 3)] {
        check(
            "linear",
            &[&[rows, inputs], &[outputs, inputs], &[outputs]],
            |x| ops::linear(&x[0], &x[1], &x[2], &F32),
            |x| plain::linear(&x[0], &x[1], &x[2], &F32),
        );
    }
    check(
        "linear on 3 dimensions",
        &[&[2, 3, 4], &[5, 4], &[5]],
        |x| ops::linear(&x[0], &x[1], &x[2], &F32),
        |x| plain::linear(&x[0], &x[1], &x[2], &F32),
    );
}

#[test]
fn gelu() {
    for n in [1, 15, 16, 17, 130] {
        check(
            "gelu",
            &[&[n]],
            |x| ops::gelu(&x[0], &F32),
            |x| plain::gelu(&x[0]),
        );
    }
}

#[test]
fn layer_norm() {
    for (rows, width) in [(1, 3), (3, 5), (33, 16), (70, 19)] {
        check(
            "layer_norm",
            &[&[rows, width], &[width], &[width]],
            |x| ops::layer_norm(&x[0], &x[1], &x[2], 1e-6, &F32),
            |x| plain::layer_norm(&x[0], &x[1], &x[2], 1e-6),
        );
        check(
            "layer_norm_gelu",
            &[&[rows, width], &[width], &[width]],
            |x| ops::layer_norm_gelu(&x[0], &x[1], &x[2], 1e-6, &F32),
            |x| plain::gelu(&plain::layer_norm(&x[0], &x[1], &x[2], 1e-6)?),
        );
    }
}

#[test]
fn block() {
    if !device().is_cpu() {
        return; // There is none elsewhere.
    }
    let some = |factors: &[f32]| Some(factors.to_vec());
    for (batch, tokens, heads, dim, hidden, paths) in [
        (1, 1, 1, 2, 1, [None, None]),
        (2, 3, 2, 3, 7, [None, None]),
        (2, 5, 1, 4, 8, [some(&[0.0, 1.25]), some(&[2.0, 0.0])]),
        (1, 9, 2, 1, 5, [None, some(&[1.5])]),
    ] {
        let shapes = block_shapes(batch, tokens, heads * dim, hidden);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        check(
            "block",
            &shapes,
            |x| fused_block(x, heads, &paths),
            |x| plain_block(x, heads, &paths),
        );
    }
}

#[test]
fn block_with_rotary_positions() {
    if !device().is_cpu() {
        return; // There is none elsewhere.
    }
    for (batch, tokens, heads, dim, images) in [(2, 3, 2, 4, 1), (2, 5, 1, 2, 2), (1, 1, 1, 2, 1)] {
        let shapes = block_shapes(batch, tokens, heads * dim, 5);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let turns = forms::rotation(images, tokens, dim / 2, &CPU);
        let none = [None, None];
        check(
            "turned block",
            &shapes,
            |x| forms::fused_turned(x, heads, &none, Some(&turns), &F32),
            |x| forms::plain_turned(x, heads, &none, Some(&turns), &F32),
        );
        let x: Vec<Tensor> = shapes.iter().map(|s| numbers(s, 1)).collect();
        for (images, tokens, half) in [
            (images + 2, tokens, dim / 2),
            (images, tokens + 1, dim / 2),
            (images, tokens, dim),
        ] {
            let other = forms::rotation(images, tokens, half, &CPU);
            assert!(forms::fused_turned(&x, heads, &none, Some(&other), &F32).is_err());
        }
    }
}

/// A second backward over the same graph, after the kept activations are gone, gives the same gradients; so do other blocks
/// before and after that use the same memory.
#[test]
fn block_backward_twice() {
    let shapes = block_shapes(2, 5, 6, 11);
    let var = |(i, shape): (usize, &Vec<usize>)| Var::from_tensor(&numbers(shape, i as u64));
    let vars: Vec<Var> = shapes
        .iter()
        .enumerate()
        .map(var)
        .map(Result::unwrap)
        .collect();
    let mut inputs: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let none = [None, None];
    let first = fused_block(&inputs, 2, &none).unwrap();
    inputs[0] = first.clone();
    let y = fused_block(&inputs, 2, &none).unwrap();
    let loss = y.sqr().unwrap().sum_all().unwrap();
    let (a, b) = (loss.backward().unwrap(), loss.backward().unwrap());
    // The way past candle's sums, too; the input and the weights of both blocks are the same variables.
    let c = ops::backward(&loss).unwrap();
    for var in &vars {
        assert_eq!(flat(a.get(var).unwrap()), flat(b.get(var).unwrap()));
        assert_eq!(flat(a.get(var).unwrap()), flat(c.get(var).unwrap()));
    }
}

/// Wrong shapes are errors.
#[test]
fn block_refuses_what_does_not_fit() {
    for wrong in 0..13 {
        let mut shapes = block_shapes(2, 3, 4, 8);
        if let Some(last) = shapes[wrong].last_mut() {
            *last += 1;
        }
        let x: Vec<Tensor> = shapes.iter().map(|s| numbers(s, 1)).collect();
        assert!(fused_block(&x, 2, &[None, None]).is_err(), "{wrong}");
    }
    let x: Vec<Tensor> = block_shapes(2, 3, 4, 8)
        .iter()
        .map(|s| numbers(s, 1))
        .collect();
    assert!(fused_block(&x, 3, &[None, None]).is_err());
    assert!(fused_block(&x, 2, &[Some(vec![1.0]), None]).is_err());
    let empty: Vec<Tensor> = block_shapes(0, 3, 4, 8)
        .iter()
        .map(|s| numbers(s, 1))
        .collect();
    assert_eq!(
        fused_block(&empty, 2, &[None, None]).unwrap().dims(),
        [0, 3, 4]
    );
}

#[test]
fn attention() {
    for (batch, tokens, heads, dim) in [(1, 1, 1, 1), (2, 3, 2, 4), (1, 17, 3, 2), (3, 5, 1, 7)] {
        check(
            "attention",
            &[&[batch, tokens, 3 * heads * dim]],
            |x| ops::attention(&x[0], heads, &F32),
            |x| plain::attention(&x[0], heads, &F32),
        );
    }
}

/// More rows than one task has, one image's angles for all and angles for each.
#[test]
fn rotate() {
    for (batch, tokens, heads, half, images) in [
        (1, 1, 1, 1, 1),
        (2, 3, 2, 2, 1),
        (2, 3, 3, 1, 2),
        (3, 17, 1, 5, 3),
        (3, 17, 1, 2, 1),
    ] {
        let [turns, exact] = [device(), CPU].map(|d| forms::rotation(images, tokens, half, &d));
        check(
            "rotate",
            &[&[batch, tokens, 6 * heads * half]],
            |x| ops::rotate(&x[0], heads, &turns, &F32),
            |x| plain::rotate(&x[0], heads, &exact),
        );
    }
    // A turn changes no length, values not at all, and the first token neither.
    let (x, turns) = (input(&[2, 4, 24], 1), forms::rotation(1, 4, 2, &device()));
    let y = ops::rotate(&x, 2, &turns, &F32).unwrap();
    let part = |t: &Tensor, from, length| flat(&t.narrow(2, from, length).unwrap());
    assert_eq!(part(&x, 16, 8), part(&y, 16, 8));
    let first = |t: &Tensor| flat(&t.narrow(1, 0, 1).unwrap());
    assert_eq!(first(&x), first(&y));
    assert_ne!(flat(&x), flat(&y));
    let length = |t: &Tensor| flat(t).iter().map(|x| x * x).sum::<f64>();
    assert!((length(&x) - length(&y)).abs() < 1e-4);
    // A view, nothing, and what does not fit.
    let view = input(&[4, 2, 24], 1).transpose(0, 1).unwrap();
    let copy = view.contiguous().unwrap();
    let rotated = |x: &Tensor| flat(&ops::rotate(x, 2, &turns, &F32).unwrap());
    assert_eq!(rotated(&view), rotated(&copy));
    assert!(rotated(&input(&[0, 4, 24], 1)).is_empty());
    for (shape, heads) in [
        ([2, 5, 24], 2),
        ([2, 4, 26], 2),
        ([2, 4, 24], 0),
        ([2, 4, 12], 2),
        ([2, 4, 0], 2),
    ] {
        let x = input(&shape, 1);
        assert!(ops::rotate(&x, heads, &turns, &F32).is_err(), "{shape:?}");
        assert!(plain::rotate(&x, heads, &turns).is_err(), "{shape:?}");
    }
    let (cos, sin) = (input(&[1, 4, 2], 1), input(&[1, 4, 3], 1));
    assert!(ops::Rotation::new(&cos, &sin).is_err());
    assert!(ops::Rotation::new(&input(&[4, 2], 1), &input(&[4, 2], 1)).is_err());
}

#[test]
fn take_rows() {
    let none = ops::Rows::NONE;
    for (rows, from) in [(1, vec![0]), (4, vec![2, none, 0, 3, none]), (3, vec![1])] {
        let rows = ops::Rows::new(rows, from).unwrap();
        check(
            "take_rows",
            &[&[2, rows.rows(), 5]],
            |x| ops::take_rows(&x[0], &rows, &F32),
            |x| plain::take_rows(&x[0], &rows),
        );
    }
    assert!(ops::Rows::new(3, vec![0, 0]).is_err());
    assert!(ops::Rows::new(3, vec![3]).is_err());
    let rows = ops::Rows::new(3, vec![2, 0]).unwrap();
    assert!(ops::take_rows(&input(&[1, 4, 2], 1), &rows, &F32).is_err());
}

/// Whole windows, windows with some rows, of several regions.
#[test]
fn window_attention() {
    let windows = |places, counts: &[usize], place: &[u16], region: &[u8]| {
        ops::Windows::new(places, counts, place.into(), region.into())
    };
    for (heads, dim, windows) in [
        (1, 1, windows(1, &[1], &[0], &[0])),
        (
            2,
            3,
            windows(
                4,
                &[4, 4],
                &[0, 1, 2, 3, 0, 1, 2, 3],
                &[0, 0, 0, 0, 0, 1, 0, 2],
            ),
        ),
        (
            3,
            2,
            windows(5, &[2, 1, 3], &[3, 1, 4, 0, 1, 2], &[0, 0, 7, 1, 1, 2]),
        ),
    ] {
        let windows = windows.unwrap();
        let (rows, t) = (windows.rows(), windows.places());
        check(
            "window_attention",
            &[&[3, rows, 3 * heads * dim], &[heads, t, t]],
            |x| ops::window_attention(&x[0], &x[1], &windows, &F32),
            |x| plain::window_attention(&x[0], &x[1], &windows, &F32),
        );
        let (qkv, bias) = (
            input(&[3, rows, 3 * heads * dim], 1),
            input(&[heads, t, t], 2),
        );
        let fails = |x: &Tensor, b: &Tensor| {
            assert!(ops::window_attention(x, b, &windows, &F32).is_err());
        };
        fails(&qkv.narrow(1, 0, rows - 1).unwrap(), &bias);
        fails(&qkv, &input(&[heads, t, t + 1], 2));
        fails(&qkv, &input(&[heads + 7, t, t], 2));
    }
    for (counts, place, region) in [
        (vec![0], vec![], vec![]),
        (vec![3], vec![0, 1, 0], vec![0, 0, 0]),
        (vec![2], vec![1, 1], vec![0, 0]),
        (vec![1], vec![2], vec![0]),
        (vec![2], vec![0, 1], vec![0]),
        (vec![1], vec![0, 1], vec![0, 0]),
    ] {
        assert!(
            ops::Windows::new(2, &counts, place, region).is_err(),
            "{counts:?}"
        );
    }
}

#[test]
fn unshuffle() {
    let ids = Arc::new(vec![2, 0, 3, 1, 1, 3, 0, 2]);
    let pos_embed = |x: &Tensor| {
        let pos = numbers(&[1, 5, 5], 7).to_dtype(x.dtype())?;
        pos.to_device(x.device())
    };
    check(
        "unshuffle",
        &[&[2, 3, 5], &[1, 1, 5]],
        |x| ops::unshuffle(&x[0], &x[1], &pos_embed(&x[0])?, &ids, &F32),
        |x| plain::unshuffle(&x[0], &x[1], &pos_embed(&x[0])?, &ids),
    );
}

#[test]
fn unfold_cells() {
    for (batch, side, outputs) in [(1, 1, 1), (2, 3, 2), (1, 4, 5)] {
        check(
            "unfold_cells",
            &[&[batch, side * side, 4 * outputs]],
            |x| ops::unfold_cells(&x[0], side, &F32),
            |x| plain::unfold_cells(&x[0], side),
        );
        check(
            "linear_cells",
            &[&[batch, side * side, 3], &[4 * outputs, 3], &[4 * outputs]],
            |x| ops::linear_cells(&x[0], &x[1], &x[2], side, &F32),
            |x| plain::unfold_cells(&plain::linear(&x[0], &x[1], &x[2], &F32)?, side),
        );
    }
}

#[test]
fn patch_tokens() {
    for (batch, tokens, width) in [(1, 2, 1), (3, 5, 4)] {
        check(
            "patch_tokens",
            &[&[batch, tokens, width]],
            |x| ops::patch_tokens(&x[0], &F32),
            |x| plain::patch_tokens(&x[0]),
        );
    }
    // Nothing but class tokens.
    let none = ops::patch_tokens(&numbers(&[2, 1, 3], 1), &F32).unwrap();
    assert_eq!(none.dims(), [2, 0, 3]);
}

#[test]
fn non_contiguous_inputs() {
    let x = input(&[6, 4, 12], 1);
    let view = x.transpose(0, 1).unwrap();
    let copy = view.contiguous().unwrap();
    let w = input(&[5, 12], 2);
    let b = input(&[5], 3);
    let (one, zero) = (input(&[12], 4), input(&[12], 5));
    let same =
        |a: Result<Tensor>, b: Result<Tensor>| assert_eq!(flat(&a.unwrap()), flat(&b.unwrap()));
    same(
        ops::linear(&view, &w, &b, &F32),
        ops::linear(&copy, &w, &b, &F32),
    );
    same(ops::gelu(&view, &F32), ops::gelu(&copy, &F32));
    same(
        ops::layer_norm(&view, &one, &zero, 1e-6, &F32),
        ops::layer_norm(&copy, &one, &zero, 1e-6, &F32),
    );
    same(
        ops::attention(&view, 2, &F32),
        ops::attention(&copy, 2, &F32),
    );
}

/// An input without numbers and one too wide for a GPU's block take other ways there.
#[test]
fn empty_and_wide_inputs() {
    let (w, b) = (input(&[12, 12], 1), input(&[12], 2));
    let x = input(&[0, 3, 12], 3);
    let dims = |y: Result<Tensor>| y.unwrap().dims().to_vec();
    assert_eq!(dims(ops::linear(&x, &w, &b, &F32)), [0, 3, 12]);
    assert_eq!(dims(ops::gelu(&x, &F32)), [0, 3, 12]);
    assert_eq!(dims(ops::layer_norm(&x, &b, &b, 1e-6, &F32)), [0, 3, 12]);
    assert_eq!(dims(ops::attention(&x, 2, &F32)), [0, 3, 4]);

    let vars = [vec![3, 6145], vec![6145], vec![6145]]
        .map(|shape| Var::from_tensor(&input(&shape, 4)).unwrap());
    let gradients = |f: fn(&Tensor, &Tensor, &Tensor, f64) -> Result<Tensor>| {
        let y = f(&vars[0], &vars[1], &vars[2], 1e-6).unwrap();
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        vars.each_ref().map(|var| grads.get(var).unwrap().clone())
    };
    let plain = gradients(plain::layer_norm);
    for (got, want) in gradients(|x, w, b, eps| ops::layer_norm(x, w, b, eps, &F32))
        .iter()
        .zip(&plain)
    {
        close(got, &flat(want), 1e-5, "wide layer_norm");
    }
}

/// A visible token cannot be in two places: the plain form's gradient is by the inverse.
#[test]
fn plain_unshuffle_refuses_a_row_twice() {
    let (x, m) = (numbers(&[1, 3, 4], 1), numbers(&[1, 1, 4], 2));
    let pos_embed = numbers(&[1, 4, 4], 3);
    assert!(plain::unshuffle(&x, &m, &pos_embed, &[0, 1, 2]).is_ok());
    assert!(plain::unshuffle(&x, &m, &pos_embed, &[0, 1, 1]).is_err());
}

#[test]
fn wrong_shapes_are_errors() {
    let x = input(&[2, 4], 1);
    let fails = |r: Result<Tensor>| assert!(r.is_err());
    fails(ops::linear(&x, &input(&[3, 5], 2), &input(&[3], 3), &F32));
    fails(ops::linear(&x, &input(&[3, 4], 2), &input(&[4], 3), &F32));
    fails(ops::layer_norm(
        &x,
        &input(&[3], 2),
        &input(&[3], 3),
        1e-6,
        &F32,
    ));
    fails(ops::attention(&input(&[1, 2, 10], 1), 2, &F32));
    let unshuffle = |tokens: usize, ids: Vec<u32>| {
        let (x, m) = (input(&[1, 2, 4], 1), input(&[1, 1, 4], 2));
        ops::unshuffle(&x, &m, &input(&[1, tokens, 4], 3), &Arc::new(ids), &F32)
    };
    assert!(unshuffle(4, vec![0, 1, 2]).is_ok());
    fails(unshuffle(4, vec![0, 1, 7]));
    fails(unshuffle(1, vec![]));
    fails(unshuffle(3, vec![0, 1, 2]));
    fails(ops::unfold_cells(&input(&[1, 4, 6], 1), 2, &F32));
    fails(ops::unfold_cells(&input(&[1, 4, 8], 1), 3, &F32));
    let cells = |side, outputs: usize| {
        let (x, w, b) = (
            input(&[1, 4, 3], 1),
            input(&[outputs, 3], 2),
            input(&[outputs], 3),
        );
        ops::linear_cells(&x, &w, &b, side, &F32)
    };
    assert!(cells(2, 8).is_ok());
    fails(cells(3, 8));
    fails(cells(2, 6));
    fails(ops::patch_tokens(&input(&[2, 0, 3], 1), &F32));
}

/// NaN and infinity must come out, or a diverging run would go on unseen.
#[test]
fn nan_is_not_swallowed() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut values = flat(&numbers(&[1, 3, 6], 1))
            .iter()
            .map(|&x| x as f32)
            .collect::<Vec<_>>();
        values[7] = bad;
        let x = Tensor::from_vec(values, (1, 3, 6), &device()).unwrap();
        let has = |t: Result<Tensor>| assert!(flat(&t.unwrap()).iter().any(|x| !x.is_finite()));
        has(ops::gelu(&x, &F32));
        has(ops::layer_norm(
            &x,
            &input(&[6], 2),
            &input(&[6], 3),
            1e-6,
            &F32,
        ));
        has(ops::attention(&x, 1, &F32));
        has(ops::linear(&x, &input(&[2, 6], 2), &input(&[2], 3), &F32));
    }
}

/// A backward pass inside another one's op (recomputation) leaves the outer one's gradients alone; so does one that panics.
#[test]
fn nested_backward() {
    use candle_core::{CpuStorage, CustomOp1, Layout, Shape};
    struct Inner(Tensor, bool);
    impl CustomOp1 for Inner {
        fn name(&self) -> &'static str {
            "inner"
        }
        fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
            Ok((x.clone(), layout.shape().clone()))
        }
        fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
            ops::backward(&self.0)?;
            assert!(!self.1, "as asked");
            Ok(Some(grad.clone()))
        }
    }
    let vars = |salt: usize| -> Vec<Var> {
        let shapes = block_shapes(1, 3, 4, 8).into_iter().enumerate();
        let var =
            |(i, shape): (usize, Vec<usize>)| Var::from_tensor(&numbers(&shape, (i + salt) as u64));
        shapes.map(var).map(Result::unwrap).collect()
    };
    let run = |vars: &[Var]| {
        let x: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        fused_block(&x, 2, &[None, None]).unwrap()
    };
    let (outer, inner) = (vars(0), vars(50));
    let other = run(&inner).sum_all().unwrap();
    // Two blocks of the same variables: the second one's gradients are there when the op between them runs.
    let loss = |panics| {
        let x = run(&outer).apply_op1(Inner(other.clone(), panics)).unwrap();
        let mut inputs: Vec<Tensor> = outer.iter().map(|v| v.as_tensor().clone()).collect();
        inputs[0] = x;
        let y = fused_block(&inputs, 2, &[None, None]).unwrap();
        y.sqr().unwrap().sum_all().unwrap()
    };
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ops::backward(&loss(true))));
    assert!(panicked.is_err());
    let (a, b) = (
        loss(false).backward().unwrap(),
        ops::backward(&loss(false)).unwrap(),
    );
    for var in &outer {
        assert_eq!(flat(a.get(var).unwrap()), flat(b.get(var).unwrap()));
    }
}
