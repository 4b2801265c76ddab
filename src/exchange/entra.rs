//! One POST to Entra's token endpoint: a JWT-SVID in, an access token out.
//!
//! Five form fields (RFC 7523, section 2.2; Entra's "access token request with a federated
//! credential"), no discovery, no redirects, one client for the process. What comes back is bounded
//! and read by [`answer`]; what does not come back is explained by [`network`].

mod answer;
mod network;
mod text;

use std::{fmt, fs, time::Duration};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use reqwest::{Certificate, Client, ClientBuilder, Proxy, Request, Response, redirect};
use url::{Host, Url, form_urlencoded};
use zeroize::Zeroizing;

use self::answer::{Asked, Reply};
use super::{Exchange, ExchangeError, ExchangeRequest, IssuedToken, TokenExchange};
use crate::{config, report::Report, time::Clock};

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
    pub fn new(config: &config::Entra, clock: Clock) -> Result<Self, Report> {
        Self::with_deadlines(config, clock, Deadlines::default())
    }

    /// The same with other [`Deadlines`].
    pub fn with_deadlines(
        config: &config::Entra,
        clock: Clock,
        deadlines: Deadlines,
    ) -> Result<Self, Report> {
        let mut builder = trust(client(deadlines).https_only(true), config)?;
        if let Some(url) = &config.proxy {
            let proxy = Proxy::all(url.clone()).map_err(|e| {
                Report::permanent(
                    "entra-proxy",
                    "The proxy cannot be used",
                    network::root_cause(&e),
                    "correct `entra.proxy`: http://host:port or https://host:port",
                )
            })?;
            builder = builder.proxy(proxy);
        }
        let loopback = config
            .allow_http_loopback
            .then(|| client(deadlines).no_proxy().tls_certs_only([]).build())
            .transpose()
            .map_err(|e| no_client(&e))?;
        Ok(Self {
            client: builder.build().map_err(|e| no_client(&e))?,
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
fn trust(builder: ClientBuilder, config: &config::Entra) -> Result<ClientBuilder, Report> {
    let Some(path) = &config.ca_file else {
        return Ok(builder);
    };
    let fault = |detail: String| {
        Report::permanent(
            "entra-ca-file",
            "The CA file cannot be used",
            format!("{}: {detail}", path.display()),
            "set `entra.ca_file` to a readable file of one or more CA certificates in PEM",
        )
    };
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

fn no_client(error: &reqwest::Error) -> Report {
    Report::permanent(
        "entra-no-ca",
        "No certificate authority is trusted",
        network::root_cause(error),
        "install the system's CA certificates (package ca-certificates), or point SSL_CERT_FILE or \
         `entra.ca_file` at a file of them",
    )
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
