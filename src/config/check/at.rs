//! Which listener is looked at, for the keys that its checks name.

use crate::config::error::ConfigKey;

/// One `[[listener]]`, by its place in the file and its name (empty while it has none).
pub(super) struct At<'a> {
    index: usize,
    name: &'a str,
}

impl<'a> At<'a> {
    pub(super) const fn new(index: usize, name: &'a str) -> Self {
        Self { index, name }
    }

    /// A key of this listener, dotted.
    pub(super) fn key(&self, key: &str) -> ConfigKey {
        ConfigKey::of_listener(self.index, self.name, key)
    }
}
