//! The commands that talk to a running gateway, for people: tables and lines, and errors that say what to do.

mod sinks;
mod table;
mod tls;
mod top;
mod trace;
mod uplink;
mod watch;
mod why;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write as _};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use ureq::http::{Request, Response};
use ureq::{Agent, Body};

use super::arguments::{
    Block, Blocks, DeviceOrder, Devices, Gateway, Health, Publish, Queued, Reload, Send, Subject, Unblock,
};
use super::{CliError, print};
pub use sinks::sinks;
pub use top::top;
pub use trace::trace;
pub use uplink::uplink;
pub use watch::watch;
pub use why::why;

/// How long a connection to the gateway may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer may take: longer than any timeout that a message can ask for.
const ANSWER: Duration = Duration::from_secs(70);
/// How long a health check may take: whoever asks for one gives it about as long.
const HEALTH: Duration = Duration::from_secs(4);
/// Devices on one page of the API at most.
const PAGE_MAX: usize = 1_000;
/// Holds the token where no file does.
const TOKEN_VARIABLE: &str = "PULSEGATE_TOKEN";
/// No payload is longer, in bytes.
const PAYLOAD_MAX: u64 = 65_535;

/// Asks whether the gateway lives, or takes new devices.
pub fn health(options: &Health) -> Result<(), CliError> {
    let client = Client::new(&options.gateway, Some(HEALTH))?;
    let path = if options.ready { "/readyz" } else { "/healthz" };
    let mut answer = client.ask("GET", path, String::new())?;
    let word = answer.body_mut().read_to_string().unwrap_or_default();
    print(&format!("{}\n", harmless(word.trim())))
}

/// Lists the devices.
pub fn devices(options: &Devices) -> Result<(), CliError> {
    let client = Client::new(&options.gateway, Some(ANSWER))?;
    let mut devices = Vec::new();
    let mut after = String::new();
    let mut has_more = true;
    let mut are_left_out = false;
    let mut unanswered = BTreeSet::new();
    let wanted = if options.limit == 0 { usize::MAX } else { options.limit };
    // In the order of the pages the first are enough.
    let is_in_order = options.sort == DeviceOrder::Id && !options.reverse;
    while has_more && (devices.len() < wanted || !is_in_order) {
        let limit =
            if is_in_order && !is_filtered(options) { (wanted - devices.len()).min(PAGE_MAX) } else { PAGE_MAX };
        let (prefix, from) = (encoded(&options.prefix), encoded(&after));
        let fleet = if options.fleet { "&fleet=true" } else { "" };
        let mut page = client.get(&format!("/v1/devices?limit={limit}&prefix={prefix}&after={from}{fleet}"))?;
        unanswered.extend(names(&page["unanswered"]));
        if let Value::Array(more) = page["devices"].take() {
            devices.extend(more.into_iter().filter(|device| is_wanted(device, options)));
        }
        has_more = page["next"].is_string();
        page["next"].as_str().unwrap_or_default().clone_into(&mut after);
        if !is_in_order {
            devices.sort_by(|a, b| compare(a, b, options));
        }
        // Of a whole fleet no more is held than is wanted.
        are_left_out |= devices.len() > wanted;
        devices.truncate(wanted);
    }
    if options.json {
        let mut lines = String::new();
        for device in &devices {
            let _ = writeln!(lines, "{device}");
        }
        print(&lines)?;
    } else {
        print(&table::devices(&devices, &options.prefix, options.fleet))?;
    }
    if !unanswered.is_empty() {
        let gateways = unanswered.into_iter().collect::<Vec<_>>().join(", ");
        let _ = writeln!(io::stderr(), "without the devices of {}: no answer", harmless(&gateways));
    }
    if has_more || are_left_out {
        // A remark to people: whoever does not read it wants none.
        let _ = writeln!(io::stderr(), "and more: see them with --limit (0: all), or choose with --prefix");
    }
    Ok(())
}

fn is_filtered(options: &Devices) -> bool {
    options.protocol.is_some() || options.listener.is_some() || options.state.is_some()
}

fn is_wanted(device: &Value, options: &Devices) -> bool {
    let is = |key: &str, wanted: &Option<String>| wanted.as_ref().is_none_or(|wanted| device[key] == **wanted);
    is("protocol", &options.protocol) && is("listener", &options.listener) && is("state", &options.state)
}

/// Devices that are equal otherwise are in the order of their ids.
fn compare(a: &Value, b: &Value, options: &Devices) -> Ordering {
    // Times are RFC 3339 in UTC with milliseconds: as text they are in their order.
    let text = |key: &str| a[key].as_str().cmp(&b[key].as_str());
    let round_trip = |device: &Value| device["round_trip_ms"].as_f64().unwrap_or(f64::INFINITY);
    let queued = |device: &Value| device["session"]["queued"].as_u64().unwrap_or(0);
    let order = match options.sort {
        DeviceOrder::Id => Ordering::Equal,
        DeviceOrder::Connected => text("connected_at"),
        DeviceOrder::Heard => text("last_heard"),
        DeviceOrder::RoundTrip => round_trip(a).total_cmp(&round_trip(b)),
        DeviceOrder::Queued => queued(b).cmp(&queued(a)),
        DeviceOrder::Peer => text("peer"),
    };
    let order = order.then_with(|| text("id"));
    if options.reverse { order.reverse() } else { order }
}

/// Says something to a device and prints what became of it.
pub fn send(options: &Send) -> Result<(), CliError> {
    let client = Client::new(&options.gateway, Some(ANSWER))?;
    let mut order = json!({"topic": options.topic, "ack": options.ack, "timeout": options.timeout});
    if options.queue {
        order["queue"] = true.into();
    }
    if let Some(expiry) = &options.expiry {
        order["expiry"] = expiry.as_str().into();
    }
    put_payload(&mut order, &options.payload)?;
    let sent = client.post(&format!("/v1/devices/{}/messages", encoded(&options.device)), &order)?;
    let outcome = sent["outcome"].as_str().unwrap_or("?");
    let id = sent["command"].as_str().map_or_else(String::new, |id| format!(" {}", harmless(id)));
    print(&format!("{outcome}{id}\n"))
}

/// Tells what became of a command that waits, or takes it back.
pub fn queued(options: &Queued) -> Result<(), CliError> {
    let client = Client::new(&options.gateway, Some(ANSWER))?;
    let method = if options.cancel { "DELETE" } else { "GET" };
    let path = format!("/v1/commands/{}", encoded(&options.id));
    let known = client.json(client.ask(method, &path, String::new())?)?;
    let text = |key: &str| harmless(known[key].as_str().unwrap_or_default());
    let mut told = format!("{}  {}  of {}  at {}", text("state"), text("at"), text("device"), text("node"));
    let _ = write!(told, ", tried {} times", known["tries"].as_u64().unwrap_or(0));
    if !text("why").is_empty() {
        let _ = write!(told, ": {}", text("why"));
    }
    print(&format!("{told}\n"))
}

/// Publishes to MQTT subscribers.
pub fn publish(options: &Publish) -> Result<(), CliError> {
    let client = Client::new(&options.gateway, Some(ANSWER))?;
    let mut order = json!({"topic": options.topic, "qos": options.qos, "retain": options.retain});
    if let Some(expiry) = &options.expiry {
        order["expiry"] = expiry.as_str().into();
    }
    put_payload(&mut order, &options.payload)?;
    let published = client.post("/v1/publish", &order)?;
    print(&format!("{}\n", published["outcome"].as_str().unwrap_or("?")))
}

/// Keeps somebody out.
pub fn block(options: &Block) -> Result<(), CliError> {
    let mut order = order_about(&options.subject);
    if let Some(span) = &options.span {
        order["for"] = span.as_str().into();
    }
    if options.here {
        order["fleet"] = false.into();
    }
    change_blocks(&options.gateway, "POST", &order, "blocked")
}

/// Lets somebody in again.
pub fn unblock(options: &Unblock) -> Result<(), CliError> {
    let mut order = order_about(&options.subject);
    if options.here {
        order["fleet"] = false.into();
    }
    change_blocks(&options.gateway, "DELETE", &order, "unblocked")
}

/// Prints what was done, and in a fleet where.
fn change_blocks(gateway: &Gateway, method: &str, order: &Value, done: &str) -> Result<(), CliError> {
    let client = Client::new(gateway, Some(ANSWER))?;
    let mut answer = client.ask(method, "/v1/blocks", order.to_string())?;
    let text = answer.body_mut().read_to_string().unwrap_or_default();
    print(&told_where(done, &serde_json::from_str(&text).unwrap_or_default()))
}

fn told_where(done: &str, answer: &Value) -> String {
    let (at, not_at) = (names(&answer["gateways"]).join(", "), names(&answer["unanswered"]).join(", "));
    let mut text = if at.is_empty() { format!("{done}\n") } else { format!("{done} at {}\n", harmless(&at)) };
    if !not_at.is_empty() {
        let _ = writeln!(text, "no answer from {}: they do it when they are back", harmless(&not_at));
    }
    text
}

fn names(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn order_about(subject: &Subject) -> Value {
    match (&subject.device, &subject.certificate, &subject.network) {
        (Some(device), ..) => json!({"device": device}),
        (None, Some(fingerprint), _) => json!({"certificate": fingerprint}),
        (None, None, network) => json!({"network": network}),
    }
}

/// Lists who is kept out.
pub fn blocks(options: &Blocks) -> Result<(), CliError> {
    let client = Client::new(&options.gateway, Some(ANSWER))?;
    let answer = client.get("/v1/blocks")?;
    let mut text = String::new();
    for block in answer["blocks"].as_array().into_iter().flatten() {
        let named =
            ["device", "certificate", "network"].into_iter().find_map(|kind| Some((kind, block[kind].as_str()?)));
        let (kind, name) = named.unwrap_or(("?", ""));
        let until = block["until"].as_str().map_or("for good".to_owned(), |until| format!("until {until}"));
        let source = block["source"].as_str().unwrap_or_default();
        let _ = writeln!(text, "{kind:<11} {}  {until}, by {source}", harmless(name));
    }
    print(if text.is_empty() { "nobody is kept out\n" } else { &text })
}

/// Asks for a reload and prints what it changed.
pub fn reload(options: &Reload) -> Result<(), CliError> {
    let client = Client::new(&options.gateway, Some(ANSWER))?;
    let report = client.post("/v1/reload", &json!({}))?;
    let list = |key: &str| {
        let items = report[key].as_array().into_iter().flatten();
        items.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut text = String::new();
    let mut say = |what: &str, items: Vec<String>| {
        for item in items {
            let _ = writeln!(text, "{what}: {item}");
        }
    };
    say("changed", list("changed"));
    say("holds after a restart", list("needs_restart"));
    say("warning", list("warnings"));
    if text.is_empty() {
        text.push_str("nothing has changed\n");
    }
    print(&text)
}

/// The payload as it was written, or from stdin for `-`: as text where it is text.
fn put_payload(order: &mut Value, written: &str) -> Result<(), CliError> {
    let payload = match written {
        "-" => from_stdin()?,
        text => text.as_bytes().to_vec(),
    };
    match String::from_utf8(payload) {
        Ok(text) => order["payload"] = text.into(),
        Err(bytes) => order["payload_base64"] = BASE64_STANDARD.encode(bytes.as_bytes()).into(),
    }
    Ok(())
}

fn from_stdin() -> Result<Vec<u8>, CliError> {
    let mut payload = Vec::new();
    let read = io::stdin().lock().take(PAYLOAD_MAX + 1).read_to_end(&mut payload);
    read.map_err(|error| CliError::Io("the payload cannot be read from stdin", error))?;
    if payload.len() as u64 > PAYLOAD_MAX {
        return Err(CliError::Input("the payload is longer than 65,535 bytes"));
    }
    Ok(payload)
}

/// One gateway's API.
pub(super) struct Client {
    agent: Agent,
    admin: String,
    /// The value of the Authorization header.
    authorization: Option<String>,
}

impl Client {
    /// The API that `gateway` names. `patience` bounds a whole answer.
    pub(super) fn new(gateway: &Gateway, patience: Option<Duration>) -> Result<Self, CliError> {
        let token = gateway.token_file.as_ref().map(|file| {
            let text = fs::read_to_string(file);
            text.map_err(|error| CliError::Api(format!("{} cannot be read: {error}", file.display())))
        });
        // In the environment the value of a command line stays out of the list of processes.
        let token = token.transpose()?.or_else(|| std::env::var(TOKEN_VARIABLE).ok());
        let authorization = token.map(|token| format!("Bearer {}", token.trim()));
        let mut agent =
            Agent::config_builder().http_status_as_error(false).timeout_connect(Some(CONNECT)).timeout_global(patience);
        if gateway.admin.starts_with("https://") {
            agent = agent.tls_config(tls::config(gateway)?);
        }
        let agent = agent.build().new_agent();
        Ok(Self { agent, admin: gateway.admin.clone(), authorization })
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, CliError> {
        self.json(self.ask("GET", path, String::new())?)
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, CliError> {
        self.json(self.ask("POST", path, body.to_string())?)
    }

    /// An answer that is not an error.
    fn ask(&self, method: &str, path: &str, body: String) -> Result<Response<Body>, CliError> {
        self.ask_as(method, path, body, None)
    }

    /// An answer that is not an error, of this media type.
    fn ask_as(&self, method: &str, path: &str, body: String, accept: Option<&str>) -> Result<Response<Body>, CliError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.admin));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(body).map_err(|error| CliError::Api(error.to_string()))?;
        let mut response = self.agent.run(request).map_err(|error| {
            let what = format!("{} cannot be reached: {error}", self.admin);
            let advice = "does the gateway run? --admin names where its API listens, with https:// where that has TLS";
            CliError::Away(format!("{what} ({advice})"))
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let text = response.body_mut().read_to_string().unwrap_or_default();
        let error: Value = serde_json::from_str(&text).unwrap_or_default();
        let message = error["error"]["message"].as_str().unwrap_or("this is not a gateway's answer");
        let advice = if response.status() == 401 { " (--token-file names the file that holds it)" } else { "" };
        let what = format!("{message}{advice}");
        Err(if response.status().is_server_error() { CliError::Away(what) } else { CliError::Api(what) })
    }

    fn json(&self, mut response: Response<Body>) -> Result<Value, CliError> {
        let text = response.body_mut().read_to_string();
        text.ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .ok_or_else(|| CliError::Api(format!("{} did not answer as a gateway does", self.admin)))
    }
}

/// Text of a device, which must not steer the terminal.
pub(super) fn harmless(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut plain, char| {
        if char.is_control() {
            plain.extend(char.escape_debug());
        } else {
            plain.push(char);
        }
        plain
    })
}

/// Text as one part of a URL (RFC 3986, section 2).
fn encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_something_was_done_is_told_in_a_fleet() {
        assert_eq!(told_where("blocked", &Value::Null), "blocked\n");
        let answer = json!({"gateways": ["edge-1", "edge-2"], "unanswered": []});
        assert_eq!(told_where("blocked", &answer), "blocked at edge-1, edge-2\n");
        let answer = json!({"gateways": ["edge-1"], "unanswered": ["edge-2", "edge-3"]});
        assert_eq!(
            told_where("unblocked", &answer),
            "unblocked at edge-1\nno answer from edge-2, edge-3: they do it when they are back\n"
        );
    }

    #[test]
    fn any_id_is_one_part_of_a_path() {
        assert_eq!(encoded("meter-1.a_~"), "meter-1.a_~");
        assert_eq!(encoded("a/b c?ä%&="), "a%2Fb%20c%3F%C3%A4%25%26%3D");
    }
}
