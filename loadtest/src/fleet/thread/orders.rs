//! What a thread does when it is told to.

use super::super::source::reset_on_close;
use super::super::{ComeBack, Cut, Order};
use super::{Count, Duty, Findings, FleetThread, Ramp, micros};

impl FleetThread {
    pub(super) fn take_orders(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            self.handle_order(order);
        }
    }

    pub(super) fn handle_order(&mut self, order: Order) {
        match order {
            Order::Connect { devices, from, rate } => {
                let mut ramp = Ramp { next: devices.start, first: devices.start, end: devices.end, from, rate };
                let offset = (self.number + self.threads - devices.start % self.threads) % self.threads;
                ramp.next += offset;
                if ramp.next < ramp.end {
                    self.ramps.push_back(ramp);
                }
            }
            Order::ComeBack(how) => self.come_back = how,
            Order::Beat { devices, from, every } => {
                self.duty = Duty::Beat { devices, from, every: micros(every) };
                self.plan_all();
            }
            Order::Publish(publishing) => {
                self.devices.iter_mut().for_each(|device| device.published = 0);
                self.duty = Duty::Publish(publishing);
                self.plan_all();
            }
            Order::Listen(listening) => self.listening = Some(listening),
            Order::StopReading { devices } => self.indices(&devices).for_each(|index| self.stop_reading(index)),
            Order::Thaw => (0..self.devices.len() as u32).for_each(|index| self.thaw(index)),
            Order::ResumeReading => (0..self.devices.len() as u32).for_each(|index| self.resume_reading(index)),
            Order::Quiet => {
                self.duty = Duty::None;
                self.plan_all();
            }
            Order::Cut { devices, how } => self.indices(&devices).for_each(|index| self.cut(index, how)),
            Order::Silence { devices } => self.indices(&devices).for_each(|index| self.silence(index)),
            Order::Churn(churn) => {
                self.churn = Some(churn);
                self.plan_all();
            }
            Order::Stay => {
                self.churn = None;
                self.plan_all();
            }
            Order::Leave { devices } => {
                self.churn = None;
                self.come_back = ComeBack::Never;
                self.ramps.clear();
                self.ready.clear();
                for index in self.indices(&devices) {
                    self.wheel.cancel(index);
                    self.leave(index, true);
                }
            }
            Order::Collect(to) => {
                let found = std::mem::replace(&mut self.findings, Findings::new());
                // Whoever asked may have gone.
                let _ = to.send(found);
            }
            Order::Stop => self.is_stopped = true,
        }
    }

    fn plan_all(&mut self) {
        (0..self.devices.len() as u32).for_each(|index| self.plan(index));
    }

    fn silence(&mut self, index: u32) {
        let device = &mut self.devices[index as usize];
        if device.is_up() && !device.is_silent {
            device.is_silent = true;
            self.counts.add(Count::Silent, 1);
        }
    }

    pub(super) fn cut(&mut self, index: u32, how: Cut) {
        let device = &mut self.devices[index as usize];
        if let Some(socket) = device.socket.as_ref().filter(|_| how == Cut::Reset) {
            reset_on_close(socket);
        }
        self.hang_up(index);
        let device = &mut self.devices[index as usize];
        device.cut_at = self.now;
        device.failures = 0;
        match self.come_back {
            ComeBack::Never => {}
            ComeBack::AtOnce => self.call_at(index, self.now),
            ComeBack::BackOff(span) => {
                let wait = self.random.u64(0..=micros(span));
                self.call_at(index, self.now + wait);
            }
        }
    }
}
