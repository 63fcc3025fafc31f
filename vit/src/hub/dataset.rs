//! `hf://datasets/org/name[@revision]`: some files of a dataset, into the same cache as huggingface_hub's.
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use hf_hub::repository::RepoTreeEntry;

use super::{Hub, OnProgress, Repo};
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
    pub fn fetch_dataset<E: From<Error>>(
        &self,
        origin: &str,
        choose: impl FnOnce(&[String]) -> Result<Vec<String>, E>,
        on_progress: OnProgress,
    ) -> Result<PathBuf, E> {
        let mut repo = Repo::parse_dataset(origin)?;
        let folder = format!("datasets--{}--{}", repo.owner, repo.name);
        let folder = self.cache.join(folder);
        if self.offline {
            let snapshot = cached(&folder, &repo).ok_or_else(|| {
                repo.error(
                    "not in the cache, and HF_HUB_OFFLINE is set; unset it to download".into(),
                )
            })?;
            let mut files = Vec::new();
            list(&snapshot, "", 4, &mut files).map_err(|e| repo.error(e.to_string()))?;
            choose(&files)?;
            return Ok(snapshot);
        }
        let handle = self.client.dataset(&repo.owner, &repo.name);
        let info = handle.info().revision(repo.revision.clone()).send();
        let info = info.map_err(|e| repo.error(repo.explain(&e)))?;
        // From here on all is of one commit.
        let commit = info.sha.filter(|sha| is_commit(sha));
        let commit = commit.ok_or_else(|| repo.error("the Hub does not tell its commit".into()))?;
        let revision = std::mem::replace(&mut repo.revision, commit);
        let tree = handle.list_tree().revision(repo.revision.clone());
        let tree = tree.recursive(true).limit(MAX_FILES).send();
        let tree = tree.map_err(|e| repo.error(repo.explain(&e)))?;
        let sizes: Vec<(String, u64)> = (tree.into_iter())
            .filter_map(|entry| match entry {
                // A path that leads elsewhere would be written there.
                RepoTreeEntry::File { path, size, .. } => is_inside(&path).then_some((path, size)),
                RepoTreeEntry::Directory { .. } => None,
            })
            .collect();
        let names: Vec<String> = sizes.iter().map(|(path, _)| path.clone()).collect();
        let chosen = choose(&names)?;
        let snapshot = folder.join("snapshots").join(&repo.revision);
        let wanted = sizes.iter().filter(|(path, _)| chosen.contains(path));
        // Also those that are there but cut short.
        let missing: Vec<&(String, u64)> = wanted
            .filter(|(path, size)| length(&snapshot.join(path)) != Some(*size))
            .collect();
        let total = missing.iter().map(|(_, size)| size).sum();
        let mut before = 0;
        for (path, size) in missing {
            let told = on_progress.clone();
            let all: OnProgress =
                Arc::new(move |file, done, _| told(file, (before + done).min(total), total));
            remove(&snapshot.join(path));
            let file = self.file(&mut repo, path, &all)?;
            let file =
                file.ok_or_else(|| repo.error(format!("'{path}' is listed but not there")))?;
            let length = length(&file).unwrap_or(0);
            if length != *size {
                remove(&file);
                let reason =
                    format!("'{path}' came with {length} of {size} bytes; try again later");
                return Err(repo.error(reason).into());
            }
            before += size;
        }
        remember(&folder, &revision, &repo.revision).map_err(|e| repo.error(e.to_string()))?;
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
        if !is_inside(&repo.revision) {
            return Err(wrong());
        }
        Ok(Self {
            dataset: true,
            origin: format!("datasets/{rest}"),
            ..repo
        })
    }
}

/// The snapshot of the revision in the cache.
fn cached(folder: &Path, repo: &Repo) -> Option<PathBuf> {
    let commit = match is_commit(&repo.revision) {
        true => repo.revision.clone(),
        false => fs::read_to_string(folder.join("refs").join(&repo.revision)).ok()?,
    };
    let commit = commit.trim();
    let snapshot = folder.join("snapshots").join(commit);
    (is_commit(commit) && snapshot.is_dir()).then_some(snapshot)
}

/// Notes which commit a branch or tag is, for work without the network.
fn remember(folder: &Path, revision: &str, commit: &str) -> std::io::Result<()> {
    if is_commit(revision) {
        return Ok(());
    }
    let path = folder.join("refs").join(revision);
    let parent = path.parent().unwrap_or(folder);
    fs::create_dir_all(parent)?;
    let temporary = parent.join(format!(".{}.partial", std::process::id()));
    fs::write(&temporary, commit)?;
    fs::rename(&temporary, &path)
}

/// The paths of the files in a folder, relative to it.
fn list(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<String>) -> std::io::Result<()> {
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

fn length(path: &Path) -> Option<u64> {
    let metadata = fs::metadata(path).ok()?;
    metadata.is_file().then_some(metadata.len())
}

/// Removes a file of the cache: the link, and the blob that it leads to.
fn remove(path: &Path) {
    if let Ok(blob) = fs::canonicalize(path) {
        let _ = fs::remove_file(blob);
    }
    let _ = fs::remove_file(path);
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a relative path stays below where it begins.
fn is_inside(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.is_empty()
        && !path.contains('\\')
        && parts.all(|part| matches!(part, Component::Normal(_)))
}
