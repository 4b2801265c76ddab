//! What was measured, for people and for programs.

use serde_json::{Value, json};

/// Rows, printed as they come.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

/// One number.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) goal: Option<Goal>,
    /// What explains the number.
    pub(crate) note: String,
    /// Every round, for programs.
    pub(crate) details: Value,
}

/// What a number should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Table {
    pub(crate) fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(crate) fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "name": row.name,
                "value": row.value,
                "unit": row.unit,
                "goal": row.goal.map(|goal| goal.to_string()),
                "met": row.met(),
                "note": row.note,
                "details": row.details,
            })
        });
        json!({ "rows": rows.collect::<Vec<_>>() })
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:<52} {:>9} {:<14} goal", "", "measured", "")?;
        for row in &self.rows {
            let goal = row.goal.map_or_else(String::new, |goal| goal.to_string());
            let verdict = match row.met() {
                None => "",
                Some(true) => "PASS",
                Some(false) => "MISS",
            };
            let Row {
                name, value, unit, ..
            } = row;
            writeln!(f, "{name:<52} {value:>9.2} {unit:<14} {goal:<8} {verdict}")?;
            if !row.note.is_empty() {
                writeln!(f, "    {}", row.note)?;
            }
        }
        Ok(())
    }
}

impl Row {
    /// A number without a goal.
    pub(crate) fn information(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
            goal: None,
            note: String::new(),
            details: Value::Null,
        }
    }

    /// A number with a goal.
    pub(crate) fn judged(
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        goal: Goal,
    ) -> Self {
        Self {
            goal: Some(goal),
            ..Self::information(name, value, unit)
        }
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    fn met(&self) -> Option<bool> {
        self.goal.map(|goal| match goal {
            Goal::AtLeast(least) => self.value >= least,
            Goal::AtMost(most) => self.value <= most,
        })
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">= {least}"),
            Self::AtMost(most) => write!(f, "<= {most}"),
        }
    }
}

/// The value in the middle; zero of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    match (values.get(low), values.get(high)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_goal_is_met_or_missed() {
        let row = |value, goal| Row::judged("x", value, "", goal).met();
        assert_eq!(row(0.85, Goal::AtLeast(0.85)), Some(true));
        assert_eq!(row(0.84, Goal::AtLeast(0.85)), Some(false));
        assert_eq!(row(12.1, Goal::AtMost(12.0)), Some(false));
        assert_eq!(Row::information("x", 1.0, "").met(), None);
    }
}
