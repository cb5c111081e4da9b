//! One `[[listener]]`.

use std::fs::File;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::{CertificateFilesAre, Context, check_name, unreadable, values};
use crate::config::error::{Place, Problem};
use crate::config::raw::{RawBytes, RawHeartbeat, RawIdentity, RawListener, RawRaw, RawTls};
use crate::config::{
    CertificateFiles, ClientAuth, Heartbeat, Identity, IdentityFrom, Limits, Listener, Protocol, Raw, Tls,
};

/// The range of heartbeat intervals and timeouts. A tick is the least; the most must fit 16 bits of ticks (6,553 s).
const HEARTBEAT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);
/// The most retries.
const RETRIES_MAX: i64 = 15;
/// Above this, load balancers that cut idle connections after 60 s come before the first probe.
const INTERVAL_NOTED: Duration = Duration::from_secs(55);
/// The longest of the raw listener's byte strings.
const RAW_BYTES_MAX: usize = 1_024;

/// The listener with this index.
pub fn resolve(
    context: &mut Context<'_>,
    index: usize,
    raw: RawListener,
    limits: &Limits,
) -> Result<Listener, Problem> {
    let written_name = raw.name.clone().unwrap_or_default();
    let at = At { index, name: &written_name };
    let Some(name) = raw.name else {
        return Err(Problem::new(at.key("name"), "it is missing", "write a name, such as \"devices\""));
    };
    check_name(at.key("name"), &name)?;
    let Some(listen) = raw.listen else {
        return Err(Problem::new(at.key("listen"), "it is missing", "write an address, such as \"0.0.0.0:7443\""));
    };
    let listen = values::address(at.key("listen"), &listen, "0.0.0.0:7443")?;
    if context.machine.outgoing_ports.as_ref().is_some_and(|ports| ports.contains(&listen.port())) {
        let text = "the kernel gives this port to outgoing connections too, so binding it may fail: take a lower one";
        context.warn(&at.key("listen"), text);
    }
    let protocol = protocol(context, &at, raw.protocol.as_deref(), raw.raw, limits)?;
    let tls = tls(context, &at, raw.tls)?;
    let heartbeat = heartbeat(context, &at, &raw.heartbeat)?;
    let identity = identity(context, &at, raw.identity, &protocol, tls.client_auth)?;
    Ok(Listener { name, listen, protocol, tls, heartbeat, identity })
}

/// Which listener is looked at.
struct At<'a> {
    index: usize,
    name: &'a str,
}

impl At<'_> {
    fn key(&self, key: &str) -> Place {
        Place::of_listener(self.index, self.name, key)
    }
}

fn protocol(
    context: &mut Context<'_>,
    at: &At<'_>,
    written: Option<&str>,
    raw: Option<RawRaw>,
    limits: &Limits,
) -> Result<Protocol, Problem> {
    let place = at.key("protocol");
    let remedy = "write \"native\" or \"raw\"";
    match written {
        Some("native") => {
            if raw.is_some() {
                context.warn(&at.key("raw"), "it is for listeners with protocol = \"raw\" and has no effect here");
            }
            Ok(Protocol::Native)
        }
        Some("raw") => raw_options(at, raw.unwrap_or_default(), limits).map(Protocol::Raw),
        Some("mqtt") => Ok(Protocol::Mqtt(crate::config::Mqtt::default())),
        Some(later @ "websocket") => {
            Err(Problem::new(place, format!("{later:?} is not supported by this version"), remedy))
        }
        Some(other) => Err(Problem::new(place, format!("{other:?} is not known"), remedy)),
        None => Err(Problem::new(place, "it is missing", remedy)),
    }
}

fn raw_options(at: &At<'_>, raw: RawRaw, limits: &Limits) -> Result<Raw, Problem> {
    let most = RAW_BYTES_MAX.min(limits.read_bytes);
    let bytes = |key: &str, written: Option<RawBytes>, default: &[u8]| {
        let bytes = written.map_or_else(|| default.to_vec(), |written| written.0);
        if bytes.len() > most {
            let what = format!("it is {} bytes long", bytes.len());
            return Err(Problem::new(at.key(key), what, format!("write at most {most} bytes")));
        }
        Ok(bytes)
    };
    let options = Raw {
        heartbeat: bytes("raw.heartbeat", raw.heartbeat, b"heartbeat")?,
        reply: bytes("raw.reply", raw.reply, b"")?,
        probe: bytes("raw.probe", raw.probe, b"")?,
    };
    if options.heartbeat.is_empty() && !options.reply.is_empty() {
        let remedy = "set raw.heartbeat to what is answered, or leave raw.reply out";
        return Err(Problem::new(at.key("raw.reply"), "there is no raw.heartbeat to reply to", remedy));
    }
    Ok(options)
}

fn tls(context: &mut Context<'_>, at: &At<'_>, raw: Option<RawTls>) -> Result<Tls, Problem> {
    let Some(raw) = raw else {
        let remedy = "add [listener.tls] with cert and key (`pulsegate dev-certs DIR` makes a set to begin with)";
        return Err(Problem::new(at.key("tls"), "it is missing, and there is no listening without TLS", remedy));
    };
    let mut certificates = vec![certificate(context, at, "tls", raw.cert, raw.key)?];
    for (index, further) in raw.certificates.into_iter().enumerate() {
        let table = format!("tls.certificates[{index}]");
        certificates.push(certificate(context, at, &table, further.cert, further.key)?);
    }
    let client_auth = match raw.client_auth {
        None => ClientAuth::Off,
        Some(written) => values::word(
            at.key("tls.client_auth"),
            &written,
            &[("off", ClientAuth::Off), ("optional", ClientAuth::Optional), ("required", ClientAuth::Required)],
        )?,
    };
    let client_ca = match (client_auth, raw.client_ca) {
        (ClientAuth::Off, Some(_)) => {
            context.note(&at.key("tls.client_ca"), "it is not used, as tls.client_auth is off");
            None
        }
        (ClientAuth::Off, None) => None,
        (_, Some(written)) => Some(certificate_file(context, at.key("tls.client_ca"), &written)?),
        (_, None) => {
            let what = "it is missing, and tls.client_auth needs authorities to check client certificates against";
            let remedy = "name a PEM file of CA certificates, or set tls.client_auth = \"off\"";
            return Err(Problem::new(at.key("tls.client_ca"), what, remedy));
        }
    };
    Ok(Tls { certificates, client_ca, client_auth })
}

fn certificate(
    context: &Context<'_>,
    at: &At<'_>,
    table: &str,
    cert: Option<String>,
    key: Option<String>,
) -> Result<CertificateFiles, Problem> {
    let file = |name: &str, written: Option<String>, what: &str| {
        let place = at.key(&format!("{table}.{name}"));
        match written {
            Some(written) => certificate_file(context, place, &written),
            None => Err(Problem::new(place, "it is missing", format!("name the PEM file of the {what}"))),
        }
    };
    Ok(CertificateFiles {
        cert: file("cert", cert, "certificate chain, leaf first")?,
        key: file("key", key, "certificate's private key")?,
    })
}

fn certificate_file(context: &Context<'_>, place: Place, written: &str) -> Result<PathBuf, Problem> {
    let path = context.path(place.clone(), written)?;
    if context.certificate_files == CertificateFilesAre::MadeAtStart {
        return Ok(path);
    }
    match File::open(&path).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.is_dir() => {
            let what = format!("{} is a directory", path.display());
            Err(Problem::new(place, what, "name a PEM file"))
        }
        Ok(_) => Ok(path),
        Err(error) => Err(unreadable(place, &path, &error)),
    }
}

fn heartbeat(context: &mut Context<'_>, at: &At<'_>, raw: &RawHeartbeat) -> Result<Heartbeat, Problem> {
    let default = Heartbeat::default();
    let heartbeat = Heartbeat {
        interval: values::duration(at.key("heartbeat.interval"), raw.interval.as_deref(), default.interval, HEARTBEAT)?,
        timeout: values::duration(at.key("heartbeat.timeout"), raw.timeout.as_deref(), default.timeout, HEARTBEAT)?,
        retries: values::integer(
            at.key("heartbeat.retries"),
            raw.retries,
            i64::from(default.retries),
            0..=RETRIES_MAX,
            "retries",
        )? as u8,
    };
    if heartbeat.interval > INTERVAL_NOTED {
        let text = "many load balancers cut connections that are idle for 60 s (some for 350 s): behind one of those, \
                    write \"55s\" or less";
        context.note(&at.key("heartbeat.interval"), text);
    }
    Ok(heartbeat)
}

fn identity(
    context: &mut Context<'_>,
    at: &At<'_>,
    raw: RawIdentity,
    protocol: &Protocol,
    client_auth: ClientAuth,
) -> Result<Identity, Problem> {
    let place = at.key("identity.from");
    let native = *protocol == Protocol::Native;
    let rules = [IdentityFrom::Hello, IdentityFrom::CertCn, IdentityFrom::CertSanDns, IdentityFrom::CertSanUri]
        .map(|rule| (rule.label(), rule));
    let from = match &raw.from {
        Some(written) => values::word(place.clone(), written, &rules)?,
        None if native => IdentityFrom::Hello,
        None => IdentityFrom::CertCn,
    };
    if from == IdentityFrom::Hello && !native {
        let what = "a raw device sends no HELLO that could name it";
        let remedy = "write \"cert-cn\", \"cert-san-dns\" or \"cert-san-uri\" (without a certificate it gets a \
                      generated id)";
        return Err(Problem::new(place, what, remedy));
    }
    if from != IdentityFrom::Hello && client_auth == ClientAuth::Off {
        if native {
            let what = format!("{:?} needs client certificates, and tls.client_auth is off", from.label());
            let remedy = "set tls.client_auth = \"required\" with a tls.client_ca, or identity.from = \"hello\"";
            return Err(Problem::new(place, what, remedy));
        }
        let text = "tls.client_auth is off, so that every connection gets a generated id";
        if raw.from.is_some() { context.warn(&place, text) } else { context.note(&place, text) }
    }
    let token_file = match raw.token_file {
        None => None,
        Some(_) if !native => {
            let remedy = "leave it out, and let tls.client_auth = \"required\" decide who may come";
            return Err(Problem::new(at.key("identity.token_file"), "a raw device sends no token", remedy));
        }
        Some(written) => Some(token_file(context, at, &written)?),
    };
    Ok(Identity { from, token_file })
}

/// A token file must be there and name somebody; its lines are the control plane's to judge.
fn token_file(context: &Context<'_>, at: &At<'_>, written: &str) -> Result<PathBuf, Problem> {
    let place = at.key("identity.token_file");
    let text = context.text(place.clone(), written)?;
    if text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#')) {
        let what = format!("{written} names no device, so that nobody could connect");
        return Err(Problem::new(place, what, "add lines made by `pulsegate hash-token ID`, or leave the key out"));
    }
    context.path(place, written)
}
