//! What is recorded of a session beside what is in it, and what stands in its row.

use super::{KeptWill, NO_KEY, Will};
use crate::broker::{Broker, Profile};
use crate::image;
use crate::slot::SessionSlot;
use crate::time::Moment;

impl Broker {
    /// A session without what is in it; `None`: it is not recorded.
    pub(in super::super) fn head_of(
        &self,
        session: SessionSlot,
        name: &str,
        away_since: Option<Moment>,
    ) -> Option<image::Head> {
        let known = &self.sessions[session];
        self.journal.recording().filter(|_| known.key != NO_KEY)?;
        let head = self.head_to_be(name, &known.profile, known.will.as_deref().map(|KeptWill { will, .. }| will))?;
        let away_since_ms = away_since.map(|since| self.journal.unix_millis(since));
        Some(image::Head { key: known.key, away_since_ms, last_packet: known.next_packet, ..head })
    }

    /// The head of a session that a device is to have, under no key yet; `None`: nothing is recorded.
    #[must_use]
    pub fn head_to_be(&self, name: &str, profile: &Profile, will: Option<&Will>) -> Option<image::Head> {
        let recording = self.journal.recording()?;
        let &Profile { version, listener, keep_alive_s, expiry_s, receive_maximum, packet_maximum, alias_maximum } =
            profile;
        let profile = image::Profile {
            version: version.level(),
            listener: recording.listeners.get(listener.index()).cloned().unwrap_or_default(),
            keep_alive_s,
            expiry_s,
            receive_maximum,
            packet_maximum,
            alias_maximum,
        };
        let will = will.map(|will| {
            let publication = self.journal.image_of(&will.publication);
            Box::new(image::Will { publication, expiry_s: will.expiry_s, delay_s: will.delay_s })
        });
        Some(image::Head { key: NO_KEY, name: name.into(), profile, away_since_ms: None, last_packet: 0, will })
    }
}
