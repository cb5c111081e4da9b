//! What the world outside is told, held against what may be told: presence in order, answers once, messages as promised.

use std::collections::{HashMap, HashSet};

use pulsegate::link::{CloseReason, Outcome, Presence};
use pulsegate::time::Moment;

use crate::peer::{Fate, Peer, Speaks, read_payload};

/// One device as the presence events tell it.
#[derive(Default)]
struct Told {
    generation: u64,
    is_present: bool,
}

/// Something that was to be said to a device.
struct Request {
    device: u32,
    at: Moment,
    is_message: bool,
    outcome: Option<Outcome>,
    was_heard: bool,
}

#[derive(Default)]
pub struct Shadow {
    devices: HashMap<Box<str>, Told>,
    /// The last sequence number of each shard.
    sequences: Vec<u64>,
    requests: Vec<Request>,
    pub connected: u64,
    pub ended: HashMap<CloseReason, u64>,
    pub sure_held: u64,
    pub loose_held: u64,
    /// Devices that were disconnected by command, whenever that was.
    pub disconnected: HashSet<u32>,
}

impl Shadow {
    pub fn new(workers: u16) -> Self {
        Self { sequences: vec![0; workers.into()], ..Self::default() }
    }

    // --- Presence ---------------------------------------------------------------------------------------------------

    fn note_sequence(&mut self, worker: u16, presence: &Presence) {
        let last = &mut self.sequences[usize::from(worker)];
        *last += 1;
        assert_eq!(presence.sequence, *last, "worker {worker}: a presence event is missing, or told twice");
        assert!(presence.last_heard <= presence.at, "{presence:?} was heard in the future");
    }

    pub fn connected(&mut self, worker: u16, presence: &Presence) {
        self.note_sequence(worker, presence);
        let told = self.devices.entry(presence.device.clone()).or_default();
        assert!(!told.is_present, "{} is connected twice", presence.device);
        assert!(presence.generation > told.generation, "the generations of {} do not grow", presence.device);
        (told.generation, told.is_present) = (presence.generation, true);
        self.connected += 1;
    }

    pub fn disconnected(&mut self, worker: u16, presence: &Presence, reason: CloseReason) {
        self.note_sequence(worker, presence);
        let told = self.devices.entry(presence.device.clone()).or_default();
        assert!(told.is_present, "{} is disconnected and was not there", presence.device);
        assert_eq!(told.generation, presence.generation, "{}: another connection has ended", presence.device);
        told.is_present = false;
        *self.ended.entry(reason).or_default() += 1;
    }

    pub fn present(&self) -> usize {
        self.devices.values().filter(|told| told.is_present).count()
    }

    pub fn is_present(&self, device: &str) -> bool {
        self.devices.get(device).is_some_and(|told| told.is_present)
    }

    // --- Messages up ------------------------------------------------------------------------------------------------

    /// The backbone holds a message. Those that are promised come all, in order, once.
    pub fn held(&mut self, peers: &mut [Peer], device: &str, payload: &[u8], acknowledge: Option<u32>) {
        let (peer, number, is_sure) = read_payload(payload);
        let peer = &mut peers[peer as usize];
        assert_eq!(device, device_id(peer.device), "a message under a name that is not its sender's");
        if is_sure {
            assert_eq!(number, peer.sure_held, "a promised message is missing, or came twice");
            peer.sure_held += 1;
            assert!(acknowledge.is_none_or(|id| id == number + 1));
            self.sure_held += 1;
        } else {
            assert!((peer.loose_next..peer.loose_sent).contains(&number), "a message came twice or out of order");
            peer.loose_next = number + 1;
            self.loose_held += 1;
        }
    }

    // --- Messages down ----------------------------------------------------------------------------------------------

    /// A number for something that is to be said to a device, or done to it.
    pub fn ask(&mut self, device: u32, is_message: bool, at: Moment) -> u64 {
        self.requests.push(Request { device, at, is_message, outcome: None, was_heard: false });
        self.requests.len() as u64 - 1
    }

    pub fn answered(&mut self, request: u64, outcome: Outcome) {
        let request = &mut self.requests[request as usize];
        assert!(request.outcome.is_none(), "a request was answered twice: {outcome:?} after {:?}", request.outcome);
        assert!(outcome != Outcome::Acknowledged || request.was_heard, "acknowledged by nobody");
        assert!(outcome != Outcome::Offline || !request.was_heard, "it was heard by somebody who is not there");
        request.outcome = Some(outcome);
    }

    /// A device has heard a message, and hears none twice.
    pub fn heard(&mut self, device: u32, request: u64) {
        let request = &mut self.requests[request as usize];
        assert!(request.is_message && request.device == device, "a message for another device");
        assert!(!std::mem::replace(&mut request.was_heard, true), "a device has heard a message twice");
    }

    pub fn describe(&mut self, request: u64, is_there: bool) {
        self.answered(request, if is_there { Outcome::Delivered } else { Outcome::Offline });
    }

    // --- The end ----------------------------------------------------------------------------------------------------

    /// When all has come to rest: nothing is owed to anybody.
    pub fn audit(&self, peers: &[Peer]) {
        let mut healthy: HashMap<u32, &Peer> = HashMap::new();
        for (number, peer) in peers.iter().enumerate() {
            if !peer.is_healthy() {
                continue;
            }
            assert!(healthy.insert(peer.device, peer).is_none(), "two live connections of device {}", peer.device);
            assert!(self.is_present(&device_id(peer.device)), "peer {number} is there and not present");
            assert_eq!(peer.sure_sent, peer.sure_held, "peer {number}: promised messages have not arrived");
            if peer.speaks == Speaks::Native {
                assert_eq!(peer.sure_sent, peer.sure_acknowledged, "peer {number}: an ACK is missing");
            }
        }
        assert_eq!(self.present(), healthy.len(), "somebody is present who is not there");
        for (number, request) in self.requests.iter().enumerate() {
            let outcome = request.outcome.unwrap_or_else(|| panic!("request {number} was never answered"));
            // The raw protocol has no frames to tell messages apart.
            let was_there_all_along = healthy.get(&request.device).is_some_and(|peer| {
                peer.speaks == Speaks::Native && peer.welcomed.is_some_and(|since| since < request.at)
            });
            if request.is_message && outcome == Outcome::Delivered && was_there_all_along {
                assert!(request.was_heard, "message {number} was delivered and never heard");
            }
        }
        assert!(peers.iter().all(|peer| peer.fate != Fate::Live || peer.is_healthy()), "somebody was left waiting");
    }
}

/// The id of a device by its number.
pub fn device_id(device: u32) -> String {
    format!("device-{device}")
}
