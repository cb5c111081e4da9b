//! TLS in two halves that never overlap: [`handshake`] is all of rustls, [`record`] is our own record layer on the
//! plain data that a finished handshake leaves behind.

pub mod certs;
pub mod handshake;
pub mod record;
