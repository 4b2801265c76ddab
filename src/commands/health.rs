//! `spiffe-entra health`: silent, for health checks. `status` says what is wrong.

use super::{Failure, client};
use crate::cli::{ConfigFile, Health};

pub(super) async fn run(args: &Health, config: &ConfigFile) -> Result<(), Failure> {
    let client = client(&args.daemon, config)?;
    match client.get("/readyz", &[]).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::FailedSilently),
    }
}
