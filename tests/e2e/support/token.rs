//! JSON Web Tokens as others make them: signed by openssl, put together here.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use serde_json::{Value, json};

use super::Site;

/// Whoever makes tokens: a key pair.
pub struct Issuer {
    directory: PathBuf,
    name: String,
    algorithm: &'static str,
}

impl Issuer {
    /// With a key on P-256 (`ES256`).
    pub fn ec(site: &Site, name: &str) -> Self {
        Self::new(site, name, "ES256", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
    }

    /// With an RSA key (`RS256`).
    pub fn rsa(site: &Site, name: &str) -> Self {
        Self::new(site, name, "RS256", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
    }

    fn new(site: &Site, name: &str, algorithm: &'static str, kind: &[&str]) -> Self {
        let directory = site.directory().to_owned();
        let (private, public) = (format!("{name}.key"), format!("{name}.pub"));
        openssl(&directory, &[&["genpkey", "-out", &private], kind].concat(), b"");
        openssl(&directory, &["pkey", "-in", &private, "-pubout", "-out", &public], b"");
        Self { directory, name: name.to_owned(), algorithm }
    }

    /// The public key in PEM.
    pub fn public(&self) -> String {
        std::fs::read_to_string(self.directory.join(format!("{}.pub", self.name))).unwrap()
    }

    /// The public key as a JWK, under its own name.
    pub fn jwk(&self) -> Value {
        let public = format!("{}.pub", self.name);
        if self.algorithm == "ES256" {
            let der = openssl(&self.directory, &["pkey", "-pubin", "-in", &public, "-outform", "DER"], b"");
            let (x, y) = der[der.len() - 64..].split_at(32);
            json!({"kty": "EC", "crv": "P-256", "kid": self.name, "x": base64(x), "y": base64(y), "use": "sig"})
        } else {
            let text = openssl(&self.directory, &["rsa", "-pubin", "-in", &public, "-noout", "-modulus"], b"");
            let text = String::from_utf8(text).unwrap();
            let digits = text.trim().strip_prefix("Modulus=").unwrap().as_bytes();
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            let n: Vec<u8> = digits.chunks(2).map(byte).collect();
            json!({"kty": "RSA", "kid": self.name, "n": base64(&n), "e": "AQAB", "alg": "RS256"})
        }
    }

    /// A token with these claims and its own name as the key's.
    pub fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": self.algorithm, "typ": "JWT", "kid": self.name}), claims)
    }

    /// The same with a header of one's own.
    pub fn token_with(&self, header: &Value, claims: &Value) -> String {
        let message = message(header, claims);
        let private = format!("{}.key", self.name);
        let signed = openssl(&self.directory, &["dgst", "-sha256", "-sign", &private], message.as_bytes());
        let signature = if self.algorithm == "ES256" { raw_signature(&signed) } else { signed };
        format!("{message}.{}", base64(&signature))
    }
}

/// A token that nobody has signed.
pub fn unsigned(claims: &Value) -> String {
    format!("{}.", message(&json!({"alg": "none"}), claims))
}

/// A token with a symmetric signature under these bytes.
pub fn symmetric(site: &Site, secret: &[u8], header: &Value, claims: &Value) -> String {
    let message = message(header, claims);
    let digits: Vec<String> = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let key = format!("hexkey:{}", digits.concat());
    let arguments = ["dgst", "-sha256", "-mac", "HMAC", "-macopt", &key, "-binary"];
    format!("{message}.{}", base64(&openssl(site.directory(), &arguments, message.as_bytes())))
}

/// So many seconds from now, as tokens say it.
pub fn seconds_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    now as i64 + seconds
}

fn message(header: &Value, claims: &Value) -> String {
    format!("{}.{}", base64(header.to_string().as_bytes()), base64(claims.to_string().as_bytes()))
}

fn base64(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// From the DER that openssl makes of two integers to the 64 bytes that a token has (RFC 7518 3.4).
fn raw_signature(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut out = Vec::new();
    for _ in 0..2 {
        let length = usize::from(rest[1]);
        let digits = &rest[2..2 + length];
        let digits = &digits[digits.len().saturating_sub(32)..];
        out.extend(std::iter::repeat_n(0, 32 - digits.len()));
        out.extend_from_slice(digits);
        rest = &rest[2 + length..];
    }
    out
}

fn openssl(directory: &Path, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.current_dir(directory).args(arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("openssl runs");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
