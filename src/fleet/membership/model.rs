//! The row of a group and the consumers of the stream, as NATS keeps them, for the tests of whoever asks for them.

use std::collections::BTreeMap;

use super::{Ask, GroupRow, Told};

/// `C`: what a test has of a consumer.
pub struct Rows<C> {
    pub revision: u64,
    /// The row, and its revision.
    pub row: Option<(u64, GroupRow)>,
    pub consumers: BTreeMap<String, C>,
    /// Rows of other groups.
    pub others: u64,
}

impl<C> Default for Rows<C> {
    fn default() -> Self {
        Self { revision: 0, row: None, consumers: BTreeMap::new(), others: 0 }
    }
}

impl<C> Rows<C> {
    /// Does what is asked; `make` begins a consumer.
    pub fn answer(&mut self, ask: &Ask, make: impl FnOnce() -> C) -> Told {
        match ask {
            Ask::Read => Told::Row(self.row.clone()),
            Ask::Count => Told::Count(self.others + u64::from(self.row.is_some())),
            Ask::Check(consumer) => Told::Done(self.consumers.contains_key(consumer)),
            Ask::Make(consumer) => {
                self.consumers.entry(consumer.clone()).or_insert_with(make);
                Told::Done(true)
            }
            Ask::Write(expected, row) => {
                let is_it = self.row.as_ref().map_or(0, |(revision, _)| *revision) == *expected;
                if is_it {
                    self.revision += 1;
                    self.row = Some((self.revision, row.clone()));
                }
                Told::Done(is_it)
            }
            Ask::Remove(revision) => Told::Done(self.row.take_if(|(at, _)| at == revision).is_some()),
            Ask::Drop(consumer) => {
                self.consumers.remove(consumer);
                Told::Done(true)
            }
            Ask::Over(_) => unreachable!("nothing is asked"),
        }
    }
}
