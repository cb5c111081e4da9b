//! Opaque bytes over TLS.
