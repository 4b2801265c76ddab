//! The audit trail: who got a token for what, and who did not.
//!
//! Lines go to the tracing target `audit`. What is granted is told apart by connection: the first
//! grant of an identity and resource is a line, repeats are counted, and the count is a line once a
//! minute and when the connection ends. Refusals and failures are a line each.
//!
//! All that up to a rate for each uid (see [`Ledger`]): who connects anew for every request must not
//! be able to fill the disk, nor make journald drop everybody's lines. Beyond the rate nothing is
//! lost but detail: refusals are counted, and grants are counted by identity, resource and token;
//! the numbers are written within a minute, the grants' with everything but the pid. So every grant
//! is in a line of its own or in a count that names uid, identity and resource, and a crash loses at
//! most a minute's counts.
//!
//! `uti` and `correlation_id` lead to the line of the token in Entra's sign-in log. A count is for
//! one token: when a key's token is renewed, what was counted is written first.
//!
//! A refusal is an answer to who may have what: 403, turned-away connections, and an identity that
//! has to be named (400, but it depends on the caller's rules). A request that no caller could have
//! got anything by (400 for its form, 404, 405, 413, 414) is none: it says nothing about access, and
//! its text is the sender's own. Those that ask for a token are in the counter of requests.

use std::sync::{Arc, Mutex, PoisonError};

pub(super) use super::ledger::Ledger;
use super::query::shown;
use crate::{caller::Caller, config::Identity, id::Scope};

/// What is granted on one connection.
#[derive(Debug)]
pub(super) struct Trail {
    caller: Caller,
    ledger: Arc<Ledger>,
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
#[derive(Clone, Debug)]
pub(super) struct Grant {
    identity: Arc<Identity>,
    scope: Scope,
    correlation_id: Option<Arc<str>>,
    uti: Option<Arc<str>>,
    repeats: u64,
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

impl Trail {
    pub(super) fn new(caller: Caller, ledger: Arc<Ledger>) -> Self {
        Self {
            caller,
            ledger,
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
                self.write_repeats(grant);
                grant.correlation_id.clone_from(token.correlation_id);
                grant.uti.clone_from(token.uti);
            }
            grant.repeats += 1;
            return;
        }
        if grants.len() >= GRANTS_LIMIT {
            // Forgotten ones are first grants again: more lines, and none is lost.
            for mut grant in grants.drain(..) {
                self.write_repeats(&mut grant);
            }
        }
        let grant = Grant {
            identity: identity.clone(),
            scope: scope.clone(),
            correlation_id: token.correlation_id.clone(),
            uti: token.uti.clone(),
            repeats: 0,
        };
        self.ledger.granted(&self.caller, &grant, None);
        grants.push(grant);
    }

    /// Writes what was counted.
    pub(super) fn flush(&self) {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        for grant in grants.iter_mut() {
            self.write_repeats(grant);
        }
    }

    fn write_repeats(&self, grant: &mut Grant) {
        let repeats = std::mem::take(&mut grant.repeats);
        if repeats > 0 {
            self.ledger.granted(&self.caller, grant, Some(repeats));
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

    /// Whether both are for the same identity, resource and token.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let ids = Ids {
            correlation_id: &other.correlation_id,
            uti: &other.uti,
        };
        let identity = Arc::ptr_eq(&self.identity, &other.identity);
        (identity || self.identity == other.identity)
            && self.scope == other.scope
            && self.is_of(ids)
    }

    /// A first grant, or so many repeats of it.
    pub(super) fn write(&self, caller: &Caller, repeats: Option<u64>) {
        let outcome = repeats.map_or("granted", |_| "repeated");
        let (uid, gid) = (Some(caller.uid), Some(caller.gid));
        self.line(caller.pid, uid, gid, outcome, repeats, None);
    }

    /// So many grants that have no line; of several uids, when none is given.
    pub(super) fn write_left_out(&self, uid: Option<u32>, left_out: u64) {
        self.line(None, uid, None, "granted", None, Some(left_out));
    }

    fn line(
        &self,
        pid: Option<i32>,
        uid: Option<u32>,
        gid: Option<u32>,
        outcome: &'static str,
        repeats: Option<u64>,
        left_out: Option<u64>,
    ) {
        let target = &self.identity.trust.target;
        tracing::info!(
            target: TARGET,
            pid,
            uid,
            gid,
            identity = self.identity.name.as_str(),
            spiffe_id = self.identity.trust.assertion.subject.as_str(),
            tenant = &*target.tenant,
            client_id = &*target.client_id,
            resource = self.scope.resource(),
            outcome,
            repeats,
            left_out,
            correlation_id = self.correlation_id.as_deref(),
            uti = self.uti.as_deref(),
        );
    }
}

impl Refusal<'_> {
    pub(super) fn write(&self, caller: &Caller, left_out: u64) {
        let target = self.identity.map(|i| &i.trust.target);
        let identity = self.identity.map(|i| i.name.as_str());
        let asked = self.asked.map(shown);
        let resource = self.resource.map(shown);
        tracing::info!(
            target: TARGET,
            pid = caller.pid,
            uid = caller.uid,
            gid = caller.gid,
            identity = identity.or(asked.as_deref()),
            spiffe_id = self.identity.map(|i| i.trust.assertion.subject.as_str()),
            tenant = target.map(|t| &*t.tenant),
            client_id = target.map(|t| &*t.client_id),
            resource = resource.as_deref(),
            outcome = self.outcome,
            reason = self.reason,
            correlation_id = self.correlation_id,
            left_out = (left_out > 0).then_some(left_out),
        );
    }
}

/// A number of lines that were left out, with nothing else to tell.
pub(super) fn write_left_out(uid: Option<u32>, left_out: u64) {
    tracing::info!(target: TARGET, uid, outcome = "left-out", left_out);
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
/// How many identities and resources are told apart on one connection.
const GRANTS_LIMIT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Clock;
    use crate::{
        assertion::AssertionSpec, config::Resources, config::Trust, exchange::Target, id::SpiffeId,
    };
    use serde_json::Value;
    use std::{io, time::Duration};
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

    fn ledger() -> Arc<Ledger> {
        Arc::new(Ledger::new(Clock::manual()))
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
            let trail = Trail::new(caller(1000), ledger());
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

    const NONE: Ids<'static> = Ids {
        correlation_id: &None,
        uti: &None,
    };

    /// The numbers of all lines together: a line of its own counts for one.
    fn counted(lines: &[Value]) -> u64 {
        let count = |line: &Value| {
            let number = line["repeats"]
                .as_u64()
                .or_else(|| line["left_out"].as_u64());
            number.unwrap_or(1)
        };
        lines.iter().map(count).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_asks_for_everything_is_remembered_in_part_and_counted_in_full() {
        let lines = lines(|| {
            let ledger = ledger();
            let trail = Trail::new(caller(1000), Arc::clone(&ledger));
            let identity = identity();
            for number in 0..2 * GRANTS_LIMIT {
                let scope = Scope::from_resource(&format!("api://{number}")).unwrap();
                trail.granted(&identity, &scope, NONE);
            }
            assert!(trail.grants.lock().unwrap().len() <= GRANTS_LIMIT);
            ledger.sweep();
        });
        assert_eq!(counted(&lines), 2 * GRANTS_LIMIT as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn who_connects_for_every_request_fills_no_log_and_every_grant_is_counted() {
        let ledger = ledger();
        let identity = identity();
        let connect = |uid: u32| {
            let trail = Trail::new(caller(uid), Arc::clone(&ledger));
            trail.granted(&identity, &vault(), NONE);
            trail.granted(&identity, &vault(), NONE);
        };
        let first = lines(|| (0..10_000).for_each(|_| connect(1000)));
        assert_eq!(first.len(), 10_000);
        // Another uid's lines are its own.
        let other = lines(|| connect(2000));
        assert_eq!((other.len(), &other[0]["outcome"]), (2, &"granted".into()));

        let rest = lines(|| ledger.sweep());
        assert_eq!(rest.len(), 1);
        for (field, expected) in [
            ("uid", Value::from(1000)),
            ("identity", "payments".into()),
            ("resource", "https://vault.azure.net".into()),
            ("outcome", "granted".into()),
            ("client_id", "client-1".into()),
        ] {
            assert_eq!(rest[0][field], expected, "{field}");
        }
        assert_eq!(counted(&first) + counted(&rest), 20_000);
        assert!(lines(|| ledger.sweep()).is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        let later = lines(|| connect(1000));
        assert_eq!(later.len(), 2, "there is room again");
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_limited_by_uid_and_the_rest_is_told() {
        let ledger = ledger();
        let refusal = Refusal {
            outcome: "denied",
            reason: "identity-not-allowed",
            asked: Some("orders\nuid=0"),
            resource: Some("https://vault.azure.net"),
            ..Refusal::default()
        };
        let first = lines(|| {
            for _ in 0..30 {
                ledger.refused(&caller(1000), refusal);
            }
            ledger.refused(&caller(2000), refusal);
        });
        assert_eq!(first.len(), 21);
        assert_eq!(first[0]["identity"], r"orders\nuid=0");
        assert_eq!(first[0]["reason"], "identity-not-allowed");
        assert_eq!(first[0]["spiffe_id"], Value::Null);
        assert_eq!(first[20]["uid"], 2000);

        tokio::time::advance(Duration::from_secs(1)).await;
        let next = lines(|| {
            ledger.refused(&caller(1000), refusal);
            ledger.refused(&caller(1000), refusal);
        });
        assert_eq!(next.len(), 1);
        assert_eq!(next[0]["left_out"], 10);

        let swept = lines(|| ledger.sweep());
        assert_eq!(swept.len(), 1);
        assert_eq!(
            (&swept[0]["uid"], &swept[0]["left_out"]),
            (&1000.into(), &1.into())
        );
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(lines(|| ledger.sweep()).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_uids_there_are_the_table_is_bounded_and_all_is_counted() {
        let ledger = ledger();
        let identity = identity();
        let refusal = Refusal {
            outcome: "denied",
            reason: "no-identity",
            ..Refusal::default()
        };
        let uids = 0..5000;
        let refused = lines(|| {
            for uid in uids.clone() {
                ledger.refused(&caller(uid), refusal);
            }
            ledger.sweep();
        });
        assert!(refused.len() < 2000, "{}", refused.len());
        assert_eq!(counted(&refused), 5000);
        let granted = lines(|| {
            for uid in uids {
                Trail::new(caller(uid), Arc::clone(&ledger)).granted(&identity, &vault(), NONE);
            }
            ledger.sweep();
        });
        assert_eq!(counted(&granted), 5000);
        assert!(ledger.uids() <= 2 * 1024);
        tokio::time::advance(Duration::from_secs(200)).await;
        assert!(lines(|| ledger.sweep()).is_empty());
        assert_eq!(ledger.uids(), 0);
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
