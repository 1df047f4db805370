//! Tokens for the workers' admin API: JSON Web Tokens (RFC 7519) signed with Ed25519 (RFC 8037).
//!
//! The operator holds the one private key, in a Secret of its own namespace; workers hold the public key, which is no secret,
//! in a ConfigMap. A token names one ModelProfile as its audience and lives a minute, so one that a worker sees is of no use
//! with another model's workers, and of none to anybody later.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::json;

/// How long a token is good for: longer than any clock is off by and any request waits, too short to be worth stealing.
const LIFE: SignedDuration = SignedDuration::from_secs(60);

/// The operator's key.
pub struct Signer {
    pair: Ed25519KeyPair,
}

/// A key that is no Ed25519 key in PKCS#8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the key is no Ed25519 key in PKCS#8 (version 2, with its public key): delete the Secret, and the operator makes a new one"
)]
pub struct BadKey;

impl Signer {
    /// A new key, as the PKCS#8 document that [`Signer::from_pkcs8`] takes.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate() -> Result<Vec<u8>, BadKey> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| BadKey)?;
        Ok(document.as_ref().to_vec())
    }

    /// Takes a key out of the Secret.
    ///
    /// # Errors
    /// It is none.
    pub fn from_pkcs8(document: &[u8]) -> Result<Self, BadKey> {
        Ed25519KeyPair::from_pkcs8(document).map(|pair| Self { pair }).map_err(|_| BadKey)
    }

    /// The public key as workers read it: 32 bytes as base64url without padding.
    pub fn public_key(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.pair.public_key().as_ref())
    }

    /// A token for the workers of one ModelProfile; see [`audience`].
    pub fn token(&self, audience: &str, now: Timestamp) -> String {
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let issued = now.as_second();
        let header = part(json!({"alg": "EdDSA", "typ": "JWT"}));
        let claims = part(json!({"aud": audience, "iat": issued, "exp": issued + LIFE.as_secs()}));
        let signed = format!("{header}.{claims}");
        let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

/// Who a token is for. The UID makes one for a deleted ModelProfile useless with a later one of that name.
pub fn audience(namespace: &str, name: &str, uid: &str) -> String {
    format!("{namespace}/{name}/{uid}")
}

#[cfg(test)]
mod tests {
    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    #[test]
    fn a_token_says_who_it_is_for_and_until_when_and_verifies_with_the_public_key() {
        let signer = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let token = signer.token(&audience("models", "llama", "u-1"), now);
        let parts: Vec<&str> = token.split('.').collect();
        let json = |part: &str| -> serde_json::Value {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
        };
        assert_eq!(json(parts[0]), json!({"alg": "EdDSA", "typ": "JWT"}));
        let start = now.as_second();
        assert_eq!(json(parts[1]), json!({"aud": "models/llama/u-1", "iat": start, "exp": start + 60}));
        let public = URL_SAFE_NO_PAD.decode(signer.public_key()).unwrap();
        assert_eq!(public.len(), 32);
        let signed = format!("{}.{}", parts[0], parts[1]);
        let signature = URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
        UnparsedPublicKey::new(&ED25519, public).verify(signed.as_bytes(), &signature).unwrap();
    }

    #[test]
    fn what_is_no_key_is_refused_with_what_to_do() {
        let error = Signer::from_pkcs8(b"no key").err().unwrap();
        assert!(error.to_string().contains("delete the Secret"));
    }
}
