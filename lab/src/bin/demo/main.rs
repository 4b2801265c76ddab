//! The main job in a dozen lines: the real daemon between the lab's Workload API and Entra, every
//! line an event that happened and was checked.
//!
//! `stage` sets it up, `story` makes it happen, `teller` prints it, `hold` keeps it up to be tried.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use lab::daemon;
use tokio::signal::unix::{SignalKind, signal};

mod ask;
mod hold;
mod stage;
mod story;
mod teller;

use stage::Stage;
use teller::Teller;

/// Runs the main job of spiffe-entra on stand-ins for SPIRE and Entra, and tells what happens.
#[derive(Debug, Parser)]
struct Options {
    /// Keep everything up afterwards, and print commands to try.
    #[arg(long)]
    hold: bool,
    /// The daemon [default: `spiffe-entra` beside this program].
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// Why the story does not end well.
#[derive(Debug, thiserror::Error)]
enum Mishap {
    #[error(transparent)]
    Lab(#[from] lab::Error),
    #[error(transparent)]
    Daemon(#[from] daemon::DaemonError),
    #[error(transparent)]
    Bare(#[from] lab::bare::BareError),
    #[error("the terminal: {0}")]
    Output(#[from] std::io::Error),
    /// Something is not as it is to be told.
    #[error("not as it should be: {0}")]
    Untrue(String),
    #[error("interrupted")]
    Interrupted,
}

fn main() -> ExitCode {
    if let Some(code) = daemon::enter_child().or_else(ask::enter) {
        return code;
    }
    let options = Options::parse();
    let teller = Teller::new();
    match perform(options, &teller) {
        Ok(()) => ExitCode::SUCCESS,
        Err(mishap) => {
            teller.mishap(&mishap.to_string());
            ExitCode::FAILURE
        }
    }
}

// The daemon must be started by the main thread: it is killed when the thread that started it ends.
#[tokio::main]
async fn perform(options: Options, teller: &Teller) -> Result<(), Mishap> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let story = async {
        let program = match options.program {
            Some(program) => program,
            None => daemon::beside_us("spiffe-entra")?,
        };
        let mut stage = Stage::set(&program, teller).await?;
        story::tell(&mut stage, teller).await?;
        if options.hold {
            hold::explain(&stage, &program, teller)?;
            // Until a signal comes.
            return std::future::pending().await;
        }
        let took = stage.daemon.stop().await?;
        let text = format!(
            "told to stop, the daemon ended with 0 after {}",
            teller::time(took)
        );
        teller.line("end", &text)?;
        Ok(())
    };
    // Whatever is dropped half way kills the daemon on its way out.
    let outcome = tokio::select! {
        outcome = story => outcome,
        _ = interrupt.recv() => Err(Mishap::Interrupted),
        _ = terminate.recv() => Err(Mishap::Interrupted),
    };
    match outcome {
        // Ctrl-C is how it is meant to end then.
        Err(Mishap::Interrupted) if options.hold => Ok(()),
        other => other,
    }
}

/// A fact that the story tells.
fn check(holds: bool, fact: impl FnOnce() -> String) -> Result<(), Mishap> {
    if holds {
        Ok(())
    } else {
        Err(Mishap::Untrue(fact()))
    }
}
