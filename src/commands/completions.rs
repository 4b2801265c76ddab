//! `spiffe-entra completions`

use clap::CommandFactory;

use super::{Failure, print};
use crate::cli::{Cli, Completions};

pub(super) fn run(args: &Completions) -> Result<(), Failure> {
    // Through memory: the generator panics where its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "spiffe-entra", &mut script);
    print(&script)
}
