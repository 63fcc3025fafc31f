//! Files that are no weights: one line that says what it is and what to do. And weights under other names than usual.
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use vit::{Checkpoint, Family, Hints, LoadOptions, Pool};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/checkpoints")
        .join(name)
}

fn open(path: &Path) -> Result<Checkpoint, vit::Error> {
    let hints = Hints {
        num_heads: Some(3),
        ..Hints::default()
    };
    Checkpoint::open_with(path.to_str().unwrap(), &hints)
}

/// A zip archive of empty files.
fn archive(names: &[&str]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for name in names {
        zip.start_file(*name, options).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn well_known_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = vec![b'a'; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let mut table = vec![0u8; 40];
    table[0] = 9;
    table.extend(0xdb47_7524_8b80_fb57_u64.to_le_bytes());
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "a.pth",
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
            "Git LFS",
        ),
        (
            "b.safetensors",
            b"\n<!DOCTYPE HTML><title>Sign in".to_vec(),
            "HTML page",
        ),
        ("c.bin", b"<html lang=en>".to_vec(), "HTML page"),
        ("d.pth", b"\x1f\x8b\x08\0".to_vec(), "gzip"),
        ("e.pth.tar", tar, "tar archive"),
        ("f.gguf", b"GGUF\x03\0\0\0".to_vec(), "GGUF"),
        ("g.h5", b"\x89HDF\r\n\x1a\n".to_vec(), "HDF5"),
        ("h.onnx", b"\x08\x07\x12\x07pytorch".to_vec(), "ONNX"),
        ("model.ckpt-1.index", table, "TensorFlow"),
        ("flax_model.msgpack", b"\x82\xa3cls".to_vec(), "msgpack"),
        ("i.pth", b"PK\x05\x06".to_vec(), "no PyTorch file"),
        ("j.npz", archive(&["cls.npy"]), ".npz"),
        (
            "k.pt",
            archive(&["m/data.pkl", "m/constants.pkl", "m/code/a.py"]),
            "TorchScript",
        ),
        ("l.zip", archive(&["vit/model.safetensors"]), "unpack it"),
        ("data.pkl", b"\x80\x02}q\0.".to_vec(), "plain pickle"),
        ("m.bin", vec![0; 64], "zeros"),
        (
            "n.pth",
            b"{\"error\": \"Repository not found\"}".to_vec(),
            "JSON",
        ),
        ("o.safetensors", b"Entry not found".to_vec(), "a text"),
        ("p.pth", b"<?xml version='1.0'?><Error>".to_vec(), "a text"),
        ("q.bin", "caf\u{e9}".repeat(200).into_bytes(), "a text"),
    ];
    for (name, bytes, what) in cases {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = open(&path).unwrap_err().to_string();
        assert!(
            error.contains(what) && error.contains(name),
            "{name}: {error}"
        );
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn an_unpacked_file_here_or_one_level_down() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("vit_base");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("data.pkl"), "").unwrap();
    for folder in [dir.path(), &inner] {
        let error = open(folder).unwrap_err().to_string();
        assert!(
            error.contains("'vit_base' is a .pth file that was unpacked"),
            "{error}"
        );
    }
}

#[test]
fn the_names_that_others_give_files() {
    for name in ["model_best.pth.tar", "epoch-9.ckpt", "weights.pkl", "x.pt"] {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(fixture("mae.pth"), dir.path().join(name)).unwrap();
        // What a Trainer leaves beside it.
        for other in [
            "notes.txt",
            "training_args.bin",
            "optimizer.pt",
            "rng_state_0.pth",
        ] {
            fs::write(dir.path().join(other), "").unwrap();
        }
        let checkpoint = open(dir.path()).unwrap();
        assert_eq!(checkpoint.family(), Family::Mae, "{name}");
        fs::copy(fixture("mae.pth"), dir.path().join("z.pth")).unwrap();
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("name one of the files: {name}, z.pth")),
            "{error}"
        );
    }
}

/// The tensors of a fixture, each renamed.
fn renamed(from: &str, rename: impl Fn(&str) -> String) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tensors = candle_core::safetensors::load(fixture(from), &Device::Cpu).unwrap();
    let tensors: HashMap<String, Tensor> =
        tensors.into_iter().map(|(n, t)| (rename(&n), t)).collect();
    candle_core::safetensors::save(&tensors, dir.path().join("m.safetensors")).unwrap();
    dir
}

#[test]
fn wrappers_and_chunks_in_names() {
    let whole = "timm_deit3/model.safetensors";
    let chunked = |name: &str| {
        let name = name.replace("blocks.0.", "blocks.0.0.");
        name.replace("blocks.1.", "blocks.1.1.")
    };
    let one_chunk = |name: &str| name.replace("blocks.", "blocks.0.");
    let fsdp = |name: &str| {
        let inner = one_chunk(name).replace("attn.", "_fsdp_wrapped_module.attn.");
        format!("_fsdp_wrapped_module.{inner}")
    };
    let compiled = |name: &str| {
        format!(
            "_orig_mod.{}",
            name.replace("mlp.", "_checkpoint_wrapped_module.mlp.")
        )
    };
    let want = open(renamed(whole, str::to_owned).path()).unwrap();
    let want = want.load(&LoadOptions::default()).unwrap().tensors;
    for (what, rename) in [
        ("chunks", &chunked as &dyn Fn(&str) -> String),
        ("one chunk", &one_chunk),
        ("FSDP", &fsdp),
        ("compile", &compiled),
    ] {
        let got = open(renamed(whole, rename).path()).unwrap();
        let got = got.load(&LoadOptions::default());
        let got = got.unwrap_or_else(|e| panic!("{what}: {e}")).tensors;
        assert!(got.keys().eq(want.keys()), "{what}");
        for (name, tensor) in &got {
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(flat(tensor), flat(&want[name]), "{what}: {name}");
        }
    }
}

#[test]
fn pooling_that_no_file_tells() {
    // A table that was learnt: the class token; the fixed one: the mean. Both are told.
    let bare = |table: bool| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let from = fixture("timm_registers/model.safetensors");
        let mut tensors = candle_core::safetensors::load(from, &Device::Cpu).unwrap();
        let grid = tensors["pos_embed"].dim(1).unwrap().isqrt();
        if table {
            let fixed = vit::sincos_2d(24, (grid, grid), &Device::Cpu).unwrap();
            let fixed = fixed
                .narrow(1, 1, grid * grid)
                .unwrap()
                .contiguous()
                .unwrap();
            tensors.insert("pos_embed".into(), fixed);
        }
        candle_core::safetensors::save(&tensors, &path).unwrap();
        open(&path).unwrap()
    };
    for (fixed, pool, word) in [
        (false, Pool::Token, "class token"),
        (true, Pool::Avg, "mean"),
    ] {
        let checkpoint = bare(fixed);
        assert_eq!(checkpoint.config().pool, pool);
        assert!(checkpoint.pool_note().unwrap().contains(word));
    }
    // Told by the family, by config.json, or by a head.
    for (name, pool) in [
        ("dino.pth", Pool::Token),
        ("mae.pth", Pool::Avg),
        ("timm_registers", Pool::Token),
        ("timm_nonsquare", Pool::Avg),
        ("hf_deit_teacher", Pool::Token),
    ] {
        let checkpoint = open(&fixture(name)).unwrap();
        assert_eq!(checkpoint.config().pool, pool, "{name}");
        assert_eq!(checkpoint.pool_note(), None, "{name}");
    }
}

#[test]
fn a_long_name_is_cut_where_it_is_shown() {
    let long = "n".repeat(70_000);
    assert_eq!(vit::shown("blocks.0"), "blocks.0");
    assert!(vit::shown(&long).ends_with("(70000 characters)"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    for tensors in [
        HashMap::from([(
            long.clone(),
            Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap(),
        )]),
        HashMap::from([(long.clone(), Tensor::new(1u32, &Device::Cpu).unwrap())]),
    ] {
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let error = open(&path).unwrap_err().to_string();
        assert!(
            error.len() < 1000 && error.contains("70000"),
            "{}",
            error.len()
        );
    }
}
