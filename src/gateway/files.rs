//! The configuration and every file that it names, read together and proven as a whole: what a start and a reload need.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};

use super::deny;
use super::error::{GatewayError, Problems};
use super::watch::Signature;
use crate::config::{
    self, AdminTls, CertificateFiles, ClientAuth, Config, ConfigKey, Listener, Loaded, Machine, Tls, TlsVersions,
};
use crate::control::ApiTls;
use crate::control::auth::material::Material as AuthMaterial;
use crate::fleet;
use crate::link::Subject;
use crate::sink;
use crate::tls::certs::{LoadWarning, TlsLoadError};
use crate::tls::handshake::{self, RevocationOptions, ServerOptions, ServerTls, TicketOptions, Versions, self_test};
use crate::whole_file;

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file; without it the built-in configuration holds.
    pub file: Option<PathBuf>,
    /// The machine that it is checked against.
    pub machine: Machine,
}

/// Everything that was read, proven.
pub struct Prepared {
    /// The configuration, what it costs and what is to be said about it, the files' doubts included.
    pub loaded: Loaded,
    /// By listener.
    pub materials: Vec<Material>,
    /// By sink.
    pub sinks: Vec<sink::Settings>,
    /// How this gateway is one of a fleet; none: it is alone.
    pub fleet: Option<fleet::Settings>,
    /// What the API is spoken over; none: plain HTTP.
    pub api: Option<ApiMaterial>,
    /// Who the deny file says is kept out.
    pub denied: Vec<Subject>,
    /// What the files looked like before they were read.
    pub seen: Signature,
}

/// What the files of `[admin.tls]` hold.
#[derive(Clone)]
pub struct ApiMaterial {
    /// What the API is spoken over.
    pub tls: ApiTls,
    /// The same as a listener would have it: proven by a handshake with itself, and asked when it ends.
    pub proof: ServerTls,
    /// What it was made from.
    pub digest: Digest,
}

/// What the files of one listener hold.
pub struct Material {
    /// Certificates, keys, authorities: tried in a handshake with itself.
    pub tls: ServerTls,
    /// What that was made from. Equal: nothing has changed.
    pub tls_digest: Digest,
    /// What its authenticators need.
    pub auth: AuthMaterial,
    /// By key of the listener: what its files held.
    pub auth_digests: Vec<(String, Digest)>,
}

/// What the API is called among the listeners in metrics and warnings. No listener can have this name.
pub(super) const API_LISTENER: &str = "[admin]";

/// A digest of the contents of files.
pub type Digest = [u8; 32];

impl Source {
    /// The configuration alone: its files are only looked for.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn load(&self) -> Result<Loaded, Problems> {
        let loaded = match &self.file {
            Some(file) => config::load_all(file, &self.machine),
            None => config::built_in(&self.machine).map_err(|error| vec![error]),
        };
        loaded.map_err(|errors| Problems(errors.into_iter().map(GatewayError::Config).collect()))
    }

    /// Reads and proves everything.
    ///
    /// # Errors
    /// All that is wrong, as far as it can be seen at once.
    pub fn prepare(&self) -> Result<Prepared, Problems> {
        self.prepare_files(self.load()?)
    }

    /// The same for a configuration that was loaded before.
    ///
    /// # Errors
    /// All that is wrong with the files.
    pub fn prepare_files(&self, mut loaded: Loaded) -> Result<Prepared, Problems> {
        let seen = self.signature(&loaded.config, &[]);
        for file in loaded.config.admin.token_files.iter().filter(|file| is_readable_by_all(file)) {
            loaded.warnings.push(readable_by_all(&ConfigKey::top("admin.token_file"), file));
        }
        let mut materials = Vec::with_capacity(loaded.config.listeners.len());
        let mut problems = Vec::new();
        for (index, listener) in loaded.config.listeners.iter().enumerate() {
            match self.load_listener(index, listener, &mut loaded.warnings) {
                Ok(material) => materials.push(material),
                Err(found) => problems.extend(found),
            }
        }
        let sinks = self.load_sinks(&mut loaded, &mut problems);
        let fleet = self.load_fleet(&mut loaded, &mut problems);
        let api = self.load_api(&mut loaded, &mut problems);
        let denied = match loaded.config.deny_file.as_deref().map(deny::load).transpose() {
            Ok(denied) => denied.unwrap_or_default(),
            Err(error) => {
                let error = error.to_string().into();
                problems.push(GatewayError::File(self.file.clone(), ConfigKey::top("deny_file"), error));
                Vec::new()
            }
        };
        if problems.is_empty() {
            Ok(Prepared { loaded, materials, sinks, fleet, api, denied, seen })
        } else {
            Err(Problems(problems))
        }
    }

    /// What the files look like that are read for `config`, and further ones.
    pub(super) fn signature(&self, config: &Config, further: &[PathBuf]) -> Signature {
        let mut files = files_of(config);
        files.extend(self.file.clone());
        files.extend_from_slice(further);
        files.sort_unstable();
        files.dedup();
        Signature::of(files)
    }

    /// Reads and proves what each sink needs. The other sides are not asked: that one is away is no fault of the file.
    fn load_sinks(&self, loaded: &mut Loaded, problems: &mut Vec<GatewayError>) -> Vec<sink::Settings> {
        let mut sinks = Vec::new();
        for (index, config) in loaded.config.sinks.iter().enumerate() {
            let place = |key: &str| ConfigKey::top(format!("sink[{index}].{key}"));
            match sink::Settings::prove(config) {
                Ok(settings) => sinks.push(settings),
                Err(fault) => {
                    problems.push(GatewayError::File(self.file.clone(), place(fault.key), fault.to_string().into()));
                }
            }
            for (key, file, is_secret) in sink::files_of(config) {
                if is_secret && is_readable_by_all(&file) {
                    loaded.warnings.push(readable_by_all(&place(key), &file));
                }
            }
        }
        sinks
    }

    /// Reads and proves what the fleet needs. NATS is not asked: that it is away is no fault of the file.
    fn load_fleet(&self, loaded: &mut Loaded, problems: &mut Vec<GatewayError>) -> Option<fleet::Settings> {
        let config = loaded.config.fleet.as_ref()?;
        let place = |key: &str| ConfigKey::top(format!("backbone.nats.{key}"));
        for (key, file, is_secret) in fleet::files_of(config) {
            if is_secret && is_readable_by_all(&file) {
                loaded.warnings.push(readable_by_all(&place(key), &file));
            }
        }
        match fleet::Settings::prove(config) {
            Ok(settings) => Some(settings),
            Err(fault) => {
                problems.push(GatewayError::File(self.file.clone(), place(fault.key), fault.to_string().into()));
                None
            }
        }
    }

    /// Reads and proves what the API is spoken over.
    fn load_api(&self, loaded: &mut Loaded, problems: &mut Vec<GatewayError>) -> Option<ApiMaterial> {
        let admin = loaded.config.admin.tls.clone()?;
        let place = |key: &str| ConfigKey::top(format!("admin.tls.{key}"));
        if is_readable_by_all(&admin.key) {
            loaded.warnings.push(readable_by_all(&place("key"), &admin.key));
        }
        let files = [Some(&admin.cert), Some(&admin.key), admin.client_ca.as_ref()];
        let mut context = Context::new(&SHA256);
        context.update(format!("{admin:?}").as_bytes());
        context.update(&digest_of(files.into_iter().flatten().map(PathBuf::as_path)));
        let mut refuse = |key: &str, error: String| {
            problems.push(GatewayError::File(self.file.clone(), place(key), error.into()));
            None
        };
        let proof = match prove_api(&admin) {
            Ok((proof, doubts)) => {
                loaded.warnings.extend(doubts.iter().map(|doubt| format!("admin.tls: {doubt}")));
                proof
            }
            Err(error) => {
                let key = match error.path.as_deref() {
                    Some(path) if path == admin.key => "key",
                    Some(path) if Some(path) == admin.client_ca.as_deref() => "client_ca",
                    _ => "cert",
                };
                return refuse(key, error.to_string());
            }
        };
        if let Err(error) = self_test(&proof) {
            return refuse("cert", error.to_string());
        }
        match ApiTls::load(&admin) {
            Ok(tls) => Some(ApiMaterial { tls, proof, digest: finish(context) }),
            Err(error) => refuse(error.key, error.what),
        }
    }

    /// Reads and proves what the listener at this place of the file needs.
    ///
    /// # Errors
    /// All that is wrong with its files.
    pub(super) fn load_listener(
        &self,
        index: usize,
        listener: &Listener,
        warnings: &mut Vec<String>,
    ) -> Result<Material, Vec<GatewayError>> {
        let mut problems = Vec::new();
        let at = |key: String| ConfigKey::of_listener(index, &listener.name, key);
        let mut refuse = |place, error: Box<dyn std::error::Error + Send + Sync>| {
            problems.push(GatewayError::File(self.file.clone(), place, error));
        };
        let tls_digest = tls_digest(listener);
        let tls = match load_tls(listener) {
            Ok((tls, doubts)) => {
                warnings.extend(
                    doubts.iter().map(|doubt| format!("{}: {doubt}", at(key_of(&listener.tls, Some(&doubt.path))))),
                );
                if let Err(error) = self_test(&tls) {
                    refuse(at("tls".to_owned()), error.to_string().into());
                }
                Some(tls)
            }
            Err(error) => {
                refuse(at(key_of(&listener.tls, error.path.as_deref())), error.to_string().into());
                None
            }
        };
        let files = AuthMaterial::files(&listener.identity);
        let auth_digests =
            files.into_iter().map(|(key, file, _)| (key, digest_of([file.as_path()].into_iter()))).collect();
        let auth = match AuthMaterial::load(&listener.identity) {
            Ok(auth) => Some(auth),
            Err(error) => {
                refuse(at(error.key), error.what.into());
                None
            }
        };
        for (key, file) in secrets_of(listener) {
            if is_readable_by_all(&file) {
                warnings.push(readable_by_all(&at(key), &file));
            }
        }
        match (tls, auth) {
            (Some(tls), Some(auth)) if problems.is_empty() => Ok(Material { tls, tls_digest, auth, auth_digests }),
            _ => Err(problems),
        }
    }
}

/// Every file that a configuration names and that is read again by a reload.
pub(super) fn files_of(config: &Config) -> Vec<PathBuf> {
    let mut files = Vec::new();
    files.extend(config.admin.token_files.clone());
    files.extend(config.deny_file.clone());
    if let Some(AdminTls { cert, key, client_ca }) = &config.admin.tls {
        files.extend([Some(cert), Some(key), client_ca.as_ref()].into_iter().flatten().cloned());
    }
    for listener in &config.listeners {
        files.extend(tls_files(listener).map(Path::to_owned));
        files.extend(AuthMaterial::files(&listener.identity).into_iter().map(|(_, file, _)| file));
    }
    for config in &config.sinks {
        files.extend(sink::files_of(config).into_iter().map(|(_, file, _)| file));
    }
    files.sort_unstable();
    files.dedup();
    files
}

/// The files of a listener that hold secrets, with their keys in the configuration.
fn secrets_of(listener: &Listener) -> impl Iterator<Item = (String, PathBuf)> {
    let keys = listener.tls.certificates.iter().map(|files| files.key.as_path());
    let keys = keys.map(|file| (key_of(&listener.tls, Some(file)), file.to_owned()));
    let of_auth = AuthMaterial::files(&listener.identity).into_iter();
    keys.chain(of_auth.filter(|(_, _, is_secret)| *is_secret).map(|(key, file, _)| (key, file)))
}

fn readable_by_all(place: &ConfigKey, file: &Path) -> String {
    format!("{place}: every user may read {}: take that from others (chmod o-rwx)", file.display())
}

fn is_readable_by_all(file: &Path) -> bool {
    // One that cannot be looked at is told by whoever reads it.
    std::fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

fn tls_files(listener: &Listener) -> impl Iterator<Item = &Path> {
    let tls = &listener.tls;
    let pairs = tls.certificates.iter().flat_map(|files| [Some(&files.cert), Some(&files.key), files.ocsp.as_ref()]);
    let lists = tls.crl.iter().flat_map(|crl| &crl.files);
    let ticket_keys = tls.tickets.as_ref().and_then(|tickets| tickets.keys.as_ref());
    pairs.flatten().chain(&tls.client_ca).chain(lists).chain(ticket_keys).map(PathBuf::as_path)
}

fn tls_digest(listener: &Listener) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(format!("{:?} {:?}", listener.tls, listener.alpn()).as_bytes());
    context.update(&digest_of(tls_files(listener)));
    finish(context)
}

/// A digest of the files' contents, in this order. One that cannot be read is told by whoever needs it.
pub(super) fn digest_of<'a>(files: impl Iterator<Item = &'a Path>) -> Digest {
    let mut context = Context::new(&SHA256);
    for file in files {
        let text = whole_file::read(file).map(zeroize::Zeroizing::new).unwrap_or_default();
        context.update(&(text.len() as u64).to_ne_bytes());
        context.update(&text);
    }
    finish(context)
}

fn finish(context: Context) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// As a listener would be that shows and demands the same.
fn prove_api(admin: &AdminTls) -> Result<(ServerTls, Vec<LoadWarning>), TlsLoadError> {
    let client_auth = admin.client_ca.as_deref().map_or(handshake::ClientAuth::Off, handshake::ClientAuth::Required);
    ServerTls::load(&ServerOptions {
        listener: API_LISTENER,
        certificates: &[(&admin.cert, &admin.key)],
        client_auth,
        ..ServerOptions::default()
    })
}

fn load_tls(listener: &Listener) -> Result<(ServerTls, Vec<LoadWarning>), TlsLoadError> {
    let tls = &listener.tls;
    let certificates: Vec<(&Path, &Path)> =
        tls.certificates.iter().map(|files| (files.cert.as_path(), files.key.as_path())).collect();
    let with_staple = |(position, files): (usize, &'_ CertificateFiles)| Some((position, files.ocsp.clone()?));
    let staples: Vec<_> = tls.certificates.iter().enumerate().filter_map(with_staple).collect();
    let staples: Vec<_> = staples.iter().map(|(position, path)| (*position, path.as_path())).collect();
    let lists: Vec<&Path> = tls.crl.iter().flat_map(|crl| &crl.files).map(PathBuf::as_path).collect();
    let revocation = tls.crl.as_ref().map(|crl| RevocationOptions {
        lists: &lists,
        accept_expired: crl.accept_expired,
        accept_unknown: crl.accept_unknown,
        leaf_only: crl.leaf_only,
    });
    let versions = match tls.versions {
        TlsVersions::Both => Versions::Both,
        TlsVersions::Tls12 => Versions::Tls12,
        TlsVersions::Tls13 => Versions::Tls13,
    };
    let tickets =
        tls.tickets.as_ref().map(|tickets| TicketOptions { lifetime: tickets.lifetime, keys: tickets.keys.as_deref() });
    let client_auth = match (tls.client_auth, &tls.client_ca) {
        (ClientAuth::Off, _) => handshake::ClientAuth::Off,
        (ClientAuth::Optional, Some(authorities)) => handshake::ClientAuth::Optional(authorities),
        (ClientAuth::Required, Some(authorities)) => handshake::ClientAuth::Required(authorities),
        (_, None) => unreachable!("the configuration demands authorities where client certificates are asked for"),
    };
    let alpn = &listener.alpn();
    ServerTls::load(&ServerOptions {
        listener: &listener.name,
        certificates: &certificates,
        staples: &staples,
        client_auth,
        revocation,
        alpn,
        versions,
        tickets,
        record_bytes: tls.record_bytes,
    })
}

/// The key of `[listener.tls]` that names this file.
fn key_of(tls: &Tls, path: Option<&Path>) -> String {
    let names = |file: &Path| path == Some(file);
    for (index, files) in tls.certificates.iter().enumerate() {
        let has_staple = files.ocsp.as_deref().is_some_and(names);
        let key = match (names(&files.cert), names(&files.key), has_staple) {
            (true, ..) => "cert",
            (_, true, _) => "key",
            (.., true) => "ocsp",
            _ => continue,
        };
        // The first pair stands in the table itself, further ones in its list.
        return match index {
            0 => format!("tls.{key}"),
            _ => format!("tls.certificates[{}].{key}", index - 1),
        };
    }
    let crl_names = tls.crl.as_ref().is_some_and(|crl| crl.files.iter().any(|file| names(file)));
    let keys = tls.tickets.as_ref().and_then(|tickets| tickets.keys.as_deref());
    match tls.client_ca.as_deref() {
        Some(file) if names(file) => "tls.client_ca",
        _ if crl_names => "tls.crl.files",
        _ if keys.is_some_and(names) => "tls.ticket_keys",
        _ => "tls",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::config::{Crl, Tickets};
    use crate::tls::certs::development;

    #[test]
    fn a_file_has_the_key_that_names_it() {
        let file = |name: &str, end: &str| format!("{name}.{end}").into();
        let files = |name: &str| CertificateFiles {
            cert: file(name, "pem"),
            key: file(name, "key"),
            ocsp: Some(file(name, "ocsp")),
        };
        let crl = Crl {
            files: vec!["a.crl".into(), "b.crl".into()],
            accept_expired: false,
            accept_unknown: false,
            leaf_only: false,
        };
        let tls = Tls {
            certificates: vec![files("a"), files("b"), files("c")],
            client_ca: Some("ca.pem".into()),
            client_auth: ClientAuth::Optional,
            crl: Some(crl),
            tickets: Some(Tickets { keys: Some("tickets.keys".into()), ..Tickets::default() }),
            ..Tls::default()
        };
        let key = |path: &str| key_of(&tls, Some(Path::new(path)));
        assert_eq!(key("a.pem"), "tls.cert");
        assert_eq!(key("a.key"), "tls.key");
        assert_eq!(key("b.pem"), "tls.certificates[0].cert");
        assert_eq!(key("c.key"), "tls.certificates[1].key");
        assert_eq!(key("b.ocsp"), "tls.certificates[0].ocsp");
        assert_eq!(key("ca.pem"), "tls.client_ca");
        assert_eq!(key("b.crl"), "tls.crl.files");
        assert_eq!(key("tickets.keys"), "tls.ticket_keys");
        assert_eq!(key_of(&tls, None), "tls");
    }

    /// Files as they are right, and as they are wrong one by one: each error names its key, the file and what to do.
    #[test]
    fn what_is_wrong_with_a_file_of_the_api_names_its_key_the_file_and_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let made = development::ensure(directory.path(), &["operator"], SystemTime::now()).unwrap();
        std::fs::write(path("empty.pem"), "").unwrap();
        std::fs::write(path("rubbish.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        let right = AdminTls { cert: made.server.cert.clone(), key: made.server.key.clone(), client_ca: None };
        assert!(ApiTls::load(&right).is_ok());
        let with_clients = AdminTls { client_ca: Some(made.authority.cert.clone()), ..right.clone() };
        assert!(ApiTls::load(&with_clients).is_ok());

        let cert = |cert: PathBuf| AdminTls { cert, ..with_clients.clone() };
        let key = |key: PathBuf| AdminTls { key, ..with_clients.clone() };
        let client_ca = |file: PathBuf| AdminTls { client_ca: Some(file), ..right.clone() };
        let client_key = made.clients[0].key.clone();
        for (config, named, file, part) in [
            (cert(path("away.pem")), "cert", "away.pem", "that the gateway may read"),
            (cert(path("empty.pem")), "cert", "empty.pem", "holds no certificate"),
            (cert(client_key.clone()), "cert", "client-operator.key", "holds no certificate"),
            (key(path("away.key")), "key", "away.key", "name a PEM file with the key of admin.tls.cert"),
            (key(path("empty.pem")), "key", "empty.pem", "name a PEM file with the key of admin.tls.cert"),
            (key(client_key), "key", "client-operator.key", "name a PEM file with the key of admin.tls.cert"),
            (client_ca(path("away.pem")), "client_ca", "away.pem", "that the gateway may read"),
            (client_ca(path("empty.pem")), "client_ca", "empty.pem", "holds no certificate"),
            (client_ca(path("rubbish.pem")), "client_ca", "rubbish.pem", "name a PEM file with authorities"),
        ] {
            let error = ApiTls::load(&config).expect_err(file);
            assert_eq!(error.key, named, "{file}: {error}");
            assert!(error.what.contains(file) && error.what.contains(part), "{file}: {error}");
        }
    }
}
