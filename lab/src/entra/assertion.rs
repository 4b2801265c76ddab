//! The client assertion: a compact JWT taken apart, and the checks that need nothing but itself.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value};

use super::refusal::{Refusal, instant};
use super::strictness::Strictness;

/// An assertion that can be read. Nothing about it has been verified.
pub(super) struct Assertion {
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) audiences: Vec<String>,
    pub(super) kid: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) expires: i64,
    not_before: Option<i64>,
    issued: Option<i64>,
    /// Header and claims as they were signed.
    message: String,
    signature: String,
}

impl Assertion {
    /// Takes a token apart: form (50027), `typ` (5002727), `alg` (5002738), required claims
    /// (50027; that Entra uses this code for them is inferred).
    pub(super) fn parse(token: &str, strictness: &Strictness) -> Result<Self, Refusal> {
        let malformed = |why: &str| Refusal::new(50027, &[]).detail(why);
        let (message, signature) = token
            .rsplit_once('.')
            .ok_or_else(|| malformed("not three parts"))?;
        let (header, claims) = message
            .split_once('.')
            .ok_or_else(|| malformed("not three parts"))?;
        let header = object(header).ok_or_else(|| malformed("header"))?;
        let claims = object(claims).ok_or_else(|| malformed("claims"))?;
        if URL_SAFE_NO_PAD.decode(signature).is_err() {
            return Err(malformed("signature"));
        }

        match header.get("typ").map(Value::as_str) {
            Some(Some("JWT" | "http://openid.net/specs/jwt/1.0")) => {}
            None if !strictness.require_type => {}
            _ => return Err(Refusal::new(5002727, &[])),
        }
        let name = header
            .get("alg")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let algorithm = name.parse::<Algorithm>().ok();
        let algorithm = algorithm
            .filter(|algorithm| strictness.algorithms.contains(algorithm))
            .ok_or_else(|| Refusal::new(5002738, &[("algorithm", name)]))?;

        let text = |name: &str| {
            let value = claims.get(name).and_then(Value::as_str).map(str::to_owned);
            value.ok_or_else(|| malformed(name))
        };
        let date = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => numeric_date(value).map(Some).ok_or_else(|| malformed(name)),
        };
        let audiences = match claims.get("aud") {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(many)) if !many.is_empty() => {
                let texts = many.iter().map(|one| one.as_str().map(str::to_owned));
                texts
                    .collect::<Option<_>>()
                    .ok_or_else(|| malformed("aud"))?
            }
            _ => return Err(malformed("aud")),
        };
        Ok(Self {
            issuer: text("iss")?,
            subject: text("sub")?,
            audiences,
            kid: header.get("kid").and_then(Value::as_str).map(str::to_owned),
            algorithm,
            expires: date("exp")?.ok_or_else(|| malformed("exp"))?,
            not_before: date("nbf")?,
            issued: date("iat")?,
            message: message.to_owned(),
            signature: signature.to_owned(),
        })
    }

    /// Verifies the signature with one key of the issuer: 5002730 for a key of another kind,
    /// 700027 for a signature that is not the key's.
    pub(super) fn verify(&self, jwk: &Value) -> Result<(), Refusal> {
        let number = |name: &str| jwk.get(name).and_then(Value::as_str).unwrap_or_default();
        if number("kty") != "RSA" {
            return Err(Refusal::new(5002730, &[]));
        }
        let key = DecodingKey::from_rsa_components(number("n"), number("e"))
            .map_err(|error| Refusal::new(700027, &[]).detail(error.to_string()))?;
        let message = self.message.as_bytes();
        match jsonwebtoken::crypto::verify(&self.signature, message, &key, self.algorithm) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal::new(700027, &[])),
            Err(error) => Err(Refusal::new(700027, &[]).detail(error.to_string())),
        }
    }

    /// Whether the assertion is valid at `now`, give or take `skew` seconds; else 700024.
    pub(super) fn check_times(&self, now: i64, skew: i64) -> Result<(), Refusal> {
        let from = self.not_before.or(self.issued);
        let started = [self.not_before, self.issued]
            .into_iter()
            .flatten()
            .all(|start| start <= now.saturating_add(skew));
        if started && self.expires > now.saturating_sub(skew) {
            return Ok(());
        }
        let (now, from, to) = (
            instant(now),
            instant(from.unwrap_or(0)),
            instant(self.expires),
        );
        Err(Refusal::new(
            700024,
            &[("now", &now), ("from", &from), ("to", &to)],
        ))
    }
}

fn object(part: &str) -> Option<Map<String, Value>> {
    let json = URL_SAFE_NO_PAD.decode(part).ok()?;
    match serde_json::from_slice(&json).ok()? {
        Value::Object(map) => Some(map),
        _ => None,
    }
}

/// Whole seconds; the fraction of a date that has one is dropped.
#[allow(
    clippy::cast_possible_truncation,
    reason = "saturates, and such dates are refused anyway"
)]
fn numeric_date(value: &Value) -> Option<i64> {
    value
        .as_i64()
        .or_else(|| value.as_f64().map(|seconds| seconds as i64))
}
