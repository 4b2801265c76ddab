//! Parsers of URLs and of what a federated identity credential holds. Pure.

use std::sync::Arc;

use url::Url;

use super::diagnostics::Fault;
use crate::id::CREDENTIAL_FIELD_LIMIT;

/// An `https://host[:port]` and nothing else. `http` to this machine where that is allowed.
pub(super) fn origin(text: &str, allow_http_loopback: bool) -> Result<Url, Fault> {
    let fault = |message: &str| Fault::new(message, "write https://HOST or https://HOST:PORT");
    let url = Url::parse(text).map_err(|error| fault(&format!("this is no URL ({error})")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(fault("a user and a password have no place in this URL"));
    }
    if url.host().is_none() {
        return Err(fault("the URL has no host"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(fault(
            "the URL must end after the host: paths are added by the program",
        ));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if !is_loopback(&url) => Err(Fault::new(
            "http would send secrets in the clear",
            "write https://",
        )),
        "http" if allow_http_loopback => Ok(url),
        "http" => Err(Fault::new(
            "http is for tests on one machine only",
            "write https://, or set `allow_http_loopback = true` in [entra]",
        )),
        _ => Err(fault("the URL must begin with https://")),
    }
}

/// Whether the URL's host is this machine whatever a resolver says, or `localhost`.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// An issuer, kept as it was written: Entra compares it byte for byte.
pub(super) fn issuer(text: &str, allow_http_loopback: bool) -> Result<Arc<str>, Fault> {
    let fix = "write the `jwt_issuer` of the SPIRE server, byte for byte";
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Fault::new("an issuer has no blanks", fix));
    }
    credential_field(text, "issuer")?;
    let url = Url::parse(text)
        .map_err(|error| Fault::new(format!("the issuer is no URL ({error})"), fix))?;
    let http = url.scheme() == "http" && allow_http_loopback && is_loopback(&url);
    if url.scheme() != "https" && !http {
        return Err(Fault::new(
            "Entra trusts an issuer with https:// only: it fetches the keys from there",
            fix,
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Fault::new("an issuer has no user and password", fix));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Fault::new("an issuer has no query and no fragment", fix));
    }
    Ok(text.into())
}

/// An audience, kept as it was written.
pub(super) fn audience(text: &str) -> Result<Arc<str>, Fault> {
    let fix = "write the one audience of the federated identity credential";
    if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Fault::new(
            "an audience is not empty and has no blanks",
            fix,
        ));
    }
    credential_field(text, "audience")?;
    Ok(text.into())
}

fn credential_field(text: &str, field: &str) -> Result<(), Fault> {
    let length = text.chars().count();
    if length > CREDENTIAL_FIELD_LIMIT {
        return Err(Fault::new(
            format!(
                "the {field} has {length} characters, and that of a federated identity credential \
                 holds {CREDENTIAL_FIELD_LIMIT}"
            ),
            "choose a shorter one",
        ));
    }
    Ok(())
}

/// A proxy. What is wrong with it is said without quoting it: it may hold a password.
pub(super) fn proxy(text: &str) -> Result<Url, Fault> {
    let fix = "write http://HOST:PORT or https://HOST:PORT";
    let url =
        Url::parse(text).map_err(|error| Fault::new(format!("this is no URL ({error})"), fix))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(Fault::new("a proxy is reached over http or https", fix));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(Fault::new(
            "a proxy's URL ends after the host and port",
            fix,
        ));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn says<T: std::fmt::Debug>(result: Result<T, Fault>, part: &str) {
        let fault = result.unwrap_err();
        let all = format!("{}: {}", fault.message, fault.fix);
        assert!(all.contains(part), "{part:?} is not in {all:?}");
    }

    #[test]
    fn an_authority_is_https_and_nothing_but_a_host() {
        assert_eq!(
            origin("https://login.microsoftonline.com/", false)
                .unwrap()
                .as_str(),
            "https://login.microsoftonline.com/"
        );
        assert!(origin("https://localhost:8443", false).is_ok());
        for (text, part) in [
            ("login.microsoftonline.com", "no URL"),
            ("https://h/tenant", "end after the host"),
            ("https://h?x", "end after the host"),
            ("https://h#x", "end after the host"),
            ("https://u:secret@h", "no place"),
            ("ftp://h", "https://"),
            ("http://example.org", "in the clear"),
            ("http://127.0.0.1:80", "allow_http_loopback"),
        ] {
            says(origin(text, false), part);
        }
        for text in ["http://127.0.0.1:80", "http://localhost", "http://[::1]:80"] {
            assert!(origin(text, true).is_ok(), "{text}");
        }
        for text in [
            "http://example.org",
            "http://localhost.example.org",
            "http://10.0.0.1",
        ] {
            says(origin(text, true), "in the clear");
        }
        let fault = origin("https://u:secret@h", false).unwrap_err();
        assert!(!format!("{fault:?}").contains("secret"));
    }

    #[test]
    fn an_issuer_is_https_and_kept_verbatim() {
        for text in [
            "https://OIDC.example.org",
            "https://oidc.example.org/",
            "https://h/a%7e",
        ] {
            assert_eq!(&*issuer(text, false).unwrap(), text);
        }
        for (text, part) in [
            (" https://h", "no blanks"),
            ("https://h\n", "no blanks"),
            ("http://h", "https://"),
            ("http://127.0.0.1:1", "https://"),
            ("oidc.example.org", "no URL"),
            ("https://h?x", "no query"),
            ("https://h#x", "no query"),
            ("https://u:p@h", "no user"),
        ] {
            says(issuer(text, false), part);
        }
        assert!(issuer("http://127.0.0.1:1", true).is_ok());
        says(issuer("http://h", true), "https://");
        let long = format!("https://h/{}", "a".repeat(591));
        says(issuer(&long, false), "601 characters");
        assert!(issuer(&long[..600], false).is_ok());
    }

    #[test]
    fn an_audience_has_at_most_600_characters() {
        assert!(audience("api://AzureADTokenExchange").is_ok());
        says(audience(""), "not empty");
        says(audience("a b"), "no blanks");
        says(audience(&"a".repeat(601)), "601 characters");
    }

    #[test]
    fn a_proxys_password_is_never_quoted() {
        let url = proxy("http://u:hunter2@proxy:8080").unwrap();
        assert_eq!(url.password(), Some("hunter2"));
        for bad in [
            "socks5://u:hunter2@h:1",
            "http://u:hunter2@h/path",
            "http://u:hunter2/x@h",
            "u:hunter2@h",
        ] {
            let fault = proxy(bad).unwrap_err();
            assert!(!format!("{fault:?}").contains("hunter2"), "{fault:?}");
        }
    }

    proptest! {
        #[test]
        fn parsers_take_anything(text in "(https?:|ftp:)?/{0,3}.{0,40}") {
            let _ = (origin(&text, true), issuer(&text, true), proxy(&text), audience(&text));
        }
    }
}
