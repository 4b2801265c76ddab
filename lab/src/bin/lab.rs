//! `lab serve`: a lab for humans and for the demo, from a TOML file.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::Result;
use lab::file::LabFile;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(
    version,
    about = "A fake Entra, an OIDC issuer and a SPIFFE Workload API to try things on"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves what a file describes, until SIGTERM or SIGINT. Says where in lines of JSON.
    Serve {
        /// The description; lab.example.toml explains it.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
    let Command::Serve { config } = Cli::parse().command;
    match serve(&config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where stderr is closed, the exit code is what is left to say it with.
            let _ = writeln!(io::stderr(), "lab: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: &Path) -> Result<()> {
    let signal = |kind| {
        let what = "listen for signals".to_owned();
        signal(kind).map_err(|source| lab::Error::Io { what, source })
    };
    // Before anything is started, so that no signal is missed.
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let served = LabFile::read(config)?.start().await?;
    let mut out = io::stdout().lock();
    for line in served.ready() {
        let written = writeln!(out, "{line}").and_then(|()| out.flush());
        written.map_err(|source| lab::Error::Io {
            what: "standard output".to_owned(),
            source,
        })?;
    }
    drop(out);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    served.stop().await;
    Ok(())
}
