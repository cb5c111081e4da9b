//! `GET /v1/devices` and `GET /v1/devices/{id}`: questions to the workers, whose shards alone know their devices, and to the
//! other gateways of the fleet.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, State as Shared};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::error::ApiError;
use super::fleet::{Others, Scope};
use super::messages::elsewhere;
use super::query::{self, Parsed};
use super::{ApiPeer, State, answer};
use crate::control::pending::{Pending, Ticket};
use crate::fleet::{Call, Deed, Reply};
use crate::link::{Description, DeviceFilter, SessionFacts, WorkerCommand, WorkerId};

/// Devices on a page when the request does not say.
const LIMIT_DEFAULT: usize = 100;
/// Devices on a page at most.
const LIMIT_MAX: usize = 1_000;
/// How long a worker has to answer.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The longest page that another gateway is given, in bytes: less than a message of NATS may have (a mebibyte unless it is set), and
/// more than one device takes.
const PAGE_BYTES_MAX: usize = 384 << 10;

/// The longest page otherwise: as much as a batch of the uplink.
const JSON_BYTES: usize = 1 << 20;
/// What a device takes as its worker tells it,
const TOLD_BYTES: usize = 384;
/// and on the page. Where there are long filters it is more, which is known when the page is there.
const SHOWN_BYTES: usize = 640;

/// A word that is one of ours, or came from another gateway.
type Word = Cow<'static, str>;

/// One device as the API shows it.
#[derive(Serialize, Deserialize)]
pub(in crate::control) struct Device {
    id: Box<str>,
    /// In a fleet: the gateway that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    state: Word,
    protocol: Word,
    listener: String,
    peer: Option<String>,
    tls_version: Word,
    tls_suite: Word,
    identity: Word,
    connected_at: String,
    last_heard: String,
    round_trip_ms: Option<f64>,
    generation: u64,
    worker: u16,
    epoch: u64,
    /// Of an MQTT device.
    session: Option<Session>,
}

/// An MQTT session as the API shows it.
#[derive(Serialize, Deserialize)]
struct Session {
    version: Word,
    keep_alive_s: u16,
    /// `None`: for ever.
    expiry_s: Option<u32>,
    subscriptions: Vec<Subscription>,
    subscription_count: usize,
    inflight: usize,
    queued: usize,
    queued_bytes: usize,
}

#[derive(Serialize, Deserialize)]
struct Subscription {
    filter: Box<str>,
    qos: u8,
}

/// One page of devices in byte order of their ids.
#[derive(Serialize, Deserialize)]
pub(in crate::control) struct Page {
    devices: Vec<Device>,
    /// What `after` gets the next page, if there may be one.
    next: Option<Box<str>>,
    /// Of the whole fleet: gateways whose devices are not on it, because they did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    unanswered: Option<Vec<String>>,
}

pub(super) async fn describe(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Device>, ApiError> {
    let Path(device) = path.map_err(|_| ApiError::Path)?;
    let deadline = Instant::now() + ANSWER_MAX;
    if let Some(found) = find_here(&state, &device, deadline).await? {
        return Ok(Json(found));
    }
    match elsewhere(&state, &device, &Deed::Describe, deadline).await? {
        (Reply::Said { body }, Some(node)) => {
            serde_json::from_str(&body).map(Json).map_err(|_| ApiError::GatewayDeaf { node })
        }
        (Reply::Offline, _) => Err(ApiError::NoDevice(device)),
        (_, node) => Err(ApiError::GatewayDeaf { node: node.unwrap_or_default() }),
    }
}

/// A device that is connected to this gateway.
pub(in crate::control) async fn find_here(
    state: &State,
    device: &str,
    deadline: Instant,
) -> Result<Option<Device>, ApiError> {
    let worker = state.home.of(device);
    let question = |request| WorkerCommand::Describe { request, device: device.into() };
    let ticket = ask(state, &state.described, worker, question)?;
    match ticket.answer(deadline).await {
        Some(description) => Ok(description.map(|description| Device::new(state, *description))),
        None => Err(ApiError::WorkerBusy { worker: worker.index() }),
    }
}

pub(super) async fn list(
    Shared(state): Shared<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<ApiPeer>,
    query: Parsed,
) -> Result<Response, ApiError> {
    let (filter, scope) = parse_filter(query)?;
    // Each worker tells of as many as the page may have.
    let bytes = filter.limit * (state.mailboxes.len() * TOLD_BYTES + SHOWN_BYTES);
    let reservation = state.answers.reserve(&peer, bytes).await?;
    let mut page = listed(&state, &filter, scope).await?;
    cut(&mut page, JSON_BYTES);
    Ok(answer::within(reservation, Json(page)))
}

async fn listed(state: &Arc<State>, filter: &DeviceFilter, scope: Scope) -> Result<Page, ApiError> {
    let deadline = Instant::now() + ANSWER_MAX;
    if scope == Scope::Gateway {
        return page(state, filter, deadline).await;
    }
    let DeviceFilter { after, prefix, limit } = filter.clone();
    let call = Call::Devices { after, prefix, limit };
    let (here, others) = tokio::join!(page(state, filter, deadline), Others::ask(state, &call, deadline));
    let Others { said, unanswered } = others?;
    let pages = [here?].into_iter().chain(said.into_iter().map(|(_, page)| page)).collect();
    Ok(Page { unanswered: Some(unanswered), ..merge_pages(pages, filter.limit) })
}

/// A page of the devices of this gateway.
async fn page(state: &State, filter: &DeviceFilter, deadline: Instant) -> Result<Page, ApiError> {
    // Everybody is asked before anybody's answer is waited for.
    let mut tickets = Vec::with_capacity(state.mailboxes.len());
    for worker in (0..state.home.workers()).map(WorkerId) {
        let question = |request| WorkerCommand::List { request, filter: filter.clone() };
        tickets.push((worker, ask(state, &state.listed, worker, question)?));
    }
    let mut shares = Vec::with_capacity(tickets.len());
    for (worker, ticket) in tickets {
        let devices = ticket.answer(deadline).await;
        shares.push(devices.ok_or(ApiError::WorkerBusy { worker: worker.index() })?);
    }
    let (devices, more) = merge(shares, filter.limit);
    let devices: Vec<_> = devices.into_iter().map(|device| Device::new(state, device)).collect();
    let next = devices.last().filter(|_| more).map(|last| last.id.clone());
    Ok(Page { devices, next, unanswered: None })
}

/// The same for another gateway, as JSON that a message of NATS can hold: with fewer devices where they are long.
pub(in crate::control) async fn page_for_another(state: &State, filter: &DeviceFilter) -> Result<String, ApiError> {
    let limit = filter.limit.clamp(1, LIMIT_MAX);
    let filter = DeviceFilter { limit, ..filter.clone() };
    let mut page = page(state, &filter, Instant::now() + ANSWER_MAX).await?;
    cut(&mut page, PAGE_BYTES_MAX);
    Ok(serde_json::to_string(&page).expect("it has no keys but texts"))
}

/// Leaves out the last devices of a page that is longer than so many bytes; one stays.
fn cut(page: &mut Page, bytes_max: usize) {
    let mut bytes = 0;
    let long = |device: &Device| {
        bytes += serde_json::to_string(device).expect("it has no keys but texts").len() + 1;
        bytes > bytes_max
    };
    if let Some(fitting) = page.devices.iter().position(long) {
        page.devices.truncate(fitting.max(1));
        page.next = page.devices.last().map(|last| last.id.clone());
    }
}

/// The first `limit` devices of all gateways in order. A device that is on two pages has moved meanwhile: where it came last counts.
fn merge_pages(pages: Vec<Page>, limit: usize) -> Page {
    // What lies behind the end of a page that goes on is not known yet.
    let known = pages.iter().filter_map(|page| page.next.clone()).min();
    let mut devices: Vec<_> = pages.into_iter().flat_map(|page| page.devices).collect();
    devices.retain(|device| known.as_ref().is_none_or(|known| device.id <= *known));
    devices.sort_by(|a, b| a.id.cmp(&b.id).then_with(|| b.connected_at.cmp(&a.connected_at)));
    devices.dedup_by(|second, first| second.id == first.id);
    let next = if devices.len() > limit { Some(devices[limit - 1].id.clone()) } else { known };
    devices.truncate(limit);
    Page { devices, next, unanswered: None }
}

/// Opens a question and puts it into the worker's mailbox.
pub(super) fn ask<'a, T>(
    state: &State,
    pending: &'a Pending<T>,
    worker: WorkerId,
    question: impl FnOnce(u64) -> WorkerCommand,
) -> Result<Ticket<'a, T>, ApiError> {
    let ticket = pending.open();
    match state.mailboxes[worker.index()].send(question(ticket.request())) {
        Ok(()) => Ok(ticket),
        Err(_) => Err(ApiError::WorkerBusy { worker: worker.index() }),
    }
}

fn parse_filter(query: Parsed) -> Result<(DeviceFilter, Scope), ApiError> {
    let [limit, after, prefix, fleet] = query::values(query, ["limit", "after", "prefix", "fleet"])?;
    let limit = match limit {
        None => LIMIT_DEFAULT,
        Some(text) => text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit)).ok_or_else(|| {
            ApiError::Query(format!("limit must be a whole number from 1 to {LIMIT_MAX}, not {text:?}"))
        })?,
    };
    let text = |value: Option<String>| value.unwrap_or_default().into_boxed_str();
    let scope = Scope::of(fleet.as_deref(), Scope::Gateway)?;
    Ok((DeviceFilter { after: text(after), prefix: text(prefix), limit }, scope))
}

/// The first `limit` devices of all shares in order, and whether more may follow: some were cut off, or a worker
/// filled its own limit and may have held back.
fn merge(shares: Vec<Vec<Description>>, limit: usize) -> (Vec<Description>, bool) {
    let full = shares.iter().any(|share| share.len() >= limit);
    let mut devices: Vec<_> = shares.into_iter().flatten().collect();
    // Each share is in order already: the sort merges runs.
    devices.sort_by(|a, b| a.device.cmp(&b.device));
    let more = full || devices.len() > limit;
    devices.truncate(limit);
    (devices, more)
}

impl Device {
    fn new(state: &State, description: Description) -> Self {
        let listener = &state.config.listeners[description.listener.index()];
        Self {
            id: description.device,
            node: state.fleet.as_ref().map(|_| state.config.node.clone()),
            state: description.state.into(),
            protocol: listener.protocol.label().into(),
            listener: listener.name.clone(),
            peer: description.peer.map(|peer| peer.to_string()),
            tls_version: description.tls_version.into(),
            tls_suite: description.tls_suite.into(),
            identity: description.identity.into(),
            connected_at: state.clock.format(description.connected_at),
            last_heard: state.clock.format(description.last_heard),
            round_trip_ms: description.round_trip.map(|round_trip| round_trip.as_micros() as f64 / 1e3),
            generation: description.generation,
            worker: description.worker.0,
            epoch: state.epoch,
            session: description.session.map(|facts| Session::new(*facts)),
        }
    }
}

impl Session {
    fn new(facts: SessionFacts) -> Self {
        let subscriptions = facts.subscriptions.into_iter().map(|(filter, qos)| Subscription { filter, qos });
        Self {
            version: facts.version.into(),
            keep_alive_s: facts.keep_alive_s,
            expiry_s: Some(facts.expiry_s).filter(|&expiry| expiry != u32::MAX),
            subscriptions: subscriptions.collect(),
            subscription_count: facts.subscription_count,
            inflight: facts.inflight,
            queued: facts.queued,
            queued_bytes: facts.queued_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: &str, node: &str, connected_at: &str) -> Device {
        Device {
            id: id.into(),
            node: Some(node.to_owned()),
            state: "heard".into(),
            protocol: "native".into(),
            listener: "devices".to_owned(),
            peer: None,
            tls_version: "TLSv1.3".into(),
            tls_suite: "s".into(),
            identity: "hello".into(),
            connected_at: connected_at.to_owned(),
            last_heard: connected_at.to_owned(),
            round_trip_ms: None,
            generation: 1,
            worker: 0,
            epoch: 1,
            session: None,
        }
    }

    fn page(node: &str, ids: &[&str], next: Option<&str>) -> Page {
        let devices = ids.iter().map(|id| device(id, node, "T1")).collect();
        Page { devices, next: next.map(Into::into), unanswered: None }
    }

    fn ids(page: &Page) -> Vec<&str> {
        page.devices.iter().map(|device| &*device.id).collect()
    }

    #[test]
    fn pages_of_gateways_make_one_and_nothing_is_passed_over() {
        let merged = merge_pages(vec![page("a", &["1", "4"], None), page("b", &["2", "3", "5"], None)], 10);
        assert_eq!((ids(&merged), merged.next.as_deref()), (vec!["1", "2", "3", "4", "5"], None));
        // What is behind the third of b is not known.
        let merged = merge_pages(vec![page("a", &["1", "4"], None), page("b", &["2", "3"], Some("3"))], 10);
        assert_eq!((ids(&merged), merged.next.as_deref()), (vec!["1", "2", "3"], Some("3")));
        let merged = merge_pages(vec![page("a", &["1", "4"], Some("4")), page("b", &["2", "3"], Some("3"))], 2);
        assert_eq!((ids(&merged), merged.next.as_deref()), (vec!["1", "2"], Some("2")));
        // Nobody is left who fits, and there may be more.
        let merged = merge_pages(vec![page("a", &["4"], None), page("b", &[], Some("3"))], 2);
        assert_eq!((ids(&merged), merged.next.as_deref()), (vec![], Some("3")));
    }

    #[test]
    fn a_device_that_has_moved_is_where_it_came_last() {
        let moved = |node: &str, at: &str| Page { devices: vec![device("x", node, at)], next: None, unanswered: None };
        for pages in [vec![moved("a", "T1"), moved("b", "T2")], vec![moved("b", "T2"), moved("a", "T1")]] {
            let merged = merge_pages(pages, 10);
            assert_eq!(merged.devices.len(), 1);
            assert_eq!(merged.devices[0].node.as_deref(), Some("b"));
        }
    }

    #[test]
    fn a_page_for_another_gateway_fits_a_message_and_goes_on_behind_its_last() {
        let bytes = serde_json::to_string(&device("1", "a", "T1")).unwrap().len() + 1;
        for (bytes_max, kept, next) in [(bytes * 3, 3, None), (bytes * 3 - 1, 2, Some("2")), (1, 1, Some("1"))] {
            let mut page = page("a", &["1", "2", "3"], None);
            cut(&mut page, bytes_max);
            assert_eq!((page.devices.len(), page.next.as_deref()), (kept, next), "{bytes_max}");
        }
    }
}
