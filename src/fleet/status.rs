//! How this gateway's part of the fleet is, for people, probes and metrics.

use std::time::{Duration, Instant};

/// What NATS is to this gateway now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is there, and the lease holds.
    Connected,
    /// It cannot be reached, or not be used: it is tried again.
    Away,
}

impl State {
    /// Its word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            State::Connected => "connected",
            State::Away => "away",
        }
    }
}

/// What is known by now.
#[derive(Debug)]
pub(super) struct Status {
    state: State,
    since: Instant,
    ready_without_nats: bool,
    error: Option<String>,
    promise: Option<String>,
    server: Option<String>,
    /// Why what others publish cannot be read,
    publications_error: Option<String>,
    /// and why the bucket of retained messages cannot.
    retained_error: Option<String>,
}

/// What has become of the fleet's retained messages here, since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// All of the bucket was read, at least once.
    pub is_read: bool,
    /// Deletions that lie in it, and messages that expire, as far as they are known here.
    pub tombstones: u64,
    /// What came from it.
    pub taken: u64,
    /// Messages kept here that were there no more when it was read.
    pub dropped: u64,
    /// Messages for which there is no room here.
    pub refused: u64,
    /// What no gateway could have written.
    pub invalid: u64,
    /// Messages of gateways whose clocks are too far ahead.
    pub ahead: u64,
    /// Messages published here that were not written because later ones were there.
    pub superseded: u64,
}

/// What has become of what the fleet gives to groups of shared subscribers, here, since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct GroupsReport {
    /// Groups with members here that the fleet serves,
    pub served: u64,
    /// and those that it does not.
    pub unserved: u64,
    /// Messages that members here have got.
    pub given: u64,
    /// Messages that went back, for somebody else.
    pub returned: u64,
    /// Messages that members here have, or are about to, and that are not settled.
    pub unsettled: u64,
    /// Messages that members at the gateway where they were published have got while it could not reach NATS.
    pub given_elsewhere: u64,
}

/// The same, told.
#[derive(Clone, Debug)]
pub struct Report {
    /// What NATS is to this gateway.
    pub state: State,
    /// For how long.
    pub for_long: Duration,
    /// Whether a gateway without NATS is to get new devices.
    pub ready_without_nats: bool,
    /// Why the last try failed, while NATS is away.
    pub error: Option<String>,
    /// What holds of what was written there, as far as it was ever there.
    pub promise: Option<String>,
    /// The server's version, as far as it was ever there.
    pub server: Option<String>,
    /// Devices here whose rows are as they are to be.
    pub devices_held: u64,
    /// Devices whose rows are still to be written or removed.
    pub devices_waiting: u64,
    /// Rows written.
    pub rows_written: u64,
    /// Rows removed.
    pub rows_removed: u64,
    /// Writes that found another row than was expected.
    pub conflicts: u64,
    /// Devices taken over from other gateways.
    pub taken: u64,
    /// Devices lost to other gateways.
    pub lost: u64,
    /// Devices that had to wait because two places fought over their ids.
    pub damped: u64,
    /// Connections to NATS that were made.
    pub connects: u64,
    /// Connections that failed or ended.
    pub connects_failed: u64,
    /// Deeds done by other gateways.
    pub forwarded: u64,
    /// Deeds that no other gateway did.
    pub forwards_failed: u64,
    /// Requests that came by NATS.
    pub received: u64,
    /// Gateways that were not told of a takeover.
    pub untold: u64,
    /// Questions to NATS that had no answer in time, and were asked again.
    pub unanswered: u64,
    /// Delayed wills that were not published, because their devices were at other gateways.
    pub wills_withheld: u64,
    /// Why what others publish cannot be read, while NATS is there.
    pub publications_error: Option<String>,
    /// Retained messages,
    pub retained: Bucket,
    /// and why they cannot be read, while NATS is there.
    pub retained_error: Option<String>,
    /// Subjects under which what others publish is read.
    pub subjects: u64,
    /// Groups of shared subscribers.
    pub groups: GroupsReport,
    /// Messages published elsewhere that were given to subscribers here.
    pub publications_taken: u64,
    /// Messages published here that were read again and given to nobody.
    pub publications_own: u64,
    /// Messages in the stream that no gateway could have published.
    pub publications_invalid: u64,
    /// Messages that the stream let go before they were read, at most.
    pub publications_missed: u64,
    /// Messages in the stream that are still to be read here.
    pub publications_behind: u64,
    /// Other gateways that did not answer when all were asked.
    pub calls_unanswered: u64,
}

impl Status {
    pub(super) fn new(now: Instant, ready_without_nats: bool) -> Self {
        let error = Some("it was not tried yet".to_owned());
        Self {
            state: State::Away,
            since: now,
            ready_without_nats,
            error,
            promise: None,
            server: None,
            publications_error: None,
            retained_error: None,
        }
    }

    /// NATS is there.
    pub(super) fn connected(&mut self, now: Instant, server: String, promise: String) {
        (self.state, self.since, self.error) = (State::Connected, now, None);
        (self.server, self.promise) = (Some(server), Some(promise));
    }

    /// What others publish can be read, or cannot; why.
    pub(super) fn publications(&mut self, error: Option<&str>) {
        if self.publications_error.as_deref() == error {
            return;
        }
        self.publications_error = error.map(str::to_owned);
        if let Some(why) = error {
            tracing::warn!(why, "what other gateways publish does not come here, and is read later");
        } else {
            tracing::info!("what other gateways publish comes here again");
        }
    }

    /// The bucket of retained messages can be read, or cannot; why.
    pub(super) fn retained(&mut self, error: Option<&str>) {
        if self.retained_error.as_deref() == error {
            return;
        }
        self.retained_error = error.map(str::to_owned);
        if let Some(why) = error {
            tracing::warn!(why, "what other gateways retain does not come here, and is read later");
        } else {
            tracing::info!("what other gateways retain comes here again");
        }
    }

    /// NATS is not there; why. `true`: that is news.
    pub(super) fn away(&mut self, now: Instant, why: &str) -> bool {
        let was_there = self.state == State::Connected;
        if was_there {
            (self.state, self.since) = (State::Away, now);
        }
        let is_news = was_there || self.error.as_deref() != Some(why);
        self.error = Some(why.to_owned());
        is_news
    }

    pub(super) fn report(&self, now: Instant, fill: impl FnOnce(&mut Report)) -> Report {
        let mut report = Report {
            state: self.state,
            for_long: now.saturating_duration_since(self.since),
            ready_without_nats: self.ready_without_nats,
            error: self.error.clone(),
            promise: self.promise.clone(),
            server: self.server.clone(),
            devices_held: 0,
            devices_waiting: 0,
            rows_written: 0,
            rows_removed: 0,
            conflicts: 0,
            taken: 0,
            lost: 0,
            damped: 0,
            connects: 0,
            connects_failed: 0,
            forwarded: 0,
            forwards_failed: 0,
            received: 0,
            untold: 0,
            unanswered: 0,
            wills_withheld: 0,
            publications_error: self.publications_error.clone(),
            retained: Bucket::default(),
            retained_error: self.retained_error.clone(),
            subjects: 0,
            groups: GroupsReport::default(),
            publications_taken: 0,
            publications_own: 0,
            publications_invalid: 0,
            publications_missed: 0,
            publications_behind: 0,
            calls_unanswered: 0,
        };
        fill(&mut report);
        report
    }
}
