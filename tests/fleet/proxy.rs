//! Between a gateway and a nats-server: passes everything on, and may hold what the server says for as long as it likes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// A way to one server.
pub struct Proxy {
    port: u16,
    hold: Arc<(Mutex<bool>, Condvar)>,
    is_over: Arc<AtomicBool>,
}

impl Proxy {
    pub fn new(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let hold = Arc::new((Mutex::new(false), Condvar::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let (gate, over) = (Arc::clone(&hold), Arc::clone(&is_over));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let client = client.unwrap();
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let up = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass_on(up.0, up.1, &(Mutex::new(false), Condvar::new())));
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || pass_on(server, client, &gate));
            }
        });
        Self { port, hold, is_over }
    }

    /// As it stands in a configuration.
    pub fn urls(&self) -> String {
        format!("[\"nats://localhost:{}\"]", self.port)
    }

    /// Whether what the server says is held back from now on.
    pub fn hold(&self, is_held: bool) {
        *self.hold.0.lock().unwrap() = is_held;
        self.hold.1.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.hold(false);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, (is_held, changed): &(Mutex<bool>, Condvar)) {
    let mut bytes = [0; 16_384];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        drop(changed.wait_while(is_held.lock().unwrap(), |is_held| *is_held).unwrap());
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
