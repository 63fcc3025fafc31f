//! Element-wise functions that the compiler can vectorise: no branches, no table, no call into libm.
//!
//! Multiplications and additions are left unfused, so that every instruction set gives the same bits.

/// Defines a function that is compiled for the best instruction set of the machine (AVX-512, AVX2, NEON or plain), found at
/// run time. All references have the lifetime `'a`.
///
/// Its body becomes the method of a type, because only that is sure to be inlined into the code for the instruction set: of
/// a closure the compiler may make a function of its own, for the plainest one.
macro_rules! simd_fn {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident<'a>($($arg:ident: $type:ty),* $(,)?) -> $output:ty $body:block) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name<'a>($($arg: $type),*) -> $output {
            struct Kernel<'a> {
                $($arg: $type,)*
                lifetime: std::marker::PhantomData<&'a ()>,
            }
            impl<'a> pulp::NullaryFnOnce for Kernel<'a> {
                type Output = $output;

                #[inline(always)]
                fn call(self) -> $output {
                    let Self { $($arg,)* lifetime: _ } = self;
                    $body
                }
            }
            let lifetime = std::marker::PhantomData;
            pulp::Arch::new().dispatch(Kernel { $($arg,)* lifetime })
        }
    };
}
pub(crate) use simd_fn;

/// Asks for a line of memory that will be wanted soon, where there is an instruction for it; no address is wrong.
#[inline(always)]
pub(crate) fn fetch<T>(x: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it reads nothing.
    unsafe {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        _mm_prefetch::<_MM_HINT_T0>(x.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = x;
}

/// `e^x`, relative error below 2e-7 for x in [-87, 88]; clamped outside.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4; // ln 2 in two parts
    let p = ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r
        + 1.666_666_5e-1)
        * r
        + 0.5;
    let e = p * r * r + r + 1.0;
    // 2^n of the low bits. Not by `n as i32`: the compiler turns a saturating cast into one cast per lane.
    e * f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23))
}

/// The error function, absolute error below 4e-7: a rational function of x between -4 and 4, +-1 beyond.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let sign = if x >= 4.0 { 1.0 } else { -1.0 };
    let beyond = x.abs() >= 4.0;
    let x = x.clamp(-4.0, 4.0);
    let x2 = x * x;
    let p = -2.726_142_3e-10;
    let p = p * x2 + 2.770_681_4e-8;
    let p = p * x2 - 2.101_024e-6;
    let p = p * x2 - 5.692_506_4e-5;
    let p = p * x2 - 7.349_906e-4;
    let p = p * x2 - 2.954_6e-3;
    let p = p * x2 - 1.609_603_3e-2;
    let q = -1.456_607_2e-5;
    let q = q * x2 - 2.133_740_6e-4;
    let q = q * x2 - 1.682_827e-3;
    let q = q * x2 - 7.373_329e-3;
    let q = q * x2 - 1.426_473_9e-2;
    if beyond {
        sign
    } else {
        x * p / q
    }
}

/// Sum in a fixed order: sixteen lanes, then the lanes.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    sum_by(x, x, |a, _| a)
}

/// Sum of `f(a, b)` over two slices of one length, in a fixed order: sixteen lanes, then the lanes.
#[inline(always)]
pub(crate) fn sum_by(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0f32; LANES];
    let (ca, cb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (ra, rb) = (ca.remainder(), cb.remainder());
    for (a, b) in ca.zip(cb) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for (i, (&a, &b)) in ra.iter().zip(rb).enumerate() {
        lanes[i] += f(a, b);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    #[test]
    fn exp_and_erf_follow_their_functions() {
        for i in -86_990..87_990 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            let error = (f64::from(super::exp(x)) - want).abs() / want;
            assert!(error < 2e-7, "exp({x}): relative error {error}");
        }
        for x in [4.0, 4.5, 30.0, 1e30, f32::INFINITY] {
            assert_eq!((super::erf(x), super::erf(-x)), (1.0, -1.0));
        }
        assert!(super::erf(f32::NAN).is_nan());
        // By its Maclaurin series in f64, which converges for these arguments.
        for i in -4_000..4_000 {
            let x = i as f32 * 1e-3;
            let z = f64::from(x);
            let (mut term, mut sum) = (z, z);
            for n in 1..120 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            let want = sum * 2.0 / std::f64::consts::PI.sqrt();
            let error = (f64::from(super::erf(x)) - want).abs();
            assert!(error < 4e-7, "erf({x}): error {error}");
        }
    }
}
