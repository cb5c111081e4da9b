//! What an earlier process has left in the store, read before anybody is accepted.

use std::time::{Duration, Instant};

use crate::broker::Recording;
use crate::clock::Clock;
use crate::config::Config;
use crate::image::KeptSession;
use crate::link::Home;
use crate::store::{Store, StoreError};
use crate::worker::Kept;

/// How often it is said how far the reading has come.
const PROGRESS: Duration = Duration::from_secs(2);

/// Reads all of it, for the workers of this process.
pub(super) fn read(store: &Store, config: &Config, home: Home, clock: &Clock) -> Result<Kept, StoreError> {
    let mut sessions: Vec<Vec<KeptSession>> = (0..config.workers).map(|_| Vec::new()).collect();
    let (mut count, mut told) = (0_u64, Instant::now());
    store.reader().sessions(|session| {
        sessions[home.of(&session.head.name).index()].push(session);
        count += 1;
        if told.elapsed() > PROGRESS {
            told = Instant::now();
            tracing::info!(
                sessions = count,
                "sessions are read from the store; nobody is accepted before that is done"
            );
        }
    })?;
    let mut retained = Vec::new();
    store.retained(|publication, stamp| retained.push((publication, stamp)))?;
    if count > 0 || !retained.is_empty() {
        tracing::info!(sessions = count, retained = retained.len(), "sessions and retained messages were read");
    }
    let names = config.listeners.iter().map(|listener| listener.name.as_str().into());
    Ok(Kept {
        changes: store.changes(),
        recording: Recording { timeline: clock.shared(), listeners: names.collect() },
        next_key: store.next_key().0,
        stored_bytes: config.store.sessions_bytes,
        sessions,
        retained: retained.into(),
    })
}
