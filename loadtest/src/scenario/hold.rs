//! `hold`: all devices connect and are left alone.

use crate::cli::Hold;
use crate::fleet::{ComeBack, Count, Order};
use crate::run::Run;

/// Passes when all that were asked for are up at the end and none was lost on the way.
pub fn run(run: &mut Run, options: &Hold) {
    let all = options.common.connections;
    // A refused attempt is repeated, and counted; a connection that was lost comes back, and fails the scenario.
    run.fleet.order(&Order::ComeBack(ComeBack::BackOff(std::time::Duration::from_secs(1))));
    run.wait_for_calm();
    let before = run.snapshot();
    let half = all / 2;
    if half > 0 {
        run.connect(0..half);
        run.pass("settling", options.common.settle);
    }
    let middle = run.snapshot();
    let up_at_half = run.fleet.counts().get(Count::Up);
    let up = run.connect(half..all).get(Count::Up);
    let connected = run.snapshot();
    run.report.cpu.us_per_handshake = Run::cpu_per(&before, &connected, run.fleet.counts().get(Count::Established));
    run.pass("settling", options.common.settle);

    let after = run.snapshot();
    run.measure_memory(&before, &after, up);
    if let (Some(middle), Some(after)) = (middle.usage, after.usage) {
        let further = up.saturating_sub(up_at_half).max(1) as f64;
        let growth = after.rss_bytes as f64 - middle.rss_bytes as f64;
        run.report.memory.user_marginal_bytes_per_connection = Some(growth / further);
    }
    run.begin_measuring();
    run.pass("holding", options.common.duration);
    let end = run.snapshot();
    run.report.cpu.idle_share = Run::cpu_share(&after, &end);
    let counts = run.measure_end(&end);
    run.detail("server_pings", counts.get(Count::Pings));

    let held = run.report.connections.held;
    let lost = counts.get(Count::Lost);
    run.require("every device is connected at the end", held == u64::from(all), format!("{held} of {all}"));
    run.require("no connection was lost", lost == 0, format!("{lost} lost"));
    if let Some(limit) = options.max_user_bytes {
        let found = run.report.memory.user_bytes_per_connection;
        let name = format!("user-space memory per connection at most {limit:.0} bytes");
        let text = found.map_or("not measured".to_owned(), |bytes| format!("{bytes:.0} bytes"));
        run.require(name, found.is_some_and(|bytes| bytes <= limit), text);
    }
}
