//! Reason codes (v5 2.4), and the return codes of MQTT 3.1.1 that stand for them.

use std::fmt;

use super::Error;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $value:literal $words:literal,)+) => {
        /// A reason code. 0x80 and above are failures.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct Reason(pub u8);

        impl Reason {
            $($(#[doc = $doc])+ pub const $name: Reason = Reason($value);)+

            const fn words(self) -> &'static str {
                match self.0 { $($value => $words,)+ _ => "an unknown reason" }
            }
        }
    };
}

reasons! {
    /// Success, normal disconnection, granted QoS 0.
    SUCCESS = 0x00 "success",
    /// Granted QoS 1.
    GRANTED_QOS_1 = 0x01 "granted QoS 1",
    /// Granted QoS 2.
    GRANTED_QOS_2 = 0x02 "granted QoS 2",
    /// The device disconnects and wants its will published.
    DISCONNECT_WITH_WILL = 0x04 "disconnect with will message",
    /// Nobody has subscribed.
    NO_MATCHING_SUBSCRIBERS = 0x10 "no matching subscribers",
    /// There was no such subscription.
    NO_SUBSCRIPTION_EXISTED = 0x11 "no subscription existed",
    /// Goes on with an authentication.
    CONTINUE_AUTHENTICATION = 0x18 "continue authentication",
    /// Begins an authentication anew.
    REAUTHENTICATE = 0x19 "re-authenticate",
    /// For no reason that could be told.
    UNSPECIFIED_ERROR = 0x80 "unspecified error",
    /// The bytes are no packet.
    MALFORMED_PACKET = 0x81 "malformed packet",
    /// The packet may not be.
    PROTOCOL_ERROR = 0x82 "protocol error",
    /// The packet is fine and is not taken here.
    IMPLEMENTATION_SPECIFIC_ERROR = 0x83 "implementation specific error",
    /// The protocol's version is not spoken here.
    UNSUPPORTED_PROTOCOL_VERSION = 0x84 "unsupported protocol version",
    /// The client identifier is valid and not allowed.
    CLIENT_IDENTIFIER_NOT_VALID = 0x85 "client identifier not valid",
    /// User name or password is wrong.
    BAD_USER_NAME_OR_PASSWORD = 0x86 "bad user name or password",
    /// It is not allowed.
    NOT_AUTHORIZED = 0x87 "not authorized",
    /// The server is not available.
    SERVER_UNAVAILABLE = 0x88 "server unavailable",
    /// Try again later.
    SERVER_BUSY = 0x89 "server busy",
    /// By an action of the operator, for good.
    BANNED = 0x8A "banned",
    /// The server ends.
    SERVER_SHUTTING_DOWN = 0x8B "server shutting down",
    /// The authentication method is not known here.
    BAD_AUTHENTICATION_METHOD = 0x8C "bad authentication method",
    /// Nothing was heard for one and a half times the keep-alive.
    KEEP_ALIVE_TIMEOUT = 0x8D "keep alive timeout",
    /// Another connection uses the same client identifier.
    SESSION_TAKEN_OVER = 0x8E "session taken over",
    /// The filter is valid and not taken here.
    TOPIC_FILTER_INVALID = 0x8F "topic filter invalid",
    /// The topic is valid and not taken here.
    TOPIC_NAME_INVALID = 0x90 "topic name invalid",
    /// The packet identifier is in use already.
    PACKET_IDENTIFIER_IN_USE = 0x91 "packet identifier in use",
    /// The packet identifier is not known.
    PACKET_IDENTIFIER_NOT_FOUND = 0x92 "packet identifier not found",
    /// More messages at a time than Receive Maximum.
    RECEIVE_MAXIMUM_EXCEEDED = 0x93 "receive maximum exceeded",
    /// A topic alias that is not known, 0, or above the maximum.
    TOPIC_ALIAS_INVALID = 0x94 "topic alias invalid",
    /// The packet is longer than Maximum Packet Size.
    PACKET_TOO_LARGE = 0x95 "packet too large",
    /// Too many messages.
    MESSAGE_RATE_TOO_HIGH = 0x96 "message rate too high",
    /// A bound that the operator has set is reached.
    QUOTA_EXCEEDED = 0x97 "quota exceeded",
    /// By an action of the operator.
    ADMINISTRATIVE_ACTION = 0x98 "administrative action",
    /// The payload is not what its format indicator says.
    PAYLOAD_FORMAT_INVALID = 0x99 "payload format invalid",
    /// No retained messages here.
    RETAIN_NOT_SUPPORTED = 0x9A "retain not supported",
    /// Not with this QoS.
    QOS_NOT_SUPPORTED = 0x9B "QoS not supported",
    /// Use another server for now.
    USE_ANOTHER_SERVER = 0x9C "use another server",
    /// Use another server from now on.
    SERVER_MOVED = 0x9D "server moved",
    /// No shared subscriptions here.
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E "shared subscriptions not supported",
    /// Too many connections in a time.
    CONNECTION_RATE_EXCEEDED = 0x9F "connection rate exceeded",
    /// The connection was open for as long as it may be.
    MAXIMUM_CONNECT_TIME = 0xA0 "maximum connect time",
    /// No subscription identifiers here.
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1 "subscription identifiers not supported",
    /// No wildcards here.
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2 "wildcard subscriptions not supported",
}

/// Which reason codes a packet may carry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    packet: &'static str,
    codes: &'static [u8],
    statement: &'static str,
}

impl Table {
    /// 3.2.2.2.
    pub(super) const CONNACK: Table = Table {
        packet: "CONNACK has a reason code that it cannot have",
        codes: &[
            0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A,
            0x9B, 0x9C, 0x9D, 0x9F,
        ],
        statement: "v5 MQTT-3.2.2-8",
    };
    /// 3.4.2.1.
    pub(super) const PUBACK: Table = Table {
        packet: "PUBACK has a reason code that it cannot have",
        codes: &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99],
        statement: "v5 MQTT-3.4.2-1",
    };
    /// 3.5.2.1.
    pub(super) const PUBREC: Table = Table {
        packet: "PUBREC has a reason code that it cannot have",
        codes: Table::PUBACK.codes,
        statement: "v5 MQTT-3.5.2-1",
    };
    /// 3.6.2.1.
    pub(super) const PUBREL: Table = Table {
        packet: "PUBREL has a reason code that it cannot have",
        codes: &[0x00, 0x92],
        statement: "v5 MQTT-3.6.2-1",
    };
    /// 3.7.2.1.
    pub(super) const PUBCOMP: Table = Table {
        packet: "PUBCOMP has a reason code that it cannot have",
        codes: Table::PUBREL.codes,
        statement: "v5 MQTT-3.7.2-1",
    };
    /// 3.9.3.
    pub(super) const SUBACK: Table = Table {
        packet: "SUBACK has a reason code that it cannot have",
        codes: &[0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2],
        statement: "v5 MQTT-3.9.3-2",
    };
    /// 3.11.3.
    pub(super) const UNSUBACK: Table = Table {
        packet: "UNSUBACK has a reason code that it cannot have",
        codes: &[0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91],
        statement: "v5 MQTT-3.11.3-2",
    };
    /// 3.14.2.1: of either side.
    pub(super) const DISCONNECT: Table = Table {
        packet: "DISCONNECT has a reason code that it cannot have",
        codes: &[
            0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97,
            0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2,
        ],
        statement: "v5 MQTT-3.14.2-1",
    };
    /// 3.15.2.1.
    pub(super) const AUTH: Table = Table {
        packet: "AUTH has a reason code that it cannot have",
        codes: &[0x00, 0x18, 0x19],
        statement: "v5 MQTT-3.15.2-1",
    };

    /// The code as a reason, if the packet may carry it.
    pub(super) fn check(&self, code: u8) -> Result<Reason, Error> {
        if self.codes.contains(&code) { Ok(Reason(code)) } else { Err(Error::malformed(self.packet, self.statement)) }
    }
}

impl Reason {
    /// Whether a client may say it in DISCONNECT (table 3-10): the other reasons are a server's.
    #[must_use]
    pub const fn is_disconnect_of_client(self) -> bool {
        matches!(self.0, 0x00 | 0x04 | 0x80..=0x83 | 0x90 | 0x93..=0x99)
    }

    /// Itself, or the nearest to it that CONNACK may carry (3.2.2.2).
    #[must_use]
    pub fn for_connack(self) -> Reason {
        if Table::CONNACK.codes.contains(&self.0) { self } else { Reason::UNSPECIFIED_ERROR }
    }

    /// Whether it is a failure.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 >= 0x80
    }

    /// The return code that says it, or the nearest to it, in a CONNACK of MQTT 3.1.1 (table 3.1 there).
    #[must_use]
    pub const fn connect_return_code(self) -> u8 {
        match self {
            Reason::SUCCESS => 0,
            Reason::UNSUPPORTED_PROTOCOL_VERSION => 1,
            Reason::CLIENT_IDENTIFIER_NOT_VALID => 2,
            Reason::BAD_USER_NAME_OR_PASSWORD => 4,
            Reason::NOT_AUTHORIZED | Reason::BANNED | Reason::BAD_AUTHENTICATION_METHOD => 5,
            _ => 3,
        }
    }

    /// What a return code of MQTT 3.1.1 means.
    #[must_use]
    pub const fn from_connect_return_code(code: u8) -> Option<Reason> {
        Some(match code {
            0 => Reason::SUCCESS,
            1 => Reason::UNSUPPORTED_PROTOCOL_VERSION,
            2 => Reason::CLIENT_IDENTIFIER_NOT_VALID,
            3 => Reason::SERVER_UNAVAILABLE,
            4 => Reason::BAD_USER_NAME_OR_PASSWORD,
            5 => Reason::NOT_AUTHORIZED,
            _ => return None,
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (0x{:02X})", self.words(), self.0)
    }
}
