//! The server's side of a full TLS 1.3 handshake, without sockets: rustls alone, as it comes and with the suite that we
//! prefer, and ours, which is rustls and then plain data. All answer the same client with the same certificate.

use std::sync::Arc;
use std::time::Duration;

use pulsegate::connection::ListenerSettings;
use pulsegate::tls::handshake::{
    ClientOptions, ClientResumption, ClientTls, Established, Handshake, Progress, RecordWish, Roots, ServerTls,
    Versions,
};
use pulsegate::tls::record::{Stage, next_record};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, SupportedCipherSuite};

use crate::arguments::Arguments;
use crate::clock::{medians, thread_cpu};
use crate::fixtures::{Deployment, feed};
use crate::report::{Column, Table, Unit, ratio};

/// What to run.
pub struct Options {
    /// Handshakes of each in one round.
    pub handshakes: u32,
    pub rounds: u32,
}

impl From<&Arguments> for Options {
    fn from(arguments: &Arguments) -> Self {
        Self { handshakes: 500, rounds: arguments.rounds.max(5) }
    }
}

/// One row for each.
pub fn run(options: &Options) -> Vec<Table> {
    // Neither port is listened on.
    let deployment = Deployment::new(1, 2, 60);
    let settings: Arc<[ListenerSettings]> = deployment.settings();
    let client = ClientTls::load(&ClientOptions {
        roots: Roots::Pem(deployment.authority()),
        server_name: "localhost",
        identity: None,
        alpn: &[pulsegate::codec::native::ALPN],
        versions: Versions::Tls13,
        cipher_suites: None,
        key_exchange: None,
        resumption: ClientResumption::Off,
    })
    .expect("an authority of our own");
    let default = aws_lc_rs::DEFAULT_CIPHER_SUITES;
    let preferred = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let (as_it_comes, with_ours) = (rustls_server(&deployment, default), rustls_server(&deployment, &[preferred]));
    let [alone, same_suite, ours] = medians(options.rounds, || {
        let mean = |of: &dyn Fn() -> Duration| {
            let spent: Duration = (0..options.handshakes).map(|_| of()).sum();
            spent.as_secs_f64() * 1e6 / f64::from(options.handshakes)
        };
        [
            mean(&|| by_rustls(&as_it_comes, &client)),
            mean(&|| by_rustls(&with_ours, &client)),
            mean(&|| by_us(&settings[0].tls, &client)),
        ]
    });
    let row = |name: &str, micros: f64| (name.to_owned(), vec![Some(micros / alone), Some(micros)]);
    vec![Table {
        title: "A full TLS 1.3 handshake, the server's side".to_owned(),
        of: "server",
        rows: vec![
            row("rustls as it comes", alone),
            row("rustls, AES-128-GCM-SHA256", same_suite),
            row("pulsegate", ours),
        ],
        columns: vec![ratio("to the first"), Column { name: "CPU", unit: Unit::Microseconds }],
        notes: vec![
            "ECDSA P-256, the key exchange that rustls prefers, no client certificate; ours ends as plain data."
                .to_owned(),
            "The client offers AES-256-GCM-SHA384 first, which rustls takes; we take AES-128-GCM-SHA256.".to_owned(),
        ],
    }]
}

fn rustls_server(deployment: &Deployment, suites: &[SupportedCipherSuite]) -> Arc<ServerConfig> {
    let (certificate, key) = deployment.server();
    let chain = CertificateDer::pem_file_iter(certificate).expect("a certificate of our own");
    let chain = chain.map(|certificate| certificate.expect("a certificate")).collect();
    let provider = CryptoProvider { cipher_suites: suites.to_vec(), ..aws_lc_rs::default_provider() };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("a provider with TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key).expect("a key of our own"))
        .expect("the key is the certificate's");
    config.alpn_protocols = vec![pulsegate::codec::native::ALPN.to_vec()];
    // As we have it: one ticket that the server need not remember.
    config.ticketer = aws_lc_rs::Ticketer::new().expect("randomness");
    config.send_tls13_tickets = 1;
    Arc::new(config)
}

/// CPU time that rustls spent.
fn by_rustls(config: &Arc<ServerConfig>, client: &ClientTls) -> Duration {
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut client = Handshake::client(client, &mut to_server).expect("a client");
    let before = thread_cpu();
    let mut server = ServerConnection::new(Arc::clone(config)).expect("a server");
    answer(&mut server, &mut to_server, &mut to_client);
    let mut spent = thread_cpu().saturating_sub(before);
    assert!(drive(&mut client, &to_client, &mut to_server), "the client has all that it waits for");
    to_client.clear();
    let before = thread_cpu();
    answer(&mut server, &mut to_server, &mut to_client);
    spent += thread_cpu().saturating_sub(before);
    assert!(!server.is_handshaking());
    spent
}

fn answer(server: &mut ServerConnection, input: &mut Vec<u8>, output: &mut Vec<u8>) {
    feed(server, input);
    while server.wants_write() {
        server.write_tls(output).expect("a Vec takes everything");
    }
}

/// CPU time that we spent, until the connection is plain data.
fn by_us(tls: &ServerTls, client: &ClientTls) -> Duration {
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut client = Handshake::client(client, &mut to_server).expect("a client");
    let before = thread_cpu();
    let mut server = Handshake::server(tls, RecordWish::default());
    assert!(!drive(&mut server, &to_server, &mut to_client), "the server waits for Finished");
    let mut spent = thread_cpu().saturating_sub(before);
    to_server.clear();
    assert!(drive(&mut client, &to_client, &mut to_server), "the client has all that it waits for");
    to_client.clear();
    let before = thread_cpu();
    assert!(drive(&mut server, &to_server, &mut to_client));
    let Established { records, .. } = server.finish(&mut to_client).expect("a handshake that is complete");
    spent += thread_cpu().saturating_sub(before);
    assert!(records.can_seal());
    spent
}

/// Handles all records in `input`; whether the handshake is complete.
fn drive(handshake: &mut Handshake, input: &[u8], output: &mut Vec<u8>) -> bool {
    let mut taken = 0;
    while let Some(length) = next_record(&input[taken..], Stage::Handshake).expect("a peer with manners") {
        let progress = handshake.handle_record(&input[taken..taken + length], output).expect("a peer with manners");
        taken += length;
        if progress == Progress::Done {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_come_to_an_end() {
        run(&Options { handshakes: 2, rounds: 1 }).iter().for_each(Table::assert_measured);
    }
}
