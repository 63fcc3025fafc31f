//! Decoding against Pillow; how the fixtures were made is in make_fixtures.py.

use std::fs;
use std::path::{Path, PathBuf};

use datasets::rng::{below, rng};
use datasets::{decode, DecodeError, Image};

fn fixture(path: &str) -> Vec<u8> {
    fs::read(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(path),
    )
    .unwrap()
}

/// All files that Pillow decoded.
fn cases() -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decode");
    let names = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    let names = names.filter(|name| !name.ends_with(".rgb.png"));
    names
        .map(|name| (name.clone(), fixture(&format!("decode/{name}"))))
        .collect()
}

#[test]
fn pixels_are_those_of_pillow() {
    let cases = cases();
    assert_eq!(cases.len(), 21);
    for (name, bytes) in cases {
        let image = decode(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected: Image = decode(&fixture(&format!("decode/{name}.rgb.png"))).unwrap();
        assert_eq!(
            (image.width, image.height),
            (expected.width, expected.height),
            "{name}"
        );
        let off = image
            .rgb
            .iter()
            .zip(&expected.rgb)
            .map(|(a, b)| a.abs_diff(*b))
            .max();
        assert_eq!(off, Some(0), "{name}: largest difference");
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for (name, bytes) in cases() {
        let whole = decode(&bytes).unwrap();
        // A JPEG's last two bytes are its end marker, a PNG's last twelve its end chunk.
        let dispensable = if name.ends_with("png") { 12 } else { 0 };
        for cut in 0..bytes.len() {
            match decode(&bytes[..cut]) {
                Ok(image) => assert!(
                    image == whole && bytes.len() - cut <= dispensable,
                    "{name}, {cut} of {} bytes",
                    bytes.len()
                ),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
    let photo = fixture("decode/photo.jpg");
    assert!(matches!(
        decode(&photo[..photo.len() / 2]),
        Err(DecodeError::Truncated)
    ));
    let png = fixture("decode/color.png");
    assert!(matches!(
        decode(&png[..png.len() / 2]),
        Err(DecodeError::Truncated)
    ));
}

#[test]
fn a_half_jpeg_with_an_end_marker_is_an_error() {
    for name in ["photo", "progressive", "restart", "grey", "cmyk"] {
        let mut bytes = fixture(&format!("decode/{name}.jpg"));
        bytes.truncate(bytes.len() * 2 / 3);
        bytes.extend([0xff, 0xd9]);
        assert!(decode(&bytes).is_err(), "{name}");
    }
}

#[test]
fn bytes_after_the_end_do_no_harm() {
    for (name, mut bytes) in cases() {
        let whole = decode(&bytes).unwrap();
        bytes.extend(b"and so on");
        assert_eq!(decode(&bytes).unwrap(), whole, "{name}");
    }
}

#[test]
fn damaged_files_do_not_panic() {
    let r = &mut rng(0, "damage", 0, 0);
    for (_, bytes) in cases() {
        for _ in 0..100 {
            let mut damaged = bytes.clone();
            for _ in 0..1 + below(r, 3) {
                let at = below(r, damaged.len());
                damaged[at] = below(r, 256) as u8;
            }
            if let Ok(image) = decode(&damaged) {
                assert_eq!(image.rgb.len(), 3 * image.width * image.height);
            }
        }
    }
}

#[test]
fn what_is_no_image_is_named() {
    let message = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
    assert_eq!(message(b""), "empty file");
    assert_eq!(
        message(b"%PDF-1.7"),
        "none of JPEG, PNG, WebP, BMP, TIFF, GIF, PPM and PGM (first bytes [25, 50, 44, 46])"
    );
    assert!(message(b"GIF89a").starts_with("bad GIF: "));
    assert!(message(b"P6\n2 2\n255\nabc").contains("truncated"));
    assert!(message(b"II*\0\x08\0\0\0").contains("truncated"));
    assert_eq!(message(&[0xff, 0xd8]), "image file is truncated");
    assert!(message(&[0xff, 0xd8, 0xff, 0xd9]).starts_with("bad JPEG"));
}

#[test]
fn too_large_images_are_refused_from_their_header() {
    for name in ["bad/huge.jpg", "bad/huge.png"] {
        let error = decode(&fixture(name)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "65500 x 65500 pixels, more than the limit of 178956970",
            "{name}"
        );
    }
}
