//! `spiffe-entra health`: silent, for health checks. `status` says what is wrong.

use std::path::Path;

use super::Failure;
use crate::{cli::Health, client::Client};

pub(super) async fn run(args: &Health, config: &Path) -> Result<(), Failure> {
    let client = Client::new(args.daemon.socket(config));
    match client.get("/readyz", &[]).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::FailedSilently),
    }
}
