//! Who is kept out, said and asked over the API. The list itself belongs to whoever changes what holds.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::link::Subject;
use crate::time::Moment;

/// What is to be done with the deny list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockOrder {
    /// Nothing: it is only read.
    List,
    /// Keep this subject out from now on.
    Add {
        /// The device, certificate or network.
        subject: Subject,
        /// For how long; `None`: for good.
        span: Option<Duration>,
        /// Who says so.
        source: BlockSource,
    },
    /// These, and no others, are kept out because the fleet says so.
    Fleet {
        /// Whom, and for how long; `None`: for good.
        all: Vec<(Subject, Option<Duration>)>,
        /// Of these nothing is known: they stay as they are.
        except: BTreeSet<Subject>,
    },
    /// Let it in again.
    Remove {
        /// The device, certificate or network.
        subject: Subject,
    },
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Who is kept out.
    pub subject: Subject,
    /// Until when; `None`: for good.
    pub until: Option<Moment>,
    /// Who said so.
    pub source: BlockSource,
}

/// Who said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockSource {
    /// The file (`deny_file`).
    File,
    /// The API. It is kept in the data directory.
    Api,
    /// The fleet: it was said at one of its gateways. It is kept in the data directory too, and ends when the fleet says so.
    Fleet,
    /// The gateway itself, for a while: the device sent more than it may. It ends with the process.
    Gateway,
}

/// Somebody wants the deny list, or a change of it.
pub struct BlockRequest {
    /// What is to be done with the list.
    pub order: BlockOrder,
    /// The list as it is then.
    pub answer: oneshot::Sender<Result<Vec<Block>, BlockError>>,
}

/// Why it was not done, or not wholly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// There is no room for one more.
    NoRoom,
    /// There is no such entry.
    NoSuch,
    /// It holds by now, but not beyond this process: the file, and what the system says.
    NotKept(String),
}
