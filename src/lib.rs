//! spiffe-entra: JWT-SVIDs in, Microsoft Entra access tokens out, over a Unix socket.
//!
//! # Layout
//!
//! Data flows one way, and a module sees only those to its left and the base:
//!
//! [`assertion`] (a JWT-SVID from the Workload API) → [`exchange`] (one POST to Entra) →
//! `tokens` (the cache) → `policy` (who may ask what) → `server` (the socket).
//!
//! The base is [`time`], [`secret`], [`id`], [`report`], `metrics` and `telemetry`;
//! [`config`] turns what the operator wrote into a
//! `Plan`; `app` wires everything and is the only module that imports everything; `commands`
//! are the program's subcommands.

pub mod assertion;
pub mod caller;
pub mod commands;
pub mod config;
pub mod exchange;
pub mod id;
pub mod metrics;
pub mod policy;
pub mod report;
pub mod secret;
pub mod time;
pub mod tokens;
