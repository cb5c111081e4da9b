//! Why connections end and why they are not begun: one closed list each. The presence event, the log line and the
//! metric label of an end are all made from its [`CloseReason`].

macro_rules! labelled {
    ($(#[$outer:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $label:literal,)+ }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            /// Every value, in declaration order: `ALL[x as usize] == x`.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name used in metrics, logs, presence events and the API.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.label())
            }
        }
    };
}

labelled! {
    /// Why a connection ended. Every connection that was accepted ends with exactly one.
    CloseReason {
        /// The peer ended the TLS connection in order (close_notify, or an end of stream after it was established).
        PeerClosed = "peer_closed",
        /// The device said CLOSE.
        DeviceClosed = "device_closed",
        /// The peer's end was torn down (TCP reset) or the network reported it gone.
        PeerReset = "peer_reset",
        /// Silence: nothing was heard for the whole of the interval, the timeout and every retry.
        Expired = "expired",
        /// The peer left before its TLS handshake was complete.
        HandshakeAbandoned = "handshake_abandoned",
        /// The TLS handshake was not complete within `limits.handshake_time`.
        HandshakeTimeout = "handshake_timeout",
        /// The TLS handshake failed: no common version, suite or protocol, a bad message, or an alert from the peer.
        HandshakeFailed = "handshake_failed",
        /// The first bytes were not a TLS record.
        NotTls = "not_tls",
        /// A trusted proxy did not say, as the PROXY protocol has it, whose connection it brings.
        ProxyHeader = "proxy_header",
        /// A trusted proxy looked whether somebody is here.
        ProxyCheck = "proxy_check",
        /// The address that a proxy announced may open no more connections now.
        AddressRefused = "address_refused",
        /// The client certificate was missing, untrusted, expired or unusable.
        CertificateRejected = "certificate_rejected",
        /// The client certificate of a live connection was revoked (`tls.on_revoked`).
        CertificateRevoked = "certificate_revoked",
        /// The client certificate of a live connection has ended (`tls.on_expired`).
        CertificateExpired = "certificate_expired",
        /// The connection was as old as one may become (`tls.max_connection_age`).
        ConnectionAge = "connection_age",
        /// The client certificate holds no name under the listener's identity rule.
        IdentityMissing = "identity_missing",
        /// HELLO named another device than the client certificate does.
        IdentityMismatch = "identity_mismatch",
        /// HELLO carried no token or a wrong one.
        TokenRejected = "token_rejected",
        /// The device did not name itself within `limits.hello_time`.
        HelloTimeout = "hello_timeout",
        /// The device's token was not checked: too many waited, or its address had sent too many wrong ones.
        TokenUnanswered = "token_unanswered",
        /// The device's JWT was not accepted: its signature, its time, its claims.
        JwtRejected = "jwt_rejected",
        /// The device's JWT was not checked: no keys yet, or too many waited.
        JwtUnanswered = "jwt_unanswered",
        /// The HTTP hook said no.
        HookRejected = "hook_rejected",
        /// The HTTP hook gave no answer in time, or too many waited for it.
        HookUnanswered = "hook_unanswered",
        /// What the device was granted has ended: its token expired and was not renewed.
        GrantExpired = "grant_expired",
        /// A record broke the TLS protocol or could not be authenticated, or the peer sent a fatal alert.
        TlsError = "tls_error",
        /// A frame broke the device protocol.
        ProtocolError = "protocol_error",
        /// A frame was longer than `limits.frame_bytes`.
        FrameTooLarge = "frame_too_large",
        /// A newer connection of the same device took its place.
        TakenOver = "taken_over",
        /// The peer did not read: its outbox reached `limits.outbox_bytes`.
        SlowConsumer = "slow_consumer",
        /// A message of the device could not be kept, and its protocol (MQTT 3.1.1) has no word for that.
        MessageRefused = "message_refused",
        /// The device's home worker had no place for it.
        HomeFull = "home_full",
        /// What it had half-sent, or its open exchanges of QoS 2, had no room in `limits.pool_bytes`.
        PoolFull = "pool_full",
        /// What waits for the device in the store cannot be read.
        SessionUnreadable = "session_unreadable",
        /// Its session is at another gateway of the fleet, and could not be brought here in time.
        SessionElsewhere = "session_elsewhere",
        /// The deny list names the device, its certificate or its network.
        Denied = "denied",
        /// The device sent more than `listener.rates` allows, for longer than its patience.
        RateExceeded = "rate_exceeded",
        /// Two places take the device's id from each other: this one waits.
        TakeoverLoop = "takeover_loop",
        /// The owner asked for it.
        Requested = "requested",
        /// The gateway ended.
        Shutdown = "shutdown",
    }
}

labelled! {
    /// Why a new connection was refused before TLS. Refused connections are counted, never logged one by one.
    Refusal {
        /// `limits.connections` is reached.
        ConnectionLimit = "connection_limit",
        /// The worker's descriptor table is full.
        DescriptorLimit = "descriptor_limit",
        /// The address opens new connections faster than `admission.address` allows.
        AddressRate = "address_rate",
        /// The address holds as many connections as `admission.address` allows.
        AddressConnections = "address_connections",
        /// The network of the address opens new connections faster than `admission.network` allows.
        NetworkRate = "network_rate",
        /// The network of the address holds as many connections as `admission.network` allows.
        NetworkConnections = "network_connections",
        /// The deny list names a network that the address is in.
        Denied = "denied",
        /// The loop is later than `limits.shed_lateness`: live connections come first.
        Overloaded = "overloaded",
        /// The gateway is shutting down.
        Draining = "draining",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique_and_ordered() {
        let mut labels: Vec<_> = CloseReason::ALL.iter().map(|reason| reason.label()).collect();
        for (position, reason) in CloseReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, position);
        }
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), CloseReason::COUNT);
    }
}
