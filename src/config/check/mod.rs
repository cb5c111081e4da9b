//! From what was written to what is true. Each check names its key and what to write instead; the first problem found
//! ends the work on its section, what is merely doubtful is collected.

mod admin;
mod admission;
mod at;
mod authenticator;
mod fleet;
mod limits;
mod listener;
mod mqtt;
mod port;
mod sink;
mod store;
mod tls;
mod values;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use port::ports_fit;

use super::authenticator::cache_bytes;
use super::budget::{self, Item, MemoryBudget, connections_by_descriptors};
use super::error::{ConfigKey, Problem};
use super::machine::Machine;
use super::raw::{RawBackbone, RawConfig, RawDrain, RawListener};
use super::{
    Admin, Backbone, Config, Drain, FLEET_BEHIND_BYTES, FLEET_DEVICE_BYTES, FLEET_PUBLICATIONS_BYTES, Limits, Listener,
    Loaded, MAX_LISTENERS, MAX_WORKERS, StoreShares,
};
use crate::whole_file;

/// Where the gateway keeps what it makes itself, unless written.
pub const DATA_DIR: &str = "pulsegate-data";
/// A name in metrics and presence events is at most so long, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The range of `drain.window`.
const DRAIN_WINDOW: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_mins(30);
/// Whether certificate files must exist already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateFilesAre {
    /// A missing one is an error.
    Present,
    /// They are the development certificates.
    MadeAtStart,
}

/// What every check needs, and where doubts are collected.
struct Context<'a> {
    base: &'a Path,
    machine: &'a Machine,
    certificate_files: CertificateFilesAre,
    warnings: Vec<String>,
    notes: Vec<String>,
}

impl Context<'_> {
    fn warn(&mut self, place: &ConfigKey, text: &str) {
        self.warnings.push(format!("{place}: {text}"));
    }

    fn note(&mut self, place: &ConfigKey, text: &str) {
        self.notes.push(format!("{place}: {text}"));
    }

    /// A path as written, relative to the file.
    fn path(&self, place: ConfigKey, written: &str) -> Result<PathBuf, Problem> {
        if written.is_empty() {
            return Err(Problem::new(place, "the path is empty", "write a path, or leave the key out"));
        }
        Ok(self.base.join(written))
    }

    /// The text of a file that must have one.
    fn text(&self, place: ConfigKey, written: &str) -> Result<String, Problem> {
        let path = self.path(place.clone(), written)?;
        whole_file::read_text(&path).map_err(|error| unreadable(place, &path, &error))
    }
}

fn unreadable(place: ConfigKey, path: &Path, error: &std::io::Error) -> Problem {
    let what = format!("{} cannot be read: {error}", path.display());
    Problem::new(place, what, "name a file that the gateway may read (relative paths start at the configuration file)")
}

/// The checked configuration of `raw`, whose relative paths start at `base`; or what is wrong, one thing of each section
/// and of each listener.
pub fn resolve(
    raw: RawConfig,
    base: &Path,
    machine: &Machine,
    certificate_files: CertificateFilesAre,
) -> Result<Loaded, Vec<Problem>> {
    let mut context = Context { base, machine, certificate_files, warnings: Vec::new(), notes: Vec::new() };
    let mut problems = Vec::new();
    let connections_written = raw.limits.connections.is_some();
    let head = (
        kept(node(raw.node, machine), &mut problems),
        kept(context.path(ConfigKey::top("data_dir"), raw.data_dir.as_deref().unwrap_or(DATA_DIR)), &mut problems),
        kept(workers(raw.workers, machine), &mut problems),
        kept(admin::resolve(&mut context, raw.admin), &mut problems),
        kept(limits::resolve(&raw.limits, machine), &mut problems),
        kept(drain(&raw.drain), &mut problems),
        kept(backbone(&raw.backbone), &mut problems),
    );
    let store = kept(store::store(&raw.store, machine), &mut problems);
    let fleet = kept(fleet::resolve(&mut context, raw.backbone.nats, store.as_ref()), &mut problems);
    let uplink = store.and_then(|store| kept(store::uplink(&raw.uplink, &store), &mut problems));
    let node_name = head.0.as_deref().unwrap_or_default();
    let sinks = store.map(|store| sink::resolve(&mut context, raw.sinks, node_name, store.durability, &mut problems));
    let of_deny = |path: &str| kept(context.path(ConfigKey::top("deny_file"), path), &mut problems);
    let deny_file = raw.deny_file.as_deref().and_then(of_deny);
    // Where the limits are wrong, listeners are still looked at.
    let limits = head.4.clone().unwrap_or_default();
    let per_address = raw.limits.connections_per_address;
    let admission = kept(admission::resolve(&mut context, raw.admission, per_address, &limits), &mut problems);
    let listeners = listeners(&mut context, raw.listeners, head.3.as_ref(), &limits, &mut problems);
    let (Some(node), Some(data_dir), Some(workers), Some(admin), Some(limits), Some(drain), Some(backbone)) = head
    else {
        return Err(problems);
    };
    let rest = (store, uplink, admission, sinks, fleet);
    let (Some(store), Some(uplink), Some(admission), Some(mut sinks), Some(fleet)) = rest else { return Err(problems) };
    problems.extend(fleet::add_uplink(fleet.as_ref(), &store, &uplink, &mut sinks).err());
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut config = Config {
        node,
        data_dir,
        workers,
        deny_file,
        admin,
        limits,
        admission,
        drain,
        backbone,
        fleet,
        store,
        uplink,
        sinks,
        listeners,
    };
    fit(&mut context, &mut config, connections_written).map_err(|problem| vec![problem])?;
    let Context { warnings, notes, .. } = context;
    Ok(Loaded { budget: budget_of(&config, machine), config, warnings, notes })
}

/// What is right; what is wrong goes to the others that are.
fn kept<T>(checked: Result<T, Problem>, problems: &mut Vec<Problem>) -> Option<T> {
    checked.map_err(|problem| problems.push(problem)).ok()
}

fn drain(raw: &RawDrain) -> Result<Drain, Problem> {
    let place = ConfigKey::top("drain.window");
    let window = values::duration(place, raw.window.as_deref(), Drain::default().window, DRAIN_WINDOW)?;
    Ok(Drain { window })
}

fn listeners(
    context: &mut Context<'_>,
    raw: Vec<RawListener>,
    admin: Option<&Admin>,
    limits: &Limits,
    problems: &mut Vec<Problem>,
) -> Vec<Listener> {
    if raw.is_empty() {
        let remedy = "add a [[listener]] with name, listen, protocol and [listener.tls]";
        problems.push(Problem::new(ConfigKey::top("listener"), "there is none", remedy));
    }
    if raw.len() > MAX_LISTENERS {
        let what = format!("there are {}", raw.len());
        problems.push(Problem::new(ConfigKey::top("listener"), what, format!("write at most {MAX_LISTENERS}")));
    }
    let names: Vec<String> = raw.iter().filter_map(|raw| raw.name.clone()).collect();
    let mut listeners: Vec<(usize, Listener)> = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate().take(MAX_LISTENERS) {
        let checked = listener::resolve(context, index, raw, limits).and_then(|listener| {
            unlike_the_others(index, &listener, listeners.iter().map(|(_, other)| other), admin)?;
            Ok((index, listener))
        });
        listeners.extend(kept(checked, problems));
    }
    port::share(&mut listeners, &names, problems);
    listeners.into_iter().map(|(_, listener)| listener).collect()
}

fn node(written: Option<String>, machine: &Machine) -> Result<String, Problem> {
    let Some(node) = written else { return Ok(machine.hostname.clone()) };
    check_name(ConfigKey::top("node"), &node)?;
    Ok(node)
}

/// Names become metric labels, log fields and parts of presence events.
fn check_name(place: ConfigKey, name: &str) -> Result<(), Problem> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(fits) {
        let remedy = format!("write 1 to {NAME_BYTES_MAX} letters, digits, dots, dashes or underscores");
        return Err(Problem::new(place, format!("{name:?} is not a name"), remedy));
    }
    Ok(())
}

fn workers(written: Option<i64>, machine: &Machine) -> Result<u16, Problem> {
    let place = ConfigKey::top("workers");
    match values::integer(place, written, 0, 0..=i64::from(MAX_WORKERS), "workers (0: one per core)")? {
        0 => Ok(machine.cores.clamp(1, MAX_WORKERS)),
        workers => Ok(workers as u16),
    }
}

fn backbone(raw: &RawBackbone) -> Result<Backbone, Problem> {
    let default = Backbone::default();
    let place = |key: &str| ConfigKey::top(format!("backbone.{key}"));
    let events = values::integer(place("events"), raw.events, default.events as i64, 16..=16_777_216, "events")?;
    let bytes = values::integer(place("bytes"), raw.bytes, default.bytes as i64, 262_144..=17_179_869_184, "bytes")?;
    Ok(Backbone { events: events as usize, bytes: bytes as usize })
}

/// No two listeners may share a name or an address, nor the control plane's.
fn unlike_the_others<'a>(
    index: usize,
    listener: &Listener,
    others: impl Iterator<Item = &'a Listener>,
    admin: Option<&Admin>,
) -> Result<(), Problem> {
    let place = |key: &str| ConfigKey::of_listener(index, &listener.name, key);
    for other in others {
        if other.name == listener.name {
            let remedy = "give each listener its own name";
            return Err(Problem::new(place("name"), "another listener has this name", remedy));
        }
        if values::addresses_collide(other.listen, listener.listen) {
            let what = format!("{} is taken by listener {:?} ({})", listener.listen, other.name, other.listen);
            let remedy = format!(
                "give each listener its own address or port, or write shares = {:?} in place of listen: clients then choose by ALPN",
                other.shares.as_ref().unwrap_or(&other.name)
            );
            return Err(Problem::new(place("listen"), what, remedy));
        }
    }
    if let Some(admin) = admin
        && values::addresses_collide(admin.listen, listener.listen)
    {
        let what = format!("{} is taken by admin.listen ({})", listener.listen, admin.listen);
        return Err(Problem::new(place("listen"), what, "give the listener another port"));
    }
    Ok(())
}

/// What is wanted fits the machine, or becomes what does, or is warned of; `written`: the connections were asked for.
fn fit(context: &mut Context<'_>, config: &mut Config, written: bool) -> Result<(), Problem> {
    fit_descriptors(context, config, written)?;
    fit_memory(context, config, written)?;
    fit_store(context, config);
    Ok(())
}

/// More connections than the workers' descriptor tables hold can never be there: the limit becomes what is true, which whoever
/// wrote another one is told.
fn fit_descriptors(context: &mut Context<'_>, config: &mut Config, written: bool) -> Result<(), Problem> {
    let place = ConfigKey::top("limits.connections");
    let descriptors = context.machine.descriptors;
    let wanted = config.limits.connections;
    let listeners = config.ports();
    let holds = |workers| connections_by_descriptors(workers, listeners, descriptors);
    let held = holds(config.workers);
    if wanted <= held {
        return Ok(());
    }
    let raise = "raise the hard limit (ulimit -Hn, LimitNOFILE in systemd)";
    if held == 0 {
        let what = format!("a worker may open only {descriptors} descriptors, which leaves none for connections");
        return Err(Problem::new(place, what, raise));
    }
    config.limits.connections = held;
    if !written {
        return Ok(());
    }
    let remedy = match (config.workers + 1..=MAX_WORKERS).find(|&workers| holds(workers) >= wanted) {
        Some(workers) => format!("write workers = {workers}, or {raise}"),
        None => raise.to_owned(),
    };
    let text = format!(
        "{wanted} is more than {} worker(s) with {descriptors} descriptors each can hold, so the limit in effect is \
         {held}: {remedy}",
        config.workers
    );
    context.warn(&place, &text);
    Ok(())
}

/// What sessions and retained messages may come to has room beside the uplink, or it is said that they may have to wait for it.
fn fit_store(context: &mut Context<'_>, config: &Config) {
    let Some(StoreShares { uplink, sessions, pool, retained, commands, .. }) = config.store_shares() else { return };
    let needed = uplink.saturating_add(sessions).saturating_add(pool).saturating_add(retained).saturating_add(commands);
    if needed > config.store.bytes {
        let left = budget::Bytes(config.store.bytes - uplink.min(config.store.bytes));
        let [sessions, pool, retained, commands] = [sessions, pool, retained, commands].map(budget::Bytes);
        let text = format!(
            "uplink.retention_bytes leaves {left} for devices that are away ({sessions}), those that are there ({pool}, half of \
             limits.pool_bytes), retained messages ({retained}) and commands that wait ({commands}): without room publishers wait: write at least {needed}, or less of these"
        );
        context.warn(&ConfigKey::top("store.bytes"), &text);
    }
}

fn budget_of(config: &Config, machine: &Machine) -> MemoryBudget {
    let mut budget = budget::memory_budget(
        &config.limits,
        config.workers,
        config.backbone,
        &config.store,
        config.sinks.len(),
        config.speaks_mqtt(),
        machine.memory,
    );
    if config.fleet.is_some() {
        let connections = u64::from(config.limits.connections);
        budget.items.push(Item { what: "fleet", count: connections, each: FLEET_DEVICE_BYTES });
        budget.items.push(Item { what: "what other gateways publish", count: 1, each: FLEET_PUBLICATIONS_BYTES });
        if config.speaks_mqtt() {
            let sessions = connections + u64::from(config.limits.sessions);
            budget.items.push(Item { what: "sessions behind", count: sessions, each: FLEET_BEHIND_BYTES });
        }
    }
    // One for each place where commands may wait.
    let places = [config.fleet.is_some(), config.store.durability != super::Durability::Memory];
    let places = places.into_iter().filter(|is_there| *is_there).count() as u64;
    if places > 0 {
        let count = places * budget::COMMAND_DEVICES;
        budget.items.push(Item { what: "commands", count, each: budget::COMMAND_DEVICE_BYTES });
    }
    let answers = cache_bytes(config.listeners.iter().flat_map(|listener| &listener.identity.authenticators));
    if answers > 0 {
        budget.items.push(Item { what: "hook answers", count: 1, each: answers });
    }
    budget
}

/// A limit that was written must fit; the default becomes what does.
fn fit_memory(context: &mut Context<'_>, config: &mut Config, written: bool) -> Result<(), Problem> {
    let place = ConfigKey::top("limits.connections");
    let memory = context.machine.memory;
    let budget = budget_of(config, context.machine);
    if !budget.is_exceeded() {
        if budget.total_bytes() > memory.bytes / 4 * 3 {
            context.warn(&place, "the memory budget takes more than three quarters of what there is");
        }
        return Ok(());
    }
    let wanted = config.limits.connections;
    let fit = budget.connections_that_fit();
    let (total, there) = (budget::Bytes(budget.total_bytes()), budget::Bytes(memory.bytes));
    if fit == 0 {
        let what = format!("even without connections the gateway needs more than the {there} that there are");
        let mqtt = if config.speaks_mqtt() {
            ", limits.sessions, limits.retained_messages, limits.retained_bytes"
        } else {
            ""
        };
        let remedy = format!(
            "lower workers, backbone.bytes, limits.pool_bytes, limits.handshakes{mqtt}, limits.inbox_length and limits.uplink_length"
        );
        return Err(Problem::new(place, what, remedy));
    }
    if written {
        let what = format!("{wanted} connections need {total} of memory, and there are {there}");
        return Err(Problem::new(place, what, format!("write at most {fit}")));
    }
    let text = format!("the default of {wanted} would need {total} of memory, and there are {there}: it is {fit} here");
    context.warn(&place, &text);
    config.limits.connections = fit;
    Ok(())
}
