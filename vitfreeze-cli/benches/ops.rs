//! Each op of a training step alone, at the sizes of ViT-B, ViT-S and the decoders with 16 images of 224 px.
//!
//!     cargo bench -p vitfreeze-cli --bench ops [-- NAME]
//!     python3 benches/pytorch/ops.py                          beside PyTorch
//!
//! `backward` is the backward pass as training runs it, from the op's result to the gradients of input and weights. `RAYON_NUM_THREADS` says how
//! many threads there are. The rates count 2 m k n for a product, and every byte read or written once.
use std::fmt;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarMap;
use divan::counter::{BytesCount, ItemsCount};
use divan::Bencher;
use freezeout::{AdamW, FreezeOut, Optimizer, Schedule};
use localmim::{LocalMim, LocalMimConfig};
use rayon::prelude::*;
use vit::ops::{self, Compute, Precision};
use vit::{Block, VitConfig};

// The program's own: most of a new tensor's price is how the allocator came by its memory.
#[allow(dead_code)]
#[path = "../src/machine/allocator.rs"]
mod allocator;

fn main() {
    allocator::keep_memory();
    // As the program does: candle's pool for element-wise ops spins while it waits.
    std::env::set_var("CANDLE_NUM_THREADS", "1");
    if compute().precision == Precision::Bf16 && compute().bf16_unit().is_none() {
        eprintln!("VITFREEZE_BENCH_DTYPE=bf16: no unit for bf16 here, f32 would be measured");
        std::process::exit(2);
    }
    divan::main();
}

/// What products take: bf16 if `VITFREEZE_BENCH_DTYPE` says so (benches/pytorch/ops.py --dtype bf16).
fn compute() -> Compute {
    match std::env::var("VITFREEZE_BENCH_DTYPE").as_deref() {
        Ok("bf16") => Compute::of(Precision::Bf16),
        _ => Compute::default(),
    }
}

/// Sizes, printed as `16x50x768`.
struct Shape<const N: usize>([usize; N]);

impl<const N: usize> fmt::Display for Shape<N> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.0.map(|n| n.to_string()).join("x"))
    }
}

/// Numbers of a normal distribution, a variable so that its gradient is computed.
fn var<const N: usize>(shape: [usize; N]) -> Var {
    Var::from_tensor(&Tensor::randn(0f32, 1.0, &shape[..], &Device::Cpu).unwrap()).unwrap()
}

fn forward(bencher: Bencher, op: impl Fn() -> Result<Tensor>) {
    bencher.bench_local(|| op().unwrap());
}

fn backward(bencher: Bencher, op: impl Fn() -> Result<Tensor>) {
    let bencher = bencher.with_inputs(|| op().unwrap());
    bencher.bench_local_refs(|y| ops::backward(y).unwrap());
}

/// Rows, inputs, outputs: qkv, fc1 and fc2 of ViT-B and ViT-S on 50 tokens, fc1 of a decoder and of ViT-B on 197.
const LINEAR: [Shape<3>; 8] = [
    Shape([800, 768, 2304]),
    Shape([800, 768, 3072]),
    Shape([800, 3072, 768]),
    Shape([800, 384, 1152]),
    Shape([800, 384, 1536]),
    Shape([800, 1536, 384]),
    Shape([3152, 256, 1024]),
    Shape([3152, 768, 3072]),
];

fn linear(&Shape([rows, inputs, outputs]): &Shape<3>) -> impl Fn() -> Result<Tensor> {
    let (x, w, b) = (var([rows, inputs]), var([outputs, inputs]), var([outputs]));
    let compute = compute();
    move || ops::linear(&x, &w, &b, &compute)
}

#[divan::bench(args = &LINEAR, max_time = 2)]
fn linear_forward(bencher: Bencher, shape: &Shape<3>) {
    let flops = ItemsCount::new(2 * shape.0.iter().product::<usize>());
    forward(bencher.counter(flops), linear(shape));
}

#[divan::bench(args = &LINEAR, max_time = 2)]
fn linear_backward(bencher: Bencher, shape: &Shape<3>) {
    let flops = ItemsCount::new(4 * shape.0.iter().product::<usize>());
    backward(bencher.counter(flops), linear(shape));
}

/// Rows, width.
const LAYER_NORM: [Shape<2>; 2] = [Shape([800, 768]), Shape([3152, 256])];

fn layer_norm(&Shape([rows, width]): &Shape<2>) -> impl Fn() -> Result<Tensor> {
    let (x, w, b) = (var([rows, width]), var([width]), var([width]));
    let compute = compute();
    move || ops::layer_norm(&x, &w, &b, 1e-6, &compute)
}

#[divan::bench(args = &LAYER_NORM, max_time = 1)]
fn layer_norm_forward(bencher: Bencher, shape: &Shape<2>) {
    forward(bencher, layer_norm(shape));
}

#[divan::bench(args = &LAYER_NORM, max_time = 1)]
fn layer_norm_backward(bencher: Bencher, shape: &Shape<2>) {
    backward(bencher, layer_norm(shape));
}

/// Rows, width.
const GELU: [Shape<2>; 2] = [Shape([800, 3072]), Shape([3152, 1024])];

fn gelu(&Shape(shape): &Shape<2>) -> impl Fn() -> Result<Tensor> {
    let x = var(shape);
    let compute = compute();
    move || ops::gelu(&x, &compute)
}

#[divan::bench(args = &GELU, max_time = 1)]
fn gelu_forward(bencher: Bencher, shape: &Shape<2>) {
    forward(bencher, gelu(shape));
}

#[divan::bench(args = &GELU, max_time = 1)]
fn gelu_backward(bencher: Bencher, shape: &Shape<2>) {
    backward(bencher, gelu(shape));
}

/// Images, tokens, heads, width of a head: ViT-B's encoder, a decoder.
const ATTENTION: [Shape<4>; 2] = [Shape([16, 50, 12, 64]), Shape([16, 197, 8, 32])];

fn attention(&Shape([images, tokens, heads, dim]): &Shape<4>) -> impl Fn() -> Result<Tensor> {
    let qkv = var([images, tokens, 3 * heads * dim]);
    let compute = compute();
    move || ops::attention(&qkv, heads, &compute)
}

#[divan::bench(args = &ATTENTION, max_time = 1)]
fn attention_forward(bencher: Bencher, shape: &Shape<4>) {
    forward(bencher, attention(shape));
}

#[divan::bench(args = &ATTENTION, max_time = 1)]
fn attention_backward(bencher: Bencher, shape: &Shape<4>) {
    backward(bencher, attention(shape));
}

/// Images, tokens, heads, width of a head: blocks of ViT-B, ViT-S, a decoder.
const BLOCK: [Shape<4>; 3] = [
    Shape([16, 50, 12, 64]),
    Shape([16, 50, 6, 64]),
    Shape([16, 197, 8, 32]),
];

fn block(&Shape([images, tokens, heads, dim]): &Shape<4>) -> impl Fn() -> Result<Tensor> {
    let cfg = VitConfig {
        embed_dim: heads * dim,
        num_heads: heads,
        ..VitConfig::default()
    };
    let vars = VarMap::new();
    let vb = vit::seeded(&vars, 0, DType::F32, &Device::Cpu);
    let block = Block::new(&cfg, 0, vb).unwrap().with_compute(&compute());
    let x = var([images, tokens, heads * dim]);
    move || block.forward(&x)
}

#[divan::bench(args = &BLOCK, max_time = 3)]
fn block_forward(bencher: Bencher, shape: &Shape<4>) {
    forward(bencher, block(shape));
}

#[divan::bench(args = &BLOCK, max_time = 3)]
fn block_backward(bencher: Bencher, shape: &Shape<4>) {
    backward(bencher, block(shape));
}

/// The targets of all four stages.
#[divan::bench(args = [Shape([16, 3, 224, 224])], max_time = 2)]
fn hog(bencher: Bencher, shape: &Shape<4>) {
    let images = var(shape.0);
    bencher.bench_local(|| localmim::hog(&images, 9, 4, &[4, 8, 16, 32], &compute()).unwrap());
}

/// Bytes that AdamW moves for each parameter: p, g, m, v are read, p, m, v written.
const ADAMW_BYTES: usize = 7 * 4;

/// One step over all parameters of LocalMIM with ViT-B.
#[divan::bench(max_time = 3)]
fn adamw(bencher: Bencher) {
    let vars = VarMap::new();
    let cfg = LocalMimConfig::new(VitConfig::preset("vit-base").unwrap()).unwrap();
    let vb = vit::seeded(&vars, 0, DType::F32, &Device::Cpu);
    LocalMim::new(&cfg, vb).unwrap();
    let schedule = Schedule::cubic(1.0, cfg.layers(), 1_000_000);
    let mut freeze = FreezeOut::new(&vars, schedule, |name| cfg.layer_of(name, false)).unwrap();
    let squares = |var: &Var| var.sqr().and_then(|x| x.sum_all());
    let loss = vars.all_vars().iter().map(squares).reduce(|a, b| a? + b?);
    let grads = freeze.backward(&loss.unwrap().unwrap()).unwrap();
    let mut opt = Optimizer::new(AdamW::default());
    // The first step makes the moments.
    opt.step(&freeze, 0, &grads).unwrap();
    let count: usize = freeze.all().map(|(_, var)| var.elem_count()).sum();
    bencher
        .counter(BytesCount::new(ADAMW_BYTES * count))
        .bench_local(|| opt.step(&freeze, 1, &grads).unwrap());
}

/// The same bytes with next to no arithmetic: what memory allows.
#[divan::bench(args = [90_000_000], max_time = 3)]
fn adamw_memory(bencher: Bencher, count: usize) {
    let [mut p, mut m, mut v] = [0; 3].map(|_| vec![1f32; count]);
    let g = vec![1e-3f32; count];
    const CHUNK: usize = 1 << 16;
    bencher
        .counter(BytesCount::new(ADAMW_BYTES * count))
        .bench_local(|| {
            p.par_chunks_mut(CHUNK)
                .zip(m.par_chunks_mut(CHUNK))
                .zip(v.par_chunks_mut(CHUNK))
                .zip(g.par_chunks(CHUNK))
                .for_each(|(((p, m), v), g)| {
                    for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
                        (*p, *m, *v) = (*p + g, *m + g, *v + g);
                    }
                });
        });
}
