//! What every sink's thread stands on: what it is to do, how far it is, and what others may know of it.

use std::future::Future;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::dead_letter::DeadLetters;
use super::event::Event;
use super::{Order, Settings, Tell, Told};
use crate::config::SINK_WINDOW_BYTES;
use crate::store::{Position, Range, SinkNote, Store, StoreError, Stored};

/// How long it waits when the store cannot be read or will not have it.
const STORE_RETRY: Duration = Duration::from_secs(5);
/// The longest text of an error that is kept, in bytes.
const ERROR_BYTES_MAX: usize = 300;

/// What a sink does just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// It sends, or waits for events.
    Running = 0,
    /// The last try failed: it waits for the next.
    Retrying = 1,
    /// The other side refuses what the dead letters have no room for.
    Blocked = 2,
}

/// What is known of a sink; it stays when its settings change.
#[derive(Debug, Default)]
pub struct Shared {
    /// It was told to wait.
    pub is_paused: AtomicBool,
    phase: AtomicU8,
    /// Events that the other side has.
    pub sent: AtomicU64,
    /// Tries that failed.
    pub failed: AtomicU64,
    /// Events that went to the dead letters.
    pub dead_lettered: AtomicU64,
    /// Retained messages that it did not write, because later ones were there.
    pub superseded: Arc<AtomicU64>,
    /// Commands that devices took.
    pub commands: AtomicU64,
    /// Commands that did not reach a device.
    pub commands_failed: AtomicU64,
    /// Why the last try failed; none once one went well.
    error: Mutex<Option<String>>,
    /// How often somebody let it go on elsewhere. Whoever moves its cursor holds this.
    pub seeks: tokio::sync::Mutex<u64>,
}

impl Shared {
    /// What it does.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Running,
            1 => Phase::Retrying,
            _ => Phase::Blocked,
        }
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Why the last try failed.
    pub fn error(&self) -> Option<String> {
        self.error.lock().expect("no holder panics").clone()
    }
}

/// One thread's own.
pub struct Run {
    pub settings: Arc<Settings>,
    pub store: Arc<Store>,
    /// The name of its consumer.
    pub consumer: Box<str>,
    /// This gateway's name.
    pub node: String,
    pub shared: Arc<Shared>,
    pub letters: DeadLetters,
    /// The way to devices.
    pub devices: mpsc::Sender<Order>,
    /// Changes whenever something was ordered; its sender is gone when the thread is to end.
    pub orders: watch::Receiver<()>,
    /// Who hears how far it is.
    pub tell: Option<Tell>,
}

/// The lane of a device: the same in every run.
pub fn lane_of(device: &str, lanes: usize) -> usize {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(device);
    (hash % lanes as u64) as usize
}

/// It is to end: the gateway ends, or other settings hold.
pub struct Over;

impl Run {
    /// Makes its consumer, if it has none yet, and gives back the store's identity. Waits for as long as there are too many
    /// consumers, or the store cannot be read.
    pub async fn begin(&mut self) -> Result<String, Over> {
        let position = if self.settings.config.from_first { Position::First } else { Position::End };
        loop {
            let made = self.store.create(&self.consumer, position).await;
            match made.and_then(|_| self.store.reader().identity()) {
                Ok(identity) => return Ok(identity),
                Err(error) => self.store_failed(&error).await?,
            }
        }
    }

    /// The store is not as it should be: it says so, and waits.
    pub async fn store_failed(&mut self, error: &StoreError) -> Result<(), Over> {
        if matches!(error, StoreError::Closed) {
            return Err(Over);
        }
        self.note_failure(&error.to_string());
        self.unless_ordered(tokio::time::sleep(STORE_RETRY)).await?;
        Ok(())
    }

    /// What comes of `future`; `None` when something was ordered before.
    pub async fn unless_ordered<F: Future>(&mut self, future: F) -> Result<Option<F::Output>, Over> {
        tokio::select! {
            biased;
            ordered = self.orders.changed() => ordered.map(|()| None).map_err(|_| Over),
            output = future => Ok(Some(output)),
        }
    }

    /// Waits for as long as it is told to. To be asked before anything new is begun: who has much to send would else never hear
    /// that other settings hold.
    pub async fn while_paused(&mut self) -> Result<(), Over> {
        self.orders.has_changed().map_err(|_| Over)?;
        while self.is_paused() {
            self.orders.changed().await.map_err(|_| Over)?;
        }
        Ok(())
    }

    /// Whether it was told to wait.
    pub fn is_paused(&self) -> bool {
        self.shared.is_paused.load(Ordering::Relaxed)
    }

    /// How often it was let go on elsewhere, and where it is.
    pub async fn place(&self) -> Result<(u64, u64), StoreError> {
        let seeks = self.shared.seeks.lock().await;
        let cursor =
            self.store.cursor(&self.consumer).ok_or_else(|| StoreError::NoConsumer(self.consumer.to_string()))?;
        Ok((*seeks, cursor))
    }

    /// At most `count` events behind `seq`, and about [`SINK_WINDOW_BYTES`] of them.
    pub fn read(&self, seq: u64, count: usize, bytes: usize) -> Result<Vec<Stored>, StoreError> {
        self.store.reader().behind(seq, count, bytes.min(SINK_WINDOW_BYTES))
    }

    /// Everything up to `last` is done with. `false`: it was let go on elsewhere since `seeks` was read.
    pub fn advance(&self, seeks: u64, last: u64) -> impl Future<Output = Result<bool, StoreError>> + Send + 'static {
        let (shared, store, consumer) = (Arc::clone(&self.shared), Arc::clone(&self.store), self.consumer.clone());
        async move {
            let now = shared.seeks.lock().await;
            if *now != seeks {
                return Ok(false);
            }
            store.acknowledge(&consumer, Range { first: 1, last }).await?;
            Ok(true)
        }
    }

    /// All up to this one is done with.
    pub fn note_done(&self, last: u64) {
        if let Some(tell) = &self.tell {
            tell(Told::Done(last));
        }
    }

    /// These were dropped before they were read. To be said before [`Run::note_done`] of what follows them.
    pub fn note_missed(&self, missed: Range) {
        if let Some(tell) = &self.tell {
            tell(Told::Missed(missed));
        }
    }

    /// Where the batch ends that is begun.
    pub async fn note_batch(&self, last: u64) -> Result<u64, StoreError> {
        self.store.note(&self.consumer, SinkNote::Batch(last)).await
    }

    /// The other side has `count` events more.
    pub fn note_sent(&self, count: usize) {
        self.shared.sent.fetch_add(count as u64, Ordering::Relaxed);
        self.note_well();
    }

    /// The other side answers as it should.
    pub fn note_well(&self) {
        self.shared.set_phase(Phase::Running);
        if self.shared.error.lock().expect("no holder panics").take().is_some() {
            tracing::info!(sink = self.settings.config.name, "the sink goes on");
        }
    }

    /// A try has failed. Logged when it is another fault than before, or the first.
    pub fn note_failure(&self, error: &str) {
        self.shared.failed.fetch_add(1, Ordering::Relaxed);
        if self.shared.phase() == Phase::Running {
            self.shared.set_phase(Phase::Retrying);
        }
        let error: String = error.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
        let error = &error[..error.floor_char_boundary(ERROR_BYTES_MAX)];
        let mut last = self.shared.error.lock().expect("no holder panics");
        if last.as_deref() != Some(error) {
            tracing::warn!(sink = self.settings.config.name, error, "the sink waits and tries again");
            *last = Some(error.to_owned());
        }
    }

    /// What the other side will not take goes to the dead letters. `false`: they have no room, and it must be tried on.
    pub fn bury(&self, why: &str, events: &[&Stored]) -> bool {
        let name = &self.settings.config.name;
        let path = self.letters.path().display();
        match self.letters.add(name, why, events.iter().map(|stored| Event::new(&self.node, stored))) {
            Ok(()) => {
                self.shared.dead_lettered.fetch_add(events.len() as u64, Ordering::Relaxed);
                self.shared.set_phase(Phase::Running);
                tracing::error!(sink = name, events = events.len(), why, %path, "the other side will not take these: they are in the dead letters");
                true
            }
            Err(error) => {
                if self.shared.phase() != Phase::Blocked {
                    tracing::error!(sink = name, %path, %error, "the dead letters take no more: the sink waits; read the file and move it away");
                }
                self.shared.set_phase(Phase::Blocked);
                false
            }
        }
    }
}
