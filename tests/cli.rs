//! The command line, by the real program: what needs no daemon, or only one that answers one thing.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests, with real processes in real time"
)]

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tempfile::TempDir;

const SECRET: &str = "eyJhbGciOiJSUzI1NiJ9.c2VjcmV0.c2lnbmF0dXJl";

#[test]
fn wrong_usage_exits_2() {
    for args in [
        &["nonsense"][..],
        &["token"],
        &["token", "--resource", "a", "--scope", "b/.default"],
        &["token", "--resource", "https://a https://b"],
        &["token", "--scope", "openid profile"],
        &["token", "--scope", "https://graph.microsoft.com/User.Read"],
        &["token", "--resource", "a", "--output", "yaml"],
        &["status", "--output", "xml"],
        &["refresh"],
        &["health", "now"],
        &["completions", "cmd.exe"],
        &["run", "--log-format", "xml"],
        &["run", "--log", "spiffe_entra=loud"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        let said = one_line(&output);
        assert!(said.starts_with("spiffe-entra: "), "{args:?}: {said}");
    }
    let said = one_line(&run(&["token"]));
    assert!(
        said.contains("--resource") && said.ends_with("see `spiffe-entra token --help`"),
        "{said}"
    );
    // Who says nothing at all gets the help.
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert!(text(&output.stderr).contains("Commands:"), "{output:?}");
}

#[test]
fn help_and_version_are_answers() {
    for args in [&["--help"][..], &["token", "--help"], &["--version"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(
            !output.stdout.is_empty() && output.stderr.is_empty(),
            "{args:?}"
        );
    }
    let help = text(&run(&["--help"]).stdout);
    for command in [
        "run",
        "token",
        "check",
        "status",
        "health",
        "refresh",
        "completions",
    ] {
        assert!(
            help.contains(&format!("\n  {command} ")),
            "{command}: {help}"
        );
    }
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let script = text(&output.stdout);
        for word in ["spiffe-entra", "refresh", "resource"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = program(&["completions", "bash"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn a_missing_socket_is_explained_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    let socket = dir.path().join("no-daemon.sock");
    fs::write(
        &config,
        format!("[[listen]]\nsocket = {socket:?}\nunknown = 1\n"),
    )
    .unwrap();
    let config = config.to_str().unwrap();
    for command in [
        &["token", "--resource", "https://vault.azure.net"][..],
        &["status"],
        &["refresh", "payments"],
    ] {
        let output = run(&[command, &["--config", config]].concat());
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        let stderr = one_line(&output);
        assert!(
            stderr.starts_with("spiffe-entra: cannot connect to /"),
            "{stderr}"
        );
        assert!(
            stderr.contains("no-daemon.sock"),
            "the configured socket: {stderr}"
        );
        assert!(stderr.contains("is the daemon running?"), "{stderr}");
    }
    let health = run(&["health", "--config", config]);
    assert_eq!(health.status.code(), Some(1));
    assert!(health.stdout.is_empty() && health.stderr.is_empty());
}

#[test]
fn a_named_configuration_that_cannot_be_read_leads_to_no_other_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none.toml");
    for command in [
        &["token", "--resource", "https://vault.azure.net"][..],
        &["status"],
        &["refresh", "payments"],
        &["health"],
    ] {
        let by_option = [command, &["--config", missing.to_str().unwrap()]].concat();
        let by_variable = program(command)
            .env("SPIFFE_ENTRA_CONFIG", &missing)
            .output()
            .unwrap();
        for output in [run(&by_option), by_variable] {
            assert_eq!(output.status.code(), Some(2), "{command:?}: {output:?}");
            let said = one_line(&output);
            assert!(
                said.contains("none.toml: No such file") && said.contains("--socket"),
                "{said}"
            );
        }
    }
    // The socket is all that is wanted of it.
    let daemon = Daemon::answers(200, "{}");
    let output = daemon.run(&["health", "--config", missing.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn a_token_is_printed_with_a_newline_or_with_all_that_came() {
    let answer = format!(r#"{{"access_token":"{SECRET}","token_type":"Bearer","expires_in":9}}"#);
    let token = ["token", "--resource", "https://a", "--identity", "b c+d"];

    let daemon = Daemon::answers(200, &answer);
    let output = daemon.run(&token);
    assert_eq!(text(&output.stdout), format!("{SECRET}\n"));
    assert!(output.status.success() && output.stderr.is_empty());
    let asked = daemon.asked.join().unwrap();
    let target = "GET /v1/token?resource=https%3A%2F%2Fa&identity=b%20c%2Bd HTTP/1.1";
    assert_eq!(asked.lines().next(), Some(target));

    let daemon = Daemon::answers(200, &answer);
    let output = daemon.run(&[&token[..], &["--output", "json"]].concat());
    assert_eq!(text(&output.stdout), format!("{answer}\n"));
}

#[test]
fn a_refusal_is_one_line_with_its_fix_and_its_code() {
    for (status, code) in [(400, 2), (403, 1), (424, 1), (503, 1)] {
        let problem = format!(
            r#"{{"type":"about:blank","status":{status},"title":"No credential matches",
               "detail":"AADSTS700213: subject\ndiffers \u001b[31m. https://learn.microsoft.com/x",
               "code":"AADSTS700213",
               "fix":"add a credential","retryable":false,"correlation_id":"c-1"}}"#
        );
        let daemon = Daemon::answers(status, &problem);
        let output = daemon.run(&["token", "--scope", "https://a/.default"]);
        assert_eq!(output.status.code(), Some(code), "{status}");
        assert_eq!(
            one_line(&output),
            "spiffe-entra: No credential matches (AADSTS700213, correlation id c-1): subject \
             differs [31m; add a credential"
        );
    }
}

#[test]
fn an_answer_that_makes_no_sense_is_not_quoted() {
    for answer in [
        SECRET.to_owned(),
        format!(r#"{{"access_token":{{"x":"{SECRET}"}}}}"#),
    ] {
        for status in [200, 500] {
            let daemon = Daemon::answers(status, &answer);
            let output = daemon.run(&["token", "--resource", "https://a"]);
            assert_eq!(output.status.code(), Some(1));
            assert!(!one_line(&output).contains("c2VjcmV0"), "{output:?}");
        }
    }
}

#[test]
fn health_says_it_by_its_exit_code_alone() {
    for (status, code) in [(200, 0), (503, 1), (404, 1)] {
        let daemon = Daemon::answers(status, "{}");
        let output = daemon.run(&["health"]);
        assert_eq!(output.status.code(), Some(code), "{status}");
        assert!(
            output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        );
        assert!(
            daemon
                .asked
                .join()
                .unwrap()
                .starts_with("GET /readyz HTTP/1.1\r\n")
        );
    }
}

#[test]
fn refresh_posts_and_says_how_many() {
    let daemon = Daemon::answers(200, r#"{"refreshed":2}"#);
    let output = daemon.run(&["refresh", "payments"]);
    assert!(output.status.success() && output.stderr.is_empty());
    assert_eq!(text(&output.stdout), "2 tokens renewed\n");
    let asked = daemon.asked.join().unwrap();
    assert!(
        asked.starts_with("POST /v1/refresh?identity=payments HTTP/1.1\r\n"),
        "{asked}"
    );
}

#[test]
fn status_shows_what_it_cannot_read_only_as_json() {
    let daemon = Daemon::answers(200, r#"{"newer":true}"#);
    let output = daemon.run(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(one_line(&output).contains("--output json"), "{output:?}");
    let daemon = Daemon::answers(200, "{\"newer\":true}\n");
    let output = daemon.run(&["status", "--output", "json"]);
    assert_eq!(text(&output.stdout), "{\"newer\":true}\n");
}

#[test]
fn a_daemon_without_configuration_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("none.toml");
    let args = ["run", "--config", config.to_str().unwrap()];
    let output = run(&args);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains("none.toml"), "{output:?}");
}

#[test]
fn check_prints_the_plan_or_the_mistakes() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    let check = ["check", "--config", config.to_str().unwrap()];

    fs::write(&config, configuration(&dir.path().join("s"))).unwrap();
    let output = run(&check);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("spiffe://example.org/payments"));
    let output = run(&[&check[..], &["--output", "json"]].concat());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["ok"], true);

    let wrong = configuration(&dir.path().join("s")).replace("0f8fad5b-", "no-guid-");
    fs::write(&config, wrong).unwrap();
    let output = run(&check);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stdout).contains("config.toml:"), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");

    // A reader that has seen enough does not make it right.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = program(&check).stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn a_daemon_whose_log_nobody_reads_runs_on() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/s");
    let config = dir.path().join("config.toml");
    fs::write(&config, configuration(&socket)).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut daemon = program(&[
        "run",
        "--log",
        "trace",
        "--config",
        config.to_str().unwrap(),
    ])
    .stdout(Stdio::null())
    .stderr(writer)
    .spawn()
    .map(Running)
    .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let answer = loop {
        if let Ok(mut stream) = UnixStream::connect(&socket) {
            let request = "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            break answer;
        }
        assert_eq!(daemon.0.try_wait().unwrap(), None, "it ended");
        assert!(Instant::now() < deadline, "it does not accept");
        thread::sleep(Duration::from_millis(5));
    };
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

/// One that is right, for our own uid, with an agent and an Entra that are not there.
fn configuration(socket: &Path) -> String {
    let uid = nix::unistd::geteuid();
    format!(
        r#"
[workload_api]
endpoint = "unix:///nonexistent/agent.sock"
[entra]
tenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
authority = "http://127.0.0.1:9"
allow_http_loopback = true
[[listen]]
socket = {socket:?}
[[identity]]
name = "payments"
spiffe_id = "spiffe://example.org/payments"
client_id = "0f8fad5b-d9cb-469f-a165-70867728950e"
resources = ["*"]
callers = [{{ uid = {uid} }}]
"#
    )
}

/// A program that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A daemon that gives one answer to whatever comes.
struct Daemon {
    folder: TempDir,
    /// The head of the request.
    asked: JoinHandle<String>,
}

impl Daemon {
    fn answers(status: u16, body: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(Self::socket(folder.path())).unwrap();
        let answer = format!(
            "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let asked = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        Self { folder, asked }
    }

    fn socket(folder: &Path) -> PathBuf {
        folder.join("s")
    }

    fn run(&self, args: &[&str]) -> Output {
        program(args)
            .env("SPIFFE_ENTRA_SOCKET", Self::socket(self.folder.path()))
            .output()
            .unwrap()
    }
}

fn run(args: &[&str]) -> Output {
    program(args).output().unwrap()
}

/// The program, whatever the environment of the tests holds.
fn program(args: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_spiffe-entra"));
    for name in [
        "SPIFFE_ENTRA_CONFIG",
        "SPIFFE_ENTRA_SOCKET",
        "SPIFFE_ENTRA_LOG_FORMAT",
        "RUST_LOG",
    ] {
        program.env_remove(name);
    }
    program.args(args).stdin(Stdio::null());
    program
}

/// What is on stderr, which is one line, while stdout is empty.
fn one_line(output: &Output) -> String {
    assert!(output.stdout.is_empty(), "{output:?}");
    let stderr = text(&output.stderr);
    assert!(
        stderr.ends_with('\n') && stderr.lines().count() == 1,
        "{stderr:?}"
    );
    stderr.trim_end().to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
