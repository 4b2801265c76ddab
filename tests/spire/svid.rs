//! What SPIRE gives out when it is run from `spire-config`, without this project's program: the
//! ground the other tests stand on.

use std::process::Command;

use lab::{EntraOptions, IssuerOptions, World};
use serde_json::Value;

use crate::harness::{ENTRY_LIMIT, Spire, spiffe_id};
use crate::parts::{self, Part, have};
use crate::process::{both, command_as, output, wait_for};
use crate::support::claims;
use crate::support::install;
use crate::users::{NamedUser, unused_uid};

#[test]
fn svids_are_what_entra_asks_for() {
    if !have(
        "svids_are_what_entra_asks_for",
        &[Part::Root, Part::Tools, Part::Spire, Part::Interop],
    ) {
        return;
    }
    let spire = Spire::start();
    let (known, stranger) = (unused_uid(1), unused_uid(2));
    spire.register_template(&format!("uid:{known}"));

    for name in ["payments", "reports"] {
        let svid = fetched(&spire, known, name);
        assert_eq!(svid["sub"], spiffe_id(name));
        assert_eq!(svid["aud"], serde_json::json!([lab::AUDIENCE]));
        assert_eq!(svid["alg"], "RS256");
        assert_eq!(svid["typ"], "JWT");
        assert_eq!(svid["iss"], spire.issuer());

        // What Entra will look for is where Entra will look for it.
        let keys = spire.published("/keys").unwrap();
        let keys = keys["keys"].as_array().unwrap();
        let key = keys
            .iter()
            .find(|key| key["kid"] == svid["kid"])
            .expect("the key is published");
        assert_eq!((&key["use"], &key["kty"]), (&"sig".into(), &"RSA".into()));
    }
    let document = spire
        .published("/.well-known/openid-configuration")
        .unwrap();
    assert_eq!(document["issuer"], spire.issuer());
    assert_eq!(document["jwks_uri"], format!("{}/keys", spire.issuer()));

    let refused = output(fetch(&spire, stranger, "payments"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        both(&refused).contains("PermissionDenied: "),
        "{}",
        both(&refused)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_labs_entra_takes_them() {
    let parts = [Part::Root, Part::Tools, Part::Spire];
    if !have("the_labs_entra_takes_them", &parts) {
        return;
    }
    let spire = Spire::start();
    let uid = unused_uid(1);
    spire.register("payments", &format!("unix:uid:{uid}"));
    let trusting = EntraOptions {
        issuer_cas: vec![spire.issuer_ca().to_owned()],
        ..Default::default()
    };
    let world = World::start_with(IssuerOptions::default(), trusting)
        .await
        .unwrap();
    let app = world.entra.application("payments");
    let app = app
        .credential(spire.issuer(), &spiffe_id("payments"), lab::AUDIENCE)
        .unwrap();

    let ca = reqwest::Certificate::from_pem(world.ca.pem().as_bytes()).unwrap();
    let client = reqwest::Client::builder()
        .tls_certs_only([ca])
        .build()
        .unwrap();
    let form = [
        ("client_id", app.client_id()),
        ("scope", "https://vault.azure.net/.default"),
        ("grant_type", "client_credentials"),
        (
            "client_assertion_type",
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        ),
        ("client_assertion", &spire.svid(uid, "payments")),
    ];
    let answer = client
        .post(world.entra.token_endpoint())
        .form(&form)
        .send()
        .await
        .unwrap();
    let status = answer.status();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(status, 200, "{}", body["error_description"]);
    let claims = claims(body["access_token"].as_str().unwrap());
    assert_eq!(claims["appid"], app.client_id());
}

#[test]
fn every_part_comes_back_after_a_restart() {
    if !have(
        "every_part_comes_back_after_a_restart",
        &[Part::Root, Part::Tools, Part::Spire, Part::Interop],
    ) {
        return;
    }
    let mut spire = Spire::start();
    let uid = unused_uid(1);
    spire.register("payments", &format!("unix:uid:{uid}"));
    let before = fetched(&spire, uid, "payments");

    spire.stop_agent();
    let refused = output(fetch(&spire, uid, "payments"));
    assert!(
        both(&refused).contains("Unavailable: "),
        "{}",
        both(&refused)
    );
    spire.stop_provider();
    spire.stop_server();
    spire.start_server();
    spire.start_provider();
    spire.start_agent();

    let after = fetched(&spire, uid, "payments");
    assert_eq!(
        after["kid"], before["kid"],
        "the server signs with the key it had"
    );
    let keys = spire.published("/keys").unwrap();
    assert_eq!(keys["keys"][0]["kid"], before["kid"]);
}

#[test]
fn a_user_is_known_by_name() {
    let parts = [
        Part::Root,
        Part::Tools,
        Part::Spire,
        Part::Interop,
        Part::Users,
    ];
    if !have("a_user_is_known_by_name", &parts) {
        return;
    }
    let spire = Spire::start();
    let user = NamedUser::create("svid");
    spire.register("payments", &format!("unix:user:{}", user.name));
    assert_eq!(
        fetched(&spire, user.uid, "payments")["sub"],
        spiffe_id("payments")
    );
}

/// What go-spiffe, run as this user, makes of the JWT-SVID, once the agent knows the entry.
fn fetched(spire: &Spire, uid: u32, name: &str) -> Value {
    let done = wait_for("the entry to reach the agent", ENTRY_LIMIT, || {
        let done = output(fetch(spire, uid, name));
        if done.status.success() {
            Ok(done)
        } else {
            Err(both(&done))
        }
    });
    serde_json::from_slice(&done.stdout).unwrap()
}

fn fetch(spire: &Spire, uid: u32, name: &str) -> Command {
    let endpoint = format!("unix://{}", spire.workload_api().display());
    let program = install(&parts::interop("gospiffe-fetch"), &spire.path(""));
    let mut command = command_as(uid, program);
    command.env("SPIFFE_ENDPOINT_SOCKET", endpoint);
    command.args(["-spiffe-id", &spiffe_id(name), "-audience", lab::AUDIENCE]);
    command
}
