//! Gateways that are to be told that a device was taken from them: each is told until it answers, or its lease has ended, in
//! which case it looks at all that it had before it goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::presence::Owner;
use super::server::Server;
use super::wire::Request;
use super::{Shared, requests};

/// So many wait to be told at a time, at the most. Whoever is not told finds out when it writes the row next, or when the
/// connection ends, which it does by its silence.
pub const WAITING_MAX: usize = 4_096;
/// How long one try may take,
const TRY_MAX: Duration = Duration::from_secs(2);
/// and how long it waits for the next.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
struct Notice {
    device: Box<str>,
    before: Owner,
    revision: u64,
}

/// Those that wait, and those that are being told.
#[derive(Default)]
pub struct Notices {
    waiting: BTreeMap<u64, Notice>,
    next: u64,
    /// By number, and whether it was heard.
    telling: JoinSet<(u64, bool)>,
}

impl Notices {
    /// One more; it is told at once if there is a server. `false`: too many wait, and it is not told.
    pub fn add(
        &mut self,
        device: Box<str>,
        before: Owner,
        revision: u64,
        shared: &Arc<Shared>,
        server: &Server,
    ) -> bool {
        if self.waiting.len() >= WAITING_MAX {
            return false;
        }
        self.next += 1;
        self.waiting.insert(self.next, Notice { device, before, revision });
        self.tell(self.next, shared, server);
        true
    }

    /// There is a server again.
    pub fn begin(&mut self, shared: &Arc<Shared>, server: &Server) {
        let numbers: Vec<u64> = self.waiting.keys().copied().collect();
        for number in numbers {
            self.tell(number, shared, server);
        }
    }

    /// There is none any more.
    pub fn end(&mut self) {
        self.telling = JoinSet::new();
    }

    /// Takes note of one that was heard; ends when there is one.
    pub async fn advance(&mut self) {
        match self.telling.join_next().await {
            Some(Ok((number, true))) => drop(self.waiting.remove(&number)),
            // It stays, for the next server.
            Some(_) => {}
            None => std::future::pending().await,
        }
    }

    fn tell(&mut self, number: u64, shared: &Arc<Shared>, server: &Server) {
        let Some(notice) = self.waiting.get(&number).cloned() else { return };
        let (shared, server) = (Arc::clone(shared), server.clone());
        self.telling.spawn(async move { (number, tell(&shared, &server, &notice).await) });
    }
}

/// Tells until it is heard: `true`. `false`: the server is gone.
async fn tell(shared: &Shared, server: &Server, notice: &Notice) -> bool {
    let Notice { device, before, revision } = notice;
    let Owner { node, lease, generation } = before;
    let request =
        Request::Taken { device: device.clone(), lease: lease.clone(), generation: *generation, revision: *revision };
    loop {
        if requests::ask(server, node, request.to_bytes(), TRY_MAX).await.is_ok() {
            return true;
        }
        tokio::time::sleep(TRY_AGAIN_AFTER).await;
        match shared.leases.is_live(server, node, lease).await {
            Ok(true) => {}
            Ok(false) => return true,
            Err(_) => return false,
        }
    }
}
