//! `spiffe-entra refresh`

use super::{Failure, client};
use crate::cli::{ConfigFile, Refresh};

pub(super) async fn run(args: &Refresh, config: &ConfigFile) -> Result<(), Failure> {
    client(&args.daemon, config)?
        .post("/v1/refresh", &[("identity", &args.identity)])
        .await?;
    Ok(())
}
