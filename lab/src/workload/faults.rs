//! What can be wrong with a Workload API: refusals, outages and SVIDs that should not exist.

use std::time::Duration;

use tonic::Code;

use crate::faults::{Armed, shorthands};

/// One fault of `FetchJWTSVID`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The call fails with this status.
    Status {
        /// The gRPC code.
        code: Code,
        /// Its message.
        message: String,
    },
    /// The call is never answered.
    Hang,
    /// The answer holds no SVID.
    EmptyAnswer,
    /// The answer comes this much later.
    Slow(Duration),
    /// The agent cannot reach its server: it serves what it has to its expiry, then fails.
    ServerDown,
    /// The SVID's token is not a JWT.
    Malformed(String),
    /// Another `sub`.
    Subject(String),
    /// Another `aud`.
    Audience(Vec<String>),
    /// Expired a minute ago.
    Expired,
    /// No `iss`: a SPIRE server without `jwt_issuer`.
    NoIssuer,
    /// Another `iss`.
    Issuer(String),
    /// Signed with an EC key: a SPIRE server with its default `jwt_key_type`.
    Es256,
    /// Another `typ` in the header.
    Type(String),
    /// No `kid` in the header.
    NoKeyId,
    /// Another lifetime than the entry's.
    Ttl(Duration),
}

impl Fault {
    /// Whether this is the whole answer, so that no other such fault may be used up with it.
    pub(super) fn replaces(&self) -> bool {
        matches!(self, Self::Status { .. } | Self::Hang | Self::EmptyAnswer)
    }

    /// Whether the SVID must be made anew and kept out of the agent's cache.
    pub(super) fn changes_token(&self) -> bool {
        !self.replaces() && !matches!(self, Self::Slow(_) | Self::ServerDown)
    }
}

/// Arms faults for one SPIFFE ID or for all.
pub type Faults = crate::faults::Faults<Fault>;

shorthands! {
    /// `Unavailable`, as an agent that cannot attest its caller says.
    unavailable() => status(Code::Unavailable, "workload attestation failed");
    /// `PermissionDenied`, as an agent says that knows no entry.
    permission_denied() => status(Code::PermissionDenied, super::NO_IDENTITY);
    /// `InvalidArgument`.
    invalid_argument() => status(Code::InvalidArgument, "invalid argument");
    /// Any other status.
    status(code: Code, message: &str) => status(code, message);
    /// Never answers.
    hang() => Fault::Hang;
    /// Answers late.
    slow(delay: Duration) => Fault::Slow(delay);
    /// No SVID in the answer.
    empty_answer() => Fault::EmptyAnswer;
    /// The agent's server is out of reach.
    server_down() => Fault::ServerDown;
    /// A token that is no JWT.
    malformed() => Fault::Malformed("not-a-jwt".to_owned());
    /// A token of another identity.
    wrong_subject(subject: &str) => Fault::Subject(subject.to_owned());
    /// A token for somebody else.
    wrong_audience(audience: &[&str]) =>
        Fault::Audience(audience.iter().map(|&one| one.to_owned()).collect());
    /// A token that has expired.
    expired() => Fault::Expired;
    /// A token without `iss`.
    no_issuer() => Fault::NoIssuer;
    /// A token of another issuer.
    wrong_issuer(issuer: &str) => Fault::Issuer(issuer.to_owned());
    /// A token signed with ES256.
    es256() => Fault::Es256;
    /// A token that lives so long.
    ttl(ttl: Duration) => Fault::Ttl(ttl);
}

fn status(code: Code, message: &str) -> Fault {
    Fault::Status {
        code,
        message: message.to_owned(),
    }
}
