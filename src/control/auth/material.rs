//! What a listener's authenticators need from files, read and proven: at the start, by a reload and by `check-config`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};

use super::fetch::{FETCH_TIME, FetchSource};
use super::hook::HookTarget;
use super::http::HttpClient;
use super::jwt::KeyPlace;
use super::keys::{KeyRing, Keys, Strictness};
use super::tokens::TokenFile;
use crate::config::{self, Identity, KeySource, Secret};
use crate::whole_file;

/// Everything of one listener.
#[derive(Default)]
pub struct Material {
    pub(super) tokens: Option<TokenFile>,
    pub(super) jwt: Option<JwtMaterial>,
    pub(super) hook: Option<HookTarget>,
}

/// How tokens are verified, and where the keys are.
pub(super) struct JwtMaterial {
    pub(super) config: config::Jwt,
    pub(super) keys: KeyPlace,
    /// Of a source that is fetched: of what it was made from.
    pub(super) digest: [u8; 32],
}

/// What is wrong with one of the files, and which key of the listener names it.
#[derive(Debug)]
pub struct MaterialError {
    /// The key, under the listener.
    pub key: String,
    /// What is wrong, and what to do.
    pub what: String,
}

impl Material {
    /// Reads what `identity` names.
    ///
    /// # Errors
    /// [`MaterialError`]: the first thing that is wrong.
    pub fn load(identity: &Identity) -> Result<Self, MaterialError> {
        let mut material = Self::default();
        if let Some(secrets) = identity.secrets() {
            let wrong = |error: super::tokens::TokenFileError| MaterialError {
                key: secrets.key.clone(),
                what: error.to_string(),
            };
            material.tokens = Some(TokenFile::load(&secrets.file).map_err(wrong)?);
        }
        if let Some(jwt) = identity.jwt() {
            material.jwt = Some(load_jwt(jwt)?);
        }
        if let Some(hook) = identity.hook() {
            material.hook = Some(load_hook(hook)?);
        }
        Ok(material)
    }

    /// Every file that it is read from, with the key of the listener that names it and whether it holds secrets.
    #[must_use]
    pub fn files(identity: &Identity) -> Vec<(String, PathBuf, bool)> {
        let mut files = Vec::new();
        files.extend(identity.secrets().map(|secrets| (secrets.key.clone(), secrets.file.clone(), true)));
        if let Some(jwt) = identity.jwt() {
            match &jwt.keys {
                KeySource::File(file) => files.push((key(jwt.position, "file"), file.clone(), false)),
                KeySource::Url { endpoint, .. } => {
                    files.extend(endpoint.ca.iter().map(|file| (key(jwt.position, "ca"), file.clone(), false)));
                }
            }
        }
        if let Some(hook) = identity.hook() {
            files.extend(hook.endpoint.ca.iter().map(|file| (key(hook.position, "ca"), file.clone(), false)));
            files.extend(hook.bearer_file.iter().map(|file| (key(hook.position, "bearer_file"), file.clone(), true)));
        }
        files
    }
}

fn key(position: usize, key: &str) -> String {
    format!("authenticator[{position}].{key}")
}

fn load_jwt(jwt: &config::Jwt) -> Result<JwtMaterial, MaterialError> {
    let at = |name: &'static str| move |what: String| MaterialError { key: key(jwt.position, name), what };
    let (keys, digest) = match &jwt.keys {
        KeySource::File(file) => {
            let path = file.display();
            let text = read(file).map_err(at("file"))?;
            let keys = Keys::parse(&text, jwt.rsa, Strictness::All).map_err(|what| format!("{path}: {what}"));
            (KeyPlace::File(Arc::new(KeyRing::of(keys.map_err(at("file"))?))), [0; 32])
        }
        KeySource::Url { endpoint, refresh } => {
            let client = HttpClient::new(endpoint, None, FETCH_TIME).map_err(at("ca"))?;
            let digest = digest_of(endpoint.ca.as_deref(), None, &format!("{endpoint:?} {refresh:?} {:?}", jwt.rsa));
            let source = FetchSource::new(client, endpoint.url.clone(), *refresh, jwt.rsa);
            (KeyPlace::Url(Arc::new(source)), digest)
        }
    };
    Ok(JwtMaterial { config: jwt.clone(), keys, digest })
}

fn load_hook(hook: &config::Hook) -> Result<HookTarget, MaterialError> {
    let at = |name: &'static str| move |what: String| MaterialError { key: key(hook.position, name), what };
    let bearer = match &hook.bearer_file {
        None => None,
        Some(file) => {
            let text = Secret::new(read(file).map_err(at("bearer_file"))?);
            Some(Secret::new(text.reveal().trim().to_owned()))
        }
    };
    let client = HttpClient::new(&hook.endpoint, bearer, hook.timeout).map_err(at("ca"))?;
    let digest = digest_of(hook.endpoint.ca.as_deref(), hook.bearer_file.as_deref(), "");
    Ok(HookTarget { config: hook.clone(), client, digest })
}

fn read(file: &Path) -> Result<String, String> {
    let text: io::Result<String> = whole_file::read_text(file);
    text.map_err(|error| format!("{} cannot be read: {error}", file.display()))
}

fn digest_of(one: Option<&Path>, other: Option<&Path>, text: &str) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(text.as_bytes());
    for file in [one, other] {
        let bytes = file.and_then(|file| whole_file::read(file).ok()).unwrap_or_default();
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(&bytes);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}
