//! `GET /v1/openapi.json`: this API for machines (OpenAPI 3.1). The text is `openapi.json` beside this file; a test
//! holds every answer of the other tests against it.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use bytes::Bytes;

/// The description, but for the version.
const DESCRIPTION: &str = include_str!("openapi.json");

/// The description of this version of the gateway.
pub(in crate::control) fn description() -> String {
    DESCRIPTION.replacen("\"0.0.0\"", concat!("\"", env!("CARGO_PKG_VERSION"), "\""), 1)
}

pub(super) async fn openapi() -> impl IntoResponse {
    // One for all who ask.
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| description().into());
    ([(header::CONTENT_TYPE, "application/json")], TEXT.clone())
}
