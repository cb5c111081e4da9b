//! `POST /v1/reload`: everything that was configured is read anew; the answer says what came of it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use serde::Serialize;

use super::error::ApiError;
use crate::control::State;
use crate::control::policy::ReloadRequest;

/// What was changed.
#[derive(Serialize)]
pub(super) struct Reloaded {
    changed: Vec<String>,
    needs_restart: Vec<String>,
    warnings: Vec<String>,
}

/// Asks for a reload and waits for it: seconds at most.
pub(super) async fn reload(Shared(state): Shared<Arc<State>>) -> Result<Json<Reloaded>, ApiError> {
    let (request, wait) = ReloadRequest::by_api();
    state.reloads.try_send(request).map_err(|_| ApiError::ApiBusy)?;
    match wait.await {
        Ok(Ok(report)) => Ok(Json(Reloaded {
            changed: report.changed,
            needs_restart: report.needs_restart,
            warnings: report.warnings,
        })),
        Ok(Err(problems)) => Err(ApiError::NotReloaded(problems.join("\n"))),
        Err(_) => Err(ApiError::ShuttingDown),
    }
}
