//! Commands to devices that are nowhere: they wait until the device comes. Where is a [`Place`]: a stream of NATS for gateways that
//! are one fleet, the store of one that is alone.
//!
//! ```text
//!   nobody has the device ──▶ the place ──▶ whoever has the device by now is told
//!                               │ each gateway reads what is new: which devices are waited for ([`Expected`])
//!   the device came here ───────┴──▶ the oldest that waits ──▶ "sent" (compare-and-set) ──▶ the device ──▶ acknowledged (compare-and-set) ──▶ gone
//! ```
//!
//! Each command has one outcome, written once by compare-and-set under its id, whoever tries: acknowledged, expired, refused or
//! cancelled. It is sent at least once if it is acknowledged: what was sent and not acknowledged is sent again until it expires.
//!
//! Nothing is missed: who puts a command looks for the device after the place has it, and whoever has a device looks for commands
//! after it is known to be there, so one of the two sees the other; and what was put by a gateway that died then is found by reading
//! on.
//!
//! What is not here: NATS, SQLite, workers. They are behind [`Place`] and [`Here`].

mod desk;
mod place;
mod schedule;

#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::link::{Downlink, is_refused_for_now};

pub use desk::{Counts, Desk};
pub use place::{Here, Listed, NotPut, Place, Said};
pub use schedule::{Commands, Expected, TRIED_MAX};

/// Commands that may wait for one device,
pub const PER_DEVICE_MAX: u32 = 32;
/// and for all of them;
pub const ALL_MAX: u32 = 100_000;
/// and their bytes.
pub const BYTES_MAX: u64 = 256 << 20;
/// The longest that one may wait.
pub const EXPIRY_MAX: Duration = Duration::from_hours(24 * 7);
/// How long outcomes can be asked for.
pub const OUTCOMES_FOR: Duration = Duration::from_hours(24 * 7);
/// Devices that are known to be waited for; beyond that all is read again.
pub const KNOWN_MAX: usize = 200_000;
/// What one of them takes, in bytes: its part of all that is kept of devices, those that are told and tried again included.
pub const KNOWN_BYTES: usize = 16;

/// How long a device may take to acknowledge one.
const PATIENCE: Duration = Duration::from_secs(30);
/// What an answer may take beyond that.
pub const SLACK: Duration = Duration::from_millis(500);
/// Devices whose commands are read in one go.
const READ_AT_ONCE: usize = 500;
/// So many are looked at for whether their time is over before others have their turn,
const LOOKED_AT_ONCE: usize = 500;
/// for so long.
const OTHERS_TURN: Duration = Duration::from_millis(50);
/// Tries to write an outcome while others write it too.
const TRIES_MAX: usize = 8;

/// A command as it waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Makes its id another one than that of a command in a place before this one.
    pub tag: Box<str>,
    /// Under which topic it is told.
    pub topic: Box<str>,
    /// In JSON in base64.
    #[serde(with = "base64_text")]
    pub payload: Bytes,
    /// When it was put, as Unix time in milliseconds,
    pub put_ms: u64,
    /// and when its time is over.
    pub expires_ms: u64,
    /// The gateway that took it.
    pub by: Box<str>,
}

impl Command {
    /// What is to be known of it for its outcome.
    #[must_use]
    pub fn brief(&self, number: u64, device: &str) -> Brief {
        let Self { tag, put_ms, expires_ms, by, .. } = self;
        let id = id_of(number, tag);
        Brief { number, id, device: device.into(), put_ms: *put_ms, expires_ms: *expires_ms, by: by.clone() }
    }

    /// Reads one that another gateway may have written. `None`: whoever put it is no gateway.
    #[must_use]
    pub fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// The same as JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it has no keys but texts")
    }
}

/// A command without what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brief {
    /// Its number in its place.
    pub number: u64,
    /// Its id.
    pub id: String,
    /// For which device it waits.
    pub device: Box<str>,
    /// When it was put, as Unix time in milliseconds,
    pub put_ms: u64,
    /// and when its time is over.
    pub expires_ms: u64,
    /// The gateway that took it.
    pub by: Box<str>,
}

impl Brief {
    /// What is known of one that nobody has tried to send.
    fn first(&self) -> Known {
        let Self { device, put_ms, by, .. } = self;
        Known { device: device.clone(), fate: Fate::Queued, at_ms: *put_ms, tries: 0, node: by.clone(), why: None }
    }
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It waits for its device.
    Queued,
    /// It is sent, or was, and is not acknowledged yet: it is sent again.
    Sent,
    /// The device has acknowledged it.
    Acknowledged,
    /// Its time was over before the device acknowledged it. If it was sent, it may have arrived.
    Expired,
    /// The device takes no such message.
    Refused,
    /// Somebody took it back. If it was sent, it may have arrived.
    Cancelled,
}

impl Fate {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Sent, Self::Acknowledged, Self::Expired, Self::Refused, Self::Cancelled];

    /// Its word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Fate::Queued => "queued",
            Fate::Sent => "sent",
            Fate::Acknowledged => "acknowledged",
            Fate::Expired => "expired",
            Fate::Refused => "refused",
            Fate::Cancelled => "cancelled",
        }
    }

    /// Whether nothing comes after it.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Fate::Queued | Fate::Sent)
    }
}

/// What is known of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// For which device.
    pub device: Box<str>,
    /// What became of it.
    pub fate: Fate,
    /// When, as Unix time in milliseconds.
    pub at_ms: u64,
    /// How often it was tried to send it.
    pub tries: u32,
    /// The gateway that tried last, or took it where nobody has.
    pub node: Box<str>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Why a command does not wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotQueued {
    /// The place does not answer: it may wait all the same.
    Away,
    /// There is no room; what the place says.
    Full(String),
}

impl From<NotPut> for NotQueued {
    fn from(why: NotPut) -> Self {
        match why {
            NotPut::Full(why) => Self::Full(why),
            NotPut::Lost(_) => Self::Away,
        }
    }
}

/// Has a command wait for a device that is nowhere; its id. It is there when this returns.
///
/// # Errors
/// [`NotPut`].
pub async fn put<H: Here>(
    here: &H,
    place: &impl Place,
    device: &str,
    downlink: &Downlink,
    expiry: Duration,
) -> Result<String, NotPut> {
    let now_ms = unix_ms();
    let command = Command {
        tag: format!("{:08x}", fastrand::u32(..)).into(),
        topic: downlink.topic.clone(),
        payload: downlink.payload.clone(),
        put_ms: now_ms,
        expires_ms: now_ms.saturating_add(expiry.min(EXPIRY_MAX).as_millis() as u64),
        by: here.node().into(),
    };
    let number = place.put(device, &command).await?;
    here.desk().note_put();
    Ok(id_of(number, &command.tag))
}

/// What is known of a command, after it was given this fate unless it has one. `None`: nothing, or no more. One whose time is over
/// has expired with this.
///
/// # Errors
/// There is no answer; why.
pub async fn look<H: Here>(
    here: &H,
    place: &impl Place,
    id: &str,
    unless_final: Option<Fate>,
) -> Result<Option<Known>, String> {
    // What is no id may not be asked for either: it could be a pattern of subjects.
    let Some(number) = number_of(id) else { return Ok(None) };
    let (_, known) = place.outcome(id).await?;
    if let Some(known) = known.as_ref().filter(|known| known.fate.is_final()) {
        return Ok(Some(known.clone()));
    }
    let Some(brief) = place.at(number).await?.filter(|brief| brief.id == *id) else {
        // It went between the two looks.
        return Ok(place.outcome(id).await?.1);
    };
    let fate = if brief.expires_ms <= unix_ms() { Some(Fate::Expired) } else { unless_final };
    if let Some(fate) = fate {
        let known = settle(here, place, &brief, |_| (fate, None)).await?;
        place.remove(number).await?;
        return Ok(Some(known));
    }
    Ok(Some(known.unwrap_or_else(|| brief.first())))
}

/// Writes an outcome, unless there is a final one: what stands there then. Whoever comes first wins.
async fn settle<H: Here>(
    here: &H,
    place: &impl Place,
    brief: &Brief,
    fate: impl Fn(&Known) -> (Fate, Option<String>),
) -> Result<Known, String> {
    for _ in 0..TRIES_MAX {
        let (revision, known) = place.outcome(&brief.id).await?;
        let before = known.unwrap_or_else(|| brief.first());
        if before.fate.is_final() {
            return Ok(before);
        }
        let (fate, why) = fate(&before);
        let mut after = Known { fate, why, at_ms: unix_ms(), ..before };
        if fate == Fate::Sent {
            after.tries = after.tries.saturating_add(1);
            after.node = here.node().into();
        }
        if place.write_outcome(&brief.id, revision, &after).await? {
            here.desk().note_fate(fate);
            return Ok(after);
        }
    }
    Err("others write the same outcome all the time".to_owned())
}

/// What is to be done about a device next.
#[derive(Debug, PartialEq, Eq)]
enum After {
    /// Nothing waits, or the device has gone.
    Nothing,
    /// Something waits that it did not take now.
    Again,
    /// The place did not answer; what the device did acknowledge is remembered.
    Broken,
}

/// Says to a device what waits for it, in order. One that it does not take now is passed over.
async fn deliver<H: Here>(here: &H, place: &impl Place, device: &str) -> Result<After, String> {
    let (mut from, mut after) = (1, After::Nothing);
    while let Some((number, command)) = place.next(device, from).await? {
        from = number + 1;
        let Some(command) = command else {
            tracing::warn!(
                device,
                number,
                "a command that waits is not understood: whoever put it is no gateway; it is let go"
            );
            place.remove(number).await?;
            continue;
        };
        let brief = command.brief(number, device);
        if here.desk().take_owed(&brief.id) {
            let settled = settle(here, place, &brief, |_| (Fate::Acknowledged, None)).await;
            settled.inspect_err(|_| here.desk().owe(&brief.id))?;
            place.remove(number).await?;
            continue;
        }
        if !here.has(device).await {
            return Ok(After::Nothing);
        }
        let left = brief.expires_ms.saturating_sub(unix_ms());
        let fate = if left == 0 { Fate::Expired } else { Fate::Sent };
        let known = settle(here, place, &brief, |_| (fate, None)).await?;
        if known.fate.is_final() {
            place.remove(number).await?;
            continue;
        }
        let downlink = Downlink { topic: command.topic, payload: command.payload };
        let fate = match here.say(device, downlink, PATIENCE.min(Duration::from_millis(left))).await {
            Said::Acknowledged => (Fate::Acknowledged, None),
            Said::Refused(why) if !is_refused_for_now(&why) => (Fate::Refused, Some(why)),
            // It comes again.
            Said::Offline => return Ok(After::Nothing),
            Said::Refused(_) | Said::NotNow => {
                after = After::Again;
                continue;
            }
        };
        let is_acknowledged = fate.0 == Fate::Acknowledged;
        let settled = settle(here, place, &brief, |_| fate.clone()).await;
        settled.inspect_err(|_| {
            if is_acknowledged {
                here.desk().owe(&brief.id);
            }
        })?;
        place.remove(number).await?;
    }
    Ok(after)
}

/// The devices for which something was put from this number on, up to which number, and whether there may be more.
///
/// # Errors
/// There is no answer; why.
pub async fn read(place: &impl Place, from: u64) -> Result<(u64, Vec<Box<str>>, bool), String> {
    let (mut upto, mut devices) = (from.saturating_sub(1), Vec::new());
    while devices.len() < READ_AT_ONCE {
        let page = place.page(upto + 1, None).await?;
        if page.is_empty() {
            return Ok((upto, devices, false));
        }
        for Listed { number, device, .. } in page {
            upto = number;
            devices.extend(device);
        }
    }
    Ok((upto, devices, true))
}

/// Lets all go whose time is over, each with that outcome. How many.
///
/// # Errors
/// There is no answer; why.
pub async fn expire<H: Here>(here: &H, place: &impl Place) -> Result<u64, String> {
    let (mut from, mut count, mut looked) = (1, 0, 0);
    loop {
        let now_ms = unix_ms();
        let page = place.page(from, Some(now_ms)).await?;
        let Some(last) = page.last() else { return Ok(count) };
        from = last.number + 1;
        looked += page.len();
        for brief in page.into_iter().filter_map(|listed| listed.brief).filter(|brief| brief.expires_ms <= now_ms) {
            settle(here, place, &brief, |_| (Fate::Expired, None)).await?;
            place.remove(brief.number).await?;
            count += 1;
        }
        if looked >= LOOKED_AT_ONCE {
            looked = 0;
            tokio::time::sleep(OTHERS_TURN).await;
        }
    }
}

/// The id of a command: its number, and what makes it another one than that of a place before.
#[must_use]
pub fn id_of(number: u64, tag: &str) -> String {
    format!("{number}-{tag}")
}

fn number_of(id: &str) -> Option<u64> {
    let (number, tag) = id.split_once('-')?;
    let is_tag = !tag.is_empty() && tag.len() <= 16 && tag.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_tag { number.parse().ok() } else { None }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Bytes as a text.
mod base64_text {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map(Bytes::from).map_err(serde::de::Error::custom)
    }
}
