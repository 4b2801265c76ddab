//! From files to a [`Plan`]: reads everything, notes every mistake, and decides what they cost.
//!
//! A mistake inside one `[[identity]]` costs that identity. Any other costs the whole: a file that
//! cannot be parsed (an included one too, for it is not known which identities it held), a key or
//! table outside the identities, who may write the files.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::Arc,
};

use toml::{Spanned, de::DeTable};

use super::{
    Environment, Limits, Listener, Mistakes, Plan, Quarantined,
    accounts::Directory,
    callers::{self, Purpose},
    diagnostics::{Fault, Mistake, Sink, Source},
    federation,
    files::Files,
    identity, limits, listen,
    raw::{Reading, Table},
    reach::Reach,
    trust::{self, Defaults},
};

/// Reads the configuration in `path`, in the light of `environment`.
pub fn load_in(path: &Path, environment: &Environment) -> Result<Plan, Mistakes> {
    let sink = Sink::default();
    let plan = read(path, environment, &sink);
    let (mut mistakes, mut warnings) = sink.into_parts();
    in_order(&mut warnings);
    let Some(read) = plan else {
        in_order(&mut mistakes);
        return Err(mistakes.into_iter().collect());
    };
    let global = !mistakes.is_empty();
    mistakes.extend(read.of_identities);
    in_order(&mut mistakes);
    let mut plan = read.plan;
    // With none left there is nothing to start.
    if global || plan.identities.is_empty() {
        return Err(mistakes.into_iter().collect());
    }
    plan.mistakes = mistakes.into_iter().collect();
    plan.warnings = warnings;
    Ok(plan)
}

/// A plan, and the mistakes that quarantined identities.
struct Outcome {
    plan: Plan,
    of_identities: Vec<Mistake>,
}

fn read(path: &Path, environment: &Environment, sink: &Sink) -> Option<Outcome> {
    let files = Files::new(environment.file_uid);
    let directory = Directory::new(
        environment.accounts.as_ref(),
        environment.overflow_uid,
        environment.overflow_gid,
    );
    let main = files.read(path, sink)?;
    let document = parse(&main, sink)?;
    let mut root = root(&main, &document, sink);

    let included = included(&mut root, &files, path);
    let documents: Vec<_> = included.iter().map(|source| parse(source, sink)).collect();

    let settings = Settings::read(&mut root, environment, &files, &directory);
    let mut tables: Vec<(&Source, Table<'_>)> = Vec::new();
    tables.extend(
        root.tables("identity")
            .into_iter()
            .map(|table| (&main, table)),
    );
    root.finish();
    for (source, document) in included.iter().zip(&documents) {
        let Some(document) = document else { continue };
        let mut root = self::root(source, document, sink);
        tables.extend(
            root.tables("identity")
                .into_iter()
                .map(|table| (source, table)),
        );
        root.elsewhere(MAIN_FILE_ONLY);
        root.finish();
    }
    if tables.is_empty() {
        sink.mistake(Mistake::about(
            path,
            "there is no [[identity]], so there is nothing to do",
            "add one, with its name, spiffe_id, client_id, resources and callers",
        ));
    }

    let mut identities: Vec<_> = tables
        .into_iter()
        .map(|(source, table)| {
            identity::read(source, table, settings.defaults.as_ref(), &directory)
        })
        .collect();
    let listeners = settings.listeners(&identities);
    if let Some(listeners) = &listeners {
        let reach = Reach {
            listeners,
            us: (environment.uid, environment.gid),
            directory: &directory,
        };
        for identity in &mut identities {
            reach.identity(identity);
        }
        reach.admins(&settings.admins, settings.reading);
    }
    name_once(&mut identities);
    settings.assemble(listeners, identities, environment)
}

/// Parses a file; a file with syntax errors (there may be several) is not looked at further, for
/// what is left of it means something else.
fn parse<'a>(source: &'a Source, sink: &Sink) -> Option<Spanned<DeTable<'a>>> {
    let (document, errors) = DeTable::parse_recoverable(&source.text);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        sink.mistake(source.mistake(
            &span,
            Fault::new(format!("this is not TOML: {}", error.message()), ""),
        ));
    }
    errors.is_empty().then_some(document)
}

fn root<'a>(source: &'a Source, document: &'a Spanned<DeTable<'a>>, sink: &'a Sink) -> Table<'a> {
    Table::new(
        "",
        document.span(),
        document.get_ref(),
        Reading { source, sink },
    )
}

fn included(root: &mut Table<'_>, files: &Files, main: &Path) -> Vec<Source> {
    let Some(patterns) = root.texts("include") else {
        return Vec::new();
    };
    let paths = files.included(main, patterns.get_ref(), root.reading());
    let sink = root.reading().sink;
    paths
        .iter()
        .filter_map(|path| files.read(path, sink))
        .collect()
}

/// Everything outside the identities.
struct Settings<'a> {
    reading: Reading<'a>,
    workload_api: Option<super::WorkloadApi>,
    entra: Option<super::Entra>,
    defaults: Option<Defaults>,
    federation: Option<super::Federation>,
    listen: Vec<Option<listen::Read<'a>>>,
    listen_broken: bool,
    admins: Vec<callers::At>,
    metrics: Option<std::net::SocketAddr>,
    limits: Limits,
}

impl<'a> Settings<'a> {
    fn read(
        root: &mut Table<'a>,
        environment: &Environment,
        files: &Files,
        directory: &Directory<'_>,
    ) -> Self {
        let reading = root.reading();
        let mut workload = root.table("workload_api");
        let mut entra = root.table("entra");
        let mut federate = root.table("federation");
        let loopback = trust::allow_http_loopback(entra.as_mut());
        let (workload_api, issuer) =
            trust::workload_api(workload.as_mut(), environment, loopback, reading.sink);
        let read = trust::entra(entra.as_mut(), loopback, issuer, files, environment.now);
        let (entra_plan, defaults) = read.unzip();
        let federation = defaults
            .as_ref()
            .map(|defaults| federation::federation(federate.as_mut(), defaults, loopback));
        for table in [workload, entra, federate].into_iter().flatten() {
            table.finish();
        }
        let before = reading.sink.count();
        let listen = root.tables("listen");
        let listen_broken = reading.sink.count() > before;
        let listen = listen
            .into_iter()
            .map(|t| listen::read(t, directory))
            .collect();
        let admins = callers::rules(root, "admins", Purpose::Admins, directory);
        let metrics = root.table("metrics").and_then(|mut table| {
            let address = limits::metrics(&mut table);
            table.finish();
            address
        });
        let limits = root.table("limits").map(|mut table| {
            let limits = limits::limits(&mut table);
            table.finish();
            limits
        });
        Self {
            reading,
            workload_api,
            entra: entra_plan,
            defaults,
            federation,
            listen,
            listen_broken,
            admins,
            metrics,
            limits: limits.unwrap_or_default(),
        }
    }

    /// The sockets, or nothing where one of them has a mistake.
    fn listeners(&self, identities: &[identity::Read<'_>]) -> Option<Vec<Listener>> {
        if self.listen_broken {
            return None;
        }
        if self.listen.is_empty() {
            return Some(vec![listen::default_listener()]);
        }
        let before = self.reading.sink.count();
        let names: Vec<&str> = identities
            .iter()
            .filter_map(|i| i.name.as_deref())
            .collect();
        let known: BTreeSet<&str> = names.iter().copied().collect();
        let endpoint = self.workload_api.as_ref().map(|api| &api.endpoint);
        let mut earlier: Vec<&listen::Read<'_>> = Vec::new();
        for read in self.listen.iter().flatten() {
            read.check_identities(|name| known.contains(name), &names);
            read.check_path(&earlier, endpoint);
            earlier.push(read);
        }
        let sound = self.reading.sink.count() == before && self.listen.iter().all(Option::is_some);
        let listeners: Vec<Listener> = self
            .listen
            .iter()
            .flatten()
            .map(|read| read.listener.clone())
            .collect();
        sound.then_some(listeners)
    }

    /// `None` only where something is missing that has its mistake in the sink already.
    fn assemble(
        self,
        listeners: Option<Vec<Listener>>,
        identities: Vec<identity::Read<'_>>,
        environment: &Environment,
    ) -> Option<Outcome> {
        let sink = self.reading.sink;
        let (mut sound, mut quarantined, mut of_identities) = (Vec::new(), Vec::new(), Vec::new());
        for read in identities {
            read.warnings
                .into_iter()
                .for_each(|warning| sink.warn(warning));
            if read.mistakes.is_empty() {
                sound.extend(read.identity.map(Arc::new));
                continue;
            }
            let mut mistakes = read.mistakes;
            in_order(&mut mistakes);
            quarantined.push(Quarantined {
                name: read.name.unwrap_or_else(|| read.source.place(&read.span)),
                mistakes: mistakes.iter().map(ToString::to_string).collect(),
            });
            of_identities.extend(mistakes);
        }
        let own_uid_tells_us = environment.uid != environment.overflow_uid;
        if !own_uid_tells_us {
            sink.warn(Mistake::general(
                format!(
                    "uid {} is the kernel's overflow uid, which every unmapped user has: the \
                     daemon's own uid does not count as an admin",
                    environment.uid
                ),
                "run the daemon as a user of its own",
            ));
        }
        // What is missing here has its mistake noted; the identities' are reported beside it.
        let assembled = || {
            Some(Plan {
                workload_api: self.workload_api?,
                entra: self.entra?,
                listeners: listeners?,
                admins: self.admins.into_iter().map(Spanned::into_inner).collect(),
                metrics: self.metrics,
                limits: self.limits,
                identities: sound,
                quarantined,
                federation: self.federation?,
                daemon_uid: own_uid_tells_us.then_some(environment.uid),
                warnings: Vec::new(),
                mistakes: Mistakes::new(),
            })
        };
        match assembled() {
            Some(plan) => Some(Outcome {
                plan,
                of_identities,
            }),
            None => {
                of_identities
                    .into_iter()
                    .for_each(|mistake| sink.mistake(mistake));
                None
            }
        }
    }
}

/// Of two identities with one name, the second is in the wrong.
fn name_once(identities: &mut [identity::Read<'_>]) {
    let mut first: HashMap<String, String> = HashMap::new();
    for read in identities {
        let Some(name) = &read.name else { continue };
        let place = read.source.place(&read.name_span);
        let Some(earlier) = first.get(name) else {
            first.insert(name.clone(), place);
            continue;
        };
        let fault = Fault::new(
            format!("there is another identity `{name}`, at {earlier}"),
            "give each a name of its own",
        );
        read.mistakes
            .push(read.source.mistake(&read.name_span, fault));
        // Status must not show the sound one as quarantined.
        read.name = Some(format!("{name} ({place})"));
    }
}

/// By file, line and column; what has no place comes first.
fn in_order(mistakes: &mut [Mistake]) {
    mistakes.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
}

/// Where keys of the main file belong when they stand in an included one.
const MAIN_FILE_ONLY: &[(&str, &str)] = &[
    ("include", MAIN),
    ("workload_api", MAIN),
    ("entra", MAIN),
    ("listen", MAIN),
    ("admins", MAIN),
    ("metrics", MAIN),
    ("limits", MAIN),
    ("federation", MAIN),
];
const MAIN: &str = "in the main file: included ones hold [[identity]] tables only";

#[cfg(test)]
mod tests {
    use crate::config::testing::{HEAD, IDENTITY, LISTEN, given, says};
    use proptest::{prelude::*, sample::Index};
    use std::{fmt::Write, fs, os::unix::fs::PermissionsExt};

    fn whole() -> String {
        format!("{HEAD}{LISTEN}{IDENTITY}")
    }

    fn named(name: &str) -> String {
        IDENTITY.replace("name = \"payments\"", &format!("name = \"{name}\""))
    }

    #[test]
    fn mistakes_of_every_kind_are_reported_in_one_go() {
        let text = "\
            colour = \"red\"\n\
            [workload_api]\n\
            endpont = \"unix:///a\"\n\
            [entra]\n\
            cloud = 1\n\
            tenant = \"common\"\n\
            ca_onyl = true\n\
            [[listen]]\n\
            socket = \"/a\"\n\
            mode = 660\n\
            [[identity]]\n\
            name = \"payments\"\n\
            client_id = 7\n\
            [limits]\n\
            drain = true\n\
            [metrics]\n\
            listen = \"0.0.0.0:1\"\n";
        let mistakes = given(text).load().unwrap_err();
        let lines: Vec<_> = mistakes.iter().map(|m| m.line.unwrap_or(0)).collect();
        // 0: no endpoint anywhere; 11 twice: no spiffe_id and no resources, but no word about the
        // tenant, which is wrong elsewhere.
        assert_eq!(
            lines,
            [0, 1, 3, 5, 6, 7, 10, 11, 11, 13, 15, 17],
            "{mistakes}"
        );
        let shown = mistakes.to_string();
        assert!(
            shown.contains("5 | cloud = 1\n  |         ^\n  = fix: write a string"),
            "{shown}"
        );
    }

    #[test]
    fn syntax_errors_are_reported_together_and_alone() {
        let given = given(&format!("{}\na = \nb = [1\n", whole()));
        let refused = given.refused();
        assert!(refused.len() >= 2, "{refused:#?}");
        assert!(
            refused.iter().all(|m| m.contains("this is not TOML")),
            "{refused:#?}"
        );
        let twice = crate::config::testing::given(&format!("{}name = \"x\"\n", whole()));
        says(&twice.refused(), "duplicate key");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Lines of a sound configuration lost, doubled, moved and cut: whatever comes of it is a
        /// plan, or mistakes; never a panic, and never a refusal without a word.
        #[test]
        fn a_refusal_says_why(
            changes in proptest::collection::vec((any::<Index>(), any::<Index>(), 0..4), 1..4),
        ) {
            let admins = "admins = [{ gid = 2000 }]\ninclude = [\"x*.toml\"]\n";
            let text = format!("{admins}{}[limits]\ndrain = 1\n[federation]\nowner = \"a\"\n", whole());
            let mut lines: Vec<String> = text.lines().map(String::from).collect();
            for (a, b, change) in changes {
                let (a, b) = (a.index(lines.len()), b.index(lines.len()));
                let line = lines[a].clone();
                match change {
                    0 if lines.len() > 1 => drop(lines.remove(a)),
                    1 => lines.insert(b, line),
                    2 => lines.swap(a, b),
                    _ => lines[a].truncate(b % (line.len() + 1)),
                }
            }
            match given(&lines.join("\n")).load() {
                Ok(plan) => {
                    prop_assert!(!plan.identities.is_empty() && !plan.listeners.is_empty());
                    prop_assert_eq!(plan.mistakes.is_empty(), plan.quarantined.is_empty());
                }
                Err(mistakes) => prop_assert!(!mistakes.is_empty()),
            }
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_one_mistake() {
        let given = given("");
        fs::remove_file(given.path("config.toml")).unwrap();
        says(
            &given.refused(),
            "config.toml: cannot be read: No such file",
        );
    }

    #[test]
    fn with_no_identity_left_nothing_starts() {
        says(
            &given(&format!("{HEAD}{LISTEN}")).refused(),
            "there is no [[identity]]",
        );
        let bad = whole().replace("0f8fad5b", "x");
        says(&given(&bad).refused(), "no GUID");
    }

    #[test]
    fn a_mistake_outside_the_identities_costs_the_whole_and_theirs_are_told_too() {
        let text = format!("{}{}x = 1\n", whole().replace("0666", "9"), named("orders"));
        let refused = given(&text).refused();
        assert_eq!(refused.len(), 2, "{refused:#?}");
        assert!(refused[0].contains("no mode") && refused[1].contains("unknown key `x`"));
    }

    #[test]
    fn included_files_hold_identities() {
        let main = format!(
            "include = [\"identities.d/*.toml\", \"no.d/*.toml\"]\n{}",
            whole()
        );
        let given = given(&main)
            .file("identities.d/b.toml", &named("b"))
            .file("identities.d/a.toml", &named("a"));
        let plan = given.fine();
        let names: Vec<_> = plan.identities.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["payments", "a", "b"]);
        let given = given.file("identities.d/c.toml", &format!("{}x = 1\n", named("c")));
        let quarantined = given.quarantined();
        says(&quarantined, "identities.d/c.toml:8:1: unknown key `x`");
    }

    #[test]
    fn included_files_hold_nothing_else() {
        let main = format!("include = [\"a.toml\"]\n{}", whole());
        for (text, part) in [
            (
                "[entra]\n",
                "a.toml:1:2: unknown key `entra` here: `entra` belongs in the main file",
            ),
            ("include = []\n", "`include` belongs in the main file"),
            ("[[identitty]]\n", "did you mean `identity`?"),
            ("a = \n", "a.toml:1:5: this is not TOML"),
            ("[identity]\n", "headed [[identity]]"),
        ] {
            says(&given(&main).file("a.toml", text).refused(), part);
        }
        says(&given(&main).refused(), "a.toml` does not exist");
        let not_a_list = given(&format!("include = \"a.toml\"\n{}", whole()));
        says(&not_a_list.refused(), "write a list of strings");
    }

    #[test]
    fn an_included_file_that_others_can_write_costs_the_whole() {
        let given =
            given(&format!("include = [\"d/a.toml\"]\n{}", whole())).file("d/a.toml", &named("a"));
        given.fine();
        let chmod = |name: &str, mode| {
            fs::set_permissions(given.path(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        chmod("d/a.toml", 0o606);
        says(
            &given.refused(),
            "d/a.toml: everybody can write the file (mode 0606)",
        );
        chmod("d/a.toml", 0o600);
        chmod("d", 0o707);
        says(
            &given.refused(),
            "d: everybody can write the folder (mode 0707)",
        );
        chmod("d", 0o700);
        chmod("config.toml", 0o602);
        says(
            &given.refused(),
            "config.toml: everybody can write the file",
        );
    }

    #[test]
    fn a_file_that_is_another_users_costs_the_whole() {
        let mut given = given(&whole());
        given.environment.file_uid += 1;
        if nix::unistd::geteuid().is_root() {
            // Root's files are everybody's to trust.
            let foreign = Some(nix::unistd::Uid::from_raw(1234));
            nix::unistd::chown(&given.path("config.toml"), foreign, None).unwrap();
            says(&given.refused(), "the file is owned by uid 1234");
        } else {
            assert_eq!(given.refused().len(), 2, "the file and its folder");
        }
    }

    #[test]
    fn of_two_identities_with_one_name_the_second_is_wrong() {
        let main = format!("include = [\"a.toml\"]\n{}", whole());
        let given = given(&main).file("a.toml", IDENTITY);
        let quarantined = given.quarantined();
        says(
            &quarantined,
            "a.toml:3:8: there is another identity `payments`, at ",
        );
        assert!(quarantined[0].contains("config.toml:13"), "{quarantined:?}");
        let plan = given.load().unwrap();
        assert_eq!(plan.identities[0].name, "payments");
        assert!(plan.quarantined[0].name.starts_with("payments ("));
    }

    #[test]
    fn the_example_is_in_order_and_so_is_everything_it_suggests() {
        let example = include_str!("../../config.example.toml");
        given(example).fine();
        // `#key = value` is a suggestion, `# text` is not.
        let suggestions = example.lines().map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => rest,
            _ => line,
        });
        let text: String = suggestions.map(|line| format!("{line}\n")).collect();
        let given = given(&text).file("ca.pem", include_str!("testdata/root.pem"));
        let ca_file = given.path("ca.pem").display().to_string();
        let text = text.replace("/etc/spiffe-entra/ca.pem", &ca_file);
        let plan = given.file("config.toml", &text).fine();
        assert!(plan.federation.sign_in.is_some() && plan.metrics.is_some());
        // Every key of it is explained.
        let manual = include_str!("../../docs/configuration.md");
        for line in text.lines() {
            let key = line.split_once(" = ").map_or("", |(key, _)| key);
            if !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
                assert!(manual.contains(&format!("`{key}`")), "{key}");
            }
        }
    }

    #[test]
    fn the_overflow_uid_does_not_make_an_admin() {
        let mut given = given(&whole());
        assert_eq!(given.fine().daemon_uid, Some(900));
        given.environment.uid = given.environment.overflow_uid;
        says(&given.warnings(), "does not count as an admin");
        assert_eq!(given.load().unwrap().daemon_uid, None);
    }

    #[test]
    fn a_proxys_password_shows_up_in_no_mistake() {
        for line in [
            "proxy = \"http://u:hunter2@h/path\"",
            "proxy = [\"http://u:hunter2@h\"]",
            "proxi = \"http://u:hunter2@h\"",
            "proxy = \"http://u:hunter2@h",
            "proxy = 'http://u:hunter2 x@'",
        ] {
            let text = whole().replace("[entra]", &format!("[entra]\n{line}"));
            let mistakes = given(&text).load().unwrap_err();
            let shown = format!("{mistakes} {mistakes:?}");
            assert!(!shown.contains("hunter2"), "{shown}");
            assert!(shown.contains("prox"), "{shown}");
        }
    }

    #[test]
    fn ten_thousand_identities_ask_the_user_database_a_few_questions() {
        let mut text = format!(
            "{HEAD}{}",
            LISTEN.replace("mode = \"0666\"", "group = \"tokens\"")
        );
        for i in 0..10_000 {
            let _ = write!(text, "{}", named(&format!("identity-{i}")));
        }
        let given = given(&text);
        assert_eq!(given.fine().identities.len(), 10_000);
        // The group of the socket, the user, and the user's groups (two).
        assert_eq!(given.accounts.questions.get(), 4);
    }
}
