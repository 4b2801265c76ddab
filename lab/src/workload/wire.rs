//! The Workload API's messages and service, generated from `proto/spiffe/workload.proto`.

#![allow(missing_docs, reason = "generated code")]
#![allow(unreachable_pub, unused_qualifications, reason = "generated code")]
#![allow(clippy::all, clippy::use_self, reason = "generated code")]
#![allow(clippy::allow_attributes_without_reason, reason = "generated code")]

use std::fmt;

// The service has no package, for which prost has this name.
tonic::include_proto!("_");

impl fmt::Debug for Jwtsvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            spiffe_id, hint, ..
        } = self;
        f.debug_struct("Jwtsvid")
            .field("spiffe_id", spiffe_id)
            .field("hint", hint)
            .finish()
    }
}

impl fmt::Debug for ValidateJwtsvidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateJwtsvidRequest")
            .field("audience", &self.audience)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_show_tokens() {
        let svid = Jwtsvid {
            svid: "secret".to_owned(),
            ..Jwtsvid::default()
        };
        let answer = JwtsvidResponse { svids: vec![svid] };
        assert!(!format!("{answer:?}").contains("secret"));
        let request = ValidateJwtsvidRequest {
            svid: "secret".to_owned(),
            ..Default::default()
        };
        assert!(!format!("{request:?}").contains("secret"));
    }
}
