//! Telling a mistake of the user (exit code 2) from a failure (exit code 1).
use std::fmt::{self, Display};

use crate::console;

/// A mistake in flags, configuration or data that the user can mend before anything has started.
#[derive(Debug)]
pub struct Usage(pub String);

impl Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An error with exit code 2.
pub fn usage(message: impl Display) -> anyhow::Error {
    anyhow::Error::new(Usage(message.to_string()))
}

/// Prints an error, and gives the exit code that it means.
pub fn tell(error: &anyhow::Error) -> u8 {
    // A line break in it can only come from a name.
    console::warn(vit::printable(&format!("error: {error:#}")));
    if is_usage(error) {
        2
    } else {
        1
    }
}

/// Whether the exit code is 2.
pub fn is_usage(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.is::<Usage>())
}
