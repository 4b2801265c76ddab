//! The Workload API answers as SPIRE's agent does, to a client generated from the same contract.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper_util::rt::TokioIo;
use lab::workload::wire::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use lab::workload::wire::{
    JwtBundlesRequest, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
};
use lab::{Clock, KeyType, World};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

const ID: &str = "spiffe://example.org/payments";
const OTHER: &str = "spiffe://example.org/orders";

type Api = SpiffeWorkloadApiClient<Channel>;

/// A client that connects when it is used, and again after the server has been away.
fn api(world: &World) -> Api {
    let path: PathBuf = world.socket().to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    SpiffeWorkloadApiClient::new(endpoint.connect_with_connector_lazy(connector))
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

fn for_id(spiffe_id: &str) -> JwtsvidRequest {
    JwtsvidRequest {
        audience: vec![lab::AUDIENCE.to_owned()],
        spiffe_id: spiffe_id.to_owned(),
    }
}

async fn fetch(api: &Api, message: JwtsvidRequest) -> Result<Vec<Jwtsvid>, Status> {
    let mut api = api.clone();
    api.fetch_jwtsvid(request(message))
        .await
        .map(|answer| answer.into_inner().svids)
}

async fn token(api: &Api) -> String {
    fetch(api, for_id(ID)).await.unwrap().remove(0).svid
}

async fn refused(api: &Api) -> (Code, String) {
    let status = fetch(api, for_id(ID)).await.unwrap_err();
    (status.code(), status.message().to_owned())
}

fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn header(token: &str) -> Value {
    part(token, 0)
}

fn claims(token: &str) -> Value {
    part(token, 1)
}

async fn world() -> (World, Api) {
    let world = World::start().await.unwrap();
    world.workload.entry(ID).add();
    let api = api(&world);
    (world, api)
}

#[tokio::test]
async fn svid_has_spires_header_and_claims() {
    let (world, api) = world().await;
    let before = Clock::default().now();
    let svid = fetch(&api, for_id(ID)).await.unwrap().remove(0);
    assert_eq!((svid.spiffe_id.as_str(), svid.hint.as_str()), (ID, ""));
    let kid = world.issuer.active_key().kid().to_owned();
    assert_eq!(
        header(&svid.svid),
        json!({ "alg": "RS256", "kid": kid, "typ": "JWT" })
    );
    let claims = claims(&svid.svid);
    let names: Vec<_> = claims.as_object().unwrap().keys().cloned().collect();
    assert_eq!(names, ["aud", "exp", "iat", "iss", "sub"]);
    assert_eq!(claims["aud"], json!([lab::AUDIENCE]));
    assert_eq!(claims["iss"], world.issuer.url());
    assert_eq!(claims["sub"], ID);
    let issued = claims["iat"].as_i64().unwrap();
    assert!((before..=before + 5).contains(&issued));
    assert_eq!(claims["exp"], issued + 300);
    assert_eq!(world.workload.fetches(), 1);
    let record = world.workload.record();
    assert_eq!(
        (record[0].spiffe_id.as_str(), record[0].code),
        (ID, Code::Ok)
    );
    assert_eq!(record[0].uid, nix::unistd::getuid().as_raw());
}

#[tokio::test]
async fn security_header_is_needed_once() {
    let (_world, api) = world().await;
    let call = async |values: &[&'static str]| {
        let mut request = Request::new(for_id(ID));
        for &value in values {
            request
                .metadata_mut()
                .append("workload.spiffe.io", MetadataValue::from_static(value));
        }
        api.clone().fetch_jwtsvid(request).await
    };
    call(&["true"]).await.unwrap();
    for wrong in [&[][..], &["false"], &["True"], &["true", "true"]] {
        let status = call(wrong).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{wrong:?}");
        assert_eq!(status.message(), "security header missing from request");
    }
    let status = api
        .clone()
        .fetch_jwt_bundles(JwtBundlesRequest {})
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let message = ValidateJwtsvidRequest::default();
    let status = api.clone().validate_jwtsvid(message).await.unwrap_err();
    assert_eq!(status.message(), "security header missing from request");
}

#[tokio::test]
async fn arguments_are_checked_before_entries() {
    let world = World::start().await.unwrap();
    let api = api(&world);
    let no_audience = JwtsvidRequest {
        audience: Vec::new(),
        spiffe_id: ID.to_owned(),
    };
    let status = fetch(&api, no_audience).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "audience must be specified")
    );
    let status = fetch(&api, for_id("example.org/payments"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status
            .message()
            .starts_with("invalid requested SPIFFE ID: "),
        "{status}"
    );
    let denied = (Code::PermissionDenied, "no identity issued".to_owned());
    assert_eq!(refused(&api).await, denied);
    // Somebody else's entry is no entry.
    let somebody = nix::unistd::getuid().as_raw() + 1;
    world.workload.entry(ID).uid(somebody).add();
    assert_eq!(refused(&api).await, denied);
    let mine = world.workload.entry(ID).uid(somebody - 1).add();
    token(&api).await;
    mine.remove();
    assert_eq!(refused(&api).await, denied);
    world.workload.entry(OTHER).add();
    assert_eq!(refused(&api).await, denied);
    world.workload.remove(OTHER);
    assert_eq!(
        fetch(&api, for_id("")).await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

#[tokio::test]
async fn no_id_means_one_svid_for_each_entry() {
    let (world, api) = world().await;
    world
        .workload
        .entry(OTHER)
        .hint("orders")
        .ttl(Duration::from_secs(60))
        .add();
    let svids = fetch(&api, for_id("")).await.unwrap();
    let ids: Vec<_> = svids
        .iter()
        .map(|svid| (&*svid.spiffe_id, &*svid.hint))
        .collect();
    assert_eq!(ids, [(ID, ""), (OTHER, "orders")]);
    let claims = claims(&svids[1].svid);
    assert_eq!(
        claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
        60
    );
}

#[tokio::test]
async fn agent_reuses_an_svid_to_its_half_life() {
    let (world, api) = world().await;
    let first = token(&api).await;
    assert_eq!(token(&api).await, first);
    // Another set of audiences is another SVID; the order does not matter.
    let many = |audience: [&str; 2]| JwtsvidRequest {
        audience: audience.map(str::to_owned).to_vec(),
        spiffe_id: ID.to_owned(),
    };
    let two = fetch(&api, many(["a", "b"])).await.unwrap().remove(0).svid;
    assert_ne!(two, first);
    assert_eq!(
        fetch(&api, many(["b", "a"])).await.unwrap().remove(0).svid,
        two
    );

    // 45 to 55 in a hundred are left when it is renewed.
    world.workload.clock().advance(Duration::from_secs(130));
    assert_eq!(token(&api).await, first);
    world.workload.clock().advance(Duration::from_secs(40));
    let second = token(&api).await;
    assert_ne!(second, first);

    // Without its server the agent serves what it has to the end.
    let down = world.workload.faults().server_down();
    world.workload.clock().advance(Duration::from_secs(290));
    assert_eq!(token(&api).await, second);
    world.workload.clock().advance(Duration::from_secs(15));
    assert_eq!(refused(&api).await.0, Code::Unavailable);
    down.clear();
    let third = token(&api).await;
    assert_ne!(third, second);
    world.workload.forget();
    world.workload.clock().advance(Duration::from_secs(1));
    assert_ne!(token(&api).await, third);
}

#[tokio::test]
async fn refusals_and_outages_are_faults() {
    let (world, api) = world().await;
    let faults = world.workload.faults();
    faults.unavailable().times(1);
    faults.permission_denied().times(1);
    faults.invalid_argument().times(1);
    assert_eq!(refused(&api).await.0, Code::Unavailable);
    assert_eq!(
        refused(&api).await,
        (Code::PermissionDenied, "no identity issued".to_owned())
    );
    assert_eq!(refused(&api).await.0, Code::InvalidArgument);
    token(&api).await;

    faults.empty_answer().times(1);
    assert!(fetch(&api, for_id(ID)).await.unwrap().is_empty());

    world.workload.faults_for(OTHER).unavailable();
    token(&api).await;

    let delay = Duration::from_millis(50);
    faults.slow(delay).times(1);
    let start = std::time::Instant::now();
    token(&api).await;
    assert!(start.elapsed() >= delay);

    let seen = world.workload.fetches();
    faults.hang().times(1);
    tokio::select! {
        answer = fetch(&api, for_id(ID)) => unreachable!("{answer:?}"),
        () = world.workload.wait_fetches(seen + 1) => {}
    }
    token(&api).await;
}

#[tokio::test]
async fn svids_can_be_wrong_in_many_ways() {
    let (world, api) = world().await;
    let faults = world.workload.faults();
    let good = token(&api).await;
    faults.wrong_subject(OTHER).times(1);
    assert_eq!(claims(&token(&api).await)["sub"], OTHER);
    faults.wrong_audience(&["a", "b"]).times(1);
    assert_eq!(claims(&token(&api).await)["aud"], json!(["a", "b"]));
    faults.wrong_issuer("https://other.example").times(1);
    assert_eq!(claims(&token(&api).await)["iss"], "https://other.example");
    faults.no_issuer().times(1);
    assert_eq!(claims(&token(&api).await).get("iss"), None);
    faults.expired().times(1);
    assert!(claims(&token(&api).await)["exp"].as_i64().unwrap() < Clock::default().now());
    faults.ttl(Duration::from_secs(7)).times(1);
    let short = claims(&token(&api).await);
    assert_eq!(
        short["exp"].as_i64().unwrap() - short["iat"].as_i64().unwrap(),
        7
    );
    faults.es256().times(1);
    let ec = token(&api).await;
    assert_eq!(header(&ec)["alg"], "ES256");
    assert_eq!(
        header(&ec)["kid"],
        world.issuer.key_of(KeyType::EcP256).unwrap().kid()
    );
    faults
        .arm(lab::workload::Fault::Type("JOSE".to_owned()))
        .times(1);
    assert_eq!(header(&token(&api).await)["typ"], "JOSE");
    faults.arm(lab::workload::Fault::NoKeyId).times(1);
    assert_eq!(header(&token(&api).await).get("kid"), None);
    faults.malformed().times(1);
    assert_eq!(token(&api).await, "not-a-jwt");
    // None of them got into the agent's cache.
    assert_eq!(token(&api).await, good);

    world.workload.forget();
    world.workload.clock().set_offset(-3600);
    let behind = claims(&token(&api).await)["iat"].as_i64().unwrap();
    assert!((behind - (Clock::default().now() - 3600)).abs() <= 2);
}

#[tokio::test]
async fn bundles_are_streamed_at_each_change() {
    let (world, mut api) = world().await;
    let stream = api
        .fetch_jwt_bundles(request(JwtBundlesRequest {}))
        .await
        .unwrap();
    let mut stream = stream.into_inner();
    let mut keys = async || {
        let bundles = stream.message().await.unwrap().unwrap().bundles;
        assert_eq!(bundles.len(), 1);
        let jwks: Value = serde_json::from_slice(&bundles["spiffe://example.org"]).unwrap();
        jwks["keys"].as_array().unwrap().clone()
    };
    let first = keys().await;
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].get("use"), None);
    let key = world.issuer.prepare(KeyType::Rsa2048).unwrap();
    assert_eq!(keys().await[1]["kid"], key.kid());
    world.issuer.revoke(&key);
    assert_eq!(keys().await, first);
    assert_eq!(world.workload.bundle_streams(), 1);

    world.workload.remove(ID);
    let status = api
        .fetch_jwt_bundles(request(JwtBundlesRequest {}))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn validation_verifies() {
    let (world, api) = world().await;
    let validate = async |audience: &str, svid: &str| {
        let message = ValidateJwtsvidRequest {
            audience: audience.to_owned(),
            svid: svid.to_owned(),
        };
        let answer = api.clone().validate_jwtsvid(request(message)).await;
        answer
            .map(|answer| answer.into_inner().spiffe_id)
            .map_err(|status| status.code())
    };
    let good = token(&api).await;
    assert_eq!(validate(lab::AUDIENCE, &good).await.unwrap(), ID);
    let invalid = Err(Code::InvalidArgument);
    assert_eq!(validate("api://other", &good).await, invalid);
    assert_eq!(validate("", &good).await, invalid);
    assert_eq!(validate(lab::AUDIENCE, "").await, invalid);
    assert_eq!(validate(lab::AUDIENCE, "a.b.c").await, invalid);
    let (message, _) = good.rsplit_once('.').unwrap();
    assert_eq!(
        validate(lab::AUDIENCE, &format!("{message}.AAAA")).await,
        invalid
    );
    world.workload.faults().expired().times(1);
    let expired = token(&api).await;
    assert_eq!(validate(lab::AUDIENCE, &expired).await, invalid);
    let stranger = lab::Key::generate(KeyType::Rsa2048).unwrap();
    let forged = stranger.sign(&claims(&good)).unwrap();
    assert_eq!(validate(lab::AUDIENCE, &forged).await, invalid);
    assert_eq!(world.workload.validations(), 8);
}

#[tokio::test]
async fn agent_stops_crashes_and_comes_back_on_the_same_path() {
    let (world, api) = world().await;
    let first = token(&api).await;
    let inode = || {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = std::fs::metadata(world.socket()).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o777);
        metadata.ino()
    };
    inode();
    world.workload.stop().await;
    assert!(!world.socket().exists());
    // A new client: the old one may not have noticed yet that its connection is gone.
    let api = crate::api(&world);
    assert_eq!(refused(&api).await.0, Code::Unavailable);
    world.workload.restart().await.unwrap();
    inode();
    world.workload.clock().advance(Duration::from_secs(1));
    assert_ne!(token(&api).await, first);

    world.workload.crash().await;
    inode();
    let error = UnixStream::connect(world.socket()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    world.workload.restart().await.unwrap();
    inode();
    token(&crate::api(&world)).await;
}

#[tokio::test]
async fn open_streams_end_when_the_agent_stops() {
    let (world, mut api) = world().await;
    let stream = api
        .fetch_jwt_bundles(request(JwtBundlesRequest {}))
        .await
        .unwrap();
    let mut stream = stream.into_inner();
    stream.message().await.unwrap().unwrap();
    world.workload.crash().await;
    assert!(stream.message().await.is_err());
}

#[tokio::test]
async fn fake_entra_takes_the_svids() {
    let (world, api) = world().await;
    let app = world.entra.application("payments");
    let app = app
        .credential(&world.issuer.url(), ID, lab::AUDIENCE)
        .unwrap();
    let ca = reqwest::Certificate::from_pem(world.ca.pem().as_bytes()).unwrap();
    let http = reqwest::Client::builder()
        .tls_certs_only([ca])
        .no_proxy()
        .build()
        .unwrap();
    let exchange = async |svid: &str| {
        let form = [
            ("client_id", app.client_id()),
            ("scope", "https://vault.azure.net/.default"),
            ("grant_type", "client_credentials"),
            (
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            ),
            ("client_assertion", svid),
        ];
        let request = http.post(world.entra.token_endpoint()).form(&form);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(exchange(&token(&api).await).await, 200);
    world.workload.faults().es256().times(1);
    assert_eq!(exchange(&token(&api).await).await, 401);
    assert_eq!(world.entra.last_exchange().unwrap().code, Some(5002738));
}

#[test]
fn answers_do_not_print_tokens() {
    let svid = Jwtsvid {
        svid: "eyJ".to_owned(),
        ..Jwtsvid::default()
    };
    assert!(!format!("{:?}", JwtsvidResponse { svids: vec![svid] }).contains("eyJ"));
}
