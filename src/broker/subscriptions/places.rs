//! Where the subscriptions of one session lie, and the vectors in which there is nearly always one.

use hashbrown::HashTable;

use super::NodeSlot;

/// As many places are looked through one by one; beyond that there is an index.
const LISTED_MAX: usize = 16;

/// Where a session's subscription lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) node: NodeSlot,
    pub(super) position: u32,
}

/// All places of one session, and what their filters count as in bytes.
#[derive(Default)]
pub(super) struct Places {
    all: Form,
    bytes: u32,
}

const _: () = assert!(size_of::<Places>() <= 24);

#[derive(Default)]
enum Form {
    #[default]
    None,
    List(Few<Place>),
    Indexed(Box<Indexed>),
}

impl Places {
    pub(super) fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes as usize
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Place> + '_ {
        self.as_slice().iter().copied()
    }

    pub(super) fn find(&self, node: NodeSlot) -> Option<Place> {
        self.position(node).map(|at| self.as_slice()[at])
    }

    /// A place at a node where there is none yet.
    pub(super) fn insert(&mut self, place: Place, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u32);
        match &mut self.all {
            Form::None => self.all = Form::List(Few::One([place])),
            Form::List(list) if list.as_slice().len() < LISTED_MAX => list.push(place),
            Form::List(list) => {
                let mut indexed = Indexed::default();
                list.as_slice().iter().chain([&place]).for_each(|&place| indexed.push(place));
                self.all = Form::Indexed(Box::new(indexed));
            }
            Form::Indexed(indexed) => indexed.push(place),
        }
    }

    pub(super) fn remove(&mut self, node: NodeSlot, bytes: usize) -> Option<Place> {
        let at = self.position(node)?;
        self.bytes = self.bytes.saturating_sub(bytes as u32);
        Some(self.remove_at(at))
    }

    /// Takes any of them out, of a session that ends.
    pub(super) fn pop(&mut self) -> Option<Place> {
        self.len().checked_sub(1).map(|last| self.remove_at(last))
    }

    /// The subscriber at a node has another position there now.
    pub(super) fn move_to(&mut self, node: NodeSlot, position: u32) {
        let at = self.position(node).expect("a subscriber whose session does not know its place");
        let places = match &mut self.all {
            Form::None => &mut [][..],
            Form::List(list) => list.as_mut_slice(),
            Form::Indexed(indexed) => &mut indexed.places,
        };
        places[at].position = position;
    }

    fn as_slice(&self) -> &[Place] {
        match &self.all {
            Form::None => &[],
            Form::List(list) => list.as_slice(),
            Form::Indexed(indexed) => &indexed.places,
        }
    }

    fn position(&self, node: NodeSlot) -> Option<usize> {
        match &self.all {
            Form::Indexed(indexed) => indexed.position(node),
            _ => self.as_slice().iter().position(|place| place.node == node),
        }
    }

    fn remove_at(&mut self, at: usize) -> Place {
        let place = match &mut self.all {
            Form::None => panic!("nothing is there to be removed"),
            Form::List(list) => list.swap_remove(at),
            Form::Indexed(indexed) => indexed.swap_remove(at),
        };
        if self.len() == 0 {
            *self = Self::default();
        }
        place
    }
}

/// Many places, and where in their list each node's is.
#[derive(Default)]
struct Indexed {
    places: Vec<Place>,
    index: HashTable<u32>,
}

impl Indexed {
    fn position(&self, node: NodeSlot) -> Option<usize> {
        self.index.find(hash(node), |&at| self.places[at as usize].node == node).map(|&at| at as usize)
    }

    fn push(&mut self, place: Place) {
        let at = self.places.len() as u32;
        self.places.push(place);
        let places = &self.places;
        self.index.insert_unique(hash(place.node), at, |&at| hash(places[at as usize].node));
    }

    fn swap_remove(&mut self, at: usize) -> Place {
        let node = self.places[at].node;
        let entry = self.index.find_entry(hash(node), |&other| other as usize == at);
        entry.expect("a place that is not in the index").remove();
        let last = self.places.len() - 1;
        if last != at {
            let moved = self.index.find_mut(hash(self.places[last].node), |&other| other as usize == last);
            *moved.expect("a place that is not in the index") = at as u32;
        }
        self.places.swap_remove(at)
    }
}

/// Slots are small numbers that nobody outside chooses: spread over the bits that the table looks at.
fn hash(node: NodeSlot) -> u64 {
    let spread = u64::from(node.0).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    spread ^ (spread >> 32)
}

/// Nearly always one.
#[derive(Default)]
#[allow(clippy::box_collection, reason = "a vector itself would make every node larger")]
pub(super) enum Few<T> {
    #[default]
    None,
    One([T; 1]),
    Many(Box<Vec<T>>),
}

impl<T> Few<T> {
    pub(super) fn as_slice(&self) -> &[T] {
        match self {
            Few::None => &[],
            Few::One(one) => one,
            Few::Many(many) => many,
        }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [T] {
        match self {
            Few::None => &mut [],
            Few::One(one) => one,
            Few::Many(many) => many,
        }
    }

    pub(super) fn push(&mut self, item: T) {
        *self = match std::mem::take(self) {
            Few::None => Few::One([item]),
            Few::One([first]) => Few::Many(Box::new(vec![first, item])),
            Few::Many(mut many) => {
                many.push(item);
                Few::Many(many)
            }
        };
    }

    pub(super) fn swap_remove(&mut self, position: usize) -> T {
        let (removed, rest) = match std::mem::take(self) {
            Few::None => panic!("nothing is there to be removed"),
            Few::One([one]) => (one, Few::None),
            Few::Many(mut many) => {
                let removed = many.swap_remove(position);
                if many.len() == 1 {
                    (removed, many.pop().map_or(Few::None, |last| Few::One([last])))
                } else {
                    if many.len() < many.capacity() / 4 {
                        let room = many.len() * 2;
                        many.shrink_to(room);
                    }
                    (removed, Few::Many(many))
                }
            }
        };
        *self = rest;
        removed
    }
}
