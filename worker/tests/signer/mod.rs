//! Whoever signs tokens of the admin API.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::json;

/// Whom the tests' tokens are for.
pub(crate) const AUDIENCE: &str = "default/tiny/0f8e-4711";

/// A key pair.
pub(crate) struct Signer(Ed25519KeyPair);

impl Signer {
    pub(crate) fn new(seed: u8) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
    }

    /// Its line in the file of keys.
    pub(crate) fn line(&self) -> String {
        format!("{}\n", URL_SAFE_NO_PAD.encode(self.0.public_key()))
    }

    /// A token for `audience` that ends in `seconds`.
    pub(crate) fn token(&self, audience: &str, seconds: i64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let end = now + seconds;
        let claims = json!({"aud": audience, "iat": end.min(now) - 1, "exp": end}).to_string();
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","typ":"JWT"}"#), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}
