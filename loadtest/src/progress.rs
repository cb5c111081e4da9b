//! What is shown while a run lasts: one line that changes on a terminal, a line every five seconds elsewhere.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::fleet::{Count, Counts};
use crate::report::Sample;

const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Where progress goes: to the standard error, so that the standard output holds nothing but the result.
pub enum Progress {
    /// On a terminal.
    Bar(ProgressBar),
    /// Elsewhere; the last line was written then.
    Plain { scenario: &'static str, last: Option<Instant> },
}

impl Progress {
    /// For a run with so many devices.
    pub fn new(scenario: &'static str, devices: u32) -> Self {
        if !std::io::stderr().is_terminal() {
            return Progress::Plain { scenario, last: None };
        }
        let style = ProgressStyle::with_template("{prefix:.bold} [{bar:24}] {pos}/{len} {wide_msg}");
        let bar = ProgressBar::new(devices.into()).with_prefix(scenario);
        bar.set_style(style.expect("the template is a constant").progress_chars("=> "));
        Progress::Bar(bar)
    }

    /// Shows where the run is.
    pub fn show(&mut self, what: &str, sample: &Sample, counts: &Counts) {
        let text = describe(what, sample, counts);
        match self {
            Progress::Bar(bar) => {
                bar.set_position(sample.connected);
                bar.set_message(text);
            }
            Progress::Plain { scenario, last } => {
                if last.is_none_or(|last| last.elapsed() >= PLAIN_EVERY) {
                    *last = Some(Instant::now());
                    eprintln!("{:6.1}s  {scenario}: {} connected, {text}", sample.at_s, sample.connected);
                }
            }
        }
    }

    /// Takes the changing line away.
    pub fn end(&mut self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn describe(what: &str, sample: &Sample, counts: &Counts) -> String {
    let mut text = format!("{what}, {:.0}/s", sample.connects_per_s);
    if counts.get(Count::InFlight) > 0 {
        let _ = write!(text, ", {} on their way", counts.get(Count::InFlight));
    }
    if counts.get(Count::Silent) > 0 {
        let _ = write!(text, ", {} silent", counts.get(Count::Silent));
    }
    if sample.failures > 0 {
        let _ = write!(text, ", {} errors", sample.failures);
    }
    if let Some(cpu) = sample.server_cpu_share {
        let _ = write!(text, ", server {:.0} % CPU", cpu * 100.0);
    }
    if let Some(rss) = sample.server_rss_bytes {
        let _ = write!(text, " {:.1} MiB", rss as f64 / f64::from(1 << 20));
    }
    text + &format!(", harness {:.0} % CPU, late {:.1} ms", sample.generator_cpu_share * 100.0, sample.lateness_ms)
}
