//! What Entra writes, made fit for logs and callers; and the dates in it.

use std::time::Duration;

use http::{HeaderMap, header};
use time::{
    OffsetDateTime, PrimitiveDateTime, format_description::well_known::Rfc3339,
    macros::format_description,
};

/// How much of a description is shown.
const LIMIT: usize = 500;

/// Waiting longer than this helps nobody: Microsoft's own libraries draw the same line.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(3600);

/// What is shorter than this is a word, not a piece of a token.
const PIECE: usize = 16;

/// A description: without its tail of ids (they are told apart), on one line, bounded, and without
/// any piece of a token.
pub(super) fn clean(text: &str, assertion: &str) -> String {
    let text = text.split("Trace ID:").next().unwrap_or_default();
    let text = text.replace(char::is_control, " ");
    let text = redact(&text, assertion);
    let words: Vec<_> = text.split_whitespace().collect();
    let text = words.join(" ");
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Replaces whatever is a JWT, or a piece of the assertion: some servers repeat in an error what
/// they were sent.
fn redact(text: &str, assertion: &str) -> String {
    let of_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !of_token(c)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        shown.push_str(if is_piece(run, assertion) {
            "[redacted]"
        } else {
            run
        });
        let next = after.find(of_token).unwrap_or(after.len());
        shown.push_str(&after[..next]);
        rest = &after[next..];
    }
    shown
}

fn is_piece(run: &str, assertion: &str) -> bool {
    if run.len() < PIECE {
        return false;
    }
    // `eyJ` is what `{"` becomes in base64url: every JWT begins so.
    run.contains("eyJ")
        || run
            .split('.')
            .any(|part| part.len() >= PIECE && assertion.contains(part))
        || assertion
            .split('.')
            .any(|part| part.len() >= PIECE && run.contains(part))
}

/// An id of Entra's that goes into logs, if it looks like one.
pub(super) fn identifier(text: &str) -> Option<&str> {
    let text = text.trim();
    let well_formed = (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    well_formed.then_some(text)
}

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3). The server's own `Date` is the one
/// to count from, ours may be off.
pub(super) fn retry_after(headers: &HeaderMap, now: i64) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = if value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit mean for ever, which is bounded below.
        value.parse().unwrap_or(u64::MAX)
    } else {
        let from = headers
            .get(header::DATE)
            .and_then(|d| http_date(d.to_str().ok()?));
        u64::try_from(http_date(value)? - from.unwrap_or(now)).unwrap_or(0)
    };
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_LIMIT))
}

fn http_date(text: &str) -> Option<i64> {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    Some(
        PrimitiveDateTime::parse(text, format)
            .ok()?
            .assume_utc()
            .unix_timestamp(),
    )
}

/// What 700024 tells of the time: Entra's, and the assertion's as Entra read it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TimeRange {
    current: i64,
    from: Option<i64>,
    until: Option<i64>,
}

impl TimeRange {
    pub(super) fn parse(description: &str) -> Option<Self> {
        let after = |label: &str| {
            let rest = description.split(label).nth(1)?;
            let end = rest.find([',', ' ']).unwrap_or(rest.len());
            let date = rest[..end].trim_end_matches('.');
            Some(OffsetDateTime::parse(date, &Rfc3339).ok()?.unix_timestamp())
        };
        Some(Self {
            current: after("Current time: ")?,
            from: after("assertion valid from "),
            until: after("expiry time of assertion "),
        })
    }

    /// Whose clock is off.
    pub(super) fn verdict(&self, now: i64) -> String {
        // Within the time that a request takes, and a little more.
        const TOLERANCE: i64 = 30;
        let skew = self.current - now;
        if skew.abs() > TOLERANCE {
            let side = if skew > 0 { "behind" } else { "ahead of" };
            return format!("this machine's clock is {} s {side} Entra's", skew.abs());
        }
        match (self.from, self.until) {
            (Some(from), _) if from > self.current => format!(
                "this machine's clock and Entra's agree, and the JWT-SVID begins {} s later: the SPIRE \
                 server's clock is ahead",
                from - self.current
            ),
            (_, Some(until)) if until <= self.current => format!(
                "this machine's clock and Entra's agree, and the JWT-SVID ended {} s before: it was sent \
                 at the end of its life, or the SPIRE server's clock is behind",
                self.current - until
            ),
            _ => "this machine's clock and Entra's agree".into(),
        }
    }
}
