//! An OIDC issuer as SPIRE's discovery provider is one: the discovery document, the JWKS and the
//! signing keys behind both, with everything that goes wrong with such a provider in the field.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{StatusCode, header};
use serde_json::{Value, json};

use crate::ca::Ca;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyType};
use crate::serve::HttpsServer;
use crate::sync::lock;

/// How an issuer is served.
#[derive(Clone, Debug)]
pub struct IssuerOptions {
    /// Where to listen. Default: a free port on loopback.
    pub listen: SocketAddr,
    /// The `iss` of its tokens. Default: `https://localhost:PORT` and the path. It must lead to
    /// this server, and [`path`](Self::path) must be its path.
    pub url: Option<String>,
    /// The path below which the documents are, such as `/mesh/one`.
    pub path: String,
    /// Whether the issuer's name ends with a slash.
    pub trailing_slash: bool,
    /// Further names in the certificate.
    pub names: Vec<String>,
    /// The kind of the first key. Issuers of one process share its key pair, under different
    /// `kid`s; every later key is new.
    pub key_type: KeyType,
}

impl Default for IssuerOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            url: None,
            path: String::new(),
            trailing_slash: false,
            names: Vec::new(),
            key_type: KeyType::Rsa2048,
        }
    }
}

/// What is wrong with the documents. The default is what Entra needs.
#[derive(Clone, Debug)]
pub struct Documents {
    /// Answers everything with this status.
    pub down: Option<u16>,
    /// Waits this long before each answer.
    pub delay: Duration,
    /// Another `issuer` in the discovery document.
    pub issuer: Option<String>,
    /// Another `jwks_uri` in the discovery document.
    pub jwks_uri: Option<String>,
    /// `use: "sig"` on each key: SPIRE's `set_key_use`, there off by default.
    pub key_use: bool,
    /// `kid` on each key.
    pub key_ids: bool,
    /// Keys that are left out although they sign: a provider that lags.
    pub hidden: Vec<String>,
    /// That many keys of nobody before the real ones: Entra reads the first hundred.
    pub padding: usize,
    /// `authorization_endpoint`: SPIRE's provider says `""`; `None` leaves it out.
    pub authorization_endpoint: Option<String>,
    /// Answers this instead of either document.
    pub body: Option<String>,
}

impl Default for Documents {
    fn default() -> Self {
        Self {
            down: None,
            delay: Duration::ZERO,
            issuer: None,
            jwks_uri: None,
            key_use: true,
            key_ids: true,
            hidden: Vec::new(),
            padding: 0,
            authorization_endpoint: Some(String::new()),
            body: None,
        }
    }
}

/// A running issuer. Clones are the same issuer; it stops when the last one is dropped.
#[derive(Clone)]
pub struct Issuer {
    shared: Arc<Shared>,
    server: Arc<HttpsServer>,
}

struct Shared {
    /// Set once the port is known, before anything is served.
    url: Mutex<String>,
    keys: Mutex<Keys>,
    documents: Mutex<Documents>,
    /// Called after each change of the published keys.
    changed: tokio::sync::watch::Sender<u64>,
    discovery_requests: AtomicU64,
    jwks_requests: AtomicU64,
}

/// In the order of publication; the active one signs.
struct Keys {
    published: Vec<Key>,
    active: Key,
}

impl Issuer {
    /// Starts an issuer whose certificate `ca` signs.
    ///
    /// # Errors
    /// When the address is taken or a key cannot be made.
    pub async fn start(ca: &Ca, options: IssuerOptions) -> Result<Self> {
        let path = options.path.trim_end_matches('/').to_owned();
        if !(path.is_empty() || path.starts_with('/')) {
            return Err(Error::Config(format!(
                "issuer path {path}: must start with a slash"
            )));
        }
        let key = tokio::task::spawn_blocking(move || Key::stock("issuer", options.key_type))
            .await
            .map_err(|error| Error::Config(format!("key generation: {error}")))??;
        let shared = Arc::new(Shared {
            url: Mutex::default(),
            keys: Mutex::new(Keys {
                published: vec![key.clone()],
                active: key,
            }),
            documents: Mutex::default(),
            changed: tokio::sync::watch::Sender::new(0),
            discovery_requests: AtomicU64::new(0),
            jwks_requests: AtomicU64::new(0),
        });
        let tls = ca.server_config(&options.names)?;
        let state = Arc::clone(&shared);
        let server = HttpsServer::bind(options.listen, tls, move |address| {
            let slash = if options.trailing_slash { "/" } else { "" };
            *lock(&state.url) = options
                .url
                .unwrap_or_else(|| format!("https://localhost:{}{path}{slash}", address.port()));
            Router::new()
                .route(
                    &format!("{path}/.well-known/openid-configuration"),
                    get(discovery),
                )
                .route(&format!("{path}/keys"), get(jwks))
                .with_state(state)
        })
        .await?;
        Ok(Self {
            shared,
            server: Arc::new(server),
        })
    }

    /// The `iss` of this issuer's tokens, byte for byte.
    #[must_use]
    pub fn url(&self) -> String {
        lock(&self.shared.url).clone()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Changes what is wrong with the documents.
    pub fn documents(&self, change: impl FnOnce(&mut Documents)) {
        change(&mut lock(&self.shared.documents));
    }

    /// Makes a key and publishes it without signing with it yet: SPIRE's `prepare`.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn prepare(&self, key_type: KeyType) -> Result<Key> {
        let key = Key::generate(key_type)?;
        lock(&self.shared.keys).published.push(key.clone());
        self.shared.changed.send_modify(|version| *version += 1);
        Ok(key)
    }

    /// Signs with `key` from now on: SPIRE's `activate`. A key that was never prepared signs
    /// unpublished.
    pub fn activate(&self, key: &Key) {
        lock(&self.shared.keys).active = key.clone();
    }

    /// Prepares and activates in one go, as a SPIRE server with keys in memory does at a restart.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn rotate(&self) -> Result<Key> {
        let key_type = self.active_key().key_type();
        let key = self.prepare(key_type)?;
        self.activate(&key);
        Ok(key)
    }

    /// Takes a key out of the JWKS: SPIRE's `revoke`. It signs on if it is the active one.
    pub fn revoke(&self, key: &Key) {
        lock(&self.shared.keys)
            .published
            .retain(|other| other.kid() != key.kid());
        self.shared.changed.send_modify(|version| *version += 1);
    }

    /// The key that signs now.
    #[must_use]
    pub fn active_key(&self) -> Key {
        lock(&self.shared.keys).active.clone()
    }

    /// A published key of that kind, made when there is none.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn key_of(&self, key_type: KeyType) -> Result<Key> {
        let active = self.active_key();
        if active.key_type() == key_type {
            return Ok(active);
        }
        let found = lock(&self.shared.keys)
            .published
            .iter()
            .find(|key| key.key_type() == key_type)
            .cloned();
        found.map_or_else(|| self.prepare(key_type), Ok)
    }

    /// Signs any claims with the active key: assertions that SPIRE would never make.
    ///
    /// # Errors
    /// When signing fails.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        self.active_key().sign(claims)
    }

    /// The JWKS as it is served over the Workload API: a plain key set without `use`.
    #[must_use]
    pub fn bundle(&self) -> Value {
        let keys = lock(&self.shared.keys);
        json!({ "keys": keys.published.iter().map(|key| key.jwk(false)).collect::<Vec<_>>() })
    }

    /// The key that verifies tokens with this `kid`, if it is published.
    pub(crate) fn published(&self, kid: &str) -> Option<Key> {
        lock(&self.shared.keys)
            .published
            .iter()
            .find(|key| key.kid() == kid)
            .cloned()
    }

    /// Tells of each change of the published keys.
    pub(crate) fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// How often the discovery document was asked for.
    #[must_use]
    pub fn discovery_requests(&self) -> u64 {
        self.shared.discovery_requests.load(Ordering::SeqCst)
    }

    /// How often the JWKS was asked for.
    #[must_use]
    pub fn jwks_requests(&self) -> u64 {
        self.shared.jwks_requests.load(Ordering::SeqCst)
    }

    /// Stops listening and closes every connection.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// Listens on the same port again.
    ///
    /// # Errors
    /// When the port has been taken meanwhile.
    pub async fn restart(&self) -> Result<()> {
        self.server.start().await
    }
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer")
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

async fn discovery(State(shared): State<Arc<Shared>>) -> Response {
    shared.discovery_requests.fetch_add(1, Ordering::SeqCst);
    let url = lock(&shared.url).clone();
    shared
        .answer(|documents| {
            // With `jwt_issuer` set, SPIRE's provider derives `jwks_uri` from it.
            let jwks_uri = format!("{}/keys", url.trim_end_matches('/'));
            let mut document = json!({
                "issuer": documents.issuer.as_ref().unwrap_or(&url),
                "jwks_uri": documents.jwks_uri.as_ref().unwrap_or(&jwks_uri),
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256", "ES256", "ES384"],
            });
            if let Some(endpoint) = &documents.authorization_endpoint {
                document["authorization_endpoint"] = json!(endpoint);
            }
            document
        })
        .await
}

async fn jwks(State(shared): State<Arc<Shared>>) -> Response {
    shared.jwks_requests.fetch_add(1, Ordering::SeqCst);
    let published = lock(&shared.keys).published.clone();
    shared
        .answer(|documents| {
            let padding = (0..documents.padding).map(|index| {
                // A modulus of the right size that nobody has the factors of.
                let n = "u".repeat(342);
                let kid = format!("padding-{index}");
                json!({"kty":"RSA","use":"sig","alg":"RS256","kid":kid,"n":n,"e":"AQAB"})
            });
            let real = published
                .iter()
                .filter(|key| !documents.hidden.iter().any(|hidden| hidden == key.kid()));
            let real = real.map(|key| {
                let mut jwk = key.jwk(documents.key_use);
                if let (false, Some(jwk)) = (documents.key_ids, jwk.as_object_mut()) {
                    jwk.remove("kid");
                }
                jwk
            });
            json!({ "keys": padding.chain(real).collect::<Vec<_>>() })
        })
        .await
}

impl Shared {
    async fn answer(&self, document: impl FnOnce(&Documents) -> Value) -> Response {
        let documents = lock(&self.documents).clone();
        tokio::time::sleep(documents.delay).await;
        if let Some(status) = documents.down {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return (status, "document not available").into_response();
        }
        let no_cache = [(header::CACHE_CONTROL, "no-cache, no-store, must-revalidate")];
        if let Some(body) = documents.body {
            let json = [(header::CONTENT_TYPE, "application/json")];
            return (no_cache, json, body).into_response();
        }
        (no_cache, Json(document(&documents))).into_response()
    }
}
