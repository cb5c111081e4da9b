//! The one thread that reads what waits in sessions, when their devices come back.
//!
//! ```text
//!   worker ── Load ──▶ (asked: as many as each worker may ask at a time) ──▶ read ── Loaded ──▶ the worker's inbox
//! ```
//!
//! It has a connection of its own and waits for no writer. Workers ask and never wait; each question has one answer, also where
//! nothing can be read.

use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use super::StoreError;
use super::reading::Reader;
use crate::link::{Load, Loaded, Mailbox, WorkerCommand};

/// Where questions are put. `None` ends the thread.
#[derive(Debug)]
pub(super) struct Loader {
    asked: Sender<Option<Load>>,
    /// What was asked before there was anybody to answer, and then nothing.
    waiting: Mutex<Option<Receiver<Option<Load>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Loader {
    pub(super) fn new() -> Self {
        let (asked, waiting) = mpsc::channel();
        Self { asked, waiting: Mutex::new(Some(waiting)), thread: Mutex::default() }
    }

    /// Asks. Never waits; when the store is closed nobody answers.
    pub(super) fn ask(&self, load: Load) {
        // Without a thread the gateway ends.
        let _ = self.asked.send(Some(load));
    }

    /// Answers from now on, by worker.
    pub(super) fn begin(&self, path: &Path, mailboxes: Vec<Mailbox>) -> Result<(), StoreError> {
        let reader = Reader::open(path)?;
        let Some(asked) = self.waiting.lock().expect("no holder panics").take() else { return Ok(()) };
        let name = path.to_path_buf();
        let run = move || {
            while let Ok(Some(load)) = asked.recv() {
                answer(&reader, &name, load, &mailboxes);
            }
        };
        let thread = thread::Builder::new().name("store-reader".into()).spawn(run);
        let thread = thread.map_err(|error| StoreError::Io { path: path.into(), error })?;
        *self.thread.lock().expect("no holder panics") = Some(thread);
        Ok(())
    }

    /// What was asked is answered, and then nothing any more.
    pub(super) fn end(&self) {
        let _ = self.asked.send(None);
        if let Some(thread) = self.thread.lock().expect("no holder panics").take()
            && let Err(panicked) = thread.join()
            && !thread::panicking()
        {
            std::panic::resume_unwind(panicked);
        }
    }
}

fn answer(reader: &Reader, path: &Path, load: Load, mailboxes: &[Mailbox]) {
    let Load { session, serial, key, after, through, bytes_max } = load;
    let (messages, is_last) = match reader.messages(key, (after, through), bytes_max) {
        Ok((messages, is_last)) => (Some(messages), is_last),
        Err(error) => {
            tracing::error!(path = %path.display(), session = key.0, %error, "what waits in a session cannot be read");
            (None, false)
        }
    };
    let loaded = Box::new(Loaded { session, serial, messages, is_last });
    // A worker that is gone needs none.
    let _ = mailboxes[session.worker.index()].answer(WorkerCommand::Loaded(loaded));
}
