//! Uploading a folder that [`crate::Pretrained::save`] wrote, by the crate hf-hub.
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use hf_hub::progress::{Progress, ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::{HFClientBuilder, HFClientSync, HFError, RepoTypeModel};

use super::http::{line, TIMEOUT};
use super::{on_a_thread, tls, Hub, OnProgress, Repo};
use crate::Error;

impl Hub {
    /// Uploads the files of a folder in one commit.
    pub(super) fn send(
        &self,
        folder: &Path,
        repo: &Repo,
        private: bool,
        on_progress: OnProgress,
    ) -> Result<(), Error> {
        on_a_thread(|| {
            let client = self.client().map_err(|e| repo.error(line(&e)))?;
            let id = format!("{}/{}", repo.owner, repo.name);
            let create = client.create_repository().repo_id(&id);
            let created = create.repo_type(RepoTypeModel).private(private);
            let created = created.exist_ok(true).send();
            created.map_err(|e| explain(repo, &e))?;
            let progress = Progress::new(Told {
                total: AtomicU64::new(0),
                on_progress,
            });
            let model = client.model(&repo.owner, &repo.name);
            let upload = model.upload_folder().folder_path(folder);
            let upload = upload.revision(repo.revision.clone()).progress(progress);
            let version = env!("CARGO_PKG_VERSION");
            let upload = upload.commit_message(format!("Upload by vitfreeze {version}"));
            upload.send().map_err(|e| explain(repo, &e))?;
            Ok(())
        })
    }

    fn client(&self) -> Result<HFClientSync, HFError> {
        let builder = HFClientBuilder::new()
            .endpoint(self.endpoint.as_str())
            .cache_dir(&self.cache);
        let builder = match &self.token {
            Some(token) => builder.token(token),
            None => builder,
        };
        tls::provide();
        // Its own waits for ever on a connection that has gone silent.
        let http = reqwest::Client::builder()
            .connect_timeout(TIMEOUT)
            .read_timeout(TIMEOUT)
            .user_agent(concat!("candle-vit/", env!("CARGO_PKG_VERSION")))
            .build()?;
        builder.client(http).build_sync()
    }
}

/// What hf-hub's error means, and what to do.
fn explain(repo: &Repo, error: &HFError) -> Error {
    // hf-hub takes any 404 for a missing revision.
    let no_revision = |code: Option<&str>| code == Some("RevisionNotFound");
    let denied = || {
        format!(
            "{}; set HF_TOKEN to a token that may write there",
            line(error)
        )
    };
    let nowhere = || format!("no such {}; check the name", repo.kind());
    repo.error(match error {
        HFError::AuthRequired { .. } | HFError::Forbidden { .. } => denied(),
        HFError::Http { context } if matches!(context.status.as_u16(), 401 | 403) => denied(),
        HFError::RepoNotFound { .. } => nowhere(),
        HFError::RevisionNotFound {
            context: Some(context),
            ..
        } if !no_revision(context.error_code.as_deref()) => nowhere(),
        HFError::RevisionNotFound { .. } => format!("{}; check the part after @", line(error)),
        HFError::Request { .. } => format!("{}; check the connection", line(error)),
        _ => line(error),
    })
}

/// Passes hf-hub's events on.
struct Told {
    total: AtomicU64,
    on_progress: OnProgress,
}

impl ProgressHandler for Told {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Upload(event) = event else {
            return;
        };
        if let UploadEvent::Start { total_bytes, .. } = event {
            self.total.store(*total_bytes, Ordering::Relaxed);
        }
        let total = self.total.load(Ordering::Relaxed);
        let done = match event {
            UploadEvent::Progress {
                bytes_completed, ..
            } => *bytes_completed,
            UploadEvent::Start { .. } => 0,
            UploadEvent::Committing | UploadEvent::Complete => total,
        };
        (self.on_progress)("upload", done.min(total), total);
    }
}
