//! `vitfreeze schedule`: the table, the pictures, the errors.
mod common;

use common::*;

const REFERENCE: [&str; 5] = [
    "schedule",
    "--model=vit-base",
    "--data=imagenet",
    "--epochs=100",
    "--warmup-epochs=10",
];

#[test]
fn the_reference_schedule() {
    let said = ok(vitfreeze(REFERENCE));
    // Freeze epochs of the published schedule.
    let epochs = [
        "56.1", "59.0", "62.1", "65.3", "68.6", "72.0", "75.6", "79.3", "83.2", "87.2", "91.3",
        "95.6", "never",
    ];
    let rows: Vec<Vec<&str>> = said
        .lines()
        .map(|line| line.split_whitespace().collect())
        .filter(|row: &Vec<&str>| row.first().is_some_and(|n| n.parse::<usize>().is_ok()))
        .collect();
    assert_eq!(rows.len(), 13, "{said}");
    for (row, epoch) in rows.iter().zip(epochs) {
        assert!(row.contains(&epoch), "{row:?}");
        assert!(row.contains(&"1.60e-3"), "{row:?}");
    }
    let shares: f64 = rows
        .iter()
        .map(|row| {
            row[row.iter().position(|word| *word == "%").unwrap() - 1]
                .parse::<f64>()
                .unwrap()
        })
        .sum();
    assert!((shares - 100.0).abs() < 1.5, "{shares}");
    assert!(said.contains("saves 15.8 % of compute"), "{said}");
    assert!(said.contains("FreezeOut's own estimator"), "{said}");
    let scaled = ok(vitfreeze(
        REFERENCE.iter().copied().chain(["--layer-lr=scaled"]),
    ));
    // lr / rho of layer 0: 1.6e-3 / 0.512.
    assert!(scaled.contains("3.12e-3"), "{scaled}");
}

/// Against numbers counted by hand: 359.7 MB are 89.9 M parameters, a ring of 8 sends 2 * 7 / 8 of them at 10 Gbit/s in 0.504 s,
/// after 256 / 932 = 0.275 s of compute.
#[test]
fn many_workers() {
    let run = |more: &[&str]| ok(vitfreeze(REFERENCE.iter().chain(more)));
    let said = run(&["--workers=8", "--bandwidth=10", "--accum=4"]);
    for line in [
        "8 workers, link of 10 Gbit/s: steps of 2048 images, 932 images/s of one worker",
        "100 epochs of 626 steps, 10 of warm-up, learning rate 1.60e-3",
        "359.7 MB with nothing frozen, 32.3 MB at the end (12 frozen)",
        "an H100 in f32 assumed",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let cells = |said: &str, name: &str| -> Vec<f64> {
        let row = said.lines().find(|line| line.starts_with(name));
        let row = row.unwrap_or_else(|| panic!("{name}: {said}"));
        let words = row[name.len()..].split_whitespace();
        words.filter_map(|word| word.parse().ok()).collect()
    };
    let row = |name| cells(&said, name);
    assert_eq!(row("step with nothing frozen")[0], 0.778);
    assert_eq!(row("saved of compute"), [15.8, 15.8]);
    // Frozen layers that are not sent save more than the compute; those that are lose most of it.
    let (out, kept) = (row("saved of wall clock"), row("saved if frozen"));
    assert!(out[0] > 19.0 && out[1] > 19.0, "{said}");
    assert!(kept[0] < 6.0 && kept[1] < kept[0], "{said}");
    // One worker, and a link that takes no time: the compute's saving.
    let fast = ["--workers=8", "--accum=4", "--bandwidth=1e9"];
    for more in [&["--workers=1"][..], &fast] {
        let said = run(&[more, &["--images-per-second=8.1"]].concat());
        for name in ["saved of wall clock", "saved if frozen"] {
            assert_eq!(cells(&said, name), [15.8, 15.8], "{said}");
        }
        assert!(said.contains("8.1 images/s") && !said.contains("an H100"));
    }
    // Another model's speed by its multiplications.
    let small = ok(vitfreeze(["schedule", "--model=vit-small", "--workers=1"]));
    assert!(!small.contains("932 images/s"), "{small}");
}

#[test]
fn pictures_for_13_and_33_layers() {
    let dir = tempfile::tempdir().unwrap();
    let deep = [
        "schedule",
        "--model=vit-huge",
        "--patch-size=16",
        "--data=imagenet",
        "--layer-lr=unscaled",
    ];
    for (args, layers) in [(&REFERENCE[..], 13), (&deep[..], 33)] {
        let (png, svg) = (dir.path().join("a.png"), dir.path().join("a.svg"));
        for path in [&png, &svg] {
            let mut command = vitfreeze(args);
            command.arg("--plot").arg(path);
            assert!(ok(command).contains("drawn to"));
        }
        let image = image::open(&png).unwrap().to_rgb8();
        assert_eq!(image.dimensions(), (1520, 2 * (364 + 17 * layers)));
        // The colours of the first and of the last layer's bar, and a lot of white.
        let count = |rgb: [u8; 3]| image.pixels().filter(|p| p.0 == rgb).count();
        assert!(
            count([68, 1, 84]) > 8000 && count([115, 191, 84]) > 16_000,
            "{layers}"
        );
        assert!(count([255, 255, 255]) > 400_000);
        // Nothing touches the picture's edge.
        let (w, h) = image.dimensions();
        let edge = |x: u32, y: u32| x.min(w - 1 - x).min(y).min(h - 1 - y) < 16;
        let mut edges = image.enumerate_pixels().filter(|(x, y, _)| edge(*x, *y));
        assert!(edges.all(|(_, _, p)| p.0 == [255; 3]));
        let text = std::fs::read_to_string(&svg).unwrap();
        for label in [
            "0 patch_embed",
            "learning rate (× 10⁻³)",
            "epoch",
            "freezing cubic from t0 = 0.8",
        ] {
            assert!(text.contains(label), "{label}");
        }
        assert!(text.contains(&format!("{} blocks.{}", layers - 1, layers - 2)));
    }
    // Nothing else is left in the folder.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_plan_is_listed() {
    let said = ok(vitfreeze(["schedule", "--freeze=at:0=6,96=3,320=0"]));
    for line in [
        "from epoch 0.0 on 6 of 13 layers are frozen",
        "from epoch 3.0 on 3 of",
        "from epoch 10.0 on 0 of",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(!said.contains("FreezeOut's own"), "{said}");
}

#[test]
fn bad_input_is_one_line() {
    let of = |args: &[&str], code| fails(vitfreeze(["schedule"].iter().chain(args)), code);
    assert!(of(&["--plot=x.gif"], 2).contains("must end in .png or .svg"));
    assert!(of(&["--plot=/nowhere/x.png"], 2).contains("cannot write /nowhere/x.png"));
    assert!(of(&["--images=18446744073709551615", "--batch-size=1"], 2).contains("too many"));
    assert!(of(&["--freeze=at:999=1"], 2).contains("step 999 lies beyond the run's 384 steps"));
    assert!(of(&["--freeze=at:40=1", "--layer-lr=scaled"], 2).contains("use unscaled or shared"));
    assert!(of(&["--images=0"], 2).contains("images is 0"));
    assert!(of(&["--t0=0"], 2).contains("t0 is 0"));
    assert!(of(&["--freeze=power:-1"], 2).contains("power:-1"));
    assert!(of(&["--freeze=at:5=99"], 2).contains("at most 12 of 13"));
    assert!(of(&["--workers=2"], 2).contains("--workers 2 needs --bandwidth GBIT"));
    assert!(of(&["--bandwidth=2"], 2).contains("give --workers N"));
    assert!(of(&["--images-per-second=2"], 2).contains("give --workers N"));
    assert!(of(&["--workers=0"], 2).contains("0 is not in 1..=1000000"));
    for bad in ["0", "-1", "nan", "inf"] {
        for name in ["bandwidth", "images-per-second"] {
            let flag = format!("--{name}={bad}");
            let line = of(&["--workers=2", "--bandwidth=1", &flag], 2);
            assert!(line.contains("it must be 0.01 to"), "{line}");
        }
    }
    let line = of(&["--workers=1000", "--bandwidth=1"], 2);
    assert!(line.contains("x 1000 workers is larger than the 2048 images"));
    assert!(of(&["--model=vit-colossal"], 2).contains("vit-colossal"));
}

#[test]
fn a_model_alone_is_asked_about_for_imagenet() {
    for (model, size) in [("vit-base", 224), ("vit-small", 224), ("vit-large", 224)] {
        let said = ok(vitfreeze(["schedule", "--model", model]));
        let head = format!("{model} {size} px, 1281167 images: 100 epochs of 626 steps");
        assert!(
            said.contains(&head) && said.contains("ImageNet-1K assumed"),
            "{said}"
        );
    }
    // Whoever names data, a number of drawn images or nothing at all means those.
    for more in ["--data=shapes", "--samples=2048"] {
        let said = ok(vitfreeze(["schedule", "--model=vit-base", more]));
        assert!(said.contains("32 px, 2048 images"), "{said}");
    }
    assert!(ok(vitfreeze(["schedule"])).contains("vit-tiny 32 px, 2048 images"));
    let said = ok(vitfreeze(["schedule", "--freeze=none"]));
    assert!(!said.contains("-0.0 %"), "{said}");
}

#[test]
fn the_images_of_data_that_is_here_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    for (split, images) in [("train", 20), ("val", 5)] {
        let class = dir.path().join("set").join(split).join("ant");
        std::fs::create_dir_all(&class).unwrap();
        for i in 0..images {
            std::fs::write(class.join(format!("{i}.jpg")), "counted, not read").unwrap();
        }
    }
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    std::fs::write(
        at("c.toml"),
        format!("data = {:?}\nmodel = 'vit-base'", at("set")),
    )
    .unwrap();
    let schedule = |more: &[&str]| {
        let mut command = vitfreeze(["schedule", "--batch-size=4", "--accum=1"]);
        command.args(more);
        command
    };
    let data = format!("--data={}", at("set"));
    for more in [
        &["--model=vit-base", &data][..],
        &[&data],
        &["--config", &at("c.toml")],
        &["--samples=99", &data],
    ] {
        let said = ok(schedule(more));
        let counted = said.contains("224 px, 20 images: 100 epochs of 5 steps");
        assert!(counted && !said.contains("assumed"), "{said}");
    }
    let said = ok(schedule(&[&data, "--images=40"]));
    assert!(said.contains("40 images: 100 epochs of 10 steps"), "{said}");
    for elsewhere in [&at("none"), "hf://datasets/org/name"] {
        let said = ok(schedule(&[&format!("--data={elsewhere}")]));
        let told = said.contains("not on this machine: ImageNet-1K's 1281167 images assumed");
        assert!(told && said.contains("px, 1281167 images"), "{said}");
    }
    let error = fails(schedule(&[&data, "--batch-size=32"]), 2);
    assert!(
        error.contains("larger than the 20 images; choose at most 20"),
        "{error}"
    );
    let error = fails(schedule(&[&format!("--data={}", at("empty"))]), 2);
    assert!(error.contains("empty"), "{error}");
    // A folder that happens to be called so is not the one that is assumed.
    std::fs::rename(at("set"), at("imagenet")).unwrap();
    let mut command = vitfreeze(["schedule", "--model=vit-base"]);
    command.current_dir(dir.path());
    assert!(ok(command).contains("px, 1281167 images"));
}

#[test]
fn a_file_of_settings_says_what_is_wrong_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    for (text, want) in [
        (
            "epochs = 3\n\n[train]\nlr = 1e-3",
            "line 3: 'train' is a section",
        ),
        ("[data]\npath = \"x\"", "'data' is a section"),
        ("[[model]]\nname = \"vit-tiny\"", "'model' is a section"),
        ("train.lr = 1e-3", "'train' is a section"),
        (
            "dtype = 16",
            "line 1: dtype: 16 is none of f32, bf16, in quotes",
        ),
        ("dtype = \"fp16\"", "dtype: \"fp16\" is none of f32, bf16"),
        ("dtype = true", "dtype: true is none of"),
        ("freeze = 3", "freeze: "),
    ] {
        std::fs::write(&file, text).unwrap();
        let mut command = vitfreeze(["schedule", "--config"]);
        command.arg(&file);
        let line = fails(command, 2);
        assert!(line.contains(want), "{text}: {line}");
        eprintln!("{line}");
    }
    for list in ["0,0", "0,3,3", "3,0", "0,99", ""] {
        let line = fails(vitfreeze(["bench", "--frozen", list]), 2);
        assert!(
            line.contains("ascending numbers up to 12, each once"),
            "{line}"
        );
    }
}
