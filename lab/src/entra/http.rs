//! The token endpoint's HTTP: from request to record to answer, and how faults shape the answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::stream;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use serde_json::json;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::guid;
use crate::serve::Wire;
use crate::sync::lock;

use super::exchange::{Form, Grant, decide};
use super::faults::{Fault, RetryAfter};
use super::record::Exchange;
use super::refusal::Refusal;
use super::{Settings, Shared};

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/{tenant}/oauth2/v2.0/token", any(token))
        .merge(super::discovery::router())
        .with_state(shared)
}

async fn token(
    State(shared): State<Arc<Shared>>,
    Path(tenant): Path<String>,
    Extension(wire): Extension<Wire>,
    request: Request,
) -> Response {
    shared.record.arrived.send_modify(|count| *count += 1);
    let settings = lock(&shared.settings).clone();
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, MAX_BODY).await.ok();
    let form = Form::parse(
        body.as_deref()
            .filter(|_| has_form(&parts.headers))
            .unwrap_or(b""),
    );
    let mut exchange = arrival(&parts, &form);
    let client = exchange.client_id.as_deref().unwrap_or_default();
    let faults = shared.faults.take(client, Fault::replaces);
    exchange.faults = faults.iter().map(Fault::name).collect();

    let trace_id = guid::random();
    let mut turn = Turn {
        shared: &shared,
        settings: &settings,
        trace_id: &trace_id,
        exchange,
    };
    let answer = match faults.iter().find(|fault| fault.replaces()) {
        Some(fault @ (Fault::Hang | Fault::Reset)) => {
            shared.record.push(turn.exchange, settings.keep_record);
            if matches!(fault, Fault::Reset) {
                wire.reset();
            }
            // Either the client gives up or the connection is gone.
            return std::future::pending().await;
        }
        Some(Fault::HugeBody(size)) => {
            turn.exchange.status = Some(StatusCode::OK.as_u16());
            shared.record.push(turn.exchange, settings.keep_record);
            return (headers(JSON, &trace_id), huge_body(*size)).into_response();
        }
        Some(fault) => turn.spoil(fault, &tenant),
        None if parts.method != Method::POST => turn.refuse(
            &Refusal::new(900561, &[("method", parts.method.as_str())]),
            None,
        ),
        None if body.is_none() => turn.refuse(
            &Refusal::new(9002313, &[]).detail("the body cannot be read"),
            None,
        ),
        None => match decide(&shared, &settings, &tenant, &form, &mut turn.exchange).await {
            Ok(grant) => turn.grant(&grant, &faults),
            Err(refusal) => turn.refuse(&refusal, None),
        },
    };
    turn.exchange.status = Some(answer.status.as_u16());
    shared.record.push(turn.exchange, settings.keep_record);
    deliver(answer, &faults).await
}

/// An answer before the faults that delay or cut it.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// One request while its answer is made.
struct Turn<'a> {
    shared: &'a Shared,
    settings: &'a Settings,
    trace_id: &'a str,
    exchange: Exchange,
}

impl Turn<'_> {
    fn refuse(&mut self, refusal: &Refusal, codes: Option<&[u32]>) -> Answer {
        self.exchange.code = Some(refusal.code);
        self.exchange.detail.clone_from(&refusal.detail);
        let Shared {
            authority, clock, ..
        } = self.shared;
        let correlation = &self.exchange.correlation_id;
        let separator = if self.settings.old_error_text {
            "\r\n"
        } else {
            " "
        };
        let now = clock.now();
        let body = refusal.body(authority, now, self.trace_id, correlation, codes, separator);
        let headers = headers(JSON, self.trace_id);
        Answer {
            status: refusal.status,
            headers,
            body: body.into(),
        }
    }

    fn grant(&mut self, grant: &Grant, faults: &[Fault]) -> Answer {
        let lifetime = faults.iter().find_map(|fault| match fault {
            Fault::TokenLifetime(lifetime) => Some(*lifetime),
            _ => None,
        });
        let refresh_in = faults.iter().find_map(|fault| match fault {
            Fault::RefreshIn(after) => i64::try_from(after.as_secs()).ok(),
            _ => None,
        });
        let now = self.shared.clock.now();
        let minted = match self.shared.minter.mint(grant, now, self.settings, lifetime) {
            Ok(minted) => minted,
            Err(error) => {
                let refusal = Refusal::new(90033, &[]).detail(format!("signing: {error}"));
                return self.refuse(&refusal, None);
            }
        };
        let expires_in = (minted.expires - now - 1).max(0);
        self.exchange.uti = Some(minted.uti);
        self.exchange.expires_in = Some(expires_in);
        let mut body = json!({
            "token_type": "Bearer",
            "expires_in": expires_in,
            "ext_expires_in": expires_in,
            "access_token": &*minted.token,
        });
        if let Some(after) = refresh_in.or(minted.refresh_in) {
            body["refresh_in"] = json!(after);
        }
        let headers = headers(JSON, self.trace_id);
        Answer {
            status: StatusCode::OK,
            headers,
            body: body.to_string().into(),
        }
    }

    /// The answer that a fault makes up.
    fn spoil(&mut self, fault: &Fault, tenant: &str) -> Answer {
        let plain = |status: u16, kind: &str, body: Bytes, retry_after: RetryAfter| {
            let mut headers = headers(kind, self.trace_id);
            add_retry_after(&mut headers, retry_after, self.shared.clock.now());
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Answer {
                status,
                headers,
                body,
            }
        };
        match fault {
            Fault::Throttle(retry_after) => {
                let body = Bytes::from_static(b"Too Many Requests");
                plain(429, "text/plain; charset=utf-8", body, *retry_after)
            }
            Fault::Answer {
                status,
                content_type,
                body,
                retry_after,
            } => plain(*status, content_type, body.clone().into(), *retry_after),
            Fault::Code { code, error_codes } => {
                let refusal = forced(*code, tenant, &self.exchange);
                self.refuse(&refusal, error_codes.as_deref())
            }
            // The others are no answers: `token` has seen to them.
            _ => self.refuse(&Refusal::new(90033, &[]), None),
        }
    }
}

fn has_form(headers: &HeaderMap) -> bool {
    let kind = text(headers, "content-type").and_then(|kind| kind.split(';').next());
    kind.is_some_and(|kind| kind.trim() == "application/x-www-form-urlencoded")
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// What the record says of a request before it has been looked into.
fn arrival(parts: &Parts, form: &Form) -> Exchange {
    let field = |name| form.get(name).map(str::to_owned);
    // Entra repeats the client's own id where it has one.
    let correlation_id = text(&parts.headers, "client-request-id")
        .filter(|id| guid::is_guid(id))
        .map_or_else(guid::random, str::to_owned);
    Exchange {
        at: SystemTime::now(),
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        http2: parts.version == Version::HTTP_2,
        user_agent: text(&parts.headers, "user-agent").map(str::to_owned),
        fields: form.names(),
        client_id: field("client_id"),
        scope: field("scope"),
        claims: field("claims"),
        subject: None,
        kid: None,
        assertion_expires: None,
        status: None,
        code: None,
        detail: None,
        correlation_id,
        uti: None,
        expires_in: None,
        faults: Vec::new(),
    }
}

/// Sends an answer, late or in pieces or in part.
async fn deliver(answer: Answer, faults: &[Fault]) -> Response {
    let Answer {
        status,
        mut headers,
        body,
    } = answer;
    let mut pieces = vec![body.clone()];
    let mut pause = Duration::ZERO;
    let mut cut = false;
    for fault in faults {
        match fault {
            Fault::SlowHeaders(delay) => tokio::time::sleep(*delay).await,
            Fault::SlowBody(over) => {
                let size = body.len().div_ceil(PIECES).max(1);
                pieces = body.chunks(size).map(Bytes::copy_from_slice).collect();
                pause = *over / u32::try_from(PIECES).unwrap_or(1);
            }
            Fault::CutBody => cut = true,
            _ => {}
        }
    }
    if !cut && pause.is_zero() {
        return (status, headers, body).into_response();
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    if cut {
        let half = body.slice(..body.len() / 2);
        pieces = vec![half];
    }
    let end = cut.then(|| Err(std::io::Error::other("cut by a fault")));
    let pieces = stream::iter(pieces.into_iter().map(Ok).chain(end));
    let pieces = futures_util::StreamExt::then(pieces, move |piece| async move {
        tokio::time::sleep(pause).await;
        piece
    });
    (status, headers, Body::from_stream(pieces)).into_response()
}

/// The refusal that a test asked for, with the values that the request has.
fn forced(code: u32, tenant: &str, exchange: &Exchange) -> Refusal {
    let of = |value: &Option<String>| value.clone().unwrap_or_default();
    let (client, scope) = (of(&exchange.client_id), of(&exchange.scope));
    let resource = scope.strip_suffix("/.default").unwrap_or(&scope).to_owned();
    if code == 53003 {
        return Refusal::conditional_access(&guid::random());
    }
    let values = [
        ("client", client.as_str()),
        ("tenant", tenant),
        ("scope", &scope),
        ("resource", &resource),
        ("name", "forced"),
        ("issuer", "https://forced.example"),
        ("subject", "spiffe://forced.example/subject"),
        ("audience", crate::AUDIENCE),
        ("kid", "forced"),
        ("algorithm", "ES256"),
        ("parameter", "client_assertion"),
    ];
    Refusal::new(code, &values)
}

/// What Entra sends with every answer.
pub(super) fn headers(content_type: &str, trace_id: &str) -> HeaderMap {
    let value = |text: &str| {
        HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("text/plain"))
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, value(content_type));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-store, no-cache"),
    );
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    headers.insert("x-ms-request-id", value(trace_id));
    headers
}

fn add_retry_after(headers: &mut HeaderMap, retry_after: RetryAfter, now: i64) {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let value = match retry_after {
        RetryAfter::Absent => None,
        RetryAfter::Seconds(seconds) => Some(HeaderValue::from(seconds)),
        RetryAfter::Date(seconds) => i64::try_from(seconds)
            .ok()
            .and_then(|ahead| OffsetDateTime::from_unix_timestamp(now.saturating_add(ahead)).ok())
            .and_then(|moment| moment.format(format).ok())
            .and_then(|text| HeaderValue::from_str(&text).ok()),
    };
    if let Some(value) = value {
        headers.insert(header::RETRY_AFTER, value);
    }
}

/// A JSON object that begins well and goes on and on.
fn huge_body(size: u64) -> Body {
    let start = Bytes::from_static(b"{\"token_type\":\"Bearer\",\"access_token\":\"");
    let chunk = Bytes::from(vec![b'A'; 64 << 10]);
    let chunks = usize::try_from(size / (64 << 10)).unwrap_or(usize::MAX);
    let pieces = std::iter::once(start).chain(std::iter::repeat_n(chunk, chunks));
    Body::from_stream(stream::iter(pieces.map(Ok::<_, Infallible>)))
}

pub(super) const JSON: &str = "application/json; charset=utf-8";

/// The longest form that is read.
const MAX_BODY: usize = 1 << 20;

/// In how many pieces a slow body comes.
const PIECES: usize = 8;
