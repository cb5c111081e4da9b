//! Rows of gateways that died and whose devices never came again: one living gateway looks at all rows, slowly, and lets those go.
//!
//! A row goes at the revision that was seen, so one that somebody wrote meanwhile stays. That one gateway does it saves work and
//! nothing else: were there two, the second one would find nothing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Shared;
use super::presence::Row;
use super::server::Server;

/// How long after one look at all rows the next one begins at the latest.
const EVERY: Duration = Duration::from_mins(10);
/// Rows that are looked at before a pause,
const SLICE: usize = 50;
/// and how long that is: 500 rows a second.
const PAUSE: Duration = Duration::from_millis(100);

/// When this gateway is to look at all rows.
#[derive(Debug)]
pub struct Plan {
    lease: Duration,
    gateways: BTreeSet<String>,
    due: Instant,
}

impl Plan {
    /// A gateway that was just seen to be gone may be away from NATS alone, and write its rows again as it comes back: it has two
    /// more leases' time for that.
    pub fn new(lease: Duration, now: Instant) -> Self {
        Self { lease, gateways: BTreeSet::new(), due: now + lease * 2 }
    }

    /// These gateways have leases now. `true`: this one, `node`, is to begin. Whoever comes first by name does it.
    pub fn handle_survey(&mut self, gateways: BTreeSet<String>, node: &str, now: Instant) -> bool {
        if self.gateways.iter().any(|before| !gateways.contains(before)) {
            self.due = now + self.lease * 2;
        }
        self.gateways = gateways;
        let begins = self.gateways.first().is_some_and(|first| first == node) && now >= self.due;
        if begins {
            self.due = now + EVERY;
        }
        begins
    }
}

/// Looks at all rows once: those of gateways that have died go, and those of this one that has no such device. How many there
/// were of these.
///
/// # Errors
/// There is no answer; why. It is for the next one.
pub async fn sweep(shared: &Shared, server: &Server) -> Result<u64, String> {
    let (mut revision, mut found, mut looked) = (0, 0, 0);
    while let Some((at, row)) = server.next_row::<Row>(revision + 1).await? {
        revision = at;
        if let Some((device, row)) = row {
            let is_live = shared.leases.is_live(server, &row.node, &row.lease).await?;
            while !shared.presence().has_room_for_strays() {
                tokio::time::sleep(PAUSE).await;
            }
            if !is_live {
                found += 1;
                shared.presence().found_dead(&device, revision, row);
            } else if *row.node == *shared.node {
                shared.presence().missed(&device);
            }
            shared.bell.notify_one();
        }
        looked += 1;
        if looked % SLICE == 0 {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_first_by_name_looks_now_and_then_and_soon_after_one_has_gone() {
        let lease = Duration::from_secs(10);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut plans = [Plan::new(lease, start), Plan::new(lease, start)];
        let mut survey = |names: &[&str], seconds| {
            let [a, b] = &mut plans;
            (a.handle_survey(set(names), "a", after(seconds)), b.handle_survey(set(names), "b", after(seconds)))
        };
        assert_eq!(survey(&["a", "b", "c"], 1), (false, false), "it has just come");
        assert_eq!(survey(&["a", "b", "c"], 20), (true, false));
        assert_eq!(survey(&["a", "b", "c"], 30), (false, false));
        assert_eq!(survey(&["a", "b"], 40), (false, false), "it may come back");
        assert_eq!(survey(&["a", "b"], 59), (false, false));
        assert_eq!(survey(&["a", "b"], 60), (true, false));
        assert_eq!(survey(&["b"], 70), (false, false));
        assert_eq!(survey(&["b"], 90), (false, true), "the next one does it");
        assert_eq!(survey(&["b"], 90 + 599), (false, false));
        assert_eq!(survey(&["b"], 90 + 600), (false, true));
    }
}
