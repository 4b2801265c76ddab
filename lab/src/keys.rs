//! Signing keys, their public half as a JWK, and compact JWTs.

use std::fmt;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::sync::lock;

/// Which kind of key signs JWT-SVIDs: SPIRE's `jwt_key_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyType {
    /// RSA with 2048 bits, the kind Entra verifies: RS256.
    Rsa2048,
    /// The NIST P-256 curve, SPIRE's default, which Entra refuses: ES256.
    EcP256,
}

impl KeyType {
    /// The algorithm SPIRE signs with when it has this kind of key.
    #[must_use]
    pub fn algorithm(self) -> Algorithm {
        match self {
            Self::Rsa2048 => Algorithm::RS256,
            Self::EcP256 => Algorithm::ES256,
        }
    }
}

/// A signing key with its `kid`. Clones are the same key.
#[derive(Clone)]
pub struct Key {
    kid: Arc<str>,
    material: Arc<Material>,
}

/// A key pair, whatever it is called.
struct Material {
    key_type: KeyType,
    /// Signs RS256 without reading the key anew, which matters for ten thousand tokens.
    pair: KeyPair,
    /// Signs everything else.
    encoding: EncodingKey,
    /// The public numbers: `n` and `e`, or `crv`, `x` and `y`.
    public: Value,
}

impl Key {
    /// Makes a key; the `kid` is 32 letters and digits, as SPIRE's are.
    ///
    /// # Errors
    /// When aws-lc cannot make one.
    pub fn generate(key_type: KeyType) -> Result<Self> {
        crate::init();
        let (pair, encoding) = match key_type {
            KeyType::Rsa2048 => {
                let pair = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256)?;
                let encoding = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes())?;
                (pair, encoding)
            }
            KeyType::EcP256 => {
                let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
                let encoding = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes())?;
                (pair, encoding)
            }
        };
        let jwk = Jwk::from_encoding_key(&encoding, key_type.algorithm())?;
        let public = serde_json::to_value(&jwk.algorithm)
            .map_err(|error| Error::Config(format!("public key: {error}")))?;
        let material = Arc::new(Material {
            key_type,
            pair,
            encoding,
            public,
        });
        Ok(Self {
            kid: new_kid(),
            material,
        })
    }

    /// A key pair that the process has made before for this purpose, under a new `kid`. Making
    /// one takes a tenth of a second, and a test suite starts hundreds of servers.
    pub(crate) fn stock(purpose: &'static str, key_type: KeyType) -> Result<Self> {
        static STOCK: Mutex<Vec<(&str, Key)>> = Mutex::new(Vec::new());
        let mut stock = lock(&STOCK);
        let found = stock
            .iter()
            .find(|(of, key)| *of == purpose && key.key_type() == key_type);
        if let Some((_, key)) = found {
            let material = Arc::clone(&key.material);
            return Ok(Self {
                kid: new_kid(),
                material,
            });
        }
        let key = Self::generate(key_type)?;
        stock.push((purpose, key.clone()));
        Ok(key)
    }

    /// The key's identifier.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The key's kind.
    #[must_use]
    pub fn key_type(&self) -> KeyType {
        self.material.key_type
    }

    /// The public half with `kid` and `alg`, and with `use: "sig"` where wanted.
    #[must_use]
    pub fn jwk(&self, key_use: bool) -> Value {
        let mut jwk = self.material.public.clone();
        jwk["kid"] = json!(self.kid());
        jwk["alg"] = json!(self.key_type().algorithm());
        if key_use {
            jwk["use"] = json!("sig");
        }
        jwk
    }

    /// A compact JWT with SPIRE's header (`alg`, `kid`, `typ: "JWT"`).
    ///
    /// # Errors
    /// When signing fails.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        let algorithm = self.key_type().algorithm();
        let header = json!({ "alg": algorithm, "kid": self.kid(), "typ": "JWT" });
        self.sign_with(algorithm, &header, claims)
    }

    /// A compact JWT with any header, signed with `algorithm` whatever the header says.
    ///
    /// # Errors
    /// When the algorithm does not fit the key.
    pub fn sign_with(
        &self,
        algorithm: Algorithm,
        header: &Value,
        claims: &Value,
    ) -> Result<String> {
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encode(header), encode(claims));
        let signature = if algorithm == Algorithm::RS256 && self.key_type() == KeyType::Rsa2048 {
            URL_SAFE_NO_PAD.encode(self.material.pair.sign(message.as_bytes())?)
        } else {
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.material.encoding, algorithm)?
        };
        Ok(format!("{message}.{signature}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Key");
        debug
            .field("kid", &self.kid)
            .field("type", &self.key_type());
        debug.finish_non_exhaustive()
    }
}

/// 32 letters and digits, as SPIRE makes them.
fn new_kid() -> Arc<str> {
    let kid: String = std::iter::repeat_with(fastrand::alphanumeric)
        .take(32)
        .collect();
    kid.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::DecodingKey;

    fn verifies(key: &Key, token: &str, algorithm: Algorithm) -> bool {
        let (message, signature) = token.rsplit_once('.').unwrap();
        let jwk: Jwk = serde_json::from_value(key.jwk(true)).unwrap();
        let public = DecodingKey::from_jwk(&jwk).unwrap();
        jsonwebtoken::crypto::verify(signature, message.as_bytes(), &public, algorithm).unwrap()
    }

    #[test]
    fn signs_what_its_jwk_verifies() {
        for key_type in [KeyType::Rsa2048, KeyType::EcP256] {
            let key = Key::generate(key_type).unwrap();
            let token = key
                .sign(&json!({ "sub": "spiffe://example.org/a" }))
                .unwrap();
            assert!(verifies(&key, &token, key_type.algorithm()));
            assert!(!verifies(
                &Key::generate(key_type).unwrap(),
                &token,
                key_type.algorithm()
            ));
        }
    }

    #[test]
    fn signs_the_other_rsa_algorithms_too() {
        let key = Key::generate(KeyType::Rsa2048).unwrap();
        for algorithm in [
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS512,
        ] {
            let header = json!({ "alg": algorithm, "kid": key.kid() });
            let token = key.sign_with(algorithm, &header, &json!({})).unwrap();
            assert!(verifies(&key, &token, algorithm));
        }
        assert!(
            key.sign_with(Algorithm::ES256, &json!({}), &json!({}))
                .is_err()
        );
    }

    #[test]
    fn stock_is_one_pair_a_purpose_under_many_names() {
        let stock = |purpose| Key::stock(purpose, KeyType::EcP256).unwrap();
        let (one, two, other) = (stock("test"), stock("test"), stock("other"));
        assert_ne!(one.kid(), two.kid());
        assert_eq!(one.jwk(false)["x"], two.jwk(false)["x"]);
        assert_ne!(one.jwk(false)["x"], other.jwk(false)["x"]);
    }

    #[test]
    fn jwk_says_use_only_when_asked() {
        let key = Key::generate(KeyType::Rsa2048).unwrap();
        assert_eq!(key.jwk(true)["use"], "sig");
        assert_eq!(key.jwk(false).get("use"), None);
        assert_eq!(key.jwk(true)["kty"], "RSA");
        assert_eq!(key.jwk(true)["e"], "AQAB");
        assert!(!format!("{key:?}").contains("BEGIN"));
    }
}
