//! Following one token through its renewals.

use std::{fmt, sync::Arc};

use super::{CachedToken, Served, account::Account, entry::Entry, worker};
use crate::{id::Scope, report::Report};

/// Follows one token through its renewals.
pub struct TokenWatch {
    account: Arc<Account>,
    scope: Scope,
    /// The key that is kept alive by being followed, once there was a token.
    following: Option<Following>,
}

struct Following {
    entry: Arc<Entry>,
    last: Arc<CachedToken>,
}

impl TokenWatch {
    pub(super) fn new(account: Arc<Account>, scope: Scope) -> Self {
        Self {
            account,
            scope,
            following: None,
        }
    }

    /// The next token; an error when the token is gone and none takes its place, which ends what
    /// the watch is for.
    pub async fn next(&mut self) -> Result<Served, Report> {
        let last = match &self.following {
            Some(following) => match following.successor(&self.account).await {
                Ok(served) => return Ok(self.follow(served)),
                // The key was dropped or its token withdrawn: the answer is that of a new request.
                Err(()) => Some(Arc::clone(&following.last)),
            },
            None => None,
        };
        self.following = None;
        let served = self.account.token(&self.scope, None).await?;
        if last.is_some_and(|last| Arc::ptr_eq(&last, &served.token)) {
            return Err(worker::closed());
        }
        Ok(self.follow(served))
    }

    fn follow(&mut self, served: Served) -> Served {
        if self.following.is_none() {
            let entry = self.account.keys().plain(&self.scope);
            self.following = entry.map(|entry| {
                entry.begin_following();
                Following {
                    entry,
                    last: Arc::clone(&served.token),
                }
            });
        } else if let Some(following) = &mut self.following {
            following.last = Arc::clone(&served.token);
        }
        served
    }
}

impl Following {
    /// The token after the last one; an error when the key is gone or has no token.
    async fn successor(&self, account: &Account) -> Result<Served, ()> {
        let mut changes = self.entry.state.subscribe();
        loop {
            changes.mark_unchanged();
            {
                let now = account.shared.clock.now();
                let state = self.entry.state.borrow();
                match &state.token {
                    _ if state.closed => return Err(()),
                    Some(token) if !Arc::ptr_eq(token, &self.last) => {
                        return Served::new(token, now).ok_or(());
                    }
                    None if !state.trying => return Err(()),
                    _ => {}
                }
            }
            // The sender lives in the entry that we hold.
            let _changed = changes.changed().await;
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.entry.end_following();
    }
}

impl fmt::Debug for TokenWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenWatch")
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}
