//! The ordered list of each listener's authenticators: the first that applies decides, and what it says becomes one
//! [`Grant`], a no with its reason, or "come again".
//!
//! ```text
//! hub ── check() ─▶ certificate │ token, password (verifier.rs) │ JWT (jwt.rs) │ hook (hook.rs)
//!    ◀── answers ◀─ handle_*() ◀─ results of their threads
//! ```
//! It lives in the hub, and never waits.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use crossbeam_channel::{Receiver, Sender};

use super::fetch::KeyFetcher;
pub(in crate::control) use super::hook::HookResult;
use super::hook::{About, HookClient, Outcome, hook_results};
pub(in crate::control) use super::jwt::JwtResult;
use super::jwt::{self, JwtJob, JwtOutcome, JwtPolicy, JwtVerifier, KeyPlace};
use super::material::{JwtMaterial, Material};
use super::secrets::{self, SECRET_BYTES_MAX};
use super::verifier::{self, AuthRequest, AuthResult, HashResult, Verifier};
use crate::codec::native;
use crate::config::{Authenticator, Config, Identity, IdentityFrom};
use crate::control::{Clock, ProcessCounters};
use crate::link::{AuthAnswer, CloseReason, Credentials, Grant, ListenerId};

/// Whom to tell what.
pub(in crate::control) type Answer = (AuthRequest, AuthAnswer);

/// Another set of files, for a configuration.
pub(in crate::control) struct Replacement {
    pub(in crate::control) config: Arc<Config>,
    /// By listener.
    pub(in crate::control) materials: Vec<Material>,
}

/// The authenticators of every listener.
pub(in crate::control) struct AuthChains {
    config: Arc<Config>,
    verifier: Verifier,
    jwt: JwtVerifier,
    /// By listener.
    jwt_policies: Vec<Option<(Arc<JwtPolicy>, [u8; 32])>>,
    keys: KeyFetcher,
    /// By listener.
    hooks: Vec<Option<HookClient>>,
    /// How many there ever were.
    hooks_started: u64,
    hook_results: (Sender<HookResult>, Receiver<HookResult>),
    key: hmac::Key,
    /// What secrets take that wait, whatever they wait for.
    waiting: secrets::Waiting,
    counters: Arc<ProcessCounters>,
}

impl AuthChains {
    /// Starts the threads that are needed.
    pub(in crate::control) fn start(first: Replacement, counters: Arc<ProcessCounters>) -> io::Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| io::Error::other("the system gives no random key"))?;
        let Replacement { config, mut materials } = first;
        let files = materials.iter_mut().map(|material| material.tokens.take()).collect();
        let listeners = config.listeners.len();
        let mut chains = Self {
            verifier: Verifier::start(files, config.limits.hello_time, counters.clone())?,
            jwt: JwtVerifier::start()?,
            jwt_policies: std::iter::repeat_with(|| None).take(listeners).collect(),
            keys: KeyFetcher::start(counters.clone())?,
            hooks: std::iter::repeat_with(|| None).take(listeners).collect(),
            hooks_started: 0,
            hook_results: hook_results(),
            key,
            waiting: secrets::Waiting::default(),
            counters,
            config,
        };
        chains.set_jwt_policies(&mut materials);
        chains.set_hooks(&mut materials)?;
        Ok(chains)
    }

    /// Goes by other files from now on. What is known of what has not changed stays known. Gives back who can be answered
    /// because of it.
    pub(in crate::control) fn replace(&mut self, by: Replacement, clock: &Clock, now: Instant) -> Vec<Answer> {
        let Replacement { config, mut materials } = by;
        self.config = config;
        self.verifier.replace_files(materials.iter_mut().map(|material| material.tokens.take()).collect());
        self.set_jwt_policies(&mut materials);
        let waiting = match self.set_hooks(&mut materials) {
            Ok(waiting) => waiting,
            Err(error) => {
                tracing::error!(%error, "a hook has no threads: its devices are told to come again");
                Vec::new()
            }
        };
        waiting.into_iter().flat_map(|(asked, credentials)| self.decide(asked, credentials, clock, now)).collect()
    }

    fn set_jwt_policies(&mut self, materials: &mut [Material]) {
        for (index, material) in materials.iter_mut().enumerate() {
            let before = self.jwt_policies[index].take();
            self.jwt_policies[index] = material.jwt.take().map(|JwtMaterial { config, mut keys, digest }| {
                if let (KeyPlace::Url(_), Some((before, before_digest))) = (&keys, &before)
                    && matches!(before.keys, KeyPlace::Url(_))
                    && *before_digest == digest
                {
                    // The last good keys stay.
                    keys = before.keys.clone();
                }
                (Arc::new(JwtPolicy { config, keys, wish: self.keys.wish() }), digest)
            });
        }
        let sources = self.jwt_policies.iter().flatten().filter_map(|(policy, _)| match &policy.keys {
            KeyPlace::Url(source) => Some(source.clone()),
            KeyPlace::File(_) => None,
        });
        self.keys.set_sources(sources.collect());
    }

    /// Gives back who waited for a hook that was replaced.
    fn set_hooks(&mut self, materials: &mut [Material]) -> io::Result<Vec<(AuthRequest, Box<Credentials>)>> {
        let mut waiting = Vec::new();
        for (index, material) in materials.iter_mut().enumerate() {
            let target = material.hook.take();
            let is_same = match (&self.hooks[index], &target) {
                (Some(before), Some(target)) => {
                    before.target.config == target.config && before.target.digest == target.digest
                }
                (None, None) => true,
                _ => false,
            };
            if is_same {
                continue;
            }
            waiting.extend(self.hooks[index].take().into_iter().flat_map(HookClient::into_waiting));
            if let Some(target) = target {
                self.hooks_started += 1;
                let about = About { listener: &self.config.listeners[index], node: &self.config.node };
                let (key, counters) = (self.key.clone(), self.counters.clone());
                let results = &self.hook_results.0;
                self.hooks[index] =
                    Some(HookClient::start(target, self.hooks_started, &about, key, results, counters)?);
            }
        }
        Ok(waiting)
    }

    // --- What comes in ----------------------------------------------------------------------------------------------

    /// Takes what a device offers and gives back what can be answered by now: this, or others that gave way to it.
    pub(in crate::control) fn check(
        &mut self,
        asked: AuthRequest,
        mut credentials: Box<Credentials>,
        clock: &Clock,
        now: Instant,
    ) -> Vec<Answer> {
        // One that is too long is refused without waiting, where anybody would look at it.
        if !secrets::is_too_long(&credentials.name, &credentials.secret) {
            let Some(counted) = self.waiting.count(&credentials.name, std::mem::take(&mut credentials.secret)) else {
                self.counters.tokens_unanswered.fetch_add(1, Ordering::Relaxed);
                let busy = AuthAnswer::Busy(CloseReason::TokenUnanswered, "too many long secrets wait".into());
                return vec![(asked, busy)];
            };
            credentials.secret = counted;
        }
        self.decide(asked, credentials, clock, now)
    }

    fn decide(
        &mut self,
        asked: AuthRequest,
        credentials: Box<Credentials>,
        clock: &Clock,
        now: Instant,
    ) -> Vec<Answer> {
        let config = self.config.clone();
        let identity = &config.listeners[asked.listener.index()].identity;
        let asked = AuthRequest {
            is_renewable: credentials.has_method,
            must_be_named: !credentials.is_certified && !credentials.is_renewal && names_by_certificate(identity),
            ..asked
        };
        let last = identity.authenticators.len().saturating_sub(1);
        for (position, one) in identity.authenticators.iter().enumerate() {
            match one {
                Authenticator::Certificate if credentials.is_certified => {
                    return vec![(asked, granted(asked, Grant::default()))];
                }
                Authenticator::Certificate => {}
                _ if secrets::is_too_long(&credentials.name, &credentials.secret) => {
                    return vec![(asked, self.refuse_too_long(&credentials))];
                }
                Authenticator::Secrets(_) if self.applies(asked.listener, &credentials, position == last) => {
                    return self.check_secret(asked, &credentials, now);
                }
                Authenticator::Jwt(_) if jwt::looks_like_one(&credentials.secret) => {
                    return self.check_jwt(asked, *credentials, clock, now);
                }
                Authenticator::Hook(_) => return self.check_hook(asked, credentials, clock, now),
                _ => {}
            }
        }
        self.counters.tokens_rejected.fetch_add(1, Ordering::Relaxed);
        vec![(asked, rejected("no authenticator of the listener takes what it offers"))]
    }

    fn refuse_too_long(&self, credentials: &Credentials) -> AuthAnswer {
        let (count, reason) = if jwt::looks_like_one(&credentials.secret) {
            (&self.counters.jwt_rejected, CloseReason::JwtRejected)
        } else {
            (&self.counters.tokens_rejected, CloseReason::TokenRejected)
        };
        count.fetch_add(1, Ordering::Relaxed);
        AuthAnswer::Rejected(reason, format!("its user name or secret is longer than {SECRET_BYTES_MAX} bytes").into())
    }

    /// Whether the file of secrets decides. A renewal shows a token, and never a password.
    fn applies(&self, listener: ListenerId, credentials: &Credentials, is_last: bool) -> bool {
        let Credentials { name, secret, has_method, .. } = credentials;
        let is_there = !name.is_empty() && !secret.is_empty() && !has_method;
        is_there && (is_last || self.verifier.knows(listener, name))
    }

    fn check_secret(&mut self, asked: AuthRequest, credentials: &Credentials, now: Instant) -> Vec<Answer> {
        if asked.must_be_named && credentials.name != credentials.device {
            let what = "without a certificate the client identifier must be the user name";
            return vec![(asked, AuthAnswer::Rejected(CloseReason::IdentityMismatch, what.into()))];
        }
        let answers = self.verifier.check(asked, &credentials.name, credentials.secret.clone(), now);
        answers.into_iter().map(of_secret).collect()
    }

    fn check_jwt(&mut self, asked: AuthRequest, it: Credentials, clock: &Clock, now: Instant) -> Vec<Answer> {
        let Some((policy, _)) = &self.jwt_policies[asked.listener.index()] else {
            return vec![(asked, rejected("the listener takes no such tokens any more"))];
        };
        let expires = now + self.patience();
        let job = JwtJob { request: asked, policy: policy.clone(), token: it.secret, expires };
        let answers = self.jwt.offer(job, now);
        answers.into_iter().map(|answer| self.of_jwt(answer, clock)).collect()
    }

    fn check_hook(&mut self, asked: AuthRequest, it: Box<Credentials>, clock: &Clock, now: Instant) -> Vec<Answer> {
        let patience = self.patience();
        let Some(hook) = &mut self.hooks[asked.listener.index()] else {
            let busy = AuthAnswer::Busy(CloseReason::HookUnanswered, "the hook was taken away".into());
            return vec![(asked, busy)];
        };
        let answers = hook.offer(asked, it, patience, (now, clock.now()));
        answers.into_iter().map(|answer| self.of_hook(answer)).collect()
    }

    /// How long a connection waits for its answer: less than its own deadline, so that the answer says why.
    fn patience(&self) -> Duration {
        self.config.limits.hello_time.mul_f32(0.9)
    }

    // --- What comes back --------------------------------------------------------------------------------------------

    /// Where the hashes of secrets arrive, for [`AuthChains::handle_hash_result`].
    pub(in crate::control) fn hashes(&self) -> Receiver<HashResult> {
        self.verifier.results().clone()
    }

    /// Where verified tokens arrive, for [`AuthChains::handle_jwt_results`].
    pub(in crate::control) fn jwt_results(&self) -> Receiver<Vec<JwtResult>> {
        self.jwt.results().clone()
    }

    /// Where the answers of hooks arrive, for [`AuthChains::handle_hook_result`].
    pub(in crate::control) fn hook_answers(&self) -> Receiver<HookResult> {
        self.hook_results.1.clone()
    }

    pub(in crate::control) fn handle_hash_result(&mut self, result: HashResult, now: Instant) -> Vec<Answer> {
        self.verifier.handle_result(result, now).into_iter().map(of_secret).collect()
    }

    pub(in crate::control) fn handle_jwt_results(
        &mut self,
        results: Vec<JwtResult>,
        clock: &Clock,
        now: Instant,
    ) -> Vec<Answer> {
        let answers = self.jwt.handle_results(results, now);
        answers.into_iter().map(|answer| self.of_jwt(answer, clock)).collect()
    }

    pub(in crate::control) fn handle_hook_result(
        &mut self,
        result: HookResult,
        clock: &Clock,
        now: Instant,
    ) -> Vec<Answer> {
        let Some(hook) = &mut self.hooks[result.listener().index()] else {
            return vec![self.of_hook(result.given_up())];
        };
        let answers = hook.handle_result(result, (now, clock.now()));
        answers.into_iter().map(|answer| self.of_hook(answer)).collect()
    }

    fn of_jwt(&self, (asked, outcome): (AuthRequest, JwtOutcome), clock: &Clock) -> Answer {
        let counters = &self.counters;
        let (count, answer) = match outcome {
            JwtOutcome::Accepted(grant, ends) => {
                let unix_ms = i64::try_from(ends.saturating_mul(1_000)).unwrap_or(i64::MAX);
                let until = Some(clock.timeline().moment_of(unix_ms));
                (&counters.jwt_accepted, granted(asked, Grant { until, ..grant }))
            }
            JwtOutcome::Rejected(detail) => {
                (&counters.jwt_rejected, AuthAnswer::Rejected(CloseReason::JwtRejected, detail))
            }
            JwtOutcome::Busy(detail) => {
                (&counters.jwt_unanswered, AuthAnswer::Busy(CloseReason::JwtUnanswered, detail))
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        (asked, answer)
    }

    fn of_hook(&self, (asked, outcome): (AuthRequest, Outcome)) -> Answer {
        let counters = &self.counters;
        let (count, answer) = match outcome {
            Outcome::Accepted(grant) => (&counters.hook_accepted, granted(asked, grant)),
            Outcome::Rejected(detail) => {
                (&counters.hook_rejected, AuthAnswer::Rejected(CloseReason::HookRejected, detail.into()))
            }
            Outcome::Busy(why) => {
                (&counters.hook_unanswered, AuthAnswer::Busy(CloseReason::HookUnanswered, why.into()))
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        (asked, answer)
    }

    /// Ends the threads; waits for what they compute, and never for a service.
    pub(in crate::control) fn stop(self) {
        let Self { verifier, jwt, keys, .. } = self;
        verifier.stop();
        jwt.stop();
        keys.stop();
    }
}

fn names_by_certificate(identity: &Identity) -> bool {
    matches!(identity.from, IdentityFrom::CertCn | IdentityFrom::CertSanDns | IdentityFrom::CertSanUri)
}

fn rejected(what: &'static str) -> AuthAnswer {
    AuthAnswer::Rejected(CloseReason::TokenRejected, what.into())
}

fn of_secret((asked, result): verifier::Answer) -> Answer {
    let answer = match result {
        // That the user name is the device's was seen to before.
        AuthResult::Accepted => granted(AuthRequest { must_be_named: false, ..asked }, Grant::default()),
        AuthResult::Rejected => rejected("the token is not right for this device"),
        AuthResult::Busy => AuthAnswer::Busy(CloseReason::TokenUnanswered, "".into()),
    };
    (asked, answer)
}

/// The one place where a grant is made final.
fn granted(asked: AuthRequest, grant: Grant) -> AuthAnswer {
    if asked.must_be_named && grant.device.is_empty() {
        let what = "it has no client certificate, and what it proved itself by says nothing of an id";
        return AuthAnswer::Rejected(CloseReason::IdentityMissing, what.into());
    }
    debug_assert!(grant.device.is_empty() || native::is_id(&grant.device));
    AuthAnswer::Accepted(Box::new(Grant { is_renewable: asked.is_renewable, ..grant }))
}
