//! Sessions on a disk that is full: who waits, who does not, and that nothing acknowledged is lost, whatever ends then.

use std::collections::BTreeSet;

use pulsegate::codec::mqtt::Packet;
use rustix::process::Signal;

use crate::support::{SOON, Site, SmallDisk, wait_until};
use crate::survival::{Connection, Greeting, Heard, Out, begin, lasting};

/// Who has no session that outlives the connection: nothing of it is on the disk.
fn passing(id: &str) -> Greeting<'_> {
    Greeting { id, expiry_s: 0, will: None }
}

/// Messages, each acknowledged, until there are `wanted`; which of the publisher's numbers they are.
fn take(connection: &mut Connection, wanted: &BTreeSet<u32>) -> BTreeSet<u32> {
    let mut taken = BTreeSet::new();
    while !wanted.is_subset(&taken) {
        match connection.hear().expect("the gateway stays") {
            Heard::Message { payload, packet, .. } => {
                taken.insert(payload.split('.').next().unwrap().parse().unwrap());
                connection.acknowledge(Packet::Puback, packet).unwrap();
            }
            Heard::Suback => {}
            other => panic!("{other:?}"),
        }
    }
    taken
}

/// A publication of 10 KB that begins with its number.
fn large(number: u16) -> Out {
    Out::new(number, "a/b", format!("{number}.{}", "x".repeat(10_000)), 1)
}

#[test]
fn full_disk_holds_up_who_must_wait_and_nothing_acknowledged_is_lost_by_an_end_and_a_start_on_it() {
    let site = Site::new();
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);
    let data = site.path("data");
    let Some(disk) = SmallDisk::mount(&data, 8 << 10) else { return };
    let top = "workers = 2\ndata_dir = \"data\"";
    let gateway = begin(&site, top);
    let address = gateway.address("mqtt");
    let open = |greeting| Connection::open(address, &tls, greeting).unwrap().0;

    for id in ["away", "here"] {
        let mut connection = open(lasting(id));
        connection.subscribe("a/#").unwrap();
        assert_eq!(connection.hear(), Some(Heard::Suback));
    }
    let mut here = open(lasting("here"));
    let mut publisher = open(lasting("publisher"));
    let mut acknowledged = BTreeSet::new();
    for number in 1..10 {
        publisher.publish(&large(number)).unwrap();
        assert_eq!(publisher.hear(), Some(Heard::Puback(number)));
        acknowledged.insert(u32::from(number));
    }
    assert!(take(&mut here, &acknowledged).is_subset(&acknowledged));

    disk.fill();
    // Until the journal's last page is written there may be room for some.
    let mut sent = 9;
    wait_until("there is no room", SOON, || {
        sent += 1;
        publisher.publish(&large(sent)).unwrap();
        gateway.metric("pulsegate_store_without_room") == 1
    });
    assert_eq!(gateway.get("/readyz").0, 503);
    // Whoever needs nothing of the disk goes on, with and without a session.
    here.say(&Packet::Pingreq).unwrap();
    while here.hear().expect("heartbeats are answered") != Heard::Pingresp {}
    let mut passer = open(passing("passing"));
    passer.subscribe("q").unwrap();
    assert_eq!(passer.hear(), Some(Heard::Suback));
    passer.publish(&Out::new(0, "q", "now", 0)).unwrap();
    assert!(matches!(passer.hear(), Some(Heard::Message { payload, .. }) if payload == "now"));

    // The end, at once, and a start while the disk is as full as before.
    gateway.signal(Signal::KILL);
    while let Some(heard) = publisher.hear() {
        if let Heard::Puback(number) = heard {
            acknowledged.insert(u32::from(number));
        }
    }
    assert!(acknowledged.len() < usize::from(sent), "the disk was never full");
    drop(gateway);
    let gateway = begin(&site, top);
    disk.make_room();
    let address = gateway.address("mqtt");
    let open = |greeting| Connection::open(address, &tls, greeting).unwrap();
    let (mut publisher, is_present) = open(lasting("publisher"));
    assert!(is_present);
    let unanswered: Vec<u16> = (1..=sent).filter(|number| !acknowledged.contains(&u32::from(*number))).collect();
    for &number in &unanswered {
        publisher.publish(&Out { is_dup: true, ..large(number) }).unwrap();
        assert_eq!(publisher.hear(), Some(Heard::Puback(number)));
        acknowledged.insert(u32::from(number));
    }
    for id in ["away", "here"] {
        let (mut connection, is_present) = open(lasting(id));
        assert!(is_present, "{id}");
        let wanted = if id == "away" { acknowledged.clone() } else { acknowledged.split_off(&10) };
        assert!(take(&mut connection, &wanted).iter().all(|number| *number <= u32::from(sent)), "{id}");
    }
    wait_until("the gateway is ready again", SOON, || gateway.get("/readyz").0 == 200);
}
