//! Where a connection's device protocol makes a difference: the one file that asks which it is.

use super::liveness::Schedule;
use super::naming::{Naming, name_by_certificate};
use super::transport::{OpenConnection, Progress};
use super::websocket::Carrier;
use super::{Input, ListenerSettings, Termination, native};
use crate::codec::native::Frame;
use crate::config::{IdentityFrom, Limits, Protocol};
use crate::link::Downlink;
use crate::metrics::Metric;
use crate::tls::certs::PeerIdentity;

/// Ticks of silence allowed for each second of MQTT's keep-alive.
const KEEP_ALIVE_TICKS: u32 = 15;

// --- What holds for a listener ------------------------------------------------------------------------------------------

/// Whether there is anything to send as a probe.
pub(super) fn has_probes(protocol: &Protocol) -> bool {
    match protocol {
        Protocol::Native => true,
        Protocol::Raw(raw) => !raw.probe.is_empty(),
        Protocol::Mqtt(_) => false,
    }
}

/// The longest frame or packet, and the most unsent bytes.
pub(super) fn bounds(protocol: &Protocol, limits: &Limits) -> (usize, usize) {
    match protocol {
        Protocol::Native | Protocol::Raw(_) => (limits.frame_bytes, limits.outbox_bytes),
        // One packet may always be sent to a device that has taken everything before it.
        Protocol::Mqtt(_) => (limits.packet_bytes, limits.outbox_bytes + limits.packet_bytes),
    }
}

/// The WebSocket subprotocols under which it is spoken, the preferred one first.
pub(super) const fn subprotocols(protocol: &Protocol) -> &'static [&'static str] {
    match protocol {
        Protocol::Native => &["pulsegate"],
        Protocol::Mqtt(_) => &["mqtt", "mqttv3.1"],
        // The configuration has none over WebSocket: nothing tells its records apart there.
        Protocol::Raw(_) => &[],
    }
}

/// The schedule of a connection with its own interval: ticks; of MQTT the keep-alive in seconds.
pub(super) fn schedule(settings: &ListenerSettings, interval: u16) -> Schedule {
    match settings.protocol {
        Protocol::Native | Protocol::Raw(_) => Schedule { interval: u32::from(interval), ..settings.schedule },
        // One and a half times the keep-alive [v5 MQTT-3.1.2-22, v3.1.1 MQTT-3.1.2-24].
        Protocol::Mqtt(_) => {
            let interval = u32::from(interval) * KEEP_ALIVE_TICKS;
            Schedule { interval, timeout: 0, retries: 0, probes: false }
        }
    }
}

/// Whether a device may live without an interval: MQTT's keep-alive may be none.
pub(super) fn may_have_no_interval(settings: &ListenerSettings) -> bool {
    matches!(settings.protocol, Protocol::Mqtt(_))
}

// --- Who the device is --------------------------------------------------------------------------------------------------

/// What is known of the device's id when TLS stands; empty: nothing yet.
pub(super) fn first_name(
    settings: &ListenerSettings,
    peer: Option<&PeerIdentity>,
) -> Result<(Box<str>, Naming), Termination> {
    let named = name_by_certificate(settings, peer);
    let rule = Naming::Rule(settings.identity);
    match (&settings.protocol, named) {
        (_, Ok(Some(device))) => Ok((device, rule)),
        (Protocol::Native, Ok(None)) => Ok((Box::default(), Naming::Rule(IdentityFrom::Hello))),
        // CONNECT is to come: where the certificate was to name the device and does not, it is refused in MQTT's words.
        (Protocol::Mqtt(_), Ok(None) | Err(_)) => Ok((Box::default(), rule)),
        (Protocol::Raw(_), Ok(None)) => Ok((Box::default(), Naming::Generated)),
        (Protocol::Raw(_), Err(_)) if peer.is_none() => Ok((Box::default(), Naming::Generated)),
        (Protocol::Native, Err(_)) if peer.is_none() && settings.entry.names_otherwise => {
            Ok((Box::default(), Naming::Granted))
        }
        (Protocol::Native | Protocol::Raw(_), Err(termination)) => Err(termination),
    }
}

/// Why a device cannot be told this, if so.
pub(super) fn refusal(downlink: &Downlink, message: u32, settings: &ListenerSettings) -> Option<&'static str> {
    match settings.protocol {
        Protocol::Native => native::refusal(downlink),
        Protocol::Raw(_) if message != 0 => Some("the raw protocol has no acknowledgements"),
        Protocol::Raw(_) | Protocol::Mqtt(_) => None,
    }
}

impl OpenConnection<'_, '_> {
    /// Hands the plaintext that is there to the device protocol.
    pub(super) fn handle_plaintext(&mut self, input: &mut Input) -> Result<Progress, Termination> {
        match &self.settings.protocol {
            Protocol::Native => self.handle_native(input),
            Protocol::Raw(raw) => Ok(self.handle_raw(input, raw)),
            Protocol::Mqtt(mqtt) => self.handle_mqtt(input, mqtt),
        }
    }

    /// What a device hears first, where the gateway has the first word.
    pub(super) fn send_welcome(&mut self) -> Result<(), Termination> {
        match self.settings.protocol {
            Protocol::Native => self.encode_welcome(),
            Protocol::Raw(_) | Protocol::Mqtt(_) => {}
        }
        self.seal_plain()
    }

    pub(super) fn send_probe(&mut self) -> Result<(), Termination> {
        match &self.settings.protocol {
            Protocol::Native => Frame::Ping(&[]).encode(self.cx.plain),
            Protocol::Raw(raw) => self.cx.plain.extend_from_slice(&raw.probe),
            Protocol::Mqtt(_) => unreachable!("it is the device that shows life"),
        }
        self.seal_plain()
    }

    /// `message` is the id under which the device shall acknowledge it; 0: it need not.
    pub(super) fn send_message(&mut self, downlink: &Downlink, message: u32) -> Result<(), Termination> {
        match self.settings.protocol {
            Protocol::Native => self.encode_message(downlink, message),
            Protocol::Raw(_) => self.cx.plain.extend_from_slice(&downlink.payload),
            Protocol::Mqtt(_) => unreachable!("its session has what is for it"),
        }
        self.cx.counters.add(Metric::MessagesSent, 1);
        self.seal_plain()
    }

    /// The protocol's own goodbye where it has one, then the carrier's and close_notify. A layer that has failed sends nothing more: its alert
    /// is already on its way.
    pub(super) fn send_close(&mut self, termination: &Termination) {
        match self.settings.protocol {
            // The protocol has not begun.
            _ if *self.carrier == Carrier::Upgrading => {}
            Protocol::Native => self.encode_close(termination),
            Protocol::Mqtt(_) if !termination.is_sent => self.encode_disconnect(termination),
            Protocol::Raw(_) | Protocol::Mqtt(_) => {}
        }
        // A layer that cannot seal any more has nothing to be added to it.
        let _ = self.seal_plain();
        self.close_carrier(termination);
    }
}
