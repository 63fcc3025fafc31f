//! Files under a dataset's name that are something else: what they are, and what to do.

use datasets::open;

#[test]
fn a_file_that_is_something_else_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n";
    for (name, bytes, want) in [
        ("train-0.parquet", lfs.as_bytes(), "a Git LFS pointer"),
        ("train-0.tar", lfs.as_bytes(), "a Git LFS pointer"),
        (
            "train-0.parquet",
            b"image,label\na.png,1\n",
            "does not begin with PAR1",
        ),
        ("train-0.parquet", b"PARE....", "an encrypted Parquet file"),
        (
            "train-0.parquet",
            b"PAR1, and then nothing",
            "not a whole Parquet file",
        ),
        (
            "train-0.tar",
            b"\n<!DOCTYPE html><title>Sign in</title>",
            "an HTML page",
        ),
        ("train-0.tar", b"\x1f\x8b\x08\0", "compressed with gzip"),
        ("train-0.tar", b"PK\x03\x04", "a zip archive"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let line = open(path.to_str().unwrap(), "train")
            .err()
            .unwrap()
            .to_string();
        assert!(line.contains(want) && line.contains(name), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }
}
