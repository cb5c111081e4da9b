//! The keys that JSON Web Tokens are checked with: from a PEM or JWKS file, or from a URL by a thread of their own, which
//! keeps the last good ones.
//!
//! Each key has one algorithm, and it is the key that says which: what a token says of its own is held against that.

use std::sync::{Arc, Mutex, PoisonError};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

use crate::config::RsaAlgorithm;

/// Keys of one set.
const KEYS_MAX: usize = 64;

/// One key.
pub(super) struct Key {
    /// What tokens call it (`kid`); a PEM file has no names.
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

/// A set of keys, at least one.
pub struct Keys(Vec<Key>);

/// Whether what is wrong with one key is wrong with all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Strictness {
    /// The operator wrote the file: everything in it must be right.
    All,
    /// Somebody else did: what cannot be used is left out. Symmetric keys are: whoever may read them may sign with them.
    Usable,
}

impl Keys {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }

    /// The keys in `text`: PEM blocks, or a JWKS.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub(super) fn parse(text: &str, rsa: RsaAlgorithm, strictness: Strictness) -> Result<Self, String> {
        let keys =
            if text.trim_start().starts_with('{') { from_jwks(text, rsa, strictness)? } else { from_pem(text, rsa)? };
        if keys.is_empty() {
            return Err("it holds no key that could have signed a token: write public keys (PEM, or a JWKS)".to_owned());
        }
        if keys.len() > KEYS_MAX {
            return Err(format!("it holds more than {KEYS_MAX} keys: take out those that sign no more"));
        }
        Ok(Self(keys))
    }
}

fn rsa_algorithm(rsa: RsaAlgorithm) -> Algorithm {
    match rsa {
        RsaAlgorithm::Rs256 => Algorithm::RS256,
        RsaAlgorithm::Rs384 => Algorithm::RS384,
        RsaAlgorithm::Rs512 => Algorithm::RS512,
        RsaAlgorithm::Ps256 => Algorithm::PS256,
        RsaAlgorithm::Ps384 => Algorithm::PS384,
        RsaAlgorithm::Ps512 => Algorithm::PS512,
    }
}

// --- PEM ------------------------------------------------------------------------------------------------------------

fn from_pem(text: &str, rsa: RsaAlgorithm) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    for (position, block) in text.split("-----BEGIN ").skip(1).enumerate() {
        let number = position + 1;
        let label = block.split("-----").next().unwrap_or_default();
        if label.contains("PRIVATE") {
            let remedy = "write the public one: openssl pkey -in FILE -pubout";
            return Err(format!("block {number} is a private key, which signs: {remedy}"));
        }
        if label != "PUBLIC KEY" && label != "RSA PUBLIC KEY" {
            let remedy = "write the public key (of a certificate: openssl x509 -in FILE -noout -pubkey)";
            return Err(format!("block {number} is {label:?}: {remedy}"));
        }
        let pem = format!("-----BEGIN {block}");
        let (algorithm, key) = pem_key(pem.as_bytes(), rsa)
            .ok_or_else(|| format!("block {number} is no public key of RSA, P-256, P-384 or Ed25519"))?;
        keys.push(Key { id: None, algorithm, decoding: key });
    }
    Ok(keys)
}

fn pem_key(pem: &[u8], rsa: RsaAlgorithm) -> Option<(Algorithm, DecodingKey)> {
    if let Ok(key) = DecodingKey::from_rsa_pem(pem) {
        return Some((rsa_algorithm(rsa), key));
    }
    if let Ok(key) = DecodingKey::from_ed_pem(pem) {
        return Some((Algorithm::EdDSA, key));
    }
    let key = DecodingKey::from_ec_pem(pem).ok()?;
    // An uncompressed point: one byte, and two coordinates.
    let algorithm = match key.try_get_as_bytes().ok()?.len() {
        65 => Algorithm::ES256,
        97 => Algorithm::ES384,
        _ => return None,
    };
    Some((algorithm, key))
}

// --- JWKS -----------------------------------------------------------------------------------------------------------

fn from_jwks(text: &str, rsa: RsaAlgorithm, strictness: Strictness) -> Result<Vec<Key>, String> {
    let set: Value = serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
    let Some(entries) = set["keys"].as_array() else {
        return Err("it is no JWKS: there is no list \"keys\" in it".to_owned());
    };
    let mut keys = Vec::new();
    for (position, entry) in entries.iter().enumerate().take(KEYS_MAX + 1) {
        match jwk(entry, rsa, strictness) {
            Ok(key) => keys.extend(key),
            Err(what) if strictness == Strictness::All => return Err(format!("key {}: {what}", position + 1)),
            Err(what) => tracing::warn!(key = position + 1, what, "a key of a JWKS is left out"),
        }
    }
    Ok(keys)
}

/// None: it is for something else than signatures.
fn jwk(entry: &Value, rsa: RsaAlgorithm, strictness: Strictness) -> Result<Option<Key>, String> {
    if entry.get("d").is_some() {
        return Err("it is a private key, which signs: take \"d\" and the other private parts out".to_owned());
    }
    let jwk: Jwk = serde_json::from_value(entry.clone()).map_err(|error| format!("it is no JWK: {error}"))?;
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return Ok(None);
    }
    let said = match jwk.common.key_algorithm {
        None => None,
        Some(algorithm) => {
            let known = Algorithm::try_from(algorithm);
            Some(known.map_err(|_| format!("its algorithm {algorithm} is not for signatures"))?)
        }
    };
    let own = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => said.unwrap_or(rsa_algorithm(rsa)),
        AlgorithmParameters::EllipticCurve(parameters) => match parameters.curve {
            EllipticCurve::P256 => Algorithm::ES256,
            EllipticCurve::P384 => Algorithm::ES384,
            _ => return Err("its curve is neither P-256 nor P-384".to_owned()),
        },
        AlgorithmParameters::OctetKeyPair(_) => Algorithm::EdDSA,
        AlgorithmParameters::OctetKey(_) if strictness == Strictness::All => {
            said.ok_or("it is symmetric and says no algorithm: write \"alg\": \"HS256\"")?
        }
        _ => return Err("keys of its type are not taken".to_owned()),
    };
    if said.is_some_and(|said| said != own) {
        return Err(format!("it says {:?}, and is a key for {own:?}", said.unwrap_or(own)));
    }
    let key = DecodingKey::from_jwk(&jwk).map_err(|error| format!("it cannot be used: {error}"))?;
    if key.family() != own.family() {
        return Err(format!("it says {own:?}, which a key of its type cannot be for"));
    }
    Ok(Some(Key { id: jwk.common.key_id, algorithm: own, decoding: key }))
}

/// A place for keys that are fetched: the last good ones.
#[derive(Default)]
pub(super) struct KeyRing(Mutex<Option<Arc<Keys>>>);

impl KeyRing {
    pub(super) fn of(keys: Keys) -> Self {
        Self(Mutex::new(Some(Arc::new(keys))))
    }

    /// None: they were never there.
    pub(super) fn get(&self) -> Option<Arc<Keys>> {
        // A panic within the lock cannot leave half a pointer.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, keys: Keys) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keys));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Algorithm>, String> {
        parse_as(text, Strictness::All)
    }

    fn parse_as(text: &str, strictness: Strictness) -> Result<Vec<Algorithm>, String> {
        let keys = Keys::parse(text, RsaAlgorithm::Ps256, strictness)?;
        Ok(keys.iter().map(|key| key.algorithm).collect())
    }

    const POINT: &str = r#""crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0""#;
    const RSA: &str = r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#;

    #[test]
    fn a_key_says_its_algorithm_and_nothing_else_does() {
        let set = |keys: &str| format!("{{\"keys\":[{keys}]}}");
        let ec = |more: &str| format!(r#"{{"kty":"EC",{POINT}{more}}}"#);
        assert_eq!(parse(&set(&ec(""))), Ok(vec![Algorithm::ES256]));
        assert_eq!(parse(&set(RSA)), Ok(vec![Algorithm::PS256]), "as it is configured");
        let ed = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        assert_eq!(parse(&set(&format!("{RSA},{ed}"))), Ok(vec![Algorithm::PS256, Algorithm::EdDSA]));
        let wrong = |keys: &str, part: &str| {
            let error = parse(&set(keys)).unwrap_err();
            assert!(error.contains(part), "{error}");
        };
        wrong(&ec(r#","alg":"HS256""#), "key 1: it says HS256, and is a key for ES256");
        wrong(r#"{"kty":"RSA","n":"AQAB","e":"AQAB","alg":"ES256"}"#, "which a key of its type cannot be for");
        wrong(&ec(r#","alg":"ECDH-ES""#), "key 1: ");
        wrong(&ec(r#","d":"AQAB""#), "it is a private key");
        wrong(r#"{"kty":"oct","k":"AQAB"}"#, "write \"alg\": \"HS256\"");
        wrong(r#"{"kty":"EC","crv":"P-521","x":"AQAB","y":"AQAB"}"#, "neither P-256 nor P-384");
        wrong(&ec(r#","use":"enc""#), "it holds no key that could have signed");
        wrong(&vec![RSA; KEYS_MAX + 1].join(","), "more than 64 keys");
        let symmetric = r#"{"kty":"oct","k":"c2VjcmV0","alg":"HS256"}"#;
        assert_eq!(parse(&set(symmetric)), Ok(vec![Algorithm::HS256]));
        // What was fetched is somebody else's: what can be used is, and a secret that others may read is none.
        let fetched = set(&format!("{symmetric},{},{}", ec(r#","alg":"HS256""#), ec("")));
        assert_eq!(parse_as(&fetched, Strictness::Usable), Ok(vec![Algorithm::ES256]));
        assert!(parse("{").unwrap_err().contains("no JSON") && parse("{}").unwrap_err().contains("no JWKS"));
        assert!(parse("").unwrap_err().contains("holds no key"));
    }

    #[test]
    fn pem_holds_public_keys_alone() {
        // RFC 8410 10.1.
        let ed = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        assert_eq!(parse(&format!("# ours\n{ed}{ed}")), Ok(vec![Algorithm::EdDSA; 2]));
        let private = ed.replace("PUBLIC", "PRIVATE");
        assert!(parse(&private).unwrap_err().contains("openssl pkey -in FILE -pubout"));
        assert!(
            parse(&format!("{ed}{}", ed.replace("PUBLIC KEY", "CERTIFICATE")))
                .unwrap_err()
                .contains("block 2 is \"CERTIFICATE\"")
        );
        assert!(parse(&ed.replace("MCow", "MCox")).unwrap_err().contains("block 1 is no public key"));
    }
}
