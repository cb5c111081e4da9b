//! Which events concern a sink.

use crate::codec::mqtt::topic;
use crate::store::{Entry, What};

/// By topic, and whether presence does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    topics: Vec<String>,
    /// One of them is `#`: everything, under no topic too, and under those that begin with `$`.
    takes_all: bool,
    presence: bool,
}

impl Selection {
    /// Messages under topics that one of `topics` takes, and presence events if `presence` says so.
    #[must_use]
    pub fn new(topics: &[String], presence: bool) -> Self {
        Self { topics: topics.to_vec(), takes_all: topics.iter().any(|filter| filter == "#"), presence }
    }

    /// Whether it takes this event.
    #[must_use]
    pub fn takes(&self, entry: &Entry) -> bool {
        match &entry.what {
            What::Connected(_) | What::Disconnected(..) => self.presence,
            What::Message { topic: name, .. } => {
                self.takes_all || self.topics.iter().any(|filter| topic::matches(filter, name))
            }
        }
    }
}
