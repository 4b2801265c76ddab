//! Cold requests: what the product adds to the time that SPIRE and Entra take.
//!
//! Their time is taken from a bare client that does the two calls by hand, one after the other, for
//! identities of the same kind and in turn with the product. Both use connections that are open; what
//! the very first request takes, which opens them, is told apart.

use std::path::Path;

use lab::World;
use lab::bare::BareClient;
use lab::daemon::{Connection, Daemon};
use serde_json::json;
use tokio::time::Instant;

use super::setup::Identity;
use super::table::{Goal, Row, Table, median};
use super::{Failure, setup};

pub(crate) async fn measure(program: &Path, table: &mut Table) -> Result<(), Failure> {
    let world = setup::world().await?;
    // One more: the first request opens the connections.
    let ours = setup::identities(&world, "ours", REQUESTS + 1).await?;
    let theirs = setup::identities(&world, "bare", REQUESTS + 1).await?;
    let mut daemon = Daemon::start(program, &setup::config(&world, &ours))?;
    daemon.ready().await?;
    let mut connection = Connection::open(&daemon.socket()).await?;
    let mut product = Vec::new();
    let mut bare = Vec::new();
    let mut first = (0.0, 0.0);
    let mut client = None;
    for (number, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        let own = through_product(&mut connection, ours).await?;
        let began = Instant::now();
        let client = match &mut client {
            Some(client) => client,
            none => none.insert(BareClient::connect(&world).await?),
        };
        let limit = by_hand(client, theirs, began).await?;
        if number == 0 {
            first = (own, limit);
        } else {
            product.push(own);
            bare.push(limit);
        }
    }
    let added: Vec<_> = product
        .iter()
        .zip(&bare)
        .map(|(own, limit)| own - limit)
        .collect();
    let details = json!({ "product_ms": product, "bare_ms": bare });
    let row = Row::judged(
        "added to a cold request",
        median(added),
        "ms",
        Goal::AtMost(1.0),
    )
    .note(format!(
        "{:.2} ms through the product, {:.2} by hand, medians of {REQUESTS}; connections open",
        median(product),
        median(bare)
    ));
    table.push(Row { details, ..row });
    table.push(
        Row::information("added to the very first request", first.0 - first.1, "ms").note(format!(
            "{:.2} ms through the product, {:.2} by hand",
            first.0, first.1
        )),
    );
    check(&world)?;
    daemon.stop().await?;
    Ok(())
}

async fn through_product(connection: &mut Connection, identity: &Identity) -> Result<f64, Failure> {
    let answer = connection
        .get(&setup::target(&identity.name, setup::RESOURCE))
        .await?;
    if answer.status != 200 {
        let problem = answer.json();
        return Err(Failure::Odd(format!(
            "a cold request failed: {}",
            problem["detail"]
        )));
    }
    Ok(answer.took.as_secs_f64() * 1000.0)
}

async fn by_hand(
    client: &mut BareClient,
    identity: &Identity,
    began: Instant,
) -> Result<f64, Failure> {
    let svid = client.svid(&identity.spiffe_id, lab::AUDIENCE).await?;
    client
        .exchange(identity.client.client_id(), setup::RESOURCE, &svid)
        .await?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

/// Both have done the same work.
fn check(world: &World) -> Result<(), Failure> {
    let expected = 2 * (REQUESTS as u64 + 1);
    let (fetches, issued) = (world.workload.fetches(), world.entra.issued());
    if (fetches, issued) == (expected, expected) {
        return Ok(());
    }
    Err(Failure::Odd(format!(
        "{fetches} fetches and {issued} exchanges instead of {expected}"
    )))
}

const REQUESTS: usize = 50;
