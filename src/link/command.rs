//! What a worker may be told.

use super::ConnectionId;

/// One thing said to a worker from another thread. Requests carry a number that their answer ([`super::Uplink`])
/// bears again.
#[derive(Clone, Debug)]
pub enum Command {
    /// The answer to [`super::Uplink::VerifyToken`].
    TokenVerdict {
        /// The connection whose HELLO waits.
        connection: ConnectionId,
        /// Whether its token is right.
        accepted: bool,
    },
    /// The backbone holds this message; the device may be told so.
    MessageAccepted {
        /// The connection that sent it.
        connection: ConnectionId,
        /// The id that the device gave the message.
        message: u32,
    },
    /// Describe one device; answered by [`super::Uplink::Described`].
    Describe {
        /// The number that the answer carries.
        request: u64,
        /// The device asked for; this worker is its home.
        device: Box<str>,
    },
    /// List devices of this shard in order of their ids; answered by [`super::Uplink::Listed`].
    List {
        /// The number that the answer carries.
        request: u64,
        /// Which devices.
        filter: DeviceFilter,
    },
    /// End every connection with [`super::CloseReason::Shutdown`], then the worker.
    Shutdown,
}

/// Which devices a listing wants: the first `limit` ids after `after` that begin with `prefix`, in byte order.
#[derive(Clone, Debug, Default)]
pub struct DeviceFilter {
    /// Only ids strictly greater; empty for all.
    pub after: Box<str>,
    /// Only ids that begin so; empty for all.
    pub prefix: Box<str>,
    /// At most so many.
    pub limit: usize,
}

impl DeviceFilter {
    /// Whether `device` belongs to the listing (its bound aside).
    #[must_use]
    pub fn matches(&self, device: &str) -> bool {
        device.starts_with(&*self.prefix) && (self.after.is_empty() || device > &*self.after)
    }
}
