//! How a connection ends: for which reason, in which words, and whether its last bytes are waited for.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use crate::codec::native::CloseCode;
use crate::link::CloseReason;

/// The end of a connection. A pointer wide: every heartbeat passes results that could have been one.
#[derive(Clone, Debug)]
pub struct Termination(Box<Cause>);

/// Why a connection ends: its one reason, and what can be said about it to the peer and to the log.
#[derive(Clone, Debug)]
pub struct Cause {
    /// The cause, as metrics, logs and events name it.
    pub reason: CloseReason,
    /// In words; may be empty.
    pub detail: Cow<'static, str>,
    /// After how many milliseconds the device is asked to come back; 0: it knows best.
    pub retry_after_ms: u32,
    /// The reason code for a device that speaks MQTT, where the reason alone does not tell it.
    pub code: Option<u8>,
    /// The device was told already: there is no goodbye to be said.
    pub is_sent: bool,
    /// Whether the last bytes said to the peer are waited for: see [`lingers`].
    pub lingers: bool,
}

impl Deref for Termination {
    type Target = Cause;

    fn deref(&self) -> &Cause {
        &self.0
    }
}

impl Termination {
    /// An end that its reason explains.
    #[must_use]
    pub fn new(reason: CloseReason) -> Self {
        Self::because(reason, "")
    }

    /// An end with more to say.
    pub fn because(reason: CloseReason, detail: impl Into<Cow<'static, str>>) -> Self {
        let (detail, lingers) = (detail.into(), lingers(reason));
        Self(Box::new(Cause { reason, detail, retry_after_ms: 0, code: None, is_sent: false, lingers }))
    }

    /// An end by an error.
    pub fn from_error(reason: CloseReason, error: &impl fmt::Display) -> Self {
        Self::because(reason, error.to_string())
    }

    /// The same end with the reason code that an MQTT device is told.
    #[must_use]
    pub fn with_code(mut self, code: u8) -> Self {
        self.0.code = Some(code);
        self
    }

    /// The same end, and the device was told already.
    #[must_use]
    pub fn already_sent(mut self) -> Self {
        self.0.is_sent = true;
        self
    }

    /// The same end of a peer that sends no more and still reads: what was said to it is waited for, whatever the reason.
    #[must_use]
    pub fn heard(mut self) -> Self {
        self.0.lingers = true;
        self
    }

    /// The same end with advice when to come back, in milliseconds.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after_ms: u32) -> Self {
        self.0.retry_after_ms = retry_after_ms;
        self
    }
}

/// Whether the last bytes said to the peer are waited for, as far as the reason tells. A socket closed over unread bytes answers with a reset, and
/// the peer may never read why: so after every end of our own making the socket is shut for writing and read until the
/// peer is done, for `limits.linger_time` at most.
#[must_use]
pub const fn lingers(reason: CloseReason) -> bool {
    match reason {
        CloseReason::DeviceClosed
        | CloseReason::HandshakeFailed
        | CloseReason::NotTls
        | CloseReason::CertificateRejected
        | CloseReason::IdentityMissing
        | CloseReason::IdentityMismatch
        | CloseReason::TokenRejected
        | CloseReason::HelloTimeout
        | CloseReason::TokenUnanswered
        | CloseReason::JwtRejected
        | CloseReason::JwtUnanswered
        | CloseReason::HookRejected
        | CloseReason::HookUnanswered
        | CloseReason::GrantExpired
        | CloseReason::TlsError
        | CloseReason::ProtocolError
        | CloseReason::FrameTooLarge
        | CloseReason::TakenOver
        | CloseReason::HomeFull
        | CloseReason::MessageRefused
        | CloseReason::CertificateRevoked
        | CloseReason::CertificateExpired
        | CloseReason::ConnectionAge
        | CloseReason::PoolFull
        | CloseReason::SessionUnreadable
        | CloseReason::SessionElsewhere
        | CloseReason::Denied
        | CloseReason::RateExceeded
        | CloseReason::TakeoverLoop
        | CloseReason::Requested
        | CloseReason::Shutdown => true,
        // The peer is gone, was never there, or does not read.
        CloseReason::PeerClosed
        | CloseReason::PeerReset
        | CloseReason::Expired
        | CloseReason::HandshakeAbandoned
        | CloseReason::HandshakeTimeout
        | CloseReason::ProxyHeader
        | CloseReason::ProxyCheck
        | CloseReason::AddressRefused
        | CloseReason::SlowConsumer => false,
    }
}

/// What a native device is told in CLOSE; `None` where nobody is there to be told, or TLS no longer stands.
pub(super) const fn close_code(reason: CloseReason) -> Option<CloseCode> {
    Some(match reason {
        CloseReason::DeviceClosed => CloseCode::NORMAL,
        CloseReason::Shutdown => CloseCode::GOING_AWAY,
        CloseReason::TakenOver => CloseCode::TAKEN_OVER,
        CloseReason::Expired => CloseCode::EXPIRED,
        CloseReason::ProtocolError => CloseCode::PROTOCOL_ERROR,
        CloseReason::FrameTooLarge => CloseCode::FRAME_TOO_LARGE,
        CloseReason::IdentityMissing | CloseReason::IdentityMismatch => CloseCode::IDENTITY_MISMATCH,
        CloseReason::TokenRejected
        | CloseReason::JwtRejected
        | CloseReason::HookRejected
        | CloseReason::GrantExpired => CloseCode::TOKEN_REJECTED,
        CloseReason::HelloTimeout => CloseCode::HELLO_TIMEOUT,
        CloseReason::TokenUnanswered
        | CloseReason::JwtUnanswered
        | CloseReason::HookUnanswered
        | CloseReason::HomeFull
        | CloseReason::PoolFull
        | CloseReason::SessionUnreadable
        | CloseReason::SessionElsewhere
        | CloseReason::ConnectionAge
        | CloseReason::RateExceeded
        | CloseReason::TakeoverLoop => CloseCode::TRY_LATER,
        CloseReason::Requested | CloseReason::CertificateRevoked | CloseReason::CertificateExpired => {
            CloseCode::REQUESTED
        }
        CloseReason::Denied => CloseCode::DENIED,
        CloseReason::PeerClosed
        | CloseReason::PeerReset
        | CloseReason::SlowConsumer
        | CloseReason::MessageRefused
        | CloseReason::HandshakeAbandoned
        | CloseReason::HandshakeTimeout
        | CloseReason::HandshakeFailed
        | CloseReason::NotTls
        | CloseReason::ProxyHeader
        | CloseReason::ProxyCheck
        | CloseReason::AddressRefused
        | CloseReason::CertificateRejected
        | CloseReason::TlsError => return None,
    })
}
