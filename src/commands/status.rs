//! `spiffe-entra status`

use std::path::Path;

use super::{Failure, print};
use crate::{cli::Status, client::Client};

pub(super) async fn run(args: &Status, config: &Path) -> Result<(), Failure> {
    let answer = Client::new(args.daemon.socket(config))
        .get("/v1/status", &[])
        .await?;
    print(&answer)
}
