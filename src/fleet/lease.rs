//! The lease of a gateway: one key that says it is there, and ends by itself when nobody renews it. Pure: time is an argument.
//!
//! ```text
//!              the key is free, or was this gateway's
//!   Unheld ──────────────────────────────────────────▶ Held until (sent + span) ──written again──▶ Held, later
//!     ▲  ▲                                               │
//!     │  └── another gateway has the name                │ the time is over, or the key is another's
//!     └──────────── a new id ◀──────────────────────────┘
//! ```
//!
//! What a gateway owns names the lease's id. An id that was once seen gone never comes back: whoever has lost its lease begins
//! with a new one, and what it owned under the old one is nobody's.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What stands under the key. The default is nobody's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRow {
    /// Which lease.
    pub id: String,
    /// Whose data directory: a gateway that was restarted takes its own key at once, another one of the same name never.
    pub instance: String,
    /// Which life of the gateway.
    pub epoch: u64,
}

/// What is to be done about the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To be written if it is still at this revision; 0: if it is not there.
    Write(u64),
    /// Another gateway has this name.
    Taken,
}

/// The lease of this gateway.
#[derive(Debug)]
pub struct Lease {
    span: Duration,
    row: LeaseRow,
    /// Whether it may have been seen by others.
    was_written: bool,
    /// At which revision it is, and until when it surely holds.
    held: Option<(u64, Instant)>,
}

impl Lease {
    /// One that is not held yet.
    pub fn new(span: Duration, row: LeaseRow) -> Self {
        Self { span, row, was_written: false, held: None }
    }

    /// What is to stand under the key.
    pub fn row(&self) -> &LeaseRow {
        &self.row
    }

    /// Whether it surely holds.
    pub fn is_held(&self, now: Instant) -> bool {
        self.held.is_some_and(|(_, until)| now < until)
    }

    /// Whether it was held and its time is over.
    pub fn is_over(&self, now: Instant) -> bool {
        self.held.is_some() && !self.is_held(now)
    }

    /// Until when it surely holds.
    pub fn ends(&self) -> Option<Instant> {
        self.held.map(|(_, until)| until)
    }

    /// When it is to be written again; at once when it is not held.
    pub fn due(&self, now: Instant) -> Instant {
        self.held.map_or(now, |(_, until)| until.checked_sub(self.span * 2 / 3).unwrap_or(now))
    }

    /// Begins anew under another id.
    pub fn lose(&mut self, id: String) {
        self.row.id = id;
        self.was_written = false;
        self.held = None;
    }

    /// The key is known to be at this revision.
    pub fn renewal(&self) -> Option<Step> {
        self.held.map(|(revision, _)| Step::Write(revision))
    }

    /// What was read of the key; `fresh` is another id, for when this one is seen to be gone. `None`: it is gone, and the lease
    /// was lost.
    pub fn handle_read(&mut self, found: Option<(u64, &LeaseRow)>, fresh: impl FnOnce() -> String) -> (Step, bool) {
        let Some((revision, row)) = found else {
            let is_lost = self.was_written;
            if is_lost {
                self.lose(fresh());
            }
            return (Step::Write(0), is_lost);
        };
        if row.id == self.row.id {
            return (Step::Write(revision), false);
        }
        let is_lost = self.was_written;
        if is_lost {
            self.lose(fresh());
        }
        let is_free = row.id.is_empty() || row.instance == self.row.instance;
        let step = if is_free { Step::Write(revision) } else { Step::Taken };
        (step, is_lost)
    }

    /// It is about to be written: from now on others may see it.
    pub fn handle_sent(&mut self) {
        self.was_written = true;
    }

    /// It was written, by a request that was sent then.
    pub fn handle_written(&mut self, revision: u64, sent: Instant) {
        self.held = Some((revision, sent + self.span));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(9);

    fn row(id: &str, instance: &str) -> LeaseRow {
        LeaseRow { id: id.to_owned(), instance: instance.to_owned(), epoch: 1 }
    }

    fn never() -> String {
        panic!("its id is not gone")
    }

    #[test]
    fn it_is_held_from_when_it_was_sent_and_written_again_in_time() {
        let (start, mut lease) = (Instant::now(), Lease::new(SPAN, row("a", "here")));
        assert!(!lease.is_held(start) && !lease.is_over(start) && lease.due(start) == start);
        assert_eq!(lease.handle_read(None, never), (Step::Write(0), false));
        lease.handle_sent();
        lease.handle_written(7, start);
        assert!(lease.is_held(start + Duration::from_millis(8_999)) && lease.is_over(start + SPAN));
        assert_eq!(lease.due(start), start + Duration::from_secs(3));
        assert_eq!(lease.renewal(), Some(Step::Write(7)));
    }

    #[test]
    fn an_id_that_was_seen_gone_never_comes_back() {
        let (start, mut lease) = (Instant::now(), Lease::new(SPAN, row("a", "here")));
        lease.handle_sent();
        lease.handle_written(7, start);
        // The answer of the server counts, whatever the own clock says.
        assert_eq!(lease.handle_read(None, || "b".to_owned()), (Step::Write(0), true));
        assert_eq!(lease.row().id, "b");
        assert!(!lease.is_held(start) && lease.renewal().is_none());
        // Sent, and never answered: it may be there.
        lease.handle_sent();
        assert_eq!(lease.handle_read(Some((9, &row("b", "here"))), never), (Step::Write(9), false));
        assert_eq!(lease.handle_read(None, || "c".to_owned()), (Step::Write(0), true));
    }

    #[test]
    fn a_name_belongs_to_one_gateway() {
        let mut lease = Lease::new(SPAN, row("a", "here"));
        assert_eq!(lease.handle_read(Some((3, &row("x", "there"))), never), (Step::Taken, false));
        // Its own, of an earlier life.
        assert_eq!(lease.handle_read(Some((3, &row("y", "here"))), never), (Step::Write(3), false));
        // Nobody's: somebody has deleted the key by hand.
        assert_eq!(lease.handle_read(Some((3, &LeaseRow::default())), never), (Step::Write(3), false));
        lease.handle_sent();
        lease.handle_written(4, Instant::now());
        assert_eq!(lease.handle_read(Some((5, &row("z", "there"))), || "b".to_owned()), (Step::Taken, true));
        assert!(!lease.is_held(Instant::now()));
    }
}
