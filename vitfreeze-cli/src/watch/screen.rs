//! The terminal, taken over and given back.
use std::io::{stdout, Stdout};

use anyhow::{Context, Result};
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    disable_raw_mode, enable_raw_mode, EnterAlternateScreen, LeaveAlternateScreen,
};
use ratatui::{Frame, Terminal};

/// A second screen, so that what was printed before is there again afterwards.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    open: bool,
}

impl Screen {
    pub fn open() -> Result<Self> {
        let opened = enable_raw_mode().and_then(|()| execute!(stdout(), EnterAlternateScreen));
        let terminal = opened.and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        match terminal {
            Ok(terminal) => Ok(Self {
                terminal,
                open: true,
            }),
            Err(error) => {
                let _ = disable_raw_mode();
                Err(error).context("cannot draw on this terminal")
            }
        }
    }

    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame)) -> Result<()> {
        self.terminal.draw(draw)?;
        Ok(())
    }

    pub fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            let _ = disable_raw_mode();
            let _ = execute!(stdout(), LeaveAlternateScreen, Show);
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.close();
    }
}
