//! What the API says instead of an answer: one code and one sentence, always JSON.

use std::fmt;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::config::Role;
use crate::control::READERS_MAX;
use crate::control::answers::NoRoom;
use crate::control::blocks::BlockError;
use crate::control::broadcasts::RUNNING_MAX;
use crate::fleet::NotPublished;
use crate::link::{DENIED_DEVICES_MAX, DENIED_NETWORKS_MAX, TRACES_MAX};

/// Every error of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::control) enum ApiError {
    /// No such path.
    NoRoute,
    /// The path knows other methods.
    Method,
    /// A path segment is not UTF-8 once decoded.
    Path,
    /// The query is wrong; how.
    Query(String),
    /// The body is wrong; how.
    Body(String),
    /// The body is not declared to be JSON.
    MediaType,
    /// The body, or what it carries, is too long; how.
    TooLarge(String),
    /// The token's role does not allow this.
    Forbidden { role: Role, needed: Role },
    /// The request was sent to a name under which the API does not answer; empty: to none.
    Host(String),
    /// A bearer token is demanded; whether a wrong one came.
    Unauthorized { presented: bool },
    /// The device is not connected.
    NoDevice(String),
    /// The device to be told something is not connected.
    Offline(String),
    /// The device takes no such message; why.
    Refused { device: String, why: String },
    /// NATS is away; whether a device is connected to another gateway is not known.
    FleetAway(String),
    /// NATS is away; what other gateways have, or do, is not known.
    OthersAway,
    /// NATS is away, and so this gateway should get no new devices.
    NotOfFleet(String),
    /// What other gateways retain was not read yet since the start: whoever subscribes would be told too little.
    NotCaughtUp,
    /// It would not reach subscribers at other gateways, or is not known to.
    NotPublished(NotPublished),
    /// The gateway that has the device did not take it.
    GatewayDeaf { node: String },
    /// The gateway that has the device did not answer in time.
    GatewaySilent { device: String, node: String },
    /// This gateway is alone.
    NoFleet,
    /// A message could not be retained; why.
    NotRetained(&'static str),
    /// The device did not acknowledge in time.
    AckTimeout { device: String, waited: Duration },
    /// The device's connection ended, or too many newer messages came, before it acknowledged.
    Unacknowledged(String),
    /// No such broadcast is known.
    NoBroadcast(String),
    /// Too many broadcasts run.
    TooManyBroadcasts,
    /// Too many readers follow the events.
    TooManyReaders,
    /// Too many traces are followed.
    TooManyTraces,
    /// Nothing is kept for consumers here.
    NoStore,
    /// No such consumer is known.
    NoConsumer(String),
    /// The consumer is a sink's.
    ReservedConsumer(String),
    /// No such sink is configured.
    NoSink(String),
    /// There are as many consumers as there may be; what to do.
    TooManyConsumers(String),
    /// A consumer has acknowledged as much ahead of its cursor as it may; what to do.
    TooManyRanges(String),
    /// The store cannot be read or written now; why.
    Store(String),
    /// The worker did not answer in time, or its inbox is full.
    WorkerBusy { worker: usize },
    /// Too many requests at a time.
    ApiBusy,
    /// There is no memory for one more answer.
    AnswersUnread,
    /// A worker's loop is late.
    Overloaded { worker: usize, late_ms: u64 },
    /// Newcomers wait for their handshakes.
    Crowded { worker: usize, waited_ms: u64 },
    /// An event loop does not turn any more, or has not for long.
    Stuck { worker: usize, silent_s: u64 },
    /// No such entry was made over the API.
    NoBlock(String),
    /// The deny list is full.
    TooManyBlocks,
    /// What was said of the deny list holds, and is not on the disk; why.
    BlockNotKept(String),
    /// What was said of the deny list holds here, and is not known to be known to the fleet.
    BlockNotTold,
    /// What is configured is wrong; a line for each thing.
    NotReloaded(String),
    /// Nothing waits for devices here.
    NoQueue,
    /// There is no room for one more command that waits; what NATS or the store says.
    QueueFull { device: String, why: String },
    /// NATS, or the store, did not say whether a command waits.
    QueueUnknown(String),
    /// No such command is known.
    NoCommand(String),
    /// Of many devices one whose turn did not come in time.
    NotItsTurn,
    /// The gateway ends.
    ShuttingDown,
}

impl ApiError {
    const fn status(&self) -> StatusCode {
        match self {
            ApiError::NoRoute
            | ApiError::NoDevice(_)
            | ApiError::Offline(_)
            | ApiError::NoBroadcast(_)
            | ApiError::NoBlock(_)
            | ApiError::NoConsumer(_)
            | ApiError::NoCommand(_)
            | ApiError::NoSink(_) => StatusCode::NOT_FOUND,
            ApiError::Method => StatusCode::METHOD_NOT_ALLOWED,
            ApiError::Path | ApiError::Query(_) | ApiError::Body(_) => StatusCode::BAD_REQUEST,
            ApiError::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ApiError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            ApiError::Refused { .. }
            | ApiError::TooManyBlocks
            | ApiError::NoStore
            | ApiError::NoFleet
            | ApiError::NoQueue
            | ApiError::ReservedConsumer(_)
            | ApiError::TooManyConsumers(_)
            | ApiError::TooManyRanges(_) => StatusCode::CONFLICT,
            ApiError::NotReloaded(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ApiError::NotRetained(_) | ApiError::BlockNotKept(_) | ApiError::QueueFull { .. } => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            ApiError::AckTimeout { .. }
            | ApiError::Unacknowledged(_)
            | ApiError::QueueUnknown(_)
            | ApiError::GatewaySilent { .. } => StatusCode::GATEWAY_TIMEOUT,
            ApiError::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            ApiError::Forbidden { .. } => StatusCode::FORBIDDEN,
            ApiError::Host(_) => StatusCode::MISDIRECTED_REQUEST,
            ApiError::WorkerBusy { .. }
            | ApiError::ApiBusy
            | ApiError::AnswersUnread
            | ApiError::NotItsTurn
            | ApiError::TooManyBroadcasts
            | ApiError::TooManyReaders
            | ApiError::TooManyTraces
            | ApiError::Store(_)
            | ApiError::FleetAway(_)
            | ApiError::OthersAway
            | ApiError::BlockNotTold
            | ApiError::NotOfFleet(_)
            | ApiError::NotCaughtUp
            | ApiError::NotPublished(_)
            | ApiError::GatewayDeaf { .. }
            | ApiError::Overloaded { .. }
            | ApiError::Crowded { .. }
            | ApiError::Stuck { .. }
            | ApiError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The word that programs go by.
    pub(in crate::control) const fn code(&self) -> &'static str {
        match self {
            ApiError::NoRoute => "not_found",
            ApiError::Method => "method_not_allowed",
            ApiError::Path => "invalid_path",
            ApiError::Query(_) => "invalid_query",
            ApiError::Body(_) => "invalid_body",
            ApiError::MediaType => "unsupported_media_type",
            ApiError::TooLarge(_) => "too_large",
            ApiError::Unauthorized { .. } => "unauthorized",
            ApiError::Forbidden { .. } => "forbidden",
            ApiError::Host(_) => "host_not_allowed",
            ApiError::NoDevice(_) => "device_not_found",
            ApiError::Offline(_) => "device_offline",
            ApiError::Refused { .. } => "refused",
            ApiError::FleetAway(_)
            | ApiError::OthersAway
            | ApiError::NotOfFleet(_)
            | ApiError::NotPublished(NotPublished::Away) => "fleet_away",
            ApiError::NotCaughtUp => "fleet_behind",
            ApiError::NotPublished(NotPublished::Refused(_)) => "not_published",
            ApiError::GatewayDeaf { .. } => "gateway_deaf",
            ApiError::GatewaySilent { .. } => "gateway_silent",
            ApiError::NoFleet => "no_fleet",
            ApiError::NotRetained(_) => "not_retained",
            ApiError::AckTimeout { .. } => "ack_timeout",
            ApiError::Unacknowledged(_) => "unacknowledged",
            ApiError::NoBroadcast(_) => "broadcast_not_found",
            ApiError::TooManyBroadcasts => "too_many_broadcasts",
            ApiError::TooManyReaders => "too_many_readers",
            ApiError::TooManyTraces => "too_many_traces",
            ApiError::NoStore => "no_store",
            ApiError::NoConsumer(_) => "consumer_not_found",
            ApiError::ReservedConsumer(_) => "consumer_reserved",
            ApiError::NoSink(_) => "sink_not_found",
            ApiError::TooManyConsumers(_) => "too_many_consumers",
            ApiError::TooManyRanges(_) => "too_many_ranges",
            ApiError::Store(_) => "store_failed",
            ApiError::WorkerBusy { .. } => "worker_busy",
            ApiError::ApiBusy | ApiError::AnswersUnread => "api_busy",
            ApiError::NotItsTurn => "not_its_turn",
            ApiError::NoQueue => "no_queue",
            ApiError::QueueFull { .. } => "queue_full",
            ApiError::QueueUnknown(_) => "queue_unknown",
            ApiError::NoCommand(_) => "command_not_found",
            ApiError::Overloaded { .. } | ApiError::Crowded { .. } => "overloaded",
            ApiError::Stuck { .. } => "stuck",
            ApiError::NoBlock(_) => "block_not_found",
            ApiError::TooManyBlocks => "too_many_blocks",
            ApiError::BlockNotKept(_) => "block_not_kept",
            ApiError::BlockNotTold => "block_not_told",
            ApiError::NotReloaded(_) => "not_reloaded",
            ApiError::ShuttingDown => "shutting_down",
        }
    }
}

impl ApiError {
    /// Why the deny list was not changed, or not wholly; `about` whom.
    pub(in crate::control) fn of_block(error: BlockError, about: &str) -> Self {
        match error {
            BlockError::NoRoom => ApiError::TooManyBlocks,
            BlockError::NoSuch => ApiError::NoBlock(about.to_owned()),
            BlockError::NotKept(why) => ApiError::BlockNotKept(why),
        }
    }

    /// Those about whoever takes what devices say.
    fn fmt_uplink(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiError::NoConsumer(name) => write!(f, "no consumer {name:?} is known"),
            ApiError::ReservedConsumer(name) => {
                write!(f, "{name:?} is a sink's: see GET /v1/sinks, and pause it or let it go on elsewhere there")
            }
            ApiError::NoSink(name) => write!(f, "no sink {name:?} is configured"),
            _ => f.write_str(
                "nothing is kept for consumers: store.durability is \"memory\"; follow GET /v1/events instead",
            ),
        }
    }

    /// Those after which nobody knows whether the device has it.
    fn fmt_unsure(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiError::AckTimeout { device, waited } => {
                let waited = humantime::format_duration(*waited);
                write!(f, "device {device:?} did not acknowledge within {waited}; the message may have arrived")
            }
            ApiError::Unacknowledged(device) => write!(
                f,
                "device {device:?} did not acknowledge before its connection ended; the message may have arrived"
            ),
            _ => f.write_str("it may have arrived"),
        }
    }

    /// Those about other gateways.
    fn fmt_fleet(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiError::FleetAway(device) => write!(
                f,
                "device {device:?} is not connected here, and NATS is away: whether it is connected to another gateway is \
                 not known; try again"
            ),
            ApiError::NotPublished(NotPublished::Away) => f.write_str(
                "NATS is away: nothing was published, because subscribers at other gateways would not get it; try again, or write \
                 \"local\": true to publish at this gateway alone",
            ),
            ApiError::NotPublished(NotPublished::Refused(why)) => write!(
                f,
                "the fleet's stream has not taken it: {why}; subscribers at other gateways may get it, those here do not: try again"
            ),
            ApiError::OthersAway => f.write_str(
                "NATS is away: which other gateways there are is not known, and none was asked; try again, or ask this gateway \
                 alone (fleet = false)",
            ),
            ApiError::NotOfFleet(why) => write!(f, "NATS is away, so that devices are not claimed here: {why}"),
            ApiError::NotCaughtUp => f.write_str("the fleet's retained messages are being read: ready in a moment"),
            ApiError::GatewayDeaf { node } => {
                write!(f, "gateway {node:?} has the device and takes nothing now: nothing was done; try again")
            }
            ApiError::GatewaySilent { device, node } => {
                write!(
                    f,
                    "gateway {node:?}, which has device {device:?}, did not answer in time; it may have been done"
                )
            }
            _ => f.write_str("this gateway is alone: the configuration has no [backbone.nats]"),
        }
    }

    /// Those about what waits for devices.
    fn fmt_queue(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiError::QueueFull { device, why } => {
                write!(f, "device {device:?} is nowhere, and there is no room for what waits for it: {why}")
            }
            ApiError::QueueUnknown(device) => write!(
                f,
                "device {device:?} is nowhere, and nobody has said in time whether the command waits for it now; it may, and may be told it"
            ),
            ApiError::NoCommand(id) => write!(f, "no command {id:?} is known; outcomes are kept for seven days"),
            _ => f.write_str("nothing waits for devices here: that needs a store (store.durability is \"memory\") or a fleet ([backbone.nats])"),
        }
    }

    /// Those about whoever asks.
    fn fmt_access(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiError::Forbidden { role, needed } => {
                write!(f, "a token with the role {:?} may not do this: it needs {:?}", role.label(), needed.label())
            }
            ApiError::Host(host) if host.is_empty() => f.write_str("the request needs exactly one Host header"),
            ApiError::Host(host) => {
                write!(f, "the API does not answer under the name {host:?}: use its address, or add it to admin.hosts")
            }
            ApiError::Unauthorized { presented: false } => {
                f.write_str("send the admin token: Authorization: Bearer TOKEN")
            }
            _ => f.write_str("the admin token is not right"),
        }
    }

    /// Those about who is kept out.
    fn fmt_block(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiError::NoBlock(subject) => {
                write!(f, "no block of {subject} was made over the API; what deny_file says is changed there")
            }
            ApiError::BlockNotKept(why) => {
                write!(f, "it holds from now on, and ends with this process, for it cannot be kept: {why}")
            }
            ApiError::BlockNotTold => f.write_str(
                "it holds at this gateway; NATS did not answer, so whether the other gateways come to know is not known: say it again",
            ),
            _ => write!(f, "the deny list is full: {DENIED_DEVICES_MAX} devices, {DENIED_NETWORKS_MAX} networks"),
        }
    }

    /// Those that say: not now.
    fn fmt_busy(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiError::TooManyBroadcasts => write!(f, "{RUNNING_MAX} broadcasts are under way already; try again"),
            ApiError::TooManyReaders => write!(f, "{READERS_MAX} readers follow the events already; try again"),
            ApiError::TooManyTraces => {
                write!(f, "{TRACES_MAX} traces are followed already: end one of them, or try again when one has ended")
            }
            ApiError::WorkerBusy { worker } => write!(f, "worker {worker} did not answer in time; try again"),
            ApiError::ApiBusy => f.write_str("too many requests at a time; try again"),
            ApiError::AnswersUnread => f.write_str(
                "answers that were not read yet take all the memory that there is for them, or that one consumer or address may have of \
                 it; read them, and try again",
            ),
            ApiError::Crowded { worker, waited_ms } => {
                write!(f, "worker {worker} lets newcomers wait {waited_ms} ms for their handshakes")
            }
            ApiError::Overloaded { worker, late_ms } => {
                write!(f, "the event loop of worker {worker} was late by {late_ms} ms in the last ten seconds")
            }
            ApiError::Stuck { worker, silent_s } => {
                write!(f, "worker {worker} has not got on with what waits for it for {silent_s} s")
            }
            _ => f.write_str("the gateway is shutting down"),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiError::NoRoute => f.write_str("there is nothing under this path"),
            ApiError::Method => f.write_str("this path has no such method; the Allow header lists those that it has"),
            ApiError::NoBlock(_) | ApiError::TooManyBlocks | ApiError::BlockNotKept(_) | ApiError::BlockNotTold => {
                self.fmt_block(f)
            }
            ApiError::NotReloaded(problems) => write!(f, "all that was in effect stays:\n{problems}"),
            ApiError::Path => f.write_str("the path is not UTF-8 once percent-decoded"),
            ApiError::Query(fault)
            | ApiError::Body(fault)
            | ApiError::TooLarge(fault)
            | ApiError::TooManyConsumers(fault)
            | ApiError::TooManyRanges(fault)
            | ApiError::Store(fault) => f.write_str(fault),
            ApiError::NoStore | ApiError::NoConsumer(_) | ApiError::ReservedConsumer(_) | ApiError::NoSink(_) => {
                self.fmt_uplink(f)
            }
            ApiError::MediaType => f.write_str("send JSON, and say so: Content-Type: application/json"),
            ApiError::Forbidden { .. } | ApiError::Host(_) | ApiError::Unauthorized { .. } => self.fmt_access(f),
            ApiError::NoDevice(device) | ApiError::Offline(device) => write!(f, "no device {device:?} is connected"),
            ApiError::Refused { device, why } => write!(f, "device {device:?} does not take it: {why}"),
            ApiError::NotRetained(why) => {
                write!(f, "it was not retained, and the topic has no retained message any more: {why}")
            }
            ApiError::AckTimeout { .. } | ApiError::Unacknowledged(_) => self.fmt_unsure(f),
            ApiError::NoBroadcast(id) => write!(f, "no broadcast {id:?} is known"),
            ApiError::TooManyBroadcasts
            | ApiError::TooManyReaders
            | ApiError::TooManyTraces
            | ApiError::WorkerBusy { .. }
            | ApiError::ApiBusy
            | ApiError::AnswersUnread
            | ApiError::Crowded { .. }
            | ApiError::Overloaded { .. }
            | ApiError::Stuck { .. }
            | ApiError::ShuttingDown => self.fmt_busy(f),
            ApiError::FleetAway(_)
            | ApiError::OthersAway
            | ApiError::NotOfFleet(_)
            | ApiError::NotCaughtUp
            | ApiError::NotPublished(_)
            | ApiError::GatewayDeaf { .. }
            | ApiError::GatewaySilent { .. }
            | ApiError::NoFleet => self.fmt_fleet(f),
            ApiError::NoQueue | ApiError::QueueFull { .. } | ApiError::QueueUnknown(_) | ApiError::NoCommand(_) => {
                self.fmt_queue(f)
            }
            ApiError::NotItsTurn => f.write_str("the time was over before its turn came: nothing was done; try again"),
        }
    }
}

impl From<NoRoom> for ApiError {
    fn from(NoRoom: NoRoom) -> Self {
        ApiError::AnswersUnread
    }
}

/// The same as JSON, for whoever asked another way than by HTTP.
#[derive(Serialize)]
pub(super) struct ErrorBody {
    error: ErrorInner,
}

/// What became of one of many.
#[derive(Serialize)]
pub(super) struct ErrorInner {
    code: &'static str,
    message: String,
}

impl ApiError {
    /// What the body of an answer says.
    pub(super) fn body(&self) -> ErrorBody {
        ErrorBody { error: self.inner() }
    }

    /// The same, for one of many.
    pub(super) fn inner(&self) -> ErrorInner {
        ErrorInner { code: self.code(), message: self.to_string() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self {
            // RFC 6750, section 3: the error attribute only when a token came with the request.
            ApiError::Unauthorized { presented: false } => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(r#"Bearer realm="pulsegate""#));
            }
            ApiError::Unauthorized { presented: true } => {
                let challenge = HeaderValue::from_static(r#"Bearer realm="pulsegate", error="invalid_token""#);
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            ApiError::WorkerBusy { .. }
            | ApiError::ApiBusy
            | ApiError::AnswersUnread
            | ApiError::FleetAway(_)
            | ApiError::NotPublished(_)
            | ApiError::OthersAway
            | ApiError::GatewayDeaf { .. }
            | ApiError::TooManyBroadcasts
            | ApiError::TooManyReaders
            | ApiError::TooManyTraces => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}
