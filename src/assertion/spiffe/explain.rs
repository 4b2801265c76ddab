//! What a failure of the Workload API means, and which setting of SPIRE or of ours cures it.

use std::{error::Error as StdError, fmt, io, time::Duration};

use ::spiffe::{
    WorkloadApiError,
    transport::{GrpcStatusCode, TransportError},
};

use crate::{
    assertion::endpoint::Endpoint,
    assertion::{AssertionError, AssertionErrorKind},
    id::SpiffeId,
    report::Report,
};

/// How much of an agent's message is shown.
const MESSAGE_LIMIT: usize = 300;

/// The endpoint that failed; shown as it is written in the configuration.
#[derive(Clone, Copy)]
pub(super) struct Place<'a>(pub(super) &'a Endpoint);

impl Place<'_> {
    /// Says what an error of the Workload API means (SPIFFE Workload Endpoint, section on error
    /// codes): InvalidArgument and Unimplemented are for people, everything else is retried.
    pub(super) fn explain(
        &self,
        error: &WorkloadApiError,
        subject: Option<&SpiffeId>,
    ) -> AssertionError {
        match error {
            WorkloadApiError::NoIdentityIssued => denied("no identity issued", subject),
            WorkloadApiError::PermissionDenied(message) => denied(message, subject),
            WorkloadApiError::Transport(TransportError::Status(status)) => match status.code() {
                GrpcStatusCode::InvalidArgument => permanent(
                    AssertionErrorKind::Refused,
                    "workload-api-invalid-argument",
                    "The Workload API says that the request is wrong",
                    said(status.message()),
                    format!(
                        "make sure that {} is a SPIFFE Workload API without a proxy that drops the \
                         metadata `workload.spiffe.io`, and that `spiffe_id` and `entra.audience` are \
                         what SPIRE knows",
                        self
                    ),
                ),
                GrpcStatusCode::Unimplemented => permanent(
                    AssertionErrorKind::Refused,
                    "workload-api-unimplemented",
                    "What listens there is no Workload API, or one without JWT-SVIDs",
                    said(status.message()),
                    format!(
                        "point `workload_api.endpoint` (SPIFFE_ENDPOINT_SOCKET) at the agent's Workload \
                         API, not at its admin or broker socket: it is {} now; SPIRE's `disable_jwt_svids` \
                         must not be set",
                        self
                    ),
                ),
                GrpcStatusCode::DeadlineExceeded => transient(
                    "workload-api-timeout",
                    "The Workload API did not answer in time",
                    said(status.message()),
                    SERVER_HINT,
                ),
                _ => match io_error(error) {
                    Some(e) => self.no_connection(e),
                    None if connection_lost(error) => self.broken(&said(status.message())),
                    None => transient(
                        "workload-api-unavailable",
                        "The Workload API cannot answer at the moment",
                        format!("{}: {}", status.code(), said(status.message())),
                        ATTESTATION_HINT,
                    ),
                },
            },
            WorkloadApiError::Transport(_) => match io_error(error) {
                Some(e) => self.no_connection(e),
                None => self.broken(&said(&error.to_string())),
            },
            // What is left is an answer that breaks the standard; it names fields, not values.
            other => permanent(
                AssertionErrorKind::Unusable,
                "workload-api-bad-answer",
                "The Workload API's answer breaks the SPIFFE standard",
                said(&other.to_string()),
                format!(
                    "look at what serves {}: SPIRE's agent answers otherwise",
                    self
                ),
            ),
        }
    }

    pub(super) fn no_connection(&self, error: &io::Error) -> AssertionError {
        let place = self;
        let (code, title, fix) = match error.kind() {
            io::ErrorKind::NotFound => (
                "workload-api-socket-missing",
                "The Workload API's socket does not exist",
                format!(
                    "start SPIRE's agent, or correct `workload_api.endpoint` (SPIFFE_ENDPOINT_SOCKET), \
                     which is {place}; in a container, mount the socket's folder, not the socket"
                ),
            ),
            io::ErrorKind::ConnectionRefused => (
                "workload-api-refused",
                "Nothing listens on the Workload API's socket",
                format!(
                    "start SPIRE's agent, or correct `workload_api.endpoint`, which is {place}; in a \
                     container, mount the socket's folder, not the socket: an agent that restarts makes \
                     a new one"
                ),
            ),
            io::ErrorKind::PermissionDenied => (
                "workload-api-permission",
                "The Workload API's socket may not be opened",
                format!(
                    "let uid {} through every folder on the way to {place} (x) and connect to it (rw); \
                     SPIRE makes the socket 0777, so it is mostly a folder, SELinux or AppArmor",
                    nix::unistd::geteuid()
                ),
            ),
            _ => return self.broken(&error.to_string()),
        };
        transient(code, title, format!("{place}: {error}"), fix)
    }

    fn broken(&self, cause: &str) -> AssertionError {
        let place = self;
        transient(
            "workload-api-unavailable",
            "The connection to the Workload API failed",
            format!("{place}: {cause}"),
            format!("see whether SPIRE's agent runs and stays up behind {place}"),
        )
    }

    pub(super) fn too_slow(&self, deadline: Duration) -> AssertionError {
        transient(
            "workload-api-timeout",
            "The Workload API did not answer in time",
            format!("{} gave no answer within {deadline:?}", self),
            SERVER_HINT,
        )
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Endpoint::Unix(path) => write!(f, "unix://{}", path.display()),
            Endpoint::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

const SERVER_HINT: &str = "see whether SPIRE's agent is stuck or cannot reach its server (its log, \
    `spire-agent healthcheck`); `experimental.jwt_svid_cache_hit_timeout` in agent.conf says how long \
    it waits for the server before it gives what it has";

const ATTESTATION_HINT: &str = "see the agent's log: it may be starting, overloaded, cut off from its \
    server, or unable to attest this process (in a container it needs the host's pid namespace, \
    `pid: host` or `hostPID`)";

fn denied(message: &str, subject: Option<&SpiffeId>) -> AssertionError {
    let id = subject.map_or("<the SPIFFE ID>", SpiffeId::as_str);
    AssertionError {
        kind: AssertionErrorKind::Denied,
        report: Box::new(Report::transient(
            "workload-api-denied",
            "SPIRE has no registration entry for this process",
            match subject {
                Some(id) => format!("asked for {id}, the agent says: {}", said(message)),
                None => format!("the agent says: {}", said(message)),
            },
            format!(
                "spire-server entry create -spiffeID {id} -parentID <this node's or agent's SPIFFE ID> \
                 -selector unix:uid:{} (the agent attests the process that asks, which is this one; a new \
                 entry reaches it within seconds)",
                nix::unistd::geteuid()
            ),
        )),
    }
}

fn transient(
    code: &'static str,
    title: &'static str,
    detail: impl Into<String>,
    fix: impl Into<String>,
) -> AssertionError {
    AssertionError {
        kind: AssertionErrorKind::Unavailable,
        report: Box::new(Report::transient(code, title, detail, fix)),
    }
}

pub(super) fn permanent(
    kind: AssertionErrorKind,
    code: &'static str,
    title: &'static str,
    detail: impl Into<String>,
    fix: impl Into<String>,
) -> AssertionError {
    AssertionError {
        kind,
        report: Box::new(Report::permanent(code, title, detail, fix)),
    }
}

/// Whether the call was not answered because its connection was lost, rather than never made. What
/// an agent says has no cause on our side of the wire.
pub(super) fn connection_lost(error: &WorkloadApiError) -> bool {
    let WorkloadApiError::Transport(TransportError::Status(status)) = error else {
        return false;
    };
    let ours = status
        .source()
        .is_some_and(|status| status.source().is_some());
    let unconnected = io_error(error).is_some_and(|e| {
        use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
        matches!(e.kind(), NotFound | ConnectionRefused | PermissionDenied)
    });
    ours && !unconnected
}

/// The connector's own error beneath tonic's, where there is one.
fn io_error(error: &WorkloadApiError) -> Option<&io::Error> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref() {
            return Some(io);
        }
        next = error.source();
    }
    None
}

/// An agent's message: bounded, on one line.
fn said(message: &str) -> String {
    let plain = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c });
    let text: String = plain.take(MESSAGE_LIMIT).collect();
    if text.trim().is_empty() {
        "(no message)".into()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_not_to_connect_names_the_setting() {
        let endpoint = Endpoint::Unix("/run/spire/agent/public/api.sock".into());
        for (kind, code, fix) in [
            (
                io::ErrorKind::NotFound,
                "workload-api-socket-missing",
                "workload_api.endpoint",
            ),
            (
                io::ErrorKind::ConnectionRefused,
                "workload-api-refused",
                "workload_api.endpoint",
            ),
            (
                io::ErrorKind::PermissionDenied,
                "workload-api-permission",
                "let uid ",
            ),
            (
                io::ErrorKind::ConnectionReset,
                "workload-api-unavailable",
                "SPIRE's agent runs",
            ),
        ] {
            let error = Place(&endpoint).no_connection(&io::Error::from(kind));
            assert_eq!(
                (error.kind, &*error.report.code),
                (AssertionErrorKind::Unavailable, code)
            );
            assert!(error.is_transient());
            assert!(error.report.fix.contains(fix), "{}", error.report.fix);
            assert!(
                error
                    .report
                    .fix
                    .contains("unix:///run/spire/agent/public/api.sock")
            );
        }
    }

    #[test]
    fn answers_that_break_the_standard_are_unusable() {
        let endpoint = Endpoint::Tcp("127.0.0.1:1".parse().unwrap());
        let error = WorkloadApiError::MissingRequiredField {
            field: "JWTSVID.svid",
        };
        let error = Place(&endpoint).explain(&error, None);
        assert_eq!(error.kind, AssertionErrorKind::Unusable);
        assert!(error.report.detail.contains("JWTSVID.svid"));
        assert!(
            error.report.fix.contains("tcp://127.0.0.1:1"),
            "{}",
            error.report.fix
        );
    }

    #[test]
    fn an_agents_status_is_no_lost_connection() {
        let said = TransportError::status(GrpcStatusCode::Unavailable, "busy");
        assert!(!connection_lost(&WorkloadApiError::Transport(said)));
        assert!(!connection_lost(&WorkloadApiError::NoIdentityIssued));
    }

    #[test]
    fn messages_are_bounded_and_on_one_line() {
        assert_eq!(said("a\nb\u{1b}c"), "a b c");
        assert_eq!(said(" \n"), "(no message)");
        assert_eq!(said(&"x".repeat(1000)).len(), MESSAGE_LIMIT);
    }
}
