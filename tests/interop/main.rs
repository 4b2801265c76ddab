//! Tests with clients that share no code with this project, on the lab instead of SPIRE.
//!
//! They need the programs that `tests/interop/build.sh` builds, and curl and setpriv. Without them
//! each test says so and passes; see [`parts`].

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests, with real processes in real time"
)]

#[path = "../spire/daemon.rs"]
#[allow(dead_code, reason = "the tests with SPIRE use all of it")]
mod daemon;
#[path = "../spire/parts.rs"]
#[allow(dead_code, reason = "the tests with SPIRE use all of it")]
mod parts;
#[path = "../spire/process.rs"]
#[allow(dead_code, reason = "the tests with SPIRE use all of it")]
mod process;
#[path = "../support/mod.rs"]
mod support;

use std::process::Command;

use lab::World;
use nix::unistd::geteuid;
use serde_json::{Value, json};

use daemon::{Daemon, Identity, Settings};
use parts::{Part, have};
use process::{both, command, output};
use support::claims;

const PAYMENTS: &str = "spiffe://example.org/payments";
const RESOURCE: &str = "https://vault.azure.net";

#[tokio::test(flavor = "multi_thread")]
async fn go_spiffe_verifies_the_labs_svids() {
    if !have(
        "go_spiffe_verifies_the_labs_svids",
        &[Part::Tools, Part::Interop],
    ) {
        return;
    }
    let world = World::start().await.unwrap();
    let _entry = world.workload.entry(PAYMENTS).add();

    let before = svid(&world);
    assert_eq!(before["sub"], PAYMENTS);
    assert_eq!(before["aud"], json!([lab::AUDIENCE]));
    assert_eq!(before["alg"], "RS256");
    assert_eq!(before["typ"], "JWT");
    assert_eq!(before["iss"], world.issuer.url());

    // A new key signs, the old one is still in the bundle.
    world.issuer.rotate().unwrap();
    world.workload.forget();
    let after = svid(&world);
    assert_ne!(after["kid"], before["kid"]);
    let known = after["bundle_kids"].as_array().unwrap();
    assert!(known.contains(&before["kid"]) && known.contains(&after["kid"]));

    let refused = output(fetch(&world, "spiffe://example.org/nobody"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        both(&refused).contains("PermissionDenied: "),
        "{}",
        both(&refused)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_lists_asks_and_is_refused() {
    if !have(
        "grpcurl_lists_asks_and_is_refused",
        &[Part::Tools, Part::Interop],
    ) {
        return;
    }
    let world = World::start().await.unwrap();
    let us = geteuid().as_raw();
    let (mine, others) = ("payments", "reports");
    let identity = |name, caller: u32| {
        let spiffe_id = format!("spiffe://example.org/{name}");
        let client_id = world
            .identity(&spiffe_id)
            .add()
            .unwrap()
            .client
            .client_id()
            .to_owned();
        let callers = format!("{{ uid = {caller} }}");
        Identity {
            name,
            spiffe_id,
            client_id,
            callers,
        }
    };
    let identities = vec![identity(mine, us), identity(others, us + 1)];
    let client_id = identities[0].client_id.clone();
    let settings = Settings {
        workload_api: world.socket(),
        issuer: &world.issuer.url(),
        authority: &world.authority(),
        ca_file: &world.ca_file(),
        tenant: &world.tenant(),
        identities,
    };
    let daemon = Daemon::start(world.dir(), us, &settings);
    let call = |options: &[&str], method: &[&str]| output(daemon.grpcurl(us, options, method));

    let listed = both(&call(&[], &["list"]));
    for service in [
        "spiffe_entra.v1.TokenService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ] {
        assert!(
            listed.lines().any(|line| line == service),
            "{service} is not in\n{listed}"
        );
    }
    let described = both(&call(
        &[],
        &["describe", "spiffe_entra.v1.GetTokenResponse"],
    ));
    assert!(
        described.contains("string access_token = 1;"),
        "{described}"
    );
    let health = both(&call(&[], &["grpc.health.v1.Health/Check"]));
    assert!(health.contains("SERVING"), "{health}");

    let get = "spiffe_entra.v1.TokenService/GetToken";
    let asked = json!({ "resource": RESOURCE }).to_string();
    let done = call(&["-d", &asked], &[get]);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let answer: Value = serde_json::from_slice(&done.stdout).unwrap();
    let claims = claims(answer["accessToken"].as_str().unwrap());
    assert_eq!(
        (&claims["appid"], &claims["aud"]),
        (&json!(client_id), &json!(RESOURCE))
    );
    for (field, value) in [
        ("tokenType", "Bearer"),
        ("resource", RESOURCE),
        ("identity", mine),
        ("clientId", &client_id),
        ("tenant", &world.tenant()),
    ] {
        assert_eq!(answer[field], value, "{field}");
    }

    let refusal = |asked: Value| {
        let done = call(&["-d", &asked.to_string()], &[get]);
        assert!(!done.status.success());
        both(&done)
    };
    let theirs = refusal(json!({ "resource": RESOURCE, "identity": others }));
    let nobodys = refusal(json!({ "resource": RESOURCE, "identity": "nothing" }));
    assert!(theirs.contains("Code: PermissionDenied"), "{theirs}");
    assert_eq!(theirs, nobodys);
    let malformed = refusal(json!({ "resource": "" }));
    assert!(malformed.contains("Code: InvalidArgument"), "{malformed}");
}

fn svid(world: &World) -> Value {
    let done = output(fetch(world, PAYMENTS));
    assert!(done.status.success(), "{}", both(&done));
    serde_json::from_slice(&done.stdout).unwrap()
}

fn fetch(world: &World, spiffe_id: &str) -> Command {
    let mut fetch = command(parts::interop("gospiffe-fetch"));
    fetch.env("SPIFFE_ENDPOINT_SOCKET", world.workload.endpoint());
    fetch.args(["-spiffe-id", spiffe_id, "-audience", lab::AUDIENCE]);
    fetch
}
