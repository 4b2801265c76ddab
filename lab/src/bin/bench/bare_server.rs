//! The limit: a hyper server on a Unix socket that answers the same bytes to whatever is asked.
//!
//! It runs as a child, as the product does, and with the same kind of runtime.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lab::daemon::{Answer, Connection, tied};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep};

use super::Failure;

/// A running bare server. Dropping it kills it.
pub(crate) struct BareServer {
    child: Child,
    folder: TempDir,
}

impl BareServer {
    /// Starts one on a core that answers as the product has answered.
    pub(crate) async fn start(core: usize, answer: &Answer) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("bare-").tempdir()?;
        let mut text = String::new();
        for (name, value) in &answer.headers {
            // hyper writes these two itself, here as there.
            if name != header::CONTENT_LENGTH && name != header::DATE {
                let value = value.to_str().map_err(io::Error::other)?;
                text.push_str(&format!("{name}: {value}\n"));
            }
        }
        text.push('\n');
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&answer.body);
        fs::write(folder.path().join(ANSWER), bytes)?;
        let own: PathBuf = std::env::current_exe()?;
        let mut command: Command = tied(&own, Some(core));
        let child = command.arg(BARE).arg(folder.path()).spawn()?;
        let server = Self { child, folder };
        let began = Instant::now();
        while Connection::open(&server.socket()).await.is_err() {
            if began.elapsed() > Duration::from_secs(10) {
                return Err(Failure::Odd("the bare server does not start".to_owned()));
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(server)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Becomes the bare server, when this process was started to be one.
pub(crate) fn enter() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != BARE {
        return None;
    }
    let folder = PathBuf::from(args.next()?);
    Some(match serve(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

// One core, so one worker: what the product's runtime comes to there.
#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn serve(folder: &Path) -> io::Result<()> {
    let bytes = fs::read(folder.join(ANSWER))?;
    let end = bytes
        .windows(2)
        .position(|two| two == b"\n\n")
        .ok_or(io::ErrorKind::InvalidData)?;
    let mut headers = HeaderMap::new();
    for line in String::from_utf8_lossy(&bytes[..end]).lines() {
        let (name, value) = line.split_once(": ").ok_or(io::ErrorKind::InvalidData)?;
        let name = HeaderName::try_from(name).map_err(io::Error::other)?;
        headers.insert(
            name,
            HeaderValue::try_from(value).map_err(io::Error::other)?,
        );
    }
    let body = Bytes::copy_from_slice(&bytes[end + 2..]);
    let listener = UnixListener::bind(folder.join(SOCKET))?;
    let accept = async move {
        loop {
            let (stream, _) = listener.accept().await?;
            let (headers, body) = (headers.clone(), body.clone());
            tokio::spawn(async move {
                let service = service_fn(move |_request| {
                    let mut response = Response::new(Full::new(body.clone()));
                    response.headers_mut().clone_from(&headers);
                    std::future::ready(Ok::<_, std::convert::Infallible>(response))
                });
                // It ends when the load does, with whatever error that is.
                let _ = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    };
    // On the worker, as the product's accept loop.
    tokio::spawn(accept).await.map_err(io::Error::other)?
}

/// The argument by which the child is known.
const BARE: &str = "@bare";
const ANSWER: &str = "answer";
const SOCKET: &str = "s";
