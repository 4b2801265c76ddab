//! Measures the product beside the limit, in one run, and says which goals are met.
//!
//! | module | measures |
//! |---|---|
//! | `warm` | requests answered from memory, beside a bare hyper server |
//! | `memory` | resident memory, with one identity and for each token |
//! | `start` | from the start to the first answer |
//! | `cold` | what is added to the time that SPIRE and Entra take |
//!
//! A goal that is missed is no failure: the machine may be busy. What cannot be measured is one.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "statistics"
)]

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use lab::daemon;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

mod bare_server;
mod cold;
mod load;
mod memory;
mod proc;
mod setup;
mod start;
mod table;
mod warm;

use table::Table;

/// Measures spiffe-entra beside what is possible.
#[derive(Debug, Parser)]
struct Options {
    /// Also write everything that was measured to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The daemon [default: `spiffe-entra` beside this program].
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Measure these only.
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Rounds of warm requests for each number of connections.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long a round is.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Warm,
    Memory,
    Start,
    Cold,
}

/// Why something cannot be measured.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Lab(#[from] lab::Error),
    #[error(transparent)]
    Daemon(#[from] daemon::DaemonError),
    #[error(transparent)]
    Bare(#[from] lab::bare::BareError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Odd(String),
    #[error("interrupted")]
    Interrupted,
}

impl Options {
    /// How many slices of this length make a round.
    fn slices(&self, slice: Duration) -> usize {
        (self.seconds / slice.as_secs_f64()).ceil() as usize
    }
}

/// Where the server and the load run.
#[derive(Clone, Copy, Debug)]
struct Cores {
    server: usize,
    load: usize,
}

fn main() -> ExitCode {
    if let Some(code) = daemon::enter_child().or_else(bare_server::enter) {
        return code;
    }
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // The exit code says it too.
            let _ = writeln!(io::stderr(), "bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

// Daemons must be started by the main thread: they are killed when the thread that started them ends.
#[tokio::main]
async fn run(options: &Options) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // Whatever is dropped half way ends its processes and removes its folders.
    tokio::select! {
        outcome = measure(options) => outcome,
        _ = interrupt.recv() => Err(Failure::Interrupted),
        _ = terminate.recv() => Err(Failure::Interrupted),
    }
}

async fn measure(options: &Options) -> Result<(), Failure> {
    let program = match &options.program {
        Some(program) => program.clone(),
        None => daemon::beside_us("spiffe-entra")?,
    };
    let cores = cores()?;
    let mut table = Table::default();
    for part in [Part::Start, Part::Memory, Part::Cold, Part::Warm] {
        if !options.only.is_empty() && !options.only.contains(&part) {
            continue;
        }
        writeln!(io::stderr(), "bench: {part:?} …")?;
        match part {
            Part::Start => start::measure(&program, &mut table).await?,
            Part::Memory => memory::measure(&program, &mut table).await?,
            Part::Cold => cold::measure(&program, &mut table).await?,
            Part::Warm => warm::measure(options, &program, cores, &mut table).await?,
        }
    }
    write!(io::stdout(), "{table}")?;
    if let Some(file) = &options.json {
        fs::write(file, format!("{:#}\n", table.to_json()))?;
    }
    Ok(())
}

/// The first two that we may use; the same one twice where there is only one.
fn cores() -> Result<Cores, Failure> {
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(io::Error::from)?;
    let mut ours = (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false));
    let server = ours
        .next()
        .ok_or_else(|| Failure::Odd("no core".to_owned()))?;
    let load = ours.next();
    if load.is_none() {
        writeln!(
            io::stderr(),
            "bench: one core only: server and load share it"
        )?;
    }
    Ok(Cores {
        server,
        load: load.unwrap_or(server),
    })
}
