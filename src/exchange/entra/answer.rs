//! What an answer of the token endpoint means. Pure: status, headers and body in, a token or a
//! reason out.
//!
//! Nothing that was received is trusted to be what it should be: between this machine and Entra
//! there are proxies, portals and load balancers that answer in its name.

use std::{borrow::Cow, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use url::Url;
use zeroize::Zeroizing;

use super::{
    REQUEST_ID,
    text::{TimeRange, clean, identifier, retry_after},
};
use crate::{
    exchange::{Class, ExchangeError, ExchangeRequest, IssuedToken, aadsts},
    report::Report,
    secret::Secret,
};

/// Longer than any token Entra issues (28 hours with continuous access evaluation). What claims
/// more is believed for this long.
const LIFETIME_LIMIT: i64 = 48 * 3600;

/// Entra's code for an assertion that is out of its time range.
const STALE: u32 = 700_024;

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) request: ExchangeRequest<'a>,
    pub(super) request_id: &'a str,
}

/// An answer, complete.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Wiped: it may hold a token.
    pub(super) body: Zeroizing<Vec<u8>>,
}

/// Reads an answer that arrived at `now`.
pub(super) fn read(
    reply: &Reply,
    asked: &Asked<'_>,
    now: i64,
) -> Result<IssuedToken, ExchangeError> {
    if reply.status.is_redirection() {
        return Err(redirected(reply, asked));
    }
    if reply.status.is_success()
        && let Ok(answer) = serde_json::from_slice::<Success>(&reply.body)
        && answer.error.is_none()
    {
        return issued(answer, reply, asked);
    }
    Err(refused(reply, asked, now))
}

/// An answer that was given up because of its size.
pub(super) fn too_large(
    response: &reqwest::Response,
    asked: &Asked<'_>,
    limit: usize,
) -> ExchangeError {
    let status = response.status();
    let class = aadsts::class_by_status(status.as_u16());
    asked.error(
        // What is wrong with a huge 200 is not known; it may be somebody else's for the moment.
        if status.is_success() {
            Class::Transient
        } else {
            class
        },
        "entra-too-large",
        "The answer is far too large to be Entra's",
        format!(
            "{}: HTTP {status}, a huge body of more than {limit} bytes",
            asked.place()
        ),
        SOMEBODY_ELSE,
    )
}

const SOMEBODY_ELSE: &str = "see who answers in Entra's place: check `entra.cloud` or \
    `entra.authority`, and the proxies on the way (`entra.proxy`, HTTPS_PROXY)";

#[derive(Deserialize)]
struct Success {
    token_type: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    access_token: Option<Secret>,
    expires_in: Option<Value>,
    refresh_in: Option<Value>,
    error: Option<Value>,
}

fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(Secret::new))
}

fn issued(answer: Success, reply: &Reply, asked: &Asked<'_>) -> Result<IssuedToken, ExchangeError> {
    let bad = |detail: &str| Err(bad_answer(reply, asked, detail));
    if !answer
        .token_type
        .as_deref()
        .is_some_and(|t| t.eq_ignore_ascii_case("Bearer"))
    {
        return bad("its token_type is not Bearer");
    }
    let Some(access_token) = answer.access_token else {
        return bad("it has no access_token");
    };
    // It goes into an Authorization header: a line break in it would be a header of its own.
    let token = access_token.expose();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return bad("its access_token is empty or has characters that no token has");
    }
    let Some(lifetime) = answer
        .expires_in
        .as_ref()
        .and_then(seconds)
        .filter(|s| *s > 0)
    else {
        return bad("its expires_in is missing or no time to come");
    };
    let lifetime = lifetime.min(LIFETIME_LIMIT);
    let refresh_in = answer.refresh_in.as_ref().and_then(seconds);
    let told = reply
        .headers
        .get(REQUEST_ID)
        .and_then(|id| identifier(id.to_str().ok()?));
    Ok(IssuedToken {
        lifetime: positive(lifetime),
        refresh_in: refresh_in
            .filter(|s| (1..lifetime).contains(s))
            .map(positive),
        correlation_id: Some(told.unwrap_or(asked.request_id).into()),
        uti: uti(token).map(Into::into),
        access_token,
    })
}

/// Seconds, as the number they should be or in the string that some servers write.
fn seconds(value: &Value) -> Option<i64> {
    let number = match value {
        Value::String(text) => text.trim().parse().ok()?,
        other => other.as_f64()?,
    };
    const ABSURD: f64 = 1e15;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "clamped to whole numbers that fit"
    )]
    let seconds = number.clamp(-ABSURD, ABSURD) as i64;
    (!number.is_nan()).then_some(seconds)
}

fn positive(seconds: i64) -> Duration {
    Duration::from_secs(seconds.unsigned_abs())
}

/// The `uti` claim, which Entra's sign-in log has too. The token is opaque to us: if it cannot be
/// read, there is none.
fn uti(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        uti: String,
    }
    let payload = Zeroizing::new(URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?);
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    identifier(&claims.uti).map(str::to_owned)
}

/// What an answer without a token says.
fn refused(reply: &Reply, asked: &Asked<'_>, now: i64) -> ExchangeError {
    let json = serde_json::from_slice::<Value>(&reply.body).ok();
    let mut error = match json.as_ref().filter(|json| json.get("error").is_some()) {
        Some(json) => entra_error(json, reply, asked, now),
        None if is_html(reply) => captive_portal(reply, asked),
        None if reply.status.is_success() => {
            bad_answer(reply, asked, what_it_is(reply, json.as_ref()))
        }
        None => status_only(reply, asked, ""),
    };
    // A server that is overloaded or broken decides nothing, whatever else it says.
    error.throttled = reply.status == StatusCode::TOO_MANY_REQUESTS;
    if error.throttled || reply.status.is_server_error() {
        error.class = Class::Transient;
        error.revokes = false;
    }
    error.report.retryable = is_retryable(error.class);
    error.report.retry_after = retry_after(&reply.headers, now);
    error
}

/// An error as Entra writes it. The code at the beginning of the description counts for more than
/// `error_codes`: the two have been seen to disagree.
fn entra_error(json: &Value, reply: &Reply, asked: &Asked<'_>, now: i64) -> ExchangeError {
    let text = |name: &str| json.get(name).and_then(Value::as_str).unwrap_or_default();
    let description = text("error_description");
    let listed = || {
        let code = json.get("error_codes")?.get(0)?;
        u32::try_from(code.as_u64()?).ok()
    };
    let mut error = match aadsts::leading_code(description).or_else(listed) {
        Some(code) => aadsts_error(code, description, reply, asked, now),
        None => {
            let name = identifier(text("error")).unwrap_or("no code");
            status_only(reply, asked, &format!("{name}: {description}"))
        }
    };
    if let Some(id) = identifier(text("correlation_id")) {
        error.report.correlation_id = Some(id.to_owned());
    }
    error
}

fn aadsts_error(
    code: u32,
    description: &str,
    reply: &Reply,
    asked: &Asked<'_>,
    now: i64,
) -> ExchangeError {
    let mut detail = clean(description, asked.assertion());
    let entry = aadsts::lookup(code);
    let (class, title, fix) = match entry {
        Some(entry) => (entry.class, Cow::Borrowed(&*entry.title), asked.fix(entry)),
        None => (
            aadsts::class_by_status(reply.status.as_u16()),
            "Entra refused the exchange with a code that is not known here".into(),
            format!("see {}", aadsts::reference_url(code)),
        ),
    };
    if detail.is_empty() {
        detail = format!("HTTP {}", reply.status);
    }
    if let Some(range) = TimeRange::parse(description).filter(|_| code == STALE) {
        detail = format!("{}. {detail}", range.verdict(now));
    }
    let mut error = asked.error(class, "", "", detail, fix);
    error.report.code = aadsts::name(code).into();
    error.report.title = title;
    error.revokes = entry.is_some_and(|e| e.revokes);
    error.stale_assertion = code == STALE;
    error
}

/// An error of which only the HTTP status is certain.
fn status_only(reply: &Reply, asked: &Asked<'_>, said: &str) -> ExchangeError {
    let status = reply.status;
    let (code, title, fix) = match status.as_u16() {
        429 => (
            "entra-throttled",
            "Entra throttles requests",
            "it is tried again, more slowly. If it stays, find out who asks so often in this tenant",
        ),
        408 | 500.. => (
            "entra-unavailable",
            "Entra has trouble",
            "nothing: it is tried again. If it stays, look at Azure's status page and at the proxies on \
             the way",
        ),
        _ => (
            "entra-refused",
            "Entra refused the exchange without saying why",
            SOMEBODY_ELSE,
        ),
    };
    let said = clean(said, asked.assertion());
    let detail = format!("{}: HTTP {status}. {said}", asked.place());
    let class = aadsts::class_by_status(status.as_u16());
    asked.error(class, code, title, detail.trim_end_matches(['.', ' ']), fix)
}

fn captive_portal(reply: &Reply, asked: &Asked<'_>) -> ExchangeError {
    // A page with a 200 is a portal's and passes when somebody logs in; a 404's is a wrong host's.
    let class = match aadsts::class_by_status(reply.status.as_u16()) {
        Class::Misconfigured if reply.status.is_client_error() => Class::Misconfigured,
        _ => Class::Transient,
    };
    asked.error(
        class,
        "entra-captive-portal",
        "A web page came in place of Entra's answer",
        format!("{}: HTTP {} with HTML", asked.place(), reply.status),
        "a captive portal or a proxy answers in Entra's place, or `entra.authority` is a web site: let \
         this machine through (`entra.proxy`, HTTPS_PROXY), or correct the authority",
    )
}

fn redirected(reply: &Reply, asked: &Asked<'_>) -> ExchangeError {
    // Host and scheme alone: a query could hold what a portal put there.
    let to = reply.headers.get(header::LOCATION).and_then(|to| {
        let base = &asked.request.target.authority;
        Some(
            base.join(to.to_str().ok()?)
                .ok()?
                .origin()
                .ascii_serialization(),
        )
    });
    let to = to.map_or_else(String::new, |to| {
        format!(", to {}", clean(&to, asked.assertion()))
    });
    asked.misconfigured(
        "entra-redirect",
        "The token endpoint redirects",
        format!("{}: HTTP {}{to}; it is not followed", asked.place(), reply.status),
        "Entra's token endpoint never redirects: correct `entra.cloud` or `entra.authority`, or get \
         this machine past the captive portal or proxy on the way",
    )
}

fn bad_answer(reply: &Reply, asked: &Asked<'_>, detail: &str) -> ExchangeError {
    asked.transient(
        "entra-bad-answer",
        "The answer is not one that Entra gives",
        format!("{}: HTTP {}, and {detail}", asked.place(), reply.status),
        SOMEBODY_ELSE,
    )
}

fn what_it_is(reply: &Reply, json: Option<&Value>) -> &'static str {
    match json {
        _ if reply.body.trim_ascii().is_empty() => "the body is empty",
        Some(Value::Object(_)) => "its fields are not those of a token",
        Some(_) => "it is JSON, but no object",
        None => "it is not JSON",
    }
}

fn is_html(reply: &Reply) -> bool {
    let content_type = reply.headers.get(header::CONTENT_TYPE);
    let says_so = content_type
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            value
                .trim_start()
                .to_ascii_lowercase()
                .starts_with("text/html")
        });
    says_so || reply.body.trim_ascii_start().starts_with(b"<")
}

fn is_retryable(class: Class) -> bool {
    matches!(class, Class::Transient | Class::Propagating { .. })
}

impl Asked<'_> {
    pub(super) fn assertion(&self) -> &str {
        self.request.assertion.token.expose()
    }

    /// Whom was asked: scheme, host and port.
    pub(super) fn place(&self) -> String {
        Url::origin(&self.request.target.authority).ascii_serialization()
    }

    pub(super) fn transient(
        &self,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> ExchangeError {
        self.error(Class::Transient, code, title, detail, fix)
    }

    pub(super) fn misconfigured(
        &self,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> ExchangeError {
        self.error(Class::Misconfigured, code, title, detail, fix)
    }

    fn error(
        &self,
        class: Class,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> ExchangeError {
        let mut report = Report::permanent(code, title, detail, fix);
        report.retryable = is_retryable(class);
        report.correlation_id = Some(self.request_id.to_owned());
        ExchangeError {
            class,
            revokes: false,
            throttled: false,
            stale_assertion: false,
            report: Box::new(report),
        }
    }

    fn fix(&self, entry: &aadsts::Entry) -> String {
        let ExchangeRequest {
            target,
            scope,
            assertion,
            ..
        } = self.request;
        let shown = Shown::read(self.assertion());
        entry.fix(&aadsts::Context {
            subject: &shown.sub,
            issuer: &assertion.issuer,
            audience: &shown.aud,
            client_id: &target.client_id,
            tenant: &target.tenant,
            resource: scope.resource(),
        })
    }
}

/// What Entra was shown, as it stands in the assertion: the credential must have the same.
#[derive(Deserialize)]
struct Shown {
    sub: String,
    #[serde(deserialize_with = "first")]
    aud: String,
}

impl Shown {
    fn read(assertion: &str) -> Self {
        let payload = assertion
            .split('.')
            .nth(1)
            .and_then(|p| URL_SAFE_NO_PAD.decode(p).ok());
        let shown = payload.and_then(|json| serde_json::from_slice(&json).ok());
        shown.unwrap_or_else(|| Self {
            sub: aadsts::Context::GENERAL.subject.into(),
            aud: aadsts::Context::GENERAL.audience.into(),
        })
    }
}

fn first<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(from)? {
        Audience::One(one) => one,
        Audience::Many(many) => many.join(" "),
    })
}
