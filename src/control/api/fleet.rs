//! `GET /v1/fleet`: how this gateway is one of a fleet.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use serde::Serialize;

use super::State;
use super::error::ApiError;
use crate::fleet::Report;

#[derive(Serialize)]
pub(super) struct Fleet {
    node: String,
    prefix: String,
    state: &'static str,
    /// Seconds since when.
    for_s: u64,
    error: Option<String>,
    server: Option<String>,
    promise: Option<String>,
    devices: Devices,
    takeovers: Takeovers,
    publications: Publications,
}

/// What is published at other gateways.
#[derive(Serialize)]
struct Publications {
    /// Subjects of the stream that are read.
    subjects: u64,
    /// Messages given to subscribers here since the start.
    taken: u64,
    /// Messages in the stream that are still to be read, as of the latest that was.
    behind: u64,
    /// Messages that the stream let go before they were read, at most.
    missed: u64,
    /// Why it cannot be read.
    error: Option<String>,
}

#[derive(Serialize)]
struct Devices {
    claimed: u64,
    waiting: u64,
}

#[derive(Serialize)]
struct Takeovers {
    won: u64,
    lost: u64,
    damped: u64,
}

pub(super) async fn describe(Shared(state): Shared<Arc<State>>) -> Result<Json<Fleet>, ApiError> {
    let (Some(fleet), Some(config)) = (&state.fleet, &state.config.fleet) else { return Err(ApiError::NoFleet) };
    let report = fleet.report();
    let Report { state: now, for_long, error, server, promise, .. } = report;
    let publications = Publications {
        subjects: report.subjects,
        taken: report.publications_taken,
        behind: report.publications_behind,
        missed: report.publications_missed,
        error: report.publications_error,
    };
    let Report { devices_held, devices_waiting, taken, lost, damped, .. } = report;
    Ok(Json(Fleet {
        node: state.config.node.clone(),
        prefix: config.prefix.clone(),
        state: now.label(),
        for_s: for_long.as_secs(),
        error,
        server,
        promise,
        devices: Devices { claimed: devices_held, waiting: devices_waiting },
        takeovers: Takeovers { won: taken, lost, damped },
        publications,
    }))
}
