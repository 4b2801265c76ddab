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
use crate::{
    report::Report,
    tokens::{CachedToken, Served, TokenWatch},
};

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
            if let Some(response) = self.settle(next)? {
                return Ok(response);
            }
        }
    }

    /// What becomes of a token; nothing, when it is one that was sent or not this caller's.
    fn settle(
        &mut self,
        next: Result<Served, Report>,
    ) -> Result<Option<GetTokenResponse>, Problem> {
        // What came into force while the token was on its way counts.
        if self.live.has_changed().unwrap_or(false) {
            self.live.mark_unchanged();
            if self.recheck()? {
                // It is the token of what the identity was.
                return Ok(None);
            }
        }
        let served = next.map_err(|report| {
            self.connection.failed(&self.grant, &report);
            Problem::from(&report)
        })?;
        let last = self.last.as_ref();
        if last.is_some_and(|last| Arc::ptr_eq(last, &served.token)) {
            return Ok(None);
        }
        self.last = Some(Arc::clone(&served.token));
        self.connection.hand_out(&self.grant, &served);
        Ok(Some(GetTokenResponse::of(&self.grant, &served)))
    }

    /// Whether all that is still allowed, now that something new is in force; answers whether it is
    /// another account's token that is allowed now.
    fn recheck(&mut self) -> Result<bool, Problem> {
        let connection = &self.connection;
        let scope = self.grant.scope.clone();
        let grant = connection.decide(&connection.view(), self.wanted.as_deref(), &scope)?;
        let moved = !Arc::ptr_eq(&grant.account, &self.grant.account);
        if moved {
            self.tokens = grant.account.watch(&scope);
        }
        self.grant = grant;
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        assertion::{Assertion, AssertionSource, AssertionSpec, Fetch},
        caller::Caller,
        config::{
            Limits, Plan,
            testing::{HEAD, IDENTITY, LISTEN, given},
        },
        exchange::{Exchange, ExchangeRequest, IssuedToken, TokenExchange},
        metrics::Metrics,
        policy::Policy,
        secret::Secret,
        server::{Parts, Server, limits::Slot},
        time::Clock,
        tokens::Tokens,
    };
    use std::time::Duration;
    use tokio_util::sync::CancellationToken;

    /// SPIRE and Entra: the token names its client.
    struct Neighbours(Clock);

    impl AssertionSource for Neighbours {
        fn fetch<'a>(&'a self, _spec: &'a AssertionSpec) -> Fetch<'a> {
            let now = self.0.now();
            let assertion = Assertion {
                token: Secret::new("svid".into()),
                issuer: "https://oidc.example.org".into(),
                key_id: "key-1".into(),
                algorithm: "RS256".into(),
                issued_at: Some(now.unix_seconds()),
                expires_at: now.unix_seconds() + 300,
                fetched: now,
            };
            Box::pin(async { Ok(assertion) })
        }
    }

    impl TokenExchange for Neighbours {
        fn exchange<'a>(&'a self, request: ExchangeRequest<'a>) -> Exchange<'a> {
            let client = request.target.client_id.to_string();
            Box::pin(async {
                Ok(IssuedToken {
                    access_token: Secret::new(client),
                    lifetime: Duration::from_secs(3600),
                    refresh_in: None,
                    correlation_id: None,
                    uti: None,
                })
            })
        }
    }

    fn in_force(plan: Plan, tokens: &Tokens, generation: u64) -> Arc<Live> {
        let identities = plan.identities.iter();
        Arc::new(Live {
            policy: Policy::new(&plan),
            accounts: identities.map(|i| tokens.account(&i.trust)).collect(),
            plan: Arc::new(plan),
            generation,
        })
    }

    fn plan(client_id: &str) -> Plan {
        let identity = IDENTITY
            .replace("0f8fad5b-d9cb-469f-a165-70867728950e", client_id)
            .replace(r#"[{ user = "payments" }]"#, r#""any""#);
        given(&format!("{HEAD}{LISTEN}{identity}")).load().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_of_what_the_identity_was_is_not_sent_under_its_name() {
        let old = "0f8fad5b-d9cb-469f-a165-70867728950e";
        let new = "2f8fad5b-d9cb-469f-a165-70867728950e";
        let clock = Clock::manual();
        let tokens = Tokens::new(
            clock.clone(),
            Arc::new(Neighbours(clock.clone())),
            Arc::new(Neighbours(clock.clone())),
            Limits::default(),
            Metrics::default(),
        );
        let (live, receiver) = watch::channel(in_force(plan(old), &tokens, 1));
        let (metrics, registry) = Metrics::registered();
        let server = Server::new(Parts {
            live: receiver,
            metrics,
            registry,
            clock,
            workload_api: Arc::new(|| Box::pin(async { Ok(()) })),
        });
        let connection = Connection::new(
            server.0,
            plan(old).listeners[0].socket.as_path().into(),
            Caller {
                pid: None,
                uid: 1000,
                gid: 1000,
                groups: [].into(),
                pidfd: None,
            },
            Arc::new(Slot::new(false)),
            CancellationToken::new(),
        );
        let asked = Asked::parse(super::super::GetTokenRequest {
            resource: "https://vault.azure.net".into(),
            ..Default::default()
        });
        let mut watching = Watching::start(Arc::new(connection), asked.unwrap()).unwrap();

        // The token is there, and then the configuration changes.
        let next = watching.tokens.next().await;
        assert_eq!(next.as_ref().unwrap().token.access_token.expose(), old);
        live.send_replace(in_force(plan(new), &tokens, 2));
        assert_eq!(watching.settle(next).unwrap(), None);
        let next = watching.next().await.unwrap();
        assert_eq!((&*next.access_token, &*next.client_id), (new, new));
    }
}
