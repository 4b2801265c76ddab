//! What the tests of the fake Entra share: a client and assertions.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test file uses some of it"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use lab::{Client, World};
use serde_json::{Value, json};

pub const SUBJECT: &str = "spiffe://example.org/payments";
pub const SCOPE: &str = "https://vault.azure.net/.default";
pub const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A lab with one application whose credential trusts [`SUBJECT`].
pub struct Bench {
    pub world: World,
    pub app: Client,
    pub http: reqwest::Client,
}

/// An answer of the token endpoint.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub json: Value,
}

impl Bench {
    pub async fn new() -> Self {
        Self::of(World::start().await.unwrap())
    }

    pub fn of(world: World) -> Self {
        let app = world.entra.application("payments");
        let app = app
            .credential(&world.issuer.url(), SUBJECT, lab::AUDIENCE)
            .unwrap();
        let http = http(&world);
        Self { world, app, http }
    }

    /// The claims of a good assertion.
    pub fn claims(&self) -> Value {
        let now = lab::Clock::default().now();
        json!({
            "iss": self.world.issuer.url(),
            "sub": SUBJECT,
            "aud": [lab::AUDIENCE],
            "iat": now,
            "exp": now + 300,
        })
    }

    pub fn assertion(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = self.claims();
        change(&mut claims);
        self.world.issuer.sign(&claims).unwrap()
    }

    /// A good request but for what `change` does to it.
    pub fn form(&self, change: impl FnOnce(&mut Vec<(String, String)>)) -> Vec<(String, String)> {
        let mut form = vec![
            ("client_id".to_owned(), self.app.client_id().to_owned()),
            ("scope".to_owned(), SCOPE.to_owned()),
            ("grant_type".to_owned(), "client_credentials".to_owned()),
            (
                "client_assertion_type".to_owned(),
                ASSERTION_TYPE.to_owned(),
            ),
            ("client_assertion".to_owned(), self.assertion(|_| {})),
        ];
        change(&mut form);
        form
    }

    pub async fn post(&self, form: &[(String, String)]) -> Answer {
        self.post_to(&self.world.entra.token_endpoint(), form).await
    }

    pub async fn post_to(&self, url: &str, form: &[(String, String)]) -> Answer {
        let answer = self.http.post(url).form(form).send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer.text().await.unwrap();
        let json = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer {
            status,
            headers,
            json,
        }
    }

    pub async fn exchange(&self) -> Answer {
        self.post(&self.form(|_| {})).await
    }

    pub async fn exchange_with(&self, assertion: String) -> Answer {
        self.post(&self.form(|form| set(form, "client_assertion", &assertion)))
            .await
    }
}

impl Answer {
    /// The refusal's code, which text, `error_codes` and `error_uri` must agree on.
    pub fn code(&self) -> u64 {
        let description = self.json["error_description"].as_str().expect("a refusal");
        let code = description
            .strip_prefix("AADSTS")
            .unwrap()
            .split_once(": ")
            .unwrap()
            .0;
        let code = code.parse().unwrap();
        assert_eq!(self.json["error_codes"], json!([code]));
        let trace = self.json["trace_id"].as_str().unwrap();
        let correlation = self.json["correlation_id"].as_str().unwrap();
        let timestamp = self.json["timestamp"].as_str().unwrap();
        assert!(lab::guid::is_guid(trace) && lab::guid::is_guid(correlation));
        assert!(description.ends_with(&format!(
            " Trace ID: {trace} Correlation ID: {correlation} Timestamp: {timestamp}"
        )));
        assert_eq!(self.json.get("access_token"), None);
        code
    }

    #[track_caller]
    pub fn is_refusal(&self, code: u64, status: u16, error: &str) {
        assert_eq!(self.code(), code, "{}", self.json);
        assert_eq!(
            (self.status, self.json["error"].as_str().unwrap()),
            (status, error)
        );
    }

    #[track_caller]
    pub fn is_token(&self) {
        assert_eq!(self.status, 200, "{}", self.json);
        assert!(self.json["access_token"].is_string());
    }

    /// The header and the claims of the access token.
    pub fn token(&self) -> (Value, Value) {
        use base64::Engine as _;
        let decode = |part: &str| {
            let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
            serde_json::from_slice(&engine.decode(part).unwrap()).unwrap()
        };
        let token = self.json["access_token"].as_str().unwrap();
        let mut parts = token.split('.');
        (decode(parts.next().unwrap()), decode(parts.next().unwrap()))
    }
}

pub fn http(world: &World) -> reqwest::Client {
    let ca = reqwest::Certificate::from_pem(world.ca.pem().as_bytes()).unwrap();
    reqwest::Client::builder()
        .tls_certs_only([ca])
        .no_proxy()
        .build()
        .unwrap()
}

pub fn set(form: &mut Vec<(String, String)>, name: &str, value: &str) {
    remove(form, name);
    form.push((name.to_owned(), value.to_owned()));
}

pub fn remove(form: &mut Vec<(String, String)>, name: &str) {
    form.retain(|(key, _)| key != name);
}
