//! Many devices on one thread.

use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use pulsegate::codec::native::Frame;
use pulsegate::tls::handshake::ClientTls;
use rustix::process::{Resource, getrlimit, setrlimit};

use super::device::{Device, Event, encoded};

/// How the devices of a fleet behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// They answer each PING, and acknowledge each message that asks for it.
    Answer,
    /// The same, and they send a PING of their own every so often.
    AnswerAndPing(Duration),
}

/// Native devices `{prefix}{n}` that were welcomed and are kept alive, until the fleet is dropped or let go.
pub struct Fleet {
    state: Arc<State>,
    thread: Option<JoinHandle<Vec<Device>>>,
}

#[derive(Default)]
struct State {
    stop: AtomicBool,
    /// PINGs that were answered.
    answered: AtomicUsize,
    /// Connections that have ended.
    lost: AtomicUsize,
    /// What was heard, by the device's number, in order; heartbeats aside.
    heard: Mutex<Vec<(usize, Event)>>,
}

impl Fleet {
    /// Connects `count` devices, one after the other.
    #[track_caller]
    pub fn connect(address: SocketAddr, tls: &ClientTls, prefix: &str, count: usize, behaviour: Behaviour) -> Self {
        raise_descriptor_limit();
        let devices: Vec<Device> =
            (0..count).map(|n| Device::welcomed(address, tls, &format!("{prefix}{n}"))).collect();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || live(devices, behaviour, &shared));
        Self { state, thread: Some(thread) }
    }

    /// How many of its connections have ended.
    pub fn lost(&self) -> usize {
        self.state.lost.load(Ordering::Relaxed)
    }

    /// Hands over what they have heard since the last time, each with the number of its device, in order; heartbeats
    /// aside.
    pub fn take_heard(&self) -> Vec<(usize, Event)> {
        std::mem::take(&mut *self.state.heard.lock().unwrap())
    }

    /// How many PINGs it has answered.
    pub fn answered(&self) -> usize {
        self.state.answered.load(Ordering::Relaxed)
    }

    /// Stops answering and hands the devices over, those that have ended too.
    pub fn into_devices(mut self) -> Vec<Device> {
        self.state.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A fleet that has panicked has said so.
            let _ = thread.join();
        }
    }
}

fn live(mut devices: Vec<Device>, behaviour: Behaviour, state: &State) -> Vec<Device> {
    let mut poll = Poll::new().unwrap();
    let mut events = Events::with_capacity(1_024);
    for (index, device) in devices.iter().enumerate() {
        device.socket.set_nonblocking(true).unwrap();
        let descriptor = device.socket.as_raw_fd();
        poll.registry().register(&mut SourceFd(&descriptor), Token(index), Interest::READABLE).unwrap();
    }
    let ping = encoded(&[Frame::Ping(b"fleet")]);
    let mut next_talk = Instant::now();
    let mut gone = vec![false; devices.len()];
    while !state.stop.load(Ordering::Relaxed) {
        poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
        for event in &events {
            let index = event.token().0;
            if gone[index] {
                continue;
            }
            while devices[index].read() {}
            handle(&mut devices[index], index, &mut gone[index], state);
        }
        if let Behaviour::AnswerAndPing(every) = behaviour
            && Instant::now() >= next_talk
        {
            next_talk = Instant::now() + every;
            for (device, _) in devices.iter_mut().zip(&gone).filter(|(_, gone)| !**gone) {
                device.send_plain(&ping);
            }
        }
    }
    for device in &devices {
        device.socket.set_nonblocking(false).unwrap();
    }
    devices
}

fn handle(device: &mut Device, index: usize, gone: &mut bool, state: &State) {
    for event in device.take_events() {
        match &event {
            Event::Ping(opaque) => {
                device.send_plain(&encoded(&[Frame::Pong(opaque)]));
                state.answered.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Event::Pong(_) => continue,
            // Recorded first: whoever hears of the ACK finds the message.
            &Event::Message { id: id @ 1.., .. } => {
                state.heard.lock().unwrap().push((index, event));
                device.send_plain(&encoded(&[Frame::Ack(id)]));
                continue;
            }
            Event::Eof | Event::Reset if !std::mem::replace(gone, true) => {
                // The gateway waits for its peer's end. After a reset there is nothing to end.
                let _ = device.socket.shutdown(Shutdown::Both);
                state.lost.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        state.heard.lock().unwrap().push((index, event));
    }
}

/// Room for thousands of sockets in this process.
pub fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}
