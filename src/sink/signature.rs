//! Requests that can be known to be ours: HMAC-SHA256 as the Standard Webhooks specification writes it
//! (standardwebhooks.com), for which there are libraries in most languages.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// How a secret begins that is written in base64.
const PREFIX: &str = "whsec_";
/// No secret is shorter, in bytes.
const KEY_BYTES_MIN: usize = 16;

/// The key.
#[derive(Clone)]
pub struct Signer(hmac::Key);

impl Signer {
    /// The key that a file holds: `whsec_` and base64, or the text itself.
    ///
    /// # Errors
    /// What is wrong with it; the secret is not in it.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let key = match text.strip_prefix(PREFIX) {
            Some(base64) => zeroize::Zeroizing::new(
                BASE64_STANDARD.decode(base64).map_err(|_| "what follows whsec_ is not base64".to_owned())?,
            ),
            None => zeroize::Zeroizing::new(text.as_bytes().to_vec()),
        };
        if key.len() < KEY_BYTES_MIN {
            return Err(format!("the key is shorter than {KEY_BYTES_MIN} bytes and could be guessed"));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// The value of `webhook-signature` for a request with this `webhook-id` and `webhook-timestamp`.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", BASE64_STANDARD.encode(context.sign()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference libraries.
    #[test]
    fn the_specification_signs_the_same() {
        let signer = Signer::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let signature = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_is_at_least_as_long_as_it_must_be() {
        assert!(Signer::new("0123456789abcdef").is_ok());
        for wrong in ["", "short", "whsec_c2hvcnQ=", "whsec_!!"] {
            assert!(Signer::new(wrong).is_err(), "{wrong}");
        }
    }
}
