//! Parsers of single values: text in, a value that needs no further check out. Pure.

use std::{
    net::SocketAddr,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{Endpoint, diagnostics::Fault};
use crate::id::{Scope, SpiffeId, parse_guid};

/// A name of an identity: what stands in URLs, labels and file names unharmed.
pub(super) fn identity_name(text: &str) -> Result<String, Fault> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let first = text
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphanumeric());
    if !first || !text.chars().all(fits) || text.len() > NAME_LIMIT {
        return Err(Fault::new(
            "this is no name of an identity",
            format!(
                "use 1 to {NAME_LIMIT} letters, digits, `.`, `_` and `-`, a letter or digit first"
            ),
        ));
    }
    if parse_guid(text).is_some() {
        return Err(Fault::new(
            "a name that looks like a client id could be taken for one",
            "choose a word; callers may name the identity by its client id anyway",
        ));
    }
    Ok(text.to_owned())
}

pub(super) fn spiffe_id(text: &str) -> Result<SpiffeId, Fault> {
    Ok(SpiffeId::parse(text)?)
}

/// A GUID in lower case.
pub(super) fn guid(text: &str) -> Result<String, Fault> {
    parse_guid(text).ok_or_else(|| {
        Fault::new(
            format!("`{text}` is no GUID"),
            "copy it from the Azure portal: 8-4-4-4-12 hexadecimal digits",
        )
    })
}

/// A tenant: a GUID or a verified domain, in lower case.
pub(super) fn tenant(text: &str) -> Result<Arc<str>, Fault> {
    if let Some(guid) = parse_guid(text) {
        return Ok(guid.into());
    }
    if ["common", "organizations", "consumers"].contains(&text) {
        return Err(Fault::new(
            format!("`{text}` is no tenant: an application has a token from its own only"),
            "write the tenant's GUID or one of its verified domains",
        ));
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > 253 || !text.contains('.') || !text.split('.').all(label) {
        return Err(Fault::new(
            format!("`{text}` is neither a GUID nor a domain"),
            "write the tenant's GUID or one of its verified domains, such as contoso.com",
        ));
    }
    Ok(text.to_ascii_lowercase().into())
}

/// The resource id of a user-assigned managed identity.
pub(super) fn managed_identity(text: &str) -> Result<String, Fault> {
    let parts: Vec<&str> = text.split('/').collect();
    let keyword = |i: usize, word: &str| parts.get(i).is_some_and(|p| p.eq_ignore_ascii_case(word));
    let well_formed = parts.len() == 9
        && keyword(0, "")
        && keyword(1, "subscriptions")
        && parts.get(2).is_some_and(|p| parse_guid(p).is_some())
        && keyword(3, "resourceGroups")
        && keyword(5, "providers")
        && keyword(6, "Microsoft.ManagedIdentity")
        && keyword(7, "userAssignedIdentities")
        && [4, 8]
            .iter()
            .all(|i| parts.get(*i).is_some_and(|p| arm_name(p)));
    if !well_formed {
        return Err(Fault::new(
            "this is no resource id of a user-assigned managed identity",
            "write /subscriptions/GUID/resourceGroups/GROUP/providers/\
             Microsoft.ManagedIdentity/userAssignedIdentities/NAME",
        ));
    }
    Ok(text.to_owned())
}

fn arm_name(text: &str) -> bool {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '(' | ')');
    !text.is_empty() && text.len() <= 128 && text.chars().all(fits)
}

/// A resource as policy compares it.
pub(super) fn resource(text: &str) -> Result<String, Fault> {
    if text.contains('*') {
        return Err(Fault::new(
            "resources are compared as they are: there are no patterns",
            "list each resource, or write [\"*\"] alone for anything",
        ));
    }
    Ok(Scope::from_resource(text)?.policy_resource().to_owned())
}

/// `unix:///absolute/path` or `tcp://IP:port`, per SPIFFE Workload Endpoint, section 4.
pub(super) fn endpoint(text: &str) -> Result<Endpoint, Fault> {
    let fault = |message: &str| {
        Fault::new(
            message,
            "write unix:///absolute/path/of/the/socket (or tcp://IP:port)",
        )
    };
    if let Some(rest) = text.strip_prefix("tcp://") {
        let address: SocketAddr = rest.parse().map_err(|_error| {
            fault("a tcp endpoint is an IP address and a port, without a path or a host name")
        })?;
        if address.port() == 0 {
            return Err(fault("a tcp endpoint needs a port"));
        }
        return Ok(Endpoint::Tcp(address));
    }
    let Some(rest) = text.strip_prefix("unix:") else {
        return Err(if text.starts_with('/') {
            Fault::new(
                "this is a path, and a Workload API address is a URI",
                format!("write unix://{text}"),
            )
        } else {
            fault("this is no Workload API address")
        });
    };
    // `unix:/path` stands in many a script: taken for what it means.
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if !path.starts_with('/') || (rest.starts_with("//") && path.starts_with("//")) {
        return Err(fault("the path of the socket must be absolute"));
    }
    if path.contains(['?', '#']) {
        return Err(fault("a unix endpoint has a path and nothing else"));
    }
    let path = unescape(path).ok_or_else(|| {
        Fault::new(
            "a `%` in a URI begins an escape such as %20",
            "write %25 for a percent sign",
        )
    })?;
    socket_path(&path, PEER_PATH_LIMIT)?;
    Ok(Endpoint::Unix(path))
}

/// A path with `%XX` resolved; blanks and letters of any script stand as they are.
fn unescape(path: &str) -> Option<PathBuf> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = tail.get(2..)?;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    Some(std::ffi::OsString::from_vec(bytes).into())
}

/// A path that a socket can be bound to: the kernel's limit, less what the name for the moment
/// between binding and renaming takes.
pub(super) fn listen_path(text: &str) -> Result<PathBuf, Fault> {
    let path = PathBuf::from(text);
    socket_path(&path, LISTEN_PATH_LIMIT)?;
    Ok(path)
}

fn socket_path(path: &Path, limit: usize) -> Result<(), Fault> {
    let bytes = path.as_os_str().as_bytes();
    if !path.is_absolute() || path.file_name().is_none() || bytes.ends_with(b"/") {
        return Err(Fault::new(
            "this is no absolute path of a socket",
            "write it from the root on, such as /run/spiffe-entra/spiffe-entra.sock",
        ));
    }
    if bytes.contains(&0) {
        return Err(Fault::new("a path has no NUL", "remove it"));
    }
    if bytes.len() > limit {
        return Err(Fault::new(
            format!(
                "the path has {} bytes, and a socket's has at most {limit}",
                bytes.len()
            ),
            "choose a shorter one",
        ));
    }
    Ok(())
}

/// A mode as chmod(1) writes it: `"0660"`.
pub(super) fn mode(text: &str) -> Result<u32, Fault> {
    let digits = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let Some(mode) = u32::from_str_radix(text, 8).ok().filter(|_| digits) else {
        return Err(Fault::new(
            format!("`{text}` is no mode"),
            "write three or four octal digits, such as \"0660\"",
        ));
    };
    if mode > 0o777 {
        return Err(Fault::new(
            "set-uid, set-gid and sticky bits mean nothing on a socket",
            format!("write \"{:04o}\"", mode & 0o777),
        ));
    }
    Ok(mode)
}

/// `90s`, `5m`, `1h30m`, `500ms`.
pub(super) fn duration(text: &str) -> Result<Duration, Fault> {
    let fault = || {
        Fault::new(
            format!("`{text}` is no duration"),
            "write a number and a unit, such as \"500ms\", \"30s\", \"5m\", \"1h30m\"",
        )
    };
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(fault)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let number: u32 = number.parse().map_err(|_error| fault())?;
        let part = match unit {
            "ms" => Duration::from_millis(number.into()),
            "s" => Duration::from_secs(number.into()),
            "m" => Duration::from_secs(u64::from(number) * 60),
            "h" => Duration::from_secs(u64::from(number) * 3600),
            _ => return Err(fault()),
        };
        total += part;
        rest = tail;
    }
    if text.is_empty() {
        return Err(fault());
    }
    Ok(total)
}

/// A duration as it is written in a configuration.
pub(super) fn show_duration(duration: Duration) -> String {
    let (secs, millis) = (duration.as_secs(), duration.subsec_millis());
    match (secs, millis) {
        (_, 1..) => format!("{}ms", duration.as_millis()),
        (0, 0) => "0s".into(),
        (s, 0) if s % 3600 == 0 => format!("{}h", s / 3600),
        (s, 0) if s % 60 == 0 => format!("{}m", s / 60),
        (s, 0) => format!("{s}s"),
    }
}

const NAME_LIMIT: usize = 63;
/// The kernel's limit is 107 bytes.
const PEER_PATH_LIMIT: usize = 107;
const LISTEN_PATH_LIMIT: usize = 104;

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
    fn names_stand_in_urls_and_are_no_client_ids() {
        for fine in ["payments", "a", "eu-west.1_x", &"a".repeat(63)] {
            assert_eq!(identity_name(fine).unwrap(), fine);
        }
        for bad in ["", "-a", ".a", "a/b", "a b", "ü", &"a".repeat(64)] {
            says(identity_name(bad), "letters, digits");
        }
        says(
            identity_name("0f8fad5b-d9cb-469f-a165-70867728950e"),
            "client id",
        );
    }

    #[test]
    fn tenants_are_guids_or_domains() {
        let guid = "72F988BF-86f1-41af-91ab-2d7cd011db47";
        assert_eq!(&*tenant(guid).unwrap(), guid.to_ascii_lowercase());
        assert_eq!(
            &*tenant("Contoso.onmicrosoft.com").unwrap(),
            "contoso.onmicrosoft.com"
        );
        for word in ["common", "organizations", "consumers"] {
            says(tenant(word), "is no tenant");
        }
        for bad in [
            "",
            "contoso",
            "https://contoso.com",
            "a..b",
            "-a.b",
            "a/b.c",
            "a b.c",
        ] {
            says(tenant(bad), "neither a GUID nor a domain");
        }
    }

    #[test]
    fn a_managed_identity_has_a_resource_id() {
        let fine = "/subscriptions/72f988bf-86f1-41af-91ab-2d7cd011db47/resourcegroups/rg-1/\
                    providers/Microsoft.ManagedIdentity/userAssignedIdentities/payments";
        assert_eq!(managed_identity(fine).unwrap(), fine);
        for bad in [
            "",
            "payments",
            &fine[1..],
            &fine.replace("72f988bf", "x"),
            &fine.replace("payments", ""),
            &fine.replace("userAssignedIdentities", "vaults"),
            &format!("{fine}/more"),
        ] {
            says(managed_identity(bad), "no resource id");
        }
    }

    #[test]
    fn a_workload_api_address_is_a_uri() {
        for (text, path) in [
            ("unix:///run/spire/api.sock", "/run/spire/api.sock"),
            ("unix:/run/spire/api.sock", "/run/spire/api.sock"),
            ("unix:///tmp/my%20dir/api.sock", "/tmp/my dir/api.sock"),
            ("unix:///tmp/my dir/api.sock", "/tmp/my dir/api.sock"),
            ("unix:///tmp/50%25/ü.sock", "/tmp/50%/ü.sock"),
        ] {
            assert_eq!(
                endpoint(text).unwrap(),
                Endpoint::Unix(path.into()),
                "{text}"
            );
        }
        for text in ["tcp://127.0.0.1:8081", "tcp://[::1]:8081"] {
            assert!(matches!(endpoint(text).unwrap(), Endpoint::Tcp(a) if a.port() == 8081));
        }
        for (text, part) in [
            ("/run/spire/api.sock", "write unix:///run/spire/api.sock"),
            ("", "no Workload API address"),
            ("http://x", "no Workload API address"),
            ("unix:", "absolute"),
            ("unix:///", "absolute path of a socket"),
            ("unix://host/api.sock", "absolute"),
            ("unix:////api.sock", "absolute"),
            ("unix:api.sock", "absolute"),
            ("unix:@abstract", "absolute"),
            ("unix:///a?b", "nothing else"),
            ("unix:///a#b", "nothing else"),
            ("unix:///50%/x", "%25"),
            ("unix:///a%+1", "%25"),
            ("unix:///a%00b", "NUL"),
            ("unix:///folder/", "absolute path of a socket"),
            ("tcp://localhost:1", "IP address"),
            ("tcp://127.0.0.1", "IP address"),
            ("tcp://127.0.0.1:1/", "IP address"),
            ("tcp://127.0.0.1:0", "needs a port"),
        ] {
            says(endpoint(text), part);
        }
        let long = format!("unix:///{}", "a".repeat(107));
        says(endpoint(&long), "108 bytes");
        assert!(endpoint(&long[..long.len() - 1]).is_ok());
    }

    #[test]
    fn a_socket_path_is_absolute_and_short() {
        assert_eq!(
            listen_path("/run/a.sock").unwrap(),
            Path::new("/run/a.sock")
        );
        for bad in ["", "a.sock", "/", "/run/", "/run/.."] {
            says(listen_path(bad), "absolute path");
        }
        let long = format!("/{}", "a".repeat(104));
        says(listen_path(&long), "105 bytes");
        assert!(listen_path(&long[..104]).is_ok());
    }

    #[test]
    fn a_mode_is_octal_and_has_no_set_uid_bits() {
        assert_eq!(mode("0660").unwrap(), 0o660);
        assert_eq!(mode("666").unwrap(), 0o666);
        for bad in ["", "66", "0o660", "rw", "0888", "00660", "+660"] {
            says(mode(bad), "octal");
        }
        for (bad, good) in [
            ("4660", "\"0660\""),
            ("1777", "\"0777\""),
            ("2600", "\"0600\""),
        ] {
            says(mode(bad), good);
        }
    }

    #[test]
    fn durations_have_units() {
        for (text, millis) in [
            ("500ms", 500),
            ("90s", 90_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis));
        }
        for bad in [
            "",
            "5",
            "m",
            "5 m",
            "-5m",
            "5d",
            "1.5h",
            "99999999999s",
            "5m3",
        ] {
            says(duration(bad), "no duration");
        }
        for text in ["0s", "500ms", "90s", "5m", "2h"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
    }

    proptest! {
        #[test]
        fn parsers_take_anything(text in "(unix:|tcp:|https?:)?/{0,3}.{0,40}") {
            let _ = (endpoint(&text), resource(&text), managed_identity(&text), duration(&text));
            let _ = (listen_path(&text), tenant(&text), identity_name(&text), mode(&text));
        }
    }
}
