//! What the operator wrote, word for word: the shape of the file and nothing about what is right. Every key is optional
//! here and every number is signed and wide, so that it is [`super::check`] that judges and names the key.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// This gateway's name.
    pub node: Option<String>,
    /// Where the gateway keeps what it makes itself.
    pub data_dir: Option<String>,
    /// Worker threads.
    pub workers: Option<i64>,
    /// A file that names who is kept out.
    pub deny_file: Option<String>,
    /// `[admin]`.
    pub admin: RawAdmin,
    /// `[limits]`.
    pub limits: RawLimits,
    /// `[admission]`.
    pub admission: RawAdmission,
    /// `[drain]`.
    pub drain: RawDrain,
    /// `[backbone]`.
    pub backbone: RawBackbone,
    /// `[store]`.
    pub store: RawStore,
    /// `[uplink]`.
    pub uplink: RawUplink,
    /// `[[sink]]`.
    #[serde(rename = "sink")]
    pub sinks: Vec<RawSink>,
    /// `[[listener]]`.
    #[serde(rename = "listener")]
    pub listeners: Vec<RawListener>,
}

/// `[admin]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawAdmin {
    /// `address:port`.
    pub listen: Option<String>,
    /// A file that holds the bearer token.
    pub token_file: Option<String>,
    /// `[[admin.token]]`.
    #[serde(rename = "token")]
    pub tokens: Vec<RawAdminToken>,
    /// Names under which the API answers.
    pub hosts: Vec<String>,
    /// `[admin.tls]`.
    pub tls: Option<RawAdminTls>,
}

/// `[admin.tls]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the fields of `AdminTls`, which documents them")]
pub struct RawAdminTls {
    pub cert: Option<String>,
    pub key: Option<String>,
    pub client_ca: Option<String>,
}

/// `[[admin.token]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawAdminToken {
    /// Who holds it.
    pub name: Option<String>,
    /// `read`, `command` or `admin`.
    pub role: Option<String>,
    /// A file that holds it.
    pub file: Option<String>,
}

/// `[admission]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawAdmission {
    /// Networks that its bounds are not about.
    pub allow: Vec<String>,
    /// `[admission.address]`.
    pub address: RawConnectionBounds,
    /// `[admission.network]`.
    pub network: RawConnectionBounds,
}

/// `[admission.address]`, `[admission.network]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConnectionBounds {
    /// Live connections.
    pub connections: Option<i64>,
    /// New ones in a second.
    pub per_second: Option<i64>,
    /// New ones at once.
    pub burst: Option<i64>,
}

/// `[drain]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDrain {
    /// Over how long the goodbyes are spread.
    pub window: Option<String>,
}

/// `[backbone]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawBackbone {
    /// Events kept.
    pub events: Option<i64>,
    /// Bytes that they may take.
    pub bytes: Option<i64>,
    /// `[backbone.nats]`.
    pub nats: Option<RawFleet>,
}

/// `[backbone.nats]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the fields of `Fleet`, which documents them")]
pub struct RawFleet {
    pub urls: Vec<String>,
    pub prefix: Option<String>,
    pub replicas: Option<i64>,
    pub lease: Option<String>,
    pub timeout: Option<String>,
    pub retry_min: Option<String>,
    pub retry_max: Option<String>,
    pub writes_per_second: Option<i64>,
    pub ready_without_nats: Option<bool>,
    pub uplink: Option<String>,
    pub credentials_file: Option<String>,
    pub nkey_file: Option<String>,
    pub username: Option<String>,
    pub password_file: Option<String>,
    pub tls: Option<RawSinkTls>,
}

/// `[store]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawStore {
    /// `group`, `interval` or `memory`.
    pub durability: Option<String>,
    /// How often what was written is brought to the disk.
    pub sync_interval: Option<String>,
    /// The file's largest size.
    pub bytes: Option<i64>,
    /// Bytes that may wait to be written.
    pub queue_bytes: Option<i64>,
    /// Bytes of messages that wait for devices that are away.
    pub sessions_bytes: Option<i64>,
    pub commands_bytes: Option<i64>,
}

/// `[uplink]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawUplink {
    /// For how long events are kept.
    pub retention: Option<String>,
    /// How many bytes of them.
    pub retention_bytes: Option<i64>,
}

/// One `[[sink]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the fields of `Sink` and of its kinds, which document them")]
pub struct RawSink {
    pub name: Option<String>,
    pub r#type: Option<String>,
    pub url: Option<String>,
    pub topics: Option<Vec<String>>,
    pub presence: Option<bool>,
    pub from: Option<String>,
    pub timeout: Option<String>,
    pub retry_min: Option<String>,
    pub retry_max: Option<String>,
    pub tries_refused: Option<i64>,
    pub tries_failed: Option<i64>,
    pub dead_letter_bytes: Option<i64>,
    pub tls: Option<RawSinkTls>,
    pub format: Option<String>,
    pub batch_events: Option<i64>,
    pub batch_bytes: Option<i64>,
    pub secret_file: Option<String>,
    pub authorization_file: Option<String>,
    pub client_id: Option<String>,
    pub username: Option<String>,
    pub password_file: Option<String>,
    pub topic: Option<String>,
    pub presence_topic: Option<String>,
    pub connections: Option<i64>,
    pub inflight: Option<i64>,
    pub keep_alive: Option<String>,
    pub commands: Option<String>,
    pub command_session: Option<String>,
    pub stream: Option<String>,
    pub prefix: Option<String>,
    pub credentials_file: Option<String>,
    pub nkey_file: Option<String>,
}

/// `[sink.tls]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the fields of `SinkTls`, which documents them")]
pub struct RawSinkTls {
    pub ca: Option<String>,
    pub cert: Option<String>,
    pub key: Option<String>,
}

/// `[limits]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the fields of `Limits`, which documents them")]
pub struct RawLimits {
    pub connections: Option<i64>,
    pub handshakes: Option<i64>,
    pub handshake_time: Option<String>,
    pub hello_time: Option<String>,
    pub read_bytes: Option<i64>,
    pub frame_bytes: Option<i64>,
    pub outbox_bytes: Option<i64>,
    pub inbox_length: Option<i64>,
    pub uplink_length: Option<i64>,
    pub connections_per_address: Option<i64>,
    pub shed_lateness: Option<String>,
    pub linger_time: Option<String>,
    pub packet_bytes: Option<i64>,
    pub connect_bytes: Option<i64>,
    pub sessions: Option<i64>,
    pub session_inflight: Option<i64>,
    pub session_messages: Option<i64>,
    pub session_bytes: Option<i64>,
    pub session_subscriptions: Option<i64>,
    pub topic_levels: Option<i64>,
    pub retained_messages: Option<i64>,
    pub retained_bytes: Option<i64>,
    pub pool_bytes: Option<i64>,
}

/// One `[[listener]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawListener {
    /// Its name.
    pub name: Option<String>,
    /// `address:port`.
    pub listen: Option<String>,
    /// The listener whose port it shares.
    pub shares: Option<String>,
    /// Application protocols.
    pub alpn: Option<Vec<String>>,
    /// `native`, `raw` or `mqtt`.
    pub protocol: Option<String>,
    /// `tls` or `websocket`.
    pub transport: Option<String>,
    /// Networks of proxies.
    pub proxy_protocol: Option<Vec<String>>,
    /// `[listener.websocket]`.
    pub websocket: Option<RawWebSocket>,
    /// `[listener.tls]`.
    pub tls: Option<RawTls>,
    /// `[listener.heartbeat]`.
    pub heartbeat: Option<RawHeartbeat>,
    /// `[listener.identity]`.
    pub identity: RawIdentity,
    /// `[[listener.authenticator]]`.
    #[serde(rename = "authenticator")]
    pub authenticators: Vec<RawAuthenticator>,
    /// `[listener.rates]`.
    pub rates: RawRates,
    /// `[listener.raw]`.
    pub raw: Option<RawRaw>,
    /// `[listener.mqtt]`.
    pub mqtt: Option<RawMqtt>,
}

/// `[listener.tls]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTls {
    /// The first certificate chain.
    pub cert: Option<String>,
    /// Its key.
    pub key: Option<String>,
    /// Further chains, chosen by SNI.
    pub certificates: Vec<RawCertificate>,
    /// The authorities of client certificates.
    pub client_ca: Option<String>,
    /// `off`, `optional` or `required`.
    pub client_auth: Option<String>,
    /// An OCSP response for the first chain.
    pub ocsp: Option<String>,
    /// `[listener.tls.crl]`.
    pub crl: Option<RawCrl>,
    /// `close` or `keep`.
    pub on_revoked: Option<String>,
    /// `close` or `keep`.
    pub on_expired: Option<String>,
    /// `1.2`, `1.3`.
    pub versions: Option<Vec<String>>,
    /// The most plaintext in one record.
    pub record_bytes: Option<i64>,
    /// Whether sessions are resumed.
    pub tickets: Option<bool>,
    /// From the full handshake on.
    pub ticket_lifetime: Option<String>,
    /// A file of shared keys.
    pub ticket_keys: Option<String>,
    /// The longest that a connection lives.
    pub max_connection_age: Option<String>,
}

/// `[listener.tls.crl]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawCrl {
    /// PEM files.
    pub files: Vec<String>,
    /// `refuse` or `accept`.
    pub expired: Option<String>,
    /// `refuse` or `accept`.
    pub unknown: Option<String>,
    /// `chain` or `leaf`.
    pub depth: Option<String>,
}

/// One of `listener.tls.certificates`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawCertificate {
    /// The chain.
    pub cert: Option<String>,
    /// Its key.
    pub key: Option<String>,
    /// An OCSP response.
    pub ocsp: Option<String>,
}

/// `[listener.heartbeat]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawHeartbeat {
    /// Silence before the first probe.
    pub interval: Option<String>,
    /// Wait for each answer.
    pub timeout: Option<String>,
    /// Further probes.
    pub retries: Option<i64>,
    /// The longest interval that a device may ask for.
    pub max: Option<String>,
}

/// `[listener.rates]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRates {
    /// Messages.
    pub messages_per_second: Option<i64>,
    /// Bytes on the wire.
    pub bytes_per_second: Option<i64>,
    /// How much of both may come at once.
    pub burst: Option<String>,
    /// How long a device may send more.
    pub patience: Option<String>,
    /// How long it is kept out after that.
    pub deny_for: Option<String>,
}

/// `[listener.identity]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawIdentity {
    /// `hello`, `client-id`, `username`, `cert-cn`, `cert-san-dns` or `cert-san-uri`.
    pub from: Option<String>,
    /// Lines `id:argon2-hash`.
    pub token_file: Option<String>,
    /// Lines `name:argon2-hash`.
    pub password_file: Option<String>,
}

macro_rules! authenticator {
    ($($(#[doc = $doc:literal])+ $key:ident: $type:ty,)+) => {
        /// `[[listener.authenticator]]`, of whatever kind.
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct RawAuthenticator {
            /// `certificate`, `jwt`, `password`, `token` or `hook`.
            pub kind: Option<String>,
            $($(#[doc = $doc])+ pub $key: Option<$type>,)+
        }

        impl RawAuthenticator {
            /// The keys that are written, besides `kind`.
            pub fn written(&self) -> Vec<&'static str> {
                [$((stringify!($key), self.$key.is_some()),)+].into_iter().filter(|key| key.1).map(|key| key.0).collect()
            }
        }
    };
}

authenticator! {
    /// Lines `name:argon2-hash`, or keys of tokens.
    file: String,
    /// Where keys are fetched, or who is asked.
    url: String,
    /// The authorities of its certificate.
    ca: String,
    /// How often keys are fetched.
    refresh: String,
    /// The algorithm of RSA keys.
    algorithm: String,
    /// Who must have issued a token.
    issuer: String,
    /// For whom it must be.
    audience: Vec<String>,
    /// How far clocks may be apart.
    leeway: String,
    /// Where the device's id is.
    device_claim: String,
    /// Where the filters are that it may publish to.
    publish_claim: String,
    /// Where the filters are that it may subscribe to.
    subscribe_claim: String,
    /// A file with the token that the gateway shows.
    bearer_file: String,
    /// How long a question may take.
    timeout: String,
    /// Questions under way at a time.
    in_flight: i64,
    /// Devices that may wait for their question.
    waiting: i64,
    /// For how long a yes holds.
    cache: String,
    /// For how long a no does.
    cache_denied: String,
    /// Bytes of answers that are kept.
    cache_bytes: i64,
    /// For how long a yes serves while nobody answers.
    stale: String,
    /// `deny` or `allow-cached`.
    on_error: String,
}

/// `[listener.mqtt]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawMqtt {
    /// The longest keep-alive taken.
    pub keep_alive_max: Option<String>,
    /// How long sessions are kept.
    pub session_expiry_max: Option<String>,
    /// Topics that go up.
    pub uplink: Option<Vec<String>>,
    /// Where devices may publish.
    pub publish: Option<Vec<String>>,
    /// What they may subscribe to.
    pub subscribe: Option<Vec<String>>,
}

/// `[listener.websocket]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawWebSocket {
    /// The path that is asked for.
    pub path: Option<String>,
    /// The origins of pages whose browsers may connect.
    pub origins: Option<Vec<String>>,
    /// Networks of proxies whose X-Forwarded-For is believed.
    pub forwarded_from: Option<Vec<String>>,
}

/// `[listener.raw]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRaw {
    /// Counts as life, does not go up.
    pub heartbeat: Option<RawBytes>,
    /// Sent back for it.
    pub reply: Option<RawBytes>,
    /// Sent after silence.
    pub probe: Option<RawBytes>,
}

/// Bytes written as a string (its UTF-8) or as an array of numbers: `"ping"` or `[0xC0, 0x00]`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RawBytes(pub Vec<u8>);

impl<'de> Deserialize<'de> for RawBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumbers;

        impl<'de> Visitor<'de> for TextOrNumbers {
            type Value = RawBytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string such as \"ping\", or an array of bytes such as [0xC0, 0x00]")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<RawBytes, E> {
                Ok(RawBytes(text.as_bytes().to_vec()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<RawBytes, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = elements.next_element()? {
                    bytes.push(byte);
                }
                Ok(RawBytes(bytes))
            }
        }

        deserializer.deserialize_any(TextOrNumbers)
    }
}
