//! The page of a gateway of a fleet in a real browser.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{Site, wait_until};
use crate::{LATE, fleet};

#[test]
fn people_see_in_a_browser_how_a_gateway_is_one_of_its_fleet() {
    let site = Site::new();
    let (mut servers, fleet) = fleet(&site, 1, 1, "");
    let member = &fleet[0];
    let _device = member.device("meter-1");
    member.wait_for_claims(1);
    let target = Path::new(env!("CARGO_BIN_EXE_pulsegate")).ancestors().nth(2).expect("TARGET/debug/pulsegate");
    let mut browser = Command::new("node")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fleet/page.mjs"))
        .arg(member.gateway.admin())
        .env("NODE_PATH", target.join("test-clients/node/node_modules"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node is installed");
    let mut orders = browser.stdin.take().unwrap();
    let mut told = BufReader::new(browser.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(told.next().as_deref(), Some("connected"));
    servers.stop(0, Signal::KILL);
    wait_until("it is away", LATE, || member.gateway.get_json("/v1/overview")["fleet"] == "away");
    orders.write_all(b"\n").unwrap();
    assert_eq!(told.next().as_deref(), Some("away"));
    assert!(browser.wait().unwrap().success());
}
