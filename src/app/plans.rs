//! Where the plan comes from: a file, or the environment and the agent.

use std::{path::Path, time::Duration};

use tokio::time::sleep;

use super::{ConfigSource, RunError};
use crate::{
    assertion::spiffe::SpiffeSource,
    config::{self, Environment, Plan},
    time::Clock,
};

/// The plan to start with.
pub(super) async fn first(
    source: &ConfigSource,
    strict: bool,
    clock: &Clock,
) -> Result<Plan, RunError> {
    match source {
        ConfigSource::File(path) => from_file(path, strict),
        ConfigSource::Environment => from_environment(clock).await,
    }
}

/// The plan in a file.
pub(super) fn from_file(path: &Path, strict: bool) -> Result<Plan, RunError> {
    let plan = config::load_in(path, &Environment::system()).map_err(RunError::Mistakes)?;
    let plan = if strict {
        plan.strict().map_err(RunError::Mistakes)?
    } else {
        plan
    };
    if plan.identities.is_empty() {
        return Err(RunError::NoIdentity {
            mistakes: plan.mistakes,
            path: path.to_owned(),
        });
    }
    Ok(plan)
}

/// The plan of `run --from-env`. Where `SPIFFE_ID` is not set, the agent decides who we are: it is
/// waited for, and must give exactly one SVID.
async fn from_environment(clock: &Clock) -> Result<Plan, RunError> {
    let wanted = config::from_env(&Environment::system()).map_err(RunError::Mistakes)?;
    if let Some(subject) = wanted.subject.clone() {
        return Ok(wanted.with_subject(subject));
    }
    let source = SpiffeSource::new(wanted.workload_api.endpoint.clone(), clock.clone());
    loop {
        match source.only_identity(&wanted.audience).await {
            Ok(subject) => {
                tracing::info!(%subject, "the agent's only SVID is the identity");
                return Ok(wanted.with_subject(subject));
            }
            Err(error) if error.is_transient() => {
                let report = error.report;
                tracing::warn!(code = %report.code, detail = %report.detail, fix = %report.fix, "waiting for the agent");
                sleep(AGENT_RETRY).await;
            }
            Err(error) => {
                let report = error.report;
                return Err(RunError::Failed(format!(
                    "{}; {}",
                    report.detail, report.fix
                )));
            }
        }
    }
}

/// How soon an agent that is not there is asked again.
const AGENT_RETRY: Duration = Duration::from_secs(2);
