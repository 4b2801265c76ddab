//! spiffe-entra: JWT-SVIDs in, Microsoft Entra access tokens out, over a Unix socket.
//!
//! # Layout
//!
//! A module sees those it calls and the base, and nothing that calls it:
//!
//! * [`assertion`] (a JWT-SVID from the Workload API) ← [`exchange`] (one POST to Entra) ←
//!   [`tokens`] (the cache): the way to a token.
//! * [`caller`] (who is asking) ← [`policy`] (who may ask what): the way to a decision. It sees no
//!   tokens, and they know of no callers.
//! * [`config`] turns what the operator wrote into a [`config::Plan`], which `policy` and `tokens`
//!   go by.
//! * [`server`] (the sockets) brings both together, and [`app`] wires everything.
//! * [`cli`] (what can be typed), [`client`] (one request to a daemon) and [`commands`] are the rest
//!   of the program.
//!
//! The base is [`time`], [`secret`], [`id`], [`report`], [`metrics`], [`telemetry`] and [`harden`]
//! (no core dumps, no ptrace). `tests/layering.rs` holds everybody to it.

pub mod app;
pub mod assertion;
pub mod caller;
pub mod cli;
pub mod client;
pub mod commands;
pub mod config;
pub mod exchange;
pub mod harden;
pub mod id;
pub mod metrics;
pub mod policy;
pub mod report;
pub mod secret;
pub mod server;
pub mod telemetry;
pub mod time;
pub mod tokens;
