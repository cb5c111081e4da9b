//! Judging tokens without holding anybody up.
//!
//! Computing an argon2 hash takes tens of milliseconds, so one thread of low priority does nothing else; live
//! connections come first. A token that was right once is kept as a keyed digest, so that a reconnect storm of known
//! devices costs a microsecond each and never waits behind the slow ones.
//!
//! ```text
//! hub ── check() ──┬─ the digest of the right token is known ──────────────────────────▶ accepted at once
//!                  ├─ device in the file ──▶ queue "known"   ──┐
//!                  └─ device not in it  ───▶ queue "unknown" ──┴▶ thread "tokens" ──▶ results() ──▶ settle()
//! ```
//!
//! An unknown device costs the hash of another and is then rejected, so that the time of an answer does not tell which
//! ids exist. Its queue is short and comes second, so that brute-force attempts wait for each other. A connection whose token is
//! not verified within `limits.hello_time` is closed by its worker; a job older than that is not worth its hash and is
//! skipped. No token is ever called wrong because of load.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select_biased, unbounded};

use super::tokens::TokenFile;
use crate::control::ProcessCounters;
use crate::link::{ConnectionId, ListenerId, WorkerId};

/// Tokens of devices in the file that may wait for their hash. At tens of milliseconds each, one that came later would
/// outlive its connection's `hello_time` in the queue.
const KNOWN_WAITING_MAX: usize = 4_096;
/// Tokens of devices that no file names that may wait.
const UNKNOWN_WAITING_MAX: usize = 64;
/// How far the thread steps back from the event loops on a busy machine.
const NICENESS: i32 = 10;

/// The checker of tokens: lives in the hub, which tells it of each token and of each result.
pub(in crate::control) struct Verifier {
    listeners: Arc<[Option<TokenFile>]>,
    /// By listener and place in its file: the digest of the token that was right.
    digests: Vec<Vec<Option<[u8; 32]>>>,
    key: hmac::Key,
    patience: Duration,
    known: Sender<Job>,
    unknown: Sender<Job>,
    results: Receiver<AuthResult>,
    counters: Arc<ProcessCounters>,
    thread: JoinHandle<()>,
}

/// Who waits for a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) struct AuthRequest {
    pub(in crate::control) worker: WorkerId,
    pub(in crate::control) connection: ConnectionId,
    pub(in crate::control) listener: ListenerId,
}

struct Job {
    request: AuthRequest,
    /// Whose hash to compute; for an unknown device somebody else's.
    place: u32,
    known: bool,
    token: Bytes,
    expires: Instant,
}

/// What the thread found.
pub(in crate::control) struct AuthResult {
    request: AuthRequest,
    /// The place of the device whose token was right, and the token's digest.
    accepted: Option<(u32, [u8; 32])>,
}

impl Verifier {
    /// Starts the thread. `listeners` holds the token file of each listener that has one; a connection waits for
    /// `patience` (`limits.hello_time`).
    pub(in crate::control) fn start(
        listeners: Vec<Option<TokenFile>>,
        patience: Duration,
        counters: Arc<ProcessCounters>,
    ) -> io::Result<Verifier> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| io::Error::other("the system gives no random key"))?;
        let digests = listeners.iter().map(|file| vec![None; file.as_ref().map_or(0, TokenFile::len)]).collect();
        let listeners: Arc<[Option<TokenFile>]> = listeners.into();
        let (known, known_jobs) = bounded(KNOWN_WAITING_MAX);
        let (unknown, unknown_jobs) = bounded(UNKNOWN_WAITING_MAX);
        // Bounded by the jobs; the hub empties it.
        let (result, results) = unbounded();
        let hash_worker = HashWorker {
            listeners: listeners.clone(),
            key: key.clone(),
            known_jobs,
            unknown_jobs,
            counters: counters.clone(),
        };
        let thread = thread::Builder::new().name("tokens".into()).spawn(move || hash_worker.run(&result))?;
        Ok(Verifier { listeners, digests, key, patience, known, unknown, results, counters, thread })
    }

    /// One in its place, with other files. Whoever waited for the old one waits in vain.
    pub(in crate::control) fn with_files(&mut self, files: Vec<Option<TokenFile>>) -> Verifier {
        Verifier::start(files, self.patience, self.counters.clone()).expect("a thread and a key were there before")
    }

    /// Takes one token. What is not [`Check::Settled`] is answered through [`Verifier::results`], or not at all when
    /// too many wait.
    pub(in crate::control) fn check(&self, request: AuthRequest, device: &str, token: Bytes, now: Instant) -> Check {
        let listener = request.listener.index();
        let file = self.listeners[listener].as_ref().expect("a token came through a listener without a token file");
        let known = file.find(device);
        if let Some(place) = known
            && let Some(digest) = &self.digests[listener][place as usize]
            && hmac::verify(&self.key, &token, digest).is_ok()
        {
            self.counters.tokens_cached.fetch_add(1, Ordering::Relaxed);
            return Check::Settled(true);
        }
        if file.is_empty() {
            self.counters.tokens_rejected.fetch_add(1, Ordering::Relaxed);
            return Check::Settled(false);
        }
        let place = known.unwrap_or(0);
        let job = Job { request, place, known: known.is_some(), token, expires: now + self.patience };
        let queue = if job.known { &self.known } else { &self.unknown };
        match queue.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.counters.tokens_unanswered.fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Disconnected(_)) => panic!("the token thread ended before its owner"),
        }
        Check::Waits
    }

    /// Where results arrive.
    pub(in crate::control) fn results(&self) -> &Receiver<AuthResult> {
        &self.results
    }

    /// Remembers a right token and says whom to tell what.
    pub(in crate::control) fn settle(&mut self, result: &AuthResult) -> (AuthRequest, bool) {
        let request = result.request;
        if let Some((place, digest)) = result.accepted {
            self.digests[request.listener.index()][place as usize] = Some(digest);
        }
        (request, result.accepted.is_some())
    }

    /// Ends the thread; waits for the hash that it is computing, at most.
    pub(in crate::control) fn stop(self) {
        let Verifier { known, unknown, results, thread, .. } = self;
        drop((known, unknown, results));
        if thread.join().is_err() {
            tracing::error!("the token thread panicked");
        }
    }
}

/// What is known of a token at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) enum Check {
    /// Right or wrong.
    Settled(bool),
    /// A hash must be computed.
    Waits,
}

/// The thread's side.
struct HashWorker {
    listeners: Arc<[Option<TokenFile>]>,
    key: hmac::Key,
    known_jobs: Receiver<Job>,
    unknown_jobs: Receiver<Job>,
    counters: Arc<ProcessCounters>,
}

impl HashWorker {
    /// Works until the owner lets go of the queues or of the results.
    fn run(self, results: &Sender<AuthResult>) {
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::warn!(%error, "the token thread keeps its ordinary priority");
        }
        loop {
            let job = select_biased! {
                recv(self.known_jobs) -> job => job,
                recv(self.unknown_jobs) -> job => job,
            };
            let Ok(job) = job else { return };
            if job.expires <= Instant::now() {
                self.counters.tokens_unanswered.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if results.send(self.verify(&job)).is_err() {
                return;
            }
        }
    }

    fn verify(&self, job: &Job) -> AuthResult {
        let file = self.listeners[job.request.listener.index()].as_ref().expect("checked by the owner");
        // The hash is computed before `known` is looked at: both answers take the same time.
        let right = file.verify(job.place, &job.token) && job.known;
        let accepted = right.then(|| {
            let mut digest = [0; 32];
            digest.copy_from_slice(hmac::sign(&self.key, &job.token).as_ref());
            (job.place, digest)
        });
        let count = if right { &self.counters.tokens_verified } else { &self.counters.tokens_rejected };
        count.fetch_add(1, Ordering::Relaxed);
        AuthResult { request: job.request, accepted }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokens::line_for;
    use super::*;

    fn verifier(text: &str, patience: Duration) -> Verifier {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        std::fs::write(&path, text).unwrap();
        Verifier::start(vec![None, Some(TokenFile::load(&path).unwrap())], patience, Arc::default()).unwrap()
    }

    fn request(index: u32) -> AuthRequest {
        AuthRequest { worker: WorkerId(3), connection: ConnectionId { index, generation: 9 }, listener: ListenerId(1) }
    }

    fn result(verifier: &mut Verifier) -> (AuthRequest, bool) {
        let result = verifier.results().recv_timeout(Duration::from_secs(30)).expect("no result came");
        verifier.settle(&result)
    }

    const HELLO_TIME: Duration = Duration::from_mins(1);

    #[test]
    fn a_right_token_is_hashed_once_and_a_wrong_one_each_time() {
        let mut verifier = verifier(&line_for("meter", b"right"), HELLO_TIME);
        let now = Instant::now();
        let token = |text: &'static str| Bytes::from_static(text.as_bytes());

        assert_eq!(verifier.check(request(1), "meter", token("wrong"), now), Check::Waits);
        assert_eq!(result(&mut verifier), (request(1), false));
        assert_eq!(verifier.check(request(2), "meter", token("right"), now), Check::Waits);
        assert_eq!(result(&mut verifier), (request(2), true));
        assert_eq!(verifier.check(request(3), "meter", token("right"), now), Check::Settled(true));
        assert_eq!(verifier.check(request(4), "meter", token("wrong"), now), Check::Waits);
        assert_eq!(result(&mut verifier), (request(4), false));
        // The decoy's own token opens nothing for another id.
        assert_eq!(verifier.check(request(5), "stranger", token("right"), now), Check::Waits);
        assert_eq!(result(&mut verifier), (request(5), false));

        let counters = verifier.counters.clone();
        verifier.stop();
        assert_eq!(counters.tokens_verified.load(Ordering::Relaxed), 1);
        assert_eq!(counters.tokens_cached.load(Ordering::Relaxed), 1);
        assert_eq!(counters.tokens_rejected.load(Ordering::Relaxed), 3);
        assert_eq!(counters.tokens_unanswered.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_empty_file_rejects_everybody() {
        let verifier = verifier("# nobody yet\n", HELLO_TIME);
        let token = Bytes::from_static(b"x");
        assert_eq!(verifier.check(request(1), "meter", token, Instant::now()), Check::Settled(false));
        verifier.stop();
    }

    #[test]
    fn what_waited_longer_than_its_connection_is_not_hashed() {
        let mut verifier = verifier(&line_for("meter", b"right"), HELLO_TIME);
        let token = Bytes::from_static(b"right");
        let long_ago = Instant::now().checked_sub(HELLO_TIME * 2).unwrap();
        assert_eq!(verifier.check(request(1), "meter", token.clone(), long_ago), Check::Waits);
        assert_eq!(verifier.check(request(2), "meter", token, Instant::now()), Check::Waits);
        assert_eq!(result(&mut verifier), (request(2), true));
        assert_eq!(verifier.counters.tokens_unanswered.load(Ordering::Relaxed), 1);
        verifier.stop();
    }

    #[test]
    fn strangers_fill_their_own_lane_only_and_come_second() {
        let slow = "meter:$argon2id$v=19$m=16384,t=4,p=1$c2FsdHNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Njc4OTA\n";
        let mut verifier = verifier(&format!("{slow}{}", line_for("known", b"right")), HELLO_TIME);
        let now = Instant::now();
        let strangers = UNKNOWN_WAITING_MAX as u32 * 2;
        for index in 0..strangers {
            verifier.check(request(index), &format!("stranger-{index}"), Bytes::from_static(b"x"), now);
        }
        assert!(verifier.counters.tokens_unanswered.load(Ordering::Relaxed) > 0);
        assert_eq!(verifier.check(request(9_999), "known", Bytes::from_static(b"right"), now), Check::Waits);
        // Only those whom the thread had already taken when the known device came may be verified before it.
        let judged_before = (0..UNKNOWN_WAITING_MAX).find(|_| result(&mut verifier) == (request(9_999), true)).unwrap();
        assert!(judged_before < UNKNOWN_WAITING_MAX / 2, "{judged_before} strangers came first");
        verifier.stop();
    }
}
