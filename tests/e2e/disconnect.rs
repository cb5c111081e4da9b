//! Everybody leaves at once: the gateway is back at nobody, and has its memory back.

use crate::support::{Behaviour, Fleet, SOON, Site, native, wait_until};

#[test]
fn thousands_that_are_cut_at_once_leave_nothing_behind() {
    const DEVICES: usize = 2_000;
    let site = Site::new();
    let gateway = site.start("workers = 2", &[native()]);
    let tls = site.tls();
    let mut allocated = Vec::new();
    for round in 0..2 {
        let fleet = Fleet::connect(gateway.devices(), &tls, "meter-", DEVICES, Behaviour::Answer);
        gateway.expect_connected(DEVICES);
        let held = gateway.allocated();
        let devices = fleet.into_devices();
        if round == 0 {
            for device in devices {
                device.reset();
            }
        } else {
            drop(devices);
        }
        gateway.expect_connections(0);
        // What is on its way to the disk is memory as well, and is gone when it is there: each came, and each went.
        let told = 2 * DEVICES as u64 * (round + 1);
        wait_until("every event is in the store", SOON * 3, || {
            gateway.metric("pulsegate_store_events_appended_total") == told
        });
        allocated.push((held, gateway.allocated()));
    }
    gateway.wait_until_empty();
    let closed = gateway.closed("peer_closed") + gateway.closed("peer_reset");
    assert_eq!(closed, 2 * DEVICES as u64, "{:?}", gateway.all_closed());
    // The first round pays for what stays (buffers, queues); the second must find it. What is remembered of each end, for
    // `pulsegate why`, stays too: so much at most, as the printed budget says.
    let remembered = pulsegate::config::budget::END_BYTES * DEVICES as u64;
    let (first, second) = (allocated[0].1, allocated[1].1);
    assert!(second < first + (256 << 10) + remembered, "{allocated:?}");
    // Between the two nothing ended.
    let held = allocated[1].0.saturating_sub(first);
    assert!(held > 100 * DEVICES as u64, "connections that hold nothing show nothing: {allocated:?}");
}
