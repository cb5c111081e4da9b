//! Whole shards' sessions under a model that knows what each subscriber must get and must not: random devices that come,
//! go, are taken over and lose their connections at any step; sessions that expire and wills that wait; messages of every
//! quality; late and split deliveries between shards. A seed replays a run.

mod device;
mod model;

use super::*;
use crate::codec::mqtt::{self, Options, Packet, QoS};
use crate::time::Moment;
use device::message_of;
use model::{Tally, World};

#[test]
fn whoever_subscribed_gets_each_message_and_nobody_else_does() {
    let mut total = Tally::default();
    for seed in 0..2_000 {
        let mut world = World::new(seed);
        for _ in 0..800 {
            world.step();
        }
        world.end();
        total.add(&world.tally);
    }
    assert!(total.is_enough(), "too little happened: {total:?}");
}

/// Far more than may wait in a session, and more than may be in flight.
#[test]
fn a_subscription_gets_every_retained_message_and_none_that_is_older_than_what_went_before() {
    const COUNT: u32 = 2_000;
    for qos in [0, 1, 2] {
        let mut world = World::new(7);
        let worker = world.devices[0].worker;
        world.shards[worker].bounds.messages = 5;
        for number in 0..COUNT {
            let mut publication = world.publication(&format!("kept/{number:05}"), qos);
            publication.retain = true;
            world.shards[worker].publish(publication, world.now, &mut world.counters);
        }
        world.connect(0);
        let session = world.session_of(0).unwrap();
        let options = Options::plain(QoS::try_from(qos).unwrap());
        assert_eq!(world.shards[worker].subscribe(session, "kept/#", options, 0), Granted::Yes);
        // One is replaced before its turn: what comes is the new one, once, as the live message that it is.
        let mut publication = world.publication("kept/01999", qos);
        publication.retain = true;
        world.shards[worker].publish(publication, world.now, &mut world.counters);
        let (mut kept, mut live) = (Vec::new(), Vec::new());
        for _ in 0..2 * COUNT {
            world.shards[worker].begin_turn();
            for run in world.shards[worker].next_deliveries(10) {
                let mut out = Vec::new();
                let desk = &mut Desk {
                    out: &mut out,
                    unsent: 0,
                    turn_bytes: 300,
                    now: world.now,
                    counters: &mut world.counters,
                };
                world.shards[worker].write(session, run.letters, desk);
                let mut rest = &out[..];
                while let Some((packet, length)) = mqtt::decode(rest, Some(mqtt::Version::V5), 1 << 20).unwrap() {
                    rest = &rest[length..];
                    let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
                    if publish.retain { &mut kept } else { &mut live }.push(message_of(publish.payload));
                    let shard = &mut world.shards[worker];
                    match publish.qos {
                        QoS::AtMostOnce => {}
                        QoS::AtLeastOnce => assert!(shard.handle_puback(session, publish.packet_id, |_| {})),
                        QoS::ExactlyOnce => {
                            assert!(shard.handle_pubrec(session, publish.packet_id, false, |_| {}));
                            assert!(shard.handle_pubcomp(session, publish.packet_id));
                        }
                    }
                }
            }
            world.check();
        }
        assert!(
            kept.iter().copied().eq(1..COUNT),
            "QoS {qos}: {} of {} came, or in another order",
            kept.len(),
            COUNT - 1
        );
        assert_eq!(live, [COUNT + 1]);
        assert_eq!(world.counters.figure(Figure::DroppedQueueFull), 0);
        assert!(!world.shards[worker].has_deliveries(), "nothing is left to be done");
    }
}

#[test]
fn a_session_is_small() {
    assert!(size_of::<Session>() <= 112);
    let mut world = World::new(1);
    world.connect(1);
    let session = world.session_of(1).unwrap();
    let shard = &world.shards[world.devices[1].worker];
    assert!(shard.all[session as usize].flow.is_none(), "nothing is in flight, and nothing is kept for it");
}
