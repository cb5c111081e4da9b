//! `[admin]`: where the API listens, who may ask, and under which names.

use super::{Context, check_name, values};
use crate::config::error::{ConfigKey, Problem};
use crate::config::raw::{RawAdmin, RawAdminTls, RawAdminToken};
use crate::config::{Admin, AdminTls, AdminToken, Role, Secret};

/// Where the control plane listens, unless written.
const ADMIN_LISTEN: &str = "127.0.0.1:7480";
/// No admin token is shorter, in bytes, where other machines reach the API; elsewhere a shorter one is warned of.
const TOKEN_BYTES_MIN: usize = 16;
/// The longest name of a host (RFC 1035, section 3.1).
const HOST_BYTES_MAX: usize = 253;
/// At most so many tokens.
const TOKENS_MAX: usize = 64;
/// The name of the token in `admin.token_file`.
const UNNAMED: &str = "admin";

pub(super) fn resolve(context: &mut Context<'_>, raw: RawAdmin) -> Result<Admin, Problem> {
    let listen =
        values::address(ConfigKey::top("admin.listen"), raw.listen.as_deref().unwrap_or(ADMIN_LISTEN), ADMIN_LISTEN)?;
    let is_remote = !listen.ip().is_loopback();
    let mut tokens = Vec::new();
    let written = raw.token_file.iter().chain(raw.tokens.iter().filter_map(|token| token.file.as_ref()));
    let token_files = written.map(|written| context.base.join(written)).collect();
    if let Some(written) = raw.token_file {
        let secret = secret(context, ConfigKey::top("admin.token_file"), &written, is_remote)?;
        tokens.push(AdminToken { name: UNNAMED.to_owned(), role: Role::Admin, secret });
    }
    if raw.tokens.len() > TOKENS_MAX {
        let what = format!("there are {}", raw.tokens.len());
        return Err(Problem::new(ConfigKey::top("admin.token"), what, format!("write at most {TOKENS_MAX}")));
    }
    for (index, raw) in raw.tokens.into_iter().enumerate() {
        let token = named(context, index, raw, is_remote)?;
        if tokens.iter().any(|other: &AdminToken| other.name == token.name) {
            let what = format!("{:?} is the name of another token", token.name);
            return Err(Problem::new(place(index, "name"), what, "give each token a name of its own"));
        }
        if tokens.iter().any(|other| other.secret == token.secret) {
            let what = "the file holds the secret of another token".to_owned();
            return Err(Problem::new(place(index, "file"), what, "give each token a secret of its own"));
        }
        tokens.push(token);
    }
    if tokens.is_empty() && is_remote {
        let what = format!("{listen} can be reached from other machines and nothing protects it");
        let remedy = "set admin.token_file to a file with a long random token, or listen on 127.0.0.1";
        return Err(Problem::new(ConfigKey::top("admin.listen"), what, remedy));
    }
    let hosts = raw.hosts;
    for host in &hosts {
        check_host(ConfigKey::top("admin.hosts"), host)?;
    }
    let tls = raw.tls.map(|raw| tls(context, &raw)).transpose()?;
    if is_remote && tls.is_none() {
        let what = "it can be reached from other machines without TLS, and whoever is on the way reads tokens and messages: \
                    add [admin.tls] with cert and key, or let a proxy in front do it";
        context.note(&ConfigKey::top("admin.listen"), what);
    }
    Ok(Admin { listen, tokens, token_files, hosts, tls })
}

fn tls(context: &Context<'_>, raw: &RawAdminTls) -> Result<AdminTls, Problem> {
    let path = |key: &str, written: &Option<String>| {
        let place = ConfigKey::top(format!("admin.tls.{key}"));
        written.as_deref().map(|written| context.path(place, written)).transpose()
    };
    let needed = |key: &str, written: &Option<String>, remedy: &str| {
        let missing = || Problem::new(ConfigKey::top(format!("admin.tls.{key}")), "it is missing", remedy);
        path(key, written)?.ok_or_else(missing)
    };
    Ok(AdminTls {
        cert: needed("cert", &raw.cert, "name a PEM file with the certificate that the API shows")?,
        key: needed("key", &raw.key, "name a PEM file with the key of admin.tls.cert")?,
        client_ca: path("client_ca", &raw.client_ca)?,
    })
}

fn place(index: usize, key: &str) -> ConfigKey {
    ConfigKey::top(format!("admin.token[{index}].{key}"))
}

fn named(context: &mut Context<'_>, index: usize, raw: RawAdminToken, is_remote: bool) -> Result<AdminToken, Problem> {
    let missing = |key: &str, remedy: &str| Problem::new(place(index, key), "it is missing", remedy);
    let name = raw.name.ok_or_else(|| missing("name", "name whoever holds the token, as in name = \"prometheus\""))?;
    check_name(place(index, "name"), &name)?;
    let role = raw.role.ok_or_else(|| missing("role", "write \"read\", \"command\" or \"admin\""))?;
    let roles = Role::ALL.map(|role| (role.label(), role));
    let role = values::word(place(index, "role"), &role, &roles)?;
    let file = raw.file.ok_or_else(|| missing("file", "name a file with a long random token"))?;
    let secret = secret(context, place(index, "file"), &file, is_remote)?;
    Ok(AdminToken { name, role, secret })
}

fn secret(context: &mut Context<'_>, place: ConfigKey, written: &str, is_remote: bool) -> Result<Secret, Problem> {
    let text = Secret::new(context.text(place.clone(), written)?);
    let token = text.reveal().trim();
    let remedy = "write one line with a long random token into it (openssl rand -hex 32)";
    if token.is_empty() {
        return Err(Problem::new(place, format!("{written} is empty"), remedy));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let what = format!("{written} holds more than one word of visible ASCII");
        return Err(Problem::new(place, what, remedy));
    }
    if token.len() < TOKEN_BYTES_MIN {
        let what = format!("the token is shorter than {TOKEN_BYTES_MIN} bytes and could be guessed");
        if is_remote {
            return Err(Problem::new(place, what, remedy));
        }
        context.warn(&place, &what);
    }
    Ok(Secret::new(token.to_owned()))
}

/// A name as browsers and clients send it in Host, without a port.
fn check_host(place: ConfigKey, host: &str) -> Result<(), Problem> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.bytes().all(fits) {
        let remedy = "write names as in gateway.example.com, without scheme or port (addresses are allowed anyway)";
        return Err(Problem::new(place, format!("{host:?} is not the name of a host"), remedy));
    }
    Ok(())
}
