//! Ctrl-C and its kin: the first one asks the loop to finish its step, the second one ends the program at once.
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};

use crate::console::note;

/// The signal that asked to stop; 0: none has.
static ASKED: AtomicU8 = AtomicU8::new(0);

/// Starts listening for SIGINT, SIGTERM, SIGHUP and SIGUSR1 (which launchers of many processes pass on), for a loop that saves at the end of its step.
pub fn listen() -> Result<()> {
    listen_saying("finishing this step, then saving")
}

/// The same, with what to say when it happens.
pub fn listen_saying(what: &'static str) -> Result<()> {
    listen_for_others(what, || {})
}

/// The same, for a program that others work for: `last` ends them before the second signal ends this one at once.
pub fn listen_for_others(what: &'static str, last: impl Fn() + Send + 'static) -> Result<()> {
    handle(move |signal| {
        if ASKED.swap(signal, Ordering::SeqCst) != 0 {
            last();
            std::process::exit(128 + i32::from(signal));
        }
        note(format!("\ninterrupted: {what} (again to stop at once)"));
    })
    .context("cannot listen for ctrl-C")
}

/// Asks as ctrl-C does, where the terminal hands it on as a key.
pub fn ask() {
    const SIGINT: i32 = 2;
    #[cfg(unix)]
    let _ = signal_hook::low_level::raise(SIGINT);
    #[cfg(not(unix))]
    if ASKED.swap(SIGINT as u8, Ordering::SeqCst) != 0 {
        std::process::exit(128 + SIGINT);
    }
}

/// What a program that starts this one sets, and then says by standard input.
pub const LED: &str = "VITFREEZE_LED";

/// Follows the program that has started this one, if it leads it: at a byte the loop finishes its step and saves; when the other
/// has gone, in whatever way, this one goes too, so that nobody finds it still at work in the same folder.
pub fn follow_leader() {
    if std::env::var_os(LED).is_none() {
        return;
    }
    let follow = || loop {
        match io::Read::read(&mut io::stdin(), &mut [0]) {
            // As SIGTERM does.
            Ok(1..) => ASKED.store(15, Ordering::SeqCst),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => std::process::exit(1),
        }
    };
    let thread = std::thread::Builder::new().name("leader".into());
    drop(thread.spawn(follow));
}

/// Whether someone has asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst) != 0
}

/// By which signal.
pub fn signal() -> Option<u8> {
    Some(ASKED.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
}

/// Exit code after an interrupt, as shells expect it: 128 + signal, 130 for SIGINT.
pub fn exit_code() -> u8 {
    128 + ASKED.load(Ordering::SeqCst)
}

/// A file larger than the system allows (`ulimit -f`) is an error of that write from now on, not the end of the program.
pub fn survive_file_limit() {
    // A handler that only sets a flag: the write then fails with EFBIG. Without it all is as if this were not called.
    #[cfg(unix)]
    let _ = signal_hook::flag::register(
        signal_hook::consts::SIGXFSZ,
        std::sync::Arc::<std::sync::atomic::AtomicBool>::default(),
    );
}

#[cfg(unix)]
fn handle(on: impl Fn(u8) + Send + 'static) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
    let ignored = ignored();
    let asks = |signal: &i32| ignored >> (signal - 1) & 1 == 0;
    let signals = [SIGHUP, SIGINT, SIGTERM, SIGUSR1].into_iter().filter(asks);
    let mut signals = signal_hook::iterator::Signals::new(signals)?;
    let listen = move || signals.forever().for_each(|signal| on(signal as u8));
    let thread = std::thread::Builder::new().name("signals".into());
    thread.spawn(listen).map(drop)
}

/// The signals that whoever started the program had it ignore, one bit each: `nohup` does so with SIGHUP, a shell script with
/// the SIGINT of what it runs in the background. They stay ignored. Nothing where the system does not say.
#[cfg(unix)]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(not(unix))]
fn handle(on: impl Fn(u8) + Send + 'static) -> io::Result<()> {
    // All that there is elsewhere counts as ctrl-C.
    const SIGINT: u8 = 2;
    ctrlc::set_handler(move || on(SIGINT)).map_err(io::Error::other)
}
