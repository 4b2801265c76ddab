//! `[limits]` and `[metrics]`: bounds and periods, each within sense.

use std::{net::SocketAddr, time::Duration};

use toml::{Spanned, de::DeValue};

use super::{
    Limits,
    diagnostics::Fault,
    raw::Table,
    values::{self, show_duration},
};

/// Reads `[limits]`.
pub(super) fn limits(table: &mut Table<'_>) -> Limits {
    let usual = Limits::default();
    Limits {
        revoke_after: duration(table, "revoke_after", secs(10), secs(24 * 3600))
            .unwrap_or(usual.revoke_after),
        resources_per_identity: count(table, "resources_per_identity", 4096)
            .unwrap_or(usual.resources_per_identity),
        exchanges_per_minute: table
            .number("exchanges_per_minute", 1, 6000)
            .and_then(|n| u32::try_from(n.into_inner()).ok())
            .unwrap_or(usual.exchanges_per_minute),
        connections_per_uid: count(table, "connections_per_uid", MAX_CONNECTIONS)
            .unwrap_or(usual.connections_per_uid),
        drain: duration(table, "drain", Duration::ZERO, secs(300)).unwrap_or(usual.drain),
    }
}

/// Reads `[metrics]`: the address to be scraped at.
pub(super) fn metrics(table: &mut Table<'_>) -> Option<SocketAddr> {
    let remote = table.flag("allow_remote").unwrap_or(false);
    let address = |text: &str| {
        let address: SocketAddr = text.parse().map_err(|_error| {
            Fault::new(
                format!("`{text}` is no address"),
                "write an IP address and a port, such as \"127.0.0.1:9464\"",
            )
        })?;
        if !address.ip().is_loopback() && !remote {
            return Err(Fault::new(
                "the metrics name identities and tenants, and this address is open to other \
                 machines",
                "write 127.0.0.1, or set `allow_remote = true` in [metrics]",
            ));
        }
        Ok(address)
    };
    table.required(
        "listen",
        "where to listen, such as \"127.0.0.1:9464\"",
        address,
    )
}

/// A number of things, at least one.
pub(super) fn count(table: &mut Table<'_>, key: &'static str, max: u64) -> Option<usize> {
    let number = table.number(key, 1, max)?;
    usize::try_from(number.into_inner()).ok()
}

/// `"5m"`, or a number of seconds.
pub(super) fn duration(
    table: &mut Table<'_>,
    key: &'static str,
    min: Duration,
    max: Duration,
) -> Option<Duration> {
    let value = table.value(key)?;
    let parsed = parse_duration(key, value).and_then(|duration| {
        if (min..=max).contains(&duration) {
            return Ok(duration);
        }
        Err(Fault::new(
            format!("`{key}` is out of range"),
            format!("write {} to {}", show_duration(min), show_duration(max)),
        ))
    });
    table.reading().keep(&value.span(), parsed)
}

fn parse_duration(key: &str, value: &Spanned<DeValue<'_>>) -> Result<Duration, Fault> {
    match value.get_ref() {
        DeValue::String(text) => values::duration(text),
        DeValue::Integer(number) if number.radix() == 10 => {
            // A unit is what is missing; a number too large for it is said to be no duration.
            values::duration(&format!("{}s", number.as_str()))
        }
        other => Err(Fault::new(
            format!("`{key}` is {}, and no duration", super::raw::kind(other)),
            "write a number of seconds, or a string such as \"5m\"",
        )),
    }
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// More than a process has descriptors for, anywhere.
pub(super) const MAX_CONNECTIONS: u64 = 65_536;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{HEAD, IDENTITY, LISTEN, given, says};

    fn with(text: &str) -> crate::config::testing::Given {
        given(&format!("{HEAD}{text}{LISTEN}{IDENTITY}"))
    }

    #[test]
    fn limits_have_defaults() {
        assert_eq!(with("").fine().limits, Limits::default());
        assert_eq!(with("[limits]\n").fine().limits, Limits::default());
    }

    #[test]
    fn limits_are_what_was_written() {
        let text = "[limits]\nrevoke_after = \"2m\"\nresources_per_identity = 3\n\
                    exchanges_per_minute = 4\nconnections_per_uid = 5\ndrain = 6\n";
        assert_eq!(
            with(text).fine().limits,
            Limits {
                revoke_after: secs(120),
                resources_per_identity: 3,
                exchanges_per_minute: 4,
                connections_per_uid: 5,
                drain: secs(6),
            }
        );
    }

    #[test]
    fn limits_have_bounds() {
        for (line, part) in [
            ("revoke_after = 9", "write 10s to 24h"),
            ("revoke_after = \"25h\"", "write 10s to 24h"),
            ("revoke_after = \"soon\"", "`soon` is no duration"),
            ("revoke_after = -5", "no duration"),
            ("revoke_after = 1.5", "a number, and no duration"),
            ("resources_per_identity = 0", "from 1 to 4096"),
            ("exchanges_per_minute = 6001", "from 1 to 6000"),
            ("connections_per_uid = 0", "from 1 to 65536"),
            ("drain = \"6m\"", "write 0s to 5m"),
            ("drian = \"6s\"", "did you mean `drain`?"),
        ] {
            says(&with(&format!("[limits]\n{line}\n")).refused(), part);
        }
    }

    #[test]
    fn metrics_stay_on_this_machine_unless_told_otherwise() {
        let metrics = |text: &str| with(&format!("[metrics]\n{text}\n"));
        for address in ["127.0.0.1:9464", "[::1]:9464"] {
            let plan = metrics(&format!("listen = \"{address}\"")).fine();
            assert_eq!(plan.metrics, Some(address.parse().unwrap()));
        }
        says(
            &metrics("listen = \"0.0.0.0:9464\"").refused(),
            "allow_remote = true",
        );
        let plan = metrics("listen = \"0.0.0.0:9464\"\nallow_remote = true").fine();
        assert!(plan.metrics.is_some());
        says(&metrics("").refused(), "[metrics] has no `listen`");
        says(
            &metrics("listen = \"localhost:9464\"").refused(),
            "is no address",
        );
        assert_eq!(with("").fine().metrics, None);
    }
}
