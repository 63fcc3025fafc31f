//! Random numbers as a function of where they are used.
//!
//! There is no generator that lives through a run and whose state would have to be saved. Whoever needs random
//! numbers makes a generator from (seed, stream, epoch, index); so a resumed run draws what the whole run drew, and
//! the number of threads does not matter. The helpers turning bits into values are our own: their results are part
//! of what a seed means and must not change with the version of a random number crate.

use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Batch;

/// The generator of one place in one run.
///
/// `stream` names what the numbers are for ("shuffle", "augment", ...): up to 8 ASCII characters. The four values
/// are the generator's 256-bit key as they are, so different places never share numbers.
pub fn rng(seed: u64, stream: &str, epoch: u64, index: u64) -> ChaCha8Rng {
    debug_assert!(
        stream.is_ascii() && stream.len() <= 8,
        "stream name {stream:?}: at most 8 ASCII characters"
    );
    let mut name = [0; 8];
    for (to, from) in name.iter_mut().zip(stream.bytes()) {
        *to = from;
    }
    let mut key = [0; 32];
    let words = [seed, u64::from_le_bytes(name), epoch, index];
    for (to, word) in key.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A value in [0, 1), a multiple of 2^-24.
pub fn uniform(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// `count` values in [0, 1) for each image of a batch, a function of (seed, epoch, index): which patches a mask hides, say.
pub fn noise(seed: u64, stream: &str, batch: &Batch, count: usize) -> Vec<f32> {
    let mut noise = Vec::with_capacity(batch.indices.len() * count);
    for &index in &batch.indices {
        let mut rng = rng(seed, stream, batch.epoch as u64, index);
        noise.extend((0..count).map(|_| uniform(&mut rng)));
    }
    noise
}

/// A number for each image of a batch, a function of (seed, epoch, index): the key of what its forward pass draws, say.
pub fn keys(seed: u64, stream: &str, batch: &Batch) -> Vec<u64> {
    let key = |&index: &u64| {
        let mut rng = rng(seed, stream, batch.epoch as u64, index);
        below(&mut rng, usize::MAX) as u64
    };
    batch.indices.iter().map(key).collect()
}

/// A value in [0, 1), a multiple of 2^-53.
pub fn uniform_f64(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// An index in 0..n, all equally likely (Lemire's multiplication with rejection); 0 when `n` is 0.
pub fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    let n = n as u64;
    let mut product = u128::from(rng.next_u64()) * u128::from(n);
    if (product as u64) < n {
        // The lowest 2^64 mod n values of the low half would make some results likelier than others.
        let unfair = n.wrapping_neg() % n.max(1);
        while (product as u64) < unfair {
            product = u128::from(rng.next_u64()) * u128::from(n);
        }
    }
    (product >> 64) as usize
}

/// The numbers 0..n in random order (Fisher-Yates).
pub fn permutation(rng: &mut ChaCha8Rng, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        order.swap(last, below(rng, last + 1));
    }
    order
}

/// A value of the standard normal distribution (Box-Muller, the cosine half).
pub fn normal(rng: &mut ChaCha8Rng) -> f32 {
    // 1 - u lies in (0, 1], where the logarithm is finite.
    let radius = (-2.0 * libm::log(1.0 - uniform_f64(rng))).sqrt();
    let angle = std::f64::consts::TAU * uniform_f64(rng);
    (radius * libm::cos(angle)) as f32
}

/// A value of Beta(alpha, alpha), from two gamma variates; 0.5 for an alpha that is not positive.
pub fn beta(rng: &mut ChaCha8Rng, alpha: f64) -> f64 {
    let (x, y) = (gamma(rng, alpha), gamma(rng, alpha));
    let share = x / (x + y);
    // Both underflow when alpha is tiny.
    if share.is_nan() {
        0.5
    } else {
        share
    }
}

/// A value of Gamma(shape, 1) (Marsaglia and Tsang, 2000); shapes below 1 by Gamma(shape + 1) u^(1/shape).
fn gamma(rng: &mut ChaCha8Rng, shape: f64) -> f64 {
    if shape.is_nan() || shape <= 0.0 {
        return 0.0;
    }
    if shape < 1.0 {
        let factor = libm::pow(1.0 - uniform_f64(rng), 1.0 / shape);
        return factor * gamma(rng, shape + 1.0);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = f64::from(normal(rng));
        let v = 1.0 + c * x;
        if v <= 0.0 {
            continue;
        }
        let v = v * v * v;
        if libm::log(1.0 - uniform_f64(rng)) < 0.5 * x * x + d - d * v + d * libm::log(v) {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a seed means must never change: a checkpoint made today is resumed with it years later.
    #[test]
    fn values_are_pinned() {
        let r = &mut rng(1, "test", 2, 3);
        let draws = (
            uniform(r),
            uniform_f64(r),
            below(r, 1000),
            normal(r),
            permutation(r, 8),
        );
        assert_eq!(
            draws,
            (
                0.368_582_3,
                0.858_794_747_802_553,
                701,
                -0.697_254,
                vec![7, 5, 6, 3, 2, 0, 1, 4]
            )
        );
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let first = |seed, stream, epoch, index| rng(seed, stream, epoch, index).next_u64();
        let all = [
            first(0, "a", 0, 0),
            first(1, "a", 0, 0),
            first(0, "b", 0, 0),
            first(0, "aa", 0, 0),
            first(0, "a", 1, 0),
            first(0, "a", 0, 1),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn below_is_fair_and_in_range() {
        let r = &mut rng(0, "test", 0, 0);
        let mut counts = [0; 7];
        for _ in 0..70_000 {
            counts[below(r, 7)] += 1;
        }
        assert!(
            counts.iter().all(|&n| (9_600..10_400).contains(&n)),
            "{counts:?}"
        );
        assert_eq!((below(r, 1), below(r, 0)), (0, 0));
        assert!(below(r, usize::MAX) < usize::MAX);
    }

    #[test]
    fn permutation_holds_every_number_once() {
        let mut order = permutation(&mut rng(0, "test", 0, 0), 1000);
        assert_ne!(order, (0..1000).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
        assert!(permutation(&mut rng(0, "test", 0, 0), 0).is_empty());
    }

    #[test]
    fn normal_has_mean_0_and_variance_1() {
        let r = &mut rng(0, "test", 0, 0);
        let draws: Vec<f64> = (0..20_000).map(|_| f64::from(normal(r))).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(
            mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04,
            "mean {mean}, variance {variance}"
        );
    }
}
