//! Images of other channels than RGB: patch embeddings adapted as timm does, checkpoints of as many, in and out.
use std::path::{Path, PathBuf};

use candle_core::{safetensors, DType, Device, Tensor};
use vit::{adapt_input_channels, Checkpoint, Layout, LoadOptions, Preprocess, Vit, VitConfig};

const CPU: Device = Device::Cpu;

fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/fixtures").join(name)
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path.to_str().unwrap()).unwrap()
}

fn largest(a: &Tensor, b: &Tensor) -> f32 {
    let (a, b) = (
        a.to_dtype(DType::F32).unwrap(),
        b.to_dtype(DType::F32).unwrap(),
    );
    let distance = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
    distance.max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn weights_become_what_timm_makes_of_them() {
    let io = safetensors::load(fixture("channels/adapted.safetensors"), &CPU).unwrap();
    for kind in ["weight", "half"] {
        for channels in [1, 2, 4, 5, 13] {
            let got = adapt_input_channels(&io[kind], channels).unwrap();
            let want = &io[&format!("{kind}_{channels}")];
            assert_eq!((got.dims(), got.dtype()), (want.dims(), want.dtype()));
            let near = if kind == "half" { 2e-3 } else { 1e-6 };
            let off = largest(&got, want);
            assert!(off < near, "{kind} {channels}: {off}");
        }
        let same = adapt_input_channels(&io[kind], 3).unwrap();
        assert_eq!(largest(&same, &io[kind]), 0.0);
    }
    // Like channels give what they gave: the sum over the channels stays.
    let sum = |t: &Tensor| t.sum_keepdim(1).unwrap();
    let twelve = adapt_input_channels(&io["weight"], 12).unwrap();
    assert!(largest(&sum(&twelve), &sum(&io["weight"])) < 1e-5);
    let back = adapt_input_channels(&twelve, 3).unwrap();
    assert!(largest(&back, &io["weight"]) < 1e-6);
    assert!(adapt_input_channels(&io["weight"], 0).is_err());
}

#[test]
fn a_checkpoint_of_rgb_loads_for_others() {
    let io = safetensors::load(fixture("channels/adapted.safetensors"), &CPU).unwrap();
    let checkpoint = open(&fixture("checkpoints/timm_registers"));
    assert_eq!(checkpoint.config().in_chans, 3);
    let own = checkpoint.preprocess();
    for channels in [1, 4] {
        let options = LoadOptions {
            channels: Some(channels),
            ..LoadOptions::default()
        };
        let loaded = checkpoint.load(&options).unwrap();
        assert_eq!(loaded.cfg.in_chans, channels);
        let images = &io[&format!("images_{channels}")];
        let got = loaded.model().unwrap().forward_features(images).unwrap();
        let off = largest(&got, &io[&format!("tokens_{channels}")]);
        assert!(off < 2e-5, "{channels}: {off}");
        // Mean and deviation go with the weights.
        let mean = &loaded.preprocess.mean;
        match channels {
            1 => assert!((mean[0] - own.mean.iter().sum::<f32>() / 3.0).abs() < 1e-6),
            _ => assert_eq!(mean[..], [&own.mean[..], &own.mean[..1]].concat()),
        }
        let error = loaded
            .model()
            .unwrap()
            .forward(&io["images_1"].repeat((1, 2, 1, 1)).unwrap());
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("images of 2 channels for a model of"),
            "{error}"
        );
    }
    // The same is nothing new.
    let three = LoadOptions {
        channels: Some(3),
        ..LoadOptions::default()
    };
    let (a, b) = (
        checkpoint.load(&three).unwrap(),
        checkpoint.load(&LoadOptions::default()).unwrap(),
    );
    let name = "patch_embed.proj.weight";
    assert_eq!(largest(&a.tensors[name], &b.tensors[name]), 0.0);
    assert_eq!(a.preprocess, b.preprocess);
}

#[test]
fn a_checkpoint_of_two_channels_in_and_out() {
    let io = safetensors::load(fixture("channels/two.io.safetensors"), &CPU).unwrap();
    let checkpoint = open(&fixture("channels/two"));
    assert_eq!(checkpoint.config().in_chans, 2);
    let p = checkpoint.preprocess();
    assert_eq!(
        (&p.mean[..], &p.std[..]),
        (&[0.25, 0.5][..], &[0.125, 0.25][..])
    );
    let loaded = checkpoint.load(&LoadOptions::default()).unwrap();
    let features = |loaded: &vit::Pretrained| {
        let model = loaded.model().unwrap();
        model.forward_features(&io["images"]).unwrap()
    };
    let want = features(&loaded);
    assert!(largest(&want, &io["tokens"]) < 2e-5);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    loaded.save_file(&at("own.safetensors")).unwrap();
    loaded.save(&at("timm"), Layout::Timm, DType::F32).unwrap();
    loaded
        .save(&at("hf"), Layout::HuggingFace, DType::F32)
        .unwrap();
    for name in ["own.safetensors", "timm", "hf"] {
        let again = open(&at(name));
        assert_eq!(again.config().in_chans, 2, "{name}");
        assert_eq!(again.preprocess().mean, p.mean, "{name}");
        let again = again.load(&LoadOptions::default()).unwrap();
        assert_eq!(largest(&features(&again), &want), 0.0, "{name}");
    }
    let json = |name: &str| {
        let text = std::fs::read(at(name).join("config.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()
    };
    assert_eq!(json("timm")["model_args"]["in_chans"], 2);
    assert_eq!(json("timm")["pretrained_cfg"]["input_size"][0], 2);
    assert_eq!(json("hf")["num_channels"], 2);
}

#[test]
fn files_that_contradict_the_tensors_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let from = fixture("channels/two");
    let weights = "model.safetensors";
    std::fs::copy(from.join(weights), dir.path().join(weights)).unwrap();
    let text = std::fs::read(from.join("config.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = json.clone();
        change(&mut json);
        std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
        let opened = Checkpoint::open(dir.path().to_str().unwrap());
        opened.unwrap_err().to_string()
    };
    let error = refused(&|json| {
        json["model_args"]["in_chans"] = 4.into();
        json["pretrained_cfg"]["mean"] = vec![0.5; 4].into();
        json["pretrained_cfg"]["std"] = vec![0.5; 4].into();
    });
    assert!(error.contains("'in_chans' is 4, the tensors 2"), "{error}");
    let error = refused(&|json| json["pretrained_cfg"]["mean"] = vec![0.5; 3].into());
    assert!(
        error.contains("'mean' is [0.5,0.5,0.5]; expected a finite number for each of 2"),
        "{error}"
    );
    let error = refused(&|json| json["pretrained_cfg"]["std"] = vec![0.5, 0.0].into());
    assert!(
        error.contains("a number above 0 for each channel"),
        "{error}"
    );
}

/// Numbers of channels make no list before they are bounded and held against the tensors.
#[test]
fn channels_that_cannot_be_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let error = || {
        let opened = Checkpoint::open(dir.path().to_str().unwrap());
        opened.unwrap_err().to_string()
    };
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    let bytes = |from: &str| std::fs::read(fixture(from)).unwrap();
    let json = |from: &str| -> serde_json::Value { serde_json::from_slice(&bytes(from)).unwrap() };
    // timm's, without mean and deviation; Hugging Face's, without any in the preprocessor's file.
    for (place, absurd) in [
        ("/model_args/in_chans", 1_000_000_000_000u64),
        ("/pretrained_cfg/input_size/0", 1_000_000),
        ("/model_args/in_chans", 1024),
    ] {
        let mut config = json("channels/two/config.json");
        *config.pointer_mut(place).unwrap() = absurd.into();
        let cfg = config["pretrained_cfg"].as_object_mut().unwrap();
        cfg.retain(|key, _| key != "mean" && key != "std");
        write("config.json", config.to_string().as_bytes());
        write(
            "model.safetensors",
            &bytes("channels/two/model.safetensors"),
        );
        let error = error();
        let told = [
            "expected 1 to 1024 channels",
            "expected [channels,",
            "is 1024, the tensors 2",
        ];
        assert!(told.iter().any(|told| error.contains(told)), "{error}");
    }
    for absurd in [1_000_000_000_000u64, 1024] {
        let mut config = json("checkpoints/hf_deit/config.json");
        config["num_channels"] = absurd.into();
        write("config.json", config.to_string().as_bytes());
        write("preprocessor_config.json", b"{}");
        write(
            "model.safetensors",
            &bytes("checkpoints/hf_deit/model.safetensors"),
        );
        let error = error();
        let told = [
            "'num_channels' is 1000000000000; expected 1 to",
            "is 1024, the tensors 3",
        ];
        assert!(told.iter().any(|told| error.contains(told)), "{error}");
    }
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    std::fs::remove_file(dir.path().join("preprocessor_config.json")).unwrap();
    // Our own metadata: an architecture, and the head of a training state.
    let weights = bytes("checkpoints/hf_deit/model.safetensors");
    let (head, data) = weights.split_at(8);
    let length = u64::from_le_bytes(head.try_into().unwrap()) as usize;
    let (head, data) = data.split_at(length);
    for absurd in [1_000_000_000_000u64, 1_000_000_000, 1024] {
        let cfg = VitConfig {
            in_chans: absurd as usize,
            image_size: 32,
            patch_size: 8,
            embed_dim: 24,
            num_heads: 3,
            depth: 2,
            ..VitConfig::default()
        };
        let run = serde_json::json!({"config": {"channels": absurd, "image-size": 32, "model": "vit-tiny"}});
        for text in [serde_json::to_string(&cfg).unwrap(), run.to_string()] {
            let mut head: serde_json::Value = serde_json::from_slice(head).unwrap();
            head["__metadata__"] = serde_json::json!({ "vitfreeze": text });
            let head = head.to_string();
            let length = (head.len() as u64).to_le_bytes();
            write(
                "model.safetensors",
                &[&length[..], head.as_bytes(), data].concat(),
            );
            let error = error();
            let told = ["expected 1 to 1024 channels", "is 1024, the tensors 3"];
            assert!(
                error.contains("metadata 'vitfreeze'") && told.iter().any(|t| error.contains(t)),
                "{error}"
            );
        }
    }
}

/// Deviations of float data may be small; what makes numbers that overflow is refused.
#[test]
fn numbers_that_cannot_be_computed_with_are_refused() {
    let with = |mean: f32, std: f32| Preprocess {
        mean: vec![0.0, mean],
        std: vec![1.0, std],
        ..Preprocess::usual((32, 32))
    };
    for (mean, std) in [
        (0.5, 0.2),
        (2e-6, 6.6e-7),
        (-300.0, 40.0),
        (1e6, 1e-3),
        (0.0, 1e9),
    ] {
        with(mean, std).check().unwrap();
    }
    for (mean, std) in [
        (0.0, 1e-30),
        (0.0, 1e-45),
        (0.0, 0.0),
        (0.0, -1.0),
        (1e30, 1.0),
        (f32::INFINITY, 1.0),
        (0.0, f32::INFINITY),
        (f32::NAN, 1.0),
        (0.0, f32::NAN),
    ] {
        let error = with(mean, std).check().unwrap_err().to_string();
        assert!(error.contains("expected those of the images"), "{error}");
        assert!(!error.contains('\n'));
    }
}

/// What our own files of RGB models say does not change, and what they do not say is RGB.
#[test]
fn models_of_rgb_say_nothing_of_it() {
    let cfg = VitConfig::default();
    let json = serde_json::to_value(cfg).unwrap();
    assert!(json.get("in_chans").is_none());
    assert_eq!(serde_json::from_value::<VitConfig>(json).unwrap(), cfg);
    let five = VitConfig { in_chans: 5, ..cfg };
    let json = serde_json::to_value(five).unwrap();
    assert_eq!(json["in_chans"], 5);
    for in_chans in [0, 100_000] {
        let error = VitConfig { in_chans, ..cfg }.validate().unwrap_err();
        assert!(error.to_string().contains("in_chans"), "{error}");
    }
    let one = Preprocess::usual((32, 32)).in_channels(1);
    assert_eq!((one.mean.len(), one.std.len()), (1, 1));
    // Every channel is drawn for a new model.
    let vars = candle_nn::VarMap::new();
    let small = VitConfig {
        image_size: 16,
        patch_size: 8,
        embed_dim: 24,
        num_heads: 3,
        depth: 1,
        in_chans: 5,
        ..cfg
    };
    let model = Vit::new(&small, vit::seeded(&vars, 1, DType::F32, &CPU)).unwrap();
    let images = Tensor::randn(0f32, 1.0, (2, 5, 16, 16), &CPU).unwrap();
    assert_eq!(model.forward_features(&images).unwrap().dims(), [2, 5, 24]);
}
