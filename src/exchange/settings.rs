//! How Entra is reached.

use std::{fmt, path::PathBuf};

use url::Url;

/// How Entra is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// CA certificates in PEM, added to the system's or in place of them.
    pub ca_file: Option<PathBuf>,
    /// Whether `ca_file` stands alone.
    pub ca_only: bool,
    /// An explicit proxy; the usual variables are honoured without one.
    pub proxy: Option<Url>,
    /// Whether an `http://` authority on loopback is acceptable (`allow_http_loopback`).
    pub allow_http_loopback: bool,
}

impl Settings {
    /// The proxy as it may be shown: without its user and password.
    pub fn shown_proxy(&self) -> Option<Url> {
        self.proxy.as_ref().map(without_credentials)
    }
}

/// Without the proxy's password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proxy = self.shown_proxy();
        f.debug_struct("Settings")
            .field("ca_file", &self.ca_file)
            .field("ca_only", &self.ca_only)
            .field("proxy", &proxy.as_ref().map(Url::as_str))
            .field("allow_http_loopback", &self.allow_http_loopback)
            .finish()
    }
}

fn without_credentials(url: &Url) -> Url {
    let mut url = url.clone();
    // Both fail for URLs that cannot have credentials, and then there are none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_password_is_not_shown() {
        let settings = Settings {
            ca_file: None,
            ca_only: false,
            proxy: Some("http://user:hunter2@proxy:8080".parse().unwrap()),
            allow_http_loopback: false,
        };
        let shown = format!("{settings:?}");
        assert!(
            shown.contains("http://proxy:8080/") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}
