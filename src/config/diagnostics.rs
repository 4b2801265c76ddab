//! Mistakes: where they are, what is wrong, and what to change, in the form compilers use.
//!
//! All of them are collected and reported in one go. A source line is shown as it stands, except
//! for credentials inside a URL, which are never shown.

use std::{
    cell::RefCell,
    error::Error,
    fmt::{self, Write},
    ops::Range,
    path::Path,
    sync::{Arc, OnceLock},
};

use serde::{Serialize, Serializer};

/// One mistake (or, where it stands among warnings, something to think about).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// The file, or `$NAME` for an environment variable; nothing when it concerns the whole.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub file: Option<Arc<Path>>,
    /// The line, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The column in characters, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to change.
    pub fix: String,
    /// The line itself and how many characters of it are meant.
    #[serde(skip)]
    excerpt: Option<Box<Excerpt>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Excerpt {
    /// The line, safe to print.
    text: String,
    /// What stands before the caret: blanks, and tabs where the line has tabs.
    indent: String,
    /// How many carets.
    width: usize,
}

/// Every mistake that was found. Displayed as a list, each with its line and a caret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Mistakes(Vec<Mistake>);

/// What is wrong with a value, and what to change: a mistake without its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) message: String,
    pub(super) fix: String,
}

/// A text that mistakes can point into.
#[derive(Debug)]
pub(super) struct Source {
    path: Arc<Path>,
    pub(super) text: String,
    line_starts: OnceLock<Vec<usize>>,
}

/// Where mistakes and warnings are put while reading goes on.
#[derive(Debug, Default)]
pub(super) struct Sink {
    mistakes: RefCell<Vec<Mistake>>,
    warnings: RefCell<Vec<Mistake>>,
}

impl Mistake {
    /// One that concerns the whole configuration.
    pub(super) fn general(message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            file: None,
            line: None,
            column: None,
            message: printable(&mask_credentials(&message.into())),
            fix: printable(&mask_credentials(&fix.into())),
            excerpt: None,
        }
    }

    /// One that concerns a file or folder as such.
    pub(super) fn about(path: &Path, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            file: Some(path.into()),
            ..Self::general(message, fix)
        }
    }

    /// One in an environment variable.
    pub(super) fn in_variable(name: &str, fault: Fault) -> Self {
        Self::about(Path::new(&format!("${name}")), fault.message, fault.fix)
    }

    /// The same in full: with its line, a caret, and what to change.
    pub fn render(&self) -> String {
        let mut out = self.message.clone();
        let gutter = self.line.map_or(1, |line| line.to_string().len());
        if let Some(place) = self.place() {
            // Writing to a `String` does not fail.
            let _ = write!(out, "\n{:gutter$}--> {place}", "");
        }
        if let (Some(line), Some(excerpt)) = (self.line, &self.excerpt) {
            let (text, indent) = (&excerpt.text, &excerpt.indent);
            let carets = "^".repeat(excerpt.width);
            let _ = write!(
                out,
                "\n{:gutter$} |\n{line} | {text}\n{:gutter$} | {indent}{carets}",
                "", ""
            );
        }
        if !self.fix.is_empty() {
            let _ = write!(out, "\n{:gutter$} = fix: {}", "", self.fix);
        }
        out
    }

    /// `file:line:column`, as far as known.
    pub fn place(&self) -> Option<String> {
        let file = self.file.as_ref()?.display();
        Some(match (self.line, self.column) {
            (Some(line), Some(column)) => format!("{file}:{line}:{column}"),
            _ => file.to_string(),
        })
    }
}

/// On one line, for logs.
impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = self.place() {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message)?;
        if !self.fix.is_empty() {
            write!(f, ": {}", self.fix)?;
        }
        Ok(())
    }
}

impl Mistakes {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One by one.
    pub fn iter(&self) -> std::slice::Iter<'_, Mistake> {
        self.0.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Extend<Mistake> for Mistakes {
    fn extend<I: IntoIterator<Item = Mistake>>(&mut self, mistakes: I) {
        self.0.extend(mistakes);
    }
}

impl FromIterator<Mistake> for Mistakes {
    fn from_iter<I: IntoIterator<Item = Mistake>>(mistakes: I) -> Self {
        Self(mistakes.into_iter().collect())
    }
}

impl IntoIterator for Mistakes {
    type Item = Mistake;
    type IntoIter = std::vec::IntoIter<Mistake>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Mistakes {
    type Item = &'a Mistake;
    type IntoIter = std::slice::Iter<'a, Mistake>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "error: {}", mistake.render())?;
        }
        Ok(())
    }
}

impl Error for Mistakes {}

impl Fault {
    pub(super) fn new(message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            fix: fix.into(),
        }
    }
}

/// The parsers of [`crate::id`] say both in one sentence.
impl From<String> for Fault {
    fn from(message: String) -> Self {
        Self::new(message, "")
    }
}

impl Source {
    pub(super) fn new(path: &Path, text: String) -> Self {
        Self {
            path: path.into(),
            text,
            line_starts: OnceLock::new(),
        }
    }

    /// A mistake at a place of this text.
    pub(super) fn mistake(&self, span: &Range<usize>, fault: Fault) -> Mistake {
        let (line, start, text) = self.line_at(span.start);
        let from = span.start.clamp(start, start + text.len());
        let to = span.end.clamp(from, start + text.len());
        // A span that somehow splits a character is shown at the line's beginning.
        let before = text.get(..from - start).unwrap_or("");
        let marked = text.get(from - start..to - start).unwrap_or("");
        let indent = printable(&mask_credentials(before))
            .chars()
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        Mistake {
            file: Some(Arc::clone(&self.path)),
            line: Some(line),
            column: Some(before.chars().count() + 1),
            excerpt: Some(Box::new(Excerpt {
                text: printable(&mask_credentials(text)),
                indent,
                width: mask_credentials(marked).chars().count().max(1),
            })),
            ..Mistake::general(fault.message, fault.fix)
        }
    }

    /// `file:line` of a place.
    pub(super) fn place(&self, span: &Range<usize>) -> String {
        format!("{}:{}", self.path.display(), self.line_at(span.start).0)
    }

    /// The number, the beginning and the text of the line that holds a byte.
    fn line_at(&self, byte: usize) -> (usize, usize, &str) {
        let starts = self.line_starts.get_or_init(|| {
            std::iter::once(0)
                .chain(self.text.match_indices('\n').map(|(i, _)| i + 1))
                .collect()
        });
        let line = starts.partition_point(|start| *start <= byte).max(1);
        let start = starts.get(line - 1).copied().unwrap_or(0);
        let rest = self.text.get(start..).unwrap_or("");
        let text = rest.split('\n').next().unwrap_or("");
        (line, start, text.strip_suffix('\r').unwrap_or(text))
    }
}

impl Sink {
    pub(super) fn mistake(&self, mistake: Mistake) {
        self.mistakes.borrow_mut().push(mistake);
    }

    pub(super) fn warn(&self, warning: Mistake) {
        self.warnings.borrow_mut().push(warning);
    }

    /// How many mistakes there are so far.
    pub(super) fn count(&self) -> usize {
        self.mistakes.borrow().len()
    }

    /// Mistakes, then warnings.
    pub(super) fn into_parts(self) -> (Vec<Mistake>, Vec<Mistake>) {
        (self.mistakes.into_inner(), self.warnings.into_inner())
    }
}

/// The one of `known` that was probably meant: mistyped, or cut short.
pub(super) fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |candidate: &str| {
        let short = word.len() >= 3 && candidate.starts_with(word);
        let distance = if short { 1 } else { edits(word, candidate) };
        (distance <= candidate.len().max(word.len()) / 3).then_some(distance)
    };
    known
        .into_iter()
        .filter_map(|candidate| Some((distance(candidate)?, candidate)))
        .min()
        .map(|(_, candidate)| candidate)
}

/// How many letters must be added, dropped, changed or swapped with their neighbour.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

/// `text` with the user and password of every URL in it replaced. Masks rather too much than too
/// little: a password may hold characters that end a host name, and where a proxy is the matter
/// even blanks and quotes.
pub(crate) fn mask_credentials(text: &str) -> String {
    let all = text.to_ascii_lowercase().contains("proxy");
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(scheme) = rest.find("://") {
        let (head, tail) = rest.split_at(scheme + 3);
        out.push_str(head);
        let end = tail
            .find(|c: char| !all && (c.is_whitespace() || c == '"'))
            .unwrap_or(tail.len());
        rest = match tail.get(..end).and_then(|url| url.rfind('@')) {
            Some(at) => {
                out.push_str("***");
                tail.get(at..).unwrap_or("")
            }
            None => tail,
        };
    }
    out.push_str(rest);
    out
}

/// A path that is no Unicode is shown all the same.
#[expect(clippy::ref_option, reason = "serde hands the field over like this")]
fn as_text<S: Serializer>(file: &Option<Arc<Path>>, serializer: S) -> Result<S::Ok, S::Error> {
    let text = file.as_ref().map(|file| file.display().to_string());
    text.serialize(serializer)
}

/// `text` without anything that steers a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\t' { ' ' } else { c })
        .collect()
}

/// For messages: `a, b and c`.
pub(super) fn listed(items: &[&str]) -> String {
    match items {
        [] => String::new(),
        [one] => format!("`{one}`"),
        [head @ .., last] => {
            let head: Vec<String> = head.iter().map(|item| format!("`{item}`")).collect();
            format!("{} and `{last}`", head.join(", "))
        }
    }
}

/// Where a path stands in a message.
pub(super) fn quoted(path: &Path) -> String {
    format!("`{}`", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(text: &str) -> Source {
        Source::new(Path::new("/etc/x.toml"), text.into())
    }

    #[test]
    fn a_mistake_shows_its_line_and_a_caret() {
        let text = "a = 1\n\tcleint_id = \"x\" # ü\n";
        let from = text.find("cleint").unwrap();
        let mistake = source(text).mistake(
            &(from..from + 9),
            Fault::new("unknown key `cleint_id`", "write `client_id`"),
        );
        assert_eq!(
            mistake.render(),
            "unknown key `cleint_id`\n --> /etc/x.toml:2:2\n  |\n2 | \tcleint_id = \"x\" # ü\n  \
             | \t^^^^^^^^^\n  = fix: write `client_id`"
        );
        assert_eq!(
            mistake.to_string(),
            "/etc/x.toml:2:2: unknown key `cleint_id`: write `client_id`"
        );
        let both: Mistakes = [mistake.clone(), Mistake::general("b", "")]
            .into_iter()
            .collect();
        assert_eq!(
            both.to_string(),
            format!("error: {}\n\nerror: b", mistake.render())
        );
    }

    #[test]
    fn a_mistake_at_the_end_of_the_text_has_a_place_too() {
        let mistake = source("a = ").mistake(&(4..4), Fault::new("no value", ""));
        assert_eq!((mistake.line, mistake.column), (Some(1), Some(5)));
        let mistake = source("").mistake(&(9..12), Fault::new("empty", ""));
        assert_eq!((mistake.line, mistake.column), (Some(1), Some(1)));
        // Windows' line ends are not part of the line.
        let mistake = source("a\r\nb\r\n").mistake(&(3..4), Fault::new("x", ""));
        assert!(mistake.render().contains("2 | b\n"), "{}", mistake.render());
    }

    #[test]
    fn credentials_in_a_url_are_never_shown() {
        for (text, masked) in [
            ("http://u:p@proxy:8080", "http://***@proxy:8080"),
            (
                "a = \"http://u:p/@:w@h\" # x@y",
                "a = \"http://***@h\" # x@y",
            ),
            ("proxy = 'http://u:p'\"w x@h'", "proxy = 'http://***@h'"),
            ("spiffe://example.org/a b@c", "spiffe://example.org/a b@c"),
            ("http://u:p@a http://v@b", "http://***@a http://***@b"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(mask_credentials(text), masked);
        }
        let text = "proxy = \"http://user:hunter2@host\" x";
        let mistake = source(text).mistake(
            &(text.len() - 1..text.len()),
            Fault::new("http://user:hunter2@host", "not http://user:hunter2@host"),
        );
        let shown = format!("{mistake:?} {mistake} {}", mistake.render());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(
            mistake
                .render()
                .contains("| proxy = \"http://***@host\" x\n")
        );
    }

    #[test]
    fn what_was_probably_meant() {
        let known = ["client_id", "spiffe_id", "name", "tenant"];
        assert_eq!(closest("cleint_id", known), Some("client_id"));
        assert_eq!(closest("spiffeid", known), Some("spiffe_id"));
        assert_eq!(closest("tennant", known), Some("tenant"));
        assert_eq!(closest("spiffe", known), Some("spiffe_id"));
        assert_eq!(closest("colour", known), None);
        assert_eq!(closest("", known), None);
    }

    #[test]
    fn control_characters_of_a_file_do_not_reach_the_terminal() {
        let fault = Fault::new("\u{1b}[31m\nforged", "\u{7}");
        let mistake = source("a = \u{1b}[31m").mistake(&(0..1), fault);
        assert!(!mistake.render().contains(['\u{1b}', '\u{7}']));
        assert!(!mistake.to_string().contains('\n'), "one line is one line");
    }

    proptest! {
        #[test]
        fn any_place_of_any_text_can_be_shown(text in ".{0,40}(\n.{0,20}){0,3}", a in 0usize..80, b in 0usize..80) {
            let mistake = source(&text).mistake(&(a..b), Fault::new("m", "f"));
            prop_assert!(mistake.render().contains("--> /etc/x.toml:"));
            prop_assert!(mistake.line.unwrap() <= text.split('\n').count());
        }
    }
}
