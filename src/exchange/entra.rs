//! One POST to Entra's token endpoint: a JWT-SVID in, an access token out.
//!
//! Five form fields (RFC 7523, section 2.2; Entra's "access token request with a federated
//! credential"), no discovery, no redirects, one client for the process. What comes back is bounded
//! and read by [`answer`]; what does not come back is explained by [`network`].

mod answer;
mod asked;
mod network;
mod text;

use std::{fmt, fs, time::Duration};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use reqwest::{Certificate, Client, ClientBuilder, Proxy, Request, Response, redirect};
use url::{Host, Url, form_urlencoded};
use zeroize::Zeroizing;

use self::{answer::Reply, asked::Asked};
use super::{Exchange, ExchangeError, ExchangeRequest, IssuedToken, TokenExchange};
use crate::{exchange::settings::Settings, report::Report, time::Clock};

/// RFC 7523 has it so; drafts that profile SPIFFE for OAuth may bring another.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Entra adopts it as the correlation id of the request, so that an attempt can be found in its
/// logs even when no answer came.
const REQUEST_ID: HeaderName = HeaderName::from_static("client-request-id");

/// No answer of Entra's comes near it: tokens have some kilobytes.
const BODY_LIMIT: usize = 64 * 1024;

/// A few requests an hour are made. What idles longer than this was mostly cut by a firewall or
/// load balancer that told nobody, and the next request would have to find out.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// How long a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For the connection, TLS included.
    pub connect: Duration,
    /// For everything, up to the last byte of the answer.
    pub total: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            total: Duration::from_secs(20),
        }
    }
}

/// Entra's token endpoint, of whichever tenant and cloud a request names.
pub struct EntraExchange {
    client: Client,
    /// For an emulator without TLS: knows no proxy, so that an assertion cannot leave the machine
    /// in clear. Only where that was allowed.
    loopback: Option<Client>,
    deadlines: Deadlines,
    clock: Clock,
}

impl EntraExchange {
    /// Prepares the client. Reads the CA file; connects to nothing.
    pub fn new(config: &Settings, clock: Clock) -> Result<Self, Box<Report>> {
        Self::with_deadlines(config, clock, Deadlines::default())
    }

    /// The same with other [`Deadlines`].
    pub fn with_deadlines(
        config: &Settings,
        clock: Clock,
        deadlines: Deadlines,
    ) -> Result<Self, Box<Report>> {
        let mut builder = trust(client(deadlines).https_only(true), config)?;
        if let Some(url) = &config.proxy {
            let proxy = Proxy::all(url.clone()).map_err(|e| {
                Box::new(Report::permanent(
                    "entra-proxy",
                    "The proxy cannot be used",
                    network::root_cause(&e),
                    "correct `entra.proxy`: http://host:port or https://host:port",
                ))
            })?;
            builder = builder.proxy(proxy);
        }
        let loopback = config
            .allow_http_loopback
            .then(|| client(deadlines).no_proxy().tls_certs_only([]).build())
            .transpose()
            .map_err(|e| no_client(&e))?;
        Ok(Self {
            client: builder.build().map_err(|e| match &config.ca_file {
                Some(path) => ca_fault(format!("{}: {}", path.display(), network::root_cause(&e))),
                None => no_client(&e),
            })?,
            loopback,
            deadlines,
            clock,
        })
    }

    async fn post(&self, asked: ExchangeRequest<'_>) -> Result<IssuedToken, ExchangeError> {
        let request_id = random_guid();
        let asked = Asked {
            request: asked,
            request_id: &request_id,
        };
        let client = self.client_for(&asked.request.target.authority).ok_or_else(|| {
            asked.misconfigured(
                "entra-insecure-authority",
                "The authority is not https",
                "a JWT-SVID must not travel in clear",
                "set `entra.authority` to an https:// URL; http:// is for an emulator on a loopback \
                 address, with `entra.allow_http_loopback = true`",
            )
        })?;
        let request = form_request(client, &asked)
            .map_err(|e| network::explain(&e, &asked, self.deadlines))?;
        let reply = self.send(client, request, &asked).await?;
        answer::read(&reply, &asked, self.clock.now().unix_seconds())
    }

    async fn send(
        &self,
        client: &Client,
        request: Request,
        asked: &Asked<'_>,
    ) -> Result<Reply, ExchangeError> {
        let failed = |e| network::explain(&e, asked, self.deadlines);
        let mut response = client.execute(request).await.map_err(failed)?;
        let mut body = Zeroizing::new(Vec::with_capacity(expected_size(&response)));
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > BODY_LIMIT {
                return Err(answer::too_large(&response, asked, BODY_LIMIT));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Reply {
            status: response.status(),
            headers: std::mem::take(response.headers_mut()),
            body,
        })
    }

    /// The client for an authority, unless it would send the assertion in clear.
    fn client_for(&self, authority: &Url) -> Option<&Client> {
        match authority.scheme() {
            "https" => Some(&self.client),
            "http" if is_loopback(authority) => self.loopback.as_ref(),
            _ => None,
        }
    }
}

impl TokenExchange for EntraExchange {
    fn exchange<'a>(&'a self, request: ExchangeRequest<'a>) -> Exchange<'a> {
        Box::pin(self.post(request))
    }
}

impl fmt::Debug for EntraExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the clients: a proxy's URL may have a password in it.
        f.debug_struct("EntraExchange")
            .field("deadlines", &self.deadlines)
            .field("loopback", &self.loopback.is_some())
            .finish_non_exhaustive()
    }
}

fn client(deadlines: Deadlines) -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("spiffe-entra/", env!("CARGO_PKG_VERSION")))
        // The token endpoint never redirects; following one would carry the assertion elsewhere.
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(deadlines.connect)
        .timeout(deadlines.total)
        .pool_idle_timeout(POOL_IDLE)
}

/// Adds the configured certificate authorities to the system's, or puts them in their place.
fn trust(builder: ClientBuilder, config: &Settings) -> Result<ClientBuilder, Box<Report>> {
    let Some(path) = &config.ca_file else {
        // Not the system's instead: whoever wants a CA of his own wants no other.
        return if config.ca_only {
            Err(ca_fault(
                "`entra.ca_only` is set, and there is no `entra.ca_file`",
            ))
        } else {
            Ok(builder)
        };
    };
    let fault = |detail: String| ca_fault(format!("{}: {detail}", path.display()));
    let pem = fs::read(path).map_err(|e| fault(e.to_string()))?;
    let certificates =
        Certificate::from_pem_bundle(&pem).map_err(|e| fault(network::root_cause(&e)))?;
    if certificates.is_empty() {
        return Err(fault("there is no certificate in it".into()));
    }
    Ok(if config.ca_only {
        builder.tls_certs_only(certificates)
    } else {
        builder.tls_certs_merge(certificates)
    })
}

fn ca_fault(detail: impl Into<String>) -> Box<Report> {
    Box::new(Report::permanent(
        "entra-ca-file",
        "The CA file cannot be used",
        detail,
        "set `entra.ca_file` to a readable file of one or more CA certificates in PEM",
    ))
}

fn no_client(error: &reqwest::Error) -> Box<Report> {
    Box::new(Report::permanent(
        "entra-no-ca",
        "No certificate authority is trusted",
        network::root_cause(error),
        "install the system's CA certificates (package ca-certificates), or point SSL_CERT_FILE or \
         `entra.ca_file` at a file of them",
    ))
}

fn form_request(client: &Client, asked: &Asked<'_>) -> reqwest::Result<Request> {
    client
        .post(token_endpoint(
            &asked.request.target.authority,
            &asked.request.target.tenant,
        ))
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(REQUEST_ID, asked.request_id)
        .body(form(&asked.request))
        .build()
}

fn token_endpoint(authority: &Url, tenant: &str) -> Url {
    let mut url = authority.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Segment by segment, so that nothing in a tenant's name can become a path of its own.
    if let Ok(mut path) = url.path_segments_mut() {
        path.clear().extend([tenant, "oauth2", "v2.0", "token"]);
    }
    url
}

/// The form, in a buffer that is wiped when the request is over: the assertion is in it.
fn form(request: &ExchangeRequest<'_>) -> Bytes {
    let assertion = request.assertion.token.expose();
    let claims = request.claims.unwrap_or_default();
    // Enough for every byte to be escaped, so that no growing leaves a copy behind.
    let fixed = 512 + 3 * (request.target.client_id.len() + request.scope.as_str().len());
    let buffer = String::with_capacity(fixed + 3 * (assertion.len() + claims.len()));
    let mut form = form_urlencoded::Serializer::new(buffer);
    form.append_pair("client_id", &request.target.client_id)
        .append_pair("scope", request.scope.as_str())
        .append_pair("grant_type", "client_credentials")
        .append_pair("client_assertion_type", ASSERTION_TYPE)
        .append_pair("client_assertion", assertion);
    if let Some(claims) = request.claims {
        form.append_pair("claims", claims);
    }
    Bytes::from_owner(Zeroizing::new(form.finish().into_bytes()))
}

fn expected_size(response: &Response) -> usize {
    let told = response
        .content_length()
        .and_then(|n| usize::try_from(n).ok());
    told.unwrap_or(BODY_LIMIT).min(BODY_LIMIT)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// A version 4 GUID. It names a request; nothing rests on its being hard to guess.
fn random_guid() -> String {
    let [a, b] = [fastrand::u64(..), fastrand::u64(..)];
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xfff,
        b >> 48 & 0x3fff | 0x8000,
        b & 0xffff_ffff_ffff
    )
}

#[cfg(test)]
mod fixture {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::ExchangeRequest;
    use crate::{assertion::Assertion, exchange::Target, id::Scope, secret::Secret, time::Clock};

    /// A request to make, and what it refers to.
    pub(super) struct Fixture {
        pub(super) target: Target,
        pub(super) scope: Scope,
        pub(super) assertion: Assertion,
    }

    impl Fixture {
        pub(super) const CLIENT: &'static str = "0f8fad5b-d9cb-469f-a165-70867728950e";

        pub(super) fn new(authority: &str) -> Self {
            let encode = |json: &str| URL_SAFE_NO_PAD.encode(json);
            let token = format!(
                "{}.{}.{}",
                encode(r#"{"alg":"RS256","kid":"k1"}"#),
                encode(
                    r#"{"sub":"spiffe://example.org/payments","aud":["api://AzureADTokenExchange"]}"#
                ),
                encode("the signature of a JWT-SVID, which is long")
            );
            let now = Clock::system().now();
            Self {
                target: Target {
                    authority: authority.parse().unwrap(),
                    tenant: "contoso.com".into(),
                    client_id: Self::CLIENT.into(),
                },
                scope: Scope::from_resource("https://vault.azure.net").unwrap(),
                assertion: Assertion {
                    token: Secret::new(token),
                    issuer: "https://oidc.example.org".into(),
                    key_id: "k1".into(),
                    algorithm: "RS256".into(),
                    issued_at: None,
                    expires_at: now.unix_seconds() + 300,
                    fetched: now,
                },
            }
        }

        pub(super) fn request(&self) -> ExchangeRequest<'_> {
            ExchangeRequest {
                target: &self.target,
                scope: &self.scope,
                claims: None,
                assertion: &self.assertion,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{fixture::Fixture, *};
    use std::path::Path;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    const TOKEN: &str = r#"{"token_type":"Bearer","expires_in":3599,"access_token":"opaque"}"#;

    /// Trusts one private CA, so that the tests need no CA store, and talks to loopback in clear.
    fn config(folder: &Path) -> Settings {
        let ca_file = folder.join("ca.pem");
        lab::Ca::new().unwrap().write(&ca_file).unwrap();
        Settings {
            ca_file: Some(ca_file),
            ca_only: true,
            proxy: None,
            allow_http_loopback: true,
        }
    }

    fn entra(deadlines: Deadlines) -> EntraExchange {
        let folder = tempfile::tempdir().unwrap();
        EntraExchange::with_deadlines(&config(folder.path()), Clock::system(), deadlines).unwrap()
    }

    /// Reads one request and returns it.
    async fn request_on(stream: &mut TcpStream) -> String {
        let mut request = Vec::new();
        loop {
            stream.read_buf(&mut request).await.unwrap();
            let text = String::from_utf8_lossy(&request);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|l| l.strip_prefix("content-length: "));
                if body.len() >= length.map_or(0, |l| l.parse().unwrap()) {
                    return text.into_owned();
                }
            }
        }
    }

    /// What becomes of a request that is answered with these bytes and then, if `hang_up`, with the
    /// end of the connection. The second is the request.
    async fn answered(bytes: &[u8], hang_up: bool) -> (Result<IssuedToken, ExchangeError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fixture = Fixture::new(&format!("http://{}", listener.local_addr().unwrap()));
        let entra = entra(Deadlines {
            total: Duration::from_millis(if hang_up { 10_000 } else { 300 }),
            ..Deadlines::default()
        });
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = request_on(&mut stream).await;
            stream.write_all(bytes).await.unwrap();
            (request, (!hang_up).then_some(stream))
        };
        let (result, (request, _open)) = tokio::join!(entra.exchange(fixture.request()), server);
        (result, request)
    }

    fn ok(body: &str) -> Vec<u8> {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    async fn code(bytes: &[u8], hang_up: bool) -> String {
        let error = answered(bytes, hang_up).await.0.unwrap_err();
        let shown = format!("{error:?}");
        let fixture = Fixture::new("https://x");
        let assertion = fixture.assertion.token.expose();
        assert!(
            assertion.split('.').all(|part| !shown.contains(part)),
            "{shown}"
        );
        assert!(!shown.contains("contoso.com/"), "no path: {shown}");
        assert!(error.report.correlation_id.is_some());
        error.report.code.to_string()
    }

    #[tokio::test]
    async fn the_request_is_the_five_fields_and_nothing_else() {
        let (token, request) = answered(&ok(TOKEN), true).await;
        let token = token.unwrap();
        assert_eq!(token.access_token.expose(), "opaque");
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("POST /contoso.com/oauth2/v2.0/token HTTP/1.1\r\n"),
            "{head}"
        );
        let header = |name: &str| {
            let line = head
                .lines()
                .find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
            line.unwrap_or_default().to_owned()
        };
        assert_eq!(header("accept"), "application/json");
        assert_eq!(header("content-type"), "application/x-www-form-urlencoded");
        assert!(header("user-agent").starts_with("spiffe-entra/"));
        let id = header("client-request-id");
        assert_eq!(crate::id::parse_guid(&id).as_ref(), Some(&id));
        assert_eq!(token.correlation_id.as_deref(), Some(&*id));
        let fields: Vec<_> = form_urlencoded::parse(body.as_bytes())
            .into_owned()
            .collect();
        let fixture = Fixture::new("https://x");
        let expected = [
            ("client_id", Fixture::CLIENT),
            ("scope", "https://vault.azure.net/.default"),
            ("grant_type", "client_credentials"),
            ("client_assertion_type", ASSERTION_TYPE),
            ("client_assertion", fixture.assertion.token.expose()),
        ];
        assert_eq!(fields, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn claims_are_sent_when_given_and_the_buffer_never_grows() {
        let fixture = Fixture::new("https://x");
        let claims = r#"{"access_token":{"nbf":{"essential":true,"value":"1"}}}"#;
        let mut request = fixture.request();
        request.claims = Some(claims);
        let body = form(&request);
        let fields: Vec<_> = form_urlencoded::parse(&body).into_owned().collect();
        assert_eq!(fields[5], ("claims".to_owned(), claims.to_owned()));
        let escaped = "/".repeat(900);
        request.claims = Some(&escaped);
        assert_eq!(
            form(&request).len(),
            body.len() - form_len(claims) + form_len(&escaped)
        );
    }

    fn form_len(value: &str) -> usize {
        form_urlencoded::byte_serialize(value.as_bytes())
            .map(str::len)
            .sum()
    }

    #[test]
    fn a_tenant_is_one_segment_whatever_is_in_it() {
        let authority = "https://login.microsoftonline.us/".parse().unwrap();
        let url = |tenant| token_endpoint(&authority, tenant).to_string();
        assert_eq!(
            url("t"),
            "https://login.microsoftonline.us/t/oauth2/v2.0/token"
        );
        assert_eq!(
            url("a/../b?c#d"),
            "https://login.microsoftonline.us/a%2F..%2Fb%3Fc%23d/oauth2/v2.0/token"
        );
    }

    #[tokio::test]
    async fn broken_answers_have_a_code_each() {
        assert_eq!(code(b"", true).await, "entra-connection-lost");
        assert_eq!(code(b"HTTP/1.1 20", true).await, "entra-connection-lost");
        assert_eq!(
            code(b"SSH-2.0-OpenSSH_9.2\r\n", true).await,
            "entra-connection-lost"
        );
        let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"token_type\"";
        assert_eq!(code(cut, true).await, "entra-connection-lost");
        let half = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc";
        assert_eq!(code(half, true).await, "entra-connection-lost");
        assert_eq!(code(&ok(""), true).await, "entra-bad-answer");
        assert_eq!(
            code(&ok("<html></html>"), true).await,
            "entra-captive-portal"
        );
        let moved =
            b"HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:1/x\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(code(moved, true).await, "entra-redirect");
    }

    #[tokio::test]
    async fn slow_answers_meet_the_deadline() {
        assert_eq!(code(b"", false).await, "entra-timeout");
        let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"token_type\"";
        assert_eq!(code(cut, false).await, "entra-timeout");
    }

    #[tokio::test]
    async fn huge_answers_are_given_up() {
        let huge = "x".repeat(BODY_LIMIT + 1);
        assert_eq!(code(&ok(&huge), true).await, "entra-too-large");
        let endless = format!("HTTP/1.1 400 Bad\r\n\r\n{huge}");
        assert_eq!(code(endless.as_bytes(), true).await, "entra-too-large");
        let pad = " ".repeat(BODY_LIMIT - TOKEN.len());
        assert!(
            answered(&ok(&format!("{TOKEN}{pad}")), true)
                .await
                .0
                .is_ok()
        );
    }

    #[tokio::test]
    async fn nobody_there_is_told_from_no_tls() {
        let entra = entra(Deadlines::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let fail = async |authority: String| {
            let fixture = Fixture::new(&authority);
            let error = entra.exchange(fixture.request()).await.unwrap_err();
            assert_eq!(error.class.as_str(), "transient");
            assert!(
                error.report.detail.starts_with(&authority),
                "{}",
                error.report.detail
            );
            error.report.code.to_string()
        };
        let plain = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
            stream.read_to_end(&mut Vec::new()).await.ok();
        };
        let (code, ()) = tokio::join!(fail(format!("https://{address}")), plain);
        assert_eq!(code, "entra-tls");
        drop(listener);
        assert_eq!(fail(format!("https://{address}")).await, "entra-connect");
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_resolved_is_told() {
        /// A name server that knows nothing, whatever network the tests run in.
        struct Nothing;
        impl reqwest::dns::Resolve for Nothing {
            fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
                Box::pin(async { Err("Name or service not known".into()) })
            }
        }
        let deadlines = Deadlines::default();
        let client = client(deadlines)
            .no_proxy()
            .tls_certs_only([])
            .dns_resolver(Nothing)
            .build();
        let entra = EntraExchange {
            client: client.unwrap(),
            loopback: None,
            deadlines,
            clock: Clock::system(),
        };
        let fixture = Fixture::new("https://login.example");
        let report = entra.exchange(fixture.request()).await.unwrap_err().report;
        assert_eq!(report.code, "entra-dns");
        assert_eq!(
            report.detail,
            "https://login.example: Name or service not known"
        );
    }

    #[tokio::test]
    async fn an_assertion_never_travels_in_clear() {
        let folder = tempfile::tempdir().unwrap();
        let strict = Settings {
            allow_http_loopback: false,
            ..config(folder.path())
        };
        let strict = EntraExchange::new(&strict, Clock::system()).unwrap();
        for (entra, authority) in [
            (&strict, "http://127.0.0.1:1"),
            (
                &entra(Deadlines::default()),
                "http://login.microsoftonline.com",
            ),
            (&entra(Deadlines::default()), "http://10.0.0.1"),
            (&entra(Deadlines::default()), "ftp://localhost"),
        ] {
            let fixture = Fixture::new(authority);
            let error = entra.exchange(fixture.request()).await.unwrap_err();
            assert_eq!(error.report.code, "entra-insecure-authority", "{authority}");
            assert_eq!(error.class.as_str(), "misconfigured");
        }
    }

    #[tokio::test]
    async fn a_proxy_is_used_and_its_refusal_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        let proxy = format!("http://user:pass-word@{}", listener.local_addr().unwrap());
        config.proxy = Some(proxy.parse().unwrap());
        let entra = EntraExchange::new(&config, Clock::system()).unwrap();
        assert!(!format!("{entra:?}").contains("pass-word"));
        let fixture = Fixture::new("https://login.microsoftonline.com");
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = request_on(&mut stream).await;
            let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            request
        };
        let (result, request) = tokio::join!(entra.exchange(fixture.request()), server);
        assert!(
            request.starts_with("CONNECT login.microsoftonline.com:443"),
            "{request}"
        );
        let error = result.unwrap_err();
        assert_eq!(error.report.code, "entra-proxy");
        assert!(!format!("{error:?}").contains("pass-word"));
    }

    #[test]
    fn ca_files_are_checked_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let good = config(folder.path());
        let code = |config: &Settings| {
            let report = EntraExchange::new(config, Clock::system())
                .map(|_| ())
                .unwrap_err();
            assert!(report.fix.contains("entra.ca_file"), "{}", report.fix);
            report.code.to_string()
        };
        let mut missing = good.clone();
        missing.ca_file = Some(folder.path().join("none.pem"));
        assert_eq!(code(&missing), "entra-ca-file");
        let mut bad = good.clone();
        let path = folder.path().join("bad.pem");
        bad.ca_file = Some(path.clone());
        let pem =
            |body| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        for text in [
            "no certificate\n",
            &pem("bm8gY2VydGlmaWNhdGU="),
            &pem("!!!"),
        ] {
            fs::write(&path, text).unwrap();
            for ca_only in [true, false] {
                bad.ca_only = ca_only;
                assert_eq!(code(&bad), "entra-ca-file", "{text}");
            }
        }
        let mut none = good;
        none.ca_file = None;
        assert_eq!(code(&none), "entra-ca-file");
    }

    #[test]
    fn without_a_ca_store_the_cure_is_told() {
        const CHILD: &str = "SPIFFE_ENTRA_TEST_WITHOUT_CA_STORE";
        let config = Settings {
            ca_file: None,
            ca_only: false,
            proxy: None,
            allow_http_loopback: true,
        };
        if std::env::var_os(CHILD).is_some() {
            let report = EntraExchange::new(&config, Clock::system()).unwrap_err();
            assert_eq!(report.code, "entra-no-ca");
            assert!(report.fix.contains("ca-certificates") && report.fix.contains("SSL_CERT_FILE"));
            return;
        }
        // The store is found by environment variables, which a test must not set beside others.
        let name = "exchange::entra::tests::without_a_ca_store_the_cure_is_told";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env("SSL_CERT_FILE", "/nonexistent")
            .env("SSL_CERT_DIR", "/nonexistent")
            .env(CHILD, "1")
            .output()
            .unwrap();
        let shown = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success() && shown.contains("1 passed"),
            "{shown}"
        );
    }

    #[test]
    fn request_ids_are_guids_and_differ() {
        let [a, b] = [random_guid(), random_guid()];
        assert_ne!(a, b);
        for id in [a, b] {
            assert_eq!(crate::id::parse_guid(&id).as_ref(), Some(&id));
            assert_eq!(id.as_bytes()[14], b'4');
            assert!(b"89ab".contains(&id.as_bytes()[19]), "{id}");
        }
    }
}
