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
    /// Served only where there are no mistakes, however much of it could be read.
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
        .map_or_else(|| span.clone(), |value| value.span());
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
        identity,
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
    if default.is_none() && !defaults.is_some_and(|defaults| defaults.tenant_broken) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{
        HEAD, IDENTITY, LISTEN, beside_a_sound_one, given, identity_with, says,
    };

    #[test]
    fn an_identity_is_what_was_written() {
        let plan = given(&format!("{HEAD}{LISTEN}{IDENTITY}")).fine();
        let identity = &plan.identities[0];
        assert_eq!(identity.name, "payments");
        let target = &identity.trust.target;
        assert_eq!(
            target.authority.as_str(),
            "https://login.microsoftonline.com/"
        );
        assert_eq!(&*target.tenant, "72f988bf-86f1-41af-91ab-2d7cd011db47");
        assert_eq!(&*target.client_id, "0f8fad5b-d9cb-469f-a165-70867728950e");
        let assertion = &identity.trust.assertion;
        assert_eq!(assertion.subject.as_str(), "spiffe://example.org/payments");
        assert_eq!(&*assertion.audience, "api://AzureADTokenExchange");
        assert_eq!(assertion.issuer, None);
        // Without one trailing slash, as policy compares them.
        let resources = ["https://graph.microsoft.com", "https://vault.azure.net"];
        let resources = resources.map(String::from).into();
        assert_eq!(identity.resources, Resources::Only(resources));
        assert!(!identity.expose_assertion);
        assert_eq!((&identity.object_id, &identity.resource_id), (&None, &None));
        assert_eq!(identity.federate, None);
    }

    #[test]
    fn an_identity_may_say_more() {
        let more = r#"
            tenant = "contoso.onmicrosoft.com"
            object_id = "AAAAAAAA-d9cb-469f-a165-70867728950e"
            resource_id = "/subscriptions/72f988bf-86f1-41af-91ab-2d7cd011db47/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/p"
            expose_assertion = true
            federate = { application = "BBBBBBBB-d9cb-469f-a165-70867728950e" }
        "#;
        let head = HEAD.replace("[entra]", "issuer = \"https://oidc.example.org\"\n[entra]");
        let plan = given(&format!("{head}{LISTEN}{IDENTITY}{more}")).fine();
        let identity = &plan.identities[0];
        assert_eq!(&*identity.trust.target.tenant, "contoso.onmicrosoft.com");
        let issuer = identity.trust.assertion.issuer.as_deref();
        assert_eq!(issuer, Some("https://oidc.example.org"));
        let object = identity.object_id.as_deref();
        assert_eq!(object, Some("aaaaaaaa-d9cb-469f-a165-70867728950e"));
        assert!(identity.resource_id.is_some() && identity.expose_assertion);
        let application = "bbbbbbbb-d9cb-469f-a165-70867728950e".to_owned();
        assert_eq!(identity.federate, Some(Federate::Application(application)));
    }

    #[test]
    fn a_mistake_inside_an_identity_costs_that_identity() {
        let long = format!("spiffe_id = \"spiffe://example.org/{}\"", "a".repeat(580));
        for (key, line, part) in [
            ("name", "", "has no `name`"),
            ("name", "name = \"a b\"", "no name of an identity"),
            ("name", "name = 1", "is a whole number"),
            (
                "spiffe_id",
                "",
                "[[identity]] `payments` has no `spiffe_id`",
            ),
            ("spiffe_id", "spiffe_id = \"https://x/y\"", "no SPIFFE ID"),
            (
                "spiffe_id",
                "spiffe_id = \"spiffe://example.org/a/\"",
                "no SPIFFE ID",
            ),
            (
                "spiffe_id",
                "spiffe_id = \"spiffe://example.org\"",
                "names a trust domain",
            ),
            ("spiffe_id", &long, "601 characters"),
            ("client_id", "", "has no `client_id`"),
            (
                "client_id",
                "client_id = \"payments\"",
                "`payments` is no GUID",
            ),
            ("resources", "", "has no `resources`"),
            (
                "resources",
                "resources = []",
                "an empty list allows nothing",
            ),
            ("resources", "resources = \"*\"", "write a list of strings"),
            (
                "resources",
                "resources = [\"*\", \"https://a\"]",
                "makes the others pointless",
            ),
            (
                "resources",
                "resources = [\"https://a https://b\"]",
                "one token is for one resource",
            ),
            ("resources", "resources = [\"\"]", "the resource is empty"),
            (
                "resources",
                "resources = [\"https://*.vault.azure.net\"]",
                "there are no patterns",
            ),
            ("callers", "caller = []", "did you mean `callers`?"),
            ("callers", "tenant = \"common\"", "`common` is no tenant"),
            ("callers", "object_id = \"x\"", "`x` is no GUID"),
            ("callers", "resource_id = \"/x\"", "no resource id"),
            ("callers", "expose_assertion = \"yes\"", "true or false"),
            (
                "callers",
                "federate = {}",
                "one application or one managed identity",
            ),
            ("callers", "federate = { application = \"x\" }", "no GUID"),
            (
                "callers",
                "federate = { managed_identity = \"x\" }",
                "no resource id",
            ),
            (
                "callers",
                "federate = { app = \"x\", managed_identity = 1 }",
                "did you mean",
            ),
            ("callers", "admins = []", "belongs at the top of the file"),
        ] {
            let mistakes = beside_a_sound_one(&identity_with(key, line)).quarantined();
            let found = mistakes.iter().any(|mistake| mistake.contains(part));
            assert!(found, "{line}: {part:?} is not in {mistakes:#?}");
        }
    }

    #[test]
    fn a_credential_is_for_one_thing() {
        let both = "federate = { application = \"0f8fad5b-d9cb-469f-a165-70867728950e\", \
                    managed_identity = \"/x\" }";
        let text = identity_with("callers", &format!("callers = [{{ uid = 0 }}]\n{both}"));
        says(
            &beside_a_sound_one(&text).quarantined(),
            "one application or one managed identity",
        );
    }

    #[test]
    fn every_mistake_of_an_identity_is_reported_with_its_place() {
        let bad = "[[identity]]\nname = \"bad\"\nspiffe_id = \"x\"\nclient_id = \"y\"\n\
                   resources = []\ncallers = [{ user = \"who\" }]\ncolour = 1\n";
        let given = beside_a_sound_one(bad);
        let mistakes = given.quarantined();
        assert_eq!(mistakes.len(), 5, "{mistakes:#?}");
        let plan = given.load().unwrap();
        assert_eq!(plan.quarantined[0].name, "bad");
        let lines: Vec<_> = plan.mistakes.iter().map(|m| (m.line, m.column)).collect();
        let first = lines[0].0.unwrap();
        let places = [(0, 13), (1, 13), (2, 13), (3, 21), (4, 1)];
        let expected = places.map(|(line, column)| (Some(first + line), Some(column)));
        assert_eq!(lines, expected);
        assert!(plan.strict().is_err());
    }

    #[test]
    fn an_identity_without_a_name_is_called_by_its_place() {
        let given = beside_a_sound_one("[[identity]]\n");
        let plan = given.load().unwrap();
        let name = plan.quarantined[0].name.clone();
        let config = given.path("config.toml");
        assert!(
            name.starts_with(&format!("{}:", config.display())),
            "{name}"
        );
    }

    #[test]
    fn a_tenant_must_come_from_somewhere() {
        let head = HEAD.replace("tenant", "# tenant");
        let own = format!("{IDENTITY}tenant = \"contoso.com\"\n");
        given(&format!("{head}{LISTEN}{own}")).fine();
        let none = IDENTITY.replace("name = \"payments\"", "name = \"orders\"");
        let given = given(&format!("{head}{LISTEN}{own}{none}"));
        says(
            &given.quarantined(),
            "`orders` has no `tenant`, and [entra] has none either",
        );
    }

    #[test]
    fn two_identities_may_share_a_client_id() {
        let other = IDENTITY.replace("name = \"payments\"", "name = \"orders\"");
        let plan = given(&format!("{HEAD}{LISTEN}{IDENTITY}{other}")).fine();
        assert_eq!(plan.identities.len(), 2);
    }

    #[test]
    fn anything_is_a_star() {
        let text = identity_with("resources", "resources = [\"*\"]");
        let plan = given(&format!("{HEAD}{LISTEN}{text}")).fine();
        assert_eq!(plan.identities[0].resources, Resources::Any);
    }
}
