//! The data types that packets are made of (1.5; v5 1.5, v3.1.1 1.5): integers, strings, binary data, lengths.

use super::{Error, REMAINING_MAX, topic};

/// What is left to read of a packet. Running out of it is a malformed packet: its length was wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(Error::malformed("the packet ends before its last field does", "MQTT-4.13.1-1"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// All that is left.
    pub(super) fn take_all(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Error> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().expect("taken to measure")))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().expect("taken to measure")))
    }

    /// A variable byte integer (v5 1.5.5): at most four bytes, and in no more of them than it takes [v5 MQTT-1.5.5-1].
    pub(super) fn variable(&mut self) -> Result<usize, Error> {
        let (value, length) =
            remaining_length(self.rest)?.ok_or(Error::malformed("the packet ends within a length", "MQTT-4.13.1-1"))?;
        self.take(length)?;
        Ok(value)
    }

    /// Binary data (v5 1.5.6).
    pub(super) fn binary(&mut self) -> Result<&'a [u8], Error> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    /// A UTF-8 string (1.5.3; v5 1.5.4).
    pub(super) fn string(&mut self) -> Result<&'a str, Error> {
        let text = std::str::from_utf8(self.binary()?)
            .map_err(|_| Error::malformed("a string is not UTF-8", "v5 MQTT-1.5.4-1, v3.1.1 MQTT-1.5.3-1"))?;
        if text.contains('\0') {
            return Err(Error::malformed("a string holds U+0000", "v5 MQTT-1.5.4-2, v3.1.1 MQTT-1.5.3-2"));
        }
        Ok(text)
    }

    /// A topic filter, shared or not. One that is none is not refused with a code of its own: no filter stands there
    /// [MQTT-4.7.1-1, MQTT-4.7.3-1, v5 MQTT-4.8.2-1, MQTT-4.8.2-2; MQTT-4.8.0-1, v5 MQTT-4.13.1-1].
    pub(super) fn topic_filter(&mut self) -> Result<&'a str, Error> {
        let filter = self.string()?;
        if topic::is_topic_filter(filter) {
            Ok(filter)
        } else {
            Err(Error::malformed("a topic filter is none", "MQTT-4.7.1-1, MQTT-4.7.3-1, v5 MQTT-4.8.2-1, MQTT-4.8.2-2"))
        }
    }

    /// A packet identifier, which is never 0 [v5 MQTT-2.2.1-3, v3.1.1 MQTT-2.3.1-1].
    pub(super) fn packet_id(&mut self) -> Result<u16, Error> {
        match self.u16()? {
            0 => Err(Error::malformed("a packet identifier is 0", "v5 MQTT-2.2.1-3, v3.1.1 MQTT-2.3.1-1")),
            packet_id => Ok(packet_id),
        }
    }

    /// Nothing may be left.
    pub(super) fn finish(&self) -> Result<(), Error> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(Error::malformed("the packet is longer than its fields", "MQTT-4.13.1-1"))
        }
    }
}

/// A Remaining Length (2.1.4; v3.1.1 2.2.3) and how many bytes it takes; `None` while it is not all there.
pub(super) fn remaining_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Error> {
    let mut value = 0;
    for (place, &byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * place);
        if byte & 0x80 == 0 {
            if byte == 0 && place > 0 {
                return Err(Error::malformed("a length takes more bytes than it needs", "v5 MQTT-1.5.5-1"));
            }
            return Ok(Some((value, place + 1)));
        }
    }
    if bytes.len() < 4 {
        return Ok(None);
    }
    Err(Error::malformed("a length takes more than four bytes", "v5 MQTT-1.5.5-1"))
}

/// How many bytes a variable byte integer takes.
pub(super) const fn variable_len(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x001F_FFFF => 3,
        _ => 4,
    }
}

/// Appends a variable byte integer.
pub(super) fn put_variable(mut value: usize, out: &mut Vec<u8>) {
    assert!(value <= REMAINING_MAX, "a packet of ours is longer than MQTT can say");
    loop {
        let byte = (value & 0x7F) as u8;
        value >>= 7;
        if value == 0 {
            return out.push(byte);
        }
        out.push(byte | 0x80);
    }
}

/// Appends binary data; at most 65,535 bytes.
pub(super) fn put_binary(bytes: &[u8], out: &mut Vec<u8>) {
    let length = u16::try_from(bytes.len()).expect("a field of ours is longer than MQTT can say");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Appends a string; at most 65,535 bytes.
pub(super) fn put_string(text: &str, out: &mut Vec<u8>) {
    put_binary(text.as_bytes(), out);
}

/// Appends a packet: its first byte, its length, and what `body` appends.
pub(super) fn packet(first: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(first);
    let start = out.len();
    body(out);
    let length = out.len() - start;
    // The length stands before the body and is known after it: the body moves up by what the length takes.
    let mut encoded = Vec::with_capacity(4);
    put_variable(length, &mut encoded);
    out.splice(start..start, encoded);
}
