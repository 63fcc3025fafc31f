//! The architecture of a fine-tuning's state: what every command sees of it is what was trained, not what tensors suggest.
mod common;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use common::*;
use serde_json::Value;
use vit::{
    Backbone, Checkpoint, Hints, LoadOptions, Preprocess, Pretrained, SwinConfig, VitConfig,
};

/// No number of it is usual, nor told by a tensor: eps, windows of 5, and 36 px, where
/// stages of 9, 5, 3 and 2 tokens a side suggest 48.
fn swin() -> VitConfig {
    let swin = SwinConfig {
        depths: [1, 2, 1, 1],
        num_heads: [1, 2, 2, 4],
        window_size: 5,
    };
    VitConfig {
        image_size: 36,
        norm_eps: 3e-6,
        ..swin.model(8)
    }
}

/// Two heads at a width of 24.
fn vit_of_two_heads() -> VitConfig {
    VitConfig {
        image_size: 40,
        patch_size: 8,
        embed_dim: 24,
        depth: 2,
        num_heads: 2,
        norm_eps: 3e-6,
        ..VitConfig::default()
    }
}

fn encoder(cfg: VitConfig, path: &Path) {
    let vars = candle_nn::VarMap::new();
    let vb = vit::seeded(&vars, 5, DType::F32, &Device::Cpu);
    Backbone::new(&cfg, vb).unwrap();
    let vars = vars.data().lock().unwrap();
    let tensors = vars.iter();
    let encoder = Pretrained {
        cfg,
        tensors: tensors
            .map(|(name, var)| (name.clone(), var.as_detached_tensor()))
            .collect(),
        labels: BTreeMap::new(),
        preprocess: Preprocess {
            mean: vec![0.5; 3],
            ..Preprocess::usual(cfg.image())
        },
    };
    encoder.save_file(path).unwrap();
}

fn finetune(encoder: &Path, out: &Path, steps: &str) -> Command {
    let mut command = vitfreeze([
        "finetune",
        "--data=shapes",
        "--samples=40",
        "--batch-size=8",
        "--accum=1",
        "--epochs=1",
        "--warmup-epochs=0",
        "--seed=3",
    ]);
    command.args(["--lr=1e-3", "--max-steps", steps, "--checkpoint"]);
    command.arg(encoder).arg("--out").arg(out);
    command
}

/// The same tensors under other metadata.
fn retold(path: &Path, change: impl Fn(&mut Value)) {
    let bytes = std::fs::read(path).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let text = &metadata.metadata().as_ref().unwrap()["vitfreeze"];
    let mut json: Value = serde_json::from_str(text).unwrap();
    change(&mut json);
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let metadata = HashMap::from([("vitfreeze".to_owned(), json.to_string())]);
    safetensors::serialize_to_file(&tensors, Some(metadata), path).unwrap();
}

/// The logits of an image.
fn logits(path: &Path, hints: &Hints) -> Vec<f32> {
    let checkpoint = Checkpoint::open_with(path.to_str().unwrap(), hints).unwrap();
    let model = checkpoint.load(&LoadOptions::default()).unwrap();
    let (height, width) = model.cfg.image();
    let count = 3 * height * width;
    let image: Vec<f32> = (0..count).map(|i| (i as f32 * 0.37).sin()).collect();
    let image = Tensor::from_vec(image, (1, 3, height, width), &Device::Cpu).unwrap();
    let logits = model.backbone().unwrap().forward(&image).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

fn of(command: &str, checkpoint: &Path, more: &[&str]) -> Command {
    let mut command = vitfreeze([command, "--data=shapes", "--samples=40", "--checkpoint"]);
    command.arg(checkpoint).args(more);
    command
}

fn inspect(path: &Path, more: &[&str]) -> Command {
    let mut command = vitfreeze(["inspect"]);
    command.arg(path).args(more);
    command
}

/// After `Files`: without what differs between the state and the classifier.
fn result(dir: &Path) -> Value {
    let text = std::fs::read_to_string(dir.join("result.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    serde_json::json!([json["top1"], json["top5"], json["loss"], json["images"]])
}

/// The run's state and its exported classifier, which every command takes for the same model.
fn check(cfg: VitConfig, dir: &Path, words: &[&str]) -> (PathBuf, PathBuf) {
    let (origin, run) = (dir.join("encoder.safetensors"), dir.join("run"));
    encoder(cfg, &origin);
    ok(finetune(&origin, &run, "1"));
    let files = ["checkpoint.safetensors", "last.safetensors"].map(|name| run.join(name));
    let [state, last] = &files;
    let open = |path: &Path| Checkpoint::open(path.to_str().unwrap()).unwrap();
    let [a, b] = [open(state), open(last)];
    assert_eq!(a.config(), b.config());
    assert_eq!(a.notes(), b.notes());
    assert_eq!(a.labels(), b.labels());
    assert_eq!(a.preprocess(), b.preprocess());
    assert_eq!(a.labels().len(), 10);
    assert_eq!(a.preprocess().mean, [0.5; 3]);
    let seen = VitConfig {
        num_classes: 0,
        fc_norm: false,
        pool: cfg.pool,
        ..*a.config()
    };
    assert_eq!(seen, cfg);
    let own = Hints::default();
    assert_eq!(logits(state, &own), logits(last, &own));

    for path in &files {
        let said = ok(inspect(path, &[]));
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
    let both = |make: &dyn Fn(&Path, &Path) -> String| {
        let out = |name: &str| dir.join(name);
        let said = [(state, "a"), (last, "b")].map(|(path, name)| make(path, &out(name)));
        for name in ["a", "b"] {
            let _ = std::fs::remove_dir_all(out(name));
        }
        let [a, b] = said;
        assert_eq!(a, b);
    };
    for command in ["eval", "knn"] {
        both(&|path, out| {
            let out_flag = format!("--out={}", out.display());
            ok(of(command, path, &[&out_flag]));
            result(out).to_string()
        });
    }
    both(&|path, out| {
        let mut command = vitfreeze(["convert", "--to=timm"]);
        command.arg(path).arg(out);
        ok(command);
        let config = std::fs::read_to_string(out.join("config.json")).unwrap();
        format!("{config} {:?}", tensors(&out.join("model.safetensors")))
    });

    // Going on ends where a run ends that was never stopped, and leaves the same architecture.
    let straight = dir.join("straight");
    ok(finetune(&origin, &straight, "3"));
    let mut command = vitfreeze(["finetune", "--max-steps=3", "--resume"]);
    command.arg(&run);
    ok(command);
    assert!(tensors(state) == tensors(&straight.join("checkpoint.safetensors")));
    assert_eq!(open(state).config(), b.config());
    (run, origin)
}

/// Without what it has been told to hold since 2026-11-29.
fn older(state: &Path) {
    retold(state, |json| {
        assert!(json.as_object_mut().unwrap().remove("model").is_some());
    });
}

fn go_on(run: &Path, more: &[&str]) -> Command {
    let mut command = vitfreeze(["finetune", "--resume"]);
    command.arg(run).args(more);
    command
}

#[test]
fn a_swins_state_has_its_windows_size_and_epsilon() {
    let dir = tempfile::tempdir().unwrap();
    let words = ["windows of 5", "eps 3e-6", "images        36 x 36, patch 4"];
    let (run, _) = check(swin(), dir.path(), &words);
    let state = run.join("checkpoint.safetensors");
    older(&state);
    let said = ok(inspect(&state, &[]));
    for word in ["windows of 5", "eps 1e-5", "images        48 x 48"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    ok(go_on(&run, &["--max-steps=4"]));
    let said = ok(inspect(&state, &[]));
    assert!(said.contains("eps 3e-6"), "{said}");
}

#[test]
fn a_vits_state_has_its_heads_and_epsilon() {
    let dir = tempfile::tempdir().unwrap();
    let words = ["2 heads", "eps 3e-6", "images        40 x 40, patch 8"];
    let (run, origin) = check(vit_of_two_heads(), dir.path(), &words);
    let state = run.join("checkpoint.safetensors");

    // What the encoder's file says now is not what the run began with.
    let (other, good) = (
        dir.path().join("other.safetensors"),
        std::fs::read(&state).unwrap(),
    );
    encoder(
        VitConfig {
            norm_eps: 1e-6,
            ..vit_of_two_heads()
        },
        &other,
    );
    let path = format!("--checkpoint={}", other.display());
    let line = fails(go_on(&run, &["--max-steps=4", &path]), 2);
    let told = "another model (norm_eps: 3e-6 -> 1e-6): resume it with the checkpoint";
    assert!(line.contains(told), "{line}");
    std::fs::copy(&origin, &other).unwrap();
    ok(go_on(&run, &["--max-steps=4", &path]));

    std::fs::write(&state, &good).unwrap();
    for (change, code, told) in [
        (("depth", 3.into()), 2, "says 'depth' is 3, the tensors 2"),
        (
            ("image_size", 48.into()),
            2,
            "says 'image_size' is 48, the tensors [40,40]",
        ),
        (
            ("num_classes", 7.into()),
            2,
            "says 'num_classes' is 7, the tensors 10",
        ),
        (
            ("windows", 7.into()),
            1,
            "metadata 'vitfreeze': an architecture with unknown keys: windows",
        ),
        (
            ("norm_eps", (-1).into()),
            1,
            "metadata 'vitfreeze': norm_eps is -1e0, it must be above 0 and at most 1",
        ),
        (
            ("drop_rate", 5.into()),
            1,
            "metadata 'vitfreeze': drop_rate is 5, it must lie in [0, 1)",
        ),
        (
            ("activation", "swi-glu".into()),
            2,
            "its files say that its MLPs are SwiGLU",
        ),
        (
            ("depth", Value::Null),
            1,
            "metadata 'vitfreeze': no architecture: ",
        ),
        (
            ("embed_dim", "wide".into()),
            1,
            "metadata 'vitfreeze': no architecture: ",
        ),
    ] {
        retold(&state, |json| json["model"][change.0] = change.1.clone());
        let line = fails(inspect(&state, &[]), code);
        assert!(line.contains(told), "{line}");
        std::fs::write(&state, &good).unwrap();
    }

    // Who contradicts a file is told so.
    let said = ok(inspect(&state, &["--heads=3"]));
    let note = "its files say 2 attention heads; 3 are taken, as asked for";
    assert!(said.contains(note) && said.contains("3 heads"), "{said}");

    // A state of before has what its tensors and the user tell.
    let own = logits(&state, &Hints::default());
    older(&state);
    let line = fails(inspect(&state, &[]), 2);
    assert!(line.contains("of width 24; give it (--heads N)"), "{line}");
    let said = ok(inspect(&state, &["--heads=2"]));
    assert!(
        said.contains("2 heads") && said.contains("eps 1e-6"),
        "{said}"
    );
    let told = Hints {
        num_heads: Some(2),
        ..Hints::default()
    };
    let inferred = logits(&state, &told);
    assert!(own.iter().zip(&inferred).all(|(a, b)| (a - b).abs() < 1e-2));
    ok(go_on(&run, &["--max-steps=4"]));
    ok(inspect(&state, &[]));
}

/// Stages of 8, 4, 2 and 1 tokens a side are all smaller than windows of 12, which only larger images will have.
#[test]
fn windows_that_no_table_tells() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bare.safetensors");
    let mut cfg = VitConfig {
        image_size: 32,
        ..swin()
    };
    cfg.swin = cfg.swin.map(|swin| SwinConfig {
        window_size: 12,
        ..swin
    });
    encoder(cfg, &path);
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    candle_core::safetensors::save(&tensors, &path).unwrap();
    assert!(ok(inspect(&path, &[])).contains("windows of 8"));
    let said = ok(inspect(&path, &["--window-size=12"]));
    for word in ["windows of 12", "images        32 x 32"] {
        assert!(said.contains(word), "{word}: {said}");
    }
}

/// What is pretrained from a distilled DeiT keeps both tokens, whose mean is its vector.
#[test]
fn a_pretraining_of_a_distilled_one_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut command = vitfreeze(["pretrain", "--data=shapes", "--samples=8", "--epochs=1"]);
    command.args(["--warmup-epochs=0", "--batch-size=8", "--accum=1"]);
    command.args(["--stages=0:2,1:1", "--decoder-dim=16", "--decoder-heads=2"]);
    command.arg("--init").arg(checkpoint("timm_distilled"));
    command.arg("--out").arg(&run);
    ok(command);
    for name in ["checkpoint", "encoder"] {
        let said = ok(inspect(&run.join(format!("{name}.safetensors")), &[]));
        for word in [
            "class token, distillation token",
            "pooling       class token",
        ] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}
