//! `GET /v1/fleet`: how this gateway is one of a fleet; and what every request that is about all gateways has in common.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::State;
use super::error::ApiError;
use crate::fleet::{Answered, Bucket, Call, GroupsReport, Reply, Report, Unreachable};

/// Whom a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// The gateway that was asked.
    Gateway,
    /// All gateways of its fleet.
    Fleet,
}

impl Scope {
    /// What the key `fleet` of a query says, or what is meant without it.
    pub(super) fn of(written: Option<&str>, unwritten: Self) -> Result<Self, ApiError> {
        match written {
            None => Ok(unwritten),
            Some("true") => Ok(Self::Fleet),
            Some("false") => Ok(Self::Gateway),
            Some(other) => Err(ApiError::Query(format!("fleet must be true or false, not {other:?}"))),
        }
    }

    /// What the field `fleet` of a body says, or what is meant without it: all of a fleet where there is one.
    pub(super) fn of_order(state: &State, written: Option<bool>) -> Result<Self, ApiError> {
        match (written, &state.fleet) {
            (Some(true), None) => Err(ApiError::NoFleet),
            (Some(false), _) | (None, None) => Ok(Self::Gateway),
            _ => Ok(Self::Fleet),
        }
    }
}

/// What the other gateways said.
pub(super) struct Others<T> {
    /// By name.
    pub(super) said: Vec<(String, T)>,
    /// Those that did not answer in time, or not so that it can be understood.
    pub(super) unanswered: Vec<String>,
}

impl<T: DeserializeOwned> Others<T> {
    /// Asks all of them, each once.
    pub(super) async fn ask(state: &State, call: &Call, deadline: Instant) -> Result<Self, ApiError> {
        let fleet = state.fleet.as_ref().ok_or(ApiError::NoFleet)?;
        let answered = fleet.ask_all(call, deadline.into_std()).await.map_err(|_| ApiError::OthersAway)?;
        let (mut said, mut unanswered) = (Vec::new(), Vec::new());
        for Answered { node, reply } in answered {
            match understood(reply) {
                Some(body) => said.push((node, body)),
                None => unanswered.push(node),
            }
        }
        Ok(Self { said, unanswered })
    }
}

/// What a gateway said, if it said something that is understood.
pub(super) fn understood<T: DeserializeOwned>(reply: Result<Reply, Unreachable>) -> Option<T> {
    match reply {
        Ok(Reply::Said { body }) => serde_json::from_str(&body).ok(),
        _ => None,
    }
}

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
    groups: Groups,
    retained: Retained,
}

/// Groups of shared subscribers with members here.
#[derive(Serialize)]
struct Groups {
    /// Those that the fleet gives messages to,
    served: u64,
    /// and those that get what is published here alone.
    unserved: u64,
    /// Messages that members here got from the fleet since the start,
    given: u64,
    /// that went back to it,
    returned: u64,
    /// and that members have now and are not settled.
    unsettled: u64,
}

/// The fleet's retained messages.
#[derive(Serialize)]
struct Retained {
    /// Whether all of the bucket was read, at least once.
    read: bool,
    tombstones: u64,
    taken: u64,
    dropped: u64,
    refused: u64,
    superseded: u64,
    /// Why it cannot be read.
    error: Option<String>,
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
    let (Some(report), Some(config)) = (state.fleet_report(), &state.config.fleet) else {
        return Err(ApiError::NoFleet);
    };
    let Report { state: now, for_long, error, server, promise, .. } = report;
    let publications = Publications {
        subjects: report.subjects,
        taken: report.publications_taken,
        behind: report.publications_behind,
        missed: report.publications_missed,
        error: report.publications_error,
    };
    let GroupsReport { served, unserved, given, returned, unsettled, .. } = report.groups;
    let groups = Groups { served, unserved, given, returned, unsettled };
    let Bucket { is_read: read, tombstones, taken, dropped, refused, superseded, .. } = report.retained;
    let retained = Retained { read, tombstones, taken, dropped, refused, superseded, error: report.retained_error };
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
        groups,
        retained,
    }))
}
