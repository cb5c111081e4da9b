//! What the tests of connections and shards have in common: settings with real certificates, and a client in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::ListenerSettings;
use crate::broker::{self, Broker};
use crate::codec::native::{self, CloseCode, Frame, Hello, Message, Welcome};
use crate::config::{
    self, Authenticator, Heartbeat, Identity, IdentityFrom, Limits, Listener, Protocol, Raw, Transport,
};
use crate::link::{Exchange, Home, ListenerId, WorkerId};
use crate::time::Tick;
use crate::tls::certs::fixtures::{Algorithm, Authority, Time, dns};
use crate::tls::handshake::{
    ClientAuth, ClientOptions, ClientResumption, ClientTls, Handshake, HandshakeError, Progress, RevocationOptions,
    Roots, ServerOptions, ServerTls, Versions,
};
use crate::tls::record::{Opened, RecordError, RecordLayer, Stage, next_record};

/// An authority, a server certificate, and certificates for devices as they are asked for.
pub(crate) struct Fixtures {
    authority: Authority,
    server: (PathBuf, PathBuf),
}

impl Fixtures {
    /// The authenticators of a listener with a token file, or of one without.
    pub(crate) fn tokens(has_file: bool) -> Vec<Authenticator> {
        if has_file { vec![Authenticator::secrets("tokens".into(), "identity.token_file")] } else { Vec::new() }
    }

    pub fn new() -> Self {
        let authority = Authority::new(Algorithm::EcdsaP256);
        let server = authority.issue("localhost", Algorithm::EcdsaP256, Time::Now, &[dns("localhost")]);
        Self { authority, server }
    }

    /// A native listener as it is without a word of configuration, with small limits.
    pub fn native() -> Listener {
        Listener {
            name: "test".into(),
            listen: ([127, 0, 0, 1], 0).into(),
            shares: None,
            alpn: None,
            protocol: Protocol::Native,
            transport: Transport::Tls,
            proxy_protocol: Vec::new(),
            tls: config::Tls::default(),
            heartbeat: Heartbeat {
                interval: Duration::from_secs(10),
                timeout: Duration::from_secs(1),
                retries: 1,
                ..Heartbeat::default()
            },
            identity: Identity { from: IdentityFrom::Hello, authenticators: Vec::new() },
            rates: config::Rates::default(),
        }
    }

    /// A raw listener with a heartbeat, a reply to it and a probe.
    pub fn raw() -> Listener {
        let raw = Raw { heartbeat: b"heartbeat".to_vec(), reply: b"ok".to_vec(), probe: b"?".to_vec() };
        Listener {
            protocol: Protocol::Raw(raw),
            identity: Identity { from: IdentityFrom::CertCn, authenticators: Vec::new() },
            ..Self::native()
        }
    }

    pub fn limits() -> Limits {
        Limits { frame_bytes: 1_500, outbox_bytes: 4_096, read_bytes: 2_048, ..Limits::default() }
    }

    /// The sessions of a shard that is the only one.
    pub fn sessions() -> Broker {
        let setup = broker::BrokerOptions {
            worker: WorkerId(0),
            home: Home::new([3; 16], 1),
            exchange: Arc::new(Exchange::new(1)),
            bounds: broker::Bounds::of(&Self::limits(), 1),
            key: 1,
        };
        Broker::new(setup, Tick(0))
    }

    /// A revocation list that names those of the clients' certificates.
    pub fn revoke(&self, names: &[&str]) -> PathBuf {
        let path = |name: &&str| self.authority.directory.path().join(format!("{name}.pem"));
        let certificates: Vec<PathBuf> = names.iter().map(path).collect();
        let certificates: Vec<&Path> = certificates.iter().map(PathBuf::as_path).collect();
        self.authority.revoke("list", &certificates)
    }

    pub fn settings(&self, id: u8, listener: &Listener) -> ListenerSettings {
        self.settings_with(id, listener, None)
    }

    /// The same with a revocation list.
    pub fn settings_with_lists(&self, id: u8, listener: &Listener, list: &Path) -> ListenerSettings {
        self.settings_with(id, listener, Some(list))
    }

    fn settings_with(&self, id: u8, listener: &Listener, list: Option<&Path>) -> ListenerSettings {
        let lists: Vec<&Path> = list.into_iter().collect();
        let revocation = list.map(|_| RevocationOptions {
            lists: &lists,
            accept_expired: false,
            accept_unknown: false,
            leaf_only: false,
        });
        let certificates = [(&*self.server.0, &*self.server.1)];
        let client_auth = match listener.tls.client_auth {
            config::ClientAuth::Off => ClientAuth::Off,
            config::ClientAuth::Optional => ClientAuth::Optional(&self.authority.pem),
            config::ClientAuth::Required => ClientAuth::Required(&self.authority.pem),
        };
        let alpn = &listener.alpn();
        let (tls, _) = ServerTls::load(&ServerOptions {
            certificates: &certificates,
            client_auth,
            revocation,
            alpn,
            ..ServerOptions::default()
        })
        .unwrap();
        ListenerSettings::new(ListenerId(id), listener, &Self::limits(), tls)
    }

    /// A client, with a certificate in this name or without one.
    pub fn client(&self, certificate: Option<&str>, versions: Versions) -> ClientTls {
        let identity =
            certificate.map(|name| self.authority.issue(name, Algorithm::EcdsaP256, Time::Now, &[dns("device.test")]));
        ClientTls::load(&ClientOptions {
            roots: Roots::Pem(&self.authority.pem),
            server_name: "localhost",
            identity: identity.as_ref().map(|(cert, key)| (&**cert, &**key)),
            alpn: &[],
            versions,
            cipher_suites: None,
            key_exchange: None,
            resumption: ClientResumption::Off,
        })
        .unwrap()
    }
}

/// How the client's side has ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    CloseNotify,
    /// The handshake failed; by an alert of the server's, or for the client's own reasons.
    Handshake(HandshakeError),
    /// A record was wrong, or a fatal alert.
    Record(RecordError),
}

/// A frame that the client was sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ReceivedFrame {
    Welcome(Welcome),
    Ping,
    Pong(Vec<u8>),
    Message { id: u32, payload: Vec<u8> },
    Ack(u32),
    Close(CloseCode, u32, String),
}

/// A client in memory: bytes in by [`Client::receive`], bytes out in `out`.
pub(crate) struct Client {
    handshake: Option<Handshake>,
    pub records: Option<RecordLayer>,
    inbox: Vec<u8>,
    pub out: Vec<u8>,
    /// What was said to it, opened.
    pub heard: Vec<u8>,
    pub end: Option<End>,
}

impl Client {
    pub fn new(tls: &ClientTls) -> Self {
        let mut out = Vec::new();
        let handshake = Some(Handshake::client(tls, &mut out).unwrap());
        Self { handshake, records: None, inbox: Vec::new(), out, heard: Vec::new(), end: None }
    }

    pub fn receive(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        while self.end.is_none() && self.step() {}
    }

    fn step(&mut self) -> bool {
        if let Some(handshake) = &mut self.handshake {
            let Some(length) = next_record(&self.inbox, Stage::Handshake).unwrap() else { return false };
            let record: Vec<u8> = self.inbox.drain(..length).collect();
            match handshake.handle_record(&record, &mut self.out) {
                Ok(Progress::Continue) => {}
                Ok(Progress::Done) => {
                    let established = self.handshake.take().unwrap().finish(&mut self.out).unwrap();
                    self.records = Some(established.records);
                }
                Err(error) => self.end = Some(End::Handshake(error)),
            }
            return true;
        }
        let mut burst = self.records.as_mut().unwrap().burst();
        let opened = match burst.next_record(&self.inbox, &mut self.out) {
            Ok(None) => return false,
            Ok(Some(length)) => {
                let mut record: Vec<u8> = self.inbox.drain(..length).collect();
                match burst.open(&mut record, &mut self.out) {
                    Ok(Opened::Data(data)) => {
                        self.heard.extend_from_slice(data);
                        return true;
                    }
                    Ok(Opened::Handled(_)) => return true,
                    Ok(Opened::CloseNotify) => End::CloseNotify,
                    Err(error) => End::Record(error),
                }
            }
            Err(error) => End::Record(error),
        };
        self.end = Some(opened);
        true
    }

    pub fn say_bytes(&mut self, bytes: &[u8]) {
        self.records.as_mut().unwrap().burst().seal(bytes, &mut self.out).unwrap();
    }

    pub fn say(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.say_bytes(&bytes);
    }

    pub fn say_hello(&mut self, id: &str) {
        self.say(&Frame::Hello(Hello { heartbeat_ms: 0, id, token: b"" }));
    }

    pub fn say_message(&mut self, id: u32, payload: &[u8]) {
        self.say(&Frame::Message(Message { id, topic: "t", payload }));
    }

    /// The frames that it was sent since the last time.
    pub fn frames(&mut self) -> Vec<ReceivedFrame> {
        let mut said = Vec::new();
        while let Some((frame, length)) = native::decode(&self.heard, native::BODY_MAX).unwrap() {
            said.push(match frame {
                Frame::Welcome(welcome) => ReceivedFrame::Welcome(welcome),
                Frame::Ping(_) => ReceivedFrame::Ping,
                Frame::Pong(echo) => ReceivedFrame::Pong(echo.to_vec()),
                Frame::Message(message) => ReceivedFrame::Message { id: message.id, payload: message.payload.to_vec() },
                Frame::Ack(id) => ReceivedFrame::Ack(id),
                Frame::Close(close) => ReceivedFrame::Close(close.code, close.retry_after_ms, close.reason.to_owned()),
                Frame::Hello(_) => panic!("a gateway says no HELLO"),
            });
            self.heard.drain(..length);
        }
        said
    }
}
