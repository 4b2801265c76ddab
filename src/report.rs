//! What went wrong, in the one form that callers, logs, `status` and the commands show.

use std::{borrow::Cow, time::Duration};

use serde::Serialize;

/// A fault with its cause and its cure. Holds nothing that a caller may not see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Stable and machine-readable: kebab-case, or Entra's own `AADSTS…` code.
    pub code: Cow<'static, str>,
    /// What happened, in a few words that are the same every time.
    pub title: Cow<'static, str>,
    /// What happened this time.
    pub detail: String,
    /// What to change.
    pub fix: String,
    /// Whether asking again, with nothing changed, can help.
    pub retryable: bool,
    /// How long to wait before asking again, where that is known.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
    /// Entra's correlation id, to find the attempt in its sign-in log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
}

impl Report {
    /// A fault that only a change can cure.
    pub fn permanent(
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            code: Cow::Borrowed(code),
            title: Cow::Borrowed(title),
            detail: detail.into(),
            fix: fix.into(),
            retryable: false,
            retry_after: None,
            correlation_id: None,
        }
    }

    /// A fault that may pass by itself.
    pub fn transient(
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            retryable: true,
            ..Self::permanent(code, title, detail, fix)
        }
    }

    /// The code as a label of metrics: only codes that are written in the program, for whoever
    /// answers as Entra must not be able to make up any number of labels.
    pub fn label(&self) -> &'static str {
        match self.code {
            Cow::Borrowed(code) => code,
            Cow::Owned(_) => "AADSTS-other",
        }
    }

    /// Whether one of the daemon's own limits was met: its code begins with `limit-`.
    pub fn is_limit(&self) -> bool {
        self.code.starts_with("limit-")
    }
}
