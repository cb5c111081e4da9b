//! The thread of a fleet as far as presence needs it: the lease is kept, what the presence wants asked is asked, who has lost a device is told,
//! and wills that are due are asked about. What is decided is the program's own; the way there is as in `fleet/run.rs`.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use super::super::around::Neighbours;
use super::Fault;
use super::gateway::Gateway;
use super::nats::{LEASE, name};
use crate::fleet::parts::{Answer, Ask, Claim, Effect, Lease, LeaseRow, Owner, Presence, Row, Step, Written};

/// Questions under way at a time.
const UNDER_WAY_MAX: usize = 8;
/// How often it is looked what is to be done.
const LOOK_EVERY: Duration = Duration::from_millis(40);
/// How long another gateway may take to say whether it has a device.
const OWNER_ASK_MAX: Duration = Duration::from_secs(2);
/// How long it is waited before whoever has not heard is told again.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long it is waited before the lease is tried to be written again.
const RENEW_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// The longest wait before NATS is tried again.
const BACK_OFF_MAX: u64 = 600;

/// What a gateway knows of the devices that it has, and of its lease.
#[expect(clippy::struct_excessive_bools, reason = "each becomes true by itself")]
pub struct Claims {
    pub presence: Presence,
    lease: Lease,
    under_way: usize,
    is_renewing: bool,
    /// The lease is not there any more.
    is_gone: bool,
    pub is_serving: bool,
    /// When it last was not.
    pub away: std::time::Instant,
    /// It has found that NATS is away, and has not tried again since.
    is_away: bool,
    /// Wills that are due, and whether their devices were asked about: it is not known yet whether they are to be published.
    wills: Vec<(String, u64, bool)>,
}

impl Claims {
    pub fn new(at: usize, life: u64, id: String, now: std::time::Instant) -> Self {
        let name = name(at);
        let row = LeaseRow { id, instance: name.clone(), epoch: life };
        Self {
            presence: Presence::new(&name, life),
            lease: Lease::new(LEASE, row),
            under_way: 0,
            is_renewing: false,
            is_gone: false,
            is_serving: false,
            away: now,
            is_away: false,
            wills: Vec::new(),
        }
    }

    pub fn lease_id(&self) -> &str {
        &self.lease.row().id
    }
}

impl Gateway {
    pub fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap()
    }

    fn std_now(&self) -> std::time::Instant {
        self.clock.now().into_std()
    }

    fn fresh_id(&self) -> String {
        format!("{:016x}", self.clock.below(u64::MAX))
    }
}

/// Goes on until the gateway ends.
pub async fn keep(gateway: Arc<Gateway>) {
    loop {
        gateway.claims().is_away = false;
        if gateway.nats.knows(gateway.at) && have_lease(&gateway, false).await.is_ok() {
            serve(&gateway).await;
        }
        stop(&gateway);
        gateway.clock.sleep(Duration::from_millis(gateway.clock.below(BACK_OFF_MAX))).await;
    }
}

/// NATS is away: wills that were asked about are published.
fn stop(gateway: &Gateway) {
    let wills = {
        let mut claims = gateway.claims();
        claims.presence.end();
        (claims.is_serving, claims.away, claims.is_away) = (false, gateway.std_now(), true);
        std::mem::take(&mut claims.wills)
    };
    for (_, will, _) in wills {
        gateway.shard().note_will(will, false);
    }
}

// --- The lease --------------------------------------------------------------------------------------------------------

/// As `Run::have_lease`.
async fn have_lease(gateway: &Gateway, is_new: bool) -> Result<(), String> {
    let now = gateway.std_now();
    let (fresh, mut is_new) = (gateway.fresh_id(), is_new || !gateway.claims().lease.is_held(now));
    if gateway.claims().lease.is_over(now) {
        gateway.claims().lease.lose(fresh);
    }
    loop {
        let node = gateway.node().to_owned();
        let found = gateway.nats.ask(gateway.at, move |state, now| state.lease(&node, now)).await?;
        let fresh = gateway.fresh_id();
        let (row, expected) = {
            let mut claims = gateway.claims();
            let found = found.as_ref().map(|(revision, row)| (*revision, row));
            let (step, is_lost) = claims.lease.handle_read(found, || fresh);
            is_new |= is_lost;
            let Step::Write(expected) = step else { panic!("its name is another gateway's") };
            claims.lease.handle_sent();
            (claims.lease.row().clone(), expected)
        };
        let sent = gateway.std_now();
        if let Written::At(revision) = write_lease(gateway, row, expected).await? {
            gateway.claims().lease.handle_written(revision, sent);
            break;
        }
    }
    let node = gateway.node().to_owned();
    gateway.nats.ask(gateway.at, move |state, _| state.come_alive(&node)).await?;
    let mut claims = gateway.claims();
    let id = claims.lease_id().to_owned();
    if gateway.fault == Fault::LostLeaseIsBelieved {
        claims.presence.believe_in(&id);
        is_new = false;
    }
    claims.presence.begin(&id, is_new);
    drop(claims);
    gateway.note_joined();
    Ok(())
}

async fn write_lease(gateway: &Gateway, row: LeaseRow, expected: u64) -> Result<Written, String> {
    let node = gateway.node().to_owned();
    gateway.nats.ask(gateway.at, move |state, now| state.write_lease(&node, expected, row, now)).await
}

/// As `Run::keep_lease`.
async fn keep_lease(gateway: &Arc<Gateway>) -> Result<(), String> {
    let now = gateway.std_now();
    let (is_over, renewal) = {
        let mut claims = gateway.claims();
        let is_over = claims.lease.is_over(now) || std::mem::take(&mut claims.is_gone);
        let renewal = match (claims.lease.renewal(), claims.lease.ends()) {
            (Some(Step::Write(revision)), Some(ends)) if !claims.is_renewing && claims.lease.due(now) <= now => {
                Some((claims.lease.row().clone(), revision, ends))
            }
            _ => None,
        };
        (is_over, renewal)
    };
    if is_over {
        gateway.claims().presence.end();
        return have_lease(gateway, true).await;
    }
    if let Some((row, revision, ends)) = renewal {
        gateway.claims().is_renewing = true;
        let gateway = Arc::clone(gateway);
        gateway.clock.clone().spawn(gateway.whose(), async move { renew(&gateway, row, revision, ends).await });
    }
    Ok(())
}

/// Writes the lease again, as often as it takes until it `ends`.
async fn renew(gateway: &Gateway, row: LeaseRow, mut revision: u64, ends: std::time::Instant) {
    let mut is_gone = false;
    while gateway.std_now() < ends {
        let sent = gateway.std_now();
        if let Ok(Written::At(revision)) = write_lease(gateway, row.clone(), revision).await {
            let mut claims = gateway.claims();
            if claims.lease_id() == row.id {
                claims.lease.handle_written(revision, sent);
            }
            break;
        }
        let node = gateway.node().to_owned();
        match gateway.nats.ask(gateway.at, move |state, now| state.lease(&node, now)).await {
            Ok(Some((at, there))) if there.id == row.id => revision = at,
            Ok(_) => {
                is_gone = true;
                break;
            }
            Err(_) => {}
        }
        gateway.clock.sleep(RENEW_AGAIN_AFTER).await;
    }
    let mut claims = gateway.claims();
    claims.is_renewing = false;
    claims.is_gone |= is_gone && claims.lease_id() == row.id;
}

// --- Serving ----------------------------------------------------------------------------------------------------------

/// Until NATS is away.
async fn serve(gateway: &Arc<Gateway>) {
    {
        let mut claims = gateway.claims();
        (claims.is_serving, claims.away) = (true, gateway.std_now());
    }
    while gateway.nats.knows(gateway.at) && keep_lease(gateway).await.is_ok() {
        ask(gateway);
        handle_effects(gateway);
        ask_about_wills(gateway);
        gateway.clock.sleep(LOOK_EVERY).await;
    }
}

/// Asks as much as may be under way.
fn ask(gateway: &Arc<Gateway>) {
    let now_ms = gateway.shard().unix_ms(gateway.clock.now()) as u64;
    loop {
        let (number, device, ask) = {
            let mut claims = gateway.claims();
            if claims.under_way >= UNDER_WAY_MAX {
                return;
            }
            let Some(next) = claims.presence.next(now_ms) else { return };
            claims.under_way += 1;
            next
        };
        let asking = Arc::clone(gateway);
        gateway.clock.spawn(gateway.whose(), async move {
            let answer = question(&asking, &device, ask).await.unwrap_or(Answer::Lost);
            let mut claims = asking.claims();
            claims.under_way -= 1;
            claims.presence.handle(number, answer);
            claims.presence.check_invariants();
        });
    }
}

/// As `run::question`.
async fn question(gateway: &Gateway, device: &str, ask: Ask) -> Result<Answer, String> {
    let (node, device, fault) = (gateway.node().to_owned(), device.to_owned(), gateway.fault);
    let nats = &gateway.nats;
    match ask {
        Ask::Read => match owner(gateway, device).await? {
            None => Ok(Answer::Absent),
            Some((revision, row)) => {
                let is_live = *row.node != *node && holds(gateway, &row.node, &row.lease).await?;
                Ok(Answer::Found(revision, row, is_live))
            }
        },
        Ask::Write(expected, row) => {
            let write =
                move |state: &mut super::nats::State, now| state.write_owner(&device, expected, row, now, fault);
            nats.ask(gateway.at, write).await.map(Answer::Written)
        }
        Ask::Remove(revision) => {
            nats.ask(gateway.at, move |state, now| state.remove_owner(&node, revision, now)).await?;
            Ok(Answer::Removed)
        }
        Ask::Owner(node) => Ok(Answer::Owner(claim(gateway, &node, device).await)),
    }
}

async fn owner(gateway: &Gateway, device: String) -> Result<Option<(u64, Row)>, String> {
    gateway.nats.ask(gateway.at, move |state, _| state.owners.get(&device).cloned()).await
}

pub async fn holds(gateway: &Gateway, node: &str, lease: &str) -> Result<bool, String> {
    let (node, lease) = (node.to_owned(), lease.to_owned());
    gateway.nats.ask(gateway.at, move |state, now| state.holds(&node, &lease, now)).await
}

/// As `run::claim`.
async fn claim(gateway: &Gateway, node: &str, device: String) -> Claim {
    if gateway.fault == Fault::OwnerIsNotAsked {
        return Claim::Gone;
    }
    let sent = gateway.std_now();
    let age = move |there: &Gateway| there.claims().presence.age(&device, there.std_now());
    match gateway.put(node, age).await {
        Some(None) => Claim::Gone,
        Some(Some(age)) => {
            let before = |end: std::time::Instant, age| end.checked_sub(age).unwrap();
            let (from, to) = (before(sent, age + Duration::from_micros(1)), before(gateway.std_now(), age));
            Claim::Began(from, to)
        }
        None => {
            gateway.clock.sleep((sent + OWNER_ASK_MAX).saturating_duration_since(gateway.std_now())).await;
            Claim::Silent
        }
    }
}

fn handle_effects(gateway: &Arc<Gateway>) {
    let effects = gateway.claims().presence.take_effects();
    for effect in effects {
        match effect {
            Effect::End { device, generation, is_loop } => {
                assert!(!is_loop, "devices come from nowhere");
                gateway.shard().disown(&device, generation, gateway.clock.now());
            }
            Effect::Tell { .. } if gateway.fault == Fault::NobodyIsTold => {}
            Effect::Tell { device, before, revision } => {
                let telling = Arc::clone(gateway);
                gateway.clock.spawn(gateway.whose(), async move { tell(&telling, device, before, revision).await });
            }
        }
    }
}

/// Tells until it is heard, or the lease of whoever is told has ended.
async fn tell(gateway: &Gateway, device: Box<str>, before: Owner, revision: u64) {
    loop {
        let (device, Owner { node, lease, generation }) = (device.clone(), before.clone());
        let taken = move |there: &Gateway| {
            let mut claims = there.claims();
            claims.presence.handle_taken(&device, &lease, generation, revision);
        };
        if gateway.put(&node, taken).await.is_some() {
            return;
        }
        gateway.clock.sleep(TELL_AGAIN_AFTER).await;
        if holds(gateway, &node, &before.lease).await == Ok(false) {
            return;
        }
    }
}

// --- Wills ------------------------------------------------------------------------------------------------------------

/// A will has waited for its delay: it is published unless its device is elsewhere. As `fleet/wills.rs`.
pub fn will_due(gateway: &Gateway, device: String, will: u64) {
    let is_away = gateway.claims().is_away;
    if is_away {
        gateway.shard().note_will(will, false);
    } else {
        gateway.claims().wills.push((device, will, false));
    }
}

fn ask_about_wills(gateway: &Arc<Gateway>) {
    let mut due = Vec::new();
    for (device, will, is_asked) in &mut gateway.claims().wills {
        if !std::mem::replace(is_asked, true) {
            due.push((device.clone(), *will));
        }
    }
    for (device, will) in due {
        let asking = Arc::clone(gateway);
        gateway.clock.spawn(gateway.whose(), async move {
            let void = is_void(&asking, device).await;
            let is_waited_for = {
                let mut claims = asking.claims();
                let place = claims.wills.iter().position(|(_, one, _)| *one == will);
                place.map(|place| claims.wills.swap_remove(place)).is_some()
            };
            // Without an answer it is not known to be elsewhere.
            if is_waited_for && void != Ok(true) {
                asking.shard().note_will(will, void.is_ok());
            }
        });
    }
}

async fn is_void(gateway: &Gateway, device: String) -> Result<bool, String> {
    if gateway.fault == Fault::WillIsNotAskedAbout {
        return Ok(false);
    }
    let row = gateway.session_row(&device).await;
    if row.as_ref().is_ok_and(|row| row.as_ref().is_some_and(|(_, row)| row.voids_will_of(gateway.node()))) {
        return Ok(true);
    }
    let is_elsewhere = match owner(gateway, device).await? {
        Some((_, row)) if *row.node != *gateway.node() => holds(gateway, &row.node, &row.lease).await?,
        _ => false,
    };
    if is_elsewhere { Ok(true) } else { row.map(|_| false) }
}
