//! What the machine has to give, as far as the configuration must know it: cores, memory, descriptors, ports. Read once
//! at start; nothing here is changed.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::thread;

/// What the gateway finds where it runs.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The host's name.
    pub hostname: String,
    /// Cores that this process may use.
    pub cores: u16,
    /// How much memory there is.
    pub memory: Memory,
    /// Descriptors that one descriptor table may hold (the hard limit of `RLIMIT_NOFILE`). Each worker has its own.
    pub descriptors: u64,
    /// Ports that the kernel gives to outgoing connections.
    pub outgoing_ports: Option<RangeInclusive<u16>>,
}

/// How much memory there is, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In bytes.
    pub bytes: u64,
    /// Whose figure it is.
    pub source: MemorySource,
}

/// Whose figure the memory's size is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySource {
    /// The machine's own memory.
    Machine,
    /// A control group's bound, less than the machine has.
    ControlGroup,
    /// Nobody's: /proc/meminfo cannot be read. Nothing is bounded by it.
    Unknown,
}

impl Machine {
    /// The machine that this process runs on. `descriptors` is the hard limit, which only a system call tells.
    #[must_use]
    pub fn detect(descriptors: u64) -> Self {
        let root = Path::new("/");
        let cores = thread::available_parallelism().map_or(1, |cores| u16::try_from(cores.get()).unwrap_or(u16::MAX));
        Self {
            hostname: read_word(&root.join("proc/sys/kernel/hostname")).unwrap_or_else(|| "pulsegate".to_owned()),
            cores,
            memory: memory_under(root),
            descriptors,
            outgoing_ports: outgoing_ports_under(root),
        }
    }
}

/// The memory that this process may use, with /proc and /sys found under `root`. Unreadable figures bound nothing.
fn memory_under(root: &Path) -> Memory {
    let machine = fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| memory_total(&text));
    let bytes = machine.unwrap_or(u64::MAX);
    match control_group_bound(root) {
        Some(bound) if bound < bytes => Memory { bytes: bound, source: MemorySource::ControlGroup },
        _ if machine.is_none() => Memory { bytes, source: MemorySource::Unknown },
        _ => Memory { bytes, source: MemorySource::Machine },
    }
}

/// `MemTotal:       24691000 kB`, in bytes.
fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The least bound among this process's control group and all groups around it.
///
/// A line of /proc/self/cgroup is `id:controllers:path`; version 2 has the id 0 and no controllers. Within a container
/// the path may be the host's, which is not visible: the mount's own top is always looked at too.
fn control_group_bound(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (mount, file) = if id == "0" && controllers.is_empty() {
            (root.join("sys/fs/cgroup"), "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (root.join("sys/fs/cgroup/memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        let mut group = Some(PathBuf::from(path.trim_start_matches('/')));
        while let Some(inside) = group {
            // "max" is no number, and no bound.
            let bound = read_word(&mount.join(&inside).join(file)).and_then(|word| word.parse().ok());
            least = least.into_iter().chain(bound).min();
            group = inside.parent().map(Path::to_owned);
        }
    }
    least
}

/// The first and the last port: two numbers in one line.
fn outgoing_ports_under(root: &Path) -> Option<RangeInclusive<u16>> {
    let text = fs::read_to_string(root.join("proc/sys/net/ipv4/ip_local_port_range")).ok()?;
    let mut words = text.split_ascii_whitespace().map(str::parse);
    match (words.next(), words.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Some(first..=last),
        _ => None,
    }
}

fn read_word(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let word = text.trim();
    (!word.is_empty()).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn without_proc_nothing_is_bounded_and_nothing_is_made_up() {
        let root = machine(&[]);
        assert_eq!(memory_under(root.path()), Memory { bytes: u64::MAX, source: MemorySource::Unknown });
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:        1024 kB\nMemFree:          12 kB\n");

    #[test]
    fn without_groups_the_machine_counts() {
        let root = machine(&[MEMINFO]);
        assert_eq!(memory_under(root.path()), Memory { bytes: 1_048_576, source: MemorySource::Machine });
    }

    #[test]
    fn the_least_bound_of_all_groups_around_counts() {
        let root = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/system.slice/pulsegate.service\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "5000\n"),
            ("sys/fs/cgroup/system.slice/pulsegate.service/memory.max", "max\n"),
        ]);
        assert_eq!(memory_under(root.path()), Memory { bytes: 5000, source: MemorySource::ControlGroup });
    }

    #[test]
    fn a_container_that_sees_only_its_own_group_is_bounded_by_it() {
        let root =
            machine(&[MEMINFO, ("proc/self/cgroup", "0::/docker/0123\n"), ("sys/fs/cgroup/memory.max", "7000\n")]);
        assert_eq!(memory_under(root.path()).bytes, 7000);
    }

    #[test]
    fn version_one_is_understood_and_its_no_bound_is_none() {
        let group = ("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/a\n");
        let root = machine(&[MEMINFO, group, ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9000\n")]);
        assert_eq!(memory_under(root.path()), Memory { bytes: 9000, source: MemorySource::ControlGroup });
        let unbounded = ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n");
        let root = machine(&[MEMINFO, group, unbounded]);
        assert_eq!(memory_under(root.path()).source, MemorySource::Machine);
    }

    #[test]
    fn outgoing_ports_are_read() {
        let root = machine(&[("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n")]);
        assert_eq!(outgoing_ports_under(root.path()), Some(32768..=60999));
        assert_eq!(outgoing_ports_under(machine(&[]).path()), None);
    }

    #[test]
    fn this_machine_has_memory_cores_and_a_name() {
        let here = Machine::detect(20_000);
        assert!(here.cores >= 1 && here.memory.bytes > 1 << 20 && !here.hostname.is_empty());
        assert_eq!(here.descriptors, 20_000);
    }
}
