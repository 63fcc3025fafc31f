//! Files that are damaged or made to harm: an error that names the file and, where there is one, the tensor; no panic, no
//! large allocation.
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use vit::{Checkpoint, Hints, LoadOptions};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/checkpoints")
        .join(name)
}

/// Opens and loads; the error's text, or nothing.
fn error(path: &Path) -> Option<String> {
    let hints = Hints {
        num_heads: Some(3),
        ..Hints::default()
    };
    let text = path.to_str().unwrap();
    Checkpoint::open_with(text, &hints)
        .and_then(|c| c.load(&LoadOptions::default()))
        .err()
        .map(|e| e.to_string())
}

/// Writes `bytes` and expects an error on one line that names the file and says each of `parts`.
fn refused(folder: &Path, name: &str, bytes: &[u8], parts: &[&str]) {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    let error = error(&path).unwrap_or_else(|| panic!("{parts:?}: no error"));
    for part in parts.iter().chain([&name]) {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
    assert!(!error.contains('\n'), "{error}");
}

fn with_header(length: u64, header: &str, data: usize) -> Vec<u8> {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    with_header(header.len() as u64, header, data)
}

#[test]
fn safetensors_headers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let bad = |bytes: &[u8], parts: &[&str]| refused(dir, "x.safetensors", bytes, parts);
    bad(b"", &["is empty"]);
    bad(b"abc", &["a text"]);
    bad(b"\x01\x02\x03", &["too short"]);
    bad(
        &with_header(u64::MAX, "{}", 0),
        &["header of 18446744073709551615"],
    );
    bad(&with_header(1 << 26, "{}", 0), &["header of 67108864"]);
    bad(&safetensors("{", 0), &["header is not"]);
    bad(&safetensors(&"[".repeat(5000), 0), &["header is not"]);
    let one = |dtype: &str, shape: &str, begin: u64, end: u64| {
        format!(r#"{{"a.b":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#)
    };
    bad(&safetensors(&one("F99", "[1]", 0, 4), 4), &["'a.b'", "F99"]);
    bad(
        &safetensors(&one("F32", "[2]", 0, 4), 4),
        &["'a.b'", "needs 8 bytes"],
    );
    bad(
        &safetensors(&one("F32", "[1]", 4, 0), 4),
        &["'a.b'", "bytes 4 to 0"],
    );
    bad(
        &safetensors(&one("F32", "[100]", 0, 400), 4),
        &["'a.b'", "cut off"],
    );
    let huge = "[4294967296,4294967296]";
    bad(
        &safetensors(&one("F32", huge, 0, 4), 4),
        &["'a.b'", "overflows"],
    );
    let zero = "[0,4294967296,4294967296]";
    bad(
        &safetensors(&one("F32", zero, 0, 0), 0),
        &["'a.b'", "overflows"],
    );
    bad(&safetensors(&one("F32", "[1]", 4, 8), 8), &["'a.b'", "gap"]);
    bad(
        &safetensors(&one("F32", "[1]", 0, 4), 8),
        &["follow the last"],
    );
    // Shapes and offsets that are no counts: the tensor is named.
    for shape in [
        "[1e400]",
        "[-1]",
        "[1.5]",
        "[18446744073709551616]",
        "\"x\"",
        "null",
    ] {
        let whole = safetensors(&one("F32", shape, 0, 4), 4);
        bad(&whole, &["header is not", "tensor 'a.b'"]);
    }
    let dimensions = |n: usize| format!("[{}]", vec!["1"; n].join(","));
    for n in [17, 1000, 100_000] {
        let whole = safetensors(&one("F32", &dimensions(n), 0, 4), 4);
        bad(&whole, &["'a.b'", &format!("{n} dimensions, at most 16")]);
    }
    let most = safetensors(&one("F32", &dimensions(16), 0, 4), 4);
    bad(&most, &["no Vision Transformer"]);
    let entry =
        |begin, end| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":[{begin},{end}]}}"#);
    let overlap = format!(r#"{{"a":{},"b":{}}}"#, entry(0, 4), entry(0, 4));
    bad(&safetensors(&overlap, 4), &["'b'", "overlaps tensor 'a'"]);
    let twice = format!(r#"{{"a":{},"a":{}}}"#, entry(0, 4), entry(4, 8));
    bad(&safetensors(&twice, 8), &["named twice: a"]);
    let whole = safetensors(&one("F32", "[1]", 0, 4), 4);
    bad(&whole, &["no Vision Transformer", "a.b"]);
}

#[test]
fn truncated_downloads() {
    let dir = tempfile::tempdir().unwrap();
    for (from, name) in [
        ("timm_clip/model.safetensors", "cut.safetensors"),
        ("mae.pth", "cut.pth"),
        ("dino.pth", "old.pth"),
    ] {
        let bytes = fs::read(fixture(from)).unwrap();
        for part in [0, 1, 7, 9, 100, bytes.len() / 2, bytes.len() - 1] {
            refused(dir.path(), name, &bytes[..part], &[]);
        }
    }
}

#[test]
fn shards() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture("hf_dinov2_registers")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    assert_eq!(error(dir.path()), None);
    let shard = "model-00002-of-00004.safetensors";
    fs::remove_file(dir.path().join(shard)).unwrap();
    let text = error(dir.path()).unwrap();
    assert!(
        text.contains(shard) && text.contains("a shard that"),
        "{text}"
    );
    let index = dir.path().join("model.safetensors.index.json");
    for name in ["../secret.safetensors", "/etc/passwd", "", "a/b", ".."] {
        fs::write(&index, format!(r#"{{"weight_map":{{"w":"{name}"}}}}"#)).unwrap();
        let text = error(dir.path()).unwrap();
        assert!(text.contains("no plain file name"), "{text}");
    }
    fs::create_dir(dir.path().join("folder.safetensors")).unwrap();
    let itself = "model.safetensors.index.json";
    let long = "n".repeat(5000);
    for (map, want) in [
        (r#"{"w": "folder.safetensors"}"#.to_owned(), "not a file"),
        (r#"{"w": "nowhere.safetensors"}"#.into(), "a shard that"),
        (format!(r#"{{"w": "{itself}"}}"#), "JSON"),
        (r#"{"w": ["a", "b"]}"#.into(), "no plain file name"),
        (r#"{"w": 1e400}"#.into(), "'w' has 1e400"),
        (format!(r#"{{"{long}": ".."}}"#), "(5000 characters)"),
        ("{}".into(), "is empty"),
        ("[]".into(), "no 'weight_map'"),
    ] {
        fs::write(&index, format!(r#"{{"weight_map": {map}}}"#)).unwrap();
        let text = error(dir.path()).unwrap();
        assert!(text.contains(want), "{text}");
        assert!(!text.contains('\n') && text.len() < 700, "{text}");
    }
}

/// Names that a reader takes for others.
#[test]
fn names_that_look_like_others() {
    use candle_core::{safetensors, Device};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let tensors = safetensors::load(fixture("timm_deit3/model.safetensors"), &Device::Cpu).unwrap();
    for (name, other, code) in [
        ("norm.bias", "norm.bias\u{200b}", "U+200B"),
        ("cls_token", "\u{feff}cls_token", "U+FEFF"),
        ("blocks.0.norm1.bias", "bl\u{43e}cks.0.norm1.bias", "U+043E"), // Cyrillic
        ("norm.weight", "norm.weight ", "U+0020"),
        ("head.bias", "he\u{301}ad.bias", "U+0301"), // e and an accent
        (
            "patch_embed.proj.weight",
            "patch_embed.proj.weight\u{a0}",
            "U+00A0",
        ),
    ] {
        let mut renamed = tensors.clone();
        let tensor = renamed.remove(name).unwrap();
        renamed.insert(other.to_owned(), tensor);
        safetensors::save(&renamed, &path).unwrap();
        let text = error(&path).unwrap();
        assert!(text.contains(code) && text.contains("rename it"), "{text}");
    }
}

/// A zip archive as torch.save writes it.
fn archive(pickle: &[u8], storage: &[u8], compressed: bool) -> Vec<u8> {
    use zip::write::SimpleFileOptions;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("m/data.pkl", pickle), ("m/data/0", storage)] {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    let mut bytes = zip.finish().unwrap().into_inner();
    if compressed {
        // Says in both headers of both files that they are deflated (method 8).
        for i in 0..bytes.len() - 4 {
            match &bytes[i..i + 4] {
                b"PK\x03\x04" => bytes[i + 8] = 8,
                b"PK\x01\x02" => bytes[i + 10] = 8,
                _ => {}
            }
        }
    }
    bytes
}

/// The pickle of `{"w": tensor}` with this offset, shape and stride on a storage of `elements` floats.
fn pickle(elements: u8, offset: u8, shape: u32, stride: u32) -> Vec<u8> {
    let mut p = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    p.extend(
        b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK",
    );
    p.extend([elements, b't', b'Q', b'K', offset]);
    for n in [shape, stride] {
        p.push(b'J');
        p.extend(n.to_le_bytes());
        p.push(0x85);
    }
    p.extend(b"\x89}tRs.");
    p
}

#[test]
fn pytorch_archives() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let bad = |bytes: &[u8], parts: &[&str]| refused(dir, "x.pth", bytes, parts);
    let with = |p: &[u8]| archive(p, &[0; 16], false);
    // The frame of these tests holds: a good one is read, and has no Vision Transformer in it.
    bad(
        &with(&pickle(4, 0, 4, 1)),
        &["no Vision Transformer", "(w)"],
    );
    bad(
        &archive(&pickle(4, 0, 4, 1), &[0; 16], true),
        &["compressed"],
    );
    bad(&with(&pickle(4, 1, 4, 1)), &["'w'", "does not fit"]);
    bad(&with(&pickle(4, 0, 3, 2)), &["'w'", "does not fit"]);
    bad(&with(&pickle(8, 0, 4, 1)), &["'w'", "16 bytes"]);
    bad(&with(&pickle(4, 0, 1 << 30, 0)), &["'w'", "does not fit"]);
    bad(&with(&pickle(4, 0, u32::MAX, 1)), &["a size of -1"]);
    bad(
        &with(b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lsios.path\n."),
        &["opcode 0x69"],
    );
    // Never run: an unknown call is a value like any other.
    bad(
        &with(b"\x80\x02cos\nsystem\nX\x05\x00\x00\x00false\x85R."),
        &["no tensors"],
    );
    bad(&with(b"\x80\x02}"), &["ends early"]);
    bad(&with(b"\x80\x02h\x07."), &["never stored"]);
    bad(&with(b"\x80\x02t."), &["no mark"]);
    bad(&with(b"\x80\x02X\xff\xff\xff\xffa."), &["ends early"]);
    // A million nested tuples, and dictionaries that refer to themselves and to each other again and again.
    let mut deep = b"\x80\x02)".to_vec();
    deep.extend(vec![0x85; 1_000_000]);
    deep.push(b'.');
    bad(&with(&deep), &["no tensors"]);
    bad(
        &with(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."),
        &["no tensors"],
    );
    let mut laughs = b"\x80\x02)q\x00".to_vec();
    for _ in 0..7 {
        laughs.push(b'(');
        laughs.extend(b"h\x00".repeat(50));
        laughs.extend(b"tq\x00");
    }
    laughs.push(b'.');
    bad(&with(&laughs), &["too often"]);
    // Eight million values of one byte each: empty tuples, remembered ones, dictionaries, names.
    let many = |start: &[u8], repeat: &[u8]| {
        let mut program = start.to_vec();
        program.extend(repeat.repeat(((8 << 20) - 1000) / repeat.len()));
        program.push(b'.');
        with(&program)
    };
    bad(&many(b"\x80\x02", b")"), &["more than 64 MB"]);
    bad(&many(b"\x80\x02)", b"\x94"), &["more than 64 MB"]);
    bad(&many(b"\x80\x02", b"}"), &["more than 64 MB"]);
    let name = [&b"X\xff\x00\x00\x00"[..], &[b'x'; 255], b"q\x01"].concat();
    let class = [b"\x80\x02", &name[..], b"X\x00\x00\x00\x00q\x02"].concat();
    bad(&many(&class, b"h\x01h\x02\x93"), &["more than 64 MB"]);
    // One tensor at a hundred thousand places.
    let mut places = [b"\x80\x02", &b")0".repeat(300_000)[..], b"("].concat();
    places.extend(&pickle(4, 0, 4, 1)[2..]);
    places.truncate(places.len() - 2);
    places.extend(b"q\x05");
    places.extend(b"h\x05".repeat(100_000));
    places.extend(b"t.");
    bad(&with(&places), &["more than 65536 tensors"]);
    let two = archive(b"\x80\x02}.", &[], false);
    bad(&[&two[..2], &two[..]].concat(), &["neither a zip"]);
}

/// Any byte of a good file may be wrong: an error or not, but never a panic. Each reader sees 3000 files; more with
/// VITFREEZE_MUTATIONS.
#[test]
fn mutations_never_panic() {
    let count = std::env::var("VITFREEZE_MUTATIONS").map_or(3000, |n| n.parse::<u64>().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    };
    for (from, name) in [
        ("timm_clip/model.safetensors", "m.safetensors"),
        ("dinov2_registers.pth", "m.pth"),
        ("dino.pth", "old.pth"),
    ] {
        let good = fs::read(fixture(from)).unwrap();
        let path = dir.path().join(name);
        let mut errors = 0;
        for _ in 0..count {
            let mut bytes = good.clone();
            // Headers and pickles, which are at either end, more often than numbers.
            for _ in 0..1 + random(6) {
                let at = match random(3) {
                    0 => random(bytes.len()),
                    1 => random(bytes.len().min(8000)),
                    _ => bytes.len() - 1 - random(bytes.len().min(6000)),
                };
                bytes[at] = match random(3) {
                    0 => 0xff,
                    1 => bytes[at] ^ (1 << random(8)),
                    _ => random(256) as u8,
                };
            }
            fs::write(&path, &bytes).unwrap();
            errors += u64::from(error(&path).is_some());
        }
        assert!(errors > count / 20, "{from}: {errors} errors of {count}");
    }
}
