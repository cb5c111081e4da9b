//! `/v1/blocks`: devices, client certificates and networks that are kept out.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::body;
use super::error::ApiError;
use crate::control::State;
use crate::control::blocks::{Block, BlockError, BlockOrder, BlockRequest, BlockSource};
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

pub(super) async fn list(Shared(state): Shared<Arc<State>>) -> Result<Json<Blocks>, ApiError> {
    let blocks = ask(&state, BlockOrder::List).await?;
    Ok(Json(Blocks { blocks: blocks.into_iter().map(|block| Entry::new(&state, block)).collect() }))
}

/// Keeps somebody out, from the next connection on; a device that is connected is gone when this is answered.
pub(super) async fn add(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, ApiError> {
    let order: Order = body::parse(&headers, body)?;
    let subject = subject(order.device, order.certificate.as_deref(), order.network.as_deref())?;
    let span = order.r#for.as_deref().map(span).transpose()?;
    ask(&state, BlockOrder::Add { subject, span, source: BlockSource::Api }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn remove(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, ApiError> {
    let order: Order = body::parse(&headers, body)?;
    if order.r#for.is_some() {
        return Err(ApiError::Body("for is for POST: what is taken back is taken back for good".to_owned()));
    }
    let subject = subject(order.device, order.certificate.as_deref(), order.network.as_deref())?;
    ask(&state, BlockOrder::Remove { subject }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn ask(state: &State, order: BlockOrder) -> Result<Vec<Block>, ApiError> {
    let about = match &order {
        BlockOrder::List => String::new(),
        BlockOrder::Add { subject, .. } | BlockOrder::Remove { subject } => subject.to_string(),
    };
    let (answer, wait) = oneshot::channel();
    state.blocks.try_send(BlockRequest { order, answer }).map_err(|_| ApiError::ApiBusy)?;
    wait.await.map_err(|_| ApiError::ShuttingDown)?.map_err(|error| match error {
        BlockError::NoRoom => ApiError::TooManyBlocks,
        BlockError::NoSuch => ApiError::NoBlock(about),
        BlockError::NotKept(why) => ApiError::BlockNotKept(why),
    })
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
            BlockSource::Gateway => "gateway",
        };
        Self { device, certificate, network, until: block.until.map(|until| state.clock.format(until)), source }
    }
}
