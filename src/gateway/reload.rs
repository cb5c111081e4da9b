//! Changing what holds, under live connections (D10): on request and when a file changes.
//!
//! Everything is read and proven as a whole; then the workers and the control plane take it in one swap. Where anything
//! is wrong, all of the old stays, and it is said what, where and what to do. Files that were changed a moment ago may be
//! half of a pair, or half written: they are tried again until they have rested, before anybody is told.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, select};

use super::blocks::BlocksFile;
use super::deny::Denied;
use super::difference::difference;
use super::error::{GatewayError, Problems};
use super::files::{API_LISTENER, ApiMaterial, Digest, Material, Prepared, Source, files_of};
use super::watch::Signature;
use super::{inventory, settings_of};
use crate::config::Config;
use crate::connection::ListenerSettings;
use crate::control::auth::material::Material as AuthMaterial;
use crate::control::{
    Block, BlockError, BlockOrder, BlockRequest, BlockSource, ControlPolicy, Expiry, ExpiryKind, Inventory,
    ReloadOutcome, ReloadReport, ReloadRequest,
};
use crate::sink;
use crate::tls::handshake::ServerTls;
use crate::worker::{Policy, PolicySwitch};

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// For how long a file that was changed counts as one that may still be changing.
const REST: Duration = Duration::from_secs(5);
/// How often such files are tried.
const TRY_EVERY: Duration = Duration::from_millis(200);
/// How long the workers may take: a turn is much shorter.
const SWAP_MAX: Duration = Duration::from_secs(5);

/// How often what ends soon is told of.
const WARN_EVERY: Duration = Duration::from_hours(24);
/// Certificates that end so soon are told of.
const CERTIFICATE_SOON: Duration = Duration::from_hours(14 * 24);
/// Revocation lists are renewed every week or so.
const REVOCATION_LIST_SOON: Duration = Duration::from_hours(24);

/// What holds now.
pub(super) struct Running {
    config: Arc<Config>,
    listeners: Vec<Loaded>,
    api: Option<ApiMaterial>,
    denied: Denied,
}

/// What holds for one listener, and what it was made from.
#[derive(Clone)]
struct Loaded {
    tls: ServerTls,
    tls_digest: Digest,
    auth_digests: Vec<(String, Digest)>,
}

impl Running {
    /// What a gateway starts with.
    pub(super) fn begin(
        config: Arc<Config>,
        materials: Vec<Material>,
        api: Option<ApiMaterial>,
        denied: Denied,
    ) -> Self {
        let loaded = |Material { tls, tls_digest, auth_digests, .. }| Loaded { tls, tls_digest, auth_digests };
        Self { config, listeners: materials.into_iter().map(loaded).collect(), api, denied }
    }

    /// When what its listeners hold of certificates ends.
    pub(super) fn expiries(&self) -> Vec<Expiry> {
        let mut expiries = Vec::new();
        let names = self.config.listeners.iter().map(|listener| listener.name.as_str());
        let of_listeners = names.zip(self.listeners.iter().map(|loaded| &loaded.tls));
        let of_api = self.api.iter().map(|api| (API_LISTENER, &api.proof));
        for (listener, tls) in of_listeners.chain(of_api) {
            let policy = tls.policy();
            let mut add = |kind, number, not_after_s| {
                expiries.push(Expiry { listener: listener.to_owned(), kind, number, not_after_s });
            };
            policy.chains_not_after().enumerate().for_each(|(number, end)| add(ExpiryKind::Certificate, number, end));
            policy.authorities_not_after().into_iter().for_each(|end| add(ExpiryKind::Authority, 0, end));
            policy.revocation_next_update().into_iter().for_each(|end| add(ExpiryKind::RevocationList, 0, end));
        }
        expiries
    }

    /// The settings for its connections.
    pub(super) fn settings(&self) -> Arc<[ListenerSettings]> {
        let deny = Arc::new(self.denied.list());
        settings_of(&self.config, self.listeners.iter().map(|listener| listener.tls.clone()), &deny)
    }
}

/// The thread that reloads.
pub(super) struct Reloader {
    source: Source,
    running: Running,
    blocks_file: BlocksFile,
    workers: PolicySwitch,
    control: ControlPolicy,
    /// What the files looked like when they were read last.
    seen: Signature,
    /// Files that were named when something was wrong: mended, they are to be read again.
    named_in_vain: Vec<PathBuf>,
    /// When what ends soon is told of again.
    warn_at: Instant,
}

impl Reloader {
    /// For what was started from `source` when its files looked like `seen`.
    pub(super) fn new(
        source: Source,
        running: Running,
        blocks_file: BlocksFile,
        seen: Signature,
        workers: PolicySwitch,
        control: ControlPolicy,
    ) -> Self {
        control.set_expiries(running.expiries());
        let warn_at = Instant::now() + WARN_EVERY;
        Self { source, running, blocks_file, workers, control, seen, named_in_vain: Vec::new(), warn_at }
    }

    /// Works until `stopped` says so, or its sender is gone.
    pub(super) fn run(
        mut self,
        asked: &Receiver<ReloadRequest>,
        blocks: &Receiver<BlockRequest>,
        stopped: &Receiver<()>,
    ) {
        loop {
            select! {
                recv(stopped) -> _ => return,
                recv(asked) -> request => match request {
                    Ok(request) => {
                        let outcome = self.reload(request.cause(), stopped);
                        request.answer(outcome);
                    }
                    Err(_) => return,
                },
                recv(blocks) -> request => match request {
                    Ok(BlockRequest { order, answer }) => {
                        let blocks = self.block(&order);
                        // Whoever has given up can ask for the list.
                        let _ = answer.send(blocks);
                    }
                    Err(_) => return,
                },
                default(LOOK_EVERY) => {
                    self.warn_of_ends();
                    if self.look().differs_from(&self.seen) {
                        // Whoever asked is the log.
                        let _ = self.reload("files have changed", stopped);
                    }
                }
            }
        }
    }

    /// Changes the deny list, at once and for those who are connected too, and keeps what was said over the API.
    fn block(&mut self, order: &BlockOrder) -> Result<Vec<Block>, BlockError> {
        let has_changed = self.running.denied.apply(order)?;
        if has_changed {
            if let BlockOrder::Fleet { all, .. } = order {
                tracing::info!(blocks = all.len(), "the deny list was changed: it has what the fleet keeps out");
            } else {
                tracing::info!(?order, "the deny list was changed");
            }
            self.tell_workers();
            if !matches!(order, BlockOrder::Add { source: BlockSource::Gateway, .. }) {
                self.blocks_file.write(self.running.denied.kept()).map_err(|why| {
                    tracing::error!(why, "the deny list is not kept: what was changed ends with this process");
                    BlockError::NotKept(why)
                })?;
            }
        }
        Ok(self.running.denied.entries())
    }

    fn tell_workers(&self) {
        let Config { limits, admission, .. } = &*self.running.config;
        let policy = Policy { settings: self.running.settings(), limits: limits.clone(), admission: admission.clone() };
        let missing = self.workers.swap(policy, SWAP_MAX);
        if missing > 0 {
            tracing::error!(workers = missing, "workers that are stuck have not taken what was changed");
        }
    }

    /// Once a day: a certificate that nobody renews ends while nobody looks.
    fn warn_of_ends(&mut self) {
        if Instant::now() < self.warn_at {
            return;
        }
        self.warn_at = Instant::now() + WARN_EVERY;
        for (expiry, left_s) in ending(&self.running.expiries(), SystemTime::now()) {
            let Expiry { listener, kind, number, .. } = expiry;
            let (kind, days_left) = (kind.label(), left_s.div_euclid(24 * 3_600));
            if left_s < 0 {
                tracing::warn!(
                    listener,
                    kind,
                    number,
                    days_left,
                    "it has ended: renew it, and the gateway takes it at once"
                );
            } else {
                tracing::warn!(
                    listener,
                    kind,
                    number,
                    days_left,
                    "it ends soon: renew it, and the gateway takes it at once"
                );
            }
        }
    }

    fn look(&self) -> Signature {
        self.source.signature(&self.running.config, &self.named_in_vain)
    }

    /// Reads everything anew and takes it, or says all that is wrong.
    fn reload(&mut self, cause: &'static str, stopped: &Receiver<()>) -> ReloadOutcome {
        let outcome = self.prepare(stopped).and_then(|prepared| self.apply(prepared));
        self.control.count_reload(outcome.is_ok());
        match outcome {
            Ok(report) => {
                let (changed, needs_restart) = (report.changed.join(", "), report.needs_restart.join(", "));
                if changed.is_empty() {
                    tracing::info!(cause, "nothing has changed");
                } else {
                    tracing::info!(cause, changed, "reloaded");
                }
                if !needs_restart.is_empty() {
                    tracing::warn!(needs_restart, "these changes hold only after a restart");
                }
                for warning in &report.warnings {
                    tracing::warn!("{warning}");
                }
                Ok(report)
            }
            Err(Problems(problems)) => {
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                for problem in &problems {
                    tracing::error!(cause, problem, "not reloaded: all that was in effect stays");
                }
                Err(problems)
            }
        }
    }

    /// Reads and proves until it is right, or wrong for good.
    fn prepare(&mut self, stopped: &Receiver<()>) -> Result<Prepared, Problems> {
        let deadline = Instant::now() + REST;
        loop {
            let loaded = self.source.load();
            self.named_in_vain = loaded.as_ref().map(|loaded| files_of(&loaded.config)).unwrap_or_default();
            self.seen = self.look();
            let prepared = loaded.and_then(|loaded| self.source.prepare_files(loaded));
            let is_late = Instant::now() >= deadline || !stopped.is_empty();
            match prepared {
                // Nothing was written while it was read.
                Ok(prepared) if is_late || !self.look().differs_from(&self.seen) => return Ok(prepared),
                Err(problems) if is_late || !self.may_settle(&problems) => return Err(problems),
                _ => {
                    tracing::debug!("not yet reloaded: files are being written");
                    std::thread::sleep(TRY_EVERY);
                }
            }
        }
    }

    /// Whether what is wrong may be right in a moment, because somebody writes just now.
    fn may_settle(&self, Problems(problems): &Problems) -> bool {
        problems.iter().all(GatewayError::may_be_half_written) && self.seen.is_unsettled(REST, SystemTime::now())
    }

    /// One swap.
    fn apply(&mut self, prepared: Prepared) -> Result<ReloadReport, Problems> {
        let Prepared { loaded, materials, sinks, api, denied, .. } = prepared;
        let mut to = difference(&self.running.config, &loaded.config);
        let mut materials: Vec<Option<Material>> = materials.into_iter().map(Some).collect();
        let mut listeners = Vec::with_capacity(to.sources.len());
        let mut auths = Vec::with_capacity(to.sources.len());
        for (index, source) in to.sources.iter().enumerate() {
            let before = &self.running.listeners[index];
            let listener = &to.config.listeners[index];
            let name = &listener.name;
            let Some((source, material)) = source.and_then(|source| Some((source, materials[source].take()?))) else {
                listeners.push(before.clone());
                auths.push(kept_auth(&to.config, index)?);
                continue;
            };
            let material = if listener.alpn() == loaded.config.listeners[source].alpn() {
                material
            } else {
                // Its protocols wait for another start; certificates and all else that was read do not. Doubts were told.
                self.source.load_listener(source, listener, &mut Vec::new()).map_err(Problems)?
            };
            let Material { mut tls, tls_digest, auth, auth_digests } = material;
            if tls_digest == before.tls_digest {
                // The very same: its tickets stay good.
                tls = before.tls.clone();
            } else {
                tls.keep_tickets(&before.tls);
                to.changed.push(format!("listener {name:?}: tls"));
            }
            for (key, _) in auth_digests.iter().filter(|file| !before.auth_digests.contains(file)) {
                to.changed.push(format!("listener {name:?}: {key}"));
            }
            listeners.push(Loaded { tls, tls_digest, auth_digests });
            auths.push(auth);
        }
        self.named_in_vain.clear();
        let are_others_denied = self.running.denied.replace_file(denied);
        if are_others_denied {
            to.changed.push("the deny list".to_owned());
        }
        to.changed.extend(self.control.changed_sinks(&sinks));
        let digest = |api: &Option<ApiMaterial>| api.as_ref().map(|api| api.digest);
        if digest(&api) != digest(&self.running.api) {
            to.changed.push("admin.tls".to_owned());
            to.config.admin.tls.clone_from(&loaded.config.admin.tls);
            self.running.api = api;
        }
        if !to.changed.is_empty() {
            let inventory = inventory(&loaded.budget, listeners.iter().map(|listener: &Loaded| &listener.tls));
            self.swap(Arc::new(to.config), inventory, listeners, auths, sinks)?;
        }
        Ok(ReloadReport { changed: to.changed, needs_restart: to.needs_restart, warnings: loaded.warnings })
    }

    /// The control plane first: whoever comes under the new rules finds it ready to judge by them.
    fn swap(
        &mut self,
        config: Arc<Config>,
        inventory: Inventory,
        listeners: Vec<Loaded>,
        auths: Vec<AuthMaterial>,
        sinks: Vec<sink::Settings>,
    ) -> Result<(), Problems> {
        let failed = |error| GatewayError::Start(format!("the control plane cannot be changed: {error}"));
        let api_tls = self.running.api.as_ref().map(|api| api.tls.clone());
        self.control.replace(Arc::clone(&config), inventory, auths, sinks, api_tls).map_err(failed)?;
        (self.running.config, self.running.listeners) = (config, listeners);
        self.control.set_expiries(self.running.expiries());
        self.tell_workers();
        Ok(())
    }
}

/// What ends soon or has ended, and how many seconds are left.
fn ending(expiries: &[Expiry], now: SystemTime) -> Vec<(&Expiry, i64)> {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let soon = |kind| match kind {
        ExpiryKind::Certificate | ExpiryKind::Authority => CERTIFICATE_SOON,
        ExpiryKind::RevocationList => REVOCATION_LIST_SOON,
    };
    let left = expiries.iter().map(|expiry| (expiry, expiry.not_after_s.saturating_sub(now)));
    left.filter(|(expiry, left)| *left < soon(expiry.kind).as_secs() as i64).collect()
}

/// What the authenticators of a listener need that stays as it was: from its files, which must still be right.
fn kept_auth(config: &Config, index: usize) -> Result<AuthMaterial, Problems> {
    let listener = &config.listeners[index];
    AuthMaterial::load(&listener.identity).map_err(|error| {
        let place = crate::config::ConfigKey::of_listener(index, &listener.name, error.key);
        GatewayError::File(None, place, error.what.into()).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_soon_is_told_of_and_each_kind_has_its_own_soon() {
        const DAY: i64 = 24 * 3_600;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 * DAY as u64);
        let expiry =
            |kind, days: i64| Expiry { listener: "a".into(), kind, number: 0, not_after_s: (1_000 + days) * DAY };
        let all = [
            expiry(ExpiryKind::Certificate, 13),
            expiry(ExpiryKind::Certificate, 15),
            expiry(ExpiryKind::Authority, -1),
            expiry(ExpiryKind::RevocationList, 5),
            expiry(ExpiryKind::RevocationList, 0),
        ];
        let found = ending(&all, now);
        assert_eq!(found, [(&all[0], 13 * DAY), (&all[2], -DAY), (&all[4], 0)]);
    }
}
