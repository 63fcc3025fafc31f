//! What a repository holds: the Hub's API, below `ENDPOINT/api`.
use std::io::Read as _;

use reqwest::blocking::Response;
use reqwest::Url;
use serde::Deserialize;

use super::http::{is_commit, line, text, Http, Refusal};
use super::repo::{is_inside, Repo};
use crate::Error;

/// Most bytes of one answer; a page of a thousand files is some 300 kB.
const MAX_ANSWER: u64 = 64 << 20;

#[derive(Deserialize)]
struct Info {
    sha: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
}

impl Http {
    /// The commit that the revision is.
    pub fn commit(&self, repo: &Repo) -> Result<String, Error> {
        let url = self.api(repo, &["revision", &repo.revision]);
        let info: Info = self.json(repo, url)?.1;
        // From here on all is of one commit.
        info.sha
            .filter(|sha| is_commit(sha))
            .ok_or_else(|| repo.error("the Hub does not give its commit"))
    }

    /// Paths and sizes of the first `most` files of a revision.
    pub fn files(
        &self,
        repo: &Repo,
        revision: &str,
        most: usize,
    ) -> Result<Vec<(String, u64)>, Error> {
        let mut files = Vec::new();
        let mut url = self.api(repo, &["tree", revision]);
        url.query_pairs_mut().append_pair("recursive", "true");
        let mut next = Some(url);
        while let Some(url) = next.filter(|_| files.len() < most) {
            let (after, entries): (_, Vec<Entry>) = self.json(repo, url.clone())?;
            // A page that names itself as the next one would never end.
            next = after.filter(|after| *after != url && !entries.is_empty());
            files.extend(entries.into_iter().filter_map(|entry| {
                // A path that leads elsewhere would be written there.
                (entry.kind == "file" && is_inside(&entry.path)).then_some((entry.path, entry.size))
            }));
        }
        files.truncate(most);
        Ok(files)
    }

    /// `ENDPOINT/api/models/org/name/..`, each part escaped.
    fn api(&self, repo: &Repo, more: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty();
            let kind = if repo.dataset { "datasets" } else { "models" };
            path.extend(["api", kind, &repo.owner, &repo.name]);
            path.extend(more);
        }
        url
    }

    /// An answer, and where the next page of it is.
    fn json<T: for<'a> Deserialize<'a>>(
        &self,
        repo: &Repo,
        url: Url,
    ) -> Result<(Option<Url>, T), Error> {
        let response = self.ask(repo, url).map_err(|refusal| {
            repo.error(match refusal {
                Refusal::Missing(_) => format!(
                    "no such {}; check the name, and for a private one set HF_TOKEN",
                    repo.kind()
                ),
                Refusal::Transient(reason) => format!(
                    "{reason}; check the connection, or use what is cached with HF_HUB_OFFLINE=1"
                ),
                Refusal::Fatal(reason) => reason,
            })
        })?;
        // The token goes to no other server.
        let next = next_page(&response).filter(|url| url.origin() == self.endpoint.origin());
        let mut bytes = Vec::new();
        let read = response.take(MAX_ANSWER).read_to_end(&mut bytes);
        read.map_err(|e| repo.error(line(&e)))?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|e| repo.error(format!("the server's answer is no list of files: {e}")))?;
        Ok((next, value))
    }
}

/// `Link: <URL>; rel="next"` (RFC 8288).
fn next_page(response: &Response) -> Option<Url> {
    let links = text(response, "link")?;
    let link = links
        .split(',')
        .find(|link| link.contains("rel=\"next\""))?;
    let url = link.split_once('<')?.1.split_once('>')?.0;
    response.url().join(url).ok()
}
