//! The one clock of a run: microseconds since it began, the same in every thread.

use std::time::{Duration, Instant};

use pulsegate::time::Tick;

/// Microseconds since the run began.
pub type Micros = u64;

/// Started once, copied to every thread.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock whose zero is now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Microseconds since zero.
    pub fn now(self) -> Micros {
        self.0.elapsed().as_micros() as Micros
    }
}

/// The harness's own tick is one millisecond: the wheel counts ticks and does not ask what they are.
pub const TICK_MICROS: Micros = 1_000;

/// The tick that `at` lies in.
pub fn tick(at: Micros) -> Tick {
    Tick((at / TICK_MICROS) as u32)
}

/// The first tick that begins at or after `at`: a timer for it never fires early.
pub fn tick_from(at: Micros) -> Tick {
    Tick(at.div_ceil(TICK_MICROS) as u32)
}

/// When `tick` begins. Runs are shorter than the 49 days after which ticks wrap.
pub fn start_of(tick: Tick) -> Micros {
    Micros::from(tick.0) * TICK_MICROS
}

/// A duration in microseconds.
pub fn micros(duration: Duration) -> Micros {
    duration.as_micros() as Micros
}
