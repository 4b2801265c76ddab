//! Every check of the fake Entra answers its code, on real sockets with real signatures.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Bench, SCOPE, SUBJECT, remove, set};
use jsonwebtoken::Algorithm;
use lab::entra::{Credential, Propagation, Resource};
use lab::{EntraOptions, IssuerOptions, KeyType, World, guid};
use serde_json::{Value, json};

#[tokio::test]
async fn good_request_gets_a_v1_token() {
    let bench = Bench::new().await;
    bench.app.set_roles(&["access_as_application"]);
    let answer = bench.exchange().await;
    answer.is_token();
    assert_eq!(answer.json["token_type"], "Bearer");
    let expires_in = answer.json["expires_in"].as_i64().unwrap();
    assert!((3598..=5400).contains(&expires_in), "{expires_in}");
    assert_eq!(answer.json["ext_expires_in"], expires_in);
    assert_eq!(answer.json.get("refresh_in"), None);
    assert_eq!(answer.headers["cache-control"], "no-store, no-cache");

    let (header, claims) = answer.token();
    assert_eq!(
        (&header["alg"], &header["typ"]),
        (&json!("RS256"), &json!("JWT"))
    );
    let (tenant, oid) = (bench.world.tenant(), bench.app.object_id());
    assert_eq!(claims["aud"], "https://vault.azure.net");
    assert_eq!(claims["iss"], format!("https://sts.windows.net/{tenant}/"));
    assert_eq!(claims["appid"], bench.app.client_id());
    assert_eq!(claims["appidacr"], "2");
    assert_eq!(claims["idtyp"], "app");
    assert_eq!((&claims["oid"], &claims["sub"]), (&json!(oid), &json!(oid)));
    assert_eq!(claims["tid"], tenant);
    assert_eq!(claims["roles"], json!(["access_as_application"]));
    assert_eq!(claims["ver"], "1.0");
    let length = answer.json["access_token"].as_str().unwrap().len();
    assert!((1900..2200).contains(&length), "{length}");

    let exchange = bench.world.entra.last_exchange().unwrap();
    assert_eq!(exchange.uti.as_deref(), claims["uti"].as_str());
    assert_eq!(exchange.subject.as_deref(), Some(SUBJECT));
    assert_eq!(exchange.scope.as_deref(), Some(SCOPE));
    assert_eq!(exchange.status, Some(200));
    assert_eq!(exchange.method, "POST");
    assert!(exchange.http2);
    assert!(exchange.fields.contains(&"client_assertion".to_owned()));
    assert!(!format!("{exchange:?}").contains("eyJ"));
    assert_eq!(
        (bench.world.entra.exchanges(), bench.world.entra.issued()),
        (1, 1)
    );
}

#[tokio::test]
async fn token_verifies_with_the_published_keys() {
    let bench = Bench::new().await;
    let answer = bench.exchange().await;
    let token = answer.json["access_token"].as_str().unwrap();
    let tenant = bench.world.tenant();
    let authority = bench.world.authority();
    for (document, keys) in [
        (
            "v2.0/.well-known/openid-configuration",
            "discovery/v2.0/keys",
        ),
        (".well-known/openid-configuration", "discovery/keys"),
    ] {
        let url = format!("{authority}/{tenant}/{document}");
        let document: Value = bench
            .http
            .get(url)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        assert_eq!(
            document["token_endpoint"],
            bench.world.entra.token_endpoint()
        );
        assert_eq!(document["jwks_uri"], format!("{authority}/{tenant}/{keys}"));
        let jwks = document["jwks_uri"].as_str().unwrap();
        let mut jwks: Value = bench
            .http
            .get(jwks)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        let jwk = serde_json::from_value(jwks["keys"][0].take()).unwrap();
        let key = jsonwebtoken::DecodingKey::from_jwk(&jwk).unwrap();
        let (message, signature) = token.rsplit_once('.').unwrap();
        let message = message.as_bytes();
        assert!(jsonwebtoken::crypto::verify(signature, message, &key, Algorithm::RS256).unwrap());
    }
}

#[tokio::test]
async fn audience_of_the_token_follows_the_request() {
    let bench = Bench::new().await;
    for (scope, audience) in [
        (
            "https://database.windows.net//.default",
            "https://database.windows.net/",
        ),
        (
            "https://database.windows.net/.default",
            "https://database.windows.net",
        ),
        (
            "6dae42f8-4368-4678-94ff-3960e28e3630/.default",
            "6dae42f8-4368-4678-94ff-3960e28e3630",
        ),
        (
            &format!("{SCOPE} openid offline_access profile"),
            "https://vault.azure.net",
        ),
    ] {
        let answer = bench
            .post(&bench.form(|form| set(form, "scope", scope)))
            .await;
        answer.is_token();
        assert_eq!(answer.token().1["aud"], audience);
    }
}

#[tokio::test]
async fn resource_may_want_v2_tokens() {
    let bench = Bench::new().await;
    let api = guid::random();
    let resource = Resource {
        id: "api://orders".to_owned(),
        v2_audience: Some(api.clone()),
    };
    bench.world.entra.add_resource(resource);
    let answer = bench
        .post(&bench.form(|form| set(form, "scope", "api://orders/.default")))
        .await;
    let (_, claims) = answer.token();
    let tenant = bench.world.tenant();
    assert_eq!(claims["aud"], api);
    assert_eq!(
        claims["iss"],
        format!("https://login.microsoftonline.com/{tenant}/v2.0")
    );
    assert_eq!(claims["azp"], bench.app.client_id());
    assert_eq!(claims["azpacr"], "2");
    assert_eq!(claims.get("appid"), None);
}

#[tokio::test]
async fn capability_is_honoured_and_claims_must_be_json() {
    let bench = Bench::new().await;
    let claims = r#"{"access_token":{"xms_cc":{"values":["cp1"]}}}"#;
    let form = bench.form(|form| {
        set(form, "claims", claims);
        set(form, "scope", "https://graph.microsoft.com/.default");
        set(form, "client_info", "1");
    });
    let answer = bench.post(&form).await;
    assert_eq!(answer.token().1["xms_cc"], json!(["CP1"]));
    let expires_in = answer.json["expires_in"].as_i64().unwrap();
    assert!((86_399..28 * 3600).contains(&expires_in), "{expires_in}");
    assert_eq!(answer.json["refresh_in"], (expires_in + 1) / 2);
    assert_eq!(bench.exchange().await.token().1.get("xms_cc"), None);
    let answer = bench
        .post(&bench.form(|form| set(form, "claims", "eyJ9")))
        .await;
    answer.is_refusal(9002313, 400, "invalid_request");
}

#[tokio::test]
async fn managed_identity_is_a_client_too() {
    let bench = Bench::new().await;
    let identity = bench.world.entra.managed_identity("uami");
    let issuer = bench.world.issuer.url();
    let identity = identity
        .credential(&issuer, SUBJECT, lab::AUDIENCE)
        .unwrap();
    let form = bench.form(|form| set(form, "client_id", identity.client_id()));
    let answer = bench.post(&form).await;
    answer.is_token();
    assert_eq!(answer.json["refresh_in"], 43_200);
}

#[tokio::test]
async fn tenants_are_known_by_guid_and_domain() {
    let options = EntraOptions {
        domains: vec!["contoso.com".to_owned()],
        ..Default::default()
    };
    let bench = Bench::of(
        World::start_with(IssuerOptions::default(), options)
            .await
            .unwrap(),
    );
    let post = async |tenant: &str| {
        let url = format!("{}/{tenant}/oauth2/v2.0/token", bench.world.authority());
        bench.post_to(&url, &bench.form(|_| {})).await
    };
    post("contoso.com").await.is_token();
    post(&bench.world.tenant().to_uppercase()).await.is_token();
    post("fabrikam.com")
        .await
        .is_refusal(90002, 400, "invalid_request");
    post(&guid::random())
        .await
        .is_refusal(90002, 400, "invalid_request");
    post("contoso")
        .await
        .is_refusal(900023, 400, "invalid_request");
    post("common")
        .await
        .is_refusal(9001023, 400, "invalid_request");
    post("organizations")
        .await
        .is_refusal(9001023, 400, "invalid_request");
    // The application is in the first tenant only.
    let other = guid::random();
    bench.world.entra.add_tenant(&other, &[]);
    post(&other)
        .await
        .is_refusal(700016, 400, "unauthorized_client");
}

#[tokio::test]
async fn missing_parameters_are_named() {
    let bench = Bench::new().await;
    for name in ["grant_type", "client_id", "scope", "client_assertion_type"] {
        let answer = bench.post(&bench.form(|form| remove(form, name))).await;
        answer.is_refusal(900144, 400, "invalid_request");
        let text = answer.json["error_description"].as_str().unwrap();
        assert!(text.contains(&format!("parameter: '{name}'.")), "{text}");
    }
    let answer = bench
        .post(&bench.form(|form| remove(form, "client_assertion")))
        .await;
    answer.is_refusal(7000218, 401, "invalid_client");
    let answer = bench
        .post(&bench.form(|form| {
            remove(form, "client_assertion");
            set(form, "client_secret", "s");
        }))
        .await;
    answer.is_refusal(7000215, 401, "invalid_client");
    let answer = bench
        .post(&bench.form(|form| set(form, "client_assertion_type", "x")))
        .await;
    answer.is_refusal(7000218, 401, "invalid_client");
}

#[tokio::test]
async fn only_a_form_with_a_post_and_the_right_grant() {
    let bench = Bench::new().await;
    let url = bench.world.entra.token_endpoint();
    let send = async |request: reqwest::RequestBuilder| {
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        common::Answer {
            status,
            headers,
            json: answer.json().await.unwrap(),
        }
    };
    send(bench.http.get(&url))
        .await
        .is_refusal(900561, 400, "invalid_request");
    let json = bench
        .http
        .post(&url)
        .json(&json!({ "grant_type": "client_credentials" }));
    send(json).await.is_refusal(900144, 400, "invalid_request");
    let twice = bench.form(|form| form.push(("scope".to_owned(), SCOPE.to_owned())));
    bench
        .post(&twice)
        .await
        .is_refusal(9002313, 400, "invalid_request");
    let grant = bench.form(|form| set(form, "grant_type", "password"));
    bench
        .post(&grant)
        .await
        .is_refusal(70003, 400, "unsupported_grant_type");
    let huge = bench.form(|form| set(form, "claims", &"x".repeat(2 << 20)));
    bench
        .post(&huge)
        .await
        .is_refusal(9002313, 400, "invalid_request");
}

#[tokio::test]
async fn client_unknown_disabled_blocked_or_deleted() {
    let bench = Bench::new().await;
    let form = bench.form(|form| set(form, "client_id", &guid::random()));
    bench
        .post(&form)
        .await
        .is_refusal(700016, 400, "unauthorized_client");

    bench.app.set_disabled(true);
    bench
        .exchange()
        .await
        .is_refusal(7000112, 401, "unauthorized_client");
    bench.app.set_disabled(false);
    bench.exchange().await.is_token();

    bench.app.set_blocked(true);
    let answer = bench.exchange().await;
    answer.is_refusal(53003, 400, "access_denied");
    assert_eq!(answer.json["suberror"], "message_only");
    assert!(answer.json["claims"].as_str().unwrap().contains("capolids"));
    bench.app.set_blocked(false);

    bench.app.delete();
    bench
        .exchange()
        .await
        .is_refusal(700016, 400, "unauthorized_client");
}

#[tokio::test]
async fn assertion_must_be_a_jwt_with_its_claims() {
    let bench = Bench::new().await;
    let good = bench.assertion(|_| {});
    for bad in [
        "x",
        "a.b.c",
        "",
        &format!("{good}\n"),
        &format!(" {good}"),
        &format!("{good}.x"),
    ] {
        let answer = bench.exchange_with((*bad).to_owned()).await;
        let code = if bad.is_empty() { 7000218 } else { 50027 };
        assert_eq!(answer.code(), code, "{bad:?}");
    }
    for claim in ["iss", "sub", "aud", "exp"] {
        let assertion = bench.assertion(|claims| {
            claims.as_object_mut().unwrap().remove(claim);
        });
        bench
            .exchange_with(assertion)
            .await
            .is_refusal(50027, 400, "invalid_request");
    }
    for (claim, value) in [("exp", json!("1")), ("aud", json!([])), ("aud", json!([1]))] {
        let assertion = bench.assertion(|claims| claims[claim] = value);
        bench
            .exchange_with(assertion)
            .await
            .is_refusal(50027, 400, "invalid_request");
    }
    // One audience may be a string.
    let assertion = bench.assertion(|claims| claims["aud"] = json!(lab::AUDIENCE));
    bench.exchange_with(assertion).await.is_token();
}

#[tokio::test]
async fn header_type_and_algorithm() {
    let bench = Bench::new().await;
    let key = bench.world.issuer.active_key();
    let sign = |algorithm: Algorithm, header: Value| {
        key.sign_with(algorithm, &header, &bench.claims()).unwrap()
    };
    let kid = key.kid();
    for typ in ["JOSE", "wit+jwt", "jwt"] {
        let token = sign(
            Algorithm::RS256,
            json!({ "alg": "RS256", "kid": kid, "typ": typ }),
        );
        bench
            .exchange_with(token)
            .await
            .is_refusal(5002727, 401, "invalid_client");
    }
    let untyped = sign(Algorithm::RS256, json!({ "alg": "RS256", "kid": kid }));
    bench
        .exchange_with(untyped.clone())
        .await
        .is_refusal(5002727, 401, "invalid_client");
    bench
        .world
        .entra
        .configure(|settings| settings.strictness.require_type = false);
    bench.exchange_with(untyped).await.is_token();
    let long = "http://openid.net/specs/jwt/1.0";
    let token = sign(
        Algorithm::RS256,
        json!({ "alg": "RS256", "kid": kid, "typ": long }),
    );
    bench.exchange_with(token).await.is_token();

    for algorithm in [
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
    ] {
        let token = sign(
            algorithm,
            json!({ "alg": algorithm, "kid": kid, "typ": "JWT" }),
        );
        bench.exchange_with(token).await.is_token();
    }
    for algorithm in ["none", "HS256", "EdDSA", "rs256"] {
        let token = sign(
            Algorithm::RS256,
            json!({ "alg": algorithm, "kid": kid, "typ": "JWT" }),
        );
        bench
            .exchange_with(token)
            .await
            .is_refusal(5002738, 401, "invalid_client");
    }
    let ec = bench.world.issuer.prepare(KeyType::EcP256).unwrap();
    let answer = bench.exchange_with(ec.sign(&bench.claims()).unwrap()).await;
    answer.is_refusal(5002738, 401, "invalid_client");
    assert!(
        answer.json["error_description"]
            .as_str()
            .unwrap()
            .contains("'ES256'")
    );

    bench
        .world
        .entra
        .configure(|s| s.strictness.algorithms = vec![Algorithm::RS256]);
    let token = sign(
        Algorithm::PS256,
        json!({ "alg": "PS256", "kid": kid, "typ": "JWT" }),
    );
    bench
        .exchange_with(token)
        .await
        .is_refusal(5002738, 401, "invalid_client");
}

#[tokio::test]
async fn credential_must_match_exactly() {
    let bench = Bench::new().await;
    let changed = async |claim: &str, value: Value| {
        bench
            .exchange_with(bench.assertion(|claims| claims[claim] = value))
            .await
    };
    let issuer = bench.world.issuer.url();
    let answer = changed("iss", json!("https://other.example.org")).await;
    answer.is_refusal(700211, 401, "invalid_client");
    assert!(
        answer.json["error_uri"]
            .as_str()
            .unwrap()
            .ends_with("/error?code=700211")
    );
    let slash = changed("iss", json!(format!("{issuer}/"))).await;
    slash.is_refusal(700211, 401, "invalid_client");
    let case = changed("iss", json!(issuer.to_uppercase())).await;
    case.is_refusal(700211, 401, "invalid_client");
    let space = changed("iss", json!(format!("{issuer} "))).await;
    space.is_refusal(700211, 401, "invalid_client");
    let audience = changed("aud", json!(["api://other"])).await;
    audience.is_refusal(700212, 401, "invalid_client");
    let subject = changed("sub", json!("spiffe://example.org/other")).await;
    subject.is_refusal(700213, 401, "invalid_client");
    let case = changed("sub", json!("spiffe://example.org/Payments")).await;
    case.is_refusal(7002138, 401, "invalid_client");

    bench
        .world
        .entra
        .configure(|settings| settings.strictness.combined_no_match = true);
    let combined = changed("sub", json!("spiffe://example.org/other")).await;
    combined.is_refusal(70021, 400, "invalid_request");
    let text = combined.json["error_description"].as_str().unwrap();
    assert!(
        text.contains("Assertion Subject: 'spiffe://example.org/other'"),
        "{text}"
    );
}

#[tokio::test]
async fn several_audiences_are_a_switch() {
    let bench = Bench::new().await;
    let many = bench.assertion(|claims| claims["aud"] = json!(["api://other", lab::AUDIENCE]));
    bench
        .exchange_with(many.clone())
        .await
        .is_refusal(700212, 401, "invalid_client");
    bench
        .world
        .entra
        .configure(|settings| settings.strictness.accept_many_audiences = true);
    bench.exchange_with(many).await.is_token();
}

#[tokio::test]
async fn credential_comes_and_goes() {
    let bench = Bench::new().await;
    bench.app.remove_credential(SUBJECT);
    let answer = bench.exchange().await;
    answer.is_refusal(70025, 401, "invalid_client");
    let text = answer.json["error_description"].as_str().unwrap();
    assert!(
        text.contains(&format!("'{}'(payments)", bench.app.client_id())),
        "{text}"
    );

    let credential = Credential {
        name: "late".to_owned(),
        issuer: bench.world.issuer.url(),
        subject: SUBJECT.to_owned(),
        audiences: vec![lab::AUDIENCE.to_owned()],
    };
    bench
        .app
        .add_credential_slowly(credential, Propagation::AfterRequests(2))
        .unwrap();
    bench
        .exchange()
        .await
        .is_refusal(70025, 401, "invalid_client");
    bench
        .exchange()
        .await
        .is_refusal(70025, 401, "invalid_client");
    bench.exchange().await.is_token();
}

#[tokio::test]
async fn replicas_flap_until_the_credential_has_spread() {
    let bench = Bench::new().await;
    let hour = std::time::Duration::from_secs(3600);
    bench
        .world
        .entra
        .configure(|settings| settings.propagation = Propagation::Flapping(hour));
    let app = bench.world.entra.application("new");
    let issuer = bench.world.issuer.url();
    let app = app.credential(&issuer, SUBJECT, lab::AUDIENCE).unwrap();
    let form = bench.form(|form| set(form, "client_id", app.client_id()));
    let mut granted = Vec::new();
    for _ in 0..4 {
        granted.push(bench.post(&form).await.status == 200);
    }
    assert_eq!(granted, [false, true, false, true]);
    app.propagate();
    bench.post(&form).await.is_token();
}

#[tokio::test]
async fn issuers_documents_must_be_there_and_right() {
    let bench = Bench::new().await;
    let issuer = &bench.world.issuer;
    let refused = async || {
        bench
            .exchange()
            .await
            .is_refusal(501661, 400, "invalid_request");
        issuer.documents(|documents| *documents = Default::default());
        bench.exchange().await.is_token();
    };
    issuer.documents(|documents| documents.down = Some(500));
    refused().await;
    issuer.documents(|documents| documents.down = Some(404));
    refused().await;
    issuer.documents(|documents| documents.issuer = Some("https://other.example".to_owned()));
    refused().await;
    issuer.documents(|documents| documents.body = Some("<html>".to_owned()));
    refused().await;
    issuer.documents(|documents| documents.body = Some("{}".to_owned()));
    refused().await;
    issuer.documents(|documents| documents.jwks_uri = Some("http://localhost/keys".to_owned()));
    refused().await;
    // Inferred from one report.
    issuer.documents(|documents| documents.key_use = false);
    refused().await;

    issuer.documents(|documents| documents.key_use = false);
    bench
        .world
        .entra
        .configure(|settings| settings.strictness.require_key_use = false);
    bench.exchange().await.is_token();
    bench.world.entra.configure(|settings| {
        settings.strictness.refuse_empty_authorization_endpoint = true;
    });
    bench
        .exchange()
        .await
        .is_refusal(501661, 400, "invalid_request");
    issuer.documents(|documents| documents.authorization_endpoint = None);
    bench.exchange().await.is_token();

    issuer.stop().await;
    bench
        .exchange()
        .await
        .is_refusal(501661, 400, "invalid_request");
    issuer.restart().await.unwrap();
    bench.exchange().await.is_token();
}

#[tokio::test]
async fn slow_issuer_is_given_up() {
    let bench = Bench::new().await;
    let hour = std::time::Duration::from_secs(3600);
    bench
        .world
        .issuer
        .documents(|documents| documents.delay = hour);
    let short = std::time::Duration::from_millis(50);
    bench
        .world
        .entra
        .configure(|settings| settings.fetch_timeout = short);
    bench
        .exchange()
        .await
        .is_refusal(501661, 400, "invalid_request");
    assert!(
        bench
            .world
            .entra
            .last_exchange()
            .unwrap()
            .detail
            .unwrap()
            .contains("in time")
    );
}

#[tokio::test]
async fn key_must_be_published_among_the_first_hundred() {
    let bench = Bench::new().await;
    let issuer = &bench.world.issuer;
    let first = issuer.active_key();
    issuer.documents(|documents| documents.padding = 99);
    bench.exchange().await.is_token();
    issuer.documents(|documents| documents.padding = 100);
    bench
        .exchange()
        .await
        .is_refusal(7000272, 401, "invalid_client");
    issuer.documents(|documents| documents.padding = 0);

    issuer.documents(|documents| documents.hidden = vec![first.kid().to_owned()]);
    let answer = bench.exchange().await;
    answer.is_refusal(7000272, 401, "invalid_client");
    assert!(
        answer.json["error_description"]
            .as_str()
            .unwrap()
            .contains(first.kid())
    );
    issuer.documents(|documents| documents.hidden.clear());
    issuer.documents(|documents| documents.key_ids = false);
    bench
        .exchange()
        .await
        .is_refusal(7000272, 401, "invalid_client");
    issuer.documents(|documents| documents.key_ids = true);

    issuer.revoke(&first);
    bench
        .exchange()
        .await
        .is_refusal(7000272, 401, "invalid_client");
    issuer.rotate().unwrap();
    bench.exchange().await.is_token();

    let key = issuer.active_key();
    let header = json!({ "alg": "RS256", "typ": "JWT" });
    let no_kid = key
        .sign_with(Algorithm::RS256, &header, &bench.claims())
        .unwrap();
    bench
        .exchange_with(no_kid)
        .await
        .is_refusal(7000272, 401, "invalid_client");
}

#[tokio::test]
async fn keys_in_the_cache_hide_new_ones() {
    let bench = Bench::new().await;
    let hour = std::time::Duration::from_secs(3600);
    bench
        .world
        .entra
        .configure(|settings| settings.metadata_cache = hour);
    bench.exchange().await.is_token();
    bench.exchange().await.is_token();
    assert_eq!(bench.world.issuer.jwks_requests(), 1);
    bench.world.issuer.rotate().unwrap();
    bench
        .exchange()
        .await
        .is_refusal(7000272, 401, "invalid_client");
    bench.world.entra.forget_metadata();
    bench.exchange().await.is_token();
}

#[tokio::test]
async fn signature_must_be_the_keys() {
    let bench = Bench::new().await;
    let published = bench.world.issuer.active_key();
    let header = json!({ "alg": "RS256", "typ": "JWT", "kid": published.kid() });
    let stranger = lab::Key::generate(KeyType::Rsa2048).unwrap();
    let forged = stranger
        .sign_with(Algorithm::RS256, &header, &bench.claims())
        .unwrap();
    bench
        .exchange_with(forged)
        .await
        .is_refusal(700027, 401, "invalid_client");

    // Claims changed after signing.
    let good = bench.assertion(|claims| claims["sub"] = json!("spiffe://example.org/other"));
    let wanted = bench.assertion(|_| {});
    let (signature, claims) = (good.rsplit('.').next(), wanted.split('.').nth(1));
    let head = wanted.split('.').next().unwrap();
    let mixed = format!("{head}.{}.{}", claims.unwrap(), signature.unwrap());
    bench
        .exchange_with(mixed)
        .await
        .is_refusal(700027, 401, "invalid_client");

    // RS256 in the header, an EC key behind the kid.
    let ec = bench.world.issuer.prepare(KeyType::EcP256).unwrap();
    let header = json!({ "alg": "RS256", "typ": "JWT", "kid": ec.kid() });
    let token = ec
        .sign_with(Algorithm::ES256, &header, &bench.claims())
        .unwrap();
    bench
        .exchange_with(token)
        .await
        .is_refusal(5002730, 401, "invalid_client");
}

#[tokio::test]
async fn times_are_checked_against_the_fakes_clock() {
    let bench = Bench::new().await;
    let good = bench.assertion(|_| {});
    let clock = bench.world.entra.clock();
    clock.set_offset(-600);
    let early = bench.exchange_with(good.clone()).await;
    early.is_refusal(700024, 401, "invalid_client");
    assert!(
        early.json["error_description"]
            .as_str()
            .unwrap()
            .contains("Current time: 20")
    );
    clock.set_offset(600);
    bench
        .exchange_with(good.clone())
        .await
        .is_refusal(700024, 401, "invalid_client");
    clock.set_offset(0);
    bench.exchange_with(good).await.is_token();

    let now = lab::Clock::default().now();
    let expired = bench.assertion(|claims| claims["exp"] = json!(now - 6));
    bench
        .exchange_with(expired)
        .await
        .is_refusal(700024, 401, "invalid_client");
    let future = bench.assertion(|claims| claims["nbf"] = json!(now + 60));
    bench
        .exchange_with(future)
        .await
        .is_refusal(700024, 401, "invalid_client");
    let no_iat = bench.assertion(|claims| {
        claims.as_object_mut().unwrap().remove("iat");
    });
    bench.exchange_with(no_iat).await.is_token();
}

#[tokio::test]
async fn scopes_are_one_default_of_a_known_resource() {
    let bench = Bench::new().await;
    let scoped = async |scope: &str| {
        bench
            .post(&bench.form(|form| set(form, "scope", scope)))
            .await
    };
    scoped("https://unknown.example/.default")
        .await
        .is_refusal(500011, 400, "invalid_resource");
    scoped("https://vault.azure.net")
        .await
        .is_refusal(1002012, 400, "invalid_scope");
    let two = "https://vault.azure.net/.default https://graph.microsoft.com/.default";
    scoped(two).await.is_refusal(700022, 400, "invalid_scope");
    scoped(".default")
        .await
        .is_refusal(700023, 400, "invalid_scope");
    scoped("openid")
        .await
        .is_refusal(70011, 400, "invalid_scope");
    bench.world.entra.remove_resource("https://vault.azure.net");
    scoped(SCOPE)
        .await
        .is_refusal(500011, 400, "invalid_resource");
}

#[tokio::test]
async fn entras_own_tokens_are_no_assertions() {
    let bench = Bench::new().await;
    let issuer = format!("{}/{}/v2.0", bench.world.authority(), bench.world.tenant());
    let assertion = bench.assertion(|claims| claims["iss"] = json!(issuer));
    bench
        .exchange_with(assertion)
        .await
        .is_refusal(700222, 400, "invalid_request");
}

#[tokio::test]
async fn issuer_with_a_path_and_a_slash() {
    let options = IssuerOptions {
        path: "/mesh/one".to_owned(),
        trailing_slash: true,
        ..IssuerOptions::default()
    };
    let world = World::start_with(options, EntraOptions::default())
        .await
        .unwrap();
    assert!(
        world.issuer.url().ends_with("/mesh/one/"),
        "{}",
        world.issuer.url()
    );
    let bench = Bench::of(world);
    bench.exchange().await.is_token();
    let url = bench.world.issuer.url();
    let without = bench.assertion(|claims| claims["iss"] = json!(url.trim_end_matches('/')));
    bench
        .exchange_with(without)
        .await
        .is_refusal(700211, 401, "invalid_client");
}

#[tokio::test]
async fn issuer_by_another_name_is_found_by_an_override() {
    let ca = lab::Ca::new().unwrap();
    let name = "oidc.example.org".to_owned();
    let options = IssuerOptions {
        url: Some(format!("https://{name}")),
        names: vec![name.clone()],
        ..IssuerOptions::default()
    };
    let issuer = lab::Issuer::start(&ca, options).await.unwrap();
    // Another lab trusts that issuer's CA by its certificate alone.
    let entra = EntraOptions {
        issuer_cas: vec![ca.pem()],
        hosts: vec![(name, issuer.address())],
        ..EntraOptions::default()
    };
    let world = World::start_with(IssuerOptions::default(), entra)
        .await
        .unwrap();
    let bench = Bench::of(world);
    let app = bench.world.entra.application("other");
    let app = app
        .credential(&issuer.url(), SUBJECT, lab::AUDIENCE)
        .unwrap();
    let mut claims = bench.claims();
    claims["iss"] = json!(issuer.url());
    let form = bench.form(|form| {
        set(form, "client_id", app.client_id());
        set(form, "client_assertion", &issuer.sign(&claims).unwrap());
    });
    bench.post(&form).await.is_token();
    assert_eq!(
        (issuer.discovery_requests(), issuer.jwks_requests()),
        (1, 1)
    );
}

#[tokio::test]
async fn instance_discovery_knows_this_authority_only() {
    let bench = Bench::new().await;
    let authority = bench.world.authority();
    let ask = async |endpoint: &str| {
        let url = format!("{authority}/common/discovery/instance?api-version=1.1");
        let request = bench
            .http
            .get(url)
            .query(&[("authorization_endpoint", endpoint)]);
        let answer = request.send().await.unwrap();
        (
            answer.status().as_u16(),
            answer.json::<Value>().await.unwrap(),
        )
    };
    let (status, json) = ask(&format!("{authority}/contoso.com/oauth2/v2.0/authorize")).await;
    assert_eq!(status, 200);
    let host = authority.trim_start_matches("https://");
    assert_eq!(json["metadata"][0]["preferred_network"], host);
    assert!(
        json["tenant_discovery_endpoint"]
            .as_str()
            .unwrap()
            .contains("/contoso.com/v2.0/")
    );
    let (status, json) = ask("https://evil.example/t/oauth2/v2.0/authorize").await;
    assert_eq!((status, &json["error"]), (400, &json!("invalid_instance")));
    assert!(
        json["error_description"]
            .as_str()
            .unwrap()
            .starts_with("AADSTS50049: ")
    );
}

#[tokio::test]
async fn correlation_id_is_the_clients_own() {
    let bench = Bench::new().await;
    let id = guid::random();
    let request = bench.http.post(bench.world.entra.token_endpoint());
    let request = request.header("client-request-id", &id).form(&[("a", "b")]);
    let json: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(json["correlation_id"], id);
    assert_eq!(
        bench.world.entra.last_exchange().unwrap().correlation_id,
        id
    );
}

#[tokio::test]
async fn reused_tokens_are_the_same_per_client_and_resource() {
    let bench = Bench::new().await;
    bench
        .world
        .entra
        .configure(|settings| settings.reuse_tokens = true);
    let token = |answer: common::Answer| answer.json["access_token"].as_str().unwrap().to_owned();
    let (one, two) = (token(bench.exchange().await), token(bench.exchange().await));
    assert_eq!(one, two);
    let graph = bench.form(|form| set(form, "scope", "https://graph.microsoft.com/.default"));
    assert_ne!(token(bench.post(&graph).await), one);
    bench
        .world
        .entra
        .configure(|settings| settings.reuse_tokens = false);
    assert_ne!(token(bench.exchange().await), one);
}

#[tokio::test]
async fn world_makes_identities_on_both_sides() {
    let world = World::start().await.unwrap();
    let client_id = guid::random();
    let identity = world
        .identity(SUBJECT)
        .client_id(&client_id)
        .uid(0)
        .name("payments");
    let identity = identity.add().unwrap();
    assert_eq!(identity.client.client_id(), client_id);
    assert_eq!(identity.client.credentials()[0].subject, SUBJECT);
    let bare = world
        .identity("spiffe://example.org/bare")
        .without_credential()
        .managed();
    assert!(bare.add().unwrap().client.credentials().is_empty());
    assert!(world.identity(SUBJECT).client_id(&client_id).add().is_err());
    assert!(world.identity(SUBJECT).client_id("no-guid").add().is_err());
    assert_eq!(
        std::fs::read_to_string(world.ca_file()).unwrap(),
        world.ca.pem()
    );
}
