//! The thread that fetches JWKS: when a source is new, at its interval, and sooner when a token names a key that is not
//! there. The last good keys stay, whatever comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fmt, io};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::http::HttpClient;
use super::keys::{KeyRing, Keys, Strictness};
use crate::config::RsaAlgorithm;
use crate::control::ProcessCounters;

/// How long fetching may take.
pub(super) const FETCH_TIME: Duration = Duration::from_secs(10);
/// The longest JWKS, in bytes.
const JWKS_BYTES_MAX: u64 = 256 << 10;
/// At the soonest after the last time, whatever tokens name.
const SOONEST: Duration = Duration::from_secs(10);
/// Where it went wrong: again after this, doubled each time up to the interval.
const AGAIN_FIRST: Duration = Duration::from_secs(1);

/// Where keys are fetched, and where they are put.
pub(super) struct FetchSource {
    client: HttpClient,
    url: String,
    refresh: Duration,
    rsa: RsaAlgorithm,
    pub(super) ring: KeyRing,
    /// A token named a key that is not there.
    is_wanted: AtomicBool,
}

impl FetchSource {
    pub(super) fn new(client: HttpClient, url: String, refresh: Duration, rsa: RsaAlgorithm) -> Self {
        Self { client, url, refresh, rsa, ring: KeyRing::default(), is_wanted: AtomicBool::new(false) }
    }

    fn fetch(&self) -> Result<Keys, String> {
        let text = self.client.get(JWKS_BYTES_MAX).map_err(|error| error.to_string())?;
        let text = String::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?;
        Keys::parse(&text, self.rsa, Strictness::Usable)
    }
}

impl fmt::Debug for FetchSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// What the thread is told.
enum Word {
    /// From now on these.
    Sources(Vec<Arc<FetchSource>>),
    /// One of them is wanted sooner.
    Wanted,
}

/// The thread's owner.
pub(super) struct KeyFetcher {
    words: Sender<Word>,
    thread: JoinHandle<()>,
}

/// The way to ask for keys sooner.
#[derive(Clone)]
pub(super) struct KeyWish(Sender<Word>);

impl KeyWish {
    /// A token has named a key that this source has not. Whether the source will be asked now: else it was a moment ago.
    pub(super) fn ask(&self, source: &FetchSource) {
        if !source.is_wanted.swap(true, Ordering::Relaxed) {
            // The thread may be gone only at the end.
            let _ = self.0.send(Word::Wanted);
        }
    }
}

impl KeyFetcher {
    pub(super) fn start(counters: Arc<ProcessCounters>) -> io::Result<Self> {
        let (words, heard) = unbounded();
        let thread = thread::Builder::new().name("keys".into()).spawn(move || run(&heard, &counters))?;
        Ok(Self { words, thread })
    }

    pub(super) fn wish(&self) -> KeyWish {
        KeyWish(self.words.clone())
    }

    pub(super) fn set_sources(&self, sources: Vec<Arc<FetchSource>>) {
        let _ = self.words.send(Word::Sources(sources));
    }

    /// Ends the thread; one that waits for a service just now is not waited for.
    pub(super) fn stop(self) {
        let Self { words, thread } = self;
        drop(words);
        if thread.is_finished() && thread.join().is_err() {
            tracing::error!("the thread that fetches keys panicked");
        }
    }
}

/// One source, and when it is next.
struct Turn {
    source: Arc<FetchSource>,
    fetched: Option<Instant>,
    next: Instant,
    again: Duration,
}

fn run(words: &Receiver<Word>, counters: &ProcessCounters) {
    let mut turns: Vec<Turn> = Vec::new();
    loop {
        let next = turns.iter().map(|turn| turn.next).min();
        let word = match next {
            Some(next) => words.recv_deadline(next),
            None => words.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let now = Instant::now();
        match word {
            Ok(Word::Sources(sources)) => {
                turns = sources
                    .into_iter()
                    .map(|source| {
                        let before = turns.iter().position(|turn| Arc::ptr_eq(&turn.source, &source));
                        match before {
                            Some(place) => turns.swap_remove(place),
                            None => Turn { source, fetched: None, next: now, again: AGAIN_FIRST },
                        }
                    })
                    .collect();
            }
            Ok(Word::Wanted) => {
                for turn in turns.iter_mut().filter(|turn| turn.source.is_wanted.load(Ordering::Relaxed)) {
                    let soonest = turn.fetched.map_or(now, |fetched| fetched + SOONEST);
                    turn.next = turn.next.min(soonest);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        for turn in turns.iter_mut().filter(|turn| turn.next <= now) {
            take_turn(turn, counters);
        }
    }
}

fn take_turn(turn: &mut Turn, counters: &ProcessCounters) {
    let source = &turn.source;
    let outcome = source.fetch();
    source.is_wanted.store(false, Ordering::Relaxed);
    let now = Instant::now();
    turn.fetched = Some(now);
    match outcome {
        Ok(keys) => {
            tracing::debug!(url = source.url, keys = keys.iter().count(), "keys were fetched");
            counters.keys_fetched.fetch_add(1, Ordering::Relaxed);
            source.ring.set(keys);
            turn.again = AGAIN_FIRST;
            turn.next = now + source.refresh;
        }
        Err(error) => {
            counters.keys_failed.fetch_add(1, Ordering::Relaxed);
            let last = if source.ring.get().is_some() { "the last good ones stay" } else { "there are none yet" };
            tracing::warn!(url = source.url, error, last, "keys could not be fetched");
            turn.next = now + turn.again.min(source.refresh);
            turn.again = (turn.again * 2).min(source.refresh);
        }
    }
}
