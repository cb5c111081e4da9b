//! `type = "http"`: one batch after the other, each sent until the other side has it or will never take it.
//!
//! ```text
//!   read ──▶ batch, its end noted ──▶ POST ──2xx──▶ cursor moves ──▶ read
//!                                      ▲ │ 5xx, 429, no answer, 401 …: back-off, the same batch under the same id
//!                                      └─┤
//!                                        └ 4xx, `tries_refused` times ──▶ dead letters ──▶ cursor moves
//! ```
//!
//! One at a time: so the order holds, for each device and for all. The end of a batch is in the store before it is sent: after
//! `kill -9` the same events go out under the same id, and a receiver that remembers ids sees each once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ureq::Agent;
use ureq::http::{HeaderValue, Request, StatusCode, Uri};

use super::answer::{BatchOutcome, retry_after};
use super::backoff::Backoff;
use super::batch::{Batch, Shape};
use super::run::{Over, Run};
use super::settings::{Fault, Reading, Target};
use super::signature::Signer;
use super::tls::ClientTls;
use crate::config::{HttpSink, SINK_WINDOW_BYTES, Sink};
use crate::store::{StoreError, Stored};

/// How long a connection may take, within the time for all.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// So much of an answer is read: for the log alone.
const ANSWER_BYTES_MAX: u64 = 4 << 10;
/// Events read at a time, at least: most of them may be for others.
const READ_MIN: usize = 1_000;

/// The way to one receiver.
pub(super) struct HttpClient {
    agent: Agent,
    config: HttpSink,
    authorization: Option<HeaderValue>,
    signer: Option<Signer>,
}

/// What came of one try.
struct Answer {
    outcome: BatchOutcome,
    /// The receiver has answered with a fault of its own.
    is_fault: bool,
    retry_after: Option<Duration>,
    why: String,
}

impl HttpClient {
    pub(super) fn new(sink: &Sink, config: &HttpSink, reading: &mut Reading) -> Result<Self, Fault> {
        config.url.parse::<Uri>().map_err(|error| Fault::new("url", format!("{error}: write a URL")))?;
        let authorization = match &config.authorization_file {
            None => None,
            Some(path) => {
                let line = reading.line("authorization_file", path)?;
                let fault =
                    |_| Fault::new("authorization_file", "it holds what no header can: write one line of ASCII");
                let mut value = HeaderValue::from_str(&line).map_err(fault)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let signer = match &config.secret_file {
            None => None,
            Some(path) => {
                let line = reading.line("secret_file", path)?;
                let fault = |error| Fault::new("secret_file", format!("{error}: write a key (openssl rand -hex 32)"));
                Some(Signer::new(&line).map_err(fault)?)
            }
        };
        let mut builder = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("pulsegate/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_MAX.min(sink.timeout)))
            .timeout_global(Some(sink.timeout));
        if config.url.starts_with("https:") {
            builder = builder.tls_config(ClientTls::load(&sink.tls, reading)?.ureq);
        }
        Ok(Self { agent: builder.build().new_agent(), config: config.clone(), authorization, signer })
    }

    /// Where to, without what may be secret in it.
    pub(super) fn address(&self) -> &str {
        self.config.url.split('?').next().unwrap_or_default()
    }

    /// One try. Waits for the answer.
    fn post(&self, id: &str, body: &[u8]) -> Answer {
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let kind = if self.config.lines { "application/x-ndjson" } else { "application/json" };
        let mut request = Request::post(&self.config.url)
            .header("content-type", kind)
            .header("idempotency-key", id)
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp);
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        if let Some(signer) = &self.signer {
            request = request.header("webhook-signature", signer.sign(id, timestamp, body));
        }
        let failed = |why| Answer { outcome: BatchOutcome::Failed, is_fault: false, retry_after: None, why };
        let request = match request.body(body) {
            Ok(request) => request,
            Err(error) => return failed(error.to_string()),
        };
        let mut response = match self.agent.run(request) {
            Ok(response) => response,
            Err(error) => return failed(error.to_string()),
        };
        let status = response.status();
        let asked = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let asked = asked.and_then(|value| retry_after(value, SystemTime::now()));
        // To its end, so that the connection serves again; what it says is for the log.
        let said = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string().unwrap_or_default();
        Answer {
            outcome: BatchOutcome::of(status.as_u16()),
            is_fault: status.is_server_error(),
            retry_after: asked,
            why: in_words(status, &said),
        }
    }
}

fn in_words(status: StatusCode, said: &str) -> String {
    let line = said.lines().next().unwrap_or_default().trim();
    let reason = status.canonical_reason().unwrap_or_default();
    format!("{} {reason}{}{line}", status.as_u16(), if line.is_empty() { "" } else { ": " })
}

/// A batch under way.
struct Underway {
    batch: Batch,
    events: Vec<Stored>,
    seeks: u64,
}

/// The thread of one such sink.
pub(super) struct HttpRun {
    run: Run,
    backoff: Backoff,
    /// The end of the batch that was begun last.
    begun: u64,
    /// When that was so.
    begun_seeks: u64,
    store_id: String,
}

impl HttpRun {
    pub(super) async fn work(mut run: Run, seed: u64) -> Result<(), Over> {
        let store_id = run.begin().await?;
        let backoff = Backoff::new(run.settings.config.retry, seed);
        let begun = loop {
            match run.store.reader().sink(&run.consumer) {
                Ok(state) => break state.batch_last,
                Err(error) => run.store_failed(&error).await?,
            }
        };
        let begun_seeks = *run.shared.seeks.lock().await;
        let mut this = Self { run, backoff, begun, begun_seeks, store_id };
        loop {
            this.run.while_paused().await?;
            match this.pass().await {
                Ok(done) => done?,
                Err(error) => this.run.store_failed(&error).await?,
            }
        }
    }

    fn client(&self) -> &HttpClient {
        match &self.run.settings.target {
            Target::Http(client) => client,
            Target::Mqtt(_) | Target::Nats(_) => unreachable!("the settings are of this kind"),
        }
    }

    /// One batch, or a wait that an order has ended.
    async fn pass(&mut self) -> Result<Result<(), Over>, StoreError> {
        let (seeks, cursor) = self.run.place().await?;
        let mut head = self.run.store.head();
        let last = head.borrow_and_update().last;
        if last <= cursor {
            return Ok(match self.run.unless_ordered(head.changed()).await {
                // The store is gone.
                Ok(Some(Err(_))) => Err(Over),
                Ok(_) if head.borrow().is_closed => Err(Over),
                Ok(_) => Ok(()),
                Err(over) => Err(over),
            });
        }
        let Some(underway) = self.next(seeks, cursor).await? else {
            // Retention has dropped all that was there.
            self.run.advance(seeks, last).await?;
            return Ok(Ok(()));
        };
        if underway.batch.count > 0 {
            match self.deliver(&underway).await {
                Ok(true) => {}
                Ok(false) => return Ok(Ok(())),
                Err(over) => return Ok(Err(over)),
            }
        }
        self.run.advance(seeks, underway.batch.last).await?;
        Ok(Ok(()))
    }

    /// The batch behind `cursor`: the one that was begun, or another one, whose end is noted first.
    async fn next(&mut self, seeks: u64, cursor: u64) -> Result<Option<Underway>, StoreError> {
        let HttpSink { lines, batch_events, batch_bytes, .. } = self.client().config;
        let node = self.run.node.clone();
        let selection = &self.run.settings.selection;
        if self.begun > cursor && self.begun_seeks == seeks {
            let mut events = self.run.read(cursor, (self.begun - cursor) as usize, SINK_WINDOW_BYTES)?;
            events.retain(|stored| stored.seq <= self.begun);
            let shape = Shape { node: &node, lines, events: usize::MAX, bytes: usize::MAX };
            // Nothing: retention has dropped it, and another one is begun.
            if let Some(batch) = Batch::of(&events, selection, shape) {
                return Ok(Some(Underway { batch, events, seeks }));
            }
        }
        let mut events = self.run.read(cursor, batch_events.max(READ_MIN), SINK_WINDOW_BYTES)?;
        let shape = Shape { node: &node, lines, events: batch_events, bytes: batch_bytes };
        let Some(batch) = Batch::of(&events, selection, shape) else { return Ok(None) };
        events.retain(|stored| stored.seq <= batch.last);
        if batch.count > 0 {
            self.run.note_batch(batch.last).await?;
            (self.begun, self.begun_seeks) = (batch.last, seeks);
        }
        Ok(Some(Underway { batch, events, seeks }))
    }

    /// Sends it until it is done with. `false`: something was ordered meanwhile.
    async fn deliver(&mut self, underway: &Underway) -> Result<bool, Over> {
        let id = underway.batch.id(&self.store_id);
        let config = self.run.settings.config.clone();
        let (mut refused, mut faults) = (0, 0);
        loop {
            let answer = self.client().post(&id, &underway.batch.body);
            if answer.outcome == BatchOutcome::Taken {
                self.backoff.succeed();
                self.run.note_sent(underway.batch.count);
                return Ok(true);
            }
            refused += u32::from(answer.outcome == BatchOutcome::Refused);
            faults += u32::from(answer.outcome == BatchOutcome::Failed && answer.is_fault);
            self.run.note_failure(&answer.why);
            let is_given_up =
                refused >= config.tries_refused || (config.tries_failed > 0 && faults >= config.tries_failed);
            if is_given_up && self.bury(underway, &answer.why).await {
                self.backoff.succeed();
                return Ok(true);
            }
            let wait = self.backoff.fail(answer.retry_after);
            if self.run.unless_ordered(tokio::time::sleep(wait)).await?.is_none() {
                return Ok(false);
            }
        }
    }

    async fn bury(&self, underway: &Underway, why: &str) -> bool {
        // Whoever let it go on elsewhere meanwhile does not want these here.
        if *self.run.shared.seeks.lock().await != underway.seeks {
            return true;
        }
        let selection = &self.run.settings.selection;
        let events: Vec<&Stored> = underway.events.iter().filter(|stored| selection.takes(&stored.entry)).collect();
        self.run.bury(why, &events)
    }
}
