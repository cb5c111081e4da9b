//! Tasks, and a time of their own: whoever is ready is polled in an order that is drawn from a seed, and nobody waits for a real clock.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::time::Instant;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Whose a task is: of the network, or of a life of a gateway, with which it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Network,
    Gateway(usize, u64),
}

struct Task {
    whose: Whose,
    work: Work,
    is_ready: Arc<Ready>,
}

struct Ready(AtomicBool);

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What tasks say to whoever polls them.
struct Shared {
    now: Instant,
    random: fastrand::Rng,
    timers: Vec<(Instant, Waker)>,
    new: VecDeque<(Whose, Work)>,
}

/// The clock, chance, and a way to begin something.
#[derive(Clone)]
pub struct Clock(Arc<Mutex<Shared>>);

impl Clock {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap()
    }

    pub fn now(&self) -> Instant {
        self.shared().now
    }

    pub fn chance(&self, of: u32) -> bool {
        self.shared().random.u32(..of) == 0
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.shared().random.u64(..bound)
    }

    pub fn spawn(&self, whose: Whose, work: impl Future<Output = ()> + Send + 'static) {
        self.shared().new.push_back((whose, Box::pin(work)));
    }

    pub fn sleep(&self, duration: Duration) -> Sleep {
        let until = self.now() + duration;
        Sleep { clock: self.clone(), until }
    }

    /// As long as something takes on its way.
    pub fn way(&self) -> Sleep {
        let ms = if self.chance(12) { self.below(400) } else { self.below(8) };
        self.sleep(Duration::from_millis(ms))
    }
}

/// Ends at its time.
pub struct Sleep {
    clock: Clock,
    until: Instant,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut shared = self.clock.shared();
        if shared.now >= self.until {
            return Poll::Ready(());
        }
        shared.timers.push((self.until, cx.waker().clone()));
        Poll::Pending
    }
}

/// All tasks that there are.
pub struct Executor {
    pub clock: Clock,
    tasks: Vec<Task>,
}

impl Executor {
    pub fn new(random: fastrand::Rng) -> Self {
        let shared = Shared { now: Instant::now(), random, timers: Vec::new(), new: VecDeque::new() };
        Self { clock: Clock(Arc::new(Mutex::new(shared))), tasks: Vec::new() }
    }

    /// Tasks of those who are no more go.
    pub fn end(&mut self, whose: Whose) {
        self.begin_new();
        self.tasks.retain(|task| task.whose != whose);
    }

    fn begin_new(&mut self) {
        let new = std::mem::take(&mut self.clock.shared().new);
        let task = |(whose, work)| Task { whose, work, is_ready: Arc::new(Ready(AtomicBool::new(true))) };
        self.tasks.extend(new.into_iter().map(task));
    }

    /// Polls one that is ready, of those that may go on. `false`: none is.
    pub fn poll_one(&mut self, may_go_on: impl Fn(Whose) -> bool) -> bool {
        self.begin_new();
        let is_ready = |task: &Task| task.is_ready.0.load(Ordering::Relaxed) && may_go_on(task.whose);
        let ready: Vec<usize> = (0..self.tasks.len()).filter(|&at| is_ready(&self.tasks[at])).collect();
        if ready.is_empty() {
            return false;
        }
        let at = ready[self.clock.below(ready.len() as u64) as usize];
        let task = &mut self.tasks[at];
        task.is_ready.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&task.is_ready));
        if task.work.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            drop(self.tasks.swap_remove(at));
        }
        true
    }

    /// Time goes on to the next thing that is due, or by this much.
    pub fn pass_time(&mut self, most: Duration) {
        let mut shared = self.clock.shared();
        let next = shared.timers.iter().map(|(until, _)| *until).min();
        shared.now = next.map_or(shared.now + most, |next| next.min(shared.now + most)).max(shared.now);
        let now = shared.now;
        for (_, waker) in shared.timers.extract_if(.., |(until, _)| *until <= now) {
            waker.wake();
        }
    }
}
