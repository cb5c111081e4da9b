//! `GET /v1/devices/{id}/history`: how the latest connections of a device ended, and its latest attempts to connect.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State as Shared};
use serde::Serialize;

use super::State;
use super::error::ApiError;
use crate::control::history;
use crate::control::reasons::explain;

#[derive(Serialize)]
pub(super) struct Answer {
    device: String,
    /// Newest first.
    ends: Vec<End>,
}

#[derive(Serialize)]
struct End {
    at: String,
    reason: &'static str,
    detail: Box<str>,
    /// Whether it was a connected device; otherwise it did not become one.
    was_connected: bool,
    connected_at: String,
    generation: Option<u64>,
    listener: String,
    protocol: &'static str,
    peer: Option<String>,
    identity: &'static str,
    tls_version: &'static str,
    meaning: &'static str,
    look_at: &'static str,
    remedy: &'static str,
}

pub(super) async fn history(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Answer>, ApiError> {
    let Path(device) = path.map_err(|_| ApiError::Path)?;
    let ends = state.history.of(&device).into_iter().map(|end| End::new(&state, end)).collect();
    Ok(Json(Answer { device, ends }))
}

impl End {
    fn new(state: &State, end: history::End) -> Self {
        let listener = &state.config.listeners[end.listener.index()];
        let explanation = explain(end.reason);
        Self {
            at: state.clock.format(end.at),
            reason: end.reason.label(),
            detail: end.detail,
            was_connected: end.generation.is_some(),
            connected_at: state.clock.format(end.connected_at),
            generation: end.generation,
            listener: listener.name.clone(),
            protocol: listener.protocol.label(),
            peer: end.peer.map(|peer| peer.to_string()),
            identity: end.identity,
            tls_version: end.tls_version,
            meaning: explanation.meaning,
            look_at: explanation.look_at,
            remedy: explanation.remedy,
        }
    }
}
