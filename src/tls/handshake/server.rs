//! What a listener brings to every handshake: loaded and proven as a whole, shared by all its connections, and swapped
//! as a whole under them (decision D10).

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{Context, SHA256};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};

use super::client::{Versions, inconsistent};
use super::hello::RecordWish;
use super::scope::CaptureTrafficSecrets;
use super::suites::server_provider;
use super::tickets::{TicketKeys, Ticketer};
use super::verifier::NotingVerifier;
use crate::tls::certs::{
    Authorities, CertificateChooser, CertificateMark, LoadProblem, LoadWarning, RevocationLists, TlsLoadError,
    load_authorities, load_chain, load_revocation_lists, load_staple,
};
use crate::tls::record::{HEADER_LEN, PLAINTEXT_MAX, RecordLimit, Version};

/// For how long a session can be resumed, from its full handshake on, unless told otherwise.
pub const TICKET_LIFETIME: Duration = Duration::from_hours(12);

/// What a listener shows and asks of its clients. All suites, those that hash with SHA-256 first; X25519MLKEM768 is
/// preferred.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions<'a> {
    /// The listener's name: its tickets are good for no other.
    pub listener: &'a str,
    /// PEM files with a certificate chain (leaf first) and with the leaf's key. At least one pair; the client's
    /// server name and signature schemes choose, in doubt the first.
    pub certificates: &'a [(&'a Path, &'a Path)],
    /// OCSP responses (DER) that are shown with the certificates of these positions.
    pub staples: &'a [(usize, &'a Path)],
    /// Whether client certificates are asked for.
    pub client_auth: ClientAuth<'a>,
    /// The revocation lists of client certificates.
    pub revocation: Option<RevocationOptions<'a>>,
    /// Application protocols, the preferred one first. A client that offers others only is refused; one that offers
    /// none is not.
    pub alpn: &'a [&'a [u8]],
    /// Which versions are spoken.
    pub versions: Versions,
    /// Whether sessions can be resumed, and how.
    pub tickets: Option<TicketOptions<'a>>,
    /// The longest record, with all that stands around its plaintext, for a client that wished for nothing smaller.
    pub record_bytes: usize,
}

impl Default for ServerOptions<'_> {
    fn default() -> Self {
        Self {
            listener: "",
            certificates: &[],
            staples: &[],
            client_auth: ClientAuth::Off,
            revocation: None,
            alpn: &[],
            versions: Versions::Both,
            tickets: Some(TicketOptions::default()),
            record_bytes: PLAINTEXT_MAX,
        }
    }
}

/// Whether client certificates are asked for, and the PEM file with the authorities that they are checked against.
#[derive(Clone, Copy, Debug)]
pub enum ClientAuth<'a> {
    /// Not asked for.
    Off,
    /// Asked for; one that is sent must be right.
    Optional(&'a Path),
    /// A connection without a right one is refused.
    Required(&'a Path),
}

/// Which certificates hold no longer, and what is done in doubt.
#[derive(Clone, Copy, Debug)]
pub struct RevocationOptions<'a> {
    /// PEM files with revocation lists.
    pub lists: &'a [&'a Path],
    /// Whether a list that should have been renewed still counts. Otherwise nobody it is about gets in.
    pub accept_expired: bool,
    /// Whether a certificate gets in that no list is about.
    pub accept_unknown: bool,
    /// Whether the device's own certificate alone is looked up, and not those between it and the authority.
    pub leaf_only: bool,
}

/// How sessions are resumed.
#[derive(Clone, Copy, Debug)]
pub struct TicketOptions<'a> {
    /// From the full handshake on, however often it was resumed in between.
    pub lifetime: Duration,
    /// A file of keys that a fleet of gateways shares; none: keys of one's own.
    pub keys: Option<&'a Path>,
}

impl Default for TicketOptions<'_> {
    fn default() -> Self {
        Self { lifetime: TICKET_LIFETIME, keys: None }
    }
}

/// A listener's TLS. Cloning shares it: what is swapped in one is swapped in all.
#[derive(Clone)]
pub struct ServerTls {
    current: Arc<ArcSwap<TlsPolicy>>,
}

/// One loaded set. A handshake goes to its end with the one that it began with.
pub struct TlsPolicy {
    /// The same for each size of record that rustls's own messages may have: without a wish, and for each wish.
    configs: Vec<(usize, Arc<ServerConfig>)>,
    pub(super) chooser: Arc<CertificateChooser>,
    pub(super) ticketer: Option<Arc<Ticketer>>,
    revocation: RevocationLists,
    record_limit: RecordLimit,
    pub(super) clock: Arc<dyn TimeProvider>,
    pub(super) asks_for_certificates: bool,
    authorities_not_after: Option<i64>,
    pub(super) versions: Versions,
}

/// The sizes of record that rustls's messages can be cut to, the largest first.
const RECORD_SIZES: [usize; 7] = [4_096, 2_048, 1_024, 512, 256, 128, 64];

impl ServerTls {
    /// Loads and checks everything: that keys and chains belong together, and that there is at least one of everything
    /// that was named.
    ///
    /// # Errors
    /// [`TlsLoadError`], with the file at fault. A certificate or revocation list that is out of its time is a warning
    /// instead.
    ///
    /// # Panics
    /// When there is no certificate, which the configuration has excluded.
    pub fn load(options: &ServerOptions<'_>) -> Result<(ServerTls, Vec<LoadWarning>), TlsLoadError> {
        Self::load_with_clock(options, Arc::new(DefaultTimeProvider))
    }

    pub(super) fn load_with_clock(
        options: &ServerOptions<'_>,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<(ServerTls, Vec<LoadWarning>), TlsLoadError> {
        let provider = Arc::new(server_provider());
        let mut warnings = Vec::new();
        let chooser = load_chains(options, &provider, SystemTime::now(), &mut warnings)?;
        let policy = TlsPolicy::load(options, chooser, provider, clock, &mut warnings)?;
        Ok((Self::of(policy), warnings))
    }

    pub(super) fn of(policy: TlsPolicy) -> Self {
        Self { current: Arc::new(ArcSwap::from_pointee(policy)) }
    }

    /// What handshakes begin with now.
    #[must_use]
    pub fn policy(&self) -> Arc<TlsPolicy> {
        self.current.load_full()
    }

    /// Takes over what `fresh` has loaded, from the next handshake on. Tickets stay good as far as the rules about clients
    /// are the same.
    pub fn swap(&self, fresh: &ServerTls) {
        fresh.keep_tickets(self);
        self.current.store(fresh.policy());
    }

    /// Goes on with the ticket keys of a set that this one takes the place of, where they are its own: whoever comes with a
    /// ticket of before can resume, if the rules about clients are the same.
    pub fn keep_tickets(&self, before: &ServerTls) {
        if let (Some(after), Some(before)) = (&self.policy().ticketer, &before.policy().ticketer) {
            after.keys.adopt(&before.keys);
        }
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl fmt::Debug for TlsPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsPolicy").finish_non_exhaustive()
    }
}

impl TlsPolicy {
    /// Everything but the chains, which are there.
    pub(super) fn load(
        options: &ServerOptions<'_>,
        chooser: CertificateChooser,
        provider: Arc<CryptoProvider>,
        clock: Arc<dyn TimeProvider>,
        warnings: &mut Vec<LoadWarning>,
    ) -> Result<TlsPolicy, TlsLoadError> {
        let chooser = Arc::new(chooser);
        let clients = Clients::load(options, &provider, SystemTime::now(), warnings)?;
        let ticketer = match options.tickets {
            None => None,
            Some(tickets) => Some(Arc::new(Ticketer {
                keys: Arc::new(load_ticket_keys(tickets, clock.as_ref())?),
                rules: clients.rules,
                lifetime: tickets.lifetime.as_secs(),
                clock: Arc::clone(&clock),
            })),
        };
        let builder = ServerConfig::builder_with_details(provider, Arc::clone(&clock))
            .with_protocol_versions(options.versions.list())
            .map_err(inconsistent)?;
        let builder = match clients.verifier {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier),
        };
        let mut config = builder.with_cert_resolver(Arc::clone(&chooser) as Arc<_>);
        config.alpn_protocols = options.alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.ignore_client_order = true;
        // Resumption without memory: the client keeps the session, in a ticket. One is enough, as each resumed
        // handshake brings the next. No early data: it can be replayed, and would be lost in the extraction.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if let Some(ticketer) = &ticketer {
            config.ticketer = Arc::clone(ticketer) as Arc<_>;
        }
        config.send_tls13_tickets = usize::from(ticketer.is_some());
        config.max_tls13_tickets = usize::from(ticketer.is_some());
        config.max_early_data_size = 0;
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(CaptureTrafficSecrets);
        Ok(TlsPolicy {
            configs: configs_by_size(&config, RecordLimit::of_records(options.record_bytes)),
            chooser,
            ticketer,
            revocation: clients.revocation,
            record_limit: RecordLimit::of_records(options.record_bytes),
            clock,
            asks_for_certificates: !matches!(options.client_auth, ClientAuth::Off),
            authorities_not_after: clients.authorities_not_after,
            versions: options.versions,
        })
    }

    /// The configuration for a client with this wish.
    pub(super) fn config(&self, wish: RecordWish) -> Arc<ServerConfig> {
        // The smaller of the two ways to count: rustls asks before the version is known.
        let size = wish.limit(Version::Tls13).map_or(PLAINTEXT_MAX, RecordLimit::bytes);
        let fitting = self.configs.iter().find(|(bytes, _)| *bytes <= size);
        let (_, config) = fitting.or(self.configs.last()).expect("there is one without a wish");
        Arc::clone(config)
    }

    /// How much plaintext a record may carry for a client with this wish.
    pub(super) fn record_limit(&self, wish: RecordWish, version: Version) -> RecordLimit {
        wish.limit(version).map_or(self.record_limit, |wished| wished.min(self.record_limit))
    }

    pub(super) fn alpn_position(&self, agreed: &[u8]) -> u8 {
        let (_, config) = &self.configs[0];
        let position = config.alpn_protocols.iter().position(|protocol| protocol == agreed);
        position.expect("rustls agrees to nothing that we did not offer") as u8
    }

    /// Whether a client certificate with this mark was revoked.
    #[must_use]
    pub fn revokes(&self, mark: &CertificateMark) -> bool {
        self.revocation.revokes(mark)
    }

    /// Whether a client certificate with this mark has ended.
    #[must_use]
    pub fn is_over(&self, mark: &CertificateMark) -> bool {
        self.clock.current_time().is_some_and(|now| now.as_secs() > u64::from(mark.not_after))
    }

    /// How many certificates the revocation lists name.
    #[must_use]
    pub fn revoked(&self) -> usize {
        self.revocation.len()
    }

    /// When the first of the revocation lists should be renewed, in seconds since 1970.
    #[must_use]
    pub fn revocation_next_update(&self) -> Option<i64> {
        self.revocation.next_update
    }

    /// The last second in which each of the listener's chains holds, since 1970, in the operator's order.
    pub fn chains_not_after(&self) -> impl Iterator<Item = i64> {
        self.chooser.chains().iter().map(|chain| chain.not_after)
    }

    /// The DNS names of the leaf of each of these chains.
    pub fn chains_names(&self) -> impl Iterator<Item = &[String]> {
        self.chooser.chains().iter().map(|chain| chain.dns_names.as_slice())
    }

    /// The last second in which all authorities of its clients hold, since 1970; none: there are none.
    #[must_use]
    pub fn authorities_not_after(&self) -> Option<i64> {
        self.authorities_not_after
    }

    /// Whether clients are asked for certificates.
    #[must_use]
    pub fn asks_for_certificates(&self) -> bool {
        self.asks_for_certificates
    }
}

fn load_chains(
    options: &ServerOptions<'_>,
    provider: &CryptoProvider,
    now: SystemTime,
    warnings: &mut Vec<LoadWarning>,
) -> Result<CertificateChooser, TlsLoadError> {
    let mut chains = Vec::with_capacity(options.certificates.len());
    for (position, (cert, key)) in options.certificates.iter().enumerate() {
        let (mut chain, warning) = load_chain(provider, cert, key, now)?;
        if let Some((_, staple)) = options.staples.iter().find(|(of, _)| *of == position) {
            Arc::get_mut(&mut chain.certified).expect("nobody else has it yet").ocsp = Some(load_staple(staple)?);
        }
        chains.push(chain);
        warnings.extend(warning);
    }
    Ok(CertificateChooser::new(chains))
}

fn load_ticket_keys(options: TicketOptions<'_>, clock: &dyn TimeProvider) -> Result<TicketKeys, TlsLoadError> {
    match options.keys {
        Some(path) => TicketKeys::load(path),
        None => TicketKeys::random(clock.current_time().map_or(0, |now| now.as_secs())).map_err(inconsistent),
    }
}

/// What rustls sends itself (its certificates are the longest) is cut to the size that the client can take. Its own
/// setting counts the record's header.
fn configs_by_size(config: &ServerConfig, limit: RecordLimit) -> Vec<(usize, Arc<ServerConfig>)> {
    let with_size = |size: usize| {
        let mut sized = config.clone();
        sized.max_fragment_size = Some(size.min(limit.bytes()) + HEADER_LEN);
        (size, Arc::new(sized))
    };
    [PLAINTEXT_MAX].into_iter().chain(RECORD_SIZES).map(with_size).collect()
}

/// The rules about clients.
struct Clients {
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    revocation: RevocationLists,
    /// All that decides whether a certificate gets in: a session is resumed only under the same.
    rules: [u8; 32],
    authorities_not_after: Option<i64>,
}

impl Clients {
    fn load(
        options: &ServerOptions<'_>,
        provider: &Arc<CryptoProvider>,
        now: SystemTime,
        warnings: &mut Vec<LoadWarning>,
    ) -> Result<Self, TlsLoadError> {
        let (path, is_required) = match options.client_auth {
            ClientAuth::Off => {
                let rules = rules_digest(options, None, &RevocationLists::default());
                let revocation = RevocationLists::default();
                return Ok(Self { verifier: None, revocation, rules, authorities_not_after: None });
            }
            ClientAuth::Optional(path) => (path, false),
            ClientAuth::Required(path) => (path, true),
        };
        let (authorities, warning) = load_authorities(path, now)?;
        warnings.extend(warning);
        let revocation = match options.revocation {
            None => RevocationLists::default(),
            Some(revocation) => {
                let (lists, doubts) = load_revocation_lists(revocation.lists, &authorities.names, now)?;
                warnings.extend(doubts);
                lists
            }
        };
        let rules = rules_digest(options, Some(&authorities), &revocation);
        let authorities_not_after = authorities.not_after;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities.roots), Arc::clone(provider));
        let mut verifier = verifier.with_crls(revocation.lists.iter().cloned());
        if !is_required {
            verifier = verifier.allow_unauthenticated();
        }
        let mut lists_until = u64::MAX;
        if let Some(policy) = options.revocation {
            if policy.accept_unknown {
                verifier = verifier.allow_unknown_revocation_status();
            }
            if policy.leaf_only {
                verifier = verifier.only_check_end_entity_revocation();
            }
            if !policy.accept_expired {
                verifier = verifier.enforce_revocation_expiration();
                lists_until = revocation.next_update.map_or(u64::MAX, |next| u64::try_from(next).unwrap_or(0));
            }
        }
        let inner = verifier
            .build()
            .map_err(|error| TlsLoadError::of_file(path, LoadProblem::Inconsistent(error.to_string())))?;
        let verifier: Arc<dyn ClientCertVerifier> = Arc::new(NotingVerifier { inner, lists_until });
        Ok(Self { verifier: Some(verifier), revocation, rules, authorities_not_after })
    }
}

/// A digest of everything that decides whether a client gets in.
fn rules_digest(
    options: &ServerOptions<'_>,
    authorities: Option<&Authorities>,
    revocation: &RevocationLists,
) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(b"pulsegate ticket rules 1");
    context.update(&(options.listener.len() as u64).to_be_bytes());
    context.update(options.listener.as_bytes());
    context.update(&[match options.client_auth {
        ClientAuth::Off => 0,
        ClientAuth::Optional(_) => 1,
        ClientAuth::Required(_) => 2,
    }]);
    let fingerprints = authorities.map_or(&[][..], |authorities| &authorities.fingerprints);
    for list in [fingerprints, &revocation.fingerprints] {
        context.update(&(list.len() as u64).to_be_bytes());
        for fingerprint in list {
            context.update(fingerprint);
        }
    }
    let flags = options.revocation.map_or([0; 4], |policy| {
        [1, u8::from(policy.accept_expired), u8::from(policy.accept_unknown), u8::from(policy.leaf_only)]
    });
    context.update(&flags);
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}
