//! The routes beside `/v1/token`.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use http::Response;
use serde::Serialize;
use tokio::time::timeout;

use super::{
    Inner, Probe,
    audit::Refusal,
    connection::{Connection, View},
    problem::Problem,
    reply::{self, Body},
    scrape,
    status::{
        self, Fault, Identities, IdentityStatus, ListenerStatus, QuarantineStatus, Status, Usable,
        WorkloadApiStatus,
    },
};
use crate::{
    caller::Caller,
    config::{Identity, Resources},
    id::Scope,
    policy::Denial,
    report::Report,
    time::{Moment, rfc3339},
};

/// A [`Probe`] whose answer is good for a second: whoever can connect may ask for it.
pub(super) struct Probed {
    probe: Probe,
    last: tokio::sync::Mutex<Option<(Moment, Result<(), Report>)>>,
}

impl Probed {
    pub(super) fn new(probe: Probe) -> Self {
        Self {
            probe,
            last: tokio::sync::Mutex::default(),
        }
    }

    async fn ask(&self, server: &Inner) -> Result<(), Report> {
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = &*last
            && server.clock.now().since(*at) < PROBE_AGE
        {
            return answer.clone();
        }
        let answer = timeout(READY_WAIT, (self.probe)())
            .await
            .unwrap_or_else(|_elapsed| {
                Err(Report::transient(
                    "workload-api-slow",
                    "The Workload API does not answer",
                    "the SPIRE agent has not answered within two seconds",
                    "look at the SPIRE agent and its log",
                ))
            });
        *last = Some((server.clock.now(), answer.clone()));
        answer
    }
}

/// `GET /livez`
pub(super) fn livez() -> Response<Body> {
    reply::json(r#"{"status":"ok"}"#)
}

/// `GET /readyz`: the configuration is in force, or nobody would answer, and the Workload API can
/// be reached. Why not is for admins.
pub(super) async fn readyz(connection: &Connection) -> Response<Body> {
    let server = &connection.server;
    let Err(report) = server.workload_api.ask(server).await else {
        return reply::json(READY);
    };
    let admin = connection.view().live.policy.is_admin(&connection.caller);
    let problem = if admin {
        Problem::from(&report).unavailable()
    } else {
        Problem::unready(
            "the daemon is not ready",
            "ask the operator; admins see why",
        )
    };
    problem.into_http()
}

/// `GET /readyz/{identity}`: whether there is a JWT-SVID, and nothing stands against the tokens that
/// this caller may ask for. Why there is no JWT-SVID is told to all who may use the identity: they
/// wait for its registration entry, and can say so.
pub(super) async fn identity_ready(connection: &Connection, wanted: &str) -> Response<Body> {
    match identity_problem(connection, wanted).await {
        None => reply::json(READY),
        Some(problem) => problem.into_http(),
    }
}

async fn identity_problem(connection: &Connection, wanted: &str) -> Option<Problem> {
    let view = connection.view();
    let found = view.identity(&connection.caller, Some(wanted));
    let (identity, account) = match found {
        Ok(found) => found,
        Err(denial) => {
            let refusal = Refusal {
                asked: Some(wanted),
                ..Refusal::default()
            };
            return Some(connection.denied(denial, refusal));
        }
    };
    match timeout(READY_WAIT, account.assertion()).await {
        Ok(Ok(_assertion)) => {}
        Ok(Err(error)) => return Some(Problem::from(&*error.report).unavailable()),
        Err(_elapsed) => {
            return Some(Problem::unready(
                "SPIRE has not given a JWT-SVID within two seconds",
                "look at the SPIRE agent and its log",
            ));
        }
    }
    // What others ask for is none of this caller's business, nor what Entra said about it.
    let admin = view.live.policy.is_admin(&connection.caller);
    let visible = |resource: &str| {
        let scope = Scope::from_resource(resource);
        admin || scope.is_ok_and(|s| view.allows(&connection.caller, &identity.name, &s))
    };
    let snapshot = account.snapshot();
    let failed = snapshot
        .tokens
        .iter()
        .filter(|token| token.expires_in.is_none() && visible(&token.resource))
        .find_map(|token| token.error.as_ref());
    if let Some(revoked) = &snapshot.revoked
        && admin
    {
        return Some(Problem::from(revoked).unavailable());
    }
    match failed {
        Some(report) => Some(Problem::from(report).unavailable()),
        None => snapshot.revoked.is_some().then(|| {
            Problem::unready(
                "the tokens of this identity are withdrawn",
                "ask the operator; admins see why",
            )
        }),
    }
}

/// `GET /v1/identities`
pub(super) fn identities(connection: &Connection) -> Response<Body> {
    let view = connection.view();
    let caller = &connection.caller;
    let identities = view.identities_of(caller);
    let usable = identities.iter().map(|identity| Usable {
        name: identity.name.clone(),
        spiffe_id: identity.trust.assertion.subject.to_string(),
        client_id: identity.trust.target.client_id.to_string(),
        tenant: identity.trust.target.tenant.to_string(),
        resources: resources(&view, caller, identity),
    });
    json(&Identities {
        identities: usable.collect(),
    })
}

/// `GET /metrics`
pub(super) fn metrics(connection: &Connection) -> Response<Body> {
    match connection.admin(&connection.view()) {
        Ok(()) => scrape::answer(&connection.server),
        Err(problem) => problem.into_http(),
    }
}

/// `GET /v1/status`
pub(super) async fn status(connection: &Connection) -> Response<Body> {
    let view = connection.view();
    if let Err(problem) = connection.admin(&view) {
        return problem.into_http();
    }
    let server = &connection.server;
    let reachable = server.workload_api.ask(server).await;
    let (live, plan) = (&view.live, &view.live.plan);
    let listeners = plan.listeners.iter().map(|listener| ListenerStatus {
        socket: listener.socket.display().to_string(),
        connections: server.gate(&listener.socket).open(),
        max_connections: listener.max_connections,
    });
    let identities = plan.identities.iter().zip(&live.accounts);
    json(&Status {
        version: env!("CARGO_PKG_VERSION").into(),
        started: rfc3339(server.started.unix_seconds()),
        generation: live.generation,
        listeners: listeners.collect(),
        workload_api: WorkloadApiStatus {
            endpoint: status::endpoint(&plan.workload_api.endpoint),
            reachable: reachable.is_ok(),
            error: reachable.err().as_ref().map(Fault::from),
        },
        identities: identities
            .map(|(identity, account)| IdentityStatus::of(identity, account.snapshot()))
            .collect(),
        quarantined: plan
            .quarantined
            .iter()
            .map(QuarantineStatus::from)
            .collect(),
    })
}

/// `POST /v1/refresh`
pub(super) async fn refresh(connection: &Connection, wanted: &str) -> Response<Body> {
    let view = connection.view();
    if let Err(problem) = connection.admin(&view) {
        return problem.into_http();
    }
    let plan = &view.live.plan;
    let place = match named(&plan.identities, wanted)[..] {
        [place] => Some(place),
        [] => None,
        _ => return Problem::denied(Denial::Ambiguous, &connection.caller).into_http(),
    };
    let Some(account) = place.and_then(|place| view.live.accounts.get(place)) else {
        return Problem::unknown_identity(plan.quarantined.iter().any(|q| q.name == wanted))
            .into_http();
    };
    match account.refresh().await {
        Ok(refreshed) => json(&Refreshed { refreshed }),
        Err(report) => Problem::from(&report).into_http(),
    }
}

/// The places of the identities that a name or an id means: one, where it is a name.
fn named(identities: &[Arc<Identity>], wanted: &str) -> Vec<usize> {
    if let Some(place) = identities
        .iter()
        .position(|identity| identity.name == wanted)
    {
        return vec![place];
    }
    let is_meant = |identity: &Identity| {
        let ids = [
            Some(&*identity.trust.target.client_id),
            identity.object_id.as_deref(),
            identity.resource_id.as_deref(),
        ];
        ids.into_iter()
            .flatten()
            .any(|id| id.eq_ignore_ascii_case(wanted))
    };
    let places = identities.iter().enumerate();
    places
        .filter(|(_, identity)| is_meant(identity))
        .map(|(place, _)| place)
        .collect()
}

/// What `/v1/refresh` answers.
#[derive(Serialize)]
struct Refreshed {
    refreshed: usize,
}

fn json(body: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(body) {
        Ok(body) => reply::json(body),
        // Plain structs of strings and numbers always can be written.
        Err(error) => Problem::unready(error.to_string(), "report this mistake").into_http(),
    }
}

/// What a caller may have of an identity. Policy is asked, so that there is one opinion: about every
/// resource that is named in the identity's rules, and about one that nobody would name.
fn resources(view: &View, caller: &Caller, identity: &Identity) -> Vec<String> {
    let allowed = |resource: &str| {
        Scope::from_resource(resource)
            .is_ok_and(|scope| view.allows(caller, &identity.name, &scope))
    };
    if allowed("urn:spiffe-entra:any-resource") {
        return vec!["*".into()];
    }
    let rules = identity
        .callers
        .iter()
        .filter_map(|rule| rule.resources.as_ref());
    let named: BTreeSet<&String> = rules
        .chain([&identity.resources])
        .filter_map(|resources| match resources {
            Resources::Any => None,
            Resources::Only(named) => Some(named),
        })
        .flatten()
        .collect();
    named
        .into_iter()
        .filter(|name| allowed(name))
        .cloned()
        .collect()
}

const READY: &str = r#"{"status":"ready"}"#;
/// How long a probe may take, and how long its answer is good.
const READY_WAIT: Duration = Duration::from_secs(2);
const PROBE_AGE: Duration = Duration::from_secs(1);
