//! Environment variables for those who look for a fault or measure. Read here alone; everybody else is handed values.
use anyhow::Result;
use vit::ops::{Compute, Unit};

use crate::usage::usage;

/// How a model computes unless flags say more: `VITFREEZE_PLAIN_OPS=1` takes the plain forms of all ops, `VITFREEZE_BF16` another
/// unit for bf16 than the best.
pub fn compute() -> Result<Compute> {
    let mut compute = Compute::default();
    if let Some(value) = read("VITFREEZE_PLAIN_OPS") {
        compute.plain = match value.as_str() {
            "0" => false,
            "1" => true,
            other => {
                return Err(usage(format!(
                    "VITFREEZE_PLAIN_OPS is '{}', it must be 0 or 1",
                    other.escape_debug()
                )))
            }
        };
    }
    if let Some(value) = read("VITFREEZE_BF16") {
        compute.unit = Unit::named(&value).map_err(|e| usage(format!("VITFREEZE_BF16: {e}")))?;
    }
    Ok(compute)
}

/// Unset and empty are the same.
fn read(name: &str) -> Option<String> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
    Some(value.to_string_lossy().into_owned())
}
