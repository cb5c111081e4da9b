//! An ACL file of mosquitto as the rules of a listener.
//!
//! ```text
//!   topic [read|write|readwrite|deny] FILTER      before any user: who has no name
//!   user NAME
//!   topic [read|write|readwrite|deny] FILTER      of that user
//!   pattern [read|write|readwrite|deny] FILTER    of everybody; %c the client identifier, %u the user's name
//! ```
//! The rules of a listener are the same for every device, with `{device}` for its own id. So patterns carry over; the topics of
//! users do where every user has the same ones, but for its own name in them.

use std::collections::{BTreeMap, BTreeSet};

use super::one_line;
use crate::cli::shortened;

/// Where devices may publish, what they may subscribe to, and what could not be said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Access {
    pub publish: Vec<String>,
    pub subscribe: Vec<String>,
    pub remarks: Vec<String>,
}

impl Access {
    /// Everything.
    pub(super) fn open() -> Self {
        let all = || vec!["#".to_owned()];
        let remark = "there is no acl_file, so any device may publish and subscribe anywhere: \"devices/{device}/#\" would be a \
                      device's own";
        Self { publish: all(), subscribe: all(), remarks: vec![remark.to_owned()] }
    }

    /// What is a device's own.
    pub(super) fn own() -> Self {
        let own = || vec!["devices/{device}/#".to_owned()];
        Self { publish: own(), subscribe: own(), remarks: Vec::new() }
    }
}

/// What somebody may do: a filter, to write and to read.
type Rule = (String, bool, bool);

/// The rules of `text`, where ids come from `from`.
pub(super) fn translate(text: &str, from: &str) -> Access {
    let mut access = Access::default();
    let mut everybody: BTreeSet<Rule> = BTreeSet::new();
    let mut users: BTreeMap<&str, BTreeSet<Rule>> = BTreeMap::new();
    let mut user = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (kind, rest) = line.split_once(|char: char| char.is_ascii_whitespace()).unwrap_or((line, ""));
        let mut refuse = |what: &str| {
            access.remarks.push(format!("acl_file: {}: {what}", one_line(&shortened(line, 120))));
        };
        match kind {
            "user" => {
                user = Some(rest.trim());
                users.entry(rest.trim()).or_default();
            }
            "topic" | "pattern" => {
                let Some((filter, write, read)) = parse_rule(rest.trim()) else {
                    refuse("what is not allowed is not: leave it out of publish and subscribe");
                    continue;
                };
                match (kind, user) {
                    ("pattern", _) => match with_device(&filter, from) {
                        Ok(filter) => everybody.extend([(filter, write, read)]),
                        Err(what) => refuse(what),
                    },
                    (_, Some(user)) => {
                        users.entry(user).or_default().extend([(own_name(&filter, user), write, read)]);
                    }
                    // Of those without a name, who here are everybody.
                    (_, None) => everybody.extend([(filter, write, read)]),
                }
            }
            _ => refuse("this is no rule"),
        }
    }
    take_users(&users, &mut everybody, &mut access.remarks);
    for (filter, write, read) in everybody {
        if write {
            access.publish.push(filter.clone());
        }
        if read {
            access.subscribe.push(filter);
        }
    }
    access
}

/// Where all users have the same rules but for their names, those are everybody's.
fn take_users(users: &BTreeMap<&str, BTreeSet<Rule>>, everybody: &mut BTreeSet<Rule>, remarks: &mut Vec<String>) {
    let Some(first) = users.values().next() else { return };
    if users.len() > 1 && users.values().all(|rules| rules == first) {
        everybody.extend(first.iter().cloned());
        return;
    }
    for (user, rules) in users {
        let filters: Vec<&str> = rules.iter().map(|(filter, _, _)| filter.as_str()).collect();
        remarks.push(format!(
            "acl_file: user {}: {}: the rules of a listener are the same for all its devices: give such users a listener of their own",
            one_line(user),
            one_line(&shortened(&filters.join(", "), 200)),
        ));
    }
}

/// `[read|write|readwrite] FILTER`; `None` for what is denied.
fn parse_rule(text: &str) -> Option<Rule> {
    let (word, rest) = text.split_once(|char: char| char.is_ascii_whitespace()).unwrap_or(("", text));
    let (filter, write, read) = match word {
        "deny" => return None,
        "read" => (rest, false, true),
        "write" => (rest, true, false),
        "readwrite" => (rest, true, true),
        // A filter may hold spaces.
        _ => (text, true, true),
    };
    Some((filter.trim().to_owned(), write, read))
}

/// A pattern with `{device}` for the name that is the device's id.
fn with_device(pattern: &str, from: &str) -> Result<String, &'static str> {
    let (name, other) = if from == "client-id" { ("%c", "%u") } else { ("%u", "%c") };
    let levels = pattern.split('/').map(|level| match level {
        level if level == name => Ok("{device}"),
        level if level == other => {
            Err("the user's name and the client identifier are not both the device's id: see listener.identity.from")
        }
        level if level.contains("%c") || level.contains("%u") => Err("a name must be a level of its own"),
        level => Ok(level),
    });
    Ok(levels.collect::<Result<Vec<_>, _>>()?.join("/"))
}

/// A user's filter with `{device}` for the levels that are its name.
fn own_name(filter: &str, user: &str) -> String {
    filter.split('/').map(|level| if level == user { "{device}" } else { level }).collect::<Vec<_>>().join("/")
}
