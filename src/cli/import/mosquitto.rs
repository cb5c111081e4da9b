//! The form of a mosquitto.conf: a key and its value a line, `#` at the beginning of a line for comments; `listener PORT [ADDRESS]`
//! begins a listener, to which the keys behind it belong that are a listener's.

/// Keys that belong to the listener before them; all others hold for the whole file.
const OF_LISTENERS: &[&str] = &[
    "allow_zero_length_clientid",
    "bind_interface",
    "cafile",
    "capath",
    "certfile",
    "ciphers",
    "ciphers_tls1.3",
    "clientid_prefixes",
    "crlfile",
    "dhparamfile",
    "enable_proxy_protocol",
    "http_dir",
    "keyfile",
    "max_connections",
    "max_qos",
    "max_topic_alias",
    "mount_point",
    "protocol",
    "proxy_protocol_v2_require_tls",
    "require_certificate",
    "socket_domain",
    "tls_engine",
    "tls_keyform",
    "tls_version",
    "use_identity_as_username",
    "use_subject_as_username",
    "use_username_as_clientid",
    "websockets_headers_size",
    "websockets_log_level",
    "websockets_origin",
];
/// With `per_listener_settings true` these are a listener's too.
const OF_LISTENERS_ON_REQUEST: &[&str] =
    &["allow_anonymous", "password_file", "acl_file", "psk_file", "plugin", "auth_plugin"];

/// A whole file.
#[derive(Debug, Default)]
pub(super) struct Conf {
    /// What holds for all of it, in the order in which it stands there.
    pub global: Vec<(String, String)>,
    pub listeners: Vec<Listener>,
}

/// One listener.
#[derive(Debug, Default)]
pub(super) struct Listener {
    pub port: u16,
    pub address: Option<String>,
    pub values: Vec<(String, String)>,
}

impl Conf {
    pub(super) fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        let per_listener = lines(text).any(|line| line == ("per_listener_settings", "true"));
        // Keys before any listener are those of the default one, on `port` and `bind_address`.
        let mut default = Listener { port: 1_883, ..Listener::default() };
        let mut has_default = false;
        for (key, value) in lines(text) {
            let belongs = OF_LISTENERS.contains(&key) || per_listener && OF_LISTENERS_ON_REQUEST.contains(&key);
            match key {
                "listener" => {
                    let mut words = value.split_ascii_whitespace();
                    let port = words.next().and_then(|word| word.parse().ok());
                    match port {
                        // A port of 0 is a unix socket.
                        Some(port @ 1..) => conf.listeners.push(Listener {
                            port,
                            address: words.next().map(str::to_owned),
                            ..Listener::default()
                        }),
                        _ => conf.global.push((key.to_owned(), value.to_owned())),
                    }
                }
                "port" => {
                    has_default = true;
                    default.port = value.parse().unwrap_or(1_883);
                }
                "bind_address" => {
                    has_default = true;
                    default.address = Some(value.to_owned());
                }
                _ if belongs => {
                    has_default |= conf.listeners.is_empty();
                    let listener = conf.listeners.last_mut().unwrap_or(&mut default);
                    listener.values.push((key.to_owned(), value.to_owned()));
                }
                _ => conf.global.push((key.to_owned(), value.to_owned())),
            }
        }
        if has_default {
            conf.listeners.insert(0, default);
        } else if conf.listeners.is_empty() {
            conf.listeners.push(Listener { address: Some("127.0.0.1".to_owned()), ..default });
        }
        conf
    }

    /// The last word on this key that holds for the whole file.
    pub(super) fn global_value(&self, key: &str) -> Option<&str> {
        last(&self.global, key)
    }
}

impl Listener {
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        last(&self.values, key)
    }

    /// A number that is a bound; mosquitto's -1 and 0 are none.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.value(key)?.parse().ok().filter(|number| *number > 0)
    }
}

fn last<'a>(values: &'a [(String, String)], key: &str) -> Option<&'a str> {
    values.iter().rev().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
}

fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let (key, value) = line.split_once(|char: char| char.is_ascii_whitespace()).unwrap_or((line, ""));
        (key, value.trim())
    })
}

/// `14d` of mosquitto, in hours, days, weeks, months and years, as the gateway writes it.
pub(super) fn span(text: &str) -> Option<String> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
    let unit = match unit {
        "h" => "h",
        "d" => "days",
        "w" => "weeks",
        "m" => "months",
        "y" => "years",
        _ => return None,
    };
    Some(format!("{number}{unit}"))
}
