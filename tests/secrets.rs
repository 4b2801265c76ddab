//! No token and no assertion, nor a part of one, in anything that is printed: a run through what
//! the daemon does well and badly, at the most talkative log level.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod support;

use lab::workload::wire;
use nix::sys::signal::Signal;
use support::{Daemon, Start, identity_config, lab_config, me};

const PAYMENTS: &str = "spiffe://example.org/payments";
const ORDERS: &str = "spiffe://example.org/orders";
const VAULT: &str = "resource=https%3A%2F%2Fvault.azure.net";
const GRAPH: &str = "resource=https%3A%2F%2Fgraph.microsoft.com";

/// The JWT-SVID that the daemon was given: the Workload API hands the same one out for a while.
async fn svid(world: &lab::World, spiffe_id: &str) -> String {
    let socket = world.socket().to_owned();
    let channel = tonic::transport::Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(socket).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        }))
        .await
        .unwrap();
    let mut client = wire::spiffe_workload_api_client::SpiffeWorkloadApiClient::new(channel);
    let mut request = tonic::Request::new(wire::JwtsvidRequest {
        audience: vec![lab::AUDIENCE.into()],
        spiffe_id: spiffe_id.into(),
    });
    request
        .metadata_mut()
        .insert("workload.spiffe.io", "true".parse().unwrap());
    let answer = client.fetch_jwtsvid(request).await.unwrap().into_inner();
    answer.svids[0].svid.clone()
}

fn looked_at(daemon: &Daemon, target: &str) -> u16 {
    let answer = daemon.get(target);
    if answer.status != 200 || !target.starts_with("/v1/token") {
        daemon.assert_no_secret_in(target, &answer.body);
    }
    answer.status
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_printed_holds_a_secret() {
    let world = lab::World::start().await.unwrap();
    let payments = world.identity(PAYMENTS).add().unwrap();
    let orders = world.identity(ORDERS).without_credential().add().unwrap();
    let config = lab_config(&world)
        + &identity_config("payments", PAYMENTS, payments.client.client_id(), &me())
        + &identity_config("orders", ORDERS, orders.client.client_id(), &me());
    let daemon = Start::new(&config).run();

    let vault = format!("/v1/token?{VAULT}&identity=payments");
    let graph = format!("/v1/token?{GRAPH}&identity=payments");
    assert_eq!(looked_at(&daemon, &vault), 200);
    daemon.secret(&svid(&world, PAYMENTS).await);
    daemon.secret(&svid(&world, ORDERS).await);

    // What Entra, the network and SPIRE can do wrong, each with an assertion under way.
    let entra = world.entra.faults();
    entra.html(200).times(1);
    looked_at(&daemon, &graph);
    for code in [700_213, 700_024, 7_000_112, 53_003, 999_999] {
        entra.code(code).times(1);
        looked_at(&daemon, &format!("{graph}&claims=e30"));
    }
    entra.reset().times(1);
    entra.cut_body().times(1);
    entra.huge_body().times(1);
    entra.throttle(Some(1)).times(1);
    looked_at(&daemon, &format!("/v1/token?{VAULT}&identity=orders"));
    entra.clear();
    world
        .workload
        .faults()
        .wrong_subject("spiffe://example.org/evil")
        .times(1);
    looked_at(&daemon, "/readyz/orders");
    world.workload.faults().malformed().times(1);
    looked_at(
        &daemon,
        "/v1/token?resource=api%3A%2F%2Fnothing&identity=payments",
    );
    world.workload.faults().clear();
    for target in [
        "/v1/status",
        "/metrics",
        "/v1/identities",
        "/readyz",
        "/readyz/payments",
    ] {
        assert_eq!(looked_at(&daemon, target), 200, "{target}");
    }
    for args in [
        &["status"][..],
        &["status", "--output", "json"],
        &["refresh", "payments"],
        &["check"],
        &[
            "token",
            "--resource",
            "https://vault.azure.net",
            "--identity",
            "orders",
        ],
    ] {
        let output = daemon.command(args);
        daemon.assert_no_secret_in("stdout", &String::from_utf8_lossy(&output.stdout));
        daemon.assert_no_secret_in("stderr", &String::from_utf8_lossy(&output.stderr));
    }
    // Renewed and reloaded, and the renewed one is a secret too.
    daemon.signal(Signal::SIGHUP);
    daemon.until_logged(&["reload: in force"]);
    assert_eq!(looked_at(&daemon, &vault), 200);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), 0);
    let log = daemon.log();
    assert!(
        log.contains("TRACE") || log.contains("DEBUG"),
        "the log was talkative"
    );
    daemon.assert_no_secret_in("the log", &log);
}
