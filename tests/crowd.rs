//! A crowded socket: who gets a place, who has to go, and that nobody stays who was told to.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod served;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use served::{Http1, OTHER, Other, VAULT, World, channel, is_root};
use tokio::{
    net::UnixStream,
    time::{Instant, timeout},
};
use tonic::Streaming;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};

const SOON: Duration = Duration::from_secs(5);
/// uids that no identity is for.
const STRANGERS: [u32; 2] = [5151, 5152];

#[tokio::test]
async fn strangers_ask_for_health_and_fill_no_socket() {
    if !is_root() {
        served::left_out("only root can act as another uid");
        return;
    }
    let world = World::start();
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stranger = Other::connect(&world.socket, Some(STRANGERS[0]));
        for target in ["/livez", "/readyz"] {
            assert_eq!(stranger.connection.get(target).await.status, 200);
        }
        held.push(stranger);
    }
    let mut ninth = Other::connect(&world.socket, Some(STRANGERS[0]));
    let answer = ninth.connection.answer().await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (429, "too-many-connections")
    );
    let mut second = Other::connect(&world.socket, Some(STRANGERS[1]));
    assert_eq!(second.connection.get("/livez").await.status, 200);
    assert!(timeout(SOON, held[0].connection.ended()).await.unwrap());
    let mut known = Other::connect(&world.socket, Some(OTHER));
    let token = known.connection.get(&format!("/v1/token?{VAULT}")).await;
    assert_eq!(token.status, 200, "{}", token.body);
}

#[tokio::test]
async fn a_stranger_who_does_not_listen_is_cut_off() {
    if !is_root() {
        served::left_out("only root can act as another uid");
        return;
    }
    let world = World::with(|plan| plan.listeners[0].max_connections = 4);
    let mut stranger = Other::connect(&world.socket, Some(STRANGERS[0]));
    // tonic's client keeps a connection with a stream on it, whatever GOAWAY says.
    let mut health = watch_health(take(&mut stranger.connection)).await;
    health.message().await.unwrap().unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut connection = world.connect().await;
        assert_eq!(connection.get("/livez").await.status, 200);
        held.push(connection);
    }
    let mut newcomer = Other::connect(&world.socket, Some(OTHER));
    assert_eq!(newcomer.connection.get("/livez").await.status, 200);
    timeout(SOON, health.message()).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn streams_of_health_and_half_sent_requests_keep_no_place() {
    if !is_root() {
        served::left_out("only root can act as another uid");
        return;
    }
    let world = World::with(|plan| plan.listeners[0].max_connections = 4);
    let mut streams = Vec::new();
    let mut halves = Vec::new();
    for _ in 0..2 {
        let stream = UnixStream::connect(&world.socket).await.unwrap();
        let mut health = watch_health(stream).await;
        health.message().await.unwrap().unwrap();
        streams.push(health);
        halves.push(tokio::spawn(half_sent(&world).await));
    }
    let mut newcomers = Vec::new();
    for _ in 0..2 {
        let mut newcomer = Other::connect(&world.socket, Some(OTHER));
        assert_eq!(newcomer.connection.get("/livez").await.status, 200);
        newcomers.push(newcomer);
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_request_comes_to_its_end_within_ten_seconds() {
    let world = World::start();
    let begin = Instant::now();
    let answer = half_sent(&world).await.await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "4", "deadline exceeded");
    let waited = begin.elapsed().as_millis();
    assert!((9_900..11_000).contains(&waited), "{waited} ms");
}

#[tokio::test]
async fn streams_of_health_and_reflection_end_with_the_last_right() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest,
    };
    if !is_root() {
        served::left_out("only root can act as another uid");
        return;
    }
    let world = World::start();
    let mut other = Other::connect(&world.socket, Some(OTHER));
    let channel = channel(take(&mut other.connection)).await;
    let request = HealthCheckRequest::default();
    let mut health = HealthClient::new(channel.clone());
    let mut health = health.watch(request).await.unwrap().into_inner();
    health.message().await.unwrap().unwrap();
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let endless = tokio_stream::StreamExt::chain(
        tokio_stream::once(question),
        tokio_stream::pending::<ServerReflectionRequest>(),
    );
    let mut reflection = ServerReflectionClient::new(channel);
    let answers = reflection.server_reflection_info(endless).await.unwrap();
    let mut answers = answers.into_inner();
    answers.message().await.unwrap().unwrap();

    world.reload(|plan| plan.identities.truncate(1));
    timeout(SOON, health.message()).await.unwrap().unwrap_err();
    timeout(SOON, answers.message()).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn who_gets_an_identity_by_a_reload_is_a_stranger_no_longer() {
    if !is_root() {
        served::left_out("only root can act as another uid");
        return;
    }
    let world = World::start();
    let mut other = Other::connect(&world.socket, Some(STRANGERS[0]));
    assert_eq!(other.connection.get("/livez").await.status, 200);
    world.reload(|plan| {
        plan.identities.push(std::sync::Arc::new(served::identity(
            "new",
            "3f8fad5b-d9cb-469f-a165-70867728950e",
            STRANGERS[0],
        )));
    });
    let token = other.connection.get(&format!("/v1/token?{VAULT}")).await;
    assert_eq!(token.status, 200, "{}", token.body);
}

/// We are outside the pid namespace of the server: it cannot see our pid.
#[tokio::test]
async fn a_caller_without_a_pid_is_known_by_its_uid() {
    use std::{
        io::{BufRead, BufReader},
        process::{Command, Stdio},
    };
    let unshare = |program: &std::ffi::OsStr| {
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child"])
            .arg(program);
        command
    };
    if !is_root() || !unshare("true".as_ref()).status().is_ok_and(|s| s.success()) {
        served::left_out("only root can make a pid namespace");
        return;
    }
    let mut server = unshare(std::env::current_exe().unwrap().as_os_str())
        .args(["--exact", "as_a_server_in_a_namespace", "--nocapture"])
        .env(NAMESPACE_VARIABLE, "1")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut told = String::new();
    BufReader::new(server.stderr.take().unwrap())
        .read_line(&mut told)
        .unwrap();
    let stream = UnixStream::connect(told.trim_end()).await.unwrap();
    let token = Http1(stream).get(&format!("/v1/token?{VAULT}")).await;
    assert_eq!(token.status, 200, "{}", token.body);
    drop(server.stdin.take());
    assert!(server.wait().unwrap().success(), "the server saw a pid");
}

/// The other side of it. Does nothing in an ordinary run.
#[tokio::test]
async fn as_a_server_in_a_namespace() {
    if std::env::var_os(NAMESPACE_VARIABLE).is_none() {
        return;
    }
    let log = served::Log::default();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true);
    let _guard = tracing::subscriber::set_default(subscriber.with_writer(log.clone()).finish());
    let world = World::start();
    eprintln!("{}", world.socket.display());
    let end = tokio::task::spawn_blocking(|| std::io::stdin().lines().count());
    end.await.unwrap();
    world.stopped().await;
    let line = log
        .text()
        .lines()
        .find(|line| line.contains("granted"))
        .unwrap()
        .to_owned();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["uid"], line.get("pid")), (&0.into(), None), "{line}");
}

const NAMESPACE_VARIABLE: &str = "SERVED_IN_A_NAMESPACE";

async fn watch_health(stream: UnixStream) -> Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest::default();
    let mut client = HealthClient::new(channel(stream).await);
    client.watch(request).await.unwrap().into_inner()
}

/// A request for a token whose body does not come; its answer.
async fn half_sent(
    world: &World,
) -> impl Future<Output = hyper::Result<http::Response<hyper::body::Incoming>>> + Send + use<> {
    let stream = UnixStream::connect(&world.socket).await.unwrap();
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    tokio::spawn(connection);
    let never = tokio_stream::pending::<Result<http_body::Frame<Bytes>, std::io::Error>>();
    let request = http::Request::post("http://localhost/spiffe_entra.v1.TokenService/GetToken")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(never).boxed())
        .unwrap();
    sender.ready().await.unwrap();
    sender.send_request(request)
}

/// The stream of a connection, to speak something else over it.
fn take(connection: &mut Http1) -> UnixStream {
    let (kept, _) = UnixStream::pair().unwrap();
    std::mem::replace(&mut connection.0, kept)
}
