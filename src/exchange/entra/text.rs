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

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const ASSERTION: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImsxIn0.\
        eyJzdWIiOiJzcGlmZmU6Ly9leGFtcGxlLm9yZy9wYXkifQ.c2lnbmF0dXJlLXNpZ25hdHVyZS1zaWduYXR1cmU";

    #[test]
    fn descriptions_lose_their_tail_and_their_line_breaks() {
        let text = "AADSTS700213: No matching\r\n record.\u{1b}[0m Trace ID: 3939d04c Correlation \
                    ID: f6e5 Timestamp: 2026-01-30 10:34:24Z";
        assert_eq!(
            clean(text, ASSERTION),
            "AADSTS700213: No matching record. [0m"
        );
        assert_eq!(clean("", ASSERTION), "");
        let long = clean(&"ä".repeat(700), ASSERTION);
        assert_eq!(long.chars().count(), LIMIT + 1);
    }

    #[test]
    fn a_repeated_assertion_is_redacted_whole_or_in_pieces() {
        let [header, payload, signature] = ASSERTION.split('.').collect::<Vec<_>>()[..] else {
            unreachable!()
        };
        let wrapped = format!("{}\n{}", &ASSERTION[..50], &ASSERTION[50..]);
        for reflected in [
            ASSERTION.to_owned(),
            format!("bad token '{ASSERTION}'."),
            format!("client_assertion={ASSERTION}&scope=x"),
            format!("part {payload} alone"),
            format!("signature {signature}"),
            format!("x{header}y"),
            format!("beginning {}", &ASSERTION[..ASSERTION.len() - 9]),
            wrapped,
        ] {
            let shown = clean(&reflected, ASSERTION);
            assert!(shown.contains("[redacted]"), "{shown}");
            for piece in [&header[..20], &payload[3..30], &signature[..20]] {
                assert!(!shown.contains(piece), "{shown}");
            }
        }
        let other = clean("eyJhbGciOiJub25lIn0.e30.", "");
        assert_eq!(other, "[redacted]");
    }

    #[test]
    fn what_is_no_token_is_shown() {
        let text = "subject 'spiffe://example.org/ns/a-quite-long-name/sa/payments' of client \
                    0f8fad5b-d9cb-469f-a165-70867728950e at https://learn.microsoft.com/entra/x";
        assert_eq!(clean(text, ASSERTION), text);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let now = 1_790_000_000;
        let with = |value: &str, date: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_str(value).unwrap());
            if let Some(date) = date {
                headers.insert(header::DATE, HeaderValue::from_str(date).unwrap());
            }
            retry_after(&headers, now).map(|d| d.as_secs())
        };
        assert_eq!(with("60", None), Some(60));
        assert_eq!(with(" 0 ", None), Some(0));
        assert_eq!(with("86400", None), Some(3600));
        assert_eq!(with("99999999999999999999999", None), Some(3600));
        assert_eq!(with("Mon, 21 Sep 2026 14:14:20 GMT", None), Some(60));
        assert_eq!(with("Mon, 21 Sep 2026 14:13:00 GMT", None), Some(0));
        let date = Some("Mon, 21 Sep 2026 14:13:20 GMT");
        assert_eq!(with("Mon, 21 Sep 2026 14:13:25 GMT", date), Some(5));
        assert_eq!(with("soon", None), None);
        assert_eq!(with("-1", None), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn the_clock_that_is_off_is_named() {
        let text = |now: &str, from: &str, until: &str| {
            format!(
                "AADSTS700024: Client assertion is not within its valid time range. Current time: \
                 {now}, assertion valid from {from}, expiry time of assertion {until}. Review the \
                 documentation at https://learn.microsoft.com/x"
            )
        };
        let description = text(
            "2026-09-21T14:13:20.1234567Z",
            "2026-09-21T14:00:00.0000000Z",
            "2026-09-21T14:05:00.0000000Z",
        );
        let range = TimeRange::parse(&description).unwrap();
        assert_eq!(
            range,
            TimeRange {
                current: 1_790_000_000,
                from: Some(1_790_000_000 - 800),
                until: Some(1_790_000_000 - 500),
            }
        );
        let agree = range.verdict(1_790_000_010);
        assert!(
            agree.contains("agree") && agree.contains("ended 500 s before"),
            "{agree}"
        );
        let behind = range.verdict(1_790_000_000 - 900);
        assert_eq!(behind, "this machine's clock is 900 s behind Entra's");
        let ahead = range.verdict(1_790_000_000 + 31);
        assert_eq!(ahead, "this machine's clock is 31 s ahead of Entra's");
        let early = text(
            "2026-09-21T14:13:20Z",
            "2026-09-21T14:20:00Z",
            "2026-09-21T14:25:00Z",
        );
        let early = TimeRange::parse(&early).unwrap().verdict(1_790_000_000);
        assert!(early.contains("SPIRE server's clock is ahead"), "{early}");
        assert_eq!(TimeRange::parse("AADSTS700024: other words"), None);
        assert_eq!(TimeRange::parse("Current time: yesterday, …"), None);
        let bare = TimeRange::parse("Current time: 2026-09-21T14:13:20Z").unwrap();
        assert_eq!(
            bare.verdict(1_790_000_000),
            "this machine's clock and Entra's agree"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_cleaned(text in "\\PC{0,80}(eyJ[a-zA-Z0-9_.-]{0,40})?[\\x00-\\x7f]{0,40}") {
            let shown = clean(&text, ASSERTION);
            prop_assert!(!shown.chars().any(char::is_control));
            let _ = TimeRange::parse(&text);
        }

        #[test]
        fn no_half_of_the_assertion_gets_through(
            before in "[ -~]{0,20}",
            from in 0..60usize,
            length in 40..100usize,
        ) {
            let piece = &ASSERTION[from..(from + length).min(ASSERTION.len())];
            let shown = clean(&format!("{before} {piece}"), ASSERTION);
            prop_assert!(!shown.contains(piece), "{}", shown);
        }
    }
}
