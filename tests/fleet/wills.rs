//! A delayed will comes when its device stays away, and does not when it is at another gateway by then.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::{Device, Event, Site, wait_until};
use crate::{LATE, Member, fleet};

/// One packet of MQTT.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    [&[first, u8::try_from(body.len()).unwrap()], body].concat()
}

pub fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

/// CONNECT of MQTT 5 with a session of a minute and a will under `will/ID` that waits for two seconds.
fn connect(id: &str) -> Vec<u8> {
    let session = [5, 0x11, 0, 0, 0, 60];
    let delay = [5, 0x18, 0, 0, 0, 2];
    let will = [&delay[..], &text(&format!("will/{id}")), &text("gone")].concat();
    packet(0x10, &[&text("MQTT")[..], &[5, 0x04, 0, 0], &session, &text(id), &will].concat())
}

/// A device that comes and is let in.
#[track_caller]
pub fn come(member: &Member, connect: &[u8]) -> Device {
    let tls = member.site.tls_with(None, |options| options.alpn = &[]);
    let mut device = Device::raw(member.gateway.address("mqtt"), &tls).unwrap();
    device.send_plain(connect);
    assert!(matches!(device.hear(), Event::Data(told) if told[0] == 0x20 && told[3] == 0));
    device
}

/// Somebody who hears all wills at this gateway.
fn watcher(member: &Member) -> Device {
    let mut device =
        come(member, &packet(0x10, &[&text("MQTT")[..], &[5, 0x02, 0, 0], &[0], &text("watcher")].concat()));
    device.send_plain(&packet(0x82, &[&[0, 1, 0][..], &text("will/#"), &[0]].concat()));
    assert!(matches!(device.hear(), Event::Data(told) if told[0] == 0x90));
    device
}

#[test]
fn a_delayed_will_comes_unless_its_device_is_at_another_gateway() {
    let site = Site::new();
    let (mut servers, fleet) = fleet(&site, 1, 2, "");
    let mut watcher = watcher(&fleet[0]);
    // One that is cut and comes to the other gateway, where it speaks another protocol: its session stays, and so its will; and one that
    // is cut and stays away.
    come(&fleet[0], &connect("moved")).reset();
    come(&fleet[0], &connect("gone")).reset();
    let moved = fleet[1].device("moved");
    fleet[1].wait_for_claims(1);
    wait_until("one will is withheld", LATE, || fleet[0].gateway.metric("pulsegate_fleet_wills_withheld_total") == 1);
    let Event::Data(heard) = watcher.hear() else { panic!("no will") };
    assert!(String::from_utf8_lossy(&heard).contains("will/gone"), "{heard:?}");
    assert_eq!(watcher.hear_within(Duration::from_millis(300)), None, "the other one does not come");
    // What is not known is not held back: NATS is away.
    servers.stop(0, rustix::process::Signal::KILL);
    wait_until("it is away", LATE, || fleet[0].fleet()["state"] == "away");
    come(&fleet[0], &connect("late")).reset();
    let Event::Data(heard) = watcher.hear() else { panic!("no will") };
    assert!(String::from_utf8_lossy(&heard).contains("will/late"), "{heard:?}");
    drop(moved);
}

/// So many questions always wait for an answer: more than a gateway hears in one go, and fewer than what lies between it and its own
/// answers in the server's buffers for as long as anybody waits.
const ASKED: usize = 2_000;

/// Asks gateways on and on, until it is let go: there is always a next question.
struct Asker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Asker {
    fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
            socket.set_write_timeout(Some(LATE)).unwrap();
            socket.set_read_timeout(Some(LATE)).unwrap();
            let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
            socket.write_all(b"CONNECT {\"verbose\":false}\r\nSUB _INBOX.x 1\r\n").unwrap();
            let question = b"PUB pulsegate.send.nobody _INBOX.x 2\r\n{}\r\n";
            socket.write_all(&question.repeat(ASKED)).unwrap();
            while !ends.load(Ordering::Relaxed) {
                let line = lines.next().expect("the server has let it go").unwrap();
                if line.starts_with("MSG ") {
                    socket.write_all(question).unwrap();
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the server has let it go");
    }
}

#[test]
fn whoever_asks_on_and_on_holds_up_no_will() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 1, "");
    let member = &fleet[0];
    let mut watcher = watcher(member);
    let asker = Asker::start(servers.ports[0]);
    let received = || member.gateway.metric("pulsegate_fleet_requests_total");
    wait_until("it is asked", LATE, || received() > 1_000);
    come(member, &connect("gone")).reset();
    let heard = watcher.hear_within(LATE);
    let Some(Event::Data(heard)) = heard else { panic!("no will, after {} requests: {heard:?}", received()) };
    assert!(String::from_utf8_lossy(&heard).contains("will/gone"), "{heard:?}");
    drop(asker);
}
