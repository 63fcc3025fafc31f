//! Weights in the tiles of bf16 that products want, held for many of them.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::bf16::Unit;
use super::engine::Engine;
use super::math::simd_fn;
use super::matrix::{Mat, Product};
use super::tiles::Tiles;

/// What products need of one weight: made by the first of them, taken by the others for as long as the weight stays as it is.
///
/// Each forward looks whether it has stayed, by a fingerprint of all its numbers, one pass over them: whoever changes a weight in
/// place needs not tell. The backward takes what its forward saw.
#[derive(Default)]
pub struct Held(Mutex<Made>);

#[derive(Default)]
struct Made {
    /// Of the weight that these were made of.
    fingerprint: u64,
    /// By what decides the form.
    forms: Vec<(Key, Arc<Tiles>)>,
}

#[derive(Clone, Copy, PartialEq)]
struct Key {
    unit: Unit,
    k: usize,
    n: usize,
    rs: usize,
}

impl Held {
    /// Forgets what was made of a weight that has changed since; to be called before the first product of a pass.
    pub fn look(&self, product: &Product<Mat>, engine: Engine) {
        if engine.unit.is_none() {
            return;
        }
        let _region = engine.profile.region("held weights");
        let fingerprint = fingerprint(product.rhs.data.f32());
        let mut made = self.lock();
        if made.fingerprint != fingerprint {
            *made = Made {
                fingerprint,
                forms: Vec::new(),
            };
        }
    }

    /// The product's right operand, which is the weight or its transpose; those of `cut` if there are none.
    pub fn tiles(
        &self,
        unit: Unit,
        product: &Product<Mat>,
        cut: impl FnOnce() -> Tiles,
    ) -> Arc<Tiles> {
        let key = Key {
            unit,
            k: product.shape.1,
            n: product.shape.2,
            rs: product.rhs.rs,
        };
        let found = |made: &Made| {
            let mut forms = made.forms.iter();
            forms.find(|form| form.0 == key).map(|form| form.1.clone())
        };
        let fingerprint = {
            let made = self.lock();
            if let Some(form) = found(&made) {
                return form;
            }
            made.fingerprint
        };
        // Not under the lock: this thread may be of a pool, and take up another pass of the model while it waits for others.
        let form = Arc::new(cut());
        let mut made = self.lock();
        if made.fingerprint == fingerprint && found(&made).is_none() {
            made.forms.push((key, form.clone()));
        }
        form
    }

    fn lock(&self) -> MutexGuard<'_, Made> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Numbers in one task.
const CHUNK: usize = 64 * 1024;

/// Of all bits and their places: other numbers have another one, but for a chance of 2^-32 (2^-64 where many change).
fn fingerprint(data: &[f32]) -> u64 {
    let parts: Vec<[u32; LANES]> = data.par_chunks(CHUNK).map(lanes).collect();
    let mix = |hash: u64, x: &u32| {
        let hash = (hash ^ u64::from(*x)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^ (hash >> 29)
    };
    parts.as_flattened().iter().fold(data.len() as u64, mix)
}

const LANES: usize = 64;

simd_fn! {
    fn lanes<'a>(data: &'a [f32]) -> [u32; LANES] {
        // An odd factor: a number that changes changes its lane, whatever comes behind it.
        const FACTOR: u32 = 0x01000193;
        let mut lanes = [1u32; LANES];
        let chunks = data.chunks_exact(LANES);
        for (lane, x) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane = lane.wrapping_mul(FACTOR).wrapping_add(x.to_bits());
        }
        for chunk in chunks {
            for i in 0..LANES {
                lanes[i] = lanes[i].wrapping_mul(FACTOR).wrapping_add(chunk[i].to_bits());
            }
        }
        lanes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_and_its_place_are_in_the_fingerprint() {
        let mut data: Vec<f32> = (0..CHUNK + 131).map(|i| i as f32 / 7.0).collect();
        let before = fingerprint(&data);
        for i in (0..data.len()).step_by(97).chain([data.len() - 1]) {
            let old = data[i];
            data[i] = -old - 1e-30;
            assert_ne!(fingerprint(&data), before, "number {i}");
            data[i] = old;
        }
        assert_eq!(fingerprint(&data), before);
        data.swap(3, CHUNK + 5);
        assert_ne!(fingerprint(&data), before);
        data.swap(3, CHUNK + 5);
        data.swap(64, 128);
        assert_ne!(fingerprint(&data), before);
        assert_ne!(
            fingerprint(&data[1..]),
            fingerprint(&data[..data.len() - 1])
        );
    }
}
