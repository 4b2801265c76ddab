//! `spiffe-entra refresh`

use std::path::Path;

use super::Failure;
use crate::{cli::Refresh, client::Client};

pub(super) async fn run(args: &Refresh, config: &Path) -> Result<(), Failure> {
    Client::new(args.daemon.socket(config))
        .post("/v1/refresh", &[("identity", &args.identity)])
        .await?;
    Ok(())
}
