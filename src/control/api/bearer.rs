//! The bearer tokens of the API (RFC 6750, header form only), and what the role of each allows.

use std::io;
use std::sync::Arc;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use axum::Json;
use axum::extract::{Extension, Request, State as Shared};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Serialize, Serializer};

use super::error::ApiError;
use super::{State, is_probe, page};
use crate::config::{AdminToken, Role};

/// The tokens as digests under a key of this process: comparing takes the same time wherever a guess goes wrong, and
/// however long it is the tokens' lengths stay hidden.
pub(in crate::control) struct BearerAuth {
    key: hmac::Key,
    tokens: Vec<Known>,
}

struct Known {
    name: String,
    role: Role,
    digest: hmac::Tag,
}

impl BearerAuth {
    /// For these tokens.
    pub(in crate::control) fn new(tokens: &[AdminToken]) -> io::Result<BearerAuth> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| io::Error::other("the system gives no random key"))?;
        let tokens = tokens
            .iter()
            .map(|token| Known {
                name: token.name.clone(),
                role: token.role,
                digest: hmac::sign(&key, token.secret.reveal().as_bytes()),
            })
            .collect();
        Ok(BearerAuth { key, tokens })
    }

    /// Whose token it is. All are compared, so that the time does not tell which was nearly right.
    fn find(&self, token: &[u8]) -> Option<&Known> {
        let is_right = |known: &Known| hmac::verify(&self.key, token, known.digest.as_ref()).is_ok();
        self.tokens.iter().fold(None, |found, known| if is_right(known) { Some(known) } else { found })
    }
}

/// Lets a request pass when no token is demanded, when it carries one whose role allows it, or when it only asks for signs
/// of life. Whatever changes something is logged with the name of who asked, never with a token.
pub(super) async fn demand_token(Shared(state): Shared<Arc<State>>, mut request: Request, next: Next) -> Response {
    let current = state.current();
    // Where no token is demanded, whoever reaches the API may do everything.
    let mut holder = Holder { name: None, role: Role::Admin };
    if let Some(auth) = &current.bearer
        && !is_probe(&request)
        && !page::is_part(request.uri().path())
    {
        let Some(token) = bearer(request.headers()) else {
            return ApiError::Unauthorized { presented: false }.into_response();
        };
        let Some(known) = auth.find(token) else {
            return ApiError::Unauthorized { presented: true }.into_response();
        };
        let (method, path) = (request.method(), request.uri().path());
        let needed = needed(method, path);
        if known.role < needed {
            tracing::warn!(token = known.name, role = known.role.label(), %method, path, "a token's role does not allow this");
            return ApiError::Forbidden { role: known.role, needed }.into_response();
        }
        if needed > Role::Read {
            tracing::info!(token = known.name, %method, path, "asked over the API");
        }
        holder = Holder { name: Some(known.name.clone()), role: known.role };
    }
    request.extensions_mut().insert(holder);
    next.run(request).await
}

/// Who asks.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Holder {
    /// The token's name; `None` where none is demanded.
    name: Option<String>,
    #[serde(serialize_with = "as_label")]
    role: Role,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn as_label<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(role.label())
}

/// `GET /v1/whoami`: what the token that came with the request may do.
pub(super) async fn whoami(Extension(holder): Extension<Holder>) -> Json<Holder> {
    Json(holder)
}

/// The least role that may ask this: whoever reads changes nothing, devices are commanded and followed under paths of their
/// own, and all else is about the gateway itself.
fn needed(method: &Method, path: &str) -> Role {
    // Whoever follows a device sees what it says, and is named in the log.
    if path == "/v1/trace" {
        return Role::Command;
    }
    if [Method::GET, Method::HEAD, Method::OPTIONS].contains(method) {
        return Role::Read;
    }
    let commands = ["/v1/devices/", "/v1/messages", "/v1/commands/", "/v1/publish", "/v1/broadcast"];
    if commands.iter().any(|start| path.starts_with(start)) { Role::Command } else { Role::Admin }
}

/// The token of a request with exactly one `Authorization: Bearer`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    // RFC 9110, section 11.1: the scheme is case-insensitive, at least one space follows it.
    let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}
