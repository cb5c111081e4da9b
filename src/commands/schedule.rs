//! Which devices something waits for, and who of those that are here is told when.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{After, Here, KNOWN_MAX, Place, deliver};

/// Devices that are told what waits for them at a time.
const AT_A_TIME: usize = 32;
/// Devices that are told, are to be told, or are to be tried again: beyond that the one that would be tried again first gives way. All
/// are read again then,
pub const TRIED_MAX: usize = 2_048;
/// after so long.
const READ_AGAIN_AFTER: Duration = Duration::from_mins(1);
/// How long it waits before a device is tried again that is here and did not take it: at first,
pub(super) const AGAIN_MIN: Duration = Duration::from_secs(1);
/// and at the most.
pub(super) const AGAIN_MAX: Duration = Duration::from_secs(30);

/// For which devices something was put, as far as it was read.
#[derive(Debug, Default)]
pub struct Expected {
    hasher: RandomState,
    /// By a hash of their ids: whoever is taken for another one is looked for in vain. Of some it is gone by now.
    pub(super) known: HashSet<u64>,
    /// Up to where it was read.
    read: u64,
}

impl Expected {
    /// Whether something may wait for a device.
    #[must_use]
    pub fn has(&self, device: &str) -> bool {
        self.known.contains(&self.hasher.hash_one(device))
    }

    /// From where on there is something to be read, if there is: the place has so many `rows`, and `last` is the latest there ever
    /// was. Both are of one instant.
    pub fn unread(&mut self, last: u64, rows: u64) -> Option<u64> {
        if last < self.read || self.known.len() > KNOWN_MAX {
            // The place was made anew, or too much is known of what is gone.
            self.forget();
        }
        if rows == 0 {
            // Whatever was put is gone, up to there.
            (self.known, self.read) = (HashSet::new(), last);
        }
        (self.read < last).then_some(self.read + 1)
    }

    /// Something was put for these, up to that number.
    pub fn handle_read<'a>(&mut self, upto: u64, devices: impl IntoIterator<Item = &'a str>) {
        self.read = self.read.max(upto);
        let hasher = &self.hasher;
        self.known.extend(devices.into_iter().map(|device| hasher.hash_one(device)));
    }

    /// All is to be read again.
    pub fn forget(&mut self) {
        (self.known, self.read) = (HashSet::new(), 0);
    }
}

/// Who is told, and when.
#[derive(Default)]
pub struct Commands {
    pub(super) wanted: VecDeque<Box<str>>,
    /// Those of `wanted`, and those that are told now; `true`: they are to be looked at again after that.
    pub(super) busy: HashMap<Box<str>, bool>,
    pub(super) again: BinaryHeap<Reverse<(Instant, Box<str>)>>,
    pub(super) fails: HashMap<Box<str>, Fails>,
    tasks: JoinSet<(Box<str>, After)>,
    /// Devices gave way: when all are to be read again.
    read_again: Option<Instant>,
}

/// A device that did not take what waits.
#[derive(Debug, Default)]
pub(super) struct Fails {
    /// How often, in a row.
    count: u32,
    /// It has its place in `again`: one, however often it comes and goes.
    is_due: bool,
}

impl Commands {
    /// The place has gone: what is under way is asked again when it is back.
    pub fn end(&mut self) {
        self.tasks.abort_all();
        self.tasks = JoinSet::new();
        let devices: Vec<_> = self.busy.drain().map(|(device, _)| device).collect();
        self.wanted.clear();
        for device in devices {
            self.want(device);
        }
    }

    /// Something may wait for a device that is here.
    pub fn want(&mut self, device: Box<str>) {
        if let Some(is_again) = self.busy.get_mut(&device) {
            *is_again = true;
        } else if self.has_room() {
            self.busy.insert(device.clone(), false);
            self.wanted.push_back(device);
        }
    }

    /// Whether there is room for one more; if not, one that is to be tried again gives way.
    fn has_room(&mut self) -> bool {
        if self.busy.len() + self.again.len() < TRIED_MAX {
            return true;
        }
        self.note_left_out();
        let Some(Reverse((_, first))) = self.again.pop() else { return false };
        self.fails.remove(&first);
        true
    }

    /// Somebody was left out who may be waited for.
    pub fn note_left_out(&mut self) {
        self.read_again.get_or_insert_with(|| Instant::now() + READ_AGAIN_AFTER);
    }

    /// Whether devices have given way for so long that all are to be read again ([`Expected::forget`]).
    pub fn is_to_read_again(&mut self, now: Instant) -> bool {
        self.read_again.take_if(|due| *due <= now).is_some()
    }

    /// Begins what may begin, and takes note of what is done.
    pub async fn advance<H: Here>(&mut self, here: &H, place: &impl Place) {
        while self.tasks.len() < AT_A_TIME
            && let Some(device) = self.wanted.pop_front()
        {
            let (here, place) = (here.clone(), place.clone());
            self.tasks.spawn(async move {
                let after = deliver(&here, &place, &device).await.unwrap_or_else(|why| {
                    tracing::debug!(why, %device, "what waits for a device is looked at again");
                    After::Broken
                });
                (device, after)
            });
        }
        let due = self.again.peek().map(|Reverse((due, _))| *due);
        tokio::select! {
            Some(done) = self.tasks.join_next() => {
                if let Ok((device, after)) = done {
                    self.handle_done(device, &after, Instant::now());
                }
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                self.take_due();
            }
            else => std::future::pending().await,
        }
    }

    /// The first of those that are to be tried again is.
    pub(super) fn take_due(&mut self) {
        let Some(Reverse((_, device))) = self.again.pop() else { return };
        let Some(fails) = self.fails.get_mut(&device) else { return };
        fails.is_due = false;
        if fails.count == 0 {
            // It took all of it meanwhile.
            self.fails.remove(&device);
        } else {
            self.want(device);
        }
    }

    pub(super) fn handle_done(&mut self, device: Box<str>, after: &After, now: Instant) {
        let is_again = self.busy.remove(&device).unwrap_or(false);
        match after {
            After::Nothing => {
                if let Some(fails) = self.fails.get_mut(&device) {
                    fails.count = 0;
                    if !fails.is_due {
                        self.fails.remove(&device);
                    }
                }
                if is_again {
                    self.want(device);
                }
            }
            After::Again | After::Broken => {
                let fails = self.fails.entry(device.clone()).or_default();
                let wait = AGAIN_MIN.saturating_mul(1 << fails.count.min(8)).min(AGAIN_MAX);
                fails.count += 1;
                if !std::mem::replace(&mut fails.is_due, true) {
                    self.again.push(Reverse((now + wait, device)));
                }
            }
        }
    }
}
