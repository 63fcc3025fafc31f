//! AMX: eight registers of 1 KiB, one instruction for the product of two tiles.
//!
//! The intrinsics are not stable, so the few instructions are written as assembly; `tmm0` to `tmm3` hold 2 x 2 tiles of sums,
//! `tmm4` and `tmm5` two tiles of the left operand, `tmm6` and `tmm7` two of the right one.
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;

use super::super::matrix::Start;
use super::super::tiles::{Tile, Tiles};
use super::Destination;

/// Whether the processor has AMX for bf16 and the kernel lets this process use it (asked for once).
pub(super) fn is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| has_tiles() && may_use_tiles())
}

fn has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    // SAFETY: every 64-bit x86 has this instruction. (Newer compilers know that.)
    #[allow(unused_unsafe)]
    let features = unsafe {
        match __cpuid_count(0, 0).eax >= 7 {
            true => __cpuid_count(7, 0).edx,
            false => 0,
        }
    };
    std::arch::is_x86_feature_detected!("avx512f") && features & (BF16 | TILE) == BF16 | TILE
}

/// Linux gives a process the 8 KiB of tile registers only when it asks for them.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call that reads no memory and changes nothing but what this process may do.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}

/// The shape of all eight registers: 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: TileConfig = {
    let mut config = TileConfig {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        bytes_per_row: [0; 16],
        rows: [0; 16],
    };
    let mut i = 0;
    while i < 8 {
        config.bytes_per_row[i] = 64;
        config.rows[i] = 16;
        i += 1;
    }
    config
};

/// Tiles along k before the next pair of panels: two panels of the right operand stay in the first cache this long.
const STEPS: usize = 16;

/// One task: all tiles of these panels, by 2 x 2.
///
/// # Safety
/// [`is_there`]; and as [`Destination::put`].
pub(super) unsafe fn multiply(
    lhs: &Tiles,
    rhs: &Tiles,
    left: Range<usize>,
    right: Range<usize>,
    to: Destination,
) {
    // SAFETY: the registers are there; CONFIG is 64 bytes as the instruction reads them.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly)) };
    for first in (0..lhs.steps().max(1)).step_by(STEPS) {
        let steps = first..(first + STEPS).min(lhs.steps());
        // Later parts of k are added to the first.
        let to = Destination {
            start: match first {
                0 => to.start,
                _ => Start::Sum,
            },
            ..to
        };
        for r in right.clone().step_by(2) {
            let b = [r, r + 1].map(|r| &rhs.panel(r)[steps.clone()]);
            for l in left.clone().step_by(2) {
                let a = [l, l + 1].map(|l| &lhs.panel(l)[steps.clone()]);
                // SAFETY: the caller's; the registers are configured.
                unsafe { four(a, b, 16 * l, 16 * r, &to) };
            }
        }
    }
    // SAFETY: no tile is in use any more.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// So many rounds of four products of tiles, nothing loaded or stored: as many sums as [`multiply`] has.
///
/// # Safety
/// [`is_there`].
pub(super) unsafe fn in_registers(rounds: u64) {
    // SAFETY: the registers are there; CONFIG is 64 bytes as the instruction reads them, and leaves all tiles at zero.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "test {rounds}, {rounds}",
            "jz 3f",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {rounds}",
            "jnz 2b",
            "3:",
            "tilerelease",
            config = in(reg) &CONFIG,
            rounds = inout(reg) rounds => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly)
        );
    }
}

/// Two panels of each operand: 32 x 32 sums.
///
/// # Safety
/// As above, and the registers are configured; all four slices are of one length.
unsafe fn four(a: [&[Tile]; 2], b: [&[Tile]; 2], row: usize, column: usize, to: &Destination) {
    let steps = a[0].len();
    assert!(a[1].len() == steps && b[0].len() == steps && b[1].len() == steps);
    let whole = row + 32 <= to.rows && column + 32 <= to.columns;
    let mut beside = MaybeUninit::<[[f32; 32]; 32]>::uninit();
    // Right into the destination, or beside it where a part would stick out.
    let (sums, stride) = match whole {
        // SAFETY: all 32 x 32 numbers lie inside the destination.
        true => (
            unsafe { to.data.f32().add(row * to.stride + column) },
            to.stride,
        ),
        false => (beside.as_mut_ptr().cast(), 32),
    };
    let (from, step) = match to.start {
        Start::Sum if whole => (sums.cast_const(), 4 * stride),
        // The same row 32 times.
        Start::Row(row) if whole => (row[column..column + 32].as_ptr(), 0),
        _ => (std::ptr::null(), 0),
    };
    // SAFETY: the sums are 32 rows of 32 numbers, `stride` apart, in memory of this task or of this function alone; a tile of
    // an operand is 16 lines of 64 bytes, and each panel has `steps` of them one after the other.
    unsafe {
        asm!(
            // tmm0 tmm1 / tmm2 tmm3: 0, or rows of 32 numbers from `from` on, `step` bytes apart.
            "test {from}, {from}",
            "jz 2f",
            "tileloadd tmm0, [{from} + {step}]",
            "tileloadd tmm1, [{from} + {step} + 64]",
            "mov {lower}, {step}",
            "shl {lower}, 4",
            "add {lower}, {from}",
            "tileloadd tmm2, [{lower} + {step}]",
            "tileloadd tmm3, [{lower} + {step} + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "test {steps}, {steps}",
            "jz 5f",
            "4:",
            "tileloadd tmm4, [{a0} + {line}]",
            "tileloadd tmm6, [{b0} + {line}]",
            "tileloadd tmm7, [{b1} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a1} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, 1024",
            "add {a1}, 1024",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "dec {steps}",
            "jnz 4b",
            "5:",
            "tilestored [{top} + {stride}], tmm0",
            "tilestored [{top} + {stride} + 64], tmm1",
            "tilestored [{bottom} + {stride}], tmm2",
            "tilestored [{bottom} + {stride} + 64], tmm3",
            from = in(reg) from,
            step = in(reg) step,
            lower = out(reg) _,
            top = in(reg) sums,
            bottom = in(reg) sums.add(16 * stride),
            stride = in(reg) 4 * stride,
            line = in(reg) 64usize,
            a0 = inout(reg) a[0].as_ptr() => _,
            a1 = inout(reg) a[1].as_ptr() => _,
            b0 = inout(reg) b[0].as_ptr() => _,
            b1 = inout(reg) b[1].as_ptr() => _,
            steps = inout(reg) steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
        if !whole {
            // All of it was stored just now.
            super::avx512::put(to, beside.assume_init_ref(), row, column);
        }
    }
}
