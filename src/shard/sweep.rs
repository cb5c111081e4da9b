//! A look through all connections, a slice a turn: which of them hold no longer. After the rules have changed, for
//! certificates that were revoked; each minute, where certificates that end or an age end connections.
//!
//! What a connection keeps of its client certificate lies here and not in it: 24 bytes for each slot, from the first
//! certificate on.

use super::Shard;
use crate::config::WhenOver;
use crate::connection::{Connection, ListenerSettings, Termination};
use crate::link::CloseReason;
use crate::slot::ConnectionSlot;
use crate::time::{Moment, Tick};
use crate::tls::certs::CertificateMark;
use crate::tls::handshake::TlsPolicy;

/// Slots looked at in one turn.
const SLOTS: usize = 8_192;
/// Connections ended in one turn.
const ENDED: usize = 64;
/// Between two looks where only time can have changed anything: a minute.
const LOOK_TICKS: u32 = 600;
/// When a device whose connection has come of age is asked to come back, in milliseconds.
const RETRY_AFTER_MS: std::ops::RangeInclusive<u32> = 100..=2_000;
/// Bytes of a mark on its way to the home worker.
const MARK_BYTES: usize = 20;

/// Where the look is, and what it looks at.
#[derive(Default)]
pub(super) struct Sweep {
    /// The next slot; none: it is not underway.
    position: Option<usize>,
    /// When the next one begins by itself.
    next: Option<Tick>,
    /// By slot; a mark that ends at 0 is none.
    marks: Vec<CertificateMark>,
}

impl Sweep {
    pub fn is_underway(&self) -> bool {
        self.position.is_some()
    }

    pub fn begin(&mut self) {
        self.position = Some(0);
    }

    /// When it begins by itself, if it does.
    pub fn next(&self) -> Option<Tick> {
        self.next
    }

    pub fn mark(&self, slot: ConnectionSlot) -> Option<CertificateMark> {
        self.marks.get(slot.index()).copied().filter(|mark| mark.not_after != 0)
    }

    pub fn set_mark(&mut self, slot: ConnectionSlot, mark: Option<CertificateMark>) {
        let slot = slot.index();
        if let (None, true) = (mark, slot >= self.marks.len()) {
            return;
        }
        if slot >= self.marks.len() {
            self.marks.resize(slot + 1, CertificateMark::default());
        }
        self.marks[slot] = mark.unwrap_or_default();
    }

    /// After a mass disconnect the memory goes back.
    pub fn forget_all(&mut self) {
        self.marks = Vec::new();
    }

    /// Appends what travels with the connection in this slot.
    pub fn pack(&self, slot: ConnectionSlot, out: &mut Vec<u8>) {
        let mark = self.mark(slot).unwrap_or_default();
        out.extend_from_slice(&mark.revocation.to_be_bytes());
        out.extend_from_slice(&mark.fingerprint.to_be_bytes());
        out.extend_from_slice(&mark.not_after.to_be_bytes());
    }

    /// Takes that off the end of what has arrived.
    pub fn unpack(bytes: &[u8]) -> Option<(&[u8], Option<CertificateMark>)> {
        let (rest, mark) = bytes.split_last_chunk::<MARK_BYTES>()?;
        let (revocation, mark) = mark.split_first_chunk()?;
        let (fingerprint, not_after) = mark.split_first_chunk()?;
        let mark = CertificateMark {
            revocation: u64::from_be_bytes(*revocation),
            fingerprint: u64::from_be_bytes(*fingerprint),
            not_after: u32::from_be_bytes(not_after.try_into().ok()?),
        };
        Some((rest, Some(mark).filter(|mark| mark.not_after != 0)))
    }
}

impl Shard {
    /// Whether the client certificate of a connection is on the deny list.
    pub(super) fn is_certificate_denied(&self, slot: ConnectionSlot, now: Moment) -> bool {
        let mark = self.sweep.mark(slot);
        mark.is_some_and(|mark| self.settings_of(slot).deny.refuses_certificate(mark.fingerprint, now))
    }

    /// Looks at the next slice, if a look is underway or due.
    pub(super) fn sweep(&mut self, now: Moment) {
        let depends_on_time = self.settings.iter().any(ends_by_time);
        match self.sweep.next {
            Some(next) if depends_on_time && !next.is_after(now.tick()) => self.sweep.begin(),
            None if depends_on_time => self.sweep.next = Some(now.tick().plus(LOOK_TICKS)),
            Some(_) if !depends_on_time => self.sweep.next = None,
            _ => {}
        }
        let Some(position) = self.sweep.position else { return };
        let policies: Vec<_> = self.settings.iter().map(|settings| settings.tls.policy()).collect();
        let end = (position + SLOTS).min(self.slots);
        let mut ended = 0;
        for slot in (position..end).map(ConnectionSlot::at) {
            if ended == ENDED {
                self.sweep.position = Some(slot.index());
                return;
            }
            let Some(connection) = self.connections.get(slot) else { continue };
            let listener = connection.listener().index();
            let mark = self.sweep.mark(slot);
            let Some(reason) = reason_to_end(connection, mark, &self.settings[listener], &policies[listener], now)
            else {
                continue;
            };
            let termination = match reason {
                CloseReason::ConnectionAge => {
                    Termination::new(reason).with_retry_after(self.random.u32(RETRY_AFTER_MS))
                }
                _ => Termination::new(reason),
            };
            self.end(slot, &termination, now);
            ended += 1;
        }
        self.sweep.position = (end < self.slots).then_some(end);
        if self.sweep.position.is_none() {
            self.sweep.next = depends_on_time.then(|| now.tick().plus(LOOK_TICKS));
        }
    }
}

fn ends_by_time(settings: &ListenerSettings) -> bool {
    settings.max_age_ticks.is_some() || settings.on_expired == WhenOver::Close
}

/// Why a connection ends now, if so.
fn reason_to_end(
    connection: &Connection,
    mark: Option<CertificateMark>,
    settings: &ListenerSettings,
    policy: &TlsPolicy,
    now: Moment,
) -> Option<CloseReason> {
    // Whoever is on the way to another worker is looked at there, when it is a device.
    if connection.facts().is_none() || connection.is_closed() || connection.is_moving() {
        return None;
    }
    if let Some(mark) = mark {
        if settings.deny.refuses_certificate(mark.fingerprint, now) {
            return Some(CloseReason::Denied);
        }
        if settings.on_revoked == WhenOver::Close && policy.revokes(&mark) {
            return Some(CloseReason::CertificateRevoked);
        }
        if settings.on_expired == WhenOver::Close && policy.is_over(&mark) {
            return Some(CloseReason::CertificateExpired);
        }
    }
    let most = settings.max_age_ticks?;
    // Those that came together do not go together: each has its own part of the last tenth.
    let part = connection.generation().wrapping_mul(0x9e37_79b9) >> 16;
    let bound = most - ((u64::from(most / 10) * u64::from(part)) >> 16) as u32;
    (now.tick().since(connection.connected_at()) >= bound).then_some(CloseReason::ConnectionAge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_travels_and_none_stays_none() {
        let mark = CertificateMark { revocation: 1, fingerprint: 2, not_after: 3 };
        let mut sweep = Sweep::default();
        sweep.set_mark(ConnectionSlot(5), None);
        assert!(sweep.marks.is_empty(), "nobody pays for what nobody has");
        sweep.set_mark(ConnectionSlot(7), Some(mark));
        for (slot, expected) in [(7, Some(mark)), (6, None), (100, None)] {
            let mut out = b"connection".to_vec();
            sweep.pack(ConnectionSlot(slot), &mut out);
            assert_eq!(Sweep::unpack(&out), Some((&b"connection"[..], expected)));
        }
        sweep.set_mark(ConnectionSlot(7), None);
        assert_eq!(sweep.mark(ConnectionSlot(7)), None);
        assert_eq!(Sweep::unpack(&[0; 19]), None);
    }
}
