//! A fleet that is away gets messages faster than the store writes them: they wait, and none is dropped; memory is within its share.

use bytes::Bytes;

use super::*;
use crate::codec::mqtt::{Options, QoS};
use crate::image::Change;
use crate::link::{ChangeMark, CloseReason, Refusal};
use crate::pool::Class;
use crate::time::{TICK_MICROS, Timeline};

const DEVICES: u32 = 6_000;
const MESSAGES: u32 = 5;

/// What the shard has said and the store has not written.
#[derive(Default)]
struct Store {
    mark: ChangeMark,
    queued: u32,
}

fn turn(shard: &mut Broker, store: &mut Store, now: Moment, counters: &mut Counters) {
    shard.begin_turn();
    for batch in shard.next_deliveries(1_000) {
        shard.keep(batch, now, counters);
    }
    shard.take_answerable();
    shard.take_requests();
    shard.hand_over(|changes| {
        store.mark = changes.mark;
        let is_queued = |change: &&Change| matches!(change, Change::Queued { .. });
        store.queued += changes.changes.iter().filter(is_queued).count() as u32;
        Ok(())
    });
}

#[test]
fn messages_for_a_whole_fleet_wait_for_the_store_and_none_is_dropped() {
    let now = Moment::from_micros(TICK_MICROS);
    let exchange = Arc::new(Exchange::new(1));
    let limits = Limits { sessions: DEVICES, pool_bytes: 16 << 20, ..Limits::default() };
    let bounds = Bounds { stored_bytes: 1 << 30, ..Bounds::of(&limits, 1) };
    let setup = BrokerOptions { worker: WorkerId(0), home: Home::new([9; 16], 1), exchange, bounds, key: 3 };
    let mut shard = Broker::new(setup, now.tick());
    shard.begin_recording(Recording { timeline: Timeline::from_unix_micros(0).into(), listeners: ["l".into()].into() });
    let mut counters = Counters::new(CloseReason::COUNT, Refusal::COUNT);
    let profile = profile(u32::MAX, 10);
    for number in 0..DEVICES {
        let device = format!("{number}");
        let arrival =
            Arrival { connection: ConnectionSlot(0), device: &device, clean_start: false, profile, will: None };
        let session = shard.attach(arrival, now).session;
        assert_eq!(shard.subscribe_one(session, "all", Options::plain(QoS::AtLeastOnce), 0), Granted::Subscribed);
        shard.detach(ConnectionSlot(0), &device, false, now, &mut counters);
    }
    let mut store = Store::default();
    turn(&mut shard, &mut store, now, &mut counters);
    shard.handle_safe(store.mark);
    for _ in 0..MESSAGES {
        let publication =
            crate::link::Publication::plain("all", Bytes::from(vec![0; 100]), crate::link::QoS::AtLeastOnce);
        shard.publish(publication, Ticket::NOBODY, &mut counters);
    }
    let most = shard.pool().share(Class::Queues);
    let (mut waits, mut turns) = (0, 0);
    while store.queued < DEVICES * MESSAGES {
        // Until it can do nothing more: then it does not turn for nothing.
        while shard.has_deliveries() {
            turn(&mut shard, &mut store, now, &mut counters);
            turns += 1;
            assert!(turns < 10_000, "it turns and gets nowhere");
        }
        assert!(shard.pool().used(Class::Queues) < most, "memory is full");
        waits += u32::from(shard.deliveries.has_held());
        shard.check_invariants(|_| false);
        shard.handle_safe(store.mark);
    }
    assert!(waits > 3, "it never had to wait");
    assert_eq!(counters.value(Metric::DroppedQueueFull) + counters.value(Metric::DroppedStoreFull), 0);
    assert_eq!(shard.pool().used(Class::Queues), 0, "all of it is in the store");
    let waiting = |number: u32| shard.describe(shard.sessions.find_away(&number.to_string()).unwrap(), 0).queued;
    assert!((0..DEVICES).all(|number| waiting(number) == MESSAGES as usize));
}

/// A shard of which others have taken the whole share of what waits, and one device that is away and subscribes to all.
fn full_shard(now: Moment, store: &mut Store, counters: &mut Counters) -> Broker {
    let exchange = Arc::new(Exchange::new(1));
    let limits = Limits { sessions: 10, pool_bytes: 1 << 20, ..Limits::default() };
    let bounds = Bounds { stored_bytes: 1 << 30, ..Bounds::of(&limits, 1) };
    let setup = BrokerOptions { worker: WorkerId(0), home: Home::new([9; 16], 1), exchange, bounds, key: 3 };
    let mut shard = Broker::new(setup, now.tick());
    shard.begin_recording(Recording { timeline: Timeline::from_unix_micros(0).into(), listeners: ["l".into()].into() });
    let profile = profile(u32::MAX, 10);
    let arrival = Arrival { connection: ConnectionSlot(0), device: "away", clean_start: false, profile, will: None };
    let session = shard.attach(arrival, now).session;
    assert_eq!(shard.subscribe_one(session, "#", Options::plain(QoS::AtLeastOnce), 0), Granted::Subscribed);
    shard.detach(ConnectionSlot(0), "away", false, now, counters);
    turn(&mut shard, store, now, counters);
    shard.handle_safe(store.mark);
    shard.pool().take_anyway(Class::Queues, shard.pool().share(Class::Queues) as usize);
    shard
}

#[test]
fn a_pool_that_others_have_filled_drops_nothing_that_the_store_has_room_for() {
    let now = Moment::from_micros(TICK_MICROS);
    let mut counters = Counters::new(CloseReason::COUNT, Refusal::COUNT);
    let mut store = Store::default();
    let mut shard = full_shard(now, &mut store, &mut counters);
    let full = shard.pool().used(Class::Queues);
    let publish = |shard: &mut Broker, counters: &mut Counters| {
        let publication =
            crate::link::Publication::plain("x", Bytes::from(vec![0; 1_000]), crate::link::QoS::AtLeastOnce);
        shard.publish(publication, Ticket::NOBODY, counters);
    };
    let mut waits = 0;
    for round in 0..20 {
        // Several in one turn, and some while the others are not safe.
        for _ in 0..3 {
            publish(&mut shard, &mut counters);
        }
        for _ in 0..2 {
            turn(&mut shard, &mut store, now, &mut counters);
            publish(&mut shard, &mut counters);
        }
        turn(&mut shard, &mut store, now, &mut counters);
        waits += usize::from(shard.deliveries.has_held());
        assert!(shard.pool().used(Class::Queues) < full + 5 * 2_000, "what is beyond the pool is what came in a turn");
        shard.handle_safe(store.mark);
        assert_eq!(counters.value(Metric::DroppedQueueFull), 0, "round {round}");
    }
    for _ in 0..3 {
        turn(&mut shard, &mut store, now, &mut counters);
        shard.handle_safe(store.mark);
    }
    assert!(waits > 3, "it never had to wait");
    assert_eq!(shard.describe(shard.sessions.find_away("away").unwrap(), 0).queued, 100);
    assert_eq!(shard.pool().used(Class::Queues), full, "all of it is in the store");
}

/// MQTT 3.1.1 has no Receive Maximum: its devices may leave 65,535 exchanges of QoS 2 open each.
#[test]
fn open_exchanges_are_counted_and_leave_others_their_part() {
    let now = Moment::from_micros(TICK_MICROS);
    let mut counters = Counters::new(CloseReason::COUNT, Refusal::COUNT);
    let mut store = Store::default();
    let mut shard = full_shard(now, &mut store, &mut counters);
    let most = shard.pool().share(Class::Queues) as usize;
    let attach = |shard: &mut Broker, slot: u32| {
        let (device, profile) = (slot.to_string(), profile(0, 10));
        let connection = ConnectionSlot(slot);
        shard.attach(Arrival { connection, device: &device, clean_start: true, profile, will: None }, now).session
    };
    let begin = |shard: &mut Broker, session: SessionSlot| {
        let mut begun = 0;
        while begun < u16::MAX && shard.may_begin_exchange(session) {
            begun += 1;
            shard.refuse(session, begun, QoS::ExactlyOnce, crate::codec::mqtt::Reason::SUCCESS);
            assert!(shard.next_answer(session).is_some());
        }
        usize::from(begun)
    };
    let window = usize::from(shard.bounds().inflight);
    let modest = attach(&mut shard, 1);
    assert_eq!(begin(&mut shard, modest), window, "so many it always may have open");
    shard.pool().give(Class::Queues, most);
    let greedy: Vec<usize> = (2..10)
        .map(|slot| {
            let session = attach(&mut shard, slot);
            begin(&mut shard, session)
        })
        .collect();
    assert!(greedy[0] * 16 < most / 8 && greedy[0] > 1_000, "{greedy:?}");
    assert!(shard.pool().used(Class::Queues) < most as u64);
}
