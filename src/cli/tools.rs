//! The commands that need no gateway: certificates for trying out, lines for token and password files, completions and manual
//! pages.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Stdin, Write as _};
use std::time::SystemTime;

use argon2::password_hash::PasswordHasher;
use argon2::{Algorithm, Argon2, Params, Version};
use clap::CommandFactory;
use pulsegate::gateway::GatewayError;
use pulsegate::tls::certs::development::{self, CertificatePair};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::arguments::{Arguments, Completions, DevCerts, HashToken, Man};
use super::{CliError, print, warn};

/// Passes over the memory, as in argon2's own recommendation for 19 MiB.
const PASSES: u32 = 2;
/// A shorter token is hashed with a warning.
const TOKEN_LETTERS_MIN: usize = 12;

/// Makes what is missing and says what lies where.
pub fn dev_certs(options: &DevCerts) -> Result<(), CliError> {
    let clients: Vec<&str> = options.clients.iter().map(String::as_str).collect();
    let made = development::ensure(&options.directory, &clients, SystemTime::now()).map_err(GatewayError::from)?;
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

/// Prints what a shell needs to complete command lines.
pub fn completions(options: &Completions) -> Result<(), CliError> {
    let mut text = Vec::new();
    clap_complete::generate(options.shell, &mut Arguments::command(), "pulsegate", &mut text);
    print(&String::from_utf8_lossy(&text))
}

/// Writes a manual page for each command, or prints the first.
pub fn man(options: &Man) -> Result<(), CliError> {
    let cannot = |error| CliError::Io("the manual pages cannot be written", error);
    let command = Arguments::command();
    let Some(directory) = &options.directory else {
        let mut text = Vec::new();
        clap_mangen::Man::new(command).render(&mut text).map_err(cannot)?;
        return print(&String::from_utf8_lossy(&text));
    };
    std::fs::create_dir_all(directory).map_err(cannot)?;
    clap_mangen::generate_to(command, directory).map_err(cannot)
}

/// Prints the line of a token file for one device, or of a password file for one user.
pub fn hash_token(options: &HashToken) -> Result<(), CliError> {
    let token = Zeroizing::new(match &options.token {
        Some(token) => token.clone(),
        None => token_from_stdin()?,
    });
    if token.is_empty() {
        return Err(CliError::Input("the token is empty: give one line on stdin, such as from `openssl rand -hex 32`"));
    }
    if token.chars().count() < TOKEN_LETTERS_MIN {
        warn(&format!(
            "fewer than {TOKEN_LETTERS_MIN} characters can be guessed: for a device take the output of `openssl rand \
             -hex 32`, for a person a longer password"
        ));
    }
    let params = Params::new(options.memory, PASSES, 1, None).map_err(|error| CliError::Hash(error.into()))?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2.hash_password(token.as_bytes()).map_err(CliError::Hash)?;
    print(&format!("{}:{hash}\n", options.device))
}

/// One line: on a terminal asked for twice and not shown, otherwise as it comes.
fn token_from_stdin() -> Result<String, CliError> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return read_line(&stdin);
    }
    let hidden = Hidden::hide(&stdin).map_err(|error| CliError::Io("the terminal cannot be made to hide it", error))?;
    let token = Zeroizing::new(ask(&stdin, "token or password (not shown): ")?);
    let again = Zeroizing::new(ask(&stdin, "the same again: ")?);
    drop(hidden);
    if token != again {
        return Err(CliError::Input("these are two different ones: nothing was made"));
    }
    Ok(token.to_string())
}

fn ask(stdin: &Stdin, question: &str) -> Result<String, CliError> {
    // Whoever does not see the question sees no answer either.
    let _ = write!(io::stderr(), "{question}");
    let line = read_line(stdin);
    let _ = writeln!(io::stderr());
    line
}

fn read_line(stdin: &Stdin) -> Result<String, CliError> {
    let mut line = String::new();
    stdin.read_line(&mut line).map_err(|error| CliError::Io("the token cannot be read from stdin", error))?;
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}

/// A terminal that does not show what is typed. It does again when this value goes.
struct Hidden<'a> {
    terminal: &'a Stdin,
    before: Termios,
}

impl<'a> Hidden<'a> {
    fn hide(terminal: &'a Stdin) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &hidden)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        // A terminal that is gone shows nothing.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}
