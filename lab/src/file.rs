//! A lab described in a TOML file: what `lab serve` starts. `lab.example.toml` explains each key.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::ca::Ca;
use crate::entra::{ClientKind, Credential, Entra, EntraOptions, NewClient, Resource};
use crate::error::{Error, Result};
use crate::issuer::{Issuer, IssuerOptions};
use crate::keys::KeyType;
use crate::workload::Workload;

/// The whole file. A part that is not there is not started.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabFile {
    /// Where the CA's certificate is written.
    ca_file: Option<PathBuf>,
    issuer: Option<IssuerTable>,
    workload_api: Option<WorkloadTable>,
    entra: Option<EntraTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IssuerTable {
    listen: SocketAddr,
    url: Option<String>,
    #[serde(default)]
    path: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    key_type: KeyTypeName,
    #[serde(default = "yes")]
    set_key_use: bool,
}

/// As SPIRE's `jwt_key_type` has them.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum KeyTypeName {
    #[default]
    #[serde(rename = "rsa-2048")]
    Rsa2048,
    #[serde(rename = "ec-p256")]
    EcP256,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkloadTable {
    socket: PathBuf,
    #[serde(default)]
    entry: Vec<EntryTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryTable {
    spiffe_id: String,
    uid: Option<u32>,
    ttl_seconds: Option<u64>,
    #[serde(default)]
    hint: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntraTable {
    listen: SocketAddr,
    url: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    tenant: Option<String>,
    #[serde(default)]
    domains: Vec<String>,
    #[serde(default)]
    issuer_ca_files: Vec<PathBuf>,
    #[serde(default)]
    system_roots: bool,
    #[serde(default)]
    hosts: BTreeMap<String, SocketAddr>,
    #[serde(default)]
    metadata_cache_seconds: u64,
    token_lifetime_seconds: Option<u64>,
    #[serde(default)]
    reuse_tokens: bool,
    /// Off by default: a server for humans runs for days.
    #[serde(default)]
    keep_record: bool,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    application: Vec<ClientTable>,
    #[serde(default)]
    managed_identity: Vec<ClientTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientTable {
    name: String,
    client_id: Option<String>,
    object_id: Option<String>,
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    credential: Vec<CredentialTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialTable {
    name: Option<String>,
    /// Default: the lab's own issuer.
    issuer: Option<String>,
    subject: String,
    #[serde(default = "audience")]
    audience: String,
}

/// A lab that was started from a file. It ends when it is dropped.
#[derive(Debug)]
pub struct Served {
    /// The issuer, if there is one.
    pub issuer: Option<Issuer>,
    /// The Workload API, if there is one.
    pub workload: Option<Workload>,
    /// The fake Entra, if there is one.
    pub entra: Option<Entra>,
    ready: Vec<Value>,
}

impl LabFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or is not understood; the message shows the line.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).map_err(Error::io(format!("read {}", path.display())))?;
        text.parse()
            .map_err(|error| Error::Config(format!("{}: {error}", path.display())))
    }

    /// Starts everything that is described.
    ///
    /// # Errors
    /// When a part cannot be started or makes no sense.
    pub async fn start(self) -> Result<Served> {
        let ca = Ca::new()?;
        let mut ready = Vec::new();
        if let Some(path) = &self.ca_file {
            make_folder_of(path)?;
            ca.write(path)?;
            ready.push(json!({ "ready": "ca", "file": path }));
        }
        let issuer = match self.issuer {
            None => None,
            Some(table) => Some(table.start(&ca).await?),
        };
        if let Some(issuer) = &issuer {
            let address = issuer.address().to_string();
            ready.push(json!({ "ready": "issuer", "url": issuer.url(), "listen": address }));
        }
        let workload = match self.workload_api {
            None => None,
            Some(table) => {
                let issuer = issuer.clone().ok_or_else(|| {
                    Error::Config("workload_api needs an issuer to sign with".to_owned())
                })?;
                Some(table.start(issuer)?)
            }
        };
        if let Some(workload) = &workload {
            ready.push(json!({ "ready": "workload_api", "endpoint": workload.endpoint() }));
        }
        let entra = match self.entra {
            None => None,
            Some(table) => Some(table.start(&ca, issuer.as_ref(), &mut ready).await?),
        };
        Ok(Served {
            issuer,
            workload,
            entra,
            ready,
        })
    }
}

impl std::str::FromStr for LabFile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| Error::Config(error.to_string()))
    }
}

impl Served {
    /// One JSON object for each part and each client: where it is and how it is known.
    #[must_use]
    pub fn ready(&self) -> &[Value] {
        &self.ready
    }

    /// Closes every listener and connection.
    pub async fn stop(self) {
        if let Some(workload) = &self.workload {
            workload.stop().await;
        }
        if let Some(entra) = &self.entra {
            entra.stop().await;
        }
        if let Some(issuer) = &self.issuer {
            issuer.stop().await;
        }
    }
}

impl IssuerTable {
    async fn start(self, ca: &Ca) -> Result<Issuer> {
        let options = IssuerOptions {
            listen: self.listen,
            trailing_slash: self.path.ends_with('/'),
            path: self.path,
            url: self.url,
            names: self.names,
            key_type: match self.key_type {
                KeyTypeName::Rsa2048 => KeyType::Rsa2048,
                KeyTypeName::EcP256 => KeyType::EcP256,
            },
        };
        let issuer = Issuer::start(ca, options).await?;
        issuer.documents(|documents| documents.key_use = self.set_key_use);
        Ok(issuer)
    }
}

impl WorkloadTable {
    fn start(self, issuer: Issuer) -> Result<Workload> {
        for entry in &self.entry {
            crate::workload::check_spiffe_id(&entry.spiffe_id)
                .map_err(|why| Error::Config(format!("entry {}: {why}", entry.spiffe_id)))?;
        }
        make_folder_of(&self.socket)?;
        let workload = Workload::start(&self.socket, issuer)?;
        for EntryTable {
            spiffe_id,
            uid,
            ttl_seconds,
            hint,
        } in self.entry
        {
            let mut entry = workload.entry(&spiffe_id).hint(&hint);
            if let Some(uid) = uid {
                entry = entry.uid(uid);
            }
            if let Some(seconds) = ttl_seconds {
                entry = entry.ttl(Duration::from_secs(seconds));
            }
            entry.add();
        }
        Ok(workload)
    }
}

impl EntraTable {
    async fn start(
        self,
        ca: &Ca,
        issuer: Option<&Issuer>,
        ready: &mut Vec<Value>,
    ) -> Result<Entra> {
        let read = |path: &PathBuf| {
            fs::read_to_string(path).map_err(Error::io(format!("read {}", path.display())))
        };
        let options = EntraOptions {
            listen: self.listen,
            url: self.url,
            names: self.names,
            tenant: self.tenant,
            domains: self.domains,
            issuer_cas: self
                .issuer_ca_files
                .iter()
                .map(read)
                .collect::<Result<_>>()?,
            system_roots: self.system_roots,
            hosts: self.hosts.into_iter().collect(),
        };
        let entra = Entra::start(ca, options).await?;
        entra.configure(|settings| {
            settings.metadata_cache = Duration::from_secs(self.metadata_cache_seconds);
            settings.reuse_tokens = self.reuse_tokens;
            settings.keep_record = self.keep_record;
        });
        if let Some(seconds) = self.token_lifetime_seconds {
            entra.faults().token_lifetime(Duration::from_secs(seconds));
        }
        for id in self.resources {
            entra.add_resource(Resource {
                id,
                v2_audience: None,
            });
        }
        ready.push(json!({
            "ready": "entra",
            "authority": entra.authority(),
            "tenant": entra.tenant(),
            "listen": entra.address().to_string(),
        }));
        let applications = self
            .application
            .into_iter()
            .map(|one| (ClientKind::Application, one));
        let identities = self
            .managed_identity
            .into_iter()
            .map(|one| (ClientKind::ManagedIdentity, one));
        for (kind, table) in applications.chain(identities) {
            ready.push(table.register(kind, &entra, issuer)?);
        }
        Ok(entra)
    }
}

impl ClientTable {
    fn register(self, kind: ClientKind, entra: &Entra, issuer: Option<&Issuer>) -> Result<Value> {
        let mut new = NewClient::new(kind, &self.name);
        new.client_id = self.client_id;
        new.object_id = self.object_id;
        let client = entra.register(new)?;
        client.set_disabled(self.disabled);
        client.set_roles(&self.roles.iter().map(String::as_str).collect::<Vec<_>>());
        for (index, table) in self.credential.into_iter().enumerate() {
            let own = issuer.map(Issuer::url);
            let issuer = table.issuer.or(own).ok_or_else(|| {
                Error::Config(format!("client {}: a credential without issuer", self.name))
            })?;
            client.add_credential(Credential {
                name: table.name.unwrap_or_else(|| format!("credential-{index}")),
                issuer,
                subject: table.subject,
                audiences: vec![table.audience],
            })?;
        }
        Ok(json!({
            "ready": "client",
            "name": self.name,
            "client_id": client.client_id(),
            "object_id": client.object_id(),
        }))
    }
}

fn make_folder_of(path: &Path) -> Result<()> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    fs::create_dir_all(folder).map_err(Error::io(format!("make the folder {}", folder.display())))
}

fn yes() -> bool {
    true
}

fn audience() -> String {
    crate::AUDIENCE.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../lab.example.toml");

    #[test]
    fn example_is_understood() {
        let file: LabFile = EXAMPLE.parse().unwrap();
        let workload = file.workload_api.unwrap();
        assert_eq!(workload.entry.len(), 2);
        let entra = file.entra.unwrap();
        assert_eq!(entra.application[0].credential[0].audience, crate::AUDIENCE);
        assert!(file.issuer.unwrap().set_key_use);
    }

    #[test]
    fn mistakes_are_shown_with_their_line() {
        let error = "[entra]\nlisten = \"127.0.0.1:0\"\ntenat = \"x\"".parse::<LabFile>();
        let text = error.unwrap_err().to_string();
        assert!(text.contains("line 3") && text.contains("tenat"), "{text}");
    }

    #[tokio::test]
    async fn workload_api_needs_an_issuer() {
        let file: LabFile = "[workload_api]\nsocket = \"/nowhere/agent.sock\""
            .parse()
            .unwrap();
        let error = file.start().await.unwrap_err();
        assert!(error.to_string().contains("issuer"), "{error}");
    }

    #[tokio::test]
    async fn entra_alone_needs_the_credentials_issuer() {
        let start = async |issuer: &str| {
            let text = format!(
                "[entra]\nlisten = \"127.0.0.1:0\"\n[[entra.application]]\nname = \"app\"\n\
                 [[entra.application.credential]]\nsubject = \"s\"\n{issuer}"
            );
            text.parse::<LabFile>().unwrap().start().await
        };
        let served = start("issuer = \"https://oidc.example.org\"")
            .await
            .unwrap();
        assert_eq!(served.ready().len(), 2);
        assert!(
            start("")
                .await
                .unwrap_err()
                .to_string()
                .contains("without issuer")
        );
        assert!(matches!(
            start("issuer = \"http://a\"").await,
            Err(Error::Credential(_))
        ));
    }
}
