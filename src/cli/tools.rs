//! The commands that need no gateway: certificates for trying out, lines for token and password files.

use std::fmt::Write;
use std::io::{self, BufRead, IsTerminal};
use std::time::SystemTime;

use argon2::password_hash::PasswordHasher;
use argon2::{Algorithm, Argon2, Params, Version};
use pulsegate::tls::certs::development::{self, CertificatePair};

use super::arguments::{DevCerts, HashToken};
use super::{CliError, print};

/// Passes over the memory, as in argon2's own recommendation for 19 MiB.
const PASSES: u32 = 2;

/// Makes what is missing and says what lies where.
pub fn dev_certs(options: &DevCerts) -> Result<(), CliError> {
    let clients: Vec<&str> = options.clients.iter().map(String::as_str).collect();
    let made = development::ensure(&options.directory, &clients, SystemTime::now())?;
    let mut text = String::new();
    let mut line = |what: &str, pair: &CertificatePair| {
        let state = if pair.is_new { "made" } else { "kept" };
        let _ = writeln!(text, "{state}  {what:<24}  {}  {}", pair.cert.display(), pair.key.display());
    };
    line("authority", &made.authority);
    line("server (localhost)", &made.server);
    for (id, pair) in clients.iter().zip(&made.clients) {
        line(&format!("client {id}"), pair);
    }
    // Quoted as TOML wants it, which for paths is as Rust quotes text.
    let [cert, key, authority] =
        [&made.server.cert, &made.server.key, &made.authority.cert].map(|path| path.to_string_lossy());
    let _ = write!(
        text,
        "\nFor a listener (paths are relative to the configuration file):\n\
         [listener.tls]\ncert = {cert:?}\nkey = {key:?}\nclient_ca = {authority:?}\nclient_auth = \"optional\"\n"
    );
    print(&text)
}

/// Prints the line of a token file for one device, or of a password file for one user.
pub fn hash_token(options: &HashToken) -> Result<(), CliError> {
    let token = match &options.token {
        Some(token) => token.clone(),
        None => token_from_stdin()?,
    };
    if token.is_empty() {
        return Err(CliError::Input("the token is empty: give one line on stdin, such as from `openssl rand -hex 32`"));
    }
    let params = Params::new(options.memory, PASSES, 1, None).map_err(|error| CliError::Hash(error.into()))?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2.hash_password(token.as_bytes()).map_err(CliError::Hash)?;
    print(&format!("{}:{hash}\n", options.device))
}

fn token_from_stdin() -> Result<String, CliError> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        eprint!("token: ");
    }
    let mut line = String::new();
    stdin.lock().read_line(&mut line).map_err(|error| CliError::Io("the token cannot be read from stdin", error))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
