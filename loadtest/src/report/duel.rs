//! Several targets side by side: ratios first, for what one machine takes in microseconds another takes in more.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::Report;

/// What all turns came to.
pub struct Duel {
    /// The scenario's name.
    pub of: &'static str,
    /// The first is the one that the others are compared with.
    pub parties: Vec<Party>,
}

/// One target and its turns.
pub struct Party {
    pub name: String,
    pub turns: Vec<Report>,
}

/// One figure of one party, to be drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    pub party: String,
    pub shown: String,
    /// Of the greatest figure of all parties.
    pub share: f64,
}

/// A figure that is compared.
struct Metric {
    name: &'static str,
    key: &'static str,
    unit: &'static str,
    digits: usize,
    /// Only the first turn tells: a server keeps the memory that it once had.
    is_first: bool,
    of: fn(&Report) -> Option<f64>,
}

const METRICS: &[Metric] = &[
    Metric {
        name: "user space per connection",
        key: "memory.user_bytes_per_connection",
        unit: "B",
        digits: 0,
        is_first: true,
        of: |report| report.memory.user_bytes_per_connection,
    },
    Metric {
        name: "the same, second half alone",
        key: "memory.user_marginal_bytes_per_connection",
        unit: "B",
        digits: 0,
        is_first: true,
        of: |report| report.memory.user_marginal_bytes_per_connection,
    },
    Metric {
        name: "kernel per connection and end",
        key: "memory.kernel_bytes_per_connection",
        unit: "B",
        digits: 0,
        is_first: true,
        of: |report| report.memory.kernel_bytes_per_connection,
    },
    Metric {
        name: "CPU per handshake",
        key: "cpu.us_per_handshake",
        unit: "us",
        digits: 0,
        is_first: false,
        of: |report| report.cpu.us_per_handshake,
    },
    Metric {
        name: "CPU per heartbeat",
        key: "cpu.us_per_heartbeat",
        unit: "us",
        digits: 1,
        is_first: false,
        of: |report| report.cpu.us_per_heartbeat,
    },
    Metric {
        name: "CPU per message",
        key: "cpu.us_per_message",
        unit: "us",
        digits: 2,
        is_first: false,
        of: |report| report.cpu.us_per_message,
    },
    Metric {
        name: "CPU while idle, of a core",
        key: "cpu.idle_share",
        unit: "%",
        digits: 2,
        is_first: false,
        of: |report| report.cpu.idle_share.map(|share| share * 100.0),
    },
    Metric {
        name: "round trip or delivery, p50",
        key: "latency_us.p50",
        unit: "us",
        digits: 0,
        is_first: false,
        of: |report| report.latency_us.p50,
    },
    Metric {
        name: "round trip or delivery, p99",
        key: "latency_us.p99",
        unit: "us",
        digits: 0,
        is_first: false,
        of: |report| report.latency_us.p99,
    },
];

impl Party {
    /// One that had no turn yet.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), turns: Vec::new() }
    }

    /// The median of its turns, or the first.
    fn figure(&self, figure: &Metric) -> Option<f64> {
        let turns = if figure.is_first { &self.turns[..self.turns.len().min(1)] } else { &self.turns };
        let mut values: Vec<f64> = turns.iter().filter_map(figure.of).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            count if count % 2 == 0 => Some(f64::midpoint(values[middle - 1], values[middle])),
            _ => Some(values[middle]),
        }
    }

    fn passed(&self) -> bool {
        self.turns.iter().all(|turn| turn.passed)
    }
}

impl Duel {
    /// How many turns each had, in words.
    pub fn turns(&self) -> String {
        match self.parties.first().map_or(0, |party| party.turns.len()) {
            1 => "one turn of each".to_owned(),
            turns => format!("{turns} turns of each"),
        }
    }

    /// Whether the first target has passed all its turns. What the others could not do is shown, and is their affair.
    pub fn passed(&self) -> bool {
        self.parties.first().is_some_and(Party::passed)
    }

    /// Metrics that anybody has, with everybody's. Memory is `hold`'s alone: only there each server is asked to be fresh.
    fn rows(&self) -> impl Iterator<Item = (&'static Metric, Vec<Option<f64>>)> {
        let rows = METRICS
            .iter()
            .filter(|figure| self.of == "hold" || !figure.is_first)
            .map(|figure| (figure, self.parties.iter().map(|party| party.figure(figure)).collect()));
        rows.filter(|(_, values): &(_, Vec<Option<f64>>)| values.iter().any(Option::is_some))
    }

    /// For people at a terminal.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let turns = self.turns();
        let _ = writeln!(text, "{}, {turns}; in parentheses how many times the first one's\n", self.of);
        let _ = write!(text, "{:<32}", "");
        for party in &self.parties {
            let _ = write!(text, "{:>28}", party.name);
        }
        text.push('\n');
        for (figure, values) in self.rows() {
            let _ = write!(text, "{:<32}", figure.name);
            for (position, value) in values.iter().enumerate() {
                let _ = write!(text, "{:>28}", cell(figure, values[0], *value, position > 0));
            }
            text.push('\n');
        }
        text.push('\n');
        for party in &self.parties {
            for (number, turn) in party.turns.iter().enumerate() {
                let failed = turn.conditions.iter().filter(|condition| !condition.holds);
                for condition in failed {
                    let _ = writeln!(
                        text,
                        "FAILED  {}, turn {}: {}: {}",
                        party.name,
                        number + 1,
                        condition.name,
                        condition.found
                    );
                }
                if let Some(why) = &turn.generator.why {
                    let _ =
                        writeln!(text, "the harness was the bottleneck: {}, turn {}: {why}", party.name, number + 1);
                }
            }
        }
        let _ = writeln!(text, "{}", if self.passed() { "passed" } else { "failed" });
        text
    }

    /// One object: ratios, then every turn as a whole.
    pub fn json(&self) -> Value {
        let mut ratios = Map::new();
        for (position, party) in self.parties.iter().enumerate().skip(1) {
            let of = |(figure, values): (&Metric, Vec<Option<f64>>)| {
                Some((figure.key.to_owned(), json!(values[position]? / values[0].filter(|&first| first > 0.0)?)))
            };
            ratios.insert(party.name.clone(), Value::Object(self.rows().filter_map(of).collect()));
        }
        let turns: Map<String, Value> =
            self.parties.iter().map(|party| (party.name.clone(), json!(party.turns))).collect();
        json!({
            "scenario": "duel",
            "of": self.of,
            "passed": self.passed(),
            "ratios": ratios,
            "units": { "ratios": "how many times the first target's figure; medians of all turns, memory of the first turn" },
            "turns": turns,
        })
    }

    /// Rows for the page: the figure's name, and a bar for each party.
    pub fn bars(&self) -> Vec<(&'static str, Vec<Bar>)> {
        let rows = self.rows().map(|(figure, values)| {
            let greatest = values.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
            let bars = self.parties.iter().zip(&values).enumerate().map(|(position, (party, value))| {
                let shown = cell(figure, values[0], *value, position > 0);
                let share = value.map_or(0.0, |value| value.max(0.0) / greatest);
                Bar { party: party.name.clone(), shown, share }
            });
            (figure.name, bars.collect())
        });
        rows.collect()
    }
}

fn cell(figure: &Metric, first: Option<f64>, value: Option<f64>, with_ratio: bool) -> String {
    let Some(value) = value else { return "-".to_owned() };
    let (digits, unit) = (figure.digits, figure.unit);
    let shown = format!("{value:.digits$} {unit}");
    match first.filter(|&first| with_ratio && first > 0.0) {
        Some(first) => format!("{shown} ({:.2})", value / first),
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(name: &str, heartbeats: &[f64], user: &[f64]) -> Party {
        let cli: crate::cli::Cli = clap::Parser::try_parse_from(["loadtest", "heartbeat"]).unwrap();
        let crate::cli::Command::Scenario(scenario) = cli.command else { panic!("a scenario") };
        let turn = |(&heartbeat, &user): (&f64, &f64)| {
            let mut report = crate::run::empty_report(&scenario);
            report.cpu.us_per_heartbeat = Some(heartbeat);
            report.memory.user_bytes_per_connection = Some(user);
            report.passed = heartbeat < 100.0;
            report
        };
        Party { name: name.to_owned(), turns: heartbeats.iter().zip(user).map(turn).collect() }
    }

    #[test]
    fn ratios_are_of_medians_and_memory_is_that_of_the_first_turn() {
        let ours = party("ours", &[9.0, 30.0, 10.0], &[400.0, 1.0, 1.0]);
        let theirs = party("theirs", &[25.0, 200.0, 25.0], &[14_000.0, 1.0, 1.0]);
        let duel = Duel { of: "hold", parties: vec![ours, theirs] };
        let json = duel.json();
        assert_eq!(json["ratios"]["theirs"]["cpu.us_per_heartbeat"], 2.5);
        assert_eq!(json["ratios"]["theirs"]["memory.user_bytes_per_connection"], 35.0);
        assert!(duel.table().contains("25.0 us (2.50)"), "{}", duel.table());
        assert!(duel.passed(), "a turn that the other lost is not ours");
        let bar = Bar { party: "ours".to_owned(), shown: "400 B".to_owned(), share: 400.0 / 14_000.0 };
        assert_eq!(duel.bars()[0].1[0], bar);
    }
}
