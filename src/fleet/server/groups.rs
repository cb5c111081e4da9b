//! Groups of shared subscribers: their rows, and the consumers that serve them.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{HeaderMap, Message, Subject};
use bytes::Bytes;
use serde::Deserialize;

use super::{NoSurvey, Server, Written, in_words, remove_from, stream_of};
use crate::fleet::membership::{Ask, GroupRow, Told};
use crate::fleet::pulls::{EXPIRES, Pull};
use crate::link::{group_filter, group_key};
use crate::sink::nats::subject;

/// A row that no gateway has written for so long is nobody's any more, and the server lets it go, as it does a consumer that nobody has
/// asked for so long.
pub const ROWS_AGE: Duration = Duration::from_hours(24);
/// What was given to a gateway is given to another one when nothing was heard of it for so long.
const ACK_WAIT: Duration = Duration::from_secs(20);
/// Messages of one group that are given and not settled, over the fleet.
const UNSETTLED_MAX: i64 = 20_000;
/// Questions for messages of one group that wait, over the fleet.
const PULLS_MAX: i64 = 4_096;

#[derive(Deserialize)]
struct Answer {
    error: Option<jetstream::Error>,
}

impl Server {
    /// Does one step of a join or a leave.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn ask_of_group(&self, group: &str, ask: &Ask) -> Result<Told, String> {
        let (bucket, key) = (self.names.groups(), group_key(group));
        match ask {
            Ask::Read => {
                let found = self.next_message(&stream_of(&bucket), &self.names.group_row(&key), 1).await?;
                Ok(Told::Row(found.map(|(revision, _, payload)| (revision, super::parse::<GroupRow>(&payload)))))
            }
            Ask::Count => {
                let info = self.info(&bucket, &serde_json::json!({})).await;
                let info = info.map_err(|why: NoSurvey| why.to_string())?;
                Ok(Told::Count(info.state.messages))
            }
            Ask::Check(consumer) => self.has_consumer(consumer).await.map(Told::Done),
            Ask::Make(consumer) => self.make_group_consumer(group, consumer).await.map(|()| Told::Done(true)),
            Ask::Write(expected, row) => {
                let payload = serde_json::to_vec(row).expect("it has no keys but texts");
                match self.write(self.names.group_row(&key), *expected, payload.into()).await {
                    Written::At(_) => Ok(Told::Done(true)),
                    Written::Conflict => Ok(Told::Done(false)),
                    Written::Lost(why) => Err(why),
                }
            }
            Ask::Remove(revision) => remove_from(&self.context, &stream_of(&bucket), *revision).await.map(Told::Done),
            Ask::Drop(consumer) => {
                self.drop_uplink_consumer(consumer).await;
                Ok(Told::Done(true))
            }
            Ask::Over(_) => Ok(Told::Done(true)),
        }
    }

    async fn has_consumer(&self, consumer: &str) -> Result<bool, String> {
        let subject = format!("CONSUMER.INFO.{}.{consumer}", self.names.uplink());
        let asked: Result<Answer, _> = self.context.request(subject, &serde_json::json!({})).await;
        match asked.map_err(|error| in_words(&error))?.error {
            None => Ok(true),
            Some(error) if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND => Ok(false),
            Some(error) => Err(in_words(&error)),
        }
    }

    async fn make_group_consumer(&self, group: &str, name: &str) -> Result<(), String> {
        let filter = group_filter(group).ok_or("it is no shared subscription")?;
        let config = Config {
            durable_name: Some(name.to_owned()),
            description: Some("a group of shared subscribers of the fleet".to_owned()),
            deliver_policy: DeliverPolicy::New,
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_ack_pending: UNSETTLED_MAX,
            max_waiting: PULLS_MAX,
            filter_subjects: subject::of_filter(self.names.prefix(), filter),
            inactive_threshold: ROWS_AGE,
            ..Config::default()
        };
        self.uplink_consumer(config).await.map(drop)
    }

    /// The rows that name a gateway from this revision on: the first, and where it stands.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn next_group_row(&self, revision: u64) -> Result<Option<(u64, GroupRow)>, String> {
        let stream = stream_of(&self.names.groups());
        let next = self.next_message(&stream, &self.names.all_groups(), revision).await?;
        Ok(next.map(|(at, _, payload)| (at, super::parse(&payload))))
    }

    /// Asks for messages of a group, which come to `inbox`; so many bytes at most, but for one that is alone.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn pull(&self, consumer: &str, inbox: String, pull: Pull, bytes: usize) -> Result<(), String> {
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", self.names.uplink());
        let mut asked = serde_json::json!({"batch": pull.messages, "expires": EXPIRES.as_nanos() as u64});
        if !pull.is_large {
            asked["max_bytes"] = bytes.into();
        }
        self.say_in_order(subject, Some(inbox), asked.to_string().into()).await
    }

    /// Lets the server know that a consumer is still wanted, though nothing is asked for: no message is of one byte with its headers.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn touch(&self, consumer: &str, inbox: String) -> Result<(), String> {
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", self.names.uplink());
        let asked = serde_json::json!({"batch": 1, "expires": EXPIRES.as_nanos() as u64, "max_bytes": 1});
        self.say_in_order(subject, Some(inbox), asked.to_string().into()).await
    }

    /// Says what became of a message that was given.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn acknowledge(&self, reply: &Subject, kind: jetstream::AckKind) -> Result<(), String> {
        self.say_in_order(reply.to_string(), None, kind.into()).await
    }

    async fn say_in_order(&self, subject: String, reply: Option<String>, payload: Bytes) -> Result<(), String> {
        let said = match reply {
            Some(reply) => self.client.publish_with_reply(subject, reply, payload).await,
            None => self.client.publish(subject, payload).await,
        };
        said.map_err(|error| error.to_string())
    }
}

/// What the server says of a message that came for a group: its consumer, its sequence in the stream, and how often it was given.
pub fn given_of(message: &Message) -> Option<(String, u64, u64)> {
    let reply = message.reply.as_ref()?;
    let tokens: Vec<&str> = reply.split('.').collect();
    // $JS.ACK.(domain.account.)stream.consumer.delivered.sequence.…
    let at = match tokens.len() {
        9 => 2,
        11.. => 4,
        _ => return None,
    };
    let consumer = (*tokens.get(at + 1)?).to_owned();
    Some((consumer, tokens.get(at + 3)?.parse().ok()?, tokens.get(at + 2)?.parse().ok()?))
}

/// How many messages of a question did not come, as the server says when it ends it.
pub fn left_of(headers: Option<&HeaderMap>) -> u32 {
    let told = headers.and_then(|headers| headers.get("Nats-Pending-Messages"));
    told.and_then(|told| told.as_str().parse().ok()).unwrap_or(0)
}
