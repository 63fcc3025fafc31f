//! The Swin Transformer against timm and transformers (scripts/swin_fixtures.py): numbers, gradients, checkpoints in and out.
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{safetensors, DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use vit::ops::Compute;
use vit::{
    Backbone, Checkpoint, Drops, Error, Family, Head, Hints, Layout, LoadOptions, Pretrained, Swin,
    SwinConfig, VitConfig,
};

const CPU: Device = Device::Cpu;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/swin")
        .join(name)
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// Within so much of the largest absolute value, or of 1.
fn close(got: &Tensor, want: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (flat(got), flat(want));
    let scale = want.iter().fold(1f32, |m, x| m.max(x.abs()));
    for (i, (a, b)) in got.iter().zip(&want).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * scale,
            "{what}[{i}]: {a}, not {b}"
        );
    }
}

fn golden_config(name: &str) -> VitConfig {
    let (depths, window_size, image, qkv_bias) = match name {
        "square" => ([2, 1, 2, 1], 7, (56, 56), true),
        _ => ([2, 2, 1, 1], 4, (40, 56), false),
    };
    let swin = SwinConfig {
        depths,
        num_heads: [1, 2, 2, 4],
        window_size,
    };
    VitConfig {
        mlp_ratio: 2.0,
        qkv_bias,
        num_classes: 5,
        ..swin.model(8).with_image(image)
    }
}

/// The tensors of a golden that begin so, under our names.
fn part(io: &HashMap<String, Tensor>, prefix: &str) -> BTreeMap<String, Tensor> {
    io.iter()
        .filter_map(|(name, tensor)| {
            let name = name.strip_prefix(prefix)?.replace("head.fc.", "head.");
            Some((name, tensor.clone()))
        })
        .collect()
}

fn variables(tensors: &BTreeMap<String, Tensor>) -> VarMap {
    let vars = VarMap::new();
    let mut map = vars.data().lock().unwrap();
    for (name, tensor) in tensors {
        map.insert(name.clone(), Var::from_tensor(tensor).unwrap());
    }
    drop(map);
    vars
}

/// Tokens of each stage, features, logits, and every gradient, in both forms of the ops.
#[test]
fn goldens() {
    for name in ["square", "padded"] {
        let io = safetensors::load(fixture(&format!("{name}.golden.safetensors")), &CPU).unwrap();
        let cfg = golden_config(name);
        let swin = cfg.swin.unwrap();
        for plain in [false, true] {
            let compute = &Compute {
                plain,
                ..Compute::default()
            };
            let vars = variables(&part(&io, "model."));
            let vb = VarBuilder::from_varmap(&vars, DType::F32, &CPU);
            let model = Swin::new(&cfg, vb).unwrap().with_compute(compute);
            let images = &io["images"];
            let ends: Vec<usize> = (1..=4).map(|stage| swin.first_block(stage) - 1).collect();
            let stages = model.features(images, &ends).unwrap();
            for (i, tokens) in stages.iter().enumerate() {
                let want = &io[&format!("stage.{i}")];
                close(tokens, want, 1e-5, &format!("{name} stage {i}"));
            }
            let features = model.forward_features(images).unwrap();
            close(
                &features,
                &io["features"],
                1e-5,
                &format!("{name} features"),
            );
            let logits = model.forward(images).unwrap();
            close(&logits, &io["logits"], 1e-5, &format!("{name} logits"));
            let loss = (logits * &io["weights"]).unwrap().sum_all().unwrap();
            let grads = loss.backward().unwrap();
            let want = part(&io, "grad.");
            let map = vars.data().lock().unwrap();
            assert_eq!(map.len(), want.len());
            for (variable, var) in map.iter() {
                let grad = grads
                    .get(var)
                    .unwrap_or_else(|| panic!("{variable} has no gradient"));
                let what = format!("{name}: gradient of {variable}, plain {plain}");
                close(grad, &want[variable], 2e-5, &what);
            }
        }
    }
}

fn seeded(cfg: &VitConfig, seed: u64) -> (Backbone, VarMap) {
    let vars = VarMap::new();
    let vb = vit::seeded(&vars, seed, DType::F32, &CPU);
    (Backbone::new(cfg, vb).unwrap(), vars)
}

fn picture(cfg: &VitConfig, batch: usize) -> Tensor {
    let (height, width) = cfg.image();
    let count = batch * cfg.in_chans * height * width;
    let value = |i: usize| ((i * 7919) % 1009) as f32 / 500.0 - 1.0;
    let values: Vec<f32> = (0..count).map(value).collect();
    Tensor::from_vec(values, (batch, cfg.in_chans, height, width), &CPU).unwrap()
}

/// Gradients of a step, by name, with so many threads.
fn step(threads: usize) -> BTreeMap<String, Vec<f32>> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    pool.install(|| {
        let mut cfg = golden_config("square");
        cfg.drop_path_rate = 0.3;
        let (model, vars) = seeded(&cfg, 1);
        let logits = model
            .forward_train(&picture(&cfg, 5), Drops(&[1, 2, 3, 4, 5]))
            .unwrap();
        let grads = logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let map = vars.data().lock().unwrap();
        map.iter()
            .map(|(name, var)| (name.clone(), flat(grads.get(var).unwrap())))
            .collect()
    })
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let one = step(1);
    assert_eq!(one, step(2));
    assert_eq!(one, step(5));
}

/// A dropped path leaves the residual stream alone; without drops nothing is left to chance.
#[test]
fn drop_path_is_by_image() {
    let mut cfg = golden_config("square");
    cfg.drop_path_rate = 0.5;
    let (model, _) = seeded(&cfg, 1);
    let images = picture(&cfg, 2);
    let train = |seeds: &[u64]| model.forward_train(&images, Drops(seeds)).unwrap();
    let (a, b) = (train(&[7, 8]), train(&[7, 9]));
    assert_eq!(flat(&a.get(0).unwrap()), flat(&b.get(0).unwrap()));
    assert_ne!(flat(&a.get(1).unwrap()), flat(&b.get(1).unwrap()));
    assert!(model.forward_train(&images, Drops(&[7])).is_err());
}

#[test]
fn layers_are_blocks_and_what_stands_before_them() {
    let cfg = VitConfig::preset("swin-tiny").unwrap();
    let layer = |name: &str| cfg.layer_of(name);
    assert_eq!(layer("patch_embed.proj.weight"), Some(0));
    assert_eq!(layer("patch_embed.norm.bias"), Some(0));
    assert_eq!(layer("layers.0.blocks.0.attn.qkv.weight"), Some(1));
    assert_eq!(layer("layers.0.blocks.1.norm1.weight"), Some(2));
    assert_eq!(layer("layers.1.downsample.reduction.weight"), Some(3));
    assert_eq!(layer("layers.1.blocks.0.mlp.fc1.bias"), Some(3));
    assert_eq!(layer("layers.3.downsample.norm.weight"), Some(11));
    assert_eq!(layer("layers.3.blocks.1.mlp.fc2.weight"), Some(12));
    for name in [
        "norm.weight",
        "head.weight",
        "layers.4.blocks.0.norm1.weight",
        "layers.0.blocks.2.norm1.weight",
        "layers.x.blocks.0.w",
        "layers.0",
    ] {
        assert_eq!(layer(name), None, "{name}");
    }
    assert_eq!(cfg.block_name(4), "layers.2.blocks.0");
    // Each variable has a layer, but for norm and head, and no layer is empty.
    let mut cfg = golden_config("square");
    cfg.num_classes = 3;
    let (_, vars) = seeded(&cfg, 0);
    let map = vars.data().lock().unwrap();
    let mut seen = vec![false; cfg.depth + 1];
    for name in map.keys() {
        match cfg.layer_of(name) {
            Some(layer) => seen[layer] = true,
            None => assert!(
                name.starts_with("norm.") || name.starts_with("head."),
                "{name}"
            ),
        }
    }
    assert!(seen.iter().all(|seen| *seen));
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(fixture(name).to_str().unwrap()).unwrap_or_else(|e| panic!("{e}"))
}

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Pretrained {
    checkpoint.load(options).unwrap_or_else(|e| panic!("{e}"))
}

/// Opens a case and compares tokens and logits.
fn case(name: &str, family: Family) -> Checkpoint {
    let stem = name.trim_end_matches(".pth");
    let io = safetensors::load(fixture(&format!("{stem}.io.safetensors")), &CPU).unwrap();
    let checkpoint = open(name);
    assert_eq!(checkpoint.family(), family, "{name}");
    let model = load(&checkpoint, &LoadOptions::default())
        .backbone()
        .unwrap();
    let tokens = model.forward_features(&io["images"]).unwrap();
    close(&tokens, &io["tokens"], 1e-5, name);
    if let Some(want) = io.get("logits") {
        let logits = model.forward_head(&tokens).unwrap();
        close(&logits, want, 1e-5, name);
    }
    checkpoint
}

#[test]
fn timm() {
    let checkpoint = case("timm", Family::Swin);
    assert!(checkpoint.unused().is_empty());
    assert!(checkpoint.notes().is_empty(), "{:?}", checkpoint.notes());
    assert_eq!(checkpoint.labels()[&4], "elk");
    assert!(checkpoint.pool_note().is_none());
    // For smaller images the last stage's windows are smaller.
    let io = safetensors::load(fixture("timm.io.safetensors"), &CPU).unwrap();
    let options = LoadOptions {
        image: Some((48, 48)),
        ..LoadOptions::default()
    };
    let smaller = load(&checkpoint, &options).backbone().unwrap();
    let logits = smaller.forward(&io["resized_images"]).unwrap();
    close(&logits, &io["resized_logits"], 1e-5, "timm, smaller");
}

#[test]
fn the_authors() {
    let checkpoint = case("authors.pth", Family::Swin);
    assert_eq!(checkpoint.unused().len(), 6, "{:?}", checkpoint.unused());
    // Nothing but the tables of the last stage, 2 x 2 tokens, tells that these are no images of 4 * 32 pixels.
    assert_eq!(checkpoint.config().image(), (64, 64));
    assert!(checkpoint.notes().is_empty(), "{:?}", checkpoint.notes());
}

/// LocalMIM's own code: mergings by row, norms with eps 1e-6, decoders beside the encoder.
#[test]
fn localmim() {
    let checkpoint = case("localmim.pth", Family::LocalMimSwin);
    let cfg = checkpoint.config();
    assert_eq!((cfg.norm_eps, cfg.image()), (1e-6, (64, 64)));
    let notes = checkpoint.notes();
    assert!(notes.len() == 1 && notes[0].contains("are reordered"));
    assert!(checkpoint.pool_note().is_none());
    // Six tables of windows, of four decoders 20 tensors and a filter of 2, and three norms.
    let unused = checkpoint.unused();
    assert_eq!(unused.len(), 6 + 4 * (20 + 2) + 3 * 2, "{unused:?}");
    checkpoint.check().unwrap();
    let decoders = checkpoint.decoders().unwrap();
    assert_eq!(decoders.len(), 4 * 20 + 3 * 2);
    for name in [
        "decoder.3.pred.weight",
        "decoder.0.pos_embed",
        "norm.2.bias",
    ] {
        assert!(decoders.contains_key(name), "{name}");
    }
    // Written as timm's they are column by column; timm's eps is another.
    let folder = tempfile::tempdir().unwrap();
    let io = safetensors::load(fixture("localmim.io.safetensors"), &CPU).unwrap();
    let first = load(&checkpoint, &LoadOptions::default());
    let timm = folder.path().join("timm");
    let notes = first.save(&timm, Layout::Timm, DType::F32).unwrap();
    assert!(notes[0].contains("was trained with 1e-6"), "{notes:?}");
    let own = folder.path().join("own.safetensors");
    first.save_file(&own).unwrap();
    for (path, tolerance) in [(timm, 3e-4), (own, 1e-5)] {
        let again = Checkpoint::open(path.to_str().unwrap()).unwrap();
        assert_eq!(again.family(), Family::Swin);
        assert!(again.notes().is_empty(), "{:?}", again.notes());
        let again = load(&again, &LoadOptions::default()).backbone().unwrap();
        let tokens = again.forward_features(&io["images"]).unwrap();
        close(&tokens, &io["tokens"], tolerance, "written and read");
    }
    let error = first.save(&folder.path().join("hf"), Layout::HuggingFace, DType::F32);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("--to timm"), "{error}");
}

/// The published layout with something wrong in it, as one line.
#[test]
fn malformed_files_of_localmim_are_refused() {
    let whole = open("localmim.pth");
    let floats = whole
        .tensors()
        .iter()
        .filter(|(name, _)| !name.ends_with("_index"));
    let all: HashMap<String, Tensor> = floats
        .map(|(name, stored)| {
            let values = whole.values(name).unwrap();
            let tensor = Tensor::from_vec(values, stored.shape.clone(), &CPU).unwrap();
            (name.clone(), tensor)
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let changed = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let mut tensors = all.clone();
        change(&mut tensors);
        safetensors::save(&tensors, &path).unwrap();
        let checkpoint = Checkpoint::open(path.to_str().unwrap())?;
        checkpoint.load(&LoadOptions::default())?;
        checkpoint.decoders()?;
        Ok::<_, Error>(checkpoint)
    };
    let same = changed(&|_| ()).unwrap();
    assert_eq!(same.family(), Family::LocalMimSwin);
    const REDUCTION: &str = "model.encoder.layers.0.downsample.reduction.weight";
    type Change = fn(&mut HashMap<String, Tensor>);
    let cases: [(Change, &str); 7] = [
        (
            |t| t.retain(|name, _| !name.starts_with("model.encoder.norm.3.")),
            "without 'norm.3.weight', which is its final norm",
        ),
        (
            |t| drop(t.remove("model.encoder.norm.3.bias")),
            "1 missing: norm.bias",
        ),
        (
            |t| drop(t.insert(REDUCTION.into(), zeros((16, 31)))),
            "layers.0.downsample.reduction.weight [16, 31] instead of [16, 32]",
        ),
        (
            |t| drop(t.insert(REDUCTION.into(), zeros(()))),
            "layers.0.downsample.reduction.weight [] instead of [16, 32]",
        ),
        (
            |t| drop(t.remove(REDUCTION)),
            "1 missing: layers.1.downsample.reduction.weight",
        ),
        (
            |t| t.retain(|name, _| !name.starts_with("model.encoder.")),
            "no Vision Transformer: no patch embedding among its",
        ),
        (
            |t| drop(t.insert("model.encoder.norm.4.weight".into(), zeros(64))),
            "",
        ),
    ];
    for (change, want) in cases {
        match changed(&change) {
            Ok(_) => assert_eq!(want, ""),
            Err(error) => {
                let error = error.to_string();
                assert!(!want.is_empty(), "{error}");
                assert!(error.contains(want) && !error.contains('\n'), "{error}");
            }
        }
    }
    // Without its decoders it is an encoder.
    let bare = changed(&|t| t.retain(|name, _| name.starts_with("model.encoder.")));
    let bare = bare.unwrap();
    assert!(bare
        .decoders()
        .unwrap()
        .keys()
        .all(|name| name.starts_with("norm.")));
    // The size that a decoder's grid tells, where the windows are as large as every stage.
    let windows = Hints {
        window_size: Some(2),
        ..Hints::default()
    };
    let table = "model.decoder.3.pos_embed";
    for (tokens, image) in [(9, 96), (4, 64)] {
        let mut tensors = all.clone();
        tensors.insert(table.into(), zeros((1, tokens, 16)));
        for (name, tensor) in &mut tensors {
            if name.ends_with("bias_table") {
                *tensor = zeros((9, tensor.dim(1).unwrap()));
            }
        }
        safetensors::save(&tensors, &path).unwrap();
        let checkpoint = Checkpoint::open_with(path.to_str().unwrap(), &windows).unwrap();
        assert_eq!(checkpoint.config().image(), (image, image));
        assert_eq!(checkpoint.notes().len(), 1);
    }
}

#[test]
fn hugging_face() {
    let checkpoint = case("hf", Family::HfSwin);
    assert_eq!(checkpoint.labels()[&0], "ant");
    assert_eq!(checkpoint.preprocess().mean, [0.5, 0.4, 0.3]);
    assert!(checkpoint.notes().is_empty(), "{:?}", checkpoint.notes());
    let base = case("hf_base", Family::HfSwin);
    assert_eq!(base.unused(), ["embeddings.mask_token"]);
    assert_eq!(base.config().num_classes, 0);
}

/// Out and in again: the same architecture, the same numbers to the bit.
#[test]
fn round_trips() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["timm", "authors.pth", "hf", "hf_base"] {
        let checkpoint = open(name);
        for head in [Head::Keep, Head::Drop] {
            let options = LoadOptions {
                head,
                ..LoadOptions::default()
            };
            let first = load(&checkpoint, &options);
            // The windows of the first two are smaller in the last stage, which transformers has not.
            let hf = name.starts_with("hf");
            let mut layouts = vec![Some(Layout::Timm), None];
            if hf {
                layouts.push(Some(Layout::HuggingFace));
            }
            for (i, layout) in layouts.into_iter().enumerate() {
                let end = if layout.is_none() { ".safetensors" } else { "" };
                let out = folder.path().join(format!("{name}-{head:?}-{i}{end}"));
                match layout {
                    Some(layout) => drop(first.save(&out, layout, DType::F32).unwrap()),
                    None => first.save_file(&out).unwrap(),
                }
                let again = Checkpoint::open(out.to_str().unwrap()).unwrap();
                assert!(again.notes().is_empty(), "{:?}", again.notes());
                let again = load(&again, &LoadOptions::default());
                assert_eq!(again.cfg, first.cfg, "{name} {layout:?}");
                assert!(again.tensors.keys().eq(first.tensors.keys()), "{name}");
                for (tensor, value) in &again.tensors {
                    assert_eq!(flat(value), flat(&first.tensors[tensor]), "{name} {tensor}");
                }
            }
        }
    }
    let timm = load(&open("timm"), &LoadOptions::default());
    let error = timm.save(&folder.path().join("no"), Layout::HuggingFace, DType::F32);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("stage 3 has 2 x 2 tokens in windows of 4") && error.contains("--to timm"),
        "{error}"
    );
}

/// Writes the timm case, changed so, and opens it.
fn changed(
    config: impl FnOnce(&mut serde_json::Value),
    tensors: impl FnOnce(&mut HashMap<String, Tensor>),
) -> Result<Checkpoint, Error> {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read(fixture("timm/config.json")).unwrap();
    let mut json = serde_json::from_slice(&text).unwrap();
    config(&mut json);
    let mut all = safetensors::load(fixture("timm/model.safetensors"), &CPU).unwrap();
    tensors(&mut all);
    std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    safetensors::save(&all, folder.path().join("model.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(folder.path().to_str().unwrap())?;
    checkpoint.load(&LoadOptions::default())?;
    Ok(checkpoint)
}

fn zeros(shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::zeros(shape, DType::F32, &CPU).unwrap()
}

/// Each wrong file is one line that says what and where.
#[test]
fn malformed_files_are_refused() {
    const TABLE: &str = "attn.relative_position_bias_table";
    type Change = fn(&mut HashMap<String, Tensor>);
    let cases: [(Change, &str); 13] = [
        (
            |t| drop(t.remove("layers.1.blocks.1.norm2.bias")),
            "1 missing: layers.1.blocks.1.norm2.bias",
        ),
        (
            |t| drop(t.insert("layers.0.what".into(), zeros(1))),
            "1 unexpected: layers.0.what",
        ),
        (
            |t| drop(t.insert("layers.2.downsample.norm.weight".into(), zeros(63))),
            "layers.2.downsample.norm.weight [63] instead of [64]",
        ),
        (
            |t| drop(t.insert("layers.1.blocks.7.norm1.weight".into(), zeros(16))),
            "the tensors [1,8,1,1]",
        ),
        (
            |t| drop(t.insert(format!("layers.0.blocks.0.{TABLE}"), zeros((50, 1)))),
            "have 49 offsets in stage 0, its bias table has 50",
        ),
        (
            |t| drop(t.insert(format!("layers.1.blocks.0.{TABLE}"), zeros(49))),
            "'layers.1.blocks.0.attn.relative_position_bias_table' is missing or no table",
        ),
        (
            |t| drop(t.insert(format!("layers.1.blocks.0.{TABLE}"), zeros((49, 3)))),
            "width 16 of stage 1 is not divisible by its 3 heads",
        ),
        (
            |t| t.retain(|name, _| !name.starts_with("layers.3.")),
            "a Swin of 3 stages",
        ),
        (
            |t| {
                drop(t.insert(
                    "layers.18446744073709551615.downsample.norm.weight".into(),
                    zeros(1),
                ))
            },
            "1 unexpected",
        ),
        (
            |t| {
                drop(t.insert(
                    "layers.0.blocks.99999999999999999999.norm1.weight".into(),
                    zeros(1),
                ))
            },
            "is in no block",
        ),
        (
            |t| drop(t.insert("layers.0.blocks.0.attn.logit_scale".into(), zeros(1))),
            "a Swin Transformer V2",
        ),
        (
            |t| drop(t.insert("absolute_pos_embed".into(), zeros((1, 256, 8)))),
            "absolute position embeddings",
        ),
        (
            |t| drop(t.insert("patch_embed.proj.weight".into(), zeros((8, 3, 4, 5)))),
            "expected square ones",
        ),
    ];
    for (change, want) in cases {
        let error = changed(|_| (), change).unwrap_err().to_string();
        assert!(error.contains(want) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn absurd_configurations_are_refused() {
    use serde_json::json;
    for (key, value, want) in [
        ("window_size", json!(0), "'window_size' is 0"),
        ("window_size", json!(1e300), "'window_size' is 1e"),
        ("window_size", json!(u64::MAX), "window size is"),
        (
            "window_size",
            json!([7, 7, 14, 7]),
            "one size for the square windows",
        ),
        ("window_size", json!("seven"), "'window_size' is \"seven\""),
        (
            "depths",
            json!([2, 2, 6, 2]),
            "says 'depths' is [2,2,6,2], the tensors [1,2,1,1]",
        ),
        (
            "depths",
            json!(4),
            "'depths' is 4; expected a number for each stage",
        ),
        ("num_heads", json!([0, 0, 0, 0]), "says 'num_heads'"),
        ("img_size", json!(66), "66 is not divisible by patch size 4"),
        ("img_size", json!(0), "'img_size' is 0"),
        ("img_size", json!(1u64 << 40), "image height is"),
        ("img_size", json!(32), "in stage 2, its bias table has 49"),
        ("patch_size", json!(8), "says 'patch_size'"),
        (
            "embed_dim",
            json!(96),
            "says 'embed_dim' is 96, the tensors 8",
        ),
        (
            "mlp_ratio",
            json!(4.0),
            "says 'mlp_ratio' is 4.0, the tensors 2.0",
        ),
        ("qkv_bias", json!(false), "says 'qkv_bias'"),
        (
            "global_pool",
            json!("max"),
            "'global_pool' is 'max'; of a Swin expected avg",
        ),
        (
            "always_partition",
            json!(true),
            "'always_partition' is true",
        ),
    ] {
        let set = |json: &mut serde_json::Value| json["model_args"][key] = value.clone();
        let error = changed(set, |_| ()).unwrap_err().to_string();
        assert!(
            error.contains(want) && !error.contains('\n'),
            "{key} {value}: {error}"
        );
    }
    // One pair for all stages is what a number is; what nobody knows is named.
    let set = |json: &mut serde_json::Value| {
        json["model_args"]["window_size"] = json!([4, 4]);
        json["model_args"]["dynamic"] = json!(true);
    };
    let checkpoint = changed(set, |_| ()).unwrap();
    assert!(checkpoint.notes()[0].contains("not used: dynamic"));
}

#[test]
fn absurd_architectures_are_refused() {
    let good = golden_config("square");
    let swin = good.swin.unwrap();
    let with = |change: fn(&mut SwinConfig)| {
        let mut swin = swin;
        change(&mut swin);
        VitConfig {
            swin: Some(swin),
            ..good
        }
    };
    let cases = [
        (with(|s| s.window_size = 0), "window size is 0"),
        (with(|s| s.window_size = 65), "window size is 65"),
        (with(|s| s.depths[1] = 0), "each stage needs one"),
        (with(|s| s.depths[1] = usize::MAX), "has 6 blocks"),
        (with(|s| s.num_heads[2] = 0), "width 32 of stage 2"),
        (with(|s| s.num_heads[3] = 5), "its 5 heads"),
        (with(|s| s.num_heads[0] = 2), "num_heads is 1"),
        (
            VitConfig {
                pool: vit::Pool::Token,
                ..good
            },
            "a Swin has no class token",
        ),
        (
            VitConfig {
                reg_tokens: 1,
                ..good
            },
            "no tokens beside",
        ),
        (
            VitConfig {
                pos_embed: vit::PosEmbed::SinCos,
                ..good
            },
            "no position table",
        ),
        (
            VitConfig {
                fc_norm: true,
                ..good
            },
            "fc_norm",
        ),
        (VitConfig { depth: 7, ..good }, "has 7 blocks"),
    ];
    for (cfg, want) in cases {
        let error = cfg.validate().unwrap_err().to_string();
        assert!(error.contains(want) && !error.contains('\n'), "{error}");
    }
    // Neither kind builds the other's.
    let vb = || VarBuilder::zeros(DType::F32, &CPU);
    assert!(vit::Vit::new(&good, vb()).is_err());
    assert!(Swin::new(&VitConfig::default(), vb()).is_err());
    assert!(load(&open("timm"), &LoadOptions::default())
        .model()
        .is_err());
    // The smallest: one token all the way.
    let tiny = good.with_image((4, 4));
    tiny.validate().unwrap();
    let (model, _) = seeded(&tiny, 0);
    let logits = model.forward(&picture(&tiny, 1)).unwrap();
    assert_eq!(logits.dims(), [1, 5]);
    assert!(model.forward(&picture(&good, 1)).is_err());
}

/// Our own file tells what no tensor does.
#[test]
fn a_file_of_ours_keeps_image_and_windows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("best.safetensors");
    let cfg = golden_config("padded");
    let (model, vars) = seeded(&cfg, 3);
    let map = vars.data().lock().unwrap();
    let tensors = map.iter().map(|(n, v)| (n.clone(), v.as_detached_tensor()));
    let first = Pretrained {
        cfg,
        tensors: tensors.collect(),
        labels: BTreeMap::new(),
        preprocess: vit::Preprocess::usual(cfg.image()),
    };
    first.save_file(&path).unwrap();
    let checkpoint = Checkpoint::open(path.to_str().unwrap()).unwrap();
    assert_eq!(checkpoint.config(), &cfg);
    let images = picture(&cfg, 1);
    let again = load(&checkpoint, &LoadOptions::default())
        .backbone()
        .unwrap();
    assert_eq!(
        flat(&again.forward(&images).unwrap()),
        flat(&model.forward(&images).unwrap())
    );
    // Without it, a hint.
    let hints = Hints {
        window_size: Some(4),
        image: Some((40, 56)),
        ..Hints::default()
    };
    let bare = folder.path().join("bare.safetensors");
    safetensors::save(&first.tensors.into_iter().collect(), &bare).unwrap();
    let checkpoint = Checkpoint::open_with(bare.to_str().unwrap(), &hints).unwrap();
    assert_eq!(checkpoint.config(), &cfg);
}
