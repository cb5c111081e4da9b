//! The tree against plain lists, in one go and in steps between which everything changes.

use super::*;

fn subscriber(session: SessionSlot, options: u8) -> Subscriber {
    Subscriber { slot: session, identifier: session.0 + 100, options }
}

/// Random subscriptions beside a plain list of them.
#[test]
fn the_tree_finds_what_a_list_finds() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut tree = Subscriptions::new(3);
    let mut list: Vec<(String, Subscriber)> = Vec::new();
    let levels = ["a", "b", "", "$x", "+", "#"];
    let make = |random: &mut fastrand::Rng, choice: &[&str]| {
        let depth = random.usize(1..5);
        let levels: Vec<&str> = (0..depth).map(|_| choice[random.usize(..choice.len())]).collect();
        levels.join("/")
    };
    for step in 0..8_000 {
        let filter = make(&mut random, &levels);
        let session = SessionSlot(random.u32(..12));
        match random.u8(..10) {
            0..=5 if topic::is_topic_filter(&filter) => {
                let new = subscriber(session, random.u8(..3));
                let known = list.iter_mut().find(|(text, known)| *text == filter && known.slot == session);
                assert_eq!(tree.subscribe(&filter, new), known.is_none());
                match known {
                    Some((_, known)) => *known = new,
                    None => list.push((filter, new)),
                }
            }
            6..=7 => {
                let place = list.iter().position(|(text, known)| *text == filter && known.slot == session);
                assert_eq!(tree.unsubscribe(session, &filter), place.is_some());
                place.map(|place| list.remove(place));
            }
            8 if random.u8(..20) == 0 => {
                tree.remove_all(session);
                list.retain(|(_, known)| known.slot != session);
            }
            _ => {}
        }
        if step % 200 == 0 {
            tree.check_invariants();
        }
        let name = make(&mut random, &levels[..4]);
        let mut found = Vec::new();
        tree.matching(&name, &mut found);
        let matching = list.iter().filter(|(filter, _)| topic::matches(filter, &name));
        let mut expected: Vec<Subscriber> = matching.map(|(_, known)| *known).collect();
        let key = |known: &Subscriber| (known.slot, known.identifier, known.options);
        found.sort_by_key(key);
        expected.sort_by_key(key);
        assert_eq!(found, expected, "{name}");
        let own = list.iter().filter(|(filter, known)| known.slot == session && topic::matches(filter, &name));
        let best = own.map(|(_, known)| known.options & 3).max();
        assert_eq!(tree.find(session, &name).map(|known| known.options & 3), best);
    }
    assert_eq!(tree.len(), list.len());
    for session in (0..12).map(SessionSlot) {
        tree.remove_all(session);
    }
    tree.check_invariants();
    assert!(tree.is_empty() && tree.nodes.is_empty());
}

#[test]
fn a_hundred_thousand_leave_one_filter_one_by_one() {
    let mut tree = Subscriptions::new(1);
    for session in (0..100_000).map(SessionSlot) {
        tree.subscribe("all/#", subscriber(session, 0));
    }
    let mut found = Vec::new();
    tree.matching("all/of/you", &mut found);
    assert_eq!((found.len(), tree.nodes.len()), (100_000, 1));
    // In an order in which the last one is never the one that goes.
    for session in (0..100_000).map(SessionSlot) {
        assert!(tree.unsubscribe(session, "all/#"));
    }
    assert!(tree.is_empty());
}

#[test]
fn a_subscription_of_ones_own_is_small() {
    let mut tree = Subscriptions::new(1);
    let count = 10_000;
    for session in (0..count).map(SessionSlot) {
        tree.subscribe(&format!("devices/meter-{session:06}/#"), subscriber(session, 1));
    }
    // A node, its label, its edge, and the place.
    assert_eq!(tree.nodes.len(), count as usize + 1);
    let labels = tree.nodes.iter().map(|(_, node)| node.label.len()).sum::<usize>();
    let nodes = tree.nodes.len() * size_of::<Node<SessionSlot>>() + labels;
    let edges = tree.edges.allocation_size();
    let own = tree.own.len() * size_of::<Places>();
    let each = (nodes + edges + own) / count as usize;
    assert!(each <= 110, "{each} bytes");
    assert!(tree.bytes() / count as usize >= each, "it is counted as less than it takes");
}

#[test]
fn filter_of_many_empty_levels_is_no_larger_than_its_text() {
    let mut tree = Subscriptions::new(1);
    let filters: Vec<String> = (0..256).map(|number| format!("{number}{}", "/".repeat(199))).collect();
    for (session, filter) in filters.iter().enumerate() {
        tree.subscribe(filter, subscriber(SessionSlot(session as u32), 0));
    }
    let wire: usize = filters.iter().map(String::len).sum();
    assert!(tree.nodes.len() == 256 && tree.bytes() < 2 * wire, "{} bytes for {wire}", tree.bytes());
    // Those that differ in one level from each of them: two nodes more for each, at most.
    for (session, filter) in filters.iter().enumerate().take(200) {
        let level = filter.match_indices('/').nth(session % 199).unwrap().0;
        let other = format!("{}x{}", &filter[..level], &filter[level..]);
        tree.subscribe(&other, subscriber(SessionSlot(session as u32), 0));
    }
    tree.check_invariants();
    assert!(tree.nodes.len() <= 256 + 400);
    let counted: usize = (0..256).map(|session| tree.bytes_held(SessionSlot(session))).sum();
    assert!(tree.bytes() <= counted, "more is taken than was counted for those who take it");
    (0..256).for_each(|session| tree.remove_all(SessionSlot(session)));
    assert_eq!((tree.bytes(), tree.bytes_held(SessionSlot(7))), (0, 0));
}

/// As many filters as a binary tree has leaves, all of which a name may come to.
#[test]
fn walk_is_bounded_in_visits_and_goes_on() {
    const LEVELS: usize = 12;
    let mut tree = Subscriptions::new(1);
    for number in 0..1 << LEVELS {
        let levels: Vec<&str> = (0..LEVELS).map(|bit| if number >> bit & 1 == 1 { "+" } else { "a" }).collect();
        tree.subscribe(&format!("{}/z", levels.join("/")), subscriber(SessionSlot(number), 0));
    }
    let name = format!("{}z", "a/".repeat(LEVELS));
    let (mut walk, mut found, mut steps) = (Walk::default(), Vec::new(), 0);
    while !tree.advance(&name, &mut walk, &mut 100, &mut found) {
        steps += 1;
        assert!(walk.branches.len() <= 2 * LEVELS + 2, "a walk keeps {} branches", walk.branches.len());
    }
    assert!((80..200).contains(&steps), "{steps} steps");
    assert_eq!((found.len(), tree.walks), (1 << LEVELS, 0));
    found.sort_by_key(|subscriber| subscriber.slot);
    found.dedup();
    assert_eq!(found.len(), 1 << LEVELS);
}

fn random_filter(random: &mut fastrand::Rng) -> String {
    let levels = ["a", "b", "", "+", "#", "a", "+"];
    loop {
        let depth = random.usize(1..7);
        let filter = (0..depth).map(|_| levels[random.usize(..levels.len())]).collect::<Vec<_>>().join("/");
        if topic::is_topic_filter(&filter) {
            return filter;
        }
    }
}

/// Those with even numbers stay; of the others, somebody subscribes or leaves.
fn change(tree: &mut Subscriptions, random: &mut fastrand::Rng) {
    let session = SessionSlot(random.u32(..100) * 2 + 1);
    match random.u8(..3) {
        0 => drop(tree.subscribe(&random_filter(random), subscriber(session, 0))),
        1 => tree.remove_all(session),
        _ => drop(tree.remove_some(session, 1)),
    }
}

/// While walks wait, others subscribe and leave, so that nodes are divided, go, come again in the same slots, and would
/// become one. Whoever was there all the while is found once.
#[test]
fn walk_finds_who_was_there_all_the_while_whatever_changes_meanwhile() {
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut tree = Subscriptions::new(seed);
        let mut lasting: Vec<(String, SessionSlot)> = Vec::new();
        for session in (0..200).map(SessionSlot) {
            let filter = random_filter(&mut random);
            tree.subscribe(&filter, subscriber(session, 0));
            if session.0 % 2 == 0 {
                lasting.push((filter, session));
            }
        }
        let names = ["a/a/a/a", "a/b//a/a", "b/b", "a//b/a/a/b"];
        let mut walks: Vec<_> = names.into_iter().map(|name| (name, Walk::default(), Vec::new())).collect();
        while !walks.is_empty() {
            walks.retain_mut(|(name, walk, found): &mut (&str, Walk, Vec<Subscriber>)| {
                if !tree.advance(name, walk, &mut random.usize(1..4), found) {
                    return true;
                }
                let mut sessions: Vec<SessionSlot> =
                    found.iter().map(|found| found.slot).filter(|one| one.0 % 2 == 0).collect();
                sessions.sort_unstable();
                let matching = lasting.iter().filter(|(filter, _)| topic::matches(filter, name));
                assert_eq!(sessions, matching.map(|(_, session)| *session).collect::<Vec<_>>(), "seed {seed}, {name}");
                false
            });
            (0..3).for_each(|_| change(&mut tree, &mut random));
            tree.check_invariants();
        }
        assert_eq!(tree.walks, 0);
        tree.subscribe("last", subscriber(SessionSlot(1), 0));
        tree.check_invariants();
        assert!(tree.unmerged.is_empty());
    }
}

#[test]
fn session_of_a_hundred_thousand_filters_ends_in_steps() {
    const THREE: SessionSlot = SessionSlot(3);
    let mut tree = Subscriptions::new(1);
    for number in 0..100_000 {
        tree.subscribe(&format!("{}/{number}", number % 7), subscriber(THREE, 0));
    }
    assert!(tree.unsubscribe(THREE, "0/7") && !tree.unsubscribe(THREE, "0/7") && tree.get(THREE, "1/1").is_some());
    assert_eq!(tree.find(THREE, "2/9").map(|found| found.slot), Some(THREE));
    let mut steps = 0;
    while !tree.remove_some(THREE, 1_000) {
        steps += 1;
    }
    assert!((98..=100).contains(&steps) && tree.is_empty() && tree.bytes() == 0, "{steps} steps");
}
