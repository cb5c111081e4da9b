//! Faults that are planted, each to be found by the words that tell of it.

use super::chance::Weather;
use super::{Fault, WORLDS, World};

/// Some world finds it, and says so in these words. `first`: which did when this was written.
#[track_caller]
fn is_found(fault: Fault, weather: Weather, first: u64, words: &str) {
    let finds = |seed| World::new(seed, fault, weather).run().broken.iter().any(|broken| broken.contains(words));
    let found = (first..first + 10 * WORLDS).find(|&seed| finds(seed));
    println!("{fault:?} is found by seed {found:?}");
    assert!(found.is_some(), "no world has found {fault:?}");
}

#[test]
fn a_session_that_moves_before_what_was_published_is_in_the_stream_is_found() {
    is_found(Fault::NothingIsSent, Weather::Rough, 9, "never came");
}

#[test]
fn a_session_that_is_cut_before_the_stream_has_come_to_it_is_found() {
    is_found(Fault::EndIsReached, Weather::Rough, 29, "never came");
}

#[test]
fn a_cursor_that_waits_for_nobody_is_found() {
    is_found(Fault::NoNeeds, Weather::Rough, 1, "never came");
}

#[test]
fn rows_without_compare_and_set_are_found() {
    is_found(Fault::NoCompareAndSet, Weather::Rough, 14, "");
}

#[test]
fn a_suback_before_its_row_is_found() {
    is_found(Fault::SubackTooSoon, Weather::Rough, 0, "is told that it has subscribed");
}

#[test]
fn a_place_that_is_settled_before_sessions_have_it_is_found() {
    is_found(Fault::SettledTooSoon, Weather::Rough, 0, "never came");
}

#[test]
fn rows_of_devices_without_compare_and_set_are_found() {
    is_found(Fault::OwnersWithoutCompareAndSet, Weather::Fair, 0, "neither ends");
}

#[test]
fn a_row_that_is_written_over_before_its_owner_was_asked_is_found() {
    is_found(Fault::OwnerIsNotAsked, Weather::Fair, 19, "goes back");
}

#[test]
fn a_gateway_that_is_not_told_whom_it_has_lost_is_found() {
    is_found(Fault::NobodyIsTold, Weather::Fair, 1, "neither ends");
}

#[test]
fn a_gateway_that_believes_in_a_lease_that_it_has_lost_is_found() {
    is_found(Fault::LostLeaseIsBelieved, Weather::Fair, 15, "nobody finds it");
}

#[test]
fn a_will_that_is_published_wherever_its_device_is_is_found() {
    is_found(Fault::WillIsNotAskedAbout, Weather::Fair, 18, "though its device is back");
}

#[test]
fn a_row_that_keeps_a_will_that_is_no_more_is_found() {
    is_found(Fault::RowsKeepWills, Weather::Fair, 2, "has not been lost");
}

#[test]
fn a_will_that_died_with_its_gateway_and_nobody_publishes_is_found() {
    is_found(Fault::NobodyLooksAtTheDead, Weather::Fair, 1, "is not published");
}

#[test]
fn a_new_session_that_is_the_old_one_is_found() {
    is_found(Fault::CleanStartIsIgnored, Weather::Fair, 3, "gets the old one");
}
