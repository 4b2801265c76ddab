//! The audit trail of a conversation over the socket. In a file of its own: what a thread without a
//! subscriber does at the same time can keep `tracing` from seeing the first line of a kind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod served;

use std::time::Duration;

use served::{Log, VAULT, World, us};
use spiffe_entra::report::Report;

#[tokio::test]
async fn the_audit_trail_tells_who_got_what_and_who_did_not() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true);
    // The runtime of this test has one thread, this one.
    let _guard = tracing::subscriber::set_default(subscriber.with_writer(log.clone()).finish());

    let world = World::start();
    let mut connection = world.connect().await;
    for _ in 0..3 {
        connection.get(&format!("/v1/token?{VAULT}")).await;
    }
    connection
        .get(&format!("/v1/token?{VAULT}&identity=orders"))
        .await;
    connection
        .get("/v1/token?resource=https://graph.microsoft.com")
        .await;
    assert_eq!(connection.get("/readyz/orders").await.status, 403);
    let mut report = Report::permanent("AADSTS700213", "t", "d", "f");
    report.correlation_id = Some("c-2".into());
    *world.entra.fails.lock().unwrap() = Some(report);
    connection
        .get("/v1/token?resource=https://storage.azure.com")
        .await;
    drop(connection);
    world.stopped().await;

    let lines: Vec<serde_json::Value> = log
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &serde_json::Value| line["target"] == "audit")
        .collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            let text = |field: &str| line[field].as_str().unwrap_or("-").to_owned();
            let fields = [
                "outcome",
                "identity",
                "spiffe_id",
                "reason",
                "correlation_id",
                "uti",
            ];
            assert_eq!((&line["uid"], line["pid"].is_u64()), (&us().into(), true));
            fields.map(text).join(" ")
        })
        .collect();
    assert_eq!(
        told,
        [
            "granted payments spiffe://example.org/payments - c0ffee uti-1",
            "denied orders - identity-not-allowed - -",
            "denied payments spiffe://example.org/payments resource-not-allowed - -",
            "denied orders - identity-not-allowed - -",
            "failed payments spiffe://example.org/payments AADSTS700213 c-2 -",
            "repeated payments spiffe://example.org/payments - c0ffee uti-1",
        ]
    );
    assert_eq!(lines[5]["repeats"], 2);
    assert!(!log.text().contains("token-1"), "no token in any log line");
}

#[tokio::test(start_paused = true)]
async fn repeats_are_written_once_a_minute() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true);
    let _guard = tracing::subscriber::set_default(subscriber.with_writer(log.clone()).finish());
    let world = World::start();
    let mut connection = world.connect().await;
    let target = format!("/v1/token?{VAULT}");
    for _ in 0..4 {
        assert_eq!(connection.get(&target).await.status, 200);
    }
    assert!(!log.text().contains("repeated"));
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(
        log.text().matches("\"repeats\":3").count(),
        1,
        "{}",
        log.text()
    );
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(log.text().matches("repeats").count(), 1, "{}", log.text());
}
