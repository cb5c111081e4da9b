//! What a device was saying under QoS 2 when its gateway was killed: the exchange goes on, at that gateway when it is back, or at another one.
//! Whatever had PUBREC is published once.

use std::time::Duration;

use rustix::process::Signal;

use crate::mqtt::Client;
use crate::sessions::QUIET;
use crate::support::{Site, wait_until};
use crate::survivors::{back, kill};
use crate::uplink::behind;
use crate::{LATE, Member, fleet};

const PUBREC: u8 = 0x50;
const PUBREL: u8 = 0x62;
const PUBCOMP: u8 = 0x70;

fn watcher(member: &Member) -> Client {
    let mut watcher = Client::come(member, "watcher", false);
    watcher.subscribe("up/#", 2);
    watcher
}

/// The second half of an exchange.
#[track_caller]
fn release(device: &mut Client, number: u16) {
    device.say(PUBREL, number);
    device.expect(PUBCOMP, number);
}

/// A whole exchange under an identifier that was used before, or not.
#[track_caller]
fn say(device: &mut Client, payload: &str, number: u16) {
    device.send_as("up/a", payload, 2, number);
    device.expect(PUBREC, number);
    release(device, number);
}

/// PUBREL finds the exchange, or is answered where nobody knows of it; the identifier is free afterwards.
#[test]
fn what_had_pubrec_is_published_once_wherever_its_device_goes_on() {
    for goes_elsewhere in [false, true] {
        let site = Site::new();
        let (_servers, mut fleet) = fleet(&site, 1, 2, "");
        let mut watcher = watcher(&fleet[1]);
        let mut device = Client::come(&fleet[0], "meter", true);
        let number = device.send("up/a", "one", 2);
        device.expect(PUBREC, number);
        let place = kill(&mut fleet, 0);
        drop(device);
        let at_home = (!goes_elsewhere).then(|| back(place));
        let mut device = Client::back(at_home.as_ref().unwrap_or(&fleet[0]), "meter");
        release(&mut device, number);
        watcher.hears("up/a", "one", 2);
        say(&mut device, "two", number);
        watcher.hears("up/a", "two", 2);
        assert_eq!(watcher.message(QUIET), None, "elsewhere: {goes_elsewhere}");
    }
}

/// How often each of these was heard until nothing comes any more, in the order in which they came first.
fn heard(watcher: &mut Client, count: usize) -> Vec<(String, usize)> {
    let mut all: Vec<(String, usize)> = Vec::new();
    loop {
        let patience = if all.len() < count { LATE } else { QUIET };
        let Some(heard) = watcher.message(patience) else { return all };
        assert_eq!(heard.qos, 2);
        match all.iter_mut().find(|(payload, _)| *payload == heard.payload) {
            Some((_, times)) => *times += 1,
            None => all.push((heard.payload, 1)),
        }
    }
}

/// It lies in the log of its gateway, which NATS was away from, and is said again by its device: it may be in the stream twice, wherever the
/// device goes on, and is not lost.
#[test]
fn what_had_no_pubrec_is_said_again_and_comes() {
    for goes_elsewhere in [false, true] {
        let site = Site::new();
        let (mut servers, mut fleet) = fleet(&site, 1, 2, "");
        let mut watcher = watcher(&fleet[1]);
        let mut device = Client::come(&fleet[0], "meter", true);
        servers.stop(0, Signal::KILL);
        wait_until("both are cut off", LATE, || fleet.iter().all(|member| member.fleet()["state"] == "away"));
        let number = device.send("up/a", "one", 2);
        wait_until("it is in the log", LATE, || behind(&fleet[0]).as_u64() >= Some(1));
        let place = kill(&mut fleet, 0);
        drop(device);
        servers.start(0, &[]);
        wait_until("the other one is back", LATE, || fleet[0].fleet()["state"] == "connected");
        let (mut at_home, place) = if goes_elsewhere { (None, Some(place)) } else { (Some(back(place)), None) };
        let mut device = Client::back(at_home.as_ref().unwrap_or(&fleet[0]), "meter");
        say(&mut device, "one", number);
        say(&mut device, "two", number);
        at_home = at_home.or_else(|| place.map(back));
        wait_until("nothing is left in the log", LATE, || at_home.as_ref().is_some_and(|home| behind(home) == 0));
        let heard = heard(&mut watcher, 2);
        assert!(matches!(&heard[..], [(one, 1..=2), (two, 1)] if one == "one" && two == "two"), "{heard:?}");
    }
}

/// Killed at any instant of an exchange, again and again, with the device back at it each time: each message comes, in order, and once where
/// its device has heard PUBREC.
#[test]
fn what_had_pubrec_comes_once_whichever_instant_its_gateway_is_killed_at() {
    const KILLS: usize = 9;
    let site = Site::new();
    let (_servers, mut fleet) = fleet(&site, 1, 2, "");
    let mut watcher = watcher(&fleet[1]);
    let mut device = Client::come(&fleet[0], "meter", true);
    for round in 0..KILLS {
        let payload = round.to_string();
        let number = device.send("up/a", &payload, 2);
        let was_received = round % 3 > 0;
        if was_received {
            device.expect(PUBREC, number);
            if round % 3 > 1 {
                device.say(PUBREL, number);
            }
        }
        std::thread::sleep(Duration::from_millis(round as u64));
        // What was answered meanwhile the device does not hear.
        let place = kill(&mut fleet, 0);
        drop(device);
        fleet.insert(0, back(place));
        device = Client::back(&fleet[0], "meter");
        if was_received {
            release(&mut device, number);
        } else {
            say(&mut device, &payload, number);
        }
    }
    let heard = heard(&mut watcher, KILLS);
    for (round, (payload, times)) in heard.iter().enumerate() {
        let most = if round % 3 > 0 { 1 } else { 2 };
        assert!(*payload == round.to_string() && *times <= most, "{heard:?}");
    }
    assert_eq!(heard.len(), KILLS);
}
