//! The deny list: what the file says, and what was said over the API, which is kept in the data directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::blocks::KeptBlock;
use crate::control::{Block, BlockError, BlockOrder, BlockSource};
use crate::link::{DENIED_CERTIFICATES_MAX, DENIED_DEVICES_MAX, DENIED_NETWORKS_MAX, DenyList, Subject};
use crate::network::Network;
use crate::time::Moment;
use crate::whole_file;

/// Two ends that lie closer together are the same, told at two times.
const SAME_TIME: Duration = Duration::from_secs(2);

/// What is wrong with a deny file, and where.
#[derive(Debug)]
pub struct DenyFileError {
    file: PathBuf,
    line: Option<usize>,
    what: String,
}

impl fmt::Display for DenyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// The entries of the file: lines `device ID`, `certificate SHA-256` and `network ADDRESS/PREFIX`; what begins with `#` is skipped.
///
/// # Errors
/// It cannot be read, a line is something else, or there are too many.
pub fn load(file: &Path) -> Result<Vec<Subject>, DenyFileError> {
    let fault = |line, what: String| DenyFileError { file: file.to_owned(), line, what };
    let text = whole_file::read_text(file).map_err(|error| fault(None, format!("cannot be read: {error}")))?;
    let mut subjects = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let subject = match line.split_once(char::is_whitespace).map(|(kind, rest)| (kind, rest.trim())) {
            Some(("device", id)) => Subject::Device(id.into()),
            Some(("network", network)) => Subject::Network(Network::around(network).map_err(|_| {
                fault(Some(number), format!("{network:?} is not a network: write it as 192.0.2.0/24 or 2001:db8::/32"))
            })?),
            Some(("certificate", fingerprint)) => Subject::Certificate(fingerprint.parse().map_err(|_| {
                let remedy = "write the 64 digits that openssl x509 -fingerprint -sha256 shows";
                fault(
                    Some(number),
                    format!("{fingerprint:?} is not the SHA-256 fingerprint of a certificate: {remedy}"),
                )
            })?),
            _ => {
                let what = "write \"device ID\", \"certificate SHA-256\" or \"network ADDRESS/PREFIX\"";
                return Err(fault(Some(number), what.to_owned()));
            }
        };
        subjects.push(subject);
    }
    if has_too_many(subjects.iter()) {
        let what = format!(
            "at most {DENIED_DEVICES_MAX} devices, {DENIED_CERTIFICATES_MAX} certificates and {DENIED_NETWORKS_MAX} networks \
             can be named"
        );
        return Err(fault(None, what));
    }
    Ok(subjects)
}

fn has_too_many<'a>(mut subjects: impl Iterator<Item = &'a Subject>) -> bool {
    let mut kinds = Kinds::default();
    subjects.any(|subject| !kinds.take(subject))
}

/// How many there are of each kind.
#[derive(Default)]
struct Kinds {
    devices: usize,
    certificates: usize,
    networks: usize,
}

impl Kinds {
    /// Counts one more, if there is room for it.
    fn take(&mut self, subject: &Subject) -> bool {
        let (count, most) = match subject {
            Subject::Device(_) => (&mut self.devices, DENIED_DEVICES_MAX),
            Subject::Certificate(_) => (&mut self.certificates, DENIED_CERTIFICATES_MAX),
            Subject::Network(_) => (&mut self.networks, DENIED_NETWORKS_MAX),
        };
        let has_room = *count < most;
        *count += usize::from(has_room);
        has_room
    }
}

/// Whether the one holds for as long as the other, or longer.
fn outlasts(one: Option<Moment>, other: Option<Moment>) -> bool {
    one.is_none_or(|one| other.is_some_and(|other| one >= other))
}

/// Both together.
pub(super) struct Denied {
    started: Instant,
    from_file: Vec<Subject>,
    /// Until when, and who said so.
    from_api: BTreeMap<Subject, (Option<Moment>, BlockSource)>,
}

impl Denied {
    /// What the file says when the gateway starts, whose moment zero is `started`, and what was said over the API to
    /// earlier processes.
    pub(super) fn new(started: Instant, from_file: Vec<Subject>, kept: Vec<KeptBlock>) -> Self {
        let mut denied = Self { started, from_file, from_api: BTreeMap::new() };
        let (now, today) = (denied.now(), SystemTime::now());
        for KeptBlock { subject, until, is_of_fleet } in kept {
            // One that has ended meanwhile is forgotten with the next change.
            let until = until.map(|until| now.plus(until.duration_since(today).unwrap_or_default()));
            let source = if is_of_fleet { BlockSource::Fleet } else { BlockSource::Api };
            denied.from_api.insert(subject, (until, source));
        }
        denied
    }

    /// What the next process is to know.
    pub(super) fn kept(&self) -> impl Iterator<Item = KeptBlock> {
        let (now, today) = (self.now(), SystemTime::now());
        let lasts = |source| matches!(source, BlockSource::Api | BlockSource::Fleet);
        let from_api = self.from_api.iter().filter(move |(_, (_, source))| lasts(*source));
        from_api.map(move |(subject, (until, source))| KeptBlock {
            subject: subject.clone(),
            until: until.map(|until| today + until.since(now)),
            is_of_fleet: *source == BlockSource::Fleet,
        })
    }

    /// What the file says now. Whether it says something else.
    pub(super) fn replace_file(&mut self, from_file: Vec<Subject>) -> bool {
        let has_changed = self.from_file != from_file;
        self.from_file = from_file;
        has_changed
    }

    /// Does what was said over the API. Whether that changed the list.
    pub(super) fn apply(&mut self, order: &BlockOrder) -> Result<bool, BlockError> {
        let now = self.now();
        self.from_api.retain(|_, (until, _)| until.is_none_or(|until| now < until));
        match order {
            BlockOrder::List => Ok(false),
            BlockOrder::Add { subject, span, source } => {
                let until = span.map(|span| now.plus(span));
                match (source, self.from_api.get(subject)) {
                    // Whatever somebody has said about it holds, and so does what was said here for as long.
                    (BlockSource::Gateway, Some(_)) => return Ok(false),
                    (BlockSource::Fleet, Some((there, BlockSource::Api))) if outlasts(*there, until) => {
                        return Ok(false);
                    }
                    _ => {}
                }
                let with_it = self.from_api.keys().chain([subject]);
                if has_too_many(self.from_file.iter().chain(with_it)) {
                    return Err(BlockError::NoRoom);
                }
                self.from_api.insert(subject.clone(), (until, *source));
                Ok(true)
            }
            BlockOrder::Fleet { all, except } => Ok(self.apply_fleet(all, except)),
            BlockOrder::Remove { subject } => self.from_api.remove(subject).map(|_| true).ok_or(BlockError::NoSuch),
        }
    }

    /// These are kept out because the fleet says so. What was said to this gateway alone stays. Whether that changed the list.
    fn apply_fleet(&mut self, all: &[(Subject, Option<Duration>)], except: &BTreeSet<Subject>) -> bool {
        let now = self.now();
        let wanted: BTreeMap<_, _> = all.iter().filter(|(subject, _)| !except.contains(subject)).cloned().collect();
        let before = self.from_api.len();
        self.from_api.retain(|subject, (_, source)| {
            *source != BlockSource::Fleet || except.contains(subject) || wanted.contains_key(subject)
        });
        let mut has_changed = self.from_api.len() != before;
        // Counted once: there may be as many as the list takes.
        let mut kinds = Kinds::default();
        self.from_file.iter().chain(self.from_api.keys()).for_each(|subject| {
            kinds.take(subject);
        });
        let mut left_out = 0;
        for (subject, span) in wanted {
            let until = span.map(|span| now.plus(span));
            let holds = match (self.from_api.get(&subject), until) {
                (Some((there, BlockSource::Api)), until) if outlasts(*there, until) => true,
                (Some((Some(there), BlockSource::Fleet)), Some(until)) => {
                    there.since(until).max(until.since(*there)) < SAME_TIME
                }
                (Some((None, BlockSource::Fleet)), None) => true,
                _ => false,
            };
            if holds {
                continue;
            }
            if !self.from_api.contains_key(&subject) && !kinds.take(&subject) {
                left_out += 1;
                continue;
            }
            self.from_api.insert(subject, (until, BlockSource::Fleet));
            has_changed = true;
        }
        if left_out > 0 {
            tracing::error!(left_out, "the deny list is full: not all that the fleet keeps out are kept out here");
        }
        has_changed
    }

    /// The list for those who go by it.
    pub(super) fn list(&self) -> DenyList {
        let from_file = self.from_file.iter().map(|subject| (subject.clone(), None));
        // The file's are for good: they come last.
        DenyList::new(self.from_api.iter().map(|(subject, (until, _))| (subject.clone(), *until)).chain(from_file))
    }

    /// The entries for those who read them.
    pub(super) fn entries(&self) -> Vec<Block> {
        let from_api = self.from_api.iter();
        let from_api = from_api.map(|(subject, (until, source))| Block {
            subject: subject.clone(),
            until: *until,
            source: *source,
        });
        let from_file = self.from_file.iter();
        let from_file =
            from_file.map(|subject| Block { subject: subject.clone(), until: None, source: BlockSource::File });
        from_api.chain(from_file).collect()
    }

    fn now(&self) -> Moment {
        Moment::from_micros(self.started.elapsed().as_micros() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_who_or_where_it_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("deny");
        std::fs::write(
            &file,
            format!("# stolen in May\n\ndevice meter 17\n  network 192.0.2.9/24\ncertificate {}\n", "AB".repeat(32)),
        )
        .unwrap();
        let subjects = load(&file).unwrap();
        assert_eq!(
            subjects.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["device meter 17", "network 192.0.2.0/24", &format!("certificate {}", "ab".repeat(32))]
        );
        for (text, part) in [
            ("device a\nmeter-17\n", "deny, line 2: write \"device ID\""),
            (
                "certificate 12\n",
                "deny, line 1: \"12\" is not the SHA-256 fingerprint of a certificate: write the 64 digits",
            ),
            ("network 1.2.3\n", "deny, line 1: \"1.2.3\" is not a network"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = load(&file).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(load(&directory.path().join("none")).unwrap_err().to_string().contains("cannot be read"));
    }

    #[test]
    fn what_the_api_says_is_bounded_ends_and_can_be_taken_back() {
        let device = |id: &str| Subject::Device(id.into());
        let mut denied = Denied::new(Instant::now(), vec![device("file")], Vec::new());
        let hour = Some(Duration::from_hours(1));
        let add = |subject, span| BlockOrder::Add { subject, span, source: BlockSource::Api };
        assert_eq!(denied.apply(&add(device("a"), hour)), Ok(true));
        let by_gateway = BlockOrder::Add { subject: device("a"), span: None, source: BlockSource::Gateway };
        assert_eq!(denied.apply(&by_gateway), Ok(false), "what somebody has said holds");
        assert_eq!(denied.apply(&add(device("b"), Some(Duration::ZERO))), Ok(true));
        assert_eq!(denied.apply(&BlockOrder::List), Ok(false));
        let names: Vec<String> = denied.entries().iter().map(|block| block.subject.to_string()).collect();
        assert_eq!(names, ["device a", "device file"]);
        let list = denied.list();
        assert!(list.refuses_device("a", Moment::default()) && list.refuses_device("file", Moment::default()));
        assert_eq!(denied.apply(&BlockOrder::Remove { subject: device("a") }), Ok(true));
        assert_eq!(denied.apply(&BlockOrder::Remove { subject: device("file") }), Err(BlockError::NoSuch));
        for number in 0..DENIED_NETWORKS_MAX as u32 {
            let subject = Subject::Network(std::net::Ipv4Addr::from(number).to_string().parse().unwrap());
            assert_eq!(denied.apply(&add(subject, None)), Ok(true));
        }
        let subject = Subject::Network("2001:db8::/32".parse().unwrap());
        assert_eq!(denied.apply(&add(subject, None)), Err(BlockError::NoRoom));
    }

    #[test]
    fn what_the_api_says_holds_in_the_next_process_too_for_as_long_as_is_left() {
        let device = |id: &str| Subject::Device(id.into());
        let add = |id, span, source| BlockOrder::Add { subject: device(id), span, source };
        let mut denied = Denied::new(Instant::now(), vec![device("file")], Vec::new());
        for (id, span, source) in [
            ("for good", None, BlockSource::Api),
            ("hour", Some(Duration::from_hours(1)), BlockSource::Api),
            ("by gateway", Some(Duration::from_hours(1)), BlockSource::Gateway),
        ] {
            denied.apply(&add(id, span, source)).unwrap();
        }
        let mut kept: Vec<_> = denied.kept().collect();
        assert_eq!(kept.iter().map(|kept| &kept.subject).collect::<Vec<_>>(), [&device("for good"), &device("hour")]);
        assert!(kept[0].until.is_none() && kept[1].until.is_some_and(|until| until > SystemTime::now()));
        let until = Some(SystemTime::UNIX_EPOCH);
        kept.push(KeptBlock { subject: device("ended"), until, is_of_fleet: false });
        let next = Denied::new(Instant::now(), Vec::new(), kept);
        let (list, now) = (next.list(), Moment::from_micros(1_000_000));
        assert!(list.refuses_device("for good", now) && list.refuses_device("hour", now));
        assert!(!list.refuses_device("ended", now) && !list.refuses_device("by gateway", now));
    }

    #[test]
    fn what_the_fleet_says_holds_here_and_takes_back_nothing_else() {
        let device = |id: &str| Subject::Device(id.into());
        let mut denied = Denied::new(Instant::now(), Vec::new(), Vec::new());
        let add = |id, source| BlockOrder::Add { subject: device(id), span: None, source };
        for (id, source) in [("here", BlockSource::Api), ("both", BlockSource::Api), ("flood", BlockSource::Gateway)] {
            denied.apply(&add(id, source)).unwrap();
        }
        let hour = Some(Duration::from_hours(1));
        let fleet = |ids: &[(&str, Option<Duration>)], except: &[&str]| BlockOrder::Fleet {
            all: ids.iter().map(|(id, span)| (device(id), *span)).collect(),
            except: except.iter().map(|id| device(id)).collect(),
        };
        let names = |denied: &Denied| -> Vec<String> {
            denied.entries().iter().map(|block| format!("{} {:?}", block.subject, block.source)).collect()
        };
        assert_eq!(denied.apply(&fleet(&[("a", None), ("b", hour), ("both", hour), ("flood", None)], &[])), Ok(true));
        let all = ["device a Fleet", "device b Fleet", "device both Api", "device flood Fleet", "device here Api"];
        assert_eq!(names(&denied), all);
        assert_eq!(denied.apply(&fleet(&[("a", None), ("b", hour), ("both", hour), ("flood", None)], &[])), Ok(false));
        // It is known as the fleet's in the next process too.
        let kept: Vec<_> = denied.kept().collect();
        let mut denied = Denied::new(Instant::now(), Vec::new(), kept);
        assert_eq!(names(&denied), all);
        // A longer time, one who was let in again, and two of whom nothing is known: b was, and new was not.
        denied.apply(&add("said here", BlockSource::Fleet)).unwrap();
        let day = Some(Duration::from_hours(24));
        assert_eq!(denied.apply(&fleet(&[("a", day), ("new", None)], &["b", "new", "said here"])), Ok(true));
        assert_eq!(
            names(&denied),
            ["device a Fleet", "device b Fleet", "device both Api", "device here Api", "device said here Fleet"]
        );
        assert!(denied.entries()[0].until.is_some());
        assert_eq!(denied.apply(&fleet(&[], &[])), Ok(true));
        assert_eq!(names(&denied), ["device both Api", "device here Api"]);
    }

    /// As many as the list takes are taken in one go, and who is there already is none more.
    #[test]
    fn a_fleet_may_keep_out_as_many_as_the_list_takes() {
        let mut denied = Denied::new(Instant::now(), Vec::new(), Vec::new());
        let fleet = |all| BlockOrder::Fleet { all, except: BTreeSet::new() };
        let all = (0..=DENIED_DEVICES_MAX).map(|number| (Subject::Device(number.to_string().into()), None));
        assert_eq!(denied.apply(&fleet(all.collect())), Ok(true));
        assert_eq!(denied.entries().len(), DENIED_DEVICES_MAX);
        let hour = Some(Duration::from_hours(1));
        let kept = denied.from_api.keys().cloned().map(|subject| (subject, hour)).collect();
        assert_eq!(denied.apply(&fleet(kept)), Ok(true));
        assert!(denied.from_api.values().all(|(until, _)| until.is_some()));
    }
}
