//! `GET` and `DELETE /v1/commands/{id}`: what became of a command that waits for its device, or waited; and taking it back.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State as Shared};
use serde::Serialize;

use super::State;
use super::devices::ANSWER_MAX;
use super::error::ApiError;
use crate::fleet::{Fleet, KnownCommand, Unreachable};
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
    let (fleet, id, deadline) = asked(&state, path)?;
    let known = fleet.command(&id, deadline).await;
    shown(id, known)
}

/// Takes it back. One that has an outcome keeps it.
pub(super) async fn cancel(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, ApiError> {
    let (fleet, id, deadline) = asked(&state, path)?;
    let known = fleet.cancel_command(&id, deadline).await;
    shown(id, known)
}

/// Who is asked, for which command, and by when there is an answer.
fn asked(state: &State, path: Result<Path<String>, PathRejection>) -> Result<(&Fleet, String, Instant), ApiError> {
    let Path(id) = path.map_err(|_| ApiError::Path)?;
    let fleet = state.fleet.as_ref().ok_or(ApiError::NoQueue)?;
    Ok((fleet, id, Instant::now() + ANSWER_MAX))
}

fn shown(id: String, known: Result<Option<KnownCommand>, Unreachable>) -> Result<Json<Shown>, ApiError> {
    let known = known.map_err(|_| ApiError::OthersAway)?;
    let Some(KnownCommand { device, fate, at_ms, tries, node, why }) = known else {
        return Err(ApiError::NoCommand(id));
    };
    let at = sink::time(i64::try_from(at_ms).unwrap_or(i64::MAX));
    Ok(Json(Shown { id, device, state: fate.label(), at, tries, node, why }))
}
