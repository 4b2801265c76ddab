//! What a tenant holds: applications and managed identities with their federated identity
//! credentials, and the resources that tokens can be had for. Entra's limits are enforced.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::credential::{Credential, CredentialError, MAX_CREDENTIALS};
use crate::guid;
use crate::sync::lock;

/// How a new credential reaches Entra's replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// At once.
    #[default]
    Immediate,
    /// After this time.
    After(Duration),
    /// After this many token requests of its client.
    AfterRequests(u32),
    /// For this time every other token request of its client meets a replica without it, the
    /// first one included.
    Flapping(Duration),
}

/// What kind of object a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientKind {
    /// An application with its service principal.
    Application,
    /// A user-assigned managed identity.
    ManagedIdentity,
}

/// Something tokens can be had for.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Its identifier: a URL, an `api://` URI or a GUID.
    pub id: String,
    /// The application id of the API when it wants v2.0 tokens, where that is the `aud`.
    pub v2_audience: Option<String>,
}

/// Everything in one fake Entra.
#[derive(Debug, Default)]
pub(super) struct Directory {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tenants: Vec<Tenant>,
    clients: Vec<ClientRecord>,
    resources: Vec<Resource>,
}

#[derive(Debug)]
struct Tenant {
    id: String,
    domains: Vec<String>,
}

#[derive(Debug)]
pub(super) struct ClientRecord {
    pub(super) tenant: String,
    pub(super) client_id: String,
    pub(super) object_id: String,
    pub(super) name: String,
    pub(super) kind: ClientKind,
    pub(super) disabled: bool,
    pub(super) blocked: bool,
    pub(super) roles: Vec<String>,
    credentials: Vec<Stored>,
}

#[derive(Debug)]
struct Stored {
    credential: Credential,
    propagation: Propagation,
    since: Instant,
    requests: u32,
}

/// A client as one token request sees it.
#[derive(Clone, Debug)]
pub(super) struct ClientView {
    pub(super) client_id: String,
    pub(super) object_id: String,
    pub(super) name: String,
    pub(super) kind: ClientKind,
    pub(super) disabled: bool,
    pub(super) blocked: bool,
    pub(super) roles: Vec<String>,
    pub(super) credentials: Vec<Credential>,
}

/// What the first segment of the path says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TenantLookup {
    Found(String),
    /// `common`, `organizations`, `consumers`.
    Shared,
    Unknown,
    Malformed,
}

impl Directory {
    pub(super) fn add_tenant(&self, id: &str, domains: &[String]) {
        let mut state = lock(&self.state);
        state.tenants.push(Tenant {
            id: id.to_ascii_lowercase(),
            domains: domains.to_vec(),
        });
    }

    pub(super) fn tenant(&self, name: &str) -> TenantLookup {
        if matches!(name, "common" | "organizations" | "consumers") {
            return TenantLookup::Shared;
        }
        let state = lock(&self.state);
        let found = state.tenants.iter().find(|tenant| {
            tenant.id.eq_ignore_ascii_case(name)
                || tenant
                    .domains
                    .iter()
                    .any(|domain| domain.eq_ignore_ascii_case(name))
        });
        let domain_char = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
        match found {
            Some(tenant) => TenantLookup::Found(tenant.id.clone()),
            None if guid::is_guid(name) => TenantLookup::Unknown,
            None if name.contains('.') && name.bytes().all(domain_char) => TenantLookup::Unknown,
            None => TenantLookup::Malformed,
        }
    }

    /// Adds a client; `false` when its client id is taken.
    pub(super) fn add_client(&self, record: ClientRecord) -> bool {
        let mut state = lock(&self.state);
        let taken = state
            .clients
            .iter()
            .any(|other| other.is(&record.client_id));
        if !taken {
            state.clients.push(record);
        }
        !taken
    }

    pub(super) fn remove_client(&self, client_id: &str) {
        lock(&self.state)
            .clients
            .retain(|client| !client.is(client_id));
    }

    /// Changes or reads a client that exists.
    pub(super) fn with_client<T>(
        &self,
        client_id: &str,
        change: impl FnOnce(&mut ClientRecord) -> T,
    ) -> Option<T> {
        lock(&self.state)
            .clients
            .iter_mut()
            .find(|client| client.is(client_id))
            .map(change)
    }

    /// The client for one token request, with the credentials that the replica knows.
    pub(super) fn view(&self, tenant: &str, client_id: &str) -> Option<ClientView> {
        self.with_client(client_id, |client| {
            (client.tenant == tenant).then(|| ClientView {
                client_id: client.client_id.clone(),
                object_id: client.object_id.clone(),
                name: client.name.clone(),
                kind: client.kind,
                disabled: client.disabled,
                blocked: client.blocked,
                roles: client.roles.clone(),
                credentials: client
                    .credentials
                    .iter_mut()
                    .filter_map(|stored| stored.visible().then(|| stored.credential.clone()))
                    .collect(),
            })
        })
        .flatten()
    }

    pub(super) fn add_resource(&self, resource: Resource) {
        let mut state = lock(&self.state);
        state
            .resources
            .retain(|other| !same_resource(&other.id, &resource.id));
        state.resources.push(resource);
    }

    pub(super) fn remove_resource(&self, id: &str) {
        lock(&self.state)
            .resources
            .retain(|other| !same_resource(&other.id, id));
    }

    pub(super) fn resource(&self, id: &str) -> Option<Resource> {
        let state = lock(&self.state);
        state
            .resources
            .iter()
            .find(|resource| same_resource(&resource.id, id))
            .cloned()
    }
}

impl ClientRecord {
    pub(super) fn new(tenant: &str, kind: ClientKind, name: &str) -> Self {
        Self {
            tenant: tenant.to_owned(),
            client_id: guid::random(),
            object_id: guid::random(),
            name: name.to_owned(),
            kind,
            disabled: false,
            blocked: false,
            roles: Vec::new(),
            credentials: Vec::new(),
        }
    }

    fn is(&self, client_id: &str) -> bool {
        self.client_id.eq_ignore_ascii_case(client_id)
    }

    /// Stores a credential under Entra's limits.
    pub(super) fn add_credential(
        &mut self,
        credential: Credential,
        propagation: Propagation,
    ) -> Result<(), CredentialError> {
        credential.check()?;
        let mut others = self.credentials.iter().map(|stored| &stored.credential);
        if others.clone().any(|other| other.name == credential.name) {
            return Err(CredentialError::NameTaken(credential.name));
        }
        if others
            .any(|other| other.issuer == credential.issuer && other.subject == credential.subject)
        {
            let Credential {
                issuer, subject, ..
            } = credential;
            return Err(CredentialError::Taken { issuer, subject });
        }
        if self.credentials.len() >= MAX_CREDENTIALS {
            return Err(CredentialError::TooMany);
        }
        let since = Instant::now();
        self.credentials.push(Stored {
            credential,
            propagation,
            since,
            requests: 0,
        });
        Ok(())
    }

    pub(super) fn retain_credentials(&mut self, keep: impl Fn(&Credential) -> bool) {
        self.credentials.retain(|stored| keep(&stored.credential));
    }

    pub(super) fn credentials(&self) -> Vec<Credential> {
        self.credentials
            .iter()
            .map(|stored| stored.credential.clone())
            .collect()
    }

    /// Every replica knows every credential from now on.
    pub(super) fn propagate(&mut self) {
        for stored in &mut self.credentials {
            stored.propagation = Propagation::Immediate;
        }
    }
}

impl Stored {
    /// Whether the replica of this request knows the credential.
    fn visible(&mut self) -> bool {
        self.requests = self.requests.saturating_add(1);
        match self.propagation {
            Propagation::Immediate => true,
            Propagation::After(delay) => self.since.elapsed() >= delay,
            Propagation::AfterRequests(count) => self.requests > count,
            Propagation::Flapping(window) => {
                self.requests.is_multiple_of(2) || self.since.elapsed() >= window
            }
        }
    }
}

/// Resources are found with or without one slash at the end, in either case.
fn same_resource(one: &str, two: &str) -> bool {
    let plain = |id: &str| id.strip_suffix('/').unwrap_or(id).to_ascii_lowercase();
    plain(one) == plain(two)
}

/// Resources that every tenant has.
pub(super) const WELL_KNOWN: &[&str] = &[
    "https://management.azure.com",
    "https://management.core.windows.net",
    "https://graph.microsoft.com",
    "https://vault.azure.net",
    "https://storage.azure.com",
    "https://database.windows.net",
    "https://ossrdbms-aad.database.windows.net",
    "https://servicebus.azure.net",
    "https://eventhubs.azure.net",
    "https://cosmos.azure.com",
    "https://containerregistry.azure.net",
    "https://cognitiveservices.azure.com",
    "https://monitor.azure.com",
    // Azure DevOps and the AKS server application.
    "499b84ac-1321-427f-aa17-267ca6975798",
    "6dae42f8-4368-4678-94ff-3960e28e3630",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(name: &str, subject: &str) -> Credential {
        Credential {
            name: name.to_owned(),
            issuer: "https://oidc.example.org".to_owned(),
            subject: subject.to_owned(),
            audiences: vec![crate::AUDIENCE.to_owned()],
        }
    }

    fn add(record: &mut ClientRecord, credential: Credential) -> Result<(), CredentialError> {
        record.add_credential(credential, Propagation::Immediate)
    }

    #[test]
    fn twenty_credentials_and_no_more() {
        let mut record = ClientRecord::new("t", ClientKind::Application, "app");
        for index in 0..20 {
            add(
                &mut record,
                credential(&format!("fic-{index}"), &format!("s{index}")),
            )
            .unwrap();
        }
        let error = add(&mut record, credential("fic-20", "s20")).unwrap_err();
        assert_eq!(error, CredentialError::TooMany);
        record.retain_credentials(|credential| credential.subject != "s3");
        add(&mut record, credential("fic-20", "s20")).unwrap();
    }

    #[test]
    fn names_and_pairs_are_unique() {
        let mut record = ClientRecord::new("t", ClientKind::ManagedIdentity, "uami");
        add(&mut record, credential("one", "s")).unwrap();
        let error = add(&mut record, credential("one", "other")).unwrap_err();
        assert_eq!(error, CredentialError::NameTaken("one".to_owned()));
        let error = add(&mut record, credential("two", "s")).unwrap_err();
        assert!(matches!(error, CredentialError::Taken { .. }));
        // Case matters in a subject.
        add(&mut record, credential("two", "S")).unwrap();
    }

    #[test]
    fn tenants_by_guid_and_domain() {
        let directory = Directory::default();
        let id = guid::random();
        directory.add_tenant(&id, &["contoso.com".to_owned()]);
        let found = TenantLookup::Found(id.clone());
        assert_eq!(directory.tenant(&id.to_uppercase()), found);
        assert_eq!(directory.tenant("Contoso.com"), found);
        assert_eq!(directory.tenant("fabrikam.com"), TenantLookup::Unknown);
        assert_eq!(directory.tenant(&guid::random()), TenantLookup::Unknown);
        assert_eq!(directory.tenant("contoso"), TenantLookup::Malformed);
        assert_eq!(directory.tenant("con toso.com"), TenantLookup::Malformed);
        assert_eq!(directory.tenant("common"), TenantLookup::Shared);
    }

    #[test]
    fn new_credentials_spread_as_told() {
        let visible = |propagation| {
            let mut record = ClientRecord::new("t", ClientKind::Application, "app");
            record
                .add_credential(credential("one", "s"), propagation)
                .unwrap();
            let stored = &mut record.credentials[0];
            [
                stored.visible(),
                stored.visible(),
                stored.visible(),
                stored.visible(),
            ]
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(visible(Propagation::Immediate), [true; 4]);
        assert_eq!(visible(Propagation::After(hour)), [false; 4]);
        assert_eq!(visible(Propagation::After(Duration::ZERO)), [true; 4]);
        assert_eq!(
            visible(Propagation::AfterRequests(2)),
            [false, false, true, true]
        );
        assert_eq!(
            visible(Propagation::Flapping(hour)),
            [false, true, false, true]
        );
        assert_eq!(visible(Propagation::Flapping(Duration::ZERO)), [true; 4]);
    }

    #[test]
    fn resources_with_or_without_a_slash() {
        let directory = Directory::default();
        directory.add_resource(Resource {
            id: "https://a.example/".into(),
            v2_audience: None,
        });
        assert!(directory.resource("https://a.example").is_some());
        assert!(directory.resource("https://A.example/").is_some());
        assert!(directory.resource("https://a.example//").is_none());
        directory.remove_resource("https://a.example");
        assert!(directory.resource("https://a.example").is_none());
    }
}
