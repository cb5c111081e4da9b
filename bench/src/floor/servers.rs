//! The two servers that the gateway is held against: each sends back whatever it reads, and does nothing else.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::threads::{Threads, pin};
use crate::fixtures::Deployment;

/// How often a server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);
/// What the tokio server keeps for each connection to read into, as servers of its kind do.
const BUFFER: usize = 4_096;

/// A server on a thread of its own, until it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) threads: Threads,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a server of the bench has failed");
        }
    }
}

/// What a server's thread says first: where it listens, and which thread it is.
type Hello = Sender<(SocketAddr, u32)>;

fn start(core: Option<usize>, serve: impl FnOnce(Hello, &AtomicBool) + Send + 'static) -> Server {
    let stop = Arc::new(AtomicBool::new(false));
    let (hello, said) = channel();
    let thread = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let _pinned = pin(core);
            serve(hello, &stop);
        }
    });
    let (address, id) = said.recv().expect("a server of the bench could not start");
    Server { address, threads: Threads::Own(vec![id]), stop, thread: Some(thread) }
}

fn own_id() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// TCP and epoll, edge-triggered, one read and one write for each ping.
pub(super) fn plain(core: Option<usize>) -> Server {
    start(core, |hello, stop| {
        let mut listener = TcpListener::bind(loopback()).expect("a free port");
        hello.send((listener.local_addr().expect("an address"), own_id())).expect("the bench waits for it");
        let mut poll = Poll::new().expect("a poll");
        let mut events = Events::with_capacity(256);
        let listening = Token(usize::MAX - 1);
        poll.registry().register(&mut listener, listening, Interest::READABLE).expect("a listener can be polled");
        let mut sockets: Vec<TcpStream> = Vec::new();
        let mut buffer = vec![0; 16_384];
        while !stop.load(Ordering::Relaxed) {
            if let Err(error) = poll.poll(&mut events, Some(LOOK)) {
                assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
            }
            for event in &events {
                if event.token() == listening {
                    while let Ok((mut socket, _)) = listener.accept() {
                        socket.set_nodelay(true).expect("a TCP socket");
                        let token = Token(sockets.len());
                        poll.registry().register(&mut socket, token, Interest::READABLE).expect("room in the poll");
                        sockets.push(socket);
                    }
                } else if let Ok(count @ 1..) = sockets[event.token().0].read(&mut buffer) {
                    sockets[event.token().0].write_all(&buffer[..count]).expect("room for an answer");
                }
            }
        }
    })
}

/// One task for each connection, on one thread.
pub(super) fn tokio_rustls(deployment: &Deployment, core: Option<usize>) -> Server {
    let (certificate, key) = deployment.server();
    let chain = CertificateDer::pem_file_iter(certificate).expect("a certificate of our own");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("a certificate of our own");
    let key = PrivateKeyDer::from_pem_file(key).expect("a key of our own");
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has both versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("the key is the certificate's");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    start(core, move |hello, stop| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(loopback()).await.expect("a free port");
            hello.send((listener.local_addr().expect("an address"), own_id())).expect("the bench waits for it");
            tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    tokio::spawn(echo(acceptor.clone(), socket));
                }
            });
            while !stop.load(Ordering::Relaxed) {
                tokio::time::sleep(LOOK).await;
            }
        });
    })
}

async fn echo(acceptor: TlsAcceptor, socket: tokio::net::TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut stream = acceptor.accept(socket).await?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count]).await?,
        }
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], super::gateway::free_port()))
}
