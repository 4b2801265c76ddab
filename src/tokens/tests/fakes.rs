//! Scripted stand-ins for SPIRE and Entra behind the seams.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    assertion::{
        Assertion, AssertionError, AssertionErrorKind, AssertionSource, AssertionSpec, Fetch,
    },
    config::{Limits, Trust},
    exchange::{
        Class, Exchange, ExchangeError, ExchangeRequest, IssuedToken, Target, TokenExchange,
    },
    id::{Scope, SpiffeId},
    metrics::Metrics,
    report::Report,
    secret::Secret,
    time::Clock,
    tokens::{Account, Served, Tokens},
};

pub(super) const SEC: Duration = Duration::from_secs(1);
pub(super) const MIN: Duration = Duration::from_secs(60);

/// A cache between scripted neighbours.
pub(super) struct World {
    pub(super) clock: Clock,
    pub(super) spire: Arc<Spire>,
    pub(super) entra: Arc<Entra>,
    pub(super) tokens: Tokens,
    pub(super) account: Arc<Account>,
}

/// The Workload API: answers by script.
pub(super) struct Spire {
    clock: Clock,
    pub(super) script: Mutex<SpireScript>,
}

#[derive(Clone)]
pub(super) struct SpireScript {
    pub(super) calls: u32,
    pub(super) fails: Option<AssertionErrorKind>,
    pub(super) ttl: Duration,
    pub(super) latency: Duration,
    pub(super) key_id: &'static str,
    pub(super) issuer: &'static str,
}

/// Entra: answers by script.
pub(super) struct Entra {
    clock: Clock,
    pub(super) script: Mutex<EntraScript>,
}

pub(super) struct EntraScript {
    /// Subject, client and scope of each request, and when.
    pub(super) calls: Vec<(String, String, Duration)>,
    pub(super) claims: Vec<Option<String>>,
    pub(super) fails: Option<ExchangeError>,
    /// How many times `fails` is still to be answered; for ever, when `None`.
    pub(super) times: Option<u32>,
    pub(super) lifetime: Duration,
    pub(super) refresh_in: Option<Duration>,
    pub(super) latency: Duration,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(super) fn with_limits(limits: Limits) -> Self {
        let clock = Clock::manual();
        let spire = Arc::new(Spire {
            clock: clock.clone(),
            script: Mutex::new(SpireScript {
                calls: 0,
                fails: None,
                ttl: MIN * 5,
                latency: Duration::from_millis(5),
                key_id: "key-1",
                issuer: "https://oidc.example.org",
            }),
        });
        let entra = Arc::new(Entra {
            clock: clock.clone(),
            script: Mutex::new(EntraScript {
                calls: Vec::new(),
                claims: Vec::new(),
                fails: None,
                times: None,
                lifetime: MIN * 60,
                refresh_in: None,
                latency: Duration::from_millis(50),
            }),
        });
        let source: Arc<dyn AssertionSource> = Arc::<Spire>::clone(&spire);
        let exchange: Arc<dyn TokenExchange> = Arc::<Entra>::clone(&entra);
        let tokens = Tokens::with_jitter(
            clock.clone(),
            source,
            exchange,
            limits,
            Metrics::default(),
            || 0.5,
        );
        let account = tokens.account(&trust("payments"));
        Self {
            clock,
            spire,
            entra,
            tokens,
            account,
        }
    }

    pub(super) async fn get(&self) -> Result<Served, Report> {
        self.account.token(&vault(), None).await
    }

    pub(super) fn exchanges(&self) -> usize {
        self.entra.script.lock().unwrap().calls.len()
    }

    pub(super) fn fetches(&self) -> u32 {
        self.spire.script.lock().unwrap().calls
    }

    pub(super) fn entra_fails(&self, error: Option<ExchangeError>) {
        let mut script = self.entra.script.lock().unwrap();
        script.fails = error;
        script.times = None;
    }

    pub(super) fn spire_fails(&self, kind: Option<AssertionErrorKind>) {
        self.spire.script.lock().unwrap().fails = kind;
    }

    pub(super) fn reload(&self, trusts: &[Trust]) {
        self.tokens
            .reload(&trusts.iter().collect::<HashSet<_>>(), Limits::default());
    }

    /// Asks once a minute for `time`; every answer must be a token. Returns how many were different.
    pub(super) async fn keep_asking(&self, time: Duration) -> usize {
        let mut seen = HashSet::new();
        for _ in 0..time.as_secs() / 60 {
            tokio::time::sleep(MIN).await;
            let served = self.get().await.expect("a token");
            assert!(served.expires_in > 0);
            seen.insert(served.token.access_token.expose().to_owned());
        }
        seen.len()
    }
}

impl AssertionSource for Spire {
    fn fetch<'a>(&'a self, spec: &'a AssertionSpec) -> Fetch<'a> {
        Box::pin(async move {
            let script = {
                let mut script = self.script.lock().unwrap();
                script.calls += 1;
                script.clone()
            };
            tokio::time::sleep(script.latency).await;
            if let Some(kind) = script.fails {
                return Err(assertion_error(kind));
            }
            let now = self.clock.now();
            Ok(Assertion {
                token: Secret::new(format!("svid of {} no {}", spec.subject, script.calls)),
                issuer: script.issuer.into(),
                key_id: script.key_id.into(),
                algorithm: "RS256".into(),
                issued_at: Some(now.unix_seconds()),
                expires_at: now.unix_seconds() + i64::try_from(script.ttl.as_secs()).unwrap(),
                fetched: now,
            })
        })
    }
}

impl TokenExchange for Entra {
    fn exchange<'a>(&'a self, request: ExchangeRequest<'a>) -> Exchange<'a> {
        Box::pin(async move {
            let start = tokio::time::Instant::now();
            let (latency, outcome) = {
                let mut script = self.script.lock().unwrap();
                let at =
                    Duration::from_secs(u64::try_from(self.clock.now().boot_seconds()).unwrap());
                script.calls.push((
                    request.assertion.token.expose().to_owned(),
                    request.scope.to_string(),
                    at,
                ));
                script.claims.push(request.claims.map(str::to_owned));
                let number = script.calls.len();
                let fails = script.fails.clone().filter(|_| match &mut script.times {
                    Some(0) => false,
                    Some(times) => {
                        *times -= 1;
                        true
                    }
                    None => true,
                });
                let outcome = match fails {
                    Some(error) => Err(error),
                    None => Ok(IssuedToken {
                        access_token: Secret::new(format!(
                            "token {number} of {} for {}",
                            request.target.client_id, request.scope
                        )),
                        lifetime: script.lifetime,
                        refresh_in: script.refresh_in,
                        correlation_id: None,
                        uti: None,
                    }),
                };
                (script.latency, outcome)
            };
            tokio::time::sleep_until(start + latency).await;
            outcome
        })
    }
}

pub(super) fn vault() -> Scope {
    Scope::from_resource("https://vault.azure.net").unwrap()
}

pub(super) fn graph() -> Scope {
    Scope::from_resource("https://graph.microsoft.com").unwrap()
}

pub(super) fn trust(name: &str) -> Trust {
    Trust {
        target: Target {
            authority: "https://login.example".parse().unwrap(),
            tenant: "tenant".into(),
            client_id: format!("client-of-{name}").into(),
        },
        assertion: AssertionSpec {
            subject: SpiffeId::parse(&format!("spiffe://example.org/{name}")).unwrap(),
            audience: "api://AzureADTokenExchange".into(),
            issuer: None,
        },
    }
}

pub(super) fn assertion_error(kind: AssertionErrorKind) -> AssertionError {
    let report = match kind {
        AssertionErrorKind::Denied => Report::transient("svid-denied", "denied", "", ""),
        AssertionErrorKind::Unavailable => Report::transient("svid-unavailable", "away", "", ""),
        AssertionErrorKind::Refused => Report::permanent("svid-refused", "refused", "", ""),
        AssertionErrorKind::Unusable => Report::permanent("svid-algorithm", "ES256", "", ""),
    };
    AssertionError {
        kind,
        report: Box::new(report),
    }
}

pub(super) fn error(class: Class) -> ExchangeError {
    let code = match class {
        Class::Transient => "entra-unavailable",
        Class::Propagating { .. } => "AADSTS700213",
        Class::Misconfigured => "AADSTS500011",
        Class::Denied => "AADSTS7000112",
    };
    let transient = class == Class::Transient;
    let report = if transient {
        Report::transient(code, "", "", "")
    } else {
        Report::permanent(code, "", "", "")
    };
    ExchangeError {
        class,
        revokes: matches!(class, Class::Denied | Class::Propagating { .. }),
        throttled: false,
        stale_assertion: false,
        report: Box::new(report),
    }
}

pub(super) fn unmatched() -> ExchangeError {
    error(Class::Propagating {
        window: MIN * 10,
        every: SEC * 5,
    })
}

pub(super) fn throttled(seconds: u64) -> ExchangeError {
    let mut error = error(Class::Transient);
    error.throttled = true;
    error.report.retry_after = Some(Duration::from_secs(seconds));
    error
}
