//! MQTT 3.1.1 and 5.0.

/// The protocol's name in ALPN.
pub const ALPN: &[u8] = b"mqtt";
