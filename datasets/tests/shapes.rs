//! The drawn dataset.

use datasets::{Image, Shapes, Source};

/// FNV-1a.
fn hash(image: &Image) -> u64 {
    image.rgb.iter().fold(0xcbf2_9ce4_8422_2325, |h, &byte| {
        (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Drawing must never change silently: results are quoted for a seed. All arithmetic in it is exact by IEEE 754
/// (sines come from the libm crate), so these hold on every machine.
#[test]
fn pictures_are_pinned() {
    let shapes = Shapes::new(0, 32, 10);
    let hashes: Vec<u64> = (0..10).map(|i| hash(&shapes.image(i).unwrap())).collect();
    let expected: [u64; 10] = [
        0x8454_5ee5_6291_b939,
        0x69ad_29be_4509_6e02,
        0x7e5a_2f0e_2817_446b,
        0x337d_d45f_2eea_a319,
        0x8087_82ee_b29e_2697,
        0x2d29_2d80_713e_1df6,
        0xa478_3e3f_2d06_8168,
        0x0966_f7b7_b306_bf52,
        0xc5aa_a95c_7d1a_d8de,
        0xba3a_d998_733f_d7c4,
    ];
    assert_eq!(hashes, expected);
}

#[test]
fn an_image_depends_on_seed_and_index_alone() {
    let image = |seed, len, index| Shapes::new(seed, 24, len).image(index).unwrap();
    assert_eq!(image(1, 10, 3), image(1, 1_000_000, 3));
    assert_ne!(image(1, 10, 3), image(2, 10, 3));
    assert_ne!(image(1, 20, 3), image(1, 20, 13));
}

#[test]
fn labels_go_round_the_classes() {
    let shapes = Shapes::new(0, 8, 1234);
    assert_eq!(shapes.classes().len(), 10);
    assert_eq!(shapes.classes()[shapes.label(3)], "star");
    assert_eq!((shapes.label(10), shapes.label(1233)), (0, 3));
    assert_eq!(shapes.name(17), "shapes #17");
    assert_eq!(
        shapes.describe(),
        "shapes drawn with seed 0, 1 234 images, 10 classes"
    );
}

#[test]
fn any_size_is_drawn() {
    for size in [0, 1, 2, 7, 65] {
        let image = Shapes::new(0, size, 1).image(0).unwrap();
        let side = size.max(1);
        assert_eq!(
            (image.width, image.height, image.rgb.len()),
            (side, side, 3 * side * side)
        );
    }
}

/// The scene is the same at any size: a large picture, averaged, is nearly the small one.
#[test]
fn size_changes_only_the_resolution() {
    let (small, large) = (Shapes::new(0, 16, 10), Shapes::new(0, 128, 10));
    for index in 0..10 {
        let (small, large) = (small.image(index).unwrap(), large.image(index).unwrap());
        let mut off = 0.0;
        for y in 0..16 {
            for x in 0..16 {
                let block = (0..64).map(|i| large.rgb[((8 * y + i / 8) * 128 + 8 * x + i % 8) * 3]);
                let mean = block.map(f64::from).sum::<f64>() / 64.0;
                off += (mean - f64::from(small.rgb[(y * 16 + x) * 3])).abs() / 256.0;
            }
        }
        assert!(off < 12.0, "{index}: mean difference {off}");
    }
}
