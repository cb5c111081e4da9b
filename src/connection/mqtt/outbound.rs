//! What the session has for the device.

use super::super::talk::Talk;
use super::super::{Connection, Context, Ending, Rules};
use crate::broker::{Delivery, SendBudget};

impl Connection {
    /// Sends deliveries to the device, and before them what waited for it, as far as there is room.
    ///
    /// # Errors
    /// The [`Ending`] of a connection whose keys can seal nothing more.
    pub fn handle_deliveries(
        &mut self,
        deliveries: Vec<Delivery>,
        rules: &Rules,
        cx: &mut Context,
    ) -> Result<(), Ending> {
        assert!(self.is_device());
        self.talk(rules, cx).say_deliveries(deliveries)
    }

    /// Tells the device which of its messages are safe.
    ///
    /// # Errors
    /// The [`Ending`] of a connection whose keys can seal nothing more.
    pub fn handle_settled(&mut self, rules: &Rules, cx: &mut Context) -> Result<(), Ending> {
        assert!(self.is_device());
        let mut talk = self.talk(rules, cx);
        if let Some(session) = talk.session() {
            talk.say_answers(session);
        }
        talk.seal_said()
    }
}

impl Talk<'_, '_> {
    fn say_deliveries(&mut self, deliveries: Vec<Delivery>) -> Result<(), Ending> {
        let Some(session) = self.session() else { return Ok(()) };
        let unsent = self.buffers.as_deref().map_or(0, |buffers| buffers.unsent.len());
        let mut budget = SendBudget {
            out: &mut *self.cx.plain,
            unsent,
            turn_bytes: self.rules.turn_bytes,
            now: self.cx.now,
            counters: &mut *self.cx.counters,
        };
        self.cx.broker.write(session, deliveries, &mut budget);
        self.seal_said()
    }
}
