//! Parsed names: a value of one of these types is well formed.

use std::{fmt, sync::Arc};

/// A SPIFFE ID that can be the subject of a federated identity credential.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<str>);

/// Entra's limit for `subject` (and `issuer`, and an audience) of a federated identity credential.
pub const CREDENTIAL_FIELD_LIMIT: usize = 600;

impl SpiffeId {
    /// Parses by the SPIFFE-ID standard, section 2, and Entra's length limit.
    pub fn parse(text: &str) -> Result<Self, String> {
        let id = spiffe::SpiffeId::new(text)
            .map_err(|e| format!("`{text}` is no SPIFFE ID (spiffe://trust-domain/path): {e}"))?;
        if id.path().is_empty() {
            return Err(format!(
                "`{text}` names a trust domain, not a workload: add the path of the registration entry"
            ));
        }
        // The credential's subject is compared byte for byte: what the standard would only
        // normalise (an upper-case trust domain) could never match.
        let canonical = id.to_string();
        if canonical != text {
            return Err(format!(
                "`{text}` is not in canonical form: write `{canonical}`, as SPIRE puts it into `sub`"
            ));
        }
        if text.len() > CREDENTIAL_FIELD_LIMIT {
            return Err(format!(
                "the SPIFFE ID has {} characters, and the subject of a federated identity credential \
                 holds {CREDENTIAL_FIELD_LIMIT}: register a shorter one",
                text.len()
            ));
        }
        Ok(Self(text.into()))
    }

    /// The ID as it stands in `sub`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Parses a GUID (client id, object id, tenant id) into its lower-case form.
pub fn parse_guid(text: &str) -> Option<String> {
    let groups = [8, 4, 4, 4, 12];
    let mut parts = text.split('-');
    let well_formed = groups.iter().all(|len| {
        parts
            .next()
            .is_some_and(|p| p.len() == *len && p.bytes().all(|b| b.is_ascii_hexdigit()))
    });
    (well_formed && parts.next().is_none()).then(|| text.to_ascii_lowercase())
}

/// What a token is for: one resource, as the scope Entra is asked for (`{resource}/.default`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(Arc<str>);

const DEFAULT_SUFFIX: &str = "/.default";
const SCOPE_LIMIT: usize = 2048;
/// What people write between scopes.
const SEPARATORS: [char; 3] = [' ', '+', ','];

impl Scope {
    /// From the `resource` parameter. `/.default` is appended to what was asked, so that
    /// `https://database.windows.net/` keeps its slash (and the scope has two).
    pub fn from_resource(resource: &str) -> Result<Self, String> {
        let resource = resource.strip_suffix(DEFAULT_SUFFIX).unwrap_or(resource);
        Self::checked(resource)
    }

    /// From the `scope` parameter, which must name one resource and end in `/.default`.
    pub fn from_scope(scope: &str) -> Result<Self, String> {
        // First, for each of several scopes has its own end.
        if scope.contains(SEPARATORS) {
            return Err("`scope` takes one resource and `/.default`, such as \
                 https://vault.azure.net/.default: ask once for each resource, and for nothing else"
                .into());
        }
        let Some(resource) = scope.strip_suffix(DEFAULT_SUFFIX) else {
            return Err(format!(
                "the scope must end in `/.default` (client credentials have no other): ask for \
                 `scope={scope}/.default` or `resource={scope}`"
            ));
        };
        Self::checked(resource)
    }

    fn checked(resource: &str) -> Result<Self, String> {
        if resource.trim_matches('/').is_empty() {
            return Err("the resource is empty: name one, such as https://vault.azure.net".into());
        }
        if resource.contains(SEPARATORS) {
            return Err("one token is for one resource: ask once for each".into());
        }
        if resource.len() + DEFAULT_SUFFIX.len() > SCOPE_LIMIT {
            return Err(format!(
                "the resource is longer than {SCOPE_LIMIT} characters"
            ));
        }
        if !resource.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("the resource has characters that no resource URI has".into());
        }
        Ok(Self(format!("{resource}{DEFAULT_SUFFIX}").into()))
    }

    /// The scope as it is sent to Entra.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The resource as it was asked for.
    pub fn resource(&self) -> &str {
        self.0.strip_suffix(DEFAULT_SUFFIX).unwrap_or(&self.0)
    }

    /// The resource as policy compares it: without one trailing slash.
    pub fn policy_resource(&self) -> &str {
        let resource = self.resource();
        resource.strip_suffix('/').unwrap_or(resource)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spiffe_ids_are_canonical_workloads_of_at_most_600_characters() {
        let id = SpiffeId::parse("spiffe://example.org/ns/demo/sa/demo").unwrap();
        assert_eq!(id.as_str(), "spiffe://example.org/ns/demo/sa/demo");
        for (bad, says) in [
            ("https://example.org/x", "no SPIFFE ID"),
            ("spiffe://example.org", "names a trust domain"),
            ("spiffe://Example.org/x", "canonical"),
            ("spiffe://example.org/x/", "no SPIFFE ID"),
            ("spiffe://example.org/a%20b", "no SPIFFE ID"),
            (" spiffe://example.org/x", "no SPIFFE ID"),
        ] {
            let error = SpiffeId::parse(bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
        let long = format!("spiffe://example.org/{}", "a".repeat(580));
        assert!(
            SpiffeId::parse(&long)
                .unwrap_err()
                .contains("601 characters")
        );
        assert!(SpiffeId::parse(&long[..600]).is_ok());
    }

    #[test]
    fn guids_are_checked_and_lowered() {
        assert_eq!(
            parse_guid("0F8FAD5B-d9cb-469f-a165-70867728950e").as_deref(),
            Some("0f8fad5b-d9cb-469f-a165-70867728950e")
        );
        for bad in [
            "",
            "0f8fad5b",
            "0f8fad5b-d9cb-469f-a165-70867728950",
            "payments",
            "0f8fad5b-d9cb-469f-a165-70867728950e-",
            "0g8fad5b-d9cb-469f-a165-70867728950e",
        ] {
            assert_eq!(parse_guid(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_scope_is_what_was_asked_and_policy_forgives_one_slash() {
        let scope = Scope::from_resource("https://database.windows.net/").unwrap();
        assert_eq!(scope.as_str(), "https://database.windows.net//.default");
        assert_eq!(scope.resource(), "https://database.windows.net/");
        assert_eq!(scope.policy_resource(), "https://database.windows.net");
        assert_eq!(
            Scope::from_scope("https://database.windows.net//.default").unwrap(),
            scope
        );
        assert_eq!(
            Scope::from_resource("https://database.windows.net//.default").unwrap(),
            scope
        );
        for fine in ["api://orders", "499b84ac-1321-427f-aa17-267ca6975798"] {
            assert_eq!(Scope::from_resource(fine).unwrap().resource(), fine);
        }
    }

    #[test]
    fn a_scope_is_one_resource_with_default() {
        assert!(
            Scope::from_scope("https://graph.microsoft.com/User.Read")
                .unwrap_err()
                .contains("/.default")
        );
        assert!(
            Scope::from_resource("https://a https://b")
                .unwrap_err()
                .contains("one resource")
        );
        for several in ["openid profile", "https://a/.default https://b/.default"] {
            let error = Scope::from_scope(several).unwrap_err();
            assert!(error.contains("ask once for each"), "{error}");
            assert!(!error.contains("scope=openid"), "{error}");
        }
        for bad in ["", "/", "/.default", "a\nb", "ü"] {
            assert!(Scope::from_resource(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parsers_take_anything(text in ".{0,80}") {
            let _ = (SpiffeId::parse(&text), parse_guid(&text));
            if let Ok(scope) = Scope::from_resource(&text) {
                prop_assert_eq!(Scope::from_scope(scope.as_str()).unwrap(), scope);
            }
        }
    }
}
