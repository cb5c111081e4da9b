//! WebSocket between TLS and the device protocol: the opening handshake, frames to protocol bytes and back, CLOSE.
//!
//! ```text
//!   Upgrading ──the request is granted: 101──▶ Frames ──CLOSE, ours or theirs──▶ Closed
//! ```
//!
//! Data frames are a byte stream for the protocol within. An idle connection keeps nothing of it: a [`Decoder`] exists only
//! within a message that has not ended.

use std::net::SocketAddr;
use std::ops::Range;

use super::transport::OpenConnection;
use super::{Announced, Announcement, Input, Termination, protocol};
use crate::codec::websocket::{self, Decoder, Event, Kind, Refusal, Request};
use crate::link::CloseReason;

/// What carries the device protocol within TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    /// Nothing: its bytes are TLS's plaintext.
    Plain,
    /// WebSocket; its opening handshake is to come.
    Upgrading,
    /// WebSocket frames.
    Frames,
    /// WebSocket, and CLOSE was sent: nothing follows it.
    Closed,
}

impl Carrier {
    /// In an image.
    pub(super) const fn code(self) -> u8 {
        match self {
            Carrier::Plain => 0,
            Carrier::Upgrading => 1,
            Carrier::Frames => 2,
            Carrier::Closed => 3,
        }
    }

    pub(super) const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Carrier::Plain,
            1 => Carrier::Upgrading,
            2 => Carrier::Frames,
            3 => Carrier::Closed,
            _ => return None,
        })
    }
}

impl OpenConnection<'_, '_> {
    /// Looks whether the request is all there, and answers it. `Some`: it comes through a trusted proxy, which says for whom.
    pub(super) fn handle_upgrade(&mut self, input: &mut Input) -> Result<Option<Box<Announced>>, Termination> {
        let (key, protocol, announced, length) = {
            let request = match websocket::decode_request(input.plain()) {
                Ok(Some((request, length))) => {
                    let granted = self.grant(&request, input.plain().len() - length);
                    granted.and_then(|name| Ok((request, name, self.announced(&request)?, length)))
                }
                Ok(None) => return Ok(None),
                Err(refusal) => Err(refusal),
            };
            let (request, name, announced, length) = request.map_err(|refusal| self.refuse_upgrade(refusal))?;
            (request.key.to_owned(), name, announced, length)
        };
        *self.announcement = Announcement::Complete;
        input.consume_plain(length);
        websocket::encode_accept(&key, Some(protocol), self.cx.plain);
        self.seal_plain()?;
        *self.carrier = Carrier::Frames;
        Ok(announced)
    }

    /// For whom a trusted proxy asks.
    fn announced(&self, request: &Request) -> Result<Option<Box<Announced>>, Refusal> {
        if *self.announcement != Announcement::Forwarded {
            return Ok(None);
        }
        let trusted = self.settings.websocket.iter().flat_map(|websocket| &websocket.forwarded_from);
        let source = request.forwarded_for(|address| trusted.clone().any(|network| network.contains(address)));
        let source = source.ok_or(Refusal::BadRequest("a trusted proxy says not for whom it asks: X-Forwarded-For"))?;
        // Its port is not told.
        Ok(Some(Box::new(Announced { source: Some(SocketAddr::new(source, 0)), ..Announced::default() })))
    }

    /// The subprotocol that is spoken with whoever asks, if they may have it. `behind`: so many bytes follow the request.
    fn grant(&self, request: &Request, behind: usize) -> Result<&'static str, Refusal> {
        // It may have been taken out of the configuration since TLS was established.
        let websocket = self.settings.websocket.as_ref().ok_or(Refusal::NotFound)?;
        if behind > 0 {
            return Err(Refusal::BadRequest(
                "there are bytes behind the request before it was answered [RFC 6455 4.1]",
            ));
        }
        if request.path() != websocket.path {
            return Err(Refusal::NotFound);
        }
        // Only browsers say whose page it is; whoever is no browser could say anything.
        if let Some(origin) = request.origin
            && !websocket.origins.is_empty()
            && !websocket.origins.iter().any(|allowed| allowed == origin)
        {
            return Err(Refusal::Forbidden);
        }
        // [v5 MQTT-6.0.0-3, MQTT-6.0.0-4]
        let names = protocol::subprotocols(&self.settings.protocol);
        let offered = names.iter().copied().find(|name| request.offers(name));
        offered.ok_or(Refusal::BadRequest("the request offers no subprotocol that is spoken here"))
    }

    fn refuse_upgrade(&mut self, refusal: Refusal) -> Termination {
        websocket::encode_refusal(refusal, self.cx.plain);
        Termination::from_error(CloseReason::ProtocolError, &refusal).already_sent()
    }

    /// Takes the frames in a record's plaintext apart: what is in them is gathered as protocol bytes. `true`: the peer closes,
    /// and what it sent before is still to be handled.
    pub(super) fn handle_frames(
        &mut self,
        input: &mut Input,
        plaintext: Range<usize>,
        frames: &mut Option<Box<Decoder>>,
    ) -> Result<bool, Termination> {
        let mut decoder = frames.take().map_or_else(Decoder::default, |decoder| *decoder);
        let (mut at, mut ping, mut is_closing) = (plaintext.start, None, false);
        while !is_closing {
            let (next, event) = decoder
                .next(input.record(plaintext.end), at)
                .map_err(|error| self.refuse_frame(error.code, error.what))?;
            at = next;
            match event {
                None => break,
                Some(Event::Data { kind: Kind::Binary, payload, .. }) => input.gather(payload),
                Some(Event::Data { kind: Kind::Text, .. }) => {
                    return Err(self.refuse_frame(1003, "a text frame [v5 MQTT-6.0.0-1]"));
                }
                // The latest one is answered for all (RFC 6455 5.5.3): a record of empty ones would make many times itself.
                Some(Event::Ping(payload)) => ping = Some(payload),
                Some(Event::Pong) => {}
                Some(Event::Close(_)) => is_closing = true,
            }
        }
        if let Some(ping) = ping {
            self.seal_plain()?;
            websocket::encode_pong(&ping, self.cx.plain);
            self.seal_bare()?;
        }
        if !decoder.is_idle() {
            *frames = Some(Box::new(decoder));
        }
        Ok(is_closing)
    }

    /// Bytes that are no frame that may come: CLOSE says so.
    fn refuse_frame(&mut self, code: u16, what: &'static str) -> Termination {
        self.encode_websocket_close(code);
        Termination::because(CloseReason::ProtocolError, what).already_sent()
    }

    /// CLOSE, once, behind what was encoded before.
    pub(super) fn encode_websocket_close(&mut self, code: u16) {
        if *self.carrier != Carrier::Frames {
            return;
        }
        // A layer that cannot seal any more has nothing to be added to it.
        let _ = self.seal_plain();
        websocket::encode_close(Some(code), self.cx.plain);
        let _ = self.seal_bare();
        *self.carrier = Carrier::Closed;
    }
}

/// The code of RFC 6455 7.4.1 that is nearest to a reason.
pub(super) const fn close_code(reason: CloseReason) -> u16 {
    match reason {
        CloseReason::Shutdown => 1001,
        CloseReason::ProtocolError => 1002,
        CloseReason::FrameTooLarge => 1009,
        CloseReason::IdentityMissing
        | CloseReason::IdentityMismatch
        | CloseReason::TokenRejected
        | CloseReason::TakenOver
        | CloseReason::Requested
        | CloseReason::Expired
        | CloseReason::HelloTimeout => 1008,
        CloseReason::TokenUnanswered
        | CloseReason::HomeFull
        | CloseReason::PoolFull
        | CloseReason::SessionUnreadable
        | CloseReason::SessionElsewhere => 1013,
        _ => 1000,
    }
}
