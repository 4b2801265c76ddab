//! The log and the audit trail, both on stderr, one event a line.
//!
//! The log is for people, or JSON. Audit lines (target [`AUDIT`]) are JSON whatever the log is, and
//! no filter turns them off. They share stderr with the log so that nothing has to be read twice and
//! their order is kept: `"target":"audit"` tells them apart.
//!
//! What other crates log is capped, see [`cap`]: no filter can make a token appear.

use std::{
    io::{self, IsTerminal, Write},
    panic,
};

use clap::ValueEnum;
use tracing::{Level, Metadata, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
};

/// The target of audit events.
pub const AUDIT: &str = "audit";

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error(
        "the log filter `{0}` is no level (off, error, warn, info, debug, trace) and no list of \
         module=level: {1}; change --log or RUST_LOG"
    )]
    Filter(String, tracing_subscriber::filter::ParseError),
    /// Called twice.
    #[error("the log is set up already")]
    Twice,
}

/// Starts the log and the audit trail.
pub fn init(format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    let colour =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let subscriber = subscriber(format, filter, colour, io::stderr)?;
    // Not `SubscriberInitExt::init`, which also takes the records of the `log` crate: reqwest's
    // connector can write whole requests there.
    tracing::subscriber::set_global_default(subscriber)
        .map_err(|_already_set| TelemetryError::Twice)
}

/// Makes a panic one line that says where, and what only when that is a literal of the source: a
/// formatted message may quote a token, as the one of a slice out of bounds does.
pub fn catch_panics() {
    panic::set_hook(Box::new(|info| {
        let place = info
            .location()
            .map_or_else(String::new, ToString::to_string);
        let what = info.payload().downcast_ref::<&'static str>();
        let what = what.copied().unwrap_or("(not shown: may hold a secret)");
        if tracing::dispatcher::has_been_set() {
            tracing::error!(place, what, "panicked; please report this bug");
        } else {
            let line = format!("spiffe-entra: bug at {place}: {what}; please report it\n");
            // Nobody left to tell when stderr is closed.
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }));
}

fn subscriber<W>(
    format: LogFormat,
    filter: &str,
    colour: bool,
    writer: W,
) -> Result<impl Subscriber + Send + Sync + 'static, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Clone + Send + Sync + 'static,
{
    let asked = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(filter)
        .map_err(|error| TelemetryError::Filter(filter.into(), error))?;
    // A formatter that cannot write says so with `eprintln!`, which panics when it is stderr that
    // is gone: a lost line must not end the daemon.
    let line = || {
        fmt::layer()
            .with_writer(OneLine(writer.clone()))
            .log_internal_errors(false)
    };
    let log = match format {
        LogFormat::Human => line().with_ansi(colour).boxed(),
        LogFormat::Json => line().json().flatten_event(true).boxed(),
    };
    let audit = line()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false);
    let cap = filter_fn(|event| event.target() != AUDIT && *event.level() <= cap(event))
        .with_max_level_hint(LevelFilter::TRACE);
    let audit_only = filter_fn(|event| event.target() == AUDIT && *event.level() <= Level::INFO)
        .with_max_level_hint(LevelFilter::INFO);
    let layers = [
        log.with_filter(asked.and(cap)).boxed(),
        audit.with_filter(audit_only).boxed(),
    ];
    Ok(Registry::default().with(Vec::from(layers)))
}

/// The most that may be logged for a module, whatever the filter says.
///
/// Everything of ours. Of the others, `debug` where their sources were read (h2 0.4, hyper-util
/// 0.1, tonic 0.14, tower 0.5): h2 shows frames there by kind, stream and flags, without headers
/// and data, and says why it refused a request, which is how an unusable `:authority` is found.
/// Anything else stays at `info`.
fn cap(event: &Metadata<'_>) -> Level {
    let root = event.target().split("::").next().unwrap_or_default();
    match root {
        "spiffe_entra" => Level::TRACE,
        "h2" | "hyper_util" | "tonic" | "tower" => Level::DEBUG,
        _ => Level::INFO,
    }
}

/// Keeps an event on one line: a value that a caller chose cannot forge the next one.
#[derive(Clone)]
struct OneLine<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for OneLine<W> {
    type Writer = OneLine<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLine(self.0.make_writer())
    }
}

impl<W: Write> Write for OneLine<W> {
    /// Gets a whole event at once: the formatter buffers it.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = event.strip_suffix(b"\n").unwrap_or(event);
        if text.iter().any(|b| matches!(b, b'\n' | b'\r')) {
            let mut escaped = String::from_utf8_lossy(text)
                .replace('\n', "\\n")
                .replace('\r', "\\r");
            escaped.push('\n');
            // In one write: between two, another thread's line would land on this one.
            self.0.write_all(escaped.as_bytes())?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// What was written, one entry a write.
    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Captured {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().concat()).unwrap()
        }

        fn writes(&self) -> usize {
            self.0.lock().unwrap().len()
        }
    }

    fn captured(format: LogFormat, filter: &str, events: impl FnOnce()) -> Captured {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = subscriber(format, filter, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, events);
        captured
    }

    fn logged(format: LogFormat, filter: &str, events: impl FnOnce()) -> String {
        captured(format, filter, events).text()
    }

    #[test]
    fn audit_is_json_and_cannot_be_turned_off() {
        for format in [LogFormat::Human, LogFormat::Json] {
            let text = logged(format, "off,audit=off", || {
                tracing::info!(target: AUDIT, uid = 7, identity = "a\nb", "granted");
                tracing::error!("dropped");
            });
            assert_eq!(text.lines().count(), 1, "{text}");
            let line: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(line["target"], "audit");
            assert_eq!(line["uid"], 7);
            assert_eq!(line["identity"], "a\nb");
            assert_eq!(line["message"], "granted");
        }
    }

    #[test]
    fn the_filter_is_obeyed_and_info_is_the_default() {
        let events = || {
            tracing::info!("one");
            tracing::debug!("two");
        };
        let lines = |filter| logged(LogFormat::Human, filter, events).lines().count();
        assert_eq!(
            (lines("info"), lines(""), lines("trace"), lines("warn")),
            (1, 1, 2, 0)
        );
        assert!(matches!(
            subscriber(LogFormat::Json, "spiffe_entra=loud", false, io::sink),
            Err(TelemetryError::Filter(..))
        ));
    }

    #[test]
    fn no_value_makes_a_second_line() {
        let text = logged(LogFormat::Human, "info", || {
            tracing::warn!(identity = %"x\n2026-01-01 INFO forged\r", "denied");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(r"x\n2026-01-01 INFO forged\r"), "{text}");
    }

    /// Between two writes another thread's line could come in, an audit line of JSON for one.
    #[test]
    fn every_event_is_one_write() {
        for format in [LogFormat::Human, LogFormat::Json] {
            let captured = captured(format, "info", || {
                tracing::warn!(identity = %"x\nforged\r", "denied");
                tracing::info!(target: AUDIT, identity = "a\nb", "granted");
                tracing::info!("plain");
            });
            assert_eq!(captured.text().lines().count(), 3);
            assert_eq!(captured.writes(), 3, "{}", captured.text());
        }
    }

    #[test]
    fn other_crates_stay_below_their_cap() {
        let text = logged(LogFormat::Human, "trace,h2=trace,rustls=trace", || {
            tracing::trace!(target: "h2::codec::framed_write", "no-1");
            tracing::debug!(target: "h2::server", "yes-1");
            tracing::debug!(target: "rustls::client", "no-2");
            tracing::debug!(target: "reqwest", "no-3");
            tracing::info!(target: "rustls::client", "yes-2");
            tracing::trace!(target: "spiffe_entra::tokens", "yes-3");
        });
        assert_eq!(text.matches("yes-").count(), 3, "{text}");
        assert!(!text.contains("no-"), "{text}");
    }

    /// What h2 and hyper really do with a request, an answer and a stream that carry a secret.
    #[test]
    fn no_filter_shows_what_a_connection_carries() {
        use bytes::Bytes;
        use http::{HeaderMap, Request, Response};
        use http_body_util::{BodyExt, Full};
        use hyper::{client::conn::http2, service::service_fn};
        use hyper_util::{
            rt::{TokioExecutor, TokioIo},
            server::conn::auto,
        };

        const SECRET: &str = "eyJhbGciOi.c2VjcmV0.c2lnbmF0dXJl";
        let exchange = async || {
            let (client, server) = tokio::io::duplex(4096);
            let service = service_fn(async |request: Request<hyper::body::Incoming>| {
                let asked = request.into_body().collect().await?.to_bytes();
                let trailers = async { Some(Ok(HeaderMap::from_iter([header()]))) };
                let body = Full::new(asked).with_trailers(trailers);
                let mut response = Response::new(body);
                response.headers_mut().extend([header()]);
                Ok::<_, hyper::Error>(response)
            });
            fn header() -> (http::HeaderName, http::HeaderValue) {
                let name = http::HeaderName::from_static("x-token");
                (name, http::HeaderValue::from_static(SECRET))
            }
            let serving = auto::Builder::new(TokioExecutor::new());
            let serving = serving.serve_connection(TokioIo::new(server), service);
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(client))
                    .await
                    .unwrap();
            let asking = async {
                let request = Request::post(format!("http://localhost/{SECRET}"))
                    .header("authorization", format!("Bearer {SECRET}"))
                    .body(Full::new(Bytes::from_static(SECRET.as_bytes())));
                let response = sender.send_request(request.unwrap()).await.unwrap();
                response.into_body().collect().await.unwrap().to_bytes()
            };
            tokio::select! {
                body = asking => assert_eq!(body, SECRET),
                ended = serving => panic!("the server ended: {:?}", ended.err()),
                ended = connection => panic!("the client ended: {ended:?}"),
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        for format in [LogFormat::Human, LogFormat::Json] {
            let text = logged(format, "trace", || runtime.block_on(exchange()));
            assert!(text.contains("h2::"), "something was logged: {text}");
            for part in SECRET.split('.') {
                assert!(!text.contains(part), "{text}");
            }
        }
    }
}
