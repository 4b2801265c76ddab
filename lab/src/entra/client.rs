//! Handles of applications and managed identities: what an administrator does to them.

use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::faults::Board;
use crate::guid;
use crate::sync::lock;

use super::Settings;
use super::credential::{Credential, CredentialError};
use super::directory::{ClientKind, ClientRecord, Directory, Propagation};
use super::faults::{Fault, Faults};

/// An application or a managed identity. Clones are the same one.
#[derive(Clone)]
pub struct Client {
    pub(super) directory: Arc<Directory>,
    pub(super) settings: Arc<Mutex<Settings>>,
    pub(super) board: Board<Fault>,
    pub(super) tenant: String,
    pub(super) client_id: String,
    pub(super) object_id: String,
}

impl Client {
    /// Its client id.
    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// Its service principal's object id.
    #[must_use]
    pub fn object_id(&self) -> &str {
        &self.object_id
    }

    /// Its tenant's GUID.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Adds a federated identity credential with a name of the lab's choosing.
    ///
    /// # Errors
    /// When Entra would not take it either.
    pub fn credential(
        self,
        issuer: &str,
        subject: &str,
        audience: &str,
    ) -> Result<Self, CredentialError> {
        self.add_credential(Credential {
            name: format!("fic-{}", guid::random()),
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
            audiences: vec![audience.to_owned()],
        })?;
        Ok(self)
    }

    /// Adds a federated identity credential. It spreads as the settings have it.
    ///
    /// # Errors
    /// When Entra would not take it either.
    pub fn add_credential(&self, credential: Credential) -> Result<(), CredentialError> {
        let propagation = lock(&self.settings).propagation;
        self.add_credential_slowly(credential, propagation)
    }

    /// Adds a federated identity credential that spreads in its own way.
    ///
    /// # Errors
    /// When Entra would not take it either.
    pub fn add_credential_slowly(
        &self,
        credential: Credential,
        propagation: Propagation,
    ) -> Result<(), CredentialError> {
        self.directory
            .with_client(&self.client_id, |client| {
                client.add_credential(credential, propagation)
            })
            .unwrap_or_else(|| Err(CredentialError::NoClient(self.client_id.clone())))
    }

    /// Removes the credentials for a subject, of whatever issuer.
    pub fn remove_credential(&self, subject: &str) {
        self.change(|client| client.retain_credentials(|one| one.subject != subject));
    }

    /// Its credentials, spread or not.
    #[must_use]
    pub fn credentials(&self) -> Vec<Credential> {
        let found = self
            .directory
            .with_client(&self.client_id, |client| client.credentials());
        found.unwrap_or_default()
    }

    /// Makes every credential known everywhere at once.
    pub fn propagate(&self) {
        self.change(ClientRecord::propagate);
    }

    /// Disables it (7000112) or enables it.
    pub fn set_disabled(&self, disabled: bool) {
        self.change(|client| client.disabled = disabled);
    }

    /// Blocks it by Conditional Access (53003) or no longer.
    pub fn set_blocked(&self, blocked: bool) {
        self.change(|client| client.blocked = blocked);
    }

    /// The `roles` of its tokens.
    pub fn set_roles(&self, roles: &[&str]) {
        let roles: Vec<_> = roles.iter().map(|&role| role.to_owned()).collect();
        self.change(|client| client.roles = roles);
    }

    /// Deletes it (700016).
    pub fn delete(&self) {
        self.directory.remove_client(&self.client_id);
    }

    /// Arms faults that hit its requests only.
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults {
            board: self.board.clone(),
            scope: Some(self.client_id.clone()),
        }
    }

    /// Nothing happens to a client that was deleted.
    fn change(&self, change: impl FnOnce(&mut ClientRecord)) {
        self.directory.with_client(&self.client_id, change);
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

/// A client whose ids are given: see [`Entra::register`](super::Entra::register).
#[derive(Clone, Debug)]
pub struct NewClient {
    /// Application or managed identity.
    pub kind: ClientKind,
    /// Its display name.
    pub name: String,
    /// Its client id. Default: random.
    pub client_id: Option<String>,
    /// Its object id. Default: random.
    pub object_id: Option<String>,
    /// Its tenant, by GUID or domain. Default: the first one.
    pub tenant: Option<String>,
}

impl NewClient {
    /// A client with random ids in the first tenant.
    #[must_use]
    pub fn new(kind: ClientKind, name: &str) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            client_id: None,
            object_id: None,
            tenant: None,
        }
    }

    /// With this client id.
    #[must_use]
    pub fn client_id(mut self, client_id: &str) -> Self {
        self.client_id = Some(client_id.to_owned());
        self
    }

    pub(super) fn record(self, tenant: &str) -> Result<ClientRecord> {
        let mut record = ClientRecord::new(tenant, self.kind, &self.name);
        let ids = [
            (self.client_id, &mut record.client_id),
            (self.object_id, &mut record.object_id),
        ];
        for (given, id) in ids {
            let Some(given) = given else { continue };
            if !guid::is_guid(&given) {
                return Err(Error::Config(format!("client {given}: must be a GUID")));
            }
            *id = given.to_ascii_lowercase();
        }
        Ok(record)
    }
}
