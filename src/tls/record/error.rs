//! Alerts with their numbers, and everything that can go wrong in the record layer, with the alert that tells the peer.

use std::fmt;

macro_rules! alerts {
    ($($variant:ident = $code:literal $name:literal,)+) => {
        /// An alert's description (RFC 8446 section 6, and `no_renegotiation` of RFC 5246 section 7.2.2).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Alert { $(#[doc = concat!("`", $name, "`.")] $variant = $code,)+ }

        impl Alert {
            /// The alert with this code point, if it has a name.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Alert> {
                match code { $($code => Some(Alert::$variant),)+ _ => None }
            }

            /// The name that the RFC gives it.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Alert::$variant => $name,)+ } }
        }
    };
}

alerts! {
    CloseNotify = 0 "close_notify",
    UnexpectedMessage = 10 "unexpected_message",
    BadRecordMac = 20 "bad_record_mac",
    RecordOverflow = 22 "record_overflow",
    HandshakeFailure = 40 "handshake_failure",
    BadCertificate = 42 "bad_certificate",
    UnsupportedCertificate = 43 "unsupported_certificate",
    CertificateRevoked = 44 "certificate_revoked",
    CertificateExpired = 45 "certificate_expired",
    CertificateUnknown = 46 "certificate_unknown",
    IllegalParameter = 47 "illegal_parameter",
    UnknownCa = 48 "unknown_ca",
    AccessDenied = 49 "access_denied",
    DecodeError = 50 "decode_error",
    DecryptError = 51 "decrypt_error",
    ProtocolVersion = 70 "protocol_version",
    InsufficientSecurity = 71 "insufficient_security",
    InternalError = 80 "internal_error",
    InappropriateFallback = 86 "inappropriate_fallback",
    UserCanceled = 90 "user_canceled",
    NoRenegotiation = 100 "no_renegotiation",
    MissingExtension = 109 "missing_extension",
    UnsupportedExtension = 110 "unsupported_extension",
    UnrecognizedName = 112 "unrecognized_name",
    BadCertificateStatusResponse = 113 "bad_certificate_status_response",
    UnknownPskIdentity = 115 "unknown_psk_identity",
    CertificateRequired = 116 "certificate_required",
    NoApplicationProtocol = 120 "no_application_protocol",
}

pub(super) const LEVEL_WARNING: u8 = 1;
pub(super) const LEVEL_FATAL: u8 = 2;

impl Alert {
    /// Whether the connection ends with it. The others are sent with the level `warning`.
    #[must_use]
    pub const fn is_fatal(self) -> bool {
        !matches!(self, Alert::CloseNotify | Alert::UserCanceled | Alert::NoRenegotiation)
    }

    /// The alert message: level and description.
    pub(super) const fn message(self) -> [u8; 2] {
        [if self.is_fatal() { LEVEL_FATAL } else { LEVEL_WARNING }, self as u8]
    }
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is wrong with the bytes where a record should begin. Always the peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramingError {
    /// The first bytes of the connection are no TLS at all. There is nobody to send an alert to.
    NotTls,
    /// A content type that does not exist or does not belong here.
    UnexpectedType(u8),
    /// A record of another major version, or of any other version than 1.2 on a TLS 1.2 connection.
    Version,
    /// An unprotected record without content.
    Empty,
    /// A record longer than its version allows.
    Overflow,
}

impl FramingError {
    /// The alert that the RFCs name for it; none for a peer that does not speak TLS.
    #[must_use]
    pub const fn alert(self) -> Option<Alert> {
        match self {
            FramingError::NotTls => None,
            FramingError::UnexpectedType(_) | FramingError::Empty => Some(Alert::UnexpectedMessage),
            FramingError::Version => Some(Alert::ProtocolVersion),
            FramingError::Overflow => Some(Alert::RecordOverflow),
        }
    }
}

impl fmt::Display for FramingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FramingError::NotTls => f.write_str("the peer does not speak TLS"),
            FramingError::UnexpectedType(byte) => write!(f, "the peer sent a record of unexpected type {byte}"),
            FramingError::Version => f.write_str("the peer sent a record of another protocol version"),
            FramingError::Empty => f.write_str("the peer sent an unprotected record without content"),
            FramingError::Overflow => f.write_str("the peer sent a record that is too long"),
        }
    }
}

impl std::error::Error for FramingError {}

/// Why a record could not be opened, or nothing more be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The peer's record does not authenticate.
    BadMac,
    /// The peer's record or its content is too long.
    Overflow,
    /// The peer's message has a wrong length.
    Decode,
    /// The peer's message has a value that does not exist.
    IllegalParameter,
    /// The peer's record has another version than TLS 1.2 demands.
    Version,
    /// The peer sent something that has no place after the handshake.
    UnexpectedMessage,
    /// The peer spread a handshake message that is no KeyUpdate over several records. To wait for the rest would cost
    /// every connection a buffer; a server has none to expect, and a client gets tickets that fit.
    Fragmented,
    /// The peer sent more than [`super::EMPTY_RECORDS_MAX`] empty records in a row.
    TooManyEmpty,
    /// The peer sent more than [`super::WARNINGS_MAX`] warning alerts.
    TooManyWarnings,
    /// The peer sent more than [`super::KEY_UPDATES_MAX`] key updates in a row.
    TooManyKeyUpdates,
    /// The peer asked for renegotiation again after it was refused.
    Renegotiation,
    /// The peer has used up every sequence number of its key.
    SequenceExhausted,
    /// The peer ended the connection with this alert (a code point that may have no name).
    PeerAlert(u8),
    /// Our own key has sealed as many records as it may, and TLS 1.2 has no other. Say close_notify.
    KeyExhausted,
    /// Our own side is closed: after close_notify nothing is sealed, after a fatal error nothing is opened either.
    Closed,
}

impl RecordError {
    /// The fatal alert that tells the peer; none where it is the peer who told us, or nothing can be told.
    #[must_use]
    pub const fn alert(self) -> Option<Alert> {
        match self {
            RecordError::BadMac => Some(Alert::BadRecordMac),
            RecordError::Overflow => Some(Alert::RecordOverflow),
            RecordError::Decode => Some(Alert::DecodeError),
            RecordError::IllegalParameter => Some(Alert::IllegalParameter),
            RecordError::Version => Some(Alert::ProtocolVersion),
            RecordError::UnexpectedMessage
            | RecordError::Fragmented
            | RecordError::TooManyEmpty
            | RecordError::TooManyWarnings
            | RecordError::TooManyKeyUpdates
            | RecordError::Renegotiation => Some(Alert::UnexpectedMessage),
            RecordError::SequenceExhausted => Some(Alert::InternalError),
            RecordError::PeerAlert(_) | RecordError::KeyExhausted | RecordError::Closed => None,
        }
    }
}

impl From<FramingError> for RecordError {
    fn from(error: FramingError) -> Self {
        match error {
            FramingError::NotTls | FramingError::UnexpectedType(_) | FramingError::Empty => Self::UnexpectedMessage,
            FramingError::Version => Self::Version,
            FramingError::Overflow => Self::Overflow,
        }
    }
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecordError::BadMac => "the peer's record does not authenticate",
            RecordError::Overflow => "the peer's record is too long",
            RecordError::Decode => "the peer's message has a wrong length",
            RecordError::IllegalParameter => "the peer's message has an unknown value",
            RecordError::Version => "the peer's record has another protocol version",
            RecordError::UnexpectedMessage => "the peer sent something unexpected after the handshake",
            RecordError::Fragmented => "the peer spread a handshake message over several records",
            RecordError::TooManyEmpty => "the peer sent too many empty records",
            RecordError::TooManyWarnings => "the peer sent too many warning alerts",
            RecordError::TooManyKeyUpdates => "the peer sent too many key updates",
            RecordError::Renegotiation => "the peer insists on renegotiation",
            RecordError::SequenceExhausted => "the peer used up its sequence numbers",
            RecordError::PeerAlert(code) => {
                let name = Alert::from_code(*code).map_or("without a name", Alert::name);
                return write!(f, "the peer sent alert {code} ({name})");
            }
            RecordError::KeyExhausted => "our key has sealed as many records as it may",
            RecordError::Closed => "our side of the connection is closed",
        })
    }
}

impl std::error::Error for RecordError {}
