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
};

/// What is granted on one connection.
#[derive(Debug)]
pub(super) struct Trail {
    caller: Caller,
    grants: Mutex<Vec<Grant>>,
}

/// How Entra knows a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids<'a> {
    /// The exchange.
    pub(super) correlation_id: &'a Option<Arc<str>>,
    /// The token.
    pub(super) uti: &'a Option<Arc<str>>,
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

    /// Notes a token that is handed out, by Entra's ids for it.
    pub(super) fn granted(&self, identity: &Arc<Identity>, scope: &Scope, token: Ids<'_>) {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        let known = grants.iter_mut().find(|grant| {
            (Arc::ptr_eq(&grant.identity, identity) || grant.identity == *identity)
                && grant.scope == *scope
        });
        if let Some(grant) = known {
            if !grant.is_of(token) {
                grant.write_repeats(&self.caller);
                grant.correlation_id.clone_from(token.correlation_id);
                grant.uti.clone_from(token.uti);
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
    fn is_of(&self, token: Ids<'_>) -> bool {
        same(&self.uti, token.uti) && same(&self.correlation_id, token.correlation_id)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        assertion::AssertionSpec, config::Resources, config::Trust, exchange::Target, id::SpiffeId,
    };
    use serde_json::Value;
    use std::io;
    use tracing_subscriber::fmt::MakeWriter;

    fn caller(uid: u32) -> Caller {
        Caller {
            pid: Some(77),
            uid,
            gid: 1001,
            groups: [].into(),
            pidfd: None,
        }
    }

    fn identity() -> Arc<Identity> {
        Arc::new(Identity {
            name: "payments".into(),
            trust: Trust {
                target: Target {
                    authority: "https://login.microsoftonline.com".parse().unwrap(),
                    tenant: "tenant-1".into(),
                    client_id: "client-1".into(),
                },
                assertion: AssertionSpec {
                    subject: SpiffeId::parse("spiffe://example.org/payments").unwrap(),
                    audience: "api://AzureADTokenExchange".into(),
                    issuer: None,
                },
            },
            object_id: None,
            resource_id: None,
            resources: Resources::Any,
            callers: Vec::new(),
            expose_assertion: false,
            federate: None,
        })
    }

    fn vault() -> Scope {
        Scope::from_resource("https://vault.azure.net").unwrap()
    }

    /// What `work` writes.
    fn lines(work: impl FnOnce()) -> Vec<Value> {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_writer(log.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, work);
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn the_first_grant_is_a_line_and_repeats_are_counted() {
        let (one, other): (Option<Arc<str>>, Option<Arc<str>>) =
            (Some("uti-1".into()), Some("uti-2".into()));
        let correlation_id = Some(Arc::from("c-1"));
        let ids = |uti| Ids {
            correlation_id: &correlation_id,
            uti,
        };
        let lines = lines(|| {
            let trail = Trail::new(caller(1000));
            let identity = identity();
            for _ in 0..3 {
                trail.granted(&identity, &vault(), ids(&one));
            }
            // As after a reload that changed something else.
            trail.granted(&Arc::new((*identity).clone()), &vault(), ids(&one));
            // Renewed.
            trail.granted(&identity, &vault(), ids(&other));
            trail.flush();
            trail.flush();
            trail.granted(&identity, &vault(), ids(&other));
        });
        let told: Vec<_> = lines
            .iter()
            .map(|line| (&line["outcome"], &line["uti"], &line["repeats"]))
            .collect();
        let value = |text: &str| Value::from(text);
        assert_eq!(
            told,
            [
                (&value("granted"), &value("uti-1"), &Value::Null),
                (&value("repeated"), &value("uti-1"), &Value::from(3)),
                (&value("repeated"), &value("uti-2"), &Value::from(1)),
                (&value("repeated"), &value("uti-2"), &Value::from(1)),
            ]
        );
        for (field, expected) in [
            ("target", Value::from("audit")),
            ("pid", Value::from(77)),
            ("uid", Value::from(1000)),
            ("gid", Value::from(1001)),
            ("identity", Value::from("payments")),
            ("spiffe_id", Value::from("spiffe://example.org/payments")),
            ("tenant", Value::from("tenant-1")),
            ("client_id", Value::from("client-1")),
            ("resource", Value::from("https://vault.azure.net")),
            ("correlation_id", Value::from("c-1")),
        ] {
            assert_eq!(lines[0][field], expected, "{field}");
        }
    }

    #[test]
    fn a_connection_that_asks_for_everything_is_remembered_in_part_and_written_in_full() {
        let lines = lines(|| {
            let trail = Trail::new(caller(1000));
            let none = Ids {
                correlation_id: &None,
                uti: &None,
            };
            let identity = identity();
            for number in 0..2 * GRANTS_LIMIT {
                let scope = Scope::from_resource(&format!("api://{number}")).unwrap();
                trail.granted(&identity, &scope, none);
            }
            assert!(trail.grants.lock().unwrap().len() <= GRANTS_LIMIT);
        });
        assert_eq!(lines.len(), 2 * GRANTS_LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_limited_by_uid_and_the_rest_is_told() {
        let clock = Clock::manual();
        let refusals = Refusals::new(clock);
        let refusal = Refusal {
            outcome: "denied",
            reason: "identity-not-allowed",
            asked: Some("orders\nuid=0"),
            resource: Some("https://vault.azure.net"),
            ..Refusal::default()
        };
        let first = lines(|| {
            for _ in 0..30 {
                refusals.note(&caller(1000), refusal);
            }
            refusals.note(&caller(2000), refusal);
        });
        assert_eq!(first.len(), 21);
        assert_eq!(first[0]["identity"], r"orders\nuid=0");
        assert_eq!(first[0]["reason"], "identity-not-allowed");
        assert_eq!(first[0]["spiffe_id"], Value::Null);
        assert_eq!(first[20]["uid"], 2000);

        tokio::time::advance(Duration::from_secs(1)).await;
        let next = lines(|| {
            refusals.note(&caller(1000), refusal);
            refusals.note(&caller(1000), refusal);
        });
        assert_eq!(next.len(), 1);
        assert_eq!(next[0]["left_out"], 10);

        let swept = lines(|| refusals.sweep());
        assert_eq!(swept.len(), 1);
        assert_eq!(
            (&swept[0]["uid"], &swept[0]["left_out"]),
            (&1000.into(), &1.into())
        );
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(lines(|| refusals.sweep()).is_empty());
        assert!(refusals.buckets.lock().unwrap().is_empty());
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }
}
