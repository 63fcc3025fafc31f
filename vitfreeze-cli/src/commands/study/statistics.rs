//! Means over seeds, and differences of pairs with the same seed.
use statrs::distribution::{ContinuousCDF as _, StudentsT};

/// How sure an interval is.
pub const CONFIDENCE: f64 = 0.95;

/// Mean and standard deviation (of a sample: divided by n - 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub count: usize,
    pub mean: f64,
    /// `None` of a single number.
    pub deviation: Option<f64>,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        if count == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
        let deviation = (count > 1).then(|| (squares / (count - 1) as f64).sqrt());
        Some(Self {
            count,
            mean,
            deviation,
        })
    }

    /// Half the length of the interval in which the true mean lies, by Student's t: `t * s / sqrt(n)`. `None` of a single
    /// number.
    pub fn half_interval(&self) -> Option<f64> {
        let deviation = self.deviation?;
        let freedom = (self.count - 1) as f64;
        let t = StudentsT::new(0.0, 1.0, freedom).ok()?;
        let t = t.inverse_cdf((1.0 + CONFIDENCE) / 2.0);
        Some(t * deviation / (self.count as f64).sqrt())
    }

    /// Whether all values are the same: accuracies go in steps of an image, so that this says little of their spread.
    pub fn all_alike(&self) -> bool {
        self.deviation == Some(0.0)
    }

    /// Whether the true mean is above (1) or below (-1) zero; 0 where the interval covers it, or there is none.
    pub fn sign(&self) -> i32 {
        match self.half_interval() {
            _ if self.all_alike() => 0,
            Some(half) if self.mean - half > 0.0 => 1,
            Some(half) if self.mean + half < 0.0 => -1,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        values: Vec<f64>,
        mean: f64,
        deviation: f64,
        low: f64,
        high: f64,
    }

    /// scripts/study_fixture.py made the file with scipy.
    #[test]
    fn intervals_are_scipys() {
        let text = include_str!("../../../tests/fixtures/study_statistics.json");
        let cases: Vec<Case> = serde_json::from_str(text).unwrap();
        assert!(cases.len() > 10);
        for case in cases {
            let spread = Spread::of(&case.values).unwrap();
            let half = spread.half_interval().unwrap();
            let close = |got: f64, want: f64| {
                let scale = 1.0 + want.abs().max(case.high - case.low);
                assert!((got - want).abs() < 1e-8 * scale, "{got} {want}");
            };
            close(spread.mean, case.mean);
            close(spread.deviation.unwrap(), case.deviation);
            close(spread.mean - half, case.low);
            close(spread.mean + half, case.high);
        }
    }

    #[test]
    fn nothing_is_claimed_of_too_little() {
        assert_eq!(Spread::of(&[]), None);
        let one = Spread::of(&[3.0]).unwrap();
        assert_eq!((one.mean, one.deviation, one.sign()), (3.0, None, 0));
        // t of one degree of freedom is 12.7.
        assert_eq!(Spread::of(&[1.0, 2.0]).unwrap().sign(), 0);
        assert_eq!(Spread::of(&[1.0, 1.1]).unwrap().sign(), 1);
        assert_eq!(Spread::of(&[-1.0, -1.1, -1.05]).unwrap().sign(), -1);
        for alike in [0.0, 1.0] {
            assert_eq!(Spread::of(&[alike, alike]).unwrap().sign(), 0);
        }
    }
}
