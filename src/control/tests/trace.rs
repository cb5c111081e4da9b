//! Events of `/v1/trace` against their schema, and the schema against docs/API.md.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};

use super::*;
use crate::link::{Direction, Trace, TraceEvent, TraceWhat, TracedPacket};

/// The first of all things that can happen to a connection.
const FIRST: TraceWhat = TraceWhat::Accepted;

/// Each of them in turn. Whoever adds one must say here what comes before it.
fn next(what: &TraceWhat) -> Option<TraceWhat> {
    let packet = |direction, payload: Option<&'static [u8]>| {
        let words = if payload.is_some() { "topic \"a\"".to_owned() } else { String::new() };
        let payload = payload.map(Bytes::from_static);
        TraceWhat::Packet(Box::new(TracedPacket { direction, name: "PUBLISH", bytes: 12, words, payload }))
    };
    let round_trip = |round_trip| TraceWhat::Answered { round_trip };
    let ended = |detail: &'static str| TraceWhat::Ended { reason: CloseReason::Expired, detail: detail.into() };
    Some(match what {
        TraceWhat::Accepted => TraceWhat::Refused(Refusal::Overloaded),
        TraceWhat::Refused(_) => TraceWhat::Announced,
        TraceWhat::Announced => TraceWhat::Handshake { waited: Duration::ZERO },
        TraceWhat::Handshake { waited } if waited.is_zero() => {
            TraceWhat::Handshake { waited: Duration::from_millis(300) }
        }
        TraceWhat::Handshake { .. } => {
            let suite = "TLS13_AES_128_GCM_SHA256";
            TraceWhat::Established { version: "TLSv1.3", suite, is_resumed: false, is_certified: true }
        }
        TraceWhat::Established { .. } => TraceWhat::Asked { is_renewal: false },
        TraceWhat::Asked { is_renewal: false } => TraceWhat::Asked { is_renewal: true },
        TraceWhat::Asked { is_renewal: true } => TraceWhat::Granted,
        TraceWhat::Granted => TraceWhat::Moving { home: WorkerId(1) },
        TraceWhat::Moving { .. } => TraceWhat::Arrived,
        TraceWhat::Arrived => TraceWhat::Connected { identity: "hello" },
        TraceWhat::Connected { .. } => TraceWhat::Probed,
        TraceWhat::Probed => round_trip(None),
        TraceWhat::Answered { round_trip: None } => round_trip(Some(Duration::from_micros(12_345))),
        TraceWhat::Answered { .. } => TraceWhat::Paused,
        TraceWhat::Paused => TraceWhat::Unsent { bytes: 7 },
        TraceWhat::Unsent { .. } => packet(Direction::In, None),
        TraceWhat::Packet(packet_before) => match &packet_before.payload {
            None => packet(Direction::Out, Some(b"text")),
            Some(payload) if payload == "text" => packet(Direction::In, Some(b"\xff")),
            Some(_) => TraceWhat::Present,
        },
        TraceWhat::Present => ended(""),
        TraceWhat::Ended { detail, .. } if detail.is_empty() => ended("silent"),
        TraceWhat::Ended { .. } => return None,
    })
}

/// As a worker to which everything happens: once from an address that is known, once from none.
pub(super) fn tell_everything(worker: WorkerId, trace: &Trace) {
    for (address, port, device) in [(Some([192, 0, 2, 7].into()), 40_000, "meter-1"), (None, 0, "")] {
        for what in std::iter::successors(Some(FIRST), next) {
            let is_refused = matches!(what, TraceWhat::Refused(_));
            trace.tell(TraceEvent {
                at: Moment::from_micros(1_500_000),
                worker,
                connection: (!is_refused).then(|| connection(3)),
                listener: ListenerId(0),
                address,
                port,
                device: if is_refused { "".into() } else { device.into() },
                what,
            });
        }
    }
    trace.leave_out(3);
}

#[test]
fn every_event_of_a_trace_is_as_its_schema_says_and_every_kind_comes() {
    let stage = Stage::new(Plan { workers: 1, ..Plan::default() });
    let path =
        format!("http://{}/v1/trace?device=meter-1&packets=true&payloads=true&for=1s", stage.control.admin_addr());
    let response = stage.agent.get(path).call().unwrap();
    assert_eq!(
        (response.status().as_u16(), response.headers()["content-type"].as_bytes()),
        (200, &b"text/event-stream"[..])
    );
    let mut kinds = BTreeSet::new();
    let mut optional = BTreeSet::new();
    let mut name = String::new();
    for line in BufReader::new(response.into_body().into_reader()).lines().map(Result::unwrap) {
        if let Some(event) = line.strip_prefix("event:") {
            event.trim().clone_into(&mut name);
        }
        let Some(data) = line.strip_prefix("data:") else { continue };
        let data: Value = serde_json::from_str(data).unwrap();
        openapi::check_trace_event(&data);
        let kind = data["kind"].as_str().unwrap();
        assert_eq!(kind, name);
        kinds.insert(kind.to_owned());
        optional.extend(data.as_object().unwrap().keys().map(|key| format!("{kind}.{key}")));
    }
    let described = openapi::trace_fields();
    assert_eq!(kinds, described.keys().cloned().collect());
    for field in ["packet.payload", "packet.payload_base64", "ended.detail", "packet.device", "answered.detail"] {
        assert!(optional.contains(field), "{field} never came");
    }
}

#[test]
fn the_page_has_the_fields_of_every_kind() {
    let page = include_str!("../../../docs/API.md");
    let table = page.split("| kind | fields |\n| --- | --- |\n").nth(1).expect("the page has the table");
    let mut told = BTreeMap::new();
    for row in table.lines().take_while(|line| line.starts_with('|')) {
        let [kinds, fields] = row.trim_matches('|').split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
        let names = |text: &str| -> BTreeSet<String> {
            text.split(", ")
                .map(|name| name.trim().trim_matches('`').to_owned())
                .filter(|name| !name.is_empty())
                .collect()
        };
        let (sometimes, always): (Vec<&str>, Vec<&str>) =
            fields.split(", ").map(str::trim).partition(|field| field.starts_with('('));
        let of = |fields: Vec<&str>| -> BTreeSet<String> {
            fields.iter().map(|field| field.trim_matches(['(', ')', '`']).to_owned()).collect()
        };
        for kind in names(kinds) {
            assert!(told.insert(kind.clone(), (of(always.clone()), of(sometimes.clone()))).is_none(), "{kind} twice");
        }
    }
    assert_eq!(told, openapi::trace_fields());
}
