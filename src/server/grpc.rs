//! gRPC: `spiffe_entra.v1.TokenService`, health and reflection. Protobuf ends here.

use std::{fmt, future::Future, io, pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::Status;
use tower::Service as _;

pub(super) use self::body::Guarded;
use self::{
    body::Patient,
    proto::{
        GetTokenRequest, GetTokenResponse,
        token_service_server::{TokenService, TokenServiceServer},
    },
    watching::Watching,
};
use super::{
    connection::{Connection, Grant},
    limits::MESSAGE_LIMIT,
    problem::Problem,
    query,
    reply::Body,
};
use crate::{id::Scope, tokens::Served};

mod body;
mod watching;

/// The generated messages, client and service.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    clippy::use_self,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("spiffe_entra.v1");
}

/// All gRPC services of a socket.
#[derive(Clone, Debug)]
pub(super) struct Routes(tonic::service::Routes);

/// The token service.
#[derive(Debug)]
struct Tokens;

impl Routes {
    pub(super) async fn new() -> io::Result<Self> {
        let descriptors: [&[u8]; 2] = [
            tonic::include_file_descriptor_set!("spiffe_entra.v1"),
            tonic_health::pb::FILE_DESCRIPTOR_SET,
        ];
        let reflection = || {
            descriptors
                .iter()
                .fold(tonic_reflection::server::Builder::configure(), |b, set| {
                    b.register_encoded_file_descriptor_set(set)
                })
        };
        let (v1, v1alpha) = (reflection().build_v1(), reflection().build_v1alpha());
        let service = TokenServiceServer::new(Tokens).max_decoding_message_size(MESSAGE_LIMIT);
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<TokenServiceServer<Tokens>>().await;
        let routes = tonic::service::Routes::new(service)
            .add_service(health.max_decoding_message_size(MESSAGE_LIMIT))
            .add_service(
                v1.map_err(io::Error::other)?
                    .max_decoding_message_size(MESSAGE_LIMIT),
            )
            .add_service(
                v1alpha
                    .map_err(io::Error::other)?
                    .max_decoding_message_size(MESSAGE_LIMIT),
            );
        Ok(Self(routes.prepare()))
    }

    /// Answers a gRPC request.
    pub(super) fn answer(
        &self,
        connection: &Arc<Connection>,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Response<Body>> + Send + use<> {
        let connection = Arc::clone(connection);
        request.extensions_mut().insert(Arc::clone(&connection));
        let answer = self.0.clone().call(request.map(Patient::new));
        async move {
            let Ok(response) = answer.await;
            response.map(|body| Body::Grpc(Guarded::new(body, connection)))
        }
    }
}

#[tonic::async_trait]
impl TokenService for Tokens {
    async fn get_token(
        &self,
        request: tonic::Request<GetTokenRequest>,
    ) -> Result<tonic::Response<GetTokenResponse>, Status> {
        let connection = connection_of(&request)?;
        // From here on: a request that is not complete, and a stream of health, keep no place.
        let _busy = connection.busy();
        let asked = Asked::parse(request.into_inner())
            .inspect_err(|problem| connection.server.count_request(&problem.code))
            .map_err(Problem::into_grpc)?;
        let (grant, served) = connection
            .token(
                asked.identity.as_deref(),
                &asked.scope,
                asked.claims.as_deref(),
            )
            .await
            .map_err(Problem::into_grpc)?;
        Ok(tonic::Response::new(GetTokenResponse::of(&grant, &served)))
    }

    type WatchTokenStream = Pin<Box<dyn Stream<Item = Result<GetTokenResponse, Status>> + Send>>;

    async fn watch_token(
        &self,
        request: tonic::Request<GetTokenRequest>,
    ) -> Result<tonic::Response<Self::WatchTokenStream>, Status> {
        let connection = connection_of(&request)?;
        let asked = Asked::parse(request.into_inner())
            .and_then(Asked::without_claims)
            .inspect_err(|problem| connection.server.count_request(&problem.code))
            .map_err(Problem::into_grpc)?;
        let watching = Watching::start(connection, asked).map_err(Problem::into_grpc)?;
        let tokens = stream::unfold(Some(watching), |watching| async {
            let mut watching = watching?;
            Some(match watching.next().await {
                Ok(response) => (Ok(response), Some(watching)),
                Err(problem) => (Err(problem.into_grpc()), None),
            })
        });
        Ok(tonic::Response::new(Box::pin(tokens)))
    }
}

/// A request that makes sense.
struct Asked {
    scope: Scope,
    identity: Option<String>,
    claims: Option<String>,
}

impl Asked {
    fn parse(request: GetTokenRequest) -> Result<Self, Problem> {
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        Ok(Self {
            scope: Scope::from_resource(&request.resource).map_err(query::malformed_resource)?,
            identity: given(request.identity),
            claims: given(request.claims)
                .map(|claims| query::decode_claims(&claims))
                .transpose()?,
        })
    }

    fn without_claims(self) -> Result<Self, Problem> {
        match self.claims {
            None => Ok(self),
            Some(_) => Err(Problem::malformed(
                "claims-not-watchable",
                "WatchToken takes no claims",
                "answer a claims challenge with GetToken",
            )),
        }
    }
}

impl GetTokenResponse {
    fn of(grant: &Grant, served: &Served) -> Self {
        let target = &grant.identity.trust.target;
        Self {
            access_token: served.token.access_token.expose().to_owned(),
            token_type: "Bearer".into(),
            expires_in: i64::try_from(served.expires_in).unwrap_or(i64::MAX),
            expires_on: served.expires_on,
            resource: grant.scope.resource().to_owned(),
            identity: grant.identity.name.clone(),
            client_id: target.client_id.to_string(),
            tenant: target.tenant.to_string(),
        }
    }
}

/// The generated one would print the token.
impl fmt::Debug for GetTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetTokenResponse")
            .field(
                "access_token",
                &format_args!("[redacted, {} bytes]", self.access_token.len()),
            )
            .field("token_type", &self.token_type)
            .field("expires_in", &self.expires_in)
            .field("expires_on", &self.expires_on)
            .field("resource", &self.resource)
            .field("identity", &self.identity)
            .field("client_id", &self.client_id)
            .field("tenant", &self.tenant)
            .finish()
    }
}

fn connection_of<T>(request: &tonic::Request<T>) -> Result<Arc<Connection>, Status> {
    request
        .extensions()
        .get::<Arc<Connection>>()
        .map(Arc::clone)
        .ok_or_else(|| Status::internal("the request came by no connection"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_token() {
        let response = GetTokenResponse {
            access_token: "eyJhbGciOi.payload.signature".into(),
            identity: "payments".into(),
            ..GetTokenResponse::default()
        };
        let shown = format!("{response:?}");
        assert!(shown.contains("[redacted, 28 bytes]") && shown.contains("payments"));
        assert!(!shown.contains("payload"), "{shown}");
    }

    #[test]
    fn claims_are_for_get_token() {
        let request = GetTokenRequest {
            resource: "https://vault.azure.net".into(),
            identity: String::new(),
            claims: "eyJhIjoxfQ".into(),
        };
        let asked = Asked::parse(request).unwrap();
        assert_eq!(
            (asked.identity.as_deref(), asked.claims.as_deref()),
            (None, Some("{\"a\":1}"))
        );
        let problem = asked.without_claims().err().unwrap();
        assert_eq!(problem.code, "claims-not-watchable");
    }
}
