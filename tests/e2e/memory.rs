//! Memory has a bound, and it is the printed one: everything that peers can make grow, all of it at once and far more of each
//! than there is room for, and the gateway stays within its budget and a tenth, and serves who keeps the rules.
//!
//! What is looked at is the most that the process ever had in use (`VmHWM`). Where the test may make a memory group, the process
//! lives in one besides, with the kernel's part, and would be killed beyond it.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pulsegate::codec::mqtt::{Options, Properties, QoS, Subscribe};
use pulsegate::config::{Machine, load};
use pulsegate::tls::handshake::ClientTls;
use rustix::process::Signal;

use crate::support::{Device, Event, Gateway, Listener, SOON, Site};

const LIMITS: &str = "workers = 2
[drain]
window = \"0s\"
[backbone]
bytes = 1048576
[store]
queue_bytes = 1048576
[limits]
connections = 2500
handshakes = 64
packet_bytes = 65536
connect_bytes = 32768
sessions = 500
session_bytes = 262144
session_subscriptions = 1000
retained_messages = 2000
retained_bytes = 1048576
pool_bytes = 16777216
inbox_length = 1024
uplink_length = 1024";

/// Those who are up to something, for so long.
const STORM: Duration = Duration::from_secs(15);
/// Whoever keeps the rules may be made to wait for so long while others are waited for.
const PATIENCE: Duration = Duration::from_mins(1);

/// A memory group with one process in it; it ends with this value.
struct Group(PathBuf);

impl Group {
    /// `None`: this machine, or this user, makes none.
    fn of(gateway: &Gateway, bytes: u64) -> Option<Self> {
        let name = format!("pulsegate-test-{}", gateway.process());
        let versions = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        versions.into_iter().find_map(|(root, limit)| {
            let group = Self(PathBuf::from(root).join(&name));
            fs::create_dir(&group.0).ok()?;
            let is_made = fs::write(group.0.join(limit), bytes.to_string()).is_ok()
                && fs::write(group.0.join("cgroup.procs"), gateway.process().to_string()).is_ok();
            is_made.then_some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Not before the process in it has ended; what is left is an empty directory.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Where they all go, and with what.
struct Crowd {
    address: SocketAddr,
    tls: ClientTls,
    until: Instant,
}

/// A packet: its first byte, and what is behind its length.
fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut left = body.len();
    loop {
        let more = left > 127;
        packet.push((left % 128) as u8 | if more { 0x80 } else { 0 });
        left /= 128;
        if !more {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes()[..], text].concat()
}

/// CONNECT of MQTT 5 with a session that stays for a while, and a will of so many bytes.
fn connect(id: &str, will_bytes: usize) -> Vec<u8> {
    let flags = if will_bytes > 0 { 0x06 } else { 0x02 };
    let mut body = [&string(b"MQTT")[..], &[5, flags, 0, 0, 5, 0x11, 0, 0, 0, 60], &string(id.as_bytes())].concat();
    if will_bytes > 0 {
        body.push(0);
        body.extend(string(b"will"));
        body.extend(string(&vec![b'w'; will_bytes]));
    }
    packet(0x10, &body)
}

fn publish(qos: u8, retain: bool, topic: &str, payload: &[u8]) -> Vec<u8> {
    let id: &[u8] = if qos > 0 { &[0, 7] } else { &[] };
    packet(0x30 | qos << 1 | u8::from(retain), &[&string(topic.as_bytes())[..], id, &[0], payload].concat())
}

fn subscribe(filters: impl Iterator<Item = String>, qos: QoS) -> Vec<u8> {
    let mut list = Vec::new();
    filters.for_each(|filter| Subscribe::put_filter(&filter, Options::plain(qos), &mut list));
    let subscribe = pulsegate::codec::mqtt::Packet::Subscribe(Subscribe::new(9, Properties::EMPTY, &list));
    let mut out = Vec::new();
    subscribe.encode(pulsegate::codec::mqtt::Version::V5, &mut out);
    out
}

impl Crowd {
    /// One that has sent `first`. Whether it was welcomed is not asked.
    fn member(&self, first: &[u8]) -> Option<Device> {
        let mut device = Device::raw(self.address, &self.tls).ok()?;
        device.socket.set_write_timeout(Some(Duration::from_millis(300))).ok()?;
        let wire = device.seal(first);
        device.socket.write_all(&wire).ok()?;
        Some(device)
    }

    /// So many, each of which says something of its own and stays.
    fn members(&self, count: usize, first: impl Fn(usize) -> Vec<u8>) -> Vec<Device> {
        (0..count)
            .take_while(|_| Instant::now() < self.until)
            .filter_map(|number| self.member(&first(number)))
            .collect()
    }

    /// Says it again and again. Whoever is read no further stops at that, and whoever was ended comes again.
    fn insist(&self, first: &[u8], mut next: impl FnMut() -> Vec<u8>) {
        while Instant::now() < self.until {
            let Some(mut device) = self.member(first) else { continue };
            while Instant::now() < self.until {
                let wire = device.seal(&next());
                if device.socket.write_all(&wire).is_err() {
                    break;
                }
            }
            let _ = device.socket.shutdown(Shutdown::Both);
        }
    }

    /// Reads whatever comes and answers nothing, so that all that may be in flight is.
    fn swallow(&self, mut socket: TcpStream) {
        let _ = socket.set_read_timeout(Some(Duration::from_millis(200)));
        let mut space = [0; 16_384];
        while Instant::now() < self.until {
            if socket.read(&mut space).is_ok_and(|count| count == 0) {
                break;
            }
        }
    }

    /// A ClientHello of 64 KB, whole records of it and half of one; and half of a small one.
    fn half_hellos(&self) -> Vec<TcpStream> {
        let large =
            [&[0x16, 3, 1, 0x40, 0, 1, 0, 0xFF, 0xFB, 3, 3][..], &[7; 16_378], &[0x16, 3, 1, 0x40, 0], &[7; 9_000]]
                .concat();
        let small = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3][..], &[7; 300]].concat();
        let open = |number: usize| {
            let mut socket = TcpStream::connect(self.address).ok()?;
            socket.set_write_timeout(Some(Duration::from_millis(300))).ok()?;
            let _ = socket.write_all(if number.is_multiple_of(2) { &large } else { &small });
            Some(socket)
        };
        (0..400).take_while(|_| Instant::now() < self.until).filter_map(open).collect()
    }
}

/// Whoever keeps the rules: what it publishes comes back to it and is acknowledged.
struct Good(Device);

impl Good {
    fn new(crowd: &Crowd, id: &str) -> Self {
        let mut device = Device::raw(crowd.address, &crowd.tls).expect("there is a place for it");
        device.send_plain(&connect(id, 0));
        let mut good = Self(device);
        good.hear_until(|packets| packets.first() == Some(&0x20));
        good.0.send_plain(&subscribe(std::iter::once(format!("own/{id}")), QoS::AtLeastOnce));
        good.hear_until(|packets| packets.contains(&0x90));
        good
    }

    fn hear_until(&mut self, is_enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let (deadline, mut heard) = (Instant::now() + PATIENCE, Vec::new());
        while !is_enough(&heard) {
            match self.0.hear_within(deadline.saturating_duration_since(Instant::now())) {
                Some(Event::Data(bytes)) => heard.extend(bytes),
                other => panic!("heard {heard:?} and then {other:?}"),
            }
        }
        heard
    }

    fn is_served(&mut self, id: &str) {
        self.0.send_plain(&publish(1, false, &format!("own/{id}"), b"x"));
        // PUBACK, and the message, in this order or the other.
        let topic = format!("own/{id}");
        let find = |heard: &[u8], what: &[u8]| heard.windows(what.len()).position(|window| window == what);
        let heard = self.hear_until(|heard| {
            let message = find(heard, topic.as_bytes());
            find(heard, &[0x40, 2, 0, 7]).is_some() && message.is_some_and(|at| heard.len() > at + topic.len() + 3)
        });
        let packet = find(&heard, topic.as_bytes()).expect("it was waited for") + topic.len();
        self.0.send_plain(&[0x40, 2, heard[packet], heard[packet + 1]]);
    }
}

#[test]
fn memory_stays_within_the_printed_bound_whatever_peers_do() {
    let site = Site::new();
    let open = "publish = [\"#\"]\nsubscribe = [\"#\"]\n";
    site.configure(LIMITS, &[Listener::new("mqtt", "mqtt").table("mqtt", open)]);
    let budget = load(&site.path("pulsegate.toml"), &Machine::detect(1 << 16)).unwrap().budget;
    let (user, total) = (budget.user_bytes(), budget.total_bytes());
    assert!(total < 100 << 20, "more is offered than {total} bytes");

    let mut gateway = Gateway::start(site.directory());
    let group = Group::of(&gateway, total + total / 10);
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);
    let mut crowd = Crowd { address: gateway.address("mqtt"), tls, until: Instant::now() + SOON };
    let mut good = Good::new(&crowd, "good");
    crowd.until = Instant::now() + STORM;
    storm(&crowd, &gateway, &mut good);

    // They are gone; somebody new finds place.
    good.is_served("good");
    Good::new(&crowd, "later").is_served("later");
    let (peak, refused) = (gateway.peak_resident(), gateway.metric("pulsegate_pool_refused_total"));
    println!(
        "at most {peak} bytes, {user} and {total} are printed, {refused} refused; in a group: {}",
        group.is_some()
    );
    assert!(refused > 0, "nobody wanted more than there is");
    assert!(peak <= user + user / 10, "{peak} bytes in use, {user} are printed");
    gateway.signal(Signal::TERM);
    assert!(gateway.wait(PATIENCE).success());
}

/// All at once, while somebody good is served.
fn storm(crowd: &Crowd, gateway: &Gateway, good: &mut Good) {
    let payload = vec![b'p'; 16_000];
    std::thread::scope(|scope| {
        for worker in 0..2 {
            // Deletions of retained topics that never were, and retained messages under ever new ones.
            scope.spawn(move || {
                let (mut number, long) = (0, "x".repeat(200));
                crowd.insist(&connect(&format!("deletes-{worker}"), 0), || {
                    number += 100;
                    let one = |number| publish(0, true, &format!("gone/{worker}/{number}/{long}"), b"");
                    let kept = publish(0, true, &format!("kept/{worker}/{number}"), &[b'r'; 5_000]);
                    [(number..number + 100).flat_map(one).collect(), kept].concat()
                });
            });
            // More than those who want it take.
            for qos in 0..2 {
                let payload = &payload;
                scope.spawn(move || {
                    crowd.insist(&connect(&format!("floods-{worker}-{qos}"), 0), || {
                        publish(qos, false, "flood/x", payload).repeat(3)
                    });
                });
            }
        }
        // Those who do not read, and those who read and answer nothing.
        let want = |id: String, qos| [connect(&id, 0), subscribe(std::iter::once("flood/+".into()), qos)].concat();
        scope.spawn(move || {
            let deaf = crowd.members(30, |number| want(format!("deaf-{number}"), QoS::AtMostOnce));
            let mute = crowd.members(30, |number| want(format!("mute-{number}"), QoS::AtLeastOnce));
            std::thread::scope(|scope| {
                for device in &mute {
                    scope.spawn(|| crowd.swallow(device.socket.try_clone().unwrap()));
                }
            });
            drop(deaf);
        });
        scope.spawn(move || {
            let deep = |number: usize| {
                let filters = (0..280).map(|filter| format!("{number}{}{filter}", "/".repeat(199)));
                [connect(&format!("deep-{number}"), 0), subscribe(filters, QoS::AtMostOnce)].concat()
            };
            let deep = crowd.members(100, deep);
            // A topic of 8 KB under each of 16 aliases; and wills.
            let aliases = crowd.members(100, |number| {
                let alias = |alias: u8| {
                    let topic = string(&vec![b'a'; 8_000]);
                    packet(0x30, &[&topic[..], &[3, 0x23, 0, alias]].concat())
                };
                [connect(&format!("aliases-{number}"), 0), (1..=16).flat_map(alias).collect()].concat()
            });
            let wills = crowd.members(200, |number| connect(&format!("will-{number}"), 16_000));
            wait_for_the_end(crowd, (deep, aliases, wills));
        });
        scope.spawn(move || {
            // A CONNECT but for its last bytes, from those who will never log in.
            let half = connect("half", 30_000);
            let half = crowd.members(400, |_| half[..half.len() - 1_000].to_vec());
            wait_for_the_end(crowd, (half, crowd.half_hellos()));
        });
        scope.spawn(move || {
            while Instant::now() < crowd.until {
                // A worker that cannot answer in time is named (`worker_busy`): this is about memory.
                let (status, body) = gateway.get("/v1/devices?limit=1000");
                assert!(matches!(status, 200 | 503), "{status} {body}");
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        while Instant::now() < crowd.until {
            good.is_served("good");
        }
    });
}

/// What was opened stays open so long.
fn wait_for_the_end<T>(crowd: &Crowd, opened: T) {
    std::thread::sleep(crowd.until.saturating_duration_since(Instant::now()));
    drop(opened);
}
