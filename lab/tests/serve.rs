//! `lab serve` as a human starts it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileTypeExt as _;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Ends the process even when the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn serves_until_it_is_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    // The example itself, with paths and ports of this test. Its folder is not there yet.
    let folder = dir.path().join("a/lab");
    let config = include_str!("../lab.example.toml")
        .replace("/tmp/lab/", &format!("{}/", folder.display()))
        .replace("127.0.0.1:8443", "127.0.0.1:0")
        .replace("127.0.0.1:8444", "127.0.0.1:0");
    let file = dir.path().join("lab.toml");
    std::fs::write(&file, config).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["serve", "--config"])
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    let lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let ready: Vec<Value> = lines
        .take(6)
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    let kinds: Vec<_> = ready
        .iter()
        .map(|line| line["ready"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        ["ca", "issuer", "workload_api", "entra", "client", "client"]
    );
    assert_eq!(
        ready[4]["client_id"],
        "0f8fad5b-d9cb-469f-a165-70867728950e"
    );

    let socket = folder.join("agent.sock");
    assert!(std::fs::metadata(&socket).unwrap().file_type().is_socket());
    let ca = std::fs::read(ready[0]["file"].as_str().unwrap()).unwrap();
    let ca = reqwest::Certificate::from_pem(&ca).unwrap();
    lab::init();
    let http = reqwest::Client::builder()
        .tls_certs_only([ca])
        .no_proxy()
        .build()
        .unwrap();
    let authority = ready[3]["authority"].as_str().unwrap();
    let url = format!("{authority}/contoso.example/oauth2/v2.0/token");
    let answer = http.post(url).form(&[("a", "b")]).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["error_codes"], serde_json::json!([900144]));
    let issuer = ready[1]["url"].as_str().unwrap();
    let url = format!("{issuer}/.well-known/openid-configuration");
    let document: Value = http.get(url).send().await.unwrap().json().await.unwrap();
    assert_eq!(document["issuer"], issuer);
    assert_eq!(document["authorization_endpoint"], "");

    kill(
        Pid::from_raw(i32::try_from(running.0.id()).unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    assert!(running.0.wait().unwrap().success());
    assert!(!socket.exists());
}

#[test]
fn broken_file_is_one_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lab.toml");
    std::fs::write(&file, "entra = 1").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["serve", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    // For people: no event of a log, and no colour where there is no terminal.
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.starts_with("lab: ") && said.contains("lab.toml"),
        "{said}"
    );
    assert!(!said.contains('\u{1b}'), "{said}");
}
