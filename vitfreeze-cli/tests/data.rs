//! `vitfreeze data`, and `--data` of sources other than folders.
mod common;

use std::path::Path;

use common::{assert_same_state, fails, ok, pretrain, resume, vitfreeze};

/// `classes` folders of `each` PNGs of 20 x 16 pixels in train/.
fn write_images(dir: &Path, classes: usize, each: usize) {
    for i in 0..classes * each {
        let folder = dir.join(format!("train/class{}", i % classes));
        std::fs::create_dir_all(&folder).unwrap();
        let pixel = |x: u32, y: u32| {
            image::Rgb([(17 * i as u32 + 9 * x) as u8, (13 * y) as u8, (x * y) as u8])
        };
        let image = image::RgbImage::from_fn(20, 16, pixel);
        image.save(folder.join(format!("{i:03}.png"))).unwrap();
    }
}

fn data(args: &[&str]) -> std::process::Command {
    let mut command = vitfreeze(["data"]);
    command.args(args);
    command
}

#[test]
fn inspect_counts_and_checks() {
    let dir = tempfile::tempdir().unwrap();
    write_images(dir.path(), 3, 4);
    let path = dir.path().to_str().unwrap();
    let said = ok(data(&["inspect", path]));
    assert!(
        said.starts_with("ImageFolder, 12 images, 3 classes\n"),
        "{said}"
    );
    for line in [
        "class1               4\n",
        "width   20 / 20 / 20\n",
        "height  16 / 16 / 16\n",
    ] {
        assert!(said.contains(line), "{said}");
    }
    assert!(ok(data(&["inspect", path, "--check"])).contains("all images can be read"));
    std::fs::write(dir.path().join("train/class0/003.png"), b"no image").unwrap();
    std::fs::write(dir.path().join("train/class0/000.png"), b"").unwrap();
    let output = data(&["inspect", path, "--check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = common::text(&output);
    for line in [
        "000.png: empty file\n",
        "003.png: none of JPEG",
        "2 of 12 images cannot be read",
    ] {
        assert!(said.contains(line), "{said}");
    }
    let said = common::text(
        &data(&["inspect", path, "--max-pixels=100", "--check"])
            .output()
            .unwrap(),
    );
    assert!(
        said.contains("20 x 16 pixels, more than the limit of 100"),
        "{said}"
    );
}

/// Images without labels do for whatever needs none; the rest says so.
#[test]
fn images_without_labels() {
    let dir = tempfile::tempdir().unwrap();
    write_images(dir.path(), 1, 12);
    let flat = dir.path().join("train/class0");
    std::fs::write(flat.join("list.txt"), "hello").unwrap();
    std::fs::write(flat.join("more.avif"), "hello").unwrap();
    let path = flat.to_str().unwrap();
    let said = ok(data(&["inspect", path, "--check"]));
    for line in [
        "ImageFolder, 12 images, no labels\n",
        "files 14 = 12 images + 2 others\n",
        "       1 of the format .avif, which is not read\n",
        "       1 ending in .txt\n",
        "all images can be read",
    ] {
        assert!(said.contains(line), "{said}");
    }
    assert!(!said.contains("per class"), "{said}");
    let cache = dir.path().join("flat.cache");
    ok(data(&["cache", path, "--out", cache.to_str().unwrap()]));
    let said = ok(data(&["inspect", cache.to_str().unwrap()]));
    assert!(
        said.starts_with("cache of ImageFolder, 12 images, no labels, from "),
        "{said}"
    );
    let grid = format!("--out={}", dir.path().join("grid.png").display());
    let said = ok(data(&[
        "preview",
        path,
        &grid,
        "--image-size=8",
        "--rows=1",
        "--columns=1",
    ]));
    assert!(said.contains("row 1: no label ("), "{said}");
    let run = dir.path().join("run");
    ok(pretrain(
        &run,
        &[&format!("--data={path}"), "--batch-size=4", "--max-steps=1"],
    ));
    let encoder = format!("--checkpoint={}", run.display());
    let out = dir.path().join("features.safetensors");
    let (from, to) = (format!("--data={path}"), format!("--out={}", out.display()));
    ok(vitfreeze(["embed", &encoder, &from, &to]));
    let bytes = std::fs::read(&out).unwrap();
    let head = String::from_utf8_lossy(&bytes[8..bytes.len().min(2000)]).into_owned();
    assert!(
        head.contains("\"features\"") && !head.contains("\"labels\""),
        "{head}"
    );

    let val = format!("--val-data={path}");
    let probe = format!("--out={}", dir.path().join("probe").display());
    for mut arguments in [
        vec!["knn", &encoder, &from, &val],
        vec!["linprobe", &encoder, &from, &val, &probe],
        vec!["finetune", &encoder, &from, &val, &probe],
    ] {
        let message = fails(vitfreeze(arguments.drain(..)), 2);
        assert!(
            message.contains("the training images have no labels (ImageFolder, 12"),
            "{message}"
        );
    }
}

/// Pretraining does not learn from the images to judge by, however the folders are called.
#[test]
fn splits_that_lie_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    write_images(dir.path(), 2, 4);
    std::fs::create_dir(dir.path().join("set")).unwrap();
    let set = dir.path().join("set");
    std::fs::rename(dir.path().join("train"), set.join("Training")).unwrap();
    std::fs::create_dir(set.join("Testing")).unwrap();
    std::fs::rename(set.join("Training/class1"), set.join("Testing/class1")).unwrap();
    let inspect = |path: &Path| data(&["inspect", path.to_str().unwrap()]);
    assert!(ok(inspect(&set)).starts_with("ImageFolder, 4 images, 1 class\n"));
    let message = fails(inspect(dir.path()), 2);
    assert!(
        message
            .contains("the splits lie further down, in set/Testing, set/Training; name the folder"),
        "{message}"
    );
}

#[test]
fn preview_draws_a_grid() {
    let dir = tempfile::tempdir().unwrap();
    write_images(dir.path(), 3, 4);
    let path = dir.path().to_str().unwrap();
    let out = dir.path().join("grid.png");
    let draw = |kind: &str| {
        let to = format!("--out={}", out.display());
        let kind = format!("--transform={kind}");
        let said = ok(data(&[
            "preview",
            path,
            &to,
            &kind,
            "--image-size=32",
            "--rows=2",
            "--columns=3",
        ]));
        assert!(said.contains("row 2: class"), "{said}");
        image::open(&out).unwrap().to_rgb8()
    };
    let (plain, finetune) = (draw("eval"), draw("finetune"));
    assert_eq!(plain, draw("eval"));
    // Twice as many pixels as the drawing has units: tiles of 96, 104 apart, from 24 on; without their captions.
    let column = |grid: &image::RgbImage, n: u32| {
        image::imageops::crop_imm(grid, 2 * (24 + n * 104), 2 * 76, 2 * 96, 2 * 96).to_image()
    };
    // The first column is the image as it is, in both; the others of an evaluation are like it.
    assert_eq!(column(&plain, 0), column(&plain, 2));
    assert_eq!(column(&plain, 0), column(&finetune, 0));
    // Three of four patches are covered: all of them have the cover's hue.
    let hidden = column(&draw("pretrain"), 1);
    let grey = |p: &&image::Rgb<u8>| p.0[2] > 150 && p.0[0].abs_diff(p.0[2]) < 60;
    assert!(hidden.pixels().filter(grey).count() * 10 > hidden.pixels().count() * 7);
    assert!(column(&finetune, 1) != column(&finetune, 2));
    // Written beside it and renamed: nothing is left, and what is no file is not replaced.
    let names = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["grid.png", "train"]);
    let taken = tempfile::tempdir().unwrap();
    let to = format!("--out={}", taken.path().join("folder.png").display());
    std::fs::create_dir(taken.path().join("folder.png")).unwrap();
    assert!(fails(data(&["preview", path, &to, "--image-size=32"]), 1).contains("cannot write"));
    assert_eq!(std::fs::read_dir(taken.path()).unwrap().count(), 1);
}

/// A run on the cache is the run on the folder, and one can be gone on with on the other.
#[test]
fn a_cache_gives_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("images");
    write_images(&folder, 4, 10);
    let cache = dir.path().join("images.cache");
    let make = || {
        data(&[
            "cache",
            folder.to_str().unwrap(),
            "--out",
            cache.to_str().unwrap(),
        ])
    };
    let said = ok(make());
    assert!(said.contains("ImageFolder, 40 images, 4 classes"), "{said}");
    assert!(fails(make(), 2).contains("images.cache exists; remove it"));
    let said = ok(data(&["inspect", cache.to_str().unwrap()]));
    let from = format!(
        "cache of ImageFolder, 40 images, 4 classes, from {} (train)\n",
        folder.display()
    );
    assert!(said.starts_with(&from), "{said}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);

    let run = |name: &str, data: &Path, more: &[&str]| {
        let out = dir.path().join(name);
        let data = format!("--data={}", data.display());
        ok(pretrain(&out, &[&[data.as_str()], more].concat()));
        out
    };
    let whole = run("whole", &folder, &[]);
    let said = run("cached", &cache, &["--max-steps=7"]);
    ok(resume(
        &said,
        &[&format!("--data={}", folder.display()), "--max-steps=12"],
    ));
    ok(resume(&said, &[&format!("--data={}", cache.display())]));
    assert_same_state(&whole, &said);
}

#[test]
fn bench_measures_the_loader() {
    let dir = tempfile::tempdir().unwrap();
    write_images(dir.path(), 2, 5);
    let path = dir.path().to_str().unwrap();
    let said = ok(data(&[
        "bench",
        path,
        "--image-size=16",
        "--seconds=1",
        "--json",
    ]));
    let json: serde_json::Value = serde_json::from_str(said.trim()).unwrap();
    assert!(json["images_per_second"].as_f64().unwrap() > 0.0);
    assert!(
        ok(data(&["bench", "shapes", "--image-size=16", "--seconds=1"]))
            .contains("images/s at 16 px")
    );
}

#[test]
fn mistakes_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes.txt");
    std::fs::write(&file, "hello").unwrap();
    let path = file.to_str().unwrap();
    assert!(fails(data(&["inspect", path]), 2).contains("not a dataset; expected"));
    assert!(fails(data(&["inspect", "no/such/thing"]), 2).contains("no such"));
    assert!(fails(data(&["bench", "shapes", "--image-size=0"]), 2).contains("it must be 1 to 4096"));
    let nowhere = dir.path().join("no/such/grid.png");
    let out = format!("--out={}", nowhere.display());
    let few = [
        "preview",
        "shapes",
        &out,
        "--image-size=8",
        "--rows=1",
        "--columns=1",
    ];
    assert!(fails(data(&few), 2).contains("cannot write"));
    let message = fails(data(&["inspect", "shapes", "--split=extra"]), 2);
    assert!(message.contains("no split 'extra' here, only"), "{message}");
}

/// Ctrl-C while caching leaves nothing behind.
#[cfg(unix)]
#[test]
fn an_interrupted_cache_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("images");
    write_images(&folder, 2, 10);
    for i in 0..40 {
        let link = folder.join(format!("train/class0/more{i}"));
        std::os::unix::fs::symlink(folder.join("train/class1"), link).unwrap();
    }
    let out = dir.path().join("out.cache");
    let mut command = data(&[
        "cache",
        folder.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ]);
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // As soon as the file is there.
    let began = std::time::Instant::now();
    while std::fs::read_dir(dir.path()).unwrap().count() < 2 && began.elapsed().as_secs() < 60 {
        std::thread::yield_now();
    }
    let kill = std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(kill.is_ok());
    let status = child.wait().unwrap();
    // It may have been done before the signal came.
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    match status.code() {
        Some(143) => assert_eq!(left, 1),
        code => assert_eq!((code, left), (Some(0), 2)),
    }
}
