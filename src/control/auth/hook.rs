//! An HTTP service that is asked whether a device may come in. It may be slow, hang, fail or be gone: questions under way,
//! devices that wait, and what is kept of answers all have bounds, and nobody is ever called wrong because of it.
//!
//! ```text
//!          ┌ a yes or a no that holds (cache.rs) ──────────────────▶ it
//! offer() ─┼ the breaker is open (breaker.rs) ──┐
//!          └ queue, fair between addresses      ├─▶ an older yes, with on_error = "allow-cached"; else "come again"
//!              └─▶ threads "hook" ── no answer ─┘
//!                       └─ an answer ─▶ kept, and it
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::prelude::{BASE64_STANDARD, Engine};
use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::breaker::Breaker;
use super::cache::{Answers, Digest, Known};
use super::fair::{FairQueue, Origin};
use super::http::HttpClient;
use super::jwt::filters_in;
use super::verifier::AuthRequest;
use crate::codec::native;
use crate::config::{self, OnError};
use crate::control::ProcessCounters;
use crate::link::{Credentials, GRANT_BYTES_MAX, Grant, ListenerId};
use crate::time::Moment;

/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 16 << 10;
/// Between two log lines about a service that does not answer.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What a device's credentials come to.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    Accepted(Grant),
    Rejected(String),
    Busy(&'static str),
}

/// What a listener's hook is asked with.
#[derive(Clone)]
pub(super) struct HookTarget {
    pub(super) config: config::Hook,
    pub(super) client: HttpClient,
    /// Of the files that the client was made from. With the configuration it says whether anything has changed.
    pub(super) digest: [u8; 32],
}

/// One device that waits for its question.
struct Waiting {
    request: AuthRequest,
    credentials: Box<Credentials>,
    digest: Digest,
    /// When a question for it could not be answered in time any more.
    expires: Instant,
}

/// A question on its way to a thread.
struct Call {
    waiting: Waiting,
    question: Vec<u8>,
}

/// What a thread brings back.
pub(in crate::control) struct HookResult {
    waiting: Waiting,
    answer: Result<Answer, String>,
    /// Whose question it was: that of a hook which was replaced meanwhile changes nothing of the new one.
    hook: u64,
}

impl HookResult {
    pub(super) fn listener(&self) -> ListenerId {
        self.waiting.request.listener
    }

    /// What it comes to where there is no hook any more.
    pub(super) fn given_up(self) -> (AuthRequest, Outcome) {
        (self.waiting.request, Outcome::Busy("the hook was taken away"))
    }
}

/// What the service said.
#[derive(Debug, PartialEq)]
enum Answer {
    Granted { grant: Grant, expires_in: Option<Duration> },
    Denied(String),
}

/// One listener's hook: what waits, what is known, and its threads.
pub(super) struct HookClient {
    pub(super) target: HookTarget,
    number: u64,
    listener_name: String,
    protocol: &'static str,
    node: String,
    queue: FairQueue<Waiting>,
    in_flight: usize,
    calls: Sender<Call>,
    breaker: Breaker,
    answers: Answers,
    key: hmac::Key,
    logged: Option<Instant>,
    counters: Arc<ProcessCounters>,
}

/// What a hook is told of the listener.
pub(super) struct About<'a> {
    pub(super) listener: &'a config::Listener,
    pub(super) node: &'a str,
}

impl HookClient {
    /// Starts its threads, whose results go to `results`; they end when the client is dropped and their questions are
    /// answered. `number` is another one for each client.
    pub(super) fn start(
        target: HookTarget,
        number: u64,
        about: &About<'_>,
        key: hmac::Key,
        results: &Sender<HookResult>,
        counters: Arc<ProcessCounters>,
    ) -> io::Result<Self> {
        let (calls, taken) = bounded::<Call>(target.config.in_flight);
        for _ in 0..target.config.in_flight {
            let (taken, results, client) = (taken.clone(), results.clone(), target.client.clone());
            let work = move || {
                for Call { waiting, question } in &taken {
                    let answer = ask(&client, &question);
                    if results.send(HookResult { waiting, answer, hook: number }).is_err() {
                        return;
                    }
                }
            };
            thread::Builder::new().name("hook".into()).spawn(work)?;
        }
        Ok(Self {
            number,
            listener_name: about.listener.name.clone(),
            protocol: about.listener.protocol.label(),
            node: about.node.to_owned(),
            queue: FairQueue::new(target.config.waiting),
            in_flight: 0,
            calls,
            breaker: Breaker::new(),
            answers: Answers::new(target.config.cache_bytes),
            key,
            logged: None,
            counters,
            target,
        })
    }

    /// Takes one; gives back what can be answered by now.
    pub(super) fn offer(
        &mut self,
        request: AuthRequest,
        credentials: Box<Credentials>,
        patience: Duration,
        now: (Instant, Moment),
    ) -> Vec<(AuthRequest, Outcome)> {
        let digest = self.digest(request.listener, &credentials);
        if !credentials.is_renewal
            && let Some(outcome) = self.fresh(&digest, now)
        {
            self.counters.hook_cached.fetch_add(1, Ordering::Relaxed);
            return vec![(request, outcome)];
        }
        let (instant, _) = now;
        let expires = instant + patience.saturating_sub(self.target.config.timeout);
        let waiting = Waiting { request, credentials, digest, expires };
        if self.breaker.is_open(instant) {
            return vec![self.unanswered(&waiting, "the hook does not answer", now)];
        }
        let mut answers = Vec::new();
        let origin = Origin::of(request.peer);
        if let Some(gone) = self.queue.push(origin, waiting).unwrap_or_else(Some) {
            answers.push(self.unanswered(&gone, "too many wait for the hook", now));
        }
        answers.extend(self.go_on(now));
        answers
    }

    /// A thread is back.
    pub(super) fn handle_result(&mut self, result: HookResult, now: (Instant, Moment)) -> Vec<(AuthRequest, Outcome)> {
        let HookResult { waiting, answer, hook } = result;
        let is_own = hook == self.number;
        let mut answers = Vec::new();
        if is_own {
            self.in_flight -= 1;
        }
        match answer {
            Ok(answer) => {
                if is_own && self.breaker.note_answer() {
                    tracing::info!(listener = self.listener_name, "the hook answers again");
                }
                let outcome = self.take_answer(answer, &waiting, is_own, now);
                answers.push((waiting.request, outcome));
            }
            Err(error) => {
                self.counters.hook_failures.fetch_add(1, Ordering::Relaxed);
                let opens = is_own && self.breaker.note_failure(now.0);
                self.log_failure(&error, opens, now.0);
                answers.push(self.unanswered(&waiting, "the hook does not answer", now));
            }
        }
        answers.extend(self.go_on(now));
        answers
    }

    fn take_answer(&mut self, answer: Answer, waiting: &Waiting, is_own: bool, now: (Instant, Moment)) -> Outcome {
        let (kept, outcome) = match answer {
            Answer::Granted { grant, expires_in } => {
                let until = expires_in.map(|expires_in| now.1.plus(expires_in));
                let grant = Grant { until, ..grant };
                (Some(grant.clone()), Outcome::Accepted(grant))
            }
            Answer::Denied(detail) => (None, Outcome::Rejected(detail)),
        };
        if is_own {
            self.answers.insert(waiting.digest, kept, now.0);
        }
        outcome
    }

    /// Gives threads what they may ask, and collects who waited for too long. When the breaker has opened, nobody waits.
    fn go_on(&mut self, now: (Instant, Moment)) -> Vec<(AuthRequest, Outcome)> {
        let mut answers = Vec::new();
        while !self.queue.is_empty() {
            if self.breaker.is_open(now.0) {
                if let Some(waiting) = self.queue.pop() {
                    answers.push(self.unanswered(&waiting, "the hook does not answer", now));
                }
                continue;
            }
            if self.in_flight >= self.target.config.in_flight {
                break;
            }
            let Some(waiting) = self.queue.pop() else { break };
            if waiting.expires <= now.0 {
                answers.push(self.unanswered(&waiting, "too many wait for the hook", now));
                continue;
            }
            if !self.breaker.lets_through(now.0) {
                answers.push(self.unanswered(&waiting, "the hook does not answer", now));
                continue;
            }
            let question = self.question(&waiting);
            self.counters.hook_asked.fetch_add(1, Ordering::Relaxed);
            self.in_flight += 1;
            // As many places as may be in flight, and the threads end only when this sender does.
            self.calls.try_send(Call { waiting, question }).expect("a hook's threads ended before it");
        }
        answers
    }

    /// An answer that holds.
    fn fresh(&self, digest: &Digest, now: (Instant, Moment)) -> Option<Outcome> {
        let config = &self.target.config;
        match self.answers.get(digest, now.0)? {
            Known::Granted(grant, age) if age < config.cache && holds(&grant, now.1) => Some(Outcome::Accepted(grant)),
            Known::Denied(age) if age < config.cache_denied => {
                Some(Outcome::Rejected("the hook said no a moment ago".to_owned()))
            }
            Known::Granted(..) | Known::Denied(_) => None,
        }
    }

    /// Nobody can be asked: an older yes may do.
    fn unanswered(&self, waiting: &Waiting, why: &'static str, now: (Instant, Moment)) -> (AuthRequest, Outcome) {
        let config = &self.target.config;
        if config.on_error == OnError::AllowCached
            && let Some(Known::Granted(grant, age)) = self.answers.get(&waiting.digest, now.0)
            && age < config.stale.max(config.cache)
            && holds(&grant, now.1)
        {
            self.counters.hook_stale.fetch_add(1, Ordering::Relaxed);
            return (waiting.request, Outcome::Accepted(grant));
        }
        (waiting.request, Outcome::Busy(why))
    }

    fn log_failure(&mut self, error: &str, opens: bool, now: Instant) {
        if opens {
            tracing::warn!(
                listener = self.listener_name,
                error,
                "the hook does not answer: it is asked rarely until it does"
            );
            self.logged = Some(now);
        } else if self.logged.is_none_or(|logged| now.saturating_duration_since(logged) >= LOG_EVERY) {
            tracing::warn!(listener = self.listener_name, error, "the hook has not answered");
            self.logged = Some(now);
        }
    }

    fn digest(&self, listener: ListenerId, credentials: &Credentials) -> Digest {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&[listener.0, u8::from(credentials.is_certified)]);
        for part in [credentials.device.as_bytes(), credentials.name.as_bytes(), &credentials.secret] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }

    fn question(&self, waiting: &Waiting) -> Vec<u8> {
        let credentials = &waiting.credentials;
        let text = std::str::from_utf8(&credentials.secret).ok();
        let question = Question {
            node: &self.node,
            listener: &self.listener_name,
            protocol: self.protocol,
            device: &credentials.device,
            name: &credentials.name,
            secret: text,
            secret_base64: text.is_none().then(|| BASE64_STANDARD.encode(&credentials.secret)),
            is_certified: credentials.is_certified,
            is_renewal: credentials.is_renewal,
            peer: waiting.request.peer.map(|peer| peer.to_string()),
        };
        serde_json::to_vec(&question).expect("a question is plain text")
    }

    /// Who waits, when another client takes its place.
    pub(super) fn into_waiting(mut self) -> Vec<(AuthRequest, Box<Credentials>)> {
        std::iter::from_fn(|| self.queue.pop()).map(|waiting| (waiting.request, waiting.credentials)).collect()
    }
}

fn holds(grant: &Grant, now: Moment) -> bool {
    grant.until.is_none_or(|until| now < until)
}

#[derive(Serialize)]
struct Question<'a> {
    node: &'a str,
    listener: &'a str,
    protocol: &'static str,
    device: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_base64: Option<String>,
    is_certified: bool,
    is_renewal: bool,
    peer: Option<String>,
}

#[derive(Deserialize)]
struct WrittenAnswer {
    allow: bool,
    #[serde(default)]
    device: Option<String>,
    #[serde(default)]
    publish: Option<Value>,
    #[serde(default)]
    subscribe: Option<Value>,
    #[serde(default)]
    expires_in_s: Option<u64>,
    #[serde(default)]
    detail: Option<String>,
}

fn ask(client: &HttpClient, question: &[u8]) -> Result<Answer, String> {
    let text = client.post(question, ANSWER_BYTES_MAX).map_err(|error| error.to_string())?;
    read_answer(&text)
}

/// What cannot be read is no answer: it is the service that is wrong, not the device.
fn read_answer(text: &[u8]) -> Result<Answer, String> {
    let written: WrittenAnswer =
        serde_json::from_slice(text).map_err(|error| format!("its answer is unreadable: {error}"))?;
    if !written.allow {
        let detail: String = written.detail.unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect();
        return Ok(Answer::Denied(if detail.is_empty() { "the hook said no".to_owned() } else { detail }));
    }
    let device = written.device.unwrap_or_default();
    if !device.is_empty() && !native::is_id(&device) {
        return Err("\"device\" in its answer is no device id".to_owned());
    }
    let filters = |name: &str, value: Option<Value>| match value {
        None => Ok(None),
        Some(value) => filters_in(Some(&value)).map(Some).map_err(|what| format!("{name:?} in its answer {what}")),
    };
    let grant = Grant {
        device: device.into(),
        publish: filters("publish", written.publish)?,
        subscribe: filters("subscribe", written.subscribe)?,
        until: None,
        is_renewable: false,
    };
    if grant.bytes() > GRANT_BYTES_MAX {
        return Err(format!("the filters in its answer take more than {GRANT_BYTES_MAX} bytes"));
    }
    Ok(Answer::Granted { grant, expires_in: written.expires_in_s.map(Duration::from_secs) })
}

/// A way for results of any number of hooks.
pub(super) fn hook_results() -> (Sender<HookResult>, Receiver<HookResult>) {
    // As many as are in flight.
    crossbeam_channel::unbounded()
}
