//! The cache on disk, as huggingface_hub has it, so that both use what the other fetched:
//!
//! ```text
//! models--org--name/blobs/ETAG              content; ETAG.incomplete while it comes
//! models--org--name/snapshots/COMMIT/FILE   link to a blob
//! models--org--name/refs/REVISION           text: the commit
//! .locks/models--org--name/ETAG.lock        held by the process that fetches it
//! ```
//! (of a dataset `datasets--org--name`)
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::http::is_commit;
use super::repo::Repo;

/// The root of the repository in whose snapshot a folder is.
pub(super) fn root_of(folder: &Path) -> Option<&Path> {
    let is_root = |at: &&Path| {
        let parent = at.parent().and_then(Path::file_name);
        parent.is_some_and(|name| name == "snapshots")
    };
    folder.ancestors().find(is_root)
}

/// One repository's part of the cache.
pub(super) struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

impl Cache {
    pub fn new(root: &Path, repo: &Repo) -> Self {
        let kind = if repo.dataset { "datasets" } else { "models" };
        let name = format!("{kind}--{}--{}", repo.owner, repo.name);
        Self {
            folder: root.join(&name),
            locks: root.join(".locks").join(&name),
        }
    }

    /// The file of a commit, if it is there.
    pub fn find(&self, commit: &str, name: &str) -> Option<PathBuf> {
        let path = self.snapshot(commit).join(name);
        path.is_file().then_some(path)
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// The commit that a revision was, the last time.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|c| is_commit(c))
    }

    /// Remembers which commit a revision is.
    pub fn set_commit(&self, revision: &str, commit: &str) -> io::Result<()> {
        if self.commit(revision).as_deref() == Some(commit) || is_commit(revision) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        replace(&path, |temporary| fs::write(temporary, commit))
    }

    /// Links a commit's file to its content.
    pub fn link(&self, commit: &str, name: &str, etag: &str) -> io::Result<PathBuf> {
        let path = self.snapshot(commit).join(name);
        // From the file's folder to the repository's.
        #[cfg(unix)]
        let up = "../".repeat(2 + name.matches('/').count());
        replace(&path, |temporary| {
            #[cfg(unix)]
            return std::os::unix::fs::symlink(Path::new(&up).join("blobs").join(etag), temporary);
            // Symbolic links need a privilege there.
            #[cfg(not(unix))]
            fs::hard_link(self.blob(etag), temporary)
                .or_else(|_| fs::copy(self.blob(etag), temporary).map(|_| ()))
        })?;
        Ok(path)
    }

    /// Forgets a commit's file and its content.
    pub fn remove(&self, commit: &str, name: &str) {
        let path = self.snapshot(commit).join(name);
        if let Ok(blob) = fs::canonicalize(&path) {
            let _ = fs::remove_file(blob);
        }
        let _ = fs::remove_file(path);
    }

    /// Waits until no other process fetches this content, calling `waiting` meanwhile. `None` where the file system has no
    /// locks: two downloads at once may then spoil each other, which the checksum tells.
    pub fn lock(&self, etag: &str, waiting: impl Fn()) -> io::Result<Option<File>> {
        fs::create_dir_all(&self.locks)?;
        let path = self.locks.join(format!("{etag}.lock"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => {
                    waiting();
                    std::thread::sleep(Duration::from_millis(200));
                }
                Err(TryLockError::Error(_)) => return Ok(None),
            }
        }
    }
}

/// The paths of the files in a snapshot, relative to it.
pub(super) fn files(snapshot: &Path) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    list(snapshot, "", 4, &mut files)?;
    Ok(files)
}

fn list(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        if path.is_file() {
            files.push(name);
        } else if depth > 0 && path.is_dir() {
            list(&path, &format!("{name}/"), depth - 1, files)?;
        }
    }
    Ok(())
}

/// Makes a file beside `path`, then renames it over `path`: two processes at once do no harm.
fn replace(path: &Path, make: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let thread = std::thread::current().id();
    let temporary = folder.join(format!(".{name}.{}{thread:?}", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let made = make(&temporary).and_then(|()| fs::rename(&temporary, path));
    if made.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    made
}
