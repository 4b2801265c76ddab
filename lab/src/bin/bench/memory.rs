//! Memory: of one identity, and of ten thousand tokens.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lab::World;
use lab::daemon::{Connection, Daemon};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::proc::{self, Memory};
use super::table::{Goal, Row, Table};
use super::{Failure, setup};

pub(crate) async fn measure(program: &Path, table: &mut Table) -> Result<(), Failure> {
    one(program, table).await?;
    many(program, 160, 63, table).await?;
    many(program, 10_000, 1, table).await
}

/// One identity, one token, and a thousand requests for it.
async fn one(program: &Path, table: &mut Table) -> Result<(), Failure> {
    let world = setup::world().await?;
    let identities = setup::identities(&world, "one", 1).await?;
    let daemon = start(program, &setup::config(&world, &identities)).await?;
    let target = setup::target(&identities[0].name, setup::RESOURCE);
    let mut connection = Connection::open(&daemon.socket()).await?;
    for _ in 0..1000 {
        ask(&mut connection, &target).await?;
    }
    let memory = proc::memory(daemon.pid())?;
    table.push(
        Row::judged(
            "memory with one identity",
            mib(memory.rss),
            "MiB RSS",
            Goal::AtMost(12.0),
        )
        .note(format!(
            "{:.1} MiB of it anonymous; after 1000 requests",
            mib(memory.anon)
        )),
    );
    daemon.stop().await?;
    Ok(())
}

/// Many tokens: what each adds.
async fn many(
    program: &Path,
    identities: usize,
    resources: usize,
    table: &mut Table,
) -> Result<(), Failure> {
    let world = setup::world().await?;
    let identities = setup::identities(&world, "many", identities).await?;
    let resources = setup::resources(&world, resources);
    let daemon = start(program, &setup::config(&world, &identities)).await?;
    let targets: Vec<_> = identities
        .iter()
        .flat_map(|identity| resources.iter().map(|r| setup::target(&identity.name, r)))
        .collect();
    let count = targets.len();
    // The connections to SPIRE and Entra, and what the first use of anything takes, are not the
    // tokens'.
    let mut connection = Connection::open(&daemon.socket()).await?;
    ask(&mut connection, &targets[0]).await?;
    let before = proc::memory(daemon.pid())?;
    fill(&world, &daemon, targets).await?;
    let filled = proc::memory(daemon.pid())?;
    sleep(SETTLED).await;
    let settled = proc::memory(daemon.pid())?;
    let each = |memory: Memory| (memory.rss.saturating_sub(before.rss)) as f64 / (count - 1) as f64;
    let name = format!(
        "memory for each of {count} tokens, {} identities",
        identities.len()
    );
    table.push(
        Row::judged(
            name,
            each(filled).max(each(settled)),
            "KiB RSS",
            Goal::AtMost(6.0),
        )
        .note(format!(
            "{:.1} MiB before, {:.1} filled, {:.1} after {} s ({:.1} anonymous)",
            mib(before.rss),
            mib(filled.rss),
            mib(settled.rss),
            SETTLED.as_secs(),
            mib(settled.anon),
        )),
    );
    daemon.stop().await?;
    Ok(())
}

/// Asks for everything once, over a few connections.
async fn fill(world: &World, daemon: &Daemon, targets: Vec<String>) -> Result<(), Failure> {
    let count = targets.len() as u64;
    let targets = Arc::new(Mutex::new(targets));
    let mut tasks = JoinSet::new();
    for _ in 0..FILLERS {
        let targets = Arc::clone(&targets);
        let mut connection = Connection::open(&daemon.socket()).await?;
        tasks.spawn(async move {
            loop {
                let Some(target) = targets.lock().await.pop() else {
                    return Ok::<_, Failure>(());
                };
                ask(&mut connection, &target).await?;
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.map_err(std::io::Error::other)??;
    }
    let issued = world.entra.issued();
    if issued != count {
        return Err(Failure::Odd(format!(
            "{issued} tokens were issued for {count} keys"
        )));
    }
    Ok(())
}

async fn start(program: &Path, config: &str) -> Result<Daemon, Failure> {
    let mut daemon = Daemon::start(program, config)?;
    daemon.ready().await?;
    Ok(daemon)
}

async fn ask(connection: &mut Connection, target: &str) -> Result<(), Failure> {
    let answer = connection.get(target).await?;
    if answer.status == 200 {
        return Ok(());
    }
    let problem = answer.json();
    Err(Failure::Odd(format!(
        "{target} was answered {}: {}",
        answer.status, problem["detail"]
    )))
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// Connections that ask for tokens at the same time.
const FILLERS: usize = 16;
/// How long after the last token the second look is.
const SETTLED: Duration = Duration::from_secs(5);
