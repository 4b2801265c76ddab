//! What SPIRE gives out when it is run from `spire-config`, without this project's program: the
//! ground the other tests stand on.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{AUDIENCE, Spire, spiffe_id};
use crate::parts::{self, Part, have};
use crate::process::{both, command_as, install, output, wait_for};
use crate::users::{NamedUser, unused_uid};

#[test]
fn svids_are_what_entra_asks_for() {
    if !have(
        "svids_are_what_entra_asks_for",
        &[Part::Root, Part::Spire, Part::Interop],
    ) {
        return;
    }
    let spire = Spire::start();
    let (known, stranger) = (unused_uid(1), unused_uid(2));
    spire.register_template(&format!("uid:{known}"));

    for name in ["payments", "reports"] {
        let svid = fetched(&spire, known, name);
        assert_eq!(svid["sub"], spiffe_id(name));
        assert_eq!(svid["aud"], serde_json::json!([AUDIENCE]));
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

#[test]
fn every_part_comes_back_after_a_restart() {
    if !have(
        "every_part_comes_back_after_a_restart",
        &[Part::Root, Part::Spire, Part::Interop],
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
    let parts = [Part::Root, Part::Spire, Part::Interop, Part::Users];
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
    let done = wait_for(
        "the entry to reach the agent",
        Duration::from_secs(60),
        || {
            let done = output(fetch(spire, uid, name));
            if done.status.success() {
                Ok(done)
            } else {
                Err(both(&done))
            }
        },
    );
    serde_json::from_slice(&done.stdout).unwrap()
}

fn fetch(spire: &Spire, uid: u32, name: &str) -> Command {
    let endpoint = format!("unix://{}", spire.workload_api().display());
    let program = install(&parts::interop("gospiffe-fetch"), &spire.path(""));
    let mut command = command_as(uid, program);
    command.env("SPIFFE_ENDPOINT_SOCKET", endpoint);
    command.args(["-spiffe-id", &spiffe_id(name), "-audience", AUDIENCE]);
    command
}
