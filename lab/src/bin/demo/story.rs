//! What happens: each scene makes one event happen, checks it, and tells it.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lab::daemon::Answer;
use lab::entra::Exchange;
use serde_json::Value;
use tokio::time::timeout;

use super::stage::{PAYMENTS, REPORTS, RESOURCE, Stage, stranger};
use super::teller::{Teller, short, time};
use super::{Mishap, ask, check};

/// All of it.
pub(crate) async fn tell(stage: &mut Stage, teller: &Teller) -> Result<(), Mishap> {
    let first = stage.connection.get(&target("payments")).await?;
    let exchange = only_exchange(stage, &first)?;
    svid(stage, teller, &exchange).await?;
    credential(stage, teller, &exchange)?;
    token(stage, teller, &first, &exchange)?;
    again(stage, teller, &first).await?;
    refused(stage, teller).await?;
    mismatch(stage, teller).await?;
    refresh(stage, teller, &first, &exchange).await
}

/// The exchange behind the first answer.
fn only_exchange(stage: &Stage, first: &Answer) -> Result<Exchange, Mishap> {
    check(first.status == 200, || {
        unexpected("the first request for a token", first)
    })?;
    let record = stage.world.entra.record();
    let count = record.len();
    match <[Exchange; 1]>::try_from(record) {
        Ok([exchange]) => Ok(exchange),
        Err(_) => Err(Mishap::Untrue(format!(
            "{count} exchanges for the first token"
        ))),
    }
}

/// The JWT-SVID that the daemon was given: the agent gives the same one to us.
async fn svid(stage: &mut Stage, teller: &Teller, exchange: &Exchange) -> Result<(), Mishap> {
    let svid = stage.bare.svid(PAYMENTS, lab::AUDIENCE).await?;
    let (header, claims) = (part(&svid, 0), part(&svid, 1));
    let fetch = stage.world.workload.record().into_iter().next();
    check(
        fetch.is_some_and(|fetch| fetch.spiffe_id == PAYMENTS),
        || "the daemon has fetched another JWT-SVID".to_owned(),
    )?;
    let sent = (exchange.kid.as_deref(), exchange.assertion_expires);
    check(
        sent == (header["kid"].as_str(), claims["exp"].as_i64()),
        || "the JWT-SVID that went to Entra is not the one that the agent has".to_owned(),
    )?;
    check(
        header["alg"] == "RS256" && text(&claims, "sub") == PAYMENTS,
        || {
            format!(
                "the JWT-SVID has alg {} and sub {}",
                header["alg"], claims["sub"]
            )
        },
    )?;
    let line = format!(
        "{} for {}, {}, expires in {} s",
        teller.strong(text(&claims, "sub")),
        claims["aud"]
            .as_array()
            .and_then(|many| many.first())
            .and_then(Value::as_str)
            .unwrap_or_default(),
        text(&header, "alg"),
        seconds_until(stage, &claims["exp"]),
    );
    Ok(teller.line("JWT-SVID", &line)?)
}

/// The federated identity credential that trusts it.
fn credential(stage: &Stage, teller: &Teller, exchange: &Exchange) -> Result<(), Mishap> {
    let credentials = stage.app.credentials();
    let issuer = stage.world.issuer.url();
    let found = credentials.iter().find(|one| {
        Some(&one.subject) == exchange.subject.as_ref()
            && one.issuer == issuer
            && one.audiences == [lab::AUDIENCE]
    });
    let Some(found) = found else {
        return Err(Mishap::Untrue(
            "no credential is the one that matched".to_owned(),
        ));
    };
    let line = format!(
        "issuer {}, this subject and this audience: application {}",
        found.issuer,
        teller.strong(stage.app.client_id()),
    );
    Ok(teller.line("credential", &line)?)
}

/// The exchange, and the token that it gave.
fn token(
    stage: &Stage,
    teller: &Teller,
    first: &Answer,
    exchange: &Exchange,
) -> Result<(), Mishap> {
    let sent = |field| exchange.fields.iter().any(|name| name == field);
    check(
        exchange.status == Some(200) && sent("client_assertion") && !sent("client_secret"),
        || {
            format!(
                "the exchange was {:?} with {:?}",
                exchange.status, exchange.fields
            )
        },
    )?;
    let line = format!(
        "{} {}, with client_assertion, without a secret: {}",
        exchange.method,
        exchange
            .path
            .replace(&stage.world.tenant(), &short(&stage.world.tenant())),
        teller.strong("200")
    );
    teller.line("exchange", &line)?;

    let claims = claims(first);
    check(exchange.uti.as_deref() == claims["uti"].as_str(), || {
        "the token is not the one that Entra issued".to_owned()
    })?;
    let tenant = stage.world.tenant();
    let expected = [
        ("aud", RESOURCE),
        ("appid", stage.app.client_id()),
        ("tid", &tenant),
    ];
    for (name, value) in expected {
        check(claims[name] == value, || {
            format!("the token's {name} is {}", claims[name])
        })?;
    }
    let line = format!(
        "aud {}, appid {}, tid {}, expires in {} s",
        teller.strong(text(&claims, "aud")),
        short(text(&claims, "appid")),
        short(text(&claims, "tid")),
        seconds_until(stage, &claims["exp"]),
    );
    Ok(teller.line("token", &line)?)
}

/// The same from memory.
async fn again(stage: &mut Stage, teller: &Teller, first: &Answer) -> Result<(), Mishap> {
    let second = stage.connection.get(&target("payments")).await?;
    check(second.status == 200, || {
        unexpected("the second request", &second)
    })?;
    check(
        first.json()["access_token"] == second.json()["access_token"],
        || "the second token is another one".to_owned(),
    )?;
    let exchanges = stage.world.entra.exchanges();
    check(exchanges == 1, || {
        format!("{exchanges} exchanges for two requests")
    })?;
    let line = format!(
        "the same token from memory in {}, where the first call took {}",
        teller.strong(&time(second.took)),
        teller.strong(&time(first.took)),
    );
    Ok(teller.line("again", &line)?)
}

/// A caller without the right: of another uid where we may have one, else for an identity that is
/// another uid's.
async fn refused(stage: &mut Stage, teller: &Teller) -> Result<(), Mishap> {
    let before = stage.world.entra.exchanges();
    let stranger = stranger();
    let socket = stage.daemon.socket();
    let (uid, identity, status, body) = match ask::as_uid(stranger, &socket, &target("payments")) {
        Some(answer) => (
            stranger,
            "payments",
            answer["status"].as_u64(),
            answer["body"].clone(),
        ),
        None => {
            let answer = stage.connection.get(&target("ledger")).await?;
            let uid = nix::unistd::geteuid().as_raw();
            (
                uid,
                "ledger",
                Some(u64::from(answer.status.as_u16())),
                answer.json(),
            )
        }
    };
    check(
        status == Some(403) && body.get("access_token").is_none(),
        || {
            format!(
                "uid {uid} asked for {identity} and was answered {status:?}: {}",
                text(&body, "detail")
            )
        },
    )?;
    let exchanges = stage.world.entra.exchanges();
    check(exchanges == before, || {
        "Entra was asked for a caller without the right".to_owned()
    })?;
    let line = format!(
        "uid {uid} asks for {identity} and is not among its callers: {} {}",
        teller.strong("403"),
        text(&body, "code")
    );
    Ok(teller.line("refused", &line)?)
}

/// A workload that no credential trusts.
async fn mismatch(stage: &mut Stage, teller: &Teller) -> Result<(), Mishap> {
    let answer = stage.connection.get(&target("reports")).await?;
    let problem = answer.json();
    check(
        !answer.status.is_success() && text(&problem, "code") == "AADSTS700213",
        || unexpected("a workload without a credential", &answer),
    )?;
    let fix = text(&problem, "fix");
    check(fix.contains(REPORTS), || {
        format!("the fix does not name the subject: {fix}")
    })?;
    let line = format!(
        "{REPORTS}: {} {}",
        teller.strong(text(&problem, "code")),
        text(&problem, "title")
    );
    teller.line("no match", &line)?;
    Ok(teller.more(&format!("fix: {fix}"))?)
}

/// The token is renewed while it is still good, and nobody waits for it.
async fn refresh(
    stage: &mut Stage,
    teller: &Teller,
    first: &Answer,
    exchange: &Exchange,
) -> Result<(), Mishap> {
    let entra = stage.world.entra.clone();
    let renewal = async {
        loop {
            let answered = entra.answered();
            let renewal = entra.record().into_iter().find(|one| {
                one.uti.is_some() && one.uti != exchange.uti && one.client_id == exchange.client_id
            });
            if let Some(renewal) = renewal {
                return renewal;
            }
            entra.wait_answered(answered + 1).await;
        }
    };
    let Ok(renewal) = timeout(PATIENCE, renewal).await else {
        return Err(stage.daemon.late("the refresh").into());
    };
    let expires = claims(first)["exp"].as_u64().unwrap_or_default();
    let expires = UNIX_EPOCH + Duration::from_secs(expires);
    let left = expires.duration_since(renewal.at).unwrap_or_default();
    check(!left.is_zero(), || {
        "the refresh came after the token had expired".to_owned()
    })?;
    // The daemon has its answer a moment after Entra has decided it.
    let fresh = async {
        loop {
            let answer = stage.connection.get(&target("payments")).await?;
            if claims(&answer)["uti"].as_str() == renewal.uti.as_deref() {
                return Ok::<_, Mishap>(answer);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let Ok(fresh) = timeout(PATIENCE, fresh).await else {
        return Err(stage.daemon.late("the refreshed token").into());
    };
    let fresh = fresh?;
    let age = renewal.at.duration_since(exchange.at).unwrap_or_default();
    let line = format!(
        "a new token {} after the first, {} before that expires: no call waited ({})",
        time(age),
        teller.strong(&time(left)),
        time(fresh.took)
    );
    Ok(teller.line("refresh", &line)?)
}

fn target(identity: &str) -> String {
    format!("/v1/token?resource={RESOURCE}&identity={identity}")
}

/// The claims of the token in an answer.
fn claims(answer: &Answer) -> Value {
    part(text(&answer.json(), "access_token"), 1)
}

/// A part of a JWT; null when it cannot be read.
fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).unwrap_or_default();
    let bytes = URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn seconds_until(stage: &Stage, date: &Value) -> i64 {
    date.as_i64().unwrap_or_default() - stage.world.workload.clock().now()
}

/// An answer that does not fit; a token in it is not shown.
fn unexpected(what: &str, answer: &Answer) -> String {
    let problem = answer.json();
    format!(
        "{what} was answered {}: {} {}",
        answer.status,
        text(&problem, "code"),
        text(&problem, "detail")
    )
}

/// How long the refresh may take to come.
const PATIENCE: Duration = Duration::from_secs(10);
