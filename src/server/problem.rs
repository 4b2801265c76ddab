//! Errors as callers see them: RFC 9457 over HTTP, a status with the same content over gRPC.
//!
//! Whatever goes wrong on the way to a token arrives as a [`Report`]; what the server itself
//! refuses is made here. Which HTTP status and which gRPC code that is, is decided here alone.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use tonic::metadata::{MetadataMap, MetadataValue};

use super::reply::{self, Body};
use crate::{caller::Caller, policy::Denial, report::Report};

/// A problem as it is sent, and as the commands read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `about:blank`: `code` tells problems apart.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// The HTTP status.
    pub status: u16,
    /// What happened, in a few words that are the same every time.
    pub title: Cow<'static, str>,
    /// What happened this time.
    pub detail: String,
    /// Stable and machine-readable: kebab-case, or Entra's own `AADSTS…` code.
    pub code: String,
    /// What to change.
    pub fix: String,
    /// Whether asking again, with nothing changed, can help.
    pub retryable: bool,
    /// Entra's correlation id, to find the attempt in its sign-in log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The header `Retry-After`.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
    /// The header `Allow`.
    #[serde(skip)]
    allow: Option<&'static str>,
}

impl Problem {
    fn new(
        status: StatusCode,
        title: &'static str,
        code: impl Into<String>,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            kind: Cow::Borrowed("about:blank"),
            status: status.as_u16(),
            title: Cow::Borrowed(title),
            detail: detail.into(),
            code: code.into(),
            fix: fix.into(),
            retryable: false,
            correlation_id: None,
            retry_after: None,
            allow: None,
        }
    }

    /// The request cannot be understood.
    pub(super) fn malformed(
        code: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let title = "The request is malformed";
        Self::new(StatusCode::BAD_REQUEST, title, code, detail, fix)
    }

    /// Policy says no. The same for an identity that does not exist and one that is not for this
    /// caller: nothing of what was asked is repeated.
    pub(super) fn denied(denial: Denial, caller: &Caller) -> Self {
        let (uid, gid) = (caller.uid, caller.gid);
        match denial {
            Denial::Identity => Self::forbidden(
                "identity-not-allowed",
                format!("uid {uid}, gid {gid} may not use an identity of this name on this socket"),
                "name one that GET /v1/identities lists, or ask the operator for an entry in \
                 `callers` of the [[identity]]",
            ),
            Denial::NoIdentity => Self::forbidden(
                "no-identity",
                format!("there is no identity for uid {uid}, gid {gid} on this socket"),
                "ask the operator for an entry in `callers` of an [[identity]]",
            ),
            Denial::Ambiguous => Self::malformed(
                "identity-needed",
                "more than one identity of this caller on this socket is meant",
                "name one of those that GET /v1/identities lists: identity=NAME",
            ),
            Denial::Resource => Self::forbidden(
                "resource-not-allowed",
                "this caller may use the identity, but not for this resource",
                "ask for one of the resources that GET /v1/identities lists, or ask the operator \
                 for an entry in `resources` of the [[identity]]",
            ),
        }
    }

    /// Only for admins.
    pub(super) fn admins_only(caller: &Caller) -> Self {
        let (uid, gid) = (caller.uid, caller.gid);
        Self::forbidden(
            "admins-only",
            format!("uid {uid}, gid {gid} is not among the admins"),
            "ask as root or as the daemon's user, or add the caller to `admins`",
        )
    }

    fn forbidden(code: &'static str, detail: impl Into<String>, fix: &'static str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Not allowed", code, detail, fix)
    }

    /// There is no such route.
    pub(super) fn no_route() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "There is nothing here",
            "no-route",
            "no route has this path",
            "the routes are /v1/token, /v1/identities, /v1/status, /v1/refresh, /livez, /readyz \
             and /metrics",
        )
    }

    /// The route exists, for another method.
    pub(super) fn method(allow: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "Wrong method",
                "wrong-method",
                "this route does not take this method",
                format!("use {allow}"),
            )
        }
    }

    /// The request target is too long.
    pub(super) fn uri_too_long(limit: usize) -> Self {
        Self::new(
            StatusCode::URI_TOO_LONG,
            "The request is too large",
            "uri-too-long",
            format!("the request target is longer than {limit} bytes"),
            "ask for one resource at a time",
        )
    }

    /// The request brings a body of a size that no route takes.
    pub(super) fn body_too_large(limit: u64) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "The request is too large",
            "body-too-large",
            format!("the body is longer than {limit} bytes"),
            "send no body: no route reads one",
        )
    }

    /// The daemon cannot serve now.
    pub(super) fn unready(detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            retryable: true,
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "Not ready",
                "not-ready",
                detail,
                fix,
            )
        }
    }

    /// The same, as the reason why something is not ready: 503 whatever it is.
    pub(super) fn unavailable(self) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE.as_u16(),
            ..self
        }
    }

    /// An admin names an identity that is not served.
    pub(super) fn unknown_identity(quarantined: bool) -> Self {
        let (detail, fix) = if quarantined {
            (
                "the identity is quarantined for mistakes in the configuration",
                "mend what `spiffe-entra check` shows, and reload",
            )
        } else {
            (
                "no identity has this name or client id",
                "name one that `spiffe-entra status` shows",
            )
        };
        let title = "No such identity";
        Self::new(
            StatusCode::NOT_FOUND,
            title,
            "unknown-identity",
            detail,
            fix,
        )
    }

    /// gRPC over HTTP/1.
    pub(super) fn grpc_needs_http2() -> Self {
        Self::malformed(
            "grpc-needs-http2",
            "gRPC was asked for over HTTP/1",
            "speak HTTP/2 with prior knowledge, or use GET /v1/token",
        )
    }

    /// The daemon is going away.
    pub(super) fn stopping() -> Self {
        Self {
            retryable: true,
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "Shutting down",
                "shutting-down",
                "shutting down",
                "connect again",
            )
        }
    }

    /// Too many connections at once.
    pub(super) fn too_many_connections(detail: &'static str) -> Self {
        Self {
            retryable: true,
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "Too many connections",
                "too-many-connections",
                detail,
                "keep connections open and use them again, or raise max_connections of the \
                 [[listen]] or limits.connections_per_uid",
            )
        }
    }

    /// As an HTTP answer.
    pub(super) fn into_http(self) -> Response<Body> {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = reply::with(
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            "application/problem+json",
            Bytes::from(body),
        );
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_seconds() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }

    /// As a gRPC status: the message is for people, the metadata for programs.
    pub(super) fn into_grpc(self) -> tonic::Status {
        let mut metadata = MetadataMap::new();
        metadata.insert("spiffe-entra-code", ascii(&self.code));
        metadata.insert("spiffe-entra-fix", ascii(&self.fix));
        let json = serde_json::to_vec(&self).unwrap_or_default();
        metadata.insert_bin("spiffe-entra-problem-bin", MetadataValue::from_bytes(&json));
        if let Some(seconds) = self.retry_after_seconds() {
            metadata.insert("retry-after", MetadataValue::from(seconds));
        }
        let message = format!("{}: {}: {}", self.code, self.detail, self.fix);
        tonic::Status::with_metadata(self.grpc_code(), message, metadata)
    }

    fn grpc_code(&self) -> tonic::Code {
        match self.status {
            400 | 413 | 414 => tonic::Code::InvalidArgument,
            403 => tonic::Code::PermissionDenied,
            404 | 405 => tonic::Code::Unimplemented,
            424 => tonic::Code::FailedPrecondition,
            429 => tonic::Code::ResourceExhausted,
            503 => tonic::Code::Unavailable,
            _ => tonic::Code::Internal,
        }
    }

    /// What `Retry-After` says: rounded up, and given for whatever a retry can help.
    fn retry_after_seconds(&self) -> Option<u64> {
        const UNKNOWN: Duration = Duration::from_secs(5);
        let wait = self
            .retry_after
            .or_else(|| self.retryable.then_some(UNKNOWN))?;
        Some((wait.as_millis().div_ceil(1000) as u64).max(1))
    }
}

impl From<&Report> for Problem {
    fn from(report: &Report) -> Self {
        // Limits of our own (`limit-exchanges` and the like): the caller asks for too much.
        let status = if report.is_limit() {
            StatusCode::TOO_MANY_REQUESTS
        } else if report.retryable {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::FAILED_DEPENDENCY
        };
        Self {
            kind: Cow::Borrowed("about:blank"),
            status: status.as_u16(),
            title: report.title.clone(),
            detail: report.detail.clone(),
            code: report.code.clone().into_owned(),
            fix: report.fix.clone(),
            retryable: report.retryable,
            correlation_id: report.correlation_id.clone(),
            retry_after: report.retry_after,
            allow: None,
        }
    }
}

/// Metadata values are visible ASCII; the full text is in the message and the problem.
fn ascii(text: &str) -> MetadataValue<tonic::metadata::Ascii> {
    let plain: String = text
        .chars()
        .map(|c| match c {
            '…' => '.',
            ' '..='~' => c,
            _ => '?',
        })
        .collect();
    MetadataValue::try_from(plain).unwrap_or_else(|_impossible| MetadataValue::from_static("?"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn caller() -> Caller {
        Caller {
            pid: Some(1),
            uid: 1000,
            gid: 1001,
            groups: [].into(),
            pidfd: None,
        }
    }

    async fn sent(problem: Problem) -> (http::response::Parts, serde_json::Value) {
        let (parts, body) = problem.into_http().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_report_becomes_a_problem() {
        let report = Report {
            retry_after: Some(Duration::from_millis(1500)),
            correlation_id: Some("c-1".into()),
            ..Report::transient("svid-denied", "SPIRE says no", "no entry", "register it")
        };
        let (parts, json) = sent(Problem::from(&report)).await;
        assert_eq!(parts.status, 503);
        assert_eq!(parts.headers["retry-after"], "2");
        assert_eq!(parts.headers["content-type"], "application/problem+json");
        assert_eq!(parts.headers["cache-control"], "no-store");
        assert_eq!(
            json,
            serde_json::json!({
                "type": "about:blank", "status": 503, "title": "SPIRE says no",
                "detail": "no entry", "code": "svid-denied", "fix": "register it",
                "retryable": true, "correlation_id": "c-1",
            })
        );
    }

    #[tokio::test]
    async fn statuses_follow_from_the_kind() {
        let permanent = Report::permanent("AADSTS700213", "t", "d", "f");
        let limit = Report::transient("limit-exchanges", "t", "d", "f");
        for (problem, http, grpc, retry_after) in [
            (
                Problem::from(&permanent),
                424,
                tonic::Code::FailedPrecondition,
                None,
            ),
            (
                Problem::from(&limit),
                429,
                tonic::Code::ResourceExhausted,
                Some("5"),
            ),
            (
                Problem::stopping(),
                503,
                tonic::Code::Unavailable,
                Some("1"),
            ),
            (
                Problem::denied(Denial::Ambiguous, &caller()),
                400,
                tonic::Code::InvalidArgument,
                None,
            ),
            (
                Problem::denied(Denial::Resource, &caller()),
                403,
                tonic::Code::PermissionDenied,
                None,
            ),
        ] {
            assert_eq!(problem.clone().into_grpc().code(), grpc);
            let (parts, _) = sent(problem).await;
            assert_eq!(parts.status, http);
            let sent = parts
                .headers
                .get("retry-after")
                .map(|v| v.to_str().unwrap());
            assert_eq!(sent, retry_after);
        }
        let (parts, _) = sent(Problem::method("GET")).await;
        assert_eq!(parts.headers["allow"], "GET");
    }

    #[test]
    fn grpc_metadata_carries_code_fix_and_problem() {
        let report = Report::permanent("AADSTS700213", "t", "détail", "change “subject”…");
        let problem = Problem::from(&report);
        let status = problem.clone().into_grpc();
        assert_eq!(status.message(), "AADSTS700213: détail: change “subject”…");
        let metadata = status.metadata();
        assert_eq!(metadata.get("spiffe-entra-code").unwrap(), "AADSTS700213");
        assert_eq!(
            metadata.get("spiffe-entra-fix").unwrap(),
            "change ?subject?."
        );
        let json = metadata.get_bin("spiffe-entra-problem-bin").unwrap();
        let read: Problem = serde_json::from_slice(&json.to_bytes().unwrap()).unwrap();
        assert_eq!(read, problem);
    }
}
