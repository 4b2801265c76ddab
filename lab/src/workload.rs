//! A SPIFFE Workload API server on a Unix socket, as SPIRE 1.15.3's agent is one as far as
//! JWT-SVIDs go: the same checks, claims, cache and codes. Callers are known by SO_PEERCRED.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tonic::Code;
use tonic::service::Routes;

use crate::clock::Clock;
use crate::error::Result;
use crate::faults::Board;
use crate::issuer::Issuer;
use crate::serve::UnixServer;
use crate::sync::lock;

mod faults;
mod service;
mod svid;
pub mod wire;

pub use faults::{Fault, Faults};

use wire::spiffe_workload_api_server::SpiffeWorkloadApiServer;

/// A running Workload API. Clones are the same server; it stops when the last one is dropped.
#[derive(Clone)]
pub struct Workload {
    shared: Arc<Shared>,
    server: Arc<UnixServer>,
}

struct Shared {
    issuer: Issuer,
    clock: Clock,
    mint: svid::Mint,
    entries: Mutex<Entries>,
    faults: Board<Fault>,
    fetches: watch::Sender<u64>,
    record: Mutex<Vec<Fetch>>,
    counters: Mutex<Counters>,
}

#[derive(Default)]
struct Entries {
    next: u64,
    entries: Vec<Entry>,
}

#[derive(Default)]
struct Counters {
    bundle_streams: u64,
    validations: u64,
}

/// A registration entry.
#[derive(Clone, Debug)]
struct Entry {
    id: u64,
    spiffe_id: String,
    uid: Option<u32>,
    ttl: Duration,
    hint: String,
}

/// One call of `FetchJWTSVID`, as it was answered.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// The caller.
    pub uid: u32,
    /// The identity it asked for; all of its own when empty.
    pub spiffe_id: String,
    /// The audiences it asked for.
    pub audience: Vec<String>,
    /// What it was answered.
    pub code: Code,
}

impl Workload {
    /// Listens on `socket`, which anybody may connect to, and signs with the issuer's keys.
    ///
    /// # Errors
    /// When the socket cannot be bound.
    pub fn start(socket: &Path, issuer: Issuer) -> Result<Self> {
        crate::init();
        let clock = Clock::default();
        let shared = Arc::new(Shared {
            mint: svid::Mint::new(issuer.clone(), clock.clone()),
            issuer,
            clock,
            entries: Mutex::default(),
            faults: Board::default(),
            fetches: watch::Sender::new(0),
            record: Mutex::default(),
            counters: Mutex::default(),
        });
        let service = SpiffeWorkloadApiServer::new(service::Service(Arc::clone(&shared)));
        let server = UnixServer::bind(socket, Routes::new(service).into_axum_router())?;
        Ok(Self {
            shared,
            server: Arc::new(server),
        })
    }

    /// The socket's path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.server.path()
    }

    /// The socket as `SPIFFE_ENDPOINT_SOCKET` wants it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Describes a registration entry; [`NewEntry::add`] makes it known.
    pub fn entry(&self, spiffe_id: &str) -> NewEntry {
        NewEntry {
            shared: Arc::clone(&self.shared),
            entry: Entry {
                id: 0,
                spiffe_id: spiffe_id.to_owned(),
                uid: None,
                ttl: svid::DEFAULT_TTL,
                hint: String::new(),
            },
        }
    }

    /// Removes every entry of a SPIFFE ID.
    pub fn remove(&self, spiffe_id: &str) {
        lock(&self.shared.entries)
            .entries
            .retain(|entry| entry.spiffe_id != spiffe_id);
    }

    /// Arms faults that hit everybody. They concern `FetchJWTSVID`; [`stop`](Self::stop) and
    /// [`crash`](Self::crash) take the rest away too.
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults {
            board: self.shared.faults.clone(),
            scope: None,
        }
    }

    /// Arms faults that hit one SPIFFE ID.
    #[must_use]
    pub fn faults_for(&self, spiffe_id: &str) -> Faults {
        Faults {
            board: self.shared.faults.clone(),
            scope: Some(spiffe_id.to_owned()),
        }
    }

    /// The clock that `iat`, `exp` and the agent's cache go by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// Empties the agent's cache of SVIDs.
    pub fn forget(&self) {
        self.shared.mint.forget();
    }

    /// How many calls of `FetchJWTSVID` have arrived.
    #[must_use]
    pub fn fetches(&self) -> u64 {
        *self.shared.fetches.borrow()
    }

    /// Waits until so many calls of `FetchJWTSVID` have arrived.
    pub async fn wait_fetches(&self, count: u64) {
        let mut fetches = self.shared.fetches.subscribe();
        // The sender lives in `self`.
        let _ = fetches.wait_for(|seen| *seen >= count).await;
    }

    /// The calls of `FetchJWTSVID` that have been answered.
    #[must_use]
    pub fn record(&self) -> Vec<Fetch> {
        lock(&self.shared.record).clone()
    }

    /// How many streams of bundles have been opened.
    #[must_use]
    pub fn bundle_streams(&self) -> u64 {
        lock(&self.shared.counters).bundle_streams
    }

    /// How many SVIDs were to be validated.
    #[must_use]
    pub fn validations(&self) -> u64 {
        lock(&self.shared.counters).validations
    }

    /// Stops as an agent does that is told to: connections end, the socket file goes.
    pub async fn stop(&self) {
        self.server.stop(true).await;
    }

    /// Stops as an agent does that is killed: connections end, the socket file stays.
    pub async fn crash(&self) {
        self.server.stop(false).await;
    }

    /// Listens again on the same path, with an empty cache: the old socket file is removed and a
    /// new one made.
    ///
    /// # Errors
    /// When the socket cannot be bound.
    pub async fn restart(&self) -> Result<()> {
        self.shared.mint.forget();
        self.server.start().await
    }
}

impl std::fmt::Debug for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workload")
            .field("socket", &self.socket())
            .finish_non_exhaustive()
    }
}

/// A registration entry that is not known yet.
#[must_use = "an entry is known once it has been added"]
pub struct NewEntry {
    shared: Arc<Shared>,
    entry: Entry,
}

impl NewEntry {
    /// Only callers with this uid match; everybody does without one.
    pub fn uid(mut self, uid: u32) -> Self {
        self.entry.uid = Some(uid);
        self
    }

    /// How long its SVIDs live. Default: five minutes.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.entry.ttl = ttl;
        self
    }

    /// The entry's hint.
    pub fn hint(mut self, hint: &str) -> Self {
        hint.clone_into(&mut self.entry.hint);
        self
    }

    /// Makes the entry known at once. The handle may be dropped.
    #[allow(
        clippy::must_use_candidate,
        reason = "called for its effect as often as not"
    )]
    pub fn add(mut self) -> EntryHandle {
        let mut entries = lock(&self.shared.entries);
        self.entry.id = entries.next;
        entries.next += 1;
        entries.entries.push(self.entry.clone());
        drop(entries);
        EntryHandle {
            id: self.entry.id,
            shared: self.shared,
        }
    }
}

impl std::fmt::Debug for NewEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NewEntry").field(&self.entry).finish()
    }
}

/// A registration entry that is known.
#[derive(Clone)]
pub struct EntryHandle {
    shared: Arc<Shared>,
    id: u64,
}

impl EntryHandle {
    /// Deletes the entry.
    pub fn remove(&self) {
        lock(&self.shared.entries)
            .entries
            .retain(|entry| entry.id != self.id);
    }
}

impl std::fmt::Debug for EntryHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EntryHandle")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// The caller's entries, or the one it names.
    fn matching(&self, uid: u32, spiffe_id: &str) -> Vec<Entry> {
        let entries = lock(&self.entries);
        let matches = |entry: &&Entry| {
            entry.uid.is_none_or(|of| of == uid)
                && (spiffe_id.is_empty() || entry.spiffe_id == spiffe_id)
        };
        entries.entries.iter().filter(matches).cloned().collect()
    }
}

/// SPIRE's text for a caller without a registration entry.
pub(crate) const NO_IDENTITY: &str = "no identity issued";

/// What breaks the SPIFFE standard in an ID.
pub(crate) fn check_spiffe_id(id: &str) -> Result<(), &'static str> {
    let Some(rest) = id.strip_prefix("spiffe://") else {
        return Err("scheme is missing or invalid");
    };
    let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if domain.is_empty() {
        return Err("trust domain is missing");
    }
    let domain_char = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if domain.len() > 255 || !domain.bytes().all(domain_char) {
        return Err(
            "trust domain characters are limited to lowercase letters, numbers, dots, \
                    dashes, and underscores",
        );
    }
    if id.len() > 2048 {
        return Err("SPIFFE ID is longer than 2048 bytes");
    }
    for segment in path.split('/').skip(1) {
        match segment {
            "" => return Err("path cannot contain empty segments"),
            "." | ".." => return Err("path cannot contain dot segments"),
            _ => {}
        }
        let path_char =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if !segment.bytes().all(path_char) {
            return Err(
                "path segment characters are limited to letters, numbers, dots, dashes, \
                        and underscores",
            );
        }
    }
    Ok(())
}

/// The ID of the trust domain that an ID is in.
fn trust_domain(spiffe_id: &str) -> &str {
    let start = "spiffe://".len();
    let end = spiffe_id.get(start..).and_then(|rest| rest.find('/'));
    end.map_or(spiffe_id, |end| &spiffe_id[..start + end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_ids_follow_the_standard() {
        for good in [
            "spiffe://example.org",
            "spiffe://example.org/a/b-c_d.e",
            "spiffe://a_b/X",
        ] {
            assert_eq!(check_spiffe_id(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "example.org/a",
            "spiffe://",
            "spiffe:///a",
            "spiffe://Example.org/a",
            "spiffe://example.org:80/a",
            "spiffe://example.org/",
            "spiffe://example.org//a",
            "spiffe://example.org/a/",
            "spiffe://example.org/../a",
            "spiffe://example.org/a%20b",
            "spiffe://example.org/ä",
        ] {
            assert!(check_spiffe_id(bad).is_err(), "{bad}");
        }
        assert!(check_spiffe_id(&format!("spiffe://example.org/{}", "a".repeat(2048))).is_err());
    }

    #[test]
    fn a_trust_domain_has_its_own_id() {
        assert_eq!(
            trust_domain("spiffe://example.org/a/b"),
            "spiffe://example.org"
        );
        assert_eq!(trust_domain("spiffe://example.org"), "spiffe://example.org");
    }
}
