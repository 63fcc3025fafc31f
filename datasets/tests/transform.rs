//! Crops, resizing and normalisation.

use std::fs;
use std::path::Path;

use datasets::rng::rng;
use datasets::{decode, resize, CropBox, Image, PretrainTransform, RandomResizedCrop, Transform};
use datasets::{Interpolation, Normalize, IMAGENET_MEAN, IMAGENET_STD};

const TORCHVISION: RandomResizedCrop = RandomResizedCrop {
    size: 32,
    scale: (0.2, 1.0),
    ratio: (3.0 / 4.0, 4.0 / 3.0),
    interpolation: Interpolation::Bicubic,
};

fn gradient(width: usize, height: usize) -> Image {
    let rgb = (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, (x + y) as u8]))
        .collect();
    Image { width, height, rgb }
}

/// Names of the files hold top, left, height and width of the part and the size of the result.
#[test]
fn resizing_is_that_of_pillow() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/resize");
    let image = decode(&fs::read(folder.join("in.png")).unwrap()).unwrap();
    let mut cases = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "in" {
            continue;
        }
        let numbers: Vec<usize> = name
            .split(['_', 'x'])
            .filter_map(|n| n.parse().ok())
            .collect();
        let [top, left, height, width, to_width, to_height] = numbers[..] else {
            panic!("{name}")
        };
        let crop = CropBox {
            top,
            left,
            height,
            width,
        };
        let resized = resize(&image, crop, (to_width, to_height), Interpolation::Bicubic).unwrap();
        let expected = decode(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            (resized.width, resized.height),
            (expected.width, expected.height)
        );
        let off: Vec<u8> = resized
            .rgb
            .iter()
            .zip(&expected.rgb)
            .map(|(a, b)| a.abs_diff(*b))
            .collect();
        let equal = off.iter().filter(|&&d| d == 0).count() as f64 / off.len() as f64;
        assert!(
            off.iter().all(|&d| d <= 2) && equal > 0.98,
            "{name}: {equal} equal, {:?}",
            off.iter().max()
        );
        cases += 1;
    }
    assert_eq!(cases, 6);
}

#[test]
fn impossible_sizes_are_errors() {
    let image = gradient(8, 6);
    let whole = CropBox {
        top: 0,
        left: 0,
        height: 6,
        width: 8,
    };
    assert_eq!(
        resize(&image, whole, (8, 6), Interpolation::Bicubic).unwrap(),
        image
    );
    for crop in [
        CropBox { width: 9, ..whole },
        CropBox { top: 1, ..whole },
        CropBox { height: 0, ..whole },
        CropBox {
            left: usize::MAX,
            ..whole
        },
    ] {
        assert!(
            resize(&image, crop, (4, 4), Interpolation::Bicubic).is_err(),
            "{crop:?}"
        );
    }
    assert!(resize(&image, whole, (0, 4), Interpolation::Bicubic).is_err());
    let broken = Image {
        rgb: vec![0; 5],
        ..image
    };
    assert!(resize(&broken, whole, (4, 4), Interpolation::Bicubic).is_err());
}

#[test]
fn crops_keep_to_scale_and_ratio() {
    let (mut smallest, mut largest, mut corners) = (f64::MAX, 0.0f64, [0; 2]);
    for index in 0..2000 {
        let crop = TORCHVISION.crop_box(500, 375, &mut rng(0, "augment", 0, index));
        assert!(
            crop.top + crop.height <= 375 && crop.left + crop.width <= 500,
            "{crop:?}"
        );
        let area = (crop.width * crop.height) as f64 / (500.0 * 375.0);
        let ratio = crop.width as f64 / crop.height as f64;
        // Sizes are rounded to whole pixels.
        assert!(
            (0.19..=1.0).contains(&area) && (0.74..1.35).contains(&ratio),
            "{crop:?}"
        );
        (smallest, largest) = (smallest.min(area), largest.max(area));
        corners[0] += usize::from(crop.top == 0);
        corners[1] += usize::from(crop.top + crop.height == 375);
    }
    assert!(smallest < 0.21 && largest > 0.95 && corners.iter().all(|&n| n > 10));
}

/// A crop belongs to its seed for ever, as the numbers it is made of.
#[test]
fn crops_are_pinned() {
    let draw = |index| TORCHVISION.crop_box(500, 375, &mut rng(0, "augment", 0, index));
    let expected = [(15, 5, 357, 358), (34, 140, 184, 205), (0, 1, 370, 484)];
    for (index, (top, left, height, width)) in expected.into_iter().enumerate() {
        assert_eq!(
            draw(index as u64),
            CropBox {
                top,
                left,
                height,
                width
            }
        );
    }
}

#[test]
fn images_of_extreme_shape_give_the_central_part() {
    let draw = |width, height| TORCHVISION.crop_box(width, height, &mut rng(0, "augment", 0, 0));
    assert_eq!(
        draw(1000, 30),
        CropBox {
            top: 0,
            left: 480,
            height: 30,
            width: 40
        }
    );
    assert_eq!(
        draw(30, 1000),
        CropBox {
            top: 480,
            left: 0,
            height: 40,
            width: 30
        }
    );
    assert_eq!(
        draw(1, 1),
        CropBox {
            top: 0,
            left: 0,
            height: 1,
            width: 1
        }
    );
}

#[test]
fn any_image_can_be_transformed() {
    let transform = PretrainTransform::imagenet(16);
    let mut out = vec![0.0; 3 * 16 * 16];
    for (width, height) in [(1, 1), (1, 500), (500, 1), (2, 3), (16, 16), (640, 480)] {
        for index in 0..20 {
            let image = gradient(width, height);
            transform
                .draw(&image, &mut rng(0, "augment", 0, index))
                .and_then(|d| d.write(&transform.normalize, &mut out))
                .unwrap();
            assert!(out.iter().all(|v| v.is_finite()));
        }
    }
    let mut short = vec![0.0; 5];
    let drawn = transform.draw(&gradient(4, 4), &mut rng(0, "augment", 0, 0));
    assert!(drawn
        .unwrap()
        .write(&transform.normalize, &mut short)
        .is_err());
    let empty = Image {
        width: 0,
        height: 0,
        rgb: vec![],
    };
    assert!(transform
        .draw(&empty, &mut rng(0, "augment", 0, 0))
        .and_then(|d| d.write(&transform.normalize, &mut out))
        .is_err());
}

#[test]
fn normalisation_is_that_of_torchvision() {
    let image = gradient(5, 3);
    let transform = Normalize::IMAGENET;
    let (mut plain, mut flipped) = (vec![0.0; 45], vec![0.0; 45]);
    transform.apply(&image, false, &mut plain).unwrap();
    transform.apply(&image, true, &mut flipped).unwrap();
    for c in 0..3 {
        for y in 0..3 {
            for x in 0..5 {
                let byte = image.rgb[(y * 5 + x) * 3 + c];
                let expected = (f32::from(byte) / 255.0 - IMAGENET_MEAN[c]) / IMAGENET_STD[c];
                assert_eq!(plain[(c * 3 + y) * 5 + x], expected);
                assert_eq!(flipped[(c * 3 + y) * 5 + 4 - x], expected);
            }
        }
    }
}

#[test]
fn half_of_the_images_are_mirrored() {
    let image = gradient(40, 40);
    let flips = |flip| {
        let transform = PretrainTransform {
            flip,
            ..PretrainTransform::imagenet(8)
        };
        (0..1000)
            .filter(|&i| {
                transform
                    .draw(&image, &mut rng(0, "augment", 0, i))
                    .unwrap()
                    .flip
            })
            .count()
    };
    assert!((430..570).contains(&flips(true)));
    assert_eq!(flips(false), 0);
}
