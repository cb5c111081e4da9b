//! `POST /v1/broadcast`, `GET` and `DELETE /v1/broadcasts/{id}`: something said to many devices, over time. Each worker
//! tells its own devices at its share of the pace, and in a fleet each gateway at its own.
//!
//! The gateway that was asked has the broadcast: it tells the others to begin, each once, and asks them how far they are when it is
//! asked. Each of them has its part under an id of its own.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State as Shared};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::devices::ANSWER_MAX;
use super::error::ApiError;
use super::fleet::{Scope, understood};
use super::{State, body};
use crate::control::broadcasts::{Part, PartState, Progress, Share, Stage};
use crate::fleet::{Answered, Call, Fleet, Reply, Unreachable};
use crate::link::{Downlink, WorkerCommand, WorkerId};

/// Devices told in a second when the request does not say.
const PER_SECOND_DEFAULT: u32 = 1_000;
/// The most that it may say.
const PER_SECOND_MAX: u32 = 1_000_000;
/// How long somebody may wait for the end of one,
const WAIT: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(1);
/// and how often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    #[serde(default)]
    topic: String,
    payload: Option<String>,
    payload_base64: Option<String>,
    #[serde(default)]
    prefix: String,
    per_second: Option<u32>,
    fleet: Option<bool>,
    wait: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Begun {
    id: String,
    url: String,
}

/// A broadcast as the API shows it.
#[derive(Serialize, Deserialize)]
pub(super) struct Shown {
    id: String,
    state: Cow<'static, str>,
    sent: u64,
    refused: u64,
    /// Of this gateway.
    workers: Vec<ShownShare>,
    /// Of a whole fleet: what became of it at each.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateways: Option<Vec<ShownPart>>,
    /// Those of them of which it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    unanswered: Option<Vec<String>>,
}

#[derive(Serialize, Deserialize)]
struct ShownShare {
    worker: usize,
    sent: u64,
    refused: u64,
    over: bool,
}

#[derive(Serialize, Deserialize)]
struct ShownPart {
    node: String,
    state: Cow<'static, str>,
    sent: u64,
    refused: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What every gateway is told.
struct Saying {
    downlink: Downlink,
    prefix: Box<str>,
    per_second: u32,
}

pub(super) async fn begin(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let order: Order = body::parse(&headers, body)?;
    let per_second = order.per_second.unwrap_or(PER_SECOND_DEFAULT);
    if !(1..=PER_SECOND_MAX).contains(&per_second) {
        let fault = format!("per_second must be from 1 to {PER_SECOND_MAX}, not {per_second}");
        return Err(ApiError::Body(fault));
    }
    let wait = order.wait.as_deref().map(wait_of).transpose()?;
    let scope = Scope::of_order(&state, order.fleet)?;
    let downlink = body::downlink(&order.topic, order.payload, order.payload_base64.as_ref())?;
    let saying = Saying { downlink, prefix: order.prefix.into(), per_second };

    let begun = Instant::now();
    let number = match (&state.fleet, scope) {
        (Some(fleet), Scope::Fleet) => begin_everywhere(&state, fleet, saying).await?,
        _ => begin_here(&state, &saying)?,
    };
    let id = id_of(&state, number);
    if let Some(wait) = wait {
        return Ok(Json(await_end(&state, &id, begun + wait).await?).into_response());
    }
    let url = format!("/v1/broadcasts/{id}");
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, url.clone())], Json(Begun { id, url })).into_response())
}

fn id_of(state: &State, number: u64) -> String {
    format!("{}-{number}", state.epoch)
}

fn wait_of(text: &str) -> Result<Duration, ApiError> {
    let parsed = humantime::parse_duration(text).ok().filter(|wait| WAIT.contains(wait));
    parsed.ok_or_else(|| ApiError::Body(format!("wait must be a duration from \"10ms\" to \"60s\", not {text:?}")))
}

/// Looks at it until it is over, or `deadline`.
async fn await_end(state: &State, id: &str, deadline: Instant) -> Result<Shown, ApiError> {
    loop {
        let shown = look(state, id).await?;
        let now = Instant::now();
        if shown.state != Stage::Running.label() || now >= deadline {
            return Ok(shown);
        }
        tokio::time::sleep(LOOK_EVERY.min(deadline - now)).await;
    }
}

/// Tells the workers of this gateway; the number of the broadcast.
fn begin_here(state: &State, saying: &Saying) -> Result<u64, ApiError> {
    let number = state.broadcasts.begin().ok_or(ApiError::TooManyBroadcasts)?;
    for worker in (0..state.home.workers()).map(WorkerId) {
        let command = WorkerCommand::Broadcast {
            broadcast: number,
            prefix: saying.prefix.clone(),
            downlink: saying.downlink.clone(),
            per_second: share_of(saying.per_second, worker, state.home.workers()),
        };
        if state.mailboxes[worker.index()].send(command).is_err() {
            take_back(state, number, worker);
            return Err(ApiError::WorkerBusy { worker: worker.index() });
        }
    }
    Ok(number)
}

/// The same for another gateway, which has the broadcast: what it is told.
pub(in crate::control) fn begin_for_another(
    state: &State,
    downlink: Downlink,
    prefix: Box<str>,
    per_second: u32,
) -> Result<String, ApiError> {
    let number = begin_here(state, &Saying { downlink, prefix, per_second: per_second.clamp(1, PER_SECOND_MAX) })?;
    let id = id_of(state, number);
    let url = format!("/v1/broadcasts/{id}");
    Ok(serde_json::to_string(&Begun { id, url }).expect("it has no keys but texts"))
}

/// Tells this gateway and every other, at their shares of the pace. Where this one does not take it nobody is told.
async fn begin_everywhere(state: &State, fleet: &Fleet, mut saying: Saying) -> Result<u64, ApiError> {
    let deadline = (Instant::now() + ANSWER_MAX).into_std();
    let others = fleet.others(deadline).await.map_err(|_| ApiError::OthersAway)?;
    let gateways = u32::try_from(others.len() + 1).unwrap_or(u32::MAX);
    saying.per_second = (saying.per_second / gateways).max(1);
    let number = begin_here(state, &saying)?;
    let Saying { downlink: Downlink { topic, payload }, prefix, per_second } = saying;
    let call = Call::Broadcast { topic, payload, prefix, per_second };
    // Until it is known what they answer they may have begun: whoever asks meanwhile is not told that it is over.
    let unsure = |node: &String| Part { node: node.clone(), state: PartState::Unsure, sent: 0, refused: 0 };
    state.broadcasts.set_parts(number, others.iter().map(unsure).collect());
    let answered = fleet.ask_each(others.into_iter().map(|node| (node, call.clone())), deadline).await;
    state.broadcasts.set_parts(number, answered.into_iter().map(part).collect());
    Ok(number)
}

/// What a gateway's answer to being told means.
fn part(Answered { node, reply }: Answered) -> Part {
    let state = match reply {
        Ok(Reply::Said { body }) => match serde_json::from_str(&body) {
            Ok(Begun { id, .. }) => PartState::Begun { id, stage: Stage::Running, answers: true },
            Err(_) => PartState::Unsure,
        },
        Ok(Reply::Failed { why, .. }) => PartState::NotBegun(why),
        Ok(Reply::Busy) => PartState::NotBegun("it has too much to do".to_owned()),
        Ok(Reply::NotUnderstood { .. }) => PartState::NotBegun("its version knows no broadcasts of a fleet".to_owned()),
        Err(Unreachable::Deaf(_)) => {
            PartState::NotBegun("it does not hear: it has just died, or NATS is away there".to_owned())
        }
        Err(Unreachable::Away) => PartState::NotBegun("NATS is away here: it was not told".to_owned()),
        Ok(_) | Err(Unreachable::Silent(_)) => PartState::Unsure,
    };
    Part { node, state, sent: 0, refused: 0 }
}

/// What one of `workers` may tell in a second. Never nothing: with fewer devices a second than workers, each tells one.
fn share_of(per_second: u32, worker: WorkerId, workers: u16) -> u32 {
    let (workers, worker) = (u32::from(workers), u32::from(worker.0));
    (per_second / workers + u32::from(worker < per_second % workers)).max(1)
}

/// Ends a broadcast that `refusing` did not take: those before it are told, those from it on never began.
fn take_back(state: &State, number: u64, refusing: WorkerId) {
    for worker in (refusing.0..state.home.workers()).map(WorkerId) {
        state.broadcasts.report(number, worker, Share { is_over: true, ..Share::default() });
    }
    if let Err(error) = cancel_everywhere(state, number) {
        tracing::warn!(number, %error, "a broadcast that not every worker took could not be ended");
    }
}

/// Tells every worker that has not ended its share. `false`: there is no such broadcast.
fn cancel_everywhere(state: &State, number: u64) -> Result<bool, ApiError> {
    let Some(running) = state.broadcasts.cancel(number) else { return Ok(false) };
    for worker in running {
        let command = WorkerCommand::CancelBroadcast { broadcast: number };
        let sent = state.mailboxes[worker.index()].send(command);
        sent.map_err(|_| ApiError::WorkerBusy { worker: worker.index() })?;
    }
    Ok(true)
}

pub(super) async fn progress(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, ApiError> {
    let Path(id) = path.map_err(|_| ApiError::Path)?;
    look(&state, &id).await.map(Json)
}

pub(super) async fn cancel(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, ApiError> {
    let Path(id) = path.map_err(|_| ApiError::Path)?;
    let Some(number) = number_of(&state, &id) else { return Err(ApiError::NoBroadcast(id)) };
    if !cancel_everywhere(&state, number)? {
        return Err(ApiError::NoBroadcast(id));
    }
    ask_parts(&state, number, |broadcast| Call::Cancel { broadcast }).await;
    show(&state, id).map(Json)
}

/// One of this gateway for another, which has the broadcast; it is cancelled before if that is wanted.
pub(in crate::control) fn show_for_another(state: &State, id: &str, is_to_end: bool) -> Result<String, ApiError> {
    if is_to_end && let Some(number) = number_of(state, id) {
        cancel_everywhere(state, number)?;
    }
    let shown = show(state, id.to_owned())?;
    Ok(serde_json::to_string(&shown).expect("it has no keys but texts"))
}

/// How far it is now, everywhere.
async fn look(state: &State, id: &str) -> Result<Shown, ApiError> {
    if let Some(number) = number_of(state, id) {
        ask_parts(state, number, |broadcast| Call::Progress { broadcast }).await;
    }
    show(state, id.to_owned())
}

/// Asks the gateways whose parts are not over, and takes note of what they say.
async fn ask_parts(state: &State, number: u64, call: impl Fn(Box<str>) -> Call) {
    let (Some(fleet), Some(progress)) = (&state.fleet, state.broadcasts.progress(number)) else { return };
    let running = |part: Part| match part.state {
        PartState::Begun { id, stage: Stage::Running, .. } => Some((part.node, call(id.into()))),
        _ => None,
    };
    let asked: Vec<_> = progress.parts.into_iter().flatten().filter_map(running).collect();
    let deadline = Instant::now() + ANSWER_MAX;
    for Answered { node, reply } in fleet.ask_each(asked, deadline.into_std()).await {
        let told = understood::<Shown>(reply)
            .and_then(|shown| Some((Stage::of_label(&shown.state)?, shown.sent, shown.refused)));
        state.broadcasts.report_part(number, &node, told);
    }
}

/// The number of a broadcast of this life of the gateway.
fn number_of(state: &State, id: &str) -> Option<u64> {
    let (epoch, number) = id.split_once('-')?;
    (epoch.parse() == Ok(state.epoch)).then(|| number.parse().ok())?
}

fn show(state: &State, id: String) -> Result<Shown, ApiError> {
    let progress = number_of(state, &id).and_then(|number| state.broadcasts.progress(number));
    let Some(Progress { stage, here, shares, parts }) = progress else { return Err(ApiError::NoBroadcast(id)) };
    let workers = shares.iter().enumerate().map(|(worker, share)| {
        let &Share { sent, refused, is_over } = share;
        ShownShare { worker, sent, refused, over: is_over }
    });
    let workers: Vec<_> = workers.collect();
    let sum = |of: fn(&Share) -> u64| shares.iter().map(of).sum::<u64>();
    let (sent, refused) = (sum(|share| share.sent), sum(|share| share.refused));
    let Some(parts) = parts else {
        let (gateways, unanswered) = (None, None);
        return Ok(Shown { id, state: stage.label().into(), sent, refused, workers, gateways, unanswered });
    };
    let others = |of: fn(&Part) -> u64| parts.iter().map(of).sum::<u64>();
    let (sent_there, refused_there) = (others(|part| part.sent), others(|part| part.refused));
    let here = ShownPart { node: state.config.node.clone(), state: here.label().into(), sent, refused, error: None };
    let mut gateways: Vec<_> = [here].into_iter().chain(parts.into_iter().map(shown_part)).collect();
    gateways.sort_by(|a, b| a.node.cmp(&b.node));
    let unanswered = gateways
        .iter()
        .filter(|part| ["unanswered", "not_begun"].contains(&&*part.state))
        .map(|part| part.node.clone());
    Ok(Shown {
        id,
        state: stage.label().into(),
        sent: sent + sent_there,
        refused: refused + refused_there,
        workers,
        unanswered: Some(unanswered.collect()),
        gateways: Some(gateways),
    })
}

fn shown_part(Part { node, state, sent, refused }: Part) -> ShownPart {
    let (state, error) = match state {
        PartState::Begun { stage: Stage::Running, answers: false, .. } => {
            ("unanswered", Some("it has begun, and does not answer now".to_owned()))
        }
        PartState::Begun { stage, .. } => (stage.label(), None),
        PartState::NotBegun(why) => ("not_begun", Some(why)),
        PartState::Unsure => ("unanswered", Some("it did not answer when it was told: it may have begun".to_owned())),
    };
    ShownPart { node, state: state.into(), sent, refused, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_shared_out_whole() {
        for (per_second, workers) in [(10, 3), (1_000, 7), (64, 64), (1, 1)] {
            let shares = (0..workers).map(|worker| share_of(per_second, WorkerId(worker), workers));
            assert_eq!(shares.sum::<u32>(), per_second);
        }
        assert_eq!(share_of(1, WorkerId(5), 8), 1);
    }
}
