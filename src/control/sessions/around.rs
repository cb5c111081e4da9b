//! What is around the sessions of a gateway: its shards, its store, NATS and the other gateways, and the clock. [`State`] has the real ones; a
//! world of `tests` puts models in their place, in which everything comes late, is lost, or ends at any step.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{SHARD_MAX, Sessions, State, fence};
use crate::config::Limits;
use crate::fleet::{
    Cursor, Fleet, Missed, Published, RowChange, SessionAsk, SessionRow, Span, StreamEnds, Unreachable,
};
use crate::image::{Message, Session, SessionKey, Will};
use crate::link::{Cover, Lag, ListenerId, Outcome, Publication, Round, SessionOrder, Told, WorkerCommand, WorkerId};

/// How long shards may take for a round.
const ROUND_MAX: Duration = Duration::from_secs(4);

/// See the head of this file.
pub(in super::super) trait Around: Send + Sync + Sized + 'static {
    type Fleet: Neighbours;

    /// What is known of sessions on their way.
    fn sessions(&self) -> &Sessions;
    /// NATS and the other gateways; `None`: this one is alone.
    fn fleet(&self) -> Option<&Self::Fleet>;
    /// What a session may hold.
    fn limits(&self) -> &Limits;
    /// How long the lease of a gateway lasts.
    fn lease(&self) -> Duration;
    /// Whether the gateway ends.
    fn is_ending(&self) -> bool;

    // --- Time ---------------------------------------------------------------------------------------------------------

    fn now(&self) -> Instant;
    /// The clock on the wall.
    fn unix_ms(&self) -> i64;
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send;
    /// Something that goes on by itself.
    fn spawn(self: Arc<Self>, task: impl Future<Output = ()> + Send + 'static);

    // --- Shards -------------------------------------------------------------------------------------------------------

    /// Asks the shard that is a device's home. `None`: it does not answer in time, or has too much to do.
    fn ask(&self, device: &str, order: SessionOrder) -> impl Future<Output = Option<Outcome>> + Send;
    /// Answers what a shard has asked.
    fn answer(&self, worker: WorkerId, command: WorkerCommand);
    /// How the sessions of every shard stand in a round. `None`: one does not answer in time.
    fn ask_round(&self, number: u64, floor: u64) -> impl Future<Output = Option<Vec<Lag>>> + Send;
    /// The will of a device whose gateway has died is published here.
    fn publish_will(&self, device: Box<str>, listener: &str, will: Will);

    // --- The store ----------------------------------------------------------------------------------------------------

    fn has_store(&self) -> bool;
    /// What it has of the session of a device, without its messages. `None`: nothing, or it cannot be read.
    fn stored(&self, device: &str) -> impl Future<Output = Option<Session>> + Send;
    /// Messages of a session with numbers behind the one and up to the other, so many bytes and one. `None`: they cannot be read.
    fn stored_messages(
        &self,
        key: SessionKey,
        numbers: (u64, u64),
        bytes: usize,
    ) -> impl Future<Output = Option<Vec<Message>>> + Send;
    /// Sessions by the order of their keys behind this one, at most so many. `None`: they cannot be read.
    fn stored_names(
        &self,
        after: SessionKey,
        count: usize,
    ) -> impl Future<Output = Option<Vec<(SessionKey, Box<str>)>>> + Send;

    // --- The stream ---------------------------------------------------------------------------------------------------

    /// Whether the fleet has one.
    fn has_stream(&self) -> bool;
    /// Ends when all that was published here until now is in it. `None`: it is not known to be.
    fn send_all(&self) -> impl Future<Output = Option<()>> + Send;
    /// Ends when whatever any shard has passed on to another is there. `None`: not in time.
    fn pass_all(&self) -> impl Future<Output = Option<()>> + Send;
}

/// NATS, and the gateways that are reached over it: see [`Fleet`], whose methods these are.
pub(in super::super) trait Neighbours: Send + Sync + 'static {
    type Missed: Pieces;

    fn node(&self) -> &str;
    fn is_connected(&self) -> bool;
    fn joined(&self) -> u64;
    fn has_no_sessions(&self) -> bool;
    fn session_row(&self, device: &str) -> impl Future<Output = Result<Option<(u64, SessionRow)>, String>> + Send;
    fn write_row(&self, device: &str, expected: u64, row: &SessionRow) -> impl Future<Output = RowChange> + Send;
    fn remove_session_row(&self, revision: u64) -> impl Future<Output = Result<bool, String>> + Send;
    fn next_session(
        &self,
        revision: u64,
    ) -> impl Future<Output = Result<Option<(u64, Option<String>, SessionRow)>, String>> + Send;
    fn write_cursor(&self, cursor: &Cursor) -> impl Future<Output = bool> + Send;
    fn session_cursor(&self, node: &str) -> impl Future<Output = Result<Option<Cursor>, String>> + Send;
    fn is_live(&self, node: &str) -> impl Future<Output = Result<bool, String>> + Send;
    fn living(&self) -> BTreeSet<String>;
    fn dead_for(&self, node: &str) -> impl Future<Output = Result<Option<Duration>, String>> + Send;
    fn forget_dead(&self, needed: impl Fn(&str) -> bool + Send) -> impl Future<Output = Result<(), String>> + Send;
    fn has_device(&self, device: &str) -> impl Future<Output = Result<bool, String>> + Send;
    fn holds_device(&self, device: &str) -> bool;
    fn note_will_withheld(&self);
    fn ask_session(
        &self,
        node: &str,
        device: &str,
        ask: SessionAsk,
    ) -> impl Future<Output = Result<Bytes, Unreachable>> + Send;
    fn has_stream(&self) -> bool;
    fn reach_end(&self) -> impl Future<Output = bool> + Send;
    fn stream_ends(&self) -> impl Future<Output = Result<StreamEnds, String>> + Send;
    fn missed(&self, cover: &Cover, span: Span) -> impl Future<Output = Result<Option<Self::Missed>, String>> + Send;
}

/// What the stream has between two places: see [`Missed`].
pub(in super::super) trait Pieces: Send {
    fn pending(&self) -> u64;
    fn last(&self) -> u64;
    fn next(&mut self) -> impl Future<Output = Result<Option<Vec<Published>>, String>> + Send;
}

/// Ends with `future`, or at `until`: then it is `None`.
pub(super) async fn within<T>(around: &impl Around, until: Instant, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = future => Some(done),
        () = around.sleep(until.saturating_duration_since(around.now())) => None,
    }
}

impl Around for State {
    type Fleet = Fleet;

    fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    fn fleet(&self) -> Option<&Fleet> {
        self.fleet.as_ref()
    }

    fn limits(&self) -> &Limits {
        &self.config.limits
    }

    fn lease(&self) -> Duration {
        self.config.fleet.as_ref().map_or(Duration::MAX, |fleet| fleet.lease)
    }

    fn is_ending(&self) -> bool {
        self.stopping.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn unix_ms(&self) -> i64 {
        self.clock.unix_ms(self.clock.now())
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn spawn(self: Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        drop(tokio::spawn(task));
    }

    async fn ask(&self, device: &str, order: SessionOrder) -> Option<Outcome> {
        let worker = self.home.of(device);
        let ticket = self.sent.open();
        let command = WorkerCommand::Session { request: ticket.request(), device: device.into(), order };
        self.mailboxes[worker.index()].send(command).ok()?;
        ticket.answer(Instant::now() + SHARD_MAX).await
    }

    fn answer(&self, worker: WorkerId, command: WorkerCommand) {
        // A worker that is gone has no devices.
        let _ = self.mailboxes[worker.index()].answer(command);
    }

    async fn ask_round(&self, number: u64, floor: u64) -> Option<Vec<Lag>> {
        let until = Instant::now() + ROUND_MAX;
        let is_last = self.is_ending();
        let asked = self.mailboxes.iter().map(|mailbox| {
            let (ticket, told) = (self.sent.open(), Told::default());
            let round = Round { request: ticket.request(), number, floor, is_last, told: told.clone() };
            mailbox.send(WorkerCommand::Round(round)).ok().map(|()| (ticket, told))
        });
        let asked: Option<Vec<_>> = asked.collect();
        let answers = asked?.into_iter().map(|(ticket, told)| async move {
            let outcome = ticket.answer(until).await?;
            told.take().filter(|_| outcome == Outcome::Delivered)
        });
        join_all(answers).await.into_iter().collect()
    }

    fn publish_will(&self, device: Box<str>, listener: &str, will: Will) {
        let listener = self.config.listeners.iter().position(|known| *known.name == *listener);
        let listener = ListenerId(listener.unwrap_or(0) as u8);
        let Will { publication: said, expiry_s, .. } = will;
        let expires = expiry_s.map(|seconds| self.clock.now().plus(Duration::from_secs(seconds.into())));
        let (retain, properties) = (said.retain, said.properties);
        let publication =
            Publication { retain, properties, expires, ..Publication::plain(said.topic, said.payload, said.qos) };
        let worker = self.home.of(&device);
        self.answer(worker, WorkerCommand::PublishWill { device, listener, publication: Box::new(publication) });
    }

    fn has_store(&self) -> bool {
        self.store.is_some()
    }

    async fn stored(&self, device: &str) -> Option<Session> {
        let (store, device) = (Arc::clone(self.store.as_ref()?), Box::<str>::from(device));
        let read = move || store.reader().session(&device).transpose();
        match tokio::task::spawn_blocking(read).await.ok()?? {
            Ok(session) => Some(session),
            Err(error) => {
                tracing::error!(%error, "a session that another gateway wants cannot be read");
                None
            }
        }
    }

    async fn stored_messages(&self, key: SessionKey, numbers: (u64, u64), bytes: usize) -> Option<Vec<Message>> {
        let store = Arc::clone(self.store.as_ref()?);
        let read = move || store.reader().messages(key, numbers, bytes);
        match tokio::task::spawn_blocking(read).await.ok()? {
            Ok((messages, _)) => Some(messages),
            Err(error) => {
                tracing::error!(%error, "what waits in a session that another gateway wants cannot be read");
                None
            }
        }
    }

    async fn stored_names(&self, after: SessionKey, count: usize) -> Option<Vec<(SessionKey, Box<str>)>> {
        let Some(store) = self.store.clone() else {
            // Without a store no session outlives the process.
            return Some(Vec::new());
        };
        let page = tokio::task::spawn_blocking(move || store.reader().session_names(after, count)).await.ok()?;
        page.inspect_err(|error| tracing::warn!(%error, "sessions cannot be looked at")).ok()
    }

    fn has_stream(&self) -> bool {
        fence::has_stream(self)
    }

    async fn send_all(&self) -> Option<()> {
        fence::send_all(self).await
    }

    async fn pass_all(&self) -> Option<()> {
        fence::pass_all(self).await
    }
}

impl Neighbours for Fleet {
    type Missed = Missed;

    fn node(&self) -> &str {
        self.node()
    }

    fn is_connected(&self) -> bool {
        self.is_connected()
    }

    fn joined(&self) -> u64 {
        self.joined()
    }

    fn has_no_sessions(&self) -> bool {
        self.has_no_sessions()
    }

    async fn session_row(&self, device: &str) -> Result<Option<(u64, SessionRow)>, String> {
        self.session_row(device).await
    }

    async fn write_row(&self, device: &str, expected: u64, row: &SessionRow) -> RowChange {
        self.write_row(device, expected, row).await
    }

    async fn remove_session_row(&self, revision: u64) -> Result<bool, String> {
        self.remove_session_row(revision).await
    }

    async fn next_session(&self, revision: u64) -> Result<Option<(u64, Option<String>, SessionRow)>, String> {
        self.next_session(revision).await
    }

    async fn write_cursor(&self, cursor: &Cursor) -> bool {
        self.write_cursor(cursor).await
    }

    async fn session_cursor(&self, node: &str) -> Result<Option<Cursor>, String> {
        self.session_cursor(node).await
    }

    async fn is_live(&self, node: &str) -> Result<bool, String> {
        self.is_live(node).await
    }

    fn living(&self) -> BTreeSet<String> {
        self.living()
    }

    async fn dead_for(&self, node: &str) -> Result<Option<Duration>, String> {
        self.dead_for(node).await
    }

    async fn forget_dead(&self, needed: impl Fn(&str) -> bool + Send) -> Result<(), String> {
        self.forget_dead(needed).await
    }

    async fn has_device(&self, device: &str) -> Result<bool, String> {
        self.has_device(device).await
    }

    fn holds_device(&self, device: &str) -> bool {
        self.holds_device(device)
    }

    fn note_will_withheld(&self) {
        self.note_will_withheld();
    }

    async fn ask_session(&self, node: &str, device: &str, ask: SessionAsk) -> Result<Bytes, Unreachable> {
        self.ask_session(node, device, ask).await
    }

    fn has_stream(&self) -> bool {
        self.has_stream()
    }

    async fn reach_end(&self) -> bool {
        self.reach_end().await
    }

    async fn stream_ends(&self) -> Result<StreamEnds, String> {
        self.stream_ends().await
    }

    async fn missed(&self, cover: &Cover, span: Span) -> Result<Option<Missed>, String> {
        self.missed(cover, span).await
    }
}

impl Pieces for Missed {
    fn pending(&self) -> u64 {
        self.pending()
    }

    fn last(&self) -> u64 {
        self.last()
    }

    async fn next(&mut self) -> Result<Option<Vec<Published>>, String> {
        self.next().await
    }
}
