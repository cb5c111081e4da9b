//! Certificates: `load` reads and checks what the operator gave, `choose` picks among several by server name,
//! `leaf` reads the names in one, [`development`] makes a set to begin with.
//!
//! Nothing here waits for the network, and private keys never leave this module but inside a signing key.

mod leaf;
mod load;

mod choose;

pub mod development;

#[cfg(test)]
pub(crate) mod fixtures;

pub use leaf::PeerIdentity;
pub use load::{LoadProblem, LoadWarning, TlsLoadError, Validity};

pub(super) use choose::CertificateChooser;
pub(super) use leaf::Leaf;
pub(super) use load::{Chain, load_authorities, load_chain};
