//! What is asked of every gateway of the fleet at once: each is asked on its own subject, once, and those that have not answered in time
//! are told by name. Nothing waits for a gateway that hangs beyond the deadline.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::server::Server;
use super::wire::{Call, Reply, Request};
use super::{Fleet, Shared, Unreachable, requests};

/// Gateways that are asked at a time: an answer is a page of devices at the most.
const ASKED_MAX: usize = 64;

/// What one of the others said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Its name.
    pub node: String,
    /// What it said; `Err`: nothing. [`Unreachable::Deaf`]: it does not hear, nothing was done; [`Unreachable::Silent`]: it did not
    /// answer in time, and may have done it.
    pub reply: Result<Reply, Unreachable>,
}

impl Fleet {
    /// The names of the others that have a lease now, in order.
    ///
    /// # Errors
    /// [`Unreachable::Away`].
    pub async fn others(&self, deadline: Instant) -> Result<Vec<String>, Unreachable> {
        let server = self.shared.server().ok_or(Unreachable::Away)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let survey = tokio::time::timeout(left, server.leased()).await;
        let mut names = survey.map_err(|_| Unreachable::Away)?.map_err(|_| Unreachable::Away)?;
        names.remove(&self.shared.node);
        Ok(names.into_iter().collect())
    }

    /// Asks every other gateway, each once, and waits for all until the deadline. In the order of their names.
    ///
    /// # Errors
    /// [`Unreachable::Away`]: nobody was asked.
    pub async fn ask_all(&self, call: &Call, deadline: Instant) -> Result<Vec<Answered>, Unreachable> {
        let others = self.others(deadline).await?;
        Ok(self.ask_each(others.into_iter().map(|node| (node, call.clone())), deadline).await)
    }

    /// Asks these gateways, each what stands beside its name, and waits for all until the deadline. In the order in which they are
    /// named.
    pub async fn ask_each(&self, asked: impl IntoIterator<Item = (String, Call)>, deadline: Instant) -> Vec<Answered> {
        let Some(server) = self.shared.server() else {
            let nobody = |(node, _)| Answered { node, reply: Err(Unreachable::Away) };
            return asked.into_iter().map(nobody).collect();
        };
        let mut waiting = asked.into_iter().enumerate();
        let (mut tasks, mut answers) = (JoinSet::new(), Vec::new());
        loop {
            while tasks.len() < ASKED_MAX
                && let Some((place, (node, call))) = waiting.next()
            {
                let (shared, server) = (Arc::clone(&self.shared), server.clone());
                tasks.spawn(async move { (place, ask_one(&shared, &server, node, call, deadline).await) });
            }
            match tasks.join_next().await {
                // Whoever panics is a fault of this program, which the log has; its gateway has not answered.
                Some(answered) => answers.extend(answered),
                None => break,
            }
        }
        answers.sort_by_key(|(place, _)| *place);
        answers.into_iter().map(|(_, answered)| answered).collect()
    }
}

async fn ask_one(shared: &Shared, server: &Server, node: String, call: Call, deadline: Instant) -> Answered {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let reply = requests::put(server, &node, &Request::Call { call }, left).await;
    if reply.is_err() {
        shared.counters.calls_unanswered.fetch_add(1, Ordering::Relaxed);
    }
    Answered { node, reply }
}
