//! Everything at once on loopback: CA, issuer, Workload API and Entra, in a folder of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::AUDIENCE;
use crate::ca::Ca;
use crate::entra::{Client, ClientKind, Entra, EntraOptions, NewClient};
use crate::error::{Error, Result};
use crate::issuer::{Issuer, IssuerOptions};
use crate::workload::{EntryHandle, Workload};

/// A whole lab. It ends when it is dropped.
#[derive(Debug)]
pub struct World {
    /// Signs the servers' certificates; `ca.pem` in the folder.
    pub ca: Ca,
    /// The issuer of the JWT-SVIDs.
    pub issuer: Issuer,
    /// The Workload API.
    pub workload: Workload,
    /// The fake Entra.
    pub entra: Entra,
    dir: TempDir,
}

impl World {
    /// Starts a lab as simple as can be.
    ///
    /// # Errors
    /// When a part cannot be started.
    pub async fn start() -> Result<Self> {
        Self::start_with(IssuerOptions::default(), EntraOptions::default()).await
    }

    /// Starts a lab with another issuer or another Entra.
    ///
    /// # Errors
    /// When a part cannot be started.
    pub async fn start_with(issuer: IssuerOptions, entra: EntraOptions) -> Result<Self> {
        // Short, for a socket's path has room for a hundred bytes.
        let dir = tempfile::Builder::new()
            .prefix("lab-")
            .tempdir()
            .map_err(Error::io("make a temporary folder"))?;
        let ca = Ca::new()?;
        ca.write(&dir.path().join("ca.pem"))?;
        let issuer = Issuer::start(&ca, issuer).await?;
        let workload = Workload::start(&dir.path().join("agent.sock"), issuer.clone())?;
        let entra = Entra::start(&ca, entra).await?;
        Ok(Self {
            ca,
            issuer,
            workload,
            entra,
            dir,
        })
    }

    /// Describes an identity: a registration entry, an application and the credential between
    /// them. [`NewIdentity::add`] makes all three.
    pub fn identity<'a>(&'a self, spiffe_id: &'a str) -> NewIdentity<'a> {
        NewIdentity {
            world: self,
            spiffe_id,
            client: NewClient::new(ClientKind::Application, "app"),
            credential: true,
            entry: self.workload.entry(spiffe_id),
        }
    }

    /// The lab's folder: tests may put more into it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The CA's certificate.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.dir().join("ca.pem")
    }

    /// The Workload API's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.workload.socket()
    }

    /// The fake Entra's authority.
    #[must_use]
    pub fn authority(&self) -> String {
        self.entra.authority()
    }

    /// The tenant's GUID.
    #[must_use]
    pub fn tenant(&self) -> String {
        self.entra.tenant()
    }
}

/// An identity that does not exist yet.
#[derive(Debug)]
#[must_use = "an identity exists once it has been added"]
pub struct NewIdentity<'a> {
    world: &'a World,
    spiffe_id: &'a str,
    client: NewClient,
    credential: bool,
    entry: crate::workload::NewEntry,
}

/// An identity on both sides.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The registration entry at SPIRE.
    pub entry: EntryHandle,
    /// The application or managed identity at Entra.
    pub client: Client,
}

impl NewIdentity<'_> {
    /// The application's name.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.client.name);
        self
    }

    /// The client id instead of a random one.
    pub fn client_id(mut self, client_id: &str) -> Self {
        self.client = self.client.client_id(client_id);
        self
    }

    /// A managed identity instead of an application.
    pub fn managed(mut self) -> Self {
        self.client.kind = ClientKind::ManagedIdentity;
        self
    }

    /// No federated identity credential.
    pub fn without_credential(mut self) -> Self {
        self.credential = false;
        self
    }

    /// Only callers with this uid match the entry.
    pub fn uid(mut self, uid: u32) -> Self {
        self.entry = self.entry.uid(uid);
        self
    }

    /// The lifetime of the JWT-SVIDs.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.entry = self.entry.ttl(ttl);
        self
    }

    /// Makes the entry, the client and the credential.
    ///
    /// # Errors
    /// When the client id is taken, or Entra would not take the credential.
    pub fn add(self) -> Result<Identity> {
        let mut client = self.world.entra.register(self.client)?;
        if self.credential {
            client = client.credential(&self.world.issuer.url(), self.spiffe_id, AUDIENCE)?;
        }
        Ok(Identity {
            entry: self.entry.add(),
            client,
        })
    }
}
