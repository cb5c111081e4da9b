//! Messages: said at their times, heard, and counted one by one.

use super::super::protocol::Envelope;
use super::{Count, Crew, Micros, record};

/// Who says what, and how often.
pub(super) struct Publishing {
    pub(super) devices: std::ops::Range<u32>,
    pub(super) from: Micros,
    pub(super) every: Micros,
    pub(super) topic: std::sync::Arc<str>,
    pub(super) acknowledge: bool,
}

impl Crew {
    /// When this device is first due under a rhythm that is spread over `devices`, and every `every` from then on: the
    /// first time after now.
    pub(super) fn next_due(&self, number: u32, devices: &std::ops::Range<u32>, from: Micros, every: Micros) -> Micros {
        let (place, count) = (number - devices.start, devices.len().max(1));
        let phase = u128::from(every) * u128::from(place) / count as u128;
        let first = from + phase as Micros;
        let rounds = (self.now + crate::clock::TICK_MICROS).saturating_sub(first).div_ceil(every);
        first + rounds * every
    }

    /// Appends the device's next message, which is due at `intended`.
    pub(super) fn say_message(&mut self, index: u32, intended: Micros) {
        let number = self.number_of(index);
        let Some(publishing) = &self.publishing else { return };
        let sequence = self.said.entry(index).or_insert(0);
        let envelope = Envelope { intended, publisher: number, sequence: *sequence };
        *sequence += 1;
        let (topic, acknowledge) = (&publishing.topic, publishing.acknowledge);
        self.setup.protocol.message(topic, &envelope, acknowledge, &mut self.out.plain);
        self.counts.add(Count::MessagesSent, 1);
    }

    /// A message for this device: in its publisher's order, or there is one missing, or it came twice.
    pub(super) fn hear_message(&mut self, index: u32, envelope: &Envelope) {
        self.counts.add(Count::MessagesReceived, 1);
        let expected = self.heard.entry((index, envelope.publisher)).or_insert(0);
        if envelope.sequence < *expected {
            self.counts.add(Count::MessagesDuplicated, 1);
        } else {
            *expected = envelope.sequence + 1;
        }
        if envelope.intended <= self.now {
            record(&mut self.findings.messages, self.now - envelope.intended);
        }
    }
}
