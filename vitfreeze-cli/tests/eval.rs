//! eval of a tiny classifier on a folder of images.
mod common;

use std::path::Path;

use image::GenericImageView;

use common::{checkpoint, classes, fails, ok, vitfreeze};

/// Those of the fixture hf_deit.
const NAMES: [&str; 5] = ["ant", "bee", "cat", "dog", "elk"];

fn eval(data: &Path, out: &Path, more: &[&str]) -> std::process::Command {
    let mut command = vitfreeze(["eval", "--checkpoint"]);
    command.arg(checkpoint("hf_deit"));
    command.arg("--data").arg(data).arg("--out").arg(out);
    command.args(more);
    command
}

#[test]
fn the_files_agree_with_each_other_and_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    classes(&data.join("val"), &NAMES, 3);
    std::fs::write(data.join("val/bee/7.png"), b"no image").unwrap();
    let before = std::fs::read(checkpoint("hf_deit").join("model.safetensors")).unwrap();
    let outs = ["1", "2"].map(|threads| {
        let out = folder.path().join(threads);
        let table = folder.path().join(format!("{threads}.csv"));
        let mut command = eval(&data, &out, &["--threads", threads, "--batch-size=4"]);
        command.arg("--predictions").arg(&table);
        let text = ok(command);
        assert!(text.contains("1 image left out"), "{text}");
        let mut files = vec![std::fs::read_to_string(table).unwrap()];
        for name in ["per_class.csv", "confusion.csv"] {
            files.push(std::fs::read_to_string(out.join(name)).unwrap());
        }
        for name in ["confusion.png", "mistakes.png"] {
            let picture = image::open(out.join(name)).unwrap();
            assert!(picture.width() > 300);
        }
        (out, files)
    });
    assert_eq!(outs[0].1, outs[1].1);
    // Evaluation changes nothing.
    let after = std::fs::read(checkpoint("hf_deit").join("model.safetensors")).unwrap();
    assert!(before == after);

    let (out, files) = &outs[0];
    let result: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("result.json")).unwrap()).unwrap();
    assert_eq!(result["images"], 15);
    assert_eq!(result["top5"], 100.0);
    let lines: Vec<Vec<&str>> = files[0].lines().map(|l| l.split(',').collect()).collect();
    assert_eq!(lines.len(), 16);
    let right = lines[1..].iter().filter(|l| l[1] == l[2]).count();
    assert!((result["top1"].as_f64().unwrap() - 100.0 * right as f64 / 15.0).abs() < 1e-9);
    let diagonal: usize = files[2]
        .lines()
        .skip(1)
        .enumerate()
        .map(|(i, line)| {
            line.split(',')
                .nth(i + 1)
                .unwrap()
                .parse::<usize>()
                .unwrap()
        })
        .sum();
    assert_eq!(diagonal, right);
    // The loss is the mean of -ln of the label's probability; all five are in each line.
    let loss = lines[1..].iter().map(|line| {
        let place = (2..12).step_by(2).find(|&i| line[i] == line[1]).unwrap();
        -line[place + 1].parse::<f64>().unwrap().ln()
    });
    let loss = loss.sum::<f64>() / 15.0;
    assert!((result["loss"].as_f64().unwrap() - loss).abs() < 1e-4);
    assert!(files[1].contains("bee,3,"), "{}", files[1]);
}

#[test]
fn mistakes_are_told_before_anything_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    classes(&data.join("val"), &["ape", "bat"], 2);
    let error = fails(eval(&data, &out, &[]), 2);
    assert!(
        error.contains("not one of the data's 2 classes ('ape', 'bat')"),
        "{error}"
    );
    let one = folder.path().join("one");
    classes(&one.join("val"), &["ape", NAMES[0]], 2);
    let error = fails(eval(&one, &out, &[]), 2);
    assert!(error.contains("among one class every answer"), "{error}");
    let error = fails(eval(&data, &out, &["--split=train"]), 2);
    assert!(error.contains("no split 'train'"), "{error}");
    let shapes = eval(Path::new("shapes"), &out, &["--split=foo"]);
    let error = fails(shapes, 2);
    assert!(error.contains("shapes: no split 'foo'"), "{error}");
    let mut headless = vitfreeze(["eval", "--checkpoint"]);
    headless.arg(checkpoint("hf_dinov2_swiglu"));
    headless.arg("--data").arg(&data);
    let error = fails(headless, 2);
    assert!(error.contains("no head"), "{error}");
    let mut missing = eval(&data, &out, &[]);
    missing.arg("--predictions=nowhere/p.csv");
    fails(missing, 2);
    assert!(!out.exists());
}

#[test]
fn predictions_may_lie_in_the_folder_and_a_failure_leaves_none() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    classes(&data.join("val"), &NAMES, 2);
    let predictions = |path: &Path| {
        let mut command = eval(&data, &out, &[]);
        command.arg("--predictions").arg(path);
        command
    };
    let error = fails(predictions(folder.path()), 2);
    assert!(error.contains("is a folder"), "{error}");
    assert!(!out.exists());
    ok(predictions(&out.join("p.csv")));
    assert!(out.join("p.csv").exists() && out.join("result.json").exists());
}

/// What nobody could read is still in the files.
#[cfg(target_os = "linux")]
#[test]
fn a_full_stdout_loses_no_result() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    classes(&data.join("val"), &NAMES, 2);
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut command = eval(&data, &out, &[]);
    let output = command.stdout(full.unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(out.join("result.json").exists() && out.join("confusion.png").exists());
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing_behind() {
    use std::time::Duration;
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("out"));
    classes(&data.join("val"), &NAMES, 200);
    let mut command = eval(&data, &out, &["--batch-size=1", "--threads=1"]);
    command
        .arg("--predictions")
        .arg(folder.path().join("p.csv"));
    let mut child = command.spawn().unwrap();
    // The table is made once signals are listened to.
    let listing = || std::fs::read_dir(folder.path()).unwrap().count();
    while listing() < 3 && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let id = child.id().to_string();
    let kill = std::process::Command::new("kill")
        .args(["-TERM", &id])
        .status();
    assert!(kill.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(listing(), 1, "only the data is left");
}

/// top-1 by class from per_class.csv, as (class, images, right).
fn per_class(out: &Path) -> Vec<(String, usize, usize)> {
    let text = std::fs::read_to_string(out.join("per_class.csv")).unwrap();
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        (
            fields[0].into(),
            fields[1].parse().unwrap(),
            fields[2].parse().unwrap(),
        )
    };
    text.lines().skip(1).map(row).collect()
}

fn settings(out: &Path) -> serde_json::Value {
    let bytes = std::fs::read(out.join("result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    result["settings"].clone()
}

/// The same images under folders of other names give the same answers, class by class.
#[test]
fn folders_are_matched_by_name_or_number_whatever_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    classes(&at("own/val"), &NAMES, 4);
    ok(eval(&at("own"), &at("out"), &[]));
    let own = per_class(&at("out"));
    // Every class's images under a name that sorts elsewhere: as numbers, with zeros in front, with a space behind.
    for (n, (names, want)) in [
        (["0", "1", "2", "3", "4"], "class numbers"),
        (["04", "03", "02", "01", "00"], "class numbers"),
        (["ant ", "bee ", "cat ", "dog ", "elk "], ""),
    ]
    .into_iter()
    .enumerate()
    {
        let (data, out) = (at(&format!("data{n}")), at(&format!("out{n}")));
        let reversed = n == 1;
        for (i, name) in NAMES.iter().enumerate() {
            let to = names[if reversed { 4 - i } else { i }];
            std::fs::create_dir_all(data.join("val")).unwrap();
            std::fs::rename(at("own/val").join(name), data.join("val").join(to)).unwrap();
        }
        let said = ok(eval(&data, &out, &[]));
        assert!(said.contains(want), "{said}");
        assert_eq!(per_class(&out), own, "{names:?}");
        for (i, name) in NAMES.iter().enumerate() {
            let from = names[if reversed { 4 - i } else { i }];
            std::fs::rename(data.join("val").join(from), at("own/val").join(name)).unwrap();
        }
    }
}

#[test]
fn a_part_of_the_classes_is_judged_alone_and_strange_ones_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // dog and elk stand where ant and bee do; gnu is nobody's.
    classes(&at("data/val"), &["dog", "elk", "gnu"], 4);
    let said = ok(eval(&at("data"), &at("out"), &[]));
    assert!(
        said.contains("only 2 of the checkpoint's 5 classes"),
        "{said}"
    );
    assert!(
        said.contains("4 of 12 images are left out") && said.contains("('gnu')"),
        "{said}"
    );
    let rows = per_class(&at("out"));
    let named: Vec<(&str, usize)> = rows.iter().map(|(n, i, _)| (n.as_str(), *i)).collect();
    assert_eq!(named, [("dog", 4), ("elk", 4)]);
    // Among two, each image is one or the other.
    let cells = std::fs::read_to_string(at("out/confusion.csv")).unwrap();
    assert_eq!(cells.lines().next(), Some("truth,dog,elk"));
    let record = &settings(&at("out"))["classes"];
    assert_eq!(record["judged"], 2);
    assert_eq!(record["of"], 5);
    assert_eq!(record["unknown"][0], "gnu");
    assert_eq!(record["images-of-unknown"], 4);
    // As many classes as outputs changes nothing of that.
    classes(&at("many/val"), &["bee", "cat", "dog", "elk", "gnu"], 2);
    let said = ok(eval(&at("many"), &at("out2"), &[]));
    assert!(said.contains("2 of 10 images are left out"), "{said}");
    let mut command = vitfreeze(["compare"]);
    command.args([at("out"), at("out2")]);
    let said = ok(command);
    assert!(
        said.contains("among 2 of the checkpoint's 5") && said.contains("among 4"),
        "{said}"
    );
    for names in [["n01440764", "n01443537"], ["5", "1"]] {
        let data = at(names[0]);
        classes(&data.join("val"), &names, 1);
        let error = fails(eval(&data, &at("none"), &[]), 2);
        assert!(error.contains("0 to 4"), "{error}");
    }
    assert!(!at("none").exists());
}

/// A checkpoint with so many outputs.
fn wide(dir: &Path, outputs: usize) {
    use safetensors::tensor::{serialize, Dtype, TensorView};
    std::fs::create_dir_all(dir).unwrap();
    let from = checkpoint("hf_deit");
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let width = tensors.tensor("classifier.weight").unwrap().shape()[1];
    let weight: Vec<u8> = (0..outputs * width)
        .flat_map(|i| ((i * 7919 % 1013) as f32 / 1013.0 - 0.5).to_le_bytes())
        .collect();
    let bias = vec![0u8; 4 * outputs];
    let mut all: Vec<(String, TensorView)> = tensors
        .tensors()
        .into_iter()
        .filter(|(name, _)| !name.starts_with("classifier."))
        .collect();
    let new = [
        ("classifier.weight", vec![outputs, width], &weight),
        ("classifier.bias", vec![outputs], &bias),
    ];
    for (name, shape, data) in new {
        all.push((
            name.into(),
            TensorView::new(Dtype::F32, shape, data).unwrap(),
        ));
    }
    std::fs::write(dir.join("model.safetensors"), serialize(all, None).unwrap()).unwrap();
    let config = std::fs::read(from.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let names = (0..outputs).map(|i| (i.to_string(), format!("class {i}").into()));
    config["id2label"] = serde_json::Value::Object(names.collect());
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// What grows with the square of the classes is written as a list; the pairs sum to the images.
#[test]
fn a_matrix_of_many_classes_is_a_list() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let pixels = image::RgbImage::from_pixel(16, 16, image::Rgb([90; 3]));
    pixels.save(at("0.png")).unwrap();
    for (classes, listed) in [(200, false), (201, true), (1600, true)] {
        let (model, data) = (at(&format!("m{classes}")), at(&format!("d{classes}")));
        wide(&model, classes);
        for i in 0..classes {
            let dir = data.join(format!("val/{i}"));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::hard_link(at("0.png"), dir.join("0.png")).unwrap();
        }
        let out = at(&format!("o{classes}"));
        let mut command = vitfreeze(["eval", "--checkpoint"]);
        command
            .arg(&model)
            .arg("--data")
            .arg(&data)
            .arg("--out")
            .arg(&out);
        ok(command);
        let text = std::fs::read_to_string(out.join("confusion.csv")).unwrap();
        if listed {
            assert_eq!(text.lines().next(), Some("label,prediction,count"));
            let counts = text.lines().skip(1).map(|l| l.rsplit(',').next().unwrap());
            let sum: usize = counts.map(|n| n.parse::<usize>().unwrap()).sum();
            assert_eq!(sum, classes);
            assert!(text.contains("class 100,class "), "{text}");
        } else {
            assert_eq!(text.lines().count(), classes + 1);
        }
        let picture = image::open(out.join("confusion.png")).unwrap();
        assert!(picture.width() < 2000, "{}", picture.width());
        // The same image in all classes: one column is as dark as can be from top to bottom.
        let dark = |x| {
            let column = (0..picture.height()).map(|y| picture.get_pixel(x, y).0);
            column.filter(|p| p[..3] == [8, 48, 107]).count()
        };
        let most = (0..picture.width()).map(dark).max().unwrap();
        // All of the matrix' 1280 pixels but its outline.
        assert!((1270..=1280).contains(&most), "{most}");
    }
}

#[test]
fn images_without_labels_cannot_be_judged() {
    let folder = tempfile::tempdir().unwrap();
    let (out, set) = (folder.path().join("out"), folder.path().join("set"));
    classes(&set, &["cat"], 3);
    // A folder of images alone, one that is a split, and a cache of the first.
    let flat = set.join("cat");
    std::fs::create_dir(folder.path().join("splits")).unwrap();
    let split = folder.path().join("splits/val");
    std::fs::create_dir(&split).unwrap();
    std::fs::copy(flat.join("0.png"), split.join("0.png")).unwrap();
    let cache = folder.path().join("flat.cache");
    let mut command = vitfreeze(["data", "cache", "--split=val"]);
    command.arg(&flat).arg("--out").arg(&cache);
    ok(command);
    for data in [flat, folder.path().join("splits"), cache] {
        let error = fails(eval(&data, &out, &[]), 2);
        assert!(error.contains("the val images have no labels ("), "{error}");
        assert!(!out.exists());
    }
}
