//! Properties (v5 2.2.2): a checked view over their bytes, and a way to make them.
//!
//! What may stand in which packet, how often, and between which bounds is checked once, when the packet is decoded; from
//! then on reading them cannot fail.

use super::wire::{self, Reader};
use super::{Error, Reason, Version, topic};

macro_rules! properties {
    ($($(#[doc = $doc:literal])+ $variant:ident = $id:literal: $kind:ident in $($packet:ident)|+,)+) => {
        /// One property.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Property<'a> { $($(#[doc = $doc])+ $variant(properties!(@type $kind)),)+ }

        impl<'a> Property<'a> {
            const fn id(&self) -> u8 { match self { $(Property::$variant(..) => $id,)+ } }

            /// Where the property of this number may stand; `None`: there is no such property.
            const fn may_stand_in(id: u8) -> Option<u16> {
                match id { $($id => Some(0 $(| In::$packet.0)+),)+ _ => None }
            }

            fn decode_value(id: u8, body: &mut Reader<'a>) -> Result<Self, Error> {
                Ok(match id {
                    $($id => Property::$variant(properties!(@read $kind body)),)+
                    _ => return Err(Error::malformed("there is no property of this number", "v5 MQTT-2.2.2-1")),
                })
            }

            fn encode(&self, out: &mut Vec<u8>) {
                out.push(self.id());
                match *self { $(Property::$variant(value) => properties!(@write $kind value out),)+ }
            }
        }
    };
    (@type u8) => { u8 };
    (@type u16) => { u16 };
    (@type u32) => { u32 };
    (@type variable) => { u32 };
    (@type string) => { &'a str };
    (@type binary) => { &'a [u8] };
    (@type pair) => { (&'a str, &'a str) };
    (@read u8 $body:ident) => { $body.u8()? };
    (@read u16 $body:ident) => { $body.u16()? };
    (@read u32 $body:ident) => { $body.u32()? };
    (@read variable $body:ident) => { $body.variable()? as u32 };
    (@read string $body:ident) => { $body.string()? };
    (@read binary $body:ident) => { $body.binary()? };
    (@read pair $body:ident) => { ($body.string()?, $body.string()?) };
    (@write u8 $value:ident $out:ident) => { $out.push($value) };
    (@write u16 $value:ident $out:ident) => { $out.extend_from_slice(&$value.to_be_bytes()) };
    (@write u32 $value:ident $out:ident) => { $out.extend_from_slice(&$value.to_be_bytes()) };
    (@write variable $value:ident $out:ident) => { wire::put_variable($value as usize, $out) };
    (@write string $value:ident $out:ident) => { wire::put_string($value, $out) };
    (@write binary $value:ident $out:ident) => { wire::put_binary($value, $out) };
    (@write pair $value:ident $out:ident) => {{ wire::put_string($value.0, $out); wire::put_string($value.1, $out); }};
}

/// The packets, and the will, that have properties: bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct In(u16);

impl In {
    pub(super) const CONNECT: In = In(1);
    pub(super) const CONNACK: In = In(1 << 1);
    pub(super) const PUBLISH: In = In(1 << 2);
    pub(super) const WILL: In = In(1 << 3);
    /// PUBACK, PUBREC, PUBREL, PUBCOMP.
    pub(super) const ACK: In = In(1 << 4);
    pub(super) const SUBSCRIBE: In = In(1 << 5);
    /// SUBACK, UNSUBACK.
    pub(super) const SUBACK: In = In(1 << 6);
    pub(super) const UNSUBSCRIBE: In = In(1 << 7);
    pub(super) const DISCONNECT: In = In(1 << 8);
    pub(super) const AUTH: In = In(1 << 9);
}

// Table 2-4 of the specification.
properties! {
    /// 1: the payload is UTF-8; 0: it is bytes.
    PayloadFormatIndicator = 0x01: u8 in PUBLISH | WILL,
    /// Seconds for which the message is of use.
    MessageExpiryInterval = 0x02: u32 in PUBLISH | WILL,
    /// The kind of the payload.
    ContentType = 0x03: string in PUBLISH | WILL,
    /// Where an answer goes.
    ResponseTopic = 0x08: string in PUBLISH | WILL,
    /// What tells to which request an answer belongs.
    CorrelationData = 0x09: binary in PUBLISH | WILL,
    /// The number of the subscription, 1 to 268,435,455.
    SubscriptionIdentifier = 0x0B: variable in PUBLISH | SUBSCRIBE,
    /// Seconds for which the session outlives the connection; 0xFFFFFFFF: for ever.
    SessionExpiryInterval = 0x11: u32 in CONNECT | CONNACK | DISCONNECT,
    /// The client identifier that the server gave.
    AssignedClientIdentifier = 0x12: string in CONNACK,
    /// The keep-alive in force, in seconds.
    ServerKeepAlive = 0x13: u16 in CONNACK,
    /// How the authentication is done.
    AuthenticationMethod = 0x15: string in CONNECT | CONNACK | AUTH,
    /// A part of it.
    AuthenticationData = 0x16: binary in CONNECT | CONNACK | AUTH,
    /// 0: no more than the reason code is wanted with most failures.
    RequestProblemInformation = 0x17: u8 in CONNECT,
    /// Seconds between the end of the connection and the publishing of the will.
    WillDelayInterval = 0x18: u32 in WILL,
    /// 1: Response Information is wanted.
    RequestResponseInformation = 0x19: u8 in CONNECT,
    /// A part of response topics.
    ResponseInformation = 0x1A: string in CONNACK,
    /// Another server.
    ServerReference = 0x1C: string in CONNACK | DISCONNECT,
    /// The reason in words.
    ReasonString = 0x1F: string in CONNACK | ACK | SUBACK | DISCONNECT | AUTH,
    /// Messages with QoS above 0 taken at a time, at least 1.
    ReceiveMaximum = 0x21: u16 in CONNECT | CONNACK,
    /// Topic aliases taken.
    TopicAliasMaximum = 0x22: u16 in CONNECT | CONNACK,
    /// The number that stands for the topic, at least 1.
    TopicAlias = 0x23: u16 in PUBLISH,
    /// The highest quality of service taken: 0 or 1.
    MaximumQoS = 0x24: u8 in CONNACK,
    /// Whether messages are retained.
    RetainAvailable = 0x25: u8 in CONNACK,
    /// A name and a value, as often as one likes.
    UserProperty = 0x26: pair in CONNECT | CONNACK | PUBLISH | WILL | ACK | SUBSCRIBE | SUBACK | UNSUBSCRIBE | DISCONNECT | AUTH,
    /// The longest packet taken, in bytes, at least 1.
    MaximumPacketSize = 0x27: u32 in CONNECT | CONNACK,
    /// Whether filters may have wildcards.
    WildcardSubscriptionAvailable = 0x28: u8 in CONNACK,
    /// Whether subscriptions may have numbers.
    SubscriptionIdentifierAvailable = 0x29: u8 in CONNACK,
    /// Whether subscriptions may be shared.
    SharedSubscriptionAvailable = 0x2A: u8 in CONNACK,
}

/// The properties of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    /// Checked, without their length.
    raw: &'a [u8],
}

macro_rules! getters {
    ($($(#[doc = $doc:literal])+ $name:ident: $variant:ident -> $type:ty,)+) => {
        $($(#[doc = $doc])+
        #[must_use]
        pub fn $name(&self) -> Option<$type> {
            self.iter().find_map(|property| match property {
                Property::$variant(value) => Some(value),
                _ => None,
            })
        })+
    };
}

impl<'a> Properties<'a> {
    /// No properties at all.
    pub const EMPTY: Properties<'static> = Properties { raw: &[] };

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// All of them, in their order.
    pub fn iter(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        let mut rest = Reader::new(self.raw);
        std::iter::from_fn(move || {
            let id = if rest.is_empty() { return None } else { rest.u8().ok()? };
            Some(Property::decode_value(id, &mut rest).expect("checked when it was decoded"))
        })
    }

    getters! {
        /// Session Expiry Interval, in seconds.
        session_expiry_interval: SessionExpiryInterval -> u32,
        /// Receive Maximum, at least 1.
        receive_maximum: ReceiveMaximum -> u16,
        /// Maximum Packet Size in bytes, at least 1.
        maximum_packet_size: MaximumPacketSize -> u32,
        /// Topic Alias Maximum.
        topic_alias_maximum: TopicAliasMaximum -> u16,
        /// Authentication Method.
        authentication_method: AuthenticationMethod -> &'a str,
        /// Authentication Data.
        authentication_data: AuthenticationData -> &'a [u8],
        /// Topic Alias, at least 1.
        topic_alias: TopicAlias -> u16,
        /// Message Expiry Interval, in seconds.
        message_expiry_interval: MessageExpiryInterval -> u32,
        /// Will Delay Interval, in seconds.
        will_delay_interval: WillDelayInterval -> u32,
        /// Payload Format Indicator: 0 or 1.
        payload_format_indicator: PayloadFormatIndicator -> u8,
        /// The (first) Subscription Identifier, at least 1.
        subscription_identifier: SubscriptionIdentifier -> u32,
        /// Server Keep Alive, in seconds.
        server_keep_alive: ServerKeepAlive -> u16,
        /// Assigned Client Identifier.
        assigned_client_identifier: AssignedClientIdentifier -> &'a str,
        /// Reason String.
        reason_string: ReasonString -> &'a str,
    }

    /// Every Subscription Identifier.
    pub fn subscription_identifiers(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.iter().filter_map(|property| match property {
            Property::SubscriptionIdentifier(identifier) => Some(identifier),
            _ => None,
        })
    }

    /// Appends, as they are encoded and in their order, the properties that a server passes on with a message unaltered
    /// [v5 MQTT-3.3.2-4, MQTT-3.3.2-15 to MQTT-3.3.2-18, MQTT-3.3.2-20].
    pub fn forwardable(&self, out: &mut Vec<u8>) {
        for property in self.iter() {
            if let Property::PayloadFormatIndicator(_)
            | Property::ContentType(_)
            | Property::ResponseTopic(_)
            | Property::CorrelationData(_)
            | Property::UserProperty(_) = property
            {
                property.encode(out);
            }
        }
    }

    /// Whether these bytes are what [`Properties::forwardable`] appends.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check_forwarded(raw: &'a [u8]) -> Result<(), Error> {
        let properties = Self::check(raw, In::PUBLISH)?;
        let mut forwarded = Vec::with_capacity(raw.len());
        properties.forwardable(&mut forwarded);
        if forwarded == raw {
            return Ok(());
        }
        Err(Error::protocol("a property does not go along with a message", "v5 3.3.2.3"))
    }

    pub(super) fn decode(body: &mut Reader<'a>, place: In) -> Result<Self, Error> {
        let length = body.variable()?;
        Self::check(body.take(length)?, place)
    }

    fn check(raw: &'a [u8], place: In) -> Result<Self, Error> {
        let mut rest = Reader::new(raw);
        // One bit for each number that has been.
        let mut seen = 0u64;
        while !rest.is_empty() {
            let id = rest.u8()?;
            let places = Property::may_stand_in(id)
                .ok_or(Error::malformed("there is no property of this number", "v5 2.2.2.2"))?;
            if places & place.0 == 0 {
                return Err(Error::malformed("a property stands in a packet that cannot have it", "v5 2.2.2.2"));
            }
            let property = Property::decode_value(id, &mut rest)?;
            property.check()?;
            let is_repeatable = matches!(property, Property::UserProperty(_))
                || (place == In::PUBLISH && matches!(property, Property::SubscriptionIdentifier(_)));
            if seen & 1 << id != 0 && !is_repeatable {
                return Err(Error::protocol("a property is there twice", "v5 2.2.2.2"));
            }
            seen |= 1 << id;
        }
        Ok(Self { raw })
    }

    /// Appends them behind their length; nothing in v3.1.1.
    pub(super) fn encode(&self, version: Version, out: &mut Vec<u8>) {
        if version == Version::V5 {
            wire::put_variable(self.raw.len(), out);
            out.extend_from_slice(self.raw);
        }
    }
}

impl Property<'_> {
    #[cfg(test)]
    pub(super) fn may_stand(&self, place: In) -> bool {
        Property::may_stand_in(self.id()).is_some_and(|places| places & place.0 != 0)
    }

    /// Whether the value is one that the property may have.
    fn check(&self) -> Result<(), Error> {
        let refuse = |what, statement| Err(Error::protocol(what, statement));
        match *self {
            Property::ReceiveMaximum(0) => refuse("Receive Maximum is 0", "v5 3.1.2.11.3"),
            Property::MaximumPacketSize(0) => refuse("Maximum Packet Size is 0", "v5 3.1.2.11.4"),
            Property::SubscriptionIdentifier(0) => refuse("Subscription Identifier is 0", "v5 3.8.2.1.2"),
            Property::TopicAlias(0) => {
                Err(Error::new(Reason::TOPIC_ALIAS_INVALID, "Topic Alias is 0", "v5 MQTT-3.3.2-8"))
            }
            Property::ResponseTopic(name) if !topic::is_topic_name(name) => {
                refuse("Response Topic is no topic name", "v5 MQTT-3.3.2-14")
            }
            Property::PayloadFormatIndicator(value)
            | Property::RequestProblemInformation(value)
            | Property::RequestResponseInformation(value)
            | Property::MaximumQoS(value)
            | Property::RetainAvailable(value)
            | Property::WildcardSubscriptionAvailable(value)
            | Property::SubscriptionIdentifierAvailable(value)
            | Property::SharedSubscriptionAvailable(value)
                if value > 1 =>
            {
                refuse("a property that is 0 or 1 is neither", "v5 2.2.2.2")
            }
            _ => Ok(()),
        }
    }
}

/// Properties in the making.
#[derive(Clone, Debug, Default)]
pub struct PropertiesBuilder {
    raw: Vec<u8>,
}

impl PropertiesBuilder {
    /// Adds one. That it may stand where it will be sent is the caller's to know.
    pub fn push(&mut self, property: &Property) {
        debug_assert!(property.check().is_ok());
        property.encode(&mut self.raw);
    }

    /// What there is so far.
    #[must_use]
    pub fn properties(&self) -> Properties<'_> {
        Properties { raw: &self.raw }
    }
}
