//! Wires the stages into the daemon; the only module that imports everything.

use std::{
    collections::HashSet, os::unix::net::UnixListener, path::PathBuf, sync::Arc, time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    assertion::spiffe::SpiffeSource,
    config::{self, Plan},
    exchange::entra::EntraExchange,
    metrics::{Metrics, Outcome},
    policy::Policy,
    server::{Bound, Live, Parts, Probe, Server, activation, bind},
    time::Clock,
    tokens::Tokens,
};

mod patrol;
mod plans;

/// What `spiffe-entra run` was told.
#[derive(Debug)]
pub struct RunOptions {
    /// Where the configuration comes from.
    pub config: ConfigSource,
    /// Whether one mistake anywhere keeps the daemon from starting.
    pub strict: bool,
    /// Sockets that systemd handed over.
    pub inherited: Vec<UnixListener>,
}

/// Where the configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// A file, read again on reload.
    File(PathBuf),
    /// The environment.
    Environment,
}

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What the operator wrote is wrong: exit code 2.
    #[error("{0}")]
    Config(String),
    /// The same, place by place.
    #[error("{0}")]
    Mistakes(config::Mistakes),
    /// Every identity has a mistake, or there is none.
    #[error("{mistakes}\nno identity is left to serve in {}: add an [[identity]] or mend those above", path.display())]
    NoIdentity {
        /// What is wrong with each.
        mistakes: config::Mistakes,
        /// The configuration file.
        path: PathBuf,
    },
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Runs the daemon until it is told to stop.
pub async fn run(options: RunOptions) -> Result<(), RunError> {
    let mut signals = Signals::listen().map_err(failed("cannot listen to signals"))?;
    let daemon = tokio::select! {
        started = Daemon::start(options) => started?,
        // It may be waiting for the agent.
        Some(()) = signals.terminate.recv() => return Ok(()),
        Some(()) = signals.interrupt.recv() => return Ok(()),
    };
    daemon.run(signals).await
}

/// A daemon whose sockets are bound.
struct Daemon {
    source: ConfigSource,
    strict: bool,
    metrics: Metrics,
    tokens: Tokens,
    live: watch::Sender<Arc<Live>>,
    stop: CancellationToken,
    /// The servers and the background tasks.
    tasks: JoinSet<Result<(), RunError>>,
}

struct Signals {
    reload: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Daemon {
    async fn start(options: RunOptions) -> Result<Self, RunError> {
        let RunOptions {
            config,
            strict,
            inherited,
        } = options;
        let clock = Clock::system();
        let plan = Arc::new(plans::first(&config, strict, &clock).await?);
        let endpoint = plan.workload_api.endpoint.clone();
        let source =
            SpiffeSource::with_deadline(endpoint, clock.clone(), plan.workload_api.timeout);
        let source = Arc::new(source);
        let exchange = EntraExchange::new(&plan.entra, clock.clone())
            .map_err(|report| RunError::Failed(format!("{}; {}", report.detail, report.fix)))?;
        let (metrics, registry) = Metrics::registered();
        let tokens = Tokens::new(
            clock.clone(),
            Arc::<SpiffeSource>::clone(&source),
            Arc::new(exchange),
            plan.limits,
            metrics.clone(),
        );

        let bound = open_sockets(&plan, inherited)?;
        let metrics_listener = match plan.metrics {
            Some(address) => Some(
                Server::bind_metrics(address)
                    .await
                    .map_err(failed(&format!("cannot listen on {address} for [metrics]")))?,
            ),
            None => None,
        };

        let (live, seen) = watch::channel(Arc::new(in_force(&plan, &tokens, 1)));
        let server = Server::new(Parts {
            live: seen.clone(),
            metrics: metrics.clone(),
            registry,
            clock,
            workload_api: probe(source),
        });
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for bound in bound {
            let (server, stop) = (server.clone(), stop.clone());
            tasks.spawn(async move {
                let socket = bound.socket.clone();
                tracing::info!(socket = %socket.display(), "listening");
                let served = server.serve(bound, stop).await;
                served.map_err(failed(&format!("cannot serve {}", socket.display())))
            });
        }
        if let Some(listener) = metrics_listener {
            let stop = stop.clone();
            tasks.spawn(async move {
                server.serve_metrics(listener, stop).await;
                Ok(())
            });
        }
        if let Some(period) = activation::watchdog_period() {
            let stop = stop.clone();
            tasks.spawn(async move {
                while !cancelled_within(&stop, period).await {
                    activation::alive();
                }
                Ok(())
            });
        }
        tasks.spawn(patrol::run(seen, stop.clone()));
        tell(&plan);
        activation::ready(&summary(&plan));
        Ok(Self {
            source: config,
            strict,
            metrics,
            tokens,
            live,
            stop,
            tasks,
        })
    }

    async fn run(mut self, mut signals: Signals) -> Result<(), RunError> {
        let outcome = loop {
            tokio::select! {
                Some(()) = signals.reload.recv() => self.reload().await,
                Some(()) = signals.terminate.recv() => break Ok(()),
                Some(()) = signals.interrupt.recv() => break Ok(()),
                // None of them ends by itself.
                Some(ended) = self.tasks.join_next() => break match ended {
                    Ok(Ok(())) => Err(RunError::Failed("a part of the daemon ended".into())),
                    Ok(Err(error)) => Err(error),
                    Err(panic) => Err(RunError::Failed(format!("a part of the daemon failed: {panic}"))),
                },
            }
        };
        activation::stopping();
        tracing::info!("stopping: requests in flight are finished first");
        self.stop.cancel();
        let drained = async {
            while self.tasks.join_next().await.is_some() {}
            self.tokens.stop().await;
        };
        tokio::select! {
            () = drained => tracing::info!("stopped"),
            // Told twice: somebody is in a hurry.
            Some(()) = signals.terminate.recv() => tracing::warn!("stopped at once"),
            Some(()) = signals.interrupt.recv() => tracing::warn!("stopped at once"),
        }
        outcome
    }

    /// Puts a new configuration in force, or says why the old one stays.
    async fn reload(&self) {
        activation::reloading();
        let running = Arc::clone(&self.live.borrow());
        let outcome = match self.reloaded(&running).await {
            Ok(plan) => {
                for change in running.plan.diff_needs_restart(&plan) {
                    tracing::warn!(change, "takes effect at the next restart only");
                }
                let plan = Arc::new(plan.for_process_of(&running.plan));
                let live = in_force(&plan, &self.tokens, running.generation + 1);
                // First what new requests see, then the end of what nothing rests on any more.
                self.live.send_replace(Arc::new(live));
                let trusts: HashSet<_> = plan.identities.iter().map(|i| &i.trust).collect();
                self.tokens.reload(&trusts, plan.limits);
                tell(&plan);
                tracing::info!(generation = running.generation + 1, "reload: in force");
                "ok"
            }
            Err(error) => {
                match &error {
                    // One event a mistake, as a quarantined identity's are told.
                    RunError::Mistakes(mistakes) | RunError::NoIdentity { mistakes, .. } => {
                        for mistake in mistakes.iter() {
                            tracing::error!("reload refused: {mistake}");
                        }
                    }
                    RunError::Config(text) | RunError::Failed(text) => {
                        tracing::error!("reload refused: {text}");
                    }
                }
                tracing::error!("reload refused: the configuration before it stays in force");
                "refused"
            }
        };
        self.metrics
            .reloads
            .get_or_create(&Outcome::of(outcome))
            .inc();
        activation::ready(&summary(&self.live.borrow().plan));
    }

    async fn reloaded(&self, running: &Live) -> Result<Plan, RunError> {
        match &self.source {
            ConfigSource::File(path) => {
                let (path, strict) = (path.clone(), self.strict);
                // Thousands of identities take a while to read; callers do not wait for it.
                tokio::task::spawn_blocking(move || plans::from_file(&path, strict))
                    .await
                    .map_err(|panic| RunError::Failed(panic.to_string()))?
            }
            // A process' environment does not change: what is reloaded is only what Entra refused.
            ConfigSource::Environment => Ok((*running.plan).clone()),
        }
    }
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// Opens every socket of a plan: those that systemd handed over, and the rest by ourselves.
fn open_sockets(plan: &Plan, inherited: Vec<UnixListener>) -> Result<Vec<Bound>, RunError> {
    let adopted = activation::adopt(inherited, &plan.listeners)
        .map_err(|error| RunError::Config(error.to_string()))?;
    let sockets = adopted.into_iter().zip(&plan.listeners);
    sockets
        .map(|(adopted, listener)| match adopted {
            Some(bound) => Ok(bound),
            None => bind::bind(listener).map_err(|error| RunError::Failed(error.to_string())),
        })
        .collect()
}

fn in_force(plan: &Arc<Plan>, tokens: &Tokens, generation: u64) -> Live {
    Live {
        plan: Arc::clone(plan),
        policy: Policy::new(plan),
        accounts: plan
            .identities
            .iter()
            .map(|identity| tokens.account(&identity.trust))
            .collect(),
        generation,
    }
}

fn probe(source: Arc<SpiffeSource>) -> Probe {
    Arc::new(move || {
        let source = Arc::clone(&source);
        Box::pin(async move { source.reachable().await.map_err(|error| *error.report) })
    })
}

/// Says in the log what is in force and what is not.
fn tell(plan: &Plan) {
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    for quarantined in &plan.quarantined {
        for mistake in &quarantined.mistakes {
            tracing::error!(identity = %quarantined.name, "quarantined, not served: {mistake}");
        }
    }
    tracing::info!(
        identities = plan.identities.len(),
        quarantined = plan.quarantined.len(),
        "configuration in force"
    );
}

fn summary(plan: &Plan) -> String {
    let serving = format!("serving {} identities", plan.identities.len());
    match plan.quarantined.len() {
        0 => serving,
        quarantined => format!("{serving}, {quarantined} quarantined: see `spiffe-entra status`"),
    }
}

/// Whether the end came within `time`.
async fn cancelled_within(stop: &CancellationToken, time: Duration) -> bool {
    tokio::time::timeout(time, stop.cancelled()).await.is_ok()
}

fn failed(what: &str) -> impl FnOnce(std::io::Error) -> RunError {
    let what = what.to_owned();
    move |error| RunError::Failed(format!("{what}: {error}"))
}
