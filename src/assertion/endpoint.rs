//! Where a Workload API is.

use std::{fmt, net::SocketAddr, path::PathBuf};

/// A Workload API address (SPIFFE Workload Endpoint, section 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `unix:///path`
    Unix(PathBuf),
    /// `tcp://ip:port`
    Tcp(SocketAddr),
}

/// As the address that it is configured by.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}
