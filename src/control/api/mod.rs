//! The HTTP API (docs/API.md). Handlers read published counters or ask a worker and wait, bounded; every
//! error is JSON.

pub(super) mod bearer;
mod commands;
mod host;
mod many;
pub(super) mod messages;
mod overview;

mod blocks;
pub(super) mod devices;
mod fleet;
pub(super) mod history;
mod publish;
mod reload;

pub(super) mod broadcast;
mod events;
mod sinks;
mod trace;
mod uplink;

mod answer;
mod body;
pub(super) mod error;
pub(super) mod openapi;
mod page;
mod query;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State as Shared};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};

use super::api_listener::ApiPeer;
use super::{STUCK_AFTER, State, exposition};
use crate::fleet::{self as nats, Fleet};
use crate::metrics::Metric;
use crate::store::Health;
use error::ApiError;

/// Whether the process lives.
const HEALTHZ: &str = "/healthz";
/// Whether new devices should be sent here.
/// A gateway whose newcomers wait for longer than this should get no new devices for now.
const CROWDED_MS: u64 = 3_000;
const READYZ: &str = "/readyz";
/// Every counter.
const METRICS: &str = "/metrics";

/// All routes: what `openapi.json` describes.
pub(super) fn routes() -> [(&'static str, MethodRouter<Arc<State>>); 30] {
    [
        (HEALTHZ, get(|| async { "ok\n" })),
        (READYZ, get(ready)),
        (METRICS, get(metrics)),
        ("/v1/overview", get(overview::overview)),
        ("/v1/whoami", get(bearer::whoami)),
        ("/v1/devices", get(devices::list)),
        ("/v1/devices/{id}", get(devices::describe)),
        ("/v1/devices/{id}/history", get(history::history)),
        ("/v1/devices/{id}/messages", post(messages::send)),
        ("/v1/messages", post(many::send)),
        ("/v1/commands/{id}", get(commands::describe).delete(commands::cancel)),
        ("/v1/devices/{id}/connection", delete(messages::disconnect)),
        ("/v1/fleet", get(fleet::describe)),
        ("/v1/publish", post(publish::publish)),
        ("/v1/broadcast", post(broadcast::begin)),
        ("/v1/reload", post(reload::reload)),
        ("/v1/blocks", get(blocks::list).post(blocks::add).delete(blocks::remove)),
        ("/v1/broadcasts/{id}", get(broadcast::progress).delete(broadcast::cancel)),
        ("/v1/events", get(events::events)),
        ("/v1/trace", get(trace::trace)),
        ("/v1/uplink", get(uplink::read)),
        ("/v1/uplink/ack", post(uplink::acknowledge)),
        ("/v1/uplink/seek", post(uplink::seek)),
        ("/v1/uplink/consumers", get(uplink::list)),
        ("/v1/uplink/consumers/{name}", delete(uplink::delete)),
        ("/v1/sinks", get(sinks::list)),
        ("/v1/sinks/{name}/pause", post(sinks::pause)),
        ("/v1/sinks/{name}/resume", post(sinks::resume)),
        ("/v1/sinks/{name}/seek", post(sinks::seek)),
        ("/v1/openapi.json", get(openapi::openapi)),
    ]
}

/// The routes, and what holds for each of them.
pub(super) fn router(state: Arc<State>) -> Router {
    let all = routes().into_iter().chain(page::routes());
    let router = all.fold(Router::new(), |router, (path, methods)| router.route(path, methods));
    router
        .fallback(|| async { ApiError::NoRoute })
        .method_not_allowed_fallback(|| async { ApiError::Method })
        .layer(middleware::from_fn_with_state(state.clone(), answer::bound_answers))
        .layer(middleware::from_fn_with_state(state.clone(), bound_requests))
        .layer(middleware::from_fn_with_state(state.clone(), take_body))
        .layer(middleware::from_fn_with_state(state.clone(), bearer::demand_token))
        .layer(middleware::from_fn_with_state(state.clone(), host::demand_host))
        .layer(middleware::from_fn(note_progress))
        .layer(DefaultBodyLimit::max(body::BODY_BYTES_MAX))
        .with_state(state)
}

/// Probes of life come from machines that carry no secrets, and must be answered when everything else is too much.
fn is_probe(request: &Request) -> bool {
    [HEALTHZ, READYZ].contains(&request.uri().path())
}

/// A request is in progress once all of it is here: without a body at once.
async fn note_progress(ConnectInfo(peer): ConnectInfo<ApiPeer>, request: Request, next: Next) -> Response {
    if request.body().is_end_stream() { run(&peer, request, next).await } else { next.run(request).await }
}

/// Waits for the body before the request takes a place among others. Until it is whole its connection waits as for a head: it has
/// the same time, and it gives way. So whoever sends a body slowly, or never, holds up nobody who asks.
async fn take_body(
    Shared(state): Shared<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<ApiPeer>,
    request: Request,
    next: Next,
) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let taken = {
        let _place = state.bodies.acquire_many(body::most_bytes(&request)).await;
        body::whole(request).await
    };
    match taken {
        Ok(request) => run(&peer, request, next).await,
        Err(error) => error.into_response(),
    }
}

/// Tells the connection that a request is in progress, until its answer has been handed over.
async fn run(peer: &ApiPeer, request: Request, next: Next) -> Response {
    let in_progress = peer.begin_request();
    next.run(request).await.map(|body| Body::new(in_progress.until_taken(body)))
}

async fn bound_requests(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    if is_probe(&request) {
        return next.run(request).await;
    }
    // Whoever waits for a device or for news may wait long: it does not take the place of whoever asks the gateway.
    let path = request.uri().path();
    let is_said = path.ends_with("/messages") || path == "/v1/broadcast";
    let waits = (request.method() == Method::POST && is_said) || path == "/v1/uplink";
    let places = if waits { &state.sends } else { &state.requests };
    match places.try_acquire() {
        Ok(_place) => next.run(request).await,
        Err(_) => ApiError::ApiBusy.into_response(),
    }
}

/// Workers listen before the control plane starts; what is left is whether this gateway should get new devices now.
async fn ready(Shared(state): Shared<Arc<State>>) -> Result<&'static str, ApiError> {
    if state.stopping.load(Ordering::Relaxed) {
        return Err(ApiError::ShuttingDown);
    }
    if let Some(store) = &state.store {
        match store.health() {
            Health::Well => {}
            Health::NoRoom => return Err(ApiError::Store("there is no room for the store: messages wait".to_owned())),
            Health::Failed => return Err(ApiError::Store("the store's disk has failed".to_owned())),
        }
    }
    if let Some(report) = state.fleet.as_ref().map(Fleet::report)
        && report.state == nats::State::Away
        && !report.ready_without_nats
    {
        return Err(ApiError::NotOfFleet(report.error.unwrap_or_default()));
    }
    if state.fleet.as_ref().is_some_and(Fleet::is_catching_up) {
        return Err(ApiError::NotCaughtUp);
    }
    let shed_micros = state.current().config.limits.shed_lateness.as_micros();
    let uptime = state.clock.uptime();
    for (worker, published) in state.published.iter().enumerate() {
        let counters = published.read();
        // Its own account of its lateness ends with its latest turn, and a loop that turns may yet take nothing.
        let silent = uptime.saturating_sub(Duration::from_secs(counters.value(Metric::LatestProgress)));
        if silent > STUCK_AFTER {
            return Err(ApiError::Stuck { worker, silent_s: silent.as_secs() });
        }
        let late_micros = counters.value(Metric::LoopLateness);
        if u128::from(late_micros) > shed_micros {
            return Err(ApiError::Overloaded { worker, late_ms: late_micros / 1_000 });
        }
        let waited_ms = counters.value(Metric::HandshakesLongestWait);
        if waited_ms > CROWDED_MS {
            return Err(ApiError::Crowded { worker, waited_ms });
        }
    }
    Ok("ready\n")
}

async fn metrics(Shared(state): Shared<Arc<State>>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = exposition::Format::preferred(accept);
    let headers = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")];
    (headers, exposition::encode(&state, format))
}
