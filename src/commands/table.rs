//! Columns for people: aligned, in colour where that helps.

use std::io::{self, IsTerminal};

use anstyle::{AnsiColor, Style};

use super::one_line;

/// Rows of cells under a header.
pub(super) struct Table<const N: usize> {
    rows: Vec<[Cell; N]>,
    colour: bool,
}

/// What stands in one place, and how.
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(header: [&str; N], colour: bool) -> Self {
        let header = header.map(|title| Cell::styled(title, Style::new().bold()));
        Self {
            rows: vec![header],
            colour,
        }
    }

    pub(super) fn row(&mut self, cells: [Cell; N]) {
        self.rows.push(cells);
    }

    /// All rows, each ended by a line break, without trailing blanks.
    pub(super) fn render(&self) -> String {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        let mut out = String::new();
        for row in &self.rows {
            let last = row.iter().rposition(|cell| !cell.text.is_empty());
            let shown = last.map_or(0, |last| last + 1);
            for (place, (cell, width)) in row.iter().zip(widths).take(shown).enumerate() {
                out.push_str(&paint(&cell.text, cell.style, self.colour));
                if place + 1 < shown {
                    let gap = width - cell.width() + GAP;
                    out.extend(std::iter::repeat_n(' ', gap));
                }
            }
            out.push('\n');
        }
        out
    }
}

impl Cell {
    pub(super) fn plain(text: &str) -> Self {
        Self::styled(text, Style::new())
    }

    pub(super) fn styled(text: &str, style: Style) -> Self {
        Self {
            text: one_line(text),
            style,
        }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// `text` in a style, where there is colour.
pub(super) fn paint(text: &str, style: Style, colour: bool) -> String {
    if colour && style != Style::new() {
        format!("{style}{text}{style:#}")
    } else {
        text.into()
    }
}

/// A style that is a colour.
pub(super) fn in_colour(colour: AnsiColor) -> Style {
    colour.on_default()
}

/// Whether stdout takes colour: a terminal, and nobody said no (<https://no-color.org>).
pub(super) fn stdout_has_colour() -> bool {
    let said_no = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stdout().is_terminal() && !said_no && !dumb
}

/// Seconds in the two units that matter: `45s`, `3m 20s`, `1h 5m`, `2d 3h`.
pub(super) fn duration(seconds: u64) -> String {
    const UNITS: [(u64, char); 4] = [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')];
    let Some(first) = UNITS.iter().position(|(size, _)| seconds >= *size) else {
        return "0s".into();
    };
    let mut left = seconds;
    let mut parts = Vec::new();
    for (size, unit) in UNITS.into_iter().skip(first).take(2) {
        if left >= size {
            parts.push(format!("{}{unit}", left / size));
        }
        left %= size;
    }
    parts.join(" ")
}

const GAP: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_characters_and_nothing_trails() {
        let mut table = Table::new(["A", "B", "C"], false);
        table.row(["äöü", "x", "long last cell"].map(Cell::plain));
        table.row(["1\n2", "", ""].map(Cell::plain));
        table.row(["", "yy", ""].map(Cell::plain));
        assert_eq!(
            table.render(),
            "A    B   C\näöü  x   long last cell\n1 2\n     yy\n"
        );
    }

    #[test]
    fn colour_does_not_count_as_width() {
        let mut table = Table::new(["A", "B"], true);
        table.row([
            Cell::styled("red", in_colour(AnsiColor::Red)),
            Cell::plain("x"),
        ]);
        let rendered = table.render();
        assert_eq!(rendered.lines().nth(1), Some("\u{1b}[31mred\u{1b}[0m  x"));
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (45, "45s"),
            (60, "1m"),
            (200, "3m 20s"),
            (3_600, "1h"),
            (3_900, "1h 5m"),
            (3_659, "1h"),
            (86_400 + 3 * 3_600 + 59, "1d 3h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
