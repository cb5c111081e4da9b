//! WebSocket (RFC 6455), the server's side: the opening handshake and frames, without a socket.
//!
//! ```text
//!   GET … Upgrade: websocket ──▶ decode_request ──▶ encode_accept ──▶ 101
//!   bytes ──▶ Decoder::next ──▶ Data (in place, unmasked) | Ping | Pong | Close
//! ```
//!
//! Data frames are a byte stream to the protocol within: packets may span frames and share them (v5 6). No extension is
//! negotiated.

mod frame;
mod handshake;
mod sha1;

#[cfg(test)]
mod differential;
#[cfg(test)]
mod tests;

pub use frame::{Close, Decoder, Error, Event, Kind, Payload, encode_close, encode_header, encode_pong};
pub use handshake::{HEAD_BYTES_MAX, Refusal, Request, decode_request, encode_accept, encode_refusal};
