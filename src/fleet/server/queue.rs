//! The two streams of commands that wait: the commands, and what became of them.

use std::time::Duration;

use async_nats::jetstream::{Context, stream};

use super::{Server, Written, in_words, remove_from};
use crate::commands::{
    ALL_MAX, BYTES_MAX, Brief, Command, EXPIRY_MAX, Known, Listed, NotPut, OUTCOMES_FOR, PER_DEVICE_MAX, Place,
};
use crate::fleet::names::Names;

/// How many outcomes are kept, the latest.
const OUTCOMES_MAX: i64 = 1_000_000;

impl Place for Server {
    async fn put(&self, device: &str, command: &Command) -> Result<u64, NotPut> {
        match self.put(self.names.command(device), command.to_json().into()).await {
            Written::At(number) => Ok(number),
            // The server's words for each of its bounds: "maximum messages exceeded" and the like.
            Written::Lost(why) if why.contains("maximum") => Err(NotPut::Full(why)),
            Written::Lost(why) => Err(NotPut::Lost(why)),
            Written::Conflict => Err(NotPut::Lost("the server found a conflict".to_owned())),
        }
    }

    async fn next(&self, device: &str, from: u64) -> Result<Option<(u64, Option<Command>)>, String> {
        let next = self.next_message(&self.names.commands(), &self.names.command(device), from).await?;
        Ok(next.map(|(number, _, payload)| (number, Command::parse(&payload))))
    }

    /// One of them, whether its time is over or not: the server tells no more at a time.
    async fn page(&self, from: u64, _over_ms: Option<u64>) -> Result<Vec<Listed>, String> {
        let next = self.next_message(&self.names.commands(), &self.names.all_commands(), from).await?;
        let listed = next.map(|(number, subject, payload)| {
            let device = self.names.commanded(&subject);
            let brief = device.as_deref().and_then(|device| Some(Command::parse(&payload)?.brief(number, device)));
            Listed { number, device: device.map(Into::into), brief }
        });
        Ok(listed.into_iter().collect())
    }

    async fn at(&self, number: u64) -> Result<Option<Brief>, String> {
        let found = self.message(&self.names.commands(), &serde_json::json!({"seq": number})).await?;
        let brief = |subject: &str, payload: &[u8]| {
            let device = self.names.commanded(subject)?;
            Some(Command::parse(payload)?.brief(number, &device))
        };
        Ok(found.and_then(|(_, subject, payload)| brief(&subject, &payload)))
    }

    async fn remove(&self, number: u64) -> Result<(), String> {
        remove_from(&self.context, &self.names.commands(), number).await.map(drop)
    }

    async fn outcome(&self, id: &str) -> Result<(u64, Option<Known>), String> {
        let asked = serde_json::json!({"last_by_subj": self.names.outcome(id)});
        let found = self.message(&self.names.outcomes(), &asked).await?;
        Ok(found.map_or((0, None), |(revision, _, payload)| (revision, serde_json::from_slice(&payload).ok())))
    }

    async fn write_outcome(&self, id: &str, revision: u64, known: &Known) -> Result<bool, String> {
        let payload = serde_json::to_vec(known).expect("it has no keys but texts");
        match self.write(self.names.outcome(id), revision, payload.into()).await {
            Written::At(_) => Ok(true),
            Written::Conflict => Ok(false),
            Written::Lost(why) => Err(why),
        }
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
        max_messages_per_subject: PER_DEVICE_MAX.into(),
        max_messages: ALL_MAX.into(),
        max_bytes: BYTES_MAX as i64,
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
