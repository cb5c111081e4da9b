//! The store read ahead into a window, and the window's end brought back into the store: what sinks share whose other side
//! acknowledges one by one.

use std::future::pending;

use tokio::task::JoinHandle;

use super::run::Run;
use super::window::Window;
use crate::config::SINK_WINDOW_BYTES;
use crate::store::{Head, Range, StoreError, Stored};

/// Events read at a time.
const READ_MAX: usize = 1_000;

/// Where a sink is.
pub(super) struct Feed {
    /// What is under way.
    pub(super) window: Window<Stored>,
    lanes: usize,
    /// The last event that was read.
    read: u64,
    /// How often the sink had been let go on elsewhere when it began here; none: it has not begun.
    seeks: Option<u64>,
    /// How far it is done with, and not in the store yet.
    done: Option<u64>,
    /// The cursor on its way into the store.
    advancing: Option<JoinHandle<Result<bool, StoreError>>>,
}

impl Feed {
    pub(super) fn new(lanes: usize) -> Self {
        let window = Window::new(lanes, SINK_WINDOW_BYTES);
        Self { window, lanes, read: 0, seeks: None, done: None, advancing: None }
    }

    /// Whatever it knew is void: it begins anew from the store.
    pub(super) fn forget(&mut self) {
        self.seeks = None;
    }

    /// Begins where the sink is now, if it has not begun there. Whether it did.
    pub(super) async fn begin(&mut self, run: &Run) -> Result<bool, StoreError> {
        let (seeks, cursor) = run.place().await?;
        if self.seeks == Some(seeks) {
            return Ok(false);
        }
        (self.seeks, self.read, self.done) = (Some(seeks), cursor, None);
        self.window = Window::new(self.lanes, SINK_WINDOW_BYTES);
        // The cursor passes what the store drops: of what lies before it, whatever was not told as done was never read.
        run.note_missed(Range { first: 1, last: cursor });
        run.note_done(cursor);
        Ok(true)
    }

    /// Reads as far as there is room. `lane` says through which lane a device's events go.
    pub(super) fn fill(&mut self, run: &Run, lane: impl Fn(&str) -> usize) -> Result<(), StoreError> {
        let last = run.store.head().borrow().last;
        while self.read < last && self.window.has_room() {
            let events = run.read(self.read, READ_MAX, SINK_WINDOW_BYTES / 4)?;
            if events.is_empty() {
                // All of these were there, or are gone by now.
                run.note_missed(Range { first: self.read + 1, last });
                self.window.skip(last);
                self.read = last;
            }
            for stored in events {
                if stored.seq > self.read + 1 {
                    run.note_missed(Range { first: self.read + 1, last: stored.seq - 1 });
                }
                self.read = stored.seq;
                if run.settings.selection.takes(&stored.entry) {
                    self.window.push(stored.seq, stored.entry.bytes(), lane(&stored.entry.device), stored);
                } else {
                    self.window.skip(stored.seq);
                }
            }
        }
        Ok(())
    }

    /// Whether something can be read at once.
    pub(super) fn can_read(&self, head: Head) -> bool {
        head.last > self.read && self.window.has_room()
    }

    /// Brings the cursor on its way, one at a time.
    pub(super) fn advance(&mut self, run: &Run) {
        if let Some(last) = self.window.take_done() {
            self.done = Some(last);
            run.note_done(last);
        }
        if self.advancing.is_none()
            && let (Some(seeks), Some(last)) = (self.seeks, self.done.take())
        {
            self.advancing = Some(tokio::spawn(run.advance(seeks, last)));
        }
    }

    /// The cursor has come into the store. Never, when none is on its way.
    pub(super) async fn advanced(&mut self) -> Result<(), StoreError> {
        let Some(advancing) = &mut self.advancing else { return pending().await };
        let advanced = advancing.await.unwrap_or(Err(StoreError::Closed));
        self.advancing = None;
        if advanced.is_err() {
            self.forget();
        }
        // If it was let go on elsewhere, it begins there next.
        advanced.map(drop)
    }

    /// What is done with is kept.
    pub(super) async fn finish(mut self, run: &Run) {
        if let Some(advancing) = self.advancing.take() {
            drop(advancing.await);
        }
        if let (Some(seeks), Some(last)) = (self.seeks, self.window.take_done().or(self.done)) {
            run.note_done(last);
            drop(run.advance(seeks, last).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use tokio::sync::{mpsc, watch};

    use super::super::dead_letter::DeadLetters;
    use super::super::{Settings, Told};
    use super::*;
    use crate::config::{NatsLogin, NatsSink, Sink, SinkKind, SinkTls};
    use crate::link::{ConnectionId, ConnectionSlot, Receipt, WorkerId};
    use crate::store::{Durability, Entry, Options, Settled, Store, What};

    const DEADLINE: Duration = Duration::from_mins(1);

    fn settings() -> Settings {
        let nats = NatsSink {
            urls: vec!["nats://127.0.0.1:1".into()],
            stream: "s".into(),
            make: None,
            prefix: "p".into(),
            inflight: 1,
            login: NatsLogin::default(),
        };
        let sink = Sink {
            name: "s".into(),
            topics: vec!["#".into()],
            presence: true,
            from_first: true,
            timeout: DEADLINE,
            retry: (DEADLINE, DEADLINE),
            tries_refused: 1,
            tries_failed: 0,
            dead_letter_bytes: 0,
            tls: SinkTls::default(),
            kind: SinkKind::Nats(nats),
        };
        Settings::prove(&sink).ok().unwrap()
    }

    /// A store of 100,000 bytes in which events live for so long, and a sink that begins with its first event.
    struct Stage {
        run: Run,
        settled: crossbeam_channel::Receiver<Settled>,
        told: Arc<Mutex<Vec<Told>>>,
        /// The other ends, which nobody is to find closed.
        _ends: (mpsc::Receiver<super::super::Order>, watch::Sender<()>),
    }

    impl Stage {
        async fn new(directory: &Path, retention_age: Duration) -> Self {
            let options = Options {
                directory: directory.into(),
                durability: Durability::Group,
                bytes_max: 64 << 20,
                queue_bytes: 1 << 20,
                retention_age,
                retention_bytes: 100_000,
                command_bytes: 1 << 20,
                clock: Arc::new(crate::clock::Clock::new(Instant::now())),
            };
            let (sender, settled) = crossbeam_channel::unbounded();
            let settle = move |all: &[Settled]| all.iter().for_each(|one| sender.send(*one).unwrap());
            let store = Arc::new(Store::open(&options, settle).unwrap());
            let (devices, taker) = mpsc::channel(1);
            let (giver, orders) = watch::channel(());
            let told: Arc<Mutex<Vec<Told>>> = Arc::default();
            let hears = Arc::clone(&told);
            let mut run = Run {
                settings: Arc::new(settings()),
                store,
                consumer: "sink:s".into(),
                node: "n".into(),
                shared: Arc::default(),
                letters: DeadLetters::new(directory, "s", 0),
                devices,
                orders,
                tell: Some(Arc::new(move |told| hears.lock().unwrap().push(told))),
            };
            assert!(run.begin().await.is_ok());
            Self { run, settled, told, _ends: (taker, giver) }
        }

        /// So many events of a device, settled. Their time is of 2023.
        fn say(&self, device: &str, count: u32) {
            for first in (0..count).step_by(20) {
                let event = |number| Entry {
                    at_ms: 1_700_000_000_000,
                    worker: WorkerId(0),
                    device: device.into(),
                    what: What::Message {
                        topic: "t".into(),
                        payload: Bytes::from_static(&[b'x'; 100]),
                        published: None,
                    },
                    receipt: Some(Receipt::Connection(ConnectionId { slot: ConnectionSlot(0), generation: 1 }, number)),
                };
                let mut entries: Vec<_> = (first..count.min(first + 20)).map(event).collect();
                let offered = entries.len();
                self.run.store.offer(&mut entries, &mut Vec::new());
                (0..offered).for_each(|_| assert!(self.settled.recv_timeout(DEADLINE).unwrap().accepted));
            }
        }

        fn held(&self) -> Vec<u64> {
            self.run
                .store
                .reader()
                .behind(0, usize::MAX >> 1, usize::MAX)
                .unwrap()
                .iter()
                .map(|held| held.seq)
                .collect()
        }

        fn take_told(&self) -> Vec<Told> {
            std::mem::take(&mut self.told.lock().unwrap())
        }
    }

    /// All that can be read; the other side has each at once. What it had.
    fn take_all(feed: &mut Feed, stage: &Stage) -> Vec<u64> {
        let mut taken = Vec::new();
        for _ in 0..1_000 {
            feed.fill(&stage.run, |_| 0).unwrap();
            while let Some((seq, _)) = feed.window.next(0, 1) {
                taken.push(seq);
                feed.window.acknowledge(0, seq);
            }
            feed.advance(&stage.run);
            if !feed.can_read(*stage.run.store.head().borrow()) {
                return taken;
            }
        }
        panic!("it reads on and on and comes no further than {}", feed.read);
    }

    #[tokio::test]
    async fn a_hole_in_the_log_is_passed_and_told() {
        let directory = tempfile::tempdir().unwrap();
        let stage = Stage::new(directory.path(), Duration::from_hours(100 * 365 * 24)).await;
        let mut feed = Feed::new(1);
        assert!(feed.begin(&stage.run).await.unwrap());
        assert_eq!(stage.take_told().last(), Some(&Told::Done(0)));
        // The flood's own go first, far more of them than are read at a time.
        (0..50).for_each(|number| stage.say(&format!("quiet-{number}"), 2));
        stage.say("flood", 5_000);
        let held = stage.held();
        let hole = Range { first: held[99] + 1, last: held[100] - 1 };
        assert!(hole.first == 101 && hole.last > 101 + 2 * READ_MAX as u64, "{hole:?}");
        assert_eq!(take_all(&mut feed, &stage), held);
        let told = stage.take_told();
        assert_eq!(told.iter().filter(|told| matches!(told, Told::Missed(_))).count(), 1, "{told:?}");
        let (missed, done) = (Told::Missed(hole), Told::Done(5_100));
        let place = |what| told.iter().position(|told| *told == what).unwrap();
        assert!(place(missed) < place(done), "{told:?}");
    }

    #[tokio::test]
    async fn when_all_is_gone_it_waits_for_what_comes_and_tells_what_it_missed() {
        let directory = tempfile::tempdir().unwrap();
        let stage = Stage::new(directory.path(), Duration::from_hours(24)).await;
        let (mut feed, mut late) = (Feed::new(1), Feed::new(1));
        assert!(feed.begin(&stage.run).await.unwrap());
        stage.take_told();
        stage.say("d", 10);
        let deadline = Instant::now() + DEADLINE;
        while !stage.held().is_empty() {
            assert!(Instant::now() < deadline, "the old events are still held");
            tokio::task::yield_now().await;
        }
        assert_eq!(take_all(&mut feed, &stage), [0; 0]);
        let missed = Told::Missed(Range { first: 1, last: 10 });
        assert_eq!(stage.take_told(), [missed, Told::Done(10)]);
        // So it is for one that begins now, whose cursor has passed them in the store.
        assert!(late.begin(&stage.run).await.unwrap());
        assert_eq!(stage.take_told(), [missed, Told::Done(10)]);
    }
}
