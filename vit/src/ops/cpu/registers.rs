//! What kernels for AVX-512 share: parts of a register, sums that are stored, and 16 registers turned.
use std::arch::x86_64::*;

use super::matrix::Start;

/// The first `columns` of 16 lanes.
#[inline]
pub fn mask(columns: usize) -> u16 {
    ((1u32 << columns.min(16)) - 1) as u16
}

/// Those lanes that the mask has to their place. All of them without a mask: a masked store waits for its line where that is in
/// no cache, which took up to 40 % of a product on Zen 5.
///
/// # Safety
/// The machine has AVX-512F; `out` may be written at the lanes of the mask, and nothing else uses them.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_lanes(out: *mut f32, mask: u16, x: __m512) {
    // SAFETY: the caller's.
    unsafe {
        match mask {
            u16::MAX => _mm512_storeu_ps(out, x),
            _ => _mm512_mask_storeu_ps(out, mask, x),
        }
    }
}

/// What a product starts from, plus these sums, to its place: the lanes that the mask has, the first of which is that of `column`.
///
/// # Safety
/// The machine has AVX-512F; `out` may be read and written at the lanes of the mask, and nothing else uses them; a row to start from
/// has these columns.
#[inline]
#[target_feature(enable = "avx512f")]
pub unsafe fn store_from(out: *mut f32, mask: u16, start: Start, column: usize, sums: __m512) {
    // SAFETY: the caller's.
    unsafe {
        let start = match start {
            Start::Zero => _mm512_setzero_ps(),
            Start::Sum => _mm512_maskz_loadu_ps(mask, out),
            Start::Row(row) => _mm512_maskz_loadu_ps(mask, row.as_ptr().wrapping_add(column)),
        };
        store_lanes(out, mask, _mm512_add_ps(start, sums));
    }
}

/// Words of lines become lines of words, in four rounds of 16 shuffles, each of which exchanges blocks of twice the size.
///
/// # Safety
/// The machine has AVX-512F.
#[inline]
#[target_feature(enable = "avx512f")]
pub unsafe fn transpose(lines: [__m512i; 16]) -> [__m512i; 16] {
    let mut a = lines;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(lines[2 * i], lines[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(lines[2 * i], lines[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..4 {
        for j in 0..2 {
            b[4 * i + 2 * j] = _mm512_unpacklo_epi64(a[4 * i + j], a[4 * i + j + 2]);
            b[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a[4 * i + j], a[4 * i + j + 2]);
        }
    }
    // In each of `b`: word j of four lines, for four j that are 4 apart. Now blocks of 128 bits move.
    let mut out = b;
    for i in 0..4 {
        let even = [
            _mm512_shuffle_i32x4::<0x88>(b[i], b[4 + i]),
            _mm512_shuffle_i32x4::<0x88>(b[8 + i], b[12 + i]),
        ];
        let odd = [
            _mm512_shuffle_i32x4::<0xdd>(b[i], b[4 + i]),
            _mm512_shuffle_i32x4::<0xdd>(b[8 + i], b[12 + i]),
        ];
        out[i] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        out[i + 4] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        out[i + 8] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        out[i + 12] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    out
}
