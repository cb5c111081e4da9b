//! Bodies of requests: JSON that says so, within a bound, and what they hold for devices.
//!
//! `Content-Type: application/json` is demanded and not only hoped for: a web page that an operator happens to look at
//! may send any other kind of body to an API on the loopback address without asking.

use std::future::poll_fn;
use std::pin::Pin;

use axum::body::HttpBody;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::link::Downlink;

/// The longest body taken, in bytes: the longest payload, were every character of it escaped.
pub(super) const BODY_BYTES_MAX: usize = 448 << 10;
/// A longer one is still read to its end, and forgotten, if it says that it is no longer than this: whoever sends all before it reads
/// finds the answer, and not a connection that is gone.
const FORGOTTEN_BYTES_MAX: u64 = 4 << 20;
/// The longest payload, in bytes. What a device's protocol carries may be less.
const PAYLOAD_BYTES_MAX: usize = 65_535;
/// The longest topic of something said to one device, in bytes.
const TOPIC_BYTES_MAX: usize = 255;

/// The body as JSON.
pub(super) fn parse<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<T, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::MediaType);
    }
    from_slice(&body.map_err(|rejection| not_taken(&rejection))?)
}

/// How many bytes the body of a request comes to at most.
pub(super) fn most_bytes(request: &Request) -> u32 {
    let most = request.body().size_hint().upper().unwrap_or(u64::MAX).min(BODY_BYTES_MAX as u64);
    u32::try_from(most).unwrap_or(u32::MAX)
}

/// The request with all of its body, once that is here. One that says that it is far too long is not waited for.
pub(super) async fn whole(request: Request) -> Result<Request, ApiError> {
    let least = request.body().size_hint().lower();
    if least > BODY_BYTES_MAX as u64 {
        if least <= FORGOTTEN_BYTES_MAX {
            let mut body = request.into_body();
            while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
        }
        return Err(too_large());
    }
    let (head, body) = request.into_parts();
    let body = Bytes::from_request(Request::from_parts(head.clone(), body), &()).await;
    Ok(Request::from_parts(head, body.map_err(|rejection| not_taken(&rejection))?.into()))
}

fn not_taken(rejection: &BytesRejection) -> ApiError {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        _ => ApiError::Body("the body could not be read to its end".to_owned()),
    }
}

fn too_large() -> ApiError {
    ApiError::TooLarge(format!("the body is longer than {BODY_BYTES_MAX} bytes"))
}

/// The same of bytes that came another way.
pub(super) fn from_slice<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.len() > BODY_BYTES_MAX {
        return Err(too_large());
    }
    serde_json::from_slice(body).map_err(|error| ApiError::Body(format!("the body is not as it must be: {error}")))
}

/// What is to be said, from the fields that say it.
pub(super) fn downlink(topic: &str, text: Option<String>, base64: Option<&String>) -> Result<Downlink, ApiError> {
    if topic.len() > TOPIC_BYTES_MAX || topic.contains(char::is_control) {
        let fault = format!("a topic is at most {TOPIC_BYTES_MAX} bytes of UTF-8 without control characters");
        return Err(ApiError::Body(fault));
    }
    Ok(Downlink { topic: topic.into(), payload: payload(text, base64)? })
}

/// A payload, from whichever of the two fields says it.
pub(super) fn payload(text: Option<String>, base64: Option<&String>) -> Result<Bytes, ApiError> {
    let payload = match (text, base64) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(base64)) => {
            let decoded = BASE64_STANDARD.decode(base64);
            decoded.map_err(|error| ApiError::Body(format!("payload_base64 is not base64: {error}")))?
        }
        _ => return Err(ApiError::Body("give either payload or payload_base64".to_owned())),
    };
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(ApiError::TooLarge(format!("the payload is longer than {PAYLOAD_BYTES_MAX} bytes")));
    }
    Ok(payload.into())
}
