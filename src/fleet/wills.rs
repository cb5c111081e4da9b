//! Delayed wills that are due here: published, unless their devices, or their sessions, are at another gateway by now [v5 MQTT-3.1.3-9].

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::presence::Row;
use super::server::Server;
use super::{Order, Shared};
use crate::link::DelayedWill;

/// Devices that are asked for at a time; further ones wait.
const ASKED_MAX: usize = 64;

/// Wills of which it is not known yet whether they are to be published.
pub struct Wills {
    come: mpsc::UnboundedReceiver<Box<DelayedWill>>,
    waiting: BTreeMap<u64, Box<DelayedWill>>,
    next: u64,
    /// By number, and whether the device is elsewhere.
    asked: JoinSet<(u64, bool)>,
}

impl Wills {
    /// Those that come this way.
    pub fn new(come: mpsc::UnboundedReceiver<Box<DelayedWill>>) -> Self {
        Self { come, waiting: BTreeMap::new(), next: 0, asked: JoinSet::new() }
    }

    /// Asks where devices are, and publishes or drops what was asked about; ends when there was something to be done.
    pub async fn advance(&mut self, shared: &Arc<Shared>, server: &Server, orders: &mpsc::UnboundedSender<Order>) {
        tokio::select! {
            Some(asked) = self.asked.join_next() => {
                // A question that was given up is none that says that it is elsewhere.
                let Ok((number, is_elsewhere)) = asked else { return };
                let Some(will) = self.waiting.remove(&number) else { return };
                if is_elsewhere {
                    shared.note_will_withheld();
                } else {
                    publish(orders, will);
                }
            }
            Some(will) = self.come.recv(), if self.asked.len() < ASKED_MAX => {
                self.next += 1;
                let (number, device) = (self.next, will.device.clone());
                self.waiting.insert(number, will);
                let (shared, server) = (Arc::clone(shared), server.clone());
                self.asked.spawn(async move { (number, is_void(&shared, &server, &device).await) });
            }
            else => std::future::pending().await,
        }
    }

    /// NATS is away: where a device is cannot be known, and one that left without a word is worth its will.
    pub fn publish_all(&mut self, orders: &mpsc::UnboundedSender<Order>) {
        self.asked = JoinSet::new();
        for (_, will) in std::mem::take(&mut self.waiting) {
            publish(orders, will);
        }
        while let Ok(will) = self.come.try_recv() {
            publish(orders, will);
        }
    }

    /// The next one, while NATS is away; publishes it.
    pub async fn publish_next(&mut self, orders: &mpsc::UnboundedSender<Order>) {
        match self.come.recv().await {
            Some(will) => publish(orders, will),
            None => std::future::pending().await,
        }
    }
}

/// The receiver is gone when the gateway ends: then no device has died.
fn publish(orders: &mpsc::UnboundedSender<Order>, will: Box<DelayedWill>) {
    let _ = orders.send(Order::Publish(will));
}

/// Whether it is another gateway's affair by now: the device is there, its session is, or, while this one was away, its will was published
/// (decision 0032). Without an answer it is not known to be.
async fn is_void(shared: &Shared, server: &Server, device: &str) -> bool {
    let row = server.session_row(device).await;
    let is_theirs = row.is_ok_and(|row| row.is_some_and(|(_, row)| row.voids_will_of(&shared.node)));
    is_theirs || is_elsewhere(shared, server, device).await
}

/// Whether a living gateway says that it has the device.
async fn is_elsewhere(shared: &Shared, server: &Server, device: &str) -> bool {
    let found = server.device_for_sure::<Row>(device).await;
    let Ok(Some((_, row))) = found else { return false };
    *row.node != *shared.node && shared.leases.is_live(server, &row.node, &row.lease).await.unwrap_or(false)
}
