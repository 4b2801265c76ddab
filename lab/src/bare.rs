//! What the product does for a token, done by hand and without anything around it: one
//! `FetchJWTSVID` at the Workload API, one POST at Entra. The demo looks at the SVID this way, and
//! the benchmarks compare with it.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::World;
use crate::workload::wire::JwtsvidRequest;
use crate::workload::wire::spiffe_workload_api_client::SpiffeWorkloadApiClient;

/// Why there is no SVID or token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BareError {
    /// The Workload API cannot be reached.
    #[error("Workload API: {0}")]
    Connect(#[from] tonic::transport::Error),
    /// The Workload API says no.
    #[error("Workload API: {0}")]
    Fetch(#[from] Box<tonic::Status>),
    /// Entra cannot be reached or says no.
    #[error("token endpoint: {0}")]
    Exchange(#[from] reqwest::Error),
    /// An answer without what was asked for.
    #[error("the answer holds no {0}")]
    Empty(&'static str),
}

/// Connections to a lab's Workload API and Entra.
#[derive(Clone, Debug)]
pub struct BareClient {
    workload: SpiffeWorkloadApiClient<Channel>,
    http: reqwest::Client,
    token_endpoint: String,
}

impl BareClient {
    /// Connects to the Workload API; to Entra with the first exchange.
    ///
    /// # Errors
    /// When the Workload API cannot be reached.
    pub async fn connect(world: &World) -> Result<Self, BareError> {
        let socket = world.socket().to_owned();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await?;
        let root = reqwest::Certificate::from_pem(world.ca.pem().as_bytes())?;
        let http = reqwest::Client::builder()
            .tls_certs_only([root])
            .no_proxy()
            .timeout(Duration::from_secs(10))
            .build()?;
        Ok(Self {
            workload: SpiffeWorkloadApiClient::new(channel),
            http,
            token_endpoint: world.entra.token_endpoint(),
        })
    }

    /// The JWT-SVID of an identity.
    ///
    /// # Errors
    /// When the Workload API does not give one.
    pub async fn svid(&mut self, spiffe_id: &str, audience: &str) -> Result<String, BareError> {
        let mut request = tonic::Request::new(JwtsvidRequest {
            audience: vec![audience.to_owned()],
            spiffe_id: spiffe_id.to_owned(),
        });
        // The header that keeps web pages out of the Workload API.
        let header = tonic::metadata::MetadataValue::from_static("true");
        request.metadata_mut().insert("workload.spiffe.io", header);
        let answer = self.workload.fetch_jwtsvid(request).await;
        let answer = answer.map_err(Box::new)?.into_inner();
        let first = answer.svids.into_iter().next();
        first.map(|one| one.svid).ok_or(BareError::Empty("SVID"))
    }

    /// The access token for an SVID; it is not looked at.
    ///
    /// # Errors
    /// When Entra does not give one.
    pub async fn exchange(
        &self,
        client_id: &str,
        resource: &str,
        svid: &str,
    ) -> Result<String, BareError> {
        let scope = format!("{resource}/.default");
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", client_id),
            ("scope", &scope),
            ("client_assertion_type", ASSERTION_TYPE),
            ("client_assertion", svid),
        ];
        let request = self.http.post(&self.token_endpoint).form(&form);
        let answer = request.send().await?.error_for_status()?;
        let mut answer: serde_json::Value = answer.json().await?;
        match answer["access_token"].take() {
            serde_json::Value::String(token) => Ok(token),
            _ => Err(BareError::Empty("access token")),
        }
    }
}

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
