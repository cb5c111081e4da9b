//! Topics made from a device and what it says, and read back: `site-1/{device}/up/{topic}`.
//!
//! What a device or a topic holds that a topic of the other side cannot hold in that place is percent-encoded: `/` within a
//! device's id, wildcards, control characters, and `%` itself. So two devices never share a topic, and what was
//! made can be read back.

use std::fmt::{self, Write};

/// The longest template, in bytes.
const TEMPLATE_BYTES_MAX: usize = 1_024;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Device,
    Topic,
}

/// A template, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicTemplate {
    parts: Vec<Part>,
}

/// Why a template is none: what is wrong, and what to write instead.
pub type Fault = (String, &'static str);

impl TopicTemplate {
    /// For topics that are made: any text with `{device}` and `{topic}` in it, as often as it likes.
    ///
    /// # Errors
    /// A placeholder that there is not, a wildcard, a control character, or nothing at all.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        if text.is_empty() || text.len() > TEMPLATE_BYTES_MAX {
            let what = format!("a template of {} bytes", text.len());
            return Err((what, "write 1 to 1024 bytes, such as \"site-1/{device}/{topic}\""));
        }
        if text.contains(|char: char| matches!(char, '+' | '#') || char.is_control()) {
            let what = format!("{text:?} holds a wildcard or a control character");
            return Err((what, "write a topic with {device} and {topic} where these belong"));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (before, from) = rest.find('{').map_or((rest, ""), |at| rest.split_at(at));
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            rest = from;
            if let Some(after) = rest.strip_prefix("{device}") {
                parts.push(Part::Device);
                rest = after;
            } else if let Some(after) = rest.strip_prefix("{topic}") {
                parts.push(Part::Topic);
                rest = after;
            } else if !rest.is_empty() {
                let what = format!("{text:?} holds a brace that is neither {{device}} nor {{topic}}");
                return Err((what, "these two are the placeholders"));
            }
        }
        Ok(Self { parts })
    }

    /// For topics that are read: `{device}` is a whole level, once; `{topic}`, which may be missing, is the end.
    ///
    /// # Errors
    /// As [`TopicTemplate::parse`], or a placeholder in another place.
    pub fn parse_readable(text: &str) -> Result<Self, Fault> {
        let template = Self::parse(text)?;
        let devices = text.split('/').filter(|level| *level == "{device}").count();
        let device_texts = text.matches("{device}").count();
        let topics = text.matches("{topic}").count();
        let is_readable =
            devices == 1 && device_texts == 1 && (topics == 0 || (topics == 1 && text.ends_with("/{topic}")));
        if !is_readable || text.starts_with('{') {
            let what = format!("in {text:?} the device cannot be told from the topic");
            return Err((
                what,
                "write {device} as one whole level behind a first one, and {topic} at the end, as in \"site-1/{device}/cmd/{topic}\"",
            ));
        }
        Ok(template)
    }

    /// Whether topics of two devices differ.
    #[must_use]
    pub fn names_device(&self) -> bool {
        self.parts.contains(&Part::Device)
    }

    /// The topic for what `device` said under `topic`.
    #[must_use]
    pub fn fill(&self, device: &str, topic: &str) -> String {
        let mut filled = String::with_capacity(device.len() + topic.len() + 32);
        for part in &self.parts {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Device => encode(device, false, &mut filled),
                Part::Topic => encode(topic, true, &mut filled),
            }
        }
        filled
    }

    /// The filter that takes every topic that can be read.
    #[must_use]
    pub fn filter(&self) -> String {
        let parts = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Device => "+",
            Part::Topic => "#",
        });
        parts.collect()
    }

    /// The device and its topic in one that was made by a template of [`TopicTemplate::parse_readable`]; `None`: it was not.
    #[must_use]
    pub fn read(&self, topic: &str) -> Option<(String, String)> {
        let (mut rest, mut device, mut inner) = (topic, None, String::new());
        for part in &self.parts {
            match part {
                Part::Text(text) => rest = rest.strip_prefix(text.as_str())?,
                Part::Device => {
                    let (level, after) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                    device = Some(decode(level)?).filter(|device| !device.is_empty());
                    rest = after;
                }
                Part::Topic => {
                    inner = decode(rest)?;
                    rest = "";
                }
            }
        }
        Some((device?, inner)).filter(|_| rest.is_empty())
    }
}

impl fmt::Display for TopicTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            f.write_str(match part {
                Part::Text(text) => text,
                Part::Device => "{device}",
                Part::Topic => "{topic}",
            })?;
        }
        Ok(())
    }
}

fn encode(text: &str, slash: bool, into: &mut String) {
    for char in text.chars() {
        let stays = match char {
            '/' => slash,
            '+' | '#' | '%' => false,
            other => !other.is_control(),
        };
        if stays {
            into.push(char);
        } else {
            for byte in char.encode_utf8(&mut [0; 4]).bytes() {
                let _ = write!(into, "%{byte:02X}");
            }
        }
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::mqtt::topic::{is_topic_filter, is_topic_name, matches};

    #[test]
    fn a_topic_is_made_and_read_back() {
        let template = TopicTemplate::parse_readable("site-1/{device}/up/{topic}").unwrap();
        assert_eq!(template.fill("meter-1", "power/now"), "site-1/meter-1/up/power/now");
        assert_eq!(template.filter(), "site-1/+/up/#");
        assert_eq!(template.read("site-1/meter-1/up/power/now"), Some(("meter-1".into(), "power/now".into())));
        assert_eq!(template.read("site-1/meter-1/down/x"), None);
        assert_eq!(template.read("site-1//up/x"), None);
        assert_eq!(template.read("site-1/%zz/up/x"), None);
        assert_eq!(template.to_string(), "site-1/{device}/up/{topic}");
        let fixed = TopicTemplate::parse_readable("cmd/{device}").unwrap();
        assert_eq!(fixed.read("cmd/a%2Fb"), Some(("a/b".into(), String::new())));
        assert_eq!(fixed.read("cmd/a/b"), None);
    }

    /// Whatever devices are called and say: a topic that a broker takes, another one for each pair, and the way back.
    #[test]
    fn any_device_and_topic_make_a_name_that_is_read_back() {
        let template = TopicTemplate::parse_readable("x/{device}/{topic}").unwrap();
        let alphabet = ['a', '/', '+', '#', '%', '\0', '\u{7f}', 'é', '2', 'F', '\u{85}', '$'];
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..20_000 {
            let mut text = |least: usize| -> String {
                (0..random.usize(least..8)).map(|_| alphabet[random.usize(..alphabet.len())]).collect()
            };
            let (device, topic) = (text(1), text(0));
            let made = template.fill(&device, &topic);
            assert!(is_topic_name(&made) && is_topic_filter(&template.filter()), "{made:?}");
            assert!(matches(&template.filter(), &made), "{made:?}");
            assert_eq!(template.read(&made), Some((device, topic)), "{made:?}");
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for wrong in ["", "a/{devise}", "a/#", "a/+/b", "a/{", "\u{1}"] {
            assert!(TopicTemplate::parse(wrong).is_err(), "{wrong:?}");
        }
        for wrong in ["{device}/{topic}", "a/x{device}/b", "a/{topic}", "a/{device}/{topic}/b", "a/{device}/{device}"] {
            assert!(TopicTemplate::parse_readable(wrong).is_err(), "{wrong:?}");
        }
        assert!(!TopicTemplate::parse("all/{topic}").unwrap().names_device());
    }
}
