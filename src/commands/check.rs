//! `spiffe-entra check`: who may become what, or every mistake. Pure: text in a `String`.

use std::fmt::Write;

use serde::Serialize;

use crate::config::{CallerRule, Identity, Listener, Mistake, Mistakes, Plan, Resources};

/// For people: socket by socket, caller → identity → SPIFFE ID → credential → tenant and client →
/// resources; then warnings and mistakes.
pub(super) fn text(read: &Result<Plan, Mistakes>) -> String {
    let mut page = Page::default();
    match read {
        Ok(plan) => page.plan(plan),
        Err(mistakes) => page.mistakes(mistakes),
    }
    page.line(&summary(read));
    page.0
}

/// For programs: the same as JSON.
pub(super) fn json(read: &Result<Plan, Mistakes>) -> String {
    let shown = Shown {
        ok: exit_code(read) == 0,
        plan: read.as_ref().ok().map(PlanShown::of),
        warnings: read.as_ref().map_or(&[], |plan| &plan.warnings),
        mistakes: match read {
            Ok(plan) => &plan.mistakes,
            Err(mistakes) => mistakes,
        },
    };
    // Strings, numbers and lists of them: there is nothing in it that JSON cannot say.
    let mut json = serde_json::to_string_pretty(&shown).unwrap_or_default();
    json.push('\n');
    json
}

/// 0 where all is in order, 2 with any mistake, be it one identity's only.
pub(super) fn exit_code(read: &Result<Plan, Mistakes>) -> u8 {
    match read {
        Ok(plan) if plan.mistakes.is_empty() => 0,
        _ => 2,
    }
}

fn summary(read: &Result<Plan, Mistakes>) -> String {
    match read {
        Ok(plan) if plan.quarantined.is_empty() => format!(
            "{} on {}, no mistakes, {}",
            counted(plan.identities.len(), "identity", "identities"),
            counted(plan.listeners.len(), "socket", "sockets"),
            counted(plan.warnings.len(), "warning", "warnings"),
        ),
        Ok(plan) => {
            let names: Vec<&str> = plan.quarantined.iter().map(|q| q.name.as_str()).collect();
            format!(
                "{} in {}: `run` leaves out {}, and `run --strict` does not start",
                counted(plan.mistakes.len(), "mistake", "mistakes"),
                counted(plan.quarantined.len(), "identity", "identities"),
                names.join(", "),
            )
        }
        Err(mistakes) => format!(
            "{}: `run` does not start",
            counted(mistakes.len(), "mistake", "mistakes")
        ),
    }
}

fn counted(count: usize, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {many}"),
    }
}

/// Text that grows by lines.
#[derive(Default)]
struct Page(String);

impl Page {
    fn plan(&mut self, plan: &Plan) {
        let field = |page: &mut Self, label: &str, value: &str| {
            page.line(&format!("{label:<13}{value}"));
        };
        let endpoint = plan.workload_api.endpoint.to_string();
        field(self, "workload API", &endpoint);
        if let Some(proxy) = plan.entra.shown_proxy() {
            field(self, "proxy", proxy.as_str());
        }
        if let Some(file) = &plan.entra.ca_file {
            let how = if plan.entra.ca_only {
                "alone"
            } else {
                "beside the system's"
            };
            field(self, "CA file", &format!("{} ({how})", file.display()));
        }
        let mut admins = vec!["root".to_owned()];
        admins.extend(plan.daemon_uid.map(|uid| format!("the daemon (uid {uid})")));
        admins.extend(plan.admins.iter().map(caller));
        field(self, "admins", &admins.join(", "));
        if let Some(address) = plan.metrics {
            field(self, "metrics", &address.to_string());
        }
        for listener in &plan.listeners {
            self.line("");
            self.listener(listener, &plan.identities_on(listener));
        }
        self.line("");
        for warning in &plan.warnings {
            self.line(&format!("warning: {}\n", warning.render()));
        }
        self.mistakes(&plan.mistakes);
    }

    fn listener(&mut self, listener: &Listener, identities: &[&Identity]) {
        let id = |id: Option<u32>, what: &str| match id {
            Some(id) => id.to_string(),
            None => format!("the daemon's {what}"),
        };
        self.line(&format!(
            "socket {} (mode {:04o}, owner {}, group {})",
            listener.socket.display(),
            listener.mode,
            id(listener.owner, "user"),
            id(listener.group, "group"),
        ));
        if identities.is_empty() {
            self.line("  serves nobody");
        }
        for identity in identities {
            self.identity(identity);
        }
    }

    fn identity(&mut self, identity: &Identity) {
        self.line(&format!("  {}", identity.name));
        let callers: Vec<String> = identity.callers.iter().map(caller).collect();
        self.field("callers", &callers, "nobody");
        let (target, assertion) = (&identity.trust.target, &identity.trust.assertion);
        self.field("SPIFFE ID", &[assertion.subject.to_string()], "");
        let issuer = match &assertion.issuer {
            Some(issuer) => format!("issuer   {issuer}"),
            None => "issuer   must equal SPIRE's `jwt_issuer`, byte for byte (no issuer is \
                     configured in [workload_api])"
                .to_owned(),
        };
        let credential = [
            issuer,
            format!("subject  {}", assertion.subject),
            format!("audience {}", assertion.audience),
        ];
        self.field("credential", &credential, "");
        let authority = target.authority.as_str().trim_end_matches('/');
        let entra = [
            format!("tenant   {} at {authority}", target.tenant),
            format!("client   {}", target.client_id),
        ];
        self.field("Entra", &entra, "");
        let other = [&identity.object_id, &identity.resource_id];
        let other: Vec<String> = other.into_iter().flatten().cloned().collect();
        if !other.is_empty() {
            self.field("also called", &other, "");
        }
        let resources = match &identity.resources {
            Resources::Any => vec!["anything".to_owned()],
            Resources::Only(set) => set.iter().cloned().collect(),
        };
        self.field("resources", &resources, "");
        if identity.expose_assertion {
            self.field(
                "assertion",
                &["callers may have the JWT-SVID itself".to_owned()],
                "",
            );
        }
    }

    /// A label and its values, one below the other.
    fn field(&mut self, label: &str, values: &[String], none: &str) {
        if values.is_empty() {
            self.line(&format!("    {label:<12}{none}"));
        }
        for (i, value) in values.iter().enumerate() {
            let label = if i == 0 { label } else { "" };
            self.line(&format!("    {label:<12}{value}"));
        }
    }

    fn mistakes(&mut self, mistakes: &Mistakes) {
        for mistake in mistakes {
            self.line(&format!("error: {}\n", mistake.render()));
        }
    }

    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }
}

/// An entry as it was written, with the numbers that names stand for.
fn caller(rule: &CallerRule) -> String {
    let mut shown = match rule.is_any() {
        true => "any (whoever can open the socket)".to_owned(),
        false => rule.written.clone(),
    };
    if shown.contains("user = ") || shown.contains("group = ") {
        let uid = rule.uid.map(|uid| format!("uid {uid}"));
        let gids = rule.gids.iter().map(|gid| format!("gid {gid}"));
        let ids: Vec<String> = uid.into_iter().chain(gids).collect();
        // Writing to a `String` does not fail.
        let _ = write!(shown, " ({})", ids.join(", "));
    }
    shown
}

#[derive(Serialize)]
struct Shown<'a> {
    ok: bool,
    #[serde(flatten)]
    plan: Option<PlanShown<'a>>,
    warnings: &'a [Mistake],
    mistakes: &'a Mistakes,
}

#[derive(Serialize)]
struct PlanShown<'a> {
    workload_api: String,
    proxy: Option<String>,
    ca_file: Option<String>,
    ca_only: bool,
    daemon_uid: Option<u32>,
    admins: Vec<CallerShown<'a>>,
    metrics: Option<String>,
    sockets: Vec<SocketShown<'a>>,
    identities: Vec<IdentityShown<'a>>,
    quarantined: Vec<QuarantinedShown<'a>>,
}

#[derive(Serialize)]
struct SocketShown<'a> {
    socket: String,
    mode: String,
    owner: Option<u32>,
    group: Option<u32>,
    max_connections: usize,
    identities: Vec<&'a str>,
}

#[derive(Serialize)]
struct IdentityShown<'a> {
    name: &'a str,
    callers: Vec<CallerShown<'a>>,
    spiffe_id: &'a str,
    credential: Credential<'a>,
    authority: &'a str,
    tenant: &'a str,
    client_id: &'a str,
    object_id: Option<&'a str>,
    resource_id: Option<&'a str>,
    resources: Vec<&'a str>,
    expose_assertion: bool,
}

/// The federated identity credential that must be there. Without an issuer here, it is SPIRE's
/// `jwt_issuer`.
#[derive(Serialize)]
struct Credential<'a> {
    issuer: Option<&'a str>,
    subject: &'a str,
    audience: &'a str,
}

#[derive(Serialize)]
struct CallerShown<'a> {
    written: &'a str,
    any: bool,
    uid: Option<u32>,
    gids: &'a [u32],
    resources: Option<Vec<&'a str>>,
}

#[derive(Serialize)]
struct QuarantinedShown<'a> {
    name: &'a str,
    mistakes: &'a [String],
}

impl<'a> PlanShown<'a> {
    fn of(plan: &'a Plan) -> Self {
        let sockets = plan.listeners.iter().map(|listener| SocketShown {
            socket: listener.socket.display().to_string(),
            mode: format!("{:04o}", listener.mode),
            owner: listener.owner,
            group: listener.group,
            max_connections: listener.max_connections,
            identities: plan
                .identities_on(listener)
                .iter()
                .map(|i| i.name.as_str())
                .collect(),
        });
        let quarantined = plan.quarantined.iter().map(|q| QuarantinedShown {
            name: &q.name,
            mistakes: &q.mistakes,
        });
        Self {
            workload_api: plan.workload_api.endpoint.to_string(),
            proxy: plan.entra.shown_proxy().map(String::from),
            ca_file: plan
                .entra
                .ca_file
                .as_ref()
                .map(|file| file.display().to_string()),
            ca_only: plan.entra.ca_only,
            daemon_uid: plan.daemon_uid,
            admins: plan.admins.iter().map(CallerShown::of).collect(),
            metrics: plan.metrics.map(|address| address.to_string()),
            sockets: sockets.collect(),
            identities: plan
                .identities
                .iter()
                .map(|i| IdentityShown::of(i))
                .collect(),
            quarantined: quarantined.collect(),
        }
    }
}

impl<'a> IdentityShown<'a> {
    fn of(identity: &'a Identity) -> Self {
        let (target, assertion) = (&identity.trust.target, &identity.trust.assertion);
        Self {
            name: &identity.name,
            callers: identity.callers.iter().map(CallerShown::of).collect(),
            spiffe_id: assertion.subject.as_str(),
            credential: Credential {
                issuer: assertion.issuer.as_deref(),
                subject: assertion.subject.as_str(),
                audience: &assertion.audience,
            },
            authority: target.authority.as_str().trim_end_matches('/'),
            tenant: &target.tenant,
            client_id: &target.client_id,
            object_id: identity.object_id.as_deref(),
            resource_id: identity.resource_id.as_deref(),
            resources: listed(&identity.resources),
            expose_assertion: identity.expose_assertion,
        }
    }
}

impl<'a> CallerShown<'a> {
    fn of(rule: &'a CallerRule) -> Self {
        Self {
            written: &rule.written,
            any: rule.is_any(),
            uid: rule.uid,
            gids: &rule.gids,
            resources: rule.resources.as_ref().map(listed),
        }
    }
}

fn listed(resources: &Resources) -> Vec<&str> {
    match resources {
        Resources::Any => vec!["*"],
        Resources::Only(set) => set.iter().map(String::as_str).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{HEAD, IDENTITY, LISTEN, given};

    const ISSUER: &str = "issuer = \"https://oidc.example.org\"\n[entra]\n\
                          proxy = \"http://user:hunter2@proxy:8080\"";

    fn sound() -> String {
        let head = HEAD.replace("[entra]", ISSUER);
        let narrowed = "callers = [{ user = \"payments\" }, { gid = 2000, resources = \
                        [\"https://vault.azure.net\"] }]";
        let identity = crate::config::testing::identity_with("callers", narrowed);
        let admins = "admins = [{ group = \"wheel\" }]\n";
        let more = "object_id = \"1f8fad5b-d9cb-469f-a165-70867728950e\"\nexpose_assertion = true\n\
                    [metrics]\nlisten = \"127.0.0.1:9464\"\n";
        format!("{admins}{head}{LISTEN}{identity}{more}")
    }

    #[test]
    fn people_see_who_may_become_what() {
        let read = given(&sound()).load();
        assert_eq!(
            text(&read),
            "\
workload API unix:///run/spire/agent/public/api.sock
proxy        http://proxy:8080/
admins       root, the daemon (uid 900), { group = \"wheel\" } (gid 10)
metrics      127.0.0.1:9464

socket /run/spiffe-entra/a.sock (mode 0666, owner the daemon's user, group the daemon's group)
  payments
    callers     { user = \"payments\" } (uid 1001)
                { gid = 2000, resources = [\"https://vault.azure.net\"] }
    SPIFFE ID   spiffe://example.org/payments
    credential  issuer   https://oidc.example.org
                subject  spiffe://example.org/payments
                audience api://AzureADTokenExchange
    Entra       tenant   72f988bf-86f1-41af-91ab-2d7cd011db47 at https://login.microsoftonline.com
                client   0f8fad5b-d9cb-469f-a165-70867728950e
    also called 1f8fad5b-d9cb-469f-a165-70867728950e
    resources   https://graph.microsoft.com
                https://vault.azure.net
    assertion   callers may have the JWT-SVID itself

1 identity on 1 socket, no mistakes, 0 warnings
"
        );
        assert_eq!(exit_code(&read), 0);
    }

    #[test]
    fn without_an_issuer_people_are_told_where_it_comes_from() {
        let read = given(&format!("{HEAD}{LISTEN}{IDENTITY}")).load();
        assert!(text(&read).contains("issuer   must equal SPIRE's `jwt_issuer`"));
        let json: serde_json::Value = serde_json::from_str(&json(&read)).unwrap();
        assert!(json["identities"][0]["credential"]["issuer"].is_null());
    }

    #[test]
    fn each_socket_lists_what_it_serves() {
        let other = IDENTITY.replace("name = \"payments\"", "name = \"other\"");
        let listen =
            "[[listen]]\nsocket = \"/run/b.sock\"\ngroup = 2000\nidentities = [\"other\"]\n";
        let read = given(&format!("{HEAD}{LISTEN}{listen}{IDENTITY}{other}")).load();
        let shown = text(&read);
        let (first, second) = shown.split_once("socket /run/b.sock").unwrap();
        assert!(first.contains("\n  payments\n") && first.contains("\n  other\n"));
        assert!(!second.contains("\n  payments\n") && second.contains("\n  other\n"));
        assert!(second.starts_with(" (mode 0660, owner the daemon's user, group 2000)"));
        let json: serde_json::Value = serde_json::from_str(&json(&read)).unwrap();
        assert_eq!(
            json["sockets"][0]["identities"],
            serde_json::json!(["payments", "other"])
        );
        assert_eq!(
            json["sockets"][1]["identities"],
            serde_json::json!(["other"])
        );
    }

    #[test]
    fn a_quarantined_identity_is_exit_code_two_beside_the_others() {
        let bad = IDENTITY.replace("name = \"payments\"", "name = \"bad\"\nclient = 1");
        let read = given(&format!("{HEAD}{LISTEN}{IDENTITY}{bad}")).load();
        let shown = text(&read);
        assert!(shown.contains("\n  payments\n"), "{shown}");
        assert!(
            shown.contains("error: unknown key `client` in [[identity]] `bad`\n"),
            "{shown}"
        );
        assert!(shown.contains(" | client = 1\n"), "{shown}");
        let last =
            "1 mistake in 1 identity: `run` leaves out bad, and `run --strict` does not start\n";
        assert!(shown.ends_with(last), "{shown}");
        assert_eq!(exit_code(&read), 2);
        let json: serde_json::Value = serde_json::from_str(&json(&read)).unwrap();
        assert_eq!(json["ok"], false);
        assert_eq!(json["quarantined"][0]["name"], "bad");
        assert_eq!(json["mistakes"][0]["column"], 1);
        assert_eq!(json["mistakes"][0]["fix"], "did you mean `client_id`?");
        assert_eq!(json["identities"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn mistakes_alone_are_shown_in_full() {
        let read = given(&format!("colour = 1\n{HEAD}")).load();
        let shown = text(&read);
        assert!(
            shown.starts_with("error: there is no [[identity]]"),
            "{shown}"
        );
        assert!(
            shown.contains("config.toml:1:1\n  |\n1 | colour = 1\n  | ^^^^^^\n"),
            "{shown}"
        );
        assert!(
            shown.ends_with("2 mistakes: `run` does not start\n"),
            "{shown}"
        );
        assert_eq!(exit_code(&read), 2);
        let json: serde_json::Value = serde_json::from_str(&json(&read)).unwrap();
        assert_eq!(
            (&json["ok"], json["mistakes"].as_array().unwrap().len()),
            (&false.into(), 2)
        );
        assert!(json.get("identities").is_none());
    }

    #[test]
    fn warnings_are_shown_and_are_no_mistakes() {
        let lonely = crate::config::testing::identity_with("callers", "");
        let read = given(&format!("{HEAD}{LISTEN}{lonely}")).load();
        let shown = text(&read);
        assert!(shown.contains("    callers     nobody\n"), "{shown}");
        assert!(
            shown.contains("warning: nobody may ask for [[identity]] `payments`\n"),
            "{shown}"
        );
        assert!(shown.ends_with("no mistakes, 1 warning\n"), "{shown}");
        assert_eq!(exit_code(&read), 0);
    }

    #[test]
    fn the_same_for_programs_and_a_password_for_nobody() {
        let read = given(&sound()).load();
        let json = json(&read);
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed["ok"], true);
        assert_eq!(
            parsed["workload_api"],
            "unix:///run/spire/agent/public/api.sock"
        );
        assert_eq!(parsed["proxy"], "http://proxy:8080/");
        assert_eq!(parsed["sockets"][0]["mode"], "0666");
        let identity = &parsed["identities"][0];
        assert_eq!(identity["spiffe_id"], "spiffe://example.org/payments");
        assert_eq!(identity["credential"]["issuer"], "https://oidc.example.org");
        assert_eq!(identity["callers"][0]["uid"], 1001);
        let vault = serde_json::json!(["https://vault.azure.net"]);
        assert_eq!(identity["callers"][1]["resources"], vault);
        assert_eq!(parsed["admins"][0]["gids"], serde_json::json!([10]));
        for shown in [json, text(&read), format!("{read:?}")] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}
