//! Matching as a walk: from the first levels down every branch that a topic name can take, a bounded number of nodes at a
//! time.

use super::{NodeSlot, ROOT, Subscriber, Subscriptions};
use crate::slot::Slot;

/// Bytes of a label that are compared count as a visit each.
const VISIT_BYTES: usize = 64;
/// So do so many subscribers that are found at once.
const VISIT_SUBSCRIBERS: usize = 64;

/// A walk for one topic name: where it goes on.
#[derive(Debug, Default)]
pub struct Walk {
    has_begun: bool,
    /// Whether it is among the walks that wait.
    waits: bool,
    pub(super) branches: Vec<Branch>,
}

impl Walk {
    /// It begins anew, for another name. One that waits must be gone on with.
    pub fn clear(&mut self) {
        debug_assert!(!self.waits);
        self.has_begun = false;
        self.branches.clear();
    }
}

/// A node that matches the topic name up to the level at `at`; behind its end, the whole name. What is below it was not
/// looked at yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Branch {
    node: NodeSlot,
    generation: u32,
    at: usize,
}

/// How a label stands to the rest of a topic name.
enum Matched {
    No,
    /// Up to here.
    To(usize),
    /// All of it, whatever it is: the label ends with "#".
    All,
}

impl<S: Slot> Subscriptions<S> {
    /// Goes on with a walk, by so many visits, and appends every subscription that matches. A session with several is there
    /// several times. `true`: it has come to its end; until then it must be gone on with.
    pub fn advance(&mut self, name: &str, walk: &mut Walk, visits: &mut usize, found: &mut Vec<Subscriber<S>>) -> bool {
        if self.is_empty() && !walk.waits {
            return true;
        }
        let mut budget = *visits;
        let mut subscribers_found = 0;
        let is_done = self.visit(name, walk, &mut budget, |node| {
            let subscribers = self.nodes[node].subscribers.as_slice();
            found.extend_from_slice(subscribers);
            subscribers_found += subscribers.len();
        });
        *visits = budget.saturating_sub(subscribers_found / VISIT_SUBSCRIBERS);
        match (is_done, walk.waits) {
            (false, false) => self.walks += 1,
            (true, true) => self.walks -= 1,
            _ => {}
        }
        walk.waits = !is_done;
        is_done
    }

    /// Names each node whose filter matches.
    pub(super) fn visit(
        &self,
        name: &str,
        walk: &mut Walk,
        visits: &mut usize,
        mut found: impl FnMut(NodeSlot),
    ) -> bool {
        // Behind the last level.
        let end = name.len() + 1;
        if !walk.has_begun {
            walk.has_begun = true;
            walk.branches.push(Branch { node: ROOT, generation: 0, at: 0 });
        }
        while let Some(&Branch { node, generation, at }) = walk.branches.last() {
            if *visits == 0 {
                return false;
            }
            *visits -= 1;
            walk.branches.pop();
            if node != ROOT {
                // Whoever was below has gone, or subscribed anew since.
                let Some(known) = self.nodes.get(node).filter(|known| known.generation == generation) else {
                    continue;
                };
                if at == end {
                    found(node);
                }
                if known.children == 0 {
                    continue;
                }
            }
            let level = name.get(at..).map(super::first_level);
            // [MQTT-4.7.2-1]
            let takes_wildcards = !(node == ROOT && name.starts_with('$'));
            let wildcards = if takes_wildcards { ["#", "+"].map(Some) } else { [None, None] };
            for first in wildcards.into_iter().chain([level]).flatten() {
                let Some(child) = self.child(node, first) else { continue };
                let known = &self.nodes[child];
                *visits = visits.saturating_sub(known.label.len() / VISIT_BYTES);
                match compare(&known.label, name, at) {
                    Matched::No => {}
                    Matched::To(at) => {
                        walk.branches.push(Branch { node: child, generation: known.generation, at });
                    }
                    Matched::All => found(child),
                }
            }
        }
        true
    }
}

fn compare(label: &str, name: &str, mut at: usize) -> Matched {
    let mut label = label;
    loop {
        // Levels without wildcards are compared as one, and most labels have no others.
        let literal = label.bytes().position(|byte| byte == b'+' || byte == b'#').unwrap_or(label.len());
        let Some(rest) = name.get(at..) else {
            return if label == "#" { Matched::All } else { Matched::No };
        };
        let (levels, wildcard) = label.split_at(literal);
        if wildcard.is_empty() {
            let is_same = rest.strip_prefix(levels).is_some_and(|more| more.is_empty() || more.starts_with('/'));
            return if is_same { Matched::To(at + levels.len() + 1) } else { Matched::No };
        }
        if !rest.starts_with(levels) {
            // "a/#" matches "a" too (4.7.1.2).
            let is_parent = wildcard == "#" && levels.strip_suffix('/') == Some(rest);
            return if is_parent { Matched::All } else { Matched::No };
        }
        if wildcard == "#" {
            return Matched::All;
        }
        at += levels.len();
        at += super::first_level(&name[at..]).len() + 1;
        match wildcard.strip_prefix("+/") {
            Some(more) => label = more,
            None => return Matched::To(at),
        }
    }
}
