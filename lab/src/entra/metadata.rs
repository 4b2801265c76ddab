//! The issuer's discovery document and keys, fetched over https as Entra fetches them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::Result;
use crate::sync::lock;

use super::refusal::Refusal;
use super::{EntraOptions, Settings};

/// The client for issuers' documents, and what it has fetched.
pub(super) struct Metadata {
    client: reqwest::Client,
    cache: Mutex<HashMap<String, Cached>>,
}

#[derive(Clone)]
struct Cached {
    fetched: Instant,
    keys: Vec<Value>,
}

impl Metadata {
    pub(super) fn new(options: &EntraOptions) -> Result<Self> {
        let mut roots = Vec::new();
        for pem in &options.issuer_cas {
            roots.extend(reqwest::Certificate::from_pem_bundle(pem.as_bytes())?);
        }
        let builder = reqwest::Client::builder()
            // No redirects: whether Entra follows any is not known.
            .redirect(reqwest::redirect::Policy::none())
            .https_only(true)
            .no_proxy();
        let builder = if options.system_roots {
            builder.tls_certs_merge(roots)
        } else {
            builder.tls_certs_only(roots)
        };
        let builder = options
            .hosts
            .iter()
            .fold(builder, |builder, (host, address)| {
                builder.resolve_to_addrs(host, &[*address] as &[SocketAddr])
            });
        Ok(Self {
            client: builder.build()?,
            cache: Mutex::default(),
        })
    }

    /// The issuer's keys: the first hundred, as old as the settings allow, else 501661.
    pub(super) async fn keys(
        &self,
        issuer: &str,
        settings: &Settings,
    ) -> Result<Vec<Value>, Refusal> {
        let cached = lock(&self.cache).get(issuer).cloned();
        if let Some(cached) = cached
            && cached.fetched.elapsed() < settings.metadata_cache
        {
            return Ok(cached.keys);
        }
        let fetch = self.fetch(issuer, settings);
        let keys = tokio::time::timeout(settings.fetch_timeout, fetch)
            .await
            .unwrap_or_else(|_| Err("no answer in time".to_owned()))
            .map_err(|why| Refusal::new(501661, &[]).detail(why))?;
        let fresh = Cached {
            fetched: Instant::now(),
            keys: keys.clone(),
        };
        lock(&self.cache).insert(issuer.to_owned(), fresh);
        Ok(keys)
    }

    pub(super) fn forget(&self) {
        lock(&self.cache).clear();
    }

    async fn fetch(&self, issuer: &str, settings: &Settings) -> Result<Vec<Value>, String> {
        // OpenID Connect Discovery 4.1: one slash at the end goes before the suffix is appended.
        let base = issuer.strip_suffix('/').unwrap_or(issuer);
        let document = self
            .get(&format!("{base}/.well-known/openid-configuration"))
            .await?;
        if document["issuer"].as_str() != Some(issuer) {
            return Err("the discovery document names another issuer".to_owned());
        }
        let empty = document["authorization_endpoint"] == "";
        if empty && settings.strictness.refuse_empty_authorization_endpoint {
            return Err("authorization_endpoint is empty".to_owned());
        }
        let jwks_uri = document["jwks_uri"].as_str().ok_or("no jwks_uri")?;
        let mut jwks = self.get(jwks_uri).await?;
        let Value::Array(mut keys) = jwks["keys"].take() else {
            return Err("no keys in the JWKS".to_owned());
        };
        keys.truncate(MAX_KEYS);
        Ok(keys)
    }

    async fn get(&self, url: &str) -> Result<Value, String> {
        let answer = self
            .client
            .get(url)
            .send()
            .await
            .map_err(|error| describe(&error))?;
        if answer.status() != http::StatusCode::OK {
            return Err(format!("{url}: status {}", answer.status()));
        }
        answer.json().await.map_err(|error| describe(&error))
    }
}

/// Entra stores the first hundred signing keys of an issuer.
const MAX_KEYS: usize = 100;

/// How long a fetch may take by default.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The error with its causes: the outermost one says little.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
