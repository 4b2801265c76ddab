//! Why there was no answer: one stable code for each layer that can fail, from the name to the last
//! byte. All of it may pass by itself.

use std::{error::Error as StdError, io};

use super::{Deadlines, asked::Asked, text};
use crate::exchange::ExchangeError;

/// Says which layer failed, and what to look at.
pub(super) fn explain(
    error: &reqwest::Error,
    asked: &Asked<'_>,
    deadlines: Deadlines,
) -> ExchangeError {
    let place = asked.place();
    let cause = text::clean(&root_cause(error), asked.assertion());
    let detail = format!("{place}: {cause}");
    if error.is_timeout() {
        let detail = if error.is_connect() {
            format!("{place}: no connection within {:?}", deadlines.connect)
        } else {
            format!("{place}: no complete answer within {:?}", deadlines.total)
        };
        return asked.transient(
            "entra-timeout",
            "Entra did not answer in time",
            detail,
            "see whether a firewall swallows the packets, and whether a proxy is needed (`entra.proxy`, \
             HTTPS_PROXY)",
        );
    }
    if error.is_dns() {
        return asked.transient(
            "entra-dns",
            "The name of Entra's host cannot be resolved",
            detail,
            "check this machine's (or container's) DNS; `entra.cloud` or `entra.authority` says the \
             name; behind a proxy set `entra.proxy` or HTTPS_PROXY, and it resolves the name",
        );
    }
    if !error.is_connect() {
        return asked.transient(
            "entra-connection-lost",
            "The connection to Entra broke",
            detail,
            "nothing, if it is rare: it is tried again. Otherwise look at proxies and firewalls on the \
             way, which cut connections",
        );
    }
    if cause.contains("tunnel") {
        return asked.transient(
            "entra-proxy",
            "The proxy does not let the request through",
            detail,
            "check the proxy that `entra.proxy` or HTTPS_PROXY names: its address, its user and password, \
             and whether it allows CONNECT to this host",
        );
    }
    if let Some(fix) = tls_fix(error, &cause) {
        return asked.transient(
            "entra-tls",
            "Entra's certificate was not accepted",
            detail,
            fix,
        );
    }
    asked.transient(
        "entra-connect",
        "No connection to Entra",
        detail,
        "check the network, the firewall and the proxy (`entra.proxy`, HTTPS_PROXY) on the way to this \
         host; `entra.cloud` or `entra.authority` says which it is",
    )
}

/// The innermost error's text. The outer ones say only "error sending request", and the URL.
pub(super) fn root_cause(error: Link<'_>) -> String {
    chain(error)
        .last()
        .map(ToString::to_string)
        .unwrap_or_default()
}

type Link<'a> = &'a (dyn StdError + 'static);

fn chain(error: Link<'_>) -> impl Iterator<Item = Link<'_>> {
    std::iter::successors(Some(error), |e| -> Option<Link<'_>> { (*e).source() })
}

/// Advice, if it was TLS that failed. rustls says so through an [`io::Error`] without an error
/// number: of kind `InvalidData`, or `UnexpectedEof` when the peer hung up on the handshake.
fn tls_fix(error: &reqwest::Error, cause: &str) -> Option<&'static str> {
    let of_tls = |e: &io::Error| {
        e.raw_os_error().is_none()
            && matches!(
                innermost(e).kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            )
    };
    if !chain(error).filter_map(|e| e.downcast_ref()).any(of_tls) {
        return None;
    }
    Some(tls_advice(cause))
}

/// By the words of rustls, which has no other way to say it through an HTTP client.
fn tls_advice(cause: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|w| cause.contains(w));
    if has(&["UnknownIssuer", "BadSignature", "CaUsedAsEndEntity"]) {
        "no trusted CA signed the certificate (`BadSignature`: a CA of the same name has another key). If a proxy opens TLS on the way, or the authority is a \
         private one, set `entra.ca_file` to its CA; otherwise update the system's CA certificates"
    } else if has(&["expired", "Expired", "not valid yet", "NotValidYet"]) {
        "the certificate is out of date, or this machine's clock is wrong: compare the clock with the \
         real time; if it is right, whoever runs the host must renew the certificate"
    } else if has(&["not valid for name", "NotValidForName"]) {
        "something else answers under this name: a captive portal, a wrong DNS answer, or a mistake in \
         `entra.authority`"
    } else {
        "the host does not speak TLS as it should: check `entra.authority` and its port, and whether a \
         proxy or firewall interferes"
    }
}

/// An [`io::Error`] wrapped in another is no link of the chain: the source of the outer one is that
/// of the inner one.
fn innermost(mut error: &io::Error) -> &io::Error {
    while let Some(inner) = error.get_ref().and_then(|e| e.downcast_ref()) {
        error = inner;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_goes_by_what_is_wrong_with_the_certificate() {
        for (cause, advice) in [
            ("invalid peer certificate: UnknownIssuer", "entra.ca_file"),
            (
                "invalid peer certificate: certificate expired: verification time 2",
                "clock",
            ),
            (
                "invalid peer certificate: certificate not valid yet: verification",
                "clock",
            ),
            (
                "invalid peer certificate: certificate not valid for name \"a\"",
                "captive portal",
            ),
            (
                "received corrupt message of type InvalidContentType",
                "does not speak TLS",
            ),
            ("tls handshake eof", "does not speak TLS"),
        ] {
            assert!(
                tls_advice(cause).contains(advice),
                "{cause}: {}",
                tls_advice(cause)
            );
        }
    }

    #[test]
    fn nested_io_errors_are_unwrapped() {
        let inner = io::Error::new(io::ErrorKind::InvalidData, "bad");
        let outer = io::Error::other(io::Error::other(inner));
        assert_eq!(innermost(&outer).kind(), io::ErrorKind::InvalidData);
        let plain = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(innermost(&plain).kind(), io::ErrorKind::NotFound);
    }
}
