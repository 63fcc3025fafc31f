//! A file that is there whole or not at all.
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// A file beside `path` that takes its place when finished, and else is removed again.
pub struct Unfinished {
    temporary: PathBuf,
    path: PathBuf,
    file: File,
}

impl Unfinished {
    /// Creates it, empty.
    pub fn beside(path: &Path) -> io::Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let temporary = PathBuf::from(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).open(&temporary)?;
        Ok(Self {
            temporary,
            path: path.to_owned(),
            file,
        })
    }

    /// What to write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name, once all of it is on disk.
    pub fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.temporary);
    }
}
