//! Wires the stages into the daemon; the only module that imports everything.

use std::path::PathBuf;

/// What `spiffe-entra run` was told.
#[derive(Debug)]
pub struct RunOptions {
    /// Where the configuration comes from.
    pub config: ConfigSource,
    /// Whether one mistake anywhere keeps the daemon from starting.
    pub strict: bool,
}

/// Where the configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// A file, read again on reload.
    File(PathBuf),
    /// The environment.
    Environment,
}

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What the operator wrote is wrong: exit code 2.
    #[error("{0}")]
    Config(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Runs the daemon until it is told to stop.
pub async fn run(options: RunOptions) -> Result<(), RunError> {
    Err(RunError::Failed(format!(
        "the daemon is not wired yet: {options:?}"
    )))
}
