//! Folders of images, good and bad.

use std::fs;
use std::path::{Path, PathBuf};

use datasets::{ImageFolder, Source};
use tempfile::{tempdir, TempDir};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/decode")
        .join(name)
}

/// A folder with copies of fixtures: (path, fixture).
fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempdir().unwrap();
    for (path, name) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(fixture(name), path).unwrap();
    }
    dir
}

fn message(dir: &Path, split: &str) -> String {
    let error = ImageFolder::open(dir, split).unwrap_err().to_string();
    assert!(!error.contains('\n'));
    error.replace(&dir.display().to_string(), "DIR")
}

#[test]
fn classes_and_images_are_sorted() {
    let dir = folder(&[
        ("train/b/2.jpg", "photo.jpg"),
        ("train/b/10.JPG", "photo.jpg"),
        ("train/b/a-c/0.png", "color.png"),
        ("train/b/a/z.jpeg", "photo.jpg"),
        ("train/B/x.jpe", "photo.jpg"),
        ("train/a/.hidden.jpg", "photo.jpg"),
        ("train/a/.git/y.jpg", "photo.jpg"),
        ("train/a/notes.txt", "photo.jpg"),
        ("train/a/y.PNG", "color.png"),
        ("train/stray.jpg", "photo.jpg"),
        ("train/.cache/z.jpg", "photo.jpg"),
        ("val/a/1.jpg", "photo.jpg"),
    ]);
    let train = ImageFolder::open(dir.path(), "train").unwrap();
    assert_eq!(train.classes(), ["B", "a", "b"]);
    let root = dir.path().join("train");
    let names: Vec<PathBuf> = (0..train.len())
        .map(|i| train.path(i).strip_prefix(&root).unwrap().to_owned())
        .collect();
    let expected = [
        "B/x.jpe",
        "a/y.PNG",
        "b/10.JPG",
        "b/2.jpg",
        "b/a/z.jpeg",
        "b/a-c/0.png",
    ];
    assert_eq!(names, expected.map(PathBuf::from));
    let labels: Vec<usize> = (0..train.len()).map(|i| train.label(i)).collect();
    assert_eq!(labels, [0, 1, 2, 2, 2, 2]);
    assert!((0..train.len()).all(|i| train.image(i).is_ok()));
    assert_eq!(train.describe(), "ImageFolder, 6 images, 3 classes");

    // The class folders themselves may be given, too.
    assert_eq!(ImageFolder::open(&root, "train").unwrap().len(), 6);
    assert_eq!(ImageFolder::open(dir.path(), "val").unwrap().len(), 1);
}

#[test]
fn contents_decide_and_not_names() {
    let dir = folder(&[("a/1.JPEG", "color.png"), ("a/2.png", "photo.jpg")]);
    let source = ImageFolder::open(dir.path(), "train").unwrap();
    assert_eq!(source.image(0).unwrap().width, 21);
    assert_eq!(source.image(1).unwrap().width, 45);
}

#[test]
fn a_bad_image_is_named() {
    let dir = folder(&[("a/1.jpg", "photo.jpg"), ("a/2.jpg", "photo.jpg")]);
    fs::write(dir.path().join("a/1.jpg"), b"").unwrap();
    let source = ImageFolder::open(dir.path(), "train").unwrap();
    fs::remove_file(dir.path().join("a/2.jpg")).unwrap();
    let message = |i| source.image(i).unwrap_err().to_string();
    assert_eq!(message(0), format!("{}: empty file", source.name(0)));
    assert!(
        message(1).contains("2.jpg: cannot be read: "),
        "{}",
        message(1)
    );
    assert!(source.image(2).is_err());
}

#[test]
fn folders_of_other_layouts_are_explained() {
    let dir = folder(&[("train/a/1.jpg", "photo.jpg")]);
    let missing = dir.path().join("nowhere");
    assert!(message(&missing, "train").starts_with("DIR: no such folder; expected"));
    let file = dir.path().join("train/a/1.jpg");
    assert!(message(&file, "train").starts_with("DIR: not a folder; expected"));
    assert_eq!(
        message(dir.path(), "val"),
        "DIR: no split 'val' here, only train; name one of these"
    );
    fs::create_dir(dir.path().join("empty")).unwrap();
    assert_eq!(
        message(&dir.path().join("empty"), "train"),
        "DIR: no class folders and no images; expected one folder per class: DIR/<class>/<image>.jpg"
    );
}

/// Images alone have no labels: enough for pretraining.
#[test]
fn a_folder_of_images_alone() {
    let dir = folder(&[
        ("flat/b.png", "color.png"),
        ("flat/a.jpg", "photo.jpg"),
        ("flat/list.txt", "photo.jpg"),
        ("splits/Training/1.jpg", "photo.jpg"),
        ("splits/testing/2.jpg", "photo.jpg"),
        ("splits/testing/3.jpg", "photo.jpg"),
    ]);
    let flat = ImageFolder::open(&dir.path().join("flat"), "train").unwrap();
    assert_eq!(flat.describe(), "ImageFolder, 2 images, no labels");
    assert!(!flat.labelled() && flat.label(1) == 0 && flat.image(1).is_ok());
    assert!(flat.name(0).ends_with("flat/a.jpg"));
    assert_eq!(flat.other_files(), [("ending in .txt".into(), 1)]);
    let splits = dir.path().join("splits");
    assert_eq!(ImageFolder::open(&splits, "train").unwrap().len(), 1);
    assert_eq!(ImageFolder::open(&splits, "val").unwrap().len(), 2);
}

/// (train, test) images of `dir`, each a folder with classes a and b, 2 images to learn from and 1 to judge by.
fn learnt(train: &str, test: &str) -> (usize, usize) {
    let names = [
        format!("{train}/a/1.jpg"),
        format!("{train}/b/1.jpg"),
        format!("{test}/a/1.jpg"),
    ];
    let files: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "photo.jpg")).collect();
    let dir = folder(&files);
    let len = |split| ImageFolder::open(dir.path(), split).unwrap().len();
    (len("train"), len("val"))
}

#[test]
fn splits_go_by_any_usual_name() {
    for (train, test) in [
        ("TRAIN", "VAL"),
        ("training_set", "test_set"),
        ("Training", "Validation"),
        ("train2017", "val2017"),
        ("train", "dev"),
        ("trainset", "Eval"),
        ("Train Images", "Test Images"),
    ] {
        assert_eq!(learnt(train, test), (2, 1), "{train}, {test}");
    }
}

/// Paths, and per split: its name, images and classes.
type Layout<'a> = (&'a [&'a str], &'a [(&'a str, usize, usize)]);

/// Splits that only their names together tell, and folders within folders of the same name, as archives unpack them.
#[test]
fn splits_in_odd_dress() {
    let layouts: [Layout; 6] = [
        (
            &[
                "seg_train/seg_train/a/1.jpg",
                "seg_train/seg_train/b/1.jpg",
                "seg_test/seg_test/a/1.jpg",
                "seg_pred/seg_pred/1.jpg",
            ],
            &[("train", 2, 2), ("val", 1, 1), ("seg_pred", 1, 0)],
        ),
        (
            &[
                "fruitTrain/a/1.jpg",
                "fruitTrain/b/1.jpg",
                "fruitValid/a/1.jpg",
                "notes/x.txt",
            ],
            &[("train", 2, 2), ("valid", 1, 1)],
        ),
        (
            &["train-00/a/1.jpg", "train-00/b/1.jpg", "test-00/a/1.jpg"],
            &[("train", 2, 2), ("test", 1, 1), ("test-00", 1, 1)],
        ),
        (
            &["train/train/a.jpg", "train/train/b.jpg"],
            &[("train", 2, 0)],
        ),
        (
            &["pets_train/1.jpg", "pets_train/2.jpg", "pets_test/1.jpg"],
            &[("train", 2, 0), ("test", 1, 0)],
        ),
        (
            &[
                "valdata/valdata/b/1.jpg",
                "traindata/traindata/b/1.jpg",
                "traindata/traindata/c/1.jpg",
            ],
            &[("train", 2, 2), ("val", 1, 1)],
        ),
    ];
    for (paths, splits) in layouts {
        let files: Vec<(&str, &str)> = paths.iter().map(|path| (*path, "photo.jpg")).collect();
        let dir = folder(&files);
        for &(split, images, classes) in splits {
            let source = ImageFolder::open(dir.path(), split).unwrap();
            let found = (source.len(), source.classes().len());
            assert_eq!(found, (images, classes), "{paths:?} {split}");
        }
    }
    let parts = folder(&[
        ("train-0/a/1.jpg", "photo.jpg"),
        ("train-1/b/1.jpg", "photo.jpg"),
        ("test-0/a/1.jpg", "photo.jpg"),
    ]);
    let both = message(parts.path(), "train");
    assert!(
        both.contains("'train-0' and 'train-1' may both be 'train'"),
        "{both}"
    );
    let part = ImageFolder::open(parts.path(), "test").unwrap();
    assert_eq!(
        part.counted_in(),
        Some(parts.path().join("test-0").as_path())
    );
    let part = ImageFolder::open(&parts.path().join("test-0"), "test").unwrap();
    assert_eq!(part.counted_in(), None);
    // The folder of one split by itself, and a folder of the dataset's own name.
    let dir = folder(&[
        ("x_train/x_train/a/1.jpg", "photo.jpg"),
        ("x_train/x_train/b/1.jpg", "photo.jpg"),
        ("set/set/a/1.jpg", "photo.jpg"),
        ("set/set/b/1.jpg", "photo.jpg"),
        ("cat/cat/1.jpg", "photo.jpg"),
        ("cat/2.jpg", "photo.jpg"),
    ]);
    for (name, classes) in [("x_train", 2), ("set", 2), ("cat", 1)] {
        let source = ImageFolder::open(&dir.path().join(name), "train").unwrap();
        assert_eq!(source.classes().len(), classes, "{name}");
    }
}

/// Classes whose names merely hold such a word stay classes, with a warning where they are many.
#[test]
fn classes_with_the_word_of_a_split() {
    for (classes, told) in [
        (&["train", "test_tube", "training_shoes"][..], true),
        (&["trainA", "trainB", "testA", "testB"], true),
        (&["kit_train", "kit_test", "ant", "bee", "cow"], true),
        (&["bullet_train", "test_tube", "car", "dog", "owl"], false),
        (&["developer", "trainer", "tester"], false),
    ] {
        let paths: Vec<String> = classes.iter().map(|c| format!("{c}/1.jpg")).collect();
        let files: Vec<(&str, &str)> = paths.iter().map(|p| (p.as_str(), "photo.jpg")).collect();
        let dir = folder(&files);
        let source = ImageFolder::open(dir.path(), "train").unwrap();
        assert_eq!(source.classes().len(), classes.len(), "{classes:?}");
        let warnings = source.warnings().join("\n");
        let found = warnings.contains("class folders are named like splits");
        assert_eq!(found, told, "{classes:?}: {warnings}");
    }
}

/// What systems put beside the images is no class, at no depth, and is counted by name.
#[test]
fn folders_of_systems_are_left_out() {
    for (made, name) in [
        ("__MACOSX", "__MACOSX"),
        ("@eaDir", "@eaDir"),
        ("$Recycle.Bin", "$RECYCLE.BIN"),
        ("lost+found", "lost+found"),
        (".Trash-1000", ".Trash"),
        (".ipynb_checkpoints", ".ipynb_checkpoints"),
        ("System Volume Information", "System Volume Information"),
    ] {
        let paths = [
            "a/1.jpg".to_owned(),
            "b/1.jpg".to_owned(),
            format!("{made}/a/1.jpg"),
            format!("{made}/1.jpg"),
            format!("a/{made}/1.jpg"),
        ];
        let files: Vec<(&str, &str)> = paths.iter().map(|p| (p.as_str(), "photo.jpg")).collect();
        let dir = folder(&files);
        let source = ImageFolder::open(dir.path(), "train").unwrap();
        assert_eq!(source.classes(), ["a", "b"], "{made}");
        assert_eq!(source.len(), 2, "{made}");
        let expected = [(format!("made by the system or a program: {name}"), 2)];
        assert_eq!(source.other_files(), expected);
    }
}

#[test]
fn splits_on_another_level_are_an_error() {
    for (paths, expected) in [
        (
            ["set/Train/a/1.jpg", "set/Test/a/1.jpg"],
            "DIR: the splits lie further down, in set/Test, set/Train; name the folder that holds them: DIR/set",
        ),
        (
            ["one/set/train/a/1.jpg", "one/set/valid/a/1.jpg"],
            "in one/set/train, one/set/valid; name the folder that holds them: DIR/one/set",
        ),
        (
            ["bottle/training/1.jpg", "nut/testing/1.jpg"],
            "in bottle/training, nut/testing; name the folder that holds them: DIR/bottle or DIR/nut",
        ),
    ] {
        let dir = folder(&paths.map(|path| (path, "photo.jpg")));
        let message = message(dir.path(), "train");
        assert!(message.ends_with(expected), "{message}");
    }
}

#[test]
fn odd_levels_are_told() {
    for (paths, classes, expected) in [
        (
            &["cat/1.jpg", "dog/1.jpg", "2.jpg"][..],
            2,
            "left out 1 file beside the class folders, such as 2.jpg; move them into the folder of their class",
        ),
        (
            &["pets/cat/1.jpg", "pets/dog/1.jpg", "wild/fox/1.jpg"],
            2,
            "DIR: no image lies in a class folder itself, only in folders within, such as pets/cat; the class is taken to be pets",
        ),
        (
            &["images/1.jpg", "images/2.jpg"],
            1,
            "DIR: only one class folder, images; perhaps another folder was meant, above or below",
        ),
        (
            &["a/1.jpg", "b/2.jpg", "b/test/1.jpg"],
            2,
            "DIR: 1 image in folders named like splits (b/test), read like all others",
        ),
        (
            &["bus/1.jpg", "train/1.jpg", "car/1.jpg"],
            3,
            "DIR: train taken for a class and not for a split, since bus, car beside it",
        ),
        (
            &["train/a/1.jpg", "train/b/1.jpg", "Training/a/1.jpg", "extra/a/1.jpg"],
            2,
            "DIR: only train is read; there are more images in Training, extra",
        ),
    ] {
        let files: Vec<(&str, &str)> = paths.iter().map(|path| (*path, "photo.jpg")).collect();
        let dir = folder(&files);
        let source = ImageFolder::open(dir.path(), "train").unwrap();
        assert_eq!(source.classes().len(), classes, "{paths:?}");
        let warnings = source.warnings().join("\n");
        let warnings = warnings.replace(&dir.path().display().to_string(), "DIR");
        assert!(warnings.lines().any(|w| w == expected), "{warnings}");
    }
}

/// Images, and each kind of file that is none: together all files there.
#[cfg(unix)]
#[test]
fn every_file_is_counted() {
    use std::os::unix::{fs::symlink, net::UnixListener};
    use std::process::Command;
    let dir = folder(&[
        ("a/1.jpg", "photo.jpg"),
        ("a/2.avif", "photo.jpg"),
        ("a/3.HEIC", "photo.jpg"),
        ("a/more/4.avif", "photo.jpg"),
        ("a/Thumbs.db", "photo.jpg"),
        ("a/.hidden.jpg", "photo.jpg"),
        ("b/1.png", "color.png"),
        ("b/noending", "color.png"),
        ("readme.md", "photo.jpg"),
        ("5.png", "color.png"),
    ]);
    for link in ["a/dead.jpg", "b/dead", "c"] {
        symlink("/nonexistent", dir.path().join(link)).unwrap();
    }
    // What would wait for ever, under names that a terminal would obey.
    let _socket = UnixListener::bind(dir.path().join("a/\u{1b}[2J.png")).unwrap();
    let fifo = Command::new("mkfifo")
        .arg(dir.path().join("b/x.jpg"))
        .status();
    assert!(fifo.unwrap().success());
    let source = ImageFolder::open(dir.path(), "train").unwrap();
    // A link to nowhere that is named as an image is one that cannot be read.
    assert_eq!((source.len(), source.classes().len()), (3, 2));
    assert!(source
        .image(1)
        .unwrap_err()
        .to_string()
        .contains("dead.jpg: cannot be read"));
    let others: usize = source.other_files().iter().map(|(_, count)| count).sum();
    assert_eq!(source.len() + others, 15, "{:?}", source.other_files());
    let warnings = source.warnings().join("\n");
    for part in [
        "left out 2 files of the format .avif, which is not read, such as ",
        "left out 1 file of the format .heic, ",
        "left out 2 files behind dead links, such as ",
        "left out 2 files of the kind pipe, socket or device, such as ",
        r"a/\u{1b}[2J.png; remove them",
        "left out 1 file beside the class folders, such as 5.png; ",
    ] {
        assert!(warnings.contains(part), "{part}: {warnings}");
    }
    assert!(
        !warnings.contains("readme") && !warnings.contains("Thumbs"),
        "{warnings}"
    );
}

#[test]
fn empty_classes_are_named() {
    let dir = folder(&[("b/1.jpg", "photo.jpg")]);
    for class in ["a", "c"] {
        fs::create_dir(dir.path().join(class)).unwrap();
    }
    assert_eq!(
        message(dir.path(), "train"),
        "DIR: no images in class folder a, c; add images (.jpg, .jpeg, .jpe, .jfif, .png, .webp, .bmp, .tif, .tiff, .ppm, .pgm, .pbm, .gif, .pnm) or remove it"
    );
    fs::remove_dir_all(dir.path().join("b")).unwrap();
    assert!(
        message(dir.path(), "train").starts_with("DIR: no images in its class folders; expected")
    );
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_in_circles() {
    use std::os::unix::fs::symlink;
    let dir = folder(&[
        ("train/a/1.jpg", "photo.jpg"),
        ("elsewhere/2.jpg", "photo.jpg"),
    ]);
    let at = |path: &str| dir.path().join(path);
    symlink(at("elsewhere"), at("train/b")).unwrap();
    symlink(at("train/a/1.jpg"), at("train/a/3.jpg")).unwrap();
    symlink(at("train/a"), at("train/a/circle")).unwrap();
    symlink("nowhere", at("train/a/.#lock.jpg")).unwrap();
    let source = ImageFolder::open(dir.path(), "train").unwrap();
    assert_eq!((source.len(), source.classes().len()), (3, 2));
}
