//! What can go wrong while a lab is set up. A lab that runs answers its faults on the wire.

use std::io;

use crate::entra::CredentialError;

/// Why a part of the lab could not be made or started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or a socket.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with the path or the address.
        what: String,
        /// What the system answered.
        source: io::Error,
    },
    /// Making a key or a certificate.
    #[error("key or certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// Making a TLS configuration.
    #[error("TLS: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
    /// Signing, or reading a key.
    #[error("signature: {0}")]
    Signature(#[from] jsonwebtoken::errors::Error),
    /// Making the client that fetches issuers' documents.
    #[error("HTTP client: {0}")]
    Http(#[from] reqwest::Error),
    /// A federated identity credential that Entra would not take either.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// A description of a lab that makes no sense.
    #[error("{0}")]
    Config(String),
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// The lab's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;
