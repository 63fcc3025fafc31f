//! How fast this machine multiplies where nothing has to be fetched: what no product exceeds.
use std::hint::black_box;
use std::time::{Duration, Instant};

use super::bf16::Unit;

/// How long each thread is measured, and in pieces of what length: the best one counts, which nothing else disturbed.
const TIME: Duration = Duration::from_millis(300);
const PIECE: Duration = Duration::from_millis(5);

/// Multiplications (each with its addition) a second of all threads of rayon's pool together, in a loop that stays in
/// registers: in bf16 by this unit, in f32 without one. `None` where there is no such loop (a processor without AVX2 and FMA).
pub fn limit(unit: Option<Unit>) -> Option<f64> {
    let (run, each) = match unit {
        Some(unit) => unit.in_registers()?,
        None => f32_in_registers()?,
    };
    let rates = rayon::broadcast(|_| rate(run, each));
    Some(rates.iter().sum())
}

/// A loop: so many rounds of it.
pub type Loop = fn(u64);

/// Rounds between two looks at the clock: tens of microseconds.
const ROUNDS: u64 = 4096;

fn rate(run: Loop, each: u64) -> f64 {
    let (begun, mut best) = (Instant::now(), 0f64);
    while begun.elapsed() < TIME {
        let (begun, mut rounds) = (Instant::now(), 0);
        while begun.elapsed() < PIECE {
            run(ROUNDS);
            rounds += ROUNDS;
        }
        best = best.max((rounds * each) as f64 / begun.elapsed().as_secs_f64());
    }
    best
}

/// The loop in f32, and the multiplications of a round.
fn f32_in_registers() -> Option<(Loop, u64)> {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has AVX-512F.
            return Some((|rounds| unsafe { avx512(rounds) }, SUMS as u64 * 16));
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
        {
            // SAFETY: the machine has AVX2 and FMA.
            return Some((|rounds| unsafe { avx2(rounds) }, SUMS_OF_AVX2 as u64 * 8));
        }
        None
    }
    #[cfg(not(target_arch = "x86_64"))]
    Some((portable, SUMS as u64 * 4))
}

/// Sums at a time: more than an instruction's latency (4 or 5) times the instructions begun at once (2).
const SUMS: usize = 16;
/// The same with 16 registers, of which two hold the factors.
#[cfg(target_arch = "x86_64")]
const SUMS_OF_AVX2: usize = 12;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(rounds: u64) {
    use std::arch::x86_64::*;
    let (x, y) = (
        _mm512_set1_ps(black_box(0.5)),
        _mm512_set1_ps(black_box(1.0)),
    );
    let mut sums = [_mm512_setzero_ps(); SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, x, y);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(rounds: u64) {
    use std::arch::x86_64::*;
    let (x, y) = (
        _mm256_set1_ps(black_box(0.5)),
        _mm256_set1_ps(black_box(1.0)),
    );
    let mut sums = [_mm256_setzero_ps(); SUMS_OF_AVX2];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, x, y);
        }
    }
    black_box(sums);
}

/// Four lanes of f32, the compiler's choice of instructions.
#[cfg(not(target_arch = "x86_64"))]
fn portable(rounds: u64) {
    let (x, y) = (black_box(0.5f32), black_box(1.0f32));
    let mut sums = [[0f32; 4]; SUMS];
    for _ in 0..rounds {
        for sum in sums.as_flattened_mut() {
            *sum = sum.mul_add(x, y);
        }
    }
    black_box(sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not how fast, which a busy machine decides: that each loop runs, and gives a speed.
    #[test]
    fn every_unit_has_a_limit() {
        let of_f32 = limit(None);
        assert!(
            of_f32.is_none_or(|rate| rate > 1e7 && rate.is_finite()),
            "{of_f32:?}"
        );
        for unit in Unit::available() {
            let rate = limit(Some(unit));
            let emulated = unit.name() == "emulated";
            assert_eq!(rate.is_none(), emulated, "{unit:?}");
            assert!(
                rate.is_none_or(|rate| rate > 1e7 && rate.is_finite()),
                "{unit:?}: {rate:?}"
            );
        }
    }
}
