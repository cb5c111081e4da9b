//! Why a handshake failed, and who is at fault.

use std::fmt;

use rustls::{CertificateError, Error, PeerIncompatible};

use crate::tls::record::{Alert, HandoverError};

/// Why a handshake failed. The alert that tells the peer, where there is one, was appended to the output.
#[derive(Clone, Debug, PartialEq)]
pub enum HandshakeError {
    /// The peer's certificate was refused, or a required one is missing.
    CertificateRejected(CertificateFault),
    /// The peer speaks TLS, but shares none of our choices of this.
    NothingInCommon(Choice),
    /// The peer gave up and said so: the alert's code (RFC 8446 section 6).
    PeerAlert(u8),
    /// The server said close_notify before the ticket that was waited for. (Within the handshake proper a close_notify
    /// proves nothing, and is but a warning.)
    PeerClosed,
    /// The peer broke the protocol: a damaged, misplaced or unauthentic message.
    Protocol(Detail),
    /// Our side could not go on, such as for want of randomness.
    Internal(Detail),
    /// Our record layer cannot take the connection over. As a client, also when the server has changed its keys before
    /// the ticket that was waited for.
    Handover(HandoverError),
}

/// What is wrong with the peer's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateFault {
    /// None was sent though one is required.
    Missing,
    /// It is over.
    Expired,
    /// It has not begun.
    NotYetValid,
    /// No authority that we know has signed it.
    UnknownIssuer,
    /// A signature in it, or made with its key, is wrong.
    BadSignature,
    /// It is not meant for this role (extended key usage).
    WrongPurpose,
    /// It is for another name (client role only).
    WrongName,
    /// It was revoked, or whether it was cannot be found out.
    Revoked,
    /// It cannot be read.
    Unreadable,
    /// It uses an algorithm or a critical extension that we do not know.
    Unsupported,
    /// Something else.
    Other,
}

/// What two sides of a handshake must share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// TLS 1.2 or 1.3.
    Version,
    /// A cipher suite.
    CipherSuite,
    /// A key exchange group.
    KeyExchange,
    /// A way to sign that fits the certificate.
    SignatureScheme,
    /// An application protocol (ALPN).
    ApplicationProtocol,
    /// Another required feature.
    Feature,
}

/// The TLS library's account of an error, for the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Detail(Box<Error>);

impl HandshakeError {
    /// A fault of the peer's that rustls has no own error for.
    pub(super) fn peer_did(what: &str) -> Self {
        HandshakeError::Protocol(Detail(Box::new(Error::General(what.to_owned()))))
    }

    /// The alert for errors that rustls sends none for; none where it is the peer who told us.
    pub(super) fn fallback_alert(&self) -> Option<Alert> {
        match self {
            HandshakeError::CertificateRejected(fault) => Some(fault.alert()),
            HandshakeError::NothingInCommon(_) => Some(Alert::HandshakeFailure),
            HandshakeError::PeerAlert(_) | HandshakeError::PeerClosed => None,
            HandshakeError::Protocol(_) => Some(Alert::DecodeError),
            HandshakeError::Internal(_) | HandshakeError::Handover(_) => Some(Alert::InternalError),
        }
    }

    /// An error of ours.
    pub(super) fn internal(error: Error) -> Self {
        HandshakeError::Internal(Detail(Box::new(error)))
    }
}

impl From<Error> for HandshakeError {
    fn from(error: Error) -> Self {
        match error {
            Error::NoCertificatesPresented => HandshakeError::CertificateRejected(CertificateFault::Missing),
            Error::InvalidCertificate(error) => HandshakeError::CertificateRejected(CertificateFault::from(&error)),
            Error::NoApplicationProtocol => HandshakeError::NothingInCommon(Choice::ApplicationProtocol),
            Error::PeerIncompatible(reason) => HandshakeError::NothingInCommon(Choice::from(&reason)),
            // How rustls says in TLS 1.2 that the client's signature schemes leave nothing for the chosen key.
            Error::General(words) if words == "incompatible signing key" => {
                HandshakeError::NothingInCommon(Choice::SignatureScheme)
            }
            Error::AlertReceived(alert) => HandshakeError::PeerAlert(alert.into()),
            Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::InvalidEncryptedClientHello(_)
            | Error::InvalidMessage(_)
            | Error::UnsupportedNameType
            | Error::DecryptError
            | Error::PeerMisbehaved(_)
            | Error::PeerSentOversizedRecord => HandshakeError::Protocol(Detail(Box::new(error))),
            other => HandshakeError::internal(other),
        }
    }
}

impl From<&CertificateError> for CertificateFault {
    fn from(error: &CertificateError) -> Self {
        use CertificateError as E;
        match error {
            E::Expired | E::ExpiredContext { .. } => CertificateFault::Expired,
            E::NotValidYet | E::NotValidYetContext { .. } => CertificateFault::NotYetValid,
            E::UnknownIssuer => CertificateFault::UnknownIssuer,
            E::BadSignature => CertificateFault::BadSignature,
            E::InvalidPurpose | E::InvalidPurposeContext { .. } => CertificateFault::WrongPurpose,
            E::NotValidForName | E::NotValidForNameContext { .. } => CertificateFault::WrongName,
            E::Revoked
            | E::UnknownRevocationStatus
            | E::ExpiredRevocationList
            | E::ExpiredRevocationListContext { .. } => CertificateFault::Revoked,
            E::BadEncoding => CertificateFault::Unreadable,
            E::UnhandledCriticalExtension
            | E::UnsupportedSignatureAlgorithmContext { .. }
            | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => CertificateFault::Unsupported,
            _ => CertificateFault::Other,
        }
    }
}

impl From<&PeerIncompatible> for Choice {
    fn from(reason: &PeerIncompatible) -> Self {
        use PeerIncompatible as P;
        match reason {
            P::ServerDoesNotSupportTls12Or13
            | P::ServerTlsVersionIsDisabledByOurConfig
            | P::SupportedVersionsExtensionRequired
            | P::Tls12NotOffered
            | P::Tls12NotOfferedOrEnabled => Choice::Version,
            P::NoCipherSuitesInCommon => Choice::CipherSuite,
            P::KeyShareExtensionRequired
            | P::NamedGroupsExtensionRequired
            | P::NoEcPointFormatsInCommon
            | P::NoKxGroupsInCommon
            | P::EcPointsExtensionRequired
            | P::UncompressedEcPointsRequired => Choice::KeyExchange,
            P::NoCertificateRequestSignatureSchemesInCommon
            | P::NoSignatureSchemesInCommon
            | P::SignatureAlgorithmsExtensionRequired => Choice::SignatureScheme,
            _ => Choice::Feature,
        }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::CertificateRejected(fault) => write!(f, "the peer's certificate {fault}"),
            HandshakeError::NothingInCommon(choice) => write!(f, "the peer shares no {choice} with us"),
            HandshakeError::PeerAlert(code) => {
                write!(f, "the peer refused with alert {code} ({:?})", rustls::AlertDescription::from(*code))
            }
            HandshakeError::PeerClosed => f.write_str("the peer closed the connection before its ticket"),
            HandshakeError::Protocol(detail) => write!(f, "the peer broke the protocol: {detail}"),
            HandshakeError::Internal(detail) => write!(f, "our side of the handshake failed: {detail}"),
            HandshakeError::Handover(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for HandshakeError {}

impl CertificateFault {
    /// The alert that says it (RFC 8446 section 6.2).
    pub(super) fn alert(self) -> Alert {
        match self {
            CertificateFault::Missing => Alert::CertificateRequired,
            CertificateFault::Expired | CertificateFault::NotYetValid => Alert::CertificateExpired,
            CertificateFault::UnknownIssuer => Alert::UnknownCa,
            CertificateFault::BadSignature => Alert::DecryptError,
            CertificateFault::WrongPurpose | CertificateFault::Unsupported => Alert::UnsupportedCertificate,
            CertificateFault::WrongName | CertificateFault::Unreadable => Alert::BadCertificate,
            CertificateFault::Revoked => Alert::CertificateRevoked,
            CertificateFault::Other => Alert::CertificateUnknown,
        }
    }
}

impl fmt::Display for CertificateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CertificateFault::Missing => "is missing",
            CertificateFault::Expired => "has expired",
            CertificateFault::NotYetValid => "is not valid yet",
            CertificateFault::UnknownIssuer => "was issued by an unknown authority",
            CertificateFault::BadSignature => "has or made a wrong signature",
            CertificateFault::WrongPurpose => "is for another purpose",
            CertificateFault::WrongName => "is for another name",
            CertificateFault::Revoked => "is revoked, or might be",
            CertificateFault::Unreadable => "cannot be read",
            CertificateFault::Unsupported => "uses something that is not supported",
            CertificateFault::Other => "was refused",
        })
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Choice::Version => "protocol version",
            Choice::CipherSuite => "cipher suite",
            Choice::KeyExchange => "key exchange group",
            Choice::SignatureScheme => "signature scheme",
            Choice::ApplicationProtocol => "application protocol",
            Choice::Feature => "feature that is required",
        })
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
