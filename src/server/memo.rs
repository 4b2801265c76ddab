//! The fast path of `GET /v1/token`: what a connection asked before and was granted.
//!
//! The answer to "may this caller have a token for that" depends on the caller, which a connection
//! fixes, on the query, and on what is in force. So a connection remembers the queries it was
//! granted, byte for byte, until something new comes into force. What is left to do for such a
//! request is to look into the cache, to write the answer and to count it.

use std::sync::Arc;

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

/// A query, what it means, and the part of the answer that changes once a second at most.
#[derive(Debug)]
struct Known {
    query: Box<str>,
    grant: Grant,
    rest: Rest,
}

/// An answer from the end of the token on: so no secret is kept.
#[derive(Debug)]
struct Rest {
    expires_in: u64,
    expires_on: i64,
    text: String,
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
        let known = self.known.iter_mut().find(|known| *known.query == *query);
        if let Some(Known { grant, rest, .. }) = known
            && let Some(served) = grant.account.ready(&grant.scope)
        {
            connection.hand_out(grant, &served);
            if !rest.is_of(&served) {
                *rest = Rest::new(grant, &served);
            }
            return Quick::Answer(token_answer(&served, rest));
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
                let rest = Rest::new(&grant, &served);
                let answer = token_answer(&served, &rest);
                self.remember(query, grant, rest);
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

    fn remember(&mut self, query: &str, grant: Grant, rest: Rest) {
        if query.len() > QUERY_LIMIT {
            return;
        }
        let known = Known {
            query: query.into(),
            grant,
            rest,
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
            Ok((grant, served)) => token_answer(&served, &Rest::new(&grant, &served)),
            Err(problem) => problem.into_http(),
        }
    }
}

impl Rest {
    fn new(grant: &Grant, served: &Served) -> Self {
        let Served {
            expires_in,
            expires_on,
            ..
        } = *served;
        let target = &grant.identity.trust.target;
        let text = [
            format!(
                r#","token_type":"Bearer","expires_in":{expires_in},"expires_on":{expires_on}"#
            ),
            format!(
                r#","resource":{},"identity":{},"client_id":{},"tenant":{}}}"#,
                quoted(grant.scope.resource()),
                quoted(&grant.identity.name),
                quoted(&target.client_id),
                quoted(&target.tenant),
            ),
        ]
        .concat();
        Self {
            expires_in,
            expires_on,
            text,
        }
    }

    fn is_of(&self, served: &Served) -> bool {
        (self.expires_in, self.expires_on) == (served.expires_in, served.expires_on)
    }
}

/// Writes the answer.
fn token_answer(served: &Served, rest: &Rest) -> Response<Body> {
    let token = &served.token;
    reply::json(token_body(
        token.access_token.expose(),
        token.is_plain,
        &rest.text,
    ))
}

/// `is_plain`: the token can stand in JSON as it is.
fn token_body(token: &str, is_plain: bool, rest: &str) -> Bytes {
    // In one piece of the exact length, which becomes the body where it is.
    Bytes::from(if is_plain {
        [HEAD, "\"", token, "\"", rest].concat()
    } else {
        [HEAD, &quoted(token), rest].concat()
    })
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

const HEAD: &str = r#"{"access_token":"#;
/// How many queries a connection remembers, and how long they may be.
const KNOWN_LIMIT: usize = 8;
const QUERY_LIMIT: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_token_the_answer_is_json() {
        for (token, is_plain) in [
            ("eyJ0.eyJ1dGkiOiJBYmNfLTEyMyJ9.c2ln", true),
            ("eyJ0.eyJ1dGkiOiJBYmNfLTEyMyJ9.c2ln", false),
            ("a\",\"identity\":\"root", false),
            ("a\\", false),
            ("a\nb", false),
            ("ü", true),
        ] {
            let rest = r#","expires_in":3599,"resource":"api://orders"}"#;
            let body = token_body(token, is_plain, rest);
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                json,
                serde_json::json!({
                    "access_token": token, "expires_in": 3599, "resource": "api://orders",
                })
            );
        }
    }
}
