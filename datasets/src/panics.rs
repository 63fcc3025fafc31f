//! Decoders that panic on strange files: the file is bad, and the program goes on.

use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};

thread_local! {
    // A panic hook is one for the whole process and is told nothing but the panic: what the thread was doing can reach it
    // only this way. It decides what is printed and nothing else.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a decoder whose panic becomes an error. A program's panic hook then has nothing to print; this
/// crate installs none.
pub fn catching_panics() -> bool {
    CATCHING.get()
}

/// Runs a decoder that strange files have made panic, or might; what the panic said.
pub(crate) fn caught<T>(decoder: impl FnOnce() -> T) -> Result<T, String> {
    let outer = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(decoder));
    CATCHING.set(outer);
    result.map_err(|panic| panic_message(&*panic))
}

/// What a caught panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_decoder_is_quiet() {
        assert!(!catching_panics());
        let said = caught(|| {
            assert!(catching_panics());
            let _ = caught(|| ());
            assert!(catching_panics());
            panic!("odd file")
        });
        assert_eq!(said, Err::<(), _>("odd file".to_owned()));
        assert!(!catching_panics());
    }
}
