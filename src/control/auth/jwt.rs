//! JSON Web Tokens, verified by a thread of their own: a signature takes some 20 to 100 µs, which the hub has not.
//!
//! ```text
//! hub ── offer() ─▶ queue (fair between addresses) ─▶ thread "jwt" ─▶ results() ─▶ handle_results()
//! ```
//!
//! What a token says of its algorithm and its key chooses among keys of ours and decides nothing: a key has one algorithm,
//! and a token of another one is refused. `exp` is demanded; audience and issuer where they are configured.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde_json::Value;

use super::fair::FairQueue;
use super::fetch::{FetchSource, KeyWish};
use super::keys::{Key, KeyRing, Keys};
use super::verifier::AuthRequest;
use crate::codec::native;
use crate::config::{self, is_topic_rule};
use crate::link::{GRANT_BYTES_MAX, GRANT_FILTERS_MAX, Grant};

/// Signatures checked for one token: more keys could fit than one without a key id is worth.
const TRIES_MAX: usize = 4;
/// Tokens that may wait.
const WAITING_MAX: usize = 4_096;
/// Tokens that the thread is given at a time.
const BATCH_MAX: usize = 32;
/// How far the thread steps back from the event loops on a busy machine.
const NICENESS: i32 = 10;

/// Whether it looks like a JSON Web Token: whatever does not is for other authenticators.
pub(super) fn looks_like_one(secret: &[u8]) -> bool {
    secret.starts_with(b"eyJ") && secret.split(|&byte| byte == b'.').count() == 3
}

/// Where a listener's keys are.
#[derive(Clone)]
pub(super) enum KeyPlace {
    File(Arc<KeyRing>),
    Url(Arc<FetchSource>),
}

/// How one listener verifies tokens.
pub(super) struct JwtPolicy {
    pub(super) config: config::Jwt,
    pub(super) keys: KeyPlace,
    pub(super) wish: KeyWish,
}

/// What a token comes to.
#[derive(Debug, PartialEq)]
pub(super) enum JwtOutcome {
    /// It is right; it ends at this time of day, in seconds since 1970.
    Accepted(Grant, u64),
    Rejected(Cow<'static, str>),
    Busy(Cow<'static, str>),
}

impl JwtPolicy {
    fn keys(&self) -> Option<Arc<Keys>> {
        match &self.keys {
            KeyPlace::File(ring) => ring.get(),
            KeyPlace::Url(source) => source.ring.get(),
        }
    }

    pub(super) fn verify(&self, token: &[u8]) -> JwtOutcome {
        let Ok(header) = decode_header(token) else {
            return JwtOutcome::Rejected("the token's header names no algorithm that could be right".into());
        };
        let Some(keys) = self.keys() else {
            return JwtOutcome::Busy("the keys could not be fetched yet".into());
        };
        let named = |key: &&Key| header.kid.is_none() || key.id.is_none() || key.id == header.kid;
        let mut is_named = false;
        let mut why = Cow::Borrowed("");
        for key in keys
            .iter()
            .filter(named)
            .inspect(|_| is_named = true)
            .filter(|key| key.algorithm == header.alg)
            .take(TRIES_MAX)
        {
            match decode::<Value>(token, &key.decoding, &self.validation(key.algorithm)) {
                Ok(token) => return self.grant(&token.claims),
                Err(error) => why = format!("the token is not accepted: {error}").into(),
            }
        }
        let kid = header.kid.as_deref().unwrap_or_default();
        match &self.keys {
            // A key that was made a moment ago, perhaps.
            KeyPlace::Url(source) if !is_named => {
                self.wish.ask(source);
                JwtOutcome::Busy(format!("no key {kid:?} is among those that were fetched").into())
            }
            _ if !is_named => JwtOutcome::Rejected(format!("there is no key {kid:?}").into()),
            _ if why.is_empty() => {
                JwtOutcome::Rejected(format!("the token is signed with {:?}, for which no key is", header.alg).into())
            }
            _ => JwtOutcome::Rejected(why),
        }
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.config.leeway.as_secs();
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        validation.validate_aud = !self.config.audience.is_empty();
        if validation.validate_aud {
            validation.set_audience(&self.config.audience);
            required.push("aud");
        }
        if !self.config.issuer.is_empty() {
            validation.set_issuer(&[&self.config.issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    fn grant(&self, claims: &Value) -> JwtOutcome {
        let claim = &self.config.device_claim;
        let Some(device) = lookup(claims, claim).and_then(Value::as_str).filter(|device| native::is_id(device)) else {
            return JwtOutcome::Rejected(format!("its claim {claim:?} holds no device id").into());
        };
        let filters = |claim: &Option<String>| match claim {
            None => Ok(None),
            Some(claim) => {
                filters_in(lookup(claims, claim)).map(Some).map_err(|what| format!("its claim {claim:?} {what}"))
            }
        };
        let (publish, subscribe) = match (filters(&self.config.publish_claim), filters(&self.config.subscribe_claim)) {
            (Ok(publish), Ok(subscribe)) => (publish, subscribe),
            (Err(what), _) | (_, Err(what)) => return JwtOutcome::Rejected(what.into()),
        };
        let grant = Grant { device: device.into(), publish, subscribe, until: None, is_renewable: false };
        if grant.bytes() > GRANT_BYTES_MAX {
            return JwtOutcome::Rejected(format!("its filters take more than {GRANT_BYTES_MAX} bytes").into());
        }
        // It is there and in the future, as was checked.
        let ends = claims["exp"].as_f64().unwrap_or_default().clamp(0.0, 1e12) as u64;
        JwtOutcome::Accepted(grant, ends.saturating_add(self.config.leeway.as_secs()))
    }
}

/// A claim by its name, or what a JSON pointer points to.
fn lookup<'c>(claims: &'c Value, path: &str) -> Option<&'c Value> {
    if path.starts_with('/') { claims.pointer(path) } else { claims.get(path) }
}

/// Topic filters: a list of them, or one. What is not there allows nothing.
pub(super) fn filters_in(value: Option<&Value>) -> Result<Box<[String]>, &'static str> {
    let listed = match value {
        None | Some(Value::Null) => return Ok(Box::default()),
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(all)) => {
            let texts: Option<Vec<String>> = all.iter().map(|one| one.as_str().map(str::to_owned)).collect();
            texts.ok_or("holds something that is no text")?
        }
        Some(_) => return Err("is no list of topic filters"),
    };
    if listed.len() > GRANT_FILTERS_MAX {
        return Err("holds more than 64 filters");
    }
    let distinct: HashSet<&String> = listed.iter().collect();
    if distinct.iter().any(|filter| !is_topic_rule(filter)) {
        return Err("holds something that is no topic filter");
    }
    Ok(listed.into())
}

// --- The thread -----------------------------------------------------------------------------------------------------

/// A token that is to be verified.
pub(super) struct JwtJob {
    pub(super) request: AuthRequest,
    pub(super) policy: Arc<JwtPolicy>,
    pub(super) token: Bytes,
    /// When its connection waits no longer.
    pub(super) expires: Instant,
}

/// What the thread found.
pub(in crate::control) struct JwtResult {
    request: AuthRequest,
    outcome: JwtOutcome,
}

/// The hub's side: what waits, and the thread.
pub(super) struct JwtVerifier {
    queue: FairQueue<JwtJob>,
    batches: Sender<Vec<JwtJob>>,
    is_verifying: bool,
    results: Receiver<Vec<JwtResult>>,
    thread: JoinHandle<()>,
}

impl JwtVerifier {
    pub(super) fn start() -> io::Result<Self> {
        let (batches, to_verify) = bounded::<Vec<JwtJob>>(1);
        let (verified, results) = bounded(1);
        let work = move || {
            if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
                tracing::warn!(%error, "the jwt thread keeps its ordinary priority");
            }
            for batch in to_verify {
                let verify = |job: JwtJob| JwtResult { request: job.request, outcome: job.policy.verify(&job.token) };
                if verified.send(batch.into_iter().map(verify).collect()).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("jwt".into()).spawn(work)?;
        Ok(Self { queue: FairQueue::new(WAITING_MAX), batches, is_verifying: false, results, thread })
    }

    pub(super) fn results(&self) -> &Receiver<Vec<JwtResult>> {
        &self.results
    }

    /// Takes one, and gives back what found no place, or waited for too long.
    pub(super) fn offer(&mut self, job: JwtJob, now: Instant) -> Vec<(AuthRequest, JwtOutcome)> {
        let origin = super::fair::Origin::of(job.request.peer);
        let mut gone = Vec::new();
        match self.queue.push(origin, job) {
            Ok(None) => {}
            Ok(Some(other)) => gone.push(too_many(&other)),
            Err(own) => gone.push(too_many(&own)),
        }
        gone.extend(self.go_on(now));
        gone
    }

    pub(super) fn handle_results(&mut self, results: Vec<JwtResult>, now: Instant) -> Vec<(AuthRequest, JwtOutcome)> {
        self.is_verifying = false;
        let mut answers: Vec<_> = results.into_iter().map(|result| (result.request, result.outcome)).collect();
        answers.extend(self.go_on(now));
        answers
    }

    fn go_on(&mut self, now: Instant) -> Vec<(AuthRequest, JwtOutcome)> {
        let mut gone = Vec::new();
        if self.is_verifying {
            return gone;
        }
        let mut batch = Vec::new();
        while batch.len() < BATCH_MAX
            && let Some(job) = self.queue.pop()
        {
            if job.expires > now { batch.push(job) } else { gone.push(too_many(&job)) }
        }
        if !batch.is_empty() {
            // It has one place, which is free: the thread ends only when this sender does.
            self.batches.try_send(batch).expect("the jwt thread ended before its owner");
            self.is_verifying = true;
        }
        gone
    }

    /// Ends the thread; waits for the batch that it verifies, at most.
    pub(super) fn stop(self) {
        let Self { batches, results, thread, .. } = self;
        drop((batches, results));
        if thread.join().is_err() {
            tracing::error!("the jwt thread panicked");
        }
    }
}

fn too_many(job: &JwtJob) -> (AuthRequest, JwtOutcome) {
    (job.request, JwtOutcome::Busy("too many tokens wait to be checked".into()))
}
