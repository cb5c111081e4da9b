//! Memory for answers of the HTTP API: bytes that a request reserves before its answer is made, and that are free again when the socket
//! has taken the last of the answer, or its connection is gone.
//!
//! ```text
//!   asked ─▶ reserved ─▶ made ─▶ what it did not need is given back ─▶ unread ─▶ taken, or cut
//!            WAIT_MAX,                                                 GRACE, and a second for each READ_BYTES
//!            else api_busy
//! ```
//!
//! One consumer of the uplink can hold half of it and one address three quarters, so that whoever does not read leaves room for
//! others. Shares are taken in one order (the consumer's, the address's, all), and who holds room waits for none: nobody waits for
//! whoever waits for them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::api_listener::ApiPeer;

/// How long a request waits for room.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Requests that may wait for it at a time, beside those that wait for news anyway: the places of the others stay free for what
/// needs none.
const WAITING_MAX: usize = 16;
/// How long an answer may stay unread, however short it is,
const GRACE: Duration = Duration::from_secs(5);
/// and how much of a longer one is to be taken in each further second.
const READ_BYTES: usize = 64 << 10;
/// An answer that is no longer takes no room: connections are so few that it is part of what the control plane has.
pub(super) const SHORT: usize = 16 << 10;
/// Shares that are known before those that nobody uses are forgotten.
const SHARES_MAX: usize = 512;

/// Who holds room.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Consumer(Box<str>),
    Address(IpAddr),
}

/// There was no room in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// The room for answers.
#[derive(Debug)]
pub(super) struct Answers {
    bytes_max: usize,
    wait_max: Duration,
    all: Arc<Semaphore>,
    shares: Mutex<HashMap<Holder, Weak<Semaphore>>>,
    waiting: Semaphore,
    refused: AtomicU64,
    cut: AtomicU64,
}

impl Answers {
    /// Room for so many bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            wait_max: WAIT_MAX,
            all: Arc::new(Semaphore::new(bytes_max)),
            shares: Mutex::default(),
            waiting: Semaphore::new(WAITING_MAX),
            refused: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        }
    }

    /// The most that one answer may reserve for a consumer.
    pub(super) fn consumer_max(&self) -> usize {
        self.bytes_max / 2
    }

    fn address_max(&self) -> usize {
        self.bytes_max / 4 * 3
    }

    /// Requests that were told to come again.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Connections that were cut because they took too long for an answer.
    pub(super) fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// Room for a reader of the uplink, who waits for news anyway.
    pub(super) async fn reserve_for(
        &self,
        consumer: &str,
        peer: &ApiPeer,
        bytes: usize,
    ) -> Result<Reservation, NoRoom> {
        let shares = [
            self.share(Holder::Consumer(consumer.into()), self.consumer_max()),
            self.share(Holder::Address(peer.address()), self.address_max()),
            self.all.clone(),
        ];
        match Reservation::take_now(&shares, bytes.min(self.consumer_max())) {
            Some(reservation) => Ok(reservation),
            None => self.wait(&shares, bytes.min(self.consumer_max())).await,
        }
    }

    /// Room for any other answer.
    pub(super) async fn reserve(&self, peer: &ApiPeer, bytes: usize) -> Result<Reservation, NoRoom> {
        if let Some(reservation) = self.reserve_now(peer, bytes) {
            return Ok(reservation);
        }
        let Ok(_place) = self.waiting.try_acquire() else { return Err(self.refuse()) };
        let shares = [self.share(Holder::Address(peer.address()), self.address_max()), self.all.clone()];
        self.wait(&shares, bytes.min(self.address_max())).await
    }

    /// The same for one that must not wait: `None`, there is no room now.
    pub(super) fn reserve_now(&self, peer: &ApiPeer, bytes: usize) -> Option<Reservation> {
        let shares = [self.share(Holder::Address(peer.address()), self.address_max()), self.all.clone()];
        Reservation::take_now(&shares, bytes.min(self.address_max()))
    }

    /// Bytes that nobody has.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.all.available_permits()
    }

    async fn wait(&self, shares: &[Arc<Semaphore>], bytes: usize) -> Result<Reservation, NoRoom> {
        let taken = timeout(self.wait_max, Reservation::take(shares, bytes)).await;
        taken.map_err(|_| self.refuse())
    }

    fn refuse(&self) -> NoRoom {
        self.refused.fetch_add(1, Ordering::Relaxed);
        NoRoom
    }

    fn share(&self, holder: Holder, bytes_max: usize) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().expect("no holder panics");
        if let Some(share) = shares.get(&holder).and_then(Weak::upgrade) {
            return share;
        }
        if shares.len() >= SHARES_MAX {
            shares.retain(|_, share| share.strong_count() > 0);
        }
        let share = Arc::new(Semaphore::new(bytes_max));
        shares.insert(holder, Arc::downgrade(&share));
        share
    }
}

/// Room that one answer has.
#[derive(Debug)]
pub(super) struct Reservation {
    bytes: usize,
    /// Of each share.
    permits: Vec<OwnedSemaphorePermit>,
}

impl Reservation {
    fn take_now(shares: &[Arc<Semaphore>], bytes: usize) -> Option<Self> {
        let take = |share: &Arc<Semaphore>| share.clone().try_acquire_many_owned(count(bytes)).ok();
        Some(Self { bytes, permits: shares.iter().map(take).collect::<Option<_>>()? })
    }

    async fn take(shares: &[Arc<Semaphore>], bytes: usize) -> Self {
        let mut permits = Vec::with_capacity(shares.len());
        for share in shares {
            permits.push(share.clone().acquire_many_owned(count(bytes)).await.expect("never closed"));
        }
        Self { bytes, permits }
    }

    /// How much it is.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back all but so much.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let spare = self.bytes.saturating_sub(bytes);
        self.bytes -= spare;
        for permit in &mut self.permits {
            drop(permit.split(spare));
        }
    }
}

fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// An answer that its peer has not wholly taken. Its bytes hold the room, however far they have been handed on: the body of an answer is
/// gone long before the socket has taken what was in it.
pub(super) struct Unread {
    bytes: Box<[u8]>,
    _reservation: Reservation,
    answers: Arc<Answers>,
    peer: ApiPeer,
    deadline: Instant,
}

impl Unread {
    /// From now on `peer` has its time for them.
    pub(super) fn begin(bytes: Box<[u8]>, reservation: Reservation, answers: Arc<Answers>, peer: ApiPeer) -> Bytes {
        let seconds = bytes.len() / READ_BYTES;
        let deadline = Instant::now() + GRACE + Duration::from_secs(seconds as u64);
        peer.expect_reading(Some(deadline));
        Bytes::from_owner(Self { bytes, _reservation: reservation, answers, peer, deadline })
    }
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.peer.expect_reading(None);
        if Instant::now() >= self.deadline {
            self.answers.cut.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> ApiPeer {
        ApiPeer::at((address.parse::<IpAddr>().unwrap(), 1).into())
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn nobody_holds_all_of_it_and_what_is_not_needed_is_given_back() {
        let (here, there) = (peer("192.0.2.1"), peer("192.0.2.2"));
        let answers = Answers { wait_max: Duration::from_millis(20), ..Answers::new(16_000) };
        run(async {
            let mut greedy = answers.reserve_for("greedy", &here, 99_000).await.unwrap();
            assert_eq!(greedy.bytes(), 8_000, "half");
            assert!(answers.reserve_for("greedy", &there, 1).await.is_err());
            let other = answers.reserve_for("other", &here, 4_000).await.unwrap();
            assert!(answers.reserve_now(&here, 1).is_none(), "three quarters are of one address");
            let elsewhere = answers.reserve(&there, 4_000).await.unwrap();
            assert!(answers.reserve(&there, 1).await.is_err());
            assert_eq!(answers.refused(), 2);
            greedy.shrink(1_000);
            assert!(answers.reserve_for("greedy", &there, 7_000).await.is_ok());
            drop((greedy, other, elsewhere));
            assert_eq!(answers.free(), 16_000);
        });
    }

    #[test]
    fn who_waits_gets_what_becomes_free_and_few_wait() {
        let answers = Arc::new(Answers { wait_max: Duration::from_mins(1), ..Answers::new(16_000) });
        run(async {
            let held = answers.reserve(&peer("192.0.2.1"), 12_000).await.unwrap();
            let mut asking = tokio::task::JoinSet::new();
            for _ in 0..WAITING_MAX + 3 {
                let answers = Arc::clone(&answers);
                asking.spawn(async move { answers.reserve(&peer("192.0.2.1"), 700).await.is_ok() });
            }
            for _ in 0..3 {
                assert!(!asking.join_next().await.unwrap().unwrap(), "too many wait already");
            }
            drop(held);
            while let Some(one) = asking.join_next().await {
                assert!(one.unwrap());
            }
        });
    }
}
