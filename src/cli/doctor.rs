//! `doctor`: what on this machine and in this configuration would hurt later, a line for each finding, with its remedy.
//!
//! Each check is a function from what was read to a finding, so that it can be tried on machines that are not there. Nothing is
//! changed; the disk is tried with one file that is taken away again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use pulsegate::config::budget::{Bytes, Thousands, connections_by_descriptors};
use pulsegate::config::{Config, Durability, Machine};
use pulsegate::gateway::{Prepared, Source};
use serde_json::json;

use super::arguments::Doctor;
use super::{CliError, print, raise_descriptor_limit, shortened};

/// The length of the listeners' queues of new connections that the gateway asks for.
const BACKLOG: u64 = 4_096;
/// A disk that synchronises slower than this holds up every acknowledgement noticeably; slower than the second, badly.
const SYNC_SLOW: Duration = Duration::from_millis(20);
const SYNC_BAD: Duration = Duration::from_millis(200);
/// So often it is tried, for so long at most.
const SYNCS: usize = 40;
const SYNCS_SPAN: Duration = Duration::from_secs(3);
/// A certificate that ends within so many days is worth a word; the same as at start.
const DAYS_FEW: i64 = 14;
/// No clock of a machine that works is before this program: 2025-01-01.
const EARLIEST: u64 = 1_735_689_600;
/// What says that something keeps the clock: systemd-timesyncd, chrony, ntpd, openntpd, a hypervisor's clock.
const CLOCK_KEEPERS: [&str; 6] = [
    "run/systemd/timesync/synchronized",
    "run/chrony/chronyd.sock",
    "run/ntpd.pid",
    "run/ntpd.sock",
    "var/run/ntpd.pid",
    "dev/ptp0",
];

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Ok,
    Warning,
    Problem,
}

impl Level {
    fn label(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug)]
struct Finding {
    level: Level,
    check: &'static str,
    what: String,
    /// Empty where nothing need be done.
    remedy: String,
}

fn fine(check: &'static str, what: impl Into<String>) -> Finding {
    Finding { level: Level::Ok, check, what: what.into(), remedy: String::new() }
}

fn warning(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { level: Level::Warning, check, what: what.into(), remedy: remedy.into() }
}

fn problem(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { level: Level::Problem, check, what: what.into(), remedy: remedy.into() }
}

/// Looks at everything and prints what was found.
pub fn doctor(options: &Doctor) -> Result<(), CliError> {
    let findings = findings(options)?;
    let text: String = findings.iter().map(|finding| line(finding, options.json)).collect();
    print(&text)?;
    match findings.iter().filter(|finding| finding.level == Level::Problem).count() {
        0 => Ok(()),
        1 => Err(CliError::Run("there is a problem".to_owned())),
        count => Err(CliError::Run(format!("there are {count} problems"))),
    }
}

fn line(finding: &Finding, as_json: bool) -> String {
    let Finding { level, check, what, remedy } = finding;
    if as_json {
        return format!("{}\n", json!({"level": level.label(), "check": check, "what": what, "remedy": remedy}));
    }
    let remedy = if remedy.is_empty() { String::new() } else { format!(": {remedy}") };
    format!("{:<8} {check:<13} {}{remedy}\n", level.label(), shortened(what, 600))
}

fn findings(options: &Doctor) -> Result<Vec<Finding>, CliError> {
    let descriptors = raise_descriptor_limit();
    let source = Source { file: options.config.clone(), machine: Machine::detect(descriptors) };
    let loaded = source.load()?;
    let root = Path::new("/");
    let config = &loaded.config;
    let mut findings = vec![descriptor_limit(config, descriptors)];
    findings.extend(kernel(root, config));
    let budget = &loaded.budget;
    findings.push(memory(budget.total_bytes(), budget.memory.bytes));
    findings.push(clock(root, SystemTime::now()));
    findings.extend(disk(config));
    // The built-in configuration's certificates are made when it first serves.
    let warnings = match &options.config {
        None => loaded.warnings.clone(),
        Some(_) => match source.prepare_files(loaded.clone()) {
            Ok(prepared) => {
                findings.extend(certificates(&prepared, SystemTime::now()));
                prepared.loaded.warnings
            }
            Err(problems) => {
                let remedy = "see the line; check-config says the same";
                findings.extend(problems.0.iter().map(|error| problem("configuration", error.to_string(), remedy)));
                loaded.warnings.clone()
            }
        },
    };
    findings.extend(warnings.into_iter().map(|what| warning("configuration", what, "see docs/OPERATING.md")));
    Ok(findings)
}

/// Every connection is a descriptor, and each worker has a table of its own.
fn descriptor_limit(config: &Config, descriptors: u64) -> Finding {
    let wanted = config.limits.connections;
    let held = connections_by_descriptors(config.workers, config.ports(), descriptors);
    let what = format!(
        "{} for each of {} workers hold {} connections, limits.connections is {}",
        Thousands(descriptors),
        config.workers,
        Thousands(u64::from(held)),
        Thousands(u64::from(wanted))
    );
    if held >= wanted {
        return fine("descriptors", what);
    }
    problem("descriptors", what, "LimitNOFILE=1048576 in the unit, ulimit -Hn in a shell, or more workers")
}

/// Settings of the kernel that a fleet comes up against.
fn kernel(root: &Path, config: &Config) -> Vec<Finding> {
    let sysctl = |name: &str| number(&root.join("proc/sys").join(name));
    let connections = u64::from(config.limits.connections);
    let mut findings = Vec::new();
    for (check, name) in [("somaxconn", "net/core/somaxconn"), ("syn-backlog", "net/ipv4/tcp_max_syn_backlog")] {
        let Some(length) = sysctl(name) else { continue };
        let dotted = name.replace('/', ".");
        findings.push(if length < BACKLOG {
            let what =
                format!("{dotted} is {length}: when a fleet comes back, new connections beyond that are dropped");
            warning(check, what, format!("sysctl -w {dotted}={BACKLOG}"))
        } else {
            fine(check, format!("{dotted} is {length}"))
        });
    }
    findings.extend(conntrack(&sysctl, connections, config));
    findings.extend(ports(root, config));
    if let Some(most) = sysctl("fs/nr_open").filter(|most| *most < 1_048_576) {
        let what = format!("fs.nr_open is {most}: no process can have more descriptors in a table");
        findings.push(warning("nr_open", what, "sysctl -w fs.nr_open=1048576"));
    }
    if let Some(most) = sysctl("fs/file-max").filter(|most| *most < 2 * connections) {
        let what = format!(
            "fs.file-max is {}: for the whole machine, of which connections need {connections}",
            Thousands(most)
        );
        findings.push(problem("file-max", what, format!("sysctl -w fs.file-max={}", 2 * connections + 65_536)));
    }
    findings
}

/// A firewall that tracks connections has a table of its own, which is full long before the gateway is.
fn conntrack(sysctl: &impl Fn(&str) -> Option<u64>, connections: u64, config: &Config) -> Vec<Finding> {
    let Some(most) = sysctl("net/netfilter/nf_conntrack_max") else {
        return vec![fine("conntrack", "connections are not tracked by the firewall here")];
    };
    let mut findings = Vec::new();
    // Others need some too, and those that have ended are remembered for a while.
    let needed = connections.saturating_mul(3) / 2;
    findings.push(if most < needed {
        let what = format!(
            "net.netfilter.nf_conntrack_max is {}, for {} connections: beyond it the kernel drops packets of everybody",
            Thousands(most),
            Thousands(connections)
        );
        let remedy = format!(
            "sysctl -w net.netfilter.nf_conntrack_max={needed}, or do not track the listeners' ports (notrack)"
        );
        problem("conntrack", what, remedy)
    } else {
        fine("conntrack", format!("net.netfilter.nf_conntrack_max is {}", Thousands(most)))
    });
    let longest = config.listeners.iter().map(|listener| listener.heartbeat.interval.as_secs()).max().unwrap_or(0);
    if let Some(idle) = sysctl("net/netfilter/nf_conntrack_tcp_timeout_established").filter(|idle| *idle <= 2 * longest)
    {
        let what =
            format!("tracked connections are forgotten after {idle} s of silence, heartbeats come every {longest} s");
        let remedy =
            format!("sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established={}", (4 * longest).max(3_600));
        findings.push(warning("conntrack", what, remedy));
    }
    findings
}

/// A port that the kernel gives to outgoing connections may be taken when the gateway starts.
fn ports(root: &Path, config: &Config) -> Vec<Finding> {
    let text = fs::read_to_string(root.join("proc/sys/net/ipv4/ip_local_port_range")).unwrap_or_default();
    let mut words = text.split_ascii_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (words.next(), words.next()) else { return Vec::new() };
    let reserved = fs::read_to_string(root.join("proc/sys/net/ipv4/ip_local_reserved_ports")).unwrap_or_default();
    let within: Vec<String> = config
        .listeners
        .iter()
        .filter(|listener| listener.shares.is_none())
        .map(|listener| listener.listen.port())
        .filter(|port| (first..=last).contains(port) && !is_reserved(&reserved, *port))
        .map(|port| port.to_string())
        .collect();
    if within.is_empty() {
        return vec![fine(
            "ports",
            format!("no listener is among the ports of outgoing connections, {first} to {last}"),
        )];
    }
    let ports = within.join(",");
    let what = format!("{ports} may be taken by an outgoing connection when the gateway starts ({first} to {last})");
    vec![warning("ports", what, format!("sysctl -w net.ipv4.ip_local_reserved_ports={ports}"))]
}

/// `8080,9148-9150`
fn is_reserved(list: &str, port: u16) -> bool {
    list.trim().split(',').any(|part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        matches!((from.parse::<u16>(), to.parse::<u16>()), (Ok(from), Ok(to)) if (from..=to).contains(&port))
    })
}

fn memory(needed: u64, there_is: u64) -> Finding {
    let what = format!("the gateway and its sockets may come to {}, there is {}", Bytes(needed), Bytes(there_is));
    if needed > there_is {
        return problem(
            "memory",
            what,
            "less in limits.connections, sessions or pool_bytes; check-config shows the sum",
        );
    }
    if needed > there_is / 10 * 9 {
        return warning("memory", what, "leave a tenth for others, or limit the gateway by MemoryMax= of its unit");
    }
    fine("memory", what)
}

/// Certificates, tokens and sessions live by the time of day.
fn clock(root: &Path, now: SystemTime) -> Finding {
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    if since_1970 < EARLIEST {
        let what = format!("it is {} here: certificates do not hold yet", humantime::format_rfc3339_seconds(now));
        return problem("clock", what, "set the clock, and let timesyncd or chrony keep it");
    }
    if CLOCK_KEEPERS.iter().any(|path| root.join(path).exists()) {
        return fine("clock", "something keeps it");
    }
    warning(
        "clock",
        "nothing seems to keep it",
        "timedatectl set-ntp true, or install chrony; a container has its host's",
    )
}

/// The disk that acknowledgements wait for.
fn disk(config: &Config) -> Vec<Finding> {
    let Some(directory) = existing(&config.data_dir) else {
        let what = format!("{} is not there, nor is anything above it", config.data_dir.display());
        return vec![problem("disk", what, "make the directory, for the gateway's user")];
    };
    let mut findings = Vec::new();
    if config.store.durability == Durability::Group {
        findings.push(match try_disk(&directory, SYNCS, SYNCS_SPAN) {
            Ok(times) => sync_latency(&directory, &times),
            Err(error) => {
                let what = format!("{} cannot be written to: {error}", directory.display());
                problem("disk", what, "give it to the gateway's user, or run the doctor as that user")
            }
        });
    } else {
        findings
            .push(fine("disk", format!("acknowledgements do not wait for it ({})", config.store.durability.label())));
    }
    if config.store.durability != Durability::Memory
        && let Ok(space) = rustix::fs::statvfs(&directory)
    {
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let what =
            format!("{} free under {}, store.bytes is {}", Bytes(free), directory.display(), Bytes(config.store.bytes));
        findings.push(if free < config.store.bytes {
            warning(
                "disk",
                what,
                "make room, or lower store.bytes and uplink.retention_bytes: with a full disk publishers wait",
            )
        } else {
            fine("disk", what)
        });
    }
    findings
}

/// The directory, or what is there of the way to it.
fn existing(directory: &Path) -> Option<PathBuf> {
    let whole = std::path::absolute(directory).ok()?;
    whole.ancestors().find(|path| path.is_dir()).map(Path::to_owned)
}

/// How long each of some small synchronised writes took, shortest first.
fn try_disk(directory: &Path, count: usize, span: Duration) -> io::Result<Vec<Duration>> {
    let path = directory.join(format!(".pulsegate-doctor-{}", std::process::id()));
    // Never one that is there already.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    let tried = time_syncs(&mut file, count, span);
    fs::remove_file(&path)?;
    tried
}

fn time_syncs(file: &mut File, count: usize, span: Duration) -> io::Result<Vec<Duration>> {
    let begun = Instant::now();
    let mut times = Vec::with_capacity(count);
    while times.len() < count && begun.elapsed() < span {
        let at = Instant::now();
        file.write_all(&[0x70; 4_096])?;
        file.sync_data()?;
        times.push(at.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

fn sync_latency(directory: &Path, times: &[Duration]) -> Finding {
    let (Some(&middle), Some(&worst)) = (times.get(times.len() / 2), times.last()) else {
        return problem("disk", "not one write was done in time", "look at the disk");
    };
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let place = directory.display();
    let what = format!(
        "a synchronised write to {place} takes {:.1} ms, {:.1} ms at worst of {}: an acknowledgement waits for one",
        millis(middle),
        millis(worst),
        times.len()
    );
    let remedy = "a disk with a write cache that survives a loss of power, or store.durability = \"interval\"";
    match middle {
        time if time > SYNC_BAD => problem("disk", what, remedy),
        time if time > SYNC_SLOW => warning("disk", what, remedy),
        _ => fine("disk", what),
    }
}

fn certificates(prepared: &Prepared, now: SystemTime) -> Vec<Finding> {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
    let pairs = prepared.loaded.config.listeners.iter().zip(&prepared.materials);
    let chains = pairs.flat_map(|(listener, material)| {
        let policy = material.tls.policy();
        let lists = policy.revocation_next_update().map(|end| (listener.name.clone(), "revocation list", end));
        let chains = policy.chains_not_after().map(|end| (listener.name.clone(), "certificate", end));
        chains.chain(lists).collect::<Vec<_>>()
    });
    chains.map(|(name, kind, end)| ends_in(&name, kind, (end - now).div_euclid(86_400))).collect()
}

fn ends_in(listener: &str, kind: &str, days: i64) -> Finding {
    let remedy = "renew it: the gateway notices the new file by itself";
    if days < 0 {
        return problem("certificates", format!("listener {listener:?}: a {kind} ended {} days ago", -days), remedy);
    }
    let what = format!("listener {listener:?}: a {kind} ends in {days} days");
    // A list is short-lived by design; days are what there is to renew it in.
    let few = if kind == "certificate" { DAYS_FEW } else { 2 };
    if days < few { warning("certificates", what, remedy) } else { fine("certificates", what) }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use pulsegate::config::built_in;
    use pulsegate::config::machine::{Memory, MemorySource};

    use super::*;

    fn config() -> Config {
        let machine = Machine {
            hostname: "edge-1".to_owned(),
            cores: 2,
            memory: Memory { bytes: 16 << 30, source: MemorySource::Machine },
            descriptors: 1 << 20,
            outgoing_ports: None,
        };
        built_in(&machine).unwrap().config
    }

    /// A root with these files under proc/sys.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join("proc/sys").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn levels(findings: &[Finding], check: &str) -> Vec<Level> {
        findings.iter().filter(|finding| finding.check == check).map(|finding| finding.level).collect()
    }

    #[test]
    fn a_kernel_that_is_too_small_is_found_with_what_to_do() {
        let small = root(&[
            ("net/core/somaxconn", "128\n"),
            ("net/ipv4/tcp_max_syn_backlog", "8192\n"),
            ("net/netfilter/nf_conntrack_max", "65536\n"),
            ("net/netfilter/nf_conntrack_tcp_timeout_established", "60\n"),
            ("net/ipv4/ip_local_port_range", "7000\t7443\n"),
            ("fs/file-max", "100000\n"),
        ]);
        let found = kernel(small.path(), &config());
        assert_eq!(levels(&found, "somaxconn"), [Level::Warning]);
        assert_eq!(levels(&found, "syn-backlog"), [Level::Ok]);
        assert_eq!(levels(&found, "conntrack"), [Level::Problem, Level::Warning]);
        assert_eq!(levels(&found, "ports"), [Level::Warning]);
        assert_eq!(levels(&found, "file-max"), [Level::Problem]);
        let somaxconn = line(&found[0], false);
        assert!(somaxconn.starts_with("warning  somaxconn     net.core.somaxconn is 128: "), "{somaxconn}");
        assert!(somaxconn.ends_with(": sysctl -w net.core.somaxconn=4096\n"), "{somaxconn}");

        let large = root(&[
            ("net/core/somaxconn", "4096\n"),
            ("net/netfilter/nf_conntrack_max", "1000000\n"),
            ("net/ipv4/ip_local_port_range", "7000 7443"),
            ("net/ipv4/ip_local_reserved_ports", "80,7440-7450\n"),
        ]);
        let found = kernel(large.path(), &config());
        assert!(found.iter().all(|finding| finding.level == Level::Ok), "{found:?}");
        assert_eq!(levels(&kernel(Path::new("/nowhere"), &config()), "conntrack"), [Level::Ok]);
    }

    #[test]
    fn descriptors_memory_and_days_have_their_thresholds() {
        assert_eq!(descriptor_limit(&config(), 1 << 20).level, Level::Ok);
        let few = descriptor_limit(&config(), 1_024);
        assert!(few.level == Level::Problem && few.remedy.contains("LimitNOFILE"), "{few:?}");
        let of = |needed| memory(needed, 1_000).level;
        assert_eq!([of(900), of(950), of(1_001)], [Level::Ok, Level::Warning, Level::Problem]);
        let of = |kind, days| ends_in("a", kind, days).level;
        assert_eq!([of("certificate", 14), of("certificate", 13)], [Level::Ok, Level::Warning]);
        assert_eq!([of("certificate", -1), of("revocation list", 2)], [Level::Problem, Level::Ok]);
    }

    #[test]
    fn the_clock_and_the_disk_are_tried() {
        let root = tempfile::tempdir().unwrap();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(clock(root.path(), at(1_000)).level, Level::Problem);
        assert_eq!(clock(root.path(), at(EARLIEST)).level, Level::Warning);
        fs::create_dir_all(root.path().join("run/chrony")).unwrap();
        fs::write(root.path().join("run/chrony/chronyd.sock"), "").unwrap();
        assert_eq!(clock(root.path(), at(EARLIEST)).level, Level::Ok);

        assert_eq!(existing(&root.path().join("run/not/yet")), Some(root.path().join("run")));
        let times = try_disk(root.path(), 3, Duration::from_mins(1)).unwrap();
        assert!(times.len() == 3 && times.is_sorted());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "its file is gone");
        let of = |millis| sync_latency(root.path(), &[Duration::from_millis(millis)]).level;
        assert_eq!([of(20), of(21), of(201)], [Level::Ok, Level::Warning, Level::Problem]);
        assert_eq!(sync_latency(root.path(), &[]).level, Level::Problem);
    }

    #[test]
    fn a_program_gets_an_object() {
        let object: serde_json::Value = serde_json::from_str(&line(&warning("a", "b", "c"), true)).unwrap();
        assert_eq!(object, json!({"level": "warning", "check": "a", "what": "b", "remedy": "c"}));
    }
}
