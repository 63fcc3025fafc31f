//! Which of a repository's files are a checkpoint.
use std::path::{Path, PathBuf};

use super::{cache, Fetch};
use crate::checkpoint::{is_weights, shard_names, WEIGHTS};
use crate::error::some;
use crate::Error;

/// What stands beside weights and is about them.
const BESIDE: [&str; 2] = ["config.json", "preprocessor_config.json"];

/// Which of these of a repository are not heeded, as the weights at `path` lie in a folder without them.
pub(crate) fn note_of_root(path: &Path) -> Option<String> {
    let folder = if path.is_dir() { path } else { path.parent()? };
    let root = cache::root_of(folder).filter(|root| *root != folder)?;
    let at_root = |name: &&str| root.join(name).is_file() && !folder.join(name).exists();
    let names: Vec<&str> = BESIDE.into_iter().filter(at_root).collect();
    let inner = folder.strip_prefix(root).ok()?.display();
    (!names.is_empty()).then(|| {
        format!(
            "{} at the repository's root is not used: the weights lie in '{inner}', and it may be another model's; to \
             use it, give a folder with both",
            names.join(" and ")
        )
    })
}

/// More files than any repository of models is searched for.
const MAX_FILES: usize = 1 << 16;

impl Fetch<'_> {
    /// Fetches the file that is asked for, or the weights under one of the usual names, or the only other ones.
    pub fn all(&mut self) -> Result<PathBuf, Error> {
        let repo = self.repo;
        if let Some(file) = &repo.file {
            self.beside_or_at_root(file)?;
            return match self.weights(file)? {
                Some(path) => self.done(path),
                None => Err(self.no_such(file)),
            };
        }
        let found = self.beside("")?;
        for name in WEIGHTS {
            if let Some(path) = self.weights(name)? {
                return self.done(folder_of(&path));
            }
        }
        let names = self.candidates()?;
        let [name] = &names[..] else {
            return Err(self.no_choice(&names, found));
        };
        self.beside(name)?;
        match self.weights(name)? {
            Some(path) => self.done(folder_of(&path)),
            None => Err(self.no_such(name)),
        }
    }

    /// What stands beside a file and is read with it; whether there is any.
    fn beside(&mut self, file: &str) -> Result<bool, Error> {
        let mut found = false;
        for name in BESIDE {
            found |= self.file(&sibling(file, name))?.is_some();
        }
        Ok(found)
    }

    /// The same; where there is none, those at the root, which are not read but told of.
    fn beside_or_at_root(&mut self, file: &str) -> Result<bool, Error> {
        Ok(self.beside(file)? || (file.contains('/') && self.beside("")?))
    }

    /// A file of weights, with its shards where it is an index of them.
    fn weights(&mut self, name: &str) -> Result<Option<PathBuf>, Error> {
        let Some(path) = self.file(name)? else {
            return Ok(None);
        };
        if name.ends_with(".index.json") {
            for shard in shard_names(&path)? {
                if self.file(&sibling(name, &shard))?.is_none() {
                    let reason = format!("{name} names '{shard}', which is not there");
                    return Err(self.repo.error(reason));
                }
            }
        }
        Ok(Some(path))
    }

    /// Last, so that the cache never calls half a checkpoint the revision.
    fn done(&self, path: PathBuf) -> Result<PathBuf, Error> {
        if let Some(commit) = &self.commit {
            let set = self.cache.set_commit(&self.repo.revision, commit);
            set.map_err(|e| self.repo.error(format!("cannot write to the cache: {e}")))?;
        }
        Ok(path)
    }

    /// Files that may be weights: those beside the README, or, where there are none, in folders.
    fn candidates(&self) -> Result<Vec<String>, Error> {
        let mut names = match (&self.http, &self.commit) {
            (Some(http), commit) => {
                let revision = commit.as_ref().unwrap_or(&self.repo.revision);
                let files = http.files(self.repo, revision, MAX_FILES)?;
                files.into_iter().map(|(path, _)| path).collect()
            }
            (None, Some(commit)) => self.cached_weights(commit),
            (None, None) => Vec::new(),
        };
        names.retain(|name| is_weights(last(name)));
        if names.iter().any(|name| !name.contains('/')) {
            names.retain(|name| !name.contains('/'));
        }
        names.sort();
        Ok(names)
    }

    /// Those of a commit that the cache has.
    pub fn cached_weights(&self, commit: &str) -> Vec<String> {
        let names = cache::files(&self.cache.snapshot(commit)).unwrap_or_default();
        let is = |name: &String| is_weights(last(name)) || name.ends_with(".index.json");
        names.into_iter().filter(is).collect()
    }

    fn no_such(&self, file: &str) -> Error {
        if self.http.is_none() {
            return self.not_cached();
        }
        let names = self.candidates().unwrap_or_default();
        self.repo.error(match names.is_empty() {
            true => format!("no file '{file}' in it"),
            false => format!("no file '{file}' in it, but {}", some(&names)),
        })
    }

    fn no_choice(&self, names: &[String], found: bool) -> Error {
        if let Some(first) = names.first() {
            let repo = self.repo;
            return repo.error(format!(
                "{} files of weights in it: {}; name one, as hf://{}/{}/{first}",
                names.len(),
                some(names),
                repo.owner,
                repo.name
            ));
        }
        if self.http.is_none() {
            return self.not_cached();
        }
        let usual = WEIGHTS.join(", ");
        self.repo.error(match found {
            true => {
                format!("no weights; expected one of {usual}, or one other file (.pth, .ckpt, ..)")
            }
            false => format!("none of {usual} in it, and no other weights (.pth, .ckpt, ..)"),
        })
    }

    fn not_cached(&self) -> Error {
        self.repo.error(match &self.trouble {
            Some(reason) => format!("{reason}; and not all of it is in the cache"),
            None => "not in the cache, and HF_HUB_OFFLINE is set; unset it to download".into(),
        })
    }
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

/// A file's name without its folders.
fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// The path of another file in the same folder.
fn sibling(file: &str, name: &str) -> String {
    match file.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{name}"),
        None => name.to_owned(),
    }
}
