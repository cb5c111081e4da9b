//! `/v1/sinks`: where what devices say goes by itself, how far each is, and what may be done about it.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State as Shared};
use axum::http::HeaderMap;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::uplink::{Cursor, parse_place, position};
use super::{State, body};
use crate::sink::{Report, SinkError, Sinks};

type Name = Result<Path<String>, PathRejection>;

fn sinks(state: &State) -> Result<&Sinks, ApiError> {
    state.sinks.as_ref().ok_or(ApiError::NoStore)
}

#[derive(Serialize)]
pub(super) struct Listed {
    sinks: Vec<Sink>,
}

#[derive(Serialize)]
struct Sink {
    name: String,
    r#type: &'static str,
    target: String,
    state: &'static str,
    error: Option<String>,
    cursor: u64,
    /// Events behind the cursor; some may be for others.
    behind: u64,
    missed: u64,
    lag_s: u64,
    sent: u64,
    failed: u64,
    dead_lettered: u64,
    commands: u64,
    commands_failed: u64,
}

impl Sink {
    fn new(report: Report, now_ms: i64) -> Self {
        let (cursor, behind, missed) =
            report.backlog.as_ref().map_or((0, 0, 0), |backlog| (backlog.cursor, backlog.behind, backlog.missed));
        Self {
            lag_s: report.lag_s(now_ms),
            name: report.name,
            r#type: report.kind,
            target: report.target,
            state: report.state,
            error: report.error,
            cursor,
            behind,
            missed,
            sent: report.sent,
            failed: report.failed,
            dead_lettered: report.dead_lettered,
            commands: report.commands,
            commands_failed: report.commands_failed,
        }
    }
}

/// `GET /v1/sinks`.
pub(super) async fn list(Shared(state): Shared<Arc<State>>) -> Result<Json<Listed>, ApiError> {
    let read = move || {
        let now_ms = state.clock.unix_ms(state.clock.now());
        let sinks = sinks(&state)?.reports().into_iter().map(|report| Sink::new(report, now_ms)).collect();
        Ok(Listed { sinks })
    };
    let listed = tokio::task::spawn_blocking(read).await;
    listed.map_err(|_| ApiError::Store("the store's reader has ended".into()))?.map(Json)
}

#[derive(Serialize)]
pub(super) struct Paused {
    sink: String,
    is_paused: bool,
}

/// `POST /v1/sinks/{name}/pause`: it sends nothing until it is resumed, also after a restart.
pub(super) async fn pause(state: Shared<Arc<State>>, name: Name) -> Result<Json<Paused>, ApiError> {
    set_paused(state, name, true).await
}

/// `POST /v1/sinks/{name}/resume`.
pub(super) async fn resume(state: Shared<Arc<State>>, name: Name) -> Result<Json<Paused>, ApiError> {
    set_paused(state, name, false).await
}

async fn set_paused(Shared(state): Shared<Arc<State>>, name: Name, is_paused: bool) -> Result<Json<Paused>, ApiError> {
    let Path(sink) = name.map_err(|_| ApiError::Path)?;
    sinks(&state)?.pause(&sink, is_paused).await?;
    Ok(Json(Paused { sink, is_paused }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SeekOrder {
    to: String,
}

/// `POST /v1/sinks/{name}/seek`: it goes on elsewhere.
pub(super) async fn seek(
    Shared(state): Shared<Arc<State>>,
    name: Name,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Cursor>, ApiError> {
    let Path(sink) = name.map_err(|_| ApiError::Path)?;
    let SeekOrder { to } = body::parse(&headers, body)?;
    let place = parse_place(&to).map_err(|error| ApiError::Body(error.to_string()))?;
    let position = position(&state, place).await?;
    let cursor = sinks(&state)?.seek(&sink, position).await?;
    Ok(Json(Cursor { consumer: sink, cursor }))
}

impl From<SinkError> for ApiError {
    fn from(error: SinkError) -> Self {
        match error {
            SinkError::NoSink(name) => ApiError::NoSink(name),
            SinkError::Store(error) => error.into(),
        }
    }
}
