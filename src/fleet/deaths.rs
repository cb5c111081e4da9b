//! Gateways that have died, and since when: what their sessions have to wait for is counted from then (decision 0032).
//!
//! ```text
//!   no lease ── somebody looks ──▶ a mark, unless there is one ── time goes by ──▶ how old the mark is
//!                                    ▲                                              │
//!                                    └── the gateway has its lease again: it takes its mark away
//! ```
//!
//! The time is NATS' own: of the mark, and of the lease that whoever looks has just renewed. So no gateway's clock matters, and a time
//! that is found too short is never longer than it was.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::presence::Row;
use super::rows::SessionRow;
use super::server::{Server, Written};
use super::{Cursor, Fleet};

impl Fleet {
    /// The gateways that had a lease a moment ago.
    #[must_use]
    pub fn living(&self) -> BTreeSet<String> {
        self.shared.living.lock().expect("no holder panics").clone()
    }

    /// For how long a gateway is known to be dead; `None`: it lives.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn dead_for(&self, node: &str) -> Result<Option<Duration>, String> {
        let server = self.server()?;
        if server.lease(node).await?.is_some() {
            return Ok(None);
        }
        let Some(died) = server.death(node).await? else {
            if let Written::Lost(why) = server.write(server.names.death(node), 0, "{}".into()).await {
                return Err(why);
            }
            if server.lease(node).await?.is_some() {
                // It came back between the two, and may have taken no mark away.
                server.forget_death(node).await?;
                return Ok(None);
            }
            return Ok(Some(Duration::ZERO));
        };
        let now = server.lease_time(self.node()).await?.ok_or("this gateway has no lease")?;
        Ok(Some(now.duration_since(died).unwrap_or(Duration::ZERO)))
    }

    /// How far a gateway has come with its sessions; `None`: it has never said so.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn session_cursor(&self, node: &str) -> Result<Option<Cursor>, String> {
        self.server()?.session_cursor(node).await
    }

    /// What was written of gateways that are neither among these, nor live, goes: no row of a session names them any more.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn forget_dead(&self, needed: impl Fn(&str) -> bool) -> Result<(), String> {
        let server = self.server()?;
        for (subject, node) in server.beside_sessions().await? {
            if !needed(&node) && server.lease(&node).await?.is_none() {
                server.remove_beside(&subject).await?;
            }
        }
        Ok(())
    }

    /// The first row of a session from this revision on: its revision, whose it is, and what it says. `None`: there is none further.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn next_session(&self, revision: u64) -> Result<Option<(u64, Option<String>, SessionRow)>, String> {
        self.server()?.next_session(revision).await
    }

    /// Whether some living gateway has the device, connected.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn has_device(&self, device: &str) -> Result<bool, String> {
        let server = self.server()?;
        let Some((_, row)) = server.device_for_sure::<Row>(device).await? else { return Ok(false) };
        self.shared.leases.is_live(&server, &row.node, &row.lease).await
    }

    /// Whether this gateway has the device, as far as it knows.
    #[must_use]
    pub fn holds_device(&self, device: &str) -> bool {
        self.shared.presence().holds(device)
    }

    /// A will was not published, because its device is somewhere.
    pub fn note_will_withheld(&self) {
        self.shared.counters.wills_withheld.fetch_add(1, Ordering::Relaxed);
    }
}

/// Of this gateway, which has a lease, nobody may go on counting.
///
/// # Errors
/// There is no answer; why.
pub(super) async fn come_alive(server: &Server, node: &str) -> Result<(), String> {
    server.forget_death(node).await
}
