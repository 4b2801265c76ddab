//! Federated identity credentials, and what Entra takes for one.

use url::Url;

/// A federated identity credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// 3 to 120 letters, digits, `-` and `_`; the first one a letter or digit.
    pub name: String,
    /// The `iss` of the assertion, an https URL.
    pub issuer: String,
    /// The `sub` of the assertion.
    pub subject: String,
    /// The `aud` of the assertion: exactly one.
    pub audiences: Vec<String>,
}

/// Why Entra would not store a federated identity credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// The name breaks the rules.
    #[error("name {0}: must have 3 to 120 letters, digits, - or _, the first a letter or digit")]
    Name(String),
    /// The name is taken.
    #[error("FederatedIdentityCredential with name {0} already exists.")]
    NameTaken(String),
    /// The issuer is empty, too long, no https URL or has spaces around it.
    #[error("issuer {0}: must be an https URL of at most 600 characters")]
    Issuer(String),
    /// The subject is empty or too long.
    #[error("subject {0}: must have 1 to 600 characters")]
    Subject(String),
    /// Not exactly one audience, or one that is empty or too long.
    #[error("Federated identity credentials must have exactly one audience.")]
    Audiences,
    /// Issuer and subject are together in another credential of the same object.
    #[error(
        "The combination of issuer and subject must be unique for the application. \
         Issuer {issuer} and Subject: {subject} already exist."
    )]
    Taken {
        /// The issuer.
        issuer: String,
        /// The subject.
        subject: String,
    },
    /// The object has twenty already.
    #[error("the object has {MAX_CREDENTIALS} federated identity credentials already")]
    TooMany,
    /// The object has been deleted.
    #[error("client {0} does not exist")]
    NoClient(String),
}

impl Credential {
    /// Entra's rules for one credential.
    pub(super) fn check(&self) -> Result<(), CredentialError> {
        let Self {
            name,
            issuer,
            subject,
            audiences,
        } = self;
        let name_char = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let first = name
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !(first && (3..=120).contains(&name.len()) && name.bytes().all(name_char)) {
            return Err(CredentialError::Name(name.clone()));
        }
        let https = Url::parse(issuer).is_ok_and(|url| url.scheme() == "https");
        if !https || issuer.trim() != issuer || issuer.chars().count() > MAX_LENGTH {
            return Err(CredentialError::Issuer(issuer.clone()));
        }
        if subject.is_empty() || subject.chars().count() > MAX_LENGTH {
            return Err(CredentialError::Subject(subject.clone()));
        }
        match audiences.as_slice() {
            [one] if !one.is_empty() && one.chars().count() <= MAX_LENGTH => Ok(()),
            _ => Err(CredentialError::Audiences),
        }
    }
}

/// The most credentials of one application or managed identity.
pub const MAX_CREDENTIALS: usize = 20;

/// The most characters of an issuer, a subject or an audience.
const MAX_LENGTH: usize = 600;

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(name: &str, subject: &str) -> Credential {
        Credential {
            name: name.to_owned(),
            issuer: "https://oidc.example.org".to_owned(),
            subject: subject.to_owned(),
            audiences: vec![crate::AUDIENCE.to_owned()],
        }
    }

    #[test]
    fn one_credential_has_its_limits() {
        let broken = |change: fn(&mut Credential)| {
            let mut one = credential("one", "s");
            change(&mut one);
            one.check().unwrap_err()
        };
        for name in ["ab", "-abc", "a b", &"a".repeat(121)] {
            let mut one = credential(name, "s");
            assert!(
                matches!(one.check(), Err(CredentialError::Name(_))),
                "{name}"
            );
            one.name = "a-1_B".to_owned();
            one.check().unwrap();
        }
        let issuer = |error| matches!(error, CredentialError::Issuer(_));
        assert!(issuer(broken(
            |one| one.issuer = "http://oidc.example.org".to_owned()
        )));
        assert!(issuer(broken(
            |one| one.issuer = " https://oidc.example.org".to_owned()
        )));
        assert!(issuer(broken(
            |one| one.issuer = format!("https://a/{}", "x".repeat(600))
        )));
        let subject = |error| matches!(error, CredentialError::Subject(_));
        assert!(subject(broken(|one| one.subject = String::new())));
        assert!(subject(broken(|one| one.subject = "x".repeat(601))));
        assert_eq!(
            broken(|one| one.audiences.clear()),
            CredentialError::Audiences
        );
        assert_eq!(
            broken(|one| one.audiences.push("b".to_owned())),
            CredentialError::Audiences
        );
        assert_eq!(
            broken(|one| one.audiences = vec!["x".repeat(601)]),
            CredentialError::Audiences
        );
    }
}
