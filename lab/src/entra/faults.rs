//! What can go wrong between a client and Entra.

use std::time::Duration;

use crate::faults::{Armed, shorthands};

/// One fault of the token endpoint.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// 429 with a plain body.
    Throttle(RetryAfter),
    /// Any answer at all.
    Answer {
        /// The HTTP status.
        status: u16,
        /// The `Content-Type`.
        content_type: String,
        /// The body.
        body: String,
        /// The `Retry-After`.
        retry_after: RetryAfter,
    },
    /// A refusal with this AADSTS code.
    Code {
        /// The code of the text.
        code: u32,
        /// `error_codes`, where they differ.
        error_codes: Option<Vec<u32>>,
    },
    /// No answer.
    Hang,
    /// A TCP reset instead of an answer.
    Reset,
    /// A body of so many bytes of JSON that never ends well.
    HugeBody(u64),
    /// The headers come this much later.
    SlowHeaders(Duration),
    /// The body comes in pieces over this time.
    SlowBody(Duration),
    /// The connection ends in the middle of the body.
    CutBody,
    /// Tokens live so long.
    TokenLifetime(Duration),
    /// Answers have a `refresh_in`.
    RefreshIn(Duration),
}

/// The `Retry-After` header of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// There is none.
    Absent,
    /// Seconds.
    Seconds(u64),
    /// An HTTP date so many seconds ahead of Entra's clock.
    Date(u64),
}

impl Fault {
    /// Whether this is the whole answer.
    pub(super) fn replaces(&self) -> bool {
        match self {
            Self::Throttle(_)
            | Self::Answer { .. }
            | Self::Code { .. }
            | Self::Hang
            | Self::Reset
            | Self::HugeBody(_) => true,
            Self::SlowHeaders(_)
            | Self::SlowBody(_)
            | Self::CutBody
            | Self::TokenLifetime(_)
            | Self::RefreshIn(_) => false,
        }
    }

    /// A name for the record.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Throttle(_) => "throttle",
            Self::Answer { .. } => "answer",
            Self::Code { .. } => "code",
            Self::Hang => "hang",
            Self::Reset => "reset",
            Self::HugeBody(_) => "huge-body",
            Self::SlowHeaders(_) => "slow-headers",
            Self::SlowBody(_) => "slow-body",
            Self::CutBody => "cut-body",
            Self::TokenLifetime(_) => "token-lifetime",
            Self::RefreshIn(_) => "refresh-in",
        }
    }
}

/// Arms faults for one client or for all.
pub type Faults = crate::faults::Faults<Fault>;

shorthands! {
    /// 429 with `Retry-After` in seconds, or without one.
    throttle(retry_after: Option<u64>) =>
        Fault::Throttle(retry_after.map_or(RetryAfter::Absent, RetryAfter::Seconds));
    /// 429 with `Retry-After` as an HTTP date so many seconds ahead.
    throttle_until(seconds: u64) => Fault::Throttle(RetryAfter::Date(seconds));
    /// A server error with a plain body.
    server_error(status: u16) => plain(status, "The service is unavailable.");
    /// Any status and body, as plain text.
    plain(status: u16, body: &str) => plain(status, body);
    /// A page of a proxy or a load balancer.
    html(status: u16) => answer(status, "text/html; charset=utf-8", HTML);
    /// No body at all under this status.
    empty_body(status: u16) => answer(status, "application/json; charset=utf-8", "");
    /// A refusal with this AADSTS code.
    code(code: u32) => Fault::Code { code, error_codes: None };
    /// A refusal whose `error_codes` do not have the code of its text.
    disagreeing(code: u32, error_codes: &[u32]) =>
        Fault::Code { code, error_codes: Some(error_codes.to_vec()) };
    /// Never answers.
    hang() => Fault::Hang;
    /// Resets the connection.
    reset() => Fault::Reset;
    /// A body of a hundred megabytes.
    huge_body() => Fault::HugeBody(100 << 20);
    /// Headers that come late.
    slow_headers(delay: Duration) => Fault::SlowHeaders(delay);
    /// A body that comes in pieces over this time.
    slow_body(over: Duration) => Fault::SlowBody(over);
    /// A body that breaks off half way.
    cut_body() => Fault::CutBody;
    /// Tokens that live so long.
    token_lifetime(lifetime: Duration) => Fault::TokenLifetime(lifetime);
    /// Answers with `refresh_in`.
    refresh_in(after: Duration) => Fault::RefreshIn(after);
}

fn plain(status: u16, body: &str) -> Fault {
    answer(status, "text/plain; charset=utf-8", body)
}

fn answer(status: u16, content_type: &str, body: &str) -> Fault {
    let (content_type, body) = (content_type.to_owned(), body.to_owned());
    Fault::Answer {
        status,
        content_type,
        body,
        retry_after: RetryAfter::Absent,
    }
}

const HTML: &str = "<!DOCTYPE html><html><head><title>Bad Gateway</title></head>\
                    <body><h1>Bad Gateway</h1></body></html>";
