//! `ca`: a private authority for a fleet.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pulsegate::tls::certs::authority::{FleetAuthority, FleetError};
use pulsegate::tls::certs::development::CertificatePair;

use super::arguments::{Ca, CaIssue, CaServer};
use super::{CliError, print};

/// Does what is asked.
pub fn ca(options: &Ca) -> Result<(), CliError> {
    let now = SystemTime::now();
    match options {
        Ca::Init { directory, name, life, crl_life } => {
            FleetAuthority::create(directory, name, *life, *crl_life, now).map_err(failed)?;
            let [ca, list] = ["ca.pem", "ca.crl"].map(|file| directory.join(file));
            print(&format!(
                "made  {}  {}\n\nFor the listeners of each gateway, which need these two files and no other:\n\
                 [listener.tls]\nclient_ca = {:?}\nclient_auth = \"required\"\n[listener.tls.crl]\nfiles = [{:?}]\n\n\
                 The revocation list is good for {}: have `pulsegate ca refresh` make a new one well before.\n",
                ca.display(),
                list.display(),
                ca.to_string_lossy(),
                list.to_string_lossy(),
                humantime::format_duration(*crl_life)
            ))
        }
        Ca::Issue(CaIssue { directory, device, life, csr }) => {
            let mut authority = FleetAuthority::open(directory).map_err(failed)?;
            told(&authority.issue(device, csr.as_deref(), *life, now).map_err(failed)?, csr.is_some())
        }
        Ca::Server(CaServer { directory, name, san, life, csr }) => {
            let mut authority = FleetAuthority::open(directory).map_err(failed)?;
            let names: Vec<&str> = std::iter::once(name).chain(san).map(String::as_str).collect();
            told(&authority.issue_server(&names, csr.as_deref(), *life, now).map_err(failed)?, csr.is_some())
        }
        Ca::Revoke { directory, device, crl_life } => {
            let mut authority = FleetAuthority::open(directory).map_err(failed)?;
            let count = authority.revoke(device, *crl_life, now).map_err(failed)?;
            let list = directory.join("ca.crl");
            print(&format!("revoked {count}; bring {} to the gateways and reload them\n", list.display()))
        }
        Ca::Refresh { directory, crl_life } => {
            let authority = FleetAuthority::open(directory).map_err(failed)?;
            let list = authority.refresh(*crl_life, now).map_err(failed)?;
            print(&format!("made  {}\n", list.display()))
        }
        Ca::List { directory, ends_within } => {
            let authority = FleetAuthority::open(directory).map_err(failed)?;
            print(&table(&authority, *ends_within, now))
        }
    }
}

/// What was made; of a signing request there is no key here.
fn told(pair: &CertificatePair, is_requested: bool) -> Result<(), CliError> {
    if is_requested {
        print(&format!("made  {}\n", pair.cert.display()))
    } else {
        print(&format!("made  {}  {}\n", pair.cert.display(), pair.key.display()))
    }
}

/// One line for each certificate; with a bound those alone that are good and end within it.
fn table(authority: &FleetAuthority, ends_within: Option<Duration>, now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut text = String::new();
    for one in authority.issued() {
        let state = match one.revoked {
            Some(_) => "revoked",
            None if one.not_after < seconds => "ended",
            None => "good",
        };
        let is_due = |bound: Duration| state == "good" && one.not_after < seconds + bound.as_secs();
        if ends_within.is_some_and(|bound| !is_due(bound)) {
            continue;
        }
        let end = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(one.not_after));
        let _ = writeln!(text, "{state:<8} {end}  {}  {}", one.serial, one.id);
    }
    text
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn failed(error: FleetError) -> CliError {
    CliError::Run(error.to_string())
}
