//! The store read ahead into a window, and the window's end brought back into the store: what sinks share whose other side
//! acknowledges one by one.

use std::future::pending;

use tokio::task::JoinHandle;

use super::run::Run;
use super::window::Window;
use crate::config::SINK_WINDOW_BYTES;
use crate::store::{Head, StoreError, Stored};

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
        run.note_done(cursor);
        Ok(true)
    }

    /// Reads as far as there is room. `lane` says through which lane a device's events go.
    pub(super) fn fill(&mut self, run: &Run, lane: impl Fn(&str) -> usize) -> Result<(), StoreError> {
        let last = run.store.head().borrow().last;
        while self.read < last && self.window.has_room() {
            let events = run.read(self.read, READ_MAX, SINK_WINDOW_BYTES / 4)?;
            let Some(read) = events.last().map(|stored| stored.seq) else { return Ok(()) };
            for stored in events {
                if run.settings.selection.takes(&stored.entry) {
                    self.window.push(stored.seq, stored.entry.bytes(), lane(&stored.entry.device), stored);
                } else {
                    self.window.skip(stored.seq);
                }
            }
            self.read = read;
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
            drop(run.advance(seeks, last).await);
        }
    }
}
