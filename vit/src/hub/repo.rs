//! A repository of the Hub, and what to do when it does not answer as hoped.
use hf_hub::HFError;

use crate::Error;

/// The message and its causes on one line.
pub(super) fn line(error: &HFError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text += &format!(": {cause_text}");
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}

pub(super) struct Repo {
    pub dataset: bool,
    pub owner: String,
    pub name: String,
    pub revision: String,
    pub origin: String,
}

impl Repo {
    pub fn parse(origin: &str) -> Result<Self, Error> {
        let rest = origin.strip_prefix("hf://").unwrap_or(origin);
        let (path, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let plain = |part: &str| {
            let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(legal)
        };
        let parts = path.split_once('/');
        let parts =
            parts.filter(|(owner, name)| plain(owner) && plain(name) && !revision.is_empty());
        let Some((owner, name)) = parts else {
            return Err(Error::Hub {
                repo: rest.to_owned(),
                reason: "expected hf://org/name or hf://org/name@revision".into(),
            });
        };
        Ok(Self {
            dataset: false,
            owner: owner.to_owned(),
            name: name.to_owned(),
            revision: revision.to_owned(),
            origin: rest.to_owned(),
        })
    }

    /// What to do about an error.
    pub fn explain(&self, error: &HFError) -> String {
        let denied = "; check the name, and for a private or gated repository set HF_TOKEN";
        let advice = match error {
            HFError::AuthRequired { .. } | HFError::Forbidden { .. } if self.dataset => {
                return self.denied(error)
            }
            // hf-hub takes any 404 for a missing revision.
            HFError::RevisionNotFound {
                context: Some(context),
                ..
            } if self.dataset && context.error_code.as_deref() != Some("RevisionNotFound") => {
                return "no such dataset; check the name, and for a private one set HF_TOKEN".into()
            }
            HFError::Http { context } if matches!(context.status.as_u16(), 401 | 403) => {
                match self.dataset {
                    true => return self.denied(error),
                    false => denied,
                }
            }
            HFError::RepoNotFound { .. }
            | HFError::AuthRequired { .. }
            | HFError::Forbidden { .. } => denied,
            HFError::RevisionNotFound { .. } => "; check the part after @",
            HFError::Request { .. } => {
                "; check the connection, or use what is cached with HF_HUB_OFFLINE=1"
            }
            _ => "",
        };
        format!("{}{advice}", line(error))
    }

    /// Datasets such as ImageNet are given to those who accept their terms.
    fn denied(&self, error: &HFError) -> String {
        format!(
            "{}; if it is gated, accept the terms on https://huggingface.co/datasets/{}/{}, then set HF_TOKEN to a token of \
             yours; if there is no such dataset, check the name",
            line(error),
            self.owner,
            self.name
        )
    }

    pub fn error(&self, reason: String) -> Error {
        Error::Hub {
            repo: self.origin.clone(),
            reason,
        }
    }
}
