//! What was found while each kind of attack had its turn.

use serde_json::json;

use super::RoundTrips;
use crate::run::Run;
use crate::scenario::attack::{Attack, Outcome};

/// Every kind so far.
pub struct Attacked {
    kinds: Vec<(Attack, Outcome, RoundTrips)>,
    all: RoundTrips,
}

impl Attacked {
    pub fn new() -> Self {
        Self { kinds: Vec::new(), all: RoundTrips::new() }
    }

    /// A kind had another turn.
    pub fn add(&mut self, kind: Attack, outcome: Outcome, found: &RoundTrips) {
        self.all.add(found);
        match self.kinds.iter_mut().find(|(known, ..)| *known == kind) {
            Some((_, sum, round_trips)) => {
                sum.add(&outcome);
                round_trips.add(found);
            }
            None => self.kinds.push((kind, outcome, found.clone())),
        }
    }

    /// Round trips while anything was under attack.
    pub fn round_trips(&self) -> &RoundTrips {
        &self.all
    }

    /// A line for each kind, and that each took place.
    pub fn report(&self, run: &mut Run) {
        for (kind, outcome, round_trips) in &self.kinds {
            let p99 = |histogram: &hdrhistogram::Histogram<u64>| histogram.value_at_quantile(0.99);
            let line = json!({
                "opened": outcome.opened,
                "refused": outcome.refused,
                "ended": outcome.ended,
                "native_p99_us": p99(&round_trips.native),
                "mqtt_p99_us": p99(&round_trips.mqtt),
            });
            run.detail(kind.label(), line);
        }
        let idle = self.kinds.iter().filter(|(_, outcome, _)| outcome.opened == 0).count();
        run.require("every attack took place", idle == 0, format!("{idle} never had a connection"));
    }
}
