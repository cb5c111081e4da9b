//! `/v1/blocks`: devices, client certificates and networks that are kept out: of this gateway, or of all of its fleet.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, State as Shared};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::devices::ANSWER_MAX;
use super::error::ApiError;
use super::fleet::Scope;
use super::{ApiPeer, answer, body};
use crate::control::blocks::{Block, BlockError, BlockOrder, BlockRequest, BlockSource};
use crate::control::{State, fleet_blocks};
use crate::fleet::{Answered, BlockRow, Call, Fleet, Reply};
use crate::link::Subject;
use crate::network::Network;

/// No block is longer, but those without an end.
const SPAN_MAX: Duration = Duration::from_hours(24 * 366);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    device: Option<String>,
    certificate: Option<String>,
    network: Option<String>,
    r#for: Option<String>,
    fleet: Option<bool>,
}

/// Where it holds.
#[derive(Serialize)]
struct Everywhere {
    /// The gateways at which it holds now, by name.
    gateways: Vec<String>,
    /// Those that did not answer: it holds there when they have read the bucket.
    unanswered: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Blocks {
    blocks: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    until: Option<String>,
    source: &'static str,
}

pub(super) async fn list(
    Shared(state): Shared<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<ApiPeer>,
) -> Result<Response, ApiError> {
    // How long the list is, is known when it is here: as much as there may be for one answer.
    let reservation = state.answers.reserve(&peer, state.answers.consumer_max()).await?;
    let blocks = ask(&state, BlockOrder::List).await?;
    let blocks = Blocks { blocks: blocks.into_iter().map(|block| Entry::new(&state, block)).collect() };
    Ok(answer::within(reservation, Json(blocks)))
}

/// Keeps somebody out, from the next connection on; a device that is connected is gone when this is answered.
pub(super) async fn add(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let order: Order = body::parse(&headers, body)?;
    let subject = subject(order.device, order.certificate.as_deref(), order.network.as_deref())?;
    let span = order.r#for.as_deref().map(span).transpose()?;
    if let (Scope::Fleet, Some(fleet)) = (Scope::of_order(&state, order.fleet)?, &state.fleet) {
        return add_everywhere(&state, fleet, subject, span).await.map(IntoResponse::into_response);
    }
    ask(&state, BlockOrder::Add { subject, span, source: BlockSource::Api }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Keeps somebody out here, then writes it for whoever connects to NATS, then tells those who are connected.
async fn add_everywhere(
    state: &State,
    fleet: &Fleet,
    subject: Subject,
    span: Option<Duration>,
) -> Result<Json<Everywhere>, ApiError> {
    let deadline = (Instant::now() + ANSWER_MAX).into_std();
    let others = fleet.others(deadline).await.map_err(|_| ApiError::OthersAway)?;
    let blocked = (subject, span.and_then(|span| SystemTime::now().checked_add(span)));
    let here = fleet_blocks::block(state, blocked.clone()).await;
    here.map_err(|error| ApiError::of_block(error, &blocked.0.to_string()))?;
    let written = fleet.write_block(&blocked, deadline).await;
    fleet.touch_block(&blocked.0);
    written.map_err(|_| ApiError::BlockNotTold)?;
    let call = Call::Block { row: BlockRow::new(&blocked) };
    let answered = fleet.ask_each(others.into_iter().map(|node| (node, call.clone())), deadline).await;
    Ok(Json(Everywhere::of(state, answered, |reply| matches!(reply, Reply::Said { .. }))))
}

pub(super) async fn remove(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let order: Order = body::parse(&headers, body)?;
    if order.r#for.is_some() {
        return Err(ApiError::Body("for is for POST: what is taken back is taken back for good".to_owned()));
    }
    let subject = subject(order.device, order.certificate.as_deref(), order.network.as_deref())?;
    if let (Scope::Fleet, Some(fleet)) = (Scope::of_order(&state, order.fleet)?, &state.fleet) {
        return remove_everywhere(&state, fleet, subject).await.map(IntoResponse::into_response);
    }
    ask(&state, BlockOrder::Remove { subject }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Takes the row away, then lets somebody in here, then tells the others.
async fn remove_everywhere(state: &State, fleet: &Fleet, subject: Subject) -> Result<Json<Everywhere>, ApiError> {
    let deadline = (Instant::now() + ANSWER_MAX).into_std();
    let others = fleet.others(deadline).await.map_err(|_| ApiError::OthersAway)?;
    fleet.touch_block(&subject);
    let was_written = fleet.remove_block(&subject, deadline).await.map_err(|_| ApiError::OthersAway)?;
    let here = match fleet_blocks::unblock(state, subject.clone()).await {
        Err(BlockError::NoSuch) => false,
        Ok(()) => true,
        Err(error) => return Err(ApiError::of_block(error, &subject.to_string())),
    };
    let call = Call::Unblock { row: BlockRow::new(&(subject.clone(), None)) };
    let answered = fleet.ask_each(others.into_iter().map(|node| (node, call.clone())), deadline).await;
    let was_there = answered.iter().any(|answered| matches!(answered.reply, Ok(Reply::Said { .. })));
    if !was_written && !here && !was_there {
        return Err(ApiError::NoBlock(subject.to_string()));
    }
    // Whoever had no such entry lets it in too.
    let lets_in = |reply: &Reply| match reply {
        Reply::Said { .. } => true,
        Reply::Failed { code, .. } => code == ApiError::NoBlock(String::new()).code(),
        _ => false,
    };
    Ok(Json(Everywhere::of(state, answered, lets_in)))
}

impl Everywhere {
    /// This gateway, and those whose answers say that it holds there.
    fn of(state: &State, answered: Vec<Answered>, holds: impl Fn(&Reply) -> bool) -> Self {
        let (mut gateways, mut unanswered) = (vec![state.config.node.clone()], Vec::new());
        for Answered { node, reply } in answered {
            if reply.as_ref().is_ok_and(&holds) { gateways.push(node) } else { unanswered.push(node) }
        }
        gateways.sort();
        Self { gateways, unanswered }
    }
}

async fn ask(state: &State, order: BlockOrder) -> Result<Vec<Block>, ApiError> {
    let about = match &order {
        BlockOrder::List | BlockOrder::Fleet { .. } => String::new(),
        BlockOrder::Add { subject, .. } | BlockOrder::Remove { subject } => subject.to_string(),
    };
    let (answer, wait) = oneshot::channel();
    state.blocks.try_send(BlockRequest { order, answer }).map_err(|_| ApiError::ApiBusy)?;
    wait.await.map_err(|_| ApiError::ShuttingDown)?.map_err(|error| ApiError::of_block(error, &about))
}

fn subject(device: Option<String>, certificate: Option<&str>, network: Option<&str>) -> Result<Subject, ApiError> {
    match (device, certificate, network) {
        (Some(device), None, None) if !device.is_empty() => Ok(Subject::Device(device.into())),
        (None, Some(fingerprint), None) => fingerprint.parse().map(Subject::Certificate).map_err(|_| {
            let remedy = "write the 64 digits that openssl x509 -fingerprint -sha256 shows";
            ApiError::Body(format!("certificate {fingerprint:?} is no SHA-256 fingerprint: {remedy}"))
        }),
        (None, None, Some(network)) => Network::around(network).map(Subject::Network).map_err(|_| {
            ApiError::Body(format!("network {network:?} is none: write it as 192.0.2.0/24 or 2001:db8::/32"))
        }),
        _ => Err(ApiError::Body("write either device, certificate or network".to_owned())),
    }
}

fn span(text: &str) -> Result<Duration, ApiError> {
    let fault = || ApiError::Body(format!("for must be a duration such as \"1h\", of at most 366 days, not {text:?}"));
    humantime::parse_duration(text).ok().filter(|span| *span <= SPAN_MAX).ok_or_else(fault)
}

impl Entry {
    fn new(state: &State, block: Block) -> Self {
        let (mut device, mut certificate, mut network) = (None, None, None);
        match block.subject {
            Subject::Device(id) => device = Some(id.into()),
            Subject::Certificate(fingerprint) => certificate = Some(fingerprint.to_string()),
            Subject::Network(of) => network = Some(of.to_string()),
        }
        let source = match block.source {
            BlockSource::File => "file",
            BlockSource::Api => "api",
            BlockSource::Fleet => "fleet",
            BlockSource::Gateway => "gateway",
        };
        Self { device, certificate, network, until: block.until.map(|until| state.clock.format(until)), source }
    }
}
