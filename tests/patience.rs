//! How long the server waits for whom. The clock is paused and runs when nothing else does; both
//! ends of every connection are in this runtime, so nothing is under way when it does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod served;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use served::World;
use tokio::{
    net::UnixStream,
    time::{Instant, timeout},
};

/// The paused clock gets there at once.
const TOO_LONG: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn a_request_must_come_within_ten_seconds_of_its_first_byte() {
    let world = World::start();
    let begin = Instant::now();
    let mut silent = world.connect().await;
    let mut slow = world.connect().await;
    assert_eq!(slow.get("/livez").await.status, 200);
    slow.write("GET /livez HTT").await;
    assert!(timeout(TOO_LONG, slow.ended()).await.unwrap());
    let waited = begin.elapsed().as_secs_f64();
    assert!((9.9..10.2).contains(&waited), "{waited}");
    assert!(silent.ended().await);
    let waited = begin.elapsed().as_secs_f64();
    assert!((9.9..10.2).contains(&waited), "{waited}");

    // A byte now and then buys no time.
    let begin = Instant::now();
    let mut dripping = world.connect().await;
    for byte in "GET /livez HTTP/1.1".chars() {
        if tokio::io::AsyncWriteExt::write_all(&mut dripping.0, &[byte as u8])
            .await
            .is_err()
        {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let waited = begin.elapsed().as_secs_f64();
    assert!((9.9..12.0).contains(&waited), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_kept_for_five_minutes() {
    let world = World::start();
    let mut connection = world.connect().await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(connection.get("/livez").await.status, 200);
        tokio::time::sleep(Duration::from_secs(235)).await;
        assert_eq!(connection.get("/livez").await.status, 200);
    }
    let begin = Instant::now();
    assert!(timeout(TOO_LONG, connection.ended()).await.unwrap());
    let waited = begin.elapsed().as_secs();
    assert!((300..=361).contains(&waited), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_http2_connection_is_kept_for_five_minutes() {
    let world = World::start();
    let stream = UnixStream::connect(&world.socket).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let ended = tokio::spawn(connection);
    let request = http::Request::get("http://localhost/livez")
        .body(Empty::<Bytes>::new())
        .unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    let begin = Instant::now();
    timeout(TOO_LONG, ended).await.unwrap().unwrap().unwrap();
    let waited = begin.elapsed().as_secs();
    assert!((300..=361).contains(&waited), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_not_idle() {
    use spiffe_entra::server::proto::{GetTokenRequest, token_service_client::TokenServiceClient};
    let world = World::start();
    let mut client = TokenServiceClient::new(world.channel().await);
    let request = GetTokenRequest {
        resource: "https://vault.azure.net".into(),
        ..GetTokenRequest::default()
    };
    let mut tokens = client.watch_token(request).await.unwrap().into_inner();
    tokens.message().await.unwrap().unwrap();
    // Ends before a token would be renewed: then its fake clock and ours part.
    let quiet = timeout(Duration::from_secs(600), tokens.message()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}
