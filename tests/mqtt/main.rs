//! MQTT through the real program: the statements of both specifications as rows of raw packets, and clients that we did
//! not write.

#[path = "../e2e/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the other end-to-end tests")]
mod support;

mod auth;
mod away;
mod disk;
mod port;
mod rows_v3;
mod rows_v5;
mod script;
mod standstill;
mod stock;
mod storm;
mod survival;
mod websocket;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use script::Stage;
use support::{Device, Gateway, Listener, SOON, Site, wait_until};

/// Rows played at a time: most of a row's time is waiting.
const AT_A_TIME: usize = 16;

/// Two workers, so that publisher and subscriber are as often as not on different ones.
fn start(site: &Site) -> Gateway {
    let open = "publish = [\"#\"]\nsubscribe = [\"#\"]\n";
    let listeners = [
        Listener::new("mqtt", "mqtt").table("mqtt", open),
        Listener::new("own", "mqtt"),
        Listener::new("bounded", "mqtt")
            .table("mqtt", &format!("{open}keep_alive_max = \"10s\"\nsession_expiry_max = \"50s\"\n")),
    ];
    site.start("workers = 2\n[limits]\nsession_subscriptions = 10\ntopic_levels = 8", &listeners)
}

/// Plays every row against one gateway, and shows each that went otherwise.
fn play(rows: &[(&str, &str)]) {
    let site = Site::new();
    let gateway = start(&site);
    let listeners: HashMap<&str, _> = ["mqtt", "own", "bounded"].map(|name| (name, gateway.address(name))).into();
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);
    let (next, faults) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some((statement, row)) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let number = rows.iter().position(|(_, other)| std::ptr::eq(*other, *row)).unwrap();
                    if let Err(fault) = Stage::new(&listeners, &tls, number).play(row) {
                        faults.lock().unwrap().push(format!("{statement}\n    {fault}\n    {row}"));
                    }
                }
            });
        }
    });
    let faults = faults.into_inner().unwrap();
    assert!(faults.is_empty(), "{} of {} rows went otherwise:\n\n{}", faults.len(), rows.len(), faults.join("\n\n"));
}

#[test]
fn statements_of_version_3_1_1() {
    play(rows_v3::ROWS);
}

#[test]
fn statements_of_version_5() {
    play(rows_v5::ROWS);
}

/// In MQTT's words, which a device can read, and not by the end alone (v5 3.1.4, 3.2.2.2; v3.1.1 3.2.2.3).
#[test]
fn a_certificate_without_a_name_is_told_in_connack() {
    let site = Site::new();
    let listener = Listener::new("mqtt", "mqtt").client_auth("required").identity("cert-san-dns");
    let gateway = site.start("workers = 2", &[listener]);
    let listeners = [("mqtt", gateway.address("mqtt"))].into();
    // No DNS name can be made of this id.
    let tls = site.tls_with(Some(&site.identity("meter:1")), |options| options.alpn = &[b"mqtt"]);
    let row = "a > [c5 a]; a < 20 < 00 85 {} >; a x; b > [c4 b]; b < 20 02 0005; b x";
    Stage::new(&listeners, &tls, 1).play(row).unwrap();
    gateway.expect_closed("identity_missing", 2);
    gateway.wait_until_empty();
}

/// Whoever sends half a CONNECT and waits has a share of memory with all who have not logged in: they have it among
/// themselves, and devices come and go. When they are gone it is all there again.
#[test]
fn half_packets_of_strangers_have_a_share_and_no_more() {
    const STRANGERS: usize = 100;
    let site = Site::new();
    let listener = Listener::new("mqtt", "mqtt");
    // A share of 32 KiB for each worker, of which a stranger who comes first may have 4.
    let gateway = site.start("workers = 2\n[limits]\npool_bytes = 1048576\nconnect_bytes = 8192\n", &[listener]);
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);
    let stranger = |bytes: usize| {
        let mut stranger = Device::raw(gateway.address("mqtt"), &tls).expect("the gateway takes connections");
        let remaining = bytes + 1_000;
        let header = [0x10, remaining as u8 | 0x80, (remaining >> 7) as u8];
        stranger.send_plain(&[&header[..], &vec![0; bytes]].concat());
        stranger
    };
    let strangers: Vec<Device> = (0..STRANGERS).map(|_| stranger(2_000)).collect();
    wait_until("some are told to come back", SOON, || gateway.closed("pool_full") > 0);
    let held = gateway.metric("pulsegate_pool_used_bytes");
    assert!((2_000..65_536).contains(&held), "{held} bytes are held");
    // Longer than any CONNECT may be: refused by its header.
    let _too_long = stranger(8_000);
    gateway.expect_closed("frame_too_large", 1);
    let listeners = [("mqtt", gateway.address("mqtt"))].into();
    Stage::new(&listeners, &tls, 1)
        .play("a > 10 0F 0004 4D51; a > 5454 04 02 003C 0003 61 2D 31; a < [k4]; a -")
        .unwrap();
    drop(strangers);
    gateway.wait_until_empty();
    gateway.expect_metric("pulsegate_pool_used_bytes", 0);
}

/// A row that is wrong must be found.
#[test]
#[should_panic(expected = "2 of 3 rows went otherwise")]
fn a_row_that_does_not_hold_is_shown() {
    play(&[
        ("right", "a > [c4 a]; a < [k4]; a -"),
        ("another answer", "a > [c4 a]; a < [k5]"),
        ("not the end", "a > [c4 a]; a < [k4]; a > [pub4 x/% y]; a > C0 00; a x"),
    ]);
}
