//! What a device offers to come in, and what it is granted: one type for every way of proving who one is, and for what
//! the broker allows.
//!
//! ```text
//! Credentials ──▶ certificate, token, password, JWT, hook (control::auth) ──▶ Grant, or no, or "come again"
//! ```

use std::borrow::Cow;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::CloseReason;
use crate::time::Moment;
use crate::wire::{Reader, WireError, Writer};

/// Filters of a grant, each way.
pub const GRANT_FILTERS_MAX: usize = 64;
/// Bytes of all of them together.
pub const GRANT_BYTES_MAX: usize = 4_096;

/// What an authenticated device may do, and until when. The default grants what the listener's own rules say, for good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Whose it is, where the authenticator knows: the device must go by this id. Empty: it says nothing of the id.
    pub device: Box<str>,
    /// Where the device may publish: topic filters, in which `{device}` stands for its id. None: as the listener's rules say.
    pub publish: Option<Box<[String]>>,
    /// What it may subscribe to; the same.
    pub subscribe: Option<Box<[String]>>,
    /// The connection ends then, unless it was renewed.
    pub until: Option<Moment>,
    /// Whether the device may renew it on this connection: it came with an authentication method.
    pub is_renewable: bool,
}

impl Grant {
    /// Whether it says no more than the listener's rules do.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.publish.is_none() && self.subscribe.is_none() && self.until.is_none() && !self.is_renewable
    }

    /// Bytes of its filters.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.publish.iter().chain(&self.subscribe).flatten().map(|filter| size_of::<String>() + filter.len()).sum()
    }

    /// Appends it as bytes, but for the id, which the connection has.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut writer = Writer::new(out);
        writer.flag(self.is_renewable);
        writer.flag(self.until.is_some());
        writer.u64(self.until.unwrap_or_default().micros());
        for filters in [&self.publish, &self.subscribe] {
            writer.flag(filters.is_some());
            writer.length(filters.as_ref().map_or(0, |filters| filters.len() as u32));
            for filter in filters.iter().flatten() {
                writer.text(filter);
            }
        }
    }

    /// What [`Grant::encode`] wrote.
    ///
    /// # Errors
    /// [`WireError`]: the bytes are something else, or grant more than [`GRANT_FILTERS_MAX`] and [`GRANT_BYTES_MAX`] allow.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let is_renewable = reader.flag()?;
        let has_end = reader.flag()?;
        let until = reader.u64()?;
        let until = has_end.then(|| Moment::from_micros(until));
        let mut filters = || -> Result<Option<Box<[String]>>, WireError> {
            let is_there = reader.flag()?;
            let count = reader.length()?;
            if count as usize > GRANT_FILTERS_MAX {
                return Err(WireError::Length);
            }
            let filters = (0..count).map(|_| reader.text().map(str::to_owned)).collect::<Result<_, _>>()?;
            Ok(is_there.then_some(filters))
        };
        let (publish, subscribe) = (filters()?, filters()?);
        Ok(Self { device: Box::default(), publish, subscribe, until, is_renewable })
    }
}

/// What a device offers as proof of who it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The id that it goes by; empty: it has none yet.
    pub device: Box<str>,
    /// Whose secret it is: the user name of MQTT, the id of a native device. May be empty.
    pub name: Box<str>,
    /// Token, password or JWT; may be empty. Kept by [`Credentials::keep`].
    pub secret: Bytes,
    /// Its client certificate has named it.
    pub is_certified: bool,
    /// It came with an authentication method, which the listener takes.
    pub has_method: bool,
    /// It is here, and wants to stay for longer.
    pub is_renewal: bool,
}

impl Credentials {
    /// A secret that is wiped when the last who has it lets it go.
    #[must_use]
    pub fn keep(secret: &[u8]) -> Bytes {
        Bytes::from_owner(Zeroizing::new(secret.to_vec()))
    }
}

impl std::fmt::Debug for Credentials {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials {{ device: {:?}, name: {:?} }}", self.device, self.name)
    }
}

/// What became of a check of who a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthAnswer {
    /// It is who it says, and may do this.
    Accepted(Box<Grant>),
    /// Its proof is wrong: for which reason, and in words.
    Rejected(CloseReason, Cow<'static, str>),
    /// Nobody had the time to find out, or whoever knows does not answer: it may come again later. Never said of a proof that
    /// was looked at.
    Busy(CloseReason, Cow<'static, str>),
}

impl AuthAnswer {
    /// The listener's rules hold for it.
    #[must_use]
    pub fn plain() -> Self {
        Self::Accepted(Box::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_travels() {
        let full = Grant {
            device: Box::default(),
            publish: Some(["devices/{device}/#".to_owned(), "x".to_owned()].into()),
            subscribe: Some(Box::default()),
            until: Some(Moment::from_micros(77)),
            is_renewable: true,
        };
        for grant in [Grant::default(), full.clone()] {
            let mut bytes = Vec::new();
            grant.encode(&mut bytes);
            let mut reader = Reader::new(&bytes);
            assert_eq!(Grant::decode(&mut reader), Ok(grant));
            assert!(reader.is_empty());
            for end in 0..bytes.len() {
                assert!(Grant::decode(&mut Reader::new(&bytes[..end])).is_err());
            }
        }
        let many = Grant { publish: Some(vec!["x".to_owned(); GRANT_FILTERS_MAX + 1].into()), ..full };
        let mut bytes = Vec::new();
        many.encode(&mut bytes);
        assert_eq!(Grant::decode(&mut Reader::new(&bytes)), Err(WireError::Length));
    }

    #[test]
    fn a_secret_is_not_printed() {
        let credentials = Credentials {
            device: "m1".into(),
            name: "m1".into(),
            secret: Bytes::from_static(b"open sesame"),
            is_certified: false,
            has_method: false,
            is_renewal: false,
        };
        assert!(!format!("{credentials:?}").contains("sesame"));
    }
}
