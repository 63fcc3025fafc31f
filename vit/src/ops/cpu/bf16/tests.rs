use super::super::activations::Factors;
use super::super::matrix::{Data, Mat};
use super::super::rounding::{round, widen};
use super::super::scratch::Line;
use super::super::sums::{round_and_sum, round_product_and_sum};
use super::super::tiles::{halves, Tile, DEPTH, PANEL};
use super::*;

/// The product of two matrices in memory.
fn into(unit: Unit, product: Product<Mat>, dst: &mut [f32]) {
    let (_, k, n) = product.shape;
    let rhs = columns(product.rhs, k, n, product.threads == Threads::All);
    multiply(
        unit,
        product.with(&rhs),
        DataMut::F32(dst),
        &Profile::default(),
    );
}

/// A small deterministic generator.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.0 >> 33
    }

    /// In [-1, 1).
    fn number(&mut self) -> f32 {
        self.bits() as f32 / (1u64 << 30) as f32 - 1.0
    }

    fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }
}

fn rounded(x: f32) -> f64 {
    f64::from(f32::from_bits(u32::from(round(x)) << 16))
}

/// A product in f64 of the rounded operands, and of the absolute values of the unrounded ones (what errors are measured by).
fn exact((m, k, n): (usize, usize, usize), lhs: Mat, rhs: Mat) -> (Vec<f64>, Vec<f64>) {
    let (mut sums, mut sizes) = (vec![0f64; m * n], vec![0f64; m * n]);
    let column: Vec<f32> = (0..n * k)
        .map(|i| rhs.data.f32()[(i % k) * rhs.rs + (i / k) * rhs.cs])
        .collect();
    let rounded_column: Vec<f64> = column.iter().map(|&x| rounded(x)).collect();
    for r in 0..m {
        let row: Vec<f32> = (0..k)
            .map(|i| lhs.data.f32()[r * lhs.rs + i * lhs.cs])
            .collect();
        let rounded_row: Vec<f64> = row.iter().map(|&x| rounded(x)).collect();
        for c in 0..n {
            let range = c * k..(c + 1) * k;
            let pairs = rounded_row.iter().zip(&rounded_column[range.clone()]);
            sums[r * n + c] = pairs.map(|(a, b)| a * b).sum();
            let pairs = row.iter().zip(&column[range]);
            sizes[r * n + c] = pairs.map(|(a, b)| f64::from((a * b).abs())).sum();
        }
    }
    (sums, sizes)
}

/// All four layouts of operands at this size with every kernel against f64; the destination has gaps and is poisoned.
fn check(unit: Unit, (m, k, n): (usize, usize, usize), offset: usize, random: &mut Random) {
    let (a, b) = (
        random.numbers(m * k + offset),
        random.numbers(k * n + offset),
    );
    let (a, b) = (&a[offset..], &b[offset..]);
    let bias = random.numbers(n);
    for layout in 0..4 {
        let lhs = match layout % 2 {
            0 => Mat::rows(a, k),
            _ => Mat::rows(a, m).t(),
        };
        let rhs = match layout / 2 {
            0 => Mat::rows(b, n),
            _ => Mat::rows(b, k).t(),
        };
        let (want, sizes) = exact((m, k, n), lhs, rhs);
        let dst_rs = n + offset;
        let mut all = Vec::new();
        for threads in [Threads::One, Threads::All] {
            let product = Product {
                stride: dst_rs,
                threads,
                ..Product::new((m, k, n), lhs, rhs)
            };
            let run = |dst: &mut [f32], start| into(unit, Product { start, ..product }, dst);
            let poisoned = vec![f32::NAN; m * dst_rs];
            let (mut once, mut biased) = (poisoned.clone(), poisoned);
            run(&mut once, Start::Zero);
            run(&mut biased, Start::Row(&bias));
            let mut twice = once.clone();
            run(&mut twice, Start::Sum);
            for r in 0..m {
                for c in 0..n {
                    let (want, at) = (want[r * n + c], r * dst_rs + c);
                    // Sums in f32, in some order; the unit may also lose denormals.
                    let bound = 2e-6 * (sizes[r * n + c] * (k as f64).sqrt() + 1.0);
                    let bias = f64::from(bias[c]);
                    for (got, want) in [
                        (once[at], want),
                        (twice[at], 2.0 * want),
                        (biased[at], bias + want),
                    ] {
                        assert!(
                            (f64::from(got) - want).abs() <= bound,
                            "{unit:?} {m}x{k}x{n} layout {layout} at {r},{c}: {got}, not {want}"
                        );
                    }
                }
                let gap = r * dst_rs + n..(r + 1) * dst_rs;
                assert!(
                    twice[gap.clone()]
                        .iter()
                        .chain(&biased[gap])
                        .all(|x| x.is_nan()),
                    "{unit:?} {m}x{k}x{n}: wrote beyond the row"
                );
            }
            let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            all.push((bits(twice), bits(biased)));
        }
        assert!(
            all[0] == all[1],
            "{unit:?} {m}x{k}x{n}: threads change the bits"
        );
    }
}

#[test]
fn every_kernel_equals_f64() {
    let mut random = Random(1);
    for unit in Unit::available() {
        // Nothing to sum up: zeros, or what was there.
        let mut dst = [f32::NAN, 7.0];
        let none = Mat::rows(&[], 1);
        into(
            unit,
            Product {
                threads: Threads::One,
                ..Product::new((1, 0, 1), Mat::rows(&[], 0), none)
            },
            &mut dst[..1],
        );
        into(
            unit,
            Product {
                start: Start::Sum,
                threads: Threads::One,
                ..Product::new((1, 0, 1), Mat::rows(&[], 0), none)
            },
            &mut dst[1..],
        );
        assert_eq!(dst, [0.0, 7.0]);
        into(
            unit,
            Product::new((0, 3, 0), Mat::rows(&[], 3), none),
            &mut [],
        );
        for size in [
            (1, 1, 1),
            (2, 3, 5),
            (16, 32, 16),
            (17, 33, 15),
            (31, 64, 33),
            (32, 512, 64),
            (300, 40, 290),
            (7, 1031, 11),
        ] {
            for offset in [0, 1, 5] {
                check(unit, size, offset, &mut random);
            }
        }
        // Each dimension long once; primes.
        for size in [(2099, 3, 5), (5, 2100, 3), (3, 37, 2053), (131, 547, 97)] {
            check(unit, size, 0, &mut random);
        }
        for _ in 0..12 {
            let mut size = || 1 + random.bits() as usize % 150;
            let size = (size(), size(), size());
            check(unit, size, 3, &mut random);
        }
    }
}

/// Rounding both operands to 8 bits of mantissa costs at most 2^-8 of each product, and much less of the norm.
#[test]
fn the_error_is_that_of_rounding() {
    let mut random = Random(2);
    let (m, k, n) = (96, 768, 80);
    let (a, b) = (random.numbers(m * k), random.numbers(k * n));
    let (lhs, rhs) = (Mat::rows(&a, k), Mat::rows(&b, n));
    let mut dst = vec![0f32; m * n];
    for unit in Unit::available() {
        into(unit, Product::new((m, k, n), lhs, rhs), &mut dst);
        let (mut error, mut norm) = (0f64, 0f64);
        for r in 0..m {
            for c in 0..n {
                let want: f64 = (0..k)
                    .map(|i| f64::from(a[r * k + i]) * f64::from(b[i * n + c]))
                    .sum();
                error += (f64::from(dst[r * n + c]) - want).powi(2);
                norm += want * want;
            }
        }
        let error = (error / norm).sqrt();
        // Two roundings, each uniform within half a unit of 2^-8 relative: about 2^-9 sqrt(2 / 3).
        assert!(
            (5e-4..4e-3).contains(&error),
            "{unit:?}: relative error {error}"
        );
    }
}

#[test]
fn infinities_and_nans_propagate() {
    for unit in Unit::available() {
        for (m, k, n) in [(3, 41, 18), (64, 64, 64)] {
            for (bad, place) in [(f32::NAN, 0), (f32::INFINITY, 39), (f32::NEG_INFINITY, 40)] {
                let mut a = vec![0.5f32; m * k];
                a[k + place] = bad;
                let b = vec![1f32; k * n];
                let sum = k as f32 / 2.0;
                // In either operand, in either layout.
                for layout in 0..4 {
                    let bad_first = layout % 2 == 0;
                    let (rows, columns) = if bad_first { (m, n) } else { (n, m) };
                    let (lhs, rhs) = match bad_first {
                        true => (Mat::rows(&a, k), Mat::rows(&b, n)),
                        false => (Mat::rows(&b, n).t(), Mat::rows(&a, k).t()),
                    };
                    let mut dst = vec![0f32; m * n];
                    let start = if layout < 2 { Start::Zero } else { Start::Sum };
                    into(
                        unit,
                        Product {
                            start,
                            threads: Threads::One,
                            ..Product::new((rows, k, columns), lhs, rhs)
                        },
                        &mut dst,
                    );
                    for (i, &x) in dst.iter().enumerate() {
                        let line = if bad_first { i / columns } else { i % columns };
                        match line {
                            1 if bad.is_nan() => assert!(x.is_nan(), "{unit:?}: {x}"),
                            1 => assert_eq!(x, bad, "{unit:?}"),
                            _ => assert_eq!(x, sum, "{unit:?}: a neighbour's"),
                        }
                    }
                }
            }
        }
        // Nothing to sum up, in whole squares.
        let bias: Vec<f32> = (0..64).map(|c| c as f32).collect();
        let mut dst = vec![f32::NAN; 64 * 64];
        let (lhs, rhs) = (Mat::rows(&[], 0), Mat::rows(&[], 64));
        let row = Start::Row(&bias);
        into(
            unit,
            Product {
                start: row,
                threads: Threads::One,
                ..Product::new((64, 0, 64), lhs, rhs)
            },
            &mut dst,
        );
        assert!(dst.iter().enumerate().all(|(i, &x)| x == bias[i % 64]));
    }
}

#[test]
fn rounds_to_nearest_even() {
    let r = |x: f32| f32::from_bits(u32::from(round(x)) << 16);
    assert_eq!(r(1.0), 1.0);
    assert_eq!(r(1.0 + 1.0 / 256.0), 1.0); // a tie: to the even one
    assert_eq!(r(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
    assert_eq!(r(f32::MAX), f32::INFINITY);
    assert_eq!(r(f32::NEG_INFINITY), f32::NEG_INFINITY);
    assert!(r(f32::NAN).is_nan());
    assert!(r(f32::from_bits(0x7f80_0001)).is_nan());
    let mut random = Random(3);
    let x: Vec<f32> = (0..100_003)
        .map(|_| f32::from_bits(random.bits() as u32 * 2))
        .collect();
    let mut back = vec![0f32; x.len()];
    let mut rounded = vec![0; x.len()];
    round_all(&x, &mut rounded);
    for (back, &x) in back.iter_mut().zip(&rounded) {
        *back = widen(x);
    }
    for (&x, &back) in x.iter().zip(&back) {
        assert!(
            back == half::bf16::from_f32(x).to_f32() || (x.is_nan() && back.is_nan()),
            "{x}"
        );
    }
}

/// Tiles by registers and by plain code are the same, whatever sticks out, and so are all tiles of a matrix and its transpose.
#[test]
fn tiles_are_the_same_however_they_are_made() {
    use pack::Part;
    let mut random = Random(4);
    let line = Line([7; 16]);
    for (many, deep, stride) in [
        (16, 32, 32),
        (16, 32, 77),
        (1, 1, 40),
        (5, 31, 33),
        (16, 17, 64),
        (3, 16, 50),
    ] {
        let data = random.numbers(32 * 80 + 3);
        for transposed in [false, true] {
            let (mut fast, mut plain): (Tile, Tile) = ([line; 16], [line; 16]);
            let part = Part {
                data: &data[3..],
                many,
                deep,
            };
            let rounded: Vec<u16> = data.iter().map(|&x| round(x)).collect();
            let halves = Part {
                data: &rounded[3..],
                many,
                deep,
            };
            part.along_k_plain(stride, transposed, &mut plain);
            part.along_k(stride, transposed, &mut fast);
            assert_eq!(fast, plain, "along k: {many} x {deep}");
            halves.along_k(stride, transposed, &mut fast);
            assert_eq!(fast, plain, "along k, of bf16: {many} x {deep}");
            halves.along_k_plain(stride, transposed, &mut fast);
            assert_eq!(fast, plain, "along k, of bf16, plain: {many} x {deep}");
            part.across_k_plain(stride, transposed, &mut plain);
            part.across_k(stride, transposed, &mut fast);
            assert_eq!(fast, plain, "across k: {many} x {deep}");
            halves.across_k(stride, transposed, &mut fast);
            assert_eq!(fast, plain, "across k, of bf16: {many} x {deep}");
            halves.across_k_plain(stride, transposed, &mut fast);
            assert_eq!(fast, plain, "across k, of bf16, plain: {many} x {deep}");
            let word = |k: usize, i: usize| match k < deep && i < many {
                true => u32::from(round(data[3 + k * stride + i])),
                false => 0,
            };
            let (line, of) = if transposed { (2, 5) } else { (5, 2) };
            assert_eq!(plain[line].0[of], word(10, 2) | word(11, 2) << 16);
        }
    }
}

/// Of so many rows and columns, stored by rows or by columns.
fn operand(data: Data, rows: usize, columns: usize, transposed: bool) -> Mat {
    match transposed {
        false => Mat::of(data, columns),
        true => Mat::of(data, rows).t(),
    }
}

fn tiles(x: &[f32], rows: usize, width: usize) -> Tiles {
    // SAFETY: written whole right below.
    let mut tiles = unsafe { Tiles::rows(rows, width, rows.is_multiple_of(2)) };
    round_into(x, &mut tiles);
    tiles
}

/// The numbers of a matrix in tiles; what sticks out must be 0.
fn numbers(tiles: &Tiles) -> Vec<u16> {
    let (rows, width, steps) = (tiles.outer(), tiles.depth(), tiles.steps());
    let mut numbers = vec![0; rows * width];
    for (i, tile) in tiles.tiles().iter().enumerate() {
        for (r, line) in tile.iter().enumerate() {
            for (c, &x) in halves(line).iter().enumerate() {
                let (row, column) = (i / steps * PANEL + r, i % steps * DEPTH + c);
                match row < rows && column < width {
                    true => numbers[row * width + column] = x,
                    false => assert_eq!(x, 0, "at {row}, {column} of {rows} x {width}"),
                }
            }
        }
    }
    numbers
}

/// Operands that are bf16 already, by rows or in tiles, give the same bits; a result in bf16 is the f32 one, rounded.
#[test]
fn operands_and_results_may_be_bf16() {
    let mut random = Random(5);
    let halves = |x: &[f32]| x.iter().map(|&x| round(x)).collect::<Vec<u16>>();
    for unit in Unit::available() {
        for (m, k, n) in [
            (1, 1, 1),
            (2, 3, 5),
            (5, 1, 5),
            (1, 40, 1),
            (17, 33, 15),
            (16, 32, 16),
            (40, 520, 33),
            (40, 40, 40),
            (131, 547, 97),
            (300, 40, 290),
        ] {
            let (a, b) = (random.numbers(m * k), random.numbers(k * n));
            let bias = random.numbers(n);
            let (a16, b16) = (halves(&a), halves(&b));
            for transposed in [false, true] {
                let (left, right) = match transposed {
                    false => (tiles(&a, m, k), tiles(&b, k, n)),
                    true => (tiles(&a, k, m), tiles(&b, k, n)),
                };
                let f32s = (Data::F32(&a), Data::F32(&b));
                let all = [
                    (f32s, (Data::Bf16(&a16), Data::Bf16(&b16)), transposed),
                    (f32s, (Data::Tiles(&left), Data::F32(&b)), transposed),
                    // Tiles are no right operand along k.
                    (f32s, (Data::F32(&a), Data::Tiles(&right)), false),
                ];
                for threads in [Threads::One, Threads::All] {
                    for (i, (f32s, operands, turned)) in all.into_iter().enumerate() {
                        let product = |(a, b)| Product {
                            start: Start::Row(&bias),
                            threads,
                            ..Product::new(
                                (m, k, n),
                                operand(a, m, k, transposed),
                                operand(b, k, n, turned),
                            )
                        };
                        let (mut want, mut got) = (vec![0f32; m * n], vec![0f32; m * n]);
                        into(unit, product(f32s), &mut want);
                        into(unit, product(operands), &mut got);
                        assert_eq!(want, got, "{unit:?} {m}x{k}x{n}, operands {i}");
                        let product = product(operands);
                        let rhs = columns(product.rhs, k, n, threads == Threads::All);
                        let product = product.with(&rhs);
                        let mut rounded = vec![0u16; m * n + 3];
                        let dst = DataMut::Bf16(&mut rounded);
                        multiply(unit, product, dst, &Profile::default());
                        assert_eq!(rounded[..m * n], halves(&want), "{unit:?} {m}x{k}x{n}");
                        assert_eq!(rounded[m * n..], [0; 3], "wrote beyond the end");
                        // SAFETY: written whole by the product.
                        let mut rounded = unsafe { Tiles::rows(m, n, false) };
                        let dst = DataMut::Tiles(&mut rounded);
                        multiply(unit, product, dst, &Profile::default());
                        assert_eq!(numbers(&rounded), halves(&want), "{unit:?} {m}x{k}x{n}");
                    }
                }
            }
        }
    }
}

/// The same by registers and by plain code.
#[test]
fn tiles_are_turned() {
    let mut random = Random(6);
    let mut tile =
        || -> Tile { std::array::from_fn(|_| Line(std::array::from_fn(|_| random.bits() as u32))) };
    let from = [tile(), tile()];
    for right in [false, true] {
        let (mut fast, mut plain) = ([tile(), tile()], [tile(), tile()]);
        let [a, b] = &mut fast;
        pack::turn([&from[0], &from[1]], right, [a, b]);
        let [a, b] = &mut plain;
        pack::turn_plain([&from[0], &from[1]], right, [a, b]);
        assert_eq!(fast, plain);
        let of = |row: usize, column: usize| halves(&from[row / 16][row % 16])[column];
        let word = u32::from(of(20, 21)) | u32::from(of(21, 21)) << 16;
        let (line, at) = if right { (10, 5) } else { (5, 10) };
        assert_eq!(plain[1][line].0[at], word);
    }
}

/// Tiles of rows, with factors or as a product, and the sums of what was not rounded; more rows than a task has.
#[test]
fn rows_are_rounded_and_summed() {
    let mut random = Random(7);
    for (rows, width) in [(1, 1), (5, 33), (128, 32), (129, 31), (300, 96), (261, 385)] {
        let (a, b) = (random.numbers(rows * width), random.numbers(rows * width));
        let images = random.numbers(rows.div_ceil(3));
        let factors = Factors {
            images: Some(&images),
            tokens: 3,
        };
        // `a` in the order of tiles, as GELU's derivative is.
        let steps = width.div_ceil(DEPTH);
        let mut ordered = vec![f32::NAN; rows.next_multiple_of(2 * PANEL) * steps * DEPTH];
        for (i, &x) in a.iter().enumerate() {
            let (row, column) = (i / width, i % width);
            let line = (row / PANEL * steps + column / DEPTH) * PANEL + row % PANEL;
            ordered[line * DEPTH + column % DEPTH] = x;
        }
        for pooled in [false, true] {
            // SAFETY: each is written whole right behind it.
            let room = || unsafe { Tiles::rows(rows, width, pooled) };
            let (mut scaled, mut products) = (room(), room());
            let results = [
                (round_and_sum(&a, factors, &mut scaled), scaled, true),
                (
                    round_product_and_sum(&ordered, &b, &mut products),
                    products,
                    false,
                ),
            ];
            for (sums, tiles, times_factor) in results {
                let want = |i: usize| match times_factor {
                    true => images[i / width / 3] * a[i],
                    false => a[i] * b[i],
                };
                let rounded: Vec<u16> = (0..rows * width).map(|i| round(want(i))).collect();
                assert_eq!(numbers(&tiles), rounded, "{rows} x {width}");
                for (column, &sum) in sums.iter().enumerate() {
                    let exact = (0..rows).map(|row| f64::from(want(row * width + column)));
                    let error = f64::from(sum) - exact.sum::<f64>();
                    assert!(error.abs() < 1e-4, "{rows} x {width}: column {column}");
                }
            }
        }
    }
}
