//! `GET /v1/devices/{id}/history`: how the latest connections of a device ended, and its latest attempts to connect. Those of
//! this life of the gateway are in memory; those before are presence events in the store, as far as it keeps these. In a fleet
//! each gateway knows those that it saw, and all are asked.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State as Shared};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::State;
use super::devices::ANSWER_MAX;
use super::error::ApiError;
use super::fleet::{Others, Scope};
use super::query::{self, Parsed};
use crate::config::Listener;
use crate::control::history::{self, ENDS_PER_DEVICE_MAX};
use crate::control::reasons::explain;
use crate::fleet::Call;
use crate::link::CloseReason;
use crate::sink;
use crate::store::{Facts, Stored, What};

/// Presence events that are looked through for ends: as many come as go.
const LOOKED_THROUGH: u32 = 4 * ENDS_PER_DEVICE_MAX as u32;

#[derive(Serialize)]
pub(super) struct Answer {
    device: String,
    /// Newest first.
    ends: Vec<End>,
    /// In a fleet: gateways that did not answer; `None` too where it is not known which there are (`error`).
    #[serde(skip_serializing_if = "Option::is_none")]
    unanswered: Option<Vec<String>>,
    /// Why only this gateway's are told.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A word that is one of ours, or came from another gateway.
type Word = Cow<'static, str>;

#[derive(Serialize, Deserialize)]
pub(in crate::control) struct End {
    at: String,
    /// In a fleet: at which gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    reason: Word,
    detail: Box<str>,
    /// Whether it was a connected device; otherwise it did not become one.
    was_connected: bool,
    connected_at: String,
    generation: Option<u64>,
    listener: Box<str>,
    protocol: Word,
    peer: Option<String>,
    identity: Box<str>,
    tls_version: Box<str>,
    meaning: Word,
    look_at: Word,
    remedy: Word,
}

pub(super) async fn history(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
    query: Parsed,
) -> Result<Json<Answer>, ApiError> {
    let Path(device) = path.map_err(|_| ApiError::Path)?;
    let [fleet] = query::values(query, ["fleet"])?;
    let everywhere = if state.fleet.is_some() { Scope::Fleet } else { Scope::Gateway };
    if Scope::of(fleet.as_deref(), everywhere)? == Scope::Gateway {
        return Ok(Json(Answer { ends: ends_here(&state, &device).await?, device, unanswered: None, error: None }));
    }
    let call = Call::History { device: device.as_str().into() };
    let deadline = Instant::now() + ANSWER_MAX;
    let (here, others) = tokio::join!(ends_here(&state, &device), Others::<Vec<End>>::ask(&state, &call, deadline));
    let mut ends = here?;
    let (unanswered, error) = match others {
        Ok(Others { said, unanswered }) => {
            ends.extend(said.into_iter().flat_map(|(_, ends)| ends));
            (Some(unanswered), None)
        }
        Err(error @ ApiError::OthersAway) => (None, Some(error.to_string())),
        Err(error) => return Err(error),
    };
    // Times are RFC 3339 in UTC with milliseconds: as text they are in their order.
    ends.sort_by(|a, b| b.at.cmp(&a.at));
    ends.truncate(ENDS_PER_DEVICE_MAX);
    Ok(Json(Answer { device, ends, unanswered, error }))
}

/// The ends that this gateway saw, newest first.
pub(in crate::control) async fn ends_here(state: &Arc<State>, device: &str) -> Result<Vec<End>, ApiError> {
    let mut ends: Vec<End> = state.history.of(device).into_iter().map(|end| End::new(state, end)).collect();
    if ends.len() < ENDS_PER_DEVICE_MAX && state.store.is_some() {
        let (state, device) = (Arc::clone(state), device.to_owned());
        let earlier = tokio::task::spawn_blocking(move || earlier(&state, &device)).await;
        ends.extend(earlier.map_err(|_| ApiError::Store("the store's reader has ended".into()))??);
        ends.truncate(ENDS_PER_DEVICE_MAX);
    }
    Ok(ends)
}

/// The ends in earlier lives of the gateway, newest first.
fn earlier(state: &State, device: &str) -> Result<Vec<End>, ApiError> {
    let Some(store) = &state.store else { return Ok(Vec::new()) };
    let events = store.reader().presence(device, LOOKED_THROUGH)?;
    Ok(events.iter().filter_map(|stored| End::earlier(state, stored)).collect())
}

fn node_of(state: &State) -> Option<String> {
    state.fleet.as_ref().map(|_| state.config.node.clone())
}

fn protocol_of(listener: Option<&Listener>) -> &'static str {
    listener.map_or("", |listener| listener.protocol.label())
}

impl End {
    fn new(state: &State, end: history::End) -> Self {
        let listener = &state.config.listeners[end.listener.index()];
        let explanation = explain(end.reason);
        Self {
            at: state.clock.format(end.at),
            node: node_of(state),
            reason: end.reason.label().into(),
            detail: end.detail,
            was_connected: end.generation.is_some(),
            connected_at: state.clock.format(end.connected_at),
            generation: end.generation,
            listener: listener.name.as_str().into(),
            protocol: protocol_of(Some(listener)).into(),
            peer: end.peer.map(|peer| peer.to_string()),
            identity: end.identity.into(),
            tls_version: end.tls_version.into(),
            meaning: explanation.meaning.into(),
            look_at: explanation.look_at.into(),
            remedy: explanation.remedy.into(),
        }
    }

    /// An end that the store tells of, unless it is of this life, or kept no details.
    fn earlier(state: &State, stored: &Stored) -> Option<Self> {
        let What::Disconnected(Facts { listener, epoch, generation, details, .. }, cause) = &stored.entry.what else {
            return None;
        };
        let details = details.as_ref().filter(|_| *epoch != state.epoch)?;
        // Another version may have had another word, or listener.
        let reason = CloseReason::ALL.iter().find(|reason| reason.label() == &**cause);
        let explanation = reason.map(|&reason| explain(reason));
        let known = state.config.listeners.iter().find(|known| known.name == **listener);
        Some(Self {
            at: sink::time(stored.entry.at_ms),
            node: node_of(state),
            reason: cause.to_string().into(),
            detail: details.detail.clone(),
            was_connected: true,
            connected_at: sink::time(details.connected_ms),
            generation: Some(*generation),
            listener: listener.clone(),
            protocol: protocol_of(known).into(),
            peer: (!details.peer.is_empty()).then(|| details.peer.to_string()),
            identity: details.identity.clone(),
            tls_version: details.tls_version.clone(),
            meaning: explanation.as_ref().map_or("", |explanation| explanation.meaning).into(),
            look_at: explanation.as_ref().map_or("", |explanation| explanation.look_at).into(),
            remedy: explanation.as_ref().map_or("", |explanation| explanation.remedy).into(),
        })
    }
}
