//! Lines for people: when, what, and the details; in colour on a terminal only.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use tokio::time::Instant;

/// Prints the story.
pub(crate) struct Teller {
    began: Instant,
    colour: bool,
}

impl Teller {
    pub(crate) fn new() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            began: Instant::now(),
            colour: io::stdout().is_terminal() && !plain,
        }
    }

    /// An event.
    pub(crate) fn line(&self, what: &str, text: &str) -> io::Result<()> {
        let at = self.began.elapsed().as_secs_f64();
        self.print(format_args!(
            "{} {} {text}",
            self.paint(DIM, &format!("{at:6.2}s")),
            self.paint(BOLD, &format!(" {what:<10}"))
        ))
    }

    /// More about the event before, however long.
    pub(crate) fn more(&self, text: &str) -> io::Result<()> {
        for line in wrap(text, WIDTH) {
            self.print(format_args!("{:20}{line}", ""))?;
        }
        Ok(())
    }

    /// A command to try.
    pub(crate) fn command(&self, text: &str) -> io::Result<()> {
        self.print(format_args!("  {}", self.paint(CYAN, text)))
    }

    /// Any text.
    pub(crate) fn text(&self, text: &str) -> io::Result<()> {
        self.print(format_args!("{text}"))
    }

    /// What went wrong.
    pub(crate) fn mishap(&self, text: &str) {
        let line = format!("demo: {}\n", self.paint(RED, text));
        // Nobody left to tell when that fails: the exit code says it too.
        let _ = io::stderr().write_all(line.as_bytes());
    }

    /// What matters in a line.
    pub(crate) fn strong(&self, text: &str) -> String {
        self.paint(BOLD, text)
    }

    fn paint(&self, style: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{style}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn print(&self, text: std::fmt::Arguments<'_>) -> io::Result<()> {
        // Not `println!`, which panics when the reader is gone.
        writeln!(io::stdout().lock(), "{text}")
    }
}

/// A time as people say it.
pub(crate) fn time(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    match millis {
        ..1.0 => format!("{millis:.2} ms"),
        ..10.0 => format!("{millis:.1} ms"),
        ..1000.0 => format!("{millis:.0} ms"),
        _ => format!("{:.1} s", millis / 1000.0),
    }
}

/// The first part of a GUID: enough to know it again.
pub(crate) fn short(guid: &str) -> String {
    match guid.split_once('-') {
        Some((first, _)) => format!("{first}-…"),
        None => guid.to_owned(),
    }
}

/// Breaks a text between words; a word that is too long stays whole.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// How wide the text beside the columns is: a terminal of a hundred.
const WIDTH: usize = 80;
const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const CYAN: &str = "36";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_broken_between_words() {
        assert_eq!(wrap("aa bb cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrap("aa bbbbbbb c", 5), ["aa", "bbbbbbb", "c"]);
        assert!(wrap("", 5).is_empty());
    }

    #[test]
    fn times_have_the_digits_that_matter() {
        let said = |micros| time(Duration::from_micros(micros));
        assert_eq!(said(87), "0.09 ms");
        assert_eq!(said(4_321), "4.3 ms");
        assert_eq!(said(43_210), "43 ms");
        assert_eq!(said(2_800_000), "2.8 s");
    }
}
