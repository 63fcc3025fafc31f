//! Every variant of the architecture: gradients, randomness, masking.
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use vit::ops::Rotation;
use vit::{axial_rope, Activation, Block, Drops, Pool, PosEmbed, Vit, VitConfig};

const CPU: Device = Device::Cpu;

fn small() -> VitConfig {
    VitConfig {
        image_size: 16,
        patch_size: 8,
        embed_dim: 16,
        depth: 2,
        num_heads: 2,
        mlp_ratio: 2.0,
        num_classes: 3,
        ..VitConfig::default()
    }
}

fn variants() -> Vec<(&'static str, VitConfig)> {
    let base = small();
    let cfg = |change: &dyn Fn(&mut VitConfig)| {
        let mut cfg = base;
        change(&mut cfg);
        cfg
    };
    vec![
        ("plain", base),
        ("non-square", cfg(&|c| c.image_width = Some(24))),
        ("sin-cos", cfg(&|c| c.pos_embed = PosEmbed::SinCos)),
        ("no qkv bias", cfg(&|c| c.qkv_bias = false)),
        ("distilled", cfg(&|c| c.dist_token = true)),
        ("tanh", cfg(&|c| c.activation = Activation::GeluTanh)),
        ("swiglu", cfg(&|c| c.activation = Activation::SwiGlu)),
        (
            "registers",
            cfg(&|c| {
                c.reg_tokens = 3;
                c.no_embed_class = true;
                c.init_values = Some(0.1);
            }),
        ),
        ("registers with positions", cfg(&|c| c.reg_tokens = 1)),
        (
            "clip",
            cfg(&|c| {
                c.pre_norm = true;
                c.activation = Activation::QuickGelu;
                c.norm_eps = 1e-5;
            }),
        ),
        (
            "fc_norm",
            cfg(&|c| {
                c.pool = Pool::Avg;
                c.fc_norm = true;
            }),
        ),
        ("token and mean", cfg(&|c| c.pool = Pool::TokenAvg)),
        ("rotary", cfg(&|c| c.pos_embed = ROPE)),
        (
            "dinov3",
            cfg(&|c| {
                c.pos_embed = ROPE;
                c.reg_tokens = 2;
                c.key_bias = false;
                c.init_values = Some(0.1);
                c.activation = Activation::SwiGlu;
            }),
        ),
        (
            "rotary with drops",
            cfg(&|c| {
                c.pos_embed = ROPE;
                c.drop_path_rate = 0.3;
                c.drop_rate = 0.1;
            }),
        ),
        (
            "drops",
            cfg(&|c| {
                c.drop_rate = 0.2;
                c.drop_path_rate = 0.3;
            }),
        ),
    ]
}

const ROPE: PosEmbed = PosEmbed::Rope { theta: 100.0 };

/// The block of three patches.
fn block_of(cfg: &VitConfig, block: &Block, x: &Tensor) -> Tensor {
    let y = match cfg.rope_theta() {
        None => block.forward(x),
        Some(theta) => {
            let table = axial_rope(cfg.embed_dim / cfg.num_heads, (1, 3), theta, &CPU);
            let [cos, sin] = table.unwrap().map(|t| t.unsqueeze(0).unwrap());
            block.forward_rotated(x, &Rotation::new(&cos, &sin).unwrap())
        }
    };
    y.unwrap()
}

fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let vars = VarMap::new();
    let mut shape = shape.to_vec();
    shape.insert(0, 1);
    let law = candle_nn::Init::Randn {
        mean: 0.0,
        stdev: 0.02,
    };
    let vb = vit::seeded(&vars, seed, DType::F32, &CPU);
    let normal = vb.get_with_hints(shape, "cls_token", law).unwrap();
    let normal = normal.detach();
    (normal.squeeze(0).unwrap() * 50.0).unwrap()
}

fn images(cfg: &VitConfig, batch: usize) -> Tensor {
    let (height, width) = cfg.image();
    numbers(&[batch, 3, height, width], 7)
}

fn bits(t: &Tensor) -> Vec<u32> {
    let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

#[test]
fn every_variable_has_a_gradient() {
    for (name, cfg) in variants() {
        let vars = VarMap::new();
        let vb = vit::seeded(&vars, 1, DType::F32, &CPU);
        let model = Vit::new(&cfg, vb).unwrap();
        let logits = model
            .forward_train(&images(&cfg, 4), Drops(&[3, 4, 5, 6]))
            .unwrap();
        assert_eq!(logits.dims(), [4, 3], "{name}");
        let weights = numbers(&[4, 3], 5);
        let grads = (logits * weights)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        let map = vars.data().lock().unwrap();
        for (variable, var) in map.iter() {
            let grad = grads
                .get(var)
                .unwrap_or_else(|| panic!("{name}: {variable} has no gradient"));
            let size = grad
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar::<f32>()
                .unwrap();
            assert!(
                size > 0.0 && size.is_finite(),
                "{name}: gradient of {variable} is {size}"
            );
        }
    }
}

/// The gradients of a block of every kind against central differences of the same block in f64.
#[test]
fn a_block_agrees_with_finite_differences() {
    for (name, cfg) in variants() {
        let vars = VarMap::new();
        let vb = vit::seeded(&vars, 2, DType::F32, &CPU);
        let block = Block::new(&cfg, 1, vb).unwrap();
        let x = Var::from_tensor(&(numbers(&[1, 3, 16], 3) * 0.3).unwrap()).unwrap();
        let weights = numbers(&[1, 3, 16], 4);
        let loss = |y: Tensor, w: &Tensor| (y * w).unwrap().sum_all().unwrap();
        let grads = loss(block_of(&cfg, &block, &x), &weights)
            .backward()
            .unwrap();

        let wide = |t: &Tensor| t.detach().to_dtype(DType::F64).unwrap();
        let map = vars.data().lock().unwrap();
        let mut tensors: Vec<(String, Tensor)> = map
            .iter()
            .map(|(name, var)| (name.clone(), wide(var)))
            .collect();
        tensors.push(("x".into(), wide(&x)));
        let exact = |tensors: &[(String, Tensor)]| {
            let all: std::collections::HashMap<_, _> = tensors.iter().cloned().collect();
            let x = all["x"].clone();
            let vb = VarBuilder::from_tensors(all, DType::F64, &CPU);
            let y = block_of(&cfg, &Block::new(&cfg, 1, vb).unwrap(), &x);
            loss(y, &wide(&weights)).to_scalar::<f64>().unwrap()
        };
        for k in 0..tensors.len() {
            let (variable, tensor) = tensors[k].clone();
            let grad = match variable.as_str() {
                "x" => grads.get(&x),
                other => grads.get(&map[other]),
            };
            let grad = grad
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            let values = tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let scale = grad.iter().fold(1e-2f64, |m, g| m.max(f64::from(g.abs())));
            // A few places of each: some first, some last.
            for i in [0, 1, values.len() / 2, values.len() - 1] {
                let at = |delta: f64| {
                    let mut moved = values.clone();
                    moved[i] += delta;
                    let mut all = tensors.clone();
                    all[k].1 = Tensor::from_vec(moved, tensor.shape(), &CPU).unwrap();
                    exact(&all)
                };
                let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!(
                    (numeric - f64::from(grad[i])).abs() < 1e-4 * scale,
                    "{name}: {variable}[{i}]: {}, not {numeric}",
                    grad[i]
                );
            }
        }
    }
}

#[test]
fn drops_depend_on_the_seed_alone() {
    let cfg = VitConfig {
        drop_rate: 0.2,
        drop_path_rate: 0.5,
        ..small()
    };
    let vars = VarMap::new();
    let model = Vit::new(&cfg, vit::seeded(&vars, 1, DType::F32, &CPU)).unwrap();
    let x = images(&cfg, 3);
    let train = |x: &Tensor, seeds: &[u64]| model.forward_train(x, Drops(seeds)).unwrap();
    let all = train(&x, &[5, 6, 7]);
    assert_eq!(bits(&all), bits(&train(&x, &[5, 6, 7])));
    assert_ne!(bits(&all), bits(&train(&x, &[5, 6, 8])));
    // An image's place in the batch does not matter, but for rounding.
    let last = train(&x.narrow(0, 2, 1).unwrap().contiguous().unwrap(), &[7]);
    let difference = (all.narrow(0, 2, 1).unwrap() - last)
        .unwrap()
        .abs()
        .unwrap();
    assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-6);
    assert!(model.forward_train(&x, Drops(&[1])).is_err());
    // Without rates, training computes what evaluation does.
    let still = Vit::new(
        &VitConfig {
            drop_rate: 0.0,
            drop_path_rate: 0.0,
            ..cfg
        },
        VarBuilder::from_varmap(&vars, DType::F32, &CPU),
    )
    .unwrap();
    let trained = still.forward_train(&x, Drops(&[5, 6, 7])).unwrap();
    assert_eq!(bits(&trained), bits(&model.forward(&x).unwrap()));
}

#[test]
fn drop_path_drops_whole_branches() {
    let cfg = VitConfig {
        depth: 1,
        ..small()
    };
    let rates: Vec<f64> = (0..12)
        .map(|i| {
            VitConfig {
                depth: 12,
                drop_path_rate: 0.1,
                ..cfg
            }
            .drop_path(i)
        })
        .collect();
    // vit_finetune.json of the goldens, timm's linspace in f32.
    assert_eq!(rates[0], 0.0);
    assert!((rates[1] - 0.009_090_909).abs() < 1e-8 && (rates[11] - 0.1).abs() < 1e-8);

    let cfg = VitConfig {
        depth: 2,
        drop_path_rate: 0.4,
        ..small()
    };
    let vars = VarMap::new();
    let model = Vit::new(&cfg, vit::seeded(&vars, 1, DType::F32, &CPU)).unwrap();
    let one = images(&cfg, 1);
    let batch = 512;
    let many = one.repeat((batch, 1, 1, 1)).unwrap();
    let seeds: Vec<u64> = (0..batch as u64).collect();
    let logits = model.forward_train(&many, Drops(&seeds)).unwrap();
    let rows = logits.to_vec2::<f32>().unwrap();
    // The first block is never dropped; of the second's two branches each is with probability 0.4: four outcomes.
    let mut kinds: Vec<Vec<u32>> = rows
        .iter()
        .map(|r| r.iter().map(|x| (x * 1e4).round() as i32 as u32).collect())
        .collect();
    kinds.sort();
    let all = kinds.len();
    kinds.dedup();
    assert_eq!((all, kinds.len()), (512, 4));
    // What is kept is scaled by 1 / (1 - rate), so none of them is the whole.
    let base = bits(&model.forward(&one).unwrap());
    assert!(!rows
        .iter()
        .any(|r| r.iter().map(|x| x.to_bits()).eq(base.iter().copied())));
}

/// Kept patches come out as they would alone: with every patch kept in order, masking changes nothing.
#[test]
fn masking_works_for_every_variant() {
    for (name, cfg) in variants() {
        let vars = VarMap::new();
        let model = Vit::new(&cfg, vit::seeded(&vars, 1, DType::F32, &CPU)).unwrap();
        let x = images(&cfg, 2);
        let patches = cfg.patches() as u32;
        let keep: Vec<u32> = (0..2).flat_map(|_| 0..patches).collect();
        let whole = model.features(&x, None, &[0, 1]).unwrap();
        let kept = model.features(&x, Some(&keep), &[0, 1]).unwrap();
        for (a, b) in whole.iter().zip(&kept) {
            assert_eq!(bits(a), bits(b), "{name}");
        }
        let some = model.features(&x, Some(&[2, 0, 1, 3]), &[1]).unwrap();
        assert_eq!(some[0].dims(), [2, cfg.prefix_tokens() + 2, 16], "{name}");
    }
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let bad = |change: &dyn Fn(&mut VitConfig)| {
        let mut cfg = small();
        change(&mut cfg);
        cfg.validate().unwrap_err().to_string()
    };
    assert!(bad(&|c| c.image_width = Some(20)).contains("width 20"));
    assert!(bad(&|c| c.num_heads = 3).contains("num_heads 3"));
    assert!(bad(&|c| c.drop_path_rate = 1.0).contains("drop_path_rate"));
    assert!(bad(&|c| c.mlp_ratio = f64::NAN).contains("mlp width"));
    assert!(bad(&|c| c.reg_tokens = usize::MAX).contains("reg_tokens"));
    // A block with rotary positions does without none, another with none.
    for pos_embed in [PosEmbed::Learnt, ROPE] {
        let cfg = VitConfig {
            pos_embed,
            ..small()
        };
        let vb = vit::seeded(&VarMap::new(), 1, DType::F32, &CPU);
        let block = Block::new(&cfg, 0, vb).unwrap();
        let x = numbers(&[1, 3, 16], 1);
        let angles = numbers(&[1, 3, 4], 2);
        let turned = block.forward_rotated(&x, &Rotation::new(&angles, &angles).unwrap());
        assert_eq!(turned.is_ok(), pos_embed == ROPE);
        assert_eq!(block.forward(&x).is_ok(), pos_embed != ROPE);
    }
    let model = Vit::new(
        &small(),
        VarBuilder::from_varmap(&VarMap::new(), DType::F32, &CPU),
    )
    .unwrap();
    let wrong = Tensor::zeros((1, 3, 24, 16), DType::F32, &CPU).unwrap();
    let error = model.forward(&wrong).unwrap_err().to_string();
    assert!(error.contains("24 x 16"), "{error}");
}
