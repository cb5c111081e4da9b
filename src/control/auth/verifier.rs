//! Checking secrets without holding anybody up.
//!
//! Computing an argon2 hash takes tens of milliseconds, so one thread of low priority does nothing else; live
//! connections come first. A secret that was right once is kept as a keyed digest: from then on the name has one right
//! secret that is known, and neither a right nor a wrong one costs a hash. So a reconnect storm of known devices costs a
//! microsecond each, and whoever guesses for a name that is in use costs no more.
//!
//! ```text
//! hub ── check() ──┬─ the digest of the right secret is known ──────────▶ accepted or rejected at once
//!                  └─ otherwise ─▶ queue (queue.rs) ─▶ thread "tokens" ─▶ results() ─▶ handle_result()
//! ```
//!
//! A name that is not in the file costs the hash of another and is then rejected, so that the time of an answer does not
//! tell which ids exist and have not come yet. Each job carries the file that it is for: after a reload no secret is held
//! against the hash of another device. A job that its connection waits for no longer (`limits.hello_time`) is not worth its
//! hash and is skipped. No secret is ever called wrong because of load: who finds no place is told to come again.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::fair::Origin;
use super::queue::{HashQueue, Name};
use super::tokens::TokenFile;
use crate::control::ProcessCounters;
use crate::link::{ConnectionId, ListenerId, WorkerId};

/// How far the thread steps back from the event loops on a busy machine.
const NICENESS: i32 = 10;

/// A keyed digest of a secret.
type Digest = [u8; 32];

/// The checker of secrets: lives in the hub, which tells it of each one and of each result.
pub(in crate::control) struct Verifier {
    /// By listener.
    files: Vec<Option<Credentials>>,
    key: hmac::Key,
    patience: Duration,
    queue: HashQueue,
    /// At most one job at a time: what waits stays in the queue, where it can be put in order.
    jobs: Sender<Job>,
    is_hashing: bool,
    results: Receiver<HashResult>,
    counters: Arc<ProcessCounters>,
    thread: JoinHandle<()>,
}

/// One listener's file and what is known of the secrets of its names.
struct Credentials {
    file: Arc<TokenFile>,
    /// By place in the file: the digest of the secret that was right.
    digests: Vec<Option<Digest>>,
}

impl Credentials {
    fn new(file: TokenFile) -> Self {
        let digests = vec![None; file.len()];
        Self { file: Arc::new(file), digests }
    }
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) struct AuthRequest {
    pub(in crate::control) worker: WorkerId,
    pub(in crate::control) connection: ConnectionId,
    pub(in crate::control) listener: ListenerId,
    /// From where, if that is known.
    pub(in crate::control) peer: Option<IpAddr>,
    /// It came with an authentication method, by which it may renew what it is granted.
    pub(in crate::control) is_renewable: bool,
    /// Nothing has named the device for sure: whoever lets it in must.
    pub(in crate::control) must_be_named: bool,
}

/// A secret that is to be hashed.
#[derive(Debug)]
pub(in crate::control) struct Job {
    pub(in crate::control) request: AuthRequest,
    /// The file that names and places are of.
    pub(in crate::control) file: Arc<TokenFile>,
    pub(in crate::control) name: Name,
    /// The name's place in the file; `None`: it is not in it.
    pub(in crate::control) place: Option<u32>,
    pub(in crate::control) token: Bytes,
    /// When its connection waits no longer.
    pub(in crate::control) expires: Instant,
}

impl Job {
    /// Where it comes from.
    pub(in crate::control) fn origin(&self) -> Origin {
        Origin::of(self.request.peer)
    }
}

/// What the thread found.
pub(in crate::control) struct HashResult {
    job: Job,
    is_right: bool,
}

/// What was found out about a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) enum AuthResult {
    /// It is right.
    Accepted,
    /// It is wrong.
    Rejected,
    /// Nobody had the time to find out: it may come again later. Never said of a secret that was looked at.
    Busy,
}

/// Whom to tell what.
pub(in crate::control) type Answer = (AuthRequest, AuthResult);

impl Verifier {
    /// Starts the thread. `files` holds the token file of each listener that has one; a connection waits for `patience`
    /// (`limits.hello_time`).
    pub(in crate::control) fn start(
        files: Vec<Option<TokenFile>>,
        patience: Duration,
        counters: Arc<ProcessCounters>,
    ) -> io::Result<Verifier> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| io::Error::other("the system gives no random key"))?;
        let (jobs, to_hash) = bounded(1);
        let (hashed, results) = bounded(1);
        let hash_worker = HashWorker { jobs: to_hash, results: hashed };
        let thread = thread::Builder::new().name("tokens".into()).spawn(move || hash_worker.run())?;
        let files = files.into_iter().map(|file| file.map(Credentials::new)).collect();
        let queue = HashQueue::default();
        Ok(Verifier { files, key, patience, queue, jobs, is_hashing: false, results, counters, thread })
    }

    /// Takes other files from now on. Secrets that were right stay known where a name's hash is the same.
    pub(in crate::control) fn replace_files(&mut self, files: Vec<Option<TokenFile>>) {
        let old = std::mem::take(&mut self.files);
        self.files = files
            .into_iter()
            .enumerate()
            .map(|(listener, file)| {
                let mut credentials = Credentials::new(file?);
                if let Some(Some(old)) = old.get(listener) {
                    for (place, old_place) in credentials.file.unchanged_since(&old.file) {
                        credentials.digests[place as usize] = old.digests[old_place as usize];
                    }
                }
                Some(credentials)
            })
            .collect();
    }

    /// Takes one secret and gives back what can be answered by now: this one, or others that gave way to it.
    pub(in crate::control) fn check(
        &mut self,
        request: AuthRequest,
        name: &str,
        token: Bytes,
        now: Instant,
    ) -> Vec<Answer> {
        // A listener whose file was taken away by a reload while a HELLO was under way names nobody.
        let Some(Some(credentials)) = self.files.get(request.listener.index()) else {
            return vec![(request, self.count(AuthResult::Rejected))];
        };
        let file = credentials.file.clone();
        let place = file.find(name);
        if let Some(place) = place
            && let Some(digest) = &credentials.digests[place as usize]
        {
            return vec![(request, self.answer_by_digest(&token, digest))];
        }
        if file.is_empty() {
            return vec![(request, self.count(AuthResult::Rejected))];
        }
        let name = Name { listener: request.listener, text: name.into() };
        self.queue.offer(Job { request, file, name, place, token, expires: now + self.patience }, now);
        self.go_on(now)
    }

    /// Whether the listener's file has this name.
    pub(in crate::control) fn knows(&self, listener: ListenerId, name: &str) -> bool {
        let credentials = self.files.get(listener.index()).and_then(Option::as_ref);
        credentials.is_some_and(|credentials| credentials.file.find(name).is_some())
    }

    /// Where results arrive, for [`Verifier::handle_result`].
    pub(in crate::control) fn results(&self) -> &Receiver<HashResult> {
        &self.results
    }

    /// Remembers a right secret and gives back all that is settled by it.
    pub(in crate::control) fn handle_result(&mut self, result: HashResult, now: Instant) -> Vec<Answer> {
        self.is_hashing = false;
        let HashResult { job, is_right } = result;
        let mut answers = Vec::new();
        let digest = is_right.then(|| self.digest(&job.token));
        if let (Some(digest), Some(place)) = (digest, job.place)
            && let Some(Some(credentials)) = self.files.get_mut(job.name.listener.index())
            && Arc::ptr_eq(&credentials.file, &job.file)
        {
            credentials.digests[place as usize] = Some(digest);
        }
        let followers = self.queue.finish(&job.name);
        if let Some(digest) = digest {
            self.queue.note_success(&job);
            self.counters.tokens_verified.fetch_add(1, Ordering::Relaxed);
            answers.push((job.request, AuthResult::Accepted));
            let (same, newer): (VecDeque<_>, VecDeque<_>) =
                followers.into_iter().partition(|follower| Arc::ptr_eq(&follower.file, &job.file));
            for follower in same {
                answers.push((follower.request, self.answer_by_digest(&follower.token, &digest)));
            }
            // The file was replaced meanwhile: what was right says nothing of these.
            self.queue.follow(newer, now);
        } else {
            self.queue.note_failure(&job, now);
            answers.push((job.request, self.count(AuthResult::Rejected)));
            self.follow(&job, followers, now, &mut answers);
        }
        answers.extend(self.go_on(now));
        answers
    }

    /// What waited behind a wrong secret: the same one again is as wrong, another one waits for a hash of its own.
    fn follow(&mut self, wrong: &Job, followers: VecDeque<Job>, now: Instant, answers: &mut Vec<Answer>) {
        let digest = self.digest(&wrong.token);
        let mut others = VecDeque::with_capacity(followers.len());
        for follower in followers {
            if Arc::ptr_eq(&follower.file, &wrong.file) && self.is(&follower.token, &digest) {
                answers.push((follower.request, self.count(AuthResult::Rejected)));
            } else {
                others.push_back(follower);
            }
        }
        self.queue.follow(others, now);
    }

    /// Gives the thread its next job, and collects who is told to come again.
    fn go_on(&mut self, now: Instant) -> Vec<Answer> {
        if !self.is_hashing
            && let Some(job) = self.queue.next(now)
        {
            // It has one place, which is free: the thread ends only when this sender does.
            self.jobs.try_send(job).expect("the token thread ended before its owner");
            self.is_hashing = true;
        }
        self.counters.tokens_unanswered.fetch_add(self.queue.take_expired(), Ordering::Relaxed);
        let busy = self.queue.take_busy();
        busy.into_iter().map(|job| (job.request, self.count(AuthResult::Busy))).collect()
    }

    /// The answer where the right secret's digest is known: no hash is computed for a wrong one.
    fn answer_by_digest(&self, token: &[u8], digest: &Digest) -> AuthResult {
        if self.is(token, digest) {
            self.counters.tokens_cached.fetch_add(1, Ordering::Relaxed);
            return AuthResult::Accepted;
        }
        self.count(AuthResult::Rejected)
    }

    fn is(&self, token: &[u8], digest: &Digest) -> bool {
        hmac::verify(&self.key, token, digest).is_ok()
    }

    fn digest(&self, token: &[u8]) -> Digest {
        let mut digest = [0; 32];
        digest.copy_from_slice(hmac::sign(&self.key, token).as_ref());
        digest
    }

    fn count(&self, answer: AuthResult) -> AuthResult {
        match answer {
            AuthResult::Rejected => self.counters.tokens_rejected.fetch_add(1, Ordering::Relaxed),
            AuthResult::Busy => self.counters.tokens_unanswered.fetch_add(1, Ordering::Relaxed),
            AuthResult::Accepted => 0,
        };
        answer
    }

    /// Ends the thread; waits for the hash that it is computing, at most.
    pub(in crate::control) fn stop(self) {
        let Verifier { jobs, results, thread, .. } = self;
        drop((jobs, results));
        if thread.join().is_err() {
            tracing::error!("the token thread panicked");
        }
    }
}

/// The thread's side.
struct HashWorker {
    jobs: Receiver<Job>,
    results: Sender<HashResult>,
}

impl HashWorker {
    /// Works until the owner lets go of the jobs or of the results.
    fn run(self) {
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::warn!(%error, "the token thread keeps its ordinary priority");
        }
        for job in &self.jobs {
            // The hash is computed before it is looked whether the name is known: both answers take the same time.
            let is_right = job.file.verify(job.place.unwrap_or(0), &job.token) && job.place.is_some();
            if self.results.send(HashResult { job, is_right }).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokens::line_for;
    use super::*;
    use AuthResult::{Accepted, Busy, Rejected};

    const HELLO_TIME: Duration = Duration::from_mins(1);
    /// A hash that takes its time.
    const SLOW: &str = "$argon2id$v=19$m=16384,t=4,p=1$c2FsdHNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Njc4OTA";

    fn load(text: &str) -> TokenFile {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        std::fs::write(&path, text).unwrap();
        TokenFile::load(&path).unwrap()
    }

    fn verifier(text: &str) -> Verifier {
        Verifier::start(vec![None, Some(load(text))], HELLO_TIME, Arc::default()).unwrap()
    }

    /// A request from 192.0.2.`host`.
    fn request(index: u32, host: u8) -> AuthRequest {
        AuthRequest {
            worker: WorkerId(3),
            connection: ConnectionId { slot: crate::link::ConnectionSlot(index), generation: 9 },
            listener: ListenerId(1),
            peer: Some([192, 0, 2, host].into()),
            is_renewable: false,
            must_be_named: false,
        }
    }

    fn check(verifier: &mut Verifier, index: u32, host: u8, name: &str, token: &str) -> Vec<(u32, AuthResult)> {
        let token = Bytes::copy_from_slice(token.as_bytes());
        short(&verifier.check(request(index, host), name, token, Instant::now()))
    }

    fn short(answers: &[Answer]) -> Vec<(u32, AuthResult)> {
        answers.iter().map(|(request, answer)| (request.connection.slot.0, *answer)).collect()
    }

    fn settled(verifier: &mut Verifier) -> Vec<(u32, AuthResult)> {
        let result = verifier.results().recv_timeout(Duration::from_mins(1)).expect("no result came");
        short(&verifier.handle_result(result, Instant::now()))
    }

    fn counted(verifier: &Verifier) -> [u64; 4] {
        let counters = &verifier.counters;
        [&counters.tokens_verified, &counters.tokens_cached, &counters.tokens_rejected, &counters.tokens_unanswered]
            .map(|count| count.load(Ordering::Relaxed))
    }

    #[test]
    fn a_name_that_was_right_once_costs_no_hash_again() {
        let mut verifier = verifier(&line_for("meter", b"right"));
        assert_eq!(check(&mut verifier, 1, 1, "meter", "wrong"), []);
        assert_eq!(settled(&mut verifier), [(1, Rejected)]);
        assert_eq!(check(&mut verifier, 2, 2, "meter", "right"), []);
        assert_eq!(settled(&mut verifier), [(2, Accepted)]);
        assert_eq!(check(&mut verifier, 3, 1, "meter", "right"), [(3, Accepted)]);
        // Neither right nor wrong is hashed from here on.
        for index in 4..104 {
            assert_eq!(check(&mut verifier, index, 1, "meter", "wrong"), [(index, Rejected)]);
        }
        assert!(!verifier.is_hashing);
        // The decoy's own secret opens nothing for another id.
        assert_eq!(check(&mut verifier, 200, 3, "stranger", "right"), []);
        assert_eq!(settled(&mut verifier), [(200, Rejected)]);
        assert_eq!(counted(&verifier), [1, 1, 102, 0]);
        verifier.stop();
    }

    #[test]
    fn an_empty_file_rejects_everybody() {
        let mut verifier = verifier("# nobody yet\n");
        assert_eq!(check(&mut verifier, 1, 1, "meter", "x"), [(1, Rejected)]);
        verifier.stop();
    }

    #[test]
    fn what_waits_behind_a_right_secret_is_settled_by_it() {
        let mut verifier = verifier(&format!("slow:{SLOW}\n{}", line_for("meter", b"right")));
        // The thread is kept while the others come.
        assert_eq!(check(&mut verifier, 0, 9, "slow", "x"), []);
        assert_eq!(check(&mut verifier, 1, 1, "meter", "right"), []);
        assert_eq!(check(&mut verifier, 2, 2, "meter", "right"), []);
        assert_eq!(check(&mut verifier, 3, 3, "meter", "wrong"), []);
        assert_eq!(settled(&mut verifier), [(0, Rejected)]);
        assert_eq!(settled(&mut verifier), [(1, Accepted), (2, Accepted), (3, Rejected)]);
        assert_eq!(counted(&verifier), [1, 1, 2, 0]);
        verifier.stop();
    }

    #[test]
    fn a_wrong_secret_settles_the_same_one_and_makes_its_address_wait() {
        let mut verifier = verifier(&format!("slow:{SLOW}\n{}", line_for("meter", b"right")));
        assert_eq!(check(&mut verifier, 0, 9, "slow", "x"), []);
        assert_eq!(check(&mut verifier, 1, 1, "meter", "wrong"), []);
        assert_eq!(check(&mut verifier, 2, 1, "meter", "guess"), []);
        assert_eq!(check(&mut verifier, 3, 2, "meter", "wrong"), []);
        assert_eq!(check(&mut verifier, 4, 3, "meter", "right"), []);
        assert_eq!(settled(&mut verifier), [(0, Rejected)]);
        assert_eq!(settled(&mut verifier), [(1, Rejected), (3, Rejected), (2, Busy)]);
        // Its device, from elsewhere, is not kept out by that.
        assert_eq!(settled(&mut verifier), [(4, Accepted)]);
        verifier.stop();
    }

    #[test]
    fn first_logins_pass_while_somebody_guesses() {
        let mut text = format!("slow:{SLOW}\n");
        for name in 0..8 {
            text.push_str(&line_for(&format!("u{name}"), b"right"));
        }
        let mut verifier = verifier(&text);
        assert_eq!(check(&mut verifier, 9_000, 9, "slow", "x"), []);
        let mut busy = 0;
        for guess in 0..1_000 {
            busy += check(&mut verifier, guess, 1, "u0", &format!("guess-{guess}")).len();
            busy += check(&mut verifier, 1_000 + guess, 1, &format!("stranger-{guess}"), "x").len();
        }
        assert!(busy > 1_900, "{busy} of 2,000 guesses were told to come again");
        for name in 1..8 {
            // From the same address even: the names are told apart.
            assert_eq!(check(&mut verifier, 5_000 + name, 1, &format!("u{name}"), "right"), []);
        }
        let mut accepted = 0;
        let mut hashes = 0;
        while accepted < 7 {
            accepted += settled(&mut verifier).iter().filter(|(_, answer)| *answer == Accepted).count();
            hashes += 1;
        }
        assert!(hashes <= 10, "{hashes} hashes until all seven were in");
        verifier.stop();
    }

    #[test]
    fn what_waited_longer_than_its_connection_is_not_hashed() {
        let mut verifier = verifier(&line_for("meter", b"right"));
        let long_ago = Instant::now().checked_sub(HELLO_TIME * 2).unwrap();
        verifier.is_hashing = true;
        verifier.check(request(1, 1), "meter", Bytes::from_static(b"right"), long_ago);
        verifier.is_hashing = false;
        assert_eq!(check(&mut verifier, 2, 2, "meter", "right"), []);
        assert_eq!(settled(&mut verifier), [(2, Accepted)]);
        assert_eq!(counted(&verifier)[3], 1);
        verifier.stop();
    }

    #[test]
    fn a_reload_keeps_what_is_the_same_and_nothing_else() {
        let (kept, changed) = (line_for("kept", b"right"), line_for("changed", b"old"));
        let mut verifier = verifier(&format!("slow:{SLOW}\n{changed}{kept}"));
        for (index, name, token) in [(1, "kept", "right"), (2, "changed", "old")] {
            check(&mut verifier, index, 1, name, token);
            assert_eq!(settled(&mut verifier), [(index, Accepted)]);
        }
        // One is being hashed for the old file, and another waits with it, while the file is replaced.
        check(&mut verifier, 3, 1, "slow", "x");
        let text = format!("{kept}{}", line_for("changed", b"new"));
        verifier.replace_files(vec![None, Some(load(&text))]);
        assert_eq!(check(&mut verifier, 4, 2, "kept", "right"), [(4, Accepted)]);
        assert_eq!(check(&mut verifier, 5, 2, "changed", "old"), []);
        assert_eq!(settled(&mut verifier), [(3, Rejected)]);
        assert_eq!(settled(&mut verifier), [(5, Rejected)]);
        assert_eq!(check(&mut verifier, 6, 3, "changed", "new"), []);
        assert_eq!(settled(&mut verifier), [(6, Accepted)]);
        // A secret that is right for the old file opens nothing for who asks under the new one.
        check(&mut verifier, 10, 5, "changed-again", "x");
        let text = |secret: &[u8]| format!("slow:{SLOW}\n{}", line_for("again", secret));
        settled(&mut verifier);
        verifier.replace_files(vec![None, Some(load(&text(b"one")))]);
        check(&mut verifier, 11, 6, "slow", "x");
        check(&mut verifier, 12, 6, "again", "one");
        verifier.replace_files(vec![None, Some(load(&text(b"two")))]);
        check(&mut verifier, 13, 7, "again", "one");
        assert_eq!(settled(&mut verifier), [(11, Rejected)]);
        assert_eq!(settled(&mut verifier), [(12, Accepted)], "it was under way for the old file");
        assert_eq!(settled(&mut verifier), [(13, Rejected)]);
        verifier.replace_files(vec![None, None]);
        assert_eq!(check(&mut verifier, 7, 4, "kept", "right"), [(7, Rejected)]);
        verifier.stop();
    }
}
