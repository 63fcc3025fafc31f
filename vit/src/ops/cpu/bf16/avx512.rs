//! AVX-512-BF16: one instruction multiplies 16 pairs and adds each pair to its sum.
use std::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

use super::super::math::fetch;
use super::super::matrix::Start;
use super::super::registers::{mask, store_from, transpose};
use super::super::tiles::{place, Tile, Tiles, DEPTH};
use super::pack::{Part, Rounded};
use super::{Destination, Target};

/// Rows computed at once, with two panels of columns: 16 registers of sums for 10 loads.
const ROWS: usize = 8;

/// One task: all tiles of these panels. Two panels of the right operand stay in the first cache, those of the left one come
/// from the second.
///
/// # Safety
/// The machine has AVX-512F, AVX-512BW and AVX-512-BF16; and as [`Destination::put`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn multiply(
    lhs: &Tiles,
    rhs: &Tiles,
    left: Range<usize>,
    right: Range<usize>,
    to: Destination,
) {
    let pairs = lhs.depth().div_ceil(2);
    for r in right.step_by(2) {
        let b = [rhs.panel(r), rhs.panel(r + 1)];
        for l in left.clone() {
            // SAFETY: the caller's.
            unsafe {
                half_panel::<0>(lhs.panel(l), b, pairs, 16 * l, 16 * r, &to);
                half_panel::<ROWS>(lhs.panel(l), b, pairs, 16 * l, 16 * r, &to);
            }
        }
    }
}

/// 8 rows by 32 columns of a panel, from row `FIRST` of it on, over so many pairs along k.
///
/// # Safety
/// As above.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn half_panel<const FIRST: usize>(
    left: &[Tile],
    right: [&[Tile]; 2],
    pairs: usize,
    row: usize,
    column: usize,
    to: &Destination,
) {
    let row = row + FIRST;
    if row >= to.rows {
        return;
    }
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for (step, ((left, b0), b1)) in left.iter().zip(right[0]).zip(right[1]).enumerate() {
        for p in 0..(pairs - 16 * step).min(16) {
            // SAFETY: a line is 64 bytes.
            let line = |tile: &Tile| unsafe { _mm512_loadu_si512(tile[p].0.as_ptr().cast()) };
            let (b0, b1) = (bf16(line(b0)), bf16(line(b1)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = bf16(_mm512_set1_epi32(left[FIRST + r].0[p] as i32));
                sums[0] = _mm512_dpbf16_ps(sums[0], a, b0);
                sums[1] = _mm512_dpbf16_ps(sums[1], a, b1);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate().take(to.rows - row) {
        for (half, &sums) in sums.iter().enumerate() {
            let (row, column) = (row + r, column + 16 * half);
            // SAFETY: row + r is below `rows`; the caller's for the rest.
            unsafe {
                match to.data {
                    Target::F32(out) => store_sums(to, out, sums, row, column),
                    _ => store_rounded(to, sums, row, column),
                }
            }
        }
    }
}

/// So many rounds of 16 instructions, nothing loaded or stored.
///
/// # Safety
/// The machine has AVX-512F and AVX-512-BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn in_registers(rounds: u64) {
    // Pairs of 1: what is added is small beside f32's range, however long it runs.
    let (a, b) = (
        bf16(_mm512_set1_epi32(black_box(0x3f80_3f80))),
        bf16(_mm512_set1_epi32(black_box(0x3f80_3f80))),
    );
    let mut sums = [_mm512_setzero_ps(); 16];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, a, b);
        }
    }
    black_box(sums);
}

/// The same bits as pairs of bf16.
#[inline(always)]
fn bf16(words: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits, all values of which are valid.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(words) }
}

/// 16 sums to their place.
///
/// # Safety
/// The machine has AVX-512F, `out` is the destination's data and `row` one of its rows; and as [`Destination::put`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_sums(to: &Destination, out: *mut f32, sums: __m512, row: usize, column: usize) {
    let mask = mask(to.columns.saturating_sub(column));
    let out = out.wrapping_add(row * to.stride + column);
    // SAFETY: the mask leaves away what is beyond the destination's columns; a row to start from is as wide.
    unsafe { store_from(out, mask, to.start, column, sums) };
}

/// The same, rounded; nothing is added to what the destination holds.
///
/// # Safety
/// The machine has AVX-512BW and AVX-512-BF16; and as above.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn store_rounded(to: &Destination, sums: __m512, row: usize, column: usize) {
    let mask = mask(to.columns.saturating_sub(column));
    let out = match to.data {
        Target::F32(_) => unreachable!("that is `store_sums`"),
        Target::Bf16(data) => data.wrapping_add(row * to.stride + column),
        Target::Tiles(data, steps) => data.wrapping_add(place(row, column, steps)),
    };
    // SAFETY: as above.
    unsafe {
        let start = match to.start {
            Start::Zero | Start::Sum => _mm512_setzero_ps(),
            Start::Row(row) => _mm512_maskz_loadu_ps(mask, row.as_ptr().wrapping_add(column)),
        };
        let rounded = halves(_mm512_cvtneps_pbh(_mm512_add_ps(start, sums)));
        match mask {
            u16::MAX => _mm256_storeu_si256(out.cast(), rounded),
            _ => {
                let rounded = _mm512_castsi256_si512(rounded);
                _mm512_mask_storeu_epi16(out.cast(), mask.into(), rounded);
            }
        }
    }
}

/// The same bits as integers.
#[inline(always)]
fn halves(numbers: __m256bh) -> __m256i {
    // SAFETY: both are 256 bits, all values of which are valid.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(numbers) }
}

/// Numbers that are rounded, or are so already, in registers.
pub(super) trait Load: Sized {
    /// 32 numbers as pairs; those that the mask leaves away are 0, and not read.
    ///
    /// # Safety
    /// The machine has AVX-512F, AVX-512BW and AVX-512-BF16; those of the mask may be read.
    unsafe fn pairs(x: *const Self, mask: u32) -> __m512i;

    /// 16 numbers in the low halves of words, the same way.
    ///
    /// # Safety
    /// As above.
    unsafe fn words(x: *const Self, mask: u16) -> __m512i;
}

impl Load for f32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pairs(x: *const f32, mask: u32) -> __m512i {
        // SAFETY: the caller's; __m512bh is 512 bits, all of them valid.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask as u16, x);
            let high = _mm512_maskz_loadu_ps((mask >> 16) as u16, x.wrapping_add(16));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn words(x: *const f32, mask: u16) -> __m512i {
        // SAFETY: the caller's.
        let numbers = unsafe { _mm512_maskz_loadu_ps(mask, x) };
        _mm512_cvtepu16_epi32(halves(_mm512_cvtneps_pbh(numbers)))
    }
}

impl Load for u16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pairs(x: *const u16, mask: u32) -> __m512i {
        // SAFETY: the caller's.
        unsafe { _mm512_maskz_loadu_epi16(mask, x.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn words(x: *const u16, mask: u16) -> __m512i {
        // SAFETY: the caller's.
        let numbers = unsafe { _mm512_maskz_loadu_epi16(mask.into(), x.cast()) };
        _mm512_cvtepu16_epi32(_mm512_castsi512_si256(numbers))
    }
}

/// [`Destination::put`] of 32 x 32 sums.
///
/// # Safety
/// The machine has AVX-512F; and as there.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn put(to: &Destination, sums: &[[f32; 32]; 32], row: usize, column: usize) {
    let out = to.data.f32();
    let rows = to.rows.saturating_sub(row);
    for (r, sums) in sums.iter().enumerate().take(rows) {
        for half in [0, 16] {
            // SAFETY: row + r is below `rows`, a row of sums has 32; the caller's for the rest.
            unsafe {
                let sums = _mm512_loadu_ps(sums.as_ptr().add(half));
                store_sums(to, out, sums, row + r, column + half);
            }
        }
    }
}

/// Tiles along k by which rows are fetched before they are cut.
const AHEAD: usize = 4;

/// [`Part::along_k_plain`] in registers, but that denormal numbers become 0 where they are rounded.
///
/// # Safety
/// The machine has AVX-512F, AVX-512BW and AVX-512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn along_k<T: Rounded>(
    part: &Part<T>,
    stride: usize,
    transposed: bool,
    tile: &mut Tile,
) {
    let mut lines = [_mm512_setzero_si512(); 16];
    let mask = ((1u64 << part.deep) - 1) as u32;
    for (r, line) in lines.iter_mut().enumerate() {
        let Some(row) = part.row(r, part.many, part.deep, stride) else {
            break;
        };
        let ahead = row.as_ptr().wrapping_add(AHEAD * DEPTH);
        fetch(ahead);
        if size_of::<T>() > 2 {
            fetch(ahead.wrapping_add(DEPTH / 2));
        }
        // SAFETY: the mask leaves away what is beyond the row's `deep` numbers.
        *line = unsafe { T::pairs(row.as_ptr(), mask) };
    }
    // SAFETY: the machine's features are this function's.
    unsafe { store(lines, transposed, tile) };
}

/// [`Part::across_k_plain`] in registers, but that denormal numbers become 0 where they are rounded.
///
/// # Safety
/// The machine has AVX-512F, AVX-512BW and AVX-512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn across_k<T: Rounded>(
    part: &Part<T>,
    stride: usize,
    transposed: bool,
    tile: &mut Tile,
) {
    let mut lines = [_mm512_setzero_si512(); 16];
    let mask = mask(part.many);
    let load = |k: usize| match part.row(k, part.deep, part.many, stride) {
        // SAFETY: the mask leaves away what is beyond the row's `many` numbers.
        Some(row) => unsafe { T::words(row.as_ptr(), mask) },
        None => _mm512_setzero_si512(),
    };
    for (p, line) in lines.iter_mut().enumerate() {
        let (even, odd) = (load(2 * p), load(2 * p + 1));
        for k in [2 * p, 2 * p + 1] {
            fetch(part.data.as_ptr().wrapping_add((k + DEPTH) * stride));
        }
        *line = _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd));
    }
    // SAFETY: the machine's features are this function's.
    unsafe { store(lines, transposed, tile) };
}

/// [`super::pack::turn_plain`] in registers.
///
/// # Safety
/// The machine has AVX-512F and AVX-512BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn turn(from: [&Tile; 2], right: bool, to: [&mut Tile; 2]) {
    let zero = _mm512_setzero_si512();
    let mut lines = [[zero; 16]; 2];
    // Pairs come in groups of four: 0 8 16 24 from the lower halves of 128 bits, 4 12 20 28 from the upper ones.
    let low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    let high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    let [first, second] = &mut lines;
    for (p, (first, second)) in first.iter_mut().zip(second).enumerate() {
        let line = |row: usize| {
            let line = &from[row / 16][row % 16];
            // SAFETY: a line is 64 bytes.
            unsafe { _mm512_loadu_si512(line.0.as_ptr().cast()) }
        };
        let (even, odd) = (line(2 * p), line(2 * p + 1));
        let lower = _mm512_unpacklo_epi16(even, odd);
        let upper = _mm512_unpackhi_epi16(even, odd);
        *first = _mm512_permutex2var_epi64(lower, low, upper);
        *second = _mm512_permutex2var_epi64(lower, high, upper);
    }
    for (lines, tile) in lines.into_iter().zip(to) {
        // SAFETY: the machine's features are this function's.
        unsafe { store(lines, !right, tile) };
    }
}

/// # Safety
/// The machine has AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn store(lines: [__m512i; 16], transposed: bool, tile: &mut Tile) {
    let lines = match transposed {
        // SAFETY: the machine's features are this function's.
        true => unsafe { transpose(lines) },
        false => lines,
    };
    for (line, words) in tile.iter_mut().zip(lines) {
        // SAFETY: a line is 64 bytes.
        unsafe { _mm512_storeu_si512(line.0.as_mut_ptr().cast(), words) };
    }
}
