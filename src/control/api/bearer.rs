//! The bearer token of the API (RFC 6750, header form only).

use std::io;
use std::sync::Arc;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::{State, is_probe};

/// The admin token as a digest under a key of this process: comparing takes the same time wherever a guess goes wrong,
/// and however long it is the token's length stays hidden.
pub(in crate::control) struct BearerAuth {
    key: hmac::Key,
    digest: hmac::Tag,
}

impl BearerAuth {
    /// A gate that `token` opens.
    pub(in crate::control) fn new(token: &str) -> io::Result<BearerAuth> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| io::Error::other("the system gives no random key"))?;
        let digest = hmac::sign(&key, token.as_bytes());
        Ok(BearerAuth { key, digest })
    }

    fn accepts(&self, token: &[u8]) -> bool {
        hmac::verify(&self.key, token, self.digest.as_ref()).is_ok()
    }
}

/// Lets a request pass when no token is demanded, when it carries the right one, or when it only asks for signs of
/// life.
pub(super) async fn demand_token(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    if let Some(wanted) = &state.current().bearer
        && !is_probe(&request)
    {
        match bearer(request.headers()) {
            None => return ApiError::Unauthorized { presented: false }.into_response(),
            Some(token) if !wanted.accepts(token) => {
                return ApiError::Unauthorized { presented: true }.into_response();
            }
            Some(_) => {}
        }
    }
    next.run(request).await
}

/// The token of a request with exactly one `Authorization: Bearer`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    // RFC 9110, section 11.1: the scheme is case-insensitive, at least one space follows it.
    let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}
