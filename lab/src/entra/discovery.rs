//! What clients and resources read before or after a token request: the tenant's OpenID Connect
//! document, the keys of access tokens, and which authorities there are.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use crate::guid;

use super::Shared;
use super::directory::TenantLookup;
use super::http::{JSON, headers};
use super::refusal::Refusal;

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route(
            "/{tenant}/v2.0/.well-known/openid-configuration",
            get(discovery_v2),
        )
        .route(
            "/{tenant}/.well-known/openid-configuration",
            get(discovery_v1),
        )
        .route("/{tenant}/discovery/v2.0/keys", get(keys))
        .route("/{tenant}/discovery/keys", get(keys))
        .route("/common/discovery/instance", get(instance))
}

async fn discovery_v2(State(shared): State<Arc<Shared>>, Path(tenant): Path<String>) -> Response {
    discovery(&shared, &tenant, "v2.0")
}

async fn discovery_v1(State(shared): State<Arc<Shared>>, Path(tenant): Path<String>) -> Response {
    discovery(&shared, &tenant, "v1.0")
}

fn discovery(shared: &Shared, tenant: &str, version: &str) -> Response {
    let id = match shared.directory.tenant(tenant) {
        TenantLookup::Found(id) => id,
        // The shared endpoints have a document with a placeholder for the tenant.
        TenantLookup::Shared => "{tenantid}".to_owned(),
        TenantLookup::Unknown | TenantLookup::Malformed => {
            return get_refusal(shared, &Refusal::new(90002, &[("tenant", tenant)]));
        }
    };
    let authority = &shared.authority;
    let base = format!("{authority}/{tenant}");
    let (issuer, keys) = match version {
        "v2.0" => (
            format!("{authority}/{id}/v2.0"),
            format!("{base}/discovery/v2.0/keys"),
        ),
        _ => (
            format!("https://sts.windows.net/{id}/"),
            format!("{base}/discovery/keys"),
        ),
    };
    Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
        "token_endpoint": format!("{base}/oauth2/v2.0/token"),
        "jwks_uri": keys,
        "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "token_endpoint_auth_methods_supported":
            ["client_secret_post", "private_key_jwt", "client_secret_basic"],
        "tenant_region_scope": "EU",
        "cloud_instance_name": "microsoftonline.com",
    }))
    .into_response()
}

async fn keys(State(shared): State<Arc<Shared>>, Path(tenant): Path<String>) -> Response {
    match shared.directory.tenant(&tenant) {
        TenantLookup::Found(_) | TenantLookup::Shared => Json(shared.minter.jwks()).into_response(),
        TenantLookup::Unknown | TenantLookup::Malformed => {
            get_refusal(&shared, &Refusal::new(90002, &[("tenant", &tenant)]))
        }
    }
}

#[derive(Deserialize)]
struct InstanceQuery {
    authorization_endpoint: Option<String>,
}

/// Instance discovery: this authority is known, no other is.
async fn instance(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<InstanceQuery>,
) -> Response {
    let endpoint = query.authorization_endpoint.unwrap_or_default();
    let tenant = endpoint
        .strip_prefix(&*shared.authority)
        .and_then(|path| path.strip_prefix('/'))
        .and_then(|path| path.split('/').next())
        .filter(|tenant| !tenant.is_empty());
    let Some(tenant) = tenant else {
        return get_refusal(&shared, &Refusal::new(50049, &[]));
    };
    let authority = &shared.authority;
    let host = authority.trim_start_matches("https://");
    Json(json!({
        "tenant_discovery_endpoint":
            format!("{authority}/{tenant}/v2.0/.well-known/openid-configuration"),
        "api-version": "1.1",
        "metadata": [{ "preferred_network": host, "preferred_cache": host, "aliases": [host] }],
    }))
    .into_response()
}

fn get_refusal(shared: &Shared, refusal: &Refusal) -> Response {
    let (trace_id, correlation_id) = (guid::random(), guid::random());
    let now = shared.clock.now();
    let body = refusal.body(
        &shared.authority,
        now,
        &trace_id,
        &correlation_id,
        None,
        " ",
    );
    (refusal.status, headers(JSON, &trace_id), body).into_response()
}
