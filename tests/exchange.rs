//! The exchange against the lab's strict fake of Entra: real TLS, real signatures, Entra's codes.
//!
//! The assertions are made by hand where the source would have refused them first.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use lab::{
    AUDIENCE, World,
    entra::{Client, EntraOptions, Fault, Faults, RetryAfter},
    faults::Armed,
    issuer::IssuerOptions,
    keys::KeyType,
};
use serde_json::{Value, json};
use spiffe_entra::{
    assertion::{Assertion, AssertionSource, AssertionSpec, spiffe::SpiffeSource},
    config,
    exchange::{
        Class, ExchangeError, ExchangeRequest, IssuedToken, Target, TokenExchange, aadsts,
        entra::{Deadlines, EntraExchange},
    },
    id::{Scope, SpiffeId},
    secret::Secret,
    time::Clock,
};

const SUBJECT: &str = "spiffe://example.org/payments";
const VAULT: &str = "https://vault.azure.net";

/// A lab with one identity, and an exchange that trusts the lab's CA.
struct Rig {
    world: World,
    client: Client,
    entra: EntraExchange,
}

impl Rig {
    async fn start() -> Self {
        let world = World::start().await.unwrap();
        let client = world
            .identity(SUBJECT)
            .name("payments")
            .add()
            .unwrap()
            .client;
        let entra = trusting(&world, Deadlines::default());
        Self {
            world,
            client,
            entra,
        }
    }

    fn claims(&self) -> Value {
        let now = Clock::system().now().unix_seconds();
        json!({"iss": self.world.issuer.url(), "sub": SUBJECT, "aud": [AUDIENCE],
               "iat": now, "exp": now + 300})
    }

    /// The claims with one of them changed, signed as SPIRE signs.
    fn signed(&self, name: &str, value: Value) -> String {
        let mut claims = self.claims();
        claims[name] = value;
        self.world.issuer.sign(&claims).unwrap()
    }

    fn svid(&self) -> String {
        self.world.issuer.sign(&self.claims()).unwrap()
    }

    fn target(&self) -> Target {
        Target {
            authority: self.world.authority().parse().unwrap(),
            tenant: self.world.tenant().into(),
            client_id: self.client.client_id().into(),
        }
    }

    async fn post(&self, target: &Target, svid: String) -> Result<IssuedToken, ExchangeError> {
        exchange(&self.entra, target, VAULT, None, svid).await
    }

    async fn token(&self) -> Result<IssuedToken, ExchangeError> {
        self.post(&self.target(), self.svid()).await
    }

    async fn refused(&self, svid: String) -> ExchangeError {
        self.post(&self.target(), svid).await.unwrap_err()
    }

    /// Exchanges that are refused with this code, and what Entra and the table say of it.
    async fn refused_with(&self, code: u32, svid: String) -> ExchangeError {
        let error = self.refused(svid).await;
        self.check(code, &error);
        error
    }

    fn check(&self, code: u32, error: &ExchangeError) {
        assert_eq!(error.report.code, aadsts::name(code), "{error:?}");
        let entry = aadsts::lookup(code).unwrap();
        assert_eq!((error.class, error.revokes), (entry.class, entry.revokes));
        let recorded = self.world.entra.last_exchange().unwrap();
        assert_eq!(recorded.code, Some(code));
        let correlation_id = error.report.correlation_id.as_deref();
        assert_eq!(correlation_id, Some(&*recorded.correlation_id));
    }
}

fn trusting(world: &World, deadlines: Deadlines) -> EntraExchange {
    EntraExchange::with_deadlines(&trust_file(world.ca_file()), Clock::system(), deadlines).unwrap()
}

fn trust_file(ca_file: std::path::PathBuf) -> config::Entra {
    config::Entra {
        ca_file: Some(ca_file),
        ca_only: true,
        proxy: None,
        allow_http_loopback: false,
    }
}

async fn exchange(
    entra: &EntraExchange,
    target: &Target,
    resource: &str,
    claims: Option<&str>,
    svid: String,
) -> Result<IssuedToken, ExchangeError> {
    let now = Clock::system().now();
    let assertion = Assertion {
        token: Secret::new(svid.clone()),
        issuer: "https://oidc.example.org".into(),
        key_id: "unused".into(),
        algorithm: "RS256".into(),
        issued_at: None,
        expires_at: now.unix_seconds() + 300,
        fetched: now,
    };
    let scope = Scope::from_resource(resource).unwrap();
    let request = ExchangeRequest {
        target,
        scope: &scope,
        claims,
        assertion: &assertion,
    };
    let result = entra.exchange(request).await;
    // Whatever happens, no piece of a secret is in what is shown of it.
    let shown = format!("{result:?}");
    assert!(
        svid.split('.')
            .all(|part| part.len() < 16 || !shown.contains(part)),
        "{shown}"
    );
    assert!(!shown.contains("eyJ"), "{shown}");
    result
}

#[tokio::test]
async fn a_svid_becomes_a_token() {
    let rig = Rig::start().await;
    let token = rig.token().await.unwrap();
    let recorded = rig.world.entra.last_exchange().unwrap();
    assert_eq!(token.uti, recorded.uti.clone().map(Into::into));
    assert_eq!(
        token.correlation_id.as_deref(),
        Some(&*recorded.correlation_id)
    );
    assert_eq!(
        i64::try_from(token.lifetime.as_secs()).ok(),
        recorded.expires_in
    );
    assert_eq!(token.refresh_in, None);
    assert_eq!(token.access_token.expose().split('.').count(), 3);
    assert!(recorded.http2, "h2 is what Entra speaks, too");
    assert_eq!(
        recorded.fields,
        [
            "client_id",
            "scope",
            "grant_type",
            "client_assertion_type",
            "client_assertion"
        ]
    );
    assert!(recorded.user_agent.unwrap().starts_with("spiffe-entra/"));
}

#[tokio::test]
async fn claims_refresh_in_and_odd_resources_pass_through() {
    let rig = Rig::start().await;
    rig.world
        .entra
        .faults()
        .refresh_in(Duration::from_secs(1234))
        .times(1);
    let claims = r#"{"access_token":{"nbf":{"essential":true,"value":"1700000000"}}}"#;
    let post = |resource, claims| {
        let (target, svid) = (rig.target(), rig.svid());
        let entra = &rig.entra;
        async move { exchange(entra, &target, resource, claims, svid).await }
    };
    let token = post(VAULT, Some(claims)).await.unwrap();
    assert_eq!(token.refresh_in, Some(Duration::from_secs(1234)));
    assert_eq!(
        rig.world.entra.last_exchange().unwrap().claims.as_deref(),
        Some(claims)
    );
    post("https://database.windows.net/", None).await.unwrap();
    let recorded = rig.world.entra.last_exchange().unwrap();
    assert_eq!(
        recorded.scope.as_deref(),
        Some("https://database.windows.net//.default")
    );
    let error = post(VAULT, Some("no JSON")).await.unwrap_err();
    assert_eq!(error.report.code, "AADSTS9002313");
    assert!(
        error.report.title.contains("not known"),
        "{}",
        error.report.title
    );
    assert!(error.report.fix.contains("error?code=9002313"));
}

#[tokio::test]
async fn every_code_of_the_table_is_told() {
    let rig = Rig::start().await;
    for entry in aadsts::entries() {
        rig.world.entra.faults().code(entry.code).times(1);
        let error = rig.token().await.unwrap_err();
        assert_eq!(error.report.code, entry.name());
        assert_eq!(error.report.title, entry.title);
        let recorded = rig.world.entra.last_exchange().unwrap();
        if matches!(recorded.status, Some(429 | 500..)) {
            assert_eq!(
                (error.class, error.revokes),
                (Class::Transient, false),
                "{}",
                entry.code
            );
        } else {
            assert_eq!((error.class, error.revokes), (entry.class, entry.revokes));
        }
        assert_eq!(error.throttled, recorded.status == Some(429));
        assert!(
            !error.report.detail.contains("Trace ID"),
            "{}",
            error.report.detail
        );
        let correlation_id = error.report.correlation_id.as_deref();
        assert_eq!(correlation_id, Some(&*recorded.correlation_id));
    }
}

#[tokio::test]
async fn tenants_that_are_not_there() {
    let rig = Rig::start().await;
    for (tenant, code) in [
        ("11111111-2222-4333-8444-555555555555", 90002),
        ("not a tenant", 900_023),
        ("common", 9_001_023),
    ] {
        let target = Target {
            tenant: tenant.into(),
            ..rig.target()
        };
        let error = rig.post(&target, rig.svid()).await.unwrap_err();
        rig.check(code, &error);
        assert!(error.report.fix.contains("tenant"), "{}", error.report.fix);
    }
}

#[tokio::test]
async fn clients_that_are_gone_disabled_or_blocked() {
    let rig = Rig::start().await;
    rig.client.set_disabled(true);
    let error = rig.refused_with(7_000_112, rig.svid()).await;
    assert!(error.revokes && error.report.fix.contains(rig.client.client_id()));
    rig.client.set_disabled(false);
    rig.client.set_blocked(true);
    let error = rig.refused_with(53003, rig.svid()).await;
    assert!(error.revokes && error.report.title.contains("Conditional Access"));
    rig.client.set_blocked(false);
    rig.token().await.unwrap();
    rig.client.delete();
    let error = rig.refused_with(700_016, rig.svid()).await;
    assert!(error.revokes && error.report.fix.contains(&rig.world.tenant()));
}

#[tokio::test]
async fn credentials_that_do_not_match_name_what_differs() {
    let rig = Rig::start().await;
    let other = "spiffe://example.org/other";
    let error = rig
        .refused_with(700_213, rig.signed("sub", json!(other)))
        .await;
    assert!(error.report.fix.contains(other), "{}", error.report.fix);
    let shouted = "spiffe://example.org/Payments";
    let error = rig
        .refused_with(7_002_138, rig.signed("sub", json!(shouted)))
        .await;
    assert!(error.report.fix.contains(shouted), "{}", error.report.fix);
    let audience = "api://AzureADTokenExchangeChina";
    let error = rig
        .refused_with(700_212, rig.signed("aud", json!([audience])))
        .await;
    assert!(error.report.fix.contains(audience), "{}", error.report.fix);
    let issuer = format!("{}/", rig.world.issuer.url());
    let error = rig
        .refused_with(700_211, rig.signed("iss", json!(issuer)))
        .await;
    assert!(
        error.report.fix.contains("jwt_issuer"),
        "{}",
        error.report.fix
    );
    rig.world
        .entra
        .configure(|s| s.strictness.combined_no_match = true);
    rig.refused_with(70021, rig.signed("sub", json!(other)))
        .await;
    rig.client.remove_credential(SUBJECT);
    let error = rig.refused_with(70025, rig.svid()).await;
    assert!(
        error.report.fix.contains("create the credential") && error.report.fix.contains(SUBJECT),
        "{}",
        error.report.fix
    );
    let Class::Propagating { window, every } = error.class else {
        panic!("{error:?}")
    };
    assert_eq!((window.as_secs(), every.as_secs()), (600, 5));
    assert!(error.report.retryable && error.revokes);
}

#[tokio::test]
async fn assertions_that_entra_cannot_use() {
    let rig = Rig::start().await;
    let ec = rig.world.issuer.key_of(KeyType::EcP256).unwrap();
    let error = rig
        .refused_with(5_002_738, ec.sign(&rig.claims()).unwrap())
        .await;
    assert!(error.report.fix.contains("jwt_key_type = \"rsa-2048\""));
    let key = rig.world.issuer.active_key();
    let header = json!({"alg": "RS256", "kid": key.kid(), "typ": "wit+jwt"});
    let algorithm = KeyType::Rsa2048.algorithm();
    let wit = key.sign_with(algorithm, &header, &rig.claims()).unwrap();
    rig.refused_with(5_002_727, wit).await;
    rig.refused_with(50027, "not-a-jwt".into()).await;
    let own = format!("{}/{}/v2.0", rig.world.authority(), rig.world.tenant());
    rig.refused_with(700_222, rig.signed("iss", json!(own)))
        .await;
}

#[tokio::test]
async fn keys_that_entra_cannot_find_or_verify_with() {
    let rig = Rig::start().await;
    let kid = rig.world.issuer.active_key().kid().to_owned();
    rig.world.issuer.documents(|d| d.hidden = vec![kid.clone()]);
    let error = rig.refused_with(7_000_272, rig.svid()).await;
    assert!(matches!(error.class, Class::Propagating { window, .. } if window.as_secs() == 3600));
    assert!(!error.revokes && error.report.fix.contains("jwks_uri"));
    rig.world
        .issuer
        .documents(|d| *d = lab::issuer::Documents::default());
    // The published key, and somebody else's signature.
    let stranger = lab::Key::generate(KeyType::Rsa2048).unwrap();
    let header = json!({"alg": "RS256", "kid": kid, "typ": "JWT"});
    let algorithm = KeyType::Rsa2048.algorithm();
    let forged = stranger
        .sign_with(algorithm, &header, &rig.claims())
        .unwrap();
    rig.refused_with(700_027, forged).await;
    rig.world.issuer.documents(|d| d.down = Some(503));
    let error = rig.refused(rig.svid()).await;
    assert!(
        ["AADSTS501661", "AADSTS50166"].contains(&&*error.report.code),
        "{error:?}"
    );
    assert_eq!(error.class, Class::Transient);
}

#[tokio::test]
async fn a_stale_assertion_says_whose_clock_is_off() {
    let rig = Rig::start().await;
    let now = Clock::system().now().unix_seconds();
    let error = rig
        .refused_with(700_024, rig.signed("exp", json!(now - 120)))
        .await;
    assert!(error.stale_assertion, "{error:?}");
    assert!(
        error.report.detail.contains("clock and Entra's agree"),
        "{}",
        error.report.detail
    );
    rig.world.entra.clock().set_offset(900);
    let error = rig.refused_with(700_024, rig.svid()).await;
    assert!(
        error.report.detail.contains("s behind Entra's"),
        "{}",
        error.report.detail
    );
    rig.world.entra.clock().set_offset(-900);
    let error = rig.refused_with(700_024, rig.svid()).await;
    assert!(
        error.report.detail.contains("s ahead of Entra's"),
        "{}",
        error.report.detail
    );
}

#[tokio::test]
async fn a_resource_that_the_tenant_has_not() {
    let rig = Rig::start().await;
    let resource = "api://nobody-knows-it";
    let result = exchange(&rig.entra, &rig.target(), resource, None, rig.svid()).await;
    let error = result.unwrap_err();
    rig.check(500_011, &error);
    assert!(error.report.fix.contains(resource), "{}", error.report.fix);
}

#[tokio::test]
async fn the_text_outweighs_error_codes_that_disagree() {
    let rig = Rig::start().await;
    rig.world
        .entra
        .faults()
        .disagreeing(700_213, &[7_000_215])
        .times(1);
    let error = rig.refused(rig.svid()).await;
    assert_eq!(error.report.code, "AADSTS700213");
}

#[tokio::test]
async fn throttling_is_told_with_the_time_to_wait() {
    let rig = Rig::start().await;
    let faults = rig.world.entra.faults();
    let seconds = |e: &ExchangeError| e.report.retry_after.map(|d| d.as_secs());
    faults.throttle(Some(60)).times(1);
    let error = rig.refused(rig.svid()).await;
    assert!(error.throttled && error.class == Class::Transient);
    assert_eq!(
        (&*error.report.code, seconds(&error)),
        ("entra-throttled", Some(60))
    );
    faults.throttle_until(120).times(1);
    let wait = seconds(&rig.refused(rig.svid()).await).unwrap();
    assert!((118..=120).contains(&wait), "{wait}");
    faults.throttle(Some(86_400)).times(1);
    assert_eq!(seconds(&rig.refused(rig.svid()).await), Some(3600));
    faults.throttle(None).times(1);
    assert_eq!(seconds(&rig.refused(rig.svid()).await), None);
    rig.token().await.unwrap();
}

#[tokio::test]
async fn answers_that_are_not_entras_have_codes_of_their_own() {
    let rig = Rig::start().await;
    type Arm = fn(&Faults) -> Armed<Fault>;
    let cases: [(Arm, &str, &str); 10] = [
        (|f| f.server_error(503), "entra-unavailable", "transient"),
        (|f| f.html(502), "entra-captive-portal", "transient"),
        (|f| f.html(200), "entra-captive-portal", "transient"),
        (|f| f.html(404), "entra-captive-portal", "misconfigured"),
        (|f| f.empty_body(200), "entra-bad-answer", "transient"),
        (|f| f.empty_body(400), "entra-refused", "misconfigured"),
        (|f| f.plain(302, "moved"), "entra-redirect", "misconfigured"),
        (|f| f.huge_body(), "entra-too-large", "transient"),
        (|f| f.cut_body(), "entra-connection-lost", "transient"),
        (|f| f.reset(), "entra-connection-lost", "transient"),
    ];
    for (arm, code, class) in cases {
        let armed = arm(&rig.world.entra.faults());
        let error = rig.refused(rig.svid()).await;
        assert_eq!(
            (&*error.report.code, error.class.as_str()),
            (code, class),
            "{error:?}"
        );
        assert!(error.report.correlation_id.is_some() && !error.report.fix.is_empty());
        armed.clear();
    }
    rig.token().await.unwrap();
}

#[tokio::test]
async fn slow_answers_meet_the_deadline_and_patience_is_rewarded() {
    let rig = Rig::start().await;
    let deadlines = Deadlines {
        total: Duration::from_millis(400),
        ..Deadlines::default()
    };
    let hasty = trusting(&rig.world, deadlines);
    let faults = rig.world.entra.faults();
    for arm in [
        faults.hang(),
        faults.slow_headers(Duration::from_secs(30)),
        faults.slow_body(Duration::from_secs(30)),
    ] {
        let result = exchange(&hasty, &rig.target(), VAULT, None, rig.svid()).await;
        let error = result.unwrap_err();
        assert_eq!(error.report.code, "entra-timeout", "{error:?}");
        assert_eq!(error.class, Class::Transient);
        arm.clear();
    }
    faults.slow_body(Duration::from_millis(200)).times(1);
    rig.token().await.unwrap();
}

#[tokio::test]
async fn a_reflected_assertion_is_redacted() {
    let rig = Rig::start().await;
    let svid = rig.svid();
    let text = format!(
        "AADSTS50027: JWT token is invalid: '{svid}' (\\\"{}\\\")",
        &svid[..90]
    );
    for (content_type, body) in [
        (
            "application/json",
            format!(r#"{{"error":"x","error_description":"{text}"}}"#),
        ),
        (
            "application/json",
            format!(r#"{{"error":"{svid}","error_description":"see {svid}"}}"#),
        ),
        ("text/plain", format!("bad request: {svid}")),
    ] {
        let armed = rig.world.entra.faults().arm(Fault::Answer {
            status: 400,
            content_type: content_type.into(),
            body,
            retry_after: RetryAfter::Absent,
        });
        // `exchange` looks for pieces of the assertion itself.
        let error = exchange(&rig.entra, &rig.target(), VAULT, None, svid.clone()).await;
        assert!(error.is_err());
        armed.clear();
    }
}

#[tokio::test]
async fn only_the_right_ca_is_trusted() {
    let rig = Rig::start().await;
    let stranger = rig.world.dir().join("stranger.pem");
    lab::Ca::new().unwrap().write(&stranger).unwrap();
    let both = rig.world.dir().join("both.pem");
    let bundle = [&stranger, &rig.world.ca_file()].map(|p| std::fs::read_to_string(p).unwrap());
    std::fs::write(&both, bundle.join("\n")).unwrap();
    for (ca_file, ca_only, trusted) in [
        (&stranger, true, false),
        (&stranger, false, false),
        (&both, true, true),
        (&both, false, true),
    ] {
        let config = config::Entra {
            ca_only,
            ..trust_file(ca_file.clone())
        };
        let entra = EntraExchange::new(&config, Clock::system()).unwrap();
        let result = exchange(&entra, &rig.target(), VAULT, None, rig.svid()).await;
        match result {
            Ok(_) => assert!(trusted),
            Err(error) => {
                assert!(!trusted, "{error:?}");
                assert_eq!(error.report.code, "entra-tls");
                assert_eq!(error.class, Class::Transient);
                // The lab's CAs all have one name, so a stranger's is found and does not fit.
                assert!(error.report.detail.contains("BadSignature"), "{error:?}");
                assert!(error.report.fix.contains("entra.ca_file"), "{error:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    // Any address of 127.0.0.0/8 is this machine; the certificate names the usual one only.
    let options = EntraOptions {
        listen: SocketAddr::from(([127, 0, 0, 2], 0)),
        ..EntraOptions::default()
    };
    let world = World::start_with(IssuerOptions::default(), options)
        .await
        .unwrap();
    let target = Target {
        authority: format!("https://{}", world.entra.address())
            .parse()
            .unwrap(),
        tenant: world.tenant().into(),
        client_id: "0f8fad5b-d9cb-469f-a165-70867728950e".into(),
    };
    let entra = trusting(&world, Deadlines::default());
    let error = exchange(&entra, &target, VAULT, None, "a.b.c".into())
        .await
        .unwrap_err();
    assert_eq!(error.report.code, "entra-tls");
    assert!(error.report.fix.contains("captive portal"), "{error:?}");
    assert_eq!(world.entra.exchanges(), 0);
}

#[tokio::test]
async fn a_restart_of_entra_costs_one_failure_at_most() {
    let rig = Rig::start().await;
    rig.token().await.unwrap();
    rig.world.entra.stop().await;
    let error = rig.refused(rig.svid()).await;
    assert!(
        ["entra-connect", "entra-connection-lost"].contains(&&*error.report.code),
        "{error:?}"
    );
    assert_eq!(rig.refused(rig.svid()).await.report.code, "entra-connect");
    rig.world.entra.restart().await.unwrap();
    rig.token().await.unwrap();
}

#[tokio::test]
async fn no_log_shows_a_secret_at_any_level() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let rig = Rig::start().await;
    let source = SpiffeSource::new(
        config::Endpoint::Unix(rig.world.socket().to_owned()),
        Clock::system(),
    );
    let spec = AssertionSpec {
        subject: SpiffeId::parse(SUBJECT).unwrap(),
        audience: AUDIENCE.into(),
        issuer: None,
    };
    let svid = source.fetch(&spec).await.unwrap().token;
    let token = rig
        .post(&rig.target(), svid.expose().to_owned())
        .await
        .unwrap();
    rig.world.entra.faults().code(700_213).times(1);
    rig.refused(svid.expose().to_owned()).await;
    let shown = log.text();
    assert!(shown.contains("TRACE"), "the log is being read");
    for secret in [&svid, &token.access_token] {
        for part in secret.expose().split('.').skip(1) {
            assert!(
                !shown.contains(&part[..40]),
                "a piece of a secret is in the log"
            );
        }
    }
}

/// Where the log goes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
