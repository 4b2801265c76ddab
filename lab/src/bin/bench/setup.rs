//! A lab whose work is cheap, and configurations for it.

use std::fmt::Write as _;
use std::time::Duration;

use lab::World;
use lab::entra::{Client, Resource};
use nix::unistd::geteuid;

use super::Failure;

/// One identity of the lab.
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) spiffe_id: String,
    pub(crate) client: Client,
}

/// A lab that keeps no record and fetches the issuer's keys once.
pub(crate) async fn world() -> Result<World, Failure> {
    let world = World::start().await?;
    world.entra.configure(|settings| {
        settings.metadata_cache = Duration::from_secs(24 * 3600);
        settings.token_size = 2048;
        settings.keep_record = false;
    });
    Ok(world)
}

/// Identities `PREFIX-0` and so on, each with its application and its credential.
pub(crate) async fn identities(
    world: &World,
    prefix: &str,
    count: usize,
) -> Result<Vec<Identity>, Failure> {
    let mut identities = Vec::with_capacity(count);
    for number in 0..count {
        // Ten thousand take their time, in which an interrupt should not have to wait.
        tokio::task::yield_now().await;
        let name = format!("{prefix}-{number}");
        let spiffe_id = format!("spiffe://example.org/bench/{name}");
        let identity = world.identity(&spiffe_id).name(&name).ttl(SVID_TTL).add()?;
        identities.push(Identity {
            name,
            spiffe_id,
            client: identity.client,
        });
    }
    Ok(identities)
}

/// Resources `https://r0.example` and so on.
pub(crate) fn resources(world: &World, count: usize) -> Vec<String> {
    let resources: Vec<_> = (0..count)
        .map(|number| format!("https://r{number}.example"))
        .collect();
    for id in &resources {
        world.entra.add_resource(Resource {
            id: id.clone(),
            v2_audience: None,
        });
    }
    resources
}

/// The daemon's configuration for them; each may ask for anything.
pub(crate) fn config(world: &World, identities: &[Identity]) -> String {
    let mut text = format!(
        r#"[workload_api]
endpoint = "{endpoint}"

[entra]
tenant = "{tenant}"
authority = "{authority}"
ca_file = "{ca_file}"
ca_only = true

[limits]
exchanges_per_minute = 6000

[[listen]]
socket = "{{socket}}"
mode = "0600"
"#,
        endpoint = world.workload.endpoint(),
        tenant = world.tenant(),
        authority = world.authority(),
        ca_file = world.ca_file().display(),
    );
    let uid = geteuid();
    for Identity {
        name,
        spiffe_id,
        client,
    } in identities
    {
        let client_id = client.client_id();
        // Writing to a String does not fail.
        let _ = write!(
            text,
            r#"
[[identity]]
name = "{name}"
spiffe_id = "{spiffe_id}"
client_id = "{client_id}"
resources = ["*"]
callers = [{{ uid = {uid} }}]
"#
        );
    }
    text
}

/// What is asked of the daemon.
pub(crate) fn target(identity: &str, resource: &str) -> String {
    format!("/v1/token?resource={resource}&identity={identity}")
}

/// What tokens are asked for where one is enough.
pub(crate) const RESOURCE: &str = "https://vault.azure.net";
/// Long, so that nothing is fetched again while something is measured.
const SVID_TTL: Duration = Duration::from_secs(3600);
