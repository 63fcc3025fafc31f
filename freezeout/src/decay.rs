//! How a learning rate falls.
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// How a learning rate falls from its first value to its last: `lr = last + (first - last) * d(progress)`, progress in
/// [0, 1].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// `d(x) = (1 + cos(pi * x)) / 2` (SGDR, arXiv 1608.03983, without restarts). FreezeOut's.
    #[default]
    Cosine,
    /// `d(x) = 1 - x`.
    Linear,
    /// `d(x) = 1`.
    Constant,
    /// A function of your own. It cannot be serialised: give it again after a resume.
    #[serde(skip)]
    Custom(Curve),
}

/// A decay of your own, see [`Decay::Custom`]. Must be a pure function: it is called again for the same step.
///
/// ```
/// use freezeout::{Curve, Decay, Schedule};
/// let halves = Curve::new(|x| 0.5f64.powf((x * 4.0).floor()));
/// let schedule = Schedule { decay: Decay::Custom(halves), lr: 1.0, ..Schedule::cubic(1.0, 3, 100) };
/// assert_eq!((schedule.lr(0, None), schedule.lr(25, None), schedule.lr(99, None)), (1.0, 0.5, 0.125));
/// ```
#[derive(Clone)]
pub struct Curve(Arc<dyn Fn(f64) -> f64 + Send + Sync>);

impl Curve {
    /// Takes the function from progress in [0, 1] to a factor.
    pub fn new(curve: impl Fn(f64) -> f64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(curve))
    }
}

impl fmt::Debug for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Curve")
    }
}

impl PartialEq for Curve {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Decay {
    pub(crate) fn at(&self, progress: f64) -> f64 {
        match self {
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Decay::Linear => 1.0 - progress,
            Decay::Constant => 1.0,
            Decay::Custom(curve) => (curve.0)(progress),
        }
    }
}
