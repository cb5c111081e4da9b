//! `[listener.tls]`.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::at::At;
use super::{CertificateFilesAre, Context, unreadable, values};
use crate::config::error::{ConfigKey, Problem};
use crate::config::raw::{RawCertificate, RawCrl, RawTls};
use crate::config::{CertificateFiles, ClientAuth, Crl, Tickets, Tls, TlsVersions, WhenOver};
use crate::whole_file;

/// The sizes that a record may have.
const RECORD_BYTES: [i64; 6] = [512, 1_024, 2_048, 4_096, 8_192, 16_384];
/// RFC 8446 section 4.6.1 lets no ticket live longer.
const TICKET_LIFETIME: RangeInclusive<Duration> = Duration::from_mins(1)..=Duration::from_hours(7 * 24);
const CONNECTION_AGE: RangeInclusive<Duration> = Duration::from_mins(1)..=Duration::from_hours(366 * 24);

/// The table of one listener.
pub fn resolve(context: &mut Context<'_>, at: &At<'_>, raw: Option<RawTls>) -> Result<Tls, Problem> {
    let Some(raw) = raw else {
        let remedy = "add [listener.tls] with cert and key (`pulsegate dev-certs DIR` makes a set to begin with)";
        return Err(Problem::new(at.key("tls"), "it is missing, and there is no listening without TLS", remedy));
    };
    let first = RawCertificate { cert: raw.cert, key: raw.key, ocsp: raw.ocsp };
    let mut certificates = vec![certificate(context, at, "tls", first)?];
    for (index, further) in raw.certificates.into_iter().enumerate() {
        certificates.push(certificate(context, at, &format!("tls.certificates[{index}]"), further)?);
    }
    let client_auth = match raw.client_auth {
        None => ClientAuth::Off,
        Some(written) => values::word(
            at.key("tls.client_auth"),
            &written,
            &[("off", ClientAuth::Off), ("optional", ClientAuth::Optional), ("required", ClientAuth::Required)],
        )?,
    };
    let client_ca = client_authorities(context, at, client_auth, raw.client_ca)?;
    let default = Tls::default();
    let over = |key: &str, written: Option<String>, default| match written {
        None => Ok(default),
        Some(written) => {
            let place = at.key(&format!("tls.{key}"));
            values::word(place, &written, &[("close", WhenOver::Close), ("keep", WhenOver::Keep)])
        }
    };
    Ok(Tls {
        certificates,
        client_ca,
        client_auth,
        crl: revocation_lists(context, at, client_auth, raw.crl)?,
        on_revoked: over("on_revoked", raw.on_revoked, default.on_revoked)?,
        on_expired: over("on_expired", raw.on_expired, default.on_expired)?,
        versions: versions(at, raw.versions)?,
        record_bytes: record_bytes(at, raw.record_bytes, default.record_bytes)?,
        tickets: tickets(context, at, raw.tickets, raw.ticket_lifetime.as_deref(), raw.ticket_keys)?,
        max_connection_age: match raw.max_connection_age {
            None => None,
            written => {
                let place = at.key("tls.max_connection_age");
                let longest = *CONNECTION_AGE.end();
                Some(values::duration(place, written.as_deref(), longest, CONNECTION_AGE)?)
            }
        },
    })
}

fn client_authorities(
    context: &mut Context<'_>,
    at: &At<'_>,
    client_auth: ClientAuth,
    written: Option<String>,
) -> Result<Option<PathBuf>, Problem> {
    match (client_auth, written) {
        (ClientAuth::Off, Some(_)) => {
            context.note(&at.key("tls.client_ca"), "it is not used, as tls.client_auth is off");
            Ok(None)
        }
        (ClientAuth::Off, None) => Ok(None),
        (_, Some(written)) => file(context, at.key("tls.client_ca"), &written).map(Some),
        (_, None) => {
            let what = "it is missing, and tls.client_auth needs authorities to check client certificates against";
            let remedy = "name a PEM file of CA certificates, or set tls.client_auth = \"off\"";
            Err(Problem::new(at.key("tls.client_ca"), what, remedy))
        }
    }
}

fn revocation_lists(
    context: &mut Context<'_>,
    at: &At<'_>,
    client_auth: ClientAuth,
    raw: Option<RawCrl>,
) -> Result<Option<Crl>, Problem> {
    let Some(raw) = raw else { return Ok(None) };
    if client_auth == ClientAuth::Off {
        context.note(&at.key("tls.crl"), "it is not used, as tls.client_auth is off");
        return Ok(None);
    }
    if raw.files.is_empty() {
        let remedy = "name at least one PEM file of revocation lists, or leave the table out";
        return Err(Problem::new(at.key("tls.crl.files"), "there is no list to look certificates up in", remedy));
    }
    let files = raw.files.iter().map(|written| file(context, at.key("tls.crl.files"), written));
    let files = files.collect::<Result<_, _>>()?;
    let accepts = |key: &str, written: Option<String>| match written {
        None => Ok(false),
        Some(written) => values::word(at.key(key), &written, &[("refuse", false), ("accept", true)]),
    };
    let leaf_only = match raw.depth {
        None => false,
        Some(written) => values::word(at.key("tls.crl.depth"), &written, &[("chain", false), ("leaf", true)])?,
    };
    let (accept_expired, accept_unknown) =
        (accepts("tls.crl.expired", raw.expired)?, accepts("tls.crl.unknown", raw.unknown)?);
    Ok(Some(Crl { files, accept_expired, accept_unknown, leaf_only }))
}

fn versions(at: &At<'_>, written: Option<Vec<String>>) -> Result<TlsVersions, Problem> {
    let Some(written) = written else { return Ok(TlsVersions::Both) };
    let place = at.key("tls.versions");
    let remedy = "write [\"1.2\", \"1.3\"], or one of them";
    if let Some(other) = written.iter().find(|version| !["1.2", "1.3"].contains(&version.as_str())) {
        return Err(Problem::new(place, format!("{other:?} is not known"), remedy));
    }
    let has = |version: &str| written.iter().any(|written| written == version);
    match (has("1.2"), has("1.3")) {
        (true, true) => Ok(TlsVersions::Both),
        (true, false) => Ok(TlsVersions::Tls12),
        (false, true) => Ok(TlsVersions::Tls13),
        (false, false) => Err(Problem::new(place, "nobody could connect without a version", remedy)),
    }
}

fn record_bytes(at: &At<'_>, written: Option<i64>, default: usize) -> Result<usize, Problem> {
    let Some(written) = written else { return Ok(default) };
    if RECORD_BYTES.contains(&written) {
        return Ok(written as usize);
    }
    let sizes: Vec<String> = RECORD_BYTES.iter().map(ToString::to_string).collect();
    let remedy = format!("write one of {}", sizes.join(", "));
    Err(Problem::new(at.key("tls.record_bytes"), format!("{written} is no size for records"), remedy))
}

fn tickets(
    context: &mut Context<'_>,
    at: &At<'_>,
    written: Option<bool>,
    lifetime: Option<&str>,
    keys: Option<String>,
) -> Result<Option<Tickets>, Problem> {
    let lifetime =
        values::duration(at.key("tls.ticket_lifetime"), lifetime, Tickets::default().lifetime, TICKET_LIFETIME)?;
    let keys = keys.map(|written| file(context, at.key("tls.ticket_keys"), &written)).transpose()?;
    if written == Some(false) {
        if keys.is_some() {
            context.note(&at.key("tls.ticket_keys"), "it is not used, as tls.tickets is false");
        }
        return Ok(None);
    }
    Ok(Some(Tickets { lifetime, keys }))
}

fn certificate(
    context: &Context<'_>,
    at: &At<'_>,
    table: &str,
    raw: RawCertificate,
) -> Result<CertificateFiles, Problem> {
    let place = |name: &str| at.key(&format!("{table}.{name}"));
    let needed = |name: &str, written: Option<String>, what: &str| match written {
        Some(written) => file(context, place(name), &written),
        None => Err(Problem::new(place(name), "it is missing", format!("name the PEM file of the {what}"))),
    };
    Ok(CertificateFiles {
        cert: needed("cert", raw.cert, "certificate chain, leaf first")?,
        key: needed("key", raw.key, "certificate's private key")?,
        ocsp: raw.ocsp.map(|written| file(context, place("ocsp"), &written)).transpose()?,
    })
}

/// A file that must be there, unless it is yet to be made.
fn file(context: &Context<'_>, place: ConfigKey, written: &str) -> Result<PathBuf, Problem> {
    let path = context.path(place.clone(), written)?;
    if context.certificate_files == CertificateFilesAre::MadeAtStart {
        return Ok(path);
    }
    match whole_file::open(&path).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.is_dir() => {
            let what = format!("{} is a directory", path.display());
            Err(Problem::new(place, what, "name a file"))
        }
        Ok(_) => Ok(path),
        Err(error) => Err(unreadable(place, &path, &error)),
    }
}
