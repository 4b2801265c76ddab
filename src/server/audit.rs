//! The audit trail: who got a token for what, and who did not.
//!
//! Lines go to the tracing target `audit`. What is granted is told apart by connection: the first
//! grant of an identity and resource is a line, repeats are counted, and the count is a line once a
//! minute and when the connection ends. A crash loses at most a minute's counts, never a first
//! grant. Refusals and failures are a line each, up to a rate for each uid; beyond it they are
//! counted, and the number is in the uid's next line or in one of its own within a minute.
//!
//! `uti` and `correlation_id` lead to the line of the token in Entra's sign-in log. A count is for
//! one token: when a key's token is renewed, what was counted is written first.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::query::shown;
use crate::{
    caller::Caller,
    config::Identity,
    id::Scope,
    time::{Clock, Moment},
    tokens::CachedToken,
};

/// What is granted on one connection.
#[derive(Debug)]
pub(super) struct Trail {
    caller: Caller,
    grants: Mutex<Vec<Grant>>,
}

/// An identity and resource that was granted, and how often since the last line.
#[derive(Debug)]
struct Grant {
    identity: Arc<Identity>,
    scope: Scope,
    correlation_id: Option<Arc<str>>,
    uti: Option<Arc<str>>,
    repeats: u64,
}

/// Writes refusals and failures, not more than so many for each uid.
#[derive(Debug)]
pub(super) struct Refusals {
    clock: Clock,
    buckets: Mutex<HashMap<u32, Bucket>>,
}

/// What is not granted, and why.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Refusal<'a> {
    /// `denied` when we said no, `failed` when SPIRE or Entra did.
    pub(super) outcome: &'static str,
    /// The code of the problem.
    pub(super) reason: &'a str,
    /// The identity, where the caller may know of it.
    pub(super) identity: Option<&'a Identity>,
    /// What the caller called it.
    pub(super) asked: Option<&'a str>,
    /// The resource asked for.
    pub(super) resource: Option<&'a str>,
    /// Entra's id of the failed exchange.
    pub(super) correlation_id: Option<&'a str>,
}

#[derive(Debug)]
struct Bucket {
    lines: f64,
    filled: Moment,
    left_out: u64,
}

impl Trail {
    pub(super) fn new(caller: Caller) -> Self {
        Self {
            caller,
            grants: Mutex::default(),
        }
    }

    /// Notes a token that is handed out.
    pub(super) fn granted(&self, identity: &Arc<Identity>, scope: &Scope, token: &CachedToken) {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        let known = grants.iter_mut().find(|grant| {
            (Arc::ptr_eq(&grant.identity, identity) || grant.identity == *identity)
                && grant.scope == *scope
        });
        if let Some(grant) = known {
            if !grant.is_of(token) {
                grant.write_repeats(&self.caller);
                grant.correlation_id.clone_from(&token.correlation_id);
                grant.uti.clone_from(&token.uti);
            }
            grant.repeats += 1;
            return;
        }
        if grants.len() >= GRANTS_LIMIT {
            // Forgotten ones are first grants again: more lines, and none is lost.
            for mut grant in grants.drain(..) {
                grant.write_repeats(&self.caller);
            }
        }
        let grant = Grant {
            identity: identity.clone(),
            scope: scope.clone(),
            correlation_id: token.correlation_id.clone(),
            uti: token.uti.clone(),
            repeats: 0,
        };
        grant.write(&self.caller, "granted", None);
        grants.push(grant);
    }

    /// Writes what was counted.
    pub(super) fn flush(&self) {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        for grant in grants.iter_mut() {
            grant.write_repeats(&self.caller);
        }
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Grant {
    /// Whether it was last granted with this token. The ids are shared, not copied, and kept alive
    /// here, so that their address is enough.
    fn is_of(&self, token: &CachedToken) -> bool {
        same(&self.uti, &token.uti) && same(&self.correlation_id, &token.correlation_id)
    }

    fn write_repeats(&mut self, caller: &Caller) {
        let repeats = std::mem::take(&mut self.repeats);
        if repeats > 0 {
            self.write(caller, "repeated", Some(repeats));
        }
    }

    fn write(&self, caller: &Caller, outcome: &'static str, repeats: Option<u64>) {
        let target = &self.identity.trust.target;
        tracing::info!(
            target: TARGET,
            pid = caller.pid,
            uid = caller.uid,
            gid = caller.gid,
            identity = self.identity.name.as_str(),
            spiffe_id = self.identity.trust.assertion.subject.as_str(),
            tenant = &*target.tenant,
            client_id = &*target.client_id,
            resource = self.scope.resource(),
            outcome,
            repeats,
            correlation_id = self.correlation_id.as_deref(),
            uti = self.uti.as_deref(),
        );
    }
}

impl Refusals {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            buckets: Mutex::default(),
        }
    }

    /// Writes or counts one.
    pub(super) fn note(&self, caller: &Caller, refusal: Refusal<'_>) {
        let now = self.clock.now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(caller.uid).or_insert_with(|| Bucket {
            lines: BURST,
            filled: now,
            left_out: 0,
        });
        bucket.fill(now);
        if bucket.lines < 1.0 {
            bucket.left_out += 1;
            return;
        }
        bucket.lines -= 1.0;
        let left_out = std::mem::take(&mut bucket.left_out);
        drop(buckets);

        let target = refusal.identity.map(|i| &i.trust.target);
        let identity = refusal.identity.map(|i| i.name.as_str());
        let asked = refusal.asked.map(shown);
        let resource = refusal.resource.map(shown);
        tracing::info!(
            target: TARGET,
            pid = caller.pid,
            uid = caller.uid,
            gid = caller.gid,
            identity = identity.or(asked.as_deref()),
            spiffe_id = refusal.identity.map(|i| i.trust.assertion.subject.as_str()),
            tenant = target.map(|t| &*t.tenant),
            client_id = target.map(|t| &*t.client_id),
            resource = resource.as_deref(),
            outcome = refusal.outcome,
            reason = refusal.reason,
            correlation_id = refusal.correlation_id,
            left_out = (left_out > 0).then_some(left_out),
        );
    }

    /// Writes the numbers that no line has told yet, and forgets who is quiet. Called once a minute
    /// and at the end.
    pub(super) fn sweep(&self) {
        let now = self.clock.now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.retain(|uid, bucket| {
            let left_out = std::mem::take(&mut bucket.left_out);
            if left_out > 0 {
                tracing::info!(target: TARGET, uid, outcome = "left-out", left_out);
            }
            bucket.fill(now);
            bucket.lines < BURST
        });
    }
}

impl Bucket {
    fn fill(&mut self, now: Moment) {
        let gained = now.since(self.filled).as_secs_f64() / PERIOD.as_secs_f64();
        self.lines = (self.lines + gained).min(BURST);
        self.filled = now;
    }
}

fn same(a: &Option<Arc<str>>, b: &Option<Arc<str>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// The tracing target of all lines.
const TARGET: &str = "audit";
/// How many refusals of a uid are written at once, and how often one more.
const BURST: f64 = 20.0;
const PERIOD: Duration = Duration::from_secs(1);
/// How many identities and resources are told apart on one connection.
const GRANTS_LIMIT: usize = 256;
