//! Streams: MQTT devices publish for each other, each message at its time and counted one by one.

use pulsegate::time::Tick;

use super::super::Streaming;
use super::super::device::Trouble;
use super::super::protocol::Envelope;
use super::{Count, Crew, Duty, Micros, record, start_of};

impl Crew {
    /// Sends the device's next message of a stream.
    pub(super) fn stream(&mut self, index: u32) -> Result<(), Trouble> {
        let intended = start_of(Tick(self.devices[index as usize].next_duty));
        self.say_streamed(index, intended);
        self.devices[index as usize].seal(&mut self.out)?;
        self.write(index)
    }

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
    pub(super) fn say_streamed(&mut self, index: u32, intended: Micros) {
        let number = self.number_of(index);
        let Duty::Stream(streaming) = &self.duty else { return };
        let sequence = self.said.entry(index).or_insert(0);
        let envelope = Envelope { intended, publisher: number, sequence: *sequence };
        *sequence += 1;
        let Streaming { topic, acknowledge, .. } = streaming;
        self.setup.protocol.message(topic, &envelope, *acknowledge, &mut self.out.plain);
        self.counts.add(Count::StreamSent, 1);
    }

    /// A message for this device: in its publisher's order, or there is one missing, or it came twice.
    pub(super) fn hear_streamed(&mut self, index: u32, envelope: &Envelope) {
        self.counts.add(Count::StreamReceived, 1);
        let expected = self.heard.entry((index, envelope.publisher)).or_insert(0);
        if envelope.sequence < *expected {
            self.counts.add(Count::StreamDuplicated, 1);
        } else {
            *expected = envelope.sequence + 1;
        }
        if envelope.intended <= self.now {
            record(&mut self.findings.messages, self.now - envelope.intended);
        }
    }
}
