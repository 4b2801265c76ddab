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
    if tenant.is_none() && !own && !defaults.tenant_broken {
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

#[cfg(test)]
mod tests {
    use crate::config::testing::{HEAD, IDENTITY, LISTEN, given, says};

    fn with(text: &str) -> crate::config::testing::Given {
        given(&format!("{HEAD}{text}{LISTEN}{IDENTITY}"))
    }

    #[test]
    fn federation_is_what_was_written() {
        let text = "[federation]\nissuer = \"https://oidc.example.org\"\nowner = \"prod-mesh\"\n\
                    sign_in = { spiffe_id = \"spiffe://example.org/admin\", \
                    client_id = \"1F8FAD5B-d9cb-469f-a165-70867728950e\" }\n";
        let federation = with(text).fine().federation;
        assert_eq!(
            federation.issuer.as_deref(),
            Some("https://oidc.example.org")
        );
        assert_eq!(federation.owner.as_deref(), Some("prod-mesh"));
        let sign_in = federation.sign_in.unwrap();
        assert_eq!(
            sign_in.assertion.subject.as_str(),
            "spiffe://example.org/admin"
        );
        assert_eq!(
            &*sign_in.target.client_id,
            "1f8fad5b-d9cb-469f-a165-70867728950e"
        );
        assert_eq!(
            &*sign_in.target.tenant,
            "72f988bf-86f1-41af-91ab-2d7cd011db47"
        );
        assert_eq!(
            federation.graph_endpoint.as_str(),
            "https://graph.microsoft.com/"
        );
    }

    #[test]
    fn without_it_the_rest_implies_it() {
        let head = HEAD.replace("[entra]", "issuer = \"https://oidc.example.org\"\n[entra]");
        let plan = given(&format!("{head}{LISTEN}{IDENTITY}")).fine();
        assert_eq!(
            plan.federation.issuer.as_deref(),
            Some("https://oidc.example.org")
        );
        assert_eq!(
            (plan.federation.owner, plan.federation.sign_in),
            (None, None)
        );
    }

    #[test]
    fn mistakes_in_it_are_found_though_the_daemon_ignores_it() {
        for (line, part) in [
            ("issuer = \"http://oidc.example.org\"", "https:// only"),
            ("owner = \"a b\"", "no name of an owner"),
            (
                "sign_in = { spiffe_id = \"spiffe://e.org/a\" }",
                "has no `client_id`",
            ),
            ("sign_in = 1", "is a whole number"),
            (
                "isuer = \"https://oidc.example.org\"",
                "did you mean `issuer`?",
            ),
        ] {
            says(&with(&format!("[federation]\n{line}\n")).refused(), part);
        }
        let head = HEAD.replace("tenant", "# tenant");
        let text = "[federation]\nsign_in = { spiffe_id = \"spiffe://e.org/a\", \
                    client_id = \"1f8fad5b-d9cb-469f-a165-70867728950e\" }\n";
        let identity = format!("{IDENTITY}tenant = \"contoso.com\"\n");
        says(
            &given(&format!("{head}{text}{LISTEN}{identity}")).refused(),
            "`sign_in` of [federation] has no `tenant`",
        );
    }
}
