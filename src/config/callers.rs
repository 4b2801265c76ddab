//! `callers` and `admins`: whom an entry matches, resolved to uids and gids.

use toml::{Spanned, de::DeValue};

use super::{
    CallerRule, Resources,
    accounts::Directory,
    diagnostics::Fault,
    identity::resources,
    raw::{Reading, Table, kind},
};

/// What entries are for.
#[derive(Clone, Copy)]
pub(super) enum Purpose<'a> {
    /// Who may ask for an identity, whose resources these are.
    Callers(Option<&'a Resources>),
    /// Who may see status and refresh.
    Admins,
}

/// Reads the list (or the word `"any"`) under a key. Entries with mistakes are left out: whoever
/// reads on has the mistakes in the sink.
pub(super) fn rules(
    table: &mut Table<'_>,
    key: &'static str,
    purpose: Purpose<'_>,
    directory: &Directory<'_>,
) -> Vec<At> {
    let reading = table.reading();
    let Some(value) = table.value(key) else {
        return Vec::new();
    };
    let reader = Reader {
        key,
        purpose,
        directory,
        reading,
    };
    match value.get_ref() {
        DeValue::Array(items) => items.iter().filter_map(|item| reader.rule(item)).collect(),
        _ => reader.rule(value).into_iter().collect(),
    }
}

/// A rule and where it stands.
pub(super) type At = Spanned<CallerRule>;

struct Reader<'a> {
    key: &'static str,
    purpose: Purpose<'a>,
    directory: &'a Directory<'a>,
    reading: Reading<'a>,
}

impl<'a> Reader<'a> {
    fn rule(&self, value: &'a Spanned<DeValue<'a>>) -> Option<At> {
        match value.get_ref() {
            DeValue::String(word) if word == "any" => {
                let rule = CallerRule {
                    uid: None,
                    gids: Vec::new(),
                    resources: None,
                    written: "any".into(),
                };
                return Some(Spanned::new(value.span(), rule));
            }
            DeValue::Table(_) => {}
            other => {
                let what = match other {
                    DeValue::String(_) => "this string",
                    other => kind(other),
                };
                self.reading.mistake(
                    &value.span(),
                    Fault::new(
                        format!("{what} is no entry of `{}`", self.key),
                        "write { user = \"NAME\" }, { uid = N }, { group = \"NAME\" }, \
                         { gid = N }, or \"any\" for whoever can open the socket",
                    ),
                );
                return None;
            }
        }
        let name = format!("an entry of `{}`", self.key);
        let mut table = Table::from_value(name, value, self.reading)?;
        let rule = self.entry(&mut table);
        table.finish();
        Some(Spanned::new(value.span(), rule?))
    }

    /// An entry: each key that is given must be in order, and all of them must hold. With one of
    /// them wrong there is no rule: what is left of it would match too many.
    fn entry(&self, table: &mut Table<'_>) -> Option<CallerRule> {
        let before = self.reading.sink.count();
        if !["uid", "user", "gid", "group"]
            .iter()
            .any(|key| table.has(key))
        {
            self.reading.mistake(
                &table.span(),
                Fault::new(
                    "this entry names nobody, and so would match everybody",
                    "name a user, uid, group or gid, or write \"any\" in its place",
                ),
            );
        }
        let mut written = Vec::new();
        let uid = self.number(table, "uid", &mut written, |uid| self.sound_uid(uid));
        let user = self.name(table, "user", &mut written, |name| {
            let named = find_user(self.directory, name)?;
            match uid {
                Some(uid) if uid != named => Err(Fault::new(
                    format!("`{name}` has uid {named}, and `uid` is {uid}: nobody is both"),
                    "keep one of the two",
                )),
                _ => self.sound_uid(named),
            }
        });
        let gid = self.number(table, "gid", &mut written, |gid| self.sound_gid(gid));
        let group = self.name(table, "group", &mut written, |name| {
            find_group(self.directory, name).and_then(|gid| self.sound_gid(gid))
        });
        let resources = self.narrowed(table, &mut written);
        let mut gids: Vec<u32> = gid.into_iter().chain(group).collect();
        gids.sort_unstable();
        gids.dedup();
        let rule = CallerRule {
            uid: uid.or(user),
            gids,
            resources,
            written: format!("{{ {} }}", written.join(", ")),
        };
        (self.reading.sink.count() == before).then_some(rule)
    }

    fn number(
        &self,
        table: &mut Table<'_>,
        key: &'static str,
        written: &mut Vec<String>,
        check: impl FnOnce(u32) -> Result<u32, Fault>,
    ) -> Option<u32> {
        let number = table.number(key, 0, MAX_ID)?;
        let id = u32::try_from(*number.get_ref()).ok()?;
        written.push(format!("{key} = {id}"));
        self.reading.keep(&number.span(), check(id))
    }

    fn name(
        &self,
        table: &mut Table<'_>,
        key: &'static str,
        written: &mut Vec<String>,
        check: impl FnOnce(&str) -> Result<u32, Fault>,
    ) -> Option<u32> {
        let name = table.text(key)?;
        written.push(format!("{key} = \"{}\"", name.get_ref()));
        self.reading.keep(&name.span(), check(name.get_ref()))
    }

    /// What the entry narrows the resources to.
    fn narrowed(&self, table: &mut Table<'_>, written: &mut Vec<String>) -> Option<Resources> {
        let Purpose::Callers(of_identity) = self.purpose else {
            // Asked for nowhere, it is reported as unknown.
            return None;
        };
        if !table.has("resources") {
            return None;
        }
        let (span, resources) = resources(table)?;
        let too_much = match (of_identity, &resources) {
            (Some(Resources::Only(_)), Resources::Any) => vec!["*".to_owned()],
            (Some(of_identity), Resources::Only(set)) => {
                let more = set.iter().filter(|resource| !of_identity.allow(resource));
                more.cloned().collect()
            }
            _ => Vec::new(),
        };
        for resource in too_much {
            self.reading.mistake(
                &span,
                Fault::new(
                    format!(
                        "`{resource}` is not among the identity's resources, and an entry can only \
                         narrow them"
                    ),
                    "add it to the identity's `resources`, or remove it here",
                ),
            );
        }
        written.push(format!("resources = {resources}"));
        Some(resources)
    }

    fn sound_uid(&self, uid: u32) -> Result<u32, Fault> {
        if uid == self.directory.overflow_uid {
            return Err(overflow("user", "uid", uid));
        }
        Ok(uid)
    }

    fn sound_gid(&self, gid: u32) -> Result<u32, Fault> {
        if gid == self.directory.overflow_gid {
            return Err(overflow("group", "gid", gid));
        }
        Ok(gid)
    }
}

/// The uid of a user's name.
pub(super) fn find_user(directory: &Directory<'_>, name: &str) -> Result<u32, Fault> {
    match directory.user(name) {
        Ok(Some(account)) => Ok(account.uid),
        Ok(None) => Err(unknown("user", "uid", name)),
        Err(error) => Err(unavailable("user", "uid", name, &error)),
    }
}

/// The gid of a group's name.
pub(super) fn find_group(directory: &Directory<'_>, name: &str) -> Result<u32, Fault> {
    match directory.group(name) {
        Ok(Some(gid)) => Ok(gid),
        Ok(None) => Err(unknown("group", "gid", name)),
        Err(error) => Err(unavailable("group", "gid", name, &error)),
    }
}

fn unknown(what: &str, id: &str, name: &str) -> Fault {
    let fix = if name.parse::<u32>().is_ok() {
        format!("write `{id} = {name}` for a number")
    } else {
        format!("create it, correct the name, or write `{id} = N` for one of another machine")
    };
    Fault::new(format!("there is no {what} `{name}`"), fix)
}

fn unavailable(what: &str, id: &str, name: &str, error: &str) -> Fault {
    Fault::new(
        format!("the {what} `{name}` cannot be looked up: {error}"),
        format!("write `{id} = N`, which needs no directory"),
    )
}

fn overflow(what: &str, id: &str, value: u32) -> Fault {
    Fault::new(
        format!(
            "{id} {value} is the kernel's overflow {id}: every {what} of another user namespace \
             that is not mapped here appears as it"
        ),
        format!("run the caller with a {what} of its own"),
    )
}

/// The highest uid and gid: the next one means "leave unchanged" to the kernel.
pub(super) const MAX_ID: u64 = u32::MAX as u64 - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{
        HEAD, IDENTITY, LISTEN, beside_a_sound_one, given, identity_with, says,
    };

    /// The rules that `callers = …` gives.
    fn rules_of(callers: &str) -> Vec<CallerRule> {
        let identity = identity_with("callers", &format!("callers = {callers}"));
        given(&format!("{HEAD}{LISTEN}{identity}"))
            .fine()
            .identities[0]
            .callers
            .clone()
    }

    fn mistakes_of(callers: &str) -> Vec<String> {
        let identity = identity_with("callers", &format!("callers = {callers}"));
        beside_a_sound_one(&identity).quarantined()
    }

    #[test]
    fn every_key_of_an_entry_is_resolved_and_all_are_needed() {
        for (entry, uid, gids) in [
            ("{ uid = 1001 }", Some(1001), vec![]),
            ("{ user = \"payments\" }", Some(1001), vec![]),
            ("{ gid = 2000 }", None, vec![2000]),
            ("{ group = \"tokens\" }", None, vec![2000]),
            ("{ user = \"payments\", uid = 1001 }", Some(1001), vec![]),
            ("{ group = \"tokens\", gid = 2000 }", None, vec![2000]),
            ("{ group = \"tokens\", gid = 10 }", None, vec![10, 2000]),
            ("{ uid = 0, group = \"wheel\" }", Some(0), vec![10]),
        ] {
            let rules = rules_of(&format!("[{entry}]"));
            assert_eq!(rules.len(), 1);
            assert_eq!((rules[0].uid, &rules[0].gids), (uid, &gids), "{entry}");
            assert_eq!(rules[0].resources, None);
        }
        let rules = rules_of("[{ user = \"payments\" }, { gid = 2000 }]");
        assert_eq!(rules.len(), 2, "one entry is enough, so each is a rule");
        assert_eq!(rules[0].written, "{ user = \"payments\" }");
        assert_eq!(rules[1].written, "{ gid = 2000 }");
    }

    #[test]
    fn any_is_whoever_can_open_the_socket() {
        let closed = LISTEN.replace("0666", "0660");
        for callers in ["\"any\"", "[\"any\"]", "[\"any\", { uid = 0 }]"] {
            let identity = identity_with("callers", &format!("callers = {callers}"));
            let plan = given(&format!("{HEAD}{closed}{identity}")).fine();
            assert!(plan.identities[0].callers[0].is_any());
            assert_eq!(plan.identities[0].callers[0].written, "any");
        }
        // Where everybody can open it, that is worth a word.
        let identity = identity_with("callers", "callers = \"any\"");
        let warnings = given(&format!("{HEAD}{LISTEN}{identity}")).warnings();
        says(&warnings, "every local user may ask");
    }

    #[test]
    fn without_callers_nobody_may_ask() {
        for line in ["", "callers = []"] {
            let given = given(&format!("{HEAD}{LISTEN}{}", identity_with("callers", line)));
            says(
                &given.warnings(),
                "nobody may ask for [[identity]] `payments`",
            );
            assert_eq!(given.load().unwrap().identities[0].callers, []);
        }
    }

    #[test]
    fn who_does_not_exist_is_a_mistake() {
        for (callers, part) in [
            ("[{ user = \"paiments\" }]", "there is no user `paiments`"),
            ("[{ group = \"tokenz\" }]", "there is no group `tokenz`"),
            ("[{ user = \"1001\" }]", "write `uid = 1001`"),
            (
                "[{ user = \"payments\", uid = 1002 }]",
                "has uid 1001, and `uid` is 1002",
            ),
            ("[{}]", "names nobody"),
            (
                "[{ resources = [\"https://vault.azure.net\"] }]",
                "names nobody",
            ),
            ("[\"everybody\"]", "this string is no entry of `callers`"),
            ("[1001]", "a whole number is no entry of `callers`"),
            ("1001", "a whole number is no entry of `callers`"),
            ("[{ uid = -1 }]", "out of range"),
            ("[{ uid = 4294967295 }]", "out of range"),
            (
                "[{ uid = \"1001\" }]",
                "`uid` of an entry of `callers` is a string",
            ),
            ("[{ uid = 1001, grup = \"x\" }]", "did you mean `group`?"),
        ] {
            says(&mistakes_of(callers), part);
        }
    }

    #[test]
    fn the_overflow_ids_are_nobodys_by_number_and_by_name() {
        for callers in [
            "[{ uid = 65534 }]",
            "[{ user = \"nobody\" }]",
            "[{ gid = 65534 }]",
            "[{ group = \"nogroup\" }]",
            "[{ user = \"payments\", group = \"nogroup\" }]",
        ] {
            says(&mistakes_of(callers), "overflow");
        }
        // What the number is, the kernel says.
        let identity = identity_with("callers", "callers = [{ uid = 77 }]");
        let mut given = beside_a_sound_one(&identity);
        given.environment.overflow_uid = 77;
        says(&given.quarantined(), "uid 77 is the kernel's overflow uid");
    }

    #[test]
    fn of_an_entry_with_a_mistake_nothing_is_left() {
        // Without its user it would be an entry for a group, which this socket keeps out.
        let callers = "callers = [{ user = \"who\", gid = 10 }, { uid = 0 }]";
        let closed = LISTEN.replace("0666", "0660");
        let sound = IDENTITY.replace("name = \"payments\"", "name = \"sound\"");
        let sound = sound.replace("user = \"payments\"", "uid = 0");
        let bad = identity_with("callers", callers);
        let given = given(&format!("{HEAD}{closed}{sound}{bad}"));
        says(&given.quarantined(), "there is no user `who`");
    }

    #[test]
    fn all_mistakes_of_all_entries_are_reported() {
        let mistakes = mistakes_of("[{ user = \"a\", group = \"b\", x = 1 }, 7, { uid = 65534 }]");
        assert_eq!(mistakes.len(), 5, "{mistakes:#?}");
    }

    #[test]
    fn an_entry_narrows_the_resources() {
        let rules = rules_of("[{ uid = 0, resources = [\"https://vault.azure.net/\"] }]");
        let vault = ["https://vault.azure.net".to_owned()].into();
        assert_eq!(rules[0].resources, Some(Resources::Only(vault)));
        assert_eq!(
            rules[0].written,
            "{ uid = 0, resources = [\"https://vault.azure.net\"] }"
        );
        for (resources, part) in [
            (
                "[\"https://storage.azure.com\"]",
                "`https://storage.azure.com` is not among",
            ),
            ("[\"*\"]", "`*` is not among"),
            ("[]", "an empty list allows nothing"),
            (
                "[\"*\", \"https://vault.azure.net\"]",
                "makes the others pointless",
            ),
        ] {
            says(
                &mistakes_of(&format!("[{{ uid = 0, resources = {resources} }}]")),
                part,
            );
        }
        // Of anything, anything is a part.
        let anything = identity_with("resources", "resources = [\"*\"]").replace(
            "user = \"payments\"",
            "uid = 0, resources = [\"https://a\"]",
        );
        given(&format!("{HEAD}{LISTEN}{anything}")).fine();
    }

    #[test]
    fn a_directory_that_does_not_answer_is_a_mistake_with_a_way_out() {
        let mut given = given(&format!("{HEAD}{LISTEN}{IDENTITY}"));
        given.environment.accounts = Box::new(crate::config::accounts::fake::FakeAccounts {
            broken: true,
            ..given.accounts.clone()
        });
        let refused = given.refused();
        says(&refused, "cannot be looked up");
        assert!(refused[0].contains("uid = N"));
    }

    #[test]
    fn admins_are_callers_without_resources() {
        let with = |admins: &str| given(&format!("admins = {admins}\n{HEAD}{LISTEN}{IDENTITY}"));
        let plan = with("[{ group = \"wheel\" }, { uid = 1001 }]").fine();
        assert_eq!(plan.admins[0].gids, [10]);
        assert_eq!(plan.admins[1].uid, Some(1001));
        let resources = with("[{ uid = 1001, resources = [\"*\"] }]").refused();
        says(
            &resources,
            "unknown key `resources` in an entry of `admins`",
        );
        says(&with("[{ user = \"nobody\" }]").refused(), "overflow");
        says(&with("[{}]").refused(), "names nobody");
        says(
            &with("\"any\"").warnings(),
            "whoever can open a socket may see status",
        );
    }
}
