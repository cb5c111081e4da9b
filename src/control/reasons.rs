//! Every reason word explained, for whoever reads it in a log, an event, a metric or an answer: docs/REASONS.md and
//! `pulsegate why` say the same.

use crate::link::CloseReason;

/// What a reason means, what to look at, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Explanation {
    pub(super) meaning: &'static str,
    pub(super) look_at: &'static str,
    pub(super) remedy: &'static str,
}

/// In the order of the reasons: what each means, what to look at, and what to do.
#[rustfmt::skip]
const EXPLANATIONS: [(CloseReason, [&str; 3]); CloseReason::COUNT] = [
    (CloseReason::PeerClosed, [
        "The device ended the TLS connection in order, without a CLOSE or DISCONNECT before it.",
        "The device's log; whether firmware closes when it sleeps.",
        "Nothing, if the device is meant to sleep or restart.",
    ]),
    (CloseReason::DeviceClosed, [
        "The device said CLOSE or DISCONNECT.",
        "The device's log.",
        "Nothing: it left on purpose.",
    ]),
    (CloseReason::PeerReset, [
        "The connection was torn down: a TCP reset, or the network reported the device gone.",
        "Power, radio and network of the device; boxes on the way that forget idle connections.",
        "Where many have lifetimes just above one value, set listener.heartbeat.interval below it.",
    ]),
    (CloseReason::Expired, [
        "Nothing was heard for the interval, the timeout and every retry.",
        "Whether the device has power and network; last_heard against connected_at; whether others of its \
         network went at the same time.",
        "Bring the device back; where a network is slow, raise listener.heartbeat.timeout or retries \
         (MQTT: the device's keep-alive).",
    ]),
    (CloseReason::HandshakeAbandoned, [
        "The peer left before its TLS handshake was complete.",
        "Its address: scanners and probes of load balancers do that; devices do when their own time-out \
         is short.",
        "Let probes ask /readyz; raise the device's time-out, or the number of cores.",
    ]),
    (CloseReason::HandshakeTimeout, [
        "The TLS handshake was not complete within limits.handshake_time.",
        "Its address, and pulsegate_handshakes_waiting.",
        "Slow networks: raise limits.handshake_time. Many waiting: more cores, or a slower reconnect of \
         the fleet.",
    ]),
    (CloseReason::HandshakeFailed, [
        "The TLS handshake failed; detail says where.",
        "detail: version, cipher suite, protocol (ALPN), or the alert that the device sent. unknown_ca \
         and bad_certificate mean that the device does not trust the gateway's certificate.",
        "Give the device the right authority and name, or the listener the certificate that the device \
         expects.",
    ]),
    (CloseReason::NotTls, [
        "The first bytes were no TLS record.",
        "Its address: scanners and plain HTTP or MQTT clients.",
        "Switch TLS on in the device, or find it another port.",
    ]),
    (CloseReason::ProxyHeader, [
        "A trusted proxy did not say, as the PROXY protocol has it, whose connection it brings.",
        "Whether the proxy sends the PROXY protocol to this port (HAProxy: send-proxy-v2).",
        "Switch it on in the proxy, or take the proxy out of the listener's trusted networks.",
    ]),
    (CloseReason::ProxyCheck, [
        "A trusted proxy looked whether somebody is here.",
        "Nothing: it is a health check.",
        "Nothing.",
    ]),
    (CloseReason::AddressRefused, [
        "The address that a proxy announced may open no more connections now; detail says why.",
        "detail, which is a reason of the table below; whose address it is.",
        "Raise the bound in [admission], or name the address in admission.allow, where many devices share it.",
    ]),
    (CloseReason::CertificateRejected, [
        "The client certificate was missing, untrusted, expired or unusable; detail says which.",
        "detail; openssl x509 -noout -text of the device's certificate: dates, issuer, version 3, key \
         usage.",
        "Issue a certificate by an authority in listener.tls.client_ca; set the device's clock.",
    ]),
    (CloseReason::CertificateRevoked, [
        "The client certificate of a live connection was revoked (tls.on_revoked).",
        "The revocation list in tls.crl, and who revoked the certificate.",
        "Nothing, if it was meant; else issue the device a new certificate.",
    ]),
    (CloseReason::CertificateExpired, [
        "The client certificate of a live connection has ended (tls.on_expired).",
        "The dates of the device's certificate, and whether it renews in time.",
        "Renew the device's certificate.",
    ]),
    (CloseReason::ConnectionAge, [
        "The connection was as old as one may become (tls.max_connection_age).",
        "Nothing: the device comes back with a fresh handshake.",
        "Raise the age if it is too short for the fleet.",
    ]),
    (CloseReason::IdentityMissing, [
        "The client certificate holds no name under listener.identity.from.",
        "openssl x509 -noout -subject -ext subjectAltName of the device's certificate.",
        "Issue a certificate with the name, or set listener.identity.from to where the name is.",
    ]),
    (CloseReason::IdentityMismatch, [
        "The device called itself by another name than its certificate or user name does.",
        "detail has both names.",
        "Set the device's id or client identifier to its own name, or leave the client identifier empty.",
    ]),
    (CloseReason::TokenRejected, [
        "The token or password was missing, wrong, or of an unknown name.",
        "Whether the name stands in the listener's token or password file, and since when.",
        "pulsegate hash-token NAME; give the device the same secret.",
    ]),
    (CloseReason::HelloTimeout, [
        "The device did not name itself within limits.hello_time after the TLS handshake.",
        "Whether it speaks the listener's protocol at all: HELLO (native) or CONNECT (MQTT) must come \
         first.",
        "Send the device to the port of its protocol.",
    ]),
    (CloseReason::TokenUnanswered, [
        "The device's token was not checked: too many waited, or its address had sent too many wrong \
         ones.",
        "pulsegate_tokens_rejected_total: somebody may be guessing; pulsegate_tokens_verified_total: a \
         whole fleet may log in for the first time.",
        "It comes back by itself. Where secrets are long and random, make their hashes with hash-token \
         --memory 1024.",
    ]),
    (CloseReason::JwtRejected, [
        "The device's JSON Web Token was not accepted; detail says why.",
        "detail: signature, algorithm, key id, exp, nbf, aud, iss, or the claims that the listener reads; \
         the clocks of issuer and gateway.",
        "Give the device a fresh token of the right issuer and audience, or the listener the issuer's \
         keys.",
    ]),
    (CloseReason::JwtUnanswered, [
        "The device's JSON Web Token was not checked: its key is not known (yet), or too many waited.",
        "detail; pulsegate_jwt_keys_failed_total and the log: whether the keys can be fetched.",
        "It comes back by itself. See to the URL of the keys; if the key id is wrong for good, to the \
         device's token.",
    ]),
    (CloseReason::HookRejected, [
        "The HTTP hook of the listener said no.",
        "detail: the hook's own words; the log of the hook.",
        "Make the device known to the service behind the hook, and wait for cache_denied.",
    ]),
    (CloseReason::HookUnanswered, [
        "The HTTP hook of the listener gave no answer in time, or too many waited for it.",
        "The log (hook); pulsegate_hook_failures_total: whether the service hangs, fails or is gone.",
        "It comes back by itself. Bring the service back; on_error = allow-cached lets in whom it knew.",
    ]),
    (CloseReason::GrantExpired, [
        "What the device was granted has ended: its token expired and was not renewed.",
        "The exp of the token, or expires_in_s of the hook, and whether the device fetches a fresh one in \
         time.",
        "Nothing, if it comes back with a fresh token; MQTT 5 devices can renew it by AUTH and stay.",
    ]),
    (CloseReason::TlsError, [
        "A record broke the TLS protocol or could not be authenticated, or the peer sent a fatal alert; \
         detail says which.",
        "detail; memory of the device, boxes on the way that change bytes.",
        "Mend the device's TLS; where it stands alone, report it with the detail.",
    ]),
    (CloseReason::ProtocolError, [
        "A frame or packet broke the device protocol; detail says which.",
        "detail; the firmware's version.",
        "Mend the device: docs/PROTOCOL.md says what is allowed.",
    ]),
    (CloseReason::FrameTooLarge, [
        "A frame was longer than limits.frame_bytes, or a packet than limits.packet_bytes.",
        "What the device sends.",
        "Raise the limit, or send less at a time.",
    ]),
    (CloseReason::TakenOver, [
        "A newer connection of the same device took its place.",
        "The peer addresses of both: two devices with one id take turns.",
        "Give every device its own id; where one device reconnects, nothing.",
    ]),
    (CloseReason::SlowConsumer, [
        "The device did not read: what waited for it reached limits.outbox_bytes.",
        "Its network; how much is sent to it.",
        "Send less, or raise limits.outbox_bytes.",
    ]),
    (CloseReason::MessageRefused, [
        "A message of the device could not be kept, and its protocol (MQTT 3.1.1) has no word for that.",
        "pulsegate_backbone_events_refused_total and the store's figures: it may be full, or the disk.",
        "Give the store more room (store.bytes) or the disk; speak MQTT 5, which can be told of one message.",
    ]),
    (CloseReason::HomeFull, [
        "The worker that the device belongs to had no place for it.",
        "pulsegate_connections by worker, limits.connections, the descriptor limit.",
        "Raise limits.connections or LimitNOFILE.",
    ]),
    (CloseReason::PoolFull, [
        "What the device had half-sent, or its open exchanges of QoS 2, had no room in limits.pool_bytes.",
        "pulsegate_pool_used_bytes and pulsegate_pool_refused_total.",
        "It comes back by itself; raise limits.pool_bytes where memory allows.",
    ]),
    (CloseReason::SessionUnreadable, [
        "What waits for the device in the store cannot be read.",
        "The gateway's log, which names the file and the fault; `pulsegate store check`.",
        "It stays there, and the device may come back; mend the disk, or restore a backup.",
    ]),
    (CloseReason::SessionElsewhere, [
        "The device's session is at another gateway of the fleet, and could not be brought here in time.",
        "The gateway's log, which names the other one; pulsegate_fleet_sessions_put_off_total; the other one's store and NATS.",
        "It stays there, and the device may come back; where it comes again and again, mend what the log names.",
    ]),
    (CloseReason::Denied, [
        "The deny list names the device, its certificate or its network.",
        "Who wrote it there: `pulsegate blocks` tells file, API and gateway (rate_exceeded).",
        "Take it out of deny_file, or `pulsegate unblock`.",
    ]),
    (CloseReason::RateExceeded, [
        "The device sent more than listener.rates allows, for longer than listener.rates.patience.",
        "What it sends; pulsegate_rate_held_total; `pulsegate blocks`, for it is kept out for a while.",
        "Mend the firmware, or raise the rates; `pulsegate unblock ID` lets it in at once.",
    ]),
    (CloseReason::TakeoverLoop, [
        "Two places take the device's id from each other again and again: this one waits, the other stays.",
        "The peer addresses of its latest ends (`pulsegate why ID`): two devices with one id, or a copied one.",
        "Give every device its own id and certificate; `pulsegate block` keeps the wrong one out.",
    ]),
    (CloseReason::Requested, [
        "The owner asked for it: by the API or the command line.",
        "Who holds the admin tokens.",
        "Nothing.",
    ]),
    (CloseReason::Shutdown, [
        "The gateway ended.",
        "The supervisor's log.",
        "Nothing: devices were told when to come back.",
    ]),
];

/// What a reason means, what to look at, and what to do.
pub(super) const fn explain(reason: CloseReason) -> Explanation {
    let (_, [meaning, look_at, remedy]) = EXPLANATIONS[reason as usize];
    Explanation { meaning, look_at, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Refusal;

    const PAGE: &str = include_str!("../../docs/REASONS.md");

    /// Every row of the page's tables: the word and the three columns.
    fn rows() -> Vec<[String; 4]> {
        let rows = PAGE.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| {
            let cells: Vec<_> = row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
            cells.try_into().unwrap_or_else(|cells| panic!("a row has four columns: {cells:?}"))
        })
        .collect()
    }

    #[test]
    fn each_reason_has_its_own_explanation() {
        for (position, (reason, _)) in EXPLANATIONS.iter().enumerate() {
            assert_eq!(*reason as usize, position, "{reason}");
        }
    }

    #[test]
    fn the_page_explains_every_reason_as_the_gateway_does_and_no_other() {
        let expected: Vec<[String; 4]> = CloseReason::ALL
            .iter()
            .map(|&reason| {
                let Explanation { meaning, look_at, remedy } = explain(reason);
                [format!("`{}`", reason.label()), meaning.to_owned(), look_at.to_owned(), remedy.to_owned()]
            })
            .collect();
        let refusals: Vec<String> = Refusal::ALL.iter().map(|refusal| format!("`{}`", refusal.label())).collect();
        let rows = rows();
        for row in &expected {
            assert!(rows.contains(row), "docs/REASONS.md lacks this row:\n| {} |", row.join(" | "));
        }
        for row in &rows {
            let is_known = expected.contains(row) || refusals.contains(&row[0]);
            assert!(is_known, "docs/REASONS.md explains what the gateway does not know: {}", row[0]);
        }
        for refusal in &refusals {
            assert!(rows.iter().any(|row| row[0] == *refusal), "docs/REASONS.md lacks the refusal {refusal}");
        }
    }
}
