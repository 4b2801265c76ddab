//! `spiffe-entra status`: a row for each identity and resource, and the fix for what is wrong.

use anstyle::{AnsiColor, Style};

use super::{
    Failure, client, one_line, print,
    table::{Cell, Table, duration, in_colour, paint, stdout_has_colour},
};
use crate::{
    cli::{self, ConfigFile, StatusOutput},
    server::status::{Fault, IdentityStatus, State, Status, TokenStatus},
};

pub(super) async fn run(args: &cli::Status, config: &ConfigFile) -> Result<(), Failure> {
    let answer = client(&args.daemon, config)?
        .get("/v1/status", &[])
        .await?;
    let text = match args.output {
        StatusOutput::Json => {
            let mut text = answer.trim_ascii_end().to_vec();
            text.push(b'\n');
            text
        }
        StatusOutput::Table => {
            let status: Status = serde_json::from_slice(&answer).map_err(|error| {
                Failure::Failed(format!(
                    "the daemon's status cannot be read ({error}): is it of another version? \
                     --output json shows it as it is"
                ))
            })?;
            render(&status, stdout_has_colour()).into_bytes()
        }
    };
    print(&text)
}

fn render(status: &Status, colour: bool) -> String {
    let mut out = summary(status, colour);
    let mut table = Table::new(
        [
            "IDENTITY",
            "SPIFFE ID",
            "RESOURCE",
            "EXPIRES IN",
            "NEXT REFRESH",
            "STATE",
            "FIX",
        ],
        colour,
    );
    for identity in &status.identities {
        if identity.tokens.is_empty() {
            table.row(row(identity, None));
        }
        for token in &identity.tokens {
            table.row(row(identity, Some(token)));
        }
    }
    out.push_str(&table.render());
    if !status.quarantined.is_empty() {
        let title = "Not served, for mistakes in the configuration:";
        out.push_str(&format!("\n{}\n", paint(title, FAILING, colour)));
        for identity in &status.quarantined {
            out.push_str(&format!("{}\n", one_line(&identity.name)));
            for mistake in &identity.mistakes {
                out.push_str(&format!("  {}\n", one_line(mistake)));
            }
        }
    }
    out
}

/// Which daemon this is, and its Workload API when that is out of reach.
fn summary(status: &Status, colour: bool) -> String {
    let mut out = format!(
        "spiffe-entra {}, running since {}, configuration {}\n",
        one_line(&status.version),
        one_line(&status.started),
        status.generation
    );
    let api = &status.workload_api;
    if !api.reachable {
        let why = api.error.as_ref().map_or_else(String::new, |fault| {
            format!(": {}; {}", fault.detail, fault.fix)
        });
        let line = one_line(&format!(
            "Workload API {} is out of reach{why}",
            api.endpoint
        ));
        out.push_str(&paint(&line, FAILING, colour));
        out.push('\n');
    }
    out.push('\n');
    out
}

fn row(identity: &IdentityStatus, token: Option<&TokenStatus>) -> [Cell; 7] {
    let seconds = |of: fn(&TokenStatus) -> Option<u64>| {
        let text = token.and_then(of).map(duration);
        Cell::plain(text.as_deref().unwrap_or("-"))
    };
    // A token's own fault says more, but nothing matters once consent is withdrawn.
    let own = token.and_then(|token| token.error.as_ref());
    let fault = match identity.state {
        State::Revoked => identity.error.as_ref().or(own),
        _ => own.or(identity.error.as_ref()),
    };
    let state = match (identity.state, token) {
        (State::Revoked, _) => State::Revoked,
        _ if fault.is_some() => State::Failing,
        (state, None) => state,
        (_, Some(token)) if token.expires_in.is_some() => State::Ready,
        (_, Some(_)) => State::Idle,
    };
    [
        Cell::plain(&identity.name),
        Cell::plain(&identity.spiffe_id),
        Cell::plain(token.map_or("-", |token| &token.resource)),
        seconds(|token| token.expires_in),
        seconds(|token| token.next_refresh_in),
        Cell::styled(state.as_str(), style(state)),
        Cell::plain(&fault.map_or_else(String::new, fix)),
    ]
}

fn fix(fault: &Fault) -> String {
    format!("{}: {}", fault.code, fault.fix)
}

fn style(state: State) -> Style {
    match state {
        State::Ready => in_colour(AnsiColor::Green),
        State::Idle => Style::new().dimmed(),
        State::Failing => FAILING,
        State::Revoked => in_colour(AnsiColor::Red).bold(),
    }
}

const FAILING: Style = AnsiColor::Yellow.on_default();

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status() -> Status {
        let fault = |code: &str, fix: &str| {
            json!({"code": code, "title": "t", "detail": "what happened", "fix": fix,
                   "retryable": true})
        };
        serde_json::from_value(json!({
            "version": "1.2.3",
            "started": "2026-11-24T10:00:00Z",
            "generation": 2,
            "listeners": [{"socket": "/s", "connections": 1, "max_connections": 9}],
            "workload_api": {"endpoint": "unix:///agent", "reachable": true},
            "identities": [
                {"name": "payments", "spiffe_id": "spiffe://example.org/payments",
                 "tenant": "t", "client_id": "c", "state": "failing",
                 "tokens": [
                    {"resource": "https://a", "expires_in": 3900, "next_refresh_in": 1950},
                    {"resource": "https://bb", "next_refresh_in": 5,
                     "error": fault("AADSTS700213", "add a\ncredential")},
                 ]},
                {"name": "idle", "spiffe_id": "spiffe://example.org/idle",
                 "tenant": "t", "client_id": "c", "state": "idle", "tokens": []},
                {"name": "gone", "spiffe_id": "spiffe://example.org/gone",
                 "tenant": "t", "client_id": "c", "state": "revoked",
                 "error": fault("withdrawn", "create the entry again"),
                 "tokens": [{"resource": "https://a", "expires_in": 9,
                             "error": fault("later", "wait")}]},
            ],
            "quarantined": [{"name": "bad", "mistakes": ["config.toml:3:5: no GUID"]}],
        }))
        .unwrap()
    }

    #[test]
    fn every_identity_and_resource_has_its_row() {
        let text = render(&status(), false);
        let expected = "\
spiffe-entra 1.2.3, running since 2026-11-24T10:00:00Z, configuration 2

IDENTITY  SPIFFE ID                      RESOURCE    EXPIRES IN  NEXT REFRESH  STATE    FIX
payments  spiffe://example.org/payments  https://a   1h 5m       32m 30s       ready
payments  spiffe://example.org/payments  https://bb  -           5s            failing  AADSTS700213: add a credential
idle      spiffe://example.org/idle      -           -           -             idle
gone      spiffe://example.org/gone      https://a   9s          -             revoked  withdrawn: create the entry again

Not served, for mistakes in the configuration:
bad
  config.toml:3:5: no GUID
";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_agent_out_of_reach_is_said_first() {
        let mut status = status();
        status.workload_api.reachable = false;
        status.workload_api.error = status.identities[2].error.clone();
        let text = render(&status, false);
        assert_eq!(
            text.lines().nth(1),
            Some(
                "Workload API unix:///agent is out of reach: what happened; create the entry again"
            )
        );
    }

    #[test]
    fn colour_is_only_where_it_is_wanted() {
        assert!(!render(&status(), false).contains('\u{1b}'));
        assert!(render(&status(), true).contains("\u{1b}[32mready\u{1b}[0m"));
    }
}
