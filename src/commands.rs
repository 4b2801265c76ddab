//! The subcommands: each asks or reads, renders, and says how it ended.
//!
//! Exit codes are decided here and nowhere else.

mod check;
mod completions;
mod health;
mod refresh;
mod run;
mod status;
mod table;
mod token;

use std::{
    io::{self, Write},
    os::unix::net::UnixListener,
    path::Path,
    process::ExitCode,
};

use crate::{
    cli::{Check, CheckOutput, Cli, Command, ConfigFile, Daemon},
    client::{Client, ClientError},
    config,
};

/// Does what the command line says.
///
/// `inherited` are the sockets that systemd handed over, for `run`.
pub async fn dispatch(cli: Cli, inherited: Vec<UnixListener>) -> Result<(), Failure> {
    let config = cli.config();
    match cli.command {
        Command::Run(args) => run::run(args, config.path, inherited).await,
        Command::Token(args) => token::run(&args, &config).await,
        Command::Check(args) => checked(&args, &config.path),
        Command::Status(args) => status::run(&args, &config).await,
        Command::Health(args) => health::run(&args, &config).await,
        Command::Refresh(args) => refresh::run(&args, &config).await,
        Command::Completions(args) => completions::run(&args),
    }
}

/// `check`: what it finds is what was asked for, so mistakes go to stdout too.
fn checked(args: &Check, config: &Path) -> Result<(), Failure> {
    let read = config::load(config);
    let text = match args.output {
        CheckOutput::Text => check::text(&read, nix::unistd::geteuid().as_raw()),
        CheckOutput::Json => check::json(&read),
    };
    match print(text.as_bytes()) {
        // What the configuration is worth does not depend on how much of it was read.
        Ok(()) | Err(Failure::BrokenPipe) if check::exit_code(&read) == 0 => Ok(()),
        Ok(()) | Err(Failure::BrokenPipe) => Err(Failure::UsageSilently),
        Err(failure) => Err(failure),
    }
}

/// Why a command ends otherwise than well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The thing asked for failed.
    Failed(String),
    /// Wrong usage or configuration.
    Usage(String),
    /// As `Failed`, with nothing to say or all said.
    FailedSilently,
    /// As `Usage`, with all said.
    UsageSilently,
    /// Whoever reads our stdout has gone. Rust programs ignore SIGPIPE, so it comes as an error of
    /// a write; the reader had what it wanted, as with `spiffe-entra status | head -1`.
    BrokenPipe,
}

impl Failure {
    /// What goes to stderr: one line, whatever the message holds.
    pub fn message(&self) -> Option<String> {
        let (Self::Failed(text) | Self::Usage(text)) = self else {
            return None;
        };
        Some(one_line(text))
    }

    /// How the program ends.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            Self::BrokenPipe => 0,
            Self::Failed(_) | Self::FailedSilently => 1,
            Self::Usage(_) | Self::UsageSilently => 2,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let text = error.to_string();
        if error.is_usage() {
            Self::Usage(text)
        } else {
            Self::Failed(text)
        }
    }
}

/// For the daemon that the command line means.
fn client(daemon: &Daemon, config: &ConfigFile) -> Result<Client, Failure> {
    let socket = daemon.socket(config).map_err(Failure::Usage)?;
    Ok(Client::new(socket))
}

/// Prints to stdout.
fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::BrokenPipe),
        Err(error) => Err(Failure::Failed(format!("cannot write to stdout: {error}"))),
    }
}

/// Shows mistakes in the configuration as they are, over several lines with carets.
fn mistaken(mistakes: &str) -> Failure {
    // Where stderr is closed, the exit code is what is left to say it with.
    let _ = writeln!(io::stderr(), "{}", mistakes.trim_end());
    Failure::UsageSilently
}

/// `text` with every line break and control character made a space: what is quoted may come from
/// elsewhere, and must neither forge a second line nor steer a terminal.
fn one_line(text: &str) -> String {
    let spaced: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    spaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line() {
        let failure = Failure::Failed("a\n\tb: \u{1b}[31mred".into());
        assert_eq!(failure.message().as_deref(), Some("a b: [31mred"));
        assert_eq!(Failure::FailedSilently.message(), None);
    }

    #[test]
    fn codes_are_those_of_the_contract() {
        assert_eq!(Failure::Failed(String::new()).code(), 1);
        assert_eq!(Failure::FailedSilently.code(), 1);
        assert_eq!(Failure::Usage(String::new()).code(), 2);
        assert_eq!(Failure::UsageSilently.code(), 2);
        assert_eq!(Failure::BrokenPipe.code(), 0);
    }
}
