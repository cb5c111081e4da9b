//! What `top` looks like: the same lines for a screen and for a page of text.

use std::time::Duration;

use pulsegate::config::budget::{Bytes, Thousands};
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Gauge, Paragraph, Widget};
use serde_json::Value;

use super::{Look, Shown};
use crate::cli::client::harmless;
use crate::cli::shortened;

/// A loop that is later than this is worth a colour: what `pulsegate_loop_lateness_seconds` is alerted on.
const LATE_MS: f64 = 100.0;
/// A certificate that ends within so many days is, too: the same as at start.
const DAYS_FEW: i64 = 14;
/// Names of other people are told by their first letters.
const NAME_LETTERS: usize = 24;

/// Everything as text.
pub(super) fn page(shown: &Shown, (width, height): (u16, u16)) -> String {
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    draw(shown, area, &mut buffer);
    let mut text = String::new();
    for row in 0..height {
        let line: String = (0..width).map(|column| buffer[(column, row)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// Everything on a screen.
pub(super) fn screen(shown: &Shown, frame: &mut Frame<'_>) {
    let area = frame.area();
    draw(shown, area, frame.buffer_mut());
}

fn draw(shown: &Shown, area: Rect, buffer: &mut Buffer) {
    let (before, Some(look)) = (shown.looks.0.as_ref(), shown.looks.1.as_ref()) else { return };
    let [head, gauges, rest] =
        Layout::vertical([Constraint::Length(2), Constraint::Length(3), Constraint::Fill(1)]).areas(area);
    Paragraph::new(vec![title(look), failure(shown)]).render(head, buffer);
    draw_gauges(look, gauges, buffer);
    let mut lines = storm(look, before);
    lines.extend(workers(look));
    lines.extend(reasons("ENDS", "closed", look, before));
    lines.extend(reasons("REFUSED BEFORE TLS", "refused", look, before));
    lines.extend(listeners(look));
    lines.extend(consumers(look));
    Paragraph::new(lines).render(rest, buffer);
}

fn title(look: &Look) -> Line<'static> {
    let text = |key: &str| harmless(look.overview[key].as_str().unwrap_or("-"));
    let up = humantime::format_duration(Duration::from_secs(look.number("uptime_s")));
    let name = Span::styled(format!("Pulsegate {} {}", text("version"), text("node")), bold());
    Line::from(vec![name, Span::raw(format!("  up {up}, epoch {}", look.number("epoch")))])
}

fn failure(shown: &Shown) -> Line<'static> {
    match &shown.failure {
        Some(why) => Line::styled(format!("what is shown is old: {}", shortened(&harmless(why), 300)), bad()),
        None => Line::raw("q ends"),
    }
}

fn draw_gauges(look: &Look, area: Rect, buffer: &mut Buffer) {
    let memory = |key: &str| look.overview["memory"][key].as_u64().unwrap_or(0);
    let bytes = |used: u64, of: u64| format!("{} of {}", Bytes(used), Bytes(of));
    let (held, most) = (look.number("connections"), look.number("connections_max"));
    let (resident, budget) = (memory("process_resident_bytes"), memory("budget_bytes"));
    let (used, pool) = (memory("pool_used_bytes"), memory("pool_bytes"));
    let rows: [Rect; 3] = Layout::vertical([Constraint::Length(1); 3]).areas(area);
    let count = format!("{} of {}, {} devices", Thousands(held), Thousands(most), Thousands(look.number("devices")));
    let all = [
        ("connections", held, most, count),
        ("memory", resident, budget, bytes(resident, budget)),
        ("pool", used, pool, bytes(used, pool)),
    ];
    for (row, (name, part, whole, label)) in rows.into_iter().zip(all) {
        let [left, right] = Layout::horizontal([Constraint::Length(13), Constraint::Fill(1)]).areas(row);
        let ratio = if whole == 0 { 0.0 } else { (part as f64 / whole as f64).min(1.0) };
        Paragraph::new(name).render(left, buffer);
        let style = if ratio > 0.9 { bad() } else { Style::new().fg(Color::Cyan) };
        Gauge::default().ratio(ratio).label(label).gauge_style(style).render(right, buffer);
    }
}

/// What counts in a storm: how many come, how many wait, and whether those who are here suffer.
fn storm(look: &Look, before: Option<&Look>) -> Vec<Line<'static>> {
    let rate = |key: &str| before.map_or("-".to_owned(), |before| tenths(look.rate(before, |look| look.number(key))));
    let sum = |key: &str| each(&look.overview["workers"]).filter_map(|worker| worker[key].as_u64()).sum::<u64>();
    let longest =
        each(&look.overview["workers"]).filter_map(|worker| worker["handshakes_longest_wait_ms"].as_u64()).max();
    vec![
        heading("PER SECOND"),
        Line::raw(format!(
            "  accepted {}   handshakes full {} resumed {}   messages from devices {} to devices {}   heartbeats {}",
            rate("accepted"),
            rate("handshakes_full"),
            rate("handshakes_resumed"),
            rate("messages_received"),
            rate("messages_sent"),
            rate("heartbeats_sent"),
        )),
        Line::raw(format!(
            "  handshakes in flight {}   waiting {}, longest {} ms   MQTT sessions {}",
            sum("handshakes_in_flight"),
            sum("handshakes_waiting"),
            longest.unwrap_or(0),
            Thousands(look.number("sessions")),
        )),
    ]
}

fn workers(look: &Look) -> Vec<Line<'static>> {
    let mut lines =
        vec![heading("WORKER   CONNECTIONS    DEVICES   HANDSHAKES   WAITING   HEARTBEATS AND EXPIRY LATE BY")];
    for worker in each(&look.overview["workers"]) {
        let number = |key: &str| worker[key].as_u64().unwrap_or(0);
        let late = worker["loop_lateness_ms"].as_f64().unwrap_or(0.0);
        let start = format!(
            "  {:<6} {:>11} {:>10} {:>12} {:>9}   ",
            number("worker"),
            number("connections"),
            number("devices"),
            number("handshakes_in_flight"),
            number("handshakes_waiting"),
        );
        let style = if late > LATE_MS { bad() } else { Style::new() };
        lines.push(Line::from(vec![Span::raw(start), Span::styled(format!("{late:.1} ms"), style)]));
    }
    lines
}

/// The reasons that there were, the most frequent first.
fn reasons(title: &'static str, key: &str, look: &Look, before: Option<&Look>) -> Vec<Line<'static>> {
    let counted = look.overview[key].as_object().into_iter().flatten();
    let mut counted: Vec<(&String, u64)> =
        counted.map(|(reason, count)| (reason, count.as_u64().unwrap_or(0))).filter(|(_, count)| *count > 0).collect();
    counted.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    if counted.is_empty() {
        return vec![heading(title), Line::raw("  none")];
    }
    let told = counted.into_iter().map(|(reason, count)| {
        let rate = before.map(|before| look.rate(before, |look| look.overview[key][reason].as_u64().unwrap_or(0)));
        let rate = rate.filter(|rate| *rate > 0.0).map_or(String::new(), |rate| format!(" (+{}/s)", tenths(rate)));
        format!("{} {}{rate}", harmless(reason), Thousands(count))
    });
    let told: Vec<String> = told.collect();
    let mut lines = vec![heading(title)];
    lines.extend(told.chunks(4).map(|part| Line::raw(format!("  {}", part.join("   ")))));
    lines
}

fn listeners(look: &Look) -> Vec<Line<'static>> {
    let mut lines =
        vec![heading("LISTENER                  PROTOCOL          ADDRESS                CERTIFICATE ENDS IN")];
    for listener in each(&look.overview["listeners"]) {
        let text = |key: &str| harmless(listener[key].as_str().unwrap_or("-"));
        let protocol = match text("transport").as_str() {
            "websocket" => format!("{} (websocket)", text("protocol")),
            _ => text("protocol"),
        };
        let mut spans = vec![Span::raw(format!("  {:<24}{protocol:<18}{:<22} ", text("name"), text("address")))];
        for chain in each(&listener["certificates"]) {
            let days = chain["days_left"].as_i64().unwrap_or(0);
            let names: Vec<String> = each(&chain["names"]).filter_map(Value::as_str).map(harmless).collect();
            let names = shortened(&names.join(" "), NAME_LETTERS);
            let style = if days < DAYS_FEW { bad() } else { Style::new() };
            spans.push(Span::styled(format!("{days} days ({names})  "), style));
        }
        lines.push(Line::from(spans));
    }
    lines
}

fn consumers(look: &Look) -> Vec<Line<'static>> {
    if look.consumers.as_array().is_none_or(Vec::is_empty) {
        return Vec::new();
    }
    let mut lines = vec![heading("CONSUMER                     BEHIND     MISSED   OLDEST")];
    for consumer in each(&look.consumers) {
        let number = |key: &str| consumer[key].as_u64().unwrap_or(0);
        let name = harmless(consumer["name"].as_str().unwrap_or("-"));
        let lag = humantime::format_duration(Duration::from_secs(number("lag_s")));
        let style = if number("missed") > 0 { bad() } else { Style::new() };
        let line = format!("  {name:<24}{:>9}  {:>9}   {lag}", number("behind"), number("missed"));
        lines.push(Line::styled(line, style));
    }
    lines
}

fn each(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn tenths(rate: f64) -> String {
    format!("{rate:.1}")
}

fn heading(text: &'static str) -> Line<'static> {
    Line::styled(text, bold())
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn bad() -> Style {
    Style::new().fg(Color::Red)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::tests::look;
    use super::*;

    #[test]
    fn a_page_tells_everything_and_steers_no_terminal() {
        let at = Instant::now();
        let looks = (Some(look(at, 100)), Some(look(at + Duration::from_secs(2), 110)));
        let text = page(&Shown { looks, failure: Some("it hangs".to_owned()) }, (100, 60));
        for part in [
            "Pulsegate 9.9.9 edge-1  up 1h 2m 5s, epoch 42\nwhat is shown is old: it hangs\n",
            "21 of 1,000, 20 devices",
            "3.0 MiB of 100.0 MiB",
            "accepted 5.0   handshakes full 0.0",
            "handshakes in flight 4   waiting 17, longest 2100 ms",
            "130.5 ms\n",
            "  peer_closed 8   expired 1\n",
            "  overloaded 2\n",
            "mqtt (websocket)  127.0.0.1:8884",
            "5 days (a\\u{1b}[31m.example)",
            "billing                        12          0   1m 1s\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
        // Before there is a second look there are no rates, and a terminal may be tiny.
        let shown = Shown { looks: (None, Some(look(at, 100))), failure: None };
        assert!(page(&shown, (100, 60)).contains("accepted -"));
        for size in [(1, 1), (10, 3), (300, 2)] {
            page(&shown, size);
        }
    }
}
