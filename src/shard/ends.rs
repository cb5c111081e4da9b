//! The line that the log has for the end of a connection. It says from where the connection came, which the worker knows and the
//! shard does not: so it is written at the end of the turn, while the sockets are still here.

use std::borrow::Cow;
use std::net::SocketAddr;

use tracing::Level;

use super::Shard;
use crate::connection::Termination;
use crate::link::{CloseReason, ConnectionId, ListenerId};
use crate::slot::ConnectionSlot;

/// What the log says of an end.
pub(super) struct End {
    id: ConnectionId,
    listener: ListenerId,
    device: Box<str>,
    reason: CloseReason,
    detail: Cow<'static, str>,
}

impl Shard {
    /// Notes the end of a connection for the log, where that is so much as looked at.
    pub(super) fn note_end(&mut self, slot: ConnectionSlot, termination: &Termination) {
        if !tracing::enabled!(target: "pulsegate::connection", Level::DEBUG) {
            return;
        }
        let connection = &self.connections[slot];
        let (device, listener) = (connection.device().into(), connection.listener());
        let (reason, detail) = (&termination.reason, &termination.detail);
        self.ends.push(End { id: self.id(slot), listener, device, reason: *reason, detail: detail.clone() });
    }

    /// Writes down the ends of this turn. `peer`: where the peer of the socket in a slot is; to be called before slots are freed.
    pub fn log_ends(&mut self, peer: impl Fn(ConnectionSlot) -> Option<SocketAddr>) {
        for End { id, listener, device, reason, detail } in std::mem::take(&mut self.ends) {
            let peer = self.address(id.slot).or_else(|| peer(id.slot));
            tracing::debug!(
                target: "pulsegate::connection",
                worker = self.worker.0,
                listener = &*self.settings[listener.index()].name,
                connection = %id,
                peer = peer.map(tracing::field::display),
                device = &*device,
                reason = reason.label(),
                detail = &*detail,
                "connection ended",
            );
        }
    }
}
