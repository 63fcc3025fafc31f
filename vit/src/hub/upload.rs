//! Uploading a folder that [`crate::Pretrained::save`] wrote.
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use hf_hub::progress::{Progress, ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::RepoTypeModel;

use super::http::line;
use super::{on_a_thread, Hub, OnProgress, Repo};
use crate::Error;

impl Hub {
    /// Uploads the files of `folder` to the model repository `origin` (`hf://org/name`, or with a branch after `@`) in one
    /// commit, and returns its page. The repository is made where there is none, `private` or public.
    ///
    /// # Errors
    /// [`Error::Hub`]: no token, one that may not write there, no such branch, no connection.
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
        on_a_thread(|| {
            let client = self.client().map_err(|e| repo.error(line(&e)))?;
            let id = format!("{}/{}", repo.owner, repo.name);
            let create = client.create_repository().repo_id(&id);
            let created = create.repo_type(RepoTypeModel).private(private);
            let created = created.exist_ok(true).send();
            created.map_err(|e| repo.explain(&e))?;
            let progress = Progress::new(Told {
                total: AtomicU64::new(0),
                on_progress,
            });
            let model = client.model(&repo.owner, &repo.name);
            let upload = model.upload_folder().folder_path(folder);
            let upload = upload.revision(repo.revision.clone()).progress(progress);
            let version = env!("CARGO_PKG_VERSION");
            let upload = upload.commit_message(format!("Upload by vitfreeze {version}"));
            upload.send().map_err(|e| repo.explain(&e))?;
            Ok(repo.page())
        })
    }
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
