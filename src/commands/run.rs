//! `spiffe-entra run`: the daemon.

use std::{os::unix::net::UnixListener, path::PathBuf};

use super::Failure;
use crate::{
    app::{self, ConfigSource, RunError, RunOptions},
    cli::Run,
    harden, telemetry,
};

pub(super) async fn run(
    args: Run,
    config: PathBuf,
    inherited: Vec<UnixListener>,
) -> Result<(), Failure> {
    telemetry::init(args.log_format, &args.log).map_err(|e| Failure::Usage(e.to_string()))?;
    harden::process();
    harden::raise_file_limit();
    let options = RunOptions {
        config: if args.from_env {
            ConfigSource::Environment
        } else {
            ConfigSource::File(config)
        },
        strict: args.strict,
        inherited,
    };
    app::run(options).await.map_err(|error| match error {
        RunError::Failed(text) => Failure::Failed(text),
        wrong => super::mistaken(&wrong.to_string()),
    })
}
