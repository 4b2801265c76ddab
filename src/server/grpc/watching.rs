//! A stream of tokens: each new one, as long as the caller may have it.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    super::{
        Live,
        connection::{Connection, Grant, Streaming},
        problem::Problem,
    },
    Asked, GetTokenResponse,
};
use crate::tokens::{CachedToken, TokenWatch};

/// What a stream of tokens goes by.
pub(super) struct Watching {
    connection: Arc<Connection>,
    live: watch::Receiver<Arc<Live>>,
    wanted: Option<String>,
    grant: Grant,
    tokens: TokenWatch,
    last: Option<Arc<CachedToken>>,
    _streaming: Streaming,
}

impl Watching {
    pub(super) fn start(connection: Arc<Connection>, asked: Asked) -> Result<Self, Problem> {
        let mut live = connection.server.live.clone();
        live.mark_unchanged();
        let grant =
            connection.decide(&connection.view(), asked.identity.as_deref(), &asked.scope)?;
        Ok(Self {
            _streaming: connection.streaming(),
            tokens: grant.account.watch(&asked.scope),
            wanted: asked.identity,
            grant,
            live,
            connection,
            last: None,
        })
    }

    /// The next token; why there will be none, at the end.
    pub(super) async fn next(&mut self) -> Result<GetTokenResponse, Problem> {
        loop {
            let next = tokio::select! {
                biased;
                Ok(()) = self.live.changed() => {
                    self.recheck()?;
                    continue;
                }
                next = self.tokens.next() => next,
            };
            // What came into force while the token was on its way counts.
            if self.live.has_changed().unwrap_or(false) {
                self.live.mark_unchanged();
                self.recheck()?;
            }
            let served = next.map_err(|report| {
                self.connection.failed(&self.grant, &report);
                Problem::from(&report)
            })?;
            if self
                .last
                .as_ref()
                .is_some_and(|last| Arc::ptr_eq(last, &served.token))
            {
                continue;
            }
            self.last = Some(Arc::clone(&served.token));
            self.connection.hand_out(&self.grant, &served);
            return Ok(GetTokenResponse::of(&self.grant, &served));
        }
    }

    /// Whether all that is still allowed, now that something new is in force.
    fn recheck(&mut self) -> Result<(), Problem> {
        let connection = &self.connection;
        let scope = self.grant.scope.clone();
        let grant = connection.decide(&connection.view(), self.wanted.as_deref(), &scope)?;
        if !Arc::ptr_eq(&grant.account, &self.grant.account) {
            self.tokens = grant.account.watch(&scope);
        }
        self.grant = grant;
        Ok(())
    }
}
