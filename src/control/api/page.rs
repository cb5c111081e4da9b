//! The page at the admin address: static files within the program, for people with a browser. What it shows and does goes through
//! the API, under the token that is typed into it; the files themselves hold nothing and need none.
//!
//! Names of devices come from strangers. The page puts them into the document as text alone, and its policy forbids the rest: no
//! script but its own files, no inline style or script, no markup made of strings (trusted types), no frame around it.

use std::sync::Arc;

use axum::http::header::{self, HeaderName};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};

use super::State;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// Path, media type, contents.
const FILES: [(&str, &str, &str); 6] = [
    ("/", "text/html; charset=utf-8", include_str!("page/page.html")),
    ("/page/page.js", "text/javascript; charset=utf-8", include_str!("page/page.js")),
    ("/page/page.css", "text/css; charset=utf-8", include_str!("page/page.css")),
    ("/page/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    // uPlot 1.6.32, MIT: page/uplot.LICENSE.
    ("/page/uplot.js", "text/javascript; charset=utf-8", include_str!("page/uplot.js")),
    ("/page/uplot.css", "text/css; charset=utf-8", include_str!("page/uplot.css")),
];

/// Its files, as routes.
pub(super) fn routes() -> impl Iterator<Item = (&'static str, MethodRouter<Arc<State>>)> {
    FILES.into_iter().map(|(path, kind, text)| (path, get(move || async move { file(kind, text) })))
}

/// Whether a path is one of them: they are given to everybody who may reach the API.
pub(super) fn is_part(path: &str) -> bool {
    FILES.iter().any(|(known, _, _)| *known == path)
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &str); 7] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        // A newer program has a newer page.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
