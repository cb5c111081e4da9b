//! Codecs: borrowed frames in, bytes out. They know no socket, no clock, no connection.

pub mod mqtt;
pub mod native;
pub mod proxy;
pub mod raw;
pub mod websocket;
