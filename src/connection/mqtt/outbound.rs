//! What the session has for the device.

use super::super::transport::OpenConnection;
use super::super::{Connection, Context, ListenerSettings, Termination};
use crate::broker::{Delivery, SendBudget};

impl Connection {
    /// Sends deliveries to the device, and before them what waited for it, as far as there is room.
    ///
    /// # Errors
    /// The [`Termination`] of a connection whose keys can seal nothing more.
    pub fn handle_deliveries(
        &mut self,
        deliveries: Vec<Delivery>,
        settings: &ListenerSettings,
        cx: &mut Context,
    ) -> Result<(), Termination> {
        assert!(self.is_device());
        self.as_open(settings, cx).send_deliveries(deliveries)
    }

    /// Tells the device which of its messages are safe, and that it has subscribed.
    ///
    /// # Errors
    /// The [`Termination`] of a connection whose keys can seal nothing more.
    pub fn handle_answerable(&mut self, settings: &ListenerSettings, cx: &mut Context) -> Result<(), Termination> {
        assert!(self.is_device());
        let mut open = self.as_open(settings, cx);
        if let Some(session) = open.session() {
            if let Some(connack) = open.cx.broker.take_greeting(session) {
                open.cx.plain.extend_from_slice(&connack);
            }
            open.encode_answers(session)?;
            open.say_suback(session);
            while let Some(reply) = open.cx.broker.next_reply(session) {
                open.encode_reply(session, reply);
            }
        }
        open.seal_plain()
    }
}

impl OpenConnection<'_, '_> {
    fn send_deliveries(&mut self, deliveries: Vec<Delivery>) -> Result<(), Termination> {
        let Some(session) = self.session() else { return Ok(()) };
        let unsent = self.buffers.as_deref().map_or(0, |buffers| buffers.unsent.len());
        let mut budget = SendBudget {
            out: &mut *self.cx.plain,
            unsent,
            turn_bytes: self.settings.turn_bytes,
            now: self.cx.now,
            counters: &mut *self.cx.counters,
        };
        self.cx.broker.write(session, deliveries, &mut budget);
        self.seal_plain()
    }
}
