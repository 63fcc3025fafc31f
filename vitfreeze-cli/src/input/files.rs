//! Files that the user names, read whole. None waits for a pipe, and none is larger than the memory.
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::machine::memory;

/// All bytes of a file.
pub fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let file = datasets::open_file(path)?;
    fits(&file)?;
    let mut bytes = Vec::new();
    (&file).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file's text.
pub fn text(path: &Path) -> io::Result<String> {
    let file = datasets::open_file(path)?;
    fits(&file)?;
    io::read_to_string(file)
}

/// An error for a file that is larger than half of the memory that there is: what is made of it takes as much again.
pub fn fits(file: &File) -> io::Result<()> {
    let len = file.metadata()?.len();
    match memory::room() {
        Some(room) if len > room.bytes / 2 => Err(io::Error::other(format!(
            "{len} bytes, too many for the {} bytes of memory that are free ({})",
            room.bytes, room.set_by
        ))),
        _ => Ok(()),
    }
}
