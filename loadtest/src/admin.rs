//! A Pulsegate's control plane, as a client over HTTP: metrics, messages to devices, and what happens there.
//!
//! Every [`Admin`] has one connection, which it keeps, and asks one thing at a time: many at once are many of them.

use std::borrow::Cow;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::observe::Metrics;

/// How long an answer is waited for: longer than the longest acknowledgement that the API waits for.
const PATIENCE: Duration = Duration::from_secs(65);

/// One connection to a control plane.
#[derive(Debug)]
pub struct Admin {
    base: String,
    token: Option<String>,
    agent: ureq::Agent,
}

/// An answer: its status, and its body.
pub type Answer = (u16, Value);

impl Admin {
    /// The control plane at `base`, such as `http://127.0.0.1:7480`.
    pub fn new(base: &str, token: Option<String>) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build();
        Self { base: base.trim_end_matches('/').to_owned(), token, agent: config.into() }
    }

    /// Another connection to the same.
    pub fn another(&self) -> Self {
        Self::new(&self.base, self.token.clone())
    }

    /// Reads all metrics.
    ///
    /// # Errors
    /// A sentence with the address in it.
    pub fn metrics(&self) -> Result<Metrics, String> {
        let url = format!("{}/metrics", self.base);
        let say = |error: &dyn std::fmt::Display| format!("{url}: {error}");
        let mut answer = self.authorized(self.agent.get(&url)).call().map_err(|error| say(&error))?;
        if answer.status() != 200 {
            return Err(say(&answer.status()));
        }
        answer.body_mut().read_to_string().map(|text| Metrics::parse(&text)).map_err(|error| say(&error))
    }

    /// Asks.
    ///
    /// # Errors
    /// A sentence, when there was no answer, or none in JSON.
    pub fn get(&self, path: &str) -> Result<Answer, String> {
        let url = format!("{}{path}", self.base);
        let answer = self.authorized(self.agent.get(&url)).call();
        answer.map_err(|error| error.to_string()).and_then(read)
    }

    /// Orders; `body` is JSON.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub fn post(&self, path: &str, body: &str) -> Result<Answer, String> {
        let url = format!("{}{path}", self.base);
        let request = self.authorized(self.agent.post(&url)).header("Content-Type", "application/json");
        request.send(body).map_err(|error| error.to_string()).and_then(read)
    }

    /// Follows the messages of devices, from behind the event `last` or from now on, until the connection ends or `on_event`
    /// says that it is enough. The id of the last event that was seen is kept in `last`.
    ///
    /// # Errors
    /// A sentence, when they cannot be followed (any more).
    pub fn follow(
        &self,
        last: &mut Option<String>,
        mut on_event: impl FnMut(Happening<'_>) -> bool,
    ) -> Result<(), String> {
        let url = format!("{}/v1/events?kind=message", self.base);
        let endless = self.agent.get(&url).config().timeout_global(None).build();
        let request = last.iter().fold(self.authorized(endless), |request, id| request.header("Last-Event-ID", id));
        let answer = request.call().map_err(|error| error.to_string())?;
        if answer.status() != 200 {
            return Err(format!("{url}: {}", answer.status()));
        }
        if !on_event(Happening::Begun) {
            return Ok(());
        }
        let mut lines = BufReader::with_capacity(64 << 10, answer.into_body().into_reader());
        let mut line = Vec::new();
        loop {
            line.clear();
            if lines.read_until(b'\n', &mut line).map_err(|error| error.to_string())? == 0 {
                return Ok(());
            }
            if let Some(id) = line.strip_prefix(b"id: ") {
                *last = Some(String::from_utf8_lossy(id.trim_ascii_end()).into_owned());
            } else if let Some(data) = line.strip_prefix(b"data: ") {
                let event = serde_json::from_slice(data).map_err(|error| format!("{url}: {error}"))?;
                if !on_event(Happening::Event(event)) {
                    return Ok(());
                }
            } else if line.starts_with(b":") && !on_event(Happening::Nothing) {
                return Ok(());
            }
        }
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }
}

/// Something that a reader of events is told.
#[derive(Debug)]
pub enum Happening<'a> {
    /// From here on nothing is missed.
    Begun,
    Event(Event<'a>),
    /// The gateway lives, and nothing else.
    Nothing,
}

/// What this harness looks at in an event.
#[derive(Debug, Deserialize)]
pub struct Event<'a> {
    pub kind: &'a str,
    #[serde(borrow)]
    pub device: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub payload: Option<Cow<'a, str>>,
    /// Of `missed` and `lagged`.
    pub count: Option<u64>,
}

fn read(mut answer: ureq::http::Response<ureq::Body>) -> Result<Answer, String> {
    let status = answer.status().as_u16();
    let text = answer.body_mut().read_to_string().map_err(|error| error.to_string())?;
    let value = serde_json::from_str(&text).map_err(|error| format!("{status}, and no JSON: {error}"))?;
    Ok((status, value))
}

/// What an answer says: its `outcome`, or its error's `code`.
pub fn outcome(answer: &Answer) -> &str {
    let (_, body) = answer;
    body["outcome"].as_str().or(body["error"]["code"].as_str()).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_and_errors_are_told_by_their_names() {
        let answer = |text: &str| (200, serde_json::from_str(text).unwrap());
        assert_eq!(outcome(&answer(r#"{"outcome":"acknowledged"}"#)), "acknowledged");
        assert_eq!(outcome(&answer(r#"{"error":{"code":"api_busy","message":"x"}}"#)), "api_busy");
        assert_eq!(outcome(&answer("[]")), "unknown");
    }

    #[test]
    fn of_an_event_only_what_is_looked_at_must_be_there() {
        let event: Event = serde_json::from_str(r#"{"kind":"missed","count":null}"#).unwrap();
        assert_eq!((event.kind, event.count, event.payload), ("missed", None, None));
        let text = r#"{"kind":"message","device":"a\u0022b","payload":"x","at":"now"}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        assert_eq!(event.device.as_deref(), Some("a\"b"));
    }
}
