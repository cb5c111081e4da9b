//! `top`: one gateway in the terminal, looked at again and again. What is asked is cheap for the gateway: its overview and its
//! consumers, never its devices. A gateway that does not answer is told of, and asked again.

mod draw;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant, SystemTime};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::{Value, json};

use super::Client;
use crate::cli::arguments::Top;
use crate::cli::{CliError, write_out};

/// An answer that takes longer is none: what is shown would be old.
const ANSWER: Duration = Duration::from_secs(5);
/// How wide a text is drawn where there is no terminal, and how many lines it may have.
const PAGE: (u16, u16) = (100, 60);

/// Shows the gateway until there is a key that ends it.
pub fn top(options: &Top) -> Result<(), CliError> {
    let client = Client::new(&options.gateway, Some(ANSWER))?;
    if options.json {
        return print_json(&client, options);
    }
    // What is wrong at once is said in a line, and not within a screen.
    let first = Look::take(&client)?;
    if options.once || !io::stdout().is_terminal() {
        let shown = Shown { looks: (None, Some(first)), failure: None };
        return super::print(&draw::page(&shown, PAGE));
    }
    let cannot = |error| CliError::Io("the terminal", error);
    let mut terminal = ratatui::try_init().map_err(cannot)?;
    let ended = watch(&mut terminal, &client, options.interval, first);
    ratatui::try_restore().map_err(cannot)?;
    ended.map_err(cannot)
}

/// An object for each look, with the rates since the one before.
fn print_json(client: &Client, options: &Top) -> Result<(), CliError> {
    let mut before: Option<Look> = None;
    loop {
        let look = Look::take(client)?;
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let rates = before.as_ref().map(|before| look.rates(before));
        let line = json!({"at": at, "overview": look.overview, "consumers": look.consumers, "per_second": rates});
        match write_out(&format!("{line}\n")) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(|error| CliError::Io("stdout", error))?,
        }
        if options.once {
            return Ok(());
        }
        before = Some(look);
        std::thread::sleep(options.interval);
    }
}

fn watch(terminal: &mut DefaultTerminal, client: &Client, interval: Duration, first: Look) -> io::Result<()> {
    let mut shown = Shown { looks: (None, Some(first)), failure: None };
    let mut next = Instant::now() + interval;
    loop {
        terminal.draw(|frame| draw::screen(&shown, frame))?;
        let wait = next.saturating_duration_since(Instant::now());
        if event::poll(wait)? {
            if let Event::Key(key) = event::read()?
                && ends(key)
            {
                return Ok(());
            }
            // A new size is drawn at once, and nothing is asked for it.
            continue;
        }
        match Look::take(client) {
            Ok(look) => shown.add(look),
            Err(error) => shown.failure = Some(error.to_string()),
        }
        next = Instant::now() + interval;
    }
}

/// In raw mode Ctrl-C is a key like others.
fn ends(key: KeyEvent) -> bool {
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && (matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) || is_control && key.code == KeyCode::Char('c'))
}

/// What the gateway said at one time.
struct Look {
    at: Instant,
    overview: Value,
    /// `null` where there is no store.
    consumers: Value,
}

/// What is on the screen.
struct Shown {
    /// The look before the latest, and the latest.
    looks: (Option<Look>, Option<Look>),
    /// Why the gateway was not asked successfully since.
    failure: Option<String>,
}

impl Shown {
    fn add(&mut self, look: Look) {
        let before = self.looks.1.take();
        // Another life counts from zero.
        let is_same_life = before.as_ref().is_some_and(|before| before.overview["epoch"] == look.overview["epoch"]);
        self.looks = (before.filter(|_| is_same_life), Some(look));
        self.failure = None;
    }
}

/// The counters whose rates are told.
const RATES: [&str; 6] =
    ["accepted", "handshakes_full", "handshakes_resumed", "messages_received", "messages_sent", "heartbeats_sent"];

impl Look {
    fn take(client: &Client) -> Result<Self, CliError> {
        let overview = client.get("/v1/overview")?;
        let consumers = match client.get("/v1/uplink/consumers") {
            Ok(mut listed) => listed["consumers"].take(),
            // Without a store there are none.
            Err(CliError::Api(_)) => Value::Null,
            Err(other) => return Err(other),
        };
        Ok(Self { at: Instant::now(), overview, consumers })
    }

    fn number(&self, key: &str) -> u64 {
        self.overview[key].as_u64().unwrap_or(0)
    }

    /// The sum over reasons of `closed` or `refused`.
    fn total(&self, key: &str) -> u64 {
        self.overview[key].as_object().into_iter().flat_map(|reasons| reasons.values()).filter_map(Value::as_u64).sum()
    }

    /// By how much a number has grown in a second since `before`.
    fn rate(&self, before: &Look, read: impl Fn(&Look) -> u64) -> f64 {
        let seconds = self.at.saturating_duration_since(before.at).as_secs_f64().max(1e-3);
        read(self).saturating_sub(read(before)) as f64 / seconds
    }

    fn rates(&self, before: &Look) -> Value {
        let mut rates = serde_json::Map::new();
        let mut put = |key: &str, rate: f64| drop(rates.insert(key.to_owned(), ((rate * 10.0).round() / 10.0).into()));
        for key in RATES {
            put(key, self.rate(before, |look| look.number(key)));
        }
        for key in ["closed", "refused"] {
            put(key, self.rate(before, |look| look.total(key)));
        }
        rates.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn look(at: Instant, accepted: u64) -> Look {
        let overview = json!({
            "node": "edge-1", "version": "9.9.9", "epoch": 42, "uptime_s": 3_725, "connections": 21, "connections_max": 1_000,
            "devices": 20, "accepted": accepted, "handshakes_full": 5, "handshakes_resumed": 7, "messages_received": 0,
            "messages_sent": 0, "sessions": 3, "heartbeats_sent": 10, "heartbeats_answered": 9, "expired": 1,
            "workers": [{"worker": 0, "connections": 21, "devices": 20, "handshakes_in_flight": 4, "handshakes_waiting": 17,
                         "handshakes_longest_wait_ms": 2_100, "loop_lateness_ms": 130.5}],
            "listeners": [{"name": "mqtt", "protocol": "mqtt", "transport": "websocket", "address": "127.0.0.1:8884",
                           "certificates": [{"names": ["a\u{1b}[31m.example"], "not_after": "2026-12-01T00:00:00Z", "days_left": 5}]}],
            "closed": {"expired": 1, "peer_closed": 8, "shutdown": 0}, "refused": {"overloaded": 2, "draining": 0},
            "memory": {"allocated_bytes": 1_048_576, "resident_bytes": 2_097_152, "process_resident_bytes": 3_145_728,
                       "budget_bytes": 104_857_600, "pool_used_bytes": 1_024, "pool_bytes": 1_048_576},
        });
        let consumers = json!([{"name": "billing", "cursor": 3, "behind": 12, "missed": 0, "lag_s": 61}]);
        Look { at, overview, consumers }
    }

    #[test]
    fn a_rate_is_what_came_in_a_second() {
        let at = Instant::now();
        let (before, after) = (look(at, 100), look(at + Duration::from_secs(4), 110));
        let rates = after.rates(&before);
        assert_eq!((&rates["accepted"], &rates["refused"]), (&json!(2.5), &json!(0.0)));
        // Another life of the gateway counts from zero, and has no rate yet.
        let mut shown = Shown { looks: (None, Some(after)), failure: Some("gone".to_owned()) };
        let mut anew = look(at, 1);
        anew.overview["epoch"] = 43.into();
        shown.add(anew);
        assert!(shown.looks.0.is_none() && shown.looks.1.is_some() && shown.failure.is_none());
    }

    #[test]
    fn the_keys_that_end_it() {
        let key = |code, modifiers| ends(KeyEvent::new(code, modifiers));
        assert!(key(KeyCode::Char('q'), KeyModifiers::NONE) && key(KeyCode::Esc, KeyModifiers::NONE));
        assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL) && !key(KeyCode::Char('c'), KeyModifiers::NONE));
    }
}
