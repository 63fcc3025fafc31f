//! The eval transform and resizing, against timm, torchvision and Pillow; make_transform_fixtures.py made the fixtures.

use std::fs;
use std::path::{Path, PathBuf};

use datasets::{decode, resize, CropBox, EvalTransform, Image, Interpolation, Normalize};

fn read(path: impl AsRef<Path>) -> Image {
    let path = path.as_ref();
    decode(&fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn fixtures(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
}

fn filter(name: &str) -> Interpolation {
    match name {
        "bilinear" => Interpolation::Bilinear,
        "bicubic" => Interpolation::Bicubic,
        other => panic!("{other}"),
    }
}

/// Largest difference, and the share of equal values.
fn compare(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let off = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    let equal = off.clone().filter(|&d| d == 0).count() as f64 / a.len() as f64;
    (off.max().unwrap(), equal)
}

fn whole(image: &Image) -> CropBox {
    CropBox {
        top: 0,
        left: 0,
        height: image.height,
        width: image.width,
    }
}

#[test]
fn resizing_is_within_one_of_the_goldens() {
    let mut cases = 0;
    for path in fixtures("golden") {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let Some((kind, _)) = name.split_once('_') else {
            continue;
        };
        let (image, expected) = (read(path.with_file_name("in.png")), read(&path));
        let size = (expected.width, expected.height);
        let resized = resize(&image, whole(&image), size, filter(kind)).unwrap();
        let (off, equal) = compare(&resized.rgb, &expected.rgb);
        assert!(off <= 1 && equal > 0.99, "{name}: {off}, {equal}");
        cases += 1;
    }
    assert_eq!(cases, 8);
}

#[test]
fn eval_is_that_of_timm() {
    let mut cases = 0;
    for path in fixtures("eval") {
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let [from, "to", size, pct, kind] = stem.split('_').collect::<Vec<_>>()[..] else {
            continue;
        };
        let (height, width) = size.split_once('x').unwrap();
        let transform = EvalTransform {
            size: (height.parse().unwrap(), width.parse().unwrap()),
            crop_pct: (pct.parse().unwrap(), pct.parse().unwrap()),
            interpolation: filter(kind),
            ..EvalTransform::imagenet(1)
        };
        let image = read(path.with_file_name(format!("in_{from}.png")));
        let (got, expected) = (transform.crop(&image).unwrap(), read(&path));
        assert_eq!(
            (got.width, got.height),
            (expected.width, expected.height),
            "{stem}"
        );
        let (off, equal) = compare(&got.rgb, &expected.rgb);
        assert!(off <= 1 && equal > 0.98, "{stem}: {off}, {equal}");

        let mut out = vec![0.0; got.rgb.len()];
        transform.apply(&image, &mut out).unwrap();
        let mut again = vec![0.0; got.rgb.len()];
        Normalize::IMAGENET.apply(&got, false, &mut again).unwrap();
        assert_eq!(out, again);
        cases += 1;
    }
    assert_eq!(cases, 9);
}

#[test]
fn squash_sees_the_whole_image() {
    // Red to the left, green to the right, twice as wide as high.
    let row = [[255, 0, 0].repeat(4), [0, 255, 0].repeat(60)].concat();
    let image = Image {
        width: 64,
        height: 32,
        rgb: row.repeat(32),
    };
    let cut = EvalTransform {
        crop_pct: (1.0, 1.0),
        ..EvalTransform::imagenet(16)
    };
    let squash = EvalTransform {
        squash: true,
        ..cut
    };
    let corner = |t: EvalTransform| t.crop(&image).unwrap().rgb[..3].to_vec();
    assert_eq!(corner(cut), [0, 255, 0]);
    let red = corner(squash);
    assert!(red[0] > 200 && red[1] < 50, "{red:?}");
    let inner = EvalTransform {
        crop_pct: (0.5, 0.5),
        ..squash
    };
    assert_eq!(corner(inner), [0, 255, 0]);
}

/// An image whose pixels tell where they are.
fn map(height: usize, width: usize) -> Image {
    let pixel = |i: usize| [(i / width) as u8, (i % width) as u8, 0];
    Image {
        width,
        height,
        rgb: (0..height * width).flat_map(pixel).collect(),
    }
}

#[test]
fn an_odd_margin_is_halved_as_asked() {
    // Margin, where Hugging Face's crop begins, where timm's does.
    for (margin, floored, even) in [
        (7, 3, 4),
        (11, 5, 6),
        (5, 2, 2),
        (9, 4, 4),
        (8, 4, 4),
        (0, 0, 0),
    ] {
        let side = 64 + margin;
        for squash in [false, true] {
            let timms = EvalTransform {
                crop_pct: (64.0 / side as f64, 64.0 / side as f64),
                squash,
                ..EvalTransform::imagenet(64)
            };
            let theirs = EvalTransform {
                floor_margin: true,
                ..timms
            };
            for (transform, begin) in [(theirs, floored), (timms, even)] {
                let crop = transform.crop(&map(side, side)).unwrap();
                assert_eq!(crop.rgb[..2], [begin, begin], "{margin}");
            }
        }
    }
}

#[test]
fn height_and_width_have_their_own_parts() {
    let squash = EvalTransform {
        crop_pct: (0.8, 0.5),
        squash: true,
        ..EvalTransform::imagenet(64)
    };
    // Already 80 x 128: the middle of it as it is.
    let crop = squash.crop(&map(80, 128)).unwrap();
    assert_eq!((crop.height, crop.width), (64, 64));
    assert_eq!(crop.rgb[..2], [8, 32]);
    // Both parts lead to 80: the shorter side becomes that, upright and across.
    let cover = EvalTransform {
        size: (64, 48),
        crop_pct: (0.8, 0.6),
        ..EvalTransform::imagenet(64)
    };
    for (height, width) in [(80, 100), (100, 80), (80, 80)] {
        let crop = cover.crop(&map(height, width)).unwrap();
        assert_eq!((crop.height, crop.width), (64, 48));
        let begin = [(height - 64) / 2, (width - 48) / 2].map(|n| n as u8);
        assert_eq!(crop.rgb[..2], begin);
    }
}

#[test]
fn extreme_shapes_need_no_memory() {
    let mut out = vec![0.0; 3 * 224 * 224];
    for (width, height) in [(1, 1), (1, 3_000_000), (3_000_000, 1), (2, 3)] {
        let rgb = vec![7; 3 * width * height];
        let image = Image { width, height, rgb };
        EvalTransform::imagenet(224)
            .apply(&image, &mut out)
            .unwrap();
        let expected = (7.0 / 255.0 - 0.485) / 0.229;
        assert!(out[..224 * 224].iter().all(|v| (v - expected).abs() < 1e-6));
    }
}

#[test]
fn impossible_settings_are_explained() {
    let image = Image {
        width: 1,
        height: 1,
        rgb: vec![0; 3],
    };
    let good = EvalTransform::imagenet(8);
    for bad in [
        EvalTransform {
            size: (0, 8),
            ..good
        },
        EvalTransform {
            crop_pct: (0.9, 0.0),
            ..good
        },
        EvalTransform {
            crop_pct: (1.1, 0.9),
            ..good
        },
    ] {
        let error = bad.crop(&image).unwrap_err().to_string();
        assert!(error.contains("expected"), "{error}");
    }
    let mut short = [0.0; 5];
    assert!(good.apply(&image, &mut short).is_err());
}

/// `eval`, `rrc` and their boxes of transforms.safetensors, from the photos they were made of, which are not in the
/// repository. Run with `VITFREEZE_SHARED=../shared VITFREEZE_IMAGENET=/data/imagenet`.
#[test]
#[ignore = "needs the golden vectors and photos"]
fn photos_are_those_of_torchvision() {
    let var = |name| PathBuf::from(std::env::var(name).unwrap());
    let shared = var("VITFREEZE_SHARED").join("goldens");
    let bytes = fs::read(shared.join("transforms.safetensors")).unwrap();
    let goldens = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let json = fs::read_to_string(shared.join("transforms.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let photos: Vec<_> = walkdir::WalkDir::new(var("VITFREEZE_IMAGENET"))
        .into_iter()
        .map(|e| e.unwrap().into_path())
        .collect();
    for (i, info) in json["images"].as_array().unwrap().iter().enumerate() {
        let name = info["name"].as_str().unwrap();
        let photo = photos.iter().find(|p| p.ends_with(name)).expect(name);
        let image = read(photo);
        let transform = EvalTransform::imagenet(224);
        let crop = transform.crop(&image).unwrap();
        let expected = goldens.tensor(&format!("{i}.eval_u8")).unwrap();
        let (off, equal) = compare(&crop.rgb, expected.data());
        println!("{name} eval: off by {off}, {equal:.5} equal");
        assert!(off <= 1, "{name}: {off}");
        for (k, corners) in info["rrc_boxes"].as_array().unwrap().iter().enumerate() {
            let n = |c: usize| corners[c].as_u64().unwrap() as usize;
            let corners = CropBox {
                top: n(0),
                left: n(1),
                height: n(2),
                width: n(3),
            };
            let part = resize(&image, corners, (224, 224), Interpolation::Bicubic).unwrap();
            let expected = goldens.tensor(&format!("{i}.rrc{k}_u8")).unwrap();
            let (off, equal) = compare(&part.rgb, expected.data());
            println!("{name} rrc{k}: off by {off}, {equal:.5} equal");
            assert!(off <= 1, "{name}: {off}");
        }
    }
    let mut out = vec![0.0; 3 * 224 * 224];
    let name = json["images"][0]["name"].as_str().unwrap();
    let image = read(photos.iter().find(|p| p.ends_with(name)).unwrap());
    EvalTransform::imagenet(224)
        .apply(&image, &mut out)
        .unwrap();
    let expected = goldens.tensor("0.eval_tensor").unwrap();
    let off = expected
        .data()
        .chunks_exact(4)
        .zip(&out)
        .map(|(b, v)| (f32::from_le_bytes([b[0], b[1], b[2], b[3]]) - v).abs())
        .fold(0.0, f32::max);
    // One level is 1/255/0.224.
    assert!(off < 0.018, "{off}");
}

/// Pillow's results of an image that a formula makes.
#[test]
fn the_rarer_filters_are_pillows() {
    let rgb = (0..9 * 13 * 3).map(|i| {
        let (y, x, c) = (i / 39, i / 3 % 13, i % 3);
        ((x * 37 + y * 71 + c * 101 + x * y * 13) % 256) as u8
    });
    let image = Image {
        width: 13,
        height: 9,
        rgb: rgb.collect(),
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/resize_filters.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let mut cases = 0;
    for line in text.lines() {
        let parts: Vec<&str> = line.split(' ').collect();
        let filter = match parts[0] {
            "nearest" => Interpolation::Nearest,
            "lanczos" => Interpolation::Lanczos,
            "box" => Interpolation::Box,
            _ => Interpolation::Hamming,
        };
        let to: (usize, usize) = (parts[1].parse().unwrap(), parts[2].parse().unwrap());
        let want: Vec<u8> = (0..parts[3].len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&parts[3][i..i + 2], 16).unwrap())
            .collect();
        let got = resize(&image, whole(&image), to, filter).unwrap();
        let (most, _) = compare(&got.rgb, &want);
        assert!(
            most <= u8::from(filter != Interpolation::Nearest),
            "{} {to:?}: {most}",
            parts[0]
        );
        cases += 1;
    }
    assert_eq!(cases, 12);
}
