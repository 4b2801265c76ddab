//! What can be typed on the command line, as types.
//!
//! Help, errors and completions all come from here. What follows from an option (which socket, say)
//! is worked out in [`Daemon::socket`] and in the commands.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::PathBuf,
};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint, error::ErrorKind};
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
    /// The configuration file [default: /etc/spiffe-entra/config.toml].
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "SPIFFE_ENTRA_CONFIG",
        value_hint = ValueHint::FilePath
    )]
    // Not a `PathBuf`: clap refuses an empty one, and an empty variable counts as none.
    config: Option<OsString>,
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

/// The configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// Where it is.
    pub path: PathBuf,
    /// Whether that was said, rather than left at the default.
    named: bool,
}

impl Cli {
    /// The configuration file.
    pub fn config(&self) -> ConfigFile {
        let named = self.config.as_deref().and_then(non_empty);
        ConfigFile {
            named: named.is_some(),
            path: named.unwrap_or_else(|| DEFAULT_CONFIG.into()),
        }
    }
}

impl Daemon {
    /// The socket to ask: the one given, else the first one configured, else the usual one.
    pub fn socket(&self, config: &ConfigFile) -> Result<PathBuf, String> {
        if let Some(given) = self.socket.as_deref().and_then(non_empty) {
            return Ok(given);
        }
        let configured = config.first_socket().map_err(|error| {
            format!(
                "{}: {error}: cannot tell the daemon's socket from it; name a file that can be \
                 read (--config, SPIFFE_ENTRA_CONFIG), or the socket itself (--socket)",
                config.path.display()
            )
        })?;
        Ok(configured.unwrap_or_else(|| DEFAULT_SOCKET.into()))
    }
}

impl ConfigFile {
    /// The first socket of a configuration that may be wrong elsewhere, which is the daemon's
    /// business. The usual file may also be out of reach or not there: not every client may read it.
    /// But whoever names a file means the daemon of that file and no other.
    fn first_socket(&self) -> Result<Option<PathBuf>, String> {
        let table: Result<toml::Table, String> = fs::read_to_string(&self.path)
            .map_err(|error| error.to_string())
            .and_then(|text| text.parse().map_err(|_shown_by_check| "no TOML".into()));
        let table = match table {
            Ok(table) => table,
            Err(error) if self.named => return Err(error),
            Err(_) => return Ok(None),
        };
        let first = table.get("listen").and_then(|listen| listen.get(0));
        let socket = first.and_then(|listen| listen.get("socket")?.as_str());
        Ok(socket.map(PathBuf::from))
    }
}

/// What is wrong with a command line, on one line; nothing when it is an answer rather than an error
/// (help, version), or the help that an empty command line gets.
pub fn complaint(error: &clap::Error, args: &[OsString]) -> Option<String> {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return None;
    }
    let rendered = error.render().to_string();
    // The error, which may have a list, and tips. What comes then is the same whatever is wrong.
    let said: Vec<_> = rendered
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
        .take_while(|text| !text.starts_with("Usage:") && !text.starts_with("For more information"))
        .collect();
    let said = said.join("; ");
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    let program = Cli::command();
    // The word behind --config is a file.
    let before = [OsStr::new("")]
        .into_iter()
        .chain(args.iter().map(OsString::as_os_str));
    let command = args
        .iter()
        .zip(before)
        .filter(|(_, before)| *before != "--config")
        .find_map(|(word, _)| program.find_subcommand(word))
        .map_or_else(String::new, |found| format!("{} ", found.get_name()));
    Some(format!("{said}; see `spiffe-entra {command}--help`"))
}

fn non_empty(text: &OsStr) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

const DEFAULT_CONFIG: &str = "/etc/spiffe-entra/config.toml";
const DEFAULT_SOCKET: &str = "/run/spiffe-entra/spiffe-entra.sock";

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

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
        let path = dir.path().join("config.toml");
        let file = |named| ConfigFile {
            path: path.clone(),
            named,
        };
        let socket = |given: Option<&str>| daemon(given).socket(&file(false)).unwrap();
        let usual = PathBuf::from(DEFAULT_SOCKET);
        assert_eq!(socket(None), usual);
        // Mistakes elsewhere do not matter.
        let listen =
            "[[listen]]\nsocket = \"/a\"\n[[listen]]\nsocket = \"/b\"\n[entra]\nnonsense = 1\n";
        fs::write(&path, listen).unwrap();
        assert_eq!(socket(None), Path::new("/a"));
        assert_eq!(socket(Some("")), Path::new("/a"));
        assert_eq!(socket(Some("/given")), Path::new("/given"));
        assert_eq!(daemon(None).socket(&file(true)).unwrap(), Path::new("/a"));
        for broken in [
            "[[listen",
            "listen = 1",
            "[[listen]]\nsocket = 1",
            "listen = []",
        ] {
            fs::write(&path, broken).unwrap();
            assert_eq!(socket(None), usual, "{broken}");
        }
    }

    #[test]
    fn whoever_names_a_file_that_cannot_be_read_is_not_sent_to_another_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let file = ConfigFile {
            path: dir.path().join("config.toml"),
            named: true,
        };
        let missing = daemon(None).socket(&file).unwrap_err();
        assert!(missing.contains("config.toml: No such file"), "{missing}");
        fs::write(&file.path, "[[listen").unwrap();
        let broken = daemon(None).socket(&file).unwrap_err();
        assert!(broken.contains("config.toml: no TOML"), "{broken}");
        let given = daemon(Some("/given")).socket(&file).unwrap();
        assert_eq!(given, Path::new("/given"));
        // One that has no sockets is served at the usual one.
        fs::write(&file.path, "").unwrap();
        let usual = daemon(None).socket(&file).unwrap();
        assert_eq!(usual, Path::new(DEFAULT_SOCKET));
    }

    #[test]
    fn an_empty_variable_counts_as_none() {
        let cli = Cli::try_parse_from(["spiffe-entra", "--config", "", "health"]).unwrap();
        let usual = ConfigFile {
            path: DEFAULT_CONFIG.into(),
            named: false,
        };
        assert_eq!(cli.config(), usual);
    }

    #[test]
    fn help_names_the_defaults() {
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains(DEFAULT_CONFIG), "{help}");
        let help = Cli::command()
            .find_subcommand_mut("status")
            .unwrap()
            .render_long_help()
            .to_string();
        assert!(help.contains(DEFAULT_SOCKET), "{help}");
    }

    #[test]
    fn a_complaint_is_one_line_that_leads_to_the_help() {
        for (line, says) in [
            (
                "tokn",
                "unrecognized subcommand 'tokn'; tip: a similar subcommand exists: 'token'; see \
                 `spiffe-entra --help`",
            ),
            (
                "token",
                "the following required arguments were not provided: \
                 <--resource <RESOURCE>|--scope <SCOPE>>; see `spiffe-entra token --help`",
            ),
            (
                "--config status refresh",
                "the following required arguments were not provided: <IDENTITY>; see \
                 `spiffe-entra refresh --help`",
            ),
            (
                "status --output xml",
                "invalid value 'xml' for '--output <FORMAT>' [possible values: table, json]; see \
                 `spiffe-entra status --help`",
            ),
        ] {
            let args: Vec<OsString> = ["spiffe-entra"]
                .into_iter()
                .chain(line.split(' '))
                .map(Into::into)
                .collect();
            let error = Cli::try_parse_from(&args).unwrap_err();
            assert_eq!(complaint(&error, &args).as_deref(), Some(says));
        }
        for line in [
            &["spiffe-entra", "--help"][..],
            &["spiffe-entra", "-V"],
            &["spiffe-entra"],
        ] {
            let error = Cli::try_parse_from(line).unwrap_err();
            assert_eq!(complaint(&error, &[]), None, "{line:?}");
        }
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
