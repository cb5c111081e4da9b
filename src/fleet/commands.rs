//! Commands to devices that are nowhere, in a fleet: the [`Place`](crate::commands::Place) is a stream of NATS (`server/queue.rs`), and
//! whoever has the device by the time that the stream has its command is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::presence::Row;
use super::server::Server;
use super::wire::{Call, Reply, Request};
use super::{Fleet, Order, SLACK, Shared, Unreachable, requests};
use crate::commands::{self, Desk, Fate, Here, Known, NotQueued, Said};
use crate::link::Downlink;

impl Fleet {
    /// Has a command wait for a device that is nowhere; its id. It is there when this returns.
    ///
    /// # Errors
    /// [`NotQueued`].
    pub async fn queue(
        &self,
        device: &str,
        downlink: &Downlink,
        expiry: Duration,
        deadline: Instant,
    ) -> Result<String, NotQueued> {
        let server = self.shared.server().ok_or(NotQueued::Away)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let here = self.teller();
        let put = commands::put(&here, &server, device, downlink, expiry);
        let id = tokio::time::timeout(left, put).await.map_err(|_| NotQueued::Away)??;
        self.tell_owner(server, device.into());
        Ok(id)
    }

    fn teller(&self) -> Teller {
        Teller { shared: Arc::clone(&self.shared), orders: self.orders.clone() }
    }

    /// Whoever has the device by now is told that something waits. It would find out by itself, later.
    fn tell_owner(&self, server: Server, device: Box<str>) {
        let shared = Arc::clone(&self.shared);
        drop(tokio::spawn(async move {
            let Ok(Some((_, row))) = server.device_for_sure::<Row>(&device).await else { return };
            if *row.node == *shared.node {
                shared.wake(&device);
            } else {
                let request = Request::Call { call: Call::Commands { device } };
                let _ = requests::put(&server, &row.node, &request, SLACK).await;
            }
        }));
    }

    /// What is known of a command; `None`: nothing, or no more. One whose time is over has expired with this.
    ///
    /// # Errors
    /// [`Unreachable::Away`].
    pub async fn command(&self, id: &str, deadline: Instant) -> Result<Option<Known>, Unreachable> {
        self.look_at_command(id, None, deadline).await
    }

    /// Takes a command back, if it has no outcome yet; what is known of it then.
    ///
    /// # Errors
    /// [`Unreachable::Away`]: it may be taken back.
    pub async fn cancel_command(&self, id: &str, deadline: Instant) -> Result<Option<Known>, Unreachable> {
        self.look_at_command(id, Some(Fate::Cancelled), deadline).await
    }

    async fn look_at_command(
        &self,
        id: &str,
        unless_final: Option<Fate>,
        deadline: Instant,
    ) -> Result<Option<Known>, Unreachable> {
        let server = self.shared.server().ok_or(Unreachable::Away)?;
        let here = self.teller();
        let looked = commands::look(&here, &server, id, unless_final);
        let left = deadline.saturating_duration_since(Instant::now());
        let known = tokio::time::timeout(left, looked).await.map_err(|_| Unreachable::Away)?;
        known.map_err(|_| Unreachable::Away)
    }
}

/// This gateway, as commands that wait in NATS see it.
#[derive(Clone)]
pub(super) struct Teller {
    pub(super) shared: Arc<Shared>,
    pub(super) orders: mpsc::UnboundedSender<Order>,
}

impl Here for Teller {
    fn node(&self) -> &str {
        &self.shared.node
    }

    fn desk(&self) -> &Desk {
        &self.shared.desk
    }

    async fn has(&self, device: &str) -> bool {
        self.shared.is_here(device)
    }

    async fn say(&self, device: &str, downlink: Downlink, patience: Duration) -> Said {
        let (answer, answered) = oneshot::channel();
        let order = Order::Send { device: device.into(), downlink, patience: Some(patience), answer };
        if self.orders.send(order).is_err() {
            return Said::NotNow;
        }
        match tokio::time::timeout(patience + SLACK, answered).await {
            Ok(Ok(Reply::Acknowledged)) => Said::Acknowledged,
            Ok(Ok(Reply::Offline)) => Said::Offline,
            Ok(Ok(Reply::Refused { why })) => Said::Refused(why),
            _ => Said::NotNow,
        }
    }
}
