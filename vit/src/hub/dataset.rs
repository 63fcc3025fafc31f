//! `hf://datasets/org/name[@revision]`: some files of a dataset, into the same cache as huggingface_hub's.
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use super::cache::{self, Cache};
use super::http::Http;
use super::repo::is_inside;
use super::{Fetch, Hub, OnProgress, Repo};
use crate::Error;

/// More files than any dataset has that is kept in shards.
const MAX_FILES: usize = 1 << 20;

impl Hub {
    /// Fetches those of the dataset's files that `choose` takes of all there are (offline: all in the cache), and returns the
    /// folder that holds them under the same paths. Files that are there already are not fetched again.
    ///
    /// `origin` is `hf://datasets/org/name` or `hf://datasets/org/name@revision`. Progress counts the bytes of all files.
    ///
    /// # Errors
    /// [`Error::Hub`]: no such dataset or revision, no access (terms not accepted), no connection, a damaged download; and
    /// what `choose` says.
    pub fn fetch_dataset<E: From<Error> + Send>(
        &self,
        origin: &str,
        choose: impl FnOnce(&[String]) -> Result<Vec<String>, E> + Send,
        on_progress: OnProgress,
    ) -> Result<PathBuf, E> {
        let repo = Repo::parse_dataset(origin)?;
        if self.offline {
            let cache = Cache::new(&self.cache, &repo);
            let commit = cache.commit(&repo.revision);
            let snapshot = commit.map(|commit| cache.snapshot(&commit));
            let snapshot = snapshot.filter(|folder| folder.is_dir()).ok_or_else(|| {
                repo.error("not in the cache, and HF_HUB_OFFLINE is set; unset it to download")
            })?;
            let files = cache::files(&snapshot).map_err(|e| repo.error(e.to_string()))?;
            choose(&files)?;
            return Ok(snapshot);
        }
        super::on_a_thread(|| {
            let http = Http::new(&self.endpoint, self.token.as_deref());
            let http = http.map_err(|e| repo.error(e))?;
            let commit = http.commit(&repo)?;
            let files = http.files(&repo, &commit, MAX_FILES)?;
            let names: Vec<String> = files.iter().map(|(path, _)| path.clone()).collect();
            let chosen = choose(&names)?;
            let wanted = files.iter().filter(|(path, _)| chosen.contains(path));
            Ok(self.fetch_files(&repo, commit, wanted, on_progress)?)
        })
    }

    fn fetch_files<'a>(
        &self,
        repo: &Repo,
        commit: String,
        files: impl Iterator<Item = &'a (String, u64)>,
        on_progress: OnProgress,
    ) -> Result<PathBuf, Error> {
        let cache = Cache::new(&self.cache, repo);
        let snapshot = cache.snapshot(&commit);
        let length = |path: &str| fs::metadata(snapshot.join(path)).map_or(0, |m| m.len());
        // Also those that are there but cut short.
        let missing: Vec<&(String, u64)> = files
            .filter(|(path, size)| length(path) != *size || !snapshot.join(path).is_file())
            .collect();
        let total = missing.iter().map(|(_, size)| size).sum();
        // Bytes of the files that are done.
        let before = Arc::new(AtomicU64::new(0));
        let done_before = before.clone();
        let all: OnProgress = Arc::new(move |file, done, _| {
            let done = done + done_before.load(Ordering::Relaxed);
            on_progress(file, done.min(total), total);
        });
        let mut fetch = Fetch::new(self, repo, &all)?;
        fetch.commit = Some(commit.clone());
        for (path, size) in missing {
            cache.remove(&commit, path);
            if fetch.file(path)?.is_none() {
                return Err(repo.error(format!("'{path}' is listed but not there")));
            }
            if length(path) != *size {
                let length = length(path);
                cache.remove(&commit, path);
                return Err(repo.error(format!(
                    "'{path}' came with {length} of {size} bytes; try again later"
                )));
            }
            before.fetch_add(*size, Ordering::Relaxed);
        }
        let set = cache.set_commit(&repo.revision, &commit);
        set.map_err(|e| repo.error(format!("cannot write to the cache: {e}")))?;
        Ok(snapshot)
    }
}

impl Repo {
    fn parse_dataset(origin: &str) -> Result<Self, Error> {
        let rest = origin.strip_prefix("hf://datasets/").unwrap_or(origin);
        let wrong = || Error::Hub {
            repo: format!("datasets/{rest}"),
            reason: "expected hf://datasets/org/name or hf://datasets/org/name@revision".into(),
        };
        let repo = Self::parse(rest).map_err(|_| wrong())?;
        if !is_inside(&repo.revision) || repo.file.is_some() {
            return Err(wrong());
        }
        Ok(Self {
            dataset: true,
            origin: format!("datasets/{rest}"),
            ..repo
        })
    }
}
