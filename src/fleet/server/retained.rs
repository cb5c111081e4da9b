//! Questions about the bucket of retained messages.

use async_nats::jetstream::consumer::{Consumer, pull};

use super::{ConsumerInfo, NoSurvey, Server, remove, stream_of};
use crate::sink::nats::in_words;

impl Server {
    /// A consumer of that bucket.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn retained_consumer(&self, config: pull::Config) -> Result<Consumer<pull::Config>, String> {
        let made = self.context.create_consumer_on_stream(config, stream_of(&self.names.retained())).await;
        made.map_err(|error| in_words(&error))
    }

    /// The number of its last message, as its leader has it.
    ///
    /// # Errors
    /// It is not there, or there is no answer; why.
    pub async fn retained_last(&self) -> Result<u64, String> {
        match self.info(&self.names.retained(), &serde_json::json!({})).await {
            Ok(info) => Ok(info.state.last_seq),
            // It is made anew with the next connection.
            Err(gone @ NoSurvey::Gone(_)) => Err(gone.to_string()),
            Err(NoSurvey::NoAnswer(why)) => Err(why),
        }
    }

    /// Messages that a consumer of it has sent, and those that it is still to send; `None`: it is gone, or there is no answer.
    pub async fn retained_progress(&self, consumer: &str) -> Option<(u64, u64)> {
        let subject = format!("CONSUMER.INFO.{}.{consumer}", stream_of(&self.names.retained()));
        let info: ConsumerInfo = self.context.request(subject, &serde_json::json!({})).await.ok()?;
        Some((info.delivered?.consumer_seq, info.num_pending))
    }

    /// Takes away what stands there at this revision. `true`: it was there.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn remove_retained_at(&self, revision: u64) -> Result<bool, String> {
        remove(&self.context, &self.names.retained(), revision).await
    }
}
