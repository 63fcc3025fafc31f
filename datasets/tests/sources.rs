//! Every source, on data in its real format made here, whole and damaged.

mod common;

use std::fs;
use std::path::Path;

use common::{all, error, fixture, gz, image, last, opened, put, records, tar};
use datasets::{decode, fuzz, open, open_ilsvrc, open_within, ImageFolder, Source};
use tempfile::{tempdir, TempDir};

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
    let message = error(dir.path(), "dev");
    assert!(
        message.ends_with(": no split 'dev' here, only train, test; name one of these"),
        "{message}"
    );
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
    assert_eq!(all(&*opened(&shard, "train")), [(2, 3)]);
    for path in [&shard, &shards] {
        let message = error(path, "val");
        assert!(
            message.contains("no split 'val' here, only train"),
            "{message}"
        );
    }
    assert!(error(dir.path(), "extra").contains("only train, validation; name one"));
    let missing = dir.path().join("imagenet-train-{000000..000002}.tar");
    assert!(error(&missing, "train").contains("000002.tar: cannot be read"));
    let backwards = dir.path().join("imagenet-train-{5..2}.tar");
    assert!(error(&backwards, "train").contains("is not a range of shards"));
    // Neither names nor digits without end.
    for range in [
        "0..999999999999",
        "0..1048576",
        "000000000000000000000..000000000000000000001",
        "0..99999999999999999999",
        "0..18446744073709551615",
        "18446744073709551615..0",
    ] {
        let path = dir.path().join(format!("x-{{{range}}}.tar"));
        let error = error(&path, "train");
        assert!(error.contains("is not a range of shards"), "{error}");
    }
    let twenty = dir
        .path()
        .join("x-{00000000000000000000..00000000000000000001}.tar");
    assert!(error(&twenty, "train").contains("00000000000000000000.tar: cannot be read"));
    let long = dir
        .path()
        .join(format!("x-{{{}..1}}.tar", "0".repeat(100_000)));
    assert!(error(&long, "train").ends_with("too long (os error 36)"));

    put(&dir, "more.tar", &second);
    let train = opened(dir.path(), "train");
    assert_eq!(train.len(), 3);
    let [warning] = train.warnings() else {
        panic!("{:?}", train.warnings())
    };
    assert!(
        warning.ends_with("left out 1 file, whose names name no split: more.tar"),
        "{warning}"
    );

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
fn webdataset_samples_without_image_are_counted() {
    let dir = tempdir().unwrap();
    let shard = tar(&[
        ("1.jpg", &image(1)),
        ("1.cls", b"0"),
        ("a/2.avif", &image(2)),
        ("a/2.cls", b"1"),
        ("3.cls", b"1"),
        ("4.json", b"{}"),
    ]);
    let path = put(&dir, "0.tar", &shard);
    let source = opened(&path, "train");
    assert_eq!(all(&*source), [(0, 1)]);
    let [warning, format] = source.warnings() else {
        panic!("{:?}", source.warnings())
    };
    assert!(
        format.contains("left out 1 file of the format .avif"),
        "{format}"
    );
    assert!(
        warning.contains("0.tar: left out 3 samples without an image (.jpg,")
            && warning.ends_with("such as '3'"),
        "{warning}"
    );
}

/// Names with more dots than one are read where that is what they must mean; whatever is not read is counted.
#[test]
fn webdataset_names_with_dots() {
    let dir = tempdir().unwrap();
    let (x, y, cls) = (&image(1)[..], &image(2)[..], &b"0"[..]);
    for (files, images, warning) in [
        // Their own labels; no labels at all; a caption of the same name.
        (
            &[
                ("IMG.2024.0.png", x),
                ("IMG.2024.0.cls", cls),
                ("IMG.2024.1.png", y),
                ("IMG.2024.1.cls", cls),
            ][..],
            2,
            "2 images are read by their name up to the last dot, such as DIR/0.tar/IMG.2024.0.png",
        ),
        (
            &[("v1.0/a.b.jpg", x), ("v1.0/a.c.jpg", y)],
            2,
            "v1.0/a.b.jpg",
        ),
        (&[("a.b.jpg", x), ("a.b.txt", cls)], 1, "a.b.jpg"),
        // A further image of a sample, and one of several.
        (&[("1.jpg", x), ("1.cls", cls), ("1.seg.png", y)], 1, ""),
        (
            &[
                ("1.left.png", x),
                ("1.right.png", y),
                ("1.cls", cls),
                ("2.png", x),
                ("2.cls", cls),
            ],
            1,
            "left out 2 files that may be one of several images of a sample, such as 1.left.png",
        ),
    ] {
        let path = put(&dir, "0.tar", &tar(files));
        let source = opened(&path, "train");
        assert_eq!(source.len(), images, "{files:?}");
        let others: usize = source.other_files().iter().map(|(_, count)| count).sum();
        assert_eq!(images + others, files.len(), "{:?}", source.other_files());
        let warnings = source.warnings().join("\n");
        let warnings = warnings.replace(&dir.path().display().to_string(), "DIR");
        assert!(warnings.contains(warning), "{warnings}");
    }
}

/// What systems put beside the images is left out and counted in tars as in folders, also as `._x` beside each file.
#[test]
fn hidden_files_in_tars() {
    let dir = TempDir::new().unwrap();
    for (made, kind) in [
        (
            "__MACOSX/1.jpg",
            "made by the system or a program: __MACOSX",
        ),
        (
            "./a/@eaDir/1.jpg/SYNO.jpg",
            "made by the system or a program: @eaDir",
        ),
        (
            "a/.Trash-1000/1.jpg",
            "made by the system or a program: .Trash",
        ),
        ("./a/.DS_Store", "hidden"),
        ("a/._1.jpg", "hidden"),
        ("a/._1.cls", "hidden"),
    ] {
        let shard = tar(&[
            ("./a/1.jpg", &image(1)),
            ("./a/1.cls", b"0"),
            (made, &image(2)),
            ("./a/2.jpg", &image(3)),
            ("./a/2.cls", b"1"),
        ]);
        let source = opened(&put(&dir, "0.tar", &shard), "train");
        assert_eq!(source.len(), 2, "{made}");
        assert_eq!(source.classes(), ["0", "1"], "{made}");
        let expected = [(kind.to_owned(), 1), ("labels".to_owned(), 2)];
        let mut found = source.other_files().to_vec();
        found.sort_by_key(|(_, count)| *count);
        assert_eq!(found, expected, "{made}");
        assert!(source.warnings().is_empty(), "{made}");
    }
    // ImageNet's tars, packed again on a Mac: neither a class nor an image more.
    let class = |red| tar(&[("1.JPEG", &image(red)), ("._1.JPEG", b"Mac OS X")]);
    let train = tar(&[
        ("n01.tar", &class(1)),
        ("._n01.tar", b"Mac OS X"),
        ("__MACOSX/._n02.tar", b"Mac OS X"),
        ("n02.tar", &class(2)),
    ]);
    put(&dir, "imagenet/ILSVRC2012_img_train.tar", &train);
    let source = opened(&dir.path().join("imagenet"), "train");
    assert_eq!((source.len(), source.classes().len()), (2, 2));
    let hidden = source
        .other_files()
        .iter()
        .find(|(what, _)| what == "hidden");
    assert_eq!(hidden, Some(&("hidden".to_owned(), 3)));
}

/// Without `.cls` there are no labels; img2dataset puts a Parquet file beside each tar.
#[test]
fn webdataset_without_labels() {
    let dir = tempdir().unwrap();
    let shard = tar(&[
        ("1.jpg", &image(1)),
        ("1.txt", b"a caption"),
        ("2.jpg", &image(2)),
        ("2.json", b"{}"),
    ]);
    put(&dir, "00000.tar", &shard);
    put(&dir, "00000.parquet", b"metadata");
    put(&dir, "00000_stats.json", b"{}");
    for path in [dir.path().to_owned(), dir.path().join("00000.tar")] {
        let source = opened(&path, "train");
        assert_eq!(source.describe(), "WebDataset, 2 images, no labels");
        assert_eq!((source.labelled(), source.label(1)), (false, 0));
        assert!(source.warnings().is_empty(), "{:?}", source.warnings());
    }
    let some = tar(&[("1.jpg", &image(1)), ("2.jpg", &image(2)), ("2.cls", b"5")]);
    let source = opened(&put(&dir, "some.tar", &some), "train");
    assert_eq!(all(&*source), [(0, 1), (0, 2)]);
    assert!(!source.labelled());
    assert!(source.warnings()[0].starts_with("1 of 2 images have no label, such as "));
    assert!(source.warnings()[0].contains("some.tar/1.jpg: expected a .cls"));
}

/// What has no splits is all there is, under any of the usual names.
#[test]
fn data_without_splits() {
    let dir = tempdir().unwrap();
    let shard = tar(&[("1.jpg", &image(1)), ("1.cls", b"0")]);
    let tar = put(&dir, "train/0.tar", &shard);
    put(&dir, "folder/a/1.bmp", &image(1));
    for path in [tar, dir.path().join("folder"), "shapes".into()] {
        for split in ["train", "val", "test"] {
            assert!(!opened(&path, split).is_empty());
        }
        let message = error(&path, "extra");
        assert!(
            message.contains("no split 'extra' here, only one part without a name, which train,"),
            "{message}"
        );
    }
}

#[test]
fn missing_shards_are_named() {
    let dir = tempdir().unwrap();
    let shard = tar(&[("1.jpg", &image(1)), ("1.cls", b"0")]);
    for n in [0, 2, 5] {
        put(&dir, &format!("x-train-{n:05}-of-00006.tar"), &shard);
    }
    put(&dir, "x-val-00000-of-00001.tar", &shard);
    let message = error(dir.path(), "train");
    assert!(
        message.ends_with(
            "3 of 6 files are missing: x-train-00001-of-00006, x-train-00003-of-00006, \
             x-train-00004-of-00006; fetch them"
        ),
        "{message}"
    );
    assert_eq!(opened(dir.path(), "val").len(), 1);
    // One that is named is what is asked for.
    let one = dir.path().join("x-train-00002-of-00006.tar");
    assert_eq!(opened(&one, "train").len(), 1);
    for n in [1, 3, 4] {
        put(&dir, &format!("x-train-{n:05}-of-00006.tar"), &shard);
    }
    assert_eq!(opened(dir.path(), "train").len(), 6);
    // A name cannot make us count to a thousand million.
    put(&dir, "large/x-3-of-999999999.tar", &shard);
    let message = error(&dir.path().join("large"), "train");
    assert!(
        message.contains("999999998 of 999999999 files are missing: x-000000000-of-"),
        "{message}"
    );
    assert!(
        message.ends_with(", and 999999988 more; fetch them"),
        "{message}"
    );
    fs::remove_dir_all(dir.path().join("large")).unwrap();
    put(&dir, "x-train-00000-of-00001.tar", &shard);
    assert!(error(dir.path(), "train").contains("several versions of the dataset"));
}

/// A link to nowhere beside the shards is nobody's concern, one in their place is.
#[cfg(unix)]
#[test]
fn unrelated_entries_that_cannot_be_read() {
    use std::os::unix::fs::{symlink, PermissionsExt};
    let dir = tempdir().unwrap();
    let shard = tar(&[("1.jpg", &image(1)), ("1.cls", b"0")]);
    put(&dir, "0.tar", &shard);
    symlink("nowhere", dir.path().join("notes")).unwrap();
    assert_eq!(opened(dir.path(), "train").len(), 1);
    symlink("nowhere", dir.path().join("1.tar")).unwrap();
    assert!(error(dir.path(), "train").contains("1.tar: cannot be read"));
    fs::remove_file(dir.path().join("1.tar")).unwrap();
    // A folder that cannot be listed may hold shards. Root may list all; then there is nothing to see.
    let more = dir.path().join("more");
    for (folder, fails) in [(&more, true), (&dir.path().join("lost+found"), false)] {
        fs::create_dir(folder).unwrap();
        let set = |mode| fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
        set(0o000);
        if fs::read_dir(folder).is_err() {
            let opened = open(dir.path().to_str().unwrap(), "train");
            assert_eq!(opened.is_err(), fails);
        }
        set(0o755);
    }
}

/// What lies beside archives is counted; where images are more than they, nothing is guessed.
#[test]
fn what_lies_beside_shards() {
    let dir = tempdir().unwrap();
    let shard = tar(&[("1.jpg", &image(1)), ("1.cls", b"0")]);
    put(&dir, "train-0.tar", &shard);
    put(&dir, "val-0.tar", &shard);
    put(&dir, "notes.json", b"{}");
    put(&dir, ".git/config", b"");
    put(&dir, "assets/one.png", &image(1));
    put(&dir, "assets/more/two.avif", &image(1));
    let source = opened(dir.path(), "train");
    assert_eq!(source.describe(), "WebDataset, 1 image, 1 class");
    let expected = [
        ("ending in .json", 1),
        ("ending in .tar, of no or another split", 1),
        ("hidden", 1),
        ("labels", 1),
        ("named as images, beside the archives", 2),
    ];
    let expected = expected.map(|(what, count)| (what.to_owned(), count));
    assert_eq!(source.other_files(), expected);
    let [warning] = source.warnings() else {
        panic!("{:?}", source.warnings())
    };
    assert!(
        warning.starts_with("left out 2 files named as images, beside the archives, such as "),
        "{warning}"
    );
    // Who names a shard means it alone.
    let one = opened(&dir.path().join("train-0.tar"), "train");
    assert_eq!(one.other_files(), [("labels".to_owned(), 1)]);

    // As many images as archives: pictures beside them. More: perhaps the archive is the stray one.
    for (images, refused) in [(1, false), (2, true), (30, true)] {
        for place in ["", "train/"] {
            let dir = tempdir().unwrap();
            put(&dir, &format!("{place}old.tar"), &shard);
            for i in 0..images {
                put(&dir, &format!("{place}{i}.png"), &image(1));
            }
            if refused {
                let error = error(dir.path(), "train");
                let expected = format!("{images} images and 1 .tar file are in one folder");
                assert!(error.contains(&expected), "{error}");
            } else {
                let source = opened(dir.path(), "train");
                let others: usize = source.other_files().iter().map(|(_, n)| n).sum();
                // The shard's label and the picture.
                assert_eq!((source.len(), others), (1, 2));
            }
        }
    }
    // Several folders of images are classes, whatever lies beside them.
    let dir = tempdir().unwrap();
    put(&dir, "old.tar", &shard);
    put(&dir, "cat/1.png", &image(1));
    put(&dir, "dog/1.png", &image(1));
    let source = opened(dir.path(), "train");
    assert_eq!((source.len(), source.classes().len()), (2, 2));
    assert_eq!(source.other_files(), [("ending in .tar".to_owned(), 1)]);
}

#[test]
fn ilsvrc_counts_what_lies_beside_its_tars() {
    let dir = tempdir().unwrap();
    let inner = tar(&[("n01_1.JPEG", &image(1))]);
    put(
        &dir,
        "ILSVRC2012_img_train.tar",
        &tar(&[("n01.tar", &inner)]),
    );
    put(&dir, "stray.jpg", &image(1));
    let source = opened(dir.path(), "train");
    let others: usize = source.other_files().iter().map(|(_, n)| n).sum();
    assert_eq!((source.len(), others), (1, 2));
    assert!(source.warnings().join("\n").contains("stray.jpg"));
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
                let said = source.warnings().iter().any(|w| w.contains("no end mark"));
                assert!(!cut_off || said, "{cut}");
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
        (
            with(&[("x.txt", b"x")]),
            "no samples; expected images, or pairs",
        ),
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
            // A missing end of padding does no harm, nor does a missing second image; anything else must be noticed.
            if let Ok(image) = decode(&bytes[..cut]) {
                assert!(
                    image == got && (bytes.len() - cut < 16 || name == "two.gif"),
                    "{name} {cut}"
                );
            }
        }
        cases += 1;
    }
    assert_eq!(cases, 18);
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

#[test]
fn what_is_no_dataset_is_explained() {
    let dir = tempdir().unwrap();
    let file = put(&dir, "notes.txt", b"hello");
    assert!(error(&file, "train").contains("notes.txt: not a dataset; expected a folder of"));
    let missing = error(&dir.path().join("none"), "train");
    assert!(
        missing.ends_with("none: no such file or folder"),
        "{missing}"
    );
    for error in [
        ImageFolder::open(&file, "train").unwrap_err(),
        open_ilsvrc(&file, "train").unwrap_err(),
    ] {
        assert!(error
            .to_string()
            .ends_with("notes.txt: not a folder; expected one"));
    }
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
    put(&dir, "b/1.bmp", &image(3));
    let odd = |bytes: &[u8]| dir.path().join(OsStr::from_bytes(bytes));
    fs::write(odd(b"a/caf\xe9.bmp"), image(2)).unwrap();
    let source = opened(dir.path(), "train");
    assert_eq!(all(&*source), [(0, 1), (1, 3)]);
    let [warning] = source.warnings() else {
        panic!("{:?}", source.warnings())
    };
    assert!(
        warning.contains("left out 1 file whose name is not valid UTF-8, such as "),
        "{warning}"
    );
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
    let mat = fixture("sources/meta.mat");
    assert_eq!(fuzz::mat(&mat), Ok(5));
    // Bytes changed at random, as a fuzzer that needs no other compiler.
    let r = &mut datasets::rng::rng(0, "fuzz", 0, 0);
    for _ in 0..3000 {
        let mut damaged = shard.clone();
        for _ in 0..1 + datasets::rng::below(r, 4) {
            let at = datasets::rng::below(r, damaged.len());
            damaged[at] = datasets::rng::below(r, 256) as u8;
        }
        let _ = fuzz::webdataset(&damaged);
        let mut damaged = mat.clone();
        let at = datasets::rng::below(r, damaged.len());
        damaged[at] = datasets::rng::below(r, 256) as u8;
        let _ = fuzz::mat(&damaged);
    }
}
