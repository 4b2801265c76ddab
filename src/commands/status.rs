//! `spiffe-entra status`: a row for each identity and resource, and beneath them the fix for what is
//! wrong.

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
    let answer = client(&args.daemon, config)?.get("/v1/status", &[]).await?;
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
            "EXPIRES",
            "REFRESH",
            "STATE",
            "PROBLEM",
        ],
        colour,
    );
    let mut fixes = Fixes::default();
    let mut row = |identity, token| {
        let fault = fault(identity, token);
        table.row(cells(identity, token, fault));
        if let Some(fault) = fault {
            fixes.note(fault, &identity.name);
        }
    };
    for identity in &status.identities {
        if identity.tokens.is_empty() {
            row(identity, None);
        }
        for token in &identity.tokens {
            row(identity, Some(token));
        }
    }
    out.push_str(&table.render());
    out.push_str(&fixes.render(colour));
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

/// What is wrong with a row. A token's own fault says more, but nothing matters once consent is
/// withdrawn.
fn fault<'a>(identity: &'a IdentityStatus, token: Option<&'a TokenStatus>) -> Option<&'a Fault> {
    let own = token.and_then(|token| token.error.as_ref());
    match identity.state {
        State::Revoked => identity.error.as_ref().or(own),
        _ => own.or(identity.error.as_ref()),
    }
}

fn cells(
    identity: &IdentityStatus,
    token: Option<&TokenStatus>,
    fault: Option<&Fault>,
) -> [Cell; 7] {
    let seconds = |of: fn(&TokenStatus) -> Option<u64>| {
        let text = token.and_then(of).map(duration);
        Cell::plain(text.as_deref().unwrap_or("-"))
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
        Cell::plain(fault.map_or("", |fault| &fault.code)),
    ]
}

/// What is to be done, each thing once, with the identities that wait for it. Too long for a table.
#[derive(Default)]
struct Fixes<'a>(Vec<(&'a Fault, Vec<&'a str>)>);

impl<'a> Fixes<'a> {
    fn note(&mut self, fault: &'a Fault, identity: &'a str) {
        let same =
            |(other, _): &&mut (&Fault, _)| other.code == fault.code && other.fix == fault.fix;
        match self.0.iter_mut().find(same) {
            None => self.0.push((fault, vec![identity])),
            // Rows of one identity are neighbours.
            Some((_, identities)) if identities.last() != Some(&identity) => {
                identities.push(identity);
            }
            Some(_) => {}
        }
    }

    fn render(&self, colour: bool) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let mut out = format!("\n{}\n", paint("What to do:", FAILING, colour));
        for (fault, identities) in &self.0 {
            let head = format!("{} ({})", fault.code, identities.join(", "));
            out.push_str(&format!(
                "{}\n  {}\n",
                one_line(&head),
                one_line(&fault.fix)
            ));
        }
        out
    }
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

IDENTITY  SPIFFE ID                      RESOURCE    EXPIRES  REFRESH  STATE    PROBLEM
payments  spiffe://example.org/payments  https://a   1h 5m    32m 30s  ready
payments  spiffe://example.org/payments  https://bb  -        5s       failing  AADSTS700213
idle      spiffe://example.org/idle      -           -        -        idle
gone      spiffe://example.org/gone      https://a   9s       -        revoked  withdrawn

What to do:
AADSTS700213 (payments)
  add a credential
withdrawn (gone)
  create the entry again

Not served, for mistakes in the configuration:
bad
  config.toml:3:5: no GUID
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_fix_is_told_once_for_all_who_need_it() {
        let mut status = status();
        let same = status.identities[0].tokens[1].error.clone();
        status.identities[0].tokens[0].error = same.clone();
        status.identities[1].error = same;
        let text = render(&status, false);
        let told = "AADSTS700213 (payments, idle)\n  add a credential\n";
        assert_eq!(text.matches(told).count(), 1, "{text}");
        assert_eq!(text.matches("add a credential").count(), 1, "{text}");
    }

    #[test]
    fn the_table_of_usual_names_fits_a_screen() {
        let mut status = status();
        let token = &mut status.identities[0].tokens[1];
        token.resource = "https://management.azure.com".into();
        let fault = token.error.as_mut().unwrap();
        fault.code = "workload-api-denied".into();
        fault.fix = "spire-server entry create ".repeat(20);
        let text = render(&status, false);
        let widest = text.lines().filter(|line| line.starts_with("payments"));
        assert!(widest.map(str::len).max().unwrap() <= 120, "{text}");
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
