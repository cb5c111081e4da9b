//! The listener of the HTTP API: its connection limit, and its idle timeout.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

/// Rest after an accept that failed for want of a resource.
const ACCEPT_REST: Duration = Duration::from_millis(500);

/// The API's listener.
pub(super) struct Front {
    listener: TcpListener,
    places: Arc<Semaphore>,
    idle_max: Duration,
}

impl Front {
    /// Takes over a bound, non-blocking socket. At most `connections_max` connections are held at a time, further ones
    /// wait in the backlog; one that neither sends nor takes a byte for `idle_max` is closed. Called within the runtime.
    pub(super) fn new(
        listener: std::net::TcpListener,
        connections_max: usize,
        idle_max: Duration,
    ) -> io::Result<Front> {
        let listener = TcpListener::from_std(listener)?;
        Ok(Front { listener, places: Arc::new(Semaphore::new(connections_max)), idle_max })
    }
}

impl axum::serve::Listener for Front {
    type Io = FrontStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (FrontStream, SocketAddr) {
        loop {
            let place = self.places.clone().acquire_owned().await.expect("never closed");
            match self.listener.accept().await {
                Ok((stream, peer)) => return (FrontStream::new(stream, place, self.idle_max), peer),
                Err(error) => {
                    tracing::warn!(%error, "the HTTP API could not accept a connection");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection of the API; gives its place back when it is dropped.
pub(super) struct FrontStream {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    idle_max: Duration,
    _place: OwnedSemaphorePermit,
}

impl FrontStream {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit, idle_max: Duration) -> Self {
        Self { stream, idle: Box::pin(sleep_until(Instant::now() + idle_max)), idle_max, _place: place }
    }

    /// Passes on what the socket said; while it says nothing, the patience runs out.
    fn poll_patiently<T>(&mut self, said: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if said.is_pending() {
            ready!(self.idle.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let deadline = Instant::now() + self.idle_max;
        self.idle.as_mut().reset(deadline);
        said
    }
}

impl AsyncRead for FrontStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let said = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.poll_patiently(said, context)
    }
}

impl AsyncWrite for FrontStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let said = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.poll_patiently(said, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let said = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.poll_patiently(said, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net;

    use axum::Router;
    use axum::routing::get;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    #[test]
    fn connections_are_counted_and_the_idle_make_room() {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().unwrap();
        let idle_max = Duration::from_millis(400);
        let serve = async move {
            let front = Front::new(listener, 2, idle_max).unwrap();
            axum::serve(front, Router::new().route("/", get(|| async { "here" }))).await
        };
        std::thread::spawn(move || runtime.block_on(serve.into_future()));
        let connect = || {
            let stream = net::TcpStream::connect(addr).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        };
        let read_answer = |stream: &mut net::TcpStream| {
            let mut answer = Vec::new();
            while !answer.ends_with(b"here") {
                let mut byte = [0];
                assert_eq!(stream.read(&mut byte).unwrap(), 1, "closed within the answer");
                answer.push(byte[0]);
            }
        };

        let (mut silent, mut half) = (connect(), connect());
        half.write_all(&REQUEST[..10]).unwrap();
        let begun = std::time::Instant::now();
        let mut third = connect();
        third.write_all(REQUEST).unwrap();
        // The third one is answered when the others have been given up, not before.
        read_answer(&mut third);
        assert!(begun.elapsed() >= idle_max.mul_f32(0.7), "{:?}", begun.elapsed());
        assert_eq!(silent.read(&mut [0; 16]).unwrap(), 0);
        // hyper answers an unfinished request with nothing, and closes.
        assert_eq!(half.read(&mut [0; 16]).unwrap(), 0);
        // One that keeps talking is kept.
        for _ in 0..4 {
            std::thread::sleep(idle_max / 2);
            third.write_all(REQUEST).unwrap();
            read_answer(&mut third);
        }
    }
}
