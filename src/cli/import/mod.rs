//! `import`: a mosquitto.conf becomes a configuration of the gateway, with a comment for each thing that does not carry over.
//!
//! Nothing is dropped in silence: a line is translated, or it is told what became of it and what to do instead. The files that it
//! names for access (password file, ACL file) are read for what can be said about them, never for secrets.

mod acl;
mod mosquitto;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use super::arguments::Import;
use super::{CliError, print, shortened};
use acl::Access;
use mosquitto::Conf;

/// No configuration is longer, in bytes.
const FILE_MAX: u64 = 4 << 20;

/// Prints the configuration, and on stderr what did not carry over.
pub fn import(options: &Import) -> Result<(), CliError> {
    let text = read(&options.file)?;
    let conf = Conf::parse(&text);
    let (toml, remarks) = translate(&conf, |path| read(path).map_err(|error| error.to_string()));
    print(&format!("# From {}\n{toml}", one_line(&options.file.display().to_string())))?;
    for remark in remarks {
        // A remark to people: whoever does not read it finds it in the comments too.
        let _ = writeln!(io::stderr(), "pulsegate: {}", shortened(&remark, 400));
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, CliError> {
    let cannot = |why: String| CliError::Run(format!("{}: {why}", path.display()));
    let length = fs::metadata(path).map_err(|error| cannot(error.to_string()))?.len();
    if length > FILE_MAX {
        return Err(cannot(format!("longer than {FILE_MAX} bytes: that is no mosquitto file")));
    }
    let bytes = fs::read(path).map_err(|error| cannot(error.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A text that stays within a comment's line.
fn one_line(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// The configuration, and a remark for each thing that does not carry over.
fn translate(conf: &Conf, read: impl Fn(&Path) -> Result<String, String>) -> (String, Vec<String>) {
    let mut remarks = Vec::new();
    let mut toml = String::new();
    let mut limits = String::new();
    for (key, value) in &conf.global {
        let line = conf_line(key, value);
        match global(key, value) {
            Global::Limit(key, value) => put(&mut limits, &format!("{key} = {value}")),
            Global::Elsewhere => {}
            Global::Remark(what) => remarks.push(format!("{line}: {what}")),
        }
    }
    let connections: Vec<u64> =
        conf.listeners.iter().filter_map(|listener| listener.number("max_connections")).collect();
    if !connections.is_empty() {
        let _ = writeln!(limits, "connections = {}", connections.iter().sum::<u64>().max(1));
    }
    let durability = if conf.global_value("persistence") == Some("true") {
        "durability = \"group\"               # persistence true: acknowledged is on the disk\n"
    } else {
        "durability = \"memory\"              # persistence false: acknowledged is in memory, and ends with the process\n"
    };
    toml.push_str("data_dir = \"/var/lib/pulsegate\"\n\n[admin]\nlisten = \"127.0.0.1:7480\"\n\n[store]\n");
    toml.push_str(durability);
    if !limits.is_empty() {
        let _ = write!(toml, "\n[limits]\n{limits}");
    }
    for (index, listener) in conf.listeners.iter().enumerate() {
        let (table, more) = Translated { conf, listener, index }.table(&read);
        toml.push_str(&table);
        remarks.extend(more);
    }
    if conf.listeners.is_empty() {
        remarks.push("there is no listener: mosquitto would listen on localhost alone, and so would this".to_owned());
    }
    let mut comments = String::new();
    for remark in &remarks {
        let _ = writeln!(comments, "# Not carried over: {}", one_line(remark));
    }
    (format!("{comments}\n{toml}"), remarks)
}

fn conf_line(key: &str, value: &str) -> String {
    one_line(format!("{key} {}", shortened(value, 80)).trim())
}

fn put(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// What a line outside of a listener is to the gateway.
enum Global {
    /// A key of `[limits]`.
    Limit(&'static str, u64),
    /// Said with the listeners, or of no consequence.
    Elsewhere,
    Remark(&'static str),
}

fn global(key: &str, value: &str) -> Global {
    let limit = |name| match value.parse::<u64>() {
        Ok(0) => Global::Remark("0 stands for no bound; here everything has one: see [limits]"),
        Ok(number) => Global::Limit(name, number),
        Err(_) => Global::Remark("this is no number"),
    };
    match key {
        "max_inflight_messages" => limit("session_inflight"),
        "max_queued_messages" => limit("session_messages"),
        "max_queued_bytes" => limit("session_bytes"),
        "max_packet_size" | "message_size_limit" => limit("packet_bytes"),
        // With each listener; or what is so anyway: the store has its own file.
        "allow_anonymous"
        | "password_file"
        | "acl_file"
        | "persistent_client_expiration"
        | "max_keepalive"
        | "persistence"
        | "per_listener_settings"
        | "persistence_location"
        | "persistence_file"
        | "autosave_interval"
        | "autosave_on_changes"
        | "set_tcp_nodelay" => Global::Elsewhere,
        "retain_available" if value == "true" => Global::Elsewhere,
        "user" | "pid_file" => Global::Remark("the unit of systemd says who runs it: deploy/pulsegate.service"),
        "log_dest" | "log_type" | "log_timestamp" | "log_timestamp_format" | "log_facility" | "connection_messages" => {
            Global::Remark("the log goes to stderr, and --log-filter says what of it")
        }
        "connection" | "address" | "addresses" | "topic" | "bridge_cafile" | "bridge_capath" | "remote_username"
        | "remote_password" | "remote_clientid" | "cleansession" | "start_type" | "try_private" | "notifications" => {
            Global::Remark("there are no bridges: a backend reads GET /v1/uplink and publishes with POST /v1/publish")
        }
        "plugin" | "auth_plugin" | "plugin_opt" | "global_plugin" => Global::Remark("there are no plugins"),
        "psk_file" | "psk_hint" => {
            Global::Remark("there are no pre-shared keys: give devices certificates (pulsegate ca)")
        }
        "sys_interval" => Global::Remark("there is no $SYS tree: GET /metrics has the figures"),
        "include_dir" => Global::Remark("give the files of this directory to import one by one"),
        _ => Global::Remark("the gateway has nothing like it"),
    }
}

/// One listener under translation.
struct Translated<'a> {
    conf: &'a Conf,
    listener: &'a mosquitto::Listener,
    index: usize,
}

impl Translated<'_> {
    /// The listener's own word, or that of the whole file.
    fn value(&self, key: &str) -> Option<&str> {
        self.listener.value(key).or_else(|| self.conf.global_value(key))
    }

    fn table(&self, read: &impl Fn(&Path) -> Result<String, String>) -> (String, Vec<String>) {
        let listener = self.listener;
        let mut remarks = Vec::new();
        let is_websocket = listener.value("protocol") == Some("websockets");
        let name = format!("{}-{}", if is_websocket { "websocket" } else { "mqtt" }, self.index + 1);
        let at = |what: String| format!("listener {}: {what}", listener.port);
        let mut toml = format!("\n[[listener]]\nname = {name:?}\n");
        let address = listener.address.as_deref().unwrap_or("0.0.0.0");
        let host = if address == "localhost" { "127.0.0.1" } else { address };
        let listen = if host.contains(':') {
            format!("[{host}]:{}", listener.port)
        } else {
            format!("{host}:{}", listener.port)
        };
        let _ = writeln!(toml, "listen = {}\nprotocol = \"mqtt\"", quoted(&listen));
        if listen.parse::<std::net::SocketAddr>().is_err() {
            remarks.push(at(format!("{address:?} is no IP address: write the one that it stands for")));
        }
        if is_websocket {
            toml.push_str("transport = \"websocket\"\n");
        }
        self.put_tls(&mut toml, &mut remarks);
        let from = self.put_identity(&mut toml, &mut remarks);
        self.put_mqtt(&mut toml, &mut remarks, from, read);
        if is_websocket {
            toml.push_str("\n[listener.websocket]\npath = \"/mqtt\"                     # mosquitto takes any path\n");
        }
        for (key, value) in &listener.values {
            if let Some(what) = without_counterpart(key, value) {
                remarks.push(at(format!("{}: {what}", conf_line(key, value))));
            }
        }
        (toml, remarks)
    }

    fn put_tls(&self, toml: &mut String, remarks: &mut Vec<String>) {
        let listener = self.listener;
        toml.push_str("\n[listener.tls]\n");
        if let (Some(cert), Some(key)) = (listener.value("certfile"), listener.value("keyfile")) {
            let _ = writeln!(toml, "cert = {}\nkey = {}", quoted(cert), quoted(key));
        } else {
            toml.push_str("cert = \"tls/server.pem\"             # to be made: the listener had no TLS, and here there is none without\n");
            toml.push_str("key = \"tls/server.key\"\n");
            let what = "it has no TLS, and the gateway serves nothing without: give it a certificate, and devices its authority";
            remarks.push(format!("listener {}: {what}", listener.port));
        }
        let requires = listener.value("require_certificate") == Some("true");
        if let Some(authority) = listener.value("cafile")
            && requires
        {
            let _ = writeln!(toml, "client_ca = {}\nclient_auth = \"required\"", quoted(authority));
        }
        if listener.value("tls_version") == Some("tlsv1.3") {
            toml.push_str("versions = [\"1.3\"]\n");
        }
        if let Some(list) = listener.value("crlfile") {
            let _ = writeln!(toml, "\n[listener.tls.crl]\nfiles = [{}]", quoted(list));
        }
    }

    /// Where ids come from.
    fn put_identity(&self, toml: &mut String, remarks: &mut Vec<String>) -> &'static str {
        let by_certificate = ["use_identity_as_username", "use_subject_as_username"]
            .iter()
            .any(|key| self.listener.value(key) == Some("true"));
        let passwords = self.value("password_file").filter(|_| !by_certificate);
        let from = if by_certificate { "cert-cn" } else { "client-id" };
        let _ = writeln!(toml, "\n[listener.identity]\nfrom = \"{from}\"");
        if let Some(file) = passwords {
            let _ = writeln!(toml, "password_file = \"users\"            # instead of {}", one_line(file));
            remarks.push(format!(
                "{file}: mosquitto's hashes (PBKDF2) are not read: pulsegate hash-token NAME >> users, for each user; with from = \
                 \"username\" a user is one device"
            ));
            if self.value("allow_anonymous") == Some("true") {
                remarks.push(
                    "allow_anonymous true beside a password file: here a listener with one lets nobody in without"
                        .to_owned(),
                );
            }
        } else if self.value("allow_anonymous") != Some("true") && !by_certificate {
            remarks.push(format!(
                "listener {}: mosquitto lets nobody in here (allow_anonymous false, no password file); this listener lets in whoever \
                 connects, under the client identifier that it names: ask for certificates, or name a password_file",
                self.listener.port
            ));
        }
        from
    }

    fn put_mqtt(
        &self,
        toml: &mut String,
        remarks: &mut Vec<String>,
        from: &str,
        read: &impl Fn(&Path) -> Result<String, String>,
    ) {
        toml.push_str("\n[listener.mqtt]\n");
        if let Some(seconds) =
            self.value("max_keepalive").and_then(|value| value.parse::<u32>().ok()).filter(|most| *most > 0)
        {
            let _ = writeln!(toml, "keep_alive_max = \"{seconds}s\"");
        }
        if let Some(span) = self.value("persistent_client_expiration") {
            match mosquitto::span(span) {
                Some(span) => put(toml, &format!("session_expiry_max = \"{span}\"")),
                None => remarks.push(format!("persistent_client_expiration {}: this is no span", one_line(span))),
            }
        }
        let access = match self.value("acl_file") {
            // Mosquitto without an ACL file lets everybody do everything.
            None => Access::open(),
            Some(file) => match read(Path::new(file)) {
                Ok(text) => acl::translate(&text, from),
                Err(why) => {
                    remarks.push(format!(
                        "acl_file {}: {}: only a device's own topics are open",
                        one_line(file),
                        one_line(&why)
                    ));
                    Access::own()
                }
            },
        };
        let _ = writeln!(toml, "publish = {}\nsubscribe = {}", list(&access.publish), list(&access.subscribe));
        remarks.extend(access.remarks);
    }
}

/// What a key within a listener has no counterpart for; `None` where it was translated, or says what is so anyway.
fn without_counterpart(key: &str, value: &str) -> Option<&'static str> {
    match key {
        "certfile"
        | "keyfile"
        | "require_certificate"
        | "use_identity_as_username"
        | "crlfile"
        | "max_connections"
        | "protocol"
        | "password_file"
        | "acl_file"
        | "allow_anonymous"
        | "socket_domain"
        | "max_qos"
        // Authorities are for client certificates, and where those are not asked for they are not.
        | "cafile" => None,
        "tls_version" if ["tlsv1.2", "tlsv1.3"].contains(&value) => None,
        "tls_version" => Some("TLS before 1.2 is not spoken"),
        "capath" => Some("put the authorities into one PEM file and name it as client_ca"),
        "use_subject_as_username" => Some("the common name is the device's id, not the whole subject"),
        "ciphers" | "ciphers_tls1.3" | "dhparamfile" | "tls_engine" | "tls_keyform" => {
            Some("cipher suites are not chosen by hand")
        }
        "mount_point" => Some("topics have no mount points: write them into publish and subscribe"),
        "http_dir" => Some("no files are served: put the pages on a web server"),
        "websockets_origin" => Some("name the origins in listener.websocket.origins"),
        "clientid_prefixes" => Some("names are not restricted by prefix: use certificates, or password_file"),
        "enable_proxy_protocol" | "proxy_protocol_v2_require_tls" => {
            Some("name the proxies' networks in listener.proxy_protocol")
        }
        _ => Some("the gateway has nothing like it"),
    }
}

/// As TOML wants a string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn list(rules: &[String]) -> String {
    let rules: Vec<String> = rules.iter().map(|rule| quoted(rule)).collect();
    format!("[{}]", rules.join(", "))
}

#[cfg(test)]
mod tests;
