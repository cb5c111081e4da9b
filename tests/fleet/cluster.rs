//! Three gateways and a cluster of three servers, with publications between all of them: whatever dies, hangs or is restarted, what was
//! acknowledged to its publisher is received by every subscriber.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::mqtt::Client;
use crate::support::{Gateway, wait_until};
use crate::{LATE, Member, Site, fleet};

/// What one publisher has under way at a time: no more than a device may.
const WINDOW: usize = 10;
/// For how long each listens in its turn.
const TURN: Duration = Duration::from_millis(20);
/// How long an election, or the return of a cluster, may take on a busy machine.
const VERY_LATE: Duration = Duration::from_mins(3);

/// A publisher at one gateway.
struct Talker {
    at: usize,
    client: Option<Client>,
    sent: BTreeMap<u16, String>,
    /// Said to a gateway that died, and not known to be heard: it is said again.
    again: Vec<String>,
    count: u32,
}

impl Talker {
    fn come(at: usize, member: &Member) -> Self {
        let client = Some(Client::come(member, &format!("talker-{at}"), false));
        Self { at, client, sent: BTreeMap::new(), again: Vec::new(), count: 0 }
    }

    /// Says as much as may be under way, unless it is to be silent, and hears what is acknowledged.
    fn turn(&mut self, is_silent: bool, acknowledged: &mut BTreeSet<String>) {
        let Some(client) = &mut self.client else { return };
        while self.sent.len() < WINDOW && !(is_silent && self.again.is_empty()) {
            let text = self.again.pop().unwrap_or_else(|| {
                self.count += 1;
                format!("{}-{}", self.at, self.count)
            });
            self.sent.insert(client.send(&format!("load/{}", self.count % 3), &text, 1), text);
        }
        for number in client.acknowledged(TURN) {
            acknowledged.extend(self.sent.remove(&number));
        }
    }

    /// Its gateway is gone.
    fn lose(&mut self) {
        drop(self.client.take());
        self.again.extend(std::mem::take(&mut self.sent).into_values());
    }
}

/// A subscriber at one gateway, whose session outlives its connection.
struct Listener {
    at: usize,
    client: Option<Client>,
    received: BTreeSet<String>,
}

impl Listener {
    fn come(&mut self, member: &Member) {
        let mut client = Client::come(member, &format!("listener-{}", self.at), true);
        if !client.has_session {
            assert!(self.received.is_empty(), "its session is gone");
            client.subscribe("load/#", 1);
        }
        self.client = Some(client);
    }

    fn turn(&mut self, within: Duration) {
        let Some(client) = &mut self.client else { return };
        while let Some(heard) = client.message(within) {
            self.received.insert(heard.payload);
        }
    }
}

/// All that is under way.
struct Load {
    talkers: Vec<Talker>,
    listeners: Vec<Listener>,
    acknowledged: BTreeSet<String>,
}

impl Load {
    /// Until so many more are acknowledged to each publisher who can speak.
    #[track_caller]
    fn run(&mut self, more: usize, of: &[usize]) {
        let count = |load: &Self, at: usize| {
            load.acknowledged.iter().filter(|text| text.starts_with(&format!("{at}-"))).count()
        };
        let wanted: Vec<_> = of.iter().map(|&at| (at, count(self, at) + more)).collect();
        let deadline = Instant::now() + VERY_LATE;
        while wanted.iter().any(|&(at, wanted)| count(self, at) < wanted) {
            assert!(Instant::now() < deadline, "{wanted:?}: {:?}", wanted.iter().map(|&(at, _)| count(self, at)));
            self.turn(false);
        }
    }

    fn turn(&mut self, is_silent: bool) {
        for talker in &mut self.talkers {
            talker.turn(is_silent, &mut self.acknowledged);
        }
        for listener in &mut self.listeners {
            listener.turn(Duration::from_millis(1));
        }
    }

    /// All that was said is acknowledged in the end.
    #[track_caller]
    fn finish(&mut self) {
        let deadline = Instant::now() + VERY_LATE;
        while self.talkers.iter().any(|talker| !talker.sent.is_empty() || !talker.again.is_empty()) {
            assert!(Instant::now() < deadline, "not all of it is acknowledged");
            self.turn(true);
        }
    }

    /// All that was acknowledged is received by every subscriber.
    #[track_caller]
    fn expect_all_received(&mut self) {
        let deadline = Instant::now() + VERY_LATE;
        for listener in &mut self.listeners {
            while !self.acknowledged.is_subset(&listener.received) {
                let missing: Vec<_> = self.acknowledged.difference(&listener.received).take(5).collect();
                assert!(Instant::now() < deadline, "the subscriber at {} misses {missing:?}", listener.at);
                listener.turn(TURN);
            }
        }
    }
}

#[test]
fn what_is_acknowledged_is_received_whatever_dies_in_a_cluster() {
    let site = Site::new();
    let (mut servers, mut fleet) = fleet(&site, 3, 3, "replicas = 3");
    let listener = |at| Listener { at, client: None, received: BTreeSet::new() };
    let mut listeners: Vec<_> = (0..3).map(listener).collect();
    for listener in &mut listeners {
        listener.come(&fleet[listener.at]);
    }
    let talkers = fleet.iter().enumerate().map(|(at, member)| Talker::come(at, member)).collect();
    let mut load = Load { talkers, listeners, acknowledged: BTreeSet::new() };
    load.run(20, &[0, 1, 2]);

    // One server is killed: two of three go on.
    servers.stop(1, Signal::KILL);
    load.run(20, &[0, 1, 2]);
    servers.start(1, &[]);
    load.run(10, &[0, 1, 2]);

    // All servers are, while everybody speaks.
    (0..3).for_each(|server| servers.stop(server, Signal::KILL));
    load.turn(false);
    servers.start_all();
    load.run(20, &[0, 1, 2]);

    // A gateway is killed; the others go on, and it comes back.
    let Member { site: place, gateway } = fleet.remove(2);
    gateway.signal(Signal::KILL);
    drop((gateway, load.listeners[2].client.take()));
    load.talkers[2].lose();
    load.run(20, &[0, 1]);
    let member = Member { gateway: Gateway::start(place.directory()), site: place };
    wait_until("it is one of the fleet again", VERY_LATE, || member.fleet()["state"] == "connected");
    load.listeners[2].come(&member);
    load.talkers[2].client = Some(Client::come(&member, "talker-2", false));
    fleet.push(member);
    load.run(10, &[0, 1, 2]);

    // A gateway is frozen beyond its lease, and woken: its lease was over, and it says so.
    fleet[1].gateway.stop();
    let frozen = Instant::now();
    let mut moving = vec![0, 2];
    while frozen.elapsed() < Duration::from_secs(8) {
        load.run(1, &moving);
        thread::sleep(TURN);
    }
    fleet[1].gateway.resume();
    moving.push(1);
    load.run(20, &moving);
    wait_until("it is one of the fleet again", LATE, || fleet[1].fleet()["state"] == "connected");
    load.finish();
    load.expect_all_received();
    // One owner for each device, as presence tells it.
    for at in 0..3 {
        for member in &fleet {
            let owner = member.gateway.get_json(&format!("/v1/devices/listener-{at}"));
            assert_eq!(owner["node"], format!("gate-{at}"), "{owner}");
        }
    }
}
