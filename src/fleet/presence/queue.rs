//! Devices that something is to be asked about: those that have gone before those that have come, each in its order.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// Names beyond those of devices that are there, before the rest is looked through.
const SPARE: usize = 1_024;

/// The devices. One that was forgotten may still stand here: whoever takes it out looks whether it is there.
#[derive(Debug, Default)]
pub(super) struct Queue {
    gone: VecDeque<Arc<str>>,
    come: VecDeque<Arc<str>>,
}

impl Queue {
    /// Puts one at the end.
    pub fn push(&mut self, device: Arc<str>, is_gone: bool) {
        let queue = if is_gone { &mut self.gone } else { &mut self.come };
        queue.push_back(device);
    }

    /// Takes the next one.
    pub fn pop(&mut self) -> Option<Arc<str>> {
        self.gone.pop_front().or_else(|| self.come.pop_front())
    }

    /// Takes out those that are not wanted, and those that stand here twice, once there are many more names than the `devices` that there are.
    pub fn keep_small(&mut self, devices: usize, is_wanted: impl Fn(&str) -> bool) {
        if self.gone.len() + self.come.len() > 2 * devices + SPARE {
            let mut seen = HashSet::with_capacity(devices);
            let mut keep = |device: &Arc<str>| is_wanted(device) && seen.insert(Arc::clone(device));
            self.gone.retain(&mut keep);
            self.come.retain(&mut keep);
        }
    }
}

#[cfg(test)]
impl Queue {
    /// How many names there are.
    pub fn len(&self) -> usize {
        self.gone.len() + self.come.len()
    }
}
