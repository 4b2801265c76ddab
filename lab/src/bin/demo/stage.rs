//! What the story needs: a lab with two workloads, and the daemon configured for them.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use lab::World;
use lab::bare::BareClient;
use lab::daemon::{Connection, Daemon};
use lab::entra::Client;
use nix::unistd::geteuid;

use super::Mishap;
use super::teller::{self, Teller};

/// Everything that runs.
pub(crate) struct Stage {
    pub(crate) daemon: Daemon,
    pub(crate) connection: Connection,
    pub(crate) bare: BareClient,
    /// The application that trusts [`PAYMENTS`].
    pub(crate) app: Client,
    pub(crate) world: World,
}

impl Stage {
    /// Starts the lab and the daemon.
    pub(crate) async fn set(program: &Path, teller: &Teller) -> Result<Self, Mishap> {
        let world = World::start().await?;
        let app = world
            .identity(PAYMENTS)
            .name("payments")
            .ttl(SVID_TTL)
            .add()?
            .client;
        // SPIRE issues an SVID for this one, too, but no credential trusts it.
        world.workload.entry(REPORTS).ttl(SVID_TTL).add();
        app.faults().token_lifetime(LIFETIME);
        let text = "a SPIFFE Workload API and a strict Entra, both in this process and on loopback";
        teller.line("stand-ins", text)?;

        let config = config(&world, &app);
        let mut daemon = Daemon::start(program, &config)?;
        let took = daemon.ready().await?;
        let socket = daemon.socket();
        let text = format!(
            "spiffe-entra run, pid {}, answers on its socket {} after its start",
            daemon.pid(),
            teller.strong(&teller::time(took))
        );
        teller.line("daemon", &text)?;
        let connection = Connection::open(&socket).await?;
        let bare = BareClient::connect(&world).await?;
        Ok(Self {
            daemon,
            connection,
            bare,
            app,
            world,
        })
    }
}

/// The daemon's configuration.
fn config(world: &World, app: &Client) -> String {
    let mut text = format!(
        r#"[workload_api]
endpoint = "{endpoint}"
issuer = "{issuer}"

[entra]
tenant = "{tenant}"
authority = "{authority}"
ca_file = "{ca_file}"
ca_only = true

[[listen]]
socket = "{{socket}}"
mode = "0666"   # whoever may connect still needs an entry in `callers`
"#,
        endpoint = world.workload.endpoint(),
        issuer = world.issuer.url(),
        tenant = world.tenant(),
        authority = world.authority(),
        ca_file = world.ca_file().display(),
    );
    let (us, them) = (geteuid().as_raw(), stranger());
    let client_id = app.client_id();
    for (name, spiffe_id, caller) in [
        ("payments", PAYMENTS, us),
        ("reports", REPORTS, us),
        ("ledger", PAYMENTS, them),
    ] {
        // Writing to a String does not fail.
        let _ = write!(
            text,
            r#"
[[identity]]
name = "{name}"
spiffe_id = "{spiffe_id}"
client_id = "{client_id}"
resources = ["{RESOURCE}"]
callers = [{{ uid = {caller} }}]
"#
        );
    }
    text
}

/// A uid that is not ours, nor that of somebody else who runs anything.
pub(crate) fn stranger() -> u32 {
    // The last one that is not the kernel's stand-in for users of other namespaces.
    if geteuid().as_raw() == 65_533 {
        65_532
    } else {
        65_533
    }
}

/// The workload whose identity is trusted.
pub(crate) const PAYMENTS: &str = "spiffe://example.org/payments";
/// The workload whose identity no credential trusts.
pub(crate) const REPORTS: &str = "spiffe://example.org/reports";
/// What tokens are asked for.
pub(crate) const RESOURCE: &str = "https://vault.azure.net";
/// How long the tokens of the demo live: short, for the refresh to be seen.
pub(crate) const LIFETIME: Duration = Duration::from_secs(8);
const SVID_TTL: Duration = Duration::from_secs(300);
