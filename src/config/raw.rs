//! What stands in a file: a TOML table read key by key, every value with its place.
//!
//! A [`Table`] notes what is wrong and goes on, so that one reading finds every mistake: serde
//! would stop at the first. The keys a reader asks for are the keys that exist; whatever was not
//! asked for when [`Table::finish`] is called is unknown.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::diagnostics::{Fault, Sink, Source, closest, listed};

/// A value and where it stands.
pub(super) type At<T> = Spanned<T>;

/// A table that is being read.
pub(super) struct Table<'a> {
    /// As people call it: `[entra]`, `[[identity]]`.
    name: String,
    span: Range<usize>,
    entries: &'a DeTable<'a>,
    asked: Vec<&'static str>,
    /// Keys that belong elsewhere, and where.
    elsewhere: &'static [(&'static str, &'static str)],
    reading: Reading<'a>,
}

/// What is read from and reported to.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) source: &'a Source,
    pub(super) sink: &'a Sink,
}

impl Reading<'_> {
    pub(super) fn mistake(&self, span: &Range<usize>, fault: Fault) {
        self.sink.mistake(self.source.mistake(span, fault));
    }

    pub(super) fn warn(&self, span: &Range<usize>, message: String, fix: &str) {
        self.sink
            .warn(self.source.mistake(span, Fault::new(message, fix)));
    }

    /// A mistake's own value, or `None` and the mistake noted.
    pub(super) fn keep<T>(&self, span: &Range<usize>, result: Result<T, Fault>) -> Option<T> {
        result.map_err(|fault| self.mistake(span, fault)).ok()
    }
}

impl<'a> Table<'a> {
    pub(super) fn new(
        name: impl Into<String>,
        span: Range<usize>,
        entries: &'a DeTable<'a>,
        reading: Reading<'a>,
    ) -> Self {
        Self {
            name: name.into(),
            span,
            entries,
            asked: Vec::new(),
            elsewhere: &[],
            reading,
        }
    }

    /// As `new`, for a value that should be a table.
    pub(super) fn from_value(
        name: impl Into<String>,
        value: &'a Spanned<DeValue<'a>>,
        reading: Reading<'a>,
    ) -> Option<Self> {
        let name = name.into();
        match value.get_ref() {
            DeValue::Table(entries) => Some(Self::new(name, value.span(), entries, reading)),
            other => {
                reading.mistake(
                    &value.span(),
                    Fault::new(
                        format!("{name} must be a table, and this is {}", kind(other)),
                        "write it as `{ key = value }`",
                    ),
                );
                None
            }
        }
    }

    /// Names keys that are often put here by mistake.
    pub(super) fn elsewhere(&mut self, keys: &'static [(&'static str, &'static str)]) {
        self.elsewhere = keys;
    }

    /// Where the table (its header) stands.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn rename(&mut self, name: String) {
        self.name = name;
    }

    /// The same, reporting elsewhere.
    pub(super) fn reporting_to<'b>(self, reading: Reading<'b>) -> Table<'b>
    where
        'a: 'b,
    {
        Table { reading, ..self }
    }

    pub(super) fn reading(&self) -> Reading<'a> {
        self.reading
    }

    /// The value of a key, whatever it is.
    pub(super) fn value(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.ask(key);
        self.entries.get(key)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<At<&'a str>> {
        let value = self.value(key)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, value, "a string in quotes");
        }
        text.map(|text| Spanned::new(value.span(), text))
    }

    /// A string that `parse` understands.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let text = self.text(key)?;
        self.reading.keep(&text.span(), parse(text.get_ref()))
    }

    /// A string that must be there; `what` says what for.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        if !self.has(key) {
            self.ask(key);
            let message = format!("{} has no `{key}`", self.name);
            self.reading
                .mistake(&self.span, Fault::new(message, format!("add {what}")));
            return None;
        }
        self.parsed(key, parse)
    }

    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            self.wrong_type(key, value, "true or false, without quotes");
        }
        flag
    }

    /// A whole number within bounds.
    pub(super) fn number(&mut self, key: &'static str, min: u64, max: u64) -> Option<At<u64>> {
        let value = self.value(key)?;
        let wanted = format!("a whole number from {min} to {max}, without quotes");
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, &wanted);
            return None;
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if (min..=max).contains(&number) => Some(Spanned::new(value.span(), number)),
            // Negative ones do not parse; too large ones neither.
            _ => {
                let message = format!("{} is out of range", self.described(key));
                self.reading.mistake(
                    &value.span(),
                    Fault::new(message, format!("write {wanted}")),
                );
                None
            }
        }
    }

    /// A list of strings. Items of other types are noted and left out.
    pub(super) fn texts(&mut self, key: &'static str) -> Option<At<Vec<At<&'a str>>>> {
        let value = self.value(key)?;
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "a list of strings, as in [\"a\", \"b\"]");
            return None;
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match item.get_ref().as_str() {
                Some(text) => texts.push(Spanned::new(item.span(), text)),
                None => self.wrong_type(key, item, "strings in quotes only"),
            }
        }
        Some(Spanned::new(value.span(), texts))
    }

    /// A table below this one.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Self> {
        let value = self.value(key)?;
        let name = if self.name.is_empty() {
            format!("[{key}]")
        } else {
            self.described(key)
        };
        match value.get_ref() {
            DeValue::Table(entries) => Some(Self::new(name, value.span(), entries, self.reading)),
            _ => {
                let wanted = if self.name.is_empty() {
                    format!("a table, headed [{key}]")
                } else {
                    "a table, as in { key = value }".to_owned()
                };
                self.wrong_type(key, value, &wanted);
                None
            }
        }
    }

    /// The tables headed `[[key]]`. Whatever else stands there is noted and left out.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Self> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let wanted = format!("tables, each headed [[{key}]]");
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(key, value, &wanted);
            return Vec::new();
        };
        let mut tables = Vec::with_capacity(items.len());
        for item in items {
            match item.get_ref() {
                DeValue::Table(entries) => tables.push(Self::new(
                    format!("[[{key}]]"),
                    item.span(),
                    entries,
                    self.reading,
                )),
                _ => self.wrong_type(key, item, &wanted),
            }
        }
        tables
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self) {
        for (key, _) in self.entries {
            let name: &str = key.get_ref();
            if !self.asked.contains(&name) {
                self.reading.mistake(&key.span(), self.unknown(name));
            }
        }
    }

    fn unknown(&self, key: &str) -> Fault {
        let inside = if self.name.is_empty() {
            "here".to_owned()
        } else {
            format!("in {}", self.name)
        };
        let message = format!("unknown key `{key}` {inside}");
        if let Some((_, place)) = self.elsewhere.iter().find(|(name, _)| *name == key) {
            return Fault::new(message, format!("`{key}` belongs {place}"));
        }
        let fix = match closest(key, self.asked.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("remove it; the keys are {}", listed(&self.asked)),
        };
        Fault::new(message, fix)
    }

    fn ask(&mut self, key: &'static str) {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) {
        let message = format!("{} is {}", self.described(key), kind(value.get_ref()));
        self.reading.mistake(
            &value.span(),
            Fault::new(message, format!("write {wanted}")),
        );
    }

    fn described(&self, key: &str) -> String {
        if self.name.is_empty() {
            format!("`{key}`")
        } else {
            format!("`{key}` of {}", self.name)
        }
    }
}

/// What a value is, for people.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Reads `text` and returns the one-line mistakes.
    fn read(text: &str, with: impl FnOnce(Table<'_>)) -> Vec<String> {
        let source = Source::new(Path::new("t"), text.into());
        let sink = Sink::default();
        let document = DeTable::parse(&source.text).unwrap();
        let reading = Reading {
            source: &source,
            sink: &sink,
        };
        with(Table::new("", document.span(), document.get_ref(), reading));
        let (mistakes, warnings) = sink.into_parts();
        assert!(warnings.is_empty());
        mistakes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_value_of_the_wrong_type_is_noted() {
        let text = "a = 1\nb = \"x\"\nc = \"true\"\nd = [\"x\", 1]\ne = 1\nf = []\ng = -1\nh = 7\n";
        let mistakes = read(text, |mut t| {
            assert!(t.text("a").is_none());
            assert!(t.number("b", 1, 5).is_none());
            assert!(t.flag("c").is_none());
            assert_eq!(t.texts("d").unwrap().get_ref().len(), 1);
            assert!(t.tables("e").is_empty());
            assert!(t.table("f").is_none());
            assert!(t.number("g", 0, 5).is_none());
            assert!(t.number("h", 1, 5).is_none());
            t.finish();
        });
        assert_eq!(
            mistakes,
            [
                "t:1:5: `a` is a whole number: write a string in quotes",
                "t:2:5: `b` is a string: write a whole number from 1 to 5, without quotes",
                "t:3:5: `c` is a string: write true or false, without quotes",
                "t:4:11: `d` is a whole number: write strings in quotes only",
                "t:5:5: `e` is a whole number: write tables, each headed [[e]]",
                "t:6:5: `f` is a list: write a table, headed [f]",
                "t:7:5: `g` is out of range: write a whole number from 0 to 5, without quotes",
                "t:8:5: `h` is out of range: write a whole number from 1 to 5, without quotes",
            ]
        );
    }

    #[test]
    fn every_unknown_key_is_noted_with_what_was_meant() {
        let text = "nam = 1\nother = 1\nadmins = 1\n[[one]]\nx = 1\n[[one]]\ny = 1\n";
        let mistakes = read(text, |mut t| {
            t.value("name");
            t.elsewhere(&[("admins", "at the top of the file")]);
            for one in t.tables("one") {
                one.finish();
            }
            t.finish();
        });
        assert_eq!(mistakes.len(), 5, "{mistakes:#?}");
        for part in [
            "t:5:1: unknown key `x` in [[one]]: remove it",
            "t:7:1: unknown key `y` in [[one]]",
            "t:1:1: unknown key `nam` here: did you mean `name`?",
            "t:2:1: unknown key `other` here: remove it; the keys are `name` and `one`",
            "t:3:1: unknown key `admins` here: `admins` belongs at the top of the file",
        ] {
            assert!(
                mistakes.iter().any(|m| m.starts_with(part)),
                "{part}: {mistakes:#?}"
            );
        }
    }

    #[test]
    fn values_come_with_their_places() {
        let text = "a = \"x\"\nn = 0o17\n[t]\nb = true\n";
        let mistakes = read(text, |mut t| {
            assert_eq!(t.text("a").unwrap().span(), 4..7);
            assert_eq!(*t.number("n", 0, 99).unwrap().get_ref(), 15);
            let mut inner = t.table("t").unwrap();
            assert_eq!(
                inner.span(),
                text.find("[t]").unwrap()..text.find("[t]").unwrap() + 3
            );
            assert_eq!(inner.flag("b"), Some(true));
            assert_eq!(inner.required("c", "the c", |_| Ok(())), None);
            inner.finish();
            t.finish();
        });
        assert_eq!(mistakes, ["t:3:1: [t] has no `c`: add the c"]);
    }
}
