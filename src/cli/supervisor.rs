//! What systemd is told, where it asks: ready, stopping, and that the gateway lives (sd_notify(3)).
//!
//! The watchdog is fed only while every worker gets on with what waits for it. An idle event loop looks at its inbox at
//! least every five seconds; one that has taken nothing from it for twice that is stuck, however often it turns, and only a
//! restart mends it.
//!
//! A thread of its own says all of it: the socket of a supervisor that reads nothing blocks whoever writes to it, and the main
//! thread must hear signals.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use pulsegate::control::STUCK_AFTER;
use pulsegate::metrics::{Metric, Published};
use sd_notify::NotifyState;

/// How often the main thread looks whether the workers still run.
const INTERVAL: Duration = Duration::from_secs(1);
/// What the end may take beyond the goodbyes: last bytes, last events, the end of threads. Then it is cut off.
pub const END_MAX: Duration = Duration::from_secs(12);
/// What the supervisor is asked to wait beyond the goodbyes before it kills.
const STOP_EXTRA: Duration = Duration::from_secs(15);
/// What may wait for a supervisor that does not read. More is not said to it.
const UNSAID_MAX: usize = 16;
const _: () = assert!(END_MAX.as_secs() < STOP_EXTRA.as_secs());

/// Whoever started the gateway, if it wants to hear of it.
pub struct Supervisor {
    /// How often it wants to hear at least. None: it does not ask.
    watchdog: Option<Duration>,
    /// To the thread that tells it.
    unsaid: Sender<Vec<NotifyState<'static>>>,
    published: Vec<Arc<Published>>,
    pulse: Pulse,
    is_stopping: bool,
}

impl Supervisor {
    /// The one that the environment names (`NOTIFY_SOCKET`, `WATCHDOG_USEC`), about the workers behind `published`.
    pub fn new(published: Vec<Arc<Published>>) -> Self {
        let pulse = Pulse::new(published.len(), Instant::now());
        let (unsaid, to_say) = bounded(UNSAID_MAX);
        let teller = std::thread::Builder::new().name("supervisor".into()).spawn(move || tell(&to_say));
        if let Err(error) = teller {
            tracing::warn!(%error, "the supervisor cannot be told anything: there is no thread for it");
        }
        Self { watchdog: sd_notify::watchdog_enabled(), unsaid, published, pulse, is_stopping: false }
    }

    /// How often [`Supervisor::feed`] should be called.
    pub fn interval(&self) -> Duration {
        self.watchdog.map_or(INTERVAL, |watchdog| INTERVAL.min(watchdog / 3))
    }

    /// Everything listens.
    pub fn ready(&self) {
        self.say(vec![NotifyState::Ready]);
    }

    /// The gateway lives, if it does. From the first goodbye on workers end one by one, and the supervisor's patience
    /// with the end is the bound.
    pub fn feed(&mut self, now: Instant) {
        if self.watchdog.is_none() {
            return;
        }
        let progress = self.published.iter().map(|published| published.read().value(Metric::LatestProgress));
        match self.pulse.stuck(progress, now) {
            Some(worker) if !self.is_stopping => {
                tracing::error!(worker, "a worker does not get on with what waits for it: the watchdog is not fed");
            }
            _ => self.say(vec![NotifyState::Watchdog]),
        }
    }

    /// The end has begun, and takes at least `window`.
    pub fn stopping(&mut self, window: Duration) {
        self.is_stopping = true;
        let most = u32::try_from((window + STOP_EXTRA).as_micros()).unwrap_or(u32::MAX);
        self.say(vec![NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(most)]);
    }

    fn say(&self, states: Vec<NotifyState<'static>>) {
        if self.unsaid.try_send(states).is_err() {
            tracing::debug!("the supervisor reads nothing: it is told no more until it does");
        }
    }
}

/// Until there is nobody any more who has something to say.
fn tell(unsaid: &Receiver<Vec<NotifyState<'static>>>) {
    for states in unsaid {
        // Without NOTIFY_SOCKET it does nothing and is fine.
        if let Err(error) = sd_notify::notify(&states) {
            tracing::warn!(%error, "the supervisor could not be told");
        }
    }
}

/// When each worker was last seen to get on.
struct Pulse {
    workers: Vec<(u64, Instant)>,
}

impl Pulse {
    fn new(workers: usize, now: Instant) -> Self {
        Self { workers: vec![(0, now); workers] }
    }

    /// The first worker that has not got on for [`STUCK_AFTER`], given when each says that it did.
    fn stuck(&mut self, progress: impl Iterator<Item = u64>, now: Instant) -> Option<usize> {
        for ((seen, at), progress) in self.workers.iter_mut().zip(progress) {
            if progress != *seen {
                (*seen, *at) = (progress, now);
            }
        }
        self.workers.iter().position(|(_, at)| now.duration_since(*at) > STUCK_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_does_not_get_on_is_found_and_forgiven() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(3, start);
        assert_eq!(pulse.stuck([5, 5, 5].into_iter(), after(5)), None);
        assert_eq!(pulse.stuck([6, 5, 6].into_iter(), after(10)), None);
        assert_eq!(pulse.stuck([7, 5, 7].into_iter(), after(15)), None);
        assert_eq!(pulse.stuck([8, 5, 8].into_iter(), after(16)), Some(1));
        assert_eq!(pulse.stuck([9, 6, 9].into_iter(), after(17)), None);
    }
}
