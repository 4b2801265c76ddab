//! All of it at once: a real SPIRE, the lab's Entra that trusts it, the daemon between the two.

use lab::{EntraOptions, IssuerOptions, World};

use crate::daemon::{Daemon, Identity, Settings};
use crate::harness::{ENTRY_LIMIT, Spire, spiffe_id};
use crate::process::wait_for;
use crate::users::unused_uid;

/// Two identities, `payments` and `reports`, each for one caller.
pub(crate) struct Mesh {
    // Fields are dropped in this order: whoever depends on another goes first.
    pub(crate) daemon: Daemon,
    pub(crate) spire: Spire,
    pub(crate) entra: World,
    pub(crate) payments: Tenant,
    pub(crate) reports: Tenant,
}

/// An identity in Entra and the user that may have its tokens.
pub(crate) struct Tenant {
    pub(crate) client_id: String,
    pub(crate) uid: u32,
}

impl Mesh {
    /// Starts everything. No identity is registered with SPIRE yet.
    pub(crate) async fn start() -> Self {
        let uid = unused_uid(2);
        Self::start_for(uid, &format!("uid = {uid}")).await
    }

    /// Starts everything with another caller of `reports`: its uid, and its rule in TOML.
    pub(crate) async fn start_for(uid: u32, rule: &str) -> Self {
        let spire = Spire::start();
        let trusting = EntraOptions {
            issuer_cas: vec![spire.issuer_ca().to_owned()],
            ..Default::default()
        };
        let entra = World::start_with(IssuerOptions::default(), trusting)
            .await
            .unwrap();
        let tenant = |name: &str, uid: u32| {
            let app = entra.entra.application(name);
            let app = app
                .credential(spire.issuer(), &spiffe_id(name), lab::AUDIENCE)
                .unwrap();
            Tenant {
                client_id: app.client_id().to_owned(),
                uid,
            }
        };
        let payments = tenant("payments", unused_uid(1));
        let reports = tenant("reports", uid);
        let identity = |name: &'static str, tenant: &Tenant, rule: &str| Identity {
            name,
            spiffe_id: spiffe_id(name),
            client_id: tenant.client_id.clone(),
            callers: format!("{{ {rule} }}"),
        };
        let settings = Settings {
            workload_api: &spire.workload_api(),
            issuer: spire.issuer(),
            authority: &entra.authority(),
            ca_file: &entra.ca_file(),
            tenant: &entra.tenant(),
            identities: vec![
                identity("payments", &payments, &format!("uid = {}", payments.uid)),
                identity("reports", &reports, rule),
            ],
        };
        let daemon = Daemon::start(daemon_uid(), &settings);
        Self {
            daemon,
            spire,
            entra,
            payments,
            reports,
        }
    }

    /// Registers both identities, and waits until the daemon has tokens for both.
    pub(crate) fn register(&self) {
        // SPIRE attests the process that asks, and that is the daemon, not its caller.
        self.spire
            .register_template(&format!("uid:{}", daemon_uid()));
        for tenant in [&self.payments, &self.reports] {
            wait_for("a first token", ENTRY_LIMIT, || {
                let answer = self.daemon.token(tenant.uid, RESOURCE);
                if answer.status == 200 {
                    Ok(())
                } else {
                    Err(format!("{answer:?}"))
                }
            });
        }
    }
}

/// The user that the daemon runs as.
pub(crate) fn daemon_uid() -> u32 {
    unused_uid(0)
}

/// What the tests want tokens for.
pub(crate) const RESOURCE: &str = "https://vault.azure.net";
