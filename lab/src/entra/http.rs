//! The fake's routes, and how faults shape their answers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::{Body, to_bytes};
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::guid;
use crate::serve::Wire;
use crate::sync::lock;

use super::Shared;
use super::directory::TenantLookup;
use super::exchange::{Form, decide};
use super::faults::{Fault, RetryAfter};
use super::record::Exchange;
use super::refusal::Refusal;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/{tenant}/oauth2/v2.0/token", any(token))
        .route(
            "/{tenant}/v2.0/.well-known/openid-configuration",
            get(discovery_v2),
        )
        .route(
            "/{tenant}/.well-known/openid-configuration",
            get(discovery_v1),
        )
        .route("/{tenant}/discovery/v2.0/keys", get(keys))
        .route("/{tenant}/discovery/keys", get(keys))
        .route("/common/discovery/instance", get(instance))
        .with_state(shared)
}

/// An answer before the faults that delay or cut it.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
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
    let text = |name| {
        parts
            .headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    // Entra repeats the client's own id where it has one.
    let correlation_id = text("client-request-id")
        .filter(|id| guid::is_guid(id))
        .map_or_else(guid::random, str::to_owned);
    let trace_id = guid::random();
    let form_body = text("content-type").is_some_and(|kind| {
        kind.split(';')
            .next()
            .is_some_and(|kind| kind.trim() == "application/x-www-form-urlencoded")
    });
    let body = to_bytes(body, MAX_BODY).await;
    let form = match &body {
        Ok(body) if form_body => Form::parse(body),
        _ => Form::parse(b""),
    };
    let field = |name| form.get(name).map(str::to_owned);
    let mut exchange = Exchange {
        at: SystemTime::now(),
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        http2: parts.version == Version::HTTP_2,
        user_agent: text("user-agent").map(str::to_owned),
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
    };
    let faults = shared.faults.take(
        exchange.client_id.as_deref().unwrap_or_default(),
        Fault::replaces,
    );
    exchange.faults = faults.iter().map(Fault::name).collect();

    let refuse = |refusal: &Refusal, exchange: &mut Exchange, codes: Option<&[u32]>| {
        exchange.code = Some(refusal.code);
        exchange.detail.clone_from(&refusal.detail);
        let now = shared.clock.now();
        let body = refusal.body(
            &shared.authority,
            now,
            &trace_id,
            &exchange.correlation_id,
            codes,
        );
        Answer {
            status: refusal.status,
            headers: headers(JSON, &trace_id),
            body: body.into(),
        }
    };
    let fault = faults.iter().find(|fault| fault.replaces());
    let answer = match fault {
        Some(Fault::Hang | Fault::Reset) => {
            let reset = matches!(fault, Some(Fault::Reset));
            shared.record.push(exchange, settings.keep_record);
            if reset {
                wire.reset();
            }
            // Either the client gives up or the connection is gone.
            return std::future::pending::<Response>().await;
        }
        Some(Fault::HugeBody(size)) => {
            exchange.status = Some(200);
            shared.record.push(exchange, settings.keep_record);
            return (headers(JSON, &trace_id), huge_body(*size)).into_response();
        }
        Some(Fault::Throttle(retry_after)) => {
            let mut headers = headers("text/plain; charset=utf-8", &trace_id);
            add_retry_after(&mut headers, *retry_after, shared.clock.now());
            let body = Bytes::from_static(b"Too Many Requests");
            Answer {
                status: StatusCode::TOO_MANY_REQUESTS,
                headers,
                body,
            }
        }
        Some(Fault::Answer {
            status,
            content_type,
            body,
            retry_after,
        }) => {
            let mut headers = headers(content_type, &trace_id);
            add_retry_after(&mut headers, *retry_after, shared.clock.now());
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Answer {
                status,
                headers,
                body: body.clone().into(),
            }
        }
        Some(Fault::Code { code, error_codes }) => {
            let refusal = forced(*code, &tenant, &exchange);
            refuse(&refusal, &mut exchange, error_codes.as_deref())
        }
        _ if parts.method != Method::POST => {
            let refusal = Refusal::new(900561, &[("method", parts.method.as_str())]);
            refuse(&refusal, &mut exchange, None)
        }
        _ => {
            let outcome = match &body {
                Ok(_) => decide(&shared, &settings, &tenant, &form, &mut exchange).await,
                Err(_) => Err(Refusal::new(9002313, &[]).detail("the body cannot be read")),
            };
            match outcome {
                Err(refusal) => refuse(&refusal, &mut exchange, None),
                Ok(grant) => {
                    let lifetime = faults.iter().find_map(|fault| match fault {
                        Fault::TokenLifetime(lifetime) => Some(*lifetime),
                        _ => None,
                    });
                    let now = shared.clock.now();
                    match shared.minter.mint(&grant, now, &settings, lifetime) {
                        Err(error) => {
                            tracing::error!(%error, "signing failed");
                            refuse(&Refusal::new(90033, &[]), &mut exchange, None)
                        }
                        Ok(minted) => {
                            let expires_in = (minted.expires - now - 1).max(0);
                            exchange.uti = Some(minted.uti);
                            exchange.expires_in = Some(expires_in);
                            let mut body = json!({
                                "token_type": "Bearer",
                                "expires_in": expires_in,
                                "ext_expires_in": expires_in,
                                "access_token": &*minted.token,
                            });
                            let refresh_in = faults.iter().find_map(|fault| match fault {
                                Fault::RefreshIn(after) => i64::try_from(after.as_secs()).ok(),
                                _ => None,
                            });
                            if let Some(after) = refresh_in.or(minted.refresh_in) {
                                body["refresh_in"] = json!(after);
                            }
                            Answer {
                                status: StatusCode::OK,
                                headers: headers(JSON, &trace_id),
                                body: body.to_string().into(),
                            }
                        }
                    }
                }
            }
        }
    };
    exchange.status = Some(answer.status.as_u16());
    shared.record.push(exchange, settings.keep_record);
    deliver(answer, &faults).await
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
fn headers(content_type: &str, trace_id: &str) -> HeaderMap {
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

async fn discovery_v2(State(shared): State<Arc<Shared>>, Path(tenant): Path<String>) -> Response {
    discovery(&shared, &tenant, "v2.0")
}

async fn discovery_v1(State(shared): State<Arc<Shared>>, Path(tenant): Path<String>) -> Response {
    discovery(&shared, &tenant, "v1.0")
}

fn discovery(shared: &Shared, tenant: &str, version: &str) -> Response {
    let id = match shared.directory.tenant(tenant) {
        TenantLookup::Found(id) => id,
        // The shared endpoints have a document with a placeholder for the tenant.
        TenantLookup::Shared => "{tenantid}".to_owned(),
        TenantLookup::Unknown | TenantLookup::Malformed => {
            return get_refusal(shared, &Refusal::new(90002, &[("tenant", tenant)]));
        }
    };
    let authority = &shared.authority;
    let base = format!("{authority}/{tenant}");
    let (issuer, keys) = match version {
        "v2.0" => (
            format!("{authority}/{id}/v2.0"),
            format!("{base}/discovery/v2.0/keys"),
        ),
        _ => (
            format!("https://sts.windows.net/{id}/"),
            format!("{base}/discovery/keys"),
        ),
    };
    Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
        "token_endpoint": format!("{base}/oauth2/v2.0/token"),
        "jwks_uri": keys,
        "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "token_endpoint_auth_methods_supported":
            ["client_secret_post", "private_key_jwt", "client_secret_basic"],
        "tenant_region_scope": "EU",
        "cloud_instance_name": "microsoftonline.com",
    }))
    .into_response()
}

async fn keys(State(shared): State<Arc<Shared>>, Path(tenant): Path<String>) -> Response {
    match shared.directory.tenant(&tenant) {
        TenantLookup::Found(_) | TenantLookup::Shared => Json(shared.minter.jwks()).into_response(),
        TenantLookup::Unknown | TenantLookup::Malformed => {
            get_refusal(&shared, &Refusal::new(90002, &[("tenant", &tenant)]))
        }
    }
}

#[derive(Deserialize)]
struct InstanceQuery {
    authorization_endpoint: Option<String>,
}

/// Instance discovery: this authority is known, no other is.
async fn instance(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<InstanceQuery>,
) -> Response {
    let endpoint = query.authorization_endpoint.unwrap_or_default();
    let tenant = endpoint
        .strip_prefix(&*shared.authority)
        .and_then(|path| path.strip_prefix('/'))
        .and_then(|path| path.split('/').next())
        .filter(|tenant| !tenant.is_empty());
    let Some(tenant) = tenant else {
        return get_refusal(&shared, &Refusal::new(50049, &[]));
    };
    let authority = &shared.authority;
    let host = authority.trim_start_matches("https://");
    Json(json!({
        "tenant_discovery_endpoint":
            format!("{authority}/{tenant}/v2.0/.well-known/openid-configuration"),
        "api-version": "1.1",
        "metadata": [{ "preferred_network": host, "preferred_cache": host, "aliases": [host] }],
    }))
    .into_response()
}

fn get_refusal(shared: &Shared, refusal: &Refusal) -> Response {
    let (trace_id, correlation_id) = (guid::random(), guid::random());
    let now = shared.clock.now();
    let body = refusal.body(&shared.authority, now, &trace_id, &correlation_id, None);
    (refusal.status, headers(JSON, &trace_id), body).into_response()
}

const JSON: &str = "application/json; charset=utf-8";

/// The longest form that is read.
const MAX_BODY: usize = 1 << 20;

/// In how many pieces a slow body comes.
const PIECES: usize = 8;
