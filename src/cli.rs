//! What can be typed on the command line, as types.
//!
//! Help, errors and completions all come from here. What follows from an option (which socket, say)
//! is worked out in [`Daemon::socket`] and in the commands.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use crate::telemetry::LogFormat;

/// SPIFFE JWT-SVIDs in, Microsoft Entra access tokens out, over a Unix socket.
#[derive(Debug, Parser)]
#[command(
    name = "spiffe-entra",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 the thing asked for failed, 2 wrong usage or configuration."
)]
pub struct Cli {
    /// The configuration file.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "SPIFFE_ENTRA_CONFIG",
        default_value = DEFAULT_CONFIG,
        value_hint = ValueHint::FilePath
    )]
    // Not a `PathBuf`: clap refuses an empty one, and an empty variable counts as none.
    config: OsString,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon.
    Run(Run),
    /// Ask the daemon for an access token.
    Token(Token),
    /// Read the configuration and print who may become what, or every mistake in it.
    Check(Check),
    /// Print what the daemon holds, and the fix for what is wrong.
    Status(Status),
    /// Answer by exit code whether the daemon is ready (0) or not (1), and print nothing.
    Health(Health),
    /// Drop an identity's tokens in the daemon and fetch new ones.
    Refresh(Refresh),
    /// Print a completion script for a shell.
    Completions(Completions),
}

/// `spiffe-entra run`
#[derive(Debug, Args)]
pub struct Run {
    /// Refuse to start on any mistake, where a mistake inside one identity otherwise leaves only
    /// that identity out.
    #[arg(long)]
    pub strict: bool,
    /// Take the configuration from AZURE_TENANT_ID, AZURE_CLIENT_ID, SPIFFE_ENDPOINT_SOCKET,
    /// SPIFFE_ID and AZURE_AUTHORITY_HOST: one identity, for the daemon's own user.
    #[arg(long)]
    pub from_env: bool,
    /// How the log on stderr is written. Audit lines are JSON either way.
    #[arg(
        long,
        value_name = "FORMAT",
        env = "SPIFFE_ENTRA_LOG_FORMAT",
        default_value = "human"
    )]
    pub log_format: LogFormat,
    /// How much is logged: off, error, warn, info, debug, trace, or a filter by module as in
    /// `info,spiffe_entra::tokens=debug`. Audit lines are written whatever it says.
    #[arg(long, value_name = "LEVEL", env = "RUST_LOG", default_value = "info")]
    pub log: String,
}

/// `spiffe-entra token`
#[derive(Debug, Args)]
pub struct Token {
    /// What the token is for.
    #[command(flatten)]
    pub audience: Audience,
    /// The identity to be, by name or client id; not needed by those who may be only one.
    #[arg(long, value_name = "NAME")]
    pub identity: Option<String>,
    /// A claims challenge from a resource (`claims=` of its WWW-Authenticate header, base64url):
    /// asks Entra anew.
    #[arg(long, value_name = "BASE64URL")]
    pub claims: Option<String>,
    /// What to print: the token and a newline, or the daemon's whole answer.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = TokenOutput::Raw)]
    pub output: TokenOutput,
    /// Which daemon.
    #[command(flatten)]
    pub daemon: Daemon,
}

/// What a token is for.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Audience {
    /// The resource the token is for, such as `https://vault.azure.net`.
    #[arg(long, value_name = "RESOURCE")]
    pub resource: Option<String>,
    /// The same as a scope, such as `https://vault.azure.net/.default`.
    #[arg(long, value_name = "SCOPE")]
    pub scope: Option<String>,
}

/// How a token is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TokenOutput {
    /// The token and a newline.
    Raw,
    /// The daemon's answer.
    Json,
}

/// `spiffe-entra check`
#[derive(Debug, Args)]
pub struct Check {
    /// For people or for programs.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = CheckOutput::Text)]
    pub output: CheckOutput,
}

/// How a configuration is described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CheckOutput {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `spiffe-entra status`
#[derive(Debug, Args)]
pub struct Status {
    /// For people or for programs.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = StatusOutput::Table)]
    pub output: StatusOutput,
    /// Which daemon.
    #[command(flatten)]
    pub daemon: Daemon,
}

/// How the state is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatusOutput {
    /// For people.
    Table,
    /// The daemon's answer.
    Json,
}

/// `spiffe-entra health`
#[derive(Debug, Args)]
pub struct Health {
    /// Which daemon.
    #[command(flatten)]
    pub daemon: Daemon,
}

/// `spiffe-entra refresh`
#[derive(Debug, Args)]
pub struct Refresh {
    /// The identity, by name or client id.
    #[arg(value_name = "IDENTITY")]
    pub identity: String,
    /// Which daemon.
    #[command(flatten)]
    pub daemon: Daemon,
}

/// `spiffe-entra completions`
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    pub shell: Shell,
}

/// How clients find the daemon.
#[derive(Debug, Args)]
pub struct Daemon {
    /// The daemon's socket [default: the first one configured, else
    /// /run/spiffe-entra/spiffe-entra.sock].
    #[arg(
        long,
        value_name = "PATH",
        env = "SPIFFE_ENTRA_SOCKET",
        value_hint = ValueHint::FilePath
    )]
    socket: Option<OsString>,
}

impl Cli {
    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        non_empty(&self.config).unwrap_or_else(|| DEFAULT_CONFIG.into())
    }
}

impl Daemon {
    /// The socket to ask: the one given, else the first one configured, else the usual one.
    pub fn socket(&self, config: &Path) -> PathBuf {
        self.socket
            .as_deref()
            .and_then(non_empty)
            .or_else(|| first_socket(config))
            .unwrap_or_else(|| DEFAULT_SOCKET.into())
    }
}

/// The first socket of a configuration that may be wrong elsewhere, out of reach or not there: that
/// is the daemon's business, and a client must not fail because of it.
fn first_socket(config: &Path) -> Option<PathBuf> {
    let table: toml::Table = fs::read_to_string(config).ok()?.parse().ok()?;
    let listen = table.get("listen")?.as_array()?.first()?;
    Some(PathBuf::from(listen.get("socket")?.as_str()?))
}

fn non_empty(text: &OsStr) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

const DEFAULT_CONFIG: &str = "/etc/spiffe-entra/config.toml";
const DEFAULT_SOCKET: &str = "/run/spiffe-entra/spiffe-entra.sock";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    fn daemon(socket: Option<&str>) -> Daemon {
        Daemon {
            socket: socket.map(OsString::from),
        }
    }

    #[test]
    fn the_socket_is_the_one_given_then_the_first_configured_then_the_usual_one() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.toml");
        let usual = PathBuf::from(DEFAULT_SOCKET);
        assert_eq!(daemon(None).socket(&config), usual);
        // Mistakes elsewhere do not matter.
        let listen =
            "[[listen]]\nsocket = \"/a\"\n[[listen]]\nsocket = \"/b\"\n[entra]\nnonsense = 1\n";
        fs::write(&config, listen).unwrap();
        assert_eq!(daemon(None).socket(&config), Path::new("/a"));
        assert_eq!(daemon(Some("")).socket(&config), Path::new("/a"));
        assert_eq!(daemon(Some("/given")).socket(&config), Path::new("/given"));
        for broken in [
            "[[listen",
            "listen = 1",
            "[[listen]]\nsocket = 1",
            "listen = []",
        ] {
            fs::write(&config, broken).unwrap();
            assert_eq!(daemon(None).socket(&config), usual, "{broken}");
        }
    }

    #[test]
    fn an_empty_variable_counts_as_none() {
        let cli = Cli::try_parse_from(["spiffe-entra", "--config", "", "health"]).unwrap();
        assert_eq!(cli.config(), Path::new(DEFAULT_CONFIG));
    }

    #[test]
    fn a_token_is_for_exactly_one_resource() {
        for (args, fine) in [
            (vec!["--resource", "r"], true),
            (vec!["--scope", "s/.default"], true),
            (vec![], false),
            (vec!["--resource", "r", "--scope", "s"], false),
        ] {
            let parsed =
                Cli::try_parse_from(["spiffe-entra", "token"].into_iter().chain(args.clone()));
            assert_eq!(parsed.is_ok(), fine, "{args:?}");
        }
    }
}
