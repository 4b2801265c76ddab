//! The `spiffe-entra` program: parse, start a runtime, dispatch, answer with an exit code.

use std::{ffi::OsString, io::Write, process::ExitCode};

use clap::Parser;
use spiffe_entra::{
    cli::{self, Cli, Command},
    commands::{self, Failure},
    server::activation,
    telemetry,
};

fn main() -> ExitCode {
    telemetry::catch_panics();
    // Before there are threads: it edits the environment.
    let inherited = activation::inherited();
    let args: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => match cli::complaint(&error, &args) {
            Some(complaint) => return end(&Failure::Usage(complaint)),
            // Help and version.
            None => error.exit(),
        },
    };
    let outcome = runtime(&cli.command).and_then(|runtime| {
        let inherited = inherited.map_err(|error| {
            Failure::Failed(format!("cannot take over the sockets of systemd: {error}"))
        })?;
        let outcome = runtime.block_on(commands::dispatch(cli, inherited));
        // Nothing of value is left on it: a DNS look-up that hangs must not hold the exit up.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => end(&failure),
    }
}

fn end(failure: &Failure) -> ExitCode {
    if let Some(message) = failure.message() {
        // Where stderr is closed, the exit code is what is left to say it with.
        let _ = writeln!(std::io::stderr(), "spiffe-entra: {message}");
    }
    failure.exit_code()
}

fn runtime(command: &Command) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = match command {
        Command::Run(_) => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            // Tokens come from memory: four workers saturate the socket, and each costs memory.
            builder.worker_threads(cores.min(4)).max_blocking_threads(8);
            builder
        }
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    builder
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start: {error}")))
}
