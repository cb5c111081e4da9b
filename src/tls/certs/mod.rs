//! Certificates: `load` reads and checks what the operator gave, `choose` picks among several by server name,
//! `leaf` reads the names in one, `revocation` the lists of those that hold no longer, [`development`] makes a set to begin with.
//!
//! Nothing here waits for the network, and private keys never leave this module but inside a signing key.

mod leaf;
mod load;
mod revocation;

mod choose;

pub mod authority;
pub mod development;

#[cfg(test)]
pub(crate) mod fixtures;

pub use leaf::{CertificateFacts, CertificateMark, PeerIdentity};
pub use load::{Dated, ENDS_SOON, LoadProblem, LoadWarning, TlsLoadError, Validity};

pub(super) use choose::CertificateChooser;
pub(super) use leaf::{Leaf, describe};
pub(super) use load::{Authorities, Chain, load_authorities, load_chain, load_staple};
pub(super) use revocation::{RevocationLists, load_revocation_lists};
