//! The control plane as its users see it: HTTP requests on one side, workers that are played by threads on the other.

mod answers;
mod commands;
mod devices;
mod events;
mod history;
mod hub;
mod metrics;
mod openapi;
mod page;
mod probes;
mod trace;
mod uplink;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::{Value, json};

use super::exposition::Format;
use super::{
    CONNECTIONS_MAX, ChainFacts, Clock, Control, ControlParts, HEAD_MAX, Inventory, OpenStore, READERS_MAX,
    REQUESTS_MAX, SENDS_MAX,
};
use crate::backbone::{Held, What};
use crate::config::{
    self, Admin, AdminToken, Authenticator, Config, Drain, Heartbeat, Identity, IdentityFrom, Limits, Listener,
    Protocol, Raw, Role, Secret, Tls,
};
use crate::link::{
    AuthAnswer, Batch, CloseReason, ConnectionFacts, ConnectionId, Credentials, Description, Doorbell, EventSender,
    Home, ListenerId, Mailbox, Message, NotAdmitted, Outcome, Presence, Publication, Receipt, Refusal, SessionFacts,
    WorkerCommand, WorkerEvent, WorkerId, event_channel,
};
use crate::metrics::{Counters, Kind, Metric, ProcessMetric, Published, ReasonMetric, Timing};
use crate::time::Moment;

const DEADLINE: Duration = Duration::from_secs(20);

/// A mailbox of `capacity` commands, and its inbox.
pub(super) fn mailbox(capacity: usize) -> (Mailbox, Receiver<WorkerCommand>) {
    let (mailbox, inbox) = crate::link::mailbox(capacity, Arc::new(Doorbell::new().unwrap()));
    (mailbox, inbox.commands)
}

/// A control plane before played workers.
struct Stage {
    control: Control,
    uplink: EventSender,
    published: Vec<Arc<Published>>,
    home: Home,
    /// The inboxes of workers that nobody plays.
    silent: Vec<Receiver<WorkerCommand>>,
    /// What the played workers were told to do to devices, in words.
    told: Receiver<String>,
    agent: ureq::Agent,
}

struct Plan {
    workers: u16,
    /// For how long the gateway seems to run.
    uptime: Duration,
    /// How much the inbox of the worker that does not answer takes.
    inbox: usize,
    /// The worker that does not answer.
    silent: Option<u16>,
    devices: Vec<String>,
    admin_token: Option<&'static str>,
    /// Further tokens.
    tokens: Vec<AdminToken>,
    /// `admin.hosts`.
    hosts: Vec<String>,
    token_file: Option<PathBuf>,
    backbone: config::Backbone,
    /// Where there is a store, if there is one.
    store: Option<PathBuf>,
    /// Of which fleet it is, if it is.
    fleet: Option<config::Fleet>,
    /// Which life of the gateway it is.
    epoch: u64,
    inventory: Inventory,
}

impl Default for Plan {
    fn default() -> Self {
        let backbone = config::Backbone::default();
        Self {
            workers: 3,
            uptime: Duration::ZERO,
            inbox: 64,
            silent: None,
            devices: Vec::new(),
            admin_token: None,
            tokens: Vec::new(),
            hosts: vec!["gate.example".to_owned()],
            token_file: None,
            backbone,
            store: None,
            fleet: None,
            epoch: 42,
            inventory: Inventory::default(),
        }
    }
}

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        assert_eq!(self.headers["content-type"], "application/json", "{}", self.text);
        serde_json::from_str(&self.text).unwrap()
    }

    /// Status, code and message of an error.
    fn error(&self) -> (u16, String, String) {
        let body = self.json();
        let text = |key: &str| body["error"][key].as_str().unwrap().to_owned();
        assert_eq!(body.as_object().unwrap().len(), 1);
        (self.status, text("code"), text("message"))
    }
}

impl Stage {
    fn new(plan: Plan) -> Stage {
        let home = Home::new([7; 16], plan.workers);
        let (uplink, from_workers) = event_channel(1_024);
        let mut stage = (Vec::new(), Vec::new());
        let (tell, told) = unbounded();
        for worker in (0..plan.workers).map(WorkerId) {
            let (mailbox, inbox) = mailbox(if plan.silent == Some(worker.0) { plan.inbox } else { 256 });
            stage.0.push(mailbox);
            if plan.silent == Some(worker.0) {
                stage.1.push(inbox);
            } else {
                let devices = plan.devices.iter().filter(|device| home.of(device) == worker);
                let devices = devices.map(|device| (device.clone(), describe(device, worker))).collect();
                let (uplink, tell) = (uplink.clone(), tell.clone());
                thread::spawn(move || play_worker(worker, &devices, &inbox, &uplink, &tell));
            }
        }
        let published: Vec<_> =
            (0..plan.workers).map(|_| Arc::new(Published::new(CloseReason::COUNT, Refusal::COUNT))).collect();
        let mut config = config(plan.admin_token, plan.token_file, plan.backbone);
        match plan.store {
            Some(directory) => config.data_dir = directory,
            None => config.store.durability = config::Durability::Memory,
        }
        config.admin.hosts = plan.hosts;
        config.admin.tokens.extend(plan.tokens);
        let config = Arc::new(config);
        let clock = Arc::new(Clock::with_wall(Instant::now().checked_sub(plan.uptime).unwrap(), |moment| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + moment.since(Moment::default())
        }));
        let store = OpenStore::open(&config, Arc::clone(&clock)).unwrap();
        let control = Control::start(ControlParts {
            listeners: config.listeners.iter().map(|listener| listener.listen).collect(),
            inventory: plan.inventory,
            config,
            home,
            exchange: Arc::new(crate::link::Exchange::new(home.workers())),
            mailboxes: stage.0,
            uplink: from_workers,
            published: published.clone(),
            clock,
            epoch: plan.epoch,
            admin: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
            api_tls: None,
            log_lines_lost: Arc::default(),
            store,
            sinks: Vec::new(),
            fleet: plan.fleet.map(|fleet| (crate::fleet::Settings::prove(&fleet).unwrap(), 1)),
        })
        .unwrap();
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(DEADLINE))
            .build()
            .new_agent();
        Stage { control, uplink, published, home, silent: stage.1, told, agent }
    }

    fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[])
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(method, path, headers, "")
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], &body.to_string())
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        request(&self.agent, self.control.admin_addr(), method, path, headers, body)
    }

    /// What the workers were told since the last time.
    fn told(&self) -> Vec<String> {
        self.told.try_iter().collect()
    }

    fn say(&self, worker: u16, events: Vec<WorkerEvent>) {
        self.uplink.events.send_timeout(Batch::new(WorkerId(worker), events), DEADLINE).unwrap();
    }

    fn events(&self) -> Vec<Held> {
        self.control.state.backbone.read(0, |_| true).events
    }

    fn publish(&self, worker: usize, change: impl FnOnce(&mut Counters)) {
        let mut counters = Counters::new(CloseReason::COUNT, Refusal::COUNT);
        change(&mut counters);
        self.published[worker].publish(&counters);
    }
}

/// One request. Every answer is held against the description of the API.
fn request(
    agent: &ureq::Agent,
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{to}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut response = agent.run(request.body(body.to_owned()).unwrap()).unwrap();
    let headers = response.headers().iter();
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let text = response.body_mut().read_to_string().unwrap();
    let answer = Answer { status: response.status().as_u16(), headers, text };
    openapi::check_answer(method, path, &answer);
    answer
}

/// Answers questions as a shard would.
fn play_worker(
    worker: WorkerId,
    devices: &BTreeMap<String, Description>,
    inbox: &Receiver<WorkerCommand>,
    uplink: &EventSender,
    tell: &Sender<String>,
) {
    let say = |text: String| drop(tell.send(text));
    for command in inbox {
        let answer = match command {
            WorkerCommand::Send { request, device, downlink, acknowledge } => {
                let Some(outcome) = outcome(devices.contains_key(&*device), &device, acknowledge) else { continue };
                if matches!(outcome, Outcome::Delivered | Outcome::Acknowledged) {
                    say(format!("{device} {} {} {acknowledge}", downlink.topic, shown(&downlink.payload)));
                }
                WorkerEvent::Sent { request, outcome }
            }
            WorkerCommand::Publish { request, publication } => {
                let Publication { topic, payload, qos, retain, expires, .. } = *publication;
                say(format!("publish {topic} {} {} {retain} {}", shown(&payload), qos as u8, expires.is_some()));
                WorkerEvent::Sent { request, outcome: Outcome::Delivered }
            }
            WorkerCommand::Disconnect { request, device } => {
                let is_here = devices.contains_key(&*device);
                if is_here {
                    say(format!("{device} disconnect"));
                }
                let outcome = if is_here { Outcome::Delivered } else { Outcome::Offline };
                WorkerEvent::Sent { request, outcome }
            }
            WorkerCommand::Broadcast { broadcast, prefix, downlink, per_second } => {
                say(format!("broadcast {prefix} {} {} {per_second}/s", downlink.topic, shown(&downlink.payload)));
                let is_slow = prefix.starts_with("slow");
                let matching = devices.keys().filter(|device| device.starts_with(&*prefix)).count() as u64;
                let sent = if is_slow { 1 } else { matching };
                WorkerEvent::Broadcast { broadcast, sent, refused: 0, is_over: !is_slow }
            }
            WorkerCommand::CancelBroadcast { broadcast } => {
                WorkerEvent::Broadcast { broadcast, sent: 1, refused: 0, is_over: true }
            }
            WorkerCommand::Describe { request, device } => {
                WorkerEvent::Described { request, description: devices.get(&*device).cloned().map(Box::new) }
            }
            WorkerCommand::List { request, filter } => {
                let matching = devices.values().filter(|device| filter.matches(&device.device));
                WorkerEvent::Listed { request, devices: matching.take(filter.limit).cloned().collect() }
            }
            WorkerCommand::Trace(traces) => {
                traces.iter().for_each(|trace| trace::tell_everything(worker, trace));
                continue;
            }
            other => panic!("{other:?} is for other tests"),
        };
        if uplink.events.send(Batch::new(worker, vec![answer])).is_err() {
            return;
        }
    }
}

/// What becomes of a message, by the name of its device. `None`: nothing is ever heard of it.
fn outcome(is_here: bool, device: &str, acknowledge: bool) -> Option<Outcome> {
    Some(match (is_here, acknowledge) {
        (false, _) => Outcome::Offline,
        (true, true) if device.starts_with("raw") => Outcome::Refused("its protocol has no acknowledgements"),
        (true, true) if device.starts_with("gone") => Outcome::Unacknowledged,
        (true, true) if device.starts_with("deaf") => return None,
        (true, true) => Outcome::Acknowledged,
        (true, false) => Outcome::Delivered,
    })
}

/// Bytes in so few words that a test can wait for them.
fn shown(payload: &[u8]) -> String {
    if payload.len() > 100 { format!("{} bytes", payload.len()) } else { format!("b\"{}\"", payload.escape_ascii()) }
}

fn describe(device: &str, worker: WorkerId) -> Description {
    Description {
        device: device.into(),
        connection: connection(5),
        worker,
        state: "heard",
        listener: ListenerId(0),
        peer: Some("192.0.2.7:40000".parse().unwrap()),
        tls_version: "TLSv1.3",
        tls_suite: "TLS13_AES_128_GCM_SHA256",
        identity: "hello",
        connected_at: Moment::from_micros(1_500_000),
        last_heard: Moment::from_micros(61_250_000),
        round_trip: Some(Duration::from_micros(12_345)),
        generation: 17,
        session: device.starts_with("mqtt").then(|| {
            Box::new(SessionFacts {
                version: "5.0",
                keep_alive_s: 60,
                expiry_s: u32::MAX,
                subscriptions: vec![("devices/+/set".into(), 1)],
                subscription_count: 1,
                inflight: 1,
                queued: 2,
                queued_bytes: 30,
            })
        }),
    }
}

fn connection(index: u32) -> ConnectionId {
    ConnectionId { slot: crate::link::ConnectionSlot(index), generation: 9 }
}

fn admin_token(name: &str, role: Role, secret: &str) -> AdminToken {
    AdminToken { name: name.to_owned(), role, secret: Secret::new(secret.to_owned()) }
}

fn config(token: Option<&str>, token_file: Option<PathBuf>, backbone: config::Backbone) -> Config {
    let listener = |name: &str, port, protocol, token_file: Option<PathBuf>| Listener {
        name: name.into(),
        listen: (Ipv4Addr::LOCALHOST, port).into(),
        shares: None,
        alpn: None,
        protocol,
        transport: config::Transport::Tls,
        proxy_protocol: Vec::new(),
        tls: Tls::default(),
        heartbeat: Heartbeat {
            interval: Duration::from_mins(1),
            timeout: Duration::from_secs(10),
            retries: 2,
            ..Heartbeat::default()
        },
        identity: Identity {
            from: IdentityFrom::Hello,
            authenticators: token_file
                .map(|file| Authenticator::secrets(file, "identity.token_file"))
                .into_iter()
                .collect(),
        },
        rates: config::Rates::default(),
    };
    let tokens = token.map(|token| admin_token("admin", Role::Admin, token)).into_iter().collect();
    Config {
        node: "edge-1".into(),
        data_dir: "pulsegate-data".into(),
        workers: 3,
        deny_file: None,
        admin: Admin {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            tokens,
            token_files: Vec::new(),
            hosts: Vec::new(),
            tls: None,
        },
        limits: Limits {
            connections: 1_000,
            handshakes: 10,
            handshake_time: Duration::from_secs(10),
            hello_time: Duration::from_mins(1),
            read_bytes: 16_384,
            frame_bytes: 65_535,
            outbox_bytes: 65_536,
            inbox_length: 64,
            uplink_length: 64,
            shed_lateness: Duration::from_millis(250),
            linger_time: Duration::from_secs(1),
            ..Limits::default()
        },
        admission: config::Admission::for_connections(1_000),
        drain: Drain::default(),
        backbone,
        fleet: None,
        store: config::Store::default(),
        // The played workers live in 2023.
        uplink: config::Uplink { retention: Duration::from_hours(10 * 365 * 24), ..config::Uplink::default() },
        sinks: Vec::new(),
        listeners: vec![
            listener("devices", 7443, Protocol::Native, token_file),
            listener("meters", 7444, Protocol::Raw(Raw::default()), None),
        ],
    }
}

fn presence(device: &str, sequence: u64) -> Presence {
    Presence {
        device: device.into(),
        listener: ListenerId(0),
        generation: 1,
        sequence,
        at: Moment::default(),
        last_heard: Moment::default(),
        facts: Box::new(facts("")),
    }
}

fn facts(detail: &'static str) -> ConnectionFacts {
    ConnectionFacts {
        connection: connection(1),
        peer: Some(([192, 0, 2, 7], 40_000).into()),
        identity: "hello",
        tls_version: "TLSv1.3",
        connected_at: Moment::default(),
        detail: detail.into(),
    }
}

fn message(device: &str, index: u32, acknowledge: Option<u32>) -> WorkerEvent {
    let payload = Bytes::from(index.to_be_bytes().to_vec());
    WorkerEvent::Message(Message {
        device: device.into(),
        connection: connection(index),
        topic: "t".into(),
        payload,
        published: None,
        receipt: acknowledge.map(|id| Receipt::Connection(connection(index), id)),
        charge: None,
    })
}

/// Waits until `holds`; fails at the deadline.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
