//! Opening a dataset, wherever it lies.
use std::sync::Arc;

use anyhow::Result;
use datasets::Source;

use crate::console::note;
#[cfg(feature = "hub")]
use crate::input::hub;
use crate::usage::usage;

/// Images of 'shapes' where nothing else is said.
pub const SAMPLES: usize = 4096;

/// Says that a number of drawn images means nothing for other data.
pub fn note_samples(data: &str, samples: usize) {
    if data != "shapes" && samples != SAMPLES {
        note(format!(
            "note: --samples {samples} is for 'shapes' alone; of {data} all images are used"
        ));
    }
}

/// Opens a dataset, fetched from the Hub if need be, and tells what is odd about it.
pub fn open(data: &str, split: &str, max_pixels: u64) -> Result<Arc<dyn Source>> {
    #[cfg(feature = "hub")]
    let fetched;
    #[cfg(feature = "hub")]
    let data = match data.starts_with("hf://datasets/") {
        true => {
            fetched = hub::fetch(data, split)?;
            fetched.as_str()
        }
        false => data,
    };
    let source = datasets::open_within(data, split, max_pixels).map_err(usage)?;
    let warnings = source.warnings();
    for warning in warnings.iter().take(10) {
        note(vit::printable(&format!("warning: {warning}")));
    }
    if warnings.len() > 10 {
        note(format!(
            "warning: and {} more like these",
            warnings.len() - 10
        ));
    }
    Ok(source)
}
