//! One connection to NATS, verified: the server's version, JetStream, the two buckets and what they promise; and the few questions
//! that a gateway asks. Nothing is sent again here: what an answer was lost to is for the asker to find out.

mod deaths;
pub mod groups;
mod queue;
mod retained;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_nats::jetstream::consumer::{Consumer, pull};
use async_nats::jetstream::context::{GetStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::stream::{self, DirectGetErrorKind, LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, HeaderMap, Subject};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::blocks::Stamp;
use super::lease::LeaseRow;
use super::names::{Names, stream_of};
use super::settings::Settings;
use crate::config::FleetUplink;
use crate::link::Subject as Blockee;
use crate::sink::nats::bucket::{NotKept, RetainedBucket, is_conflict};
use crate::sink::nats::{Publishing, SUBJECT_BYTES_MAX, Signals, in_words, version};

/// Servers before this one are warned of: several faults of replication and of buckets with an age were mended by then.
const VERSION_ADVISED: (u64, u64, u64) = (2, 11, 2);
/// The server's answers to the removal of what is not there.
const GONE: [ErrorCode; 3] = [ErrorCode::NO_MESSAGE_FOUND, ErrorCode(10_057), ErrorCode(10_043)];
/// Writes under way at a time that the library lets through: more than are ever begun.
const ACKS_MAX: usize = 4_096;

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is there, at this revision.
    At(u64),
    /// The key was not as expected; nothing was written.
    Conflict,
    /// There is no answer: it may be there, and may still come to be. Why.
    Lost(String),
}

/// A verified connection.
#[derive(Clone)]
pub struct Server {
    pub names: Names,
    pub client: Client,
    context: Context,
    gateways: Stream<()>,
    devices: Stream<()>,
    sessions: Stream<()>,
    retained: Arc<RetainedBucket>,
}

/// What was found out about a connection.
pub struct Facts {
    /// The server's version.
    pub version: String,
    /// What holds of what is written there, in one line.
    pub promise: String,
    /// What is not as it should be, and works.
    pub doubts: Vec<String>,
    /// When the bucket of devices was made: another one holds nothing of what was written before.
    pub rows_since: String,
}

/// What the buckets are like.
#[derive(Debug)]
pub struct Survey {
    /// When the bucket of devices was made.
    pub rows_since: String,
    /// The lowest revision that is there.
    pub first: u64,
    /// Rows of sessions.
    pub sessions: u64,
    /// Gateways that have a lease.
    pub gateways: BTreeSet<String>,
    /// In which state the bucket of those is who are kept out,
    pub blocks: Stamp,
    /// and the stream of commands that wait.
    pub commands: Stamp,
}

/// Why there is no survey.
#[derive(Debug)]
pub enum NoSurvey {
    /// A bucket is gone; which.
    Gone(String),
    /// There is no answer; why.
    NoAnswer(String),
}

/// The server's answer about a stream.
#[derive(Deserialize)]
struct StreamInfo {
    #[serde(default)]
    created: String,
    #[serde(default)]
    state: StreamState,
    error: Option<jetstream::Error>,
}

/// The server's answer about a consumer.
#[derive(Deserialize)]
struct ConsumerInfo {
    delivered: Option<Delivered>,
    #[serde(default)]
    num_pending: u64,
}

#[derive(Deserialize)]
struct Delivered {
    consumer_seq: u64,
}

#[derive(Default, Deserialize)]
struct StreamState {
    first_seq: u64,
    #[serde(default)]
    last_seq: u64,
    #[serde(default)]
    messages: u64,
    #[serde(default)]
    subjects: Option<BTreeMap<String, u64>>,
}

impl Server {
    /// How one answer is said.
    pub fn say(&self) -> impl FnOnce(Subject, Bytes) -> BoxFuture<'static, ()> + Send + use<> {
        let client = self.client.clone();
        move |to, answer| async move { drop(client.publish(to, answer).await) }.boxed()
    }

    /// Connects and verifies. `signals` hears what becomes of the connection; `superseded`: see [`RetainedBucket::new`].
    ///
    /// # Errors
    /// Why not, and what to do, in words.
    pub async fn open(
        settings: &Settings,
        name: &str,
        signals: Arc<Signals>,
        superseded: Arc<AtomicU64>,
    ) -> Result<(Self, Facts), String> {
        let config = settings.config();
        let access = settings.access().map_err(|fault| format!("backbone.nats.{}: {fault}", fault.key))?;
        let client = access.connect(name, signals).await?;
        let info = client.server_info();
        crate::sink::nats::check_version(&info.version)
            .map_err(|why| format!("{why} (Debian 12 ships 2.9: take one from github.com/nats-io/nats-server)"))?;
        let context = jetstream::context::ContextBuilder::new()
            .timeout(config.timeout)
            .ack_timeout(config.timeout)
            .max_ack_inflight(ACKS_MAX)
            .build(client.clone());
        context.query_account().await.map_err(|error| {
            format!(
                "there is no JetStream: {}: start nats-server with -js, and let the account have it",
                in_words(&error)
            )
        })?;
        let names = Names::new(&config.prefix);
        let (gateways, devices) = (names.gateways(), names.devices());
        let leases = bucket(&context, &gateways, config.replicas, config.lease).await?;
        check_lease(&gateways, leases.max_age, config.lease)?;
        let rows = bucket(&context, &devices, config.replicas, Duration::ZERO).await?;
        bucket(&context, &names.blocks(), config.replicas, Duration::ZERO).await?;
        bucket(&context, &names.sessions(), config.replicas, Duration::ZERO).await?;
        if config.uplink != FleetUplink::Off {
            bucket(&context, &names.retained(), config.replicas, Duration::ZERO).await?;
            bucket(&context, &names.groups(), config.replicas, groups::ROWS_AGE).await?;
        }
        let retained = Arc::new(RetainedBucket::new(&context, names.prefix(), superseded).await?);
        let stream = |bucket: &str| {
            let (context, name) = (context.clone(), stream_of(bucket));
            async move { context.get_stream_no_info(&name).await.map_err(|error| in_words(&error)) }
        };
        check_subjects(&context, &names).await?;
        queue::make_streams(&context, &names, config.replicas).await?;
        let (gateways, devices) = (stream(&gateways).await?, stream(&devices).await?);
        let sessions = stream(&names.sessions()).await?;
        let server = Self { names, client, context, gateways, devices, sessions, retained };
        let survey = server.survey().await.map_err(|why| why.to_string())?;
        let (promise, doubts) = (promise(&rows, &info.version), doubts(&info.version));
        Ok((server, Facts { promise, doubts, version: info.version, rows_since: survey.rows_since }))
    }

    /// What the buckets are like now.
    ///
    /// # Errors
    /// [`NoSurvey`].
    pub async fn survey(&self) -> Result<Survey, NoSurvey> {
        let devices = self.info(&self.names.devices(), &serde_json::json!({})).await?;
        let gateways = self.leased().await?;
        let blocks = stamp(&self.info(&self.names.blocks(), &serde_json::json!({})).await?);
        let stream = self.names.commands();
        let commands = stamp(&self.stream_info(&stream, &stream, &serde_json::json!({})).await?);
        let beside = serde_json::json!({"subjects_filter": self.names.beside_sessions()});
        let sessions = self.info(&self.names.sessions(), &beside).await?.state;
        let sessions = sessions.messages.saturating_sub(sessions.subjects.map_or(0, |beside| beside.len() as u64));
        Ok(Survey { sessions, rows_since: devices.created, first: devices.state.first_seq, gateways, blocks, commands })
    }

    /// The gateways that have a lease now.
    ///
    /// # Errors
    /// [`NoSurvey`].
    pub async fn leased(&self) -> Result<BTreeSet<String>, NoSurvey> {
        let filter = serde_json::json!({"subjects_filter": ">"});
        let gateways = self.info(&self.names.gateways(), &filter).await?;
        let named = gateways.state.subjects.unwrap_or_default();
        Ok(named.keys().filter_map(|subject| self.names.leased(subject)).collect())
    }

    async fn info(&self, bucket: &str, asked: &serde_json::Value) -> Result<StreamInfo, NoSurvey> {
        self.stream_info(bucket, &stream_of(bucket), asked).await
    }

    async fn stream_info(&self, what: &str, stream: &str, asked: &serde_json::Value) -> Result<StreamInfo, NoSurvey> {
        let subject = format!("STREAM.INFO.{stream}");
        let answer: Result<StreamInfo, _> = self.context.request(subject, asked).await;
        let info = answer.map_err(|error| NoSurvey::NoAnswer(in_words(&error)))?;
        match &info.error {
            None => Ok(info),
            Some(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Err(NoSurvey::Gone(what.to_owned())),
            Some(error) => Err(NoSurvey::NoAnswer(in_words(error))),
        }
    }

    /// When the stream of what devices say was made, its first message and its last.
    ///
    /// # Errors
    /// It is not there, or there is no answer; why.
    pub async fn uplink_facts(&self) -> Result<(String, u64, u64), String> {
        let stream = self.names.uplink();
        match self.stream_info(&stream, &stream, &serde_json::json!({})).await {
            Ok(info) => Ok((info.created, info.state.first_seq, info.state.last_seq)),
            Err(NoSurvey::Gone(_)) => Err(format!("there is no stream {stream:?} yet: the sink fleet-uplink makes it")),
            Err(NoSurvey::NoAnswer(why)) => Err(format!("the stream {stream:?} cannot be read: {why}")),
        }
    }

    /// Where the first message stands that lies in that stream between two places, both included, under any of these subjects, as the
    /// stream's leader has it.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn first_published(&self, subjects: &[String], from: u64, upto: u64) -> Result<Option<u64>, String> {
        let (stream, mut first) = (self.names.uplink(), None);
        for subject in subjects {
            let next = self.next_message(&stream, subject, from).await?.map(|(at, ..)| at);
            first = [first, next.filter(|at| *at <= upto)].into_iter().flatten().min();
        }
        Ok(first)
    }

    /// A consumer of that stream.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn uplink_consumer(&self, config: pull::Config) -> Result<Consumer<pull::Config>, String> {
        let made = self.context.create_consumer_on_stream(config, self.names.uplink()).await;
        made.map_err(|error| in_words(&error))
    }

    /// Messages that a consumer of that stream has sent, and those that it is still to send; `None`: it is gone, or there is no
    /// answer.
    pub async fn uplink_progress(&self, consumer: &str) -> Option<(u64, u64)> {
        let subject = format!("CONSUMER.INFO.{}.{consumer}", self.names.uplink());
        let info: ConsumerInfo = self.context.request(subject, &serde_json::json!({})).await.ok()?;
        Some((info.delivered?.consumer_seq, info.num_pending))
    }

    /// Lets a consumer of that stream go, if it is there.
    pub async fn drop_uplink_consumer(&self, consumer: &str) {
        // The server does so by itself, a little later.
        let _ = self.context.delete_consumer_from_stream(consumer, self.names.uplink()).await;
    }

    /// Publishes over the API, into that stream, and before that into the bucket of retained messages, if it is to be retained. Returns
    /// when they have it.
    ///
    /// # Errors
    /// It does not, or has not said so in time; why.
    pub async fn publish(&self, topic: &str, payload: Bytes, how: &Publishing) -> Result<(), String> {
        let subject = self.names.publication(topic);
        if subject.len() > SUBJECT_BYTES_MAX {
            return Err("its subject is longer than a server takes".to_owned());
        }
        if !how.stamp.is_none() {
            // First: whoever subscribes when the stream has it finds it there (decision 0029).
            let kept = self.retained.put(topic, payload.clone(), how).await;
            kept.map_err(|(NotKept::Refused(why) | NotKept::Lost(why))| {
                format!("the bucket of retained messages: {why}")
            })?;
        }
        let mut headers = HeaderMap::new();
        how.write(&mut headers);
        let settled = match self.context.publish_with_headers(subject, headers, payload).await {
            Ok(acknowledged) => acknowledged.await.map(drop),
            Err(error) => Err(error),
        };
        settled.map_err(|error| match error.kind() {
            PublishErrorKind::StreamNotFound => {
                let (stream, wanted) = (self.names.uplink(), self.names.publications());
                format!("the stream {stream:?} does not take {wanted}: add that to its subjects")
            }
            _ => in_words(&error),
        })
    }

    /// The first row from this revision on: its revision, whose it is, as far as that is a device, and what it says.
    /// `None`: there is none further.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn next_row<T: DeserializeOwned + Default>(
        &self,
        revision: u64,
    ) -> Result<Option<(u64, Option<(String, T)>)>, String> {
        match self.devices.direct_get_next_for_subject(self.names.all_devices(), Some(revision)).await {
            Ok(message) => {
                let device = self.names.device_of(&message.subject);
                Ok(Some((message.sequence, device.map(|device| (device, parse(&message.payload))))))
            }
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(in_words(&error)),
        }
    }

    /// Writes `payload` if the last revision under `subject` is `expected`; 0: if there is none.
    pub async fn write(&self, subject: String, expected: u64, payload: Bytes) -> Written {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
        let settled = match self.context.publish_with_headers(subject, headers, payload).await {
            Ok(acknowledged) => acknowledged.await,
            Err(error) => Err(error),
        };
        match settled {
            Ok(acknowledged) => Written::At(acknowledged.sequence),
            Err(error) if is_conflict(&error) => Written::Conflict,
            Err(error) => Written::Lost(in_words(&error)),
        }
    }

    /// Writes `payload`, whatever was there.
    pub async fn put(&self, subject: String, payload: Bytes) -> Written {
        let settled = match self.context.publish(subject, payload).await {
            Ok(acknowledged) => acknowledged.await,
            Err(error) => Err(error),
        };
        settled.map_or_else(|error| Written::Lost(in_words(&error)), |acknowledged| Written::At(acknowledged.sequence))
    }

    /// The first message of a stream from this sequence on under these subjects, as its leader has it: its sequence, subject and
    /// payload. `None`: there is none further.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn next_message(
        &self,
        stream: &str,
        subjects: &str,
        from: u64,
    ) -> Result<Option<(u64, String, Bytes)>, String> {
        self.message(stream, &serde_json::json!({"seq": from, "next_by_subj": subjects})).await
    }

    async fn message(&self, stream: &str, asked: &serde_json::Value) -> Result<Option<(u64, String, Bytes)>, String> {
        let subject = format!("STREAM.MSG.GET.{stream}");
        let answer: Got = self.context.request(subject, asked).await.map_err(|error| in_words(&error))?;
        match answer {
            Got { error: Some(error), .. } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => Ok(None),
            Got { error: Some(error), .. } => Err(in_words(&error)),
            Got { message: Some(GotMessage { seq, subject, data }), .. } => {
                let data = BASE64_STANDARD.decode(data).map_err(|error| error.to_string())?;
                Ok(Some((seq, subject, data.into())))
            }
            Got { message: None, error: None } => Err("the server's answer holds no message".to_owned()),
        }
    }

    /// The first row from this revision on of those who are kept out.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn next_block(&self, revision: u64) -> Result<Option<(u64, Bytes)>, String> {
        let stream = stream_of(&self.names.blocks());
        let next = self.next_message(&stream, &self.names.all_blocks(), revision).await?;
        Ok(next.map(|(at, _, payload)| (at, payload)))
    }

    /// Takes away the row of one who was kept out. `true`: it was there.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn remove_block(&self, subject: &Blockee) -> Result<bool, String> {
        let stream = stream_of(&self.names.blocks());
        match self.next_message(&stream, &self.names.block(subject), 1).await? {
            Some((revision, ..)) => self.remove_block_at(revision).await,
            None => Ok(false),
        }
    }

    /// Takes away the row of this revision.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn remove_block_at(&self, revision: u64) -> Result<bool, String> {
        remove(&self.context, &self.names.blocks(), revision).await
    }

    /// A gateway's lease and its revision, asked of the stream's leader: a copy that lags would see a lease end that has not.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn lease(&self, node: &str) -> Result<Option<(u64, LeaseRow)>, String> {
        last(&self.gateways, &self.names.lease(node)).await
    }

    /// A device's row and its revision. It may be one that was replaced a moment ago: whoever writes over it is told.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn device<T: DeserializeOwned + Default>(&self, device: &str) -> Result<Option<(u64, T)>, String> {
        match self.devices.direct_get_last_for_subject(self.names.device(device)).await {
            Ok(message) => Ok(Some((message.sequence, parse(&message.payload)))),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(in_words(&error)),
        }
    }

    /// The same, asked of the stream's leader: what it says is the latest.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn device_for_sure<T: DeserializeOwned + Default>(
        &self,
        device: &str,
    ) -> Result<Option<(u64, T)>, String> {
        last(&self.devices, &self.names.device(device)).await
    }

    /// Takes away the row of this revision, and no newer one. `true`: it was there.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn remove_device(&self, revision: u64) -> Result<bool, String> {
        remove(&self.context, &self.names.devices(), revision).await
    }

    /// The same of a lease.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn remove_lease(&self, revision: u64) -> Result<bool, String> {
        remove(&self.context, &self.names.gateways(), revision).await
    }
}

/// What stands under a subject, as the stream's leader has it.
async fn last<T: DeserializeOwned + Default>(stream: &Stream<()>, subject: &str) -> Result<Option<(u64, T)>, String> {
    match stream.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Some((message.sequence, parse(&message.payload)))),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(in_words(&error)),
    }
}

/// Takes away a revision of a bucket. It is not overwritten on the disk before it is let go (`no_erase`): a thousand devices that
/// leave at once would wait for a thousand blocks to be written anew.
async fn remove(context: &Context, bucket: &str, revision: u64) -> Result<bool, String> {
    remove_from(context, &stream_of(bucket), revision).await
}

async fn remove_from(context: &Context, stream: &str, revision: u64) -> Result<bool, String> {
    let subject = format!("STREAM.MSG.DELETE.{stream}");
    let asked = serde_json::json!({"seq": revision, "no_erase": true});
    let answer: Deleted = context.request(subject, &asked).await.map_err(|error| in_words(&error))?;
    match answer {
        Deleted { success, error: None } => Ok(success),
        // It is not there any more: the server says so by an error.
        Deleted { error: Some(error), .. } if GONE.contains(&error.error_code()) => Ok(false),
        Deleted { error: Some(error), .. } => Err(in_words(&error)),
    }
}

/// The server's answer to a question for a message.
#[derive(Deserialize)]
struct Got {
    message: Option<GotMessage>,
    error: Option<jetstream::Error>,
}

#[derive(Deserialize)]
struct GotMessage {
    seq: u64,
    subject: String,
    #[serde(default)]
    data: String,
}

/// The server's answer to a removal.
#[derive(Deserialize)]
struct Deleted {
    #[serde(default)]
    success: bool,
    error: Option<jetstream::Error>,
}

/// What it says. What cannot be read is nobody's, as is a marker that somebody deleted a key by hand: it is written over at its
/// revision.
fn parse<T: DeserializeOwned + Default>(payload: &[u8]) -> T {
    serde_json::from_slice(payload).unwrap_or_default()
}

/// The stream of a bucket as it is, made where it is missing.
async fn bucket(context: &Context, name: &str, replicas: usize, age: Duration) -> Result<stream::Config, String> {
    let stream = stream_of(name);
    let found = match context.get_stream(&stream).await {
        Ok(found) => found.cached_info().config.clone(),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(told) if told.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                let made = context.create_stream(wanted(name, replicas, age)).await;
                // Another gateway may have made it at the same time: then it is as that one wanted it, which is looked at.
                let made = made.map_err(|error| {
                    format!(
                        "the bucket {name:?} cannot be made: {}: let the account make it, or make it there ({replicas} \
                         replicas)",
                        in_words(&error)
                    )
                })?;
                made.cached_info().config.clone()
            }
            _ => return Err(format!("the bucket {name:?} cannot be read: {}", in_words(&error))),
        },
    };
    let there = found.num_replicas.max(1);
    if there != replicas {
        return Err(format!(
            "the bucket {name:?} is kept by {there} server(s) and backbone.nats.replicas says {replicas}: write replicas = \
             {there}, or change it there: nats stream edit {stream} --replicas {replicas}"
        ));
    }
    if found.deny_delete {
        return Err(format!("rows of the bucket {name:?} cannot be removed: make it anew without deny_delete"));
    }
    Ok(found)
}

fn stamp(info: &StreamInfo) -> Stamp {
    Stamp { last: info.state.last_seq, rows: info.state.messages }
}

/// A stream that takes what is asked of gateways would answer in their place, and keep every command.
async fn check_subjects(context: &Context, names: &Names) -> Result<(), String> {
    for subject in [names.gateway("x"), names.send("x")] {
        if let Ok(stream) = context.stream_by_subject(subject.clone()).await {
            return Err(format!(
                "the stream {stream:?} takes {subject}, which is said to gateways: let it take less (PREFIX.up.> and \
                 PREFIX.presence.*), or write another backbone.nats.prefix"
            ));
        }
    }
    Ok(())
}

/// As other clients of NATS make a bucket, but that a row can be taken away by its revision: so nothing is left of it, and a late
/// end takes away nobody else's.
fn wanted(name: &str, replicas: usize, age: Duration) -> stream::Config {
    stream::Config {
        name: stream_of(name),
        subjects: vec![format!("$KV.{name}.>")],
        max_messages_per_subject: 1,
        max_age: age,
        storage: stream::StorageType::File,
        num_replicas: replicas,
        discard: stream::DiscardPolicy::New,
        allow_rollup: true,
        allow_direct: true,
        ..stream::Config::default()
    }
}

fn check_lease(bucket: &str, there: Duration, ours: Duration) -> Result<(), String> {
    if there == ours {
        return Ok(());
    }
    let [there, ours] = [there, ours].map(humantime::format_duration);
    Err(format!(
        "a lease of this fleet lasts {there} (the bucket {bucket:?}) and backbone.nats.lease says {ours}: write the same at \
         every gateway, or end them all and remove the bucket: nats kv del {bucket}"
    ))
}

/// What holds of a device's row once the server has acknowledged it.
fn promise(rows: &stream::Config, version: &str) -> String {
    let replicas = rows.num_replicas.max(1);
    let servers = match replicas {
        1 => "one server has it, and without that one it cannot be read".to_owned(),
        _ => format!("{} of {replicas} servers have it, and as many must be there", replicas / 2 + 1),
    };
    let disk = match rows.storage {
        stream::StorageType::File => "on their disks within their sync_interval (two minutes unless set)",
        stream::StorageType::Memory => "in their memory only",
    };
    format!("where a device is: {servers}, {disk}; nats-server {version}")
}

fn doubts(server: &str) -> Vec<String> {
    let is_old = version(server).is_some_and(|version| version < VERSION_ADVISED);
    let (major, minor, patch) = VERSION_ADVISED;
    is_old
        .then(|| {
            format!("nats-server {server} works, and {major}.{minor}.{patch} or newer is advised: it has faults mended")
        })
        .into_iter()
        .collect()
}

impl fmt::Display for NoSurvey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoSurvey::Gone(bucket) => write!(f, "the bucket {bucket:?} was removed: it is made anew"),
            NoSurvey::NoAnswer(why) => write!(f, "the buckets cannot be read: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promise_says_how_many_servers_and_when_on_disk() {
        let config = wanted("p_devices", 3, Duration::ZERO);
        let said = promise(&config, "2.15.1");
        assert!(said.contains("2 of 3 servers have it") && said.contains("sync_interval"), "{said}");
        let memory = stream::Config { storage: stream::StorageType::Memory, num_replicas: 1, ..config };
        assert!(promise(&memory, "2.15.1").contains("one server has it"));
        assert!(promise(&memory, "2.15.1").contains("in their memory only"));
    }

    #[test]
    fn an_old_server_is_doubted_by_name() {
        assert!(doubts("2.10.25")[0].contains("2.11.2 or newer"));
        assert!(doubts("2.11.2").is_empty() && doubts("2.15.1").is_empty());
    }

    #[test]
    fn leases_are_the_same_everywhere() {
        let second = Duration::from_secs;
        assert!(check_lease("b", second(10), second(10)).is_ok());
        let why = check_lease("b", second(30), second(10)).unwrap_err();
        assert!(why.contains("lasts 30s") && why.contains("backbone.nats.lease says 10s"), "{why}");
    }
}
