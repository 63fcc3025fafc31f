//! Repositories whose weights have other names than usual.
#![cfg(feature = "hub")]
mod common;

use std::path::Path;
use std::sync::Arc;

use common::server::{Server, COMMIT};
use vit::{Activation, Checkpoint, Family, Hints, Hub};

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints");
    std::fs::read(path.join(name)).unwrap()
}

/// A repository with these files, a config.json and what a Trainer leaves.
fn repository(files: &[&str]) -> Server {
    let server = Server::new("hf_deit");
    let mut site = server.edit();
    site.files.clear();
    let config = br#"{"num_attention_heads": 3, "hidden_act": "gelu_new"}"#;
    site.files.insert("config.json".into(), config.to_vec());
    for name in [
        "README.md",
        "training_args.bin",
        "optimizer.pt",
        "rng_state.pth",
    ] {
        site.files.insert(name.into(), b"nothing".to_vec());
    }
    for name in files {
        site.files.insert((*name).into(), fixture("mae.pth"));
    }
    drop(site);
    server
}

fn heads() -> Hints {
    Hints {
        num_heads: Some(3),
        ..Hints::default()
    }
}

fn fetch(hub: &Hub, origin: &str) -> Result<std::path::PathBuf, String> {
    let fetched = hub.fetch(origin, Arc::new(|_, _, _| {}));
    fetched.map_err(|e| e.to_string())
}

#[test]
fn the_only_file_of_weights_is_taken() {
    for name in [
        "mae_pretrain.pth",
        "model_best.pth.tar",
        "last.ckpt",
        "weights/epoch-9/vit.pt",
    ] {
        let server = repository(&[name]);
        let cache = tempfile::tempdir().unwrap();
        let folder = fetch(&server.hub(cache.path(), None), "hf://org/name").unwrap();
        assert!(folder.join(name.rsplit('/').next().unwrap()).is_file());
        let checkpoint = Checkpoint::open_path("hf://org/name", &folder, &heads()).unwrap();
        assert_eq!(checkpoint.family(), Family::Mae, "{name}");
        // What stands beside it is heeded.
        let tanh = checkpoint.config().activation == Activation::GeluTanh;
        assert_eq!(tanh, !name.contains('/'), "{name}");
        let at_root = |n: &String| n.contains("config.json at the repository's root is not used");
        let told = checkpoint.notes().iter().any(at_root);
        assert_eq!(told, name.contains('/'), "{:?}", checkpoint.notes());
        // Without a server, from the cache.
        let nobody = Hub::new("http://127.0.0.1:1", cache.path(), None, false).unwrap();
        assert_eq!(fetch(&nobody, "hf://org/name").unwrap(), folder);
        let offline = Hub::new(&server.endpoint, cache.path(), None, true).unwrap();
        assert_eq!(fetch(&offline, "hf://org/name").unwrap(), folder);
        assert!(server.gets("optimizer.pt").is_empty());
    }
}

#[test]
fn of_several_one_must_be_named() {
    let server = repository(&["a.pth", "b.ckpt", "old/c.pth"]);
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path(), None);
    let error = fetch(&hub, "hf://org/name").unwrap_err();
    assert!(
        error.contains("2 files of weights in it: a.pth, b.ckpt; name one, as hf://org/name/a.pth"),
        "{error}"
    );
    for (origin, name) in [
        ("hf://org/name/b.ckpt", "b.ckpt"),
        ("hf://org/name/a.pth@v1", "a.pth"),
        ("hf://org/name/old/c.pth@main", "old/c.pth"),
    ] {
        let path = fetch(&hub, origin).unwrap();
        assert!(path.ends_with(Path::new(COMMIT).join(name)), "{path:?}");
        let checkpoint = Checkpoint::open_path(origin, &path, &heads()).unwrap();
        assert_eq!(checkpoint.family(), Family::Mae);
        // It may be about another one: so it is not heeded, and that is told.
        let told = checkpoint
            .notes()
            .iter()
            .any(|n| n.contains("config.json beside"));
        assert_eq!(told, !name.contains('/'), "{:?}", checkpoint.notes());
        let at_root = |n: &String| n.contains("root is not used: the weights lie in 'old'");
        let told = checkpoint.notes().iter().any(at_root);
        assert_eq!(told, name.contains('/'), "{:?}", checkpoint.notes());
        let offline = Hub::new(&server.endpoint, cache.path(), None, true).unwrap();
        assert_eq!(fetch(&offline, origin).unwrap(), path);
    }
    let error = fetch(&hub, "hf://org/name/d.pth").unwrap_err();
    assert!(
        error.contains("no file 'd.pth' in it, but a.pth, b.ckpt"),
        "{error}"
    );
}

#[test]
fn a_folder_with_its_own_config_needs_none_of_the_root() {
    let server = repository(&["a/b/vit.pth"]);
    let mut site = server.edit();
    let own = br#"{"num_attention_heads": 3, "hidden_act": "gelu"}"#;
    site.files.insert("a/b/config.json".into(), own.to_vec());
    drop(site);
    for (more, notes) in [(false, 0), (true, 1)] {
        if more {
            let mut site = server.edit();
            let images = b"{}".to_vec();
            site.files.insert("preprocessor_config.json".into(), images);
        }
        let cache = tempfile::tempdir().unwrap();
        let origin = "hf://org/name";
        let folder = fetch(&server.hub(cache.path(), None), origin).unwrap();
        let checkpoint = Checkpoint::open_path(origin, &folder, &Hints::default()).unwrap();
        let told = checkpoint.notes().iter().filter(|n| n.contains("'a/b'"));
        let told: Vec<_> = told.collect();
        assert_eq!(told.len(), notes, "{told:?}");
        assert!(told
            .iter()
            .all(|n| n.starts_with("preprocessor_config.json at")));
    }
}

#[test]
fn none_and_illegal_ones() {
    let server = repository(&[]);
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path(), None);
    let error = fetch(&hub, "hf://org/name").unwrap_err();
    assert!(
        error.contains("no weights") && error.contains("model.safetensors"),
        "{error}"
    );
    server.edit().requests.clear();
    for file in ["../x.pth", "/etc/passwd", "a/../../x.pth", "a\\b.pth", ""] {
        let error = fetch(&hub, &format!("hf://org/name/{file}")).unwrap_err();
        assert!(error.contains("no path of a file"), "{error}");
    }
    let error = fetch(&hub, "hf://datasets/org/name").unwrap_err();
    assert!(error.contains("dataset"), "{error}");
    assert!(server.edit().requests.is_empty());
}

#[test]
fn shards_in_a_folder() {
    let server = Server::new("hf_dinov2_registers");
    let mut site = server.edit();
    let files = std::mem::take(&mut site.files);
    let moved = files.into_iter().map(|(n, b)| (format!("ema/{n}"), b));
    site.files = moved.collect();
    drop(site);
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path(), None);
    let path = fetch(&hub, "hf://org/name/ema/model.safetensors.index.json").unwrap();
    let checkpoint = Checkpoint::open_path("x", &path, &Hints::default()).unwrap();
    assert_eq!(checkpoint.config().reg_tokens, 3);
    assert_eq!(checkpoint.name(), Some("dinov2_with_registers"));
    let error = fetch(&hub, "hf://org/name").unwrap_err();
    assert!(error.contains("name one"), "{error}");
}
