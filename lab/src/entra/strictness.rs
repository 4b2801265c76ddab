//! What is not known about Entra, as switches. The defaults are the strict side: a fake that
//! accepts what Entra refuses would hide a bug.

use std::time::Duration;

use jsonwebtoken::Algorithm;

/// How strict the fake is where Entra's behaviour is not verified.
#[derive(Clone, Debug)]
pub struct Strictness {
    /// The algorithms accepted. ES256 is refused for certain and RS256 accepted for certain; the
    /// others are in the list that Entra's own error text gives, which nobody has tried.
    pub algorithms: Vec<Algorithm>,
    /// Whether a header without `typ` is refused (5002727). Only wrong ones are known to be.
    pub require_type: bool,
    /// Whether a key must say `use: "sig"`. One report has 501661 for keys without.
    pub require_key_use: bool,
    /// Whether `authorization_endpoint: ""` in the issuer's document is refused (501661). One
    /// report suspects it, but SPIRE's provider always writes it and is known to work.
    pub refuse_empty_authorization_endpoint: bool,
    /// Whether one matching audience among several is enough. Not verified: refused (700212).
    pub accept_many_audiences: bool,
    /// Whether a failed match is answered with the older, combined 70021 instead of 700211,
    /// 700212 or 700213. Both are seen in the field.
    pub combined_no_match: bool,
    /// How far the assertion's times may be off. Entra's own tolerance is not published.
    pub clock_skew: Duration,
}

/// The default tolerance of an assertion's times: enough for rounding and clocks kept by NTP, and
/// less than anything Entra can be expected to have.
pub const CLOCK_SKEW: Duration = Duration::from_secs(5);

impl Default for Strictness {
    fn default() -> Self {
        Self {
            algorithms: vec![
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ],
            require_type: true,
            require_key_use: true,
            refuse_empty_authorization_endpoint: false,
            accept_many_audiences: false,
            combined_no_match: false,
            clock_skew: CLOCK_SKEW,
        }
    }
}
