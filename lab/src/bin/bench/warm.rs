//! Warm requests: the product beside the bare server, round by round in turn, each on one core with
//! the load on the other.

use std::path::Path;
use std::time::Duration;

use lab::daemon::{Connection, Daemon, tied};
use serde_json::json;

use super::bare_server::BareServer;
use super::load::{self, Load, Plan};
use super::table::{Goal, Row, Table, median};
use super::{Cores, Failure, Options, proc, setup};

pub(crate) async fn measure(
    options: &Options,
    program: &Path,
    cores: Cores,
    table: &mut Table,
) -> Result<(), Failure> {
    let world = setup::world().await?;
    let identities = setup::identities(&world, "warm", 1)?;
    let config = setup::config(&world, &identities);
    let mut daemon = Daemon::start_as(tied(program, Some(cores.server)), &config)?;
    daemon.ready().await?;
    let target = setup::target(&identities[0].name, setup::RESOURCE);
    let mut connection = Connection::open(&daemon.socket()).await?;
    connection.get(&target).await?;
    let answer = connection.get(&target).await?;
    if answer.status != 200 {
        return Err(Failure::Odd(format!(
            "a warm request was answered {}",
            answer.status
        )));
    }
    let bare = BareServer::start(cores.server, &answer).await?;
    let same = Connection::open(&bare.socket()).await?.get(&target).await?;
    if (answer.body.len(), head(&answer)) != (same.body.len(), head(&same)) {
        return Err(Failure::Odd(format!(
            "the bare server answers {:?}, the product {:?}",
            head(&same),
            head(&answer)
        )));
    }
    drop(connection);

    let plan = Plan {
        request: format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes(),
        body: answer.body.len(),
        connections: 0,
        time: Duration::from_secs_f64(options.seconds),
        core: cores.load,
    };
    for connections in CONNECTIONS {
        let plan = Plan {
            connections,
            ..plan.clone()
        };
        let mut rounds = Vec::new();
        for number in 0..options.rounds {
            let ours = || Round::run(&daemon.socket(), daemon.pid(), &plan);
            let limit = || Round::run(&bare.socket(), bare.pid(), &plan);
            // The machine's mood changes: who goes first takes turns.
            let (ours, limit) = if number % 2 == 0 {
                let ours = ours()?;
                (ours, limit()?)
            } else {
                let limit = limit()?;
                (ours()?, limit)
            };
            rounds.push((ours, limit));
        }
        report(connections, &rounds, table);
    }
    let memory = proc::memory(daemon.pid())?;
    table.push(Row::information(
        "memory after that load",
        memory.rss as f64 / 1024.0,
        "MiB RSS",
    ));
    daemon.stop().await?;
    Ok(())
}

/// The names of the headers, and how long each is.
fn head(answer: &lab::daemon::Answer) -> Vec<(String, usize)> {
    let headers = answer.headers.iter();
    let mut head: Vec<_> = headers
        .map(|(name, value)| (name.to_string(), value.as_bytes().len()))
        .collect();
    head.sort();
    head
}

/// One server under load for a while.
#[derive(Debug)]
struct Round {
    load: Load,
    /// Processor time that the server has used for each request.
    cost: Duration,
    /// Which part of its core the server has used.
    busy: f64,
}

impl Round {
    fn run(socket: &Path, pid: u32, plan: &Plan) -> Result<Self, Failure> {
        let mut before = Duration::ZERO;
        let mut after = Duration::ZERO;
        let load = load::run(socket, plan, |edge| {
            let time = proc::cpu_time(pid)?;
            match edge {
                load::Edge::Begin => before = time,
                load::Edge::End => after = time,
            }
            Ok(())
        })?;
        let used = after.saturating_sub(before).as_secs_f64();
        let cost = Duration::from_secs_f64(used / (load.rate * plan.time.as_secs_f64()).max(1.0));
        Ok(Self {
            cost,
            busy: used / plan.time.as_secs_f64(),
            load,
        })
    }
}

fn report(connections: usize, rounds: &[(Round, Round)], table: &mut Table) {
    let of = |value: &dyn Fn(&(Round, Round)) -> f64| -> f64 {
        median(rounds.iter().map(value).collect())
    };
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let ratios: Vec<_> = rounds
        .iter()
        .map(|(ours, limit)| ours.load.rate / limit.load.rate)
        .collect();
    let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ratios.iter().copied().fold(0.0, f64::max);
    let note = format!(
        "{:.0} of {:.0} req/s; rounds {low:.2}-{high:.2}; p50 {:.0}/{:.0} us, p99 {:.0}/{:.0} us; \
         cpu {:.1}/{:.1} us a request (ratio {:.2}); server busy {:.0}/{:.0} %, load {:.0}/{:.0} %",
        of(&|(ours, _)| ours.load.rate),
        of(&|(_, limit)| limit.load.rate),
        of(&|(ours, _)| micros(ours.load.p50)),
        of(&|(_, limit)| micros(limit.load.p50)),
        of(&|(ours, _)| micros(ours.load.p99)),
        of(&|(_, limit)| micros(limit.load.p99)),
        of(&|(ours, _)| micros(ours.cost)),
        of(&|(_, limit)| micros(limit.cost)),
        of(&|(ours, limit)| limit.cost.as_secs_f64() / ours.cost.as_secs_f64().max(1e-9)),
        of(&|(ours, _)| ours.busy * 100.0),
        of(&|(_, limit)| limit.busy * 100.0),
        of(&|(ours, _)| ours.load.busy * 100.0),
        of(&|(_, limit)| limit.load.busy * 100.0),
    );
    let round = |round: &Round| {
        json!({
            "requests_per_second": round.load.rate,
            "p50_us": micros(round.load.p50),
            "p99_us": micros(round.load.p99),
            "server_cpu_us_per_request": micros(round.cost),
            "server_busy": round.busy,
            "load_busy": round.load.busy,
        })
    };
    let details: Vec<_> = rounds
        .iter()
        .map(|(ours, limit)| json!({ "product": round(ours), "bare": round(limit) }))
        .collect();
    table.push(Row {
        name: format!("warm requests, {connections} connections"),
        value: median(ratios),
        unit: "of bare hyper",
        goal: Some(Goal::AtLeast(0.85)),
        note,
        details: json!(details),
    });
}

const CONNECTIONS: [usize; 3] = [1, 32, 256];
