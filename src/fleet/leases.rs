//! Whether a gateway lives: its lease, as it was read a moment ago. A thousand rows that name one gateway are one question.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::server::Server;

/// How long one goes by what was read of a lease that holds.
const KNOWN_FOR: Duration = Duration::from_secs(1);
/// Gateways known at a time; beyond that all are asked for again.
const KNOWN_MAX: usize = 1_024;
/// Leases of one gateway that are known to have ended; older ones are asked for again.
const ENDED_MAX: usize = 4;

/// What is known of the leases of one gateway.
#[derive(Debug, Default)]
struct Known {
    /// The one that it had, and when that was asked for.
    holds: Option<(Box<str>, Instant)>,
    /// Those that have ended: for good, since no id comes back.
    ended: VecDeque<Box<str>>,
}

impl Known {
    /// `None`: it is to be asked for.
    fn is_live(&self, lease: &str, now: Instant) -> Option<bool> {
        if self.ended.iter().any(|ended| **ended == *lease) {
            return Some(false);
        }
        // Another one than is looked for may be older than that: a gateway takes a new one and writes rows under it.
        let (id, asked) = self.holds.as_ref()?;
        (**id == *lease && now.saturating_duration_since(*asked) < KNOWN_FOR).then_some(true)
    }

    /// What was found, asked for then and after a row that names `lease` was there.
    fn handle_read(&mut self, lease: &str, found: Option<Box<str>>, asked: Instant) {
        if found.as_deref() != Some(lease) {
            self.ended.truncate(ENDED_MAX - 1);
            self.ended.push_front(lease.into());
        }
        self.holds = found.map(|id| (id, asked));
    }
}

/// The leases of all gateways. One question of each gateway is under way at a time; whoever else asks waits for its answer.
#[derive(Debug, Default)]
pub struct Leases(Mutex<HashMap<Box<str>, Arc<tokio::sync::Mutex<Known>>>>);

impl Leases {
    /// Whether a gateway's lease, which a row that was read before names, holds.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn is_live(&self, server: &Server, node: &str, lease: &str) -> Result<bool, String> {
        let known = {
            let mut all = self.0.lock().expect("no holder panics");
            if all.len() >= KNOWN_MAX && !all.contains_key(node) {
                all.clear();
            }
            Arc::clone(all.entry(node.into()).or_default())
        };
        let mut known = known.lock().await;
        let now = Instant::now();
        if let Some(is_live) = known.is_live(lease, now) {
            return Ok(is_live);
        }
        let found = server.lease(node).await?.map(|(_, row)| row.id.into_boxed_str());
        let is_live = found.as_deref() == Some(lease);
        known.handle_read(lease, found, now);
        Ok(is_live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_stays_so_and_what_holds_is_believed_for_a_moment() {
        let (now, mut known) = (Instant::now(), Known::default());
        assert_eq!(known.is_live("a", now), None);
        known.handle_read("a", Some("a".into()), now);
        assert_eq!(known.is_live("a", now + KNOWN_FOR / 2), Some(true));
        assert_eq!(known.is_live("a", now + KNOWN_FOR), None);
        // One that was read before this lease began says nothing of it.
        assert_eq!(known.is_live("b", now), None);
        known.handle_read("a", Some("b".into()), now);
        assert_eq!((known.is_live("a", now), known.is_live("b", now)), (Some(false), Some(true)));
        known.handle_read("b", None, now);
        assert_eq!((known.is_live("a", now), known.is_live("b", now)), (Some(false), Some(false)));
        assert_eq!(known.is_live("c", now), None, "it may have begun since");
        for number in 0..100 {
            known.handle_read(&number.to_string(), None, now);
        }
        assert_eq!(known.ended.len(), ENDED_MAX);
    }
}
