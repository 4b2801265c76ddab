//! The keys of an account, by scope and claims challenge.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use super::{FIRST_TOKEN_WAIT, Served, entry::Entry, worker};
use crate::{id::Scope, report::Report, time::Moment};

/// All keys of an account.
#[derive(Default)]
pub(super) struct Keys(RwLock<Maps>);

#[derive(Default)]
struct Maps {
    plain: HashMap<Scope, Arc<Entry>>,
    /// By claims challenge as well.
    challenged: HashMap<(Scope, Box<str>), Arc<Entry>>,
    /// The account takes no keys any more.
    closed: bool,
}

/// A key that was there, or was made.
pub(super) enum Found {
    Old(Arc<Entry>),
    /// It wants a task.
    New(Arc<Entry>),
}

impl Keys {
    /// A token that is good enough to hand out, if there is one. The fast path.
    pub(super) fn ready(&self, scope: &Scope, now: Moment) -> Option<Served> {
        let maps = self.read();
        let entry = maps.plain.get(scope)?;
        entry.touch(now);
        entry.ready(now)
    }

    /// The key of a scope; made if there is none and there is room.
    pub(super) fn find_or_insert(
        &self,
        scope: &Scope,
        claims: Option<&str>,
        limit: usize,
        now: Moment,
    ) -> Result<Found, Report> {
        let mut maps = self.write();
        let found = match claims {
            None => maps.plain.get(scope),
            Some(claims) => maps.challenged.get(&(scope.clone(), claims.into())),
        };
        if let Some(entry) = found {
            return Ok(Found::Old(Arc::clone(entry)));
        }
        if maps.closed {
            return Err(worker::closed());
        }
        if maps.plain.len() + maps.challenged.len() >= limit && !maps.make_room(now) {
            return Err(too_many_resources(limit));
        }
        let entry = Arc::new(Entry::new(scope.clone(), claims, now));
        let made = Arc::clone(&entry);
        match claims {
            None => maps.plain.insert(scope.clone(), made),
            Some(claims) => maps.challenged.insert((scope.clone(), claims.into()), made),
        };
        Ok(Found::New(entry))
    }

    /// Takes a key out, unless somebody wants it after all.
    pub(super) fn release(&self, entry: &Arc<Entry>, still_wanted: impl FnOnce() -> bool) -> bool {
        let mut maps = self.write();
        if still_wanted() {
            return false;
        }
        maps.remove(entry);
        true
    }

    /// Takes all keys out, and no new ones in.
    pub(super) fn close(&self) {
        let mut maps = self.write();
        maps.closed = true;
        for entry in maps.plain.values().chain(maps.challenged.values()) {
            entry.close();
        }
        maps.plain.clear();
        maps.challenged.clear();
    }

    /// Does something if there are no keys, and before there can be one.
    pub(super) fn if_empty(&self, then: impl FnOnce()) -> bool {
        let maps = self.write();
        let empty = maps.plain.is_empty() && maps.challenged.is_empty();
        if empty {
            then();
        }
        empty
    }

    /// Replaces the token of the plain key: a challenge was answered, so its resource has refused
    /// what it holds.
    pub(super) fn supersede(&self, scope: &Scope) {
        if let Some(entry) = self.plain(scope) {
            entry.demand();
            entry.state.send_modify(|state| state.token = None);
            entry.want.notify_one();
        }
    }

    /// All keys.
    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        let maps = self.read();
        maps.plain
            .values()
            .chain(maps.challenged.values())
            .map(Arc::clone)
            .collect()
    }

    /// The key without a claims challenge of a scope.
    pub(super) fn plain(&self, scope: &Scope) -> Option<Arc<Entry>> {
        self.read().plain.get(scope).map(Arc::clone)
    }

    /// The keys without a claims challenge: those that are kept fresh and shown.
    pub(super) fn plain_entries(&self) -> Vec<Arc<Entry>> {
        self.read().plain.values().map(Arc::clone).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Maps {
    /// Takes out the key that is missed least: of those that hold nothing to be served again, the
    /// one that was asked for longest ago.
    fn make_room(&mut self, now: Moment) -> bool {
        let dispensable =
            |entry: &&Arc<Entry>| entry.claims.is_some() || !entry.state.borrow().holds_token(now);
        let keys = self.plain.values().chain(self.challenged.values());
        let oldest = keys
            .filter(dispensable)
            .filter_map(|entry| Some((entry.idle_since()?, entry)))
            .min_by_key(|(since, _)| *since)
            .map(|(_, entry)| Arc::clone(entry));
        oldest.is_some_and(|entry| self.remove(&entry))
    }

    /// Takes out this very key; another of the same name stays.
    fn remove(&mut self, entry: &Arc<Entry>) -> bool {
        let is_it = |found: Option<&Arc<Entry>>| found.is_some_and(|it| Arc::ptr_eq(it, entry));
        let removed = match &entry.claims {
            None => {
                is_it(self.plain.get(&entry.scope)) && self.plain.remove(&entry.scope).is_some()
            }
            Some(claims) => {
                let key = (entry.scope.clone(), claims.clone());
                is_it(self.challenged.get(&key)) && self.challenged.remove(&key).is_some()
            }
        };
        entry.close();
        removed
    }
}

fn too_many_resources(limit: usize) -> Report {
    let mut report = Report::transient(
        "limit-resources",
        "too many resources",
        format!("this identity holds tokens for {limit} resources already"),
        "ask for fewer, or raise limits.resources_per_identity; unused ones are dropped after a while",
    );
    report.retry_after = Some(FIRST_TOKEN_WAIT * 6);
    report
}
