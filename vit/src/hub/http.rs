//! Requests to the Hub: what a file is (HEAD), its bytes (GET), and what a refusal means.
use std::time::Duration;

use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::header::{HeaderMap, HeaderValue, ACCEPT_ENCODING, AUTHORIZATION, RANGE};
use reqwest::{redirect, StatusCode, Url};

use super::repo::Repo;
use super::tls;

/// Silence on a connection after which it is given up.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);
/// How often a request is repeated that failed for a reason that may pass.
pub(super) const RETRIES: u32 = 5;
/// Most redirects of a repository that was renamed.
const REDIRECTS: usize = 10;

/// Why there is no answer.
pub(super) enum Refusal {
    /// No such file; the commit in which it is not, where the server states that.
    Missing(Option<String>),
    /// Something that may pass: no connection, an overloaded server.
    Transient(String),
    /// All else.
    Fatal(String),
}

/// What the Hub says of a file. Each text has been checked: it can be a part of a path.
pub(super) struct Meta {
    /// Name of the content: SHA-256 for large files (Git LFS), git's SHA-1 for others.
    pub etag: String,
    pub commit: String,
    pub size: u64,
}

/// A connection to the Hub.
pub(super) struct Http {
    /// Follows no redirect: the Hub tells about a file in the answer that sends to its storage.
    head: Client,
    get: Client,
    pub endpoint: Url,
}

/// Wait before attempt `n`, counted from 1.
pub(super) fn pause(n: u32) {
    std::thread::sleep(Duration::from_millis(150) * 2u32.pow(n));
}

impl Http {
    pub fn new(endpoint: &Url, token: Option<&str>) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        // Lengths and ranges are those of the file, not of something compressed.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value =
                value.map_err(|_| "the token (HF_TOKEN) has characters that none has")?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let client = |policy| {
            tls::provide();
            Client::builder()
                .default_headers(headers.clone())
                .connect_timeout(TIMEOUT)
                .timeout(TIMEOUT) // of each read, not of the whole
                .referer(false)
                .redirect(policy)
                .user_agent(concat!("candle-vit/", env!("CARGO_PKG_VERSION")))
                .build()
                .map_err(|e| line(&e))
        };
        Ok(Self {
            head: client(redirect::Policy::none())?,
            get: client(redirect::Policy::default())?,
            endpoint: endpoint.clone(),
        })
    }

    /// `ENDPOINT/org/name/resolve/REVISION/FILE`
    fn url(&self, repo: &Repo, revision: &str, file: &str) -> Url {
        let mut url = self.endpoint.clone();
        // Each part is escaped, slashes too: a revision is one segment. A file may lie in folders.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty();
            if repo.dataset {
                path.push("datasets");
            }
            path.extend([&repo.owner, &repo.name, "resolve", revision]);
            path.extend(file.split('/'));
        }
        url
    }

    /// What `file` is at `revision`. Asks again when the server is in trouble, if `patient`.
    pub fn head(
        &self,
        repo: &Repo,
        revision: &str,
        file: &str,
        patient: bool,
    ) -> Result<Meta, Refusal> {
        let mut url = self.url(repo, revision, file);
        let (mut commit, mut linked_etag, mut linked_size) = (None, None, None);
        for _ in 0..REDIRECTS {
            let response = again(patient, || send(self.head.head(url.clone())))?;
            let header = |name: &str| text(&response, name);
            commit = header("x-repo-commit").or(commit);
            linked_etag = header("x-linked-etag").or(linked_etag);
            linked_size = header("x-linked-size").or(linked_size);
            let status = response.status();
            if status.is_redirection() {
                let next = header("location").and_then(|to| url.join(&to).ok());
                // A renamed repository. Another server is the storage, to which only bytes are asked for.
                if let Some(next) = next.filter(|next| next.origin() == url.origin()) {
                    url = next;
                    continue;
                }
            } else if !status.is_success() {
                return Err(refusal(repo, &response, commit.filter(|c| is_commit(c))));
            }
            let etag = linked_etag.or_else(|| header("etag")).unwrap_or_default();
            let size = linked_size.or_else(|| header("content-length"));
            return meta(&etag, commit, size).map_err(Refusal::Fatal);
        }
        Err(Refusal::Fatal("redirects without end".into()))
    }

    /// What the API answers to that.
    pub fn ask(&self, repo: &Repo, url: Url) -> Result<Response, Refusal> {
        let response = again(true, || send(self.get.get(url.clone())))?;
        match response.status().is_success() {
            true => Ok(response),
            false => Err(refusal(repo, &response, None)),
        }
    }

    /// The bytes of `file` from `start` on, or whatever else the server answers to that.
    pub fn get(
        &self,
        repo: &Repo,
        revision: &str,
        file: &str,
        start: u64,
    ) -> Result<Response, Refusal> {
        let request = self.get.get(self.url(repo, revision, file));
        let response = send(match start {
            0 => request,
            _ => request.header(RANGE, format!("bytes={start}-")),
        })?;
        let status = response.status();
        match status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            true => Ok(response),
            false => Err(refusal(repo, &response, None)),
        }
    }
}

/// Whether a text is the full name of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Checks what a server says: `etag` and `commit` become parts of paths.
fn meta(etag: &str, commit: Option<String>, size: Option<String>) -> Result<Meta, String> {
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if etag.is_empty() || etag.len() > 128 || etag.starts_with('.') || !etag.chars().all(legal) {
        return Err(format!(
            "the server's ETag '{}' names no content",
            etag.escape_debug()
        ));
    }
    let Some(commit) = commit.filter(|c| is_commit(c)) else {
        return Err(
            "the server states no commit (X-Repo-Commit): it is no Hugging Face Hub".into(),
        );
    };
    let Some(size) = size.and_then(|s| s.parse().ok()) else {
        return Err("the server states no length".into());
    };
    Ok(Meta {
        etag: etag.to_owned(),
        commit,
        size,
    })
}

/// A header as text: visible ASCII only.
pub(super) fn text(response: &Response, name: &str) -> Option<String> {
    let value = response.headers().get(name)?.to_str().ok()?;
    Some(value.to_owned())
}

/// Asks again, if `patient`, when the server is in trouble.
fn again(patient: bool, ask: impl Fn() -> Result<Response, Refusal>) -> Result<Response, Refusal> {
    let mut attempt = 0;
    loop {
        match ask() {
            Err(Refusal::Transient(_)) if patient && attempt < RETRIES => {
                attempt += 1;
                pause(attempt);
            }
            other => return other,
        }
    }
}

/// One attempt. What may pass is [`Refusal::Transient`]; any other answer is an answer.
fn send(request: RequestBuilder) -> Result<Response, Refusal> {
    let response = request.send().map_err(|e| match e.is_builder() {
        true => Refusal::Fatal(line(&e)),
        false => Refusal::Transient(line(&e)),
    })?;
    match response.status().as_u16() {
        408 | 429 | 500 | 502 | 503 | 504 => Err(Refusal::Transient(format!(
            "the server answers {}",
            response.status()
        ))),
        _ => Ok(response),
    }
}

/// What an answer that is no success means, and what to do.
fn refusal(repo: &Repo, response: &Response, commit: Option<String>) -> Refusal {
    let code = text(response, "x-error-code").unwrap_or_default();
    Refusal::Fatal(match (code.as_str(), response.status().as_u16()) {
        ("EntryNotFound", _) | ("", 404) => return Refusal::Missing(commit),
        ("RevisionNotFound", _) => "no such revision; check the part after @".into(),
        ("GatedRepo", _) => format!(
            "a gated repository: accept the terms on {}, then set HF_TOKEN to a token of yours",
            repo.page()
        ),
        // Datasets such as ImageNet are given to those who accept their terms.
        ("", 401 | 403) if repo.dataset => format!(
            "no such dataset, or one that is private or gated; check the name; if it is gated, accept the terms on {}; then set \
             HF_TOKEN to a token of yours",
            repo.page()
        ),
        ("RepoNotFound", _) | (_, 401 | 403) => format!(
            "no such {}, or a private one; check the name, or set HF_TOKEN to a token that may read it",
            repo.kind()
        ),
        _ => {
            let message = text(response, "x-error-message").map_or(String::new(), |m| format!(": {m}"));
            format!("the server answers {}{message}", response.status())
        }
    })
}

/// The message and its causes on one line.
pub(super) fn line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text += &format!(": {cause_text}");
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}
