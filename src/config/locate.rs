//! Where in the file a key stands, and which key stands at a place of the file. Only errors look here.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The line of byte `offset`, counted from 1.
pub fn line_at(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    before.split(|&byte| byte == b'\n').count()
}

/// The line of the key at `path` (`listener[1].heartbeat.interval`), or of the nearest table around it that is
/// written. `None` when nothing of it is.
pub fn line_of(text: &str, path: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut found = None;
    for segment in path.split('.').filter(|segment| !segment.is_empty()) {
        let (name, index) = split_index(segment);
        let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref() == name) else { break };
        let mut value = value.get_ref();
        let mut start = key.span().start;
        if let Some(element) = index.and_then(|index| value.as_array()?.get(index)) {
            start = element.span().start;
            value = element.get_ref();
        }
        found = Some(line_at(text, start));
        let Some(inner) = value.as_table() else { break };
        table = inner;
    }
    found
}

/// Puts spaces where the key at `path` and its value are written, so that all else keeps its place. Not where the value is
/// a table, or where what is left is not TOML any more; then nothing is changed. Whether it was.
pub fn blank(text: &mut String, path: &str) -> bool {
    let Some(range) = range_of(text, path) else { return false };
    let blank = |byte| if byte == b'\n' { '\n' } else { ' ' };
    let blanked: String = text[range.clone()].bytes().map(blank).collect();
    let mut left = text.clone();
    left.replace_range(range, &blanked);
    let is_toml = DeTable::parse(&left).is_ok();
    if is_toml {
        *text = left;
    }
    is_toml
}

fn range_of(text: &str, path: &str) -> Option<Range<usize>> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut segments = path.split('.').peekable();
    while let Some(segment) = segments.next() {
        let (name, index) = split_index(segment);
        let (key, value) = table.iter().find(|(key, _)| key.get_ref() == name)?;
        let inner = match index {
            Some(index) => value.get_ref().as_array()?.get(index)?,
            None => value,
        };
        if segments.peek().is_none() {
            let is_table = inner.get_ref().as_table().is_some();
            return (index.is_none() && !is_table).then(|| key.span().start..value.span().end);
        }
        table = inner.get_ref().as_table()?;
    }
    None
}

/// The path of the innermost key whose own text or value covers `span`.
pub fn key_at(text: &str, span: &Range<usize>) -> Option<String> {
    // What cannot be parsed has no keys yet; the line says enough.
    let document = DeTable::parse(text).ok()?;
    let mut path = String::new();
    descend(document.get_ref(), span, &mut path);
    (!path.is_empty()).then_some(path)
}

fn descend(table: &DeTable<'_>, span: &Range<usize>, path: &mut String) {
    for (key, value) in table {
        // A table's span is its header's, so its keys are searched wherever they stand.
        let mut inner = path.clone();
        if !inner.is_empty() {
            inner.push('.');
        }
        inner.push_str(key.get_ref());
        if covers(&key.span(), span) {
            *path = inner;
            return;
        }
        let before = inner.clone();
        descend_value(value, span, &mut inner);
        if inner != before || covers(&value.span(), span) {
            *path = inner;
            return;
        }
    }
}

fn descend_value(value: &Spanned<DeValue<'_>>, span: &Range<usize>, path: &mut String) {
    match value.get_ref() {
        DeValue::Table(table) => descend(table, span, path),
        DeValue::Array(array) => {
            for (index, element) in array.iter().enumerate() {
                let mut inner = format!("{path}[{index}]");
                let before = inner.clone();
                descend_value(element, span, &mut inner);
                if inner != before || covers(&element.span(), span) {
                    *path = inner;
                    return;
                }
            }
        }
        _ => {}
    }
}

fn covers(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// `listener[1]` as its name and index.
fn split_index(segment: &str) -> (&str, Option<usize>) {
    match segment.strip_suffix(']').and_then(|rest| rest.split_once('[')) {
        Some((name, index)) => (name, index.parse().ok()),
        None => (segment, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "workers = 2\n\n[limits]\nconnections = 5\n\n[[listener]]\nname = \"a\"\n\
                        [[listener]]\nname = \"b\"\n\
                        [listener.heartbeat]\ninterval = \"60s\"\n\
                        [listener.tls]\ncertificates = [\n  { cert = \"x\" },\n\
                        \x20 { cert = 7 },\n]\n";

    #[test]
    fn a_key_has_a_line() {
        assert_eq!(line_of(TEXT, "workers"), Some(1));
        assert_eq!(line_of(TEXT, "limits.connections"), Some(4));
        assert_eq!(line_of(TEXT, "listener[0].name"), Some(7));
        assert_eq!(line_of(TEXT, "listener[1].name"), Some(9));
        assert_eq!(line_of(TEXT, "listener[1].heartbeat.interval"), Some(11));
        assert_eq!(line_of(TEXT, "listener[1].tls.certificates[1].cert"), Some(15));
    }

    #[test]
    fn a_missing_key_has_the_line_of_its_table() {
        assert_eq!(line_of(TEXT, "limits.handshakes"), Some(3));
        assert_eq!(line_of(TEXT, "listener[1].heartbeat.timeout"), Some(10));
        assert_eq!(line_of(TEXT, "listener[0].listen"), Some(6));
        assert_eq!(line_of(TEXT, "admin.listen"), None);
    }

    #[test]
    fn a_key_is_blanked_out_and_all_else_keeps_its_place() {
        let mut text = TEXT.to_owned();
        assert!(blank(&mut text, "limits.connections") && blank(&mut text, "listener[1].tls.certificates[1].cert"));
        assert!(!text.contains("connections") && !text.contains('7') && text.contains("cert = \"x\""));
        assert_eq!(line_of(&text, "listener[1].heartbeat.interval"), Some(11));
        let before = text.clone();
        for path in ["limits.connections", "listener[1].heartbeat", "listener[0]", "none.at.all", ""] {
            assert!(!blank(&mut text, path), "{path}");
        }
        assert_eq!(text, before);
        let mut inline = "a = { b = 1, c = 2 }\n".to_owned();
        assert!(!blank(&mut inline, "a.b"), "a comma would be left");
    }

    #[test]
    fn a_place_has_a_key() {
        let at = |needle: &str| {
            let start = TEXT.find(needle).unwrap();
            key_at(TEXT, &(start..start + needle.len()))
        };
        assert_eq!(at("5").as_deref(), Some("limits.connections"));
        assert_eq!(at("\"60s\"").as_deref(), Some("listener[1].heartbeat.interval"));
        assert_eq!(at("\"a\"").as_deref(), Some("listener[0].name"));
        assert_eq!(at("7").as_deref(), Some("listener[1].tls.certificates[1].cert"));
    }
}
