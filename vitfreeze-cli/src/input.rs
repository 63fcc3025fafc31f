//! Files that the user names, read whole. None waits for a pipe.
use std::io::{self, Read};
use std::path::Path;

/// All bytes of a file.
pub fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    datasets::open_file(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file's text.
pub fn text(path: &Path) -> io::Result<String> {
    io::read_to_string(datasets::open_file(path)?)
}
