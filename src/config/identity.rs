//! `[[identity]]`: a SPIFFE ID, what it becomes in Entra, and who may ask for what.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use super::{
    Federate, Identity, Resources, Trust,
    accounts::Directory,
    callers::{self, Purpose},
    diagnostics::{Fault, Mistake, Sink, Source},
    raw::{Reading, Table},
    trust::Defaults,
    values,
};
use crate::{assertion::AssertionSpec, exchange::Target};

/// An identity as it was read: in order, or with what is wrong.
#[derive(Debug)]
pub(super) struct Read<'a> {
    /// As written; missing where it is not in order.
    pub(super) name: Option<String>,
    /// Where the table stands.
    pub(super) source: &'a Source,
    pub(super) span: Range<usize>,
    /// Where the name stands.
    pub(super) name_span: Range<usize>,
    pub(super) identity: Option<Identity>,
    /// Where each of its caller rules stands.
    pub(super) rules: Vec<callers::At>,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
}

/// Reads one `[[identity]]`. Mistakes go into a sink of its own: they are the identity's alone.
/// Without `defaults` (those have mistakes) the rest is read all the same.
pub(super) fn read<'a>(
    source: &'a Source,
    table: Table<'a>,
    defaults: Option<&Defaults>,
    directory: &Directory<'_>,
) -> Read<'a> {
    let sink = Sink::default();
    let span = table.span();
    let mut table = table.reporting_to(Reading {
        source,
        sink: &sink,
    });
    let name_span = table
        .value("name")
        .map_or(span.clone(), |value| value.span());
    let name = table.required(
        "name",
        "a name, such as name = \"payments\"",
        values::identity_name,
    );
    if let Some(name) = &name {
        table.rename(format!("[[identity]] `{name}`"));
    }
    let (identity, rules) = convert(&mut table, name.as_ref(), defaults, directory);
    table.elsewhere(ELSEWHERE);
    table.finish();
    let (mistakes, warnings) = sink.into_parts();
    Read {
        name,
        source,
        span,
        name_span,
        // Whatever has a mistake is not served at all, not even the part that is in order.
        identity: identity.filter(|_| mistakes.is_empty()),
        rules,
        mistakes,
        warnings,
    }
}

fn convert(
    table: &mut Table<'_>,
    name: Option<&String>,
    defaults: Option<&Defaults>,
    directory: &Directory<'_>,
) -> (Option<Identity>, Vec<callers::At>) {
    let subject = table.required(
        "spiffe_id",
        "the SPIFFE ID of the SPIRE entry, such as spiffe_id = \"spiffe://example.org/payments\"",
        values::spiffe_id,
    );
    let client_id = table.required(
        "client_id",
        "the client id of the application or managed identity",
        values::guid,
    );
    let tenant = tenant(table, defaults);
    let object_id = table.parsed("object_id", values::guid);
    let resource_id = table.parsed("resource_id", values::managed_identity);
    if !table.has("resources") {
        let message = format!(
            "{} has no `resources`, so nothing could be asked for",
            table.name()
        );
        let fix = "list what may be asked for, or write resources = [\"*\"]";
        let span = table.span();
        table.reading().mistake(&span, Fault::new(message, fix));
    }
    let resources = resources(table).map(|(_, resources)| resources);
    let rules = callers(table, resources.as_ref(), directory);
    let expose_assertion = table.flag("expose_assertion").unwrap_or(false);
    let federate = federate(table);
    let identity = || {
        let defaults = defaults?;
        Some(Identity {
            name: name?.clone(),
            trust: Trust {
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
            },
            object_id,
            resource_id,
            resources: resources?,
            callers: rules.iter().map(|rule| rule.get_ref().clone()).collect(),
            expose_assertion,
            federate,
        })
    };
    (identity(), rules)
}

fn tenant(table: &mut Table<'_>, defaults: Option<&Defaults>) -> Option<Arc<str>> {
    let own = table.has("tenant");
    let tenant = table.parsed("tenant", values::tenant);
    if own || defaults.is_none() {
        return tenant;
    }
    let default = defaults.and_then(|defaults| defaults.tenant.clone());
    if default.is_none() {
        let message = format!(
            "{} has no `tenant`, and [entra] has none either",
            table.name()
        );
        let fix = "set `tenant` in [entra] for all identities, or here";
        let span = table.span();
        table.reading().mistake(&span, Fault::new(message, fix));
    }
    default
}

fn callers(
    table: &mut Table<'_>,
    resources: Option<&Resources>,
    directory: &Directory<'_>,
) -> Vec<callers::At> {
    let before = table.reading().sink.count();
    let rules = callers::rules(table, "callers", Purpose::Callers(resources), directory);
    if rules.is_empty() && table.reading().sink.count() == before {
        let message = format!("nobody may ask for {}", table.name());
        let fix = "list who may in `callers`, as in callers = [{ user = \"payments\" }]";
        let span = table.span();
        table.reading().warn(&span, message, fix);
    }
    rules
}

/// A list of resources, as policy compares them.
pub(super) fn resources(table: &mut Table<'_>) -> Option<(Range<usize>, Resources)> {
    let list = table.texts("resources")?;
    let (span, reading) = (list.span(), table.reading());
    let before = reading.sink.count();
    let list = list.into_inner();
    if list.is_empty() {
        let fix = "list what may be asked for, or write [\"*\"] for anything";
        reading.mistake(&span, Fault::new("an empty list allows nothing", fix));
    }
    let any = list.iter().any(|resource| *resource.get_ref() == "*");
    if any && list.len() > 1 {
        let fix = "write [\"*\"] alone for anything, or leave it out";
        reading.mistake(&span, Fault::new("\"*\" makes the others pointless", fix));
    }
    let mut only = BTreeSet::new();
    for resource in list.iter().filter(|_| !any) {
        let parsed = values::resource(resource.get_ref());
        only.extend(reading.keep(&resource.span(), parsed));
    }
    let resources = if any {
        Resources::Any
    } else {
        Resources::Only(only)
    };
    (reading.sink.count() == before).then_some((span, resources))
}

fn federate(table: &mut Table<'_>) -> Option<Federate> {
    let mut table = table.table("federate")?;
    let (application, identity) = (table.has("application"), table.has("managed_identity"));
    let federate = table
        .parsed("application", values::guid)
        .map(Federate::Application)
        .or_else(|| {
            table
                .parsed("managed_identity", values::managed_identity)
                .map(Federate::ManagedIdentity)
        });
    // Both keys exist, whichever was read.
    let _ = (table.value("application"), table.value("managed_identity"));
    if application == identity {
        let span = table.span();
        table.reading().mistake(
            &span,
            Fault::new(
                "a credential belongs to one application or one managed identity",
                "write { application = \"GUID\" } or { managed_identity = \"/subscriptions/…\" }",
            ),
        );
    }
    table.finish();
    federate
}

/// Keys of other tables that end up below an `[[identity]]` when they are put at the file's end.
const ELSEWHERE: &[(&str, &str)] = &[
    ("admins", "at the top of the file, above the first [table]"),
    (
        "include",
        "at the top of the main file, above the first [table]",
    ),
    ("audience", "into [entra]"),
    ("issuer", "into [workload_api]"),
];
