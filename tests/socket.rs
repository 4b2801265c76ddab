//! The socket from outside: HTTP/1.1 by hand, HTTP/2 and gRPC by their clients.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod served;

use std::{collections::BTreeSet, sync::Arc, sync::atomic::Ordering::SeqCst, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use served::{Answer, OTHER, Other, VAULT, World, is_root, uid, us};
use spiffe_entra::{
    config::{Quarantined, Resources},
    report::Report,
    server::{
        Problem,
        proto::{GetTokenRequest, token_service_client::TokenServiceClient},
        status::{Identities, State, Status},
    },
};
use tokio::{io::AsyncWriteExt, net::UnixStream, time::timeout};
use tonic::Code;

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_token_is_exchanged_once_and_then_served_from_memory() {
    let world = World::start();
    let mut connection = world.connect().await;
    for query in [
        VAULT.to_owned(),
        format!("{VAULT}&identity=payments"),
        "scope=https://vault.azure.net/.default".to_owned(),
        VAULT.to_owned(),
    ] {
        let answer = connection.get(&format!("/v1/token?{query}")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let body = answer.json();
        assert!(
            body["access_token"]
                .as_str()
                .unwrap()
                .starts_with("token-1.x")
        );
        let keys: BTreeSet<&str> = body
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            keys,
            BTreeSet::from([
                "access_token",
                "token_type",
                "expires_in",
                "expires_on",
                "resource",
                "identity",
                "client_id",
                "tenant",
            ])
        );
        assert_eq!(body["token_type"], "Bearer");
        assert_eq!(body["resource"], "https://vault.azure.net");
        assert_eq!(body["identity"], "payments");
        assert_eq!(body["client_id"], "0f8fad5b-d9cb-469f-a165-70867728950e");
        assert_eq!(body["tenant"], "72f988bf-86f1-41af-91ab-2d7cd011db47");
        let expires_in = body["expires_in"].as_i64().unwrap();
        assert!((3590..=3600).contains(&expires_in), "{expires_in}");
        assert!(body["expires_on"].as_i64().unwrap() > 1_700_000_000);
    }
    assert_eq!(world.exchanges(), 1);
}

#[tokio::test]
async fn what_is_not_allowed_and_what_is_not_there_are_one_answer() {
    let world = World::start();
    for (denied, absent) in [
        (
            "/v1/token?resource=a&identity=orders",
            "/v1/token?resource=a&identity=nobody",
        ),
        ("/readyz/orders", "/readyz/nobody"),
    ] {
        let denied = world.get(denied).await;
        assert_eq!(denied.status, 403);
        assert_eq!(denied.code(), "identity-not-allowed");
        assert_eq!(
            denied.header("content-type"),
            Some("application/problem+json")
        );
        assert_eq!(denied, world.get(absent).await);
    }
    let resource = world.token("resource=https://graph.microsoft.com").await;
    assert_eq!(
        (resource.status, resource.code().as_str()),
        (403, "resource-not-allowed")
    );
    assert_eq!(world.exchanges(), 0);
}

#[tokio::test]
async fn an_identity_may_be_left_out_when_there_is_one() {
    let world = World::with(|plan| {
        let mut both = (*plan.identities[1]).clone();
        both.callers = vec![uid(us()), uid(OTHER)];
        plan.identities[1] = Arc::new(both);
    });
    let answer = world.token(VAULT).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (400, "identity-needed")
    );
    assert_eq!(
        world
            .token(&format!("{VAULT}&identity=orders"))
            .await
            .status,
        200
    );

    world.reload(|plan| plan.identities.clear());
    let answer = world.token(VAULT).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (403, "no-identity")
    );
}

#[tokio::test]
async fn malformed_requests_are_told_what_to_change() {
    let world = World::start();
    for (request, status, code) in [
        ("GET /v1/token", 400, "missing-parameter"),
        (
            "GET /v1/token?resource=a&scope=a/.default",
            400,
            "conflicting-parameters",
        ),
        (
            "GET /v1/token?resource=a&resource=b",
            400,
            "repeated-parameter",
        ),
        ("GET /v1/token?resource=%zz", 400, "malformed-query"),
        (
            "GET /v1/token?resource=a&tenant=b",
            400,
            "unknown-parameter",
        ),
        (
            "GET /v1/token?scope=https://graph.microsoft.com/User.Read",
            400,
            "malformed-resource",
        ),
        (
            "GET /v1/token?resource=a&claims=e30%2",
            400,
            "malformed-query",
        ),
        (
            "GET /v1/token?resource=a&claims=W10",
            400,
            "malformed-claims",
        ),
        ("GET /v1/status?verbose=1", 400, "unknown-parameter"),
        ("POST /v1/refresh", 400, "missing-parameter"),
        ("GET /readyz/%ff", 400, "malformed-query"),
        ("GET /", 404, "no-route"),
        ("GET /v1/token/", 404, "no-route"),
        ("POST /v1/token?resource=a", 405, "wrong-method"),
        ("GET /v1/refresh?identity=payments", 405, "wrong-method"),
        ("DELETE /readyz/payments", 405, "wrong-method"),
    ] {
        let answer = world
            .send(&format!("{request} HTTP/1.1\r\nhost: x\r\n\r\n"))
            .await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{request}"
        );
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let problem: Problem = serde_json::from_str(&answer.body).unwrap();
        assert!(!problem.fix.is_empty() && !problem.retryable, "{request}");
        if status == 405 {
            let allow = if request.contains("refresh") {
                "POST"
            } else {
                "GET"
            };
            assert_eq!(answer.header("allow"), Some(allow), "{request}");
        }
    }
    let mut connection = world.connect().await;
    connection
        .write("HEAD /v1/token?resource=a HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    let mut raw = vec![0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut connection.0, &mut raw)
        .await
        .unwrap();
    assert_eq!(raw, b"HTTP/1.1 405");
}

#[tokio::test]
async fn oversize_requests_are_refused() {
    let world = World::start();
    let long = format!("/v1/token?resource={}", "a".repeat(8200));
    assert_eq!(world.get(&long).await.status, 414);
    let longer = "a".repeat(20_000);
    let head = format!("GET /livez HTTP/1.1\r\nhost: x\r\nx-long: {longer}\r\n\r\n");
    assert_eq!(world.send(&head).await.status, 431);
    let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    let head = format!("GET /livez HTTP/1.1\r\nhost: x\r\n{many}\r\n");
    assert_eq!(world.send(&head).await.status, 431);
    for target in ["/v1/token?resource=a", "/v1/refresh?identity=payments"] {
        let head = format!("POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 8193\r\n\r\n");
        let answer = world.send(&head).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (413, "body-too-large")
        );
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let world = World::start();
    let mut connection = world.connect().await;
    let one = |target: &str| format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n");
    let all = [
        one(&format!("/v1/token?{VAULT}")),
        one("/livez"),
        one("/nothing"),
        one(&format!("/v1/token?{VAULT}")),
    ];
    connection.write(&all.concat()).await;
    let mut statuses = Vec::new();
    for _ in &all {
        statuses.push(connection.answer().await.status);
    }
    assert_eq!(statuses, [200, 200, 404, 200]);
}

#[tokio::test]
async fn who_closes_its_side_for_writing_gets_its_answer() {
    let world = World::start();
    world.entra.gate.forget_permits(1_000_000);
    let mut connection = world.connect().await;
    connection
        .write(&format!(
            "GET /v1/token?{VAULT} HTTP/1.1\r\nhost: x\r\n\r\n"
        ))
        .await;
    connection.0.shutdown().await.unwrap();
    // The server has seen both by now, and has nothing to say yet.
    world.until_exchanges(1).await;
    world.get("/livez").await;
    world.entra.gate.add_permits(1);
    assert_eq!(connection.answer().await.status, 200);
    assert!(connection.ended().await);
}

#[tokio::test]
async fn http2_with_prior_knowledge_takes_the_json_routes() {
    let world = World::start();
    let stream = UnixStream::connect(&world.socket).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    for (target, status) in [
        (format!("/v1/token?{VAULT}"), 200),
        (format!("/v1/token?{VAULT}"), 200),
        ("/livez".to_owned(), 200),
        ("/v1/token".to_owned(), 400),
    ] {
        let request = http::Request::get(format!("http://localhost{target}"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), status, "{target}");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice::<serde_json::Value>(&body).unwrap();
    }
    assert_eq!(world.exchanges(), 1);
}

#[tokio::test]
async fn a_uid_has_so_many_connections_and_no_more() {
    let world = World::with(|plan| plan.limits.connections_per_uid = 2);
    let mut first = world.connect().await;
    let mut second = world.connect().await;
    assert_eq!(first.get("/livez").await.status, 200);
    assert_eq!(second.get("/livez").await.status, 200);
    let mut third = world.connect().await;
    let answer = third.answer().await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (429, "too-many-connections")
    );
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(third.ended().await);
    drop(first);
    // The server notices in its own time.
    let again = timeout(SOON, async {
        loop {
            let mut connection = world.connect().await;
            // A rejected connection may already be closed when we write to it.
            let request = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
            if connection.0.write_all(request).await.is_ok()
                && connection
                    .try_answer()
                    .await
                    .is_some_and(|a| a.status == 200)
            {
                break;
            }
        }
    });
    again.await.unwrap();
}

#[tokio::test]
async fn claims_are_passed_on_decoded_and_never_answered_from_memory() {
    let world = World::start();
    assert_eq!(world.token(VAULT).await.status, 200);
    // {"access_token":{"nbf":{"essential":true}}}
    let claims = "eyJhY2Nlc3NfdG9rZW4iOnsibmJmIjp7ImVzc2VudGlhbCI6dHJ1ZX19fQ%3D%3D";
    let answer = world.token(&format!("{VAULT}&claims={claims}")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(
        *world.entra.claims.lock().unwrap(),
        [r#"{"access_token":{"nbf":{"essential":true}}}"#]
    );
}

#[tokio::test]
async fn what_spire_and_entra_say_reaches_the_caller() {
    let world = World::start();
    let mut report =
        Report::permanent("AADSTS700213", "No match", "the subject differs", "mend it");
    report.correlation_id = Some("c-1".into());
    *world.entra.fails.lock().unwrap() = Some(report);
    let answer = world.token(VAULT).await;
    assert_eq!(answer.status, 424, "{}", answer.body);
    let body = answer.json();
    assert_eq!(body["code"], "AADSTS700213");
    assert_eq!(body["fix"], "mend it");
    assert_eq!(body["retryable"], false);
    assert_eq!(body["correlation_id"], "c-1");
    assert_eq!(answer.header("retry-after"), None);

    let status = world.get("/v1/status").await;
    let status: Status = serde_json::from_str(&status.body).unwrap();
    assert_eq!(status.identities[0].state, State::Failing);
    let error = status.identities[0].tokens[0].error.as_ref().unwrap();
    assert_eq!(error.code, "AADSTS700213");
    let ready = world.get("/readyz/payments").await;
    assert_eq!((ready.status, ready.code().as_str()), (503, "AADSTS700213"));
}

#[tokio::test]
async fn health_is_told_to_all_and_reasons_to_admins() {
    let world = World::start();
    assert_eq!(world.get("/livez").await.json()["status"], "ok");
    assert_eq!(world.get("/readyz").await.json()["status"], "ready");
    let ready = world.get("/readyz/payments").await;
    assert_eq!(
        (ready.status, ready.json()["status"].as_str()),
        (200, Some("ready"))
    );

    let world = World::start();
    world.reachable.store(false, SeqCst);
    // We are the daemon's own uid, which is an admin's.
    let unready = world.get("/readyz").await;
    assert_eq!(
        (unready.status, unready.code().as_str()),
        (503, "agent-away")
    );
    let report = Report::transient("svid-denied", "no entry", "no entry", "create it");
    *world.spire.fails.lock().unwrap() = Some(report);
    let unready = world.get("/readyz/payments").await;
    assert_eq!(
        (unready.status, unready.code().as_str()),
        (503, "svid-denied")
    );
    assert_eq!(unready.json()["fix"], "create it");
}

#[tokio::test]
async fn identities_lists_what_the_caller_may_have() {
    let world = World::with(|plan| {
        let mut narrow = (*plan.identities[0]).clone();
        narrow.name = "narrow".into();
        narrow.callers[0].resources =
            Some(Resources::Only(["https://vault.azure.net".into()].into()));
        let mut any = (*plan.identities[0]).clone();
        any.name = "any".into();
        any.resources = Resources::Any;
        let mut narrow_any = any.clone();
        narrow_any.name = "narrow-any".into();
        narrow_any.callers = narrow.callers.clone();
        plan.identities
            .extend([narrow, any, narrow_any].map(Arc::new));
    });
    let answer = world.get("/v1/identities").await;
    let usable: Identities = serde_json::from_str(&answer.body).unwrap();
    let mut lists: Vec<_> = usable
        .identities
        .iter()
        .map(|one| format!("{}: {}", one.name, one.resources.join(" ")))
        .collect();
    lists.sort();
    assert_eq!(
        lists,
        [
            "any: *",
            "narrow-any: https://vault.azure.net",
            "narrow: https://vault.azure.net",
            "payments: https://storage.azure.com https://vault.azure.net",
        ]
    );
}

#[tokio::test]
async fn status_and_metrics_tell_admins_everything() {
    let world = World::with(|plan| {
        plan.quarantined.push(Quarantined {
            name: "broken".into(),
            mistakes: vec!["config.toml:3: no GUID".into()],
        });
    });
    world.token(VAULT).await;
    let mut connection = world.connect().await;
    let answer = connection.get("/v1/status").await;
    let status: Status = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(status.generation, 1);
    assert_eq!(status.workload_api.endpoint, "unix:///run/spire/api.sock");
    assert!(status.workload_api.reachable);
    assert_eq!(status.listeners[0].max_connections, 64);
    assert!(status.listeners[0].connections >= 1);
    let [payments, orders] = &status.identities[..] else {
        panic!("{status:?}");
    };
    assert_eq!((payments.state, orders.state), (State::Ready, State::Idle));
    assert_eq!(payments.spiffe_id, "spiffe://example.org/payments");
    assert_eq!(payments.issuer.as_deref(), Some("https://oidc.example.org"));
    assert!(payments.assertion_expires_in.unwrap() > 200);
    assert!(payments.tokens[0].next_refresh_in.is_some());
    assert!(payments.tokens[0].expires_in.unwrap() > 3500);
    assert_eq!(status.quarantined[0].name, "broken");
    assert!(!answer.body.contains("token-1"), "no token in it");

    let metrics = connection.get("/metrics").await;
    assert!(
        metrics
            .header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    for line in [
        "spiffe_entra_token_requests_total{outcome=\"ok\"} 1",
        "spiffe_entra_token_expires_in_seconds{identity=\"payments\",resource=\"https://vault.azure.net\"} 3",
        "spiffe_entra_assertion_expires_in_seconds{identity=\"payments\"} 2",
        "spiffe_entra_identity_state{identity=\"payments\",state=\"ready\"} 1",
        "spiffe_entra_cached_tokens 1",
        "spiffe_entra_quarantined_identities 1",
        "spiffe_entra_open_connections{socket=",
        "spiffe_entra_build_info{version=\"0.1.0\"} 1",
        "# EOF",
    ] {
        assert!(metrics.body.contains(line), "{line} in\n{}", metrics.body);
    }
    assert_eq!(metrics.body.matches("# EOF").count(), 1);
}

#[tokio::test]
async fn metrics_are_served_over_tcp_and_nothing_else_is() {
    let world = World::start();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn({
        let (server, stop) = (world.server.clone(), world.stop.clone());
        async move { server.serve_metrics(listener, stop).await }
    });
    for (target, status) in [
        ("/metrics", 200),
        ("/v1/status", 404),
        ("/v1/token?resource=a", 404),
    ] {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = http::Request::get(target)
            .body(Empty::<Bytes>::new())
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), status, "{target}");
    }
    world.stop.cancel();
    serving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_does_not_ask_or_read_keeps_no_place_at_the_metrics() {
    let world = World::with(|plan| {
        let many = (0..5_000).map(|n| {
            let client_id = format!("{n:08x}-0000-0000-0000-00000000000a");
            Arc::new(served::identity(&format!("identity-{n}"), &client_id, us()))
        });
        plan.identities.extend(many);
    });
    // So that no buffer takes the whole page.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(64).unwrap();
    let address = listener.local_addr().unwrap();
    let (server, stop) = (world.server.clone(), world.stop.clone());
    tokio::spawn(async move { server.serve_metrics(listener, stop).await });
    let connect = |asks: &'static str| async move {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        stream.write_all(asks.as_bytes()).await.unwrap();
        stream
    };
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut held = Vec::new();
    for place in 0..16 {
        held.push(connect(if place % 2 == 0 { request } else { "GET /" }).await);
    }
    // Every place is taken: the next is closed unheard.
    let mut late = connect("").await;
    let mut byte = [0];
    let read = tokio::io::AsyncReadExt::read(&mut late, &mut byte);
    assert!(matches!(read.await, Ok(0) | Err(_)));

    tokio::time::sleep(Duration::from_secs(11)).await;
    let mut again = connect(request).await;
    let mut head = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut again, &mut head)
        .await
        .unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_page_of_metrics_is_made_once_a_second() {
    let world = World::start();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (server, stop) = (world.server.clone(), world.stop.clone());
    tokio::spawn(async move { server.serve_metrics(listener, stop).await });
    let scrape = || async {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut page = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut page)
            .await
            .unwrap();
        page
    };
    let started = tokio::time::Instant::now();
    let first = scrape().await;
    assert!(first.ends_with("# EOF\n"));
    world.token(VAULT).await;
    let body = |page: &str| page.split_once("\r\n\r\n").unwrap().1.to_owned();
    let second = scrape().await;
    if started.elapsed() < Duration::from_secs(1) {
        assert_eq!(body(&second), body(&first));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_ne!(body(&scrape().await), body(&first));
}

#[tokio::test]
async fn readiness_of_an_identity_tells_what_concerns_the_caller() {
    if !is_root() {
        served::left_out("only root can act as another uid");
        return;
    }
    let world = World::with(|plan| {
        let mut both = (*plan.identities[1]).clone();
        let mut narrow = uid(OTHER);
        narrow.resources = Some(Resources::Only(["https://vault.azure.net".into()].into()));
        both.callers = vec![uid(us()), narrow];
        plan.identities[1] = Arc::new(both);
    });
    let mut report = Report::permanent("AADSTS700213", "No match", "the subject", "mend it");
    report.correlation_id = Some("c-1".into());
    *world.entra.fails.lock().unwrap() = Some(report);
    let storage = "resource=https://storage.azure.com&identity=orders";
    assert_eq!(world.token(storage).await.status, 424);

    // Nothing stands against what this caller may ask for.
    let mut other = Other::connect(&world.socket, Some(OTHER));
    let ready = other.connection.get("/readyz/orders").await;
    assert_eq!(ready.status, 200, "{}", ready.body);
    assert_eq!(world.get("/readyz/orders").await.code(), "AADSTS700213");
    let vault = other.connection.get(&format!("/v1/token?{VAULT}")).await;
    assert_eq!(vault.status, 424);
    let unready = other.connection.get("/readyz/orders").await;
    assert_eq!(
        (unready.status, unready.code().as_str()),
        (503, "AADSTS700213")
    );

    // A caller waits for the registration entry as an admin does.
    let world = World::start();
    let report = Report::transient("svid-denied", "no entry", "no entry", "create it");
    *world.spire.fails.lock().unwrap() = Some(report);
    let mut other = Other::connect(&world.socket, Some(OTHER));
    let unready = other.connection.get("/readyz/orders").await;
    assert_eq!(
        (unready.status, unready.code().as_str()),
        (503, "svid-denied")
    );
    assert_eq!(unready.json()["fix"], "create it");
}

#[tokio::test]
async fn refresh_drops_and_renews() {
    let world = World::start();
    assert!(world.token(VAULT).await.body.contains("token-1."));
    let request = "POST /v1/refresh?identity=payments HTTP/1.1\r\nhost: x\r\n\r\n";
    let answer = world.send(request).await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, r#"{"refreshed":1}"#)
    );
    assert!(world.token(VAULT).await.body.contains("token-2."));
    let request = "POST /v1/refresh?identity=nobody HTTP/1.1\r\nhost: x\r\n\r\n";
    let answer = world.send(request).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (404, "unknown-identity")
    );
}

#[tokio::test]
async fn the_newest_configuration_counts_on_old_connections() {
    let world = World::start();
    let mut connection = world.connect().await;
    let target = format!("/v1/token?{VAULT}");
    // The first is exchanged, the second looked up, the third remembered.
    for _ in 0..3 {
        assert_eq!(connection.get(&target).await.status, 200);
    }
    world.reload(|plan| {
        let mut changed = (*plan.identities[0]).clone();
        changed.resources = Resources::Only(["https://storage.azure.com".into()].into());
        plan.identities[0] = Arc::new(changed);
    });
    let answer = connection.get(&target).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (403, "resource-not-allowed")
    );
}

#[tokio::test]
async fn a_wait_that_outlives_its_permission_ends_in_a_refusal() {
    let world = World::start();
    world.entra.gate.forget_permits(1_000_000);
    let mut connection = world.connect().await;
    connection
        .write(&format!(
            "GET /v1/token?{VAULT} HTTP/1.1\r\nhost: x\r\n\r\n"
        ))
        .await;
    world.until_exchanges(1).await;
    world.reload(|plan| {
        let mut changed = (*plan.identities[0]).clone();
        changed.callers = vec![uid(OTHER)];
        plan.identities[0] = Arc::new(changed);
    });
    world.entra.gate.add_permits(1);
    assert_eq!(connection.answer().await.status, 403);
}

#[tokio::test]
async fn a_stop_lets_requests_in_flight_finish() {
    let mut world = World::start();
    world.entra.gate.forget_permits(1_000_000);
    let mut idle = world.connect().await;
    assert_eq!(idle.get("/livez").await.status, 200);
    let mut busy = world.connect().await;
    busy.write(&format!(
        "GET /v1/token?{VAULT} HTTP/1.1\r\nhost: x\r\n\r\n"
    ))
    .await;
    world.until_exchanges(1).await;

    world.stop.cancel();
    assert!(
        timeout(SOON, idle.ended()).await.unwrap(),
        "idle connections go at once"
    );
    assert!(!world.socket.exists());
    assert!(UnixStream::connect(&world.socket).await.is_err());
    world.entra.gate.add_permits(1);
    let answer = busy.answer().await;
    assert_eq!(answer.status, 200);
    assert!(timeout(SOON, busy.ended()).await.unwrap());
    timeout(SOON, world.serving())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let mut world = World::with(|plan| plan.limits.drain = Duration::from_millis(50));
    world.entra.gate.forget_permits(1_000_000);
    let mut busy = world.connect().await;
    busy.write(&format!(
        "GET /v1/token?{VAULT} HTTP/1.1\r\nhost: x\r\n\r\n"
    ))
    .await;
    world.until_exchanges(1).await;
    world.stop.cancel();
    timeout(SOON, world.serving())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(busy.ended().await);
}

fn vault() -> GetTokenRequest {
    GetTokenRequest {
        resource: "https://vault.azure.net".into(),
        ..GetTokenRequest::default()
    }
}

#[tokio::test]
async fn grpc_gives_the_same_answers() {
    let world = World::start();
    let mut client = TokenServiceClient::new(world.channel().await);
    let token = client.get_token(vault()).await.unwrap().into_inner();
    assert!(token.access_token.starts_with("token-1.x"));
    assert_eq!(
        (token.token_type.as_str(), token.identity.as_str()),
        ("Bearer", "payments")
    );
    assert!((3590..=3600).contains(&token.expires_in));

    let denied = GetTokenRequest {
        identity: "orders".into(),
        ..vault()
    };
    let absent = GetTokenRequest {
        identity: "nobody".into(),
        ..vault()
    };
    let denied = client.get_token(denied).await.unwrap_err();
    let absent = client.get_token(absent).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert_eq!(
        (denied.code(), denied.message()),
        (absent.code(), absent.message())
    );
    assert_eq!(
        denied.metadata().get("spiffe-entra-code").unwrap(),
        "identity-not-allowed"
    );
    assert_eq!(
        denied.metadata().get_bin("spiffe-entra-problem-bin"),
        absent.metadata().get_bin("spiffe-entra-problem-bin")
    );

    let malformed = client
        .get_token(GetTokenRequest::default())
        .await
        .unwrap_err();
    assert_eq!(malformed.code(), Code::InvalidArgument);
    let huge = GetTokenRequest {
        identity: "x".repeat(17_000),
        ..vault()
    };
    let huge = client.get_token(huge).await.unwrap_err();
    assert_eq!(huge.code(), Code::OutOfRange);
    *world.entra.fails.lock().unwrap() = Some(Report::permanent("AADSTS7000112", "t", "d", "f"));
    let storage = GetTokenRequest {
        resource: "https://storage.azure.com".into(),
        ..vault()
    };
    let refused = client.get_token(storage).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(
        refused.metadata().get("spiffe-entra-code").unwrap(),
        "AADSTS7000112"
    );
}

#[tokio::test]
async fn grpc_health_and_reflection_answer() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::{
        v1::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        },
        v1alpha,
    };
    let world = World::start();
    let channel = world.channel().await;
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "spiffe_entra.v1.TokenService"] {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status, 1, "SERVING");
    }

    let mut reflection = ServerReflectionClient::new(channel.clone());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    for name in ["spiffe_entra.v1.TokenService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
    }

    let mut old = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                "spiffe_entra.v1.TokenService".into(),
            ),
        ),
    };
    let mut answers = old
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    assert!(answers.message().await.unwrap().is_some());
}

#[tokio::test]
async fn a_watch_gives_each_new_token_until_policy_says_no() {
    let world = World::start();
    let mut client = TokenServiceClient::new(world.channel().await);
    let mut tokens = client.watch_token(vault()).await.unwrap().into_inner();
    let first = tokens.message().await.unwrap().unwrap();
    assert!(first.access_token.starts_with("token-1."));

    let refresh = "POST /v1/refresh?identity=payments HTTP/1.1\r\nhost: x\r\n\r\n";
    assert_eq!(world.send(refresh).await.status, 200);
    let second = tokens.message().await.unwrap().unwrap();
    assert!(second.access_token.starts_with("token-2."));

    // What does not concern it does not end it.
    world.reload(|plan| plan.identities.truncate(1));
    assert_eq!(world.send(refresh).await.status, 200);
    let third = tokens.message().await.unwrap().unwrap();
    assert!(third.access_token.starts_with("token-3."));

    world.reload(|plan| {
        let mut changed = (*plan.identities[0]).clone();
        changed.callers = vec![uid(OTHER)];
        plan.identities[0] = Arc::new(changed);
    });
    let ended = tokens.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_watch_follows_a_changed_identity() {
    let world = World::start();
    let mut client = TokenServiceClient::new(world.channel().await);
    let mut tokens = client.watch_token(vault()).await.unwrap().into_inner();
    tokens.message().await.unwrap().unwrap();
    let changed = "2f8fad5b-d9cb-469f-a165-70867728950e";
    world.reload(|plan| {
        plan.identities[0] = Arc::new(served::identity("payments", changed, us()));
    });
    let next = tokens.message().await.unwrap().unwrap();
    assert_eq!(next.client_id, changed);
}

#[tokio::test]
async fn a_watch_ends_at_once_when_the_daemon_stops() {
    let world = World::start();
    let mut client = TokenServiceClient::new(world.channel().await);
    let mut tokens = client.watch_token(vault()).await.unwrap().into_inner();
    tokens.message().await.unwrap().unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(world.channel().await);
    let request = tonic_health::pb::HealthCheckRequest::default();
    let mut healths = health.watch(request).await.unwrap().into_inner();
    healths.message().await.unwrap().unwrap();

    let (ended, health_ended, ()) = timeout(SOON, async {
        tokio::join!(tokens.message(), healths.message(), world.stopped())
    })
    .await
    .expect("long before the drain period is over");
    for ended in [ended.unwrap_err(), health_ended.unwrap_err()] {
        assert_eq!(ended.code(), Code::Unavailable);
        assert!(
            ended.message().contains("shutting down"),
            "{}",
            ended.message()
        );
    }
}

#[tokio::test]
async fn a_watch_takes_no_claims() {
    let world = World::start();
    let mut client = TokenServiceClient::new(world.channel().await);
    let request = GetTokenRequest {
        claims: "e30".into(),
        ..vault()
    };
    assert_eq!(
        client.watch_token(request).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn grpc_over_http1_is_told_so() {
    let world = World::start();
    let answer: Answer = world
        .send(
            "POST /spiffe_entra.v1.TokenService/GetToken HTTP/1.1\r\nhost: x\r\n\
             content-type: application/grpc\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (400, "grpc-needs-http2")
    );
}

#[tokio::test]
async fn a_watch_ends_when_the_process_that_connected_does() {
    let world = World::start();
    let mut other = Other::connect(&world.socket, None);
    let (kept, _) = UnixStream::pair().unwrap();
    let stream = std::mem::replace(&mut other.connection.0, kept);
    let mut client = TokenServiceClient::new(served::channel(stream).await);
    let mut tokens = client.watch_token(vault()).await.unwrap().into_inner();
    tokens.message().await.unwrap().unwrap();
    other.end();
    let ended = timeout(SOON, tokens.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::Cancelled);
    assert!(
        ended.message().contains("process has ended"),
        "{}",
        ended.message()
    );
}

#[tokio::test]
async fn another_uid_gets_what_is_its_own_and_no_more() {
    if !is_root() {
        served::left_out("only root can act as another uid");
        return;
    }
    let world = World::start();
    world.reachable.store(false, SeqCst);
    let mut other = Other::connect(&world.socket, Some(OTHER));
    let answer = other.connection.get(&format!("/v1/token?{VAULT}")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["identity"], "orders");
    for target in ["/v1/status", "/metrics"] {
        let answer = other.connection.get(target).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (403, "admins-only")
        );
    }
    other
        .connection
        .write("POST /v1/refresh?identity=orders HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    assert_eq!(other.connection.answer().await.status, 403);
    let unready = other.connection.get("/readyz").await;
    assert_eq!(
        (unready.status, unready.code().as_str()),
        (503, "not-ready")
    );
    assert!(
        !unready.body.contains("agent"),
        "reasons are for admins: {}",
        unready.body
    );
    let identities = other.connection.get("/v1/identities").await;
    assert!(identities.body.contains("orders") && !identities.body.contains("payments"));
}

#[tokio::test]
async fn a_reload_closes_the_connections_of_those_who_lost_their_right() {
    if !is_root() {
        served::left_out("only root can act as another uid");
        return;
    }
    let world = World::start();
    let mut idle = Other::connect(&world.socket, Some(OTHER));
    assert_eq!(
        idle.connection
            .get(&format!("/v1/token?{VAULT}"))
            .await
            .status,
        200
    );
    let mut watching = Other::connect(&world.socket, Some(OTHER));
    let (kept, _) = UnixStream::pair().unwrap();
    let stream = std::mem::replace(&mut watching.connection.0, kept);
    let mut client = TokenServiceClient::new(served::channel(stream).await);
    let mut tokens = client.watch_token(vault()).await.unwrap().into_inner();
    tokens.message().await.unwrap().unwrap();
    let mut ours = world.connect().await;
    assert_eq!(ours.get("/livez").await.status, 200);

    world.reload(|plan| plan.identities.truncate(1));
    assert!(timeout(SOON, idle.connection.ended()).await.unwrap());
    let ended = timeout(SOON, tokens.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied);
    assert_eq!(ours.get("/livez").await.status, 200, "others stay");
}

#[tokio::test]
async fn idle_connections_of_one_uid_do_not_keep_another_out() {
    if !is_root() {
        served::left_out("only root can act as another uid");
        return;
    }
    let world = World::with(|plan| plan.listeners[0].max_connections = 4);
    let mut idle = Vec::new();
    // We are an admin: no uid limit but the configured one.
    for _ in 0..4 {
        let mut connection = world.connect().await;
        assert_eq!(connection.get("/livez").await.status, 200);
        idle.push(connection);
    }
    let mut other = Other::connect(&world.socket, Some(OTHER));
    assert_eq!(other.connection.get("/livez").await.status, 200);
    assert!(
        timeout(SOON, idle[0].ended()).await.unwrap(),
        "the one that is idle longest"
    );
    assert_eq!(idle[3].get("/livez").await.status, 200);
    let mut second = Other::connect(&world.socket, Some(OTHER));
    assert_eq!(second.connection.get("/livez").await.status, 200);
    let mut third = Other::connect(&world.socket, Some(OTHER));
    assert_eq!(
        third.connection.answer().await.status,
        429,
        "half of them at most"
    );
}
