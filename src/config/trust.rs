//! `[workload_api]` and `[entra]`: whose word is taken, where, and how both are reached.

use std::{sync::Arc, time::Duration};

use url::Url;

use super::{
    Endpoint, Entra, Environment, WorkloadApi,
    ca::check_ca_file,
    diagnostics::{Fault, Mistake},
    files::Files,
    raw::Table,
    urls, values,
};

/// What identities build on where they say nothing else.
#[derive(Clone, Debug)]
pub(super) struct Defaults {
    pub(super) authority: Url,
    /// Missing where every identity must name its own.
    pub(super) tenant: Option<Arc<str>>,
    /// Whether there is one with a mistake, which is no reason to complain about every identity.
    pub(super) tenant_broken: bool,
    pub(super) audience: Arc<str>,
    pub(super) issuer: Option<Arc<str>>,
    pub(super) graph_endpoint: Url,
    pub(super) arm_endpoint: Url,
}

/// One of Microsoft's clouds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cloud {
    pub(super) name: &'static str,
    pub(super) authority: &'static str,
    /// Another name of the same authority.
    alias: Option<&'static str>,
    pub(super) audience: &'static str,
    graph: &'static str,
    arm: &'static str,
}

pub(super) const PUBLIC: Cloud = Cloud {
    name: "public",
    authority: "https://login.microsoftonline.com",
    alias: None,
    audience: "api://AzureADTokenExchange",
    graph: "https://graph.microsoft.com",
    arm: "https://management.azure.com",
};

const CLOUDS: [Cloud; 3] = [
    PUBLIC,
    Cloud {
        name: "us-government",
        authority: "https://login.microsoftonline.us",
        alias: None,
        audience: "api://AzureADTokenExchangeUSGov",
        graph: "https://graph.microsoft.us",
        arm: "https://management.usgovcloudapi.net",
    },
    Cloud {
        name: "china",
        authority: "https://login.partner.microsoftonline.cn",
        alias: Some("https://login.chinacloudapi.cn"),
        audience: "api://AzureADTokenExchangeChina",
        graph: "https://microsoftgraph.chinacloudapi.cn",
        arm: "https://management.chinacloudapi.cn",
    },
];

impl Cloud {
    fn named(text: &str) -> Result<Self, Fault> {
        CLOUDS.into_iter().find(|c| c.name == text).ok_or_else(|| {
            Fault::new(
                format!("there is no cloud `{text}`"),
                "write \"public\", \"us-government\" or \"china\"",
            )
        })
    }

    /// The cloud that an authority belongs to, where it is one's own.
    pub(super) fn of(authority: &Url) -> Option<Self> {
        let is = |text: &str| Url::parse(text).is_ok_and(|url| url == *authority);
        CLOUDS
            .into_iter()
            .find(|c| is(c.authority) || c.alias.is_some_and(is))
    }
}

/// Reads `[workload_api]`, whose endpoint may come from the environment. With the issuer, which
/// stands there because SPIRE decides it.
pub(super) fn workload_api(
    table: Option<&mut Table<'_>>,
    environment: &Environment,
    allow_http_loopback: bool,
    sink: &super::diagnostics::Sink,
) -> (Option<WorkloadApi>, Option<Arc<str>>) {
    let (mut endpoint, mut configured) = (None, false);
    let (mut timeout, mut issuer) = (WorkloadApi::DEFAULT_TIMEOUT, None);
    if let Some(table) = table {
        configured = table.has("endpoint");
        endpoint = table.parsed("endpoint", values::endpoint);
        timeout =
            super::limits::duration(table, "timeout", MIN_TIMEOUT, MAX_TIMEOUT).unwrap_or(timeout);
        issuer = read_issuer(table, allow_http_loopback);
    }
    if !configured {
        endpoint = endpoint_of(environment)
            .map_err(|mistake| sink.mistake(mistake))
            .ok();
    }
    (
        endpoint.map(|endpoint| WorkloadApi { endpoint, timeout }),
        issuer,
    )
}

/// The endpoint that the environment names.
pub(super) fn endpoint_of(environment: &Environment) -> Result<Endpoint, Mistake> {
    match environment.variable(ENDPOINT_VARIABLE) {
        Some(text) => {
            values::endpoint(text).map_err(|fault| Mistake::in_variable(ENDPOINT_VARIABLE, fault))
        }
        None => Err(Mistake::general(
            "nothing says where the SPIFFE Workload API is",
            format!(
                "set `endpoint` in [workload_api], as in \
                 \"unix:///run/spire/agent/public/api.sock\", or ${ENDPOINT_VARIABLE}"
            ),
        )),
    }
}

/// An `issuer` key, with a warning where it will probably not match.
pub(super) fn read_issuer(table: &mut Table<'_>, allow_http_loopback: bool) -> Option<Arc<str>> {
    let text = table.text("issuer")?;
    let parsed = urls::issuer(text.get_ref(), allow_http_loopback);
    let issuer = table.reading().keep(&text.span(), parsed)?;
    if issuer.ends_with('/') {
        table.reading().warn(
            &text.span(),
            "the issuer ends in a slash, and Entra compares it byte for byte".into(),
            "make sure that SPIRE's `jwt_issuer` and the credential's issuer end in one too",
        );
    }
    Some(issuer)
}

/// `entra.allow_http_loopback`, which other values are read in the light of.
pub(super) fn allow_http_loopback(table: Option<&mut Table<'_>>) -> bool {
    table
        .and_then(|table| table.flag("allow_http_loopback"))
        .unwrap_or(false)
}

/// Reads `[entra]`.
pub(super) fn entra(
    table: Option<&mut Table<'_>>,
    allow_http_loopback: bool,
    issuer: Option<Arc<str>>,
    files: &Files,
    now: i64,
) -> Option<(Entra, Defaults)> {
    let mut entra = Entra {
        ca_file: None,
        ca_only: false,
        proxy: None,
        allow_http_loopback,
    };
    let mut chosen = Chosen::default();
    if let Some(table) = table {
        chosen = Chosen::read(table, allow_http_loopback);
        entra.proxy = table.parsed("proxy", urls::proxy);
        (entra.ca_file, entra.ca_only) = ca(table, files, now);
    }
    let defaults = chosen.resolve(issuer)?;
    Some((entra, defaults))
}

/// What `[entra]` says, before the cloud fills the gaps.
#[derive(Default)]
struct Chosen {
    cloud: Option<Cloud>,
    authority: Option<Url>,
    tenant: Option<Arc<str>>,
    tenant_given: bool,
    audience: Option<Arc<str>>,
    graph: Option<Url>,
    arm: Option<Url>,
}

impl Chosen {
    fn read(table: &mut Table<'_>, allow_http_loopback: bool) -> Self {
        let origin = |text: &str| urls::origin(text, allow_http_loopback);
        let chosen = Self {
            cloud: table.parsed("cloud", Cloud::named),
            authority: table.parsed("authority", origin),
            tenant: table.parsed("tenant", values::tenant),
            tenant_given: table.has("tenant"),
            audience: table.parsed("audience", urls::audience),
            graph: table.parsed("graph_endpoint", origin),
            arm: table.parsed("arm_endpoint", origin),
        };
        chosen.contradictions(table);
        chosen
    }

    fn contradictions(&self, table: &mut Table<'_>) {
        let (Some(cloud), Some(authority)) = (self.cloud, &self.authority) else {
            return;
        };
        let Some(span) = table.value("authority").map(|value| value.span()) else {
            return;
        };
        match Cloud::of(authority) {
            Some(other) if other != cloud => table.reading().mistake(
                &span,
                Fault::new(
                    format!(
                        "this is the authority of cloud `{}`, and `cloud` is `{}`",
                        other.name, cloud.name
                    ),
                    "remove one of the two",
                ),
            ),
            None if cloud != PUBLIC && self.audience.is_none() => table.reading().warn(
                &span,
                format!(
                    "with an authority of its own the audience defaults to `{}`, whatever `cloud` \
                     says",
                    PUBLIC.audience
                ),
                "set `audience` in [entra] to what the credential has",
            ),
            _ => {}
        }
    }

    fn resolve(self, issuer: Option<Arc<str>>) -> Option<Defaults> {
        let cloud = match &self.authority {
            // The cloud's own name for itself; a stranger's audience is the public cloud's.
            Some(authority) => Cloud::of(authority),
            None => Some(self.cloud.unwrap_or(PUBLIC)),
        };
        let audience = cloud.unwrap_or(PUBLIC).audience;
        // The management endpoints follow `cloud` in any case: they are other hosts.
        let hosts = cloud.or(self.cloud).unwrap_or(PUBLIC);
        let url = |text: &str| Url::parse(text).ok();
        Some(Defaults {
            authority: self.authority.or_else(|| url(hosts.authority))?,
            tenant_broken: self.tenant_given && self.tenant.is_none(),
            tenant: self.tenant,
            audience: self.audience.unwrap_or_else(|| audience.into()),
            issuer,
            graph_endpoint: self.graph.or_else(|| url(hosts.graph))?,
            arm_endpoint: self.arm.or_else(|| url(hosts.arm))?,
        })
    }
}

/// Defaults without a file: of `authority`, or of the public cloud.
pub(super) fn defaults_of(authority: Option<Url>) -> Option<Defaults> {
    let chosen = Chosen {
        authority,
        ..Chosen::default()
    };
    chosen.resolve(None)
}

fn ca(table: &mut Table<'_>, files: &Files, now: i64) -> (Option<std::path::PathBuf>, bool) {
    let file = table.text("ca_file");
    let only = table.value("ca_only").map(|value| value.span());
    let ca_only = table.flag("ca_only").unwrap_or(false);
    let Some(file) = file else {
        if let (true, Some(span), false) = (ca_only, only, table.has("ca_file")) {
            let message = "`ca_only` trusts the certificates of `ca_file` alone, and there is none";
            table.reading().mistake(
                &span,
                Fault::new(message, "set `ca_file`, or remove `ca_only`"),
            );
        }
        return (None, ca_only);
    };
    let path = check_ca_file(table, &file, files, now);
    (path, ca_only)
}

pub(super) const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
const MIN_TIMEOUT: Duration = Duration::from_millis(100);
const MAX_TIMEOUT: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{Given, HEAD, IDENTITY, LISTEN, given, says};

    #[test]
    fn a_cloud_brings_its_hosts_and_its_audience() {
        for (cloud, authority, audience) in [
            (
                "public",
                "https://login.microsoftonline.com/",
                "api://AzureADTokenExchange",
            ),
            (
                "us-government",
                "https://login.microsoftonline.us/",
                "api://AzureADTokenExchangeUSGov",
            ),
            (
                "china",
                "https://login.partner.microsoftonline.cn/",
                "api://AzureADTokenExchangeChina",
            ),
        ] {
            let chosen = Chosen {
                cloud: Some(Cloud::named(cloud).unwrap()),
                ..Chosen::default()
            };
            let defaults = chosen.resolve(None).unwrap();
            assert_eq!(defaults.authority.as_str(), authority);
            assert_eq!(&*defaults.audience, audience);
            // The same by the authority alone.
            let by_url = defaults_of(Some(defaults.authority.clone())).unwrap();
            assert_eq!(by_url.audience, defaults.audience);
            assert_eq!(by_url.graph_endpoint, defaults.graph_endpoint);
            assert_eq!(by_url.arm_endpoint, defaults.arm_endpoint);
        }
        assert!(
            Cloud::named("germany")
                .unwrap_err()
                .fix
                .contains("us-government")
        );
        let old = Url::parse("https://login.chinacloudapi.cn").unwrap();
        let defaults = defaults_of(Some(old.clone())).unwrap();
        assert_eq!(defaults.authority, old);
        assert_eq!(&*defaults.audience, "api://AzureADTokenExchangeChina");
    }

    #[test]
    fn every_endpoint_of_every_cloud_is_an_origin() {
        for cloud in CLOUDS {
            for text in [
                Some(cloud.authority),
                cloud.alias,
                Some(cloud.graph),
                Some(cloud.arm),
            ]
            .into_iter()
            .flatten()
            {
                urls::origin(text, false).unwrap();
            }
        }
    }

    #[test]
    fn with_an_authority_of_its_own_the_audience_is_the_public_clouds() {
        let custom = Url::parse("https://localhost:8443").unwrap();
        let chosen = Chosen {
            cloud: Some(Cloud::named("us-government").unwrap()),
            authority: Some(custom.clone()),
            ..Chosen::default()
        };
        let defaults = chosen.resolve(None).unwrap();
        assert_eq!(defaults.authority, custom);
        assert_eq!(&*defaults.audience, PUBLIC.audience);
        assert_eq!(
            defaults.graph_endpoint.as_str(),
            "https://graph.microsoft.us/"
        );
    }

    fn with(workload_api: &str, entra: &str) -> Given {
        given(&format!(
            "[workload_api]\n{workload_api}\n[entra]\ntenant = \"contoso.com\"\n{entra}\n{LISTEN}{IDENTITY}"
        ))
    }

    const ENDPOINT: &str = "endpoint = \"unix:///run/spire/api.sock\"";

    #[test]
    fn the_endpoint_is_configured_or_in_the_environment() {
        let api = with(ENDPOINT, "").fine().workload_api;
        assert_eq!(api.endpoint, Endpoint::Unix("/run/spire/api.sock".into()));
        // SPIRE's agent takes 30 seconds before it falls back to what it has.
        assert!(api.timeout > Duration::from_secs(30) && api.timeout < MAX_TIMEOUT);
        let variable = "unix:///run/other.sock";
        let from_env = with("", "")
            .variable(ENDPOINT_VARIABLE, variable)
            .fine()
            .workload_api;
        assert_eq!(from_env.endpoint, Endpoint::Unix("/run/other.sock".into()));
        // What is configured wins.
        let both = with(ENDPOINT, "")
            .variable(ENDPOINT_VARIABLE, variable)
            .fine();
        assert_eq!(both.workload_api.endpoint, api.endpoint);
        says(
            &with("", "").refused(),
            "nothing says where the SPIFFE Workload API is",
        );
        let empty = with("", "").variable(ENDPOINT_VARIABLE, "").refused();
        says(&empty, "nothing says where");
        let bad = with("", "").variable(ENDPOINT_VARIABLE, "/run/x").refused();
        says(&bad, "$SPIFFE_ENDPOINT_SOCKET: this is a path");
        // A wrong endpoint is one mistake, not two.
        says(
            &with("endpoint = \"/run/x\"", "").refused(),
            "write unix:///run/x",
        );
        let no_table = given(&format!("{LISTEN}{IDENTITY}tenant = \"contoso.com\"\n"));
        no_table.variable(ENDPOINT_VARIABLE, variable).fine();
    }

    #[test]
    fn the_workload_apis_timeout_has_bounds() {
        let plan = with(&format!("{ENDPOINT}\ntimeout = \"2s\""), "").fine();
        assert_eq!(plan.workload_api.timeout, Duration::from_secs(2));
        let mistakes = with(&format!("{ENDPOINT}\ntimeout = \"2h\""), "").refused();
        says(&mistakes, "write 100ms to 2m");
        let mistakes = with(&format!("{ENDPOINT}\ntimout = \"2s\""), "").refused();
        says(&mistakes, "did you mean `timeout`?");
    }

    #[test]
    fn an_issuer_goes_to_every_identity_and_a_slash_is_worth_a_word() {
        let issuer = |text: &str| with(&format!("{ENDPOINT}\nissuer = \"{text}\""), "");
        let plan = issuer("https://Oidc.example.org/x").fine();
        let issuers = plan.identities[0].trust.assertion.issuer.as_deref();
        assert_eq!(issuers, Some("https://Oidc.example.org/x"));
        says(
            &issuer("https://oidc.example.org/").warnings(),
            "ends in a slash",
        );
        says(
            &issuer("http://oidc.example.org").refused(),
            "https:// only",
        );
    }

    #[test]
    fn entra_is_what_was_written() {
        let plan = with(
            ENDPOINT,
            "cloud = \"us-government\"\nproxy = \"http://u:hunter2@proxy:8080\"\n\
             graph_endpoint = \"https://dod-graph.microsoft.us\"",
        )
        .fine();
        let target = &plan.identities[0].trust.target;
        assert_eq!(
            target.authority.as_str(),
            "https://login.microsoftonline.us/"
        );
        assert_eq!(&*target.tenant, "contoso.com");
        let assertion = &plan.identities[0].trust.assertion;
        assert_eq!(&*assertion.audience, "api://AzureADTokenExchangeUSGov");
        assert_eq!(
            plan.federation.graph_endpoint.as_str(),
            "https://dod-graph.microsoft.us/"
        );
        assert_eq!(
            plan.federation.arm_endpoint.as_str(),
            "https://management.usgovcloudapi.net/"
        );
        assert_eq!(
            plan.entra.proxy.as_ref().unwrap().password(),
            Some("hunter2")
        );
        let shown = format!("{plan:?}");
        assert!(
            !shown.contains("hunter2") && shown.contains("http://proxy:8080/"),
            "{shown}"
        );
    }

    #[test]
    fn entra_has_no_room_for_what_cannot_work() {
        for (line, part) in [
            ("cloud = \"germany\"", "there is no cloud `germany`"),
            ("authority = \"http://login.example.org\"", "in the clear"),
            ("authority = \"http://127.0.0.1:1\"", "allow_http_loopback"),
            ("authority = \"https://h/tenant\"", "end after the host"),
            ("audience = \"\"", "not empty"),
            ("ca_only = true", "and there is none"),
            ("ca_file = \"ca.pem\"", "no absolute path"),
            ("ca_file = \"/does/not/exist.pem\"", "cannot be read"),
            ("proxy = \"proxy:8080\"", "over http or https"),
            ("graph_endpoint = \"https://h/v1.0\"", "end after the host"),
            ("arm_endpoint = \"h\"", "no URL"),
            ("clout = \"public\"", "did you mean `cloud`?"),
            (
                "cloud = \"china\"\nauthority = \"https://login.microsoftonline.us\"",
                "the authority of cloud `us-government`",
            ),
        ] {
            says(&with(ENDPOINT, line).refused(), part);
        }
        let tenant = given(&format!("{HEAD}{LISTEN}{IDENTITY}").replace("72f988bf", "x"));
        says(&tenant.refused(), "neither a GUID nor a domain");
    }

    #[test]
    fn http_on_loopback_is_for_those_who_ask_for_it() {
        let plan = with(
            ENDPOINT,
            "authority = \"http://127.0.0.1:1\"\nallow_http_loopback = true",
        )
        .fine();
        assert!(plan.entra.allow_http_loopback);
        let target = &plan.identities[0].trust.target;
        assert_eq!(target.authority.as_str(), "http://127.0.0.1:1/");
    }

    #[test]
    fn another_clouds_audience_is_not_guessed_from_a_strangers_authority() {
        let lines = "cloud = \"china\"\nauthority = \"https://login.example.org\"";
        says(
            &with(ENDPOINT, lines).warnings(),
            "the audience defaults to",
        );
        with(ENDPOINT, &format!("{lines}\naudience = \"x\"")).fine();
    }

    #[test]
    fn a_ca_file_is_read_and_belongs_to_nobody_else() {
        let with_ca = |pem: &str, more: &str| {
            let given = with(ENDPOINT, "").file("ca.pem", pem);
            let line = format!(
                "[entra]\nca_file = \"{}\"\n{more}",
                given.path("ca.pem").display()
            );
            let text = std::fs::read_to_string(given.path("config.toml")).unwrap();
            given.file("config.toml", &text.replace("[entra]\n", &line))
        };
        let root = include_str!("testdata/root.pem");
        let given = with_ca(root, "ca_only = true\n");
        let plan = given.fine();
        assert_eq!(plan.entra.ca_file, Some(given.path("ca.pem")));
        assert!(plan.entra.ca_only);
        let leaf = with_ca(include_str!("testdata/leaf.pem"), "");
        says(&leaf.warnings(), "`CN=Test Leaf` is no CA's");
        says(&with_ca("", "").refused(), "holds no certificate");
        let open = with_ca(root, "");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o646);
        std::fs::set_permissions(open.path("ca.pem"), mode).unwrap();
        says(&open.refused(), "everybody can write the file");
    }
}
