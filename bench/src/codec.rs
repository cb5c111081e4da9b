//! Native frames decoded and encoded, against copying as many bytes.

use std::hint::black_box;

use pulsegate::codec::native::{self, BODY_MAX, Frame, Hello, Message};

use crate::arguments::Arguments;
use crate::clock::{medians, ns_each};
use crate::report::{Column, Table, Unit, ns, ratio};

/// What to run.
pub struct Options {
    /// Frames in one round.
    pub frames: usize,
    pub rounds: u32,
}

impl From<&Arguments> for Options {
    fn from(arguments: &Arguments) -> Self {
        Self { frames: 200_000, rounds: arguments.rounds.max(5) }
    }
}

/// Every frame that a device sends often, and the first one.
pub fn run(options: &Options) -> Vec<Table> {
    let payload = vec![0x5a; 1_024];
    let message = |bytes| Frame::Message(Message { id: 7, topic: "meter/reading", payload: &payload[..bytes] });
    let hello = Frame::Hello(Hello { heartbeat_ms: 60_000, id: "meter-0000000001", token: &payload[..32] });
    let frames = [
        ("PING, empty", Frame::Ping(&[])),
        ("PONG, 8 bytes", Frame::Pong(&payload[..8])),
        ("MESSAGE, 32 bytes", message(32)),
        ("MESSAGE, 1,024 bytes", message(1_024)),
        ("HELLO, 16-byte id, 32-byte token", hello),
    ];
    let rows = frames.iter().map(|(name, frame)| {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let [decode, encode, copy] = medians(options.rounds, || measure(frame, &bytes, options.frames));
        let figures = [decode / copy, encode / copy, decode, encode, copy, bytes.len() as f64];
        ((*name).to_owned(), figures.into_iter().map(Some).collect())
    });
    let table = Table {
        title: "Native frames".to_owned(),
        of: "frame",
        rows: rows.collect(),
        columns: vec![
            ratio("decode"),
            ratio("encode"),
            ns("a decode"),
            ns("an encode"),
            ns("a copy"),
            Column { name: "length", unit: Unit::Bytes },
        ],
        notes: vec!["Ratios: to copying the frame's bytes into a buffer that has room.".to_owned()],
    };
    vec![table]
}

fn measure(frame: &Frame, bytes: &[u8], frames: usize) -> [f64; 3] {
    let decode = ns_each(frames, || {
        for _ in 0..frames {
            let decoded = native::decode(black_box(bytes), BODY_MAX).expect("a frame of our own");
            assert!(black_box(decoded).is_some());
        }
    });
    let mut out = Vec::with_capacity(bytes.len());
    let encode = ns_each(frames, || {
        for _ in 0..frames {
            out.clear();
            black_box(frame).encode(black_box(&mut out));
        }
    });
    assert_eq!(out, bytes);
    let copy = ns_each(frames, || {
        for _ in 0..frames {
            out.clear();
            black_box(&mut out).extend_from_slice(black_box(bytes));
        }
    });
    [decode, encode, copy]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_size_runs() {
        run(&Options { frames: 1_000, rounds: 1 })[0].assert_measured();
    }
}
