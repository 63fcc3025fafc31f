//! What freezing must not change, and what it must.
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use freezeout::{AdamW, FreezeOut, Optimizer, Schedule};
use localmim::{LocalMim, LocalMimConfig, Masking, Target};
use vit::ops::{Compute, Hold, Precision, Unit};
use vit::{Activation, PosEmbed, VitConfig};

const CPU: Device = Device::Cpu;
const STEPS: usize = 14;

/// Where there is no unit for bf16 it is emulated.
fn compute(precision: Precision) -> Compute {
    Compute {
        precision,
        unit: Unit::named("any").unwrap(),
        ..Compute::default()
    }
}

fn config() -> LocalMimConfig {
    LocalMimConfig {
        decoder_embed_dim: 16,
        decoder_num_heads: 2,
        ..LocalMimConfig::new(VitConfig {
            image_size: 32,
            patch_size: 8,
            embed_dim: 24,
            depth: 8,
            num_heads: 3,
            mlp_ratio: 4.0,
            norm_eps: 1e-6,
            ..VitConfig::default()
        })
        .unwrap()
    }
}

fn numbers(count: usize, salt: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 7919 + salt * 104_729) % 10_007) as f32 / 5_003.5 - 1.0)
        .collect()
}

fn batch(step: usize) -> (Tensor, Masking) {
    let images = Tensor::from_vec(numbers(3 * 3 * 32 * 32, step), (3, 3, 32, 32), &CPU).unwrap();
    let noise = numbers(3 * 16, step + 1000);
    (images, Masking::from_noise(&noise, 16, 0.75).unwrap())
}

fn bits(t: &Tensor) -> Vec<u32> {
    let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

struct Trained {
    weights: BTreeMap<String, Vec<u32>>,
    /// (frozen layers, graph nodes) of each step.
    graph: Vec<(usize, usize)>,
}

/// What checkpoints bring along and the published model lacks: a learnt position table, registers. And pixels.
fn other_config() -> LocalMimConfig {
    let published = config();
    LocalMimConfig {
        vit: VitConfig {
            pos_embed: PosEmbed::Learnt,
            reg_tokens: 2,
            ..published.vit
        },
        target: Target::Pixel { normalise: true },
        ..published
    }
}

/// DINOv3's encoder: rotary positions, registers, LayerScale, gates, no bias of keys.
fn rotary_config() -> LocalMimConfig {
    let published = config();
    LocalMimConfig {
        vit: VitConfig {
            pos_embed: PosEmbed::Rope { theta: 100.0 },
            reg_tokens: 2,
            key_bias: false,
            init_values: Some(0.1),
            activation: Activation::SwiGlu,
            ..published.vit
        },
        ..published
    }
}

fn train(cut: bool, train_cls_token: bool, compute: &Compute) -> Trained {
    train_model(&config(), cut, train_cls_token, compute)
}

/// A whole schedule. With `cut` the model is rebuilt at a freeze; without, only the optimiser skips frozen layers.
fn train_model(
    cfg: &LocalMimConfig,
    cut: bool,
    train_cls_token: bool,
    compute: &Compute,
) -> Trained {
    let vars = VarMap::new();
    let vb = vit::seeded(&vars, 5, DType::F32, &CPU);
    let mut model = LocalMim::new(cfg, vb).unwrap().with_compute(compute);
    let schedule = Schedule {
        warmup_steps: 2,
        ..Schedule::cubic(0.5, cfg.layers(), STEPS)
    };
    let layer_of = |name: &str| cfg.layer_of(name, train_cls_token);
    // Uncut, the frozen variables stay in the graph, which the checks would refuse.
    let mut freeze = FreezeOut::new(&vars, schedule, layer_of).unwrap();
    if !cut {
        freeze = freeze.without_checks();
    }
    let mut opt = Optimizer::new(AdamW::default());
    let mut graph = Vec::new();
    for step in 0..STEPS {
        if freeze.advance(step).unwrap() && cut {
            model = LocalMim::new(cfg, freeze.vars()).unwrap();
            model = model.with_compute(compute);
        }
        let (images, masking) = batch(step);
        let loss = model.loss(&images, &masking).unwrap().total;
        graph.push((freeze.frozen(), loss.sorted_nodes().len()));
        // `backward` fails if any live variable has no gradient: checked at every step.
        let grads = freeze.backward_by(&loss, vit::ops::backward).unwrap();
        for (name, grad) in grads.iter() {
            let norm = grad
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar::<f32>()
                .unwrap();
            // A constant on all keys changes no softmax, but the other two thirds of qkv.bias do.
            assert!(
                norm > 0.0 && norm.is_finite(),
                "step {step}, {name}: {norm}"
            );
        }
        opt.step(&freeze, step, &grads).unwrap();
    }
    let weights = freeze
        .all()
        .map(|(n, v)| (n.to_owned(), bits(v.as_tensor())))
        .collect();
    Trained { weights, graph }
}

#[test]
fn cut_equals_uncut_bit_for_bit() {
    for precision in [Precision::F32, Precision::Bf16] {
        let cut = train(true, false, &compute(precision));
        // Uncut, the losses of dead stages stay in the sum; their gradients reach frozen blocks only.
        let uncut = train(false, false, &compute(precision));
        assert!(cut.graph.last().unwrap().0 >= 7, "the schedule freezes");
        assert!(cut.graph.last().unwrap().1 < uncut.graph.last().unwrap().1);
        for (name, bits) in &cut.weights {
            assert_eq!(bits, &uncut.weights[name], "{precision:?}: {name}");
        }
    }
}

#[test]
fn pixels_registers_and_a_learnt_table_too() {
    let cfg = other_config();
    let compute = compute(Precision::F32);
    let cut = train_model(&cfg, true, false, &compute);
    let uncut = train_model(&cfg, false, false, &compute);
    assert!(cut.graph.last().unwrap().1 < uncut.graph.last().unwrap().1);
    assert!(cut.weights == uncut.weights);
    assert!(cut.weights.contains_key("pos_embed") && cut.weights.contains_key("reg_token"));
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let other = pool.install(|| train_model(&cfg, true, false, &compute));
        assert!(cut.weights == other.weights, "{threads} threads");
    }
}

#[test]
fn rotary_positions_too() {
    let whole = rotary_config();
    // Without LayerScale and gates, blocks run as one op.
    let fused = LocalMimConfig {
        vit: VitConfig {
            init_values: None,
            activation: Activation::Gelu,
            ..whole.vit
        },
        ..whole.clone()
    };
    for (cfg, precision) in [
        (&whole, Precision::F32),
        (&whole, Precision::Bf16),
        (&fused, Precision::F32),
        (&fused, Precision::Bf16),
    ] {
        let compute = compute(precision);
        let cut = train_model(cfg, true, false, &compute);
        let uncut = train_model(cfg, false, false, &compute);
        assert!(cut.graph.last().unwrap().1 < uncut.graph.last().unwrap().1);
        assert!(cut.weights == uncut.weights);
        assert!(cut.weights.contains_key("blocks.0.attn.q_bias"));
        assert!(!cut.weights.contains_key("pos_embed"));
        // Held weights, too.
        let hold = Compute {
            hold: Hold::All,
            ..compute.clone()
        };
        assert!(cut.weights == train_model(cfg, true, false, &hold).weights);
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let other = pool
                .unwrap()
                .install(|| train_model(cfg, true, false, &compute));
            assert!(cut.weights == other.weights, "{threads} threads");
        }
    }
}

#[test]
fn graph_shrinks_at_every_freeze() {
    let trained = train(true, false, &compute(Precision::F32));
    let mut freezes = 0;
    for pair in trained.graph.windows(2) {
        let ((frozen, nodes), (next_frozen, next_nodes)) = (pair[0], pair[1]);
        if next_frozen > frozen {
            assert!(
                next_nodes < nodes,
                "{frozen} -> {next_frozen}: {nodes} -> {next_nodes}"
            );
            freezes += 1;
        } else {
            assert_eq!(nodes, next_nodes);
        }
    }
    assert!(freezes >= 5);
    // Parity with the published code: a class token that trains keeps frozen blocks in the graph.
    let parity = train(true, true, &compute(Precision::F32));
    assert!(parity.graph.last().unwrap().1 > trained.graph.last().unwrap().1);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let with = |threads, precision| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| train(true, false, &compute(precision)).weights)
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let one = with(1, precision);
        for threads in [2, 3, 7] {
            assert!(
                one == with(threads, precision),
                "{precision:?}, {threads} threads"
            );
        }
    }
}

/// The optimiser changes weights in place, of which blocks hold what they made: they notice.
#[test]
fn held_weights_are_never_stale() {
    for precision in [Precision::F32, Precision::Bf16] {
        let plain = train(true, false, &compute(precision)).weights;
        for hold in [Hold::Frozen, Hold::All] {
            let held = Compute {
                hold,
                ..compute(precision)
            };
            let held = train(true, false, &held).weights;
            assert!(plain == held, "{precision:?}, {hold:?}");
        }
    }
}

#[test]
fn dropping_a_stage_changes_no_other() {
    let cfg = config();
    let vars = VarMap::new();
    let model = LocalMim::new(&cfg, vit::seeded(&vars, 1, DType::F32, &CPU)).unwrap();
    let schedule = Schedule::cubic(0.5, cfg.layers(), 100);
    let mut freeze = FreezeOut::new(&vars, schedule, |n| cfg.layer_of(n, false)).unwrap();
    let (images, masking) = batch(0);
    let whole = model.loss(&images, &masking).unwrap();
    for frozen in 1..=8 {
        freeze.freeze_first(frozen);
        let model = LocalMim::new(&cfg, freeze.vars()).unwrap();
        let loss = model.loss(&images, &masking).unwrap();
        let mut dead = 0;
        for (stage, (got, want)) in cfg.stages.iter().zip(loss.stages.iter().zip(&whole.stages)) {
            match got {
                Some(got) => assert_eq!(bits(got), bits(want.as_ref().unwrap())),
                None => {
                    assert!(stage.block + 1 < frozen);
                    dead += 1;
                }
            }
        }
        assert_eq!(
            dead,
            cfg.stages.iter().filter(|s| s.block + 1 < frozen).count()
        );
    }
    freeze.freeze_first(9);
    let model = LocalMim::new(&cfg, freeze.vars()).unwrap();
    let error = model.loss(&images, &masking).unwrap_err().to_string();
    assert!(error.contains("no live stage"), "{error}");
}

/// What may be sent to other processes while the rest is computed.
#[test]
fn gradients_are_shown_from_the_last_block_on() {
    let cfg = config();
    let vars = VarMap::new();
    LocalMim::new(&cfg, vit::seeded(&vars, 5, DType::F32, &CPU)).unwrap();
    let schedule = Schedule::cubic(0.5, cfg.layers(), STEPS);
    let mut freeze = FreezeOut::new(&vars, schedule, |name| cfg.layer_of(name, false)).unwrap();
    for frozen in [0, 2] {
        freeze.freeze_first(frozen);
        let model = LocalMim::new(&cfg, freeze.vars()).unwrap();
        let (images, masking) = batch(0);
        let loss = model.loss(&images, &masking).unwrap().total;
        let shown = Rc::new(RefCell::new(Vec::new()));
        let show = shown.clone();
        let see =
            move |var: &Tensor, grad: &Tensor| show.borrow_mut().push((var.id(), grad.clone()));
        let store = vit::ops::backward_seen(&loss, Box::new(see)).unwrap();
        let names: BTreeMap<_, _> = freeze
            .live()
            .map(|(name, _, var)| (format!("{:?}", var.id()), (name, var)))
            .collect();
        let mut blocks = Vec::new();
        for (id, grad) in shown.take() {
            let (name, var) = names[&format!("{id:?}")];
            assert_eq!(store.get(var).unwrap().id(), grad.id(), "{name} has more");
            if let Some(block) = name.strip_prefix("blocks.") {
                blocks.push(block.split('.').next().unwrap().parse::<usize>().unwrap());
            }
        }
        assert!(blocks.is_sorted_by(|a, b| a >= b), "{blocks:?}");
        blocks.dedup();
        let live: Vec<usize> = (0..cfg.vit.depth)
            .rev()
            .filter(|block| block + 1 >= frozen)
            .collect();
        assert_eq!(blocks, live);
    }
}
