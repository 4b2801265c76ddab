//! Entra's refusals: the codes with their status, their `error` and their text, and the JSON body.
//!
//! Codes, statuses and texts are facts of the wire. Where a status or an `error` is not known, the
//! row has the one that its neighbours have.

use http::StatusCode;
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

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
    /// the text.
    pub(super) fn body(
        &self,
        authority: &str,
        at: i64,
        trace: &str,
        correlation: &str,
        codes: Option<&[u32]>,
    ) -> String {
        let timestamp = timestamp(at);
        let description = format!(
            "AADSTS{}: {} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {timestamp}",
            self.code, self.text
        );
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

struct Row {
    code: u32,
    status: u16,
    error: &'static str,
    text: &'static str,
}

const fn row(code: u32, status: u16, error: &'static str, text: &'static str) -> Row {
    Row {
        code,
        status,
        error,
        text,
    }
}

const REQUEST: &str = "invalid_request";
const CLIENT: &str = "invalid_client";
const UNAUTHORIZED: &str = "unauthorized_client";
const SCOPE: &str = "invalid_scope";

const UNKNOWN: Row = row(
    0,
    400,
    REQUEST,
    "The request was refused for a reason without a text in the lab.",
);

/// Every code that a check of the lab or a test may answer.
const TABLE: &[Row] = &[
    // Tenant and request.
    row(
        90002,
        400,
        REQUEST,
        "Tenant '{tenant}' not found. This may happen if there are no active subscriptions for the tenant. Check to make sure you have the correct tenant ID. Check with your subscription administrator.",
    ),
    row(
        900023,
        400,
        REQUEST,
        "Specified tenant identifier '{tenant}' is neither a valid DNS name, nor a valid external domain.",
    ),
    row(
        900144,
        400,
        REQUEST,
        "The request body must contain the following parameter: '{parameter}'.",
    ),
    row(
        9001023,
        400,
        REQUEST,
        "The grant type is not supported over the /common or /consumers endpoints. Please use the tenant-specific endpoint.",
    ),
    row(
        9002313,
        400,
        REQUEST,
        "Invalid request. Request is malformed or invalid.",
    ),
    row(
        900561,
        400,
        REQUEST,
        "The endpoint only accepts POST requests. Received a {method} request.",
    ),
    row(
        900439,
        400,
        UNAUTHORIZED,
        "USGClientNotSupportedOnPublicEndpoint",
    ),
    row(
        50049,
        400,
        "invalid_instance",
        "Unknown or invalid instance.",
    ),
    row(
        100007,
        400,
        UNAUTHORIZED,
        "AAD Regional ONLY supports auth either for MSIs OR for requests from MSAL using SN+I for 1P apps or 3P apps onboarded to regional.",
    ),
    row(
        70003,
        400,
        "unsupported_grant_type",
        "The app requested an unsupported grant type '{grant}'.",
    ),
    // Client.
    row(
        700016,
        400,
        UNAUTHORIZED,
        "Application with identifier '{client}' was not found in the directory '{tenant}'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant.",
    ),
    row(
        7000112,
        401,
        UNAUTHORIZED,
        "Application '{client}'({name}) is disabled.",
    ),
    row(
        7000215,
        401,
        CLIENT,
        "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '{client}'.",
    ),
    row(
        7000218,
        401,
        CLIENT,
        "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.",
    ),
    row(
        7000222,
        401,
        CLIENT,
        "The provided client secret keys for app '{client}' are expired.",
    ),
    row(
        700025,
        401,
        CLIENT,
        "Client is public so neither 'client_assertion' nor 'client_secret' should be presented.",
    ),
    // The assertion.
    row(50027, 400, REQUEST, "JWT token is invalid or malformed."),
    row(
        5002727,
        401,
        CLIENT,
        "Invalid JWT header type specified. Allowed types: 'JWT','http://openid.net/specs/jwt/1.0'.",
    ),
    row(
        5002730,
        401,
        CLIENT,
        "Unsupported key for the signing algorithm.",
    ),
    row(
        5002738,
        401,
        CLIENT,
        "Invalid JWT token. '{algorithm}' is not a supported signature algorithm. Supported signing algorithms are: 'RS256,RS384,RS512,PS256,PS384,PS512'.",
    ),
    // The federated identity credential.
    row(
        70025,
        401,
        CLIENT,
        "The client '{client}'({name}) has no configured federated identity credentials.",
    ),
    row(
        70021,
        400,
        REQUEST,
        "No matching federated identity record found for presented assertion. Assertion Issuer: '{issuer}'. Assertion Subject: '{subject}'. Assertion Audience: '{audience}'. https://docs.microsoft.com/en-us/azure/active-directory/develop/workload-identity-federation",
    ),
    row(
        700211,
        401,
        CLIENT,
        "No matching federated identity record found for presented assertion issuer '{issuer}'. Check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation",
    ),
    row(
        700212,
        401,
        CLIENT,
        "No matching federated identity record found for presented assertion audience '{audience}'. Check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation",
    ),
    row(
        700213,
        401,
        CLIENT,
        "No matching federated identity record found for presented assertion subject '{subject}'. Check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation",
    ),
    row(
        7002137,
        401,
        CLIENT,
        "No matching federated identity record found for presented assertion subject '{subject}'. Please make sure the federated identity credential Subject is '{subject}'.",
    ),
    row(
        7002138,
        401,
        CLIENT,
        "No matching federated identity record found for presented assertion subject '{subject}'. The subject matches with case-insensitive comparison, but not with case-sensitive comparison. https://learn.microsoft.com/entra/identity-platform/reference-breaking-changes#august-2024",
    ),
    row(
        700214,
        401,
        CLIENT,
        "The audience of a federated identity credential with an Entra issuer must be 'api://AzureADTokenExchange'.",
    ),
    row(
        700222,
        400,
        REQUEST,
        "AAD-issued tokens may not be used for federated identity flows.",
    ),
    row(
        700223,
        401,
        CLIENT,
        "Workload identity federation is disabled by a policy of the tenant.",
    ),
    row(
        700229,
        401,
        CLIENT,
        "Only app-only tokens can be used as federated identity credential.",
    ),
    row(
        700231,
        401,
        CLIENT,
        "A token obtained with a federated identity credential cannot be used as one.",
    ),
    row(
        700238,
        401,
        CLIENT,
        "Workload identity federation with issuer '{issuer}' is blocked by a policy of the tenant.",
    ),
    row(
        700263,
        401,
        CLIENT,
        "More than one federated identity credential matches subject '{subject}'.",
    ),
    row(
        7002381,
        401,
        CLIENT,
        "Federated identity credentials issued by '{issuer}' for applications or managed identities registered in this tenant must contain the enterprise claim with value '{name}' but actual value is ''.",
    ),
    // The issuer's keys, the signature, the times.
    row(
        50166,
        400,
        REQUEST,
        "Request to External OIDC endpoint failed.",
    ),
    row(
        501661,
        400,
        REQUEST,
        "Request to External OIDC endpoint failed.",
    ),
    row(
        90061,
        400,
        REQUEST,
        "Request to External OIDC endpoint failed.",
    ),
    row(
        7000272,
        401,
        CLIENT,
        "The certificate with identifier {kid} used to sign the federated credential could not be found in the metadata of identity provider {issuer}. Please validate that your Identity Provider's metadata exposes the key used to sign the token.",
    ),
    row(
        700027,
        401,
        CLIENT,
        "Client assertion failed signature validation.",
    ),
    row(
        700024,
        401,
        CLIENT,
        "Client assertion is not within its valid time range. Current time: {now}, assertion valid from {from}, expiry time of assertion {to}. Review the documentation at https://learn.microsoft.com/entra/identity-platform/certificate-credentials",
    ),
    // Scope and resource.
    row(
        70011,
        400,
        SCOPE,
        "The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid. The scope {scope} is not valid.",
    ),
    row(
        700022,
        400,
        SCOPE,
        "The provided value for the input parameter 'scope' is not valid because it contains more than one resource. Scope {scope} is not valid.",
    ),
    row(
        700023,
        400,
        SCOPE,
        "The provided value for the input parameter 'scope' is not valid because it contains no resource. Scope {scope} is not valid.",
    ),
    row(
        28002,
        400,
        SCOPE,
        "Provided value for scope {scope} is not valid for a client credentials request.",
    ),
    row(
        1002012,
        400,
        SCOPE,
        "The provided value for scope {scope} is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI).",
    ),
    row(
        500011,
        400,
        "invalid_resource",
        "The resource principal named {resource} was not found in the tenant named {tenant}. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You might have sent your authentication request to the wrong tenant.",
    ),
    // Policy.
    row(
        53003,
        400,
        "access_denied",
        "Access has been blocked by Conditional Access policies. The access policy does not allow token issuance.",
    ),
    row(
        50005,
        400,
        "interaction_required",
        "User tried to log in to a device from a platform that's currently not supported through Conditional Access policy.",
    ),
    row(
        50076,
        400,
        "interaction_required",
        "Due to a configuration change made by your administrator, or because you moved to a new location, you must use multi-factor authentication to access '{resource}'.",
    ),
    row(
        500341,
        400,
        "invalid_grant",
        "The user account {client} has been deleted from the {tenant} directory.",
    ),
    // What passes.
    row(
        90055,
        429,
        "temporarily_unavailable",
        "The tenant is being throttled because of too many requests.",
    ),
    row(
        90006,
        503,
        "server_error",
        "External error; the service may be temporarily unavailable.",
    ),
    row(
        90012,
        503,
        "temporarily_unavailable",
        "The request has timed out.",
    ),
    row(
        90024,
        503,
        "temporarily_unavailable",
        "A transient error has occurred. Please try again.",
    ),
    row(
        90033,
        503,
        "temporarily_unavailable",
        "A transient error has occurred. Please try again.",
    ),
    row(
        90090,
        503,
        "temporarily_unavailable",
        "The service is temporarily unavailable.",
    ),
    row(
        50033,
        503,
        "temporarily_unavailable",
        "A transient error has occurred. Please try again.",
    ),
];

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
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
        let body = Refusal::new(700213, &[]).body("", 0, "", "", Some(&[7000215]));
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
        let body = Refusal::conditional_access("p1").body("", 0, "", "", None);
        let json: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(json["suberror"], "message_only");
        let claims: Value = serde_json::from_str(json["claims"].as_str().unwrap()).unwrap();
        assert_eq!(claims["access_token"]["capolids"]["values"][0], "p1");
    }

    #[test]
    fn no_code_is_twice_in_the_table() {
        let mut codes: Vec<_> = TABLE.iter().map(|row| row.code).collect();
        codes.sort_unstable();
        let count = codes.len();
        codes.dedup();
        assert_eq!(codes.len(), count);
    }

    #[test]
    fn instants_have_seven_digits_after_the_second() {
        assert_eq!(instant(0), "1970-01-01T00:00:00.0000000Z");
    }
}
