//! What `:authority` clients may send over the socket, by frames made by hand: clients differ, and
//! the HTTP/2 library below refuses what is no authority (RFC 9113, section 8.3.1).
//!
//! `localhost` and none at all work (tonic, grpc-go). A socket path, percent-encoded or not, and an
//! empty string are reset with PROTOCOL_ERROR: clients built on gRPC core and grpc-java must set
//! `grpc.default_authority` to `localhost`. The library says why at debug.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod served;

use std::time::Duration;

use served::{Log, World};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PROTOCOL_ERROR: u32 = 1;

/// How a request on stream 1 was answered.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// With headers: the first HPACK byte of `:status: 200` is 0x88.
    Headers(u8),
    /// With a reset, for this reason.
    Reset(u32),
}

#[tokio::test]
async fn localhost_and_none_work_and_paths_are_reset() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("h2::server=debug,h2::frame=debug,h2=debug")
        .with_writer(log.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let world = World::start();
    for authority in [Some("localhost"), None] {
        assert_eq!(
            ask(&world, authority).await,
            Outcome::Headers(0x88),
            "{authority:?}"
        );
    }
    assert!(!log.text().contains("malformed"), "{}", log.text());
    let path = world.socket.display().to_string();
    let encoded = path.replace('/', "%2F");
    for authority in [path.as_str(), &format!("unix:{path}"), &encoded, ""] {
        let outcome = ask(&world, Some(authority)).await;
        assert_eq!(outcome, Outcome::Reset(PROTOCOL_ERROR), "{authority:?}");
    }
    // What an operator sees with `h2::server` at debug.
    assert!(
        log.text()
            .contains("malformed headers: malformed authority"),
        "{}",
        log.text()
    );
}

/// `GET /livez` over HTTP/2 with prior knowledge.
async fn ask(world: &World, authority: Option<&str>) -> Outcome {
    let mut stream = UnixStream::connect(&world.socket).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS, empty.
    bytes.extend(frame(4, 0, 0, &[]));
    // `:method: GET` and `:scheme: http` from HPACK's table; `:path` and `:authority` by its names.
    let mut block = vec![0x82, 0x86];
    literal(&mut block, 4, "/livez");
    if let Some(authority) = authority {
        literal(&mut block, 1, authority);
    }
    // END_STREAM and END_HEADERS.
    bytes.extend(frame(HEADERS, 0x5, 1, &block));
    stream.write_all(&bytes).await.unwrap();
    timeout(Duration::from_secs(5), async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload).await.unwrap();
            match (head[3], &head[5..]) {
                (HEADERS, [0, 0, 0, 1]) => return Outcome::Headers(payload[0]),
                (RST_STREAM, [0, 0, 0, 1]) => {
                    return Outcome::Reset(u32::from_be_bytes(payload.try_into().unwrap()));
                }
                _ => {}
            }
        }
    })
    .await
    .unwrap()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A literal header field without indexing whose name is in HPACK's static table (RFC 7541, 6.2.2).
fn literal(block: &mut Vec<u8>, name: u8, value: &str) {
    let length = u8::try_from(value.len()).unwrap();
    assert!(length < 127, "one byte of length");
    block.extend([name, length]);
    block.extend(value.as_bytes());
}
