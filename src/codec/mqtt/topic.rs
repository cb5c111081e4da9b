//! Topic names and topic filters (4.7), and what matches what.

/// The longest topic name or filter, in bytes [v5 MQTT-4.7.3-3].
pub const TOPIC_BYTES_MAX: usize = 65_535;

const SHARED_PREFIX: &str = "$share/";

/// Whether it can be published to: not empty, no wildcard, no U+0000 [v5 MQTT-4.7.0-1, MQTT-4.7.3-1, MQTT-4.7.3-2].
#[must_use]
pub fn is_topic_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= TOPIC_BYTES_MAX && !text.contains(['+', '#', '\0'])
}

/// Whether it can be subscribed to, shared or not.
#[must_use]
pub fn is_topic_filter(text: &str) -> bool {
    if text.starts_with(SHARED_PREFIX) {
        return text.len() <= TOPIC_BYTES_MAX && shared(text).is_some();
    }
    is_plain_filter(text)
}

/// `#` alone in the last level only [MQTT-4.7.1-1, v3.1.1 MQTT-4.7.1-2], `+` alone in any level [v5 MQTT-4.7.1-2].
fn is_plain_filter(text: &str) -> bool {
    if text.is_empty() || text.len() > TOPIC_BYTES_MAX || text.contains('\0') {
        return false;
    }
    let mut levels = text.split('/').peekable();
    while let Some(level) = levels.next() {
        let is_wildcard = level == "+" || (level == "#" && levels.peek().is_none());
        if !is_wildcard && level.contains(['+', '#']) {
            return false;
        }
    }
    true
}

/// The group and the filter of a shared subscription, `$share/GROUP/FILTER` (v5 4.8.2); `None` where it is none, or not
/// a valid one [v5 MQTT-4.8.2-1, MQTT-4.8.2-2].
#[must_use]
pub fn shared(filter: &str) -> Option<(&str, &str)> {
    let (group, filter) = filter.strip_prefix(SHARED_PREFIX)?.split_once('/')?;
    let is_valid = !group.is_empty() && !group.contains(['+', '#']) && is_plain_filter(filter);
    is_valid.then_some((group, filter))
}

/// Whether a topic is one that servers alone publish (4.7.2).
#[must_use]
pub fn is_of_server(topic: &str) -> bool {
    topic.starts_with("$SYS")
}

/// How many levels a topic name or filter has.
#[must_use]
pub fn level_count(topic: &str) -> usize {
    1 + topic.bytes().filter(|&byte| byte == b'/').count()
}

/// Whether a filter (not a shared one) matches a topic name. One that begins with a wildcard does not match names that
/// begin with `$` [MQTT-4.7.2-1].
///
/// ```
/// use pulsegate::codec::mqtt::topic::matches;
///
/// assert!(matches("site/+/power", "site/4/power"));
/// assert!(matches("site/#", "site")); // the parent level too
/// assert!(!matches("site/+", "site/4/power"));
/// assert!(!matches("#", "$SYS/uptime"));
/// ```
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            // "a/#" matches "a" too (4.7.1.2).
            _ => return false,
        }
    }
}

/// Whether `rule` matches every name that `filter` matches (neither is shared): whether somebody who may hear what
/// `rule` says may subscribe to `filter`.
#[must_use]
pub fn covers(rule: &str, filter: &str) -> bool {
    if filter.starts_with('$') && rule.starts_with(['+', '#']) {
        return false;
    }
    // The one pair of filters that match the same names.
    let rule = if rule == "+/#" { "#" } else { rule };
    let (mut rule, mut filter) = (rule.split('/'), filter.split('/'));
    loop {
        match (rule.next(), filter.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(granted), Some(level)) if granted == level => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_filters_are_what_the_specification_says() {
        for name in ["a", "/", "a//b", "$SYS/x", "a b", "ä/ö"] {
            assert!(is_topic_name(name) && is_topic_filter(name), "{name}");
        }
        for not_a_name in ["", "+", "a/#", "a\0", "a+"] {
            assert!(!is_topic_name(not_a_name), "{not_a_name}");
        }
        for filter in ["#", "+", "a/#", "+/+", "/+", "+/a/#", "$share/g/#", "$share/g//", "$sharex/+"] {
            assert!(is_topic_filter(filter), "{filter}");
        }
        for filter in
            ["", "a#", "#/a", "a/#/b", "a+", "+a/b", "$share/", "$share/g", "$share//a", "$share/g/", "$share/+/a"]
        {
            assert!(!is_topic_filter(filter), "{filter}");
        }
        assert_eq!(shared("$share/g/a/b"), Some(("g", "a/b")));
        assert_eq!(shared("$share/g//"), Some(("g", "/")));
        assert_eq!(level_count("a/b/c"), 3);
    }

    #[test]
    fn what_matches_is_what_the_specification_says() {
        let yes =
            [("a/#", "a"), ("a/#", "a/b/c"), ("+", "a"), ("+/+", "/a"), ("/+", "/a"), ("#", "a/b"), ("a/+", "a/")];
        let no =
            [("+", "/a"), ("a/+", "a"), ("a", "a/b"), ("a/b", "a"), ("#", "$SYS"), ("+/x", "$SYS/x"), ("a/+", "a/b/c")];
        for (filter, topic) in yes {
            assert!(matches(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in no {
            assert!(!matches(filter, topic), "{filter} {topic}");
        }
        assert!(matches("$SYS/#", "$SYS/a") && matches("$SYS/+", "$SYS/a"));
    }

    /// All names of up to three levels, filters likewise: a rule covers a filter exactly if it matches whatever the
    /// filter matches. Names reach one level further than filters, so that `#` can be told from anything else.
    #[test]
    fn covers_is_inclusion() {
        let combine = |levels: &[&str], depth: usize| {
            let mut all: Vec<String> = levels.iter().map(|&level| level.to_owned()).collect();
            let mut longest = all.clone();
            for _ in 1..depth {
                longest =
                    longest.iter().flat_map(|head| levels.iter().map(move |level| format!("{head}/{level}"))).collect();
                all.extend(longest.iter().cloned());
            }
            all
        };
        let names = combine(&["a", "b", "c", "$", ""], 4);
        let names: Vec<&String> = names.iter().filter(|name| is_topic_name(name)).collect();
        let filters = combine(&["a", "b", "$", "+", "#"], 3);
        let filters: Vec<&String> = filters.iter().filter(|filter| is_topic_filter(filter)).collect();
        for rule in &filters {
            for filter in &filters {
                let included = names.iter().all(|name| !matches(filter, name) || matches(rule, name));
                assert_eq!(covers(rule, filter), included, "{rule} {filter}");
            }
        }
    }
}
