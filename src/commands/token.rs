//! `spiffe-entra token`

use serde::Deserialize;

use super::{Failure, client, print};
use crate::{
    cli::{ConfigFile, Token, TokenOutput},
    id::Scope,
};

pub(super) async fn run(args: &Token, config: &ConfigFile) -> Result<(), Failure> {
    let mut query = Vec::new();
    // The daemon checks again; here it is wrong usage, and known without a daemon.
    if let Some(resource) = &args.audience.resource {
        Scope::from_resource(resource).map_err(Failure::Usage)?;
        query.push(("resource", resource.as_str()));
    }
    if let Some(scope) = &args.audience.scope {
        Scope::from_scope(scope).map_err(Failure::Usage)?;
        query.push(("scope", scope));
    }
    query.extend(args.identity.iter().map(|i| ("identity", i.as_str())));
    query.extend(args.claims.iter().map(|c| ("claims", c.as_str())));

    let answer = client(&args.daemon, config)?
        .get("/v1/token", &query)
        .await?;
    let mut out = match args.output {
        TokenOutput::Json => answer.trim_ascii_end().to_vec(),
        TokenOutput::Raw => access_token(&answer)?.into_bytes(),
    };
    out.push(b'\n');
    print(&out)
}

fn access_token(answer: &[u8]) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: String,
    }
    // serde's error is left out: it quotes what it found, which may be the token.
    serde_json::from_slice(answer)
        .map(|answer: Answer| answer.access_token)
        .map_err(|_unsafe_to_show| {
            Failure::Failed(
                "the daemon's answer holds no access_token; is it spiffe-entra that listens there?"
                    .into(),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_taken_out_and_never_quoted() {
        let answer = br#"{"access_token":"s3cret","expires_in":9}"#;
        assert_eq!(access_token(answer).unwrap(), "s3cret");
        for broken in [&br#"{"access_token":["s3cret"]}"#[..], b"s3cret", b"{}"] {
            let Failure::Failed(text) = access_token(broken).unwrap_err() else {
                panic!("not Failed");
            };
            assert!(!text.contains("s3cret"), "{text}");
        }
    }
}
