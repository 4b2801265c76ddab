//! `ca_file`: certificates in PEM that are believed, looked at before anything relies on them.

use std::path::PathBuf;

use x509_parser::{parse_x509_certificate, pem::Pem, prelude::X509Certificate};

use super::{
    diagnostics::{Fault, Sink},
    files::Files,
    raw::{At, Table},
};

/// Reads the file that `ca_file` names. What is wrong is a mistake at the key's place; what only
/// looks wrong (rustls does not look at an anchor's dates) is a warning.
pub(super) fn check_ca_file(
    table: &Table<'_>,
    file: &At<&str>,
    files: &Files,
    now: i64,
) -> Option<PathBuf> {
    let (reading, span) = (table.reading(), file.span());
    let path = PathBuf::from(*file.get_ref());
    if !path.is_absolute() {
        let fix = "write the path from the root on";
        reading.mistake(&span, Fault::new("`ca_file` is no absolute path", fix));
        return None;
    }
    // Its own sink: what cannot be read is said at the key's place.
    let sink = Sink::default();
    let bytes = files.read_bytes(&path, &sink);
    for mistake in sink.into_parts().0 {
        if bytes.is_some() {
            reading.sink.mistake(mistake);
        } else {
            let message = format!("{} {}", path.display(), mistake.message);
            reading.mistake(
                &span,
                Fault::new(message, "name a file that the daemon can read"),
            );
        }
    }
    let found = inspect(&bytes?, now);
    for warning in found.warnings {
        reading.warn(&span, format!("{}: {warning}", path.display()), "");
    }
    match found.fault {
        Some(fault) => {
            let message = format!("{}: {}", path.display(), fault.message);
            reading.mistake(&span, Fault::new(message, fault.fix));
            None
        }
        None => Some(path),
    }
}

/// What was found in a CA file.
#[derive(Debug, Default)]
struct Found {
    fault: Option<Fault>,
    warnings: Vec<String>,
}

fn inspect(bytes: &[u8], now: i64) -> Found {
    let mut found = Found::default();
    let mut certificates = 0;
    for (i, pem) in Pem::iter_from_buffer(bytes).enumerate() {
        let number = i + 1;
        let Ok(pem) = pem else {
            found.fault = Some(Fault::new(
                format!("block {number} is broken PEM"),
                "copy the certificates again, from -----BEGIN CERTIFICATE----- on",
            ));
            return found;
        };
        if pem.label.contains("PRIVATE KEY") {
            found
                .warnings
                .push("the file holds a private key, which has no business here: remove it".into());
        }
        if pem.label != "CERTIFICATE" {
            continue;
        }
        let Ok((_, certificate)) = parse_x509_certificate(&pem.contents) else {
            found.fault = Some(Fault::new(
                format!("certificate {number} cannot be read"),
                "copy it again",
            ));
            return found;
        };
        certificates += 1;
        found.warnings.extend(doubts(&certificate, now));
    }
    if certificates == 0 {
        found.fault = Some(Fault::new(
            "the file holds no certificate",
            "put CA certificates in PEM there, each between -----BEGIN CERTIFICATE----- and \
             -----END CERTIFICATE-----",
        ));
    }
    found
}

fn doubts(certificate: &X509Certificate<'_>, now: i64) -> Vec<String> {
    let subject = certificate.subject().to_string();
    let validity = certificate.validity();
    let mut doubts = Vec::new();
    if validity.not_after.timestamp() < now {
        doubts.push(format!(
            "the certificate of `{subject}` expired on {}: replace it",
            validity.not_after
        ));
    }
    if validity.not_before.timestamp() > now {
        doubts.push(format!(
            "the certificate of `{subject}` is not valid before {}",
            validity.not_before
        ));
    }
    if !certificate.is_ca() {
        doubts.push(format!(
            "the certificate of `{subject}` is no CA's: it can vouch for itself at most"
        ));
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl req -x509 -days 36500 -subj "/CN=Test Root"`: a CA until 2126.
    const ROOT: &str = include_str!("testdata/root.pem");
    /// The same with `basicConstraints=CA:FALSE`.
    const LEAF: &str = include_str!("testdata/leaf.pem");
    const NOW: i64 = 1_800_000_000;
    const LATER: i64 = 6_000_000_000;

    #[test]
    fn a_ca_is_fine() {
        let found = inspect(ROOT.as_bytes(), NOW);
        assert_eq!(found.fault, None);
        assert_eq!(found.warnings, [""; 0]);
        // Text around the blocks is usual in bundles.
        let bundle = format!("# roots\n{ROOT}\nsubject=x\n{ROOT}");
        assert_eq!(inspect(bundle.as_bytes(), NOW).fault, None);
    }

    #[test]
    fn doubtful_certificates_are_named() {
        let found = inspect(format!("{ROOT}{LEAF}").as_bytes(), LATER);
        assert_eq!(found.fault, None);
        let all = found.warnings.join("\n");
        assert!(all.contains("`CN=Test Root` expired on "), "{all}");
        assert!(all.contains("`CN=Test Leaf` is no CA's"), "{all}");
        let early = inspect(ROOT.as_bytes(), 0).warnings.join("\n");
        assert!(early.contains("not valid before"), "{early}");
    }

    #[test]
    fn a_file_without_a_certificate_is_a_mistake() {
        for (text, says) in [
            ("", "no certificate"),
            ("hello", "no certificate"),
            (
                "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n",
                "broken PEM",
            ),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                "cannot be read",
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                "no certificate",
            ),
        ] {
            let fault = inspect(text.as_bytes(), NOW).fault.unwrap();
            assert!(fault.message.contains(says), "{text}: {fault:?}");
        }
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let found = inspect(format!("{ROOT}{key}").as_bytes(), NOW);
        assert!(found.warnings[0].contains("private key"));
    }
}
