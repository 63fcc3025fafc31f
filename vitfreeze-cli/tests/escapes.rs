//! What comes from outside: names with escape codes, pipes instead of files, images without pixels.
#![cfg(unix)]
mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::vitfreeze;

/// Colours, a window title, a deleted screen; and a name that reads backwards.
const EVIL: &str = "\u{1b}[31mred\u{1b}]0;title\u{7}\u{1b}[2J\u{202e}gnp";

/// A command's output, which must come within twenty seconds.
fn within_time(mut command: Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            panic!("hangs: {command:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn said(args: &[&str]) -> (String, Option<i32>) {
    let output = within_time(vitfreeze(args));
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8(text).unwrap(), output.status.code())
}

/// Runs a command whose output must show the name, and nothing that a terminal obeys.
fn harmless(args: &[&str]) -> String {
    let (text, code) = said(args);
    assert!(matches!(code, Some(0..=2)), "{args:?}: {code:?} {text}");
    let obeyed = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!text.contains(obeyed), "{args:?}: {text:?}");
    assert!(text.contains(r"\u{1b}"), "{args:?}: {text}");
    text
}

fn images(dir: &Path, class: &str, count: u8) {
    let folder = dir.join(class);
    std::fs::create_dir_all(&folder).unwrap();
    for i in 0..count {
        let image = image::RgbImage::from_pixel(16, 16, image::Rgb([40 * i; 3]));
        image.save(folder.join(format!("{i}.png"))).unwrap();
    }
}

/// A file of an old-style tar.
fn tar_member(name: &str, data: &[u8]) -> Vec<u8> {
    let mut block = vec![0u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    block[148..156].fill(b' ');
    block[156] = b'0';
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block.extend(data);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

#[test]
fn names_of_classes_and_images() {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set");
    images(&set, EVIL, 3);
    images(&set, "b", 3);
    std::fs::write(set.join("b").join(format!("{EVIL}.png")), "junk").unwrap();
    let (set, out) = (set.to_str().unwrap(), dir.path().join("out.png"));
    let text = harmless(&["data", "inspect", set, "--check"]);
    assert!(text.contains("bad: "), "{text}");
    harmless(&[
        "data",
        "preview",
        set,
        "--image-size",
        "16",
        "--out",
        out.to_str().unwrap(),
    ]);
    harmless(&["data", "inspect", &format!("{set}/{EVIL}"), "--split", "x"]);
    let weights = format!("{set}/{EVIL}.safetensors");
    harmless(&["classify", "--checkpoint", &weights, "x.png"]);
    harmless(&["inspect", &format!("{set}/{EVIL}")]);
}

#[test]
fn names_in_shards() {
    let dir = tempfile::tempdir().unwrap();
    images(dir.path(), "a", 1);
    let png = std::fs::read(dir.path().join("a/0.png")).unwrap();
    let mut tar = tar_member("0.png", &png);
    tar.extend(tar_member("0.cls", EVIL.as_bytes()));
    tar.extend(tar_member(&format!("{EVIL}.png"), b"junk"));
    tar.extend(tar_member(&format!("{EVIL}.cls"), b"b"));
    tar.extend([0; 1024]);
    let path = dir.path().join("w.tar");
    std::fs::write(&path, tar).unwrap();
    let text = harmless(&["data", "inspect", path.to_str().unwrap(), "--check"]);
    assert!(text.contains("bad: "), "{text}");
}

/// Class names in the metadata of a Hub's Parquet file.
#[cfg(feature = "parquet")]
#[test]
fn names_in_parquet_files() {
    let dir = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/tests/fixtures");
    let bytes = std::fs::read(fixtures.join("sources/pyarrow.parquet")).unwrap();
    // Of the same length, so that all else in the file stays where it is.
    let names = br#""ant", "bee", "cat""#;
    let write = |name: &str, new: &[u8; 19]| {
        let at = bytes.windows(19).position(|w| w == names).unwrap();
        let bytes = [&bytes[..at], new, &bytes[at + 19..]].concat();
        std::fs::write(dir.path().join(name), bytes).unwrap();
    };
    write("train.parquet", br#""\u001b[2J","b","c""#);
    write("val.parquet", br#""\u001bc","b","cat""#);
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (train, val, out) = (file("train.parquet"), file("val.parquet"), file("out"));
    let checkpoint = common::checkpoint("hf_deit");
    let checkpoint = format!("--checkpoint={}", checkpoint.display());
    harmless(&["data", "inspect", &train]);
    let size = ["--image-size=16", "--columns=1"];
    let grid = file("grid.png");
    harmless(&["data", "preview", &train, "--out", &grid, size[0], size[1]]);
    // Classes that the checkpoint does not know, those that training has not, and both alike.
    let text = harmless(&["eval", &checkpoint, "--data", &val, "--out", &out]);
    assert!(text.contains("are left out"), "{text}");
    let set = dir.path().to_str().unwrap();
    let text = harmless(&["knn", &checkpoint, "--data", set]);
    assert!(text.contains("differ"), "{text}");
    let wrong = harmless(&["eval", &checkpoint, "--data", &train, "--split=train"]);
    assert!(wrong.contains("not one of the data's 3 classes"), "{wrong}");
}

#[test]
fn names_in_results() {
    let dir = tempfile::tempdir().unwrap();
    let result = |name: &str, kind: &str, checkpoint: &str| {
        let run = dir.path().join(name);
        std::fs::create_dir(&run).unwrap();
        let json = serde_json::json!({
            "kind": kind, "top1": 50.0, "top5": null, "loss": 0.5, "best_epoch": null, "images": 10,
            "seconds": 1.0, "settings": {"checkpoint": checkpoint}, "versions": {},
        });
        std::fs::write(run.join("result.json"), json.to_string()).unwrap();
        run.to_str().unwrap().to_owned()
    };
    let name = result(EVIL, "eval", "x");
    let kind = result("b", EVIL, "x");
    let checkpoint = result("c", "finetune", EVIL);
    std::fs::create_dir(dir.path().join("d")).unwrap();
    let missing = dir.path().join(format!("d/{EVIL}"));
    harmless(&["compare", &name]);
    harmless(&["compare", &name, &kind, &checkpoint]);
    harmless(&["compare", &name, missing.to_str().unwrap()]);
    let svg = dir.path().join("out.svg");
    harmless(&["compare", &name, &kind, "--out", svg.to_str().unwrap()]);
}

#[test]
fn names_of_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let header = serde_json::json!({
        "__metadata__": {"format": EVIL},
        EVIL: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    })
    .to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend([0; 4]);
    std::fs::write(&path, file).unwrap();
    harmless(&["inspect", path.to_str().unwrap()]);
}

#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    images(dir.path(), "set/a", 2);
    images(dir.path(), "set/b", 2);
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let fifo = |name: &str| {
        let path = dir.path().join(name);
        let made = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        path.to_str().unwrap().to_owned()
    };
    let refused = |args: &[&str]| {
        let (text, code) = said(args);
        assert!(matches!(code, Some(1 | 2)), "{args:?}: {code:?} {text}");
        assert!(!text.contains("panicked"), "{args:?}: {text}");
        let told = text.contains("pipe") || text.contains("holds no run");
        assert!(told, "{args:?}: {text}");
    };
    for name in [
        "x",
        "x.tar",
        "x.parquet",
        "x.cache",
        "cifar-10-binary.tar.gz",
    ] {
        refused(&["data", "inspect", &fifo(name)]);
    }
    for name in ["x.safetensors", "x.pth", "x.bin"] {
        refused(&["inspect", &fifo(name)]);
    }
    let toml = fifo("c.toml");
    refused(&["pretrain", "--config", &toml]);
    refused(&["linprobe", "--config", &toml]);
    fifo("run/config.toml");
    refused(&[
        "pretrain",
        "--resume",
        dir.path().join("run").to_str().unwrap(),
    ]);
    // In a class folder it is no image.
    fifo("set/a/9.png");
    let set = dir.path().join("set");
    let (text, code) = said(&["data", "inspect", set.to_str().unwrap(), "--check"]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn a_jpeg_without_pixels_fails_the_check() {
    let dir = tempfile::tempdir().unwrap();
    images(dir.path(), "a", 2);
    // A frame header of height 0: 1 component, 8 bits.
    let mut jpeg = vec![0xff, 0xd8, 0xff, 0xc0, 0, 11, 8, 0, 0, 0, 10, 1, 1, 0x11, 0];
    jpeg.extend([0xff, 0xda, 0, 8, 1, 1, 0, 0, 0x3f, 0, 0xff, 0xd9]);
    std::fs::write(dir.path().join("a/z.jpg"), jpeg).unwrap();
    let (text, code) = said(&["data", "inspect", dir.path().to_str().unwrap(), "--check"]);
    assert!(code == Some(1) && text.contains("z.jpg: "), "{text}");
    assert!(!text.contains("panicked"), "{text}");
}
