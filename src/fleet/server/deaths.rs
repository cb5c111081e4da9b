//! Rows of sessions one after the other, and the times of leases and marks.

use std::time::SystemTime;

use async_nats::jetstream::stream::{DirectGetErrorKind, LastRawMessageErrorKind, Stream};

use super::{Server, in_words, last, parse, remove_from};
use crate::fleet::names::stream_of;
use crate::fleet::rows::{Cursor, SessionRow};

impl Server {
    /// The first row of a session from this revision on.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn next_session(&self, revision: u64) -> Result<Option<(u64, Option<String>, SessionRow)>, String> {
        match self.sessions.direct_get_next_for_subject(self.names.all_sessions(), Some(revision)).await {
            Ok(message) => {
                let device = self.names.session_of(&message.subject);
                Ok(Some((message.sequence, device, parse(&message.payload))))
            }
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
            Err(error) => Err(in_words(&error)),
        }
    }

    /// How far a gateway has come with its sessions.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn session_cursor(&self, node: &str) -> Result<Option<Cursor>, String> {
        let found = last(&self.sessions, &self.names.session_cursor(node)).await?;
        Ok(found.map(|(_, cursor)| cursor))
    }

    /// When a gateway was found to be dead, if it was.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn death(&self, node: &str) -> Result<Option<SystemTime>, String> {
        let found = written(&self.sessions, &self.names.death(node)).await?;
        Ok(found.map(|(_, time)| time))
    }

    /// When a gateway's lease was written last.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn lease_time(&self, node: &str) -> Result<Option<SystemTime>, String> {
        let found = written(&self.gateways, &self.names.lease(node)).await?;
        Ok(found.map(|(_, time)| time))
    }

    /// Takes away the mark of a gateway's death, if there is one.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn forget_death(&self, node: &str) -> Result<(), String> {
        self.remove_beside(&self.names.death(node)).await
    }

    /// What stands beside the rows of sessions: subjects, and the gateways that it is about.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn beside_sessions(&self) -> Result<Vec<(String, String)>, String> {
        let filter = serde_json::json!({"subjects_filter": self.names.beside_sessions()});
        let info = self.info(&self.names.sessions(), &filter).await.map_err(|why| why.to_string())?;
        let subjects = info.state.subjects.unwrap_or_default().into_keys();
        Ok(subjects.filter_map(|subject| self.names.beside_of(&subject).map(|node| (subject, node))).collect())
    }

    /// Takes away what stands under a subject of the bucket of sessions, if it is the same as now by then.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn remove_beside(&self, subject: &str) -> Result<(), String> {
        match written(&self.sessions, subject).await? {
            Some((at, _)) => remove_from(&self.context, &stream_of(&self.names.sessions()), at).await.map(drop),
            None => Ok(()),
        }
    }
}

/// Where what stands under a subject was written, and when, by the server's clock.
async fn written(stream: &Stream<()>, subject: &str) -> Result<Option<(u64, SystemTime)>, String> {
    match stream.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Some((message.sequence, message.time.into()))),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(in_words(&error)),
    }
}
