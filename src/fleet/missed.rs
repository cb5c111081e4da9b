//! What the fleet's stream has between two places, for the session of a gateway that has died (decision 0032).
//!
//! A consumer of its own, without acknowledgements and in the memory of one server, which is let go when it was read; should
//! nobody be there to do so, the server does. It is read in pieces, so that of many sessions at a time little is under way of each.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use bytes::Bytes;
use futures_util::StreamExt;

use super::interests::subjects_of;
use super::server::Server;
use super::{Cursor, Fleet, names};
use crate::link::Cover;
use crate::sink::nats::{Publishing, in_words, subject};

/// Messages in one piece,
const PIECE: usize = 128;
/// and their bytes, unless the first of them alone is larger.
const PIECE_BYTES: usize = 128 << 10;
/// How long the server may take to send one.
const PIECE_MAX: Duration = Duration::from_secs(5);
/// The server lets a consumer go that nobody has asked for so long.
const INACTIVE: Duration = Duration::from_secs(30);
/// Up to so many subjects are looked for one by one before a consumer reads what is there under all of them.
const LOOKS_MAX: usize = 16;
/// How long a message is, where it is sent without what it says.
const SIZE: &str = "Nats-Msg-Size";

/// What the fleet's stream holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEnds {
    /// Which stream: when it was made.
    pub stream: Box<str>,
    /// Its first message,
    pub first: u64,
    /// and its last.
    pub last: u64,
}

impl StreamEnds {
    /// Behind which message everything is still to come for whoever had all up to `from`, and how many are there no more.
    #[must_use]
    pub fn behind(&self, from: Option<&Cursor>) -> (u64, u64) {
        let gone = self.first.saturating_sub(1);
        match from.filter(|from| from.stream == self.stream) {
            // A server that lost its last messages gives their numbers again.
            Some(from) => {
                let had = from.position.min(self.last);
                (had.max(gone), gone.saturating_sub(had))
            }
            // Without a place, or in another stream than this one, nothing of it is known to have come.
            None => (gone, 0),
        }
    }
}

/// A message as it stands in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where it stands.
    pub at: u64,
    /// The device that published it; `None`: somebody over the API.
    pub device: Option<Box<str>>,
    /// Under which topic.
    pub topic: Box<str>,
    /// The payload: opaque bytes; empty where only its length was asked for.
    pub payload: Bytes,
    /// How long the payload is.
    pub payload_bytes: usize,
    /// How it was published.
    pub publishing: Publishing,
}

/// What is read.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// What lies behind this one,
    pub after: u64,
    /// up to this one.
    pub upto: u64,
    /// Only how long each is, not what it says.
    pub is_measured: bool,
}

/// What is being read.
pub struct Missed {
    server: Server,
    prefix: String,
    consumer: Consumer<Config>,
    upto: u64,
    /// How many there were when it began, at most.
    pending: u64,
    /// Messages that came,
    read: u64,
    /// and where the last of them stands.
    last: u64,
    /// The next one is larger than a piece may be.
    is_large: bool,
    is_over: bool,
}

impl Fleet {
    /// What the stream holds now.
    ///
    /// # Errors
    /// There is no answer, or no stream; why.
    pub async fn stream_ends(&self) -> Result<StreamEnds, String> {
        let (created, first, last) = self.server()?.uplink_facts().await?;
        Ok(StreamEnds { stream: created.into(), first, last })
    }

    /// Begins to read what was published within a span under these filters. `None`: there is nothing.
    ///
    /// Where the next one stands the stream's leader says. A consumer is at any of the servers that have the stream, which may have the
    /// latest messages a moment later, and costs all of them more than that question.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn missed(&self, cover: &Cover, span: Span) -> Result<Option<Missed>, String> {
        let (server, random) = (self.server()?, fastrand::u64(..));
        let prefix = server.names.prefix().to_owned();
        let (subjects, from) = (subjects_of(&prefix, cover), span.after + 1);
        let is_looked_for = subjects.len() <= LOOKS_MAX;
        let first = if is_looked_for { server.first_published(&subjects, from, span.upto).await? } else { Some(from) };
        let Some(start_sequence) = first else { return Ok(None) };
        let config = Config {
            name: Some(format!("{}-taken-{random:016x}", names::consumer(self.node()))),
            description: Some(format!("what a session that {:?} takes has missed", self.node())),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
            ack_policy: AckPolicy::None,
            filter_subjects: subjects,
            headers_only: span.is_measured,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..Config::default()
        };
        let consumer = server.uplink_consumer(config).await?;
        let pending = consumer.cached_info().num_pending;
        let (upto, last) = (span.upto, span.after);
        let missed = Missed { server, prefix, consumer, upto, pending, read: 0, last, is_large: false, is_over: false };
        match pending {
            0 if is_looked_for => Err("the server that would read it does not have it yet".to_owned()),
            0 => Ok(None),
            _ => Ok(Some(missed)),
        }
    }
}

impl Missed {
    /// How many messages it can be at most.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.pending
    }

    /// Where the last one stands that was read, in a piece that came whole.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last.min(self.upto)
    }

    /// The next of them, in their order; `None`: those were all that this server has.
    ///
    /// # Errors
    /// Something was lost on its way: it is to be read again from behind the last one that came. Why.
    pub async fn next(&mut self) -> Result<Option<Vec<Published>>, String> {
        if self.is_over {
            return Ok(None);
        }
        let piece = tokio::time::timeout(PIECE_MAX, self.piece()).await;
        piece.map_err(|_| "the servers do not answer in time".to_owned())?.map(Some)
    }

    async fn piece(&mut self) -> Result<Vec<Published>, String> {
        let mut asked = self.consumer.fetch().max_messages(if self.is_large { 1 } else { PIECE });
        if !self.is_large {
            asked = asked.max_bytes(PIECE_BYTES);
        }
        let mut batch = asked.messages().await.map_err(|error| in_words(&error))?;
        let (mut piece, mut count) = (Vec::new(), 0);
        while let Some(message) = batch.next().await {
            match message {
                Ok(message) => {
                    count += 1;
                    self.take(&message, &mut piece)?;
                    if self.is_over {
                        return Ok(piece);
                    }
                }
                // The server says in these words that nothing so large fits into it.
                Err(error) if error.to_string().contains("MaxBytes") => {
                    self.is_large = count == 0;
                    return Ok(piece);
                }
                Err(error) if error.to_string().contains("Batch Completed") => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        if count == 0 {
            self.look_for_end().await?;
        }
        self.is_large = false;
        Ok(piece)
    }

    fn take(&mut self, message: &jetstream::Message, piece: &mut Vec<Published>) -> Result<(), String> {
        let info = message.info().map_err(|error| error.to_string())?;
        self.read += 1;
        if info.consumer_sequence != self.read {
            return Err("a message from the stream was lost on its way".to_owned());
        }
        self.last = info.stream_sequence;
        self.is_over = info.pending == 0 || info.stream_sequence >= self.upto;
        if info.stream_sequence <= self.upto {
            piece.extend(published(&self.prefix, info.stream_sequence, &message.message));
        }
        Ok(())
    }

    /// Nothing has come: there is no more, or it was lost.
    async fn look_for_end(&mut self) -> Result<(), String> {
        let progress = self.server.uplink_progress(&self.consumer.cached_info().name).await;
        let (sent, pending) = progress.ok_or("the consumer is gone, or the server does not answer")?;
        if sent != self.read || pending > 0 {
            return Err("messages from the stream were lost on their way".to_owned());
        }
        self.is_over = true;
        Ok(())
    }
}

impl Drop for Missed {
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.consumer.cached_info().name.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // The server lets it go all the same, a little later.
            drop(runtime.spawn(async move { server.drop_uplink_consumer(&name).await }));
        }
    }
}

/// What a message says; `None`: it is no publication of a gateway.
fn published(prefix: &str, at: u64, message: &async_nats::Message) -> Option<Published> {
    let headers = message.headers.as_ref()?;
    let publishing = Publishing::read(headers)?;
    let (device, topic) = subject::publication_of(prefix, &message.subject)?;
    let measured = headers.get(SIZE).and_then(|size| size.as_str().parse().ok());
    Some(Published {
        at,
        device: device.map(String::into_boxed_str),
        topic: topic.into(),
        payload: message.payload.clone(),
        payload_bytes: measured.unwrap_or(message.payload.len()),
        publishing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_still_to_come_begins_behind_what_is_known_to_have_come() {
        let ends = StreamEnds { stream: "t1".into(), first: 11, last: 90 };
        let at = |stream: &str, position| Cursor { stream: stream.into(), position };
        assert_eq!(ends.behind(Some(&at("t1", 40))), (40, 0));
        assert_eq!(ends.behind(Some(&at("t1", 10))), (10, 0));
        // The stream let ten of them go.
        assert_eq!(ends.behind(Some(&at("t1", 0))), (10, 10));
        // Nobody knows how much of another stream there was; of this one nothing has come.
        assert_eq!(ends.behind(Some(&at("t0", 40))), (10, 0));
        assert_eq!(ends.behind(None), (10, 0));
        let empty = StreamEnds { stream: "t1".into(), first: 91, last: 90 };
        assert_eq!(empty.behind(Some(&at("t1", 90))), (90, 0));
        assert_eq!(ends.behind(Some(&at("t1", 95))), (90, 0), "a server that lost its last messages");
    }
}
