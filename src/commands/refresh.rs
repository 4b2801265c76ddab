//! `spiffe-entra refresh`

use serde::Deserialize;

use super::{Failure, client, print};
use crate::cli::{ConfigFile, Refresh};

pub(super) async fn run(args: &Refresh, config: &ConfigFile) -> Result<(), Failure> {
    let answer = client(&args.daemon, config)?
        .post("/v1/refresh", &[("identity", &args.identity)])
        .await?;
    print(done(&answer)?.as_bytes())
}

fn done(answer: &[u8]) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        refreshed: usize,
    }
    let answer: Answer = serde_json::from_slice(answer).map_err(|error| {
        Failure::Failed(format!(
            "the daemon's answer cannot be read ({error}): is it spiffe-entra, of this version, \
             that listens there?"
        ))
    })?;
    Ok(match answer.refreshed {
        0 => "no tokens to renew: the JWT-SVID alone is new\n".into(),
        1 => "1 token renewed\n".into(),
        count => format!("{count} tokens renewed\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted() {
        for (count, says) in [
            (0, "no tokens to renew: the JWT-SVID alone is new\n"),
            (1, "1 token renewed\n"),
            (2, "2 tokens renewed\n"),
        ] {
            let answer = format!("{{\"refreshed\":{count}}}");
            assert_eq!(done(answer.as_bytes()).as_deref(), Ok(says));
        }
        assert!(matches!(done(b"{}"), Err(Failure::Failed(_))));
    }
}
