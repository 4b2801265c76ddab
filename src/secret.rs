//! Bearer secrets: never printed, wiped when dropped.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// A JWT-SVID or an access token.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes the secret over. The `String`'s own buffer becomes the one that is wiped.
    pub fn new(secret: String) -> Self {
        Self(SecretString::from(secret))
    }

    /// The secret itself. Every use is a place to look at in a review.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[redacted, {} bytes]", self.expose().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_of_it() {
        let shown = format!("{:?}", Secret::new("eyJhbGciOi.payload.signature".into()));
        assert_eq!(shown, "[redacted, 28 bytes]");
    }
}
