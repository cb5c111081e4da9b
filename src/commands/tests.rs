//! The mechanism over a model of its place: ids and outcomes, who is told when, and one outcome for each command whatever becomes of
//! answers.

mod model;

use std::cmp::Reverse;
use std::time::Instant;

use super::schedule::{AGAIN_MAX, AGAIN_MIN};
use super::*;

#[test]
fn ids_are_read_as_they_were_written_and_nothing_else_is() {
    let command = Command {
        tag: "0a1b2c3d".into(),
        topic: "t".into(),
        payload: Bytes::from_static(b"\x00\xff"),
        put_ms: 1,
        expires_ms: 2,
        by: "a".into(),
    };
    assert_eq!(number_of(&command.brief(17, "d").id), Some(17));
    for id in ["", "17", "17-", "-0a", "x-0a", "17-a.b", "17-*", "17->", "17-aaaaaaaaaaaaaaaaa", "17-a b"] {
        assert_eq!(number_of(id), None, "{id:?}");
    }
    let json = command.to_json();
    assert_eq!(
        String::from_utf8(json.clone()).unwrap(),
        r#"{"tag":"0a1b2c3d","topic":"t","payload":"AP8=","put_ms":1,"expires_ms":2,"by":"a"}"#,
        "gateways of several versions read it"
    );
    assert_eq!(Command::parse(&json), Some(command));
    assert_eq!((Command::parse(b"{}"), Command::parse(b"")), (None, None));
}

#[test]
fn what_is_read_is_known_until_all_is_gone() {
    let mut expected = Expected::default();
    assert_eq!(expected.unread(0, 0), None);
    assert_eq!(expected.unread(3, 3), Some(1));
    expected.handle_read(3, ["a", "b"]);
    assert_eq!(expected.unread(3, 2), None);
    assert!(expected.has("a") && !expected.has("c"));
    assert_eq!(expected.unread(5, 0), None, "all that was put is gone");
    assert!(expected.known.is_empty());
    assert_eq!(expected.unread(6, 1), Some(6));
    // A place that was made anew.
    assert_eq!(expected.unread(2, 2), Some(1));
    // Devices for whom nothing waits any more do not stay for ever.
    let many: Vec<_> = (0..=KNOWN_MAX).map(|number| number.to_string()).collect();
    expected.handle_read(2, many.iter().map(|device| &**device));
    assert_eq!(expected.unread(2, 1), Some(1));
    assert!(expected.known.is_empty());
}

#[test]
fn one_device_is_told_by_one_task_and_looked_at_again_when_something_came_meanwhile() {
    let mut commands = Commands::default();
    let now = Instant::now();
    commands.want("a".into());
    commands.want("a".into());
    assert_eq!(commands.wanted.len(), 1);
    commands.wanted.clear();
    commands.handle_done("a".into(), &After::Nothing, now);
    assert_eq!(commands.wanted, ["a".into()], "something was put while it was told");
    commands.wanted.clear();
    commands.handle_done("a".into(), &After::Nothing, now);
    assert!(commands.wanted.is_empty() && commands.busy.is_empty());
    // Not taken: later and later, up to a bound.
    for fails in 0..12 {
        commands.want("a".into());
        commands.wanted.clear();
        commands.handle_done("a".into(), &After::Again, now);
        let Reverse((due, _)) = *commands.again.peek().unwrap();
        assert_eq!(due - now, (AGAIN_MIN * (1 << fails.min(8))).min(AGAIN_MAX), "{fails}");
        commands.take_due();
        assert_eq!(commands.wanted, ["a".into()]);
    }
    // It comes and goes, and does not take it: it waits in one place.
    for _ in 0..3 {
        commands.want("a".into());
        commands.wanted.clear();
        commands.handle_done("a".into(), &After::Again, now);
    }
    assert_eq!(commands.again.len(), 1);
    commands.busy.clear();
    commands.wanted.clear();
    commands.want("a".into());
    commands.wanted.clear();
    commands.handle_done("a".into(), &After::Nothing, now);
    commands.take_due();
    assert!(commands.fails.is_empty() && commands.wanted.is_empty(), "nothing is kept of who took it");
    // The connection breaks: all that was under way is under way again.
    commands.want("b".into());
    commands.wanted.clear();
    commands.end();
    assert_eq!(commands.wanted, ["b".into()]);
}

/// As the budget says: a hash for each device that is waited for, and those that are told or tried again with all that is kept of them.
#[test]
fn devices_that_do_not_take_what_waits_are_bounded_and_give_way_to_others() {
    let (mut commands, mut expected) = (Commands::default(), Expected::default());
    let now = Instant::now();
    let name = |number: usize| -> Box<str> { format!("meter-{number:025}").into() };
    for number in 0..2 * TRIED_MAX {
        commands.want(name(number));
        commands.wanted.clear();
        commands.handle_done(name(number), &After::Again, now);
    }
    assert_eq!((commands.again.len(), commands.fails.len()), (TRIED_MAX, TRIED_MAX));
    // Whoever comes now has a place all the same, and who gave way is read again.
    commands.want("a".into());
    assert_eq!(commands.wanted, ["a".into()]);
    assert_eq!(commands.again.len(), TRIED_MAX - 1);
    assert!(!commands.is_to_read_again(now));
    let later = now + Duration::from_hours(1);
    assert!(commands.is_to_read_again(later) && !commands.is_to_read_again(later), "once");
    // All of them are to be told: nobody gives way, and the rest is read again.
    commands = Commands::default();
    (0..=TRIED_MAX).for_each(|number| commands.want(name(number)));
    assert_eq!((commands.wanted.len(), commands.busy.len()), (TRIED_MAX, TRIED_MAX));
    assert!(commands.is_to_read_again(later));

    let names: Vec<_> = (0..KNOWN_MAX).map(name).collect();
    expected.handle_read(1, names.iter().map(|name| &**name));
    let known = expected.known.capacity() * 8 / 7 * (size_of::<u64>() + 1);
    // Each id four times at the most (told or again, with its task), in tables with one byte a place.
    let tried = TRIED_MAX * 4 * (32 + size_of::<(Instant, Box<str>)>() * 2);
    let budget = KNOWN_MAX * KNOWN_BYTES;
    assert!(known + tried <= budget && known + tried > budget / 2, "{known} {tried} {budget}");
}

#[test]
fn an_outcome_is_final_or_not() {
    for fate in Fate::ALL {
        assert_eq!(fate.is_final(), !["queued", "sent"].contains(&fate.label()));
        assert_eq!(serde_json::to_string(&fate).unwrap(), format!("\"{}\"", fate.label()));
    }
}
