//! How freezing times are spread over the layers.
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// How the freezing times are spread over the layers: `s(x)` in `rho_i = s(t0 + (1 - t0) * i / N)`, or an explicit plan.
///
/// As text, in files and flags: `linear`, `squared`, `cubic`, `power:2.5`, `none`, `at:500=1,700=2` (see
/// [`Change`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Spacing {
    /// `s(x) = x`: the layers freeze at even distances.
    Linear,
    /// `s(x) = x^2`.
    Squared,
    /// `s(x) = x^3`: early layers freeze early, late layers late (FreezeOut's best).
    Cubic,
    /// `s(x) = x^p` with p > 0.
    Power(f64),
    /// No layer ever freezes.
    None,
    /// Explicit freezing and unfreezing, in order of the steps. `t0` has no meaning then.
    At(Vec<Change>),
}

/// From `step` on, the first `frozen` layers are frozen. A smaller number than before unfreezes layers again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// First step with this many frozen layers.
    pub step: usize,
    /// How many layers are frozen, counted from the input.
    pub frozen: usize,
}

impl Spacing {
    /// `s(x)`; 1 for [`Spacing::None`] and [`Spacing::At`].
    pub(crate) fn apply(&self, x: f64) -> f64 {
        match self {
            Spacing::Linear => x,
            Spacing::Squared => x * x,
            Spacing::Cubic => x * x * x,
            Spacing::Power(p) => x.powf(*p),
            Spacing::None | Spacing::At(_) => 1.0,
        }
    }
}

impl fmt::Display for Spacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spacing::Linear => f.write_str("linear"),
            Spacing::Squared => f.write_str("squared"),
            Spacing::Cubic => f.write_str("cubic"),
            Spacing::Power(p) => write!(f, "power:{p}"),
            Spacing::None => f.write_str("none"),
            Spacing::At(changes) => {
                f.write_str("at:")?;
                for (i, change) in changes.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    write!(f, "{comma}{}={}", change.step, change.frozen)?;
                }
                Ok(())
            }
        }
    }
}

impl From<Spacing> for String {
    fn from(spacing: Spacing) -> Self {
        spacing.to_string()
    }
}

impl TryFrom<String> for Spacing {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl FromStr for Spacing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || {
            Error::Schedule(format!(
                "unknown spacing '{text}', expected linear, squared, cubic, none, power:P or at:STEP=FROZEN,..."
            ))
        };
        let change = |part: &str| -> Option<Change> {
            let (step, frozen) = part.split_once('=')?;
            Some(Change {
                step: step.trim().parse().ok()?,
                frozen: frozen.trim().parse().ok()?,
            })
        };
        match text {
            "linear" => return Ok(Spacing::Linear),
            "squared" => return Ok(Spacing::Squared),
            "cubic" => return Ok(Spacing::Cubic),
            "none" => return Ok(Spacing::None),
            _ => {}
        }
        if let Some(power) = text.strip_prefix("power:") {
            return power.parse().map(Spacing::Power).map_err(|_| unknown());
        }
        let plan = text.strip_prefix("at:").ok_or_else(unknown)?;
        if plan.is_empty() {
            return Ok(Spacing::At(Vec::new()));
        }
        let changes: Option<Vec<Change>> = plan.split(',').map(change).collect();
        changes.map(Spacing::At).ok_or_else(unknown)
    }
}
