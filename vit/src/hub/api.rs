//! hf-hub's client, which knows the Hub's API: lists of files, uploads.
//!
//! It cannot continue a download and checks no hash, so bytes come by [`super::download`].
use hf_hub::{HFClientBuilder, HFClientSync, HFError};

use super::http::{line, TIMEOUT};
use super::{Hub, Repo};
use crate::Error;

impl Hub {
    pub(super) fn client(&self) -> Result<HFClientSync, HFError> {
        let builder = HFClientBuilder::new()
            .endpoint(self.endpoint.as_str())
            .cache_dir(&self.cache);
        let builder = match &self.token {
            Some(token) => builder.token(token),
            None => builder,
        };
        // Its own waits for ever on a connection that has gone silent.
        let http = reqwest::Client::builder()
            .connect_timeout(TIMEOUT)
            .read_timeout(TIMEOUT)
            .user_agent(concat!("candle-vit/", env!("CARGO_PKG_VERSION")))
            .build()?;
        builder.client(http).build_sync()
    }
}

impl Repo {
    /// What hf-hub's error means, and what to do.
    pub(super) fn explain(&self, error: &HFError) -> Error {
        // hf-hub takes any 404 for a missing revision.
        let no_revision = |code: Option<&str>| code == Some("RevisionNotFound");
        self.error(match error {
            HFError::AuthRequired { .. } | HFError::Forbidden { .. } => self.denied(error),
            HFError::Http { context } if matches!(context.status.as_u16(), 401 | 403) => {
                self.denied(error)
            }
            HFError::RepoNotFound { .. } => self.nowhere(),
            HFError::RevisionNotFound {
                context: Some(context),
                ..
            } if !no_revision(context.error_code.as_deref()) => self.nowhere(),
            HFError::RevisionNotFound { .. } => {
                format!("{}; check the part after @", line(error))
            }
            HFError::Request { .. } => format!(
                "{}; check the connection, or use what is cached with HF_HUB_OFFLINE=1",
                line(error)
            ),
            _ => line(error),
        })
    }

    fn nowhere(&self) -> String {
        let kind = if self.dataset {
            "dataset"
        } else {
            "repository"
        };
        format!("no such {kind}; check the name, and for a private one set HF_TOKEN")
    }

    /// Datasets such as ImageNet are given to those who accept their terms. Of models, only uploads come here.
    fn denied(&self, error: &HFError) -> String {
        if !self.dataset {
            return format!(
                "{}; set HF_TOKEN to a token that may write there",
                line(error)
            );
        }
        format!(
            "{}; if it is gated, accept the terms on {}, then set HF_TOKEN to a token of yours; if there is no such dataset, \
             check the name",
            line(error),
            self.page()
        )
    }
}
