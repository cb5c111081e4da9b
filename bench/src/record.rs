//! Records opened and sealed: by our layer, with a key made for each record (cold, as an idle connection has it) and with
//! one that is kept (warm, as in a burst), and by rustls, which keeps keys and buffers for good.

use std::hint::black_box;
use std::io::{Read, Write};

use pulsegate::tls::record::{Opened, RecordLayer, Suite};
use rustls::{ConnectionCommon, SideData};

use crate::arguments::Arguments;
use crate::clock::{medians, ns_each};
use crate::fixtures::{Rustls, record_pair};
use crate::report::{Table, ns, ratio};

/// What a heartbeat is, and what bulk is.
const LENGTHS: [usize; 2] = [40, 16_384];

/// What to run.
pub struct Options {
    /// Bytes sealed and opened in one round of one length.
    pub volume: usize,
    pub rounds: u32,
}

impl From<&Arguments> for Options {
    fn from(arguments: &Arguments) -> Self {
        // Small records first come to their count, large ones to their volume.
        Self { volume: 16 << 20, rounds: arguments.rounds.max(5) }
    }
}

/// Both lengths with every suite that an ECDSA certificate goes with; with RSA the records are the same.
pub fn run(options: &Options) -> Vec<Table> {
    LENGTHS.iter().map(|&length| table(length, options)).collect()
}

fn table(length: usize, options: &Options) -> Table {
    let records = (options.volume / length).clamp(16, 20_000);
    let suites = Suite::ALL.iter().filter(|suite| !suite.name().contains("_RSA_"));
    let rows = suites.map(|&suite| {
        let costs = medians(options.rounds, || measure(suite, length, records));
        let [seal_cold, open_cold, seal_warm, open_warm, seal_rustls, open_rustls] = costs;
        let ratios =
            [seal_cold / seal_rustls, open_cold / open_rustls, seal_warm / seal_rustls, open_warm / open_rustls];
        (suite.name().to_owned(), ratios.into_iter().chain(costs).map(Some).collect())
    });
    Table {
        title: format!("Records of {length} bytes"),
        of: "suite",
        rows: rows.collect(),
        columns: vec![
            ratio("seal cold"),
            ratio("open cold"),
            ratio("seal warm"),
            ratio("open warm"),
            ns("cold seal"),
            ns("cold open"),
            ns("warm seal"),
            ns("warm open"),
            ns("rustls seal"),
            ns("rustls open"),
        ],
        notes: vec!["Ratios: to rustls's own connection with the same suite.".to_owned()],
    }
}

/// Cold seal and open, warm seal and open, rustls's seal and open, in nanoseconds for each record.
fn measure(suite: Suite, length: usize, records: usize) -> [f64; 6] {
    let content = vec![0x5a; length];
    let mut random = fastrand::Rng::with_seed(u64::from(suite.code()));
    let (mut client, mut server) = record_pair(suite, &mut random);

    let cold = cold(&content, records, &mut client, &mut server);
    let (mut sealed, mut out) = (Vec::with_capacity(records * (length + 64)), Vec::new());
    let warm_seal = ns_each(records, || {
        let mut burst = client.burst();
        for _ in 0..records {
            burst.seal(&content, &mut sealed).expect("a fresh key");
        }
    });
    let each = sealed.len() / records;
    let warm_open = ns_each(records, || {
        let mut burst = server.burst();
        for record in sealed.chunks_exact_mut(each) {
            let opened = burst.open(record, &mut out).expect("a record of its peer");
            assert!(matches!(opened, Opened::Data(data) if data.len() == length));
        }
    });
    let theirs = rustls(suite, &content, records);
    [cold[0], cold[1], warm_seal, warm_open, theirs[0], theirs[1]]
}

/// A burst for each record.
fn cold(content: &[u8], records: usize, client: &mut RecordLayer, server: &mut RecordLayer) -> [f64; 2] {
    let (mut sealed, mut out) = (Vec::with_capacity(records * (content.len() + 64)), Vec::new());
    let seal = ns_each(records, || {
        for _ in 0..records {
            client.burst().seal(content, &mut sealed).expect("a fresh key");
        }
    });
    let each = sealed.len() / records;
    let open = ns_each(records, || {
        for record in sealed.chunks_exact_mut(each) {
            let mut burst = server.burst();
            let opened = burst.open(record, &mut out).expect("a record of its peer");
            assert!(matches!(opened, Opened::Data(data) if data.len() == content.len()));
        }
    });
    [seal, open]
}

/// The same bytes through two rustls connections, as a program without an event loop's tricks would pass them.
fn rustls(suite: Suite, content: &[u8], records: usize) -> [f64; 2] {
    let (mut client, mut server) = Rustls::new(suite).pair();
    let mut wire = Vec::with_capacity(records * (content.len() + 64));
    let seal = ns_each(records, || {
        for _ in 0..records {
            client.writer().write_all(content).expect("room for one record");
            client.write_tls(&mut wire).expect("a Vec takes everything");
        }
    });
    let each = wire.len() / records;
    let mut plaintext = vec![0; content.len()];
    let open = ns_each(records, || {
        for record in wire.chunks_exact(each) {
            open_one(&mut server, record, &mut plaintext);
        }
    });
    assert_eq!(black_box(plaintext), content);
    [seal, open]
}

fn open_one<Side: SideData>(connection: &mut ConnectionCommon<Side>, mut record: &[u8], plaintext: &mut [u8]) {
    while !record.is_empty() {
        connection.read_tls(&mut record).expect("bytes that are there");
        connection.process_new_packets().expect("a record of its peer");
    }
    connection.reader().read_exact(plaintext).expect("the whole content");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_size_runs() {
        let tables = run(&Options { volume: 64 << 10, rounds: 1 });
        assert_eq!(tables.len(), LENGTHS.len());
        for table in &tables {
            table.assert_measured();
            assert_eq!(table.rows.len(), 6);
        }
    }
}
