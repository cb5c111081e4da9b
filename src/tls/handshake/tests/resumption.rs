//! Sessions that are resumed, and those that must not be: too old, of a certificate that has ended, from before a change
//! of the rules about clients, of another listener.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use super::*;
use crate::tls::certs::authority::FleetAuthority;

#[derive(Debug)]
struct LaterClock(AtomicU64);

impl TimeProvider for LaterClock {
    fn current_time(&self) -> Option<UnixTime> {
        let later = Duration::from_secs(self.0.load(Ordering::Relaxed));
        Some(UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + later))
    }
}

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;

impl LaterClock {
    fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(0)))
    }

    fn set(&self, later: u64) {
        self.0.store(later, Ordering::Relaxed);
    }
}

fn load(fixtures: &Fixtures, options: ServerOptions<'_>, clock: &Arc<LaterClock>) -> ServerTls {
    let certificates = [(&*fixtures.server.0, &*fixtures.server.1)];
    let options = ServerOptions { certificates: &certificates, ..options };
    ServerTls::load_with_clock(&options, Arc::clone(clock) as Arc<_>).unwrap().0
}

/// A client that keeps its sessions.
fn resuming(fixtures: &Fixtures, identity: Option<&(PathBuf, PathBuf)>, versions: Versions) -> ClientTls {
    let mut options = fixtures.options(versions);
    options.identity = identity.map(|(cert, key)| (&**cert, &**key));
    options.resumption = ClientResumption::AwaitTicket;
    ClientTls::load(&options).unwrap()
}

#[test]
fn a_session_ends_a_lifetime_after_its_full_handshake_however_often_it_was_resumed() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    for versions in ALL_VERSIONS {
        let clock = LaterClock::new();
        let server = load(&fixtures, ServerOptions::default(), &clock);
        let client = resuming(&fixtures, None, versions);
        for (hour, resumed) in [(0, false), (5, true), (11, true), (12, false), (13, true), (23, true), (24, false)] {
            clock.set(hour * HOUR);
            assert_eq!(connect(&server, &client).server.resumed, resumed, "{versions:?} {hour}");
        }
    }
}

#[test]
fn a_session_whose_certificate_has_ended_falls_back_to_a_full_handshake() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let identity = fixtures.client_certificate("pump-17", Time::Now);
    for versions in ALL_VERSIONS {
        let clock = LaterClock::new();
        let auth = ClientAuth::Required(&fixtures.authority.pem);
        let tickets = Some(TicketOptions { lifetime: Duration::from_secs(90 * DAY), keys: None });
        let options = ServerOptions { client_auth: auth, tickets, ..ServerOptions::default() };
        let server = load(&fixtures, options, &clock);
        let client = resuming(&fixtures, Some(&identity), versions);
        connect(&server, &client);
        clock.set(29 * DAY);
        assert!(connect(&server, &client).server.resumed, "{versions:?}");
        clock.set(31 * DAY);
        // Not the session is refused but, in a handshake of its own, the certificate: a new one would have got in.
        let pair = Pair::new(&server, &client).run();
        let rejected = HandshakeError::CertificateRejected(CertificateFault::Expired);
        assert_eq!(pair.server.error, Some(rejected), "{versions:?}");
        assert_ne!(pair.server.handshake.connection.handshake_kind(), Some(HandshakeKind::Resumed));
        let told = pair.server.handshake.refused_certificate().unwrap();
        assert!(told.contains("CN=pump-17") && told.contains("issued by CN=test authority"), "{told}");
    }
}

#[test]
fn a_session_whose_intermediate_has_ended_falls_back_to_a_full_handshake() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let identity = fixtures.authority.issue_through("pump-17", Duration::from_secs(2 * DAY));
    for versions in ALL_VERSIONS {
        let clock = LaterClock::new();
        let tickets = Some(TicketOptions { lifetime: Duration::from_secs(90 * DAY), keys: None });
        let client_auth = ClientAuth::Required(&fixtures.authority.pem);
        let server = load(&fixtures, ServerOptions { client_auth, tickets, ..ServerOptions::default() }, &clock);
        let client = resuming(&fixtures, Some(&identity), versions);
        connect(&server, &client);
        assert!(connect(&server, &client).server.resumed, "{versions:?}");
        clock.set(3 * DAY);
        let pair = Pair::new(&server, &client).run();
        let rejected = HandshakeError::CertificateRejected(CertificateFault::Expired);
        assert_eq!(pair.server.error, Some(rejected), "{versions:?}");
    }
}

#[test]
fn a_change_of_the_rules_about_clients_ends_every_session_and_a_new_server_certificate_none() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let other = Authority::new(Algorithm::EcdsaP256);
    let identity = fixtures.client_certificate("pump-17", Time::Now);
    let (ca, both) = (&*fixtures.authority.pem, fixtures.authority.directory.path().join("both.pem"));
    let pems = [std::fs::read_to_string(ca).unwrap(), std::fs::read_to_string(&other.pem).unwrap()];
    std::fs::write(&both, pems.concat()).unwrap();
    let list = fixtures.authority.revoke("list", &[]);
    let lists = [&*list];
    let revocation =
        RevocationOptions { lists: &lists, accept_expired: false, accept_unknown: false, leaf_only: false };
    let base = ServerOptions { listener: "a", client_auth: ClientAuth::Required(ca), ..ServerOptions::default() };
    for versions in ALL_VERSIONS {
        for (what, change, resumed) in [
            ("the same again", base, true),
            ("another application protocol", ServerOptions { alpn: &[b"x"], ..base }, true),
            ("another size of records", ServerOptions { record_bytes: 512, ..base }, true),
            ("another name", ServerOptions { listener: "b", ..base }, false),
            ("certificates are optional", ServerOptions { client_auth: ClientAuth::Optional(ca), ..base }, false),
            ("one more authority", ServerOptions { client_auth: ClientAuth::Required(&both), ..base }, false),
            ("a revocation list", ServerOptions { revocation: Some(revocation), ..base }, false),
            ("no tickets", ServerOptions { tickets: None, ..base }, false),
        ] {
            let clock = LaterClock::new();
            let server = load(&fixtures, base, &clock);
            let client = resuming(&fixtures, Some(&identity), versions);
            connect(&server, &client);
            assert!(connect(&server, &client).server.resumed, "{what}");
            server.swap(&load(&fixtures, change, &clock));
            // Of a ticketless listener the client awaits none.
            let pair = Pair::new(&server, &client).run();
            assert_eq!(pair.finish().server.resumed, resumed, "{versions:?} {what}");
        }
    }
}

#[test]
fn a_handshake_goes_to_its_end_with_what_it_began_with() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let clock = LaterClock::new();
    let server = load(&fixtures, ServerOptions::default(), &clock);
    let mut pair = Pair::new(&server, &fixtures.client(None, Versions::Both));
    pair.server.step(&mut pair.client.inbox);
    let required =
        ServerOptions { client_auth: ClientAuth::Required(&fixtures.authority.pem), ..ServerOptions::default() };
    server.swap(&load(&fixtures, required, &clock));
    pair.run().finish().check();
    let pair = Pair::new(&server, &fixtures.client(None, Versions::Both)).run();
    assert_eq!(pair.server.error, Some(HandshakeError::CertificateRejected(CertificateFault::Missing)));
}

#[test]
fn gateways_that_share_a_key_file_take_each_other_s_sessions() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let keys = fixtures.authority.directory.path().join("tickets.keys");
    std::fs::write(&keys, "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq\n").unwrap();
    let tickets = Some(TicketOptions { keys: Some(&keys), ..TicketOptions::default() });
    for versions in ALL_VERSIONS {
        let clock = LaterClock::new();
        let load = |listener| load(&fixtures, ServerOptions { listener, tickets, ..ServerOptions::default() }, &clock);
        let client = resuming(&fixtures, None, versions);
        connect(&load("a"), &client);
        assert!(connect(&load("a"), &client).server.resumed, "{versions:?}");
        assert!(!connect(&load("b"), &client).server.resumed, "{versions:?}");
    }
}

#[test]
fn revoked_certificates_are_refused_and_named() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let good = fixtures.client_certificate("pump-1", Time::Now);
    let bad = fixtures.client_certificate("pump-2", Time::Now);
    let list = fixtures.authority.revoke("list", &[&bad.0]);
    let lists = [&*list];
    let client_auth = ClientAuth::Required(&fixtures.authority.pem);
    let revocation =
        Some(RevocationOptions { lists: &lists, accept_expired: false, accept_unknown: false, leaf_only: false });
    let clock = LaterClock::new();
    let before = ServerOptions { client_auth, ..ServerOptions::default() };
    let after = ServerOptions { revocation, ..before };
    for versions in ALL_VERSIONS {
        let server = load(&fixtures, before, &clock);
        let marks = [&good, &bad].map(|identity| {
            let established = connect(&server, &fixtures.client(Some(identity), versions)).server;
            established.certificate.unwrap().mark()
        });
        let client = resuming(&fixtures, Some(&bad), versions);
        connect(&server, &client);
        assert!(connect(&server, &client).server.resumed);
        server.swap(&load(&fixtures, after, &clock));
        assert_eq!(marks.map(|mark| server.policy().revokes(&mark)), [false, true]);
        // Its session lets nobody in any more.
        let pair = Pair::new(&server, &client).run();
        assert_eq!(pair.server.error, Some(HandshakeError::CertificateRejected(CertificateFault::Revoked)));
        assert!(pair.server.handshake.refused_certificate().unwrap().contains("CN=pump-2"));
        connect(&server, &fixtures.client(Some(&good), versions));
    }
}

#[test]
fn a_list_that_is_out_of_date_locks_out_or_not_as_the_operator_says() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let identity = fixtures.client_certificate("pump-1", Time::Now);
    let list = fixtures.authority.revoke("list", &[]);
    let lists = [&*list];
    let policy = |accept_expired| {
        Some(RevocationOptions { lists: &lists, accept_expired, accept_unknown: false, leaf_only: true })
    };
    for accept_expired in [true, false] {
        let clock = LaterClock::new();
        let options = ServerOptions {
            client_auth: ClientAuth::Required(&fixtures.authority.pem),
            revocation: policy(accept_expired),
            ..ServerOptions::default()
        };
        let server = load(&fixtures, options, &clock);
        connect(&server, &fixtures.client(Some(&identity), Versions::Both));
        clock.set(8 * DAY);
        let pair = Pair::new(&server, &fixtures.client(Some(&identity), Versions::Both)).run();
        assert_eq!(pair.server.error.is_some(), !accept_expired, "{:?}", pair.server.error);
    }
}

/// One connection of openssl to `server`: whether it was a resumption. Openssl leaves when it has been greeted, and so
/// when it has its ticket.
fn ask_openssl(server: &ServerTls, listener: &TcpListener, directory: &Path, arguments: &[&str]) -> bool {
    let address = listener.local_addr().unwrap().to_string();
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &address, "-CAfile", "ca.pem", "-servername", "localhost", "-quiet"]);
    command.args(["-no_ign_eof"]).args(arguments).current_dir(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| interop::serve_once(server, listener));
        let mut client = command.spawn().expect("openssl is installed");
        let mut greeting = String::new();
        let read = BufReader::new(client.stdout.take().unwrap()).read_line(&mut greeting);
        drop(client.stdin.take());
        let output = client.wait_with_output().unwrap();
        if read.is_err() || greeting.is_empty() {
            // Nobody came: the server is not to wait for ever.
            let _ = TcpStream::connect(&address);
            panic!("{output:?}");
        }
        answer.join().unwrap()
    })
}

#[test]
fn openssl_s_sessions_cross_no_change_of_authorities_lists_or_listener() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let directory = fixtures.authority.directory.path().to_owned();
    let (cert, key) = fixtures.client_certificate("pump-17", Time::Now);
    let identity = ["-cert", cert.to_str().unwrap(), "-key", key.to_str().unwrap()];
    let list = fixtures.authority.revoke("list", &[]);
    let lists = [&*list];
    let revocation =
        Some(RevocationOptions { lists: &lists, accept_expired: false, accept_unknown: false, leaf_only: false });
    let clock = LaterClock::new();
    let client_auth = ClientAuth::Required(&fixtures.authority.pem);
    let base = ServerOptions { listener: "a", client_auth, ..ServerOptions::default() };
    // Another authority beside the first: the client is as good as before, and its session is not.
    let both = directory.join("both.pem");
    let authorities =
        [&fixtures.authority.pem, &Authority::new(Algorithm::EcdsaP256).pem].map(|pem| std::fs::read(pem).unwrap());
    std::fs::write(&both, authorities.concat()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let session = directory.join("session.pem");
    let ask = |server: &ServerTls, version: &str, file: &str| {
        let arguments = [&[version, file, session.to_str().unwrap()][..], &identity].concat();
        ask_openssl(server, &listener, &directory, &arguments)
    };
    for version in ["-tls1_3", "-tls1_2"] {
        for (what, change, resumed) in [
            ("the same", base, true),
            ("another listener", ServerOptions { listener: "b", ..base }, false),
            ("a revocation list", ServerOptions { revocation, ..base }, false),
            ("other authorities", ServerOptions { client_auth: ClientAuth::Required(&both), ..base }, false),
            ("optional", ServerOptions { client_auth: ClientAuth::Optional(&fixtures.authority.pem), ..base }, false),
        ] {
            let server = load(&fixtures, base, &clock);
            assert!(!ask(&server, version, "-sess_out"), "{what}");
            server.swap(&load(&fixtures, change, &clock));
            assert_eq!(ask(&server, version, "-sess_in"), resumed, "{version} {what}");
        }
    }
}

#[test]
fn openssl_with_a_renewed_certificate_and_an_old_session_gets_in() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let directory = fixtures.authority.directory.path().to_owned();
    let short = fixtures.authority.issue_for("pump-17", Duration::from_secs(2 * DAY));
    let long = fixtures.authority.issue_for("pump-17-renewed", Duration::from_secs(20 * DAY));
    let client_auth = ClientAuth::Required(&fixtures.authority.pem);
    let tickets = Some(TicketOptions { lifetime: Duration::from_secs(5 * DAY), keys: None });
    let options = ServerOptions { client_auth, tickets, ..ServerOptions::default() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for version in ["-tls1_3", "-tls1_2"] {
        let clock = LaterClock::new();
        let server = load(&fixtures, options, &clock);
        for (later, file, (cert, key), resumed) in
            [(0, "-sess_out", &short, false), (DAY, "-sess_in", &short, true), (3 * DAY, "-sess_in", &long, false)]
        {
            clock.set(later);
            let session = directory.join("session.pem");
            let arguments = [version, file, session.to_str().unwrap(), "-cert", cert.to_str().unwrap()];
            let arguments = [&arguments[..], &["-key", key.to_str().unwrap()]].concat();
            let was_resumed = ask_openssl(&server, &listener, &directory, &arguments);
            assert_eq!(was_resumed, resumed, "{version} {later}");
        }
    }
}

#[test]
fn a_fleet_s_authority_lets_in_whom_it_issued_for_and_not_whom_it_revoked() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let directory = tempfile::tempdir().unwrap();
    let (path, now) = (directory.path(), SystemTime::now());
    let (year, month) = (Duration::from_secs(365 * DAY), Duration::from_secs(30 * DAY));
    let mut authority = FleetAuthority::create(path, "Fleet", 10 * year, month, now).unwrap();
    let pump = authority.issue("pump-1", None, year, now).unwrap();
    let (ca, list) = (path.join("ca.pem"), path.join("ca.crl"));
    let lists = [&*list];
    let options = ServerOptions {
        client_auth: ClientAuth::Required(&ca),
        revocation: Some(RevocationOptions {
            lists: &lists,
            accept_expired: false,
            accept_unknown: false,
            leaf_only: false,
        }),
        ..ServerOptions::default()
    };
    let clock = LaterClock::new();
    let server = load(&fixtures, options, &clock);
    for versions in ALL_VERSIONS {
        let client = fixtures.client(Some(&(pump.cert.clone(), pump.key.clone())), versions);
        let established = connect(&server, &client).server;
        assert_eq!(established.peer.unwrap().common_name.as_deref(), Some("pump-1"));
        assert_eq!(established.certificate.unwrap().serial_text(), authority.issued()[0].serial);
    }
    authority.revoke("pump-1", month, now).unwrap();
    server.swap(&load(&fixtures, options, &clock));
    for versions in ALL_VERSIONS {
        let client = fixtures.client(Some(&(pump.cert.clone(), pump.key.clone())), versions);
        let error = Pair::new(&server, &client).run().server.error;
        assert_eq!(error, Some(HandshakeError::CertificateRejected(CertificateFault::Revoked)));
    }
}
