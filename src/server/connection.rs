//! One connection: who is at the other end, and what that one gets.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
    sync::{Arc, OnceLock},
};

use tokio::io::{Interest, unix::AsyncFd};
use tokio_util::sync::CancellationToken;

use super::{
    Inner, Live,
    audit::{Ids, Refusal, Trail},
    limits::{Slot, Standing},
    problem::Problem,
};
use crate::{
    caller::Caller,
    config::Identity,
    id::Scope,
    policy::Denial,
    tokens::{Account, Served},
};

/// A connection, shared by its requests.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) server: Arc<Inner>,
    /// The socket it came in by.
    pub(super) socket: Arc<Path>,
    /// Who connected. Decided by the kernel then, and for good.
    pub(super) caller: Caller,
    pub(super) slot: Arc<Slot>,
    pub(super) trail: Trail,
    /// The daemon stops.
    pub(super) stopping: CancellationToken,
    /// Watches for the end of the caller's process, once somebody wants to know.
    exit: OnceLock<Option<AsyncFd<Pidfd>>>,
}

/// What is in force, seen from one socket.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) live: Arc<Live>,
    /// The socket's place in the plan: found by its path, as a reload may move it; `None` when it
    /// is in the plan no longer, and then it serves nobody.
    listener: Option<usize>,
}

/// Leave to have a token.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) identity: Arc<Identity>,
    pub(super) account: Arc<Account>,
    pub(super) scope: Scope,
}

/// A request in flight: keeps its connection from being taken for idle.
#[derive(Debug)]
pub(super) struct Busy(Arc<Slot>);

/// A stream of tokens: the same, as long as nobody else needs the place.
#[derive(Debug)]
pub(super) struct Streaming(Arc<Slot>);

#[derive(Debug)]
struct Pidfd(Arc<OwnedFd>);

impl Connection {
    pub(super) fn new(
        server: Arc<Inner>,
        socket: Arc<Path>,
        caller: Caller,
        slot: Arc<Slot>,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            socket,
            trail: Trail::new(caller.clone(), Arc::clone(&server.audit)),
            server,
            caller,
            slot,
            stopping,
            exit: OnceLock::new(),
        }
    }

    /// What is in force now.
    pub(super) fn view(&self) -> View {
        View::of(self.server.live(), &self.socket)
    }

    /// Whether the caller may have a token; if not, that is noted.
    pub(super) fn decide(
        &self,
        view: &View,
        wanted: Option<&str>,
        scope: &Scope,
    ) -> Result<Grant, Problem> {
        match view.decide(&self.caller, wanted, scope) {
            Ok((identity, account)) => Ok(Grant {
                identity,
                account,
                scope: scope.clone(),
            }),
            Err(denial) => {
                // Only who may use the identity was told that it exists, and only they are.
                let identity = match denial {
                    Denial::Resource => view.identity(&self.caller, wanted).ok(),
                    _ => None,
                };
                let problem = self.denied(
                    denial,
                    Refusal {
                        identity: identity.as_ref().map(|(identity, _)| &**identity),
                        asked: wanted,
                        resource: Some(scope.resource()),
                        ..Refusal::default()
                    },
                );
                self.server.count_request(&problem.code);
                Err(problem)
            }
        }
    }

    /// Notes what policy says no to.
    pub(super) fn denied(&self, denial: Denial, refusal: Refusal<'_>) -> Problem {
        let problem = Problem::denied(denial, &self.caller);
        self.server.audit.refused(
            &self.caller,
            Refusal {
                outcome: "denied",
                reason: &problem.code,
                ..refusal
            },
        );
        problem
    }

    /// A token, exchanged now if need be. What was decided before the wait is decided again when
    /// the configuration changed meanwhile.
    pub(super) async fn token(
        &self,
        wanted: Option<&str>,
        scope: &Scope,
        claims: Option<&str>,
    ) -> Result<(Grant, Served), Problem> {
        loop {
            let view = self.view();
            let grant = self.decide(&view, wanted, scope)?;
            let outcome = grant.account.token(scope, claims).await;
            if self.is_outdated(&view) {
                let now = self.decide(&self.view(), wanted, scope)?;
                if !Arc::ptr_eq(&now.account, &grant.account) {
                    continue;
                }
            }
            return match outcome {
                Ok(served) => {
                    self.hand_out(&grant, &served);
                    Ok((grant, served))
                }
                Err(report) => {
                    self.failed(&grant, &report);
                    Err(Problem::from(&report))
                }
            };
        }
    }

    /// Whether something newer is in force.
    pub(super) fn is_outdated(&self, view: &View) -> bool {
        self.server.live.borrow().generation != view.live.generation
    }

    /// Notes that a token is handed out.
    pub(super) fn hand_out(&self, grant: &Grant, served: &Served) {
        let ids = Ids {
            correlation_id: &served.token.correlation_id,
            uti: &served.token.uti,
        };
        self.trail.granted(&grant.identity, &grant.scope, ids);
        self.server.granted.inc();
    }

    /// Notes that there is no token for one who may have it.
    pub(super) fn failed(&self, grant: &Grant, report: &crate::report::Report) {
        self.server.audit.refused(
            &self.caller,
            Refusal {
                outcome: "failed",
                reason: &report.code,
                identity: Some(&grant.identity),
                resource: Some(grant.scope.resource()),
                correlation_id: report.correlation_id.as_deref(),
                ..Refusal::default()
            },
        );
        self.server.count_request(report.label());
    }

    /// Lets admins pass.
    pub(super) fn admin(&self, view: &View) -> Result<(), Problem> {
        if view.live.policy.is_admin(&self.caller) {
            return Ok(());
        }
        let problem = Problem::admins_only(&self.caller);
        self.server.audit.refused(
            &self.caller,
            Refusal {
                outcome: "denied",
                reason: &problem.code,
                ..Refusal::default()
            },
        );
        Err(problem)
    }

    /// Ends when the caller's process does. Never, where the kernel cannot tell.
    pub(super) async fn exited(&self) {
        let watched = self.exit.get_or_init(|| {
            Pidfd(Arc::clone(self.caller.pidfd.as_ref()?))
                .watched()
                .inspect_err(|error| tracing::debug!(%error, "cannot watch the caller's process"))
                .ok()
        });
        match watched {
            Some(pidfd) => {
                // An error ends the wait as well: then nobody can tell that the process is alive.
                let _ready = pidfd.readable().await;
            }
            None => std::future::pending().await,
        }
    }

    /// Marks a request that takes longer.
    pub(super) fn busy(&self) -> Busy {
        self.slot.activity.begin();
        Busy(Arc::clone(&self.slot))
    }

    /// Marks a stream of tokens.
    pub(super) fn streaming(&self) -> Streaming {
        self.slot.activity.begin_stream();
        Streaming(Arc::clone(&self.slot))
    }
}

impl View {
    pub(super) fn of(live: Arc<Live>, socket: &Path) -> Self {
        let listener = live
            .plan
            .listeners
            .iter()
            .position(|listener| listener.socket == socket);
        Self { live, listener }
    }

    fn decide(
        &self,
        caller: &Caller,
        wanted: Option<&str>,
        scope: &Scope,
    ) -> Result<(Arc<Identity>, Arc<Account>), Denial> {
        let listener = self.listener.ok_or_else(|| Denial::of_nobody(wanted))?;
        let policy = &self.live.policy;
        let place = policy.decide(caller, listener, wanted, scope)?;
        self.at(place).ok_or(Denial::Identity)
    }

    /// The identity that a caller names, or its only one.
    pub(super) fn identity(
        &self,
        caller: &Caller,
        wanted: Option<&str>,
    ) -> Result<(Arc<Identity>, Arc<Account>), Denial> {
        let listener = self.listener.ok_or_else(|| Denial::of_nobody(wanted))?;
        let place = self.live.policy.identity(caller, listener, wanted)?;
        self.at(place).ok_or(Denial::Identity)
    }

    /// All identities of a caller.
    pub(super) fn identities_of(&self, caller: &Caller) -> Vec<Arc<Identity>> {
        let places = self
            .listener
            .map(|listener| self.live.policy.identities_of(caller, listener));
        places
            .unwrap_or_default()
            .into_iter()
            .filter_map(|place| self.live.plan.identities.get(place).map(Arc::clone))
            .collect()
    }

    /// Whether a caller may have this resource of an identity.
    pub(super) fn allows(&self, caller: &Caller, identity: &str, scope: &Scope) -> bool {
        self.decide(caller, Some(identity), scope).is_ok()
    }

    /// Whether there is anything here for a caller.
    pub(super) fn admits(&self, caller: &Caller) -> bool {
        let policy = &self.live.policy;
        policy.is_admin(caller) || self.listener.is_some_and(|l| policy.knows(caller, l))
    }

    /// What a caller is to this socket.
    pub(super) fn standing(&self, caller: &Caller) -> Standing {
        if self.live.policy.is_admin(caller) {
            Standing::Admin
        } else if self.admits(caller) {
            Standing::Caller
        } else {
            Standing::Stranger
        }
    }

    /// How many connections the socket takes.
    pub(super) fn max_connections(&self) -> usize {
        let listeners = &self.live.plan.listeners;
        let listener = self.listener.and_then(|place| listeners.get(place));
        listener.map_or(0, |listener| listener.max_connections)
    }

    fn at(&self, place: usize) -> Option<(Arc<Identity>, Arc<Account>)> {
        let identity = self.live.plan.identities.get(place)?;
        let account = self.live.accounts.get(place)?;
        Some((Arc::clone(identity), Arc::clone(account)))
    }
}

impl Denial {
    /// For a socket that serves nobody.
    fn of_nobody(wanted: Option<&str>) -> Self {
        match wanted {
            Some(_) => Self::Identity,
            None => Self::NoIdentity,
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.activity.end();
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.0.activity.end_stream();
    }
}

impl Pidfd {
    #[expect(
        deprecated,
        reason = "the successor is unsafe because a descriptor might be closed while it is \
                  watched; this one is owned by what is watched"
    )]
    fn watched(self) -> io::Result<AsyncFd<Self>> {
        AsyncFd::with_interest(self, Interest::READABLE)
    }
}

impl AsRawFd for Pidfd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
