//! Warm requests: the product beside the bare server, in turn, each on the same core with the load on
//! the other.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use lab::daemon::{Connection, Daemon, pin, tied};
use serde_json::json;
use tokio::sync::oneshot;

use super::bare_server::BareServer;
use super::load::{Generator, Load, Plan};
use super::table::{Goal, Row, Table, median};
use super::{Cores, Failure, Options, proc, setup};

pub(crate) async fn measure(
    options: &Options,
    program: &Path,
    cores: Cores,
    table: &mut Table,
) -> Result<(), Failure> {
    let world = setup::world().await?;
    let identities = setup::identities(&world, "warm", 1).await?;
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
    };
    for connections in CONNECTIONS {
        let plan = Plan {
            connections,
            ..plan.clone()
        };
        let servers = [(daemon.socket(), daemon.pid()), (bare.socket(), bare.pid())];
        let (done, rounds) = oneshot::channel();
        let (rounds_of, slices) = (options.rounds, options.slices(SLICE));
        // A thread of its own: the core is for this alone.
        thread::spawn(move || {
            // Nobody waits any more when the run was interrupted.
            let _ = done.send(load(cores.load, servers, &plan, rounds_of, slices));
        });
        let rounds = rounds.await.map_err(io::Error::other)??;
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

/// What was seen of the product and of the bare server.
type Round = (Load, Load);

/// Loads both, in slices and in turn: whatever else the machine does concerns both.
fn load(
    core: usize,
    servers: [(PathBuf, u32); 2],
    plan: &Plan,
    rounds: usize,
    slices: usize,
) -> io::Result<Vec<Round>> {
    pin(core).map_err(io::Error::from)?;
    let [ours, limit] = servers.map(|(socket, pid)| Generator::connect(&socket, pid, plan));
    let (mut ours, mut limit) = (ours?, limit?);
    for generator in [&mut ours, &mut limit] {
        generator.run(WARM_UP, &mut Load::default())?;
    }
    let mut seen = Vec::new();
    for _ in 0..rounds {
        let mut round = Round::default();
        for _ in 0..slices {
            ours.run(SLICE, &mut round.0)?;
            limit.run(SLICE, &mut round.1)?;
        }
        seen.push(round);
    }
    Ok(seen)
}

fn report(connections: usize, rounds: &[Round], table: &mut Table) {
    let of = |value: &dyn Fn(&Round) -> f64| median(rounds.iter().map(value).collect());
    let both = |value: &dyn Fn(&Load) -> f64| {
        format!(
            "{:.0}/{:.0}",
            of(&|(ours, _)| value(ours)),
            of(&|(_, limit)| value(limit))
        )
    };
    let busy = |time: Duration, load: &Load| time.as_secs_f64() / load.wall.as_secs_f64() * 100.0;
    let ratios: Vec<_> = rounds
        .iter()
        .map(|(ours, limit)| ours.rate() / limit.rate())
        .collect();
    let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ratios.iter().copied().fold(0.0, f64::max);
    let note = format!(
        "product/bare: {} req/s (rounds {low:.2} to {high:.2}), p50 {} us, p99 {} us, \
         server busy {} %, load {} %",
        both(&Load::rate),
        both(&|load| load.percentile(0.5)),
        both(&|load| load.percentile(0.99)),
        both(&|load| busy(load.server, load)),
        both(&|load| busy(load.generator, load)),
    );
    let sums = |load: &Load| {
        json!({
            "requests_per_second": load.rate(),
            "p50_us": load.percentile(0.5),
            "p99_us": load.percentile(0.99),
            "server_cpu_us_per_request": load.cost(),
            "server_busy_percent": busy(load.server, load),
            "load_busy_percent": busy(load.generator, load),
        })
    };
    let details: Vec<_> = rounds
        .iter()
        .map(|(ours, limit)| json!({ "product": sums(ours), "bare": sums(limit) }))
        .collect();
    let name = format!("warm requests/s, {connections} connections");
    let goal = Goal::AtLeast(0.85);
    let row = Row::judged(name, median(ratios), "of bare hyper", goal).note(note);
    table.push(Row {
        details: json!(details),
        ..row
    });
    let cost = of(&|(ours, limit)| limit.cost() / ours.cost());
    let name = "  the same by the server's processor time";
    table.push(Row::information(name, cost, "of bare hyper").note(format!(
        "{:.2} us a request, bare {:.2}: what counts when others use the machine",
        of(&|(ours, _)| ours.cost()),
        of(&|(_, limit)| limit.cost()),
    )));
}

const CONNECTIONS: [usize; 3] = [1, 32, 256];
/// How long the load lasts before it is measured.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long it stays with one server: short beside the moods of a machine that others use.
const SLICE: Duration = Duration::from_millis(100);
