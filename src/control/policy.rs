//! What the control plane goes by, changed under way (D10), and how a change is asked for.
//!
//! Reading files and proving them is not its business: whoever does that takes [`ReloadRequest`]s and calls
//! [`ControlPolicy::replace`].

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crossbeam_channel::Sender;
use tokio::sync::oneshot;

use super::State;
use super::api::bearer::BearerAuth;
use super::api_tls::ApiTls;
use super::auth::chain::Replacement;
use super::auth::material::Material;
use crate::config::Config;
use crate::sink;

/// Reloads that may be asked for while one is under way.
pub(super) const RELOADS_WAITING_MAX: usize = 64;

/// What requests are answered by: one set, swapped as a whole.
pub(super) struct Current {
    /// The configuration. Its listeners, their order and their addresses never change.
    pub(super) config: Arc<Config>,
    /// Present when requests must carry a token.
    pub(super) bearer: Option<BearerAuth>,
    /// What is shown of the files.
    pub(super) inventory: Inventory,
}

/// What the API shows of a configuration beside its text: what is in its files, and what it may cost.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The certificate chains of each listener, in the operator's order.
    pub certificates: Vec<Vec<ChainFacts>>,
    /// The memory budget of the process, without the kernel's part, in bytes.
    pub memory_budget: u64,
}

/// A certificate chain as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainFacts {
    /// The DNS names of its leaf.
    pub names: Vec<String>,
    /// The last second in which all of it holds, since 1970.
    pub not_after: i64,
}

impl Current {
    /// What `config` says.
    pub(super) fn new(config: Arc<Config>, inventory: Inventory) -> io::Result<Self> {
        let tokens = &config.admin.tokens;
        let bearer = if tokens.is_empty() { None } else { Some(BearerAuth::new(tokens)?) };
        Ok(Self { config, bearer, inventory })
    }
}

/// The way to change it.
#[derive(Clone)]
pub struct ControlPolicy {
    pub(super) state: Arc<State>,
    pub(super) replacements: Sender<Replacement>,
}

impl ControlPolicy {
    /// From now on `config` holds, with what is in its files: what its authenticators need, by listener, these sinks, where
    /// any has changed, and what the API is spoken over.
    ///
    /// # Errors
    /// The system gives no random key, or no thread for a sink; then the old holds on.
    pub fn replace(
        &self,
        config: Arc<Config>,
        inventory: Inventory,
        materials: Vec<Material>,
        sinks: Vec<sink::Settings>,
        api_tls: Option<ApiTls>,
    ) -> io::Result<()> {
        assert_eq!(materials.len(), config.listeners.len());
        let fresh = Current::new(config.clone(), inventory)?;
        if let Some(running) = &self.state.sinks {
            running.replace(sinks)?;
        }
        // The hub may be gone only because it panicked, which the end of the control plane reports.
        let _ = self.replacements.send(Replacement { config, materials });
        self.state.replace_current(fresh);
        // Connections that are open stay as they were begun.
        self.state.api_tls.send_replace(api_tls);
        Ok(())
    }

    /// Which sinks [`ControlPolicy::replace`] would change, in words.
    #[must_use]
    pub fn changed_sinks(&self, sinks: &[sink::Settings]) -> Vec<String> {
        self.state.sinks.as_ref().map_or(Vec::new(), |running| running.changes(sinks))
    }

    /// When what the listeners hold of certificates ends.
    pub fn set_expiries(&self, expiries: Vec<Expiry>) {
        *self.state.expiries.lock().unwrap_or_else(PoisonError::into_inner) = expiries.into();
    }

    /// The configuration that holds now.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.state.current().config.clone()
    }

    /// Asks for a reload. Where as many wait as may, one of them will read what is on disk by now.
    pub fn request_reload(&self, request: ReloadRequest) {
        let _ = self.state.reloads.try_send(request);
    }

    /// One more reload, and whether it was taken.
    pub fn count_reload(&self, was_taken: bool) {
        let counters = &self.state.counters;
        let count = if was_taken { &counters.reloads } else { &counters.reloads_refused };
        count.fetch_add(1, Ordering::Relaxed);
        counters.is_reload_refused.store(u64::from(!was_taken), Ordering::Relaxed);
    }
}

/// What ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiryKind {
    /// A certificate that the listener shows.
    Certificate,
    /// The first of the authorities of its clients.
    Authority,
    /// The first of its revocation lists: it should be renewed then.
    RevocationList,
}

impl ExpiryKind {
    /// The word in metrics and the log.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            ExpiryKind::Certificate => "certificate",
            ExpiryKind::Authority => "authority",
            ExpiryKind::RevocationList => "revocation_list",
        }
    }
}

/// When something that a listener holds ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The listener's name.
    pub listener: String,
    /// What of the listener ends.
    pub kind: ExpiryKind,
    /// Which of them, in the order of the configuration.
    pub number: usize,
    /// The last second in which it holds, since 1970.
    pub not_after_s: i64,
}

/// What became of a reload: what it changed, or everything that is wrong, a line each.
pub type ReloadOutcome = Result<ReloadReport, Vec<String>>;

/// What a reload changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReloadReport {
    /// What holds anew.
    pub changed: Vec<String>,
    /// What was changed in the files and holds only after a restart.
    pub needs_restart: Vec<String>,
    /// What works, but surely not as meant.
    pub warnings: Vec<String>,
}

/// Somebody wants a reload.
pub struct ReloadRequest {
    cause: &'static str,
    answer: Option<oneshot::Sender<ReloadOutcome>>,
}

impl ReloadRequest {
    /// From a signal: nobody waits.
    #[must_use]
    pub fn by_signal() -> Self {
        Self { cause: "SIGHUP", answer: None }
    }

    /// From the API, which waits.
    pub(super) fn by_api() -> (Self, oneshot::Receiver<ReloadOutcome>) {
        let (answer, wait) = oneshot::channel();
        (Self { cause: "POST /v1/reload", answer: Some(answer) }, wait)
    }

    /// Who wants it, for the log.
    #[must_use]
    pub fn cause(&self) -> &'static str {
        self.cause
    }

    /// Tells who waits.
    pub fn answer(self, outcome: ReloadOutcome) {
        if let Some(answer) = self.answer {
            // Whoever has given up can read the log.
            let _ = answer.send(outcome);
        }
    }
}
