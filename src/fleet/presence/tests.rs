//! Units, and three gateways over a model of NATS that delays, loses and doubles.

mod model;

use std::time::Duration;

use super::*;

const NOW_MS: u64 = 1_700_000_000_000;
const SECOND: Duration = Duration::from_secs(1);

struct Gateway {
    presence: Presence,
    now: Instant,
}

impl Gateway {
    fn new(node: &str) -> Self {
        let mut presence = Presence::new(node, 7);
        presence.begin("lease-1", true);
        Self { presence, now: Instant::now() }
    }

    fn come(&mut self, generation: u64) {
        self.presence.connected("d", generation, "192.0.2.1".parse().ok(), self.now);
    }

    #[track_caller]
    fn asks(&mut self) -> (u64, Ask) {
        let (number, device, ask) = self.presence.next(NOW_MS).expect("a question");
        assert_eq!(&*device, "d");
        self.presence.check_invariants();
        (number, ask)
    }

    #[track_caller]
    fn asks_nothing(&mut self) {
        assert_eq!(self.presence.next(NOW_MS), None);
        self.presence.check_invariants();
    }

    fn hears(&mut self, number: u64, answer: Answer) {
        self.presence.handle(number, answer);
        self.presence.check_invariants();
    }

    /// Comes, finds this row of a gateway that lives, and hears this of it.
    #[track_caller]
    fn comes_and_hears(&mut self, generation: u64, found: (u64, Row), claim: Claim) {
        self.come(generation);
        let (number, _) = self.asks();
        self.hears(number, Answer::Written(Written::Conflict));
        let (number, ask) = self.asks();
        assert_eq!(ask, Ask::Read);
        let node = found.1.node.clone();
        self.hears(number, Answer::Found(found.0, found.1, true));
        let (number, ask) = self.asks();
        assert_eq!(ask, Ask::Owner(node));
        self.hears(number, Answer::Owner(claim));
    }

    /// A connection of before this one's, by so much; and after it.
    fn before(&self) -> Claim {
        Claim::Began(self.now.checked_sub(SECOND * 2).unwrap(), self.now.checked_sub(SECOND).unwrap())
    }

    fn after(&self) -> Claim {
        Claim::Began(self.now + SECOND, self.now + SECOND * 2)
    }

    /// Comes to have the device at this revision.
    #[track_caller]
    fn claims(&mut self, generation: u64, revision: u64) {
        self.come(generation);
        let (number, ask) = self.asks();
        assert!(matches!(ask, Ask::Write(_, row) if row.generation == generation));
        self.hears(number, Answer::Written(Written::At(revision)));
        self.asks_nothing();
        assert_eq!(self.presence.counts().held, 1);
    }
}

fn row(node: &str, generation: u64) -> Row {
    let place = "198.51.100.9".parse().ok();
    Row { node: node.into(), lease: "lease-9".into(), epoch: 3, generation, place, paid_until_ms: 0, over: Vec::new() }
}

#[test]
fn a_device_that_comes_is_written_and_one_that_goes_is_removed() {
    let mut gateway = Gateway::new("a");
    gateway.claims(5, 11);
    // An end of an older connection is none.
    gateway.presence.disconnected("d", 4);
    gateway.asks_nothing();
    gateway.presence.disconnected("d", 5);
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Remove(11));
    gateway.hears(number, Answer::Removed);
    gateway.asks_nothing();
    assert_eq!(gateway.presence.waiting(), 0);
}

#[test]
fn what_comes_and_goes_before_it_was_asked_about_costs_nothing() {
    let mut gateway = Gateway::new("a");
    for generation in 1..5_000 {
        gateway.come(generation);
        gateway.presence.disconnected("d", generation);
    }
    gateway.asks_nothing();
    // A connection that follows another is one write over its row.
    gateway.claims(6_000, 3);
    gateway.presence.disconnected("d", 6_000);
    gateway.come(6_001);
    let (number, ask) = gateway.asks();
    assert!(matches!(ask, Ask::Write(3, _)), "{ask:?}");
    gateway.hears(number, Answer::Written(Written::At(4)));
    gateway.asks_nothing();
}

#[test]
fn a_device_elsewhere_is_taken_over_and_its_gateway_told() {
    let mut gateway = Gateway::new("a");
    gateway.comes_and_hears(1, (40, row("b", 9)), gateway.before());
    let (number, ask) = gateway.asks();
    assert!(matches!(ask, Ask::Write(40, _)), "{ask:?}");
    gateway.hears(number, Answer::Written(Written::At(41)));
    let told = Effect::Tell { device: "d".into(), before: row("b", 9).owner(), revision: 41 };
    assert_eq!(gateway.presence.take_effects(), [told]);
    assert_eq!(gateway.presence.counts().taken, 1);
    // A doubled answer finds nothing.
    gateway.hears(number, Answer::Written(Written::Conflict));
    gateway.asks_nothing();
}

#[test]
fn a_row_whose_gateway_lives_and_has_no_such_connection_is_written_over() {
    let mut gateway = Gateway::new("a");
    gateway.comes_and_hears(1, (40, row("b", 9)), Claim::Gone);
    let (number, ask) = gateway.asks();
    assert!(matches!(&ask, Ask::Write(40, row) if row.over.is_empty() && row.paid_until_ms == 0), "{ask:?}");
    gateway.hears(number, Answer::Written(Written::At(41)));
    assert_eq!(gateway.presence.take_effects(), [], "nobody has lost it");
    assert_eq!(gateway.presence.counts().taken, 0);
}

#[test]
fn a_later_connection_at_a_living_gateway_stays_however_long_this_one_waited() {
    for came_while_away in [false, true] {
        let mut gateway = Gateway::new("a");
        if came_while_away {
            gateway.presence.end();
            gateway.come(1);
            gateway.presence.begin("lease-1", false);
        }
        gateway.comes_and_hears(1, (40, row("b", 9)), gateway.after());
        gateway.asks_nothing();
        let end = Effect::End { device: "d".into(), generation: 1, is_loop: false };
        assert_eq!(gateway.presence.take_effects(), [end]);
        assert_eq!(gateway.presence.waiting(), 0);
    }
}

#[test]
fn an_answer_that_leaves_open_who_began_later_is_asked_for_again_some_times() {
    for (from, to, wins) in [(2, 1, true), (1, 3, false)] {
        let mut gateway = Gateway::new("a");
        let claim = Claim::Began(gateway.now.checked_sub(SECOND * from).unwrap(), gateway.now + SECOND * to);
        gateway.comes_and_hears(1, (40, row("b", 9)), claim.clone());
        for _ in 0..DOUBTS_MAX {
            let (number, ask) = gateway.asks();
            assert_eq!(ask, Ask::Owner("b".into()));
            gateway.hears(number, Answer::Owner(claim.clone()));
        }
        // Then the middle counts.
        if wins {
            assert!(matches!(gateway.asks(), (_, Ask::Write(40, _))));
        } else {
            gateway.asks_nothing();
            assert!(matches!(&gateway.presence.take_effects()[..], [Effect::End { .. }]));
        }
    }
}

#[test]
fn a_gateway_that_lives_and_does_not_answer_is_asked_again_some_times_and_then_written_over() {
    let mut gateway = Gateway::new("a");
    gateway.comes_and_hears(1, (40, row("b", 9)), Claim::Silent);
    for _ in 1..SILENT_MAX {
        let (number, ask) = gateway.asks();
        assert_eq!(ask, Ask::Read, "its lease may have ended meanwhile");
        gateway.hears(number, Answer::Found(40, row("b", 9), true));
        let (number, ask) = gateway.asks();
        assert_eq!(ask, Ask::Owner("b".into()));
        gateway.hears(number, Answer::Owner(Claim::Silent));
    }
    let (number, ask) = gateway.asks();
    assert!(matches!(&ask, Ask::Write(40, row) if row.over.len() == 1), "{ask:?}");
    gateway.hears(number, Answer::Written(Written::At(41)));
    assert!(matches!(&gateway.presence.take_effects()[..], [Effect::Tell { revision: 41, .. }]));
}

#[test]
fn a_question_about_a_device_that_is_here_says_for_how_long() {
    let mut gateway = Gateway::new("a");
    gateway.claims(5, 11);
    assert_eq!(gateway.presence.age("d", gateway.now + SECOND), Some(SECOND));
    assert_eq!(gateway.presence.age("x", gateway.now), None);
    gateway.presence.disconnected("d", 5);
    assert_eq!(gateway.presence.age("d", gateway.now), None, "its row is not removed yet, and it is gone");
}

#[test]
fn a_question_without_an_answer_costs_its_device_one_more_and_nobody_else_anything() {
    let mut gateway = Gateway::new("a");
    gateway.come(1);
    let (number, _) = gateway.asks();
    gateway.hears(number, Answer::Lost);
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Read);
    let mut own = row("a", 1);
    own.lease = "lease-1".into();
    gateway.hears(number, Answer::Found(11, own, false));
    gateway.asks_nothing();
    assert_eq!(gateway.presence.counts().held, 1);
}

#[test]
fn a_dead_gateway_is_taken_from_and_not_told() {
    for (node, is_live) in [("b", false), ("a", false)] {
        let mut gateway = Gateway::new("a");
        gateway.come(1);
        let (number, _) = gateway.asks();
        gateway.hears(number, Answer::Written(Written::Conflict));
        let (number, _) = gateway.asks();
        gateway.hears(number, Answer::Found(40, row(node, 9), is_live));
        let (number, ask) = gateway.asks();
        assert!(matches!(ask, Ask::Write(40, _)), "{ask:?}");
        gateway.hears(number, Answer::Written(Written::At(41)));
        assert_eq!(gateway.presence.take_effects(), []);
    }
}

/// The answer to a takeover is lost: whoever lost the device is told all the same, by whoever reads the row next.
#[test]
fn who_lost_a_device_is_told_whatever_becomes_of_the_answer() {
    let taken = |lease: &str| {
        let mut taken = row("a", 1);
        (taken.lease, taken.over) = (lease.into(), vec![row("b", 9).owner()]);
        taken
    };
    let told = |revision| Effect::Tell { device: "d".into(), before: row("b", 9).owner(), revision };
    let mut gateway = Gateway::new("a");
    gateway.come(1);
    gateway.presence.end();
    gateway.presence.begin("lease-1", false);
    let (number, _) = gateway.asks();
    gateway.hears(number, Answer::Written(Written::Conflict));
    let (number, _) = gateway.asks();
    gateway.hears(number, Answer::Found(41, taken("lease-1"), true));
    assert_eq!(gateway.presence.take_effects(), [told(41)]);
    // The gateway that took it has died with its answer.
    let mut other = Gateway::new("c");
    other.come(3);
    let (number, _) = other.asks();
    other.hears(number, Answer::Written(Written::Conflict));
    let (number, _) = other.asks();
    other.hears(number, Answer::Found(41, taken("lease-8"), false));
    let (number, ask) = other.asks();
    assert!(matches!(&ask, Ask::Write(41, row) if row.over.len() == 1), "{ask:?}");
    other.hears(number, Answer::Written(Written::At(50)));
    assert_eq!(other.presence.take_effects(), [told(50)]);
    assert_eq!(other.presence.counts().taken, 0, "nobody lived to be taken over");
}

/// NATS has gone between the write of another lease and what follows it: whoever comes again finds that lease his own, and that he has lost none.
#[test]
fn what_was_owned_under_another_lease_is_looked_at_though_nobody_says_that_it_was_lost() {
    let mut gateway = Gateway::new("a");
    gateway.claims(5, 11);
    gateway.presence.end();
    gateway.presence.begin("lease-1", false);
    gateway.asks_nothing();
    gateway.presence.end();
    gateway.presence.begin("lease-2", false);
    assert!(!gateway.presence.holds("d"));
    assert_eq!(gateway.asks().1, Ask::Read);
}

#[test]
fn a_gateway_that_was_away_for_too_long_disowns_what_it_lost_and_keeps_the_rest() {
    let mut gateway = Gateway::new("a");
    gateway.claims(5, 11);
    gateway.presence.end();
    gateway.presence.begin("lease-2", true);
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Read);
    let mut own = row("a", 5);
    own.lease = "lease-1".into();
    gateway.hears(number, Answer::Found(11, own, false));
    let (number, ask) = gateway.asks();
    assert!(matches!(ask, Ask::Write(11, row) if &*row.lease == "lease-2"));
    gateway.hears(number, Answer::Written(Written::At(12)));
    gateway.presence.end();
    gateway.presence.begin("lease-3", true);
    let (number, _) = gateway.asks();
    gateway.hears(number, Answer::Found(40, row("b", 9), true));
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Owner("b".into()));
    gateway.hears(number, Answer::Owner(gateway.after()));
    gateway.asks_nothing();
    assert!(matches!(&gateway.presence.take_effects()[..], [Effect::End { generation: 5, .. }]));
}

#[test]
fn one_that_keeps_its_lease_through_a_short_absence_asks_nothing_again() {
    let mut gateway = Gateway::new("a");
    gateway.claims(5, 11);
    gateway.presence.end();
    gateway.presence.begin("lease-1", false);
    gateway.asks_nothing();
    assert_eq!(gateway.presence.counts().held, 1);
}

#[test]
fn a_gateway_that_is_told_ends_that_connection_and_no_newer_one() {
    let mut gateway = Gateway::new("a");
    gateway.claims(5, 11);
    assert_eq!(gateway.presence.handle_taken("d", "lease-0", 5, 40), Told::Gone, "of a lease that it has lost");
    assert_eq!(gateway.presence.handle_taken("d", "lease-1", 4, 40), Told::Gone, "of an older connection");
    assert_eq!(gateway.presence.handle_taken("d", "lease-1", 5, 10), Told::Gone, "a word from before");
    assert_eq!(gateway.presence.handle_taken("x", "lease-1", 5, 40), Told::Gone);
    assert_eq!(gateway.presence.take_effects(), []);
    assert_eq!(gateway.presence.handle_taken("d", "lease-1", 5, 40), Told::Ends);
    assert!(matches!(&gateway.presence.take_effects()[..], [Effect::End { generation: 5, is_loop: false, .. }]));
    // The late end of that connection, and the row of the other one.
    gateway.presence.disconnected("d", 5);
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Remove(11), "this revision and no newer one");
    gateway.hears(number, Answer::Removed);
    assert_eq!(gateway.presence.waiting(), 0);
}

#[test]
fn what_is_taken_before_the_answer_was_here_is_lost() {
    let mut gateway = Gateway::new("a");
    gateway.come(5);
    let (number, _) = gateway.asks();
    assert_eq!(gateway.presence.handle_taken("d", "lease-1", 5, 40), Told::Ends);
    gateway.hears(number, Answer::Written(Written::At(39)));
    assert!(matches!(&gateway.presence.take_effects()[..], [Effect::End { generation: 5, .. }]));
    let (_, ask) = gateway.asks();
    assert_eq!(ask, Ask::Remove(39));
}

#[test]
fn a_row_that_nobody_here_has_goes_when_somebody_asks() {
    let mut gateway = Gateway::new("a");
    for _ in 0..3 {
        gateway.presence.missed("d");
    }
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Read);
    let mut own = row("a", 5);
    own.lease = "lease-1".into();
    gateway.hears(number, Answer::Found(11, own, true));
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Remove(11));
    gateway.hears(number, Answer::Removed);
    gateway.presence.missed("d");
    let (number, _) = gateway.asks();
    gateway.hears(number, Answer::Found(12, row("b", 1), true));
    gateway.asks_nothing();
    assert_eq!(gateway.presence.waiting(), 0);
}

#[test]
fn a_row_of_a_gateway_that_died_is_removed_at_the_revision_that_was_found() {
    let mut gateway = Gateway::new("a");
    let mut found = row("b", 9);
    found.over = vec![row("c", 3).owner()];
    gateway.presence.found_dead("d", 40, found.clone());
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Remove(40));
    gateway.hears(number, Answer::Removed);
    let told = Effect::Tell { device: "d".into(), before: row("c", 3).owner(), revision: 40 };
    assert_eq!(gateway.presence.take_effects(), [told], "who lost it to the one that died");
    assert_eq!(gateway.presence.waiting(), 0);
    // A device that is here or comes meanwhile is claimed, and not removed.
    gateway.presence.found_dead("d", 50, found.clone());
    gateway.come(1);
    let (number, ask) = gateway.asks();
    assert!(matches!(ask, Ask::Write(50, _)), "{ask:?}");
    gateway.hears(number, Answer::Written(Written::At(51)));
    gateway.presence.found_dead("d", 50, found);
    gateway.asks_nothing();
}

#[test]
fn rows_that_somebody_took_away_are_written_again_and_no_others_are_looked_at() {
    let mut gateway = Gateway::new("a");
    gateway.claims(5, 11);
    assert_eq!(gateway.presence.handle_first(11), 0, "it is the first itself");
    gateway.asks_nothing();
    // All rows were taken away while one was being written, and its answer comes later.
    gateway.presence.connected("e", 1, None, gateway.now);
    let (number, _, _) = gateway.presence.next(NOW_MS).unwrap();
    assert_eq!(gateway.presence.handle_first(13), 1);
    gateway.hears(number, Answer::Written(Written::At(12)));
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Read);
    gateway.hears(number, Answer::Absent);
    let (number, ask) = gateway.asks();
    assert!(matches!(ask, Ask::Write(0, _)));
    gateway.hears(number, Answer::Written(Written::At(14)));
    gateway.asks_nothing();
    assert_eq!(gateway.presence.handle_first(13), 1, "the other one");
    assert_eq!(gateway.presence.next(NOW_MS).map(|(_, device, ask)| (device, ask)), Some(("e".into(), Ask::Read)));
}

#[test]
fn rows_without_devices_are_looked_at_in_bounds() {
    let mut gateway = Gateway::new("a");
    for number in 0..10_000 {
        gateway.presence.found_dead(&format!("d{number}"), 40, row("b", 9));
    }
    assert_eq!(gateway.presence.waiting(), STRAYS_MAX as u64);
    assert!(!gateway.presence.has_room_for_strays());
}

#[test]
fn two_places_that_fight_over_an_id_are_damped_and_one_place_is_not() {
    for (other, may_be_damped) in [("198.51.100.9", true), ("192.0.2.1", false)] {
        let mut there = row("b", 9);
        there.place = other.parse().ok();
        let mut damped = 0;
        for round in 0..40 {
            let mut gateway = Gateway::new("a");
            gateway.comes_and_hears(round + 1, (40 + round, there.clone()), gateway.before());
            match gateway.presence.next(NOW_MS) {
                // The other one takes it back from its place.
                Some((_, _, Ask::Write(_, row))) => {
                    there.paid_until_ms = row.paid_until_ms;
                }
                None => {
                    damped += 1;
                    let effects = gateway.presence.take_effects();
                    assert!(matches!(&effects[..], [Effect::End { is_loop: true, .. }]), "{effects:?}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(damped > 0, may_be_damped, "{damped}");
        assert!(!may_be_damped || damped >= 30, "{damped}");
    }
}

#[test]
fn names_that_wait_are_bounded_by_devices() {
    let mut gateway = Gateway::new("a");
    for round in 0..50_000_u64 {
        let device = format!("d{}", round % 10);
        gateway.presence.connected(&device, round, None, gateway.now);
        gateway.presence.disconnected(&device, round);
    }
    assert!(gateway.presence.queue.len() <= 2 * 10 + 2_000, "{}", gateway.presence.queue.len());
    gateway.asks_nothing();
}
