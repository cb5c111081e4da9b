//! Questions about the bucket of sessions: a row for each, and how far each gateway has come.

use super::{Server, Written, last, remove};
use crate::fleet::rows::{Cursor, SessionRow};

impl Server {
    /// A session's row and its revision, asked of the stream's leader: what it says is the latest.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn session_row(&self, device: &str) -> Result<Option<(u64, SessionRow)>, String> {
        last(&self.sessions, &self.names.session(device)).await
    }

    /// Takes away the row of this revision, and no newer one. `true`: it was there.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn remove_session_row(&self, revision: u64) -> Result<bool, String> {
        remove(&self.context, &self.names.sessions(), revision).await
    }

    /// Writes how far a gateway has come, whatever was there.
    pub async fn write_cursor(&self, node: &str, cursor: &Cursor) -> Written {
        let payload = serde_json::to_vec(cursor).expect("it has no keys but texts");
        self.put(self.names.session_cursor(node), payload.into()).await
    }
}
