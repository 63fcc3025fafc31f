//! A run while it goes on, on a terminal: its files are read again and again, nothing of it is touched.
mod follow;
mod screen;
mod view;

use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

pub use follow::Followed;
use screen::Screen;
use view::Look;

use crate::console::{self, note};
use crate::machine::interrupt;

/// How often the files are read, and how soon a key is heeded.
const READ_EVERY: Duration = Duration::from_millis(1000);
const KEYS_EVERY: Duration = Duration::from_millis(200);

/// Whether there is a terminal to draw on and keys to read.
pub fn possible() -> bool {
    std::io::stdout().is_terminal() && std::io::stdin().is_terminal()
}

/// What a run does, in a few lines.
pub fn lines(run: &Followed) -> Vec<String> {
    view::lines(run)
}

/// Follows a run until it is left by a key.
pub fn follow(run: &mut Followed) -> Result<()> {
    let mut screen = Screen::open()?;
    // Who ends it by a signal gets the terminal back, too.
    let ended = Arc::new(AtomicBool::new(false));
    #[cfg(unix)]
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&ended))?;
    }
    let over = || ended.load(Ordering::Relaxed);
    watch(&mut screen, run, Look::default(), &over)
}

/// Draws until `over`, or until it is left.
fn watch(
    screen: &mut Screen,
    run: &mut Followed,
    mut look: Look,
    over: &dyn Fn() -> bool,
) -> Result<()> {
    let mut read = Instant::now();
    while !over() {
        if read.elapsed() >= READ_EVERY {
            // While a file is being replaced it may not be there.
            let _ = run.refresh();
            read = Instant::now();
        }
        look.said = console::held_lines(view::SAID);
        screen.draw(|frame| view::draw(frame, run, &look))?;
        if !event::poll(KEYS_EVERY)? {
            continue;
        }
        let Event::Key(key) = event::read()? else {
            continue;
        };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        match key.code {
            // The terminal is raw: this is a key, no signal.
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                if !look.inside {
                    break;
                }
                if interrupt::asked() {
                    screen.close();
                }
                interrupt::ask();
            }
            KeyCode::Char('q') | KeyCode::Esc => break,
            KeyCode::Char('l') => look.log = !look.log,
            KeyCode::Char('r') => look.recent = !look.recent,
            KeyCode::Char('?' | 'h') => look.help = !look.help,
            _ => {}
        }
    }
    Ok(())
}

/// The view of a run of this process, instead of its progress line; gone when this is dropped.
pub struct Inside {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Inside {
    /// Of the run in `dir`; `None`, and a note, where it cannot be drawn.
    pub fn open(dir: &Path) -> Option<Self> {
        if console::is_quiet() {
            return None;
        }
        let opened = match possible() {
            true => Followed::new(dir).and_then(|run| Ok((run, Screen::open()?))),
            false => {
                note("note: --watch draws on a terminal; there is none here");
                return None;
            }
        };
        let (mut run, mut screen) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                note(format!("note: --watch cannot draw: {error:#}"));
                return None;
            }
        };
        console::hold();
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let draw = move || {
            let look = Look {
                inside: true,
                ..Look::default()
            };
            let ended = watch(&mut screen, &mut run, look, &|| {
                seen.load(Ordering::Relaxed)
            });
            drop(screen);
            console::release();
            if let Err(error) = ended {
                note(format!("note: --watch cannot draw any more: {error:#}"));
            }
        };
        let thread = std::thread::Builder::new().name("watch".into());
        match thread.spawn(draw) {
            Ok(thread) => Some(Self {
                over,
                thread: Some(thread),
            }),
            Err(error) => {
                console::release();
                note(format!("note: --watch cannot draw: {error}"));
                None
            }
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
