//! What the tests of this module share: configurations to vary, and a world to read them in.

use std::{fs, path::PathBuf};

use super::{
    Environment, Mistake, Mistakes, Plan,
    accounts::{DEFAULT_OVERFLOW_ID, fake::FakeAccounts},
    load_in,
};

/// Everything but sockets and identities.
pub(crate) const HEAD: &str = r#"
[workload_api]
endpoint = "unix:///run/spire/agent/public/api.sock"
[entra]
tenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
"#;

/// A socket that everybody can open.
pub(crate) const LISTEN: &str = r#"
[[listen]]
socket = "/run/spiffe-entra/a.sock"
mode = "0666"
"#;

/// An identity without mistakes.
pub(crate) const IDENTITY: &str = r#"
[[identity]]
name = "payments"
spiffe_id = "spiffe://example.org/payments"
client_id = "0f8fad5b-d9cb-469f-a165-70867728950e"
resources = ["https://vault.azure.net", "https://graph.microsoft.com/"]
callers = [{ user = "payments" }]
"#;

/// A folder with a configuration, and the world around it.
pub(crate) struct Given {
    pub(crate) dir: tempfile::TempDir,
    pub(super) accounts: FakeAccounts,
    pub(crate) environment: Environment,
}

/// A configuration of this text. The daemon is uid 900 as far as sockets and admins go; its files
/// are those of whoever runs the tests.
pub(crate) fn given(text: &str) -> Given {
    let accounts = FakeAccounts::usual();
    let given = Given {
        dir: tempfile::tempdir().unwrap(),
        environment: Environment {
            variables: [].into(),
            accounts: Box::new(accounts.clone()),
            uid: 900,
            gid: 900,
            file_uid: nix::unistd::geteuid().as_raw(),
            overflow_uid: DEFAULT_OVERFLOW_ID,
            overflow_gid: DEFAULT_OVERFLOW_ID,
            now: 1_800_000_000,
        },
        accounts,
    };
    given.file("config.toml", text)
}

impl Given {
    pub(crate) fn file(self, name: &str, text: &str) -> Self {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    pub(crate) fn variable(mut self, name: &'static str, value: &str) -> Self {
        self.environment.variables.insert(name, value.into());
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn load(&self) -> Result<Plan, Mistakes> {
        load_in(&self.path("config.toml"), &self.environment)
    }

    /// One line each, files relative to the folder.
    pub(crate) fn lines<'a, I: IntoIterator<Item = &'a Mistake>>(
        &self,
        mistakes: I,
    ) -> Vec<String> {
        let folder = format!("{}/", self.dir.path().display());
        let lines = mistakes
            .into_iter()
            .map(|m| m.to_string().replace(&folder, ""));
        lines.collect()
    }

    /// The mistakes that cost the whole.
    pub(crate) fn refused(&self) -> Vec<String> {
        let mistakes = self.load().expect_err("there are mistakes");
        self.lines(&mistakes)
    }

    /// The plan, which has neither mistakes nor warnings.
    pub(crate) fn fine(&self) -> Plan {
        let plan = self.load().unwrap_or_else(|mistakes| panic!("{mistakes}"));
        assert!(plan.mistakes.is_empty(), "{}", plan.mistakes);
        assert_eq!(self.lines(&plan.warnings), [""; 0]);
        plan
    }

    /// The plan's warnings; it has no mistakes.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let plan = self.load().unwrap_or_else(|mistakes| panic!("{mistakes}"));
        assert!(plan.mistakes.is_empty(), "{}", plan.mistakes);
        self.lines(&plan.warnings)
    }

    /// The mistakes of the one identity that is quarantined, while the others are served.
    pub(crate) fn quarantined(&self) -> Vec<String> {
        let plan = self.load().unwrap_or_else(|mistakes| panic!("{mistakes}"));
        assert_eq!(plan.quarantined.len(), 1, "{:#?}", plan.quarantined);
        assert!(!plan.identities.is_empty());
        let lines = self.lines(&plan.mistakes);
        let folder = format!("{}/", self.dir.path().display());
        let short = plan.quarantined[0]
            .mistakes
            .iter()
            .map(|m| m.replace(&folder, ""));
        assert_eq!(short.collect::<Vec<_>>(), lines);
        lines
    }
}

/// A sound configuration with this identity beside a sound one.
pub(crate) fn beside_a_sound_one(identity: &str) -> Given {
    let sound = IDENTITY.replace("\"payments\"\nspiffe", "\"sound\"\nspiffe");
    given(&format!("{HEAD}{LISTEN}{sound}{identity}"))
}

/// `IDENTITY` with one line replaced.
pub(crate) fn identity_with(key: &str, line: &str) -> String {
    let lines = IDENTITY
        .lines()
        .map(|old| if old.starts_with(key) { line } else { old });
    lines.map(|line| format!("{line}\n")).collect()
}

/// Asserts one mistake that says this.
#[track_caller]
pub(crate) fn says(mistakes: &[String], part: &str) {
    assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
    assert!(
        mistakes[0].contains(part),
        "{part:?} is not in {:?}",
        mistakes[0]
    );
}
