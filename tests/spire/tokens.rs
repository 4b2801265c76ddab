//! From a real SPIRE to a token in the hands of the right caller, and of nobody else.

use std::fs;
use std::time::Duration;

use lab::entra::Fault;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::harness::{ENTRY_LIMIT, spiffe_id};
use crate::mesh::{Mesh, RESOURCE, daemon_uid};
use crate::parts::{Part, have};
use crate::process::{Process, both, output, wait_for};
use crate::support::{Response, claims};
use crate::users::{NamedUser, unused_uid};

#[tokio::test(flavor = "multi_thread")]
async fn each_user_gets_its_own_token_only() {
    if !have(
        "each_user_gets_its_own_token_only",
        &[Part::Root, Part::Tools, Part::Spire],
    ) {
        return;
    }
    let mesh = Mesh::start().await;
    mesh.register();
    let daemon = &mesh.daemon;

    for (tenant, name) in [(&mesh.payments, "payments"), (&mesh.reports, "reports")] {
        let answer = daemon.token(tenant.uid, RESOURCE);
        assert_is_token_of(&claims(&answer.access_token()), &tenant.client_id, RESOURCE);
        let body = answer.json();
        assert_eq!(
            (&body["identity"], &body["token_type"]),
            (&json!(name), &json!("Bearer"))
        );
        assert_eq!(answer.header("cache-control"), Some("no-store"));

        // The same by the program's own client, which prints the token and nothing else.
        let done = daemon.client(tenant.uid, &["token", "--resource", RESOURCE]);
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        let printed = String::from_utf8(done.stdout).unwrap();
        assert_is_token_of(&claims(printed.trim()), &tenant.client_id, RESOURCE);
    }

    let (mine, theirs) = (&mesh.reports, &mesh.payments);
    for (identity, nobodys) in [
        ("payments", "nobodies"),
        (&theirs.client_id, "00000000-0000-4000-8000-000000000000"),
    ] {
        let there = ask_for(daemon, mine.uid, identity);
        let not_there = ask_for(daemon, mine.uid, nobodys);
        assert_eq!(there.status, 403, "{there:?}");
        assert_eq!(timeless(&there), timeless(&not_there));
    }
    let done = daemon.client(
        mine.uid,
        &["token", "--resource", RESOURCE, "--identity", "payments"],
    );
    assert_eq!(
        done.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(done.stdout.is_empty());

    // Whom no identity names, and the daemon's own user, get nothing either.
    for stranger in [unused_uid(3), daemon_uid()] {
        assert_eq!(daemon.token(stranger, RESOURCE).status, 403);
        assert_eq!(ask_for(daemon, stranger, "payments").status, 403);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_may_be_named() {
    let parts = [Part::Root, Part::Tools, Part::Users, Part::Spire];
    if !have("a_caller_may_be_named", &parts) {
        return;
    }
    let user = NamedUser::create("caller");
    let mesh = Mesh::start_for(user.uid, &format!(r#"user = "{}""#, user.name)).await;
    mesh.register();
    let token = mesh.daemon.token(user.uid, RESOURCE).access_token();
    assert_is_token_of(&claims(&token), &mesh.reports.client_id, RESOURCE);
    assert_eq!(
        ask_for(&mesh.daemon, mesh.payments.uid, "reports").status,
        403
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_entry_is_told_and_awaited() {
    if !have(
        "a_missing_entry_is_told_and_awaited",
        &[Part::Root, Part::Tools, Part::Spire],
    ) {
        return;
    }
    let mesh = Mesh::start().await;
    let (daemon, uid) = (&mesh.daemon, mesh.payments.uid);

    let refused = daemon.token(uid, RESOURCE);
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let problem = refused.json();
    assert_eq!(
        (&problem["status"], &problem["retryable"]),
        (&json!(503), &json!(true))
    );

    // The node works, the identity does not: who may use it is told why, and so is the
    // administrator.
    assert_eq!(daemon.get(0, "/readyz").status, 200);
    let unready = daemon.get(uid, "/readyz/payments");
    assert_eq!(unready.status, 503, "{unready:?}");
    let status = both(&daemon.client(0, &["status"]));
    for text in [&refused.body, &unready.body, &status] {
        let selector = format!("unix:uid:{}", daemon_uid());
        for part in [
            DENIED,
            "spire-server entry create",
            &spiffe_id("payments"),
            &selector,
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
    // Whoever else is told nothing.
    assert_eq!(daemon.get(mesh.reports.uid, "/readyz/payments").status, 403);

    mesh.register();
    assert_eq!(daemon.get(uid, "/readyz/payments").status, 200);
    let status = both(&daemon.client(0, &["status"]));
    assert!(!status.contains(DENIED), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_is_found_again() {
    if !have(
        "a_restarted_agent_is_found_again",
        &[Part::Root, Part::Tools, Part::Spire],
    ) {
        return;
    }
    let mut mesh = Mesh::start().await;
    mesh.register();
    let uid = mesh.payments.uid;
    let warm = mesh.daemon.token(uid, RESOURCE).access_token();

    mesh.spire.stop_agent();
    assert_eq!(
        mesh.daemon.token(uid, RESOURCE).access_token(),
        warm,
        "served from memory"
    );
    wait_for("the agent's absence to be seen", ENTRY_LIMIT, || {
        let ready = mesh.daemon.get(0, "/readyz");
        if ready.status == 503 {
            Ok(())
        } else {
            Err(format!("{ready:?}"))
        }
    });
    assert_eq!(
        mesh.daemon.token(uid, RESOURCE).access_token(),
        warm,
        "still served from memory"
    );

    mesh.spire.start_agent();
    let other = "https://graph.microsoft.com";
    let fresh = wait_for("a token for another resource", ENTRY_LIMIT, || {
        let answer = mesh.daemon.token(uid, other);
        if answer.status == 200 {
            Ok(answer.access_token())
        } else {
            Err(format!("{answer:?}"))
        }
    });
    assert_is_token_of(&claims(&fresh), &mesh.payments.client_id, other);

    // That token may rest on a JWT-SVID from before. This needs a new one.
    wait_for("a refresh", ENTRY_LIMIT, || {
        let done = mesh.daemon.client(0, &["refresh", "payments"]);
        if done.status.success() {
            Ok(())
        } else {
            Err(both(&done))
        }
    });
    assert_ne!(mesh.daemon.token(uid, RESOURCE).access_token(), warm);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_gives_and_watches_tokens() {
    if !have(
        "grpc_gives_and_watches_tokens",
        &[Part::Root, Part::Tools, Part::Spire, Part::Interop],
    ) {
        return;
    }
    let mesh = Mesh::start().await;
    mesh.entra
        .entra
        .faults()
        .arm(Fault::TokenLifetime(Duration::from_secs(8)));
    mesh.register();
    let (daemon, uid) = (&mesh.daemon, mesh.payments.uid);
    let asked = json!({ "resource": RESOURCE, "identity": "payments" }).to_string();
    let options = ["-d", &asked, "-format", "json"];

    let get = ["spiffe_entra.v1.TokenService/GetToken"];
    let done = output(daemon.grpcurl(uid, &options, &get));
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let token: Value = serde_json::from_slice(&done.stdout).unwrap();
    let token = token["accessToken"].as_str().unwrap();
    assert_is_token_of(&claims(token), &mesh.payments.client_id, RESOURCE);

    let done = output(daemon.grpcurl(mesh.reports.uid, &options, &get));
    assert!(
        both(&done).contains("Code: PermissionDenied"),
        "{}",
        both(&done)
    );

    let watch = daemon.grpcurl(uid, &options, &["spiffe_entra.v1.TokenService/WatchToken"]);
    let log = mesh.spire.path("watch.log");
    let mut watch = Process::spawn("grpcurl", watch, &log).keep_quiet();
    let tokens = wait_for("a refreshed token on the stream", ENTRY_LIMIT, || {
        watch.assert_running();
        let text = fs::read_to_string(&log).unwrap();
        let messages = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
        // The last message may still be on its way.
        let tokens: Vec<String> = messages
            .map_while(Result::ok)
            .map(|message| message["accessToken"].as_str().unwrap().to_owned())
            .collect();
        if tokens.len() >= 2 {
            Ok(tokens)
        } else {
            Err(format!("{} so far", tokens.len()))
        }
    });
    assert_ne!(tokens[0], tokens[1]);
    for token in tokens {
        assert_is_token_of(&claims(&token), &mesh.payments.client_id, RESOURCE);
    }
}

fn ask_for(daemon: &Daemon, uid: u32, identity: &str) -> Response {
    daemon.get(
        uid,
        &format!("/v1/token?resource={RESOURCE}&identity={identity}"),
    )
}

/// All of an answer but the time of day.
fn timeless(answer: &Response) -> (u16, Vec<(String, String)>, &str) {
    let mut headers = answer.headers.clone();
    headers.retain(|(name, _)| name != "date");
    (answer.status, headers, &answer.body)
}

fn assert_is_token_of(claims: &Value, client_id: &str, resource: &str) {
    assert_eq!(claims["appid"], client_id);
    assert_eq!(claims["aud"], resource);
}

/// The code of SPIRE's refusal.
const DENIED: &str = "workload-api-denied";
