//! Subjects for what devices say, `PREFIX.up.DEVICE.TOPIC`, and for what is published over the API, `PREFIX.pub.TOPIC`: a level of the
//! topic a token.
//!
//! A token is never empty and holds neither `.`, `*`, `>` nor white space (docs.nats.io, subject names). What a device or a topic
//! holds of these is percent-encoded, an empty level is `%_`, and `%` itself is `%25`: so two devices or topics never share a
//! subject, and each can be read back.

use std::fmt::Write;

/// The longest part of a filter's subject behind the prefix: 256 of them fit into one request.
const FILTER_BYTES_MAX: usize = 1_024;
/// How an empty level is written.
const EMPTY: &str = "%_";

/// The subject of a message.
pub fn of_message(prefix: &str, device: &str, topic: &str) -> String {
    let mut subject = format!("{prefix}.up.");
    encode(device, &mut subject);
    for level in topic.split('/') {
        subject.push('.');
        encode(level, &mut subject);
    }
    subject
}

/// The subject of a presence event.
pub fn of_presence(prefix: &str, device: &str) -> String {
    let mut subject = format!("{prefix}.presence.");
    encode(device, &mut subject);
    subject
}

/// The subject of what is published over the API.
pub fn of_publication(prefix: &str, topic: &str) -> String {
    let mut subject = format!("{prefix}.pub");
    for level in topic.split('/') {
        subject.push('.');
        encode(level, &mut subject);
    }
    subject
}

/// Who published under a subject (`None`: somebody over the API), and under which topic. `None`: no gateway ever wrote it.
pub fn publication_of(prefix: &str, subject: &str) -> Option<(Option<String>, String)> {
    let rest = subject.strip_prefix(prefix)?.strip_prefix('.')?;
    let (device, topic) = match rest.strip_prefix("up.") {
        Some(rest) => {
            let (device, topic) = rest.split_once('.')?;
            (Some(decode(device)?), topic)
        }
        None => (None, rest.strip_prefix("pub.")?),
    };
    let levels: Option<Vec<String>> = topic.split('.').map(decode).collect();
    Some((device, levels?.join("/")))
}

/// The subjects under which everything is published that an MQTT filter (not a shared one) matches, and perhaps more: `+` is `*`, and
/// `#`, which matches the parent level too, is two subjects. With a bound on their length, which a server has too.
pub fn of_filter(prefix: &str, filter: &str) -> Vec<String> {
    let mut tail = String::new();
    let (levels, is_deep) = match filter.strip_suffix("/#") {
        Some(levels) => (levels, true),
        None if filter == "#" => return vec![format!("{prefix}.up.*.>"), format!("{prefix}.pub.>")],
        None => (filter, false),
    };
    for level in levels.split('/') {
        tail.push('.');
        match level {
            "+" => tail.push('*'),
            level => encode(level, &mut tail),
        }
        if tail.len() > FILTER_BYTES_MAX {
            // What is so long is taken by its beginning.
            tail.truncate(tail.rfind('.').unwrap_or(0));
            tail.push_str(".>");
            return vec![format!("{prefix}.up.*{tail}"), format!("{prefix}.pub{tail}")];
        }
    }
    let kinds = [format!("{prefix}.up.*{tail}"), format!("{prefix}.pub{tail}")];
    let below = kinds.iter().filter(|_| is_deep).map(|kind| format!("{kind}.>"));
    kinds.iter().cloned().chain(below).collect()
}

/// Appends one token.
pub fn encode(token: &str, into: &mut String) {
    if token.is_empty() {
        into.push_str(EMPTY);
    }
    for char in token.chars() {
        if matches!(char, '.' | '*' | '>' | '%') || char.is_whitespace() || char.is_control() {
            for byte in char.encode_utf8(&mut [0; 4]).bytes() {
                let _ = write!(into, "%{byte:02X}");
            }
        } else {
            into.push(char);
        }
    }
}

/// What a token that [`encode`] made says; `None`: it is none of these.
pub fn decode(token: &str) -> Option<String> {
    if token == EMPTY {
        return Some(String::new());
    }
    let text = decode_leniently(token)?;
    // Only one way to write each: what was escaped and need not be is somebody else's.
    let mut again = String::with_capacity(token.len());
    encode(&text, &mut again);
    (again == token).then_some(text)
}

/// What a token says in which any byte may be percent-encoded, in either case; `None`: it is none, or says something that is no
/// text.
pub fn decode_leniently(token: &str) -> Option<String> {
    unescape(token, b'%')
}

/// What `written` says, in which `escape` and two hexadecimal digits, in either case, stand for a byte; `None`: digits are missing, or
/// it says something that is no text.
pub fn unescape(written: &str, escape: u8) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(written.len()), written.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == escape {
            let (digits, after) = rest.split_at_checked(2)?;
            let digits = digits.iter().all(u8::is_ascii_hexdigit).then_some(digits)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Whether `filter` takes every subject that `other` takes. In both `*` is a token, and `>` one or more at the end.
pub fn covers(filter: &str, other: &str) -> bool {
    let (mut filter, mut other) = (filter.split('.'), other.split('.'));
    loop {
        match (filter.next(), other.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(one), Some(token)) if one == token => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::codec::mqtt::topic::matches;

    fn read(subject: &str, prefix: &str) -> (String, String) {
        let mut tokens = subject
            .strip_prefix(prefix)
            .unwrap()
            .strip_prefix(".up.")
            .unwrap()
            .split('.')
            .map(|token| decode(token).unwrap());
        let device = tokens.next().unwrap();
        (device, tokens.collect::<Vec<_>>().join("/"))
    }

    #[test]
    fn subjects_read_well() {
        assert_eq!(of_message("site-1", "meter-17", "power/now"), "site-1.up.meter-17.power.now");
        assert_eq!(of_message("p", "a.b", "x//*"), "p.up.a%2Eb.x.%_.%2A");
        assert_eq!(of_message("p", "raw", ""), "p.up.raw.%_");
        assert_eq!(of_presence("p", "a b"), "p.presence.a%20b");
    }

    /// Whatever devices are called and say: a subject that a server takes, another one for each pair, and the way back.
    #[test]
    fn any_device_and_topic_make_a_subject_that_is_read_back() {
        let alphabet = ['a', '.', '*', '>', '%', '/', ' ', '\t', '\0', '\u{a0}', 'é', '_', '2', 'E', '\u{2028}'];
        let mut random = fastrand::Rng::with_seed(9);
        let mut seen = BTreeMap::new();
        for _ in 0..30_000 {
            let mut text = |least: usize| -> String {
                (0..random.usize(least..7)).map(|_| alphabet[random.usize(..alphabet.len())]).collect()
            };
            let pair = (text(1), text(0));
            let subject = of_message("p.q", &pair.0, &pair.1);
            let is_token = |token: &str| {
                !token.is_empty()
                    && !token
                        .contains(|char: char| matches!(char, '*' | '>') || char.is_whitespace() || char.is_control())
            };
            assert!(subject.split('.').all(is_token), "{subject:?}");
            assert!(covers("p.q.up.>", &subject) && covers(">", &subject), "{subject:?}");
            assert_eq!(read(&subject, "p.q"), pair, "{subject:?}");
            let before = seen.insert(subject.clone(), pair.clone());
            assert!(before.is_none_or(|before| before == pair), "{subject:?}");
        }
    }

    #[test]
    fn whoever_encodes_more_than_must_be_means_the_same() {
        for token in ["a%2Eb", "a%2eb", "%61.b", "%61%2E%62"] {
            assert_eq!(decode_leniently(token).as_deref(), Some("a.b"), "{token}");
        }
        for token in ["%", "%2", "%zz", "%C3", "%+1", "%_"] {
            assert_eq!(decode_leniently(token), None, "{token}");
        }
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let text: String = (0..random.usize(1..8)).map(|_| random.char(..)).collect();
            let mut token = String::new();
            encode(&text, &mut token);
            assert_eq!(decode_leniently(&token).as_deref(), Some(&*text), "{token:?}");
        }
    }

    /// Against MQTT's own rule: a publication that a filter matches lies under one of its subjects.
    #[test]
    fn what_a_filter_matches_lies_under_its_subjects() {
        let levels = ["a", "b.c", "", "*", "$x", "é"];
        let mut random = fastrand::Rng::with_seed(5);
        let (mut matched, mut missed) = (0, 0);
        for _ in 0..30_000 {
            let topic: Vec<_> = (0..random.usize(1..5)).map(|_| levels[random.usize(..levels.len())]).collect();
            let mut filter: Vec<_> = topic.iter().map(|level| if random.bool() { "+" } else { *level }).collect();
            if random.u8(..4) == 0 {
                filter.truncate(random.usize(..=filter.len()));
                filter.push("#");
            }
            if random.u8(..4) == 0 {
                let at = random.usize(..filter.len());
                if filter[at] != "#" {
                    filter[at] = levels[random.usize(..levels.len())];
                }
            }
            let (topic, filter) = (topic.join("/"), filter.join("/"));
            let subjects = of_filter("p", &filter);
            assert!(subjects.len() <= 4);
            let is_taken = |subject: &str| subjects.iter().any(|filter| covers(filter, subject));
            let (up, api) = (of_message("p", "d.1", &topic), of_publication("p", &topic));
            if matches(&filter, &topic) {
                matched += 1;
                assert!(is_taken(&up) && is_taken(&api), "{filter:?} {topic:?} {subjects:?}");
            } else if !topic.starts_with('$') {
                // But for names that begin with `$`, neither more.
                missed += 1;
                assert!(!is_taken(&up) && !is_taken(&api), "{filter:?} {topic:?} {subjects:?}");
            }
            assert_eq!(publication_of("p", &up), Some((Some("d.1".to_owned()), topic.clone())));
            assert_eq!(publication_of("p", &api), Some((None, topic)));
        }
        assert!(matched > 5_000 && missed > 500, "{matched} {missed}");
        for subject in ["p.up", "p.up.d", "p.pub", "p.pub.", "p.presence.d", "q.up.d.t", "p.up.d..t", "p.up.%41.t"] {
            assert_eq!(publication_of("p", subject), None, "{subject}");
        }
    }

    #[test]
    fn a_filter_that_is_very_long_is_taken_by_its_beginning() {
        let topic = vec!["level"; 2_000].join("/");
        let subjects = of_filter("p", &topic);
        assert!(subjects.iter().all(|subject| subject.len() < FILTER_BYTES_MAX + 64 && subject.ends_with(".>")));
        assert!(
            covers(&subjects[0], &of_message("p", "d", &topic)) && covers(&subjects[1], &of_publication("p", &topic))
        );
        let one = of_filter("p", &format!("a/{}", "x".repeat(5_000)));
        assert_eq!(one, ["p.up.*.a.>", "p.pub.a.>"]);
        assert_eq!(of_filter("p", &"x".repeat(5_000)), ["p.up.*.>", "p.pub.>"]);
    }

    #[test]
    fn what_encode_never_wrote_is_no_token() {
        for token in ["", "%", "%2", "%zz", "%C3", "%41", "%2e", "a b", "%+1", "%_%_"] {
            assert_eq!(decode(token), None, "{token}");
        }
        assert_eq!(decode("a%2Eb").as_deref(), Some("a.b"));
    }

    #[test]
    fn a_stream_takes_all_or_it_does_not() {
        for filter in ["p.up.>", "p.>", ">", "*.up.>", "p.*.>", "p.up.*.>"] {
            assert!(covers(filter, "p.up.*.>"), "{filter}");
        }
        for filter in ["p.up", "p.up.*", "p.up.*.*", "p.down.>", "q.>", "p.up.x.>", "p.up.*.*.>"] {
            assert!(!covers(filter, "p.up.*.>"), "{filter}");
        }
        assert!(covers("p.presence.*", "p.presence.*") && !covers("p.presence", "p.presence.*"));
    }
}
