//! The handshake of a connection: from a whole ClientHello to plain data, or to the reason why not.

use std::time::Duration;

use super::{Connection, Context, Input, ListenerSettings, Naming, State, Step, Termination, TlsEstablished, protocol};
use crate::link::CloseReason;
use crate::time::Moment;
use crate::tls::certs::CertificateFacts;
use crate::tls::handshake::{Handshake, HandshakeError, Hello, Progress, RecordWish, scan};
use crate::tls::record::{Alert, FramingError, Stage, next_record};

/// A handshake in progress: the only large thing a connection ever owns (about 9.5 KB with rustls's own).
pub(super) struct Handshaking {
    tls: Handshake,
    /// A record was handled: whoever it is speaks TLS.
    begun: bool,
    started: Moment,
    /// When the peer was heard.
    heard: Moment,
    /// For how long it was silent at the most.
    silence: Duration,
    /// What is wrong with its ClientHello as a whole, if so.
    refusal: Option<(Alert, &'static str)>,
}

impl Connection {
    /// Begins the TLS handshake, if a whole ClientHello is there to begin it with: the connection has a place among them.
    /// False: it goes on waiting for bytes, and what there is of them is all that it holds. `settings` are those of all
    /// listeners: where several share a port, the connection is of the one that the client asks for from here on.
    pub fn begin_handshake(&mut self, input: &Input, settings: &[ListenerSettings], now: Moment) -> bool {
        assert!(self.is_called());
        let port = &settings[self.listener.index()].port;
        let (wish, refusal) = match scan(input.cipher(), port.protocols()) {
            Hello::Partial => {
                self.state = State::Accepted;
                return false;
            }
            Hello::Whole(wishes) => {
                if let Some(position) = wishes.protocol {
                    self.listener = port.listener(position);
                }
                let illegal = (Alert::IllegalParameter, "the client asks for records of a forbidden size");
                (wishes.records, wishes.records.is_illegal().then_some(illegal))
            }
            Hello::TooLong => {
                (RecordWish::default(), Some((Alert::DecodeError, "the ClientHello is longer than 16 KB")))
            }
        };
        self.state = State::Handshaking(Box::new(Handshaking {
            tls: Handshake::server(&settings[self.listener.index()].tls, wish),
            begun: false,
            started: now,
            heard: now,
            silence: Duration::ZERO,
            refusal,
        }));
        true
    }

    /// When the peer was heard in its handshake; none when it is in none.
    #[must_use]
    pub fn heard_in_handshake(&self) -> Option<Moment> {
        match &self.state {
            State::Handshaking(handshaking) => Some(handshaking.heard),
            _ => None,
        }
    }

    pub(super) fn handle_handshake(
        &mut self,
        input: &mut Input,
        settings: &ListenerSettings,
        cx: &mut Context,
    ) -> Step {
        let State::Handshaking(handshaking) = &mut self.state else { unreachable!("asked by the state") };
        handshaking.silence = handshaking.silence.max(cx.now.since(handshaking.heard));
        handshaking.heard = cx.now;
        if let Some((alert, what)) = handshaking.refusal {
            handshaking.tls.refuse(alert, cx.wire);
            return Step::End(Termination::because(CloseReason::HandshakeFailed, what));
        }
        loop {
            let stage = if handshaking.begun { Stage::Handshake } else { Stage::First };
            let length = match next_record(input.cipher(), stage) {
                Ok(None) => return Step::Wait,
                Ok(Some(length)) => length,
                Err(error) => {
                    if let Some(alert) = error.alert() {
                        handshaking.tls.refuse(alert, cx.wire);
                    }
                    let not_tls = error == FramingError::NotTls;
                    let reason = if not_tls { CloseReason::NotTls } else { CloseReason::HandshakeFailed };
                    return Step::End(Termination::from_error(reason, &error));
                }
            };
            handshaking.begun = true;
            let progress = handshaking.tls.handle_record(input.record(length), cx.wire);
            input.skip_record(length);
            match progress {
                Ok(Progress::Continue) => {}
                Ok(Progress::Done) => return self.finish_handshake(settings, cx),
                Err(error) => return Step::End(handshake_termination(&error, handshaking.tls.refused_certificate())),
            }
        }
    }

    /// Decision D1: from here on the connection is plain data, and rustls is gone.
    fn finish_handshake(&mut self, settings: &ListenerSettings, cx: &mut Context) -> Step {
        let State::Handshaking(handshaking) = std::mem::replace(&mut self.state, State::Accepted) else {
            unreachable!("asked by the state")
        };
        cx.counters.observe_handshake(self.listener.index(), cx.now.since(handshaking.started));
        let silence = handshaking.silence;
        let established = match handshaking.tls.finish(cx.wire) {
            Ok(established) => established,
            Err(error) => return Step::End(handshake_termination(&error, None)),
        };
        let (device, naming) = match protocol::first_name(settings, established.peer.as_ref()) {
            Ok(named) => named,
            Err(termination) => {
                // TLS stands, so the refusal can be said within it.
                self.open(established.records, Naming::Rule(settings.identity), settings);
                return Step::End(termination);
            }
        };
        self.device = device;
        self.open(established.records, naming, settings);
        let certificate = established.certificate.as_ref().map(CertificateFacts::mark);
        Step::Established(Box::new(TlsEstablished { resumed: established.resumed, silence, certificate }))
    }
}

/// `certificate`: which one was refused, in words.
fn handshake_termination(error: &HandshakeError, certificate: Option<&str>) -> Termination {
    let reason = match error {
        HandshakeError::CertificateRejected(_) => CloseReason::CertificateRejected,
        HandshakeError::PeerClosed => CloseReason::HandshakeAbandoned,
        _ => CloseReason::HandshakeFailed,
    };
    match certificate {
        Some(certificate) => Termination::because(reason, format!("{error}: {certificate}")),
        None => Termination::from_error(reason, error),
    }
}
