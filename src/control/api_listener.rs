//! The listener of the HTTP API: how many connections it holds, how long each may take for its next request, and which
//! one gives way when a newcomer finds no place.
//!
//! ```text
//!   accepted ─▶ waiting for a request ▶ request in progress ──▶ idle until the next head …
//!                 HEAD_MAX, whole       IDLE_MAX without a byte     IDLE_MAX to its first byte, then HEAD_MAX
//! ```
//!
//! An answer that holds much memory is to be taken in a time that goes by its length (`answers`).
//!
//! When every place is taken, the address that holds the most of those without a request in progress loses the one that
//! has waited longest. Requests in progress are bounded below the number of places (`REQUESTS_MAX`, `SENDS_MAX`,
//! `READERS_MAX`), and one without a token is over at once: so there is always somebody to give way, and a probe always
//! finds a place, whoever holds the others.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, Sleep, sleep_until};

use super::api_tls::{ApiTls, Transport};

/// Rest after an accept that failed for want of a resource.
const ACCEPT_REST: Duration = Duration::from_millis(500);

/// What bounds the connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections held at a time.
    pub(super) connections: usize,
    /// From the accept, or from the first byte of a further request, to the end of the request, its body included.
    pub(super) head_time: Duration,
    /// Between two requests, and without a byte within one.
    pub(super) idle_time: Duration,
}

/// The API's listener.
pub(super) struct ApiListener {
    listener: TcpListener,
    places: Arc<Semaphore>,
    open: Arc<OpenConnections>,
    bounds: Bounds,
    /// What the next connection is spoken over.
    tls: watch::Receiver<Option<ApiTls>>,
}

impl ApiListener {
    /// Takes over a bound, non-blocking socket. Called within the runtime.
    pub(super) fn new(
        listener: std::net::TcpListener,
        bounds: Bounds,
        tls: watch::Receiver<Option<ApiTls>>,
    ) -> io::Result<ApiListener> {
        let listener = TcpListener::from_std(listener)?;
        let places = Arc::new(Semaphore::new(bounds.connections));
        Ok(ApiListener { listener, places, open: Arc::default(), bounds, tls })
    }

    /// A place for a connection that was accepted; an idle one gives way when there is none.
    async fn place(&self) -> OwnedSemaphorePermit {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return place;
        }
        self.open.evict_one();
        self.places.clone().acquire_owned().await.expect("never closed")
    }
}

impl axum::serve::Listener for ApiListener {
    type Io = ApiStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (ApiStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let place = self.place().await;
                    let transport = Transport::new(stream, self.tls.borrow().as_ref());
                    return (ApiStream::new(transport, peer, &self.open, place, self.bounds), peer);
                }
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

/// All connections, for the choice of the one that gives way.
#[derive(Debug, Default)]
struct OpenConnections(Mutex<Numbered>);

#[derive(Debug, Default)]
struct Numbered {
    by_number: HashMap<u64, OpenConnection>,
    /// The number of the latest.
    latest: u64,
}

#[derive(Debug)]
struct OpenConnection {
    progress: Arc<Progress>,
    /// Ends it; `None` once it was told.
    evict: Option<oneshot::Sender<()>>,
}

impl OpenConnections {
    fn lock(&self) -> MutexGuard<'_, Numbered> {
        self.0.lock().expect("no holder panics")
    }

    /// Ends the connection that has waited longest, of the address that holds the most waiting ones.
    fn evict_one(&self) {
        let mut open = self.lock();
        let mut waiting: HashMap<IpAddr, (usize, Instant, u64)> = HashMap::new();
        for (&number, connection) in open.by_number.iter().filter(|(_, connection)| connection.evict.is_some()) {
            let Some(since) = connection.progress.waiting_since() else { continue };
            let oldest = waiting.entry(connection.progress.peer.ip()).or_insert((0, since, number));
            oldest.0 += 1;
            if (since, number) < (oldest.1, oldest.2) {
                (oldest.1, oldest.2) = (since, number);
            }
        }
        let chosen =
            waiting.values().max_by_key(|(count, since, number)| (*count, std::cmp::Reverse((*since, *number))));
        if let Some(&(.., number)) = chosen
            && let Some(connection) = open.by_number.get_mut(&number)
            && let Some(evict) = connection.evict.take()
        {
            // It may be ending by itself just now.
            let _ = evict.send(());
        }
    }
}

/// How far one connection is: shared by its stream, which sees bytes, and by the requests on it, which see heads and ends.
#[derive(Debug)]
pub(super) struct Progress {
    peer: SocketAddr,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Requests whose head is here and whose answer is not wholly handed over.
    requests: u32,
    /// Since when it waits for the next head: the accept, or the end of the latest request.
    waiting_since: Instant,
    /// When the head must be whole; `None` between two requests.
    head_deadline: Option<Instant>,
    /// When the latest answer must be taken, if it holds memory for which others may wait.
    answer_deadline: Option<Instant>,
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Since when it waits for a head, unless a request is in progress.
    fn waiting_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.requests == 0).then_some(state.waiting_since)
    }

    /// A head is here. The request is in progress until the answer is dropped.
    fn begin(self: &Arc<Self>) -> InProgress {
        let mut state = self.lock();
        state.requests += 1;
        state.head_deadline = None;
        drop(state);
        InProgress(self.clone())
    }
}

/// A connection as its requests know it ([`axum::extract::ConnectInfo`]).
#[derive(Clone, Debug)]
pub(super) struct ApiPeer(Arc<Progress>);

impl ApiPeer {
    /// To be called when a request is here, its body included, and kept as long as its answer is.
    pub(super) fn begin_request(&self) -> InProgress {
        self.0.begin()
    }

    /// Whose it is.
    pub(super) fn address(&self) -> IpAddr {
        self.0.peer.ip().to_canonical()
    }

    /// It is cut unless it has taken its answer by then; `None`: it has.
    pub(super) fn expect_reading(&self, deadline: Option<Instant>) {
        self.0.lock().answer_deadline = deadline;
    }

    /// One that there is no connection of.
    #[cfg(test)]
    pub(super) fn at(peer: SocketAddr) -> Self {
        let state = State { requests: 0, waiting_since: Instant::now(), head_deadline: None, answer_deadline: None };
        Self(Arc::new(Progress { peer, state: Mutex::new(state) }))
    }
}

impl Connected<IncomingStream<'_, ApiListener>> for ApiPeer {
    fn connect_info(stream: IncomingStream<'_, ApiListener>) -> Self {
        ApiPeer(stream.io().progress.clone())
    }
}

/// A request in progress.
#[derive(Debug)]
pub(super) struct InProgress(Arc<Progress>);

impl InProgress {
    /// The answer's body, with which the request ends.
    pub(super) fn until_taken(self, body: Body) -> BoundBody {
        BoundBody { body, _in_progress: self }
    }
}

/// The body of an answer: as long as it is there, its request is in progress.
pub(super) struct BoundBody {
    body: Body,
    _in_progress: InProgress,
}

impl HttpBody for BoundBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.requests -= 1;
        state.waiting_since = Instant::now();
    }
}

/// One connection of the API; gives its place back when it is dropped.
pub(super) struct ApiStream {
    stream: Transport,
    progress: Arc<Progress>,
    open: Arc<OpenConnections>,
    number: u64,
    evicted: oneshot::Receiver<()>,
    timer: Pin<Box<Sleep>>,
    /// When a byte last went either way.
    moved_at: Instant,
    bounds: Bounds,
    _place: OwnedSemaphorePermit,
}

impl ApiStream {
    fn new(
        stream: Transport,
        peer: SocketAddr,
        open: &Arc<OpenConnections>,
        place: OwnedSemaphorePermit,
        bounds: Bounds,
    ) -> Self {
        let now = Instant::now();
        let head_deadline = now + bounds.head_time;
        let state =
            State { requests: 0, waiting_since: now, head_deadline: Some(head_deadline), answer_deadline: None };
        let progress = Arc::new(Progress { peer, state: Mutex::new(state) });
        let (evict, evicted) = oneshot::channel();
        let number = {
            let mut open = open.lock();
            open.latest += 1;
            let number = open.latest;
            open.by_number.insert(number, OpenConnection { progress: progress.clone(), evict: Some(evict) });
            number
        };
        let timer = Box::pin(sleep_until(head_deadline));
        Self { stream, progress, open: open.clone(), number, evicted, timer, moved_at: now, bounds, _place: place }
    }

    /// Passes on what the socket answered; while it has nothing, time runs against the connection.
    fn poll_bounded<T>(&mut self, answer: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if answer.is_ready() {
            self.moved_at = Instant::now();
            return answer;
        }
        let deadline = self.deadline();
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        let is_evicted = Pin::new(&mut self.evicted).poll(context).is_ready();
        if is_evicted || self.timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }

    /// The same where no byte need have gone: only what must wait runs out of time.
    fn poll_pending(&mut self, answer: Poll<io::Result<()>>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if answer.is_ready() { answer } else { self.poll_bounded(answer, context) }
    }

    fn deadline(&self) -> Instant {
        let state = *self.progress.lock();
        let deadline = match state.head_deadline {
            Some(deadline) if state.requests == 0 => deadline,
            _ => self.moved_at.max(state.waiting_since) + self.bounds.idle_time,
        };
        state.answer_deadline.map_or(deadline, |answer| answer.min(deadline))
    }

    /// Bytes came: outside a request they belong to a head, whose time begins with its first one.
    fn note_read(&self) {
        let mut state = self.progress.lock();
        if state.requests == 0 {
            state.head_deadline.get_or_insert_with(|| Instant::now() + self.bounds.head_time);
        }
    }
}

impl Drop for ApiStream {
    fn drop(&mut self) {
        self.open.lock().by_number.remove(&self.number);
    }
}

impl AsyncRead for ApiStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let answer = Pin::new(&mut self.stream).poll_read(context, buffer);
        if answer.is_ready() {
            self.note_read();
        }
        self.poll_bounded(answer, context)
    }
}

impl AsyncWrite for ApiStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let answer = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.poll_bounded(answer, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let answer = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.poll_bounded(answer, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let answer = Pin::new(&mut self.stream).poll_flush(context);
        self.poll_pending(answer, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let answer = Pin::new(&mut self.stream).poll_shutdown(context);
        self.poll_pending(answer, context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net;
    use std::sync::mpsc;

    use axum::Router;
    use axum::extract::{ConnectInfo, Request};
    use axum::middleware::{Next, from_fn};
    use axum::routing::get;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    /// A server whose requests under `/hold` are in progress until they are given up, and where their beginnings are told.
    fn serve(bounds: Bounds) -> (SocketAddr, mpsc::Receiver<()>) {
        let (begun, beginnings) = mpsc::channel();
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().unwrap();
        let note = |ConnectInfo(peer): ConnectInfo<ApiPeer>, request: Request, next: Next| async move {
            let _in_progress = peer.begin_request();
            next.run(request).await
        };
        let serve = async move {
            let routes = Router::new()
                .route("/", get(|| async { "here" }))
                .route(
                    "/hold",
                    get(move || {
                        begun.send(()).unwrap();
                        std::future::pending::<()>()
                    }),
                )
                .layer(from_fn(note));
            let routes = routes.into_make_service_with_connect_info::<ApiPeer>();
            axum::serve(ApiListener::new(listener, bounds, watch::channel(None).1).unwrap(), routes).await
        };
        std::thread::spawn(move || runtime.block_on(serve.into_future()));
        (addr, beginnings)
    }

    fn connect(addr: SocketAddr) -> net::TcpStream {
        let stream = net::TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn read_answer(stream: &mut net::TcpStream) {
        let mut answer = Vec::new();
        while !answer.ends_with(b"here") {
            let mut byte = [0];
            assert_eq!(stream.read(&mut byte).unwrap(), 1, "closed within the answer");
            answer.push(byte[0]);
        }
    }

    fn is_ended(stream: &mut net::TcpStream) -> bool {
        // hyper answers an unfinished request with nothing, and closes; a reset is an end as well.
        match stream.read(&mut [0; 16]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    const LONG: Duration = Duration::from_mins(5);

    #[test]
    fn a_newcomer_takes_the_place_of_the_one_that_has_waited_longest() {
        let (addr, beginnings) = serve(Bounds { connections: 3, head_time: LONG, idle_time: LONG });
        let mut held = connect(addr);
        held.write_all(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        beginnings.recv_timeout(Duration::from_secs(20)).unwrap();
        let (mut silent, mut half) = (connect(addr), connect(addr));
        half.write_all(&REQUEST[..10]).unwrap();
        // No time-out helps here: the newcomers are answered because others give way, the oldest first.
        let mut third = connect(addr);
        third.write_all(REQUEST).unwrap();
        read_answer(&mut third);
        assert!(is_ended(&mut silent), "the oldest gives way");
        let mut fourth = connect(addr);
        fourth.write_all(REQUEST).unwrap();
        read_answer(&mut fourth);
        assert!(is_ended(&mut half), "then the next one");
        // The request in progress is kept: the third one, idle since its answer, gives way to a fifth.
        let mut fifth = connect(addr);
        fifth.write_all(REQUEST).unwrap();
        read_answer(&mut fifth);
        assert!(is_ended(&mut third));
        held.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(held.read(&mut [0; 16]).is_err(), "still in progress");
        fourth.write_all(REQUEST).unwrap();
        read_answer(&mut fourth);
    }

    #[test]
    fn a_head_has_its_time_however_many_bytes_come() {
        let head_time = Duration::from_millis(300);
        let (addr, _beginnings) = serve(Bounds { connections: 8, head_time, idle_time: LONG });
        let begun = std::time::Instant::now();
        let (mut silent, mut trickling) = (connect(addr), connect(addr));
        trickling.write_all(b"GET / HTTP/1.1\r\nx: ").unwrap();
        trickling.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let ended = loop {
            assert!(begun.elapsed() < Duration::from_secs(20), "a byte now and then keeps it");
            let wrote = trickling.write_all(b"a");
            match trickling.read(&mut [0; 16]) {
                Err(error) if wrote.is_ok() && error.kind() == io::ErrorKind::WouldBlock => {}
                ended => break ended,
            }
        };
        assert!(ended.map_or(true, |bytes| bytes == 0));
        assert!(is_ended(&mut silent));
        // One that asks again and again is kept, however long it lives.
        let mut asking = connect(addr);
        let begun = std::time::Instant::now();
        while begun.elapsed() < head_time * 3 {
            asking.write_all(REQUEST).unwrap();
            read_answer(&mut asking);
        }
    }

    #[test]
    fn between_requests_a_connection_is_kept_for_the_idle_time() {
        let idle_time = Duration::from_millis(400);
        let (addr, _beginnings) = serve(Bounds { connections: 8, head_time: Duration::from_millis(50), idle_time });
        let mut kept = connect(addr);
        kept.write_all(REQUEST).unwrap();
        read_answer(&mut kept);
        let begun = std::time::Instant::now();
        assert!(is_ended(&mut kept));
        assert!(begun.elapsed() >= idle_time.mul_f32(0.7), "not by the time of a head: {:?}", begun.elapsed());
    }

    #[test]
    fn who_holds_the_most_gives_way() {
        let open = OpenConnections::default();
        let now = Instant::now();
        let add = |number: u64, address: &str, requests: u32, age: u64| {
            let waiting_since = now.checked_sub(Duration::from_secs(age)).unwrap();
            let state = State { requests, waiting_since, head_deadline: None, answer_deadline: None };
            let progress = Progress { peer: (address.parse::<IpAddr>().unwrap(), 1).into(), state: Mutex::new(state) };
            let (evict, evicted) = oneshot::channel();
            open.lock().by_number.insert(number, OpenConnection { progress: Arc::new(progress), evict: Some(evict) });
            evicted
        };
        let mut prober = add(0, "192.0.2.1", 0, 100);
        let mut busy = add(1, "192.0.2.2", 1, 90);
        let mut young = add(2, "192.0.2.2", 0, 5);
        let mut old = add(3, "192.0.2.2", 0, 50);
        open.evict_one();
        assert!(old.try_recv().is_ok());
        // One each now: age decides.
        open.evict_one();
        assert!(prober.try_recv().is_ok());
        open.evict_one();
        assert!(young.try_recv().is_ok());
        open.evict_one();
        assert!(busy.try_recv().is_err(), "a request in progress is never cut");
    }
}
