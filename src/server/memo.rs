//! The fast path of `GET /v1/token`: what a connection asked before and was granted.
//!
//! The answer to "may this caller have a token for that" depends on the caller, which a connection
//! fixes, on the query, and on what is in force. So a connection remembers the queries it was
//! granted, byte for byte, until something new comes into force. What is left to do for such a
//! request is to look into the cache, to write the answer and to count it.

use std::{io::Write, sync::Arc};

use bytes::Bytes;
use http::Response;
use tokio::sync::watch;

use super::{
    Live,
    connection::{Connection, Grant, View},
    problem::Problem,
    query::TokenQuery,
    reply::{self, Body},
};
use crate::tokens::Served;

/// What one connection was granted.
#[derive(Debug)]
pub(super) struct Memo {
    live: watch::Receiver<Arc<Live>>,
    view: View,
    known: Vec<Known>,
    /// The next place to be used again.
    oldest: usize,
}

/// A query, what it means, and the part of the answer that does not change.
#[derive(Debug)]
struct Known {
    query: Box<str>,
    grant: Grant,
    tail: Box<str>,
}

/// What becomes of a request for a token.
#[derive(Debug)]
pub(super) enum Quick {
    /// It is answered.
    Answer(Response<Body>),
    /// The token has to be fetched.
    Fetch(Fetch),
}

/// A token to be fetched.
#[derive(Debug)]
pub(super) struct Fetch {
    scope: crate::id::Scope,
    identity: Option<String>,
    claims: Option<String>,
}

impl Memo {
    pub(super) fn new(connection: &Connection) -> Self {
        Self {
            live: connection.server.live.clone(),
            view: connection.view(),
            known: Vec::new(),
            oldest: 0,
        }
    }

    /// Answers from memory if it can be.
    pub(super) fn token(&mut self, connection: &Connection, query: &str) -> Quick {
        self.renew(connection);
        if let Some(known) = self.known.iter().find(|known| *known.query == *query)
            && let Some(served) = known.grant.account.ready(&known.grant.scope)
        {
            connection.hand_out(&known.grant, &served);
            return Quick::Answer(token_answer(&served, &known.tail));
        }
        match self.first(connection, query) {
            Ok(quick) => quick,
            Err(problem) => Quick::Answer(problem.into_http()),
        }
    }

    fn first(&mut self, connection: &Connection, query: &str) -> Result<Quick, Problem> {
        let asked = TokenQuery::parse(query)
            .inspect_err(|problem| connection.server.count_request(&problem.code))?;
        let wanted = asked.identity.as_deref();
        if asked.claims.is_none() {
            let grant = connection.decide(&self.view, wanted, &asked.scope)?;
            if let Some(served) = grant.account.ready(&asked.scope) {
                connection.hand_out(&grant, &served);
                let tail = tail(&grant);
                let answer = token_answer(&served, &tail);
                self.remember(query, grant, tail);
                return Ok(Quick::Answer(answer));
            }
        }
        Ok(Quick::Fetch(Fetch {
            identity: wanted.map(str::to_owned),
            scope: asked.scope,
            claims: asked.claims,
        }))
    }

    /// Forgets everything when something new is in force.
    fn renew(&mut self, connection: &Connection) {
        // An error means that nothing new will come.
        if self.live.has_changed().unwrap_or(false) {
            let live = Arc::clone(&self.live.borrow_and_update());
            self.view = View::of(live, &connection.socket);
            self.known.clear();
        }
    }

    fn remember(&mut self, query: &str, grant: Grant, tail: String) {
        if query.len() > QUERY_LIMIT {
            return;
        }
        let known = Known {
            query: query.into(),
            grant,
            tail: tail.into(),
        };
        match self.known.get_mut(self.oldest) {
            Some(place) => *place = known,
            None => self.known.push(known),
        }
        self.oldest = (self.oldest + 1) % KNOWN_LIMIT;
    }
}

impl Fetch {
    /// Waits for the token.
    pub(super) async fn answer(self, connection: &Connection) -> Response<Body> {
        let token = connection.token(
            self.identity.as_deref(),
            &self.scope,
            self.claims.as_deref(),
        );
        match token.await {
            Ok((grant, served)) => token_answer(&served, &tail(&grant)),
            Err(problem) => problem.into_http(),
        }
    }
}

/// Writes the answer.
fn token_answer(served: &Served, tail: &str) -> Response<Body> {
    let token = served.token.access_token.expose();
    reply::json(token_body(
        token,
        served.expires_in,
        served.expires_on,
        tail,
    ))
}

fn token_body(token: &str, expires_in: u64, expires_on: i64, tail: &str) -> Bytes {
    let mut body = Vec::with_capacity(HEAD.len() + token.len() + MIDDLE + tail.len());
    body.extend_from_slice(HEAD.as_bytes());
    if is_plain(token) {
        body.push(b'"');
        body.extend_from_slice(token.as_bytes());
        body.push(b'"');
    } else {
        body.extend_from_slice(quoted(token).as_bytes());
    }
    // Writing to a `Vec` does not fail.
    let _infallible = write!(
        body,
        r#","token_type":"Bearer","expires_in":{expires_in},"expires_on":{expires_on}"#,
    );
    body.extend_from_slice(tail.as_bytes());
    Bytes::from(body)
}

/// Whether a token can stand in JSON as it is. All of Entra's can; a fold, without a way out half
/// through, is what the compiler makes wide.
fn is_plain(token: &str) -> bool {
    token.bytes().fold(true, |plain, b| {
        plain & (b > 0x1f) & (b != b'"') & (b != b'\\')
    })
}

/// What comes after the numbers.
fn tail(grant: &Grant) -> String {
    let target = &grant.identity.trust.target;
    format!(
        r#","resource":{},"identity":{},"client_id":{},"tenant":{}}}"#,
        quoted(grant.scope.resource()),
        quoted(&grant.identity.name),
        quoted(&target.client_id),
        quoted(&target.tenant),
    )
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

const HEAD: &str = r#"{"access_token":"#;
/// What is between token and tail, with numbers of any length.
const MIDDLE: usize = 96;
/// How many queries a connection remembers, and how long they may be.
const KNOWN_LIMIT: usize = 8;
const QUERY_LIMIT: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_token_the_answer_is_json() {
        for token in [
            "eyJ0.eyJ1dGkiOiJBYmNfLTEyMyJ9.c2ln",
            "a\",\"identity\":\"root",
            "a\\",
            "a\nb",
            "ü",
        ] {
            let tail = r#","resource":"api://orders"}"#;
            let body = token_body(token, 3599, 1_790_000_000, tail);
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                json,
                serde_json::json!({
                    "access_token": token, "token_type": "Bearer", "expires_in": 3599,
                    "expires_on": 1_790_000_000, "resource": "api://orders",
                })
            );
        }
    }
}
