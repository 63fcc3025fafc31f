//! What reaches the terminal: lines, progress, numbers as a person reads them.
mod progress;

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

pub use progress::{Progress, Unit};

/// Whether another worker speaks for this one. Changes no result.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Lines that wait while something else has the terminal: all but so many of the latest are dropped.
static HELD: Mutex<Option<Vec<String>>> = Mutex::new(None);
const MOST_HELD: usize = 500;

fn held() -> MutexGuard<'static, Option<Vec<String>>> {
    HELD.lock().unwrap_or_else(|e| e.into_inner())
}

/// From now on what goes to standard error waits.
pub fn hold() {
    held().get_or_insert_default();
}

/// Whether it does.
pub fn is_held() -> bool {
    held().is_some()
}

/// The latest lines that wait.
pub fn held_lines(most: usize) -> Vec<String> {
    let held = held();
    let all = held.as_deref().unwrap_or_default();
    all[all.len().saturating_sub(most)..].to_vec()
}

/// Says what has waited.
pub fn release() {
    let lines = held().take().unwrap_or_default();
    for line in lines {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// From now on only [`warn`] says anything.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether [`be_quiet`] was called.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Lines on standard error. A closed one is no reason to stop a run.
pub fn note(text: impl AsRef<str>) {
    if !is_quiet() {
        warn(text);
    }
}

/// The same of every worker: errors, and what one of them alone has seen.
pub fn warn(text: impl AsRef<str>) {
    let text = harmless(text.as_ref());
    if let Some(lines) = held().as_mut() {
        lines.extend(text.lines().map(str::to_owned));
        if lines.len() > MOST_HELD {
            lines.remove(0);
        }
        return;
    }
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Lines on standard output. That nobody reads them is no error, that they cannot be written (a full disk) is one.
pub fn print(text: impl AsRef<str>) -> std::io::Result<()> {
    if is_quiet() {
        return Ok(());
    }
    write_out(&harmless(text.as_ref()))
}

/// A value as one line of JSON, which escapes what could harm a terminal in its own way.
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    Ok(write_out(&serde_json::to_string(value)?)?)
}

/// What clap says instead of a command: help, the version, or what is wrong with the arguments.
pub fn print_clap(said: &clap::Error) -> anyhow::Result<ExitCode> {
    let printed = said.print().and_then(|()| std::io::stdout().flush());
    // Where standard error is not to be had, the exit code says it all.
    if !said.use_stderr() {
        unless_unread(printed)?;
    }
    Ok(ExitCode::from(u8::try_from(said.exit_code()).unwrap_or(2)))
}

/// Text as it may reach a terminal. All of it passes here, so that no name out of a file can do more than be read; line
/// breaks stay, since reports have several lines: who prints a name by itself makes it [`vit::printable`].
fn harmless(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(vit::printable).collect();
    lines.join("\n")
}

/// A decoder's panic on a damaged file is caught and told as that file's error: nothing else is printed of it.
pub fn quiet_caught_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !datasets::catching_panics() {
            usual(panic);
        }
    }));
}

fn write_out(text: &str) -> std::io::Result<()> {
    unless_unread(writeln!(std::io::stdout(), "{text}"))
}

/// That nobody reads on is no error.
fn unless_unread(written: std::io::Result<()>) -> std::io::Result<()> {
    match written {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(std::io::Error::new(
            e.kind(),
            format!("cannot write to standard output: {e}"),
        )),
        _ => Ok(()),
    }
}

/// A part of 1 as percent; what rounds to zero has no sign.
pub fn percent(part: f64) -> String {
    format!("{:.1} %", (1000.0 * part).round() / 10.0 + 0.0)
}

/// `1 image`, `2 images`, `2 classes`.
pub fn counted(count: usize, one: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ if one.ends_with('s') => format!("{count} {one}es"),
        _ => format!("{count} {one}s"),
    }
}

/// Bytes of memory: a number and its unit, GiB or, below one, MiB.
pub fn memory(bytes: f64) -> (f64, &'static str) {
    const MIB: f64 = (1u64 << 20) as f64;
    match bytes >= 1024.0 * MIB {
        true => ((bytes / (102.4 * MIB)).round() / 10.0, "GiB"),
        false => ((bytes / MIB).ceil(), "MiB"),
    }
}

/// A number of parameters: `85.8 M`, `12.3 k`, `130`.
pub fn amount(count: usize) -> String {
    let number = count as f64;
    match count {
        0..=999 => count.to_string(),
        1_000..=99_999 => format!("{:.1} k", number / 1e3),
        100_000..=999_499 => format!("{:.0} k", number / 1e3),
        _ => format!("{:.1} M", number / 1e6),
    }
}

/// `1 h 02 min`, `3 min 07 s`, `4.2 s`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..=9 => format!("{seconds:.1} s"),
        10..=59 => format!("{whole} s"),
        60..=3599 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..=359_999 => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} days", whole / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_they_are_read() {
        let amounts = [130, 1_290, 99_999, 123_456, 999_999, 85_798_656].map(amount);
        assert_eq!(
            amounts,
            ["130", "1.3 k", "100.0 k", "123 k", "1.0 M", "85.8 M"]
        );
        let counts = [0, 1, 2].map(|n| counted(n, "class"));
        assert_eq!(counts, ["0 classes", "1 class", "2 classes"]);
        assert_eq!(memory(5.5e9), (5.1, "GiB"));
        assert_eq!(memory(3e6), (3.0, "MiB"));
        let parts = [-0.0004, 0.0, 0.158, -0.031].map(percent);
        assert_eq!(parts, ["0.0 %", "0.0 %", "15.8 %", "-3.1 %"]);
    }
}
