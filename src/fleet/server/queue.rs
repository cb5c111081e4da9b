//! The two streams of commands that wait: the commands, and what became of them.

use std::time::Duration;

use async_nats::jetstream::{Context, stream};
use bytes::Bytes;

use super::{Server, Written, in_words, remove_from};
use crate::fleet::commands::{ALL_MAX, BYTES_MAX, EXPIRY_MAX, OUTCOMES_FOR, OUTCOMES_MAX, PER_DEVICE_MAX};
use crate::fleet::names::Names;

/// Why a command does not wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotPut {
    /// One of the stream's bounds; the server's words.
    Full(String),
    /// There is no answer: it may be there. Why.
    Lost(String),
}

impl Server {
    /// Has a command wait for a device; its number.
    ///
    /// # Errors
    /// [`NotPut`].
    pub async fn put_command(&self, device: &str, payload: Bytes) -> Result<u64, NotPut> {
        match self.put(self.names.command(device), payload).await {
            Written::At(number) => Ok(number),
            // The server's words for each of its bounds: "maximum messages exceeded" and the like.
            Written::Lost(why) if why.contains("maximum") => Err(NotPut::Full(why)),
            Written::Lost(why) => Err(NotPut::Lost(why)),
            Written::Conflict => Err(NotPut::Lost("the server found a conflict".to_owned())),
        }
    }

    /// The oldest command from this number on that waits for a device.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn next_command(&self, device: &str, from: u64) -> Result<Option<(u64, Bytes)>, String> {
        let next = self.next_message(&self.names.commands(), &self.names.command(device), from).await?;
        Ok(next.map(|(number, _, payload)| (number, payload)))
    }

    /// The oldest command from this number on, and for which device it waits, as far as that is one.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn any_command(&self, from: u64) -> Result<Option<(u64, Option<Box<str>>, Bytes)>, String> {
        let next = self.next_message(&self.names.commands(), &self.names.all_commands(), from).await?;
        let device = |subject: &str| self.names.commanded(subject).map(Into::into);
        Ok(next.map(|(number, subject, payload)| (number, device(&subject), payload)))
    }

    /// The command of this number, if it waits.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn command_at(&self, number: u64) -> Result<Option<(Box<str>, Bytes)>, String> {
        let found = self.message(&self.names.commands(), &serde_json::json!({"seq": number})).await?;
        let device = |subject: &str| self.names.commanded(subject).map(Into::into);
        Ok(found.and_then(|(_, subject, payload)| Some((device(&subject)?, payload))))
    }

    /// Lets a command go. `true`: it was there.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn remove_command(&self, number: u64) -> Result<bool, String> {
        remove_from(&self.context, &self.names.commands(), number).await
    }

    /// What became of a command, and at which revision that stands.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn outcome(&self, id: &str) -> Result<Option<(u64, Bytes)>, String> {
        let asked = serde_json::json!({"last_by_subj": self.names.outcome(id)});
        let found = self.message(&self.names.outcomes(), &asked).await?;
        Ok(found.map(|(revision, _, payload)| (revision, payload)))
    }
}

/// Makes both where they are missing.
///
/// # Errors
/// Why not, and what to do, in words.
pub(super) async fn make_streams(context: &Context, names: &Names, replicas: usize) -> Result<(), String> {
    for wanted in [commands(names, replicas), outcomes(names, replicas)] {
        have_stream(context, wanted).await?;
    }
    Ok(())
}

/// A stream as it is, made where it is missing. What an operator has made of its bounds stays.
async fn have_stream(context: &Context, wanted: stream::Config) -> Result<(), String> {
    let (name, replicas) = (wanted.name.clone(), wanted.num_replicas);
    let found = context.get_or_create_stream(wanted).await.map_err(|error| {
        format!(
            "the stream {name:?} cannot be made: {}: let the account make it, or make it there ({replicas} replicas)",
            in_words(&error)
        )
    })?;
    let there = found.cached_info().config.num_replicas.max(1);
    if there == replicas {
        return Ok(());
    }
    Err(format!(
        "the stream {name:?} is kept by {there} server(s) and backbone.nats.replicas says {replicas}: change it there: nats \
         stream edit {name} --replicas {replicas}"
    ))
}

/// Commands that wait. What there is no room for is refused, and nothing gives way.
fn commands(names: &Names, replicas: usize) -> stream::Config {
    stream::Config {
        name: names.commands(),
        subjects: vec![names.all_commands()],
        max_messages_per_subject: PER_DEVICE_MAX,
        max_messages: ALL_MAX,
        max_bytes: BYTES_MAX,
        // Each has gone by then; what is left was put by nobody who knows how.
        max_age: EXPIRY_MAX + Duration::from_hours(24),
        storage: stream::StorageType::File,
        num_replicas: replicas,
        discard: stream::DiscardPolicy::New,
        discard_new_per_subject: true,
        ..stream::Config::default()
    }
}

/// What became of them. The oldest give way.
fn outcomes(names: &Names, replicas: usize) -> stream::Config {
    stream::Config {
        name: names.outcomes(),
        subjects: vec![names.all_outcomes()],
        max_messages_per_subject: 1,
        max_messages: OUTCOMES_MAX,
        max_age: OUTCOMES_FOR,
        storage: stream::StorageType::File,
        num_replicas: replicas,
        discard: stream::DiscardPolicy::Old,
        ..stream::Config::default()
    }
}
