//! The native framing (docs/PROTOCOL.md).
