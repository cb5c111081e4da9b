//! When gateways were cut off, stood still, were gone or had lost their leases: what others may then believe of them is not the same.

use tokio::time::Instant;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Killed,
    Cut,
    Frozen,
    LostLease,
}

/// Which gateway, what, from when, and until when.
type Span = (usize, Trouble, Instant, Option<Instant>);

/// See the head of this file.
#[derive(Default)]
pub struct Troubles(Vec<Span>);

impl Troubles {
    pub fn begin(&mut self, at: usize, trouble: Trouble, now: Instant) {
        self.0.push((at, trouble, now, None));
    }

    pub fn end(&mut self, at: usize, trouble: Trouble, now: Instant) {
        let is_it = |known: &&mut Span| (known.0, known.1, known.3) == (at, trouble, None);
        self.0.iter_mut().filter(is_it).for_each(|known| known.3 = Some(now));
    }

    /// What was wrong with a gateway in a span of time.
    fn within(&self, at: usize, (from, to): (Instant, Instant)) -> impl Iterator<Item = Trouble> {
        let is_within = move |known: &&Span| known.0 == at && known.2 <= to && known.3.is_none_or(|end| end >= from);
        self.0.iter().filter(is_within).map(|known| known.1)
    }

    /// Nothing was.
    pub fn is_quiet(&self, at: usize, span: (Instant, Instant)) -> bool {
        self.within(at, span).next().is_none()
    }

    /// Nothing was, but that it was killed, once at most.
    pub fn is_quiet_but_killed(&self, at: usize, span: (Instant, Instant)) -> bool {
        let mut kills = 0;
        self.within(at, span).all(|trouble| {
            kills += 1;
            trouble == Trouble::Killed && kills == 1
        })
    }
}
