//! A fake of Entra's token endpoint that really verifies what it is given.
//!
//! It holds tenants, applications and managed identities with federated identity credentials,
//! fetches the assertion issuer's documents over https, checks signature, claims and times, and
//! answers with Entra's codes and texts. What is not known about Entra is a switch in
//! [`Strictness`].

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::ca::Ca;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::faults::Board;
use crate::guid;
use crate::serve::HttpsServer;
use crate::sync::lock;

mod assertion;
mod client;
mod codes;
mod credential;
mod directory;
mod discovery;
mod exchange;
mod faults;
mod http;
mod metadata;
mod record;
mod refusal;
mod strictness;
mod token;

pub use client::{Client, NewClient};
pub use credential::{Credential, CredentialError, MAX_CREDENTIALS};
pub use directory::{ClientKind, Propagation, Resource};
pub use faults::{Fault, Faults, RetryAfter};
pub use record::Exchange;
pub use strictness::{CLOCK_SKEW, Strictness};

use directory::Directory;

/// How a fake Entra is served and whom it trusts.
#[derive(Clone, Debug)]
pub struct EntraOptions {
    /// Where to listen. Default: a free port on loopback.
    pub listen: SocketAddr,
    /// The authority by which clients know it. Default: `https://localhost:PORT`.
    pub url: Option<String>,
    /// Further names in the certificate.
    pub names: Vec<String>,
    /// The first tenant's GUID. Default: a random one.
    pub tenant: Option<String>,
    /// The first tenant's verified domains.
    pub domains: Vec<String>,
    /// Certificate authorities of issuers, in PEM, beside the one that signs the fake's own
    /// certificate.
    pub issuer_cas: Vec<String>,
    /// Whether the system's certificate authorities are trusted too.
    pub system_roots: bool,
    /// Addresses for names of issuers; port 0 keeps the port of the URL.
    pub hosts: Vec<(String, SocketAddr)>,
}

impl Default for EntraOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            url: None,
            names: Vec::new(),
            tenant: None,
            domains: Vec::new(),
            issuer_cas: Vec::new(),
            system_roots: false,
            hosts: Vec::new(),
        }
    }
}

/// What can be changed while it runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where Entra's behaviour is not known.
    pub strictness: Strictness,
    /// How old an issuer's keys may be. Entra keeps them for longer than it says anywhere; tests
    /// want none of that.
    pub metadata_cache: Duration,
    /// How long fetching an issuer's documents may take.
    pub fetch_timeout: Duration,
    /// How new credentials spread.
    pub propagation: Propagation,
    /// Whether errors have line breaks before their ids, as they had for years.
    pub old_error_text: bool,
    /// The size of access tokens, about.
    pub token_size: usize,
    /// Whether a client gets the same token again for the same resource: saves signing.
    pub reuse_tokens: bool,
    /// Whether exchanges are recorded or only counted.
    pub keep_record: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            strictness: Strictness::default(),
            metadata_cache: Duration::ZERO,
            fetch_timeout: metadata::FETCH_TIMEOUT,
            propagation: Propagation::Immediate,
            old_error_text: false,
            token_size: 2048,
            reuse_tokens: false,
            keep_record: true,
        }
    }
}

/// A running fake Entra. Clones are the same one; it stops when the last one is dropped.
#[derive(Clone)]
pub struct Entra {
    shared: Arc<Shared>,
    server: Arc<HttpsServer>,
}

struct Shared {
    authority: String,
    tenant: String,
    directory: Arc<Directory>,
    metadata: metadata::Metadata,
    minter: token::Minter,
    faults: Board<Fault>,
    clock: Clock,
    settings: Arc<Mutex<Settings>>,
    record: record::Record,
}

impl Entra {
    /// Starts with one tenant, no clients and the resources that every tenant has. Issuers whose
    /// certificate `ca` signs are trusted.
    ///
    /// # Errors
    /// When the address is taken, a certificate cannot be read or a key cannot be made.
    pub async fn start(ca: &Ca, mut options: EntraOptions) -> Result<Self> {
        options.issuer_cas.push(ca.pem());
        let tenant = options
            .tenant
            .clone()
            .unwrap_or_else(guid::random)
            .to_ascii_lowercase();
        if !guid::is_guid(&tenant) {
            return Err(Error::Config(format!("tenant {tenant}: must be a GUID")));
        }
        let directory = Directory::default();
        directory.add_tenant(&tenant, &options.domains);
        for id in directory::WELL_KNOWN {
            directory.add_resource(Resource {
                id: (*id).to_owned(),
                v2_audience: None,
            });
        }
        let metadata = metadata::Metadata::new(&options)?;
        let minter = tokio::task::spawn_blocking(token::Minter::new)
            .await
            .map_err(|error| Error::Config(format!("key generation: {error}")))??;
        let tls = ca.server_config(&options.names)?;
        let mut made = None;
        let server = HttpsServer::bind(options.listen, tls, |address| {
            let authority = options.url.map_or_else(
                || format!("https://localhost:{}", address.port()),
                |url| url.trim_end_matches('/').to_owned(),
            );
            let shared = Arc::new(Shared {
                authority,
                tenant,
                directory: Arc::new(directory),
                metadata,
                minter,
                faults: Board::default(),
                clock: Clock::default(),
                settings: Arc::default(),
                record: record::Record::new(),
            });
            made = Some(Arc::clone(&shared));
            http::router(shared)
        })
        .await?;
        let shared = made.ok_or_else(|| Error::Config("the server has no router".to_owned()))?;
        Ok(Self {
            shared,
            server: Arc::new(server),
        })
    }

    /// The authority: what `AZURE_AUTHORITY_HOST` is to be set to.
    #[must_use]
    pub fn authority(&self) -> String {
        self.shared.authority.clone()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The first tenant's GUID.
    #[must_use]
    pub fn tenant(&self) -> String {
        self.shared.tenant.clone()
    }

    /// The token endpoint of the first tenant.
    #[must_use]
    pub fn token_endpoint(&self) -> String {
        format!(
            "{}/{}/oauth2/v2.0/token",
            self.shared.authority, self.shared.tenant
        )
    }

    /// Adds a tenant.
    pub fn add_tenant(&self, id: &str, domains: &[&str]) {
        let domains: Vec<_> = domains.iter().map(|&domain| domain.to_owned()).collect();
        self.shared.directory.add_tenant(id, &domains);
    }

    /// Adds an application with random ids to the first tenant.
    pub fn application(&self, name: &str) -> Client {
        self.random_client(ClientKind::Application, name)
    }

    /// Adds a user-assigned managed identity with random ids to the first tenant.
    pub fn managed_identity(&self, name: &str) -> Client {
        self.random_client(ClientKind::ManagedIdentity, name)
    }

    /// Adds a client whose ids or tenant are given.
    ///
    /// # Errors
    /// When the client id is taken or no GUID, or the tenant does not exist.
    pub fn register(&self, client: NewClient) -> Result<Client> {
        let tenant = client.tenant.clone().unwrap_or_else(|| self.tenant());
        let directory::TenantLookup::Found(tenant) = self.shared.directory.tenant(&tenant) else {
            return Err(Error::Config(format!("tenant {tenant}: not found")));
        };
        let record = client.record(&tenant)?;
        let handle = self.handle(&record);
        if !self.shared.directory.add_client(record) {
            return Err(Error::Config(format!(
                "client {}: exists",
                handle.client_id()
            )));
        }
        Ok(handle)
    }

    /// Adds a resource, or replaces it.
    pub fn add_resource(&self, resource: Resource) {
        self.shared.directory.add_resource(resource);
    }

    /// Removes a resource; tokens for it are refused with 500011.
    pub fn remove_resource(&self, id: &str) {
        self.shared.directory.remove_resource(id);
    }

    /// Arms faults that hit every client.
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults {
            board: self.shared.faults.clone(),
            scope: None,
        }
    }

    /// Arms faults that hit one client id, known or not.
    #[must_use]
    pub fn faults_for(&self, client_id: &str) -> Faults {
        Faults {
            board: self.shared.faults.clone(),
            scope: Some(client_id.to_owned()),
        }
    }

    /// Changes the settings.
    pub fn configure(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut lock(&self.shared.settings));
    }

    /// The clock that assertions are checked against and tokens are stamped with.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// Forgets the issuers' keys that [`Settings::metadata_cache`] kept.
    pub fn forget_metadata(&self) {
        self.shared.metadata.forget();
    }

    /// How many requests have come to the token endpoint.
    #[must_use]
    pub fn exchanges(&self) -> u64 {
        *self.shared.record.arrived.borrow()
    }

    /// Waits until so many requests have come to the token endpoint.
    pub async fn wait_exchanges(&self, count: u64) {
        record::reached(&self.shared.record.arrived, count).await;
    }

    /// How many requests to the token endpoint have been decided. A request that is never to be
    /// answered is decided, too.
    #[must_use]
    pub fn answered(&self) -> u64 {
        *self.shared.record.answered.borrow()
    }

    /// Waits until so many requests to the token endpoint have been decided.
    pub async fn wait_answered(&self, count: u64) {
        record::reached(&self.shared.record.answered, count).await;
    }

    /// How many tokens have been issued.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.shared.record.issued()
    }

    /// The requests to the token endpoint that have been decided.
    #[must_use]
    pub fn record(&self) -> Vec<Exchange> {
        self.shared.record.exchanges()
    }

    /// The last request to the token endpoint that has been decided.
    #[must_use]
    pub fn last_exchange(&self) -> Option<Exchange> {
        self.record().pop()
    }

    /// Empties the record; the counters go on.
    pub fn clear_record(&self) {
        self.shared.record.clear();
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

    fn random_client(&self, kind: ClientKind, name: &str) -> Client {
        let record = directory::ClientRecord::new(&self.shared.tenant, kind, name);
        let handle = self.handle(&record);
        self.shared.directory.add_client(record);
        handle
    }

    fn handle(&self, record: &directory::ClientRecord) -> Client {
        Client {
            directory: Arc::clone(&self.shared.directory),
            settings: Arc::clone(&self.shared.settings),
            board: self.shared.faults.clone(),
            tenant: record.tenant.clone(),
            client_id: record.client_id.clone(),
            object_id: record.object_id.clone(),
        }
    }
}

impl std::fmt::Debug for Entra {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entra")
            .field("authority", &self.authority())
            .finish_non_exhaustive()
    }
}
