//! Every metric name, and the counters behind them.
//!
//! A shard counts in plain integers ([`Counters`]); its worker copies them out once a turn ([`Published::publish`]),
//! and the control plane reads the copies. No metric is named anywhere else.

mod counters;
mod published;

pub use counters::{BUCKETS_MICROS, Counters, Histogram};
pub use published::Published;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

macro_rules! metrics {
    ($(#[$outer:meta])+ enum $of:ident;
     $($(#[doc = $doc:literal])+ $variant:ident = $kind:ident $name:literal $unit:literal,)+) => {
        $(#[$outer])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum $of { $($(#[doc = $doc])+ $variant,)+ }

        impl $of {
            /// Every metric, in declaration order.
            pub const ALL: &'static [$of] = &[$($of::$variant,)+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// Counter or gauge.
            #[must_use]
            pub const fn kind(self) -> Kind { match self { $($of::$variant => Kind::$kind,)+ } }
            /// The metric's name, without the unit and without the `_total` that the format adds to counters.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $($of::$variant => $name,)+ } }
            /// Its unit, empty where it is a plain count.
            #[must_use]
            pub const fn unit(self) -> &'static str { match self { $($of::$variant => $unit,)+ } }
            /// One sentence for whoever reads it.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $($of::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

metrics! {
    /// A metric that every worker keeps.
    enum Metric;
    /// Devices connected: named, alive, at home.
    Devices = Gauge "pulsegate_devices" "",
    /// Connections held, whatever their state.
    Connections = Gauge "pulsegate_connections" "",
    /// TLS handshakes in progress.
    HandshakesInFlight = Gauge "pulsegate_handshakes_in_flight" "",
    /// Connections whose ClientHello waits for a place among the handshakes in progress.
    HandshakesWaiting = Gauge "pulsegate_handshakes_waiting" "",
    /// For how long the connection that has waited longest for a TLS handshake has, in milliseconds.
    HandshakesLongestWait = Gauge "pulsegate_handshakes_longest_wait" "seconds",
    /// TLS handshakes that were silent for longest, and gave way to others that waited.
    HandshakesGaveWay = Counter "pulsegate_handshakes_gave_way" "",
    /// Bytes kept for connections because their sockets did not take them yet.
    BufferedBytes = Gauge "pulsegate_buffered" "bytes",
    /// Variable bytes taken from the pools: half packets, waiting messages, filters, wills and the like.
    PoolUsed = Gauge "pulsegate_pool_used" "bytes",
    /// Refusals because a share of a pool was taken, or its holder had its part of it.
    PoolRefused = Counter "pulsegate_pool_refused" "",
    /// How late the event loop was at its worst in the last ten seconds.
    LoopLateness = Gauge "pulsegate_loop_lateness" "seconds",
    /// When the event loop last got on with its inbox and with what waits for other workers, or found nothing there, in seconds since the gateway started: an idle one looks every five seconds.
    LatestProgress = Gauge "pulsegate_latest_progress" "seconds",
    /// Connections accepted by the listener.
    Accepted = Counter "pulsegate_connections_accepted" "",
    /// TLS handshakes completed with a full key exchange.
    HandshakesFull = Counter "pulsegate_handshakes_full" "",
    /// TLS handshakes completed by resumption.
    HandshakesResumed = Counter "pulsegate_handshakes_resumed" "",
    /// Bytes read from sockets.
    ReceivedBytes = Counter "pulsegate_received" "bytes",
    /// Bytes written to sockets.
    SentBytes = Counter "pulsegate_sent" "bytes",
    /// Heartbeats that devices sent on their own account and that were answered or taken as life.
    HeartbeatsReceived = Counter "pulsegate_heartbeats_received" "",
    /// Heartbeats (probes) sent to silent devices.
    HeartbeatsSent = Counter "pulsegate_heartbeats_sent" "",
    /// Heartbeats (probes) after which the device was heard.
    HeartbeatsAnswered = Counter "pulsegate_heartbeats_answered" "",
    /// Messages from devices handed to the backbone.
    MessagesReceived = Counter "pulsegate_messages_received" "",
    /// Messages from devices acknowledged to them.
    MessagesAcknowledged = Counter "pulsegate_messages_acknowledged" "",
    /// Messages from devices without a wish for acknowledgement, dropped because the uplink was full.
    MessagesDropped = Counter "pulsegate_messages_dropped" "",
    /// Messages sent to devices.
    MessagesSent = Counter "pulsegate_messages_sent" "",
    /// Messages to devices that they acknowledged.
    MessagesConfirmed = Counter "pulsegate_messages_confirmed" "",
    /// MQTT sessions, whether their devices are connected or away.
    Sessions = Gauge "pulsegate_mqtt_sessions" "",
    /// MQTT sessions whose devices are away.
    SessionsAway = Gauge "pulsegate_mqtt_sessions_away" "",
    /// MQTT subscriptions, shared ones not counted.
    Subscriptions = Gauge "pulsegate_mqtt_subscriptions" "",
    /// Retained MQTT messages; every worker keeps all of them.
    RetainedMessages = Gauge "pulsegate_mqtt_retained" "",
    /// Messages published by MQTT devices, their wills and the owner, for whoever has subscribed.
    Published = Counter "pulsegate_mqtt_published" "",
    /// Messages sent to MQTT subscribers, each subscriber counted, those sent again not.
    Delivered = Counter "pulsegate_mqtt_delivered" "",
    /// Messages whose publishers wait until they are with everybody whom they are for, and messages of other workers that are dealt with here.
    Unsettled = Gauge "pulsegate_mqtt_unsettled" "",
    /// What messages published here take whose publishers wait until they are with everybody whom they are for.
    UnsettledBytes = Gauge "pulsegate_mqtt_booked" "bytes",
    /// Times that an MQTT device was read no further because what it has published and is not with everybody takes its part of the pool.
    Held = Counter "pulsegate_mqtt_held" "",
    /// Messages for MQTT subscribers dropped because as many or as much waited for the subscriber as may, and it was away, stalled, or asked for no acknowledgement.
    DroppedQueueFull = Counter "pulsegate_mqtt_dropped_queue_full" "",
    /// Messages for MQTT subscribers that are away dropped because what lies in the store for such comes to `store.sessions_bytes`, or to this one's part of what is free of it.
    DroppedStoreFull = Counter "pulsegate_mqtt_dropped_store_full" "",
    /// Messages for groups of MQTT subscribers given to other members because the session that had them ended before it acknowledged them.
    Redispatched = Counter "pulsegate_mqtt_redispatched" "",
    /// Messages for groups of MQTT subscribers dropped because the last member's session ended before it acknowledged them.
    DroppedNoMember = Counter "pulsegate_mqtt_dropped_no_member" "",
    /// MQTT subscribers for whom publishers waited, and do no longer, because they took less in five seconds than a window of messages, or than a sixth of what waited; in one second a fifth of that where room for others was short.
    Stalled = Counter "pulsegate_mqtt_stalled" "",
    /// Messages for MQTT subscribers dropped because their expiry interval had passed.
    DroppedExpired = Counter "pulsegate_mqtt_dropped_expired" "",
    /// Messages for MQTT subscribers dropped because the subscriber takes no packet as long.
    DroppedTooLarge = Counter "pulsegate_mqtt_dropped_too_large" "",
    /// Messages of MQTT devices dropped because the device may not publish there.
    DroppedUnauthorized = Counter "pulsegate_mqtt_dropped_unauthorized" "",
    /// Messages not retained because as many or as much are retained as may be.
    RetainedRefused = Counter "pulsegate_mqtt_retained_refused" "",
    /// MQTT sessions that ended because their devices stayed away for too long.
    SessionsExpired = Counter "pulsegate_mqtt_sessions_expired" "",
    /// MQTT sessions that ended with their connections because as many are kept as may be.
    SessionsDropped = Counter "pulsegate_mqtt_sessions_dropped" "",
    /// TLS key updates received from peers.
    KeyUpdates = Counter "pulsegate_tls_key_updates" "",
    /// Connections moved from here to their home worker.
    MovesSent = Counter "pulsegate_moves_sent" "",
    /// Connections that came home to this worker.
    MovesReceived = Counter "pulsegate_moves_received" "",
    /// Connections that this worker refused to take home.
    MovesRefused = Counter "pulsegate_moves_refused" "",
    /// Peers that were about to be expired and were found to have spoken after all.
    LastReadsHeard = Counter "pulsegate_last_reads_heard" "",
    /// Turns of the event loop.
    Turns = Counter "pulsegate_turns" "",
    /// Turns of the event loop that found nothing to do, those after its longest sleep not counted.
    IdleTurns = Counter "pulsegate_idle_turns" "",
    /// Times that a device was read no further for a while because it had sent more than its rate.
    RateHeld = Counter "pulsegate_rate_held" "",
    /// Commands taken from the inbox.
    Commands = Counter "pulsegate_commands" "",
}

metrics! {
    /// A count that every worker keeps for each reason, under the labels `worker` and `reason`.
    enum ReasonMetric;
    /// Connections that ended, by reason.
    Closed = Counter "pulsegate_connections_closed" "",
    /// Connections refused before TLS, by reason.
    Refused = Counter "pulsegate_connections_refused" "",
}

metrics! {
    /// A metric of each listener, over all workers, under the label `listener`.
    enum ListenerMetric;
    /// Devices connected that came through this listener.
    Devices = Gauge "pulsegate_listener_devices" "",
    /// Connections accepted by this listener. One that chose it by ALPN at another one's port counts there and here.
    Accepted = Counter "pulsegate_listener_accepted" "",
    /// Connections refused before TLS by this listener; in the exposition by reason too.
    Refused = Counter "pulsegate_listener_refused" "",
    /// Connections of this listener that ended.
    Closed = Counter "pulsegate_listener_closed" "",
    /// TLS handshakes completed with TLS 1.2.
    HandshakesTls12 = Counter "pulsegate_listener_handshakes_tls12" "",
    /// TLS handshakes completed with TLS 1.3.
    HandshakesTls13 = Counter "pulsegate_listener_handshakes_tls13" "",
}

/// A histogram of each listener, over all workers, under the label `listener`.
pub const LISTENER_HANDSHAKE: (&str, &str) =
    ("pulsegate_listener_handshake", "From the first bytes to the end of the TLS handshake, by listener.");

/// Listeners whose metrics are shown: all that there can be.
const LISTENERS_MAX: usize = 64;

/// When what a listener holds of certificates ends, in seconds since 1970, by the labels `listener`, `kind` and `number`.
pub const NOT_AFTER: (&str, &str) = (
    "pulsegate_certificate_not_after",
    "When a certificate of the listener ends, the first of its authorities, or the first of its revocation lists is to be renewed, in seconds since 1970.",
);

metrics! {
    /// A metric of the whole process, without labels.
    enum ProcessMetric;
    /// Time since the gateway started.
    Uptime = Gauge "pulsegate_uptime" "seconds",
    /// Bytes that the program holds from its allocator.
    MemoryAllocated = Gauge "pulsegate_memory_allocated" "bytes",
    /// Bytes that the allocator holds from the system in physical memory.
    MemoryResident = Gauge "pulsegate_memory_resident" "bytes",
    /// Physical memory of the process as the system counts it.
    ProcessResident = Gauge "pulsegate_process_resident" "bytes",
    /// Batches from workers that the control plane has not taken yet.
    UplinkBatchesWaiting = Gauge "pulsegate_uplink_batches_waiting" "",
    /// Device tokens found right by computing their hash.
    TokensVerified = Counter "pulsegate_tokens_verified" "",
    /// Device tokens found right by comparison with one that was right before.
    TokensCached = Counter "pulsegate_tokens_cached" "",
    /// Device tokens found wrong, or of an unknown device.
    TokensRejected = Counter "pulsegate_tokens_rejected" "",
    /// Device tokens not checked: too many waited, or their address had sent too many wrong ones.
    TokensUnanswered = Counter "pulsegate_tokens_unanswered" "",
    /// JSON Web Tokens that were accepted.
    JwtAccepted = Counter "pulsegate_jwt_accepted" "",
    /// JSON Web Tokens that were refused.
    JwtRejected = Counter "pulsegate_jwt_rejected" "",
    /// JSON Web Tokens not checked: no keys yet, a key that is not known, or too many waited.
    JwtUnanswered = Counter "pulsegate_jwt_unanswered" "",
    /// Sets of keys fetched for JSON Web Tokens.
    KeysFetched = Counter "pulsegate_jwt_keys_fetched" "",
    /// Times that keys could not be fetched: the last good ones stayed.
    KeysFailed = Counter "pulsegate_jwt_keys_failed" "",
    /// Questions to HTTP hooks.
    HookAsked = Counter "pulsegate_hook_asked" "",
    /// Questions to HTTP hooks without an answer.
    HookFailures = Counter "pulsegate_hook_failures" "",
    /// Devices for which an HTTP hook's answer was known and held.
    HookCached = Counter "pulsegate_hook_cached" "",
    /// Devices let in by an older answer because the HTTP hook gave none.
    HookStale = Counter "pulsegate_hook_stale" "",
    /// Devices let in by HTTP hooks, by answers known before too.
    HookAccepted = Counter "pulsegate_hook_accepted" "",
    /// Devices refused by HTTP hooks, by answers known before too.
    HookRejected = Counter "pulsegate_hook_rejected" "",
    /// Devices told to come again because an HTTP hook gave no answer.
    HookUnanswered = Counter "pulsegate_hook_unanswered" "",
    /// Events that the backbone took.
    EventsAccepted = Counter "pulsegate_backbone_events_accepted" "",
    /// The oldest events that the embedded backbone dropped to make room for newer ones.
    EventsDropped = Counter "pulsegate_backbone_events_dropped" "",
    /// Events that the backbone did not take.
    EventsRefused = Counter "pulsegate_backbone_events_refused" "",
    /// Answers to workers that had ended.
    AnswersDropped = Counter "pulsegate_answers_dropped" "",
    /// Requests to the HTTP API that were told to come again: answers that others had not read yet took all the memory for answers.
    AnswersWithoutRoom = Counter "pulsegate_api_answers_without_room" "",
    /// Connections of the HTTP API that were cut because they did not take their answer in time.
    AnswersCut = Counter "pulsegate_api_answers_cut" "",
    /// Reloads that were taken.
    Reloads = Counter "pulsegate_reloads" "",
    /// Reloads that were refused because something was wrong: what was in effect stayed.
    ReloadsRefused = Counter "pulsegate_reloads_refused" "",
    /// 1 while what was written last is not in effect because it is wrong, else 0.
    ReloadRefused = Gauge "pulsegate_reload_refused" "",
    /// Log lines lost because they could not be written in time: whoever reads the log hangs, has gone, or is full.
    LogLinesLost = Counter "pulsegate_log_lines_lost" "",
    /// Events that the store holds for its consumers.
    StoreEvents = Gauge "pulsegate_store_events" "",
    /// Bytes that these take.
    StoreHeld = Gauge "pulsegate_store_held" "bytes",
    /// Events written to the store.
    StoreAppended = Counter "pulsegate_store_events_appended" "",
    /// The oldest events that were dropped from the store for their age or for want of room.
    StoreDropped = Counter "pulsegate_store_events_dropped" "",
    /// Of these, events of a device that held more than an eighth of `uplink.retention_bytes`: its own oldest went, and not those of others.
    StoreDroppedShare = Counter "pulsegate_store_events_dropped_share" "",
    /// Events that gave way before their time for want of room: every consumer had acknowledged them.
    StoreGaveWay = Counter "pulsegate_store_events_gave_way" "",
    /// Events larger than all that the store may hold.
    StoreRefused = Counter "pulsegate_store_events_refused" "",
    /// Groups of events written, each with one synchronisation of the disk.
    StoreGroups = Counter "pulsegate_store_groups" "",
    /// Time that writing these groups took.
    StoreCommit = Counter "pulsegate_store_commit" "seconds",
    /// Whether there is no room for the store, so that events and their publishers wait: 1, or else 0.
    StoreWithoutRoom = Gauge "pulsegate_store_without_room" "",
    /// Sessions that the store holds.
    StoreSessions = Gauge "pulsegate_store_sessions" "",
    /// Messages for them that the store holds.
    StoreWaiting = Gauge "pulsegate_store_waiting_messages" "",
    /// Bytes that these take; one for several sessions is counted for each.
    StoreWaitingBytes = Gauge "pulsegate_store_waiting" "bytes",
    /// Retained messages that the store holds.
    StoreRetained = Gauge "pulsegate_store_retained_messages" "",
    /// Changes of sessions and retained messages that became safe.
    StoreChanges = Counter "pulsegate_store_changes" "",
    /// What was left of them to be written, once those of a group that undo each other were taken out.
    StoreSteps = Counter "pulsegate_store_changes_written" "",
}

metrics! {
    /// A metric of each sink, under the label `sink`.
    enum SinkMetric;
    /// How old the oldest event is that the sink's other side has still to acknowledge.
    Lag = Gauge "pulsegate_sink_lag" "seconds",
    /// Events behind the sink's cursor.
    Behind = Gauge "pulsegate_sink_behind" "",
    /// Whether the sink sends: 1, or 0 while it waits after a fault or because it was told to.
    Up = Gauge "pulsegate_sink_up" "",
    /// Whether the sink was told to wait: 1, or else 0.
    Paused = Gauge "pulsegate_sink_paused" "",
    /// Events that the sink's other side has acknowledged.
    Sent = Counter "pulsegate_sink_events_sent" "",
    /// Tries of the sink that failed.
    Failed = Counter "pulsegate_sink_tries_failed" "",
    /// Events that the sink's other side would not take, and that are in the file of dead letters.
    DeadLettered = Counter "pulsegate_sink_events_dead_lettered" "",
    /// Commands from the sink's other side that devices took.
    Commands = Counter "pulsegate_sink_commands" "",
    /// Commands from the sink's other side that did not reach a device.
    CommandsFailed = Counter "pulsegate_sink_commands_failed" "",
}

metrics! {
    /// A figure of commands that wait for devices, in the fleet's stream or in the store, without labels.
    enum QueueMetric;
    /// Commands that wait for devices: of the whole fleet, as this gateway counted them last, or in its own store.
    Waiting = Gauge "pulsegate_queue_waiting" "",
    /// Commands that this gateway had wait for devices that were nowhere.
    Put = Counter "pulsegate_queue_put" "",
    /// Commands that had waited and that devices of this gateway have acknowledged.
    Acknowledged = Counter "pulsegate_queue_acknowledged" "",
    /// Commands that had waited and that this gateway found to have expired.
    Expired = Counter "pulsegate_queue_expired" "",
    /// Commands that had waited and that devices of this gateway refused.
    Refused = Counter "pulsegate_queue_refused" "",
    /// Commands that waited and were taken back at this gateway.
    Cancelled = Counter "pulsegate_queue_cancelled" "",
}

metrics! {
    /// A figure of a gateway that is one of a fleet, without labels.
    enum FleetMetric;
    /// Whether NATS is there and this gateway's lease holds: 1, or else 0.
    Up = Gauge "pulsegate_fleet_up" "",
    /// Devices connected here that the fleet knows to be here.
    Claimed = Gauge "pulsegate_fleet_devices_claimed" "",
    /// Devices whose rows are still to be written or removed.
    Waiting = Gauge "pulsegate_fleet_devices_waiting" "",
    /// Rows of devices written.
    Written = Counter "pulsegate_fleet_rows_written" "",
    /// Rows of devices removed.
    Removed = Counter "pulsegate_fleet_rows_removed" "",
    /// Writes of rows that found another row than was expected.
    Conflicts = Counter "pulsegate_fleet_conflicts" "",
    /// Devices taken over from other gateways.
    Taken = Counter "pulsegate_fleet_takeovers_won" "",
    /// Connections ended because another gateway has the device.
    Lost = Counter "pulsegate_fleet_takeovers_lost" "",
    /// Connections told to come later because two places fight over an id.
    Damped = Counter "pulsegate_fleet_takeovers_damped" "",
    /// Takeovers of which the gateway that lost was not told, because too many waited.
    Untold = Counter "pulsegate_fleet_takeovers_untold" "",
    /// Questions to NATS about devices that had no answer in time, and were asked again.
    Unanswered = Counter "pulsegate_fleet_questions_unanswered" "",
    /// Delayed wills that were not published, because their devices were at other gateways by then.
    WillsWithheld = Counter "pulsegate_fleet_wills_withheld" "",
    /// Sessions that came with their devices from other gateways.
    SessionsTaken = Counter "pulsegate_fleet_sessions_taken" "",
    /// Sessions of gateways that had died, begun again by their rows and the fleet's stream.
    SessionsRevived = Counter "pulsegate_fleet_sessions_revived" "",
    /// Such sessions of which the stream had let messages go.
    SessionsWithHoles = Counter "pulsegate_fleet_sessions_revived_with_holes" "",
    /// The oldest messages of such sessions, which had no room in them.
    SessionMessagesGivenWay = Counter "pulsegate_fleet_session_messages_given_way" "",
    /// Messages that waited in sessions which came from other gateways.
    SessionMessagesTaken = Counter "pulsegate_fleet_session_messages_taken" "",
    /// Sessions that went with their devices to other gateways.
    SessionsGiven = Counter "pulsegate_fleet_sessions_given" "",
    /// Sessions of gateways that had died, which ended because their devices came nowhere in time.
    SessionsExpired = Counter "pulsegate_fleet_sessions_of_dead_expired" "",
    /// Wills of devices of gateways that had died, published because they came nowhere.
    SessionWills = Counter "pulsegate_fleet_wills_of_dead" "",
    /// Devices that were asked to come again, because their sessions could not be brought from other gateways in time.
    SessionsPutOff = Counter "pulsegate_fleet_sessions_put_off" "",
    /// Sessions that began anew, because the gateways that had them did not answer and their rows did not tell enough.
    SessionsBegunAnew = Counter "pulsegate_fleet_sessions_begun_anew" "",
    /// Sessions that went without a word, because others had them by then.
    SessionsDisowned = Counter "pulsegate_fleet_sessions_disowned" "",
    /// Devices whose sessions were not looked for at other gateways, because NATS was away.
    SessionsUnasked = Counter "pulsegate_fleet_sessions_unasked" "",
    /// Rows of sessions that were written because something else is to stand there, after the first of each.
    SessionRowsWritten = Counter "pulsegate_fleet_session_rows_written" "",
    /// Rows among them that were written because a session lags behind the others.
    SessionRowsPlaced = Counter "pulsegate_fleet_session_rows_placed" "",
    /// Rows that do not hold their sessions, which are too large.
    SessionRowsTooLarge = Counter "pulsegate_fleet_session_rows_too_large" "",
    /// Connections to NATS that were made and verified.
    Connects = Counter "pulsegate_fleet_connects" "",
    /// Connections to NATS that failed or ended.
    ConnectsFailed = Counter "pulsegate_fleet_connects_failed" "",
    /// Commands that another gateway's device took.
    Forwarded = Counter "pulsegate_fleet_commands_forwarded" "",
    /// Commands that no other gateway's device took.
    ForwardsFailed = Counter "pulsegate_fleet_commands_failed" "",
    /// Other gateways that did not answer when all were asked (lists, broadcasts, blocks).
    CallsUnanswered = Counter "pulsegate_fleet_calls_unanswered" "",
    /// Requests that came by NATS.
    Received = Counter "pulsegate_fleet_requests" "",
    /// Subjects of the fleet's stream under which what is published at other gateways is read.
    Subjects = Gauge "pulsegate_fleet_subjects" "",
    /// Messages of the fleet's stream that are still to be read here, as of the latest that was.
    PublicationsBehind = Gauge "pulsegate_fleet_publications_behind" "",
    /// Messages published at other gateways that were given to subscribers here.
    PublicationsTaken = Counter "pulsegate_fleet_publications_taken" "",
    /// Messages published here that came out of the fleet's stream again and were given to nobody.
    PublicationsOwn = Counter "pulsegate_fleet_publications_own" "",
    /// Messages in the fleet's stream that no gateway could have published, given to nobody.
    PublicationsInvalid = Counter "pulsegate_fleet_publications_invalid" "",
    /// Messages that the fleet's stream let go before they were read here, at most: some were for nobody here.
    PublicationsMissed = Counter "pulsegate_fleet_publications_missed" "",
    /// Groups of shared subscribers with members here that the fleet gives messages to.
    GroupsServed = Gauge "pulsegate_fleet_groups" "",
    /// Groups of shared subscribers with members here that get what is published at this gateway alone, for now or because there are too many.
    GroupsUnserved = Gauge "pulsegate_fleet_groups_unserved" "",
    /// Messages that the fleet gave to members of groups here and that are not acknowledged.
    GroupsUnsettled = Gauge "pulsegate_fleet_groups_unsettled" "",
    /// Messages that the fleet gave to members of groups here.
    GroupsGiven = Counter "pulsegate_fleet_groups_given" "",
    /// Messages for groups that went back to the fleet: nobody was there to take them, or whoever was has gone without a word.
    GroupsReturned = Counter "pulsegate_fleet_groups_returned" "",
    /// Messages that groups had got at the gateway where they were published, while that could not reach NATS.
    GroupsGivenElsewhere = Counter "pulsegate_fleet_groups_given_elsewhere" "",
    /// Deletions, and messages that expire, in the fleet's bucket of retained messages, as far as this gateway has read it.
    RetainedTombstones = Gauge "pulsegate_fleet_retained_tombstones" "",
    /// Changes of the fleet's retained messages that came from the bucket.
    RetainedTaken = Counter "pulsegate_fleet_retained_taken" "",
    /// Retained messages kept here that were not in the bucket any more when it was read.
    RetainedDropped = Counter "pulsegate_fleet_retained_dropped" "",
    /// Retained messages of the fleet for which there is no room here.
    RetainedRefused = Counter "pulsegate_fleet_retained_refused" "",
    /// Rows of the bucket of retained messages that no gateway could have written.
    RetainedInvalid = Counter "pulsegate_fleet_retained_invalid" "",
    /// Retained messages of gateways whose clocks are more than ten minutes ahead, which are not followed here.
    RetainedAhead = Counter "pulsegate_fleet_retained_ahead" "",
    /// Retained messages published here that were not written into the bucket because later ones were there.
    RetainedSuperseded = Counter "pulsegate_fleet_retained_superseded" "",
}

/// Events that a consumer has still to acknowledge, by the label `consumer`.
pub const CONSUMER_BEHIND: (&str, &str) =
    ("pulsegate_uplink_consumer_behind", "Events that the consumer has still to acknowledge.");
/// Events that a consumer missed, by the label `consumer`.
pub const CONSUMER_MISSED: (&str, &str) = (
    "pulsegate_uplink_consumer_missed",
    "Events that were dropped from the store before the consumer had acknowledged them.",
);

/// The metric that carries the gateway's version as a label; the format adds `_info`.
pub const BUILD_NAME: &str = "pulsegate_build";
/// One sentence for whoever reads it.
pub const BUILD_HELP: &str = "The program that runs.";

/// A histogram that every worker keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Timing {
    /// Probe sent to device heard.
    RoundTrip,
    /// ClientHello read to handshake complete, waiting for the peer included.
    Handshake,
    /// One turn of the event loop, waiting for events excluded.
    Turn,
}

impl Timing {
    /// Every histogram, in declaration order.
    pub const ALL: &'static [Timing] = &[Timing::RoundTrip, Timing::Handshake, Timing::Turn];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The metric's name, without the unit (always seconds).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Timing::RoundTrip => "pulsegate_heartbeat_round_trip",
            Timing::Handshake => "pulsegate_handshake",
            Timing::Turn => "pulsegate_turn",
        }
    }

    /// One sentence for whoever reads it.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Timing::RoundTrip => "From a heartbeat sent to its device heard; first probes only.",
            Timing::Handshake => "From the first bytes to the end of the TLS handshake.",
            Timing::Turn => "One turn of the event loop, without its wait for events.",
        }
    }
}

impl Metric {
    /// How many of what is counted make one of the unit: Prometheus wants whole base units, a loop is late by microseconds.
    #[must_use]
    pub const fn per_unit(self) -> u64 {
        match self {
            Metric::LoopLateness => 1_000_000,
            Metric::HandshakesLongestWait => 1_000,
            _ => 1,
        }
    }
}

impl ProcessMetric {
    /// As [`Metric::per_unit`].
    #[must_use]
    pub const fn per_unit(self) -> u64 {
        match self {
            ProcessMetric::StoreCommit => 1_000_000,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_well_formed() {
        let mut names: Vec<_> = Metric::ALL.iter().map(|metric| metric.name()).collect();
        names.extend(Timing::ALL.iter().map(|timing| timing.name()));
        names.extend(ReasonMetric::ALL.iter().map(|metric| metric.name()));
        names.extend(ProcessMetric::ALL.iter().map(|metric| metric.name()));
        names.extend(SinkMetric::ALL.iter().map(|metric| metric.name()));
        names.extend(FleetMetric::ALL.iter().map(|metric| metric.name()));
        names.extend(ListenerMetric::ALL.iter().map(|metric| metric.name()));
        names.push(LISTENER_HANDSHAKE.0);
        for name in &names {
            assert!(name.starts_with("pulsegate_") && !name.ends_with("_total"), "{name}");
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(Metric::ALL.iter().all(|metric| metric.help().ends_with('.')));
        assert!(ReasonMetric::ALL.iter().all(|metric| metric.help().ends_with('.')));
        assert!(ProcessMetric::ALL.iter().all(|metric| metric.help().ends_with('.')));
        assert!(SinkMetric::ALL.iter().all(|metric| metric.help().ends_with('.')));
        assert!(FleetMetric::ALL.iter().all(|metric| metric.help().ends_with('.')));
    }
}
