//! Augmentation against Pillow, torchvision and timm; make_augment_fixtures.py made the fixtures.

use std::fs;
use std::path::{Path, PathBuf};

use datasets::rng::{rng, uniform};
use datasets::{
    decode, turn_hue, Batch, ColorJitter, EraseFill, Error, FinetuneTransform, Geometry, Image,
    Interpolation, MixMode, Mixup, Normalize, Op, RandAugment, RandomErasing, RandomResizedCrop,
    Transform,
};
use serde_json::Value;

const DRAWS: u64 = 10_000;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn stats() -> Value {
    serde_json::from_str(&fs::read_to_string(fixtures().join("augment_stats.json")).unwrap())
        .unwrap()
}

fn photo() -> Image {
    decode(&fs::read(fixtures().join("ops/in.png")).unwrap()).unwrap()
}

#[test]
fn operations_are_those_of_pillow() {
    let mut cases = 0;
    for entry in fs::read_dir(fixtures().join("ops")).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let [name, argument, filter] = stem.split('_').collect::<Vec<_>>()[..] else {
            continue;
        };
        let argument: f64 = argument.parse().unwrap();
        let geometry = Geometry {
            fill: [124, 116, 104],
            interpolation: match filter {
                "bilinear" => Interpolation::Bilinear,
                _ => Interpolation::Bicubic,
            },
        };
        let mut got = photo();
        match Op::ALL.iter().find(|op| format!("{op:?}") == name) {
            Some(op) => got = op.apply(got, argument, &geometry),
            None => turn_hue(&mut got, argument),
        }
        let expected = decode(&fs::read(&path).unwrap()).unwrap();
        assert_eq!((got.width, got.height), (expected.width, expected.height));
        let off = got.rgb.iter().zip(&expected.rgb);
        let off: Vec<u8> = off.map(|(a, b)| a.abs_diff(*b)).collect();
        let most = off.iter().max().unwrap();
        let other = off.iter().filter(|&&d| d > 0).count();
        assert!(
            *most <= 1 && other * 1000 <= off.len(),
            "{stem}: {other} of {} differ, by up to {most}",
            off.len()
        );
        cases += 1;
    }
    assert_eq!(cases, 51);
}

/// Our draws lie below each quantile of theirs as often as theirs. Two samples of 10 000 of one distribution differ by
/// 0.023 once in a hundred times.
fn same_distribution(name: &str, quantiles: &Value, mut ours: Vec<f64>) {
    ours.sort_by(f64::total_cmp);
    let theirs: Vec<f64> = quantiles
        .as_array()
        .unwrap()
        .iter()
        .map(|q| q.as_f64().unwrap())
        .collect();
    assert_eq!(theirs.len(), 25);
    for (k, &q) in theirs.iter().enumerate() {
        // Of equal quantiles, which discrete values have, the share lies between the first's and the last's.
        let up_to = ours.partition_point(|&x| x <= q + 1e-9) as f64 / ours.len() as f64;
        let below = ours.partition_point(|&x| x < q - 1e-9) as f64 / ours.len() as f64;
        let p = 0.02 + 0.04 * k as f64;
        assert!(
            below - 0.03 < p && p < up_to + 0.03,
            "{name}: {p} of theirs are up to {q}, of ours {below} are less and {up_to} not more"
        );
    }
}

#[test]
fn crops_are_distributed_as_torchvisions() {
    let stats = stats();
    for (name, low) in [("crop0.08", 0.08), ("crop0.2", 0.2)] {
        let crop = RandomResizedCrop {
            size: 224,
            scale: (low, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
            interpolation: Interpolation::Bicubic,
        };
        let boxes: Vec<_> = (0..DRAWS)
            .map(|i| crop.crop_box(500, 375, &mut rng(1, "test", 0, i)))
            .collect();
        let area = |b: &datasets::CropBox| (b.width * b.height) as f64 / (500.0 * 375.0);
        let ratio = |b: &datasets::CropBox| b.width as f64 / b.height as f64;
        same_distribution(name, &stats[name]["area"], boxes.iter().map(area).collect());
        same_distribution(
            name,
            &stats[name]["ratio"],
            boxes.iter().map(ratio).collect(),
        );
    }
}

#[test]
fn rand_augment_is_distributed_as_timms() {
    let stats = &stats()["rand_augment"];
    let augment: RandAugment = "rand-m9-mstd0.5-inc1".parse().unwrap();
    assert_eq!(Some(augment), FinetuneTransform::imagenet(224).rand_augment);
    let all: Vec<(Op, f64)> = (0..15 * DRAWS)
        .flat_map(|i| augment.draw(&mut rng(1, "test", 1, i)))
        .collect();
    for op in Op::ALL {
        let name = format!("{op:?}");
        let arguments: Vec<f64> = all.iter().filter(|(o, _)| *o == op).map(|a| a.1).collect();
        let rate = arguments.len() as f64 / (15 * DRAWS) as f64;
        let theirs = stats["frequencies"][&name].as_f64().unwrap();
        // 1/15 each, with a standard error of 0.0025 in theirs.
        assert!((rate - theirs).abs() < 0.01, "{name}: {rate} and {theirs}");
        same_distribution(&name, &stats["arguments"][&name], arguments);
    }
}

#[test]
fn rand_augment_strings() {
    let parse = |text: &str| text.parse::<RandAugment>();
    let all = parse("rand-n3-p0.7-m7-mmax20-mstd101-inc0").unwrap();
    assert_eq!(
        all,
        RandAugment {
            layers: 3,
            prob: 0.7,
            magnitude: 7.0,
            magnitude_max: 20.0,
            magnitude_std: f64::INFINITY,
            increasing: false,
            ..RandAugment::default()
        }
    );
    assert_eq!(parse("rand").unwrap(), RandAugment::default());
    for (text, part) in [
        ("augmix-m3", "augmix"),
        ("rand-m9-x2", "x2"),
        ("rand-m", "m"),
        ("rand-m9-", ""),
        ("rand-m-9", "m"),
        ("rand-tweights", "tweights"),
        ("rand-mstdnan", "mstdnan"),
        ("", ""),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("RandAugment '{text}': '{part}' is not")),
            "{error}"
        );
    }
    assert!(parse("rand-p1.5").is_err() && parse("rand-n1000").is_err());
}

#[test]
fn erasing_is_distributed_as_timms() {
    let stats = &stats()["erasing"];
    let erasing = RandomErasing::new(0.25, EraseFill::Const);
    let boxes: Vec<_> = (0..4 * DRAWS)
        .flat_map(|i| erasing.boxes(64, 96, &mut rng(1, "test", 2, i)))
        .collect();
    let rate = boxes.len() as f64 / (4 * DRAWS) as f64;
    assert!((rate - stats["rate"].as_f64().unwrap()).abs() < 0.01);
    assert!(boxes
        .iter()
        .all(|b| b.top + b.height <= 64 && b.left + b.width <= 96));
    let area = |b: &datasets::CropBox| (b.width * b.height) as f64 / (64.0 * 96.0);
    let ratio = |b: &datasets::CropBox| b.height as f64 / b.width as f64;
    same_distribution("area", &stats["area"], boxes.iter().map(area).collect());
    same_distribution("ratio", &stats["ratio"], boxes.iter().map(ratio).collect());
}

#[test]
fn erased_pixels_are_what_they_should_be() {
    let at = |fill| {
        let transform = FinetuneTransform {
            rand_augment: None,
            erasing: Some(RandomErasing::new(1.0, fill)),
            ..FinetuneTransform::imagenet(32)
        };
        let white = Image {
            width: 40,
            height: 40,
            rgb: vec![255; 4800],
        };
        let mut out = vec![0.0; 3 * 32 * 32];
        let drawn = transform
            .draw(&white, &mut rng(3, "augment", 0, 0))
            .unwrap();
        drawn.write(&transform.normalize, &mut out).unwrap();
        let mut again = vec![0.0; 3 * 32 * 32];
        drawn.write(&transform.normalize, &mut again).unwrap();
        assert_eq!(out, again);
        let white: Vec<f32> = (0..3)
            .map(|c| (1.0 - Normalize::IMAGENET.mean[c]) / Normalize::IMAGENET.std[c])
            .collect();
        let erased = out.chunks_exact(1024).zip(white);
        erased
            .map(|(plane, white)| {
                let values = plane.iter().copied().filter(|v| *v != white);
                values.collect::<Vec<f32>>()
            })
            .collect::<Vec<_>>()
    };
    let constant = at(EraseFill::Const);
    let pixels = constant[0].len();
    assert!(pixels > 20 && constant.iter().all(|p| p.len() == pixels));
    assert!(constant.iter().flatten().all(|&v| v == 0.0));
    let rand = at(EraseFill::Rand);
    assert!(rand
        .iter()
        .all(|p| p.len() == pixels && p.iter().all(|v| *v == p[0])));
    assert!(rand[0][0] != rand[1][0]);
    let pixel = at(EraseFill::Pixel);
    assert!(pixel.iter().all(|p| p.len() == pixels));
    let values: Vec<f32> = pixel.concat();
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    assert!(mean.abs() < 0.3 && values.windows(2).all(|v| v[0] != v[1]));
}

/// Image i of class i holds the value i everywhere.
fn batch(count: usize, height: usize, width: usize) -> Batch {
    Batch {
        images: (0..count)
            .flat_map(|i| vec![i as f32; 3 * height * width])
            .collect(),
        labels: (0..count as u32).collect(),
        indices: vec![0; count],
        epoch: 1,
        batch: 2,
    }
}

#[test]
fn mixing_is_distributed_as_timms() {
    let stats = &stats()["mixup"];
    let (mut blends, mut cuts) = (vec![], vec![]);
    let mixup = Mixup {
        label_smoothing: 0.0,
        ..Mixup::imagenet(2)
    };
    for seed in 0..2 * DRAWS {
        let mut batch = batch(2, 64, 96);
        batch.images.truncate(2 * 3 * 64 * 96);
        let targets = mixup.apply(&mut batch, (64, 96), seed).unwrap();
        let share = f64::from(targets[0]);
        if batch.images.iter().all(|&v| v == 0.0 || v == 1.0) {
            cuts.push(share);
        } else {
            blends.push(share);
        }
    }
    let rate = cuts.len() as f64 / (2 * DRAWS) as f64;
    assert!((rate - stats["cut_rate"].as_f64().unwrap()).abs() < 0.02);
    let blends = blends.into_iter().map(|x| x + 1e-7).collect();
    same_distribution("blend", &stats["blend"], blends);
    // Shares are multiples of a pixel: compare them as such.
    let cuts = cuts.iter().map(|x| (x * 6144.0).round() / 6144.0).collect();
    same_distribution("cut", &stats["cut"], cuts);
}

#[test]
fn targets_are_those_of_timm() {
    let theirs = stats()["targets"].clone();
    // A blend whose share is known: targets follow from it alone.
    let mixup = Mixup {
        cutmix_alpha: 0.0,
        ..Mixup::imagenet(3)
    };
    let mut b = Batch {
        labels: vec![0, 2, 1, 2],
        ..batch(4, 2, 2)
    };
    let targets = mixup.apply(&mut b, (2, 2), 0).unwrap();
    let share = (targets[0] - 0.1 / 3.0) / 0.9;
    assert!((0.0..=1.0).contains(&share));
    // Theirs are for 0.3. Both are linear in the share.
    let plain = mixup.plain_targets(&[0, 2, 1, 2]).unwrap();
    let error = mixup.plain_targets(&[0, 3]).unwrap_err().to_string();
    assert_eq!(error, "label 3, but there are only 3 classes");
    for (k, theirs) in theirs.as_array().unwrap().iter().enumerate() {
        let (row, class) = (k / 3, k % 3);
        let other = plain[(3 - row) * 3 + class];
        let mixed = |share: f32| share * plain[k] + (1.0 - share) * other;
        assert!((f64::from(mixed(0.3)) - theirs.as_f64().unwrap()).abs() < 1e-6);
        assert!((mixed(share) - targets[k]).abs() < 1e-6);
    }
}

#[test]
fn images_and_targets_tell_the_same_story() {
    for mode in [MixMode::Batch, MixMode::Pair, MixMode::Elem] {
        let mixup = Mixup {
            label_smoothing: 0.0,
            mode,
            prob: 0.8,
            ..Mixup::imagenet(7)
        };
        for (seed, count) in [(0, 6), (1, 7), (2, 1), (3, 6), (4, 6), (5, 6)] {
            let mut b = batch(count, 5, 8);
            let targets = mixup.apply(&mut b, (5, 8), seed).unwrap();
            let mut again = batch(count, 5, 8);
            assert_eq!(targets, mixup.apply(&mut again, (5, 8), seed).unwrap());
            assert_eq!(b, again);
            let shares: Vec<f32> = (0..count).map(|i| targets[7 * i + i]).collect();
            for (i, image) in b.images.chunks_exact(3 * 5 * 8).enumerate() {
                let row = &targets[7 * i..7 * (i + 1)];
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
                // Values are labels, so their mean is the target's.
                let mean = image.iter().sum::<f32>() / image.len() as f32;
                let expected: f32 = row.iter().enumerate().map(|(k, t)| k as f32 * t).sum();
                assert!((mean - expected).abs() < 1e-4, "{mode:?} {seed} {i}");
                if 2 * i + 1 != count && mode != MixMode::Elem {
                    assert_eq!(shares[i], shares[count - 1 - i]);
                }
            }
            if mode == MixMode::Batch && count == 6 {
                assert!(shares.iter().all(|s| *s == shares[0]));
            }
        }
    }
    // With other parameters for each pair and each image.
    let differ = |mode, n: usize| {
        let mixup = Mixup {
            mode,
            ..Mixup::imagenet(8)
        };
        let targets = mixup.apply(&mut batch(8, 5, 8), (5, 8), 0).unwrap();
        let mut shares: Vec<u32> = (0..8).map(|i| targets[9 * i].to_bits()).collect();
        shares.sort_unstable();
        shares.dedup();
        shares.len() == n
    };
    assert!(differ(MixMode::Batch, 1) && differ(MixMode::Pair, 4) && differ(MixMode::Elem, 8));
}

/// Boxes of any share and size lie within the image, and the share is their area.
#[test]
fn cut_boxes_of_any_size() {
    let r = &mut rng(0, "test", 3, 0);
    for seed in 0..3000 {
        let (height, width) = (
            1 + (uniform(r) * 20.0) as usize,
            1 + (uniform(r) * 20.0) as usize,
        );
        let mixup = Mixup {
            mixup_alpha: 0.0,
            label_smoothing: 0.0,
            cutmix_alpha: f64::from(uniform(r)) * 3.0 + 0.01,
            mode: MixMode::Elem,
            ..Mixup::imagenet(2)
        };
        let mut b = batch(2, height, width);
        let targets = mixup.apply(&mut b, (height, width), seed).unwrap();
        let replaced = b.images[..3 * height * width].iter().sum::<f32>();
        let share = replaced / (3 * height * width) as f32;
        assert!((share - targets[1]).abs() < 1e-5);
    }
}

#[test]
fn impossible_settings_are_explained() {
    let good = Mixup::imagenet(10);
    for bad in [
        Mixup {
            mixup_alpha: 0.0,
            cutmix_alpha: 0.0,
            ..good
        },
        Mixup { prob: 1.5, ..good },
        Mixup {
            switch_prob: f64::NAN,
            ..good
        },
        Mixup { classes: 0, ..good },
    ] {
        assert!(bad.check().unwrap_err().to_string().contains("must"));
    }
    let mut b = batch(4, 2, 2);
    // 4 images of 12 numbers are none of 2 x 5 pixels, with any number of channels.
    assert!(good.apply(&mut b, (2, 5), 0).is_err());
    b.labels[1] = 10;
    let error = good.apply(&mut b, (2, 2), 0).unwrap_err().to_string();
    assert_eq!(error, "label 10, but there are only 10 classes");
    assert!("both".parse::<MixMode>().is_err());

    let good = FinetuneTransform::imagenet(8);
    let erase = RandomErasing::new(0.5, EraseFill::Const);
    for bad in [
        FinetuneTransform {
            erasing: Some(RandomErasing {
                area: (0.5, 2.0),
                ..erase
            }),
            ..good
        },
        FinetuneTransform {
            color_jitter: Some(ColorJitter {
                hue: 0.7,
                ..ColorJitter::all(0.4)
            }),
            ..good
        },
        FinetuneTransform {
            rand_augment: Some(RandAugment {
                magnitude: f64::NAN,
                ..RandAugment::default()
            }),
            ..good
        },
    ] {
        assert!(matches!(bad.check(), Err(Error::InvalidArgument(_))));
    }
}

/// Images of any size and shape go through everything, and the result is a function of the generator alone.
#[test]
fn any_image_can_be_finetuned_on() {
    let transform = FinetuneTransform {
        color_jitter: Some(ColorJitter {
            hue: 0.1,
            ..ColorJitter::all(0.4)
        }),
        rand_augment: Some("rand-m10-n4-p1-mstd2-inc1".parse().unwrap()),
        ..FinetuneTransform::imagenet(16)
    };
    for (width, height) in [(1, 1), (1, 300), (300, 1), (2, 2), (45, 31)] {
        for index in 0..40 {
            let image = Image {
                width,
                height,
                rgb: (0..3 * width * height).map(|i| (i * 7) as u8).collect(),
            };
            let write = || {
                let mut out = vec![f32::NAN; 3 * 16 * 16];
                let drawn = transform.draw(&image, &mut rng(0, "augment", 0, index));
                drawn
                    .unwrap()
                    .write(&transform.normalize, &mut out)
                    .unwrap();
                out
            };
            let out = write();
            assert!(out.iter().all(|v| v.is_finite()) && out == write());
        }
    }
}

/// What a seed means must never change.
#[test]
fn draws_are_pinned() {
    let augment: RandAugment = "rand-m9-mstd0.5-inc1".parse().unwrap();
    let drawn = augment.draw(&mut rng(0, "augment", 0, 1));
    let erasing = RandomErasing::new(1.0, EraseFill::Const);
    let boxes = erasing.boxes(224, 224, &mut rng(0, "augment", 0, 0));
    let mixup = Mixup::imagenet(2);
    let share = mixup.apply(&mut batch(2, 4, 4), (4, 4), 0).unwrap()[0];
    assert_eq!(
        format!("{drawn:?} {boxes:?} {share}"),
        "[(AutoContrast, 0.0)] [CropBox { top: 83, left: 18, height: 73, width: 85 }] 0.5992818"
    );
}
