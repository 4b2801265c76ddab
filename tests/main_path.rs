//! The main path, black box: the real daemon between the lab's Workload API and its Entra.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod support;

use std::{sync::Arc, time::Duration};

use nix::sys::signal::Signal;
use support::{Start, claims, identity_config, lab_config, me};

const PAYMENTS: &str = "spiffe://example.org/payments";
const ORDERS: &str = "spiffe://example.org/orders";
const VAULT: &str = "resource=https%3A%2F%2Fvault.azure.net";

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_served_and_then_served_from_memory() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let id = payments.client.client_id();
    let daemon =
        Start::new(&(lab_config(&world) + &identity_config("payments", PAYMENTS, id, &me()))).run();

    let answer = daemon.token(VAULT);
    let body = answer.json();
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(body["token_type"], "Bearer");
    assert_eq!(body["resource"], "https://vault.azure.net");
    assert_eq!(body["identity"], "payments");
    assert_eq!(body["client_id"], id);
    assert_eq!(body["tenant"], world.tenant());
    let expires_in = body["expires_in"].as_i64().unwrap();
    assert!((3500..=5400).contains(&expires_in));
    assert!(body["expires_on"].is_i64());
    let token = answer.access_token();
    let claims = claims(&token);
    assert_eq!(claims["appid"], id);
    assert_eq!(claims["aud"], "https://vault.azure.net");
    assert!(
        (1500..3000).contains(&token.len()),
        "as large as Entra's: {}",
        token.len()
    );

    let again = daemon.token("scope=https%3A%2F%2Fvault.azure.net%2F.default&identity=payments");
    assert_eq!(again.access_token(), token);
    assert_eq!(world.entra.exchanges(), 1);
    let by_client = daemon.token(&format!("{VAULT}&identity={id}"));
    assert_eq!(by_client.access_token(), token);

    let exchange = world.entra.last_exchange().unwrap();
    assert_eq!(
        exchange.fields,
        [
            "client_id",
            "scope",
            "grant_type",
            "client_assertion_type",
            "client_assertion"
        ],
        "the five fields of RFC 7523"
    );
    daemon.until_logged(&["\"target\":\"audit\"", "payments", "granted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_looks_like_what_is_not_there() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let orders = world.identity(ORDERS).add().unwrap();
    let config = lab_config(&world)
        + &identity_config("payments", PAYMENTS, payments.client.client_id(), &me())
        + &identity_config(
            "orders",
            ORDERS,
            orders.client.client_id(),
            "{ uid = 4242 }",
        );
    let daemon = Start::new(&config).run();

    let denied = daemon.token(&format!("{VAULT}&identity=orders"));
    let absent = daemon.token(&format!("{VAULT}&identity=nothing"));
    assert_eq!((denied.status, absent.status), (403, 403));
    assert_eq!(denied.body, absent.body);
    assert_eq!(
        denied.header("content-type"),
        Some("application/problem+json")
    );
    let readiness = daemon.get("/readyz/orders");
    assert_eq!((readiness.status, readiness.body), {
        let absent = daemon.get("/readyz/nothing");
        (absent.status, absent.body)
    });
    let resource = daemon.token("resource=https%3A%2F%2Fstorage.azure.com&identity=payments");
    assert_eq!(resource.status, 403);
    assert_eq!(world.entra.exchanges(), 0, "Entra never heard of it");
    daemon.until_logged(&["\"target\":\"audit\"", "orders", "denied"]);

    let mine = daemon.get("/v1/identities").json().to_string();
    assert!(
        mine.contains("payments") && !mine.contains("orders"),
        "{mine}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_first_callers_cause_one_exchange() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    // Another uid than root's and the daemon's, where that is possible: those have no limits.
    let uid = if support::is_root() {
        4201
    } else {
        nix::unistd::geteuid().as_raw()
    };
    let config = lab_config(&world)
        + &identity_config(
            "payments",
            PAYMENTS,
            payments.client.client_id(),
            &format!("{{ uid = {uid} }}"),
        );
    let daemon = Start::new(&config).run();
    // Long enough for all of them to be there.
    world
        .entra
        .faults()
        .slow_headers(Duration::from_secs(3))
        .times(1);

    let answers = support::crowd(uid, &daemon.socket, &format!("/v1/token?{VAULT}"), 1000);
    let mut tokens = std::collections::HashSet::new();
    for answer in answers {
        tokens.insert(answer.access_token());
    }
    daemon.secret(tokens.iter().next().unwrap());
    assert_eq!(
        (
            tokens.len(),
            world.entra.exchanges(),
            world.workload.fetches()
        ),
        (1, 1, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_entry_is_named_and_no_restart_is_needed_once_it_is_there() {
    let world = lab::World::start().await.unwrap();
    let app = world
        .entra
        .application("payments")
        .credential(&world.issuer.url(), PAYMENTS, lab::AUDIENCE)
        .unwrap();
    let config =
        lab_config(&world) + &identity_config("payments", PAYMENTS, app.client_id(), &me());
    let daemon = Start::new(&config).run();

    let answer = daemon.token(VAULT);
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.header("retry-after").is_some());
    assert_eq!(answer.json()["retryable"], true);
    let fix = answer.json()["fix"].as_str().unwrap().to_owned();
    assert!(
        fix.contains("spire-server entry create") && fix.contains(PAYMENTS),
        "{fix}"
    );
    let readiness = daemon.get("/readyz/payments");
    assert_eq!(readiness.status, 503);
    assert!(
        readiness.body.contains("spire-server entry create"),
        "{}",
        readiness.body
    );
    let status = String::from_utf8(daemon.command(&["status"]).stdout).unwrap();
    assert!(
        status.contains("payments") && status.contains("spire-server entry create"),
        "{status}"
    );
    assert_eq!(
        daemon.get("/readyz").status,
        200,
        "one identity does not make a node unready"
    );

    world.workload.entry(PAYMENTS).add();
    daemon.until("the token comes", || daemon.token(VAULT).status == 200);
    assert_eq!(daemon.get("/readyz/payments").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_credential_is_explained() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let app = payments.client;
    app.remove_credential(PAYMENTS);
    app.clone()
        .credential(
            &world.issuer.url(),
            "spiffe://example.org/other",
            lab::AUDIENCE,
        )
        .unwrap();
    let config =
        lab_config(&world) + &identity_config("payments", PAYMENTS, app.client_id(), &me());
    let daemon = Start::new(&config).run();
    let answer = daemon.token(VAULT);
    // It may still be spreading: worth another try for ten minutes.
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "AADSTS700213"),
        "{}",
        answer.body
    );
    assert!(answer.json()["fix"].as_str().unwrap().contains(PAYMENTS));
    assert!(answer.json()["correlation_id"].is_string());

    world.entra.faults().clear();
    app.set_disabled(true);
    let disabled = daemon.token("resource=https%3A%2F%2Fgraph.microsoft.com");
    assert_eq!(
        (disabled.status, disabled.code().as_str()),
        (424, "AADSTS7000112")
    );
    assert_eq!(disabled.json()["retryable"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_what_is_right_and_refuses_what_is_wrong() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let orders = world.identity(ORDERS).add().unwrap();
    let of_payments =
        |callers: &str| identity_config("payments", PAYMENTS, payments.client.client_id(), callers);
    let of_orders =
        |callers: &str| identity_config("orders", ORDERS, orders.client.client_id(), callers);
    let base = lab_config(&world);
    let daemon = Start::new(&(base.clone() + &of_payments(&me()) + &of_orders(&me()))).run();
    let query = format!("{VAULT}&identity=payments");
    let token = daemon.token(&query).access_token();
    daemon
        .token(&format!("{VAULT}&identity=orders"))
        .access_token();

    daemon.configure(&(base.clone() + &of_payments(&me()) + "[[identity"));
    daemon.signal(Signal::SIGHUP);
    daemon.until_logged(&["reload", "stays in force"]);
    assert_eq!(
        daemon.token(&format!("{VAULT}&identity=orders")).status,
        200
    );

    // The right of one is taken away; the other's token is not dropped.
    daemon.configure(&(base.clone() + &of_payments(&me()) + &of_orders("{ uid = 4242 }")));
    daemon.signal(Signal::SIGHUP);
    daemon.until("the right is gone", || {
        daemon.token(&format!("{VAULT}&identity=orders")).status == 403
    });
    assert_eq!(daemon.token(&query).access_token(), token);
    assert_eq!(world.entra.exchanges(), 2);

    // An identity that is new works without a restart.
    daemon.configure(&(base + &of_payments(&me()) + &of_orders(&me())));
    daemon.signal(Signal::SIGHUP);
    daemon.until("the right is back", || {
        daemon.token(&format!("{VAULT}&identity=orders")).status == 200
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_one_identity_stops_that_one() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let good = identity_config("payments", PAYMENTS, payments.client.client_id(), &me());
    let bad = identity_config("orders", ORDERS, "not-a-guid", &me());
    let config = lab_config(&world) + &good + &bad;
    let daemon = Start::new(&config).run();
    assert_eq!(daemon.token(VAULT).status, 200);
    let status = daemon.get("/v1/status").json();
    assert!(
        status["quarantined"].to_string().contains("orders"),
        "{status}"
    );
    assert!(
        daemon
            .get("/metrics")
            .body
            .contains("spiffe_entra_quarantined_identities 1")
    );
    let check = daemon.command(&["check"]);
    assert_eq!(check.status.code(), Some(2));

    let strict = Start::new(&config).arg("--strict").spawn();
    assert_eq!(strict.wait(), 2);
    let none = Start::new(&(lab_config(&world) + &bad)).spawn();
    assert_eq!(none.wait(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_requests_finish_and_takes_the_socket_away() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let config = lab_config(&world)
        + &identity_config("payments", PAYMENTS, payments.client.client_id(), &me());
    let daemon = Arc::new(Start::new(&config).run());
    world
        .entra
        .faults()
        .slow_headers(Duration::from_secs(2))
        .times(1);
    let asking = Arc::clone(&daemon);
    let request = tokio::task::spawn_blocking(move || asking.token(VAULT));
    world.entra.wait_exchanges(1).await;
    daemon.signal(Signal::SIGTERM);
    assert_eq!(request.await.unwrap().status, 200, "{}", daemon.log());
    assert_eq!(daemon.wait(), 0);
    assert!(!daemon.socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_before_it_expires() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let config = lab_config(&world)
        + &identity_config("payments", PAYMENTS, payments.client.client_id(), &me());
    world.entra.faults().token_lifetime(Duration::from_secs(4));
    let daemon = Start::new(&config).run();
    let first = daemon.token(VAULT).access_token();
    world.entra.wait_answered(2).await;
    let expires = claims(&first)["exp"].as_i64().unwrap();
    assert!(lab_now() < expires, "before the first one's end");
    daemon.until("the new one is served", || {
        daemon.token(VAULT).access_token() != first
    });

    let metrics = daemon.get("/metrics").body;
    for name in [
        "spiffe_entra_token_requests_total",
        "spiffe_entra_exchanges_total",
        "spiffe_entra_token_expires_in_seconds",
        "spiffe_entra_assertion_expires_in_seconds",
    ] {
        assert!(metrics.contains(name), "{name} is missing:\n{metrics}");
    }
    let refresh = daemon.command(&["refresh", "payments"]);
    assert!(refresh.status.success(), "{refresh:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_answer() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let config = lab_config(&world)
        + &identity_config("payments", PAYMENTS, payments.client.client_id(), &me());
    let daemon = Start::new(&config).run();

    let health = daemon.command(&["health"]);
    assert!(health.status.success() && health.stdout.is_empty() && health.stderr.is_empty());
    let raw = daemon.command(&["token", "--resource", "https://vault.azure.net"]);
    let token = String::from_utf8(raw.stdout).unwrap();
    daemon.secret(token.trim_end());
    assert_eq!(claims(token.trim_end())["aud"], "https://vault.azure.net");
    let refused = daemon.command(&["token", "--resource", "https://storage.azure.com"]);
    assert_eq!(refused.status.code(), Some(1));
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let usage = daemon.command(&["token"]);
    assert_eq!(usage.status.code(), Some(2));
    for output in ["table", "json"] {
        let status = daemon.command(&["status", "--output", output]);
        let text = String::from_utf8(status.stdout).unwrap();
        assert!(status.status.success() && text.contains(PAYMENTS), "{text}");
        daemon.assert_no_secret_in("status", &text);
    }
    daemon.assert_no_secret_in("metrics", &daemon.get("/metrics").body);
    let check = daemon.command(&["check"]);
    let plan = String::from_utf8(check.stdout).unwrap();
    assert_eq!(check.status.code(), Some(0));
    for word in [
        PAYMENTS,
        "payments",
        lab::AUDIENCE,
        payments.client.client_id(),
    ] {
        assert!(plan.contains(word), "{word} is missing:\n{plan}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_uid_is_known_by_the_kernel() {
    if !support::is_root() {
        support::left_out("needs root to become other users");
        return;
    }
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let config = lab_config(&world)
        + &identity_config(
            "payments",
            PAYMENTS,
            payments.client.client_id(),
            "{ uid = 4201 }",
        );
    let daemon = Start::new(&config).run();
    let allowed = support::get_as(4201, &daemon.socket, &format!("/v1/token?{VAULT}"));
    daemon.secret(&allowed.access_token());
    let refused = support::get_as(4202, &daemon.socket, &format!("/v1/token?{VAULT}"));
    assert_eq!(refused.status, 403, "{}", refused.body);
    for admin_only in ["/v1/status", "/metrics"] {
        assert_eq!(
            support::get_as(4202, &daemon.socket, admin_only).status,
            403
        );
        assert_eq!(daemon.get(admin_only).status, 200);
    }
    let unready = support::get_as(4202, &daemon.socket, "/readyz");
    assert!(
        unready.status == 200 && !unready.body.contains("payments"),
        "{}",
        unready.body
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_known_however_many_there_are() {
    if !support::is_root() {
        support::left_out("needs root to become other users");
        return;
    }
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let config = lab_config(&world)
        + &identity_config(
            "payments",
            PAYMENTS,
            payments.client.client_id(),
            "{ gid = 5099 }",
        );
    let daemon = Start::new(&config).run();
    let target = format!("/v1/token?{VAULT}");
    // More than the daemon asks the kernel for at first.
    let many: Vec<u32> = (5000..5100).collect();
    let member = support::get_as_member(4203, &many, &daemon.socket, &target);
    daemon.secret(&member.access_token());
    let stranger = support::get_as_member(4203, &many[..99], &daemon.socket, &target);
    assert_eq!(stranger.status, 403, "{}", stranger.body);
}

fn lab_now() -> i64 {
    i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap()
}
