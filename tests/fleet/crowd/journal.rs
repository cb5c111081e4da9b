//! What the devices know themselves: each connection that they had, what was acknowledged to them, and what they heard.

use std::collections::BTreeMap;
use std::time::Instant;

use super::line::Gone;

/// One connection of a device, from the first attempt on. Those of a device stand in the order in which they began.
pub struct Connection {
    pub device: usize,
    /// The gateway's number, and which of its lives.
    pub gate: usize,
    pub life: usize,
    /// The port that it came from.
    pub port: u16,
    /// CONNACK has come, with a session or without.
    pub welcome: Option<bool>,
    /// Its device went elsewhere when it had not been answered for long: at this instant.
    pub abandoned: Option<Instant>,
    /// The reason that it was told in DISCONNECT.
    pub told: Option<u8>,
    pub end: Option<(Instant, Gone)>,
}

/// A message is the `number`th of its device, from 0. Each device has one under way at a time, so those that are acknowledged are the first.
pub struct Journal {
    pub connections: Vec<Connection>,
    /// For each device: so many of its messages were acknowledged.
    pub acknowledged: Vec<u32>,
    /// For each device and message: how often it came to the device that it is for.
    heard: Vec<Vec<u8>>,
    /// What must not have been, in words.
    pub wrongs: Vec<String>,
    /// CONNECT was answered with these reasons that are no welcome, so often.
    pub refusals: BTreeMap<u8, usize>,
    /// PUBACK said these reasons that are none of success, so often.
    pub refused: BTreeMap<u8, usize>,
    /// Messages that came again.
    pub doubles: usize,
}

pub fn name(device: usize) -> String {
    format!("crowd-{device}")
}

/// Whom a message is for, beside the uplink; `None`: for nobody.
pub fn addressee(device: usize, number: u32, devices: usize) -> Option<usize> {
    (number % 2 == 1).then(|| (device + 1 + number as usize * 7_919) % devices)
}

/// Which message this is: `DEVICE.NUMBER`.
pub fn message_of(payload: &[u8]) -> Option<(usize, u32)> {
    let (device, number) = std::str::from_utf8(payload).ok()?.split_once('.')?;
    Some((device.parse().ok()?, number.parse().ok()?))
}

impl Journal {
    pub fn new(devices: usize) -> Self {
        Self {
            connections: Vec::new(),
            acknowledged: vec![0; devices],
            heard: vec![Vec::new(); devices],
            wrongs: Vec::new(),
            refusals: BTreeMap::new(),
            refused: BTreeMap::new(),
            doubles: 0,
        }
    }

    /// A message came to this device.
    pub fn hear(&mut self, at: usize, topic: &str, payload: &[u8]) {
        let devices = self.heard.len();
        let Some((device, number)) = message_of(payload).filter(|(device, _)| *device < devices) else {
            return self.wrongs.push(format!("{} heard {topic:?} {payload:?}, which nobody said", name(at)));
        };
        if addressee(device, number, devices) != Some(at) {
            return self.wrongs.push(format!("{} heard message {number} of {}", name(at), name(device)));
        }
        let (heard, number) = (&mut self.heard[device], number as usize);
        if heard.len() <= number {
            heard.resize(number + 1, 0);
        }
        self.doubles += usize::from(heard[number] > 0);
        heard[number] = heard[number].saturating_add(1);
    }

    /// Messages that were acknowledged and have not come to whom they are for: device, number, addressee.
    pub fn unheard(&self) -> impl Iterator<Item = (usize, u32, usize)> + '_ {
        let devices = self.heard.len();
        let all = self.acknowledged.iter().enumerate();
        all.flat_map(|(device, count)| (0..*count).map(move |number| (device, number))).filter_map(
            move |(device, number)| {
                let addressee = addressee(device, number, devices)?;
                let has_come = self.heard[device].get(number as usize).is_some_and(|times| *times > 0);
                (!has_come).then_some((device, number, addressee))
            },
        )
    }

    /// The connections of a device, in words.
    pub fn life_of(&self, device: usize) -> String {
        let of_device = self.connections.iter().enumerate().filter(|(_, connection)| connection.device == device);
        let words = of_device.map(|(serial, connection)| {
            let Connection { gate, life, port, welcome, told, end, abandoned, .. } = connection;
            format!(
                "#{serial} at gate-{gate}/{life} from {port}: session {welcome:?}, abandoned {}, told {told:?}, end {:?}",
                abandoned.is_some(),
                end.as_ref().map(|(_, gone)| gone)
            )
        });
        format!("{}: {}", name(device), words.collect::<Vec<_>>().join("; "))
    }
}
