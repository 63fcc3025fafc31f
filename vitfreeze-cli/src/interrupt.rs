//! Ctrl-C: the first one asks the loop to finish its step, the second one ends the program at once.
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::report::note;

static ASKED: AtomicBool = AtomicBool::new(false);

/// Exit code after an interrupt, as shells expect it: 128 + SIGINT.
pub const EXIT_CODE: u8 = 130;

/// Starts listening for SIGINT, SIGTERM and SIGHUP, for a loop that saves at the end of its step.
pub fn listen() -> Result<()> {
    listen_saying("finishing this step, then saving")
}

/// The same, with what to say when it happens.
pub fn listen_saying(what: &'static str) -> Result<()> {
    ctrlc::set_handler(move || {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(EXIT_CODE));
        }
        note(format!("\ninterrupted: {what} (again to stop at once)"));
    })
    .context("cannot listen for ctrl-C")
}

/// Whether someone has asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
