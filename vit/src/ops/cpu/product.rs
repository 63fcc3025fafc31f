//! The one matrix product that the fused ops use: in bf16 by our own kernels, in f32 by one of our own where there is AVX-512 and the
//! left operand lies by rows, else by the `gemm` crate.
use super::bf16;
use super::engine::Engine;
use super::gemm;
use super::held::Held;
use super::matrix::{DataMut, Mat, Product, Threads};
#[cfg(target_arch = "x86_64")]
use super::panels;

impl<'a> Product<'a, Mat<'a>> {
    /// Computes it into `dst`, rows `stride` apart.
    pub fn into(self, dst: &mut [f32], engine: Engine) {
        self.held_into(None, DataMut::F32(dst), engine);
    }

    /// The same with a weight for the right operand, and what is held of that. Products of bf16 alone have a result in bf16.
    pub fn held_into(self, held: Option<&Held>, dst: DataMut, engine: Engine) {
        let (m, k, n) = self.shape;
        if m == 0 || n == 0 {
            return;
        }
        assert!(
            k == 0 || (self.lhs.holds(m, k) && self.rhs.holds(k, n)),
            "product: an operand is too small"
        );
        let Some(unit) = engine.unit else {
            match dst {
                DataMut::F32(dst) => return self.f32(dst),
                _ => panic!("product: a result in bf16 of operands in f32"),
            }
        };
        let cut = || {
            let parallel = self.threads == Threads::All;
            let profile = engine.profile;
            profile.timed("bf16 tiles", || bf16::columns(self.rhs, k, n, parallel))
        };
        let (made, kept);
        let tiles = match held {
            Some(held) => {
                kept = held.tiles(unit, &self, cut);
                &*kept
            }
            None => {
                made = cut();
                &made
            }
        };
        bf16::multiply(unit, self.with(tiles), dst, engine.profile);
    }

    /// In f32.
    fn f32(self, dst: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if panels::takes(&self) {
            return panels::multiply(self, dst);
        }
        gemm::multiply(self, dst);
    }
}

#[cfg(test)]
mod tests {
    use super::super::matrix::Start;
    use super::*;
    use crate::ops::profile::Profile;

    fn into(product: Product<Mat>, dst: &mut [f32]) {
        let profile = &Profile::default();
        product.into(
            dst,
            Engine {
                unit: None,
                profile,
            },
        );
    }

    /// Every size from 1 up to odd ones, offsets that break alignment, transposed operands: equal to the naive product.
    #[test]
    fn equals_the_naive_product() {
        let value = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
        for (m, k, n) in [
            (1, 1, 1),
            (1, 7, 5),
            (3, 2, 1),
            (5, 3, 7),
            (17, 16, 15),
            (31, 33, 64),
            (65, 129, 47),
            (129, 20, 31),
        ] {
            for offset in [0, 1, 3] {
                let a: Vec<f32> = (0..m * k + offset).map(value).collect();
                let b: Vec<f32> = (0..k * n + offset).map(|i| value(i + 5)).collect();
                let (a, b) = (&a[offset..], &b[offset..]);
                let (left, right) = (
                    [Mat::rows(a, k), Mat::rows(a, m).t()],
                    [Mat::rows(b, n), Mat::rows(b, k).t()],
                );
                for (lhs, rhs) in left.into_iter().flat_map(|lhs| right.map(|rhs| (lhs, rhs))) {
                    let at = |x: Mat, r: usize, c: usize| x.data.f32()[r * x.rs + c * x.cs];
                    for threads in [Threads::One, Threads::All] {
                        let stride = n + offset;
                        let bias: Vec<f32> = (0..n).map(|c| c as f32).collect();
                        let mut dst = vec![f32::NAN; m * stride];
                        let product = Product {
                            stride,
                            threads,
                            ..Product::new((m, k, n), lhs, rhs)
                        };
                        // By whichever takes it, and by gemm, which a machine without AVX-512 has for all.
                        for multiply in [into, gemm::multiply] {
                            for start in [Start::Row(&bias), Start::Sum] {
                                multiply(Product { start, ..product }, &mut dst);
                            }
                            for r in 0..m {
                                for c in 0..n {
                                    let once: f32 =
                                        (0..k).map(|i| at(lhs, r, i) * at(rhs, i, c)).sum();
                                    let want = bias[c] + 2.0 * once;
                                    let got = dst[r * stride + c];
                                    assert!((got - want).abs() < 1e-4, "{m}x{k}x{n} at {r},{c}");
                                }
                                let gap = &dst[r * stride + n..(r + 1) * stride];
                                assert!(gap.iter().all(|x| x.is_nan()), "wrote beyond the row");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_to_sum_up_is_zero() {
        for threads in [Threads::One, Threads::All] {
            let mut dst = [f32::NAN; 6];
            let none = Mat::rows(&[], 3);
            let product = Product::new((2, 0, 3), none.t(), none);
            into(Product { threads, ..product }, &mut dst);
            assert_eq!(dst, [0.0; 6]);
        }
    }

    #[test]
    #[should_panic(expected = "the result is too small")]
    fn refuses_a_short_destination() {
        let a = [1.0; 6];
        let lhs = Mat::rows(&a, 3);
        into(Product::new((2, 3, 2), lhs, lhs.t()), &mut [0.0; 3]);
    }
}
