//! The world around the configuration as a value, and the configuration that needs no file.

use std::{collections::HashMap, env, path::PathBuf, sync::Arc};

use super::{
    CallerRule, Entra, Federation, Identity, Limits, Listener, Mistakes, Plan, Resources, Trust,
    WorkloadApi,
    accounts::{Accounts, SystemAccounts, overflow_ids},
    diagnostics::{Fault, Mistake},
    listen::default_listener,
    trust::{Defaults, defaults_of, endpoint_of},
    urls, values,
};
use crate::{assertion::AssertionSpec, exchange::Target, id::SpiffeId, time::Clock};

/// What reading a configuration depends on beside its files.
pub struct Environment {
    pub(super) variables: HashMap<&'static str, String>,
    pub(super) accounts: Box<dyn Accounts>,
    /// Whom the process runs as.
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Who may own the files, beside root: the same, except in tests.
    pub(super) file_uid: u32,
    pub(super) overflow_uid: u32,
    pub(super) overflow_gid: u32,
    /// Seconds since the Unix epoch.
    pub(super) now: i64,
}

impl Environment {
    /// This process's.
    pub fn system() -> Self {
        let (overflow_uid, overflow_gid) = overflow_ids();
        // A value that is no Unicode will be refused by the parser it is for.
        let variables = VARIABLES
            .into_iter()
            .filter_map(|name| Some((name, env::var_os(name)?.to_string_lossy().into_owned())))
            .collect();
        let uid = nix::unistd::geteuid().as_raw();
        Self {
            variables,
            accounts: Box::new(SystemAccounts),
            uid,
            file_uid: uid,
            gid: nix::unistd::getegid().as_raw(),
            overflow_uid,
            overflow_gid,
            now: Clock::system().now().unix_seconds(),
        }
    }

    /// A variable; an empty one counts as none.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

/// The configuration file when none is named.
pub fn default_path() -> PathBuf {
    path_in(&Environment::system())
}

fn path_in(environment: &Environment) -> PathBuf {
    environment.variable(CONFIG).unwrap_or(DEFAULT_PATH).into()
}

/// `run --from-env`: everything but the SPIFFE ID, which the agent may have to be asked for.
#[derive(Clone, Debug)]
pub struct EnvPlan {
    /// `SPIFFE_ID`. Without it the agent must give exactly one SVID: that one's.
    pub subject: Option<SpiffeId>,
    /// Whom to ask.
    pub workload_api: WorkloadApi,
    /// The audience to ask with.
    pub audience: Arc<str>,
    target: Target,
    federation: Federation,
    listener: Listener,
    uid: u32,
}

/// Reads `AZURE_TENANT_ID`, `AZURE_CLIENT_ID`, `SPIFFE_ENDPOINT_SOCKET`, `SPIFFE_ID` and
/// `AZURE_AUTHORITY_HOST`. The socket is where clients look for it: at `SPIFFE_ENTRA_SOCKET`, or
/// at the usual place.
pub fn from_env(environment: &Environment) -> Result<EnvPlan, Mistakes> {
    let mut mistakes = Mistakes::new();
    let mut reader = Reader {
        environment,
        mistakes: &mut mistakes,
    };
    let tenant = reader.required("AZURE_TENANT_ID", "the tenant's GUID", values::tenant);
    let client_id = reader.required(
        "AZURE_CLIENT_ID",
        "the client id of the application or managed identity",
        values::guid,
    );
    let subject = reader.optional("SPIFFE_ID", values::spiffe_id);
    let authority = reader.optional("AZURE_AUTHORITY_HOST", |text| {
        // SDKs take a bare host name there too.
        let bare = !text.contains("://");
        let text = if bare {
            format!("https://{text}")
        } else {
            text.to_owned()
        };
        urls::origin(&text, false)
    });
    let socket = reader.optional("SPIFFE_ENTRA_SOCKET", values::listen_path);
    let endpoint = endpoint_of(environment);
    if environment.uid == environment.overflow_uid {
        mistakes.extend([Mistake::general(
            format!(
                "the caller would be uid {}, the kernel's overflow uid: every unmapped user of \
                 another namespace",
                environment.uid
            ),
            "run the daemon as a user of its own",
        )]);
    }
    let endpoint = endpoint.map_err(|mistake| mistakes.extend([mistake])).ok();
    let plan = || {
        let Defaults {
            authority,
            audience,
            graph_endpoint,
            arm_endpoint,
            ..
        } = defaults_of(authority)?;
        let mut listener = default_listener();
        listener.socket = socket.unwrap_or(listener.socket);
        Some(EnvPlan {
            subject,
            workload_api: WorkloadApi {
                endpoint: endpoint?,
                timeout: WorkloadApi::DEFAULT_TIMEOUT,
            },
            audience,
            target: Target {
                authority,
                tenant: tenant?,
                client_id: client_id?.into(),
            },
            federation: Federation {
                issuer: None,
                owner: None,
                sign_in: None,
                graph_endpoint,
                arm_endpoint,
            },
            listener,
            uid: environment.uid,
        })
    };
    match plan() {
        Some(plan) if mistakes.is_empty() => Ok(plan),
        _ => Err(mistakes),
    }
}

impl EnvPlan {
    /// The plan, for a SPIFFE ID: the configured one, or what the agent gave.
    pub fn with_subject(self, subject: SpiffeId) -> Plan {
        let identity = Identity {
            name: "default".into(),
            trust: Trust {
                target: self.target,
                assertion: AssertionSpec {
                    subject,
                    audience: self.audience,
                    issuer: None,
                },
            },
            object_id: None,
            resource_id: None,
            resources: Resources::Any,
            callers: vec![CallerRule {
                uid: Some(self.uid),
                gids: Vec::new(),
                resources: None,
                written: format!("{{ uid = {} }}", self.uid),
            }],
            expose_assertion: false,
            federate: None,
        };
        Plan {
            workload_api: self.workload_api,
            entra: Entra {
                ca_file: None,
                ca_only: false,
                proxy: None,
                allow_http_loopback: false,
            },
            listeners: vec![self.listener],
            admins: Vec::new(),
            metrics: None,
            limits: Limits::default(),
            identities: vec![Arc::new(identity)],
            quarantined: Vec::new(),
            federation: self.federation,
            daemon_uid: Some(self.uid),
            warnings: Vec::new(),
            mistakes: Mistakes::new(),
        }
    }
}

struct Reader<'a> {
    environment: &'a Environment,
    mistakes: &'a mut Mistakes,
}

impl Reader<'_> {
    fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        match parse(self.environment.variable(name)?) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.mistakes.extend([Mistake::in_variable(name, fault)]);
                None
            }
        }
    }

    fn required<T>(
        &mut self,
        name: &'static str,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        if self.environment.variable(name).is_none() {
            let fix = format!("set it to {what}");
            self.mistakes
                .extend([Mistake::general(format!("${name} is not set"), fix)]);
            return None;
        }
        self.optional(name, parse)
    }
}

const CONFIG: &str = "SPIFFE_ENTRA_CONFIG";
const DEFAULT_PATH: &str = "/etc/spiffe-entra/config.toml";
/// Every variable that is looked at.
const VARIABLES: [&str; 7] = [
    CONFIG,
    "SPIFFE_ENDPOINT_SOCKET",
    "SPIFFE_ID",
    "SPIFFE_ENTRA_SOCKET",
    "AZURE_TENANT_ID",
    "AZURE_CLIENT_ID",
    "AZURE_AUTHORITY_HOST",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        Endpoint,
        testing::{Given, given, says},
    };

    fn usual() -> Given {
        given("")
            .variable("AZURE_TENANT_ID", "72f988bf-86f1-41af-91ab-2d7cd011db47")
            .variable("AZURE_CLIENT_ID", "0F8FAD5B-d9cb-469f-a165-70867728950e")
            .variable("SPIFFE_ENDPOINT_SOCKET", "unix:///run/api.sock")
    }

    fn read(given: &Given) -> EnvPlan {
        from_env(&given.environment).unwrap_or_else(|mistakes| panic!("{mistakes}"))
    }

    fn refused(given: &Given) -> Vec<String> {
        given.lines(&from_env(&given.environment).unwrap_err())
    }

    #[test]
    fn three_variables_are_enough() {
        let plan = read(&usual());
        assert_eq!(plan.subject, None, "the agent is to be asked");
        assert_eq!(&*plan.audience, "api://AzureADTokenExchange");
        let subject = SpiffeId::parse("spiffe://example.org/only").unwrap();
        let plan = plan.with_subject(subject.clone());
        assert_eq!(
            plan.workload_api.endpoint,
            Endpoint::Unix("/run/api.sock".into())
        );
        let [identity] = &plan.identities[..] else {
            panic!("one identity");
        };
        assert_eq!(identity.name, "default");
        assert_eq!(identity.resources, Resources::Any);
        assert_eq!(identity.trust.assertion.subject, subject);
        assert_eq!(
            &*identity.trust.target.client_id,
            "0f8fad5b-d9cb-469f-a165-70867728950e"
        );
        assert_eq!(identity.callers.len(), 1);
        assert_eq!(
            (identity.callers[0].uid, plan.daemon_uid),
            (Some(900), Some(900))
        );
        assert_eq!(plan.listeners, [default_listener()]);
        assert!(plan.admins.is_empty() && plan.mistakes.is_empty());
    }

    #[test]
    fn the_others_are_optional() {
        let given = usual()
            .variable("SPIFFE_ID", "spiffe://example.org/me")
            .variable("SPIFFE_ENTRA_SOCKET", "/tmp/x.sock")
            .variable("AZURE_AUTHORITY_HOST", "https://login.microsoftonline.us/");
        let plan = read(&given);
        let subject = plan.subject.clone().unwrap();
        assert_eq!(subject.as_str(), "spiffe://example.org/me");
        assert_eq!(&*plan.audience, "api://AzureADTokenExchangeUSGov");
        let plan = plan.with_subject(subject);
        let target = &plan.identities[0].trust.target;
        assert_eq!(
            target.authority.as_str(),
            "https://login.microsoftonline.us/"
        );
        assert_eq!(plan.listeners[0].socket, PathBuf::from("/tmp/x.sock"));
        // SDKs take it without a scheme.
        let bare = usual().variable("AZURE_AUTHORITY_HOST", "login.microsoftonline.us");
        assert_eq!(&*read(&bare).audience, "api://AzureADTokenExchangeUSGov");
    }

    #[test]
    fn every_mistake_is_reported_with_its_variable() {
        let given = given("")
            .variable("AZURE_TENANT_ID", "common")
            .variable("AZURE_CLIENT_ID", "")
            .variable("SPIFFE_ID", "me")
            .variable("AZURE_AUTHORITY_HOST", "http://h")
            .variable("SPIFFE_ENTRA_SOCKET", "x");
        let mistakes = refused(&given);
        assert_eq!(mistakes.len(), 6, "{mistakes:#?}");
        for part in [
            "$AZURE_TENANT_ID: `common` is no tenant",
            "$AZURE_CLIENT_ID is not set",
            "$SPIFFE_ID: `me` is no SPIFFE ID",
            "$AZURE_AUTHORITY_HOST: http would send",
            "$SPIFFE_ENTRA_SOCKET: this is no absolute path",
            "nothing says where the SPIFFE Workload API is",
        ] {
            assert!(
                mistakes.iter().any(|m| m.starts_with(part)),
                "{part}: {mistakes:#?}"
            );
        }
    }

    #[test]
    fn the_overflow_uid_is_no_caller_here_either() {
        let mut given = usual();
        given.environment.uid = given.environment.overflow_uid;
        says(&refused(&given), "overflow uid");
    }

    #[test]
    fn the_file_is_named_by_a_variable_or_the_usual_one() {
        let path = PathBuf::from(DEFAULT_PATH);
        assert_eq!(path_in(&given("").environment), path);
        assert_eq!(path_in(&given("").variable(CONFIG, "").environment), path);
        let given = given("").variable(CONFIG, "/x.toml");
        assert_eq!(path_in(&given.environment), PathBuf::from("/x.toml"));
    }
}
