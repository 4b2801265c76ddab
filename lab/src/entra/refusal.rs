//! Entra's refusals: why no token is issued, and the JSON that says so.

use http::StatusCode;
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use super::codes::{TABLE, UNKNOWN};

/// Why no token is issued.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) code: u32,
    pub(super) status: StatusCode,
    error: &'static str,
    text: String,
    suberror: Option<&'static str>,
    claims: Option<String>,
    /// For the record and the log only: what the text does not say.
    pub(super) detail: Option<String>,
}

impl Refusal {
    /// The refusal with this code, its text filled in from `values`. A code that is not in the
    /// table is answered all the same: a test may force any.
    pub(super) fn new(code: u32, values: &[(&str, &str)]) -> Self {
        let row = TABLE
            .iter()
            .find(|row| row.code == code)
            .unwrap_or(&UNKNOWN);
        Self {
            code,
            status: StatusCode::from_u16(row.status).unwrap_or(StatusCode::BAD_REQUEST),
            error: row.error,
            text: fill(row.text, values),
            suberror: None,
            claims: None,
            detail: None,
        }
    }

    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// A refusal by Conditional Access, with the policy's id in `claims`.
    pub(super) fn conditional_access(policy: &str) -> Self {
        let claims = serde_json::json!({
            "access_token": { "capolids": { "essential": true, "values": [policy] } }
        });
        let mut refusal = Self::new(53003, &[]);
        refusal.suberror = Some("message_only");
        refusal.claims = Some(claims.to_string());
        refusal
    }

    /// The JSON body. `codes` replaces `error_codes`, which in the field do not always agree with
    /// the text; `separator` is what is between the text and the ids.
    pub(super) fn body(
        &self,
        authority: &str,
        at: i64,
        trace: &str,
        correlation: &str,
        codes: Option<&[u32]>,
        separator: &str,
    ) -> String {
        let timestamp = timestamp(at);
        let description = [
            format!("AADSTS{}: {}", self.code, self.text),
            format!("Trace ID: {trace}"),
            format!("Correlation ID: {correlation}"),
            format!("Timestamp: {timestamp}"),
        ]
        .join(separator);
        let own = [self.code];
        let body = Body {
            error: self.error,
            error_description: &description,
            error_codes: codes.unwrap_or(&own),
            timestamp: &timestamp,
            trace_id: trace,
            correlation_id: correlation,
            error_uri: TABLE
                .iter()
                .any(|row| row.code == self.code)
                .then(|| format!("{authority}/error?code={}", self.code)),
            suberror: self.suberror,
            claims: self.claims.as_deref(),
        };
        // A struct of strings and numbers always becomes JSON.
        serde_json::to_string(&body).unwrap_or_default()
    }
}

#[derive(Serialize)]
struct Body<'a> {
    error: &'a str,
    error_description: &'a str,
    error_codes: &'a [u32],
    timestamp: &'a str,
    trace_id: &'a str,
    correlation_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suberror: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    claims: Option<&'a str>,
}

/// Seconds since the epoch as the `timestamp` of an error.
pub(super) fn timestamp(seconds: i64) -> String {
    format_time(
        seconds,
        format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z"),
    )
}

/// Seconds since the epoch as the text of 700024 writes them.
pub(super) fn instant(seconds: i64) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].0000000Z");
    format_time(seconds, format)
}

fn format_time(
    seconds: i64,
    format: &[time::format_description::BorrowedFormatItem<'_>],
) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    moment
        .format(format)
        .unwrap_or_else(|_| seconds.to_string())
}

/// Puts the values in the places of their names, in one pass: a value cannot be a place.
fn fill(text: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(text.len() + 64);
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        let Some((name, tail)) = after.split_once('}') else {
            break;
        };
        let value = values
            .iter()
            .find(|(key, _)| *key == name)
            .map_or("", |(_, value)| value);
        filled.push_str(value);
        rest = tail;
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn body_has_entras_fields() {
        let refusal = Refusal::new(700213, &[("subject", "spiffe://example.org/{issuer}")]);
        let body = refusal.body(
            "https://localhost",
            1_769_768_664,
            "trace",
            "correlation",
            None,
            " ",
        );
        let json: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            json["error_description"],
            "AADSTS700213: No matching federated identity record found for presented assertion \
             subject 'spiffe://example.org/{issuer}'. Check your federated identity credential \
             Subject, Audience and Issuer against the presented assertion. \
             https://learn.microsoft.com/entra/workload-id/workload-identity-federation \
             Trace ID: trace Correlation ID: correlation Timestamp: 2026-01-30 10:24:24Z"
        );
        assert_eq!(json["error"], "invalid_client");
        assert_eq!(json["error_codes"], serde_json::json!([700213]));
        assert_eq!(json["timestamp"], "2026-01-30 10:24:24Z");
        assert_eq!(json["error_uri"], "https://localhost/error?code=700213");
        assert_eq!(json.get("claims"), None);
    }

    #[test]
    fn codes_may_disagree_with_the_text() {
        let body = Refusal::new(700213, &[]).body("", 0, "", "", Some(&[7000215]), " ");
        let json: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(json["error_codes"], serde_json::json!([7000215]));
        assert!(
            json["error_description"]
                .as_str()
                .unwrap()
                .starts_with("AADSTS700213: ")
        );
    }

    #[test]
    fn conditional_access_says_which_policy() {
        let body = Refusal::conditional_access("p1").body("", 0, "", "", None, " ");
        let json: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(json["suberror"], "message_only");
        let claims: Value = serde_json::from_str(json["claims"].as_str().unwrap()).unwrap();
        assert_eq!(claims["access_token"]["capolids"]["values"][0], "p1");
    }

    #[test]
    fn instants_have_seven_digits_after_the_second() {
        assert_eq!(instant(0), "1970-01-01T00:00:00.0000000Z");
    }
}
