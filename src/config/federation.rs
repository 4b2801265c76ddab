//! `[federation]`: what the federation commands work with. The daemon does not look at it.

use std::sync::Arc;

use super::{
    Federation, Trust,
    diagnostics::Fault,
    raw::Table,
    trust::{Defaults, read_issuer},
    values,
};
use crate::{assertion::AssertionSpec, exchange::Target};

/// Reads `[federation]`; without it, what the rest of the configuration implies.
pub(super) fn federation(
    table: Option<&mut Table<'_>>,
    defaults: &Defaults,
    allow_http_loopback: bool,
) -> Federation {
    let mut federation = Federation {
        issuer: defaults.issuer.clone(),
        owner: None,
        sign_in: None,
        graph_endpoint: defaults.graph_endpoint.clone(),
        arm_endpoint: defaults.arm_endpoint.clone(),
    };
    if let Some(table) = table {
        federation.issuer = read_issuer(table, allow_http_loopback).or(federation.issuer);
        federation.owner = table.parsed("owner", owner);
        federation.sign_in = sign_in(table, defaults);
    }
    federation
}

/// Who keeps the credentials: written into each of them, to tell its own from others'.
fn owner(text: &str) -> Result<String, Fault> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > OWNER_LIMIT || !text.chars().all(fits) {
        return Err(Fault::new(
            "this is no name of an owner",
            format!("use 1 to {OWNER_LIMIT} letters, digits, `.`, `_` and `-`"),
        ));
    }
    Ok(text.to_owned())
}

fn sign_in(table: &mut Table<'_>, defaults: &Defaults) -> Option<Trust> {
    let mut table = table.table("sign_in")?;
    let subject = table.required(
        "spiffe_id",
        "the SPIFFE ID to sign in with",
        values::spiffe_id,
    );
    let client_id = table.required(
        "client_id",
        "the client id of the application that may write credentials",
        values::guid,
    );
    let own = table.has("tenant");
    let tenant = table.parsed("tenant", values::tenant);
    let tenant = if own { tenant } else { defaults.tenant.clone() };
    if tenant.is_none() && !own {
        let message = format!(
            "{} has no `tenant`, and [entra] has none either",
            table.name()
        );
        let fix = "set `tenant` in [entra] or here";
        let span = table.span();
        table.reading().mistake(&span, Fault::new(message, fix));
    }
    table.finish();
    Some(Trust {
        target: Target {
            authority: defaults.authority.clone(),
            tenant: tenant?,
            client_id: client_id?.into(),
        },
        assertion: AssertionSpec {
            subject: subject?,
            audience: Arc::clone(&defaults.audience),
            issuer: defaults.issuer.clone(),
        },
    })
}

const OWNER_LIMIT: usize = 64;
