//! The raw protocol within an open connection: opaque bytes, and heartbeats that are known by their record.

use super::transport::{OpenConnection, Progress};
use super::{Input, Phase, Step};
use crate::codec::raw::{self, Payload};
use crate::config;
use crate::metrics::Metric;

/// Raw bytes go up in pieces of at most this size, so that one message never holds the uplink up.
const RAW_CHUNK_BYTES: usize = 4_096;

impl OpenConnection<'_, '_> {
    /// The plaintext that is there is one record's: a record is taken as a whole before the next is opened.
    pub(super) fn handle_raw(&mut self, input: &mut Input, raw: &config::Raw) -> Progress {
        if *self.phase == Phase::Unnamed {
            return Progress::Do(Step::Named);
        }
        if self.cx.is_uplink_full() {
            // Raw bytes cannot be dropped without breaking the protocol above: they wait in the socket.
            return Progress::Do(Step::Paused);
        }
        let length = input.plain().len();
        if length > 0
            && self.cx.is_uplink_crowded()
            && matches!(raw::classify(&raw.heartbeat, input.plain()), Payload::Data(_))
        {
            return Progress::Do(Step::Yielding);
        }
        if length > 0 {
            self.trace_raw(input.plain(), raw);
            self.handle_raw_bytes(input.plain(), raw);
            input.consume_plain(length);
        }
        Progress::NeedsMore
    }

    fn handle_raw_bytes(&mut self, bytes: &[u8], raw: &config::Raw) {
        match raw::classify(&raw.heartbeat, bytes) {
            Payload::Heartbeats(count) => {
                self.cx.counters.add(Metric::HeartbeatsReceived, count as u64);
                // One for all of them: otherwise a record of short heartbeats would make megabytes of long replies.
                self.cx.plain.extend_from_slice(&raw.reply);
            }
            Payload::Data(bytes) => {
                for chunk in raw::chunks(bytes, RAW_CHUNK_BYTES) {
                    self.send_up("", chunk, None);
                }
            }
        }
    }
}
