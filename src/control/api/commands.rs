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
use crate::fleet::KnownCommand;
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
    let Path(id) = path.map_err(|_| ApiError::Path)?;
    let fleet = state.fleet.as_ref().ok_or(ApiError::NoQueue)?;
    let deadline = Instant::now() + ANSWER_MAX;
    shown(id.clone(), fleet.command(&id, deadline.into_std()).await.map_err(|_| ApiError::OthersAway)?)
}

/// Takes it back. One that has an outcome keeps it.
pub(super) async fn cancel(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, ApiError> {
    let Path(id) = path.map_err(|_| ApiError::Path)?;
    let fleet = state.fleet.as_ref().ok_or(ApiError::NoQueue)?;
    let deadline = Instant::now() + ANSWER_MAX;
    shown(id.clone(), fleet.cancel_command(&id, deadline.into_std()).await.map_err(|_| ApiError::OthersAway)?)
}

fn shown(id: String, known: Option<KnownCommand>) -> Result<Json<Shown>, ApiError> {
    let Some(KnownCommand { device, fate, at_ms, tries, node, why }) = known else {
        return Err(ApiError::NoCommand(id));
    };
    let at = sink::time(i64::try_from(at_ms).unwrap_or(i64::MAX));
    Ok(Json(Shown { id, device, state: fate.label(), at, tries, node, why }))
}
