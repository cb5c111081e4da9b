//! A private authority for a fleet: it issues, renews and revokes the certificates of devices, and of the gateways that they
//! connect to. Public authorities issue no client certificates any more, and a fleet needs one that it can ask.
//!
//! ```text
//!   ca.pem      ca.key       made once, never overwritten
//!   ca.crl                   what was revoked, for `tls.crl.files`; made anew by every revocation and by `refresh`
//!   issued.tsv               serial, id, from, until, revoked: seconds since 1970, or - ; one line for each certificate
//!   devices/ID.pem  .key     the latest certificate of a device; the key only where it was made here
//!   servers/NAME.pem  .key   the same of a gateway, which the list calls server/NAME: no device has such an id
//! ```
//! The directory belongs to a machine that is no gateway: a gateway needs `ca.pem` and `ca.crl` alone. One command at a time
//! has the directory; a second one waits for it.

use std::fmt;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::development::{
    CertificatePair, DevelopmentError, ID_BYTES_MAX, client_params, exists, is_dns_name, is_safe_id, params_named,
    put_pair, read_key_pair, replace_file, set_validity,
};

const DAY: Duration = Duration::from_hours(24);

/// What can go wrong.
#[derive(Debug)]
pub enum FleetError {
    /// As for development certificates.
    Make(DevelopmentError),
    /// There is an authority already.
    IsThere(PathBuf),
    /// A line of the list of issued certificates cannot be read.
    BadList(PathBuf, usize),
    /// The file is no certificate signing request that is signed with its own key.
    BadRequest(PathBuf),
    /// It is neither a host name nor an address.
    NotAServer(String),
    /// A certificate may have this name, but not as its first, by which it and its files are called.
    NotAFirstName(String),
    /// No certificate of this id or serial number that is good was issued.
    NotIssued(String),
    /// The authority ends before the certificate would begin to be of use.
    AuthorityEnds,
}

impl fmt::Display for FleetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FleetError::Make(error) => error.fmt(f),
            FleetError::IsThere(path) => write!(
                f,
                "{}: there is an authority already, and all that it has issued depends on it; take another directory",
                path.display()
            ),
            FleetError::BadList(path, line) => {
                write!(f, "{}:{line}: this line was not written by `pulsegate ca`; put it back", path.display())
            }
            FleetError::BadRequest(path) => write!(
                f,
                "{}: is not a PEM certificate signing request, or its signature is wrong; make one with `openssl req \
                 -new`",
                path.display()
            ),
            FleetError::NotAServer(name) => write!(
                f,
                "{name:?} is neither a host name nor an IP address: write what devices connect to, such as \
                 gateway.example.com or 192.0.2.7"
            ),
            FleetError::NotAFirstName(name) => write!(
                f,
                "{name:?} cannot be the first name of a gateway, by which its files and the list call it: give a host name \
                 of at most {ID_BYTES_MAX} bytes first, and this one by --san"
            ),
            FleetError::NotIssued(what) => write!(
                f,
                "{what:?}: no certificate that is good was issued for this id or under this serial number; `pulsegate ca \
                 list` shows all"
            ),
            FleetError::AuthorityEnds => {
                f.write_str("the authority's own certificate ends within a day: make a new authority beside it")
            }
        }
    }
}

impl std::error::Error for FleetError {}

impl From<DevelopmentError> for FleetError {
    fn from(error: DevelopmentError) -> Self {
        FleetError::Make(error)
    }
}

impl From<rcgen::Error> for FleetError {
    fn from(error: rcgen::Error) -> Self {
        FleetError::Make(error.into())
    }
}

/// One certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// In hexadecimal, as `openssl x509 -serial` shows it.
    pub serial: String,
    /// The device; of a gateway `server/NAME`.
    pub id: String,
    /// First second, since 1970.
    pub not_before: u64,
    /// Last second, since 1970.
    pub not_after: u64,
    /// When it was revoked, in seconds since 1970.
    pub revoked: Option<u64>,
}

/// An authority in its directory, which nobody else works with as long as this value lives.
pub struct FleetAuthority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    not_after: i64,
    issued: Vec<Issued>,
    /// Locked.
    _lock: File,
}

impl FleetAuthority {
    /// Makes an authority, with an empty revocation list that is good for `list_life`.
    ///
    /// # Errors
    /// [`FleetError`]; an authority that is there is never touched.
    pub fn create(
        directory: &Path,
        name: &str,
        life: Duration,
        list_life: Duration,
        now: SystemTime,
    ) -> Result<Self, FleetError> {
        std::fs::create_dir_all(directory.join("devices")).map_err(|error| io(directory, error))?;
        let pair = CertificatePair::at(directory, "ca");
        for path in [&pair.cert, &pair.key] {
            if exists(path)? {
                return Err(FleetError::IsThere(path.clone()));
            }
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params_named(name);
        set_validity(&mut params, now, life, i64::MAX);
        params.serial_number = Some(serial()?);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        put_pair(&pair, &Zeroizing::new(key.serialize_pem()), &certificate.pem())?;
        replace_file(&directory.join("issued.tsv"), "", 0o644)?;
        let authority = Self::open(directory)?;
        authority.refresh(list_life, now)?;
        Ok(authority)
    }

    /// The authority in this directory.
    ///
    /// # Errors
    /// [`FleetError`].
    pub fn open(directory: &Path) -> Result<Self, FleetError> {
        let pair = CertificatePair::at(directory, "ca");
        let unusable = |path: &Path, why| FleetError::Make(DevelopmentError::UnusableAuthority(path.to_owned(), why));
        let lock = File::open(&pair.key).map_err(|error| io(&pair.key, error))?;
        lock.lock().map_err(|error| io(&pair.key, error))?;
        let der = CertificateDer::from_pem_file(&pair.cert)
            .map_err(|_| unusable(&pair.cert, "this is not the certificate of an authority"))?;
        let key = read_key_pair(&pair.key).ok_or_else(|| unusable(&pair.key, "this is not a private key"))?;
        let (_, certificate) = X509Certificate::from_der(&der)
            .map_err(|_| unusable(&pair.cert, "this is not the certificate of an authority"))?;
        if certificate.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(unusable(&pair.key, "this private key does not belong to the authority's certificate"));
        }
        let not_after = certificate.validity().not_after.timestamp();
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        let list = read_list(&directory.join("issued.tsv"))?;
        Ok(Self { directory: directory.to_owned(), issuer, not_after, issued: list, _lock: lock })
    }

    /// All that was issued, in its order.
    #[must_use]
    pub fn issued(&self) -> &[Issued] {
        &self.issued
    }

    /// A certificate for a device, with a key that is made here, or for the key of its signing `request`. One that it has
    /// stays good until its end: renewing is the same, some time before.
    ///
    /// # Errors
    /// [`FleetError`].
    pub fn issue(
        &mut self,
        id: &str,
        request: Option<&Path>,
        life: Duration,
        now: SystemTime,
    ) -> Result<CertificatePair, FleetError> {
        if !is_safe_id(id) {
            return Err(DevelopmentError::UnsafeId(id.to_owned()).into());
        }
        let pair = CertificatePair::at(&self.directory.join("devices"), id);
        self.sign(id.to_owned(), client_params(id)?, pair, request, life, now)
    }

    /// The same for a gateway: `names` are the host names and addresses under which devices connect to it, of which the first
    /// gives it its name. It is good for no client.
    ///
    /// # Errors
    /// [`FleetError`].
    ///
    /// # Panics
    /// Without a name.
    pub fn issue_server(
        &mut self,
        names: &[&str],
        request: Option<&Path>,
        life: Duration,
        now: SystemTime,
    ) -> Result<CertificatePair, FleetError> {
        let name = names[0];
        let subject_alt_names = names.iter().map(|name| server_name(name)).collect::<Result<_, _>>()?;
        if !is_safe_id(name) {
            return Err(FleetError::NotAFirstName(name.to_owned()));
        }
        let mut params = params_named(name);
        params.subject_alt_names = subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let directory = self.directory.join("servers");
        std::fs::create_dir_all(&directory).map_err(|error| io(&directory, error))?;
        self.sign(format!("server/{name}"), params, CertificatePair::at(&directory, name), request, life, now)
    }

    /// Signs what `params` say, and puts it where `pair` says.
    fn sign(
        &mut self,
        id: String,
        mut params: CertificateParams,
        pair: CertificatePair,
        request: Option<&Path>,
        life: Duration,
        now: SystemTime,
    ) -> Result<CertificatePair, FleetError> {
        if seconds(now + DAY) as i64 > self.not_after {
            return Err(FleetError::AuthorityEnds);
        }
        let serial = serial()?;
        set_validity(&mut params, now, life, self.not_after);
        params.serial_number = Some(serial.clone());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let end = (seconds(now + life)).min(self.not_after.unsigned_abs());
        // Known before it is there: what is not in the list could not be revoked.
        self.issued.push(Issued {
            serial: hex(serial.as_ref()),
            id,
            not_before: seconds(now),
            not_after: end,
            revoked: None,
        });
        self.write_list()?;
        match request {
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                let certificate = params.signed_by(&key, &self.issuer)?;
                put_pair(&pair, &Zeroizing::new(key.serialize_pem()), &certificate.pem())?;
            }
            Some(path) => {
                let bad = || FleetError::BadRequest(path.to_owned());
                let pem = std::fs::read_to_string(path).map_err(|error| io(path, error))?;
                let mut request = CertificateSigningRequestParams::from_pem(&pem).map_err(|_| bad())?;
                // Of what is asked for the key alone is taken: whose it is, we say.
                request.params = params;
                let certificate = request.signed_by(&self.issuer)?;
                replace_file(&pair.cert, &certificate.pem(), 0o644)?;
            }
        }
        Ok(pair)
    }

    /// Revokes every certificate of a device (or `server/NAME`) that is good, or the one with this serial number, and makes the list anew. Returns
    /// how many.
    ///
    /// # Errors
    /// [`FleetError`].
    pub fn revoke(&mut self, id_or_serial: &str, list_life: Duration, now: SystemTime) -> Result<usize, FleetError> {
        let at = seconds(now);
        let serial = id_or_serial.to_ascii_lowercase();
        let mut count = 0;
        for one in &mut self.issued {
            let is_meant = one.id == id_or_serial || one.serial == serial;
            if is_meant && one.revoked.is_none() && one.not_after >= at {
                one.revoked = Some(at);
                count += 1;
            }
        }
        if count == 0 {
            return Err(FleetError::NotIssued(id_or_serial.to_owned()));
        }
        self.write_list()?;
        self.refresh(list_life, now)?;
        Ok(count)
    }

    /// Makes the revocation list anew, good for `life`.
    ///
    /// # Errors
    /// [`FleetError`].
    pub fn refresh(&self, life: Duration, now: SystemTime) -> Result<PathBuf, FleetError> {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let at = |seconds: u64| epoch + Duration::from_secs(seconds);
        // What has ended need not be said; a day longer, for clocks that are behind.
        let is_told = |one: &&Issued| one.not_after + DAY.as_secs() >= seconds(now);
        let revoked = self.issued.iter().filter(is_told).filter_map(|one| {
            Some(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&from_hex(&one.serial)?),
                revocation_time: at(one.revoked?),
                reason_code: None,
                invalidity_date: None,
            })
        });
        let list = CertificateRevocationListParams {
            this_update: at(seconds(now).saturating_sub(60)),
            next_update: at(seconds(now + life)),
            // Each list has a higher number than the one before.
            crl_number: SerialNumber::from(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.directory.join("ca.crl");
        replace_file(&path, &list.signed_by(&self.issuer)?.pem()?, 0o644)?;
        Ok(path)
    }

    fn write_list(&self) -> Result<(), FleetError> {
        let mut text = String::new();
        for one in &self.issued {
            let revoked = one.revoked.map_or_else(|| "-".to_owned(), |at| at.to_string());
            let fields = [&*one.serial, &*one.id, &one.not_before.to_string(), &one.not_after.to_string(), &revoked];
            text.push_str(&fields.join("\t"));
            text.push('\n');
        }
        Ok(replace_file(&self.directory.join("issued.tsv"), &text, 0o644)?)
    }
}

fn read_list(path: &Path) -> Result<Vec<Issued>, FleetError> {
    let text = std::fs::read_to_string(path).map_err(|error| io(path, error))?;
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let &[serial, id, not_before, not_after, revoked] = &fields[..] else { return None };
        from_hex(serial)?;
        Some(Issued {
            serial: serial.to_owned(),
            id: id.to_owned(),
            not_before: not_before.parse().ok()?,
            not_after: not_after.parse().ok()?,
            revoked: if revoked == "-" { None } else { Some(revoked.parse().ok()?) },
        })
    };
    let lines = text.lines().enumerate();
    lines.map(|(at, line)| parse(line).ok_or_else(|| FleetError::BadList(path.to_owned(), at + 1))).collect()
}

/// A host name, with `*` for its first label or without, or an address, as a certificate has it.
fn server_name(name: &str) -> Result<SanType, FleetError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    // RFC 6125 section 6.4.3: a whole label, and not all of a name.
    let host = name.strip_prefix("*.").filter(|rest| rest.contains('.')).unwrap_or(name);
    if !is_dns_name(host) {
        return Err(FleetError::NotAServer(name.to_owned()));
    }
    Ok(SanType::DnsName(name.try_into()?))
}

/// Sixteen random bytes, of which the first is neither 0 nor negative.
fn serial() -> Result<SerialNumber, FleetError> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| rcgen::Error::RemoteKeyError)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn io(path: &Path, error: std::io::Error) -> FleetError {
    FleetError::Make(DevelopmentError::Io(path.to_owned(), error))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const YEAR: Duration = Duration::from_hours(365 * 24);
    const MONTH: Duration = Duration::from_hours(30 * 24);

    fn made() -> (tempfile::TempDir, FleetAuthority) {
        let directory = tempfile::tempdir().unwrap();
        let authority =
            FleetAuthority::create(directory.path(), "Test fleet", 10 * YEAR, MONTH, SystemTime::now()).unwrap();
        (directory, authority)
    }

    /// What `openssl verify` says of a device's certificate, the revocation list looked at.
    fn verify(directory: &Path, certificate: &Path) -> (bool, String) {
        let mut command = Command::new("openssl");
        command.args(["verify", "-x509_strict", "-crl_check", "-purpose", "sslclient", "-CAfile", "ca.pem"]);
        command.args(["-CRLfile", "ca.crl"]).arg(certificate).current_dir(directory);
        let output = command.output().expect("openssl is installed");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[test]
    fn openssl_takes_what_was_issued_and_refuses_what_was_revoked() {
        let (directory, mut authority) = made();
        let path = directory.path();
        let now = SystemTime::now();
        let pump = authority.issue("pump-1", None, YEAR, now).unwrap();
        let meter = authority.issue("meter-1", None, YEAR, now).unwrap();
        for pair in [&pump, &meter] {
            assert_eq!(verify(path, &pair.cert), (true, String::new()));
        }
        assert_eq!(authority.revoke("pump-1", MONTH, now).unwrap(), 1);
        let (is_good, words) = verify(path, &pump.cert);
        assert!(!is_good && words.contains("certificate revoked"), "{words}");
        assert!(verify(path, &meter.cert).0);
        // Once is enough, and a renewed one is good.
        assert!(matches!(authority.revoke("pump-1", MONTH, now), Err(FleetError::NotIssued(_))));
        let renewed = authority.issue("pump-1", None, YEAR, now).unwrap();
        assert!(verify(path, &renewed.cert).0);
        let serials: Vec<_> = authority.issued().iter().map(|one| one.serial.clone()).collect();
        assert_eq!(authority.revoke(&serials[1].to_uppercase(), MONTH, now).unwrap(), 1);
        assert!(!verify(path, &meter.cert).0);
        drop(authority);
        let again = FleetAuthority::open(path).unwrap();
        let known: Vec<_> = again.issued().iter().map(|one| (&*one.id, one.revoked.is_some())).collect();
        assert_eq!(known, [("pump-1", true), ("meter-1", true), ("pump-1", false)]);
    }

    #[test]
    fn a_device_keeps_its_key_and_we_say_who_it_is() {
        let (directory, mut authority) = made();
        let path = directory.path();
        let openssl = |arguments: &[&str]| {
            let output = Command::new("openssl").args(arguments).current_dir(path).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "own.key"]);
        openssl(&["req", "-new", "-key", "own.key", "-subj", "/CN=somebody-else", "-out", "own.csr"]);
        let pair = authority.issue("pump-9", Some(&path.join("own.csr")), YEAR, SystemTime::now()).unwrap();
        assert!(verify(path, &pair.cert).0 && !pair.key.exists());
        let subject = openssl(&["x509", "-in", "devices/pump-9.pem", "-noout", "-subject"]);
        assert!(subject.contains("pump-9") && !subject.contains("somebody-else"), "{subject}");
        let public = openssl(&["pkey", "-in", "own.key", "-pubout"]);
        assert_eq!(openssl(&["x509", "-in", "devices/pump-9.pem", "-noout", "-pubkey"]), public);
        let error = authority.issue("pump-9", Some(&path.join("own.key")), YEAR, SystemTime::now()).unwrap_err();
        assert!(matches!(error, FleetError::BadRequest(_)), "{error}");
    }

    #[test]
    fn a_gateway_is_known_by_its_names_and_is_no_device() {
        let (directory, mut authority) = made();
        let path = directory.path();
        let now = SystemTime::now();
        let names = ["gate.example", "gate", "*.fleet.example", "192.0.2.7", "2001:db8::7"];
        let pair = authority.issue_server(&names, None, YEAR, now).unwrap();
        assert_eq!(pair.cert, path.join("servers/gate.example.pem"));
        let openssl = |arguments: &[&str]| {
            let mut command = Command::new("openssl");
            command.args(["verify", "-x509_strict", "-crl_check", "-CAfile", "ca.pem", "-CRLfile", "ca.crl"]);
            let output = command.args(arguments).arg(&pair.cert).current_dir(path).output().unwrap();
            output.status.success()
        };
        for (kind, name, is_good) in [
            ("-verify_hostname", "gate.example", true),
            ("-verify_hostname", "gate", true),
            ("-verify_hostname", "a.fleet.example", true),
            ("-verify_hostname", "fleet.example", false),
            ("-verify_ip", "192.0.2.7", true),
            ("-verify_ip", "2001:db8::7", true),
            ("-verify_ip", "192.0.2.8", false),
        ] {
            assert_eq!(openssl(&["-purpose", "sslserver", kind, name]), is_good, "{kind} {name}");
        }
        assert!(!openssl(&["-purpose", "sslclient"]), "no device can be made of it");
        // A device of the same name is another one.
        authority.issue("gate.example", None, YEAR, now).unwrap();
        assert_eq!(authority.revoke("gate.example", MONTH, now).unwrap(), 1);
        assert!(openssl(&["-purpose", "sslserver"]));
        assert_eq!(authority.revoke("server/gate.example", MONTH, now).unwrap(), 1);
        assert!(!openssl(&["-purpose", "sslserver"]));
        for wrong in ["a b", "-x", "../x", "", "*.example", "x_y.example", "300.0.0.1", "gate.example/x"] {
            let error = authority.issue_server(&[wrong], None, YEAR, now).unwrap_err();
            assert!(matches!(&error, FleetError::NotAServer(name) if name == wrong), "{error}");
        }
        // Names that are right, but call no file.
        for further in ["*.fleet.example", "::1"] {
            let error = authority.issue_server(&[further, "gate.example"], None, YEAR, now).unwrap_err();
            assert!(matches!(&error, FleetError::NotAFirstName(name) if name == further), "{error}");
            assert!(error.to_string().contains("bytes first, and this one by --san"), "{error}");
        }
        assert!(matches!(authority.issue_server(&["gate", "*.com"], None, YEAR, now), Err(FleetError::NotAServer(_))));
        // As a second name an address may be any.
        assert!(authority.issue_server(&["localhost", "::1"], None, YEAR, now).is_ok());
        assert_eq!(authority.issued().len(), 3, "what was refused is not in the list");
    }

    #[test]
    fn nothing_outlives_the_authority_and_nothing_replaces_it() {
        let (directory, mut authority) = made();
        let pair = authority.issue("pump-1", None, 100 * YEAR, SystemTime::now()).unwrap();
        let der = CertificateDer::from_pem_file(&pair.cert).unwrap();
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert!(certificate.validity().not_after.timestamp() <= authority.not_after);
        let late = SystemTime::now() + 10 * YEAR;
        assert!(matches!(authority.issue("pump-2", None, YEAR, late), Err(FleetError::AuthorityEnds)));
        assert!(matches!(authority.issue("../pump", None, YEAR, late), Err(FleetError::Make(_))));
        drop(authority);
        let before = std::fs::read(directory.path().join("ca.pem")).unwrap();
        let error = FleetAuthority::create(directory.path(), "x", YEAR, MONTH, SystemTime::now());
        assert!(matches!(error, Err(FleetError::IsThere(_))));
        assert_eq!(std::fs::read(directory.path().join("ca.pem")).unwrap(), before);
        std::fs::write(directory.path().join("issued.tsv"), "nonsense\n").unwrap();
        assert!(matches!(FleetAuthority::open(directory.path()), Err(FleetError::BadList(_, 1))));
    }
}
