//! The checks of one token request. Their order is inferred (only the codes are verified): it is
//! the one that gives Entra's error in every case that has been reported.

use serde_json::Value;

use crate::guid;

use super::Settings;
use super::Shared;
use super::assertion::Assertion;
use super::credential::Credential;
use super::directory::{ClientView, Resource, TenantLookup};
use super::record::Exchange;
use super::refusal::Refusal;
use super::strictness::Strictness;

/// The fields of a token request's form.
pub(super) struct Form(Vec<(String, String)>);

/// A token request that is to be granted.
pub(super) struct Grant {
    pub(super) tenant: String,
    pub(super) client: ClientView,
    pub(super) resource: Resource,
    /// The resource as it was asked for.
    pub(super) requested: String,
    /// Whether the client can handle a revocation (`xms_cc: cp1`).
    pub(super) revocable: bool,
}

impl Form {
    pub(super) fn parse(body: &[u8]) -> Self {
        Self(url::form_urlencoded::parse(body).into_owned().collect())
    }

    /// A field with something in it.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// The fields' names for the record. A body that is no form is one long name, and may be an
    /// assertion: it is left out.
    pub(super) fn names(&self) -> Vec<String> {
        let short = |name: &String| match name.len() {
            0..=LONGEST_NAME => name.clone(),
            _ => "(long)".to_owned(),
        };
        self.0.iter().map(|(name, _)| short(name)).collect()
    }

    fn required(&self, name: &str) -> Result<&str, Refusal> {
        self.get(name)
            .ok_or_else(|| Refusal::new(900144, &[("parameter", name)]))
    }

    fn has_duplicates(&self) -> bool {
        let mut names: Vec<_> = self.0.iter().map(|(name, _)| name).collect();
        names.sort();
        names.windows(2).any(|pair| pair[0] == pair[1])
    }
}

/// Decides a token request. What becomes known on the way is noted in `exchange`.
pub(super) async fn decide(
    shared: &Shared,
    settings: &Settings,
    tenant: &str,
    form: &Form,
    exchange: &mut Exchange,
) -> Result<Grant, Refusal> {
    let tenant = match shared.directory.tenant(tenant) {
        TenantLookup::Found(id) => id,
        TenantLookup::Shared => return Err(Refusal::new(9001023, &[])),
        TenantLookup::Unknown => return Err(Refusal::new(90002, &[("tenant", tenant)])),
        TenantLookup::Malformed => return Err(Refusal::new(900023, &[("tenant", tenant)])),
    };
    if form.has_duplicates() {
        return Err(Refusal::new(9002313, &[]).detail("a parameter is there twice"));
    }
    let grant = form.required("grant_type")?;
    let client_id = form.required("client_id")?;
    let scope = form.required("scope")?;
    let revocable = form.get("claims").map_or(Ok(false), requests_revocable)?;

    let client = shared
        .directory
        .view(&tenant, client_id)
        .ok_or_else(|| Refusal::new(700016, &[("client", client_id), ("tenant", &tenant)]))?;
    let named = [
        ("client", client.client_id.as_str()),
        ("name", client.name.as_str()),
    ];
    if client.disabled {
        return Err(Refusal::new(7000112, &named));
    }
    if grant != "client_credentials" {
        return Err(Refusal::new(70003, &[("grant", grant)]));
    }
    let Some(token) = form.get("client_assertion") else {
        let code = if form.get("client_secret").is_some() {
            7000215
        } else {
            7000218
        };
        return Err(Refusal::new(code, &named));
    };
    if form.required("client_assertion_type")? != ASSERTION_TYPE {
        return Err(Refusal::new(7000218, &named).detail("client_assertion_type"));
    }

    let assertion = Assertion::parse(token, &settings.strictness)?;
    exchange.subject = Some(assertion.subject.clone());
    exchange.kid.clone_from(&assertion.kid);
    exchange.assertion_expires = Some(assertion.expires);
    if client.credentials.is_empty() {
        return Err(Refusal::new(70025, &named));
    }
    if is_entra(&assertion.issuer, &shared.authority) {
        return Err(Refusal::new(700222, &[]));
    }
    find_credential(&client.credentials, &assertion, &settings.strictness)?;

    let keys = shared.metadata.keys(&assertion.issuer, settings).await?;
    let kid = assertion.kid.as_deref().unwrap_or_default();
    let key = keys
        .iter()
        .find(|key| !kid.is_empty() && key["kid"] == kid)
        .ok_or_else(|| Refusal::new(7000272, &[("kid", kid), ("issuer", &assertion.issuer)]))?;
    match key.get("use").map(Value::as_str) {
        Some(Some("sig")) => {}
        None if !settings.strictness.require_key_use => {}
        _ => return Err(Refusal::new(501661, &[]).detail("the key does not say use: sig")),
    }
    assertion.verify(key)?;
    let skew = i64::try_from(settings.strictness.clock_skew.as_secs()).unwrap_or(i64::MAX);
    assertion.check_times(shared.clock.now(), skew)?;

    let requested = resource_of(scope)?;
    let resource = shared
        .directory
        .resource(requested)
        .ok_or_else(|| Refusal::new(500011, &[("resource", requested), ("tenant", &tenant)]))?;
    if client.blocked {
        return Err(Refusal::conditional_access(&guid::random()));
    }
    Ok(Grant {
        tenant,
        resource,
        requested: requested.to_owned(),
        client,
        revocable,
    })
}

/// The credential for exactly this issuer, audience and subject.
fn find_credential(
    credentials: &[Credential],
    assertion: &Assertion,
    strictness: &Strictness,
) -> Result<(), Refusal> {
    let Assertion {
        issuer,
        subject,
        audiences,
        ..
    } = assertion;
    let audience = audiences.join(",");
    let no_match = |code| {
        let code = if strictness.combined_no_match {
            70021
        } else {
            code
        };
        let values = [
            ("issuer", issuer),
            ("subject", subject),
            ("audience", &audience),
        ];
        Refusal::new(code, &values.map(|(name, value)| (name, value.as_str())))
    };
    let of_issuer: Vec<_> = credentials
        .iter()
        .filter(|one| one.issuer == *issuer)
        .collect();
    if of_issuer.is_empty() {
        return Err(no_match(700211));
    }
    let few_enough = audiences.len() == 1 || strictness.accept_many_audiences;
    let of_audience: Vec<_> = of_issuer
        .into_iter()
        .filter(|one| few_enough && one.audiences.iter().any(|own| audiences.contains(own)))
        .collect();
    if of_audience.is_empty() {
        return Err(no_match(700212));
    }
    if of_audience.iter().any(|one| one.subject == *subject) {
        return Ok(());
    }
    let folded = subject.to_lowercase();
    if of_audience
        .iter()
        .any(|one| one.subject.to_lowercase() == folded)
    {
        return Err(Refusal::new(7002138, &[("subject", subject)]));
    }
    Err(no_match(700213))
}

/// The resource in a scope: all before its last `/.default`. A slash before that is part of the
/// resource. What OpenID Connect adds is ignored.
fn resource_of(scope: &str) -> Result<&str, Refusal> {
    let refuse = |code| Err(Refusal::new(code, &[("scope", scope)]));
    if scope
        .chars()
        .any(|c| c.is_control() || c == '"' || c == '\\')
    {
        return refuse(70011);
    }
    let scopes: Vec<_> = scope
        .split(' ')
        .filter(|one| !one.is_empty() && !OPENID_SCOPES.contains(one))
        .collect();
    let (one, others) = match scopes.as_slice() {
        [] => return refuse(70011),
        [one, others @ ..] => (*one, others),
    };
    if !others.is_empty() {
        let resource = |scope: &str| {
            scope
                .rsplit_once('/')
                .map(|(resource, _)| resource.to_owned())
        };
        let same = others.iter().all(|other| resource(other) == resource(one));
        return refuse(if same { 70011 } else { 700022 });
    }
    match one.strip_suffix("/.default") {
        Some("") => refuse(700023),
        Some(resource) => Ok(resource),
        None if one == ".default" => refuse(700023),
        None => refuse(1002012),
    }
}

/// Whether `claims` declares the capability cp1. What is no JSON object is refused; that the code
/// is 9002313 is inferred.
fn requests_revocable(claims: &str) -> Result<bool, Refusal> {
    let claims: Value = serde_json::from_str(claims)
        .map_err(|error| Refusal::new(9002313, &[]).detail(format!("claims: {error}")))?;
    if !claims.is_object() {
        return Err(Refusal::new(9002313, &[]).detail("claims: no object"));
    }
    let capabilities = claims["access_token"]["xms_cc"]["values"].as_array();
    Ok(capabilities.is_some_and(|values| {
        values.iter().any(|value| {
            value
                .as_str()
                .is_some_and(|cp| cp.eq_ignore_ascii_case("cp1"))
        })
    }))
}

/// Whether an issuer is Entra itself: its tokens are not taken by the lab.
fn is_entra(issuer: &str, authority: &str) -> bool {
    [
        authority,
        "https://login.microsoftonline.com",
        "https://sts.windows.net",
    ]
    .iter()
    .any(|own| {
        issuer
            .strip_prefix(own)
            .is_some_and(|rest| rest.starts_with('/'))
    })
}

/// RFC 7523, 2.2.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Longer than the name of any field there is.
const LONGEST_NAME: usize = 40;

/// Scopes that clients built on MSAL add and that mean nothing for an application.
const OPENID_SCOPES: [&str; 3] = ["openid", "offline_access", "profile"];

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(scope: &str) -> Result<&str, u32> {
        resource_of(scope).map_err(|refusal| refusal.code)
    }

    #[test]
    fn resource_is_all_before_the_last_default() {
        for (scope, expected) in [
            (
                "https://vault.azure.net/.default",
                Ok("https://vault.azure.net"),
            ),
            (
                "https://database.windows.net//.default",
                Ok("https://database.windows.net/"),
            ),
            ("api://orders/.default", Ok("api://orders")),
            ("api://a/.default/.default", Ok("api://a/.default")),
            (
                "https://a/.default openid offline_access profile",
                Ok("https://a"),
            ),
            ("openid", Err(70011)),
            (" ", Err(70011)),
            ("https://a\n/.default", Err(70011)),
            ("https://a/.default https://b/.default", Err(700022)),
            ("https://a/.default https://a/read", Err(70011)),
            (".default", Err(700023)),
            ("/.default", Err(700023)),
            ("https://vault.azure.net", Err(1002012)),
            ("https://vault.azure.net/.Default", Err(1002012)),
            ("https://graph.microsoft.com/User.Read", Err(1002012)),
        ] {
            assert_eq!(resource(scope), expected, "{scope:?}");
        }
    }

    #[test]
    fn capability_is_found_in_claims() {
        let revocable = |claims: &str| requests_revocable(claims).map_err(|refusal| refusal.code);
        let cp1 = r#"{"access_token":{"xms_cc":{"values":["cp1"]}}}"#;
        assert_eq!(revocable(cp1), Ok(true));
        assert_eq!(revocable(&cp1.replace("cp1", "CP1")), Ok(true));
        let challenge = r#"{"access_token":{"nbf":{"essential":true,"value":"1"}}}"#;
        assert_eq!(revocable(challenge), Ok(false));
        assert_eq!(revocable("eyJhY2Nlc3NfdG9rZW4iOnt9fQ"), Err(9002313));
        assert_eq!(revocable("[]"), Err(9002313));
    }

    #[test]
    fn entras_own_tokens_are_known_by_their_issuer() {
        assert!(is_entra(
            "https://login.microsoftonline.com/t/v2.0",
            "https://localhost:1"
        ));
        assert!(is_entra(
            "https://localhost:1/t/v2.0",
            "https://localhost:1"
        ));
        assert!(!is_entra("https://localhost:12/t", "https://localhost:1"));
    }

    #[test]
    fn body_that_is_no_form_is_not_recorded() {
        let names = Form::parse("eyJhbGciOi.".repeat(9).as_bytes()).names();
        assert_eq!(names, ["(long)"]);
        let names = Form::parse(b"grant_type=x&client_assertion_type=y").names();
        assert_eq!(names, ["grant_type", "client_assertion_type"]);
    }

    #[test]
    fn empty_fields_count_as_missing() {
        let form = Form::parse(b"scope=&client_id=a%20b&client_id=c");
        assert_eq!(form.get("scope"), None);
        assert_eq!(form.get("client_id"), Some("a b"));
        assert!(form.has_duplicates());
    }
}
