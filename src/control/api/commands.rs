//! `GET` and `DELETE /v1/commands/{id}`: what became of a command that waits for its device, or waited; and taking it back.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State as Shared};
use serde::Serialize;
use tokio::time::Instant;

use super::State;
use super::devices::ANSWER_MAX;
use super::error::ApiError;
use crate::commands::Known;
use crate::control::queue::NotKnown;
use crate::sink;

/// A command as the API shows it.
#[derive(Serialize)]
pub(super) struct Shown {
    id: String,
    device: Box<str>,
    state: &'static str,
    at: String,
    tries: u32,
    node: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

pub(super) async fn describe(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, ApiError> {
    look(&state, path, false).await
}

/// Takes it back. One that has an outcome keeps it.
pub(super) async fn cancel(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, ApiError> {
    look(&state, path, true).await
}

async fn look(
    state: &Arc<State>,
    path: Result<Path<String>, PathRejection>,
    cancel: bool,
) -> Result<Json<Shown>, ApiError> {
    let Path(id) = path.map_err(|_| ApiError::Path)?;
    let known = state.look_at_command(&id, cancel, Instant::now() + ANSWER_MAX).await.map_err(|error| match error {
        NotKnown::NoQueue => ApiError::NoQueue,
        NotKnown::Away if state.fleet.is_some() => ApiError::OthersAway,
        NotKnown::Away => ApiError::Store("it does not answer in time".to_owned()),
    })?;
    let Some(Known { device, fate, at_ms, tries, node, why }) = known else {
        return Err(ApiError::NoCommand(id));
    };
    let at = sink::time(i64::try_from(at_ms).unwrap_or(i64::MAX));
    Ok(Json(Shown { id, device, state: fate.label(), at, tries, node, why }))
}
