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
use zeroize::Zeroizing;

use super::{
    REQUEST_ID,
    asked::{Asked, is_retryable},
    text::{TimeRange, clean, identifier, retry_after},
};
use crate::{
    exchange::{Class, ExchangeError, IssuedToken, aadsts},
    secret::Secret,
};

/// Longer than any token Entra issues (28 hours with continuous access evaluation). What claims
/// more is believed for this long.
const LIFETIME_LIMIT: i64 = 48 * 3600;

/// Entra's code for an assertion that is out of its time range.
const STALE: u32 = 700_024;

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
    error.report.code = aadsts::name(code);
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

#[cfg(test)]
mod tests {
    use super::{super::fixture::Fixture, *};
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;
    use serde_json::json;

    const NOW: i64 = 1_790_000_000;
    const REQUEST: &str = "11111111-2222-4333-8444-555555555555";
    const JSON: &[(HeaderName, &str)] = &[(header::CONTENT_TYPE, "application/json")];

    fn answer(
        status: u16,
        headers: &[(HeaderName, &str)],
        body: &[u8],
    ) -> Result<IssuedToken, ExchangeError> {
        let fixture = Fixture::new("https://login.microsoftonline.com");
        let headers = headers.iter();
        let reply = Reply {
            status: StatusCode::from_u16(status).unwrap(),
            headers: (headers.map(|(n, v)| (n.clone(), HeaderValue::from_str(v).unwrap())))
                .collect(),
            body: Zeroizing::new(body.to_vec()),
        };
        let asked = Asked {
            request: fixture.request(),
            request_id: REQUEST,
        };
        read(&reply, &asked, NOW)
    }

    fn granted(change: impl FnOnce(&mut Value)) -> Result<IssuedToken, ExchangeError> {
        let mut body = json!({
            "token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599,
            "access_token": "eyJ0.eyJ1dGkiOiJBYmNfLTEyMyJ9.c2ln",
        });
        change(&mut body);
        answer(200, JSON, body.to_string().as_bytes())
    }

    fn refusal(status: u16, code: u32, text: &str) -> ExchangeError {
        let body = json!({
            "error": "invalid_client",
            "error_description": format!("AADSTS{code}: {text} Trace ID: t Correlation ID: c"),
            "error_codes": [code],
            "correlation_id": "f6e5b5e2-0000-4000-8000-000000000000",
        });
        answer(status, JSON, body.to_string().as_bytes()).unwrap_err()
    }

    #[test]
    fn a_token_is_taken_with_all_that_comes_with_it() {
        let token = granted(|_| {}).unwrap();
        assert_eq!(
            token.access_token.expose(),
            "eyJ0.eyJ1dGkiOiJBYmNfLTEyMyJ9.c2ln"
        );
        assert_eq!(token.lifetime, Duration::from_secs(3599));
        assert_eq!(token.refresh_in, None);
        assert_eq!(token.correlation_id.as_deref(), Some(REQUEST));
        assert_eq!(token.uti.as_deref(), Some("Abc_-123"));
        let token = granted(|b| {
            b["expires_in"] = json!("86400");
            b["refresh_in"] = json!("43200");
            b["token_type"] = json!("bearer");
            b["access_token"] = json!("opaque~token");
        });
        let token = token.unwrap();
        assert_eq!(token.lifetime.as_secs(), 86400);
        assert_eq!(token.refresh_in.unwrap().as_secs(), 43200);
        assert_eq!(token.uti, None);
    }

    #[test]
    fn an_echoed_request_id_is_believed() {
        let body = br#"{"token_type":"Bearer","expires_in":60,"access_token":"x"}"#;
        let echoed = "99999999-2222-4333-8444-555555555555";
        let token = answer(200, &[(REQUEST_ID, echoed)], body).unwrap();
        assert_eq!(token.correlation_id.as_deref(), Some(echoed));
        let token = answer(200, &[(REQUEST_ID, "not an id")], body).unwrap();
        assert_eq!(token.correlation_id.as_deref(), Some(REQUEST));
    }

    #[test]
    fn lifetimes_are_bounded() {
        let life =
            |value: Value| granted(|b| b["expires_in"] = value).map(|t| t.lifetime.as_secs());
        let most = LIFETIME_LIMIT.unsigned_abs();
        for (value, seconds) in [
            (json!(1), 1),
            (json!(3599.9), 3599),
            (json!(u64::MAX), most),
            (json!(1e300), most),
        ] {
            assert_eq!(life(value).unwrap(), seconds);
        }
        for value in [
            json!(0),
            json!(-5),
            json!("soon"),
            json!("NaN"),
            json!(null),
            json!([1]),
        ] {
            assert_eq!(life(value).unwrap_err().report.code, "entra-bad-answer");
        }
        for value in [json!(0), json!(3599), json!(-1), json!("x"), json!({})] {
            assert_eq!(
                granted(|b| b["refresh_in"] = value).unwrap().refresh_in,
                None
            );
        }
    }

    #[test]
    fn what_is_no_token_answer_is_refused() {
        for (name, value) in [
            ("access_token", json!("")),
            ("access_token", json!("a b")),
            ("access_token", json!("a\r\nX-Evil: 1")),
            ("access_token", json!("ä")),
            ("access_token", json!(17)),
            ("access_token", Value::Null),
            ("token_type", json!("pop")),
            ("token_type", Value::Null),
        ] {
            let error = granted(|b| b[name] = value.clone()).unwrap_err();
            assert_eq!(error.report.code, "entra-bad-answer", "{name} {value}");
            assert_eq!(error.class, Class::Transient);
            assert_eq!(error.report.correlation_id.as_deref(), Some(REQUEST));
        }
        for body in [
            "",
            "  \n",
            "null",
            "[]",
            "\"x\"",
            "{}",
            "{\"access_token\":",
            "\u{0}",
        ] {
            let error = answer(200, JSON, body.as_bytes()).unwrap_err();
            assert_eq!(error.report.code, "entra-bad-answer", "{body:?}");
        }
    }

    #[test]
    fn the_table_decides_what_a_code_means() {
        for entry in aadsts::entries() {
            let error = refusal(400, entry.code, "Something about it.");
            assert_eq!(error.report.code, entry.name());
            assert_eq!(error.report.title, entry.title);
            assert_eq!((error.class, error.revokes), (entry.class, entry.revokes));
            assert_eq!(error.report.retryable, is_retryable(entry.class));
            assert_eq!(error.stale_assertion, entry.code == STALE);
            assert!(!error.throttled);
            assert!(
                !error.report.fix.contains(['{', '}']),
                "{}",
                error.report.fix
            );
            let correlation = "f6e5b5e2-0000-4000-8000-000000000000";
            assert_eq!(error.report.correlation_id.as_deref(), Some(correlation));
            let detail = format!("{}: Something about it.", entry.name());
            assert_eq!(error.report.detail, detail);
        }
    }

    #[test]
    fn fixes_speak_of_this_request() {
        let fix = refusal(401, 700_213, "No.").report.fix;
        for part in [
            "spiffe://example.org/payments",
            "https://oidc.example.org",
            Fixture::CLIENT,
        ] {
            assert!(fix.contains(part), "{fix}");
        }
        assert!(
            refusal(401, 700_212, "No.")
                .report
                .fix
                .contains("api://AzureADTokenExchange`")
        );
        assert!(
            refusal(400, 500_011, "No.")
                .report
                .fix
                .contains("https://vault.azure.net")
        );
    }

    #[test]
    fn the_description_outweighs_error_codes() {
        let body = |description: &str, codes: Value| {
            let body = json!({"error": "invalid_client", "error_description": description,
                              "error_codes": codes});
            let error = answer(401, JSON, body.to_string().as_bytes()).unwrap_err();
            error.report.code.to_string()
        };
        assert_eq!(body("AADSTS700213: No", json!([7_000_215])), "AADSTS700213");
        assert_eq!(body("No code here", json!([700_211])), "AADSTS700211");
        assert_eq!(body("", json!([700_211, 5])), "AADSTS700211");
        assert_eq!(
            body("no AADSTS1: at its beginning", json!([])),
            "entra-refused"
        );
        assert_eq!(body("x", json!("700211")), "entra-refused");
        assert_eq!(body("x", json!([-1])), "entra-refused");
    }

    #[test]
    fn unknown_codes_say_so_and_follow_the_status() {
        let error = refusal(400, 1_234_567, "Something new.");
        assert_eq!(error.report.code, "AADSTS1234567");
        assert_eq!(error.class, Class::Misconfigured);
        assert!(error.report.fix.contains("error?code=1234567"));
        assert!(!error.revokes && !error.report.retryable);
        assert_eq!(
            refusal(503, 1_234_567, "Something new.").class,
            Class::Transient
        );
    }

    #[test]
    fn without_a_code_the_error_and_the_status_are_told() {
        let body = br#"{"error":"invalid_client","error_description":"Client says no."}"#;
        let error = answer(401, JSON, body).unwrap_err();
        assert_eq!(
            (&*error.report.code, error.class),
            ("entra-refused", Class::Misconfigured)
        );
        let detail = &error.report.detail;
        assert!(detail.contains("HTTP 401") && detail.contains("invalid_client: Client says"));
        let error = answer(200, JSON, br#"{"error":"invalid_grant"}"#).unwrap_err();
        assert_eq!(error.report.code, "entra-refused");
        assert_eq!(
            answer(404, &[], b"gone").unwrap_err().report.code,
            "entra-refused"
        );
        let error = answer(503, &[], b"busy").unwrap_err();
        assert_eq!(
            (&*error.report.code, error.class),
            ("entra-unavailable", Class::Transient)
        );
    }

    #[test]
    fn throttling_and_server_errors_decide_nothing() {
        let error = answer(429, &[(header::RETRY_AFTER, "60")], b"Too Many Requests").unwrap_err();
        assert_eq!(
            (&*error.report.code, error.class),
            ("entra-throttled", Class::Transient)
        );
        assert!(error.throttled && error.report.retryable);
        assert_eq!(error.report.retry_after, Some(Duration::from_secs(60)));
        for status in [429, 500, 503] {
            let error = refusal(status, 7_000_112, "Disabled.");
            assert_eq!(error.report.code, "AADSTS7000112");
            assert_eq!((error.class, error.revokes), (Class::Transient, false));
            assert_eq!(error.throttled, status == 429);
            assert!(error.report.retryable);
        }
    }

    #[test]
    fn web_pages_are_named_for_what_they_are() {
        let html = &[(header::CONTENT_TYPE, "text/html; charset=utf-8")][..];
        for (status, headers, body, class) in [
            (200, html, &b"<html>Log in</html>"[..], Class::Transient),
            (200, &[][..], &b"\n <!DOCTYPE html>"[..], Class::Transient),
            (511, html, &b""[..], Class::Transient),
            (502, html, &b"<h1>Bad Gateway</h1>"[..], Class::Transient),
            (404, html, &b"<h1>Not Found</h1>"[..], Class::Misconfigured),
            (403, html, &b"<h1>Blocked</h1>"[..], Class::Misconfigured),
        ] {
            let error = answer(status, headers, body).unwrap_err();
            assert_eq!(error.report.code, "entra-captive-portal", "{status}");
            assert_eq!(error.class, class, "{status}");
        }
    }

    #[test]
    fn redirects_are_told_by_their_host_alone() {
        let to = &[(header::LOCATION, "https://portal.example/login?back=secret")];
        let error = answer(302, to, b"").unwrap_err();
        assert_eq!(
            (&*error.report.code, error.class),
            ("entra-redirect", Class::Misconfigured)
        );
        assert!(
            error.report.detail.contains("https://portal.example;"),
            "{}",
            error.report.detail
        );
        assert!(!error.report.detail.contains("secret"));
        assert_eq!(
            answer(308, &[], b"").unwrap_err().report.code,
            "entra-redirect"
        );
    }

    #[test]
    fn a_stale_assertion_names_the_clock() {
        let text = "Client assertion is not within its valid time range. Current time: \
                    2026-09-21T14:43:20.0000000Z, assertion valid from 2026-09-21T14:10:00.0000000Z, \
                    expiry time of assertion 2026-09-21T14:15:00.0000000Z.";
        let error = refusal(401, STALE, text);
        assert!(error.stale_assertion && !error.revokes);
        let says = "this machine's clock is 1800 s behind Entra's. AADSTS700024:";
        assert!(
            error.report.detail.starts_with(says),
            "{}",
            error.report.detail
        );
        assert!(
            refusal(401, STALE, "Other words.")
                .report
                .detail
                .starts_with("AADSTS700024")
        );
    }

    #[test]
    fn nothing_secret_is_in_an_error() {
        let fixture = Fixture::new("https://login.microsoftonline.com");
        let assertion = fixture.assertion.token.expose();
        let error = refusal(400, 50_027, &format!("The JWT '{assertion}' is malformed."));
        assert!(error.report.detail.contains("'[redacted]'"));
        let shown = format!("{error:?}");
        for part in assertion.split('.') {
            assert!(!shown.contains(part), "{shown}");
        }
        let token = granted(|b| b["token_type"] = json!("pop")).unwrap_err();
        assert!(!format!("{token:?}").contains("eyJ"));
        assert!(!format!("{:?}", granted(|_| {}).unwrap()).contains("eyJ"));
    }

    proptest! {
        #[test]
        fn any_body_is_answered(
            status in 200..600u16,
            body in prop::collection::vec(any::<u8>(), 0..200),
            text in "\\PC{0,60}",
        ) {
            let _ = answer(status, &[], &body);
            let json = json!({"error": text, "error_description": text, "error_codes": [text],
                              "access_token": text, "correlation_id": text, "expires_in": text});
            prop_assert!(answer(status, JSON, json.to_string().as_bytes()).is_err());
        }
    }
}
