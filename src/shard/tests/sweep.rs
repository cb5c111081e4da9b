//! Connections that hold no longer: revoked certificates, and age.

use super::*;
use crate::tls::handshake::Versions;

#[test]
fn what_is_kept_of_a_certificate_travels_home_and_ends_the_connection_when_it_is_revoked() {
    let fixtures = Fixtures::new();
    let mut listener = Fixtures::native();
    listener.tls.client_auth = crate::config::ClientAuth::Required;
    let mut harnesses = ShardHarness::with_settings(2, &fixtures, vec![fixtures.settings(0, &listener)]);
    let (revoked, kept) =
        (fixtures.client(Some("pump-1"), Versions::Tls13), fixtures.client(Some("pump-2"), Versions::Tls12));
    let lists = fixtures.revoke(&["pump-1"]);
    for (id, tls) in [("pump-1", &revoked), ("pump-2", &kept)] {
        for harness in &mut harnesses {
            harness.tls = tls.clone();
        }
        let home = harnesses[0].shard().home.of(id).index();
        let [first, second] = &mut harnesses[..] else { panic!("two shards") };
        let (here, there) = if home == 1 { (first, second) } else { (second, first) };
        let slot = here.shake_hands(NATIVE);
        here.client(slot).say_hello(id);
        here.read(slot);
        let (moving, _, image) = here.take_sent();
        let client = here.clients.remove(&slot).unwrap();
        let arrived = there.arrive(moving, &image, client);
        here.acknowledge(moving, true);
        assert!(there.shard().connections[arrived].is_device());
    }
    for harness in &mut harnesses {
        let settings: Arc<[_]> = vec![fixtures.settings_with_lists(0, &listener, &lists)].into();
        harness.with(|shard, now| shard.replace_settings(settings, 2, now));
        while harness.shard().sweep.is_underway() {
            harness.turn();
        }
    }
    let mut closed = |reason| harnesses.iter_mut().map(|harness| harness.closed(reason)).sum::<u64>();
    assert_eq!(closed(CloseReason::CertificateRevoked), 1);
    let device = |(_, one): (ConnectionSlot, &Connection)| one.is_device().then(|| one.device().to_owned());
    let alive: Vec<String> =
        harnesses.iter_mut().flat_map(|harness| harness.shard().connections.iter().filter_map(device)).collect();
    assert_eq!(alive, ["pump-2"]);
}

#[test]
fn a_connection_ends_somewhere_in_the_last_tenth_of_its_age() {
    let fixtures = Fixtures::new();
    let mut listener = Fixtures::native();
    listener.tls.max_connection_age = Some(Duration::from_hours(1));
    listener.heartbeat.interval = Duration::from_mins(50);
    let mut harness = ShardHarness::with_settings(1, &fixtures, vec![fixtures.settings(0, &listener)]).pop().unwrap();
    harness.tls = fixtures.client(None, Versions::Tls13);
    for number in 0..20 {
        harness.connect(&format!("pump-{number}"));
    }
    let mut ends = Vec::new();
    for minute in 1..=63 {
        harness.pass(Duration::from_mins(1));
        let heard: Vec<ConnectionSlot> = harness.clients.keys().copied().collect();
        for slot in heard {
            harness.client(slot).say(&crate::codec::native::Frame::Ping(b""));
            harness.send(slot);
        }
        ends.extend(harness.turn().iter().map(|_| minute));
        let connections = harness.shard().connections.iter();
        let lingering: Vec<ConnectionSlot> =
            connections.filter(|(_, one)| one.is_lingering()).map(|(slot, _)| slot).collect();
        for slot in lingering {
            ends.extend(harness.end(slot, PeerEnd::ByReset).iter().map(|_| minute));
        }
    }
    assert_eq!(harness.closed(CloseReason::ConnectionAge), 20, "{ends:?}");
    assert!(ends.iter().all(|minute| (54..=63).contains(minute)), "{ends:?}");
    assert!(ends.iter().min() != ends.iter().max(), "not all at once: {ends:?}");
}
