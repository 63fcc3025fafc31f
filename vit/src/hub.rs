//! `hf://org/name[@revision]`: checkpoints from the Hugging Face Hub, into its usual cache; and the files of datasets.
mod dataset;
mod repo;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use hf_hub::progress::{DownloadEvent, Progress, ProgressEvent, ProgressHandler};
use hf_hub::{HFClientBuilder, HFClientSync, HFError, HFRepositorySync, RepoType};
use sha2::{Digest, Sha256};

use crate::Error;
use repo::{line, Repo};

/// Silence on a connection after which it is given up.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Weights, the first that a repository has.
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// Told of every step of a download: file, bytes done, bytes in all (0: unknown).
pub type OnProgress = Arc<dyn Fn(&str, u64, u64) + Send + Sync>;

/// The Hub, or a server that speaks its protocol.
///
/// What is in the cache is used as huggingface_hub does: a file is fetched again only when the server has another version.
/// Every fetched file is checked: its length, and for large files (Git LFS) its SHA-256.
pub struct Hub {
    client: HFClientSync,
    cache: PathBuf,
    offline: bool,
}

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN` (or the token of `hf auth login`), `HF_HOME`, `HF_HUB_CACHE`;
    /// with `HF_HUB_OFFLINE=1` from the cache alone.
    ///
    /// # Errors
    /// An endpoint that is no URL.
    pub fn from_env() -> Result<Self, Error> {
        let offline = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
        let offline = ["1", "true", "yes", "on"].contains(&offline.to_lowercase().as_str());
        Self::build(HFClientBuilder::new(), offline)
    }

    /// Another endpoint, cache and token, whatever the environment says.
    ///
    /// # Errors
    /// An endpoint that is no URL.
    pub fn new(
        endpoint: &str,
        cache: &Path,
        token: Option<&str>,
        offline: bool,
    ) -> Result<Self, Error> {
        let builder = HFClientBuilder::new().endpoint(endpoint).cache_dir(cache);
        let builder = match token {
            Some(token) => builder.token(token),
            None => builder,
        };
        Self::build(builder, offline)
    }

    fn build(builder: HFClientBuilder, offline: bool) -> Result<Self, Error> {
        let fail = |e: &dyn std::fmt::Display| Error::Hub {
            repo: "".into(),
            reason: e.to_string(),
        };
        // hf-hub's own client waits for ever on a connection that has gone silent.
        let http = reqwest::Client::builder()
            .connect_timeout(TIMEOUT)
            .read_timeout(TIMEOUT)
            .user_agent(concat!("candle-vit/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| fail(&e))?;
        let client = builder.client(http).build().map_err(|e| fail(&e))?;
        Ok(Self {
            cache: client.cache_dir().to_owned(),
            client: HFClientSync::from_inner(client).map_err(|e| fail(&e))?,
            offline,
        })
    }

    /// Fetches what a checkpoint needs and returns the folder that holds it: config.json and preprocessor_config.json
    /// where there are any, and the weights, in one file or in shards.
    ///
    /// # Errors
    /// [`Error::Hub`]: no such repository or revision, no access, no weights, no connection, a damaged download.
    pub fn fetch(&self, origin: &str, on_progress: OnProgress) -> Result<PathBuf, Error> {
        let mut repo = Repo::parse(origin)?;
        let mut found = false;
        for name in ["config.json", "preprocessor_config.json"] {
            found |= self.file(&mut repo, name, &on_progress)?.is_some();
        }
        for name in WEIGHTS {
            let Some(weights) = self.file(&mut repo, name, &on_progress)? else {
                continue;
            };
            if name.ends_with(".index.json") {
                for shard in crate::checkpoint::shard_names(&weights)? {
                    if self.file(&mut repo, &shard, &on_progress)?.is_none() {
                        return Err(
                            repo.error(format!("{name} names '{shard}', which is not there"))
                        );
                    }
                }
            }
            return Ok(weights.parent().map(Path::to_owned).unwrap_or_default());
        }
        Err(repo.error(match self.offline {
            true => "not in the cache, and HF_HUB_OFFLINE is set; unset it to download".into(),
            false if found => format!("no weights; expected one of {}", WEIGHTS.join(", ")),
            // hf-hub does not tell a missing repository from a missing file.
            false => format!(
                "no such repository or revision, or none of {} in it; check the name and the part after @, and for a \
                 private repository set HF_TOKEN",
                WEIGHTS.join(", ")
            ),
        }))
    }

    fn download<T: RepoType>(
        &self,
        handle: &HFRepositorySync<T>,
        revision: &str,
        name: &str,
        force: bool,
        watch: &Arc<Watch>,
    ) -> Result<PathBuf, HFError> {
        handle
            .download_file()
            .filename(name)
            .revision(revision)
            .local_files_only(self.offline)
            .force_download(force)
            .progress(Progress::new(Shared(watch.clone())))
            .send()
    }

    /// One file, `None` if the repository (offline: the cache) has none of this name. From then on the repository's
    /// revision is the commit that the file is of, so that all files are of one.
    fn file(
        &self,
        repo: &mut Repo,
        name: &str,
        on_progress: &OnProgress,
    ) -> Result<Option<PathBuf>, Error> {
        let mut problem = String::new();
        // A second time from scratch when what came is damaged.
        for force in [false, true] {
            let watch = Arc::new(Watch {
                name: name.to_owned(),
                size: AtomicU64::new(0),
                moved: AtomicBool::new(false),
                on_progress: on_progress.clone(),
            });
            let found = match repo.dataset {
                false => {
                    let handle = self.client.model(&repo.owner, &repo.name);
                    self.download(&handle, &repo.revision, name, force, &watch)
                }
                true => {
                    let handle = self.client.dataset(&repo.owner, &repo.name);
                    self.download(&handle, &repo.revision, name, force, &watch)
                }
            };
            let path = match found {
                Ok(path) => path,
                Err(HFError::EntryNotFound { .. } | HFError::LocalEntryNotFound { .. }) => {
                    return Ok(None)
                }
                Err(e) if force => return Err(repo.error(format!("{problem}; then: {}", line(&e)))),
                Err(e) => return Err(repo.error(repo.explain(&e))),
            };
            // .../snapshots/COMMIT/NAME
            let snapshot = path.ancestors().nth(Path::new(name).components().count());
            if let Some(commit) = snapshot.and_then(Path::file_name) {
                repo.revision = commit.to_string_lossy().into_owned();
            }
            if !watch.moved.load(Ordering::Relaxed) {
                return Ok(Some(path));
            }
            match check(&path, watch.size.load(Ordering::Relaxed)) {
                Ok(()) => return Ok(Some(path)),
                Err(reason) => {
                    // The cache must not keep it: the link, and the blob that it leads to.
                    if let Ok(blob) = fs::canonicalize(&path) {
                        let _ = fs::remove_file(blob);
                    }
                    let _ = fs::remove_file(&path);
                    problem = format!("'{name}' {reason}");
                }
            }
        }
        Err(repo.error(format!("{problem}, twice; try again later")))
    }
}

/// Length, and SHA-256 where the cache's blob is named by it.
fn check(path: &Path, size: u64) -> Result<(), String> {
    let io = |e: std::io::Error| format!("cannot be read: {e}");
    let blob = fs::canonicalize(path).map_err(io)?;
    let length = fs::metadata(&blob).map_err(io)?.len();
    if size > 0 && length != size {
        return Err(format!("came with {length} of {size} bytes"));
    }
    let name = blob.file_name().unwrap_or_default().to_string_lossy();
    if name.len() != 64 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut hash = Sha256::new();
    let mut file = File::open(&blob).map_err(io)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    match hex.eq_ignore_ascii_case(&name) {
        true => Ok(()),
        false => Err("came with another SHA-256 than the Hub states".into()),
    }
}

/// Passes progress on, and remembers whether bytes came and how many there should be.
struct Watch {
    name: String,
    size: AtomicU64,
    moved: AtomicBool,
    on_progress: OnProgress,
}

struct Shared(Arc<Watch>);

impl ProgressHandler for Shared {
    fn on_progress(&self, event: &ProgressEvent) {
        let watch = &self.0;
        let told = |done: u64| {
            watch.moved.store(true, Ordering::Relaxed);
            (watch.on_progress)(&watch.name, done, watch.size.load(Ordering::Relaxed));
        };
        match event {
            ProgressEvent::Download(DownloadEvent::Start { total_bytes, .. }) => {
                watch.size.store(*total_bytes, Ordering::Relaxed);
            }
            ProgressEvent::Download(DownloadEvent::Progress { files }) => {
                for file in files {
                    if file.status != hf_hub::progress::FileStatus::Complete {
                        told(file.bytes_completed);
                    }
                }
            }
            ProgressEvent::Download(DownloadEvent::AggregateProgress {
                bytes_completed, ..
            }) => told(*bytes_completed),
            _ => {}
        }
    }
}
