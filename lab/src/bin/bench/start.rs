//! From the start of the process to its first answer on the socket.

use std::path::Path;
use std::process::Command;

use lab::daemon::Daemon;

use super::table::{Goal, Row, Table, median};
use super::{Failure, setup};

pub(crate) async fn measure(program: &Path, table: &mut Table) -> Result<(), Failure> {
    let world = setup::world().await?;
    for (count, starts, goal) in [(1, 10, Some(Goal::AtMost(50.0))), (10_000, 3, None)] {
        let identities = setup::identities(&world, &format!("start{count}"), count).await?;
        let config = setup::config(&world, &identities);
        let mut times = Vec::new();
        for _ in 0..starts {
            // Not tied to us: that would take a start of its own.
            let mut daemon = Daemon::start_as(Command::new(program), &config)?;
            times.push(daemon.ready().await?.as_secs_f64() * 1000.0);
            daemon.stop().await?;
        }
        let slowest = times.iter().copied().fold(0.0, f64::max);
        let fastest = times.iter().copied().fold(f64::INFINITY, f64::min);
        let name = format!("start to first answer, {count} identities");
        let row = Row::information(name, median(times), "ms");
        let note = format!("{fastest:.1} to {slowest:.1} ms in {starts} starts");
        table.push(Row { goal, ..row }.note(note));
    }
    Ok(())
}
