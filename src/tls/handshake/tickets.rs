//! Tickets: sessions that the client keeps for us, sealed.
//!
//! ```text
//! | key's name 8 | nonce 12 | sealed: since 8 | until 8 | rustls's session | tag 16 |
//! ```
//! AES-256-GCM-SIV, with the listener's set of rules about clients (its name, whether certificates are asked for, the
//! authorities, the revocation lists) as additional data: a ticket opens under exactly the rules under which it was
//! sealed, and on no other listener. `since` is when the full handshake was that the session goes back to, however often
//! it was resumed in between; `until` is when the first certificate of its chain ends.
//!
//! A ticket that is too old, or whose certificate has ended, is declined and nothing else: the client then makes a full
//! handshake, with the certificate that it has now. To refuse it would keep out a device that has renewed in time.
//!
//! rustls seals and sends the tickets of TLS 1.2. Those of TLS 1.3 we send ourselves, since rustls's have nonces that are
//! too long for some clients (`suites.rs`) and one lifetime for all.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::rand;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use rustls::server::ProducesTickets;
use rustls::time_provider::TimeProvider;
use zeroize::Zeroizing;

use super::scope::{self, Origin, Proof};
use super::suites::TICKET_NONCE;
use crate::tls::certs::{LoadProblem, TlsLoadError};
use crate::whole_file;

/// How long a key of our own seals. It opens for the lifetime of a ticket longer.
const ROTATION_SECONDS: u64 = 6 * 3_600;
/// A ticket that is good for less than this is not worth its bytes.
const LIFETIME_MIN: u64 = 60;
/// RFC 8446 section 4.6.1: "Servers MUST NOT use any value greater than 604800 seconds (7 days)."
const LIFETIME_MAX: u64 = 604_800;
/// Clocks of two gateways that share a key may differ by so much.
const CLOCK_SLACK: u64 = 300;

const NAME_LEN: usize = 8;
const HEAD_LEN: usize = 16;
/// Bytes of a key in a file, at least.
const FILE_KEY_MIN: usize = 32;
const NEW_SESSION_TICKET: u8 = 4;

/// The keys of one listener's tickets: of its own and changed every few hours, or from a file that a fleet shares.
pub(super) struct TicketKeys {
    ring: ArcSwap<Ring>,
}

/// The first seals, all open.
#[derive(Clone)]
struct Ring {
    keys: Vec<Arc<TicketKey>>,
    /// From a file: somebody else changes them.
    is_shared: bool,
}

struct TicketKey {
    name: [u8; NAME_LEN],
    aead: LessSafeKey,
    made: u64,
}

impl TicketKeys {
    /// Keys that nobody else has.
    pub fn random(now: u64) -> Result<Self, rustls::Error> {
        let ring = Ring { keys: vec![Arc::new(TicketKey::random(now)?)], is_shared: false };
        Ok(Self { ring: ArcSwap::from_pointee(ring) })
    }

    /// Keys from a file: a line each, base64, the first seals.
    pub fn load(path: &Path) -> Result<Self, TlsLoadError> {
        let fault = |problem| TlsLoadError::of_file(path, problem);
        let text = Zeroizing::new(whole_file::read(path).map_err(|error| fault(LoadProblem::Unreadable(error)))?);
        let text = std::str::from_utf8(&text).map_err(|_| fault(LoadProblem::BadTicketKey(1)))?;
        let mut keys = Vec::new();
        for (index, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let secret = BASE64_STANDARD.decode(line).map(Zeroizing::new).ok();
            let secret = secret.filter(|secret| secret.len() >= FILE_KEY_MIN);
            let secret = secret.ok_or_else(|| fault(LoadProblem::BadTicketKey(index + 1)))?;
            keys.push(Arc::new(TicketKey::derive(&secret)));
        }
        if keys.is_empty() {
            return Err(fault(LoadProblem::NoTicketKey));
        }
        Ok(Self { ring: ArcSwap::from_pointee(Ring { keys, is_shared: true }) })
    }

    /// Goes on with the keys of a set that this one replaces. Keys from a file are as the file has them.
    pub fn adopt(&self, before: &TicketKeys) {
        let (ours, theirs) = (self.ring.load(), before.ring.load());
        if !ours.is_shared && !theirs.is_shared {
            self.ring.store(Arc::clone(&theirs));
        }
    }

    /// The key that seals now. One of our own that has sealed for long enough makes room for a new one.
    fn sealing(&self, now: u64, lifetime: u64) -> Option<Arc<TicketKey>> {
        let ring = self.ring.load_full();
        let first = ring.keys.first()?;
        if ring.is_shared || now < first.made.saturating_add(ROTATION_SECONDS) {
            return Some(Arc::clone(first));
        }
        let fresh = Arc::new(TicketKey::random(now).ok()?);
        let opens = |key: &&Arc<TicketKey>| now < key.made + ROTATION_SECONDS + lifetime;
        let keys = std::iter::once(&fresh).chain(ring.keys.iter().filter(opens)).cloned().collect();
        // Two threads may come at once: the second one's key is never known to anybody, and the first one's seals.
        let found = self.ring.compare_and_swap(&ring, Arc::new(Ring { keys, is_shared: false }));
        if Arc::ptr_eq(&found, &ring) { Some(fresh) } else { found.keys.first().cloned() }
    }

    fn named(&self, name: &[u8]) -> Option<Arc<TicketKey>> {
        self.ring.load().keys.iter().find(|key| key.name == name).cloned()
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKeys(..)")
    }
}

impl TicketKey {
    fn random(now: u64) -> Result<Self, rustls::Error> {
        let mut secret = Zeroizing::new([0; FILE_KEY_MIN]);
        rand::fill(&mut *secret).map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
        Ok(Self { made: now, ..Self::derive(&*secret) })
    }

    /// Whoever has the same secret has the same key under the same name.
    fn derive(secret: &[u8]) -> Self {
        let prk = Salt::new(HKDF_SHA256, b"pulsegate ticket key 1").extract(secret);
        let (mut key, mut name) = (Zeroizing::new([0; 32]), [0; 32]);
        for (label, out) in [(&b"key"[..], &mut *key), (b"name", &mut name)] {
            let filled = prk.expand(&[label], HKDF_SHA256).and_then(|okm| okm.fill(out));
            filled.expect("an output of one hash");
        }
        let aead = UnboundKey::new(&AES_256_GCM_SIV, &*key).expect("a key of 32 bytes");
        let name = *name.first_chunk().expect("a name of 8 bytes");
        Self { name, aead: LessSafeKey::new(aead), made: 0 }
    }
}

/// What seals and opens the tickets of one set of rules.
pub(super) struct Ticketer {
    pub keys: Arc<TicketKeys>,
    /// What must be the same when a ticket is opened: see the head of this file.
    pub rules: [u8; 32],
    /// From the full handshake, in seconds.
    pub lifetime: u64,
    pub clock: Arc<dyn TimeProvider>,
}

impl Ticketer {
    /// The time in seconds since 1970.
    pub fn now(&self) -> Option<u64> {
        self.clock.current_time().map(|now| now.as_secs())
    }

    /// For how many seconds a ticket of this proof is good. None: not worth one.
    fn good_for(&self, proof: Proof, now: u64) -> Option<u64> {
        let end = proof.since.saturating_add(self.lifetime).min(proof.until.saturating_add(1));
        let left = end.saturating_sub(now).min(LIFETIME_MAX);
        (left >= LIFETIME_MIN.min(self.lifetime) && left > 0).then_some(left)
    }

    fn seal(&self, proof: Proof, session: &[u8], now: u64) -> Option<Vec<u8>> {
        let key = self.keys.sealing(now, self.lifetime)?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(NAME_LEN + NONCE_LEN + HEAD_LEN + session.len() + 16);
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(&nonce);
        let start = ticket.len();
        ticket.extend_from_slice(&proof.since.to_be_bytes());
        ticket.extend_from_slice(&proof.until.to_be_bytes());
        ticket.extend_from_slice(session);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.aead.seal_in_place_separate_tag(nonce, Aad::from(self.rules), &mut ticket[start..]).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    /// The session in a ticket of ours that is still good, and the proof that it goes back to.
    fn open(&self, ticket: &[u8], now: u64) -> Option<(Proof, Vec<u8>)> {
        let (name, rest) = ticket.split_at_checked(NAME_LEN)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let key = self.keys.named(name)?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = key.aead.open_in_place(nonce, Aad::from(self.rules), &mut sealed).ok()?;
        let (since, rest) = plain.split_first_chunk()?;
        let (until, session) = rest.split_first_chunk()?;
        let proof = Proof { since: u64::from_be_bytes(*since), until: u64::from_be_bytes(*until) };
        let is_good = proof.since <= now.saturating_add(CLOCK_SLACK)
            && now < proof.since.saturating_add(self.lifetime)
            && now <= proof.until;
        is_good.then(|| (proof, session.to_vec()))
    }

    /// The message that brings a TLS 1.3 client its ticket (RFC 8446 section 4.6.1); none when it is not worth one.
    ///
    /// ```text
    /// | 4 length, 3 | lifetime 4 | age_add 4 | nonce 1 + 8 | ticket 2 + … | extensions 2: none |
    /// ```
    pub fn message(&self, origin: Origin, resumed: bool, session: &[u8]) -> Option<Vec<u8>> {
        let now = self.now()?;
        let proof = match origin.ticket {
            Some(proof) if resumed => proof,
            _ => Proof { since: now, until: origin.verified_until.unwrap_or(u64::MAX) },
        };
        let lifetime = self.good_for(proof, now)? as u32;
        let ticket = self.seal(proof, session, now)?;
        // What rustls will subtract from the age that the client tells is the last field of its session.
        let age_add = session.last_chunk::<4>()?;
        let ticket_length = u16::try_from(ticket.len()).ok()?;
        let mut body = Vec::with_capacity(21 + ticket.len());
        body.extend_from_slice(&lifetime.to_be_bytes());
        body.extend_from_slice(age_add);
        body.push(TICKET_NONCE.len() as u8);
        body.extend_from_slice(&TICKET_NONCE);
        body.extend_from_slice(&ticket_length.to_be_bytes());
        body.extend_from_slice(&ticket);
        body.extend_from_slice(&[0, 0]);
        let [_, length @ ..] = (body.len() as u32).to_be_bytes();
        Some([&[NEW_SESSION_TICKET][..], &length, &body].concat())
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        scope::ticket_lifetime().unwrap_or_else(|| self.lifetime.min(LIFETIME_MAX) as u32)
    }

    /// Called for each ticket that rustls would send. Of TLS 1.3 it sends none.
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        if scope::keep_session(plain) {
            return None;
        }
        let now = self.now()?;
        let origin = scope::origin();
        let proof = match (origin.verified_until, origin.ticket) {
            (Some(until), _) => Proof { since: now, until },
            // Either this connection is a resumption, or its ticket was not taken and it is older than it might be.
            (None, Some(proof)) => proof,
            (None, None) => Proof { since: now, until: u64::MAX },
        };
        let lifetime = self.good_for(proof, now)?;
        scope::set_ticket_lifetime(lifetime as u32);
        self.seal(proof, plain, now)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let (proof, session) = self.open(cipher, self.now()?)?;
        scope::note_ticket(proof);
        Some(session)
    }
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticketer").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rustls::time_provider::DefaultTimeProvider;

    use super::*;

    const LIFETIME: u64 = 12 * 3_600;

    fn ticketer(keys: &Arc<TicketKeys>, rules: u8) -> Ticketer {
        Ticketer {
            keys: Arc::clone(keys),
            rules: [rules; 32],
            lifetime: LIFETIME,
            clock: Arc::new(DefaultTimeProvider),
        }
    }

    fn proof(since: u64, until: u64) -> Proof {
        Proof { since, until }
    }

    #[test]
    fn a_ticket_opens_under_its_own_rules_within_its_time() {
        let keys = Arc::new(TicketKeys::random(1_000).unwrap());
        let ours = ticketer(&keys, 1);
        let proof = proof(1_000, 20_000);
        let ticket = ours.seal(proof, b"a session", 1_000).unwrap();
        let opened = |ticketer: &Ticketer, now| ticketer.open(&ticket, now);
        assert_eq!(opened(&ours, 1_000), Some((proof, b"a session".to_vec())));
        assert!(opened(&ours, 20_000).is_some() && opened(&ours, 20_001).is_none(), "the certificate ends");
        assert!(opened(&ours, 699).is_none(), "from the future");
        assert_eq!(opened(&ticketer(&keys, 2), 1_000), None, "other rules");
        assert_eq!(opened(&ticketer(&Arc::new(TicketKeys::random(0).unwrap()), 1), 1_000), None, "other keys");
        let ticket = ours.seal(Proof { until: u64::MAX, ..proof }, b"", 1_000).unwrap();
        assert!(ours.open(&ticket, 1_000 + LIFETIME - 1).is_some() && ours.open(&ticket, 1_000 + LIFETIME).is_none());
        for position in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[position] ^= 1;
            assert!(ours.open(&changed, 1_000).is_none() && ours.open(&ticket[..position], 1_000).is_none());
        }
    }

    #[test]
    fn keys_change_and_open_for_a_lifetime_longer() {
        let keys = Arc::new(TicketKeys::random(0).unwrap());
        let ours = ticketer(&keys, 1);
        let first = ours.seal(proof(0, u64::MAX), b"", 0).unwrap();
        let last = ours.seal(proof(ROTATION_SECONDS - 1, u64::MAX), b"", ROTATION_SECONDS - 1).unwrap();
        assert_eq!(first[..NAME_LEN], last[..NAME_LEN]);
        let next = ours.seal(proof(ROTATION_SECONDS, u64::MAX), b"", ROTATION_SECONDS).unwrap();
        assert_ne!(first[..NAME_LEN], next[..NAME_LEN]);
        assert!(ours.open(&last, ROTATION_SECONDS + LIFETIME - 2).is_some());
        for turn in 2..20 {
            ours.seal(proof(0, 0), b"", turn * ROTATION_SECONDS).unwrap();
            assert!(keys.ring.load().keys.len() <= 4);
        }
        assert!(keys.named(&first[..NAME_LEN]).is_none(), "what seals nothing that is still good is forgotten");
    }

    #[test]
    fn a_set_that_replaces_another_goes_on_with_its_keys() {
        let before = TicketKeys::random(0).unwrap();
        let after = Arc::new(TicketKeys::random(0).unwrap());
        let ticket = ticketer(&Arc::new(TicketKeys { ring: ArcSwap::new(before.ring.load_full()) }), 1);
        let ticket = ticket.seal(proof(0, u64::MAX), b"", 0).unwrap();
        assert!(ticketer(&after, 1).open(&ticket, 1).is_none());
        after.adopt(&before);
        assert!(ticketer(&after, 1).open(&ticket, 1).is_some() && ticketer(&after, 2).open(&ticket, 1).is_none());
    }

    #[test]
    fn who_shares_a_file_opens_what_the_other_sealed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tickets.keys");
        let (one, two) = (BASE64_STANDARD.encode([1; 48]), BASE64_STANDARD.encode([2; 32]));
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            TicketKeys::load(&path).map(Arc::new)
        };
        let here = ticketer(&load(&format!("# made by openssl rand\n{one}\n")).unwrap(), 1);
        let there = ticketer(&load(&format!("{two}\n\n{one}\n")).unwrap(), 1);
        let ticket = here.seal(proof(0, u64::MAX), b"s", 0).unwrap();
        assert!(there.open(&ticket, 0).is_some());
        assert!(here.open(&there.seal(proof(0, u64::MAX), b"s", 0).unwrap(), 0).is_none(), "a key of the other's");
        // They never change by themselves, and a reload brings what the file has.
        let late = here.seal(proof(0, u64::MAX), b"s", 100 * ROTATION_SECONDS).unwrap();
        assert_eq!(late[..NAME_LEN], ticket[..NAME_LEN]);
        for (text, line) in [("c2hvcnQ=", 1), ("\nnot base64!", 2)] {
            let error = load(text).unwrap_err();
            assert!(matches!(error.problem, LoadProblem::BadTicketKey(at) if at == line), "{error}");
        }
        assert!(matches!(load("# nothing").unwrap_err().problem, LoadProblem::NoTicketKey));
    }

    #[test]
    fn a_ticket_s_lifetime_is_what_is_left_of_the_full_handshake_s() {
        let ours = ticketer(&Arc::new(TicketKeys::random(0).unwrap()), 1);
        for (since, until, now, left) in [
            (0, u64::MAX, 0, Some(LIFETIME)),
            (0, u64::MAX, LIFETIME - 100, Some(100)),
            (0, u64::MAX, LIFETIME - 59, None),
            (0, 999, 500, Some(500)),
            (0, 10, 500, None),
        ] {
            assert_eq!(ours.good_for(proof(since, until), now), left, "{since} {until} {now}");
        }
        let now = ours.now().unwrap();
        let message = ours.message(Origin::default(), false, b"session, age_add 1234").unwrap();
        assert!(
            u64::from_be_bytes([0, 0, 0, 0, message[4], message[5], message[6], message[7]]) == LIFETIME && now > 0
        );
        assert_eq!(message[..4], [4, 0, 0, (message.len() - 4) as u8]);
        assert_eq!((&message[8..12], message[12]), (&b"1234"[..], 8));
    }
}
