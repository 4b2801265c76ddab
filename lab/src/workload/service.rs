//! The Workload API's calls, with SPIRE's checks in SPIRE's order.

use std::pin::Pin;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::Stream;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::Jwk;
use serde_json::Value;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use crate::serve::Peer;
use crate::sync::lock;

use super::faults::Fault;
use super::wire::spiffe_workload_api_server::SpiffeWorkloadApi;
use super::wire::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse,
    ValidateJwtsvidRequest, ValidateJwtsvidResponse,
};
use super::{Entry, Fetch, NO_IDENTITY, Shared, check_spiffe_id, trust_domain};

/// The service on one socket.
pub(super) struct Service(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let shared = &self.0;
        let uid = uid(&request)?;
        let header = security_header(&request);
        let JwtsvidRequest {
            audience,
            spiffe_id,
        } = request.into_inner();
        shared.fetches.send_modify(|count| *count += 1);
        let outcome = match header {
            Ok(()) => self.fetch(uid, &audience, &spiffe_id).await,
            Err(status) => Err(status),
        };
        let code = outcome
            .as_ref()
            .map_or_else(Status::code, |_| tonic::Code::Ok);
        lock(&shared.record).push(Fetch {
            uid,
            spiffe_id,
            audience,
            code,
        });
        outcome.map(Response::new)
    }

    type FetchJWTBundlesStream =
        Pin<Box<dyn Stream<Item = Result<JwtBundlesResponse, Status>> + Send>>;

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let shared = Arc::clone(&self.0);
        security_header(&request)?;
        let entries = shared.matching(uid(&request)?, "");
        if entries.is_empty() {
            return Err(Status::permission_denied(NO_IDENTITY));
        }
        lock(&shared.counters).bundle_streams += 1;
        let mut domains: Vec<_> = entries
            .iter()
            .map(|entry| trust_domain(&entry.spiffe_id).to_owned())
            .collect();
        domains.sort();
        domains.dedup();
        let changes = WatchStream::new(shared.issuer.changes());
        let stream = changes.map(move |_| {
            let keys = shared.issuer.bundle().to_string().into_bytes();
            let bundles = domains
                .iter()
                .map(|domain| (domain.clone(), keys.clone()))
                .collect();
            Ok(JwtBundlesResponse { bundles })
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        security_header(&request)?;
        let uid = uid(&request)?;
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        lock(&self.0.counters).validations += 1;
        if audience.is_empty() {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        if svid.is_empty() {
            return Err(Status::invalid_argument("svid must be specified"));
        }
        if self.0.matching(uid, "").is_empty() {
            return Err(Status::permission_denied(NO_IDENTITY));
        }
        let spiffe_id = self
            .validate(&audience, &svid)
            .map_err(Status::invalid_argument)?;
        Ok(Response::new(ValidateJwtsvidResponse { spiffe_id }))
    }
}

impl Service {
    async fn fetch(
        &self,
        uid: u32,
        audience: &[String],
        spiffe_id: &str,
    ) -> Result<JwtsvidResponse, Status> {
        if audience.is_empty() {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        if !spiffe_id.is_empty() {
            check_spiffe_id(spiffe_id).map_err(|reason| {
                Status::invalid_argument(format!("invalid requested SPIFFE ID: {reason}"))
            })?;
        }
        let entries = self.0.matching(uid, spiffe_id);
        let scope = entries
            .first()
            .map_or(spiffe_id, |entry| entry.spiffe_id.as_str());
        let faults = self.0.faults.take(scope, Fault::replaces);
        for fault in &faults {
            match fault {
                Fault::Status { code, message } => return Err(Status::new(*code, message)),
                Fault::Hang => std::future::pending().await,
                Fault::EmptyAnswer => return Ok(JwtsvidResponse::default()),
                Fault::Slow(delay) => tokio::time::sleep(*delay).await,
                _ => {}
            }
        }
        if entries.is_empty() {
            return Err(Status::permission_denied(NO_IDENTITY));
        }
        let svid = |entry: &Entry| {
            let svid = self.0.mint.svid(entry, audience, &faults)?;
            Ok(Jwtsvid {
                spiffe_id: entry.spiffe_id.clone(),
                svid,
                hint: entry.hint.clone(),
            })
        };
        let svids = entries.iter().map(svid).collect::<Result<_, Status>>()?;
        Ok(JwtsvidResponse { svids })
    }

    /// The SPIFFE ID of a valid SVID, else what is wrong with it.
    fn validate(&self, audience: &str, svid: &str) -> Result<String, String> {
        let (message, signature) = svid.rsplit_once('.').ok_or("unable to parse JWT token")?;
        let (header, claims) = message.split_once('.').ok_or("unable to parse JWT token")?;
        let header = object(header).ok_or("unable to parse JWT header")?;
        let claims = object(claims).ok_or("unable to parse JWT claims")?;
        let kid = header["kid"].as_str().unwrap_or_default();
        let key = self
            .0
            .issuer
            .published(kid)
            .ok_or("JWT authority not found")?;
        let algorithm = key.key_type().algorithm();
        if header["alg"] != serde_json::json!(algorithm) {
            return Err("token signed with the wrong algorithm".to_owned());
        }
        let public = serde_json::from_value::<Jwk>(key.jwk(false))
            .ok()
            .and_then(|jwk| DecodingKey::from_jwk(&jwk).ok())
            .ok_or("JWT authority cannot be used")?;
        let verified =
            jsonwebtoken::crypto::verify(signature, message.as_bytes(), &public, algorithm);
        if !verified.unwrap_or(false) {
            return Err("token has an invalid signature".to_owned());
        }
        let spiffe_id = claims["sub"]
            .as_str()
            .ok_or("token missing subject claim")?;
        check_spiffe_id(spiffe_id)?;
        if claims["exp"]
            .as_i64()
            .is_none_or(|expiry| expiry <= self.0.clock.now())
        {
            return Err("token has expired".to_owned());
        }
        let intended = match &claims["aud"] {
            Value::String(one) => one == audience,
            Value::Array(many) => many.iter().any(|one| one == audience),
            _ => false,
        };
        if !intended {
            return Err(format!("expected audience in [\"{audience}\"]"));
        }
        Ok(spiffe_id.to_owned())
    }
}

/// SPIRE wants `workload.spiffe.io: true` once and only once.
fn security_header<T>(request: &Request<T>) -> Result<(), Status> {
    let mut values = request.metadata().get_all("workload.spiffe.io").iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_encoded_bytes() == b"true" => Ok(()),
        _ => Err(Status::invalid_argument(
            "security header missing from request",
        )),
    }
}

fn uid<T>(request: &Request<T>) -> Result<u32, Status> {
    let peer = request.extensions().get::<Peer>();
    peer.map(|peer| peer.uid)
        .ok_or_else(|| Status::unavailable("workload attestation failed"))
}

fn object(part: &str) -> Option<Value> {
    let json = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice(&json).ok().filter(Value::is_object)
}
