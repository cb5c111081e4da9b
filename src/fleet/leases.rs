//! Whether a gateway lives: its lease, as it was read a moment ago. A thousand rows that name one gateway are one question.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::server::Server;

/// How long one goes by what was read of a lease that holds.
pub const KNOWN_FOR: Duration = Duration::from_secs(1);
/// Gateways known at a time; beyond that all are asked for again.
const KNOWN_MAX: usize = 1_024;
/// Leases of one gateway that are known to have ended; older ones are asked for again.
const ENDED_MAX: usize = 4;

/// What is known of the leases of one gateway.
#[derive(Debug, Default)]
struct Known {
    /// Which one it had, if any, when that was asked for, and when it was answered.
    read: Option<(Option<Box<str>>, Instant, Instant)>,
    /// Those that have ended: for good, since no id comes back.
    ended: VecDeque<Box<str>>,
    /// When a question was last left without an answer, and why.
    unanswered: Option<(Instant, String)>,
}

impl Known {
    /// Whether this one holds, for who has waited since he `came`; `None`: it is to be asked for.
    fn is_live(&self, lease: &str, came: Instant, now: Instant) -> Option<bool> {
        if self.ended.iter().any(|ended| **ended == *lease) {
            return Some(false);
        }
        // Another one than is looked for may be older than that: a gateway takes a new one and writes rows under it.
        self.read_lately(came, now).filter(|found| found.as_deref() == Some(lease)).map(|_| true)
    }

    /// Whether it has any; `None`: it is to be asked for.
    fn has_any(&self, came: Instant, now: Instant) -> Option<bool> {
        self.read_lately(came, now).map(Option::is_some)
    }

    /// A moment ago, or while he waited: of a thousand who wait for a slow server not each asks it anew.
    fn read_lately(&self, came: Instant, now: Instant) -> Option<&Option<Box<str>>> {
        let (found, asked, answered) = self.read.as_ref()?;
        (now.saturating_duration_since(*asked) < KNOWN_FOR || *answered >= came).then_some(found)
    }

    /// What was found, asked for then and, where that is known, after a row that names `lease` was there.
    fn handle_read(&mut self, lease: Option<&str>, found: Option<Box<str>>, (asked, answered): (Instant, Instant)) {
        if let Some(lease) = lease.filter(|lease| found.as_deref() != Some(*lease)) {
            self.ended.truncate(ENDED_MAX - 1);
            self.ended.push_front(lease.into());
        }
        self.read = Some((found, asked, answered));
    }

    /// Asks which one it has, for all who have come since `came` and wait.
    async fn ask(
        &mut self,
        (server, node): (&Server, &str),
        lease: Option<&str>,
        came: Instant,
    ) -> Result<Option<Box<str>>, String> {
        if let Some(why) = self.unanswered_since(came) {
            return Err(why.clone());
        }
        let asked = Instant::now();
        match server.lease(node).await {
            Ok(found) => {
                let found = found.map(|(_, row)| row.id.into_boxed_str());
                self.handle_read(lease, found.clone(), (asked, Instant::now()));
                Ok(found)
            }
            Err(why) => {
                self.unanswered = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    /// Why whoever has waited since then has no answer: the question that he waited for has none.
    fn unanswered_since(&self, came: Instant) -> Option<&String> {
        self.unanswered.as_ref().filter(|(ended, _)| *ended >= came).map(|(_, why)| why)
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
        let (known, came) = (self.known(node), Instant::now());
        let mut known = known.lock().await;
        if let Some(is_live) = known.is_live(lease, came, Instant::now()) {
            return Ok(is_live);
        }
        let found = known.ask((server, node), Some(lease), came).await?;
        Ok(found.as_deref() == Some(lease))
    }

    /// Whether a gateway has a lease, whichever that is.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn has_any(&self, server: &Server, node: &str) -> Result<bool, String> {
        let (known, came) = (self.known(node), Instant::now());
        let mut known = known.lock().await;
        if let Some(has_any) = known.has_any(came, Instant::now()) {
            return Ok(has_any);
        }
        Ok(known.ask((server, node), None, came).await?.is_some())
    }

    fn known(&self, node: &str) -> Arc<tokio::sync::Mutex<Known>> {
        let mut all = self.0.lock().expect("no holder panics");
        if all.len() >= KNOWN_MAX && !all.contains_key(node) {
            all.clear();
        }
        Arc::clone(all.entry(node.into()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asked for then, and answered at once.
    fn at(now: Instant) -> (Instant, Instant) {
        (now, now)
    }

    #[test]
    fn what_has_ended_stays_so_and_what_holds_is_believed_for_a_moment() {
        let (now, mut known) = (Instant::now(), Known::default());
        let comes = |known: &Known, lease, at| known.is_live(lease, at + KNOWN_FOR / 8, at + KNOWN_FOR / 8);
        assert_eq!(comes(&known, "a", now), None);
        known.handle_read(Some("a"), Some("a".into()), at(now));
        assert_eq!(comes(&known, "a", now + KNOWN_FOR / 2), Some(true));
        assert_eq!(comes(&known, "a", now + KNOWN_FOR), None);
        // One that was read before this lease began says nothing of it.
        assert_eq!(comes(&known, "b", now), None);
        known.handle_read(Some("a"), Some("b".into()), at(now));
        assert_eq!((comes(&known, "a", now), comes(&known, "b", now)), (Some(false), Some(true)));
        known.handle_read(Some("b"), None, at(now));
        assert_eq!((comes(&known, "a", now), comes(&known, "b", now)), (Some(false), Some(false)));
        assert_eq!(comes(&known, "c", now), None, "it may have begun since");
        for number in 0..100 {
            known.handle_read(Some(&number.to_string()), None, at(now));
        }
        assert_eq!(known.ended.len(), ENDED_MAX);
    }

    #[test]
    fn that_it_has_none_is_believed_as_long_as_that_it_has_one() {
        let (now, mut known) = (Instant::now(), Known::default());
        let (soon, later) = (now + KNOWN_FOR / 2, now + KNOWN_FOR);
        assert_eq!(known.has_any(soon, soon), None);
        known.handle_read(None, Some("a".into()), at(now));
        assert_eq!((known.has_any(soon, soon), known.is_live("a", soon, soon)), (Some(true), Some(true)));
        assert_eq!(known.has_any(later, later), None);
        // No row was read before: one that is newer may name a lease that begins yet.
        known.handle_read(None, None, at(now));
        assert_eq!((known.has_any(soon, soon), known.is_live("a", soon, soon)), (Some(false), None));
        assert_eq!(known.has_any(later, later), None);
    }

    #[test]
    fn whoever_waited_for_a_question_asks_it_not_again_whatever_came_of_it() {
        let (came, mut known) = (Instant::now(), Known::default());
        let (answered, later) = (came + 3 * KNOWN_FOR, came + 4 * KNOWN_FOR);
        assert_eq!(known.unanswered_since(came), None);
        known.unanswered = Some((answered, "slow".to_owned()));
        assert_eq!(known.unanswered_since(came).map(String::as_str), Some("slow"));
        assert_eq!(known.unanswered_since(later), None);
        known.handle_read(None, Some("a".into()), (came, answered));
        assert_eq!((known.has_any(came, later), known.is_live("a", came, later)), (Some(true), Some(true)));
        assert_eq!(known.has_any(later, later), None);
    }
}
