//! From which place in the fleet's stream on another gateway would have to read for the sessions of this one. Pure.
//!
//! ```text
//!   round      1        2        3        4
//!   settled    P1       P2       P3       P4
//!                       ▲ the earliest round of any session that has no place of its own: the cursor is P2
//! ```
//!
//! What belongs to places up to P of a round is with its sessions when the round begins. The cursor is never past what a message needs
//! that is outstanding in a session without a place of its own.

use std::collections::VecDeque;

use crate::fleet::{Cursor, Position};

/// Rounds with places of their own that are known at a time, 17 minutes of a stream that goes on; of more than this two count as the
/// earlier one.
const PLACES_MAX: usize = 1_024;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Course {
    round: u64,
    /// The round that the cursor holds up to; sessions that lag behind it have places of their own.
    floor: u64,
    /// From which round on which place is settled, in order; never empty.
    places: VecDeque<(u64, Cursor)>,
}

impl Course {
    /// One that goes on from `kept`: what an earlier process of this gateway has left needs nothing before.
    pub(super) fn new(kept: Cursor) -> Self {
        Self { round: 0, floor: 0, places: VecDeque::from([(0, kept)]) }
    }

    /// A round begins, with everything up to this place settled. Which.
    pub(super) fn begin(&mut self, settled: &Position) -> u64 {
        self.round += 1;
        let place = Cursor::from(settled);
        if self.places.back().is_none_or(|(_, last)| *last != place) {
            self.places.push_back((self.round, place));
        }
        if self.places.len() > PLACES_MAX {
            // Of those that the cursor needs the second counts as the first; others are not needed for more than this.
            let is_needed = self.places.get(1).is_none_or(|(round, _)| *round > self.floor);
            drop(self.places.remove(usize::from(is_needed)));
        }
        self.round
    }

    /// See [`Course::advance`].
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// No session without a place of its own needs anything of the rounds up to `oldest`. The cursor.
    pub(super) fn advance(&mut self, oldest: u64) -> Cursor {
        self.floor = self.floor.max(oldest.min(self.round));
        self.place_of(self.floor).expect("it is kept")
    }

    /// The place of a round; `None`: it is too long ago.
    pub(super) fn place_of(&self, round: u64) -> Option<Cursor> {
        let begun = self.places.iter().rposition(|(from, _)| *from <= round)?;
        let stream = &self.places.back()?.1.stream;
        // Of a stream that was made anew, or has lost its last messages, more is needed.
        let position = |(_, place): &(u64, Cursor)| if place.stream == *stream { place.position } else { 0 };
        let position = self.places.iter().skip(begun).map(position).min()?;
        Some(Cursor { stream: stream.clone(), position })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(stream: &str, position: u64) -> Cursor {
        Cursor { stream: stream.into(), position }
    }

    fn settled(stream: &str, position: u64) -> Position {
        Position { stream: stream.into(), position }
    }

    #[test]
    fn the_cursor_is_the_place_of_the_earliest_round_and_never_goes_back() {
        let mut course = Course::new(at("s", 5));
        for (round, position) in [(1, 10), (2, 10), (3, 30)] {
            assert_eq!(course.begin(&settled("s", position)), round);
        }
        assert_eq!(course.advance(0), at("s", 5), "what an earlier process has left is outstanding");
        assert_eq!(course.advance(2), at("s", 10));
        assert_eq!((course.advance(1), course.floor()), (at("s", 10), 2));
        assert_eq!((course.advance(9), course.floor()), (at("s", 30), 3), "no further than the latest round");
        assert_eq!(course.place_of(1), Some(at("s", 10)));
    }

    #[test]
    fn of_another_stream_and_of_one_that_went_back_more_is_needed() {
        let mut course = Course::new(at("s", 5));
        course.begin(&settled("s", 95));
        course.begin(&settled("s", 90));
        assert_eq!(course.place_of(1), Some(at("s", 90)), "its last messages were lost: their numbers come again");
        course.begin(&settled("t", 7));
        assert_eq!((course.place_of(1), course.place_of(3)), (Some(at("t", 0)), Some(at("t", 7))));
    }

    #[test]
    fn few_places_are_kept_and_always_that_of_the_cursor() {
        let mut course = Course::new(at("s", 0));
        for round in 1..=5_000 {
            course.begin(&settled("s", round * 10));
        }
        assert!(course.places.len() <= PLACES_MAX);
        assert_eq!(course.advance(0), at("s", 0), "somebody holds it up");
        assert_eq!(course.advance(4_999), at("s", 49_990));
        for round in 5_001..=10_000 {
            course.begin(&settled("s", round * 10));
        }
        assert_eq!((course.place_of(4_000), course.places.len()), (None, PLACES_MAX));
        assert_eq!(course.advance(0), at("s", 49_990));
    }
}
