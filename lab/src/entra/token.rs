//! Access tokens as Entra issues them to applications: RS256, v1.0 or v2.0 claims as the resource
//! wants, about two kilobytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use crate::error::Result;
use crate::guid;
use crate::keys::{Key, KeyType};
use crate::sync::lock;

use super::Settings;
use super::directory::ClientKind;
use super::exchange::Grant;

/// Makes access tokens.
pub(super) struct Minter {
    key: Key,
    reusable: Mutex<HashMap<ReuseKey, Minted>>,
}

/// Client, requested resource, revocable, lifetime.
type ReuseKey = (String, String, bool, Option<Duration>);

/// An access token and what the answer says of it.
#[derive(Clone)]
pub(super) struct Minted {
    pub(super) token: Arc<str>,
    pub(super) uti: String,
    pub(super) expires: i64,
    pub(super) refresh_in: Option<i64>,
}

impl Minter {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            key: Key::stock("entra", KeyType::Rsa2048)?,
            reusable: Mutex::default(),
        })
    }

    /// The keys that verify the tokens, as `/discovery/v2.0/keys` has them.
    pub(super) fn jwks(&self) -> Value {
        let mut jwk = self.key.jwk(true);
        jwk["x5t"] = json!(self.key.kid());
        json!({ "keys": [jwk] })
    }

    /// A token for a grant, or with `reuse_tokens` the one made before while half its life is left.
    pub(super) fn mint(
        &self,
        grant: &Grant,
        now: i64,
        settings: &Settings,
        lifetime: Option<Duration>,
    ) -> Result<Minted> {
        if !settings.reuse_tokens {
            return self.sign(grant, now, settings, lifetime);
        }
        let client = grant.client.client_id.clone();
        let key = (client, grant.requested.clone(), grant.revocable, lifetime);
        if let Some(minted) = lock(&self.reusable).get(&key)
            && minted.expires - now > MIN_LIFETIME / 2
        {
            return Ok(minted.clone());
        }
        let minted = self.sign(grant, now, settings, lifetime)?;
        lock(&self.reusable).insert(key, minted.clone());
        Ok(minted)
    }

    fn sign(
        &self,
        grant: &Grant,
        now: i64,
        settings: &Settings,
        lifetime: Option<Duration>,
    ) -> Result<Minted> {
        let lifetime = lifetime.map_or_else(
            || default_lifetime(grant),
            |lifetime| i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX / 2),
        );
        let expires = now.saturating_add(lifetime);
        let uti = guid::random_text(16);
        let mut claims = claims(grant, &uti, now, expires);
        let kid = self.key.kid();
        let header = json!({ "typ": "JWT", "alg": "RS256", "x5t": kid, "kid": kid });
        // `aio` is opaque and long in real tokens too: it takes up what is missing to the size.
        let length = (header.to_string().len() + claims.to_string().len()) * 4 / 3 + 346;
        let missing = settings.token_size.saturating_sub(length) * 9 / 16;
        claims["aio"] = json!(guid::random_text(24 + missing));
        let token = self
            .key
            .sign_with(Algorithm::RS256, &header, &claims)?
            .into();
        let refresh_in = (lifetime > LONG_LIFETIME).then_some(lifetime / 2);
        Ok(Minted {
            token,
            uti,
            expires,
            refresh_in,
        })
    }
}

/// The claims of an app-only token.
fn claims(grant: &Grant, uti: &str, now: i64, expires: i64) -> Value {
    let Grant {
        tenant,
        client,
        resource,
        requested,
        revocable,
    } = grant;
    let mut claims = json!({
        "iat": now,
        "nbf": now,
        "exp": expires,
        "aio": guid::random_text(24),
        "idtyp": "app",
        "oid": client.object_id,
        "rh": format!("1.{}.", guid::random_text(40)),
        "sub": client.object_id,
        "tid": tenant,
        "uti": uti,
        "xms_ftd": guid::random_text(48),
    });
    // 2 is "client assertion or certificate".
    if let Some(audience) = &resource.v2_audience {
        claims["aud"] = json!(audience);
        claims["iss"] = json!(format!("https://login.microsoftonline.com/{tenant}/v2.0"));
        claims["azp"] = json!(client.client_id);
        claims["azpacr"] = json!("2");
        claims["ver"] = json!("2.0");
    } else {
        let issuer = format!("https://sts.windows.net/{tenant}/");
        claims["aud"] = json!(requested);
        claims["idp"] = json!(issuer);
        claims["iss"] = json!(issuer);
        claims["appid"] = json!(client.client_id);
        claims["appidacr"] = json!("2");
        claims["ver"] = json!("1.0");
        claims["xms_idrel"] = json!("7 10");
        claims["xms_tcdt"] = json!(1_577_836_800);
    }
    if !client.roles.is_empty() {
        claims["roles"] = json!(client.roles);
    }
    if *revocable {
        claims["xms_cc"] = json!(["CP1"]);
    }
    claims
}

/// 60 to 90 minutes; 24 to 28 hours for an application that can handle revocation, at the one
/// resource that can revoke; 24 hours for a managed identity.
fn default_lifetime(grant: &Grant) -> i64 {
    let graph = grant.resource.id == "https://graph.microsoft.com";
    match grant.client.kind {
        ClientKind::ManagedIdentity => 24 * HOUR,
        ClientKind::Application if grant.revocable && graph => fastrand::i64(24 * HOUR..28 * HOUR),
        ClientKind::Application => fastrand::i64(MIN_LIFETIME..=90 * MINUTE),
    }
}

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const MIN_LIFETIME: i64 = 60 * MINUTE;
/// Tokens that live longer come with `refresh_in`, half their life.
const LONG_LIFETIME: i64 = 2 * HOUR;
