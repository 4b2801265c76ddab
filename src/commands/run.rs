//! `spiffe-entra run`: the daemon.

use std::path::PathBuf;

use super::Failure;
use crate::{
    app::{self, ConfigSource, RunError, RunOptions},
    cli::Run,
    harden, telemetry,
};

pub(super) async fn run(args: Run, config: PathBuf) -> Result<(), Failure> {
    telemetry::init(args.log_format, &args.log).map_err(|e| Failure::Usage(e.to_string()))?;
    harden::process();
    let options = RunOptions {
        config: if args.from_env {
            ConfigSource::Environment
        } else {
            ConfigSource::File(config)
        },
        strict: args.strict,
    };
    app::run(options).await.map_err(|error| match error {
        RunError::Config(text) => Failure::Usage(text),
        RunError::Failed(text) => Failure::Failed(text),
    })
}
