//! Bearer tokens of the admin API that an operator signs: JWTs with Ed25519 (RFC 8037), verified without clock, file or
//! network.
//!
//! ```text
//! header.claims.signature -> size, form -> alg -> signature by a known key -> aud, iat, exp
//! ```
//!
//! A secret that operator and workers share would lie in the namespace of each worker, and whoever reads it there commands all
//! of them. A public key is no secret, and a token that names its worker and ends within minutes is of no use elsewhere.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{ED25519, ED25519_PUBLIC_KEY_LEN, UnparsedPublicKey};
use serde::{Deserialize, de::IgnoredAny};
use thiserror::Error;

/// Longest token that is looked at. An operator's has about 250 bytes.
const MOST_BYTES: usize = 4096;
/// Longest life of a token in seconds, from `iat` to `exp`.
const MOST_SECONDS: u64 = 300;
/// Seconds by which the clocks of operator and worker may differ.
const LEEWAY_SECONDS: u64 = 5;

/// Why a token is refused. The sentences are constant: nothing of a token gets into an answer or a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// More than 4096 bytes.
    #[error("the token is longer than 4096 bytes: send one that has aud, iat and exp alone")]
    TooLarge,
    /// Not `header.claims.signature`.
    #[error(
        "the token has not the three parts of a signed JWT, header.claims.signature: send a JWT in its compact form"
    )]
    Parts,
    /// A part that is not base64url.
    #[error("a part of the token is not base64url without padding: encode it as RFC 7515 says")]
    Encoding,
    /// A header that cannot be read.
    #[error("the token's header is not JSON with one text `alg`: write {{\"alg\":\"EdDSA\",\"typ\":\"JWT\"}}")]
    Header,
    /// Another algorithm than Ed25519.
    #[error("the token's `alg` is not EdDSA, which alone is taken: sign with Ed25519")]
    Algorithm,
    /// An extension that must be understood.
    #[error("the token's header has `crit`, and no extension is known here: leave it out")]
    Critical,
    /// No known key has signed it.
    #[error(
        "no key of --admin-keys has signed the token: add the signer's public key there, or sign with the other half of one"
    )]
    Signature,
    /// Claims that cannot be read.
    #[error(
        "the token's claims are not JSON with one text `aud` and one `iat` and `exp` each in whole seconds: write these"
    )]
    Claims,
    /// Made for another worker.
    #[error("the token's `aud` is not what --admin-audience names: ask for a token of this worker, NAMESPACE/NAME/UID")]
    Audience,
    /// Made in the future.
    #[error("the token's `iat` or `nbf` is in the future: set the clocks of the signer and of this machine")]
    Early,
    /// Its time is over.
    #[error(
        "the token's `exp` has passed: ask for a new one; if it is new, set the clocks of the signer and of this machine"
    )]
    Expired,
    /// Made to live too long.
    #[error("the token's `exp` is not within the 300 seconds after its `iat`: ask for one that lives shorter")]
    LongLived,
}

/// A file of keys that is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeysError {
    /// A line that is no key.
    #[error("line {0} is no Ed25519 public key: write its 32 bytes as base64url without padding")]
    Line(usize),
    /// Not a single key.
    #[error("it holds no key: write an Ed25519 public key into it, a line each, 32 bytes as base64url without padding")]
    Empty,
}

/// The public keys whose tokens are taken: one, or several while the signer changes its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKeys(Vec<[u8; ED25519_PUBLIC_KEY_LEN]>);

impl PublicKeys {
    /// Reads a key a line; blank lines do not count.
    ///
    /// # Errors
    /// A line that is no key: a file that is half right is not used by half. A text without keys.
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
        let key = |(index, line): (usize, &str)| {
            let bytes = URL_SAFE_NO_PAD.decode(line).ok().and_then(|bytes| bytes.try_into().ok());
            bytes.ok_or(KeysError::Line(index + 1))
        };
        let keys = lines.map(key).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(KeysError::Empty) } else { Ok(Self(keys)) }
    }

    fn have_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.iter().any(|key| UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok())
    }
}

/// A field that stands there twice is an error of serde's: two readers might take another one each.
#[derive(Deserialize)]
struct Header {
    alg: String,
    crit: Option<IgnoredAny>,
}

/// Other claims are the signer's business.
#[derive(Deserialize)]
struct Claims {
    aud: String,
    iat: u64,
    exp: u64,
    nbf: Option<u64>,
}

/// Whether a token lets its bearer in: one of the keys has signed it for `audience`, and at `now` (seconds since 1970) it is
/// valid.
///
/// # Errors
/// The first rule that it breaks. What stands in the claims is told only of a token that a known key has signed.
pub fn verify(token: &str, keys: &PublicKeys, audience: &str, now: u64) -> Result<(), TokenError> {
    if token.len() > MOST_BYTES {
        return Err(TokenError::TooLarge);
    }
    let [header, claims, signature] = token.splitn(4, '.').collect::<Vec<_>>()[..] else {
        return Err(TokenError::Parts);
    };
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Encoding);
    let header_bytes = decode(header)?;
    let (claims_bytes, signature) = (decode(claims)?, decode(signature)?);
    let parsed: Header = serde_json::from_slice(&header_bytes).map_err(|_| TokenError::Header)?;
    if parsed.alg != "EdDSA" {
        return Err(TokenError::Algorithm);
    }
    if parsed.crit.is_some() {
        return Err(TokenError::Critical);
    }
    let signed = &token[..header.len() + 1 + claims.len()];
    if !keys.have_signed(signed.as_bytes(), &signature) {
        return Err(TokenError::Signature);
    }
    let claims: Claims = serde_json::from_slice(&claims_bytes).map_err(|_| TokenError::Claims)?;
    if claims.aud != audience {
        return Err(TokenError::Audience);
    }
    if claims.iat.max(claims.nbf.unwrap_or(0)) > now.saturating_add(LEEWAY_SECONDS) {
        return Err(TokenError::Early);
    }
    if now >= claims.exp.saturating_add(LEEWAY_SECONDS) {
        return Err(TokenError::Expired);
    }
    if claims.exp.checked_sub(claims.iat).is_none_or(|life| life > MOST_SECONDS) {
        return Err(TokenError::LongLived);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ring::{
        hmac,
        signature::{Ed25519KeyPair, KeyPair},
    };
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const AUDIENCE: &str = "default/chat/0f8e";
    const HEADER: &str = r#"{"alg":"EdDSA","typ":"JWT"}"#;

    fn pair(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
    }

    fn public(pair: &Ed25519KeyPair) -> String {
        URL_SAFE_NO_PAD.encode(pair.public_key())
    }

    /// The key of seed 1, beside one that signs nothing here.
    fn keys() -> PublicKeys {
        PublicKeys::parse(&format!("{}\n{}\n", public(&pair(7)), public(&pair(1)))).unwrap()
    }

    fn claims() -> Value {
        json!({"aud": AUDIENCE, "iat": NOW, "exp": NOW + 60})
    }

    fn with(field: &str, value: Value) -> String {
        let mut claims = claims();
        claims[field] = value;
        claims.to_string()
    }

    fn signed(pair: &Ed25519KeyPair, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(pair.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    fn verified(token: &str) -> Result<(), TokenError> {
        verify(token, &keys(), AUDIENCE, NOW)
    }

    #[rstest]
    #[case::plain(claims().to_string())]
    #[case::reordered(format!(r#"{{"exp": {}, "iat": {NOW}, "aud": "{AUDIENCE}"}}"#, NOW + 60))]
    #[case::more_claims(with("iss", json!("modelprofile-operator")))]
    #[case::clock_ahead(with("iat", json!(NOW + 5)))]
    #[case::just_expired(format!(r#"{{"aud": "{AUDIENCE}", "iat": {}, "exp": {}}}"#, NOW - 64, NOW - 4))]
    #[case::longest(with("exp", json!(NOW + 300)))]
    #[case::begun(with("nbf", json!(NOW)))]
    fn a_token_that_keeps_the_rules_is_taken(#[case] claims: String) {
        assert_eq!(verified(&signed(&pair(1), HEADER, &claims)), Ok(()));
    }

    #[rstest]
    #[case::another_worker(with("aud", json!("default/chat/0f8f")), TokenError::Audience)]
    #[case::prefix(with("aud", json!("default/chat")), TokenError::Audience)]
    #[case::expired(format!(r#"{{"aud": "{AUDIENCE}", "iat": {}, "exp": {}}}"#, NOW - 65, NOW - 5), TokenError::Expired)]
    #[case::future(with("iat", json!(NOW + 6)), TokenError::Early)]
    #[case::not_begun(with("nbf", json!(NOW + 6)), TokenError::Early)]
    #[case::long_lived(with("exp", json!(NOW + 301)), TokenError::LongLived)]
    #[case::for_ever(with("exp", json!(u64::MAX)), TokenError::LongLived)]
    #[case::backwards(format!(r#"{{"aud": "{AUDIENCE}", "iat": {}, "exp": {NOW}}}"#, NOW + 1), TokenError::LongLived)]
    #[case::list(with("aud", json!([AUDIENCE])), TokenError::Claims)]
    #[case::no_end(format!(r#"{{"aud": "{AUDIENCE}", "iat": {NOW}}}"#), TokenError::Claims)]
    #[case::text(with("exp", json!("2027")), TokenError::Claims)]
    #[case::negative(with("iat", json!(-1)), TokenError::Claims)]
    #[case::twice(
        format!(r#"{{"aud": "x", "aud": "{AUDIENCE}", "iat": {NOW}, "exp": {NOW}}}"#),
        TokenError::Claims
    )]
    #[case::no_json("claims".to_owned(), TokenError::Claims)]
    fn signed_claims_that_break_a_rule_are_refused_by_it(#[case] claims: String, #[case] error: TokenError) {
        assert_eq!(verified(&signed(&pair(1), HEADER, &claims)), Err(error));
    }

    #[rstest]
    #[case::none(r#"{"alg":"none"}"#, TokenError::Algorithm)]
    #[case::case(r#"{"alg":"eddsa"}"#, TokenError::Algorithm)]
    #[case::rsa(r#"{"alg":"RS256","typ":"JWT"}"#, TokenError::Algorithm)]
    #[case::critical(r#"{"alg":"EdDSA","crit":["exp"]}"#, TokenError::Critical)]
    #[case::twice(r#"{"alg":"none","alg":"EdDSA"}"#, TokenError::Header)]
    #[case::missing("{}", TokenError::Header)]
    #[case::no_json("", TokenError::Header)]
    fn a_header_that_does_not_say_eddsa_is_refused(#[case] header: &str, #[case] error: TokenError) {
        assert_eq!(verified(&signed(&pair(1), header, &claims().to_string())), Err(error));
    }

    #[test]
    fn nothing_but_a_signature_of_a_known_key_counts() {
        let good = signed(&pair(1), HEADER, &claims().to_string());
        let (message, signature) = good.rsplit_once('.').unwrap();
        assert_eq!(verified(&signed(&pair(2), HEADER, &claims().to_string())), Err(TokenError::Signature));
        let other = signed(&pair(1), HEADER, &with("exp", json!(NOW + 61)));
        let other = other.rsplit_once('.').unwrap().1;
        assert_eq!(verified(&format!("{message}.{other}")), Err(TokenError::Signature));
        assert_eq!(verified(&format!("{message}.")), Err(TokenError::Signature));
        // The public key as the secret of a symmetric algorithm, whatever the header calls it.
        let key = hmac::Key::new(hmac::HMAC_SHA256, pair(1).public_key().as_ref());
        for (header, error) in
            [(r#"{"alg":"HS256","typ":"JWT"}"#, TokenError::Algorithm), (HEADER, TokenError::Signature)]
        {
            let message =
                format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims().to_string()));
            let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes()));
            assert_eq!(verified(&format!("{message}.{tag}")), Err(error));
        }
        // What another key has signed is not even told what its claims lack.
        assert_eq!(verified(&signed(&pair(2), HEADER, "{}")), Err(TokenError::Signature));
        assert_eq!(verified(&format!("{message}.{signature}")), Ok(()));
    }

    #[test]
    fn what_is_no_compact_jwt_is_refused() {
        let good = signed(&pair(1), HEADER, &claims().to_string());
        let (message, signature) = good.rsplit_once('.').unwrap();
        for text in ["", "secret", message, &format!("{good}.x"), &format!(".{good}")] {
            assert_eq!(verified(text), Err(TokenError::Parts), "{text}");
        }
        for text in [format!("{good}="), format!("{good} "), format!("{message}.+{}", &signature[1..]), "a.b.c".into()]
        {
            assert_eq!(verified(&text), Err(TokenError::Encoding), "{text}");
        }
        // 64 bytes leave four bits of the last letter over; another letter with the same first bits is another token.
        let last = signature.chars().last().unwrap();
        let twin = if last == 'A' { 'B' } else { char::from(last as u8 + 1) };
        let twin = format!("{}{twin}", &good[..good.len() - 1]);
        assert!(matches!(verified(&twin), Err(TokenError::Encoding)), "{twin}");
        for cut in 0..good.len() {
            assert!(verified(&good[..cut]).is_err(), "{cut}");
        }
        let padded = signed(&pair(1), HEADER, &with("iss", json!("x".repeat(4096))));
        assert_eq!(verified(&padded), Err(TokenError::TooLarge));
        assert_eq!(verified(&"ä.".repeat(3000)), Err(TokenError::TooLarge));
    }

    #[test]
    fn keys_are_read_a_line_each_and_all_or_none() {
        let (one, two) = (public(&pair(1)), public(&pair(2)));
        assert_eq!(PublicKeys::parse(&format!("\n {one} \r\n\n{two}")).unwrap().0.len(), 2);
        assert_eq!(PublicKeys::parse(&format!("{one}\n{}", &two[1..])), Err(KeysError::Line(2)));
        assert_eq!(PublicKeys::parse(&format!("{one}=")), Err(KeysError::Line(1)));
        assert_eq!(PublicKeys::parse(&URL_SAFE_NO_PAD.encode([0; 33])), Err(KeysError::Line(1)));
        assert_eq!(PublicKeys::parse(" \n"), Err(KeysError::Empty));
    }
}
