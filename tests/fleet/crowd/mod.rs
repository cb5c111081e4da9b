//! Thousands of devices at three gateways and three servers, who speak while servers and gateways are killed, frozen and restarted: what was
//! acknowledged to them arrives, each has one owner at every instant, and each of their connections has its two events, in order.
//!
//! `FLEET_DEVICES` says how many. What was counted, and how long each part took, is printed.

mod driver;
mod following;
mod journal;
mod judge;
mod line;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::servers::Servers;
use crate::support::fleet::raise_descriptor_limit;
use crate::support::{Gateway, Site};
use crate::{LATE, Member, configure};
use driver::{Driver, Shared};
use following::{Stored, Watch, all_of};
use journal::Journal;
use judge::{Presence, Verdict, judge_messages, judge_uplink};

const DEVICES: usize = 2_000;
const DEVICES_VARIABLE: &str = "FLEET_DEVICES";
/// What all of them say together, as long as each says something now and then.
const MESSAGES_PER_SECOND: usize = 300;
const GATES: usize = 3;
/// The gateway that is killed, and the one that is frozen.
const KILLED: usize = 2;
const FROZEN: usize = 0;
/// Three gateways and three servers share a small machine with all devices: a lease must not end for want of a processor.
const FURTHER: &str = "replicas = 3\nlease = \"10s\"\ntimeout = \"2s\"";

/// A fleet, its servers, and who comes to it.
struct Scene<'a> {
    servers: Servers<'a>,
    fleet: Vec<Option<Member>>,
    lives: [usize; GATES],
    devices: usize,
    shared: Arc<Shared>,
    driver: Option<JoinHandle<Journal>>,
    began: Instant,
}

fn start(site: Site) -> Member {
    let gateway = Gateway::start_quiet(site.directory());
    Member { site, gateway }
}

fn address(member: &Member) -> SocketAddr {
    member.gateway.address("mqtt")
}

impl<'a> Scene<'a> {
    fn begin(site: &'a Site, devices: usize) -> Self {
        raise_descriptor_limit();
        let mut servers = Servers::new(site, 3);
        servers.start_all();
        let urls = servers.urls("nats");
        let fleet: Vec<_> = (0..GATES)
            .map(|gate| {
                let site = Site::new();
                configure(&site, &format!("gate-{gate}"), &urls, FURTHER);
                start(site)
            })
            .collect();
        fleet.iter().for_each(Member::wait_until_joined);
        let shared = Arc::new(Shared::default());
        *shared.gates.lock().unwrap() = fleet.iter().map(|member| (Some(address(member)), 0)).collect();
        let tls = fleet.iter().map(|member| member.site.tls_with(None, |options| options.alpn = &[])).collect();
        let every = Duration::from_secs_f64((devices as f64 / MESSAGES_PER_SECOND as f64).max(1.0));
        let driver = Some(Driver::start(devices, every, tls, &shared));
        let fleet = fleet.into_iter().map(Some).collect();
        Self { servers, fleet, lives: [0; GATES], devices, shared, driver, began: Instant::now() }
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.fleet.iter().flatten()
    }

    /// How long anything may take: handshakes of all devices on a small machine that does much else.
    fn late(&self) -> Duration {
        LATE + Duration::from_millis(60) * self.devices as u32
    }

    fn is_in_time(&self, deadline: Instant) -> bool {
        assert!(!self.driver.as_ref().unwrap().is_finished(), "the driver has failed");
        std::thread::sleep(Duration::from_millis(20));
        Instant::now() < deadline
    }

    #[track_caller]
    fn wait(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let (since, deadline) = (Instant::now(), Instant::now() + self.late());
        while !is_so() {
            assert!(self.is_in_time(deadline), "not within {:?}: {what}; {}", self.late(), self.state());
        }
        eprintln!("{:>7.1?} (took {:.1?}) {what}; {}", self.began.elapsed(), since.elapsed(), self.state());
    }

    fn state(&self) -> String {
        let count = |counter: &std::sync::atomic::AtomicUsize| counter.load(Ordering::Relaxed);
        let shared = &self.shared;
        format!(
            "up {:?}, acknowledged {}, under way {}, abandoned {}",
            shared.up.each_ref().map(count),
            count(&shared.acknowledged),
            count(&shared.under_way),
            count(&shared.abandoned)
        )
    }

    fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Until as many messages are acknowledged as are under way now, and as a third of the devices have one each.
    #[track_caller]
    fn go_on(&self, what: &str) {
        let under_way = self.shared.under_way.load(Ordering::Relaxed);
        let wanted = self.acknowledged() + under_way + (self.devices / 3).max(100);
        self.wait(what, || self.acknowledged() >= wanted);
    }

    /// Until everybody is somewhere, and the row of each says where.
    #[track_caller]
    fn settle(&self, what: &str) {
        self.wait(what, || {
            let fleet: Vec<_> = self.members().map(Member::fleet).collect();
            let sum: u64 = fleet.iter().map(|fleet| fleet["devices"]["claimed"].as_u64().unwrap()).sum();
            // One that waits for CONNACK has its row already.
            self.shared.up() == self.devices
                && sum == self.devices as u64
                && fleet.iter().all(|fleet| fleet["state"] == "connected" && fleet["devices"]["waiting"] == 0)
                && self.servers.try_rows("pulsegate_devices") == Some(self.devices as u64)
        });
    }

    // --- What is done to them ---------------------------------------------------------------------------------------

    fn kill_one_server(&mut self) {
        self.servers.stop(1, Signal::KILL);
        self.go_on("one server is dead");
        self.servers.start(1, &[]);
        self.go_on("it is back");
    }

    fn kill_all_servers(&mut self) {
        (0..3).for_each(|server| self.servers.stop(server, Signal::KILL));
        self.wait("each gateway is cut off", || self.members().all(|member| member.fleet()["state"] == "away"));
        let up = self.shared.up();
        self.servers.start_all();
        assert_eq!(up, self.devices, "whoever was there stayed");
        self.go_on("all servers were dead");
    }

    fn kill_a_gateway(&mut self) {
        let Member { site, gateway } = self.fleet[KILLED].take().unwrap();
        self.shared.offer(KILLED, None, 0);
        gateway.signal(Signal::KILL);
        drop(gateway);
        self.settle("a gateway is dead, and its devices are elsewhere");
        self.go_on("the others go on");
        let member = start(site);
        member.wait_until_joined();
        self.lives[KILLED] += 1;
        self.shared.offer(KILLED, Some(address(&member)), self.lives[KILLED]);
        self.fleet[KILLED] = Some(member);
        self.go_on("it is back");
    }

    fn freeze_a_gateway(&mut self) {
        let frozen = self.fleet[FROZEN].as_ref().unwrap();
        self.shared.offer(FROZEN, None, 0);
        frozen.gateway.stop();
        self.wait("its devices are elsewhere", || self.shared.up() == self.devices && self.up_at(FROZEN) == 0);
        self.wait("its lease has ended", || self.servers.try_rows("pulsegate_gateways") == Some(2));
        assert!(self.shared.abandoned.load(Ordering::Relaxed) > 0, "what they had there stands");
        frozen.gateway.resume();
        frozen.wait_until_joined();
        self.wait("it has disowned what it lost", || self.shared.abandoned.load(Ordering::Relaxed) == 0);
        self.shared.offer(FROZEN, Some(address(frozen)), self.lives[FROZEN]);
        self.settle("each is at one gateway");
        self.go_on("all three go on");
    }

    fn up_at(&self, gate: usize) -> usize {
        self.shared.up[gate].load(Ordering::Relaxed)
    }

    // --- The end ----------------------------------------------------------------------------------------------------

    /// Until all that was said is acknowledged, and has come. `false`: not in time, for a reason that is to be judged.
    fn falls_silent(&self) -> bool {
        // It is counted when nobody speaks any more.
        self.shared.missing.store(usize::MAX, Ordering::Relaxed);
        self.shared.speaks.store(false, Ordering::Relaxed);
        let (since, deadline) = (Instant::now(), Instant::now() + self.late());
        let left = || [&self.shared.under_way, &self.shared.missing].map(|count| count.load(Ordering::Relaxed));
        while left() != [0, 0] && self.is_in_time(deadline) {}
        eprintln!("{:>7.1?} (took {:.1?}) silence; {:?} are left", self.began.elapsed(), since.elapsed(), left());
        left() == [0, 0]
    }

    /// All go in order, and presence has told all of it.
    #[track_caller]
    fn leave(&self) {
        self.shared.leaves.store(true, Ordering::Relaxed);
        self.wait("all have left", || self.shared.connections.load(Ordering::Relaxed) == 0);
        self.wait("no row is left", || self.servers.try_rows("pulsegate_devices") == Some(0));
        self.wait("all is in the stream", || self.members().all(|member| crate::uplink::behind(member) == 0));
    }

    /// What lies in the stream under these subjects.
    fn stored(&self, subjects: &[&str]) -> Vec<Stored> {
        let mut all = None;
        self.wait("the stream is read", || {
            all = all_of(self.servers.ports[0], "pulsegate_uplink", subjects);
            all.is_some()
        });
        all.unwrap()
    }
}

#[test]
fn thousands_of_devices_lose_nothing_and_have_one_owner_whatever_dies() {
    let devices = std::env::var(DEVICES_VARIABLE).map_or(DEVICES, |text| text.parse().expect("a number of devices"));
    let site = Site::new();
    let mut scene = Scene::begin(&site, devices);
    let watch = Watch::begin(&scene.servers.ports);
    scene.settle("all have come");
    scene.shared.speaks.store(true, Ordering::Relaxed);
    scene.go_on("all is well");
    scene.kill_one_server();
    scene.kill_all_servers();
    scene.settle("everybody is there");
    scene.kill_a_gateway();
    scene.freeze_a_gateway();
    let is_whole = scene.falls_silent();
    if is_whole {
        scene.settle("everybody is there");
        scene.leave();
    }
    scene.shared.stops.store(true, Ordering::Relaxed);
    let journal = scene.driver.take().unwrap().join().expect("the driver has failed");
    let (uplink, events) = (scene.stored(&["pulsegate.up.>"]), scene.stored(&["pulsegate.presence.>"]));
    let rows = watch.end();
    let mut verdict = Verdict::default();
    judge_messages(&mut verdict, &journal);
    let doubles = judge_uplink(&mut verdict, &journal, &uplink);
    let presence = Presence::new(&journal, &events, &rows, KILLED);
    if is_whole {
        presence.judge_events(&mut verdict);
    }
    presence.judge_rows(&mut verdict);
    eprintln!(
        "{devices} devices, {} connections, {} events, {} rows; {} messages acknowledged, {} in the stream, {doubles} of them twice; {} came \
         twice to devices; CONNECT refused {:?}, messages refused {:?}",
        journal.connections.len(),
        events.len(),
        rows.len(),
        journal.acknowledged.iter().sum::<u32>(),
        uplink.len(),
        journal.doubles,
        journal.refusals,
        journal.refused,
    );
    verdict.expect_none();
    assert!(is_whole, "not all that was said was acknowledged");
}
