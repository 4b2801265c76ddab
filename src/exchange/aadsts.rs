//! What Entra's error codes mean: cause, cure, and whether trying again can help.
//!
//! The table is data (`aadsts.toml`), so that adding a code needs no Rust. It serves the exchange,
//! which classifies by it, and `explain`, which prints it.

use std::{borrow::Cow, collections::HashMap, sync::LazyLock, time::Duration};

use serde::Deserialize;

use super::Class;

/// One code of the table.
#[derive(Debug)]
pub struct Entry {
    /// The number behind `AADSTS`.
    pub code: u32,
    /// What happened, in a few words.
    pub title: String,
    /// How it behaves in time.
    pub class: Class,
    /// Whether tokens issued before must no longer be served; for [`Class::Propagating`] once the
    /// window is over.
    pub revokes: bool,
    /// Why it happens.
    pub cause: String,
    /// What to change. Has places to fill in: see [`Entry::fix`].
    fix: String,
    /// How well this is known.
    pub certainty: Certainty,
    /// Where it is known from.
    pub source: String,
}

/// How well it is known what a code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Certainty {
    /// Microsoft's documentation says so.
    Documented,
    /// The message was posted verbatim in an issue.
    Observed,
    /// Somebody described it.
    Reported,
}

/// What is filled into causes and fixes.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The SPIFFE ID.
    pub subject: &'a str,
    /// The `iss` of the JWT-SVID.
    pub issuer: &'a str,
    /// Its audience.
    pub audience: &'a str,
    /// The client that is asked for.
    pub client_id: &'a str,
    /// Its tenant.
    pub tenant: &'a str,
    /// What the token would be for.
    pub resource: &'a str,
}

impl Context<'static> {
    /// Words in place of values, for `explain`, which explains no particular request.
    pub const GENERAL: Self = Self {
        subject: "<SPIFFE ID>",
        issuer: "<issuer>",
        audience: "<audience>",
        client_id: "<client id>",
        tenant: "<tenant>",
        resource: "<resource>",
    };
}

impl Entry {
    /// `AADSTS700213`
    pub fn name(&self) -> Cow<'static, str> {
        name(self.code)
    }

    /// Why it happens, for one request.
    pub fn cause(&self, context: &Context<'_>) -> String {
        context.fill(&self.cause)
    }

    /// What to change, for one request.
    pub fn fix(&self, context: &Context<'_>) -> String {
        context.fill(&self.fix)
    }
}

impl Context<'_> {
    fn fill(&self, template: &str) -> String {
        // In one pass: a value may itself look like a place.
        let mut filled = String::with_capacity(template.len() + 64);
        let mut rest = template;
        while let Some(open) = rest.find('{') {
            filled.push_str(&rest[..open]);
            rest = &rest[open..];
            match self
                .places()
                .into_iter()
                .find(|(place, _)| rest.starts_with(place))
            {
                Some((place, value)) => {
                    filled.push_str(value);
                    rest = &rest[place.len()..];
                }
                None => {
                    filled.push('{');
                    rest = &rest[1..];
                }
            }
        }
        filled.push_str(rest);
        filled
    }

    fn places(&self) -> [(&'static str, &str); 6] {
        [
            ("{subject}", self.subject),
            ("{issuer}", self.issuer),
            ("{audience}", self.audience),
            ("{client_id}", self.client_id),
            ("{tenant}", self.tenant),
            ("{resource}", self.resource),
        ]
    }
}

/// Every code of the table, in ascending order.
pub fn entries() -> &'static [Entry] {
    static TABLE: LazyLock<Vec<Entry>> = LazyLock::new(|| {
        #[expect(clippy::expect_used, reason = "compiled in; a test parses it")]
        parse(include_str!("aadsts.toml")).expect("the AADSTS table parses")
    });
    &TABLE
}

/// What is known about a code.
pub fn lookup(code: u32) -> Option<&'static Entry> {
    let table = entries();
    let place = table.binary_search_by_key(&code, |e| e.code).ok()?;
    table.get(place)
}

/// The code that a text of Entra's begins with.
pub fn leading_code(text: &str) -> Option<u32> {
    let digits = text.trim_start().strip_prefix(PREFIX)?;
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// `AADSTS` before the number; borrowed for the codes of the table.
pub fn name(code: u32) -> Cow<'static, str> {
    static NAMES: LazyLock<HashMap<u32, String>> = LazyLock::new(|| {
        entries()
            .iter()
            .map(|entry| (entry.code, format!("{PREFIX}{}", entry.code)))
            .collect()
    });
    match NAMES.get(&code) {
        Some(name) => Cow::Borrowed(name),
        None => Cow::Owned(format!("{PREFIX}{code}")),
    }
}

/// Where Microsoft explains a code, also one that the table does not know.
pub fn reference_url(code: u32) -> String {
    format!("https://login.microsoftonline.com/error?code={code}")
}

/// How a failure behaves of which only the HTTP status is known.
pub fn class_by_status(status: u16) -> Class {
    match status {
        408 | 429 | 500.. => Class::Transient,
        _ => Class::Misconfigured,
    }
}

const PREFIX: &str = "AADSTS";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    error: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    code: u32,
    title: String,
    class: Letter,
    revokes: bool,
    window: Option<u64>,
    every: Option<u64>,
    cause: String,
    fix: String,
    source: String,
    certainty: Certainty,
}

#[derive(Clone, Copy, Deserialize)]
enum Letter {
    T,
    P,
    M,
    D,
}

fn parse(text: &str) -> Result<Vec<Entry>, String> {
    let table: Table = toml::from_str(text).map_err(|e| e.to_string())?;
    let mut entries = table
        .error
        .into_iter()
        .map(Entry::try_from)
        .collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(|e| e.code);
    Ok(entries)
}

impl TryFrom<Row> for Entry {
    type Error = String;

    fn try_from(row: Row) -> Result<Self, String> {
        let class = match (row.class, row.window, row.every) {
            (Letter::P, Some(window), Some(every)) => Class::Propagating {
                window: Duration::from_secs(window),
                every: Duration::from_secs(every),
            },
            (Letter::T, None, None) => Class::Transient,
            (Letter::M, None, None) => Class::Misconfigured,
            (Letter::D, None, None) => Class::Denied,
            _ => return Err(format!("{}: window and every go with class P", row.code)),
        };
        Ok(Self {
            code: row.code,
            title: row.title,
            class,
            revokes: row.revokes,
            cause: row.cause,
            fix: row.fix,
            certainty: row.certainty,
            source: row.source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes by class, as the documentation of the behaviour has them.
    const TRANSIENT: [u32; 10] = [
        50033, 50166, 90006, 90012, 90024, 90033, 90055, 90061, 90090, 501661,
    ];
    const PROPAGATING: [u32; 6] = [70021, 70025, 700211, 700212, 700213, 7000272];
    const DENIED: [u32; 7] = [50076, 53003, 500341, 700223, 700238, 7000112, 7002381];
    const MISCONFIGURED: [u32; 31] = [
        28002, 50027, 50049, 70011, 90002, 100007, 500011, 700016, 700022, 700023, 700024, 700025,
        700027, 700214, 700222, 700229, 700231, 700263, 900023, 900144, 900439, 1002012, 5002727,
        5002730, 5002738, 7000215, 7000218, 7000222, 7002137, 7002138, 9001023,
    ];

    const CONTEXT: Context<'static> = Context {
        subject: "spiffe://example.org/{tenant}",
        issuer: "https://oidc.example.org",
        audience: "api://AzureADTokenExchange",
        client_id: "0f8fad5b-d9cb-469f-a165-70867728950e",
        tenant: "contoso.com",
        resource: "https://vault.azure.net",
    };

    #[test]
    fn every_code_is_there_once_in_its_class() {
        let table = entries();
        assert!(table.windows(2).all(|w| w[0].code < w[1].code));
        let of = |class: &str| -> Vec<u32> {
            (table.iter().filter(|e| e.class.as_str() == class))
                .map(|e| e.code)
                .collect()
        };
        assert_eq!(of("transient"), TRANSIENT);
        assert_eq!(of("propagating"), PROPAGATING);
        assert_eq!(of("denied"), DENIED);
        assert_eq!(of("misconfigured"), MISCONFIGURED);
    }

    #[test]
    fn every_row_reads_well_and_leaves_no_place_open() {
        for entry in entries() {
            let name = entry.name();
            for text in [&entry.title, &entry.cause, &entry.fix, &entry.source] {
                assert!(
                    !text.is_empty() && text.trim() == text.as_str(),
                    "{name}: {text:?}"
                );
                assert!(
                    !text.contains("  ") && !text.contains('\n'),
                    "{name}: {text}"
                );
            }
            assert!(
                !entry.title.ends_with('.') && entry.cause.ends_with('.'),
                "{name}"
            );
            for text in [entry.fix(&Context::GENERAL), entry.cause(&Context::GENERAL)] {
                assert!(!text.contains(['{', '}']), "{name}: {text}");
            }
            assert_eq!(lookup(entry.code).unwrap().code, entry.code);
        }
    }

    #[test]
    fn windows_are_ten_minutes_and_an_hour_for_keys() {
        for code in PROPAGATING {
            let (window, every) = if code == 7000272 {
                (3600, 60)
            } else {
                (600, 5)
            };
            assert_eq!(
                lookup(code).unwrap().class,
                Class::Propagating {
                    window: Duration::from_secs(window),
                    every: Duration::from_secs(every),
                }
            );
        }
    }

    #[test]
    fn what_revokes_is_denials_and_what_is_gone() {
        let revokes: Vec<_> = entries()
            .iter()
            .filter(|e| e.revokes)
            .map(|e| e.code)
            .collect();
        let mut expected = DENIED.to_vec();
        expected.extend([
            70021, 70025, 700211, 700212, 700213, 700016, 7002137, 7002138,
        ]);
        expected.sort_unstable();
        assert_eq!(revokes, expected);
    }

    #[test]
    fn fixes_are_filled_in_once() {
        let fix = lookup(700213).unwrap().fix(&CONTEXT);
        assert!(fix.contains("`spiffe://example.org/{tenant}`"), "{fix}");
        assert!(
            fix.contains("0f8fad5b-d9cb-469f-a165-70867728950e"),
            "{fix}"
        );
        assert_eq!(
            CONTEXT.fill("{unknown} { {resource"),
            "{unknown} { {resource"
        );
    }

    #[test]
    fn the_code_at_the_beginning_of_a_text_is_read() {
        assert_eq!(leading_code("AADSTS700213: No matching"), Some(700_213));
        assert_eq!(leading_code("see AADSTS700213"), None);
        assert_eq!(lookup(700_215).map(|e| e.code), None);
        assert!(reference_url(700_215).ends_with("error?code=700215"));
    }

    #[test]
    fn a_status_alone_tells_the_class() {
        for status in [429, 500, 503, 599, 408] {
            assert_eq!(class_by_status(status), Class::Transient);
        }
        for status in [200, 302, 400, 401, 404] {
            assert_eq!(class_by_status(status), Class::Misconfigured);
        }
    }

    #[test]
    fn a_row_that_makes_no_sense_is_refused() {
        let row = "[[error]]\ncode=1\ntitle='t'\nclass='T'\nrevokes=false\nwindow=1\ncause='c'\n\
                   fix='f'\nsource='s'\ncertainty='observed'\n";
        assert!(parse(row).unwrap_err().contains("window"));
        assert!(parse("[[error]]\ncode=1").is_err());
    }
}
