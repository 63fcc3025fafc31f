//! The bytes of one file, continued where an earlier attempt or process stopped, and checked.
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use reqwest::blocking::Response;
use reqwest::StatusCode;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::http::{line, pause, Meta, Refusal, RETRIES};

/// Fetches a file of content `meta` into `path`, which may hold its beginning already. `get` asks for the bytes from a
/// position on; `tell` hears how many there are.
///
/// What is wrong is fetched once more from the start. When it fails for want of a connection, `path` stays: the next call
/// goes on.
pub(super) fn download(
    path: &Path,
    meta: &Meta,
    get: impl Fn(u64) -> Result<Response, Refusal>,
    tell: impl Fn(u64),
) -> Result<(), Refusal> {
    let open = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path);
    let mut part = Part {
        path,
        file: open.map_err(|e| cannot_write(path, &e))?,
        size: meta.size,
    };
    for last in [false, true] {
        part.complete(&get, &tell)?;
        match check(&mut part.file, meta).map_err(|e| part.fail(&e))? {
            None => return part.file.sync_all().map_err(|e| part.fail(&e)),
            Some(problem) if last => {
                let _ = fs::remove_file(path);
                return Err(Refusal::Fatal(format!("{problem}, twice; try again later")));
            }
            Some(_) => part.restart()?,
        }
    }
    Ok(())
}

fn cannot_write(path: &Path, error: &io::Error) -> Refusal {
    Refusal::Fatal(format!("cannot write {}: {error}", path.display()))
}

/// A file that has come in part.
struct Part<'a> {
    path: &'a Path,
    file: File,
    size: u64,
}

impl Part<'_> {
    fn fail(&self, error: &io::Error) -> Refusal {
        cannot_write(self.path, error)
    }

    fn restart(&mut self) -> Result<(), Refusal> {
        self.file.set_len(0).map_err(|e| self.fail(&e))
    }

    /// Asks until all bytes are there. Gives up when [`RETRIES`] attempts in a row brought nothing new.
    fn complete(
        &mut self,
        get: &impl Fn(u64) -> Result<Response, Refusal>,
        tell: &impl Fn(u64),
    ) -> Result<(), Refusal> {
        let length = |part: &Self| Ok(part.file.metadata().map_err(|e| part.fail(&e))?.len());
        if length(self)? > self.size {
            self.restart()?;
        }
        // Of all attempts: one that starts over is no progress until it is further than that.
        let mut most = length(self)?;
        let mut failures = 0;
        tell(most);
        while length(self)? < self.size {
            let start = length(self)?;
            let problem = match get(start).and_then(|answer| self.receive(answer, start, tell)) {
                Ok(()) => None,
                Err(Refusal::Transient(problem)) => Some(problem),
                Err(other) => return Err(other),
            };
            let now = length(self)?;
            if now >= self.size {
                break;
            }
            failures = if now > most { 0 } else { failures + 1 };
            most = most.max(now);
            if failures > RETRIES {
                let size = self.size;
                let problem = problem.map_or(String::new(), |p| format!(": {p}"));
                return Err(Refusal::Transient(format!(
                    "{now} of {size} bytes arrived{problem}; run the same command again to continue"
                )));
            }
            pause(failures.max(1));
        }
        Ok(())
    }

    /// Writes an answer's body behind the first `start` bytes, or over them when the answer is the whole file.
    fn receive(
        &mut self,
        answer: Response,
        start: u64,
        tell: &impl Fn(u64),
    ) -> Result<(), Refusal> {
        let mut at = match answer.status() {
            StatusCode::PARTIAL_CONTENT if range_start(&answer) == Some(start) => start,
            StatusCode::OK => {
                self.restart()?;
                0
            }
            // No such range, or another than asked for: what is here does not belong there.
            _ => return self.restart(),
        };
        self.file
            .seek(SeekFrom::Start(at))
            .map_err(|e| self.fail(&e))?;
        // One byte too many is enough to see that it is not this file; a server without end fills no disk.
        let mut body = answer.take(self.size - at + 1);
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Refusal::Transient(line(&e))),
            };
            self.file
                .write_all(&buffer[..count])
                .map_err(|e| self.fail(&e))?;
            at += count as u64;
            tell(at.min(self.size));
        }
    }
}

/// `Content-Range: bytes START-END/SIZE`
fn range_start(answer: &Response) -> Option<u64> {
    let range = answer.headers().get("content-range")?.to_str().ok()?;
    let (start, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    start.trim().parse().ok()
}

/// What is wrong with a file's content, if anything: its length, or the hash that its ETag is.
fn check(file: &mut File, meta: &Meta) -> io::Result<Option<String>> {
    let length = file.metadata()?.len();
    if length != meta.size {
        return Ok(Some(format!("came with {length} of {} bytes", meta.size)));
    }
    let is_hex = meta.etag.bytes().all(|b| b.is_ascii_hexdigit());
    let (name, hash) = match meta.etag.len() {
        64 if is_hex => ("SHA-256", hex::<Sha256>(file, "")?),
        // A blob of git.
        40 if is_hex => ("SHA-1", hex::<Sha1>(file, &format!("blob {length}\0"))?),
        _ => return Ok(None),
    };
    let same = hash.eq_ignore_ascii_case(&meta.etag);
    Ok((!same).then(|| format!("came with another {name} than the Hub states")))
}

fn hex<D: Digest>(file: &mut File, prefix: &str) -> io::Result<String> {
    let mut hash = D::new();
    hash.update(prefix);
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}
