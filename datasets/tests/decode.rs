//! Decoding against Pillow; how the fixtures were made is in make_fixtures.py.

use std::fs;
use std::path::{Path, PathBuf};

use datasets::rng::{below, rng};
use datasets::{decode, decode_within, DecodeError, DecodeMemory, Image, MAX_PIXELS};

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
        "none of JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, PGM and .npy (first bytes [25, 50, 44, 46])"
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

/// A PNG's header alone: what decides before pixels are read.
fn png_header(width: u32, height: u32, bits: u8, colour: u8) -> Vec<u8> {
    let mut data = Vec::from(*b"IHDR");
    data.extend(width.to_be_bytes());
    data.extend(height.to_be_bytes());
    data.extend([bits, colour, 0, 0, 0]);
    let mut crc = flate2::Crc::new();
    crc.update(&data);
    let mut png = Vec::from(*b"\x89PNG\r\n\x1a\n\0\0\0\x0d");
    png.extend(data);
    png.extend(crc.sum().to_be_bytes());
    png.extend(*b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    png
}

/// The first frame header of a JPEG, from its height on.
fn frame(jpeg: &[u8]) -> usize {
    let at = jpeg
        .windows(2)
        .position(|w| matches!(w, [0xff, 0xc0 | 0xc2]));
    at.unwrap() + 5
}

#[test]
fn what_takes_too_much_memory_is_refused_from_its_header() {
    let mut progressive = fixture("decode/progressive.jpg");
    let at = frame(&progressive);
    progressive[at..at + 4].copy_from_slice(&[0x34, 0x41, 0x34, 0x41]);
    let mut webp = Vec::from(*b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f");
    webp.extend((13_376u32 | 13_376 << 14).to_le_bytes());
    webp.extend([0; 8]);
    for (name, bytes) in [
        ("RGBA of 16 bits", png_header(13_377, 13_377, 16, 6)),
        ("grey and alpha", png_header(13_377, 13_377, 16, 4)),
        ("JPEG", progressive),
        ("WebP", webp),
    ] {
        let message = decode(&bytes).unwrap_err().to_string();
        assert!(
            message.contains("13377 x 13377") && message.contains("limit of 1073741824"),
            "{name}: {message}"
        );
    }
    // 8 bits fit: the file is bad because it ends, not because of its size.
    let fits = decode(&png_header(13_377, 13_377, 8, 6)).unwrap_err();
    assert!(!fits.to_string().contains("limit"), "{fits}");
}

#[test]
fn an_image_without_pixels_is_bad() {
    let without = |name: &str, side: usize| {
        let mut jpeg = fixture(name);
        let at = frame(&jpeg) + 2 * side;
        jpeg[at..at + 2].fill(0);
        jpeg
    };
    let mut bmp = fixture("formats/color.bmp");
    bmp[22..26].fill(0);
    for (name, bytes) in [
        ("height", without("decode/photo.jpg", 0)),
        ("width", without("decode/photo.jpg", 1)),
        ("progressive", without("decode/progressive.jpg", 0)),
        ("PNG", png_header(0, 5, 8, 2)),
        ("BMP", bmp),
    ] {
        assert!(decode(&bytes).is_err(), "{name}");
    }
}

#[test]
fn what_is_decoded_at_a_time_is_a_value_that_is_passed() {
    let bytes = fixture("decode/color.png");
    let image = decode(&bytes).unwrap();
    let size = image.rgb.len() as u64;
    // Too little for it, whatever another memory has left.
    let little = DecodeMemory::new(size - 1);
    let error = decode_within(&bytes, MAX_PIXELS, &mut little.permit()).unwrap_err();
    assert!(
        matches!(error, DecodeError::TooMuchMemory { limit, .. } if limit == size - 1),
        "{error}"
    );
    // Enough for one at a time: all threads get theirs.
    let enough = DecodeMemory::new(size);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut permit = enough.permit();
                for _ in 0..20 {
                    assert!(decode_within(&bytes, MAX_PIXELS, &mut permit).unwrap() == image);
                }
            });
        }
    });
    // Who holds an image keeps others waiting, on this memory alone.
    let mut held = enough.permit();
    decode_within(&bytes, MAX_PIXELS, &mut held).unwrap();
    assert!(decode(&bytes).is_ok());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| decode_within(&bytes, MAX_PIXELS, &mut enough.permit()).is_ok());
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!waits.is_finished());
        drop(held);
        assert!(waits.join().unwrap());
    });
}

/// A TIFF of one pixel: bits a sample, what kind of pixels, in which format.
fn one_pixel_tiff(bits: u16, kind: u16, format: u16) -> Vec<u8> {
    let tags: [(u16, u32); 9] = [
        (256, 1),
        (257, 1),
        (258, bits.into()),
        (259, 1),
        (262, kind.into()),
        (273, 8 + 2 + 9 * 12 + 4),
        (278, 1),
        (279, 8),
        (339, format.into()),
    ];
    let mut bytes = b"II*\0\x08\0\0\0\x09\0".to_vec();
    for (tag, value) in tags {
        bytes.extend(tag.to_le_bytes());
        bytes.extend([3, 0, 1, 0, 0, 0]);
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 12]);
    bytes
}

#[test]
fn tiffs_that_are_not_read_say_why() {
    assert!(decode(&one_pixel_tiff(8, 1, 1)).is_ok());
    for (bits, kind, format, expected) in [
        (
            32,
            1,
            3,
            "bad TIFF: floating-point pixels, whose range the file does not say",
        ),
        (
            32,
            2,
            3,
            "bad TIFF: floating-point pixels, whose range the file does not say",
        ),
        (
            64,
            1,
            3,
            "bad TIFF: floating-point pixels, whose range the file does not say",
        ),
        (
            4,
            3,
            1,
            "bad TIFF: a palette for 4 bits a pixel; only those for 8 are read",
        ),
        (
            16,
            3,
            1,
            "bad TIFF: a palette for 16 bits a pixel; only those for 8 are read",
        ),
        (8, 3, 1, "bad TIFF: a palette without colours"),
    ] {
        let error = decode(&one_pixel_tiff(bits, kind, format)).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
    }
    let whole = fixture("formats/palette.tif");
    for cut in 8..whole.len() {
        let _ = decode(&whole[..cut]);
    }
}
