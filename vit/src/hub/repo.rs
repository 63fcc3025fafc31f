//! `hf://org/name[/file][@revision]`
use std::path::{Component, Path};

use crate::Error;

/// A repository at a revision. Each part has been checked: it can be a part of a path.
pub(super) struct Repo {
    /// Of a dataset, not of a model.
    pub dataset: bool,
    pub owner: String,
    pub name: String,
    /// One file, where the user names it; it may lie in folders.
    pub file: Option<String>,
    pub revision: String,
    /// As the user wrote it.
    pub origin: String,
}

impl Repo {
    pub fn parse(origin: &str) -> Result<Self, Error> {
        let rest = origin.strip_prefix("hf://").unwrap_or(origin);
        let fail = |reason: &str| Error::Hub {
            repo: rest.escape_debug().to_string(),
            reason: reason.into(),
        };
        let (path, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let plain = |part: &str| {
            let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(legal)
        };
        let mut parts = path.splitn(3, '/');
        let (Some(owner), Some(name), file) = (
            parts.next().filter(|part| plain(part)),
            parts.next().filter(|part| plain(part)),
            parts.next(),
        ) else {
            return Err(fail(
                "expected hf://org/name, hf://org/name@revision or hf://org/name/file",
            ));
        };
        if owner == "datasets" {
            return Err(fail("a dataset, not a checkpoint"));
        }
        if file.is_some_and(|file| !is_inside(file) || file.contains(char::is_control)) {
            return Err(fail("the part after hf://org/name/ is no path of a file"));
        }
        // What git takes for a branch or tag (git check-ref-format), and no path out of a folder.
        let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.');
        let illegal = |c: char| c.is_control() || c.is_whitespace() || "\\:?*[~^\"<>|".contains(c);
        if !revision.split('/').all(part)
            || revision.contains("..")
            || revision.contains(illegal)
            || revision.len() > 200
        {
            return Err(fail(
                "the part after @ is no branch, tag or commit, such as main, v1.0 or refs/pr/1",
            ));
        }
        Ok(Self {
            dataset: false,
            owner: owner.to_owned(),
            name: name.to_owned(),
            file: file.map(str::to_owned),
            revision: revision.to_owned(),
            origin: rest.to_owned(),
        })
    }

    /// Where a person can see it, and accept its terms.
    pub fn page(&self) -> String {
        let kind = if self.dataset { "datasets/" } else { "" };
        format!("https://huggingface.co/{kind}{}/{}", self.owner, self.name)
    }

    /// In the words of a message.
    pub fn kind(&self) -> &'static str {
        match self.dataset {
            true => "dataset",
            false => "repository",
        }
    }

    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::Hub {
            repo: self.origin.clone(),
            reason: reason.into(),
        }
    }
}

/// Whether a relative path stays below where it begins.
pub(super) fn is_inside(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.is_empty()
        && !path.contains('\\')
        && parts.all(|part| matches!(part, Component::Normal(_)))
}
