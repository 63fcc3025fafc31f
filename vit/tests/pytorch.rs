//! What torch.save writes for tensors that are more than numbers (made by make_pth_fixtures.py).
use std::path::{Path, PathBuf};

use vit::{Checkpoint, Hints, LoadOptions};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn open(name: &str) -> Result<Checkpoint, String> {
    let hints = Hints {
        num_heads: Some(3),
        ..Hints::default()
    };
    let path = fixture(name);
    Checkpoint::open_with(path.to_str().unwrap(), &hints).map_err(|e| e.to_string())
}

#[test]
fn attributes_hooks_and_classes_do_not_hide_a_tensor() {
    let plain = open("checkpoints/module_f16.pth").unwrap();
    let other = open("pth/attributes.pth").unwrap();
    assert!(plain.tensors().keys().eq(other.tensors().keys()));
    for name in plain.tensors().keys() {
        assert_eq!(
            plain.values(name).unwrap(),
            other.values(name).unwrap(),
            "{name}"
        );
    }
    other.load(&LoadOptions::default()).unwrap();
}

#[test]
fn types_that_are_no_weights_are_named() {
    let checkpoint = open("pth/types.pth").unwrap();
    for (name, dtype) in [
        ("module.norm.bias", "F8_E4M3"),
        ("module.extra.complex", "C64"),
        ("module.extra.uint16", "U16"),
    ] {
        assert_eq!(checkpoint.tensors()[name].dtype.name(), dtype);
        let error = checkpoint.values(name).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(dtype), "{error}");
    }
}

#[test]
fn tensors_that_cannot_be_read_say_what_they_are() {
    for (file, what) in [
        ("sparse_coo", "is sparse; save it dense"),
        ("sparse_csr", "is sparse; save it dense"),
        ("quantized", "is quantized; save it as floats"),
        ("quantized_channels", "is quantized; save it as floats"),
        ("meta", "has no numbers"),
        ("nested", "nested_tensor"),
    ] {
        let error = open(&format!("pth/{file}.pth")).unwrap_err();
        assert!(
            error.contains("'model.blocks.0.w'") && error.contains(what) && !error.contains('\n'),
            "{file}: {error}"
        );
    }
}
