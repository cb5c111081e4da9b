//! What others say to this gateway by NATS, and what it says to them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::client::{Request as Ask, RequestError, RequestErrorKind};
use async_nats::{Message, Subject};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::names::Names;
use super::presence::Told;
use super::server::Server;
use super::sessions::{SESSION_ASK_MAX, SessionAsk};
use super::wire::{Call, Reply, Request};
use super::{Order, SLACK, Shared, Unreachable};
use crate::link::Downlink;

/// Requests from others under way at a time; further ones are told that this gateway is busy.
const ANSWERING_MAX: usize = 256;
/// Answers at a time to what is known at once: whether a device is here, that one was taken, that this gateway is busy. Beyond that they
/// are not given, and whoever asked asks again.
const FACTS_MAX: usize = 4_096;
/// How long a worker has to answer what another gateway asks.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// The longest that another gateway may ask to wait for a device.
const PATIENCE_MAX: Duration = Duration::from_mins(1);
/// How long somebody who asks by NATS may be waited for.
const ASKED_MAX: Duration = Duration::from_secs(63);

/// Who says something.
#[derive(Clone, Copy)]
pub enum Heard {
    ByGateway,
    ByAnybody,
}

/// What is needed to answer.
pub type Means<'a> = (&'a Arc<Shared>, &'a Names, &'a mpsc::UnboundedSender<Order>);

/// Answers on their way.
#[derive(Default)]
pub struct Hearing {
    answering: JoinSet<()>,
    facts: JoinSet<()>,
}

impl Hearing {
    /// Hears one message, and answers it by `say`. `is_old`: it waited for too long to be carried out.
    pub fn hear<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        (shared, names, orders): Means<'_>,
        say: impl FnOnce(Subject, Bytes) -> F + Send + 'static,
        message: Message,
        heard: Heard,
        is_old: bool,
    ) {
        shared.counters.received.fetch_add(1, Ordering::Relaxed);
        self.forget_answered();
        // Whoever does not want to know what became of it is not served: an answer is what the promise is about. Nor is anybody
        // who wants it said where only gateways and NATS itself speak.
        let Some(reply) = message.reply.clone().filter(|reply| names.may_answer_at(reply)) else { return };
        let known = match heard {
            Heard::ByGateway => fact(shared, &message.payload).map(|answer| answer.to_bytes()),
            Heard::ByAnybody => None,
        };
        if let Some(answer) = known.or_else(|| self.busy(heard)) {
            if self.facts.len() < FACTS_MAX {
                self.facts.spawn(say(reply, answer));
            }
            return;
        }
        let (shared, orders) = (Arc::clone(shared), orders.clone());
        let device = names.sent_to(&message.subject);
        self.answering.spawn(async move {
            let answer = match heard {
                Heard::ByGateway => match Request::parse(&message.payload) {
                    Ok(Request::Session { device, ask }) => serve_session(&orders, device, ask, is_old).await,
                    request => serve_gateway(&shared, &orders, request, is_old).await.to_bytes(),
                },
                Heard::ByAnybody if is_old => {
                    error_body("api_busy", "the gateway stood still; nothing was done; try again")
                }
                Heard::ByAnybody => serve_anybody(&orders, device, message.payload).await,
            };
            // Whoever asked finds out by its own deadline whether it was said.
            say(reply, answer).await;
        });
    }

    /// What everybody is told while too many wait for their answers.
    fn busy(&self, heard: Heard) -> Option<Bytes> {
        (self.answering.len() >= ANSWERING_MAX).then(|| match heard {
            Heard::ByGateway => Reply::Busy.to_bytes(),
            Heard::ByAnybody => error_body("api_busy", "too many requests at a time; try again"),
        })
    }

    /// What was answered takes no place: whoever asks without a pause lets nobody come to [`Hearing::advance`].
    fn forget_answered(&mut self) {
        while self.answering.try_join_next().is_some() {}
        while self.facts.try_join_next().is_some() {}
    }

    /// Takes note of what was answered; ends when there was something.
    pub async fn advance(&mut self) {
        tokio::select! {
            Some(_) = self.answering.join_next() => {}
            Some(_) = self.facts.join_next() => {}
            else => std::future::pending().await,
        }
    }
}

/// Asks one gateway something. Its answer's bytes.
///
/// # Errors
/// There is none within `patience`, or nobody hears.
pub async fn ask(server: &Server, node: &str, request: Bytes, patience: Duration) -> Result<Bytes, RequestError> {
    let asked = Ask::new().payload(request).timeout(Some(patience));
    server.client.send_request(server.names.gateway(node), asked).await.map(|message| message.payload)
}

/// Asks one gateway something, and what its answer or its silence means.
///
/// # Errors
/// [`Unreachable::Deaf`] or [`Unreachable::Silent`].
pub async fn put(server: &Server, node: &str, request: &Request, patience: Duration) -> Result<Reply, Unreachable> {
    match ask(server, node, request.to_bytes(), patience).await {
        Ok(answer) => Reply::parse(&answer).map_err(|_| Unreachable::Silent(node.to_owned())),
        Err(error) if error.kind() == RequestErrorKind::NoResponders => Err(Unreachable::Deaf(node.to_owned())),
        Err(_) => Err(Unreachable::Silent(node.to_owned())),
    }
}

/// The answer to what is known at once, and is true however late it is asked or said.
fn fact(shared: &Shared, payload: &[u8]) -> Option<Reply> {
    match Request::parse(payload) {
        Ok(Request::Taken { device, lease, generation, revision }) => {
            let told = shared.presence().handle_taken(&device, &lease, generation, revision);
            if told == Told::Ends {
                shared.bell.notify_one();
            }
            Some(Reply::Heard)
        }
        Ok(Request::Has { device }) => {
            let age = shared.presence().age(&device, Instant::now());
            Some(age.map_or(Reply::Offline, |age| Reply::Here { age_us: age.as_micros() as u64 }))
        }
        _ => None,
    }
}

async fn serve_gateway(
    shared: &Shared,
    orders: &mpsc::UnboundedSender<Order>,
    request: Result<Request, String>,
    is_old: bool,
) -> Reply {
    let (device, order, answered, most) = match request {
        Err(why) => return Reply::NotUnderstood { why },
        Ok(Request::Call { call: Call::Commands { device } }) => {
            shared.wake(&device);
            return Reply::Heard;
        }
        Ok(Request::Call { call }) => return serve_call(orders, call, is_old).await,
        Ok(Request::Taken { .. } | Request::Has { .. } | Request::Session { .. }) => {
            unreachable!("it is answered elsewhere")
        }
        // What is wanted of a device may come behind what was wanted later.
        Ok(_) if is_old => return Reply::Busy,
        Ok(Request::Send { device, topic, payload, acknowledge, patience_ms }) => {
            let patience = acknowledge.then(|| Duration::from_millis(patience_ms).min(PATIENCE_MAX));
            let (answer, answered) = oneshot::channel();
            let downlink = Downlink { topic, payload };
            let order = Order::Send { device: device.clone(), downlink, patience, answer };
            (device, order, answered, patience.unwrap_or(ANSWER_MAX))
        }
        Ok(Request::Disconnect { device }) => {
            let (answer, answered) = oneshot::channel();
            (device.clone(), Order::Disconnect { device, answer }, answered, ANSWER_MAX)
        }
    };
    if orders.send(order).is_err() {
        return Reply::Busy;
    }
    match tokio::time::timeout(most + SLACK, answered).await {
        Ok(Ok(reply)) => {
            if reply == Reply::Offline {
                // Its row was seen: if it is still there, it goes.
                shared.presence().missed(&device);
                shared.bell.notify_one();
            }
            reply
        }
        _ => Reply::Late,
    }
}

/// What another gateway wants of a session. What it wanted long ago it has asked again, or given up.
async fn serve_session(
    orders: &mpsc::UnboundedSender<Order>,
    device: Box<str>,
    ask: SessionAsk,
    is_old: bool,
) -> Bytes {
    let (answer, answered) = oneshot::channel();
    if !is_old
        && orders.send(Order::Session { device, ask, answer }).is_ok()
        && let Ok(Ok(answer)) = tokio::time::timeout(SESSION_ASK_MAX, answered).await
    {
        return answer;
    }
    Reply::Busy.to_bytes()
}

/// What a gateway is asked about itself. That it was asked long ago matters only where it is to do something.
async fn serve_call(orders: &mpsc::UnboundedSender<Order>, call: Call, is_old: bool) -> Reply {
    if is_old && matches!(call, Call::Broadcast { .. }) {
        return Reply::Busy;
    }
    let (answer, answered) = oneshot::channel();
    if orders.send(Order::Call { call, answer }).is_err() {
        return Reply::Busy;
    }
    match tokio::time::timeout(ANSWER_MAX + SLACK, answered).await {
        Ok(Ok(reply)) => reply,
        _ => Reply::Late,
    }
}

async fn serve_anybody(orders: &mpsc::UnboundedSender<Order>, device: Option<String>, body: Bytes) -> Bytes {
    let Some(device) = device else {
        return error_body(
            "invalid_path",
            "the last token of the subject is no device: percent-encode what it may not hold, as in a URL",
        );
    };
    let (answer, answered) = oneshot::channel();
    let order = Order::Ask { device: device.into(), body, answer };
    if orders.send(order).is_ok()
        && let Ok(Ok(body)) = tokio::time::timeout(ASKED_MAX, answered).await
    {
        return body;
    }
    error_body("shutting_down", "the gateway is shutting down")
}

fn error_body(code: &str, message: &str) -> Bytes {
    serde_json::json!({"error": {"code": code, "message": message}}).to_string().into()
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::Mutex;

    use super::*;
    use crate::fleet::Identity;
    use crate::fleet::status::Status;

    fn request(number: usize) -> Message {
        Message {
            subject: "p.send.d".into(),
            reply: Some(format!("_INBOX.{number}").into()),
            payload: Bytes::from_static(b"{}"),
            headers: None,
            status: None,
            description: None,
            length: 0,
        }
    }

    fn alone() -> (Arc<Shared>, Names) {
        let data_dir = std::path::Path::new("");
        let identity = Identity { node: "a", epoch: 1, data_dir, seed: 1, workers: 1, position: None };
        let shared = Shared::new(&identity, "p", Status::new(Instant::now(), false));
        (Arc::new(shared), Names::new("p"))
    }

    #[tokio::test]
    async fn whoever_asks_on_and_on_finds_bounds_though_nothing_is_answered() {
        let (shared, names) = alone();
        // Nobody carries out what is asked, and nobody takes an answer.
        let (orders, _ordered) = mpsc::unbounded_channel();
        let mut hearing = Hearing::default();
        for number in 0..ANSWERING_MAX + FACTS_MAX + 1_000 {
            hearing.hear((&shared, &names, &orders), |_, _| pending(), request(number), Heard::ByAnybody, false);
        }
        assert_eq!((hearing.answering.len(), hearing.facts.len()), (ANSWERING_MAX, FACTS_MAX));
    }

    #[tokio::test]
    async fn what_was_answered_takes_no_place_though_requests_never_pause() {
        let (shared, names) = alone();
        // Each is answered at once, as by a gateway that ends.
        let (orders, _) = mpsc::unbounded_channel();
        let said: Arc<Mutex<Vec<Bytes>>> = Arc::default();
        let mut hearing = Hearing::default();
        let count = ANSWERING_MAX * 8;
        for number in 0..count {
            let said = Arc::clone(&said);
            let say = move |_, answer| {
                said.lock().unwrap().push(answer);
                ready(())
            };
            hearing.hear((&shared, &names, &orders), say, request(number), Heard::ByAnybody, false);
            if number % 16 == 0 {
                tokio::task::yield_now().await;
            }
            assert!(hearing.answering.len() <= 64 && hearing.facts.len() <= 64, "at {number}");
        }
        while said.lock().unwrap().len() < count {
            tokio::task::yield_now().await;
        }
        let busy =
            said.lock().unwrap().iter().filter(|answer| answer.windows(8).any(|part| part == b"api_busy")).count();
        assert_eq!(busy, 0);
    }
}
