//! Images of any channels: what files hold, what becomes of it, and that damaged files are errors.
//! `scripts/channels_fixture.py` makes the files and, with NumPy and Pillow, what is expected of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datasets::rng::rng;
use datasets::{
    decode, decode_bands, decode_bands_within, Bands, BandsTransform, DecodeError, DecodeMemory,
    EvalTransform, Image, ImageFolder, Interpolation, Loader, LoaderConfig, PretrainTransform,
    Shapes, Source, Transform,
};

const FILES: [&str; 14] = [
    "grey16.png",
    "greya8.png",
    "rgb16.png",
    "rgba8.png",
    "five16.tif",
    "five16_planar.tif",
    "two8.tif",
    "float.tif",
    "u1.npy",
    "u2_big.npy",
    "i2.npy",
    "f4.npy",
    "f8_flat.npy",
    "rgb.npy",
];

fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/fixtures/bands").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    fs::read(fixture(name)).unwrap()
}

/// Shape and values of each array of the fixture.
fn values() -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = bytes("values.safetensors");
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |data: &[u8]| {
        let each = data.chunks_exact(4);
        each.map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    };
    let arrays = file.iter();
    arrays
        .map(|(name, view)| {
            (
                name.to_owned(),
                (view.shape().to_vec(), numbers(view.data())),
            )
        })
        .collect()
}

fn near(got: &[f32], want: &[f32], most: f32) {
    assert_eq!(got.len(), want.len());
    let largest = got.iter().zip(want).map(|(a, b)| (a - b).abs());
    let largest = largest.fold(0.0, f32::max);
    assert!(largest <= most, "{largest}");
}

#[test]
fn files_hold_what_numpy_put_into_them() {
    let values = values();
    for name in FILES {
        let (shape, want) = &values[name];
        let image = decode_bands(&bytes(name), shape[2]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(
            (image.height, image.width, image.channels),
            (5, 6, shape[2])
        );
        assert_eq!(&image.values, want, "{name}");
        let error = decode_bands(&bytes(name), 7).unwrap_err();
        let told = format!("{} channels, 7 are wanted", shape[2]);
        assert_eq!(error.to_string(), told, "{name}");
        assert!(matches!(error, DecodeError::Channels { .. }));
    }
    // Arrays of 8-bit colours are images for everyone.
    let image = decode(&bytes("rgb.npy")).unwrap();
    let (_, want) = &values["rgb.npy"];
    let rgb: Vec<f32> = image.rgb.iter().map(|&v| f32::from(v) / 255.0).collect();
    assert_eq!(&rgb, want);
    let error = decode(&bytes("u2_big.npy")).unwrap_err().to_string();
    assert!(
        error.contains("the number of channels must be said"),
        "{error}"
    );
}

#[test]
fn grey_is_made_of_colour_and_alpha_is_dropped() {
    let values = values();
    let grey = |name: &str| decode_bands(&bytes(name), 1).unwrap().values;
    for (name, channels) in [("rgb16.png", 3), ("rgba8.png", 4), ("rgb.npy", 3)] {
        let pixels = values[name].1.chunks_exact(channels);
        let want: Vec<f32> = pixels
            .map(|p| 0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2])
            .collect();
        near(&grey(name), &want, 1e-6);
    }
    let want: Vec<f32> = values["greya8.png"].1.iter().step_by(2).copied().collect();
    assert_eq!(grey("greya8.png"), want);
    let rgb = decode_bands(&bytes("rgba8.png"), 3).unwrap().values;
    let pixels = values["rgba8.png"].1.chunks_exact(4);
    let want: Vec<f32> = pixels.flat_map(|p| p[..3].to_vec()).collect();
    assert_eq!(rgb, want);
    // Of a format that has colours alone, and of a source that draws.
    let mut ppm = b"P6 2 1 255\n".to_vec();
    ppm.extend([255, 0, 0, 9, 9, 9]);
    let image = decode_bands(&ppm, 1).unwrap();
    near(&image.values, &[0.299, 9.0 / 255.0], 1e-6);
    let shapes = Shapes::new(0, 16, 4);
    let mut permit = DecodeMemory::default().permit();
    assert_eq!(shapes.bands(2, 1, &mut permit).unwrap().values.len(), 256);
    let error = shapes.bands(2, 4, &mut permit).unwrap_err().to_string();
    assert!(
        error.contains("shapes #2") && error.contains("3 channels, 4"),
        "{error}"
    );
}

/// A little-endian TIFF with these entries (tag, type, count, value) and this behind its directory.
fn tiff(entries: &[(u16, u16, u32, u32)], data: &[u8]) -> Vec<u8> {
    let mut file = b"II*\0\x08\0\0\0".to_vec();
    file.extend((entries.len() as u16).to_le_bytes());
    for &(tag, kind, count, value) in entries {
        file.extend(tag.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend(count.to_le_bytes());
        file.extend(value.to_le_bytes());
    }
    file.extend([0; 4]);
    file.extend(data);
    file
}

#[test]
fn depth_and_bands_are_kept_or_refused_never_dropped() {
    // 16 bits of a PGM.
    let mut pgm = b"P5 2 1 65535\n".to_vec();
    pgm.extend([0, 7, 1, 0]);
    let image = decode_bands(&pgm, 1).unwrap();
    assert_eq!(image.values, [7.0 / 65535.0, 256.0 / 65535.0]);
    // What is no colour is neither grey nor alpha.
    for (shape, wanted) in [
        ("(1, 1, 4)", 3),
        ("(1, 1, 4)", 1),
        ("(1, 1, 2)", 1),
        ("(1, 1, 3)", 1),
    ] {
        let channels: usize = shape[7..8].parse().unwrap();
        let head = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
        let error = decode_bands(&npy(&head, 4 * channels), wanted).unwrap_err();
        assert!(matches!(error, DecodeError::Channels { .. }), "{error}");
    }
    // RGB and infrared: one strip of one pixel behind 11 entries.
    let at = 10 + 12 * 11 + 4;
    let mut entries = [
        (256, 3, 1, 1),
        (257, 3, 1, 1),
        (258, 3, 4, at),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, at + 8),
        (277, 3, 1, 4),
        (278, 3, 1, 1),
        (279, 4, 1, 4),
        (284, 3, 1, 1),
        (338, 3, 1, 0),
    ];
    let data = [8, 0, 8, 0, 8, 0, 8, 0, 10, 20, 30, 40];
    for wanted in [3, 4] {
        let error = decode_bands(&tiff(&entries, &data), wanted).unwrap_err();
        assert!(error.to_string().contains("1 more bands than"), "{error}");
    }
    // The same with alpha.
    entries[10].3 = 2;
    let image = decode_bands(&tiff(&entries, &data), 3).unwrap();
    near(
        &image.values,
        &[10.0 / 255.0, 20.0 / 255.0, 30.0 / 255.0],
        1e-6,
    );
}

#[test]
fn a_small_image_in_a_huge_tile_takes_no_memory() {
    // A pixel of 65535 bands in a tile of 4 294 967 280 pixels' width.
    let entries = [
        (256, 3, 1, 1),
        (257, 3, 1, 1),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
        (322, 4, 1, 4_294_967_280),
        (323, 4, 1, 16),
        (324, 4, 1, 10 + 12 * 10 + 4),
        (325, 4, 1, 16),
    ];
    let file = tiff(&entries, &[0; 16]);
    for error in [
        decode_bands(&file, 1).unwrap_err(),
        decode(&file).unwrap_err(),
    ] {
        assert!(
            matches!(error, DecodeError::TooMuchMemory { .. }),
            "{error}"
        );
    }
}

/// A .npy with this dictionary and so many bytes behind it.
fn npy(dictionary: &str, data: usize) -> Vec<u8> {
    let mut file = b"\x93NUMPY\x01\0".to_vec();
    file.extend((dictionary.len() as u16).to_le_bytes());
    file.extend(dictionary.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn arrays_that_are_no_images_are_refused_before_memory_is_taken() {
    let array = |descr: &str, fortran: &str, shape: &str, data: usize| {
        let text =
            format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        npy(&text, data)
    };
    let said = |bytes: &[u8]| decode_bands(bytes, 2).unwrap_err().to_string();
    let whole = array("<f4", "False", "(3, 4, 2)", 96);
    assert_eq!(decode_bands(&whole, 2).unwrap().values, [0.0; 24]);
    for (bytes, words) in [
        (array("<f4", "False", "(3, 4, 2)", 95), "truncated"),
        (
            array("<f4", "False", "(3, 4, 2)", 97),
            "97 bytes of values, its shape has 96",
        ),
        (
            array("<c8", "False", "(3, 4, 2)", 96),
            "values of type '<c8'; save uint8",
        ),
        (array("|O", "False", "(3, 4, 2)", 96), "values of type '|O'"),
        (
            array("\u{e4}\u{f6}", "False", "(3, 4, 2)", 96),
            "values of type",
        ),
        (array("<f4", "True", "(3, 4, 2)", 96), "ascontiguousarray"),
        (
            array("<f4", "False", "(24,)", 96),
            "shape (24,); expected (height, width, channels)",
        ),
        (array("<f4", "False", "()", 96), "shape ()"),
        (
            array("<f4", "False", "(1, 3, 4, 2)", 96),
            "shape (1, 3, 4, 2)",
        ),
        (array("<f4", "False", "(-3, 4, 2)", 96), "shape (-3, 4, 2)"),
        (array("<f4", "False", "(0, 4, 2)", 0), "0 pixels"),
        (
            array("<f4", "False", "(3, 4, 0)", 0),
            "0 channels, 2 are wanted",
        ),
        // Sizes that no memory holds, and products beyond all numbers.
        (
            array("<f4", "False", "(1000000, 1000000, 2)", 96),
            "more than the limit",
        ),
        (
            array("<f8", "False", "(4294967296, 4294967296, 2)", 96),
            "more than the limit",
        ),
        (
            array("<f8", "False", "(99999999999999999999, 1, 2)", 96),
            "expected (height",
        ),
        (
            array("<f4", "False", "(3, 4, 18446744073709551615)", 96),
            "18446744073709551615 channels, 2",
        ),
        (array("<f4", "False", "(10000, 10000, 2)", 96), "truncated"),
        (
            npy("{'descr': '<f4'}", 96),
            "no 'fortran_order' in its header",
        ),
        (npy("{}", 96), "no 'descr'"),
        (npy("", 0), "no 'descr'"),
        (npy("{'descr': ", 96), "no 'descr'"),
        (
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, ", 96),
            "no 'shape'",
        ),
    ] {
        let error = said(&bytes);
        assert!(error.contains(words), "{words}: {error}");
    }
    for at in 0..whole.len() {
        assert!(decode_bands(&whole[..at], 2).is_err(), "{at}");
    }
    let mut version = whole.clone();
    version[6] = 9;
    assert!(said(&version).contains("version 9"));
    let mut long = whole.clone();
    long[6] = 2;
    long[8..12].fill(255);
    assert!(said(&long).contains("a header of 4294967295 bytes"));
    let mut nan = whole.clone();
    let at = nan.len() - 96 + 4 * (4 * 2 + 5);
    nan[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(said(&nan).contains("NaN or infinity in row 1, column 2"));
    // More than the memory of all threads together.
    let large = array("|u1", "False", "(2000, 2000, 2)", 8_000_000);
    let small = DecodeMemory::new(1 << 20);
    let error = decode_bands_within(&large, 2, 1 << 26, &mut small.permit()).unwrap_err();
    assert!(
        matches!(error, DecodeError::TooMuchMemory { .. }),
        "{error}"
    );
    let error = decode_bands_within(&large, 2, 1000, &mut small.permit()).unwrap_err();
    assert!(matches!(error, DecodeError::TooLarge { .. }), "{error}");
}

/// Cut anywhere or changed in any byte a file is an error or another image, never a panic.
#[test]
fn damaged_files_are_errors() {
    for name in FILES {
        let whole = bytes(name);
        let channels = values()[name].0[2];
        let all = decode_bands(&whole, channels).unwrap();
        for at in 0..whole.len() {
            // All pixels may be there without what ends a PNG.
            if let Ok(image) = decode_bands(&whole[..at], channels) {
                assert!(image == all && at + 16 > whole.len(), "{name} {at}");
            }
            for change in [1u8, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] ^= change;
                if let Err(error) = decode_bands(&damaged, channels) {
                    assert!(
                        !matches!(error, DecodeError::Panicked(_)),
                        "{name} {at}: {error}"
                    );
                }
            }
        }
    }
}

#[test]
fn resized_as_pillow_does_it() {
    let values = values();
    let (shape, pixels) = &values["resize.in"];
    // The part (left 2, top 3) to (16, 20).
    let rows = pixels.chunks_exact(shape[1]).skip(3).take(17);
    let part: Vec<f32> = rows.flat_map(|row| row[2..16].to_vec()).collect();
    // A second channel, which must not be seen.
    let image = Bands {
        width: 14,
        height: 17,
        channels: 2,
        values: part.iter().flat_map(|&x| [x, -3.0 * x]).collect(),
    };
    for (filter, name) in [
        (Interpolation::Bicubic, "bicubic"),
        (Interpolation::Bilinear, "bilinear"),
        (Interpolation::Lanczos, "lanczos"),
        (Interpolation::Box, "box"),
    ] {
        for (width, height) in [(9, 8), (31, 29)] {
            let whole = EvalTransform {
                size: (height, width),
                crop_pct: (1.0, 1.0),
                squash: true,
                interpolation: filter,
                ..EvalTransform::imagenet(8)
            };
            let transform = BandsTransform::eval(&whole, vec![0.0; 2], vec![1.0; 2]);
            let got = transform.draw(&image, &mut rng(0, "", 0, 0)).unwrap();
            let (_, want) = &values[&format!("resize.{name}_{width}x{height}")];
            let (first, second) = got.split_at(width * height);
            near(first, want, 1e-5);
            let third: Vec<f32> = second.iter().map(|x| x / -3.0).collect();
            near(&third, want, 1e-5);
        }
    }
}

/// The same crops and flips as of RGB images, to the rounding of those to 8 bits.
#[test]
fn chance_is_that_of_rgb() {
    let rgb: Vec<u8> = (0..40 * 30 * 3).map(|i| ((i * 7919) % 251) as u8).collect();
    let image = Image {
        width: 40,
        height: 30,
        rgb,
    };
    let bands = Bands::of_rgb(&image, 3).unwrap();
    let like = PretrainTransform::imagenet(12);
    let (mean, std) = (like.normalize.mean.to_vec(), like.normalize.std.to_vec());
    let transform = BandsTransform::pretrain(&like, mean, std);
    assert_eq!((transform.channels(), transform.size()), (3, (12, 12)));
    for index in 0..20 {
        let drawn = |index| rng(5, "augment", 0, index);
        let mut want = vec![0.0; 3 * 144];
        let image = like.draw(&image, &mut drawn(index)).unwrap();
        image.write(&like.normalize, &mut want).unwrap();
        let got = transform.draw(&bands, &mut drawn(index)).unwrap();
        // Bytes overflow where floating-point numbers do not, so most and not all are near.
        let far = got
            .iter()
            .zip(&want)
            .filter(|(a, b)| (*a - *b).abs() > 0.03)
            .count();
        assert!(far < got.len() / 10, "{index}: {far}");
    }
    let two = Bands {
        channels: 2,
        width: 1,
        height: 1,
        values: vec![0.0; 2],
    };
    let error = transform.draw(&two, &mut rng(0, "", 0, 0)).unwrap_err();
    assert!(error.to_string().contains("2 channels; expected 3"));
}

#[test]
fn a_folder_of_arrays_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    for class in ["a", "b"] {
        fs::create_dir(dir.path().join(class)).unwrap();
        for i in 0..100 {
            let to = dir.path().join(class).join(format!("{i}.npy"));
            fs::copy(fixture("f4.npy"), to).unwrap();
        }
    }
    // One in a hundred may be bad.
    fs::write(dir.path().join("a/7.npy"), "no array").unwrap();
    let source = Arc::new(ImageFolder::open(dir.path(), "train").unwrap());
    assert_eq!((source.len(), source.classes().len()), (200, 2));
    let load = |threads: usize| {
        let config = LoaderConfig {
            batch_size: 20,
            threads,
            ..LoaderConfig::default()
        };
        let like = PretrainTransform::imagenet(4);
        let transform = BandsTransform::pretrain(&like, vec![0.5; 13], vec![2.0; 13]);
        let loader = Loader::new(source.clone(), transform, config).unwrap();
        let batches: Vec<_> = loader.stream(0, 0).take(10).map(Result::unwrap).collect();
        assert_eq!(loader.skipped_count(), 1);
        assert!(loader.skipped()[0].reason.contains("none of JPEG"));
        batches
    };
    let one = load(1);
    assert_eq!(one[0].images.len(), 20 * 13 * 4 * 4);
    assert!(one == load(3));
    for bad in [
        (vec![], vec![]),
        (vec![0.0], vec![0.0]),
        (vec![0.0; 2], vec![1.0]),
    ] {
        let transform = BandsTransform::pretrain(&PretrainTransform::imagenet(4), bad.0, bad.1);
        let loader = Loader::new(source.clone(), transform, LoaderConfig::default());
        assert!(loader.err().unwrap().to_string().contains("no zero std"));
    }
    // Beside images arrays are something else.
    fs::copy(fixture("rgb16.png"), dir.path().join("b/x.png")).unwrap();
    fs::remove_dir_all(dir.path().join("a")).unwrap();
    let mixed = ImageFolder::open(dir.path(), "train").unwrap();
    assert_eq!(mixed.len(), 1);
    let others = mixed.other_files();
    assert_eq!(others, [("that are arrays".to_owned(), 100)]);
}
