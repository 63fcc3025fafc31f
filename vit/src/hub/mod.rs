//! `hf://org/name[/file][@revision]`: checkpoints (and `hf://datasets/..`) from the Hugging Face Hub, into the cache that
//! huggingface_hub has.
mod cache;
mod dataset;
mod download;
mod http;
mod listing;
mod repo;
mod tls;
#[cfg(feature = "upload")]
mod upload;
mod weights;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::Url;

use crate::Error;
use cache::Cache;
use http::{Http, Meta, Refusal};
use repo::Repo;
pub(crate) use weights::note_of_root;

/// Lets a token go over plain HTTP.
const ALLOW_HTTP_TOKEN: &str = "VITFREEZE_ALLOW_HTTP_TOKEN";

/// Told of every step of a download: file, bytes that are here, bytes in all.
pub type OnProgress = Arc<dyn Fn(&str, u64, u64) + Send + Sync>;

/// The Hub, or a server that speaks its protocol.
///
/// What is in the cache is used as huggingface_hub does: a file is fetched again only when the server has another version,
/// and when the server cannot be reached the cached version serves. An interrupted download goes on where it stopped, in
/// the same call or in another process. Every fetched file is checked: its length, and the hash that the Hub states
/// (SHA-256 of large files, git's SHA-1 of others).
pub struct Hub {
    endpoint: Url,
    cache: PathBuf,
    token: Option<String>,
    offline: bool,
}

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN` (or the token of `hf auth login`), `HF_HOME`, `HF_HUB_CACHE`;
    /// with `HF_HUB_OFFLINE=1` from the cache alone. `VITFREEZE_ALLOW_HTTP_TOKEN=1` lets the token go over plain HTTP.
    ///
    /// # Errors
    /// An endpoint that is no URL; a token for one that would get it in the clear.
    pub fn from_env() -> Result<Self, Error> {
        let get = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let is_on = |name: &str| {
            let text = get(name).unwrap_or_default().to_lowercase();
            ["1", "true", "yes", "on"].contains(&text.as_str())
        };
        let home = std::env::home_dir().unwrap_or_default();
        let home = match (get("HF_HOME"), get("XDG_CACHE_HOME")) {
            (Some(folder), _) => PathBuf::from(folder),
            (None, Some(caches)) => Path::new(&caches).join("huggingface"),
            (None, None) => home.join(".cache/huggingface"),
        };
        let cache = get("HF_HUB_CACHE").or_else(|| get("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.map_or_else(|| home.join("hub"), PathBuf::from);
        let saved = || {
            let path = get("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
            fs::read_to_string(path).ok()
        };
        let token = match is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => get("HF_TOKEN").or_else(saved),
        };
        let token = token.map(|text| text.trim().to_owned());
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let token = token.as_deref().filter(|text| !text.is_empty());
        let hub = Self::open(&endpoint, &cache, token, is_on("HF_HUB_OFFLINE"))?;
        match is_on(ALLOW_HTTP_TOKEN) {
            true => Ok(hub),
            false => hub.with_a_safe_token(),
        }
    }

    /// Another endpoint, cache and token, whatever the environment says.
    ///
    /// # Errors
    /// An endpoint that is no URL; a token for one that would get it in the clear.
    pub fn new(
        endpoint: &str,
        cache: &Path,
        token: Option<&str>,
        offline: bool,
    ) -> Result<Self, Error> {
        Self::open(endpoint, cache, token, offline)?.with_a_safe_token()
    }

    /// Refuses a token that anyone on the way could read: over plain HTTP to another machine.
    fn with_a_safe_token(self) -> Result<Self, Error> {
        if self.token.is_none() || self.offline || self.endpoint.scheme() == "https" {
            return Ok(self);
        }
        let host = self.endpoint.host_str().unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        let here = host == "localhost" || address.is_ok_and(|a| a.is_loopback());
        match here {
            true => Ok(self),
            false => Err(Error::Hub {
                repo: String::new(),
                reason: format!(
                    "the token (HF_TOKEN, or of 'hf auth login') would go to {host} over plain http, where others can read it; use https \
                     in HF_ENDPOINT, set HF_HUB_DISABLE_IMPLICIT_TOKEN=1 to go without a token, or allow it with {ALLOW_HTTP_TOKEN}=1"
                ),
            }),
        }
    }

    fn open(
        endpoint: &str,
        cache: &Path,
        token: Option<&str>,
        offline: bool,
    ) -> Result<Self, Error> {
        let url = Url::parse(endpoint).ok();
        let url = url.filter(|url| ["http", "https"].contains(&url.scheme()));
        Ok(Self {
            endpoint: url.ok_or_else(|| Error::Hub {
                repo: String::new(),
                reason: format!(
                    "the endpoint (HF_ENDPOINT) '{}' is no URL such as https://huggingface.co",
                    endpoint.escape_debug()
                ),
            })?,
            cache: cache.to_owned(),
            token: token.map(str::to_owned),
            offline,
        })
    }

    /// Fetches what a checkpoint needs and returns the folder that holds it, or the file that `origin` names: config.json
    /// and preprocessor_config.json where there are any, and the weights, in one file or in shards.
    ///
    /// # Errors
    /// [`Error::Hub`]: no such repository or revision, no access, no weights, no connection, a damaged download.
    pub fn fetch(&self, origin: &str, on_progress: OnProgress) -> Result<PathBuf, Error> {
        let repo = Repo::parse(origin)?;
        on_a_thread(|| Fetch::new(self, &repo, &on_progress)?.all())
    }

    /// Uploads the files of `folder` to the model repository `origin` (`hf://org/name`, or with a branch after `@`) in one
    /// commit, and returns its page. The repository is made where there is none, `private` or public.
    ///
    /// # Errors
    /// [`Error::Hub`]: no token, one that may not write there, no such branch, no connection; a build without the feature
    /// `upload`.
    pub fn upload(
        &self,
        folder: &Path,
        origin: &str,
        private: bool,
        on_progress: OnProgress,
    ) -> Result<String, Error> {
        let repo = Repo::parse(origin)?;
        if repo.file.is_some() {
            return Err(repo.error("expected org/name: a folder is uploaded, not a file"));
        }
        if self.offline {
            return Err(repo.error("HF_HUB_OFFLINE is set; unset it to upload"));
        }
        if self.token.is_none() {
            return Err(repo.error("to upload, set HF_TOKEN to a token that may write there"));
        }
        self.send(folder, &repo, private, on_progress)?;
        Ok(repo.page())
    }

    #[cfg(not(feature = "upload"))]
    fn send(&self, _: &Path, repo: &Repo, _: bool, _: OnProgress) -> Result<(), Error> {
        Err(repo.error("built without the feature 'upload'; releases have it"))
    }
}

/// Blocking clients must neither be made nor dropped in an async runtime, which may be the caller's.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let done = scope.spawn(work);
        done.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Fetching the files of one repository.
struct Fetch<'a> {
    repo: &'a Repo,
    /// `None`: offline.
    http: Option<Http>,
    /// Whether the server has answered anything.
    reached: bool,
    /// Why the server is left alone although nobody asked for that.
    trouble: Option<String>,
    cache: Cache,
    /// Of which all files are, once one has been found.
    commit: Option<String>,
    on_progress: &'a OnProgress,
}

impl<'a> Fetch<'a> {
    fn new(hub: &Hub, repo: &'a Repo, on_progress: &'a OnProgress) -> Result<Self, Error> {
        let http = match hub.offline {
            true => None,
            false => {
                Some(Http::new(&hub.endpoint, hub.token.as_deref()).map_err(|e| repo.error(e))?)
            }
        };
        let cache = Cache::new(&hub.cache, repo);
        let cached = cache.commit(&repo.revision);
        Ok(Self {
            commit: cached.filter(|c| http.is_none() || *c == repo.revision),
            repo,
            http,
            reached: false,
            trouble: None,
            cache,
            on_progress,
        })
    }

    /// One file, `None` if the repository (offline: the cache) has none of this name.
    fn file(&mut self, name: &str) -> Result<Option<PathBuf>, Error> {
        let pinned = self.commit.as_deref();
        if let Some(path) = pinned.and_then(|commit| self.cache.find(commit, name)) {
            return Ok(Some(path));
        }
        let Some(http) = &self.http else {
            return Ok(None);
        };
        let revision = pinned.unwrap_or(&self.repo.revision);
        // Serves when there is no connection at all.
        let cached = self
            .cache
            .commit(revision)
            .filter(|commit| !self.reached && !self.cached_weights(commit).is_empty());
        let meta = match (
            http.head(self.repo, revision, name, cached.is_none()),
            cached,
        ) {
            (Err(Refusal::Transient(reason)), Some(commit)) => {
                self.trouble = Some(reason);
                self.http = None;
                self.commit = Some(commit);
                return self.file(name);
            }
            (Err(Refusal::Missing(commit)), _) => {
                self.reached = true;
                self.commit = self.commit.take().or(commit);
                return Ok(None);
            }
            (Err(e), _) => return Err(self.explain(name, e)),
            (Ok(meta), _) => meta,
        };
        self.reached = true;
        let commit = pinned.unwrap_or(&meta.commit).to_owned();
        let found = self.cache.find(&commit, name);
        let path = match found {
            Some(path) => path,
            None => self.content(http, name, &commit, &meta)?,
        };
        self.commit = Some(commit);
        Ok(Some(path))
    }

    /// Fetches content that the cache does not have, and links the file to it.
    fn content(
        &self,
        http: &Http,
        name: &str,
        commit: &str,
        meta: &Meta,
    ) -> Result<PathBuf, Error> {
        let blob = self.cache.blob(&meta.etag);
        let fail = |e: std::io::Error| self.repo.error(format!("{}: {e}", blob.display()));
        let is_there = || fs::metadata(&blob).is_ok_and(|m| m.len() == meta.size);
        let tell = |done| (self.on_progress)(name, done, meta.size);
        if !is_there() {
            let partial = self.cache.blob(&format!("{}.incomplete", meta.etag));
            if let Some(folder) = blob.parent() {
                fs::create_dir_all(folder).map_err(fail)?;
            }
            let others = || tell(fs::metadata(&partial).map_or(0, |m| m.len().min(meta.size)));
            let _lock = self.cache.lock(&meta.etag, others).map_err(fail)?;
            if !is_there() {
                let get = |start| http.get(self.repo, commit, name, start);
                download::download(&partial, meta, get, tell).map_err(|e| self.explain(name, e))?;
                fs::rename(&partial, &blob).map_err(fail)?;
            }
        }
        self.cache.link(commit, name, &meta.etag).map_err(fail)
    }

    fn explain(&self, name: &str, refusal: Refusal) -> Error {
        self.repo.error(match refusal {
            Refusal::Missing(_) => format!("'{name}' has gone"),
            Refusal::Transient(reason) => format!(
                "'{name}': {reason}; check the connection, or use what is cached with HF_HUB_OFFLINE=1"
            ),
            Refusal::Fatal(reason) => format!("'{name}': {reason}"),
        })
    }
}
