//! The decoded cache.

mod common;

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use common::{error, fixture, opened, put, records};
use datasets::{write_cache, CacheFile, Error, Loader, LoaderConfig, PretrainTransform, Source};
use tempfile::tempdir;

fn cache(path: &Path, source: &dyn Source) -> usize {
    let images = (0..source.len()).map(|i| source.image(i));
    let from = ("DIR\n/data", "train");
    write_cache(fs::File::create(path).unwrap(), source, from, images).unwrap()
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
        "cache of ImageFolder, 7 images, 2 classes, from DIR/data (train)"
    );
    let message = error(&path, "val");
    assert!(
        message.ends_with("data.cache: no split 'val' here, only train; name one of these"),
        "{message}"
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
        let error = CacheFile::open(&path, "train").unwrap_err().to_string();
        assert!(error.contains("make it again"), "{cut}: {error}");
    }
    let table = u64::from_le_bytes(whole[32..40].try_into().unwrap()) as usize;
    for at in (0..48).chain(table..whole.len()) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x80;
        fs::write(&path, &damaged).unwrap();
        if let Ok(source) = CacheFile::open(&path, "train") {
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

/// Sizes that a header states are not believed beyond the file, nor beyond the limit of pixels.
#[test]
fn sizes_in_a_cache_are_bounded() {
    let dir = tempdir().unwrap();
    put(&dir, "data/a/0.png", &fixture("decode/color.png"));
    let folder = opened(&dir.path().join("data"), "train");
    let path = dir.path().join("data.cache");
    cache(&path, &*folder);
    let whole = fs::read(&path).unwrap();
    let table = u64::from_le_bytes(whole[32..40].try_into().unwrap()) as usize;
    let mut damaged = whole.clone();
    damaged[table + 8..table + 16].copy_from_slice(&[0xff; 8]);
    fs::write(&path, &damaged).unwrap();
    assert!(error(&path, "train").contains("an image lies outside it"));
    // A file of 20 GB that is one hole, and an image as large as it says.
    let hole = 20u64 << 30;
    let mut head = whole[..table].to_vec();
    head[32..40].copy_from_slice(&hole.to_le_bytes());
    head[40..48].copy_from_slice(&(hole + 24).to_le_bytes());
    let mut row = whole[table..table + 24].to_vec();
    row[8..12].copy_from_slice(&(1u32 << 16).to_le_bytes());
    row[12..16].copy_from_slice(&(1u32 << 16).to_le_bytes());
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(&head).unwrap();
    if file.seek(SeekFrom::Start(hole)).is_ok() && file.write_all(&row).is_ok() {
        file.write_all(&whole[table + 24..]).unwrap();
        let message = opened(&path, "train").image(0).unwrap_err().to_string();
        assert!(
            message.ends_with("65536 x 65536 pixels, more than the limit of 178956970"),
            "{message}"
        );
    }
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
