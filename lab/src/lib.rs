//! The lab: a strict fake Entra, a small OIDC issuer and a small SPIFFE Workload API server.
//!
//! Everything is real on the wire: TLS with a CA of its own, gRPC on a Unix socket, signatures that
//! are made and verified. The fake Entra refuses what Entra refuses, with Entra's codes; where it
//! is not known what Entra does, [`entra::Strictness`] has a switch and the strict side is the
//! default. Nothing here is part of the product.
//!
//! ```no_run
//! # async fn example() -> lab::Result<()> {
//! use std::time::Duration;
//!
//! let world = lab::World::start().await?;
//! world.workload.entry("spiffe://example.org/payments").ttl(Duration::from_secs(300)).add();
//! let app = world.entra.application("payments").credential(
//!     &world.issuer.url(),
//!     "spiffe://example.org/payments",
//!     lab::AUDIENCE,
//! )?;
//! world.entra.faults().throttle(Some(60)).times(1);
//! println!("{} {} {}", world.authority(), world.tenant(), app.client_id());
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//!
//! | module | holds |
//! |---|---|
//! | [`world`] | everything at once, in a folder of its own |
//! | [`entra`] | the token endpoint, its directory, its faults, its record |
//! | [`issuer`], [`keys`] | what SPIRE's OIDC discovery provider serves, and the keys behind it |
//! | [`workload`] | what SPIRE's agent serves |
//! | [`daemon`], [`bare`](mod@bare) | the product as a child process, and what it does done by hand |
//! | [`ca`], [`faults`], [`clock`], [`guid`] | what they share |
//! | [`file`](mod@file) | a lab described in TOML: `lab serve` |

use std::sync::Once;

pub mod bare;
pub mod ca;
pub mod clock;
pub mod daemon;
pub mod entra;
mod error;
pub mod faults;
pub mod file;
pub mod guid;
pub mod issuer;
pub mod keys;
mod serve;
mod sync;
pub mod workload;
pub mod world;

pub use ca::Ca;
pub use clock::Clock;
pub use entra::{Client, Entra, EntraOptions};
pub use error::{Error, Result};
pub use issuer::{Issuer, IssuerOptions};
pub use keys::{Key, KeyType};
pub use workload::Workload;
pub use world::World;

/// The audience of federated identity credentials in the public cloud.
pub const AUDIENCE: &str = "api://AzureADTokenExchange";

/// Chooses aws-lc-rs for rustls and jsonwebtoken, once a process. Every constructor of the lab
/// calls it; a test that makes TLS clients of its own calls it first.
pub fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error says that a provider is installed already, which is as good.
        let _ = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider().install_default();
        let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    });
}
