//! The language of the conformance rows: packets as bytes that a person can read, and who says what to whom.
//!
//! A row is a line of steps, separated by `;`:
//!
//! | step | means |
//! | --- | --- |
//! | `a > BYTES` | client `a` sends them; it connects first if it is not |
//! | `a@own > BYTES` | the same, through the listener `own` |
//! | `a < BYTES` | the next that `a` hears is exactly this |
//! | `a [heard N]` | PUBREC for the packet identifiers 1 to `N` |
//! | `a [one TOPIC]` | one message of QoS 0 to this topic, whatever it says |
//! | `a [ids X Y TOPIC TEXT]` | a message with these two Subscription Identifiers, in either order |
//! | `a -` | `a` hears nothing: a PINGREQ is answered, and nothing comes before the answer |
//! | `a x` | `a` is disconnected, having heard nothing more |
//! | `a cut` | `a` goes without a goodbye |
//! | `wait MS` | time passes: only where a delay is what the row is about |
//!
//! Bytes are hexadecimal. `'text'` is a string with its length, `"text"` bare text, `< … >` a remaining length and what it
//! counts, `{ … }` a property length and the properties. `%` in a text is the row's number, so that rows share a gateway.
//! `[name arguments]` is a packet that is used often: see [`fragment`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use pulsegate::tls::handshake::ClientTls;

use crate::support::{Device, Event, SOON};

/// The clients of one row.
pub struct Stage<'a> {
    pub listeners: &'a HashMap<&'a str, SocketAddr>,
    pub tls: &'a ClientTls,
    pub number: usize,
    clients: HashMap<String, Client>,
}

struct Client {
    device: Device,
    heard: Vec<u8>,
}

impl<'a> Stage<'a> {
    pub fn new(listeners: &'a HashMap<&'a str, SocketAddr>, tls: &'a ClientTls, number: usize) -> Self {
        Self { listeners, tls, number, clients: HashMap::new() }
    }

    /// Plays the row; says at which step it went otherwise, and how.
    pub fn play(&mut self, script: &str) -> Result<(), String> {
        for step in script.split(';').map(str::trim).filter(|step| !step.is_empty()) {
            self.step(step).map_err(|fault| format!("at `{step}`: {fault}"))?;
        }
        Ok(())
    }

    fn step(&mut self, step: &str) -> Result<(), String> {
        let (who, what) = step.split_once(' ').ok_or("a step is `WHO WHAT`")?;
        if who == "wait" {
            std::thread::sleep(Duration::from_millis(what.parse().map_err(|_| "wait MS")?));
            return Ok(());
        }
        let (who, listener) = who.split_once('@').unwrap_or((who, "mqtt"));
        match what.split_at(what.find(' ').unwrap_or(what.len())) {
            (">", bytes) => {
                let bytes = self.bytes(bytes)?;
                self.client(who, listener).device.send_plain(&bytes);
                Ok(())
            }
            ("<", bytes) => {
                let bytes = self.bytes(bytes)?;
                self.client(who, listener).expect(&bytes)
            }
            ("-", _) => {
                self.client(who, listener).device.send_plain(&[0xC0, 0]);
                self.client(who, listener).expect(&[0xD0, 0])
            }
            ("[heard", count) => {
                let count: u16 = count.trim_matches([' ', ']']).parse().map_err(|_| "[heard N]")?;
                let acks: Vec<u8> = (1..=count).flat_map(|id| [0x50, 2, (id >> 8) as u8, id as u8]).collect();
                self.client(who, listener).expect(&acks)
            }
            ("[one", topic) => {
                let topic = topic.trim_matches([' ', ']']);
                let head = self.bytes(&format!("30 < '{topic}' {{}} 00 >"))?;
                let client = self.client(who, listener);
                client.expect(&head[..head.len() - 1])?;
                client.take(1).map(|_| ())
            }
            ("[ids", rest) => {
                let words: Vec<&str> = rest.trim_matches([' ', ']']).split(' ').collect();
                let [one, other, topic, text] = words[..] else { return Err("[ids X Y TOPIC TEXT]".to_owned()) };
                let packet = |one, other| self.bytes(&format!("30 < '{topic}' {{ 0B {one} 0B {other} }} \"{text}\" >"));
                let (packet, swapped) = (packet(one, other)?, packet(other, one)?);
                let heard = self.client(who, listener).take(packet.len())?;
                if heard == packet || heard == swapped { Ok(()) } else { Err(format!("heard {}", hex(&heard))) }
            }
            ("x", _) => {
                let mut client = self.clients.remove(who).ok_or("it is not connected")?;
                client.expect_end()
            }
            ("cut", _) => self.clients.remove(who).map(|_| ()).ok_or_else(|| "it is not connected".to_owned()),
            (other, _) => Err(format!("{other} is no step")),
        }
    }

    fn client(&mut self, who: &str, listener: &str) -> &mut Client {
        let (address, tls) = (self.listeners[listener], self.tls);
        self.clients.entry(who.to_owned()).or_insert_with(|| Client {
            device: Device::raw(address, tls).expect("the gateway takes connections"),
            heard: Vec::new(),
        })
    }

    fn bytes(&self, text: &str) -> Result<Vec<u8>, String> {
        let text = expand(text)?;
        let mut rest = text.as_str();
        let bytes = parse(&mut rest, self.number)?;
        if rest.is_empty() { Ok(bytes) } else { Err(format!("unbalanced: {rest}")) }
    }
}

impl Client {
    fn take(&mut self, count: usize) -> Result<Vec<u8>, String> {
        while self.heard.len() < count {
            match self.device.hear_within(SOON) {
                Some(Event::Data(bytes)) => self.heard.extend(bytes),
                other => return Err(format!("heard {} and then {other:?}", hex(&self.heard))),
            }
        }
        Ok(self.heard.drain(..count).collect())
    }

    fn expect(&mut self, expected: &[u8]) -> Result<(), String> {
        while self.heard.len() < expected.len() {
            match self.device.hear_within(SOON) {
                Some(Event::Data(bytes)) => self.heard.extend(bytes),
                Some(end) => {
                    return Err(format!("expected {}, heard {} and then {end:?}", hex(expected), hex(&self.heard)));
                }
                None => return Err(format!("expected {}, heard only {}", hex(expected), hex(&self.heard))),
            }
        }
        let heard: Vec<u8> = self.heard.drain(..expected.len()).collect();
        if heard == expected {
            Ok(())
        } else {
            Err(format!("expected {}, heard {}{}", hex(expected), hex(&heard), hex(&self.heard)))
        }
    }

    fn expect_end(&mut self) -> Result<(), String> {
        match self.device.hear_within(SOON) {
            _ if !self.heard.is_empty() => Err(format!("heard {} before the end", hex(&self.heard))),
            Some(Event::CloseNotify | Event::Eof | Event::Reset) => Ok(()),
            other => Err(format!("expected the end, heard {other:?}")),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    let words: Vec<String> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    words.join(" ")
}

/// Replaces `[name arguments]` by what it stands for.
fn expand(text: &str) -> Result<String, String> {
    let Some(start) = text.find('[') else { return Ok(text.to_owned()) };
    let end = text[start..].find(']').ok_or("a [ without ]")? + start;
    let mut words = text[start + 1..end].split(' ');
    let name = words.next().unwrap_or_default();
    let packet = fragment(name, &words.collect::<Vec<_>>())?;
    Ok(format!("{}{packet}{}", &text[..start], expand(&text[end + 1..])?))
}

/// Packets that are used often. Client identifiers and topics get the row's number.
fn fragment(name: &str, arguments: &[&str]) -> Result<String, String> {
    let argument = |place: usize| arguments.get(place).copied().ok_or(format!("[{name}] wants more arguments"));
    Ok(match name {
        // CONNECT: a new session that ends with the connection; one that stays (s); a new one that stays (n).
        "c4" => format!("10 < 'MQTT' 04 02 003C '{}-%' >", argument(0)?),
        "s4" => format!("10 < 'MQTT' 04 00 003C '{}-%' >", argument(0)?),
        "c5" => format!("10 < 'MQTT' 05 02 003C {{}} '{}-%' >", argument(0)?),
        "s5" => format!("10 < 'MQTT' 05 00 003C {{ 11 00000064 }} '{}-%' >", argument(0)?),
        "n5" => format!("10 < 'MQTT' 05 02 003C {{ 11 00000064 }} '{}-%' >", argument(0)?),
        // CONNACK: welcome; welcome back (p).
        "k4" => "20 < 00 00 >".to_owned(),
        "k4p" => "20 < 01 00 >".to_owned(),
        "k5" => "20 < 00 00 { 21 0040 27 00040000 22 0010 } >".to_owned(),
        "k5p" => "20 < 01 00 { 21 0040 27 00040000 22 0010 } >".to_owned(),
        // SUBSCRIBE to one filter with these options, and SUBACK with this code; packet identifier 1.
        "sub4" => format!("82 < 0001 '{}' {} >", argument(0)?, argument(1)?),
        "sub5" => format!("82 < 0001 {{}} '{}' {} >", argument(0)?, argument(1)?),
        "ack4" => format!("90 < 0001 {} >", argument(0)?),
        "ack5" => format!("90 < 0001 {{}} {} >", argument(0)?),
        // PUBLISH with QoS 0; with QoS 1 and 2 and this packet identifier.
        "pub4" => format!("30 < '{}' \"{}\" >", argument(0)?, argument(1)?),
        "pub5" => format!("30 < '{}' {{}} \"{}\" >", argument(0)?, argument(1)?),
        "pub41" => format!("32 < '{}' {} \"{}\" >", argument(0)?, argument(1)?, argument(2)?),
        "pub51" => format!("32 < '{}' {} {{}} \"{}\" >", argument(0)?, argument(1)?, argument(2)?),
        "pub42" => format!("34 < '{}' {} \"{}\" >", argument(0)?, argument(1)?, argument(2)?),
        "pub52" => format!("34 < '{}' {} {{}} \"{}\" >", argument(0)?, argument(1)?, argument(2)?),
        // So many PUBLISH with QoS 2, and no PUBREL.
        "many52" => {
            let count: u16 = argument(1)?.parse().map_err(|_| "[many52 TOPIC N]")?;
            let packets: Vec<String> =
                (1..=count).map(|id| format!("34 < '{}' {id:04X} {{}} >", arguments[0])).collect();
            packets.join(" ")
        }
        "bye" => "E0 00".to_owned(),
        other => return Err(format!("[{other}] is not known")),
    })
}

/// Bytes up to the end of the text, or to the bracket that closes what was opened.
fn parse(rest: &mut &str, number: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    loop {
        *rest = rest.trim_start();
        let Some(first) = rest.chars().next() else { return Ok(out) };
        match first {
            '>' | '}' => return Ok(out),
            '<' | '{' => {
                *rest = &rest[1..];
                let inner = parse(rest, number)?;
                let close = if first == '<' { '>' } else { '}' };
                *rest = rest.strip_prefix(close).ok_or(format!("a {first} without {close}"))?;
                put_length(inner.len(), &mut out);
                out.extend(inner);
            }
            '\'' | '"' => {
                let (text, after) = rest[1..].split_once(first).ok_or("a text without an end")?;
                *rest = after;
                let text = text.replace('%', &number.to_string());
                if first == '\'' {
                    out.extend((text.len() as u16).to_be_bytes());
                }
                out.extend(text.as_bytes());
            }
            _ => {
                let digits = rest.find(|char: char| !char.is_ascii_hexdigit()).unwrap_or(rest.len());
                let (word, after) = rest.split_at(digits);
                if word.is_empty() || word.len() % 2 == 1 {
                    return Err(format!("no bytes: {rest}"));
                }
                *rest = after;
                let byte = |at: usize| u8::from_str_radix(&word[at..at + 2], 16).expect("digits");
                out.extend((0..word.len()).step_by(2).map(byte));
            }
        }
    }
}

fn put_length(mut length: usize, out: &mut Vec<u8>) {
    loop {
        let more = length > 0x7F;
        out.push((length & 0x7F) as u8 | if more { 0x80 } else { 0 });
        length >>= 7;
        if !more {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_language_says_what_it_seems_to_say() {
        let bytes = |text: &str| {
            let text = expand(text).unwrap();
            parse(&mut text.as_str(), 7).unwrap()
        };
        assert_eq!(bytes("10 < 'a%' 00FF { 11 \"x\" } >"), b"\x10\x09\x00\x02a7\x00\xff\x02\x11x");
        assert_eq!(bytes("[ack5 01]"), b"\x90\x04\x00\x01\x00\x01");
        assert_eq!(bytes(&format!("30 < {} >", "00".repeat(200)))[..3], [0x30, 0xC8, 0x01]);
        assert!(fragment("nothing", &[]).is_err() && fragment("c4", &[]).is_err());
    }
}
