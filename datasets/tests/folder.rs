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
    let no_classes =
        "DIR: no class folders; expected one folder per class: DIR/<class>/<image>.jpg";
    assert_eq!(message(&dir.path().join("train/a"), "train"), no_classes);
}

#[test]
fn empty_classes_are_named() {
    let dir = folder(&[("b/1.jpg", "photo.jpg")]);
    for class in ["a", "c"] {
        fs::create_dir(dir.path().join(class)).unwrap();
    }
    assert_eq!(
        message(dir.path(), "train"),
        "DIR: no images in class folder a, c; add images (.jpg, .jpeg, .jpe, .png, .webp, .bmp) or remove it"
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

    symlink("nowhere", at("train/a/4.jpg")).unwrap();
    let message = message(dir.path(), "train");
    assert!(
        message.starts_with("DIR/train/a/4.jpg: cannot be read: No such file"),
        "{message}"
    );
}
