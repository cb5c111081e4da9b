//! Keys and subjects of a fleet. There are subjects for gateways and none for devices: what interest costs grows with gateways.
//!
//! | what | name |
//! | --- | --- |
//! | the bucket of leases, and the key of one | `PREFIX_gateways`, the gateway's name |
//! | the bucket of devices, and the key of one | `PREFIX_devices`, the device's id |
//! | the bucket of sessions, and the key of one | `PREFIX_sessions`, the device's id |
//! | the bucket of groups of shared subscribers, the key of one, and its consumer | `PREFIX_groups`, `link::group_key`, `group-KEY-…` |
//! | in that bucket, that a gateway has died | `dead.` and the gateway's name |
//! | there, how far a gateway has come | `cursor.NAME` |
//! | the bucket of those who are kept out, and the key of one | `PREFIX_blocks`, `device ID` and the like |
//! | the bucket of retained messages, and the key of one | `PREFIX_retained`, the topic: a level a token |
//! | what gateways say to one | `PREFIX.gateway.NAME` |
//! | the stream of commands that wait, and the subject of one | `PREFIX_commands`, `PREFIX.command.DEVICE` |
//! | the stream of what became of them, and the subject of one | `PREFIX_outcomes`, `PREFIX.outcome.ID` |
//! | what anybody says to a device | `PREFIX.send.DEVICE`, which every gateway hears |
//!
//! A key of a bucket may hold letters, digits, `-`, `_`, `=`, `/` and `.`; all bytes of an id that are none of the first four are
//! written as `=` and two hexadecimal digits, so that no two ids share a key and each is read back.

use crate::link::Subject;
use crate::sink::nats::bucket::{self, key, unkey as name};
use crate::sink::nats::subject;

/// Names of one fleet.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// Those that begin so.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The bucket of leases.
    pub fn gateways(&self) -> String {
        format!("{}_gateways", self.prefix)
    }

    /// The bucket of devices.
    pub fn devices(&self) -> String {
        format!("{}_devices", self.prefix)
    }

    /// The bucket of sessions.
    pub fn sessions(&self) -> String {
        format!("{}_sessions", self.prefix)
    }

    /// The subject that a session's row is written under.
    pub fn session(&self, device: &str) -> String {
        format!("$KV.{}.{}", self.sessions(), key(device))
    }

    /// The subjects of all sessions' rows.
    pub fn all_sessions(&self) -> String {
        format!("$KV.{}.*", self.sessions())
    }

    /// The subjects of what else is in their bucket: no device has a key of two levels.
    pub fn beside_sessions(&self) -> String {
        format!("$KV.{}.*.>", self.sessions())
    }

    /// Whose session's row stands under a subject.
    pub fn session_of(&self, subject: &str) -> Option<String> {
        name(subject.strip_prefix("$KV.")?.strip_prefix(&*self.sessions())?.strip_prefix('.')?)
    }

    /// The subject that it is written under that a gateway has died.
    pub fn death(&self, node: &str) -> String {
        format!("$KV.{}.dead.{}", self.sessions(), key(node))
    }

    /// The subject that it is written under how far a gateway has come with its sessions.
    pub fn session_cursor(&self, node: &str) -> String {
        format!("$KV.{}.cursor.{}", self.sessions(), key(node))
    }

    /// Of which gateway something stands beside the rows of sessions.
    pub fn beside_of(&self, subject: &str) -> Option<String> {
        let (_, node) =
            subject.strip_prefix("$KV.")?.strip_prefix(&*self.sessions())?.strip_prefix('.')?.split_once('.')?;
        name(node)
    }

    /// The stream of commands that wait.
    pub fn commands(&self) -> String {
        format!("{}_commands", self.prefix)
    }

    /// The subject of those that wait for a device.
    pub fn command(&self, device: &str) -> String {
        let mut name = format!("{}.command.", self.prefix);
        subject::encode(device, &mut name);
        name
    }

    /// The same of all devices.
    pub fn all_commands(&self) -> String {
        format!("{}.command.*", self.prefix)
    }

    /// For which device a command waits.
    pub fn commanded(&self, subject: &str) -> Option<String> {
        let token = subject.strip_prefix(&*self.prefix)?.strip_prefix(".command.")?;
        subject::decode_leniently(token).filter(|device| self.command(device) == subject)
    }

    /// The stream of what became of commands.
    pub fn outcomes(&self) -> String {
        format!("{}_outcomes", self.prefix)
    }

    /// The subject of what became of one; its id is a token.
    pub fn outcome(&self, id: &str) -> String {
        format!("{}.outcome.{id}", self.prefix)
    }

    /// The same of all.
    pub fn all_outcomes(&self) -> String {
        format!("{}.outcome.*", self.prefix)
    }

    /// The bucket of groups of shared subscribers.
    pub fn groups(&self) -> String {
        format!("{}_groups", self.prefix)
    }

    /// The subject that the row of a group with this key is written under.
    pub fn group_row(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.groups())
    }

    /// The subjects of all of these.
    pub fn all_groups(&self) -> String {
        format!("$KV.{}.*", self.groups())
    }

    /// The bucket of those who are kept out.
    pub fn blocks(&self) -> String {
        format!("{}_blocks", self.prefix)
    }

    /// The subject that somebody is written under who is kept out.
    pub fn block(&self, subject: &Subject) -> String {
        format!("$KV.{}.{}", self.blocks(), key(&subject.to_string()))
    }

    /// The subjects of all of these.
    pub fn all_blocks(&self) -> String {
        format!("$KV.{}.>", self.blocks())
    }

    /// The subject that a gateway's lease is written under.
    pub fn lease(&self, node: &str) -> String {
        format!("$KV.{}.{}", self.gateways(), key(node))
    }

    /// The subject that a device's row is written under.
    pub fn device(&self, device: &str) -> String {
        format!("$KV.{}.{}", self.devices(), key(device))
    }

    /// The subjects of all devices' rows.
    pub fn all_devices(&self) -> String {
        format!("$KV.{}.>", self.devices())
    }

    /// Whose row stands under a subject.
    pub fn device_of(&self, subject: &str) -> Option<String> {
        name(subject.strip_prefix("$KV.")?.strip_prefix(&*self.devices())?.strip_prefix('.')?)
    }

    /// Whose lease stands under a subject.
    pub fn leased(&self, subject: &str) -> Option<String> {
        name(subject.strip_prefix("$KV.")?.strip_prefix(&*self.gateways())?.strip_prefix('.')?)
    }

    /// The stream of what devices say and of what is published over the API.
    pub fn uplink(&self) -> String {
        format!("{}_uplink", self.prefix)
    }

    /// The subjects of what is published over the API.
    pub fn publications(&self) -> String {
        format!("{}.pub.>", self.prefix)
    }

    /// The subject of one such message.
    pub fn publication(&self, topic: &str) -> String {
        subject::of_publication(&self.prefix, topic)
    }

    /// The bucket of retained messages.
    pub fn retained(&self) -> String {
        bucket::name(&self.prefix)
    }

    /// Under which topic one is kept.
    pub fn retained_topic(&self, subject: &str) -> Option<String> {
        bucket::topic_of(&self.prefix, subject)
    }

    /// How all of it begins.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What one gateway hears.
    pub fn gateway(&self, node: &str) -> String {
        let mut name = format!("{}.gateway.", self.prefix);
        subject::encode(node, &mut name);
        name
    }

    /// What is said to one device by anybody.
    pub fn send(&self, device: &str) -> String {
        let mut name = format!("{}.send.", self.prefix);
        subject::encode(device, &mut name);
        name
    }

    /// The same of all devices.
    pub fn sends(&self) -> String {
        format!("{}.send.*", self.prefix)
    }

    /// To which device: the token, percent-decoded as URLs are, however much of it is written so and in whichever case, since two
    /// ids never come of one token. `None`: it is none.
    pub fn sent_to(&self, subject: &str) -> Option<String> {
        let token = subject.strip_prefix(&*self.prefix)?.strip_prefix(".send.")?;
        subject::decode_leniently(token).filter(|device| !device.is_empty())
    }

    /// Whether an answer may be said there: not where NATS itself, its buckets or gateways are spoken to. Whoever may ask for devices
    /// would else have gateways write rows.
    pub fn may_answer_at(&self, reply: &str) -> bool {
        let first = reply.split('.').next().unwrap_or_default();
        !first.starts_with('$') && first != self.prefix
    }

    /// Whether a refusal of the server is about what the fleet itself does, and not about an answer to whoever asked something.
    pub fn is_about(&self, refusal: &str) -> bool {
        let ours = ["$JS.API.", "$JS.ACK.", "$KV.", &format!("{}.gateway.", self.prefix), &self.sends()];
        // The subject stands between quotes and may hold some: what follows the first is its beginning.
        let Some((_, refused)) = refusal.split_once('"') else { return false };
        ours.iter().any(|subject| refused.starts_with(subject))
    }

    /// The group in which every gateway hears what is said to devices: one of them answers.
    pub fn group(&self) -> String {
        self.prefix.clone()
    }
}

/// How consumers begin by which a gateway reads what others publish.
pub fn consumer(node: &str) -> String {
    key(node)
}

/// The stream that holds a bucket.
pub fn stream_of(bucket: &str) -> String {
    format!("KV_{bucket}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_read_well() {
        let names = Names::new("fleet-1");
        assert_eq!(names.lease("gate.eu"), "$KV.fleet-1_gateways.gate=2Eeu");
        assert_eq!(names.device("meter 7"), "$KV.fleet-1_devices.meter=207");
        assert_eq!(names.session_cursor("gate.eu"), "$KV.fleet-1_sessions.cursor.gate=2Eeu");
        assert_eq!(names.session("cursor.gate"), "$KV.fleet-1_sessions.cursor=2Egate");
        assert_eq!(names.command("a.b"), "fleet-1.command.a%2Eb");
        for device in ["a.b", "%", "meter 7"] {
            assert_eq!(names.commanded(&names.command(device)).as_deref(), Some(device));
        }
        assert_eq!(names.commanded("fleet-1.command.%61"), None, "it would be found under another subject");
        assert_eq!(names.block(&Subject::Device("meter 7".into())), "$KV.fleet-1_blocks.device=20meter=207");
        assert_eq!(names.gateway("gate.eu"), "fleet-1.gateway.gate%2Eeu");
        assert_eq!(names.send("a.b"), "fleet-1.send.a%2Eb");
        assert_eq!(names.sent_to("fleet-1.send.a%2Eb").as_deref(), Some("a.b"));
        for other in ["fleet-1.send.", "fleet-1.send.%_", "fleet-1.up.x", "other.send.x", "fleet-1.send.%2"] {
            assert_eq!(names.sent_to(other), None, "{other}");
        }
        // Whatever may be decoded means one id.
        for token in ["a%2eb", "%61%2Eb", "%61%2eb", "a%2E%62"] {
            assert_eq!(names.sent_to(&format!("fleet-1.send.{token}")).as_deref(), Some("a.b"), "{token}");
        }
        assert_eq!(names.leased(&names.lease("gate.eu")).as_deref(), Some("gate.eu"));
        assert_eq!(names.device_of(&names.device("a b")).as_deref(), Some("a b"));
        assert_eq!(names.leased(&names.device("a")), None);
    }

    #[test]
    fn nothing_is_answered_where_rows_are_written_or_gateways_are_spoken_to() {
        let names = Names::new("p");
        for reply in ["$KV.p_devices.d", "$JS.API.STREAM.PURGE.KV_p_devices", "p.gateway.edge-1", "p.send.d", "p"] {
            assert!(!names.may_answer_at(reply), "{reply}");
        }
        for reply in ["_INBOX.x.y", "answers.p", "pq.send"] {
            assert!(names.may_answer_at(reply), "{reply}");
        }
    }

    #[test]
    fn what_a_stranger_asks_for_an_answer_at_is_no_refusal_of_the_fleet() {
        let names = Names::new("p");
        for subject in ["$JS.API.INFO", "$KV.p_devices.d", "p.gateway.edge-1", "p.send.*"] {
            assert!(names.is_about(&format!("Permissions Violation for Publish to \"{subject}\"")), "{subject}");
        }
        for subject in ["_INBOX.x", "p.send.d", "reply.$KV.x", "x\"$KV.y", "x\".\"$JS.API.y", "\"p.gateway.z"] {
            assert!(!names.is_about(&format!("Permissions Violation for Publish to \"{subject}\"")), "{subject}");
        }
    }

    #[test]
    fn what_no_gateway_writes_is_no_key() {
        for written in ["", "a.b", "a/b", "=2e", "=+1", "=2", "=41", "=_=_", "=C3", "a b", "="] {
            assert_eq!(name(written), None, "{written:?}");
        }
        assert_eq!((name("=2E").as_deref(), name("=_").as_deref()), (Some("."), Some("")));
    }

    /// Whatever devices are called: a key that a bucket takes, another one for each, and the way back.
    #[test]
    fn any_id_makes_a_key_that_is_read_back() {
        let alphabet = ['a', 'Z', '0', '-', '_', '=', '.', '*', '>', '/', ' ', '\0', 'é', '2', 'E', '\u{2028}'];
        let mut random = fastrand::Rng::with_seed(4);
        let (mut ids, mut keys) = (HashSet::new(), HashSet::new());
        for _ in 0..30_000 {
            let id: String = (0..random.usize(..6)).map(|_| alphabet[random.usize(..alphabet.len())]).collect();
            let key = key(&id);
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=".contains(&byte);
            assert!(!key.is_empty() && key.bytes().all(fits), "{key:?}");
            assert_eq!(name(&key).as_deref(), Some(&*id), "{key:?}");
            ids.insert(id);
            keys.insert(key);
        }
        assert_eq!(ids.len(), keys.len());
    }
}
