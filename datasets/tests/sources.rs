//! Every source, on data in its real format made here, whole and damaged.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use datasets::{
    decode, fuzz, open, open_within, write_cache, CacheFile, Error, Image, ImageFolder, Loader,
    LoaderConfig, PretrainTransform, Source,
};
use flate2::{write::GzEncoder, Compression};
use tempfile::{tempdir, TempDir};

fn fixture(path: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fs::read(folder.join(path)).unwrap()
}

/// A BMP of 2 x 2 pixels, all of this value.
fn image(value: u8) -> Vec<u8> {
    let mut bytes = b"BM".to_vec();
    for n in [14 + 40 + 16, 0, 54, 40, 2, 2u32] {
        bytes.extend(n.to_le_bytes());
    }
    bytes.extend(1u16.to_le_bytes());
    bytes.extend(24u16.to_le_bytes());
    bytes.extend([0; 24]);
    // Two rows of two pixels, each padded to a multiple of four bytes.
    bytes.extend([value; 16]);
    bytes
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn put(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn opened(path: &Path, split: &str) -> std::sync::Arc<dyn Source> {
    open(path.to_str().unwrap(), split).unwrap()
}

fn error(path: &Path, split: &str) -> String {
    let error = open(path.to_str().unwrap(), split).err().unwrap();
    let error = error.to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

/// (label, first byte) of all images.
fn all(source: &dyn Source) -> Vec<(usize, u8)> {
    (0..source.len())
        .map(|i| (source.label(i), source.image(i).unwrap().rgb[0]))
        .collect()
}

/// The last part of an image's name.
fn last(source: &dyn Source, index: usize) -> String {
    source.name(index).rsplit('/').next().unwrap().to_owned()
}

#[test]
fn folders_with_splits_of_all_names() {
    for name in ["val", "valid", "validation", "test"] {
        let dir = tempdir().unwrap();
        put(&dir, "train/a/1.bmp", &image(1));
        put(&dir, "train/b/2.jpg", &image(2));
        put(&dir, &format!("{name}/b/3.bmp"), &image(3));
        assert_eq!(all(&*opened(dir.path(), "train")), [(0, 1), (1, 2)]);
        assert_eq!(all(&*opened(dir.path(), "val")), [(0, 3)]);
        let train = opened(dir.path(), "train");
        assert_eq!(train.describe(), "ImageFolder, 2 images, 2 classes");
        assert_eq!(train.class_to_idx(), [("a", 0), ("b", 1)].into());
    }
}

/// `count` records with these labels; image i is of value i in red, i + 1 in green, i + 2 in blue.
fn records(labels: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (i, label) in labels.iter().enumerate() {
        bytes.extend(*label);
        for c in 0..3 {
            bytes.extend([(i + c) as u8; 1024]);
        }
    }
    bytes
}

fn cifar10() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = (1..=5u8)
        .map(|n| {
            let name = format!("cifar-10-batches-bin/data_batch_{n}.bin");
            (name, records(&[&[n], &[9 - n]]))
        })
        .collect();
    let names = "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n";
    files.push(("cifar-10-batches-bin/batches.meta.txt".into(), names.into()));
    let test = records(&[&[7]]);
    files.push(("cifar-10-batches-bin/test_batch.bin".into(), test));
    files
}

fn slices(files: &[(String, Vec<u8>)]) -> Vec<(&str, &[u8])> {
    let pairs = files.iter().map(|(n, b)| (n.as_str(), b.as_slice()));
    pairs.collect()
}

#[test]
fn cifar_10_packed_and_unpacked() {
    let dir = tempdir().unwrap();
    let files = cifar10();
    let packed = put(&dir, "a/cifar-10-binary.tar.gz", &gz(&tar(&slices(&files))));
    for (name, bytes) in &files {
        put(&dir, &format!("b/{name}"), bytes);
    }
    let unpacked = dir.path().join("b");
    let inside = unpacked.join("cifar-10-batches-bin");
    for path in [&packed, &dir.path().join("a"), &unpacked, &inside] {
        let train = opened(path, "train");
        assert_eq!(train.describe(), "CIFAR-10, 10 images, 10 classes");
        let labels: Vec<usize> = (0..10).map(|i| train.label(i)).collect();
        assert_eq!(labels, [1, 8, 2, 7, 3, 6, 4, 5, 5, 4]);
        assert_eq!(train.classes()[3], "cat");
        let second = train.image(1).unwrap();
        assert_eq!((second.width, second.height), (32, 32));
        assert!(second.rgb.chunks_exact(3).all(|p| p == [1, 2, 3]));
        assert!(train.image(10).is_err() && train.image(usize::MAX).is_err());
        let test = opened(path, "val");
        assert_eq!((test.len(), test.label(0)), (1, 7));
        assert_eq!(test.name(0), "CIFAR-10 test #0");
    }
}

#[test]
fn cifar_100_takes_the_fine_label() {
    let dir = tempdir().unwrap();
    put(&dir, "train.bin", &records(&[&[1, 99], &[19, 0]]));
    put(&dir, "test.bin", &records(&[&[3, 42]]));
    let train = opened(dir.path(), "train");
    assert_eq!(train.describe(), "CIFAR-100, 2 images, 100 classes");
    assert_eq!((train.label(0), train.label(1)), (99, 0));
    assert!(train.image(0).unwrap().rgb.starts_with(&[0, 1, 2]));
}

#[test]
fn damaged_cifar_is_explained() {
    let dir = tempdir().unwrap();
    let whole = gz(&tar(&slices(&cifar10())));
    for cut in [10, whole.len() / 2, whole.len() - 20] {
        let path = put(&dir, "cifar-10-binary.tar.gz", &whole[..cut]);
        let message = error(&path, "train");
        assert!(message.contains("fetch it again"), "{cut}: {message}");
    }
    let dir = tempdir().unwrap();
    for n in 1..=5 {
        put(&dir, &format!("data_batch_{n}.bin"), &records(&[&[n]]));
    }
    let path = put(&dir, "data_batch_3.bin", &records(&[&[3]])[..3000]);
    assert!(error(dir.path(), "train").contains("data_batch_3.bin has 3000 bytes"));
    put(&dir, "data_batch_3.bin", &records(&[&[10]]));
    assert!(error(dir.path(), "train").contains("image 0 has label 10"));
    fs::remove_file(path).unwrap();
    assert!(error(dir.path(), "train").contains("data_batch_3.bin is missing"));
    assert!(error(dir.path(), "val").contains("no CIFAR images"));
}

fn ilsvrc(dir: &TempDir) {
    let class = |files: &[(&str, &[u8])]| tar(files);
    // Neither the classes nor their images are in order.
    let n02 = class(&[("n02_2.JPEG", &image(22)), ("n02_1.JPEG", &image(21))]);
    let n01 = class(&[("n01_1.JPEG", &image(11))]);
    put(
        dir,
        "ILSVRC2012_img_train.tar",
        &tar(&[("n02.tar", &n02), ("n01.tar", &n01)]),
    );
    put(
        dir,
        "ILSVRC2012_img_val.tar",
        &tar(&[
            ("ILSVRC2012_val_00000002.JPEG", &image(2)),
            ("ILSVRC2012_val_00000001.JPEG", &image(1)),
            ("ILSVRC2012_val_00000003.JPEG", &image(3)),
        ]),
    );
    let devkit = tar(&[
        (
            "ILSVRC2012_devkit_t12/data/meta.mat",
            &fixture("sources/meta.mat"),
        ),
        (
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
            b"4\n1\n2\n",
        ),
    ]);
    put(dir, "ILSVRC2012_devkit_t12.tar.gz", &gz(&devkit));
}

#[test]
fn ilsvrc_from_its_tars() {
    let dir = tempdir().unwrap();
    ilsvrc(&dir);
    let train = opened(dir.path(), "train");
    assert_eq!(train.classes(), ["n01", "n02"]);
    assert_eq!(all(&*train), [(0, 11), (1, 21), (1, 22)]);
    assert_eq!(last(&*train, 2), "n02_2.JPEG");
    assert_eq!(
        train.describe(),
        "ILSVRC2012 train tar, 3 images, 2 classes"
    );
    // The devkit numbers n03, n01, n04, n02; sorted they are n01 .. n04. n00 is a parent.
    let val = opened(dir.path(), "val");
    assert_eq!(val.classes(), ["n01", "n02", "n03", "n04"]);
    assert_eq!(all(&*val), [(1, 1), (2, 2), (0, 3)]);
    assert!(error(dir.path(), "test").contains("no split 'test' here, only train, val"));
}

#[test]
fn damaged_ilsvrc_is_explained() {
    let dir = tempdir().unwrap();
    ilsvrc(&dir);
    let path = dir.path().join("ILSVRC2012_img_train.tar");
    let whole = fs::read(&path).unwrap();
    // Within the first class, within the second, between them.
    for cut in [700, 1024, 2000, 3600, whole.len() - 1600] {
        fs::write(&path, &whole[..cut]).unwrap();
        let message = error(dir.path(), "train");
        assert!(message.contains("cut off or damaged"), "{cut}: {message}");
    }
    let devkit = dir.path().join("ILSVRC2012_devkit_t12.tar.gz");
    let whole = fs::read(&devkit).unwrap();
    fs::write(&devkit, &whole[..whole.len() / 2]).unwrap();
    assert!(error(dir.path(), "val").contains("fetch it again"));
    fs::remove_file(&devkit).unwrap();
    assert!(error(dir.path(), "val").contains("devkit_t12.tar.gz: cannot be read"));
    let mat = fixture("sources/meta.mat");
    for (meta, truth, message) in [
        (&mat[..], &b"1\n2\n"[..], "00000003.JPEG is none of the 2"),
        (&mat[..], b"1\n2\n5\n", "line 3: '5' is no class"),
        (&mat[..], b"1\nx\n5\n", "line 2: 'x' is no class"),
        (&mat[..mat.len() / 2], b"1\n2\n3\n", "meta.mat: "),
        (b"nonsense", b"1\n2\n3\n", "meta.mat: not a MATLAB 5 file"),
    ] {
        let files = tar(&[
            ("meta.mat", meta),
            ("ILSVRC2012_validation_ground_truth.txt", truth),
        ]);
        fs::write(&devkit, gz(&files)).unwrap();
        let got = error(dir.path(), "val");
        assert!(got.contains(message), "{got}");
    }
}

#[test]
fn webdataset_shards() {
    let dir = tempdir().unwrap();
    let first = tar(&[
        ("a/0001.cls", b"1\n"),
        ("a/0001.jpg", &image(1)),
        ("a/0001.json", b"{}"),
        ("a/0002.seg.png", b"something else"),
        ("a/0002.JPG", &image(2)),
        ("a/0002.cls", b"0"),
    ]);
    let second = tar(&[("0003.bmp", &image(3)), ("0003.cls", b"2")]);
    put(&dir, "imagenet-train-000000.tar", &first);
    put(&dir, "imagenet-train-000001.tar", &second);
    put(&dir, "imagenet-validation-000000.tar", &second);
    let train = opened(dir.path(), "train");
    assert_eq!(train.describe(), "WebDataset, 3 images, 3 classes");
    assert_eq!(all(&*train), [(1, 1), (0, 2), (2, 3)]);
    assert_eq!(last(&*train, 1), "0002.JPG");
    assert_eq!(opened(dir.path(), "val").len(), 1);
    let shards = dir.path().join("imagenet-train-{000000..000001}.tar");
    assert_eq!(opened(&shards, "train").len(), 3);
    let shard = dir.path().join("imagenet-train-000001.tar");
    assert_eq!(all(&*opened(&shard, "val")), [(2, 3)]);
    let missing = dir.path().join("imagenet-train-{000000..000002}.tar");
    assert!(error(&missing, "train").contains("000002.tar: cannot be read"));
    let backwards = dir.path().join("imagenet-train-{5..2}.tar");
    assert!(error(&backwards, "train").contains("is not a range of shards"));

    // Names instead of numbers, and a folder for each split.
    let named = tar(&[
        ("1.jpg", &image(1)),
        ("1.cls", b"dog"),
        ("2.jpg", &image(2)),
        ("2.cls", b"cat"),
    ]);
    put(&dir, "other/train/0.tar", &named);
    let train = opened(&dir.path().join("other"), "train");
    assert_eq!(train.classes(), ["cat", "dog"]);
    assert_eq!(all(&*train), [(1, 1), (0, 2)]);
}

#[test]
fn damaged_webdataset_is_explained() {
    let dir = tempdir().unwrap();
    let whole = tar(&[
        ("1.cls", b"1"),
        ("1.jpg", &image(1)),
        ("2.cls", b"0"),
        ("2.jpg", &image(2)),
    ]);
    let mut messages = 0;
    for cut in 0..whole.len() {
        let path = put(&dir, "0.tar", &whole[..cut]);
        match open(path.to_str().unwrap(), "train") {
            Ok(source) => {
                // What is there is right, and it is said that something may be missing.
                let images = all(&*source);
                assert!(images == [(1, 1)] || images == [(1, 1), (0, 2)], "{cut}");
                let cut_off = cut < whole.len() - 512;
                assert!(!cut_off || source.warnings().len() == 1, "{cut}");
            }
            Err(error) => {
                assert!(!error.to_string().contains('\n'));
                messages += 1;
            }
        }
    }
    assert!(messages > 1000);
    let with = |files: &[(&str, &[u8])]| {
        let path = put(&dir, "0.tar", &tar(files));
        error(&path, "train").replace(&dir.path().display().to_string(), "DIR")
    };
    let a = &image(1)[..];
    for (message, expected) in [
        (
            with(&[("1.jpg", a)]),
            "no label for '1.jpg': expected 1.cls",
        ),
        (
            with(&[("1.jpg", a), ("1.png", a), ("1.cls", b"1")]),
            "two images for '1'",
        ),
        (
            with(&[("1.jpg", a), ("1.cls", b"1"), ("1.cls", b"2")]),
            "two labels for '1'",
        ),
        (
            with(&[
                ("1.jpg", a),
                ("1.cls", b"1"),
                ("2.jpg", a),
                ("2.cls", b"dog"),
            ]),
            "2.jpg: label 'dog' is not a class number",
        ),
        (
            with(&[("1.jpg", a), ("1.cls", b" ")]),
            "1.jpg: its label is empty",
        ),
        (with(&[("x.txt", b"x")]), "no samples; expected pairs"),
    ] {
        assert!(
            message.starts_with("DIR/0.tar: ") && message.contains(expected),
            "{message}"
        );
    }
}

#[test]
fn files_that_vanish_or_shrink_are_bad_images() {
    let dir = tempdir().unwrap();
    let shard = tar(&[("1.cls", b"0"), ("1.jpg", &image(1))]);
    let path = put(&dir, "0.tar", &shard);
    let source = opened(&path, "train");
    fs::write(&path, &shard[..1500]).unwrap();
    let message = source.image(0).unwrap_err().to_string();
    assert!(message.ends_with("has become shorter"), "{message}");
    fs::remove_file(&path).unwrap();
    let message = source.image(0).unwrap_err().to_string();
    assert!(message.contains("cannot be read"), "{message}");
}

#[test]
fn formats_are_told_by_their_bytes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats");
    let mut cases = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".rgb.png") {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let got = decode(&bytes).unwrap();
        let expected = decode(&fixture(&format!("formats/{name}.rgb.png"))).unwrap();
        assert_eq!((got.width, got.height), (45, 31), "{name}");
        let off = got.rgb.iter().zip(&expected.rgb);
        let off = off.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(
            off <= if name == "lossy.webp" { 2 } else { 0 },
            "{name}: {off}"
        );
        for cut in (0..bytes.len()).step_by(7) {
            // A missing end of padding does no harm; anything else must be noticed.
            if let Ok(image) = decode(&bytes[..cut]) {
                assert!(image == got && bytes.len() - cut < 16, "{name} {cut}");
            }
        }
        cases += 1;
    }
    assert_eq!(cases, 7);
}

#[test]
fn the_limit_of_pixels_can_be_moved() {
    let dir = tempdir().unwrap();
    put(&dir, "a/1.bmp", &image(1));
    let at = |limit| {
        let source = open_within(dir.path().to_str().unwrap(), "train", limit).unwrap();
        source.image(0).map_err(|e| e.to_string())
    };
    assert!(at(4).is_ok());
    let message = at(3).unwrap_err();
    assert!(
        message.ends_with("1.bmp: 2 x 2 pixels, more than the limit of 3"),
        "{message}"
    );
}

fn cache(path: &Path, source: &dyn Source) -> usize {
    let images = (0..source.len()).map(|i| source.image(i));
    write_cache(fs::File::create(path).unwrap(), source, images).unwrap()
}

#[test]
fn a_cache_is_the_dataset_itself() {
    let dir = tempdir().unwrap();
    for (i, size) in [(0, 33), (1, 48), (2, 20)] {
        put(
            &dir,
            &format!("data/a/{i}.png"),
            &fixture("decode/color.png"),
        );
        put(
            &dir,
            &format!("data/b/{size}.jpg"),
            &fixture("decode/photo.jpg"),
        );
    }
    put(&dir, "data/b/bad.jpg", b"not an image");
    let folder = opened(&dir.path().join("data"), "train");
    let path = dir.path().join("data.cache");
    assert_eq!(cache(&path, &*folder), 1);
    let cached = opened(&path, "train");
    assert_eq!(
        cached.describe(),
        "cache of ImageFolder, 7 images, 2 classes"
    );
    assert_eq!(cached.classes(), folder.classes());
    for i in 0..7 {
        assert_eq!(
            (cached.name(i), cached.label(i)),
            (folder.name(i), folder.label(i))
        );
        match folder.image(i) {
            Ok(image) => assert_eq!(cached.image(i).unwrap(), image),
            Err(_) => assert!(cached
                .image(i)
                .unwrap_err()
                .to_string()
                .contains("bad.jpg: could")),
        }
    }
    assert!(cached.image(7).is_err());

    // Cut anywhere, or with any byte of its tables changed, it is refused or reads as errors, never a panic.
    let whole = fs::read(&path).unwrap();
    for cut in (0..whole.len())
        .step_by(61)
        .chain(whole.len() - 40..whole.len())
    {
        fs::write(&path, &whole[..cut]).unwrap();
        let error = CacheFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("make it again"), "{cut}: {error}");
    }
    let table = u64::from_le_bytes(whole[32..40].try_into().unwrap()) as usize;
    for at in (0..48).chain(table..whole.len()) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x80;
        fs::write(&path, &damaged).unwrap();
        if let Ok(source) = CacheFile::open(&path) {
            for i in 0..source.len() {
                assert!(source.label(i) < source.classes().len());
                let _ = (source.image(i), source.name(i));
            }
        }
    }
    // It shrinks while in use.
    fs::write(&path, &whole).unwrap();
    let cached = opened(&path, "train");
    fs::write(&path, &whole[..60]).unwrap();
    assert!(cached
        .image(0)
        .unwrap_err()
        .to_string()
        .contains("cannot be read from the cache"));
}

#[test]
fn batches_from_the_cache_are_the_same() {
    let dir = tempdir().unwrap();
    put(
        &dir,
        "cifar-10-batches-bin/data_batch_1.bin",
        &records(&[&[1], &[2], &[3]]),
    );
    for n in 2..=5 {
        put(
            &dir,
            &format!("cifar-10-batches-bin/data_batch_{n}.bin"),
            &records(&[&[n]]),
        );
    }
    let source = opened(dir.path(), "train");
    let path = dir.path().join("cache");
    cache(&path, &*source);
    let batches = |source| {
        let config = LoaderConfig {
            batch_size: 3,
            ..LoaderConfig::default()
        };
        let loader = Loader::new(source, PretrainTransform::imagenet(8), config).unwrap();
        let batches: Result<Vec<_>, Error> = loader.stream(0, 0).take(5).collect();
        batches.unwrap()
    };
    assert_eq!(batches(source), batches(opened(&path, "train")));
}

#[test]
fn what_is_no_dataset_is_explained() {
    let dir = tempdir().unwrap();
    let file = put(&dir, "notes.txt", b"hello");
    assert!(error(&file, "train").contains("notes.txt: not a dataset; expected a folder of"));
    assert!(error(&dir.path().join("none"), "train").contains("no such folder"));
    let hub = open("hf://datasets/uoft-cs/cifar10", "train")
        .err()
        .unwrap();
    assert!(hub
        .to_string()
        .contains("'hf download uoft-cs/cifar10 --repo-type dataset"));
    assert!(open("shapes", "train")
        .unwrap()
        .describe()
        .starts_with("shapes"));
}

#[cfg(unix)]
#[test]
fn names_that_are_not_utf_8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let dir = tempdir().unwrap();
    put(&dir, "a/1.bmp", &image(1));
    let odd = |bytes: &[u8]| dir.path().join(OsStr::from_bytes(bytes));
    fs::write(odd(b"a/caf\xe9.bmp"), image(2)).unwrap();
    let source = opened(dir.path(), "train");
    assert_eq!(all(&*source), [(0, 1)]);
    let [warning] = source.warnings() else {
        panic!("{:?}", source.warnings())
    };
    assert!(warning.contains("its name is not valid UTF-8"), "{warning}");
    // Without a class the labels would shift: that is an error.
    fs::create_dir(odd(b"\xe9")).unwrap();
    assert!(error(dir.path(), "train").contains("not valid UTF-8"));
}

/// Root may read everything; then there is nothing to see.
#[cfg(unix)]
#[test]
fn folders_without_permission_are_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempdir().unwrap();
    put(&dir, "a/1.bmp", &image(1));
    put(&dir, "b/locked/2.bmp", &image(1));
    let locked = dir.path().join("b/locked");
    let set = |mode| fs::set_permissions(&locked, fs::Permissions::from_mode(mode)).unwrap();
    set(0o000);
    if fs::read_dir(&locked).is_err() {
        assert!(error(dir.path(), "train").contains("b/locked: cannot be read"));
    }
    set(0o755);
    assert_eq!(ImageFolder::open(dir.path(), "train").unwrap().len(), 2);
}

/// What the fuzzer is started with must itself be fine.
#[test]
fn fuzz_targets_read_whole_archives() {
    let shard = tar(&[("1.cls", b"1"), ("1.jpg", &image(1))]);
    assert_eq!(fuzz::webdataset(&shard), Ok(1));
    let files = cifar10();
    let archive = tar(&slices(&files));
    assert_eq!(fuzz::cifar(&archive), Ok(11));
    assert_eq!(fuzz::cifar(&gz(&archive)), Ok(11));
    // Bytes changed at random, as a fuzzer that needs no other compiler.
    let r = &mut datasets::rng::rng(0, "fuzz", 0, 0);
    for _ in 0..3000 {
        let mut damaged = shard.clone();
        for _ in 0..1 + datasets::rng::below(r, 4) {
            let at = datasets::rng::below(r, damaged.len());
            damaged[at] = datasets::rng::below(r, 256) as u8;
        }
        let _ = fuzz::webdataset(&damaged);
    }
}

#[cfg(feature = "parquet")]
mod parquet {
    use super::*;
    use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    /// Rows of (image, label) in groups of three; missing where `None`.
    fn write(schema: &str, rows: &[(Option<Vec<u8>>, Option<i64>)]) -> Vec<u8> {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = WriterProperties::builder()
            .set_data_page_row_count_limit(2)
            .set_write_batch_size(1)
            .build();
        let mut bytes = Vec::new();
        let mut file =
            SerializedFileWriter::new(&mut bytes, schema.clone(), Arc::new(properties)).unwrap();
        // Levels of what is there: 2 below an optional group, else 1.
        let there = if schema.get_fields()[0].is_group() {
            2
        } else {
            1
        };
        for rows in rows.chunks(3) {
            let mut group = file.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let levels: Vec<i16> = rows
                .iter()
                .map(|r| if r.0.is_some() { there } else { 0 })
                .collect();
            let values: Vec<ByteArray> = rows
                .iter()
                .filter_map(|r| Some(r.0.clone()?.into()))
                .collect();
            column
                .typed::<ByteArrayType>()
                .write_batch(&values, Some(&levels), None)
                .unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let levels: Vec<i16> = rows.iter().map(|r| i16::from(r.1.is_some())).collect();
            let values: Vec<i64> = rows.iter().filter_map(|r| r.1).collect();
            column
                .typed::<Int64Type>()
                .write_batch(&values, Some(&levels), None)
                .unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        file.close().unwrap();
        bytes
    }

    const NESTED: &str =
        "message m { optional group img { optional binary bytes; } optional int64 label; }";

    fn rows(n: u8) -> Vec<(Option<Vec<u8>>, Option<i64>)> {
        (0..n)
            .map(|i| (Some(image(i)), Some(i64::from(i) % 4)))
            .collect()
    }

    #[test]
    fn shards_in_order() {
        let dir = tempdir().unwrap();
        put(
            &dir,
            "data/train-00001-of-00002.parquet",
            &write(NESTED, &rows(2)),
        );
        put(
            &dir,
            "data/train-00000-of-00002.parquet",
            &write(NESTED, &rows(8)),
        );
        put(
            &dir,
            "data/validation-00000-of-00001.parquet",
            &write(NESTED, &rows(1)),
        );
        let train = opened(dir.path(), "train");
        assert_eq!(train.describe(), "Parquet, 10 images, 4 classes");
        let expected: Vec<(usize, u8)> = (0..8).chain(0..2).map(|i| (i % 4, i as u8)).collect();
        assert_eq!(all(&*train), expected);
        assert_eq!(last(&*train, 9), "train-00001-of-00002.parquet#1");
        assert_eq!(opened(dir.path(), "val").len(), 1);
        let flat = "message m { required binary image; required int64 y; }";
        let path = put(&dir, "flat.parquet", &write(flat, &rows(4)));
        assert_eq!(opened(&path, "train").len(), 4);
    }

    #[test]
    fn what_pyarrow_writes() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sources/pyarrow.parquet");
        let source = opened(&path, "train");
        assert_eq!(source.classes(), ["ant", "bee", "cat"]);
        let expected: Vec<(usize, u8)> = (0..12).map(|i| (i % 3, 10 * i as u8)).collect();
        assert_eq!(all(&*source), expected);
        assert_eq!(source.image(0).unwrap().width, 4);
    }

    #[test]
    fn other_columns_are_explained() {
        let dir = tempdir().unwrap();
        let with = |schema: &str| error(&put(&dir, "0.parquet", &write(schema, &rows(2))), "train");
        let message = with("message m { required binary text (UTF8); required int64 label; }");
        assert!(
            message.contains(
                "0 columns of bytes; expected one, the images. Columns: text (BYTE_ARRAY)"
            ),
            "{message}"
        );
        let mut missing = rows(4);
        missing[2].1 = None;
        let path = put(&dir, "1.parquet", &write(NESTED, &missing));
        assert!(error(&path, "train").contains("rows without label"));
        missing = rows(4);
        missing[1] = (None, Some(-1));
        let path = put(&dir, "1.parquet", &write(NESTED, &missing));
        assert!(error(&path, "train").contains("row 1: label -1 is no class"));
        missing[1].1 = Some(1);
        let path = put(&dir, "1.parquet", &write(NESTED, &missing));
        let source = opened(&path, "train");
        let message = source.image(1).unwrap_err().to_string();
        assert!(
            message.ends_with("1.parquet#1: no image in this row"),
            "{message}"
        );
        assert_eq!(source.image(2).unwrap().rgb[0], 2);
    }

    #[test]
    fn damaged_files_do_not_panic() {
        let dir = tempdir().unwrap();
        let whole = write(NESTED, &rows(5));
        for cut in (0..whole.len()).step_by(13) {
            let path = put(&dir, "0.parquet", &whole[..cut]);
            assert!(error(&path, "train").contains("0.parquet: "));
        }
        let r = &mut datasets::rng::rng(0, "fuzz", 0, 0);
        for _ in 0..300 {
            let mut damaged = whole.clone();
            let at = datasets::rng::below(r, damaged.len());
            damaged[at] = datasets::rng::below(r, 256) as u8;
            let path = put(&dir, "0.parquet", &damaged);
            if let Ok(source) = open(path.to_str().unwrap(), "train") {
                for i in 0..source.len() {
                    let _: Result<Image, Error> = source.image(i);
                }
            }
        }
    }
}
