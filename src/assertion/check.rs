//! Is this JWT-SVID the one that was asked for, and will Entra take it?
//!
//! Pure: a text, what is wanted, and the time. Entra verifies the signature, so it is not verified
//! here; everything else that Entra would refuse is found before the SVID leaves the machine, and
//! every failure names the SPIRE setting to change.
//!
//! The header is read by hand: `jsonwebtoken`'s type for it knows no `none` and no `ES512`, so that
//! the algorithm, the very thing to report, would come out as "malformed".

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::dangerous::insecure_decode_claims;
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::IgnoredAny};

use super::{Assertion, AssertionError, AssertionErrorKind, AssertionSpec};
use crate::{
    id::CREDENTIAL_FIELD_LIMIT,
    report::Report,
    secret::Secret,
    time::{Moment, rfc3339},
};

/// The one signature algorithm that Entra documents for federated credentials.
pub const ALGORITHM: &str = "RS256";

/// Life that an SVID needs for the way to Entra and back, in seconds.
const ENOUGH: i64 = 5;

/// How far the issuer's clock may be ahead of ours, in seconds. Wide on purpose: ours may be the
/// wrong one, and what Entra makes of the rest is known only when it is asked.
const SKEW: i64 = 300;

/// No JWT-SVID comes near it; what is longer is not worth decoding.
const LENGTH_LIMIT: usize = 32 * 1024;

/// Checks the JWT-SVID in `token` against what is wanted.
pub fn check(
    token: Secret,
    spec: &AssertionSpec,
    now: Moment,
) -> Result<Assertion, AssertionError> {
    let (header, claims) = decode(token.expose())?;
    let algorithm = check_algorithm(header.alg)?;
    check_type(header.typ.as_deref())?;
    let key_id = check_key_id(header.kid)?;
    check_subject(claims.sub.as_deref(), spec)?;
    check_audience(claims.aud.as_ref(), spec)?;
    let issuer = check_issuer(claims.iss.as_deref(), spec)?;
    let expires_at = check_times(&claims, now.unix_seconds())?;
    Ok(Assertion {
        issued_at: claims.iat,
        token,
        issuer,
        key_id,
        algorithm,
        expires_at,
        fetched: now,
    })
}

/// The header fields that a JWT-SVID may have (JWT-SVID, section 2); serde refuses doubles.
#[derive(Deserialize)]
struct Header {
    alg: Option<String>,
    typ: Option<String>,
    kid: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    iss: Option<String>,
    sub: Option<String>,
    aud: Option<Audience>,
    #[serde(default, deserialize_with = "numeric_date")]
    exp: Option<i64>,
    #[serde(default, deserialize_with = "numeric_date")]
    iat: Option<i64>,
    #[serde(default, deserialize_with = "numeric_date")]
    nbf: Option<i64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

fn decode(token: &str) -> Result<(Header, Claims), AssertionError> {
    if token.len() > LENGTH_LIMIT {
        return Err(malformed("it is longer than any JWT-SVID"));
    }
    let mut parts = token.split('.');
    let (Some(header), Some(_claims), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed("it has not the three parts of a signed JWT"));
    };
    check_header_names(header)?;
    let header: Header = part(header, "header")?;
    // The signature is Entra's to verify, against the issuer's published keys.
    let claims = insecure_decode_claims(token).map_err(|_quotes_values| {
        malformed("its claims part is not the JSON of a JWT-SVID, in base64url")
    })?;
    // An unsigned JWT is named for its algorithm, not for the signature it lacks.
    if signature.is_empty() && header.alg.as_deref() == Some(ALGORITHM)
        || URL_SAFE_NO_PAD.decode(signature).is_err()
    {
        return Err(malformed("its signature is missing or not base64url"));
    }
    Ok((header, claims))
}

fn part<T: DeserializeOwned>(encoded: &str, name: &str) -> Result<T, AssertionError> {
    let json = URL_SAFE_NO_PAD
        .decode(encoded)
        .map_err(|e| malformed(&format!("its {name} part is not base64url: {e}")))?;
    // serde's own message would quote values: only the place is told.
    serde_json::from_slice(&json).map_err(|e| {
        malformed(&format!(
            "its {name} part is not the JSON of a JWT-SVID (line {}, column {})",
            e.line(),
            e.column()
        ))
    })
}

fn check_header_names(encoded: &str) -> Result<(), AssertionError> {
    let names: std::collections::BTreeMap<String, IgnoredAny> = part(encoded, "header")?;
    match names
        .keys()
        .find(|n| !["alg", "kid", "typ"].contains(&n.as_str()))
    {
        None => Ok(()),
        Some(name) => Err(unusable(
            "svid-header",
            "The JWT-SVID's header has a field that JWT-SVIDs must not have",
            format!("its header carries {}", quoted(name)),
            "JWT-SVIDs have `alg`, `kid` and `typ` only (SPIFFE JWT-SVID, section 2): ask whoever \
             runs the SPIFFE implementation behind the Workload API; SPIRE's has no others",
        )),
    }
}

fn check_algorithm(alg: Option<String>) -> Result<String, AssertionError> {
    let alg = alg.unwrap_or_default();
    if alg == ALGORITHM {
        return Ok(alg);
    }
    Err(unusable(
        "svid-algorithm",
        "The JWT-SVID is signed with an algorithm that Entra does not take",
        format!(
            "it is signed with {}, and Entra's documented algorithm is {ALGORITHM}",
            quoted(&alg)
        ),
        "set `jwt_key_type = \"rsa-2048\"` in the `server` section of SPIRE's server.conf (its default \
         is an EC key) and restart the server; it signs with RS256 once it uses a new JWT key \
         (`spire-server localauthority jwt prepare` and `activate`, or the next rotation)",
    ))
}

fn check_type(typ: Option<&str>) -> Result<(), AssertionError> {
    match typ {
        None | Some("JWT") => Ok(()),
        Some(other) => Err(unusable(
            "svid-type",
            "The JWT-SVID's type is one that Entra does not take",
            format!("its `typ` is {}, and Entra takes JWT", quoted(other)),
            "SPIRE writes `typ: JWT`: what came back is another kind of token, or comes from another \
             implementation, whose setting for `typ` is to be JWT",
        )),
    }
}

fn check_key_id(kid: Option<String>) -> Result<String, AssertionError> {
    kid.filter(|kid| !kid.is_empty()).ok_or_else(|| {
        unusable(
            "svid-key-id",
            "The JWT-SVID does not say which key signed it",
            "its header has no `kid`, by which Entra finds the key in the issuer's JWKS",
            "SPIRE always writes `kid`: whatever serves this Workload API must write it too, and \
             publish the key under the same `kid`",
        )
    })
}

fn check_subject(sub: Option<&str>, spec: &AssertionSpec) -> Result<(), AssertionError> {
    let wanted = spec.subject.as_str();
    if sub == Some(wanted) {
        return Ok(());
    }
    let found = sub.map_or_else(
        || "no `sub`".to_owned(),
        |s| format!("the `sub` {}", quoted(s)),
    );
    Err(unusable(
        "svid-subject",
        "The JWT-SVID is another workload's",
        format!("it was asked for {wanted} and has {found}"),
        format!(
            "the agent must answer with the identity it was asked for: set `spiffe_id` to the one that \
             the registration entry has, or correct the entry (`spire-server entry show -spiffeID {wanted}`)"
        ),
    ))
}

fn check_audience(aud: Option<&Audience>, spec: &AssertionSpec) -> Result<(), AssertionError> {
    let found = match aud {
        Some(Audience::One(one)) => std::slice::from_ref(one),
        Some(Audience::Many(many)) => many,
        None => &[],
    };
    if found == [&*spec.audience] {
        return Ok(());
    }
    let list: Vec<_> = found.iter().take(5).map(|a| quoted(a)).collect();
    Err(unusable(
        "svid-audience",
        "The JWT-SVID is for another audience, or for several",
        format!(
            "it was asked for exactly `{}` and has [{}]",
            spec.audience,
            list.join(", ")
        ),
        "the agent must put the one audience it was asked for into `aud`, and nothing else: whoever \
         else is named could pass for the workload. SPIRE's agent does; set `entra.audience` if the \
         credential's audience is another one",
    ))
}

fn check_issuer(iss: Option<&str>, spec: &AssertionSpec) -> Result<String, AssertionError> {
    let wanted = spec.issuer.as_deref();
    let Some(iss) = iss.filter(|iss| !iss.is_empty()) else {
        let value = wanted.unwrap_or("https://…");
        return Err(unusable(
            "svid-issuer-missing",
            "The JWT-SVID does not say who issued it",
            "it has no `iss`, by which Entra finds the credential and the issuer's keys",
            format!(
                "set `jwt_issuer = \"{value}\"` in the `server` section of SPIRE's server.conf, byte for \
                 byte the issuer of the federated identity credential, and restart the server"
            ),
        ));
    };
    if let Some(fault) = issuer_fault(iss) {
        return Err(unusable(
            "svid-issuer-invalid",
            "The JWT-SVID's issuer is one that Entra cannot use",
            format!("its `iss` {} {fault}", quoted(iss)),
            "set `jwt_issuer` in the `server` section of SPIRE's server.conf to the https:// URL below \
             which /.well-known/openid-configuration is published",
        ));
    }
    match wanted {
        Some(wanted) if iss != wanted => Err(unusable(
            "svid-issuer-mismatch",
            "The JWT-SVID's issuer is not the configured one",
            format!(
                "its `iss` is {} and `workload_api.issuer` is `{wanted}`{}",
                quoted(iss),
                difference(iss, wanted)
            ),
            "make SPIRE's `jwt_issuer` (server.conf), `workload_api.issuer` here and the issuer of the \
             federated identity credential equal, byte for byte",
        )),
        _ => Ok(iss.to_owned()),
    }
}

fn issuer_fault(iss: &str) -> Option<&'static str> {
    if iss.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Some("has white space in it, for which Entra refuses it");
    }
    if iss.len() > CREDENTIAL_FIELD_LIMIT {
        return Some("is longer than the 600 characters that a credential's issuer holds");
    }
    let host = iss
        .strip_prefix("https://")
        .map(|rest| rest.split('/').next());
    match host {
        Some(Some(host)) if !host.is_empty() => None,
        _ => Some("is no https:// URL, and Entra fetches the keys from there"),
    }
}

/// Says what is easily overlooked; nothing where the two are plainly different.
fn difference(found: &str, wanted: &str) -> &'static str {
    let bare = |s: &str| s.trim_end_matches('/').to_owned();
    if bare(found) == bare(wanted) {
        "; they differ in the slash at the end, and Entra minds it"
    } else if found.eq_ignore_ascii_case(wanted) {
        "; they differ in upper and lower case only, and Entra minds it"
    } else if bare(found).eq_ignore_ascii_case(&bare(wanted)) {
        "; they differ in upper and lower case and in the slash at the end, and Entra minds both"
    } else {
        ""
    }
}

fn check_times(claims: &Claims, now: i64) -> Result<i64, AssertionError> {
    let Some(exp) = claims.exp else {
        return Err(malformed("it has no `exp`, which every JWT-SVID has"));
    };
    for (name, at) in [("iat", claims.iat), ("nbf", claims.nbf)] {
        if let Some(at) = at.filter(|at| at.saturating_sub(now) > SKEW) {
            return Err(transient(
                "svid-clock",
                "The JWT-SVID comes from the future: a clock is wrong",
                format!(
                    "its `{name}` is {}, and it is {} here",
                    rfc3339(at),
                    rfc3339(now)
                ),
                "set the clock of this machine and of the SPIRE server (NTP): one of them is wrong by \
                 more than five minutes",
            ));
        }
    }
    let left = exp.saturating_sub(now);
    if left > 0 && left >= needed(exp.saturating_sub(claims.iat.unwrap_or(now))) {
        return Ok(exp);
    }
    let state = if left > 0 { "ends" } else { "ended" };
    Err(transient(
        "svid-expired",
        "The JWT-SVID has expired, or nearly so",
        format!(
            "it {state} at {}, and it is {} here",
            rfc3339(exp),
            rfc3339(now)
        ),
        "the agent gives what it has when it cannot reach the SPIRE server: look at the server and at \
         the agent's log; compare the clocks of both with this machine's; if the lifetime is short on \
         purpose, raise `default_jwt_svid_ttl` (server.conf) or the entry's -jwtSVIDTTL",
    ))
}

/// How much of a life of `lifetime` seconds must be left: five seconds, or half of a short one. The
/// agent renews an SVID at its half-life, give or take a tenth of that, so the half is taken less
/// that tenth; or else what the agent may rightly hand out would be refused now and then.
fn needed(lifetime: i64) -> i64 {
    ENOUGH.min(lifetime.max(0) * 9 / 20)
}

fn numeric_date<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    // A NumericDate may have a fraction (RFC 7519, section 2).
    let Some(date) = Option::<f64>::deserialize(from)? else {
        return Ok(None);
    };
    const YEAR_9999: f64 = 253_402_300_799.0;
    if !(0.0..=YEAR_9999).contains(&date) {
        return Err(serde::de::Error::custom("not a date"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "within the years that were just checked"
    )]
    let seconds = date as i64;
    Ok(Some(seconds))
}

fn malformed(detail: &str) -> AssertionError {
    unusable(
        "svid-malformed",
        "The Workload API's answer is no JWT-SVID",
        detail,
        "look at what listens on the Workload API's socket: SPIRE's agent gives JWT-SVIDs in compact \
         serialization (`spire-agent api fetch jwt -audience …` shows them)",
    )
}

fn unusable(
    code: &'static str,
    title: &'static str,
    detail: impl Into<String>,
    fix: impl Into<String>,
) -> AssertionError {
    AssertionError {
        kind: AssertionErrorKind::Unusable,
        report: Box::new(Report::permanent(code, title, detail, fix)),
    }
}

fn transient(
    code: &'static str,
    title: &'static str,
    detail: impl Into<String>,
    fix: impl Into<String>,
) -> AssertionError {
    AssertionError {
        kind: AssertionErrorKind::Unusable,
        report: Box::new(Report::transient(code, title, detail, fix)),
    }
}

/// A claim for people: bounded, and without characters that could forge a log line.
fn quoted(claim: &str) -> String {
    let mut text: String = claim.chars().take(CREDENTIAL_FIELD_LIMIT).collect();
    if text.len() < claim.len() {
        text.push('…');
    }
    format!("`{}`", text.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::SpiffeId, time::Clock};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const SUBJECT: &str = "spiffe://example.org/payments";
    const ISSUER: &str = "https://oidc.example.org";
    const AUDIENCE: &str = "api://AzureADTokenExchange";

    fn spec() -> AssertionSpec {
        AssertionSpec {
            subject: SpiffeId::parse(SUBJECT).unwrap(),
            audience: AUDIENCE.into(),
            issuer: Some(ISSUER.into()),
        }
    }

    fn header() -> Value {
        json!({"alg": "RS256", "kid": "k1", "typ": "JWT"})
    }

    fn claims(now: Moment) -> Value {
        let now = now.unix_seconds();
        json!({"iss": ISSUER, "sub": SUBJECT, "aud": [AUDIENCE], "exp": now + 200, "iat": now - 100})
    }

    fn jwt(header: &Value, claims: &Value) -> String {
        let encode = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        format!("{}.{}.c2lnbmF0dXJl", encode(header), encode(claims))
    }

    fn code(header: &Value, claims: &Value, now: Moment) -> String {
        match check(Secret::new(jwt(header, claims)), &spec(), now) {
            Ok(_) => "ok".into(),
            Err(e) => {
                assert_eq!(e.kind, AssertionErrorKind::Unusable);
                assert!(!e.report.fix.is_empty() && !e.report.detail.is_empty());
                e.report.code.to_string()
            }
        }
    }

    /// `value` with one member set, or removed when it is null.
    fn with(mut value: Value, name: &str, member: Value) -> Value {
        let map = value.as_object_mut().unwrap();
        if member.is_null() {
            map.remove(name);
        } else {
            map.insert(name.into(), member);
        }
        value
    }

    #[test]
    fn what_spire_issues_passes() {
        let now = Clock::system().now();
        let token = jwt(&header(), &claims(now));
        let assertion = check(Secret::new(token.clone()), &spec(), now).unwrap();
        assert_eq!(assertion.token.expose(), token);
        assert_eq!(assertion.issuer, ISSUER);
        assert_eq!((&*assertion.key_id, &*assertion.algorithm), ("k1", "RS256"));
        assert_eq!(assertion.lifetime().as_secs(), 300);
        assert_eq!(assertion.fetched, now);
        let any = AssertionSpec {
            issuer: None,
            ..spec()
        };
        let other = with(claims(now), "iss", json!("https://other.example"));
        assert!(check(Secret::new(jwt(&header(), &other)), &any, now).is_ok());
    }

    #[test]
    fn what_is_optional_may_be_absent_and_aud_may_be_a_string() {
        let now = Clock::system().now();
        assert_eq!(
            code(&with(header(), "typ", Value::Null), &claims(now), now),
            "ok"
        );
        assert_eq!(
            code(&header(), &with(claims(now), "iat", Value::Null), now),
            "ok"
        );
        assert_eq!(
            code(&header(), &with(claims(now), "aud", json!(AUDIENCE)), now),
            "ok"
        );
        let nbf = json!(now.unix_seconds() as f64 - 0.5);
        assert_eq!(code(&header(), &with(claims(now), "nbf", nbf), now), "ok");
    }

    #[test]
    fn each_fault_has_its_code_and_names_the_setting() {
        let now = Clock::system().now();
        let at = now.unix_seconds();
        let headers = [
            (
                "alg",
                json!("ES256"),
                "svid-algorithm",
                "jwt_key_type = \"rsa-2048\"",
            ),
            ("alg", json!("none"), "svid-algorithm", "jwt_key_type"),
            ("alg", json!("PS256"), "svid-algorithm", "jwt_key_type"),
            ("alg", json!("RS384"), "svid-algorithm", "jwt_key_type"),
            ("alg", Value::Null, "svid-algorithm", "jwt_key_type"),
            ("typ", json!("wit+jwt"), "svid-type", "JWT"),
            ("typ", json!("JOSE"), "svid-type", "JWT"),
            ("kid", Value::Null, "svid-key-id", "kid"),
            ("kid", json!(""), "svid-key-id", "kid"),
            ("crit", json!(["b64"]), "svid-header", "JWT-SVID"),
            ("alg", json!(7), "svid-malformed", "socket"),
        ];
        let claim = [
            (
                "sub",
                json!("spiffe://example.org/Payments"),
                "svid-subject",
                "spiffe_id",
            ),
            ("sub", Value::Null, "svid-subject", "spiffe_id"),
            ("aud", json!([]), "svid-audience", "entra.audience"),
            (
                "aud",
                json!([AUDIENCE, "more"]),
                "svid-audience",
                "entra.audience",
            ),
            (
                "aud",
                json!("api://azureadtokenexchange"),
                "svid-audience",
                "entra.audience",
            ),
            ("aud", Value::Null, "svid-audience", "entra.audience"),
            (
                "iss",
                Value::Null,
                "svid-issuer-missing",
                "jwt_issuer = \"https://oidc.example.org\"",
            ),
            ("iss", json!(""), "svid-issuer-missing", "jwt_issuer"),
            (
                "iss",
                json!("https://oidc.example.org/"),
                "svid-issuer-mismatch",
                "jwt_issuer",
            ),
            (
                "iss",
                json!(" https://oidc.example.org"),
                "svid-issuer-invalid",
                "jwt_issuer",
            ),
            (
                "iss",
                json!("http://oidc.example.org"),
                "svid-issuer-invalid",
                "jwt_issuer",
            ),
            (
                "iss",
                json!("https:///x"),
                "svid-issuer-invalid",
                "jwt_issuer",
            ),
            (
                "iss",
                json!(format!("https://{}", "a".repeat(600))),
                "svid-issuer-invalid",
                "jwt_issuer",
            ),
            ("exp", json!(at), "svid-expired", "default_jwt_svid_ttl"),
            ("exp", json!(at + 4), "svid-expired", "-jwtSVIDTTL"),
            ("exp", Value::Null, "svid-malformed", "socket"),
            ("exp", json!(-1), "svid-malformed", "socket"),
            ("exp", json!("soon"), "svid-malformed", "socket"),
            ("iat", json!(at + 301), "svid-clock", "clock"),
            ("nbf", json!(at + 301), "svid-clock", "clock"),
        ];
        let cases = (headers.into_iter())
            .map(|(name, to, code, fix)| (jwt(&with(header(), name, to), &claims(now)), code, fix))
            .chain(claim.into_iter().map(|(name, to, code, fix)| {
                (jwt(&header(), &with(claims(now), name, to)), code, fix)
            }));
        for (token, code, fix) in cases {
            let error = check(Secret::new(token), &spec(), now).unwrap_err();
            assert_eq!(error.report.code, code, "{}", error.report.detail);
            assert!(
                error.report.fix.contains(fix),
                "{code}: {}",
                error.report.fix
            );
            let passes = ["svid-expired", "svid-clock"].contains(&code);
            assert_eq!(error.is_transient(), passes, "{code}");
        }
    }

    #[test]
    fn an_issuer_that_is_nearly_right_is_explained() {
        let now = Clock::system().now();
        for (iss, says) in [
            ("https://oidc.example.org/", "slash at the end"),
            ("https://OIDC.example.org", "upper and lower case only"),
            ("https://OIDC.example.org/", "and in the slash"),
        ] {
            let token = jwt(&header(), &with(claims(now), "iss", json!(iss)));
            let error = check(Secret::new(token), &spec(), now).unwrap_err();
            assert!(
                error.report.detail.contains(says),
                "{}",
                error.report.detail
            );
        }
    }

    #[test]
    fn short_lives_work_down_to_the_agents_half_life() {
        let now = Clock::system().now();
        let at = now.unix_seconds();
        // lifetime, left, taken?
        for (lifetime, left, taken) in [
            (5, 5, true),
            (5, 2, true),
            (5, 1, false),
            (1, 1, true),
            (10, 4, true),
            (10, 3, false),
            (300, 5, true),
            (300, 4, false),
        ] {
            let claims = with(claims(now), "exp", json!(at + left));
            let claims = with(claims, "iat", json!(at + left - lifetime));
            let expected = if taken { "ok" } else { "svid-expired" };
            assert_eq!(
                code(&header(), &claims, now),
                expected,
                "{left} of {lifetime}"
            );
        }
        let no_iat = with(with(claims(now), "iat", Value::Null), "exp", json!(at + 1));
        assert_eq!(code(&header(), &no_iat, now), "ok");
    }

    #[test]
    fn doubled_members_are_refused() {
        let now = Clock::system().now();
        let claims = claims(now).to_string();
        let doubled = claims.replacen('{', "{\"sub\":\"spiffe://example.org/other\",", 1);
        for (head, body) in [
            (r#"{"alg":"none","alg":"RS256","kid":"k"}"#, claims.as_str()),
            (r#"{"alg":"RS256","kid":"k"}"#, doubled.as_str()),
        ] {
            let encode = |s: &str| URL_SAFE_NO_PAD.encode(s);
            let token = format!("{}.{}.c2ln", encode(head), encode(body));
            let error = check(Secret::new(token), &spec(), now).unwrap_err();
            assert_eq!(error.report.code, "svid-malformed");
        }
    }

    #[test]
    fn no_error_shows_the_token_or_lets_a_claim_forge_a_line() {
        let now = Clock::system().now();
        let token = jwt(
            &header(),
            &with(claims(now), "sub", json!("x\nlevel=info \u{1b}[0m")),
        );
        let shown = format!(
            "{:?}",
            check(Secret::new(token.clone()), &spec(), now).unwrap_err()
        );
        for segment in token.split('.') {
            assert!(!shown.contains(segment), "{shown}");
        }
        let error = check(Secret::new(token), &spec(), now).unwrap_err();
        assert!(!error.report.detail.chars().any(char::is_control));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,200}", parts in "[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}") {
            let now = Clock::system().now();
            prop_assert!(check(Secret::new(text), &spec(), now).is_err());
            prop_assert!(check(Secret::new(parts), &spec(), now).is_err());
        }

        #[test]
        fn any_json_is_answered(header in json_value(), claims in json_value()) {
            let now = Clock::system().now();
            prop_assert!(check(Secret::new(jwt(&header, &claims)), &spec(), now).is_err());
        }

        #[test]
        fn a_tampered_member_is_refused(
            name in prop::sample::select(vec!["alg", "typ", "iss", "sub", "aud", "exp"]),
            to in json_value(),
        ) {
            let now = Clock::system().now();
            // `typ` may be absent, and null is that to serde.
            prop_assume!(!(name == "typ" && (to.is_null() || to == json!("JWT"))));
            prop_assume!(to.as_f64().is_none_or(|n| n <= now.unix_seconds() as f64));
            let (header, claims) = match name {
                "alg" | "typ" => (with(header(), name, to), claims(now)),
                _ => (header(), with(claims(now), name, to)),
            };
            prop_assert_ne!(code(&header, &claims, now), "ok");
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            any::<f32>().prop_map(Value::from),
            ".{0,30}".prop_map(Value::from),
        ];
        leaf.prop_recursive(2, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{1,4}", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }
}
