//! Connections that hold no longer: revoked certificates, and age.

use super::*;
use crate::tls::handshake::Versions;

#[test]
fn what_is_kept_of_a_certificate_travels_home_and_ends_the_connection_when_it_is_revoked() {
    let lab = Lab::new();
    let mut listener = Lab::native();
    listener.tls.client_auth = crate::config::ClientAuth::Required;
    let mut desks = Desk::with(2, &lab, vec![lab.settings(0, &listener)]);
    let (revoked, kept) = (lab.client(Some("pump-1"), Versions::Tls13), lab.client(Some("pump-2"), Versions::Tls12));
    let lists = lab.revoke(&["pump-1"]);
    for (id, tls) in [("pump-1", &revoked), ("pump-2", &kept)] {
        for desk in &mut desks {
            desk.tls = tls.clone();
        }
        let home = desks[0].shard.home.of(id).index();
        let [first, second] = &mut desks[..] else { panic!("two shards") };
        let (here, there) = if home == 1 { (first, second) } else { (second, first) };
        let index = here.shake_hands(NATIVE);
        here.client(index).say_hello(id);
        here.read(index);
        let (moving, _) = here.shard.next_move().unwrap();
        let mut bytes = Vec::new();
        here.shard.pack(moving, &mut bytes);
        let arrived = there.shard.unpack(&bytes, there.now).unwrap();
        there.shard.handle_arrival(arrived, there.now);
        there.clients.insert(arrived, here.clients.remove(&index).unwrap());
        here.shard.handle_moved(moving);
        here.reap();
        there.flush();
        assert!(there.shard.connections[arrived as usize].is_device());
    }
    for desk in &mut desks {
        let settings: Arc<[_]> = vec![lab.settings_with_lists(0, &listener, &lists)].into();
        desk.shard.replace_settings(settings, 2, desk.now);
        while desk.shard.sweep.is_underway() {
            desk.expire();
        }
    }
    let mut closed = |reason| desks.iter_mut().map(|desk| desk.closed(reason)).sum::<u64>();
    assert_eq!(closed(CloseReason::CertificateRevoked), 1);
    let alive: Vec<_> =
        desks.iter().flat_map(|desk| &desk.shard.connections).filter(|(_, one)| one.is_device()).collect();
    assert_eq!(alive.len(), 1);
    assert_eq!(alive[0].1.device(), "pump-2");
}

#[test]
fn a_connection_ends_somewhere_in_the_last_tenth_of_its_age() {
    let lab = Lab::new();
    let mut listener = Lab::native();
    listener.tls.max_connection_age = Some(Duration::from_hours(1));
    listener.heartbeat.interval = Duration::from_mins(50);
    let mut desk = Desk::with(1, &lab, vec![lab.settings(0, &listener)]).pop().unwrap();
    desk.tls = lab.client(None, Versions::Tls13);
    for number in 0..20 {
        desk.connect(&format!("pump-{number}"));
    }
    let mut ends = Vec::new();
    for minute in 1..=63 {
        desk.pass(Duration::from_mins(1));
        let heard: Vec<u32> = desk.clients.keys().copied().collect();
        for index in heard {
            desk.client(index).say(&crate::codec::native::Frame::Ping(b""));
            desk.read(index);
        }
        desk.expire();
        ends.extend(desk.reap().iter().map(|_| minute));
        let lingering: Vec<u32> = desk
            .shard
            .connections
            .iter()
            .filter(|(_, one)| one.is_lingering())
            .map(|(index, _)| index as u32)
            .collect();
        for index in lingering {
            desk.shard.handle_reset(index, desk.now);
            ends.extend(desk.reap().iter().map(|_| minute));
        }
    }
    assert_eq!(desk.closed(CloseReason::ConnectionAge), 20, "{ends:?}");
    assert!(ends.iter().all(|minute| (54..=63).contains(minute)), "{ends:?}");
    assert!(ends.iter().min() != ends.iter().max(), "not all at once: {ends:?}");
}
