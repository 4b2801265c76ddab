//! A request on its way: what every failure of it is told with.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Deserializer};
use url::Url;

use crate::{
    exchange::{Class, ExchangeError, ExchangeRequest, aadsts},
    report::Report,
};

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) request: ExchangeRequest<'a>,
    pub(super) request_id: &'a str,
}

impl Asked<'_> {
    pub(super) fn assertion(&self) -> &str {
        self.request.assertion.token.expose()
    }

    /// Whom was asked: scheme, host and port.
    pub(super) fn place(&self) -> String {
        Url::origin(&self.request.target.authority).ascii_serialization()
    }

    pub(super) fn transient(
        &self,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> ExchangeError {
        self.error(Class::Transient, code, title, detail, fix)
    }

    pub(super) fn misconfigured(
        &self,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> ExchangeError {
        self.error(Class::Misconfigured, code, title, detail, fix)
    }

    pub(super) fn error(
        &self,
        class: Class,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> ExchangeError {
        let mut report = Report::permanent(code, title, detail, fix);
        report.retryable = is_retryable(class);
        report.correlation_id = Some(self.request_id.to_owned());
        ExchangeError {
            class,
            revokes: false,
            throttled: false,
            stale_assertion: false,
            report: Box::new(report),
        }
    }

    /// What the table says is to be changed, for this request.
    pub(super) fn fix(&self, entry: &aadsts::Entry) -> String {
        let ExchangeRequest {
            target,
            scope,
            assertion,
            ..
        } = self.request;
        let shown = Shown::read(self.assertion());
        entry.fix(&aadsts::Context {
            subject: &shown.sub,
            issuer: &assertion.issuer,
            audience: &shown.aud,
            client_id: &target.client_id,
            tenant: &target.tenant,
            resource: scope.resource(),
        })
    }
}

/// What Entra was shown, as it stands in the assertion: the credential must have the same.
#[derive(Deserialize)]
struct Shown {
    sub: String,
    #[serde(deserialize_with = "first")]
    aud: String,
}

impl Shown {
    fn read(assertion: &str) -> Self {
        let payload = assertion
            .split('.')
            .nth(1)
            .and_then(|p| URL_SAFE_NO_PAD.decode(p).ok());
        let shown = payload.and_then(|json| serde_json::from_slice(&json).ok());
        shown.unwrap_or_else(|| Self {
            sub: aadsts::Context::GENERAL.subject.into(),
            aud: aadsts::Context::GENERAL.audience.into(),
        })
    }
}

fn first<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(from)? {
        Audience::One(one) => one,
        Audience::Many(many) => many.join(" "),
    })
}

pub(super) fn is_retryable(class: Class) -> bool {
    matches!(class, Class::Transient | Class::Propagating { .. })
}
