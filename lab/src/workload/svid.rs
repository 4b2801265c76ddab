//! Making JWT-SVIDs as SPIRE's server does, and keeping them as its agent does.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use tonic::Status;

use crate::clock::Clock;
use crate::issuer::Issuer;
use crate::keys::KeyType;
use crate::sync::lock;

use super::Entry;
use super::faults::Fault;

/// The agent's side of JWT-SVIDs: mints through the issuer's keys, caches per identity and set of
/// audiences.
pub(super) struct Mint {
    issuer: Issuer,
    clock: Clock,
    cache: Mutex<HashMap<CacheKey, Cached>>,
}

/// The SPIFFE ID and the audiences in order.
type CacheKey = (String, Vec<String>);

#[derive(Clone)]
struct Cached {
    token: String,
    issued: i64,
    expires: i64,
}

impl Mint {
    pub(super) fn new(issuer: Issuer, clock: Clock) -> Self {
        Self {
            issuer,
            clock,
            cache: Mutex::default(),
        }
    }

    /// The SVID an agent answers: its own while more than half of its life is left (give or take
    /// a tenth), else a new one; its own again when there is no new one to be had.
    pub(super) fn svid(
        &self,
        entry: &Entry,
        audience: &[String],
        faults: &[Fault],
    ) -> Result<String, Status> {
        if faults.iter().any(Fault::changes_token) {
            return self
                .mint(entry, audience, faults)
                .map(|cached| cached.token);
        }
        let mut audiences = audience.to_vec();
        audiences.sort();
        let key = (entry.spiffe_id.clone(), audiences);
        let cached = lock(&self.cache).get(&key).cloned();
        let now = self.clock.now();
        if let Some(cached) = &cached {
            let life = cached.expires - cached.issued;
            let half = life / 2;
            let jitter = half / 10;
            let refresh_below = half + fastrand::i64(-jitter..=jitter);
            if cached.expires - now > refresh_below {
                return Ok(cached.token.clone());
            }
        }
        if faults
            .iter()
            .any(|fault| matches!(fault, Fault::ServerDown))
        {
            return cached
                .filter(|cached| cached.expires > now)
                .map(|cached| cached.token)
                .ok_or_else(|| {
                    Status::unavailable("could not fetch JWT-SVID: server is not reachable")
                });
        }
        let fresh = self.mint(entry, audience, faults)?;
        lock(&self.cache).insert(key, fresh.clone());
        Ok(fresh.token)
    }

    /// Forgets the SVIDs in the cache: what tainting a key or restarting the agent does.
    pub(super) fn forget(&self) {
        lock(&self.cache).clear();
    }

    fn mint(&self, entry: &Entry, audience: &[String], faults: &[Fault]) -> Result<Cached, Status> {
        let mut ttl = entry.ttl;
        let mut header = json!({ "typ": "JWT" });
        let mut claims = json!({
            "sub": entry.spiffe_id,
            "aud": audience,
            "iss": self.issuer.url(),
        });
        let mut key = self.issuer.active_key();
        let mut key_id = true;
        let mut expired = false;
        for fault in faults {
            match fault {
                Fault::Malformed(token) => {
                    return Ok(Cached {
                        token: token.clone(),
                        issued: 0,
                        expires: 0,
                    });
                }
                Fault::Subject(subject) => claims["sub"] = json!(subject),
                Fault::Audience(audience) => claims["aud"] = json!(audience),
                Fault::Issuer(issuer) => claims["iss"] = json!(issuer),
                Fault::NoIssuer => remove(&mut claims, "iss"),
                Fault::Type(kind) => header["typ"] = json!(kind),
                Fault::NoKeyId => key_id = false,
                Fault::Ttl(other) => ttl = *other,
                Fault::Expired => expired = true,
                Fault::Es256 => key = self.issuer.key_of(KeyType::EcP256).map_err(internal)?,
                Fault::Status { .. }
                | Fault::Hang
                | Fault::EmptyAnswer
                | Fault::Slow(_)
                | Fault::ServerDown => {}
            }
        }
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let mut issued = self.clock.now();
        if expired {
            issued = issued.saturating_sub(seconds).saturating_sub(EXPIRED_SINCE);
        }
        let expires = issued.saturating_add(seconds);
        claims["iat"] = json!(issued);
        claims["exp"] = json!(expires);
        header["alg"] = json!(key.key_type().algorithm());
        if key_id {
            header["kid"] = json!(key.kid());
        }
        let algorithm = key.key_type().algorithm();
        let token = key
            .sign_with(algorithm, &header, &claims)
            .map_err(internal)?;
        Ok(Cached {
            token,
            issued,
            expires,
        })
    }
}

/// SPIRE's default lifetime of a JWT-SVID.
pub(super) const DEFAULT_TTL: Duration = Duration::from_secs(300);

/// Seconds since a token of [`Fault::Expired`] has been dead.
const EXPIRED_SINCE: i64 = 60;

fn remove(value: &mut Value, name: &str) {
    if let Some(map) = value.as_object_mut() {
        map.remove(name);
    }
}

fn internal(error: crate::Error) -> Status {
    Status::internal(error.to_string())
}
